//! `spool`: what waits on this disk for PostgreSQL. All but `drain` read along, also while a daemon runs, and change
//! nothing.

pub mod drain;

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::ExitStatus;
use super::table::{Table, with_thousands};
use crate::config::Config;
use crate::model::spool::encode_shown_record;
use crate::observe::Clock;
use crate::spool::disk::LocalDisk;
use crate::spool::{
    FindingKind, Inspection, PartitionRanges, SegmentFile, SegmentPlace, SegmentSummary, SpoolError,
};

/// What to do with the spool.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum SpoolCommand {
    /// Show its segments with their ranges, ages and states
    List(ShowArgs),
    /// Read every line of every segment; exit code 1 names each damage with file and line
    Verify(ShowArgs),
    /// Write the records that are held as JSON lines, oldest first
    Cat(CatArgs),
    /// Bring what is held to PostgreSQL, and exit; exit code 1 says what is left and why
    ///
    /// For a spool whose daemon does not run: on the disk of an instance that is gone, or to fill a gap. While a
    /// daemon uses the directory, nothing is done: the daemon drains by itself. Nor is anything done in a directory
    /// that --dir names and that was never a spool.
    Drain(drain::DrainArgs),
}

/// Where it is, and how to show it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ShowArgs {
    /// The spool's directory, instead of SPOOL_DIR
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Write one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Where it is.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CatArgs {
    /// The spool's directory, instead of SPOOL_DIR
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Records that PostgreSQL has, and that are kept for a while, too
    #[arg(long)]
    pub drained: bool,
}

/// Runs `command` on the directory that it names, or SPOOL_DIR. [`ExitStatus::Refused`] when there is none, or it
/// can't be read; [`ExitStatus::Findings`] when `verify` found damage, or `drain` left something.
///
/// # Errors
/// What `out` reports, and what PostgreSQL does to a drain.
pub async fn run(command: &SpoolCommand, config: &Config, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let named = match command {
        SpoolCommand::List(args) | SpoolCommand::Verify(args) => &args.dir,
        SpoolCommand::Cat(args) => &args.dir,
        SpoolCommand::Drain(args) => &args.dir,
    };
    let Some(dir) = named.as_ref().or(config.spool.as_ref().map(|spool| &spool.dir)) else {
        writeln!(out, "there is no spool: SPOOL_DIR=off; name one by --dir")?;
        return Ok(ExitStatus::Refused);
    };
    if !dir.try_exists().unwrap_or(false) {
        writeln!(out, "there is no spool in {}; name another by --dir", dir.display())?;
        return Ok(ExitStatus::Refused);
    }
    let inspection = Inspection::new(dir, LocalDisk);
    let outcome = match command {
        SpoolCommand::List(args) => tokio::task::block_in_place(|| list(&inspection, args, out)),
        SpoolCommand::Verify(args) => tokio::task::block_in_place(|| verify(&inspection, args, out)),
        SpoolCommand::Cat(args) => tokio::task::block_in_place(|| cat(&inspection, args, out)),
        SpoolCommand::Drain(args) => drain::run(args, dir, config, out).await,
    };
    match outcome {
        Err(error) if error.is::<SpoolError>() => {
            writeln!(out, "the spool can't be read: {error}")?;
            Ok(ExitStatus::Refused)
        }
        other => other,
    }
}

const fn place_text(place: SegmentPlace) -> &'static str {
    match place {
        SegmentPlace::Held => "held",
        SegmentPlace::Drained => "drained",
        SegmentPlace::Quarantined => "quarantined",
    }
}

fn list(inspection: &Inspection, args: &ShowArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut segments = inspection.read_each(inspection.files()?, |file| inspection.summary(file))?;
    // One that was moved meanwhile stands where it is now.
    segments.sort_by_key(|(file, _)| (file.place, file.number));
    if args.json {
        let rows: Vec<Value> = segments.iter().map(|(file, summary)| segment_json(file, summary)).collect();
        writeln!(out, "{:#}", json!({"segments": rows}))?;
        return Ok(ExitStatus::Success);
    }
    let now_ms = Clock::default().unix_ms();
    let mut table =
        Table::new(&["segment", "state", "records", "bytes", "begun", "topic", "partition", "ranges"]);
    for (file, summary) in &segments {
        let begun = summary.header.as_ref().map_or_else(String::new, |header| {
            let age_ms = u64::try_from(now_ms.saturating_sub(header.created_at_ms)).unwrap_or(0);
            format!("{} s ago", age_ms / 1000)
        });
        let first = summary.ranges.first();
        table.push(vec![
            i64::try_from(file.number.0).unwrap_or(i64::MAX).into(),
            place_text(file.place).into(),
            i64::try_from(summary.record_count).unwrap_or(i64::MAX).into(),
            i64::try_from(file.len_bytes).unwrap_or(i64::MAX).into(),
            begun.as_str().into(),
            first.map_or("", |ranges| &ranges.topic).into(),
            first.map(|ranges| i64::from(ranges.key.partition.0)).into(),
            first.map(ranges_text).unwrap_or_default().as_str().into(),
        ]);
        for ranges in summary.ranges.iter().skip(1) {
            let blank = || "".into();
            table.push(vec![
                blank(),
                blank(),
                blank(),
                blank(),
                blank(),
                (&*ranges.topic).into(),
                i64::from(ranges.key.partition.0).into(),
                ranges_text(ranges).as_str().into(),
            ]);
        }
    }
    table.write_to(out)?;
    let held = segments.iter().filter(|(file, _)| file.place == SegmentPlace::Held);
    let record_count: u64 = held.map(|(_, summary)| summary.record_count).sum();
    writeln!(out, "\n{} records are held", with_thousands(i64::try_from(record_count).unwrap_or(i64::MAX)))?;
    Ok(ExitStatus::Success)
}

fn ranges_text(ranges: &PartitionRanges) -> String {
    ranges.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn segment_json(file: &SegmentFile, summary: &SegmentSummary) -> Value {
    let ranges: Vec<Value> = summary
        .ranges
        .iter()
        .flat_map(|ranges| {
            ranges.ranges.iter().map(move |range| {
                json!({
                    "topic": &*ranges.topic, "stream_id": ranges.key.stream.to_string(),
                    "partition": ranges.key.partition.0, "start": range.start().as_i64(),
                    "end": range.end().as_i64(),
                })
            })
        })
        .collect();
    json!({
        "segment": file.number.0, "state": place_text(file.place), "path": file.path.display().to_string(),
        "records": summary.record_count, "batches": summary.batch_count, "bytes": file.len_bytes,
        "sealed": summary.is_sealed, "created_at_ms": summary.header.as_ref().map(|header| header.created_at_ms),
        "ranges": ranges,
    })
}

fn verify(inspection: &Inspection, args: &ShowArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let verified = inspection.read_each(inspection.files()?, |file| inspection.verify(file))?;
    let segment_count = verified.len();
    let findings: Vec<_> = verified.into_iter().flat_map(|(_file, findings)| findings).collect();
    let missing = inspection.missing()?;
    let is_well =
        findings.iter().all(|finding| finding.kind == FindingKind::Unfinished) && missing.is_empty();
    if args.json {
        let damages: Vec<Value> = findings.iter().map(|finding| json!(finding.to_string())).collect();
        let gone: Vec<Value> = missing.iter().map(|missing| json!(missing.to_string())).collect();
        writeln!(
            out,
            "{:#}",
            json!({"ok": is_well, "segments": segment_count, "damages": damages, "missing": gone})
        )?;
    } else {
        for finding in &findings {
            writeln!(out, "{finding}")?;
        }
        for missing in &missing {
            writeln!(out, "{missing}")?;
        }
        let word = if is_well { "every line is as it was written" } else { "damaged, see above" };
        writeln!(out, "{segment_count} files: {word}")?;
    }
    Ok(if is_well { ExitStatus::Success } else { ExitStatus::Findings })
}

fn cat(inspection: &Inspection, args: &CatArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let is_wanted = |file: &SegmentFile| {
        file.place == SegmentPlace::Held || (args.drained && file.place == SegmentPlace::Drained)
    };
    let mut files: Vec<SegmentFile> = inspection.files()?.into_iter().filter(is_wanted).collect();
    files.sort_by_key(|file| file.number);
    let mut written = Ok(());
    inspection.read_each(files, |file| {
        inspection.read(file, |batch| {
            if written.is_err() {
                return;
            }
            let mut lines = Vec::new();
            let key = batch.line.key;
            let chunk = batch.into_chunk(crate::model::record::AssignmentId(0));
            for record in &chunk.records {
                encode_shown_record(&mut lines, key, &chunk, record);
            }
            written = out.write_all(&lines);
        })
    })?;
    written?;
    Ok(ExitStatus::Success)
}
