//! `export`: events as lines for others, in the order of their time, however many there are.

mod file;
mod progress;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use self::file::PartialFile;
use self::progress::Progress;
use super::table::with_thousands;
use super::{ExitStatus, complain};
use crate::failpoint;
use crate::model::event::Timestamp;
use crate::model::projection::{LineFormat, Projection, ProjectionRules};
use crate::store::{EventFilter, SessionPurpose, StoreSettings};

/// How many bytes are written at once.
const WRITE_LEN_BYTES: usize = 128 << 10;

/// What to export.
#[derive(Debug, Clone, clap::Args)]
pub struct ExportArgs {
    /// The form of the lines; purview and o365 leave out events that are not purview_compatible
    #[arg(value_name = "FORM", value_parser = projections())]
    pub projection: Projection,
    /// Only events at or after this time, such as 2026-01-31 or 2026-01-31T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub from: Option<Timestamp>,
    /// Only events before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub to: Option<Timestamp>,
    /// Only events of this tenant
    #[arg(long, value_name = "ID")]
    pub tenant: Option<String>,
    /// Only events by this actor
    #[arg(long, value_name = "NAME")]
    pub actor: Option<String>,
    /// Only events of this operation
    #[arg(long, value_name = "NAME")]
    pub operation: Option<String>,
    /// Only events with this correlation id
    #[arg(long, value_name = "UUID")]
    pub correlation_id: Option<Uuid>,
    /// JSON lines, or comma separated values
    #[arg(long, value_name = "jsonl|csv", default_value = "jsonl", value_parser = formats())]
    pub format: LineFormat,
    /// Write to this file instead of standard output; it is there when it is whole
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the file if there is one
    #[arg(long, requires = "output")]
    pub force: bool,
}

fn projections() -> impl TypedValueParser<Value = Projection> {
    PossibleValuesParser::new(Projection::ALL.map(Projection::as_str)).map(|word| {
        let found = Projection::ALL.into_iter().find(|projection| projection.as_str() == word);
        found.unwrap_or(Projection::Events)
    })
}

fn formats() -> impl TypedValueParser<Value = LineFormat> {
    PossibleValuesParser::new(["jsonl", "csv"]).map(|word| match word.as_str() {
        "csv" => LineFormat::Csv,
        _ => LineFormat::JsonLines,
    })
}

/// A time on the command line: RFC 3339, or a day.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    Timestamp::from_text(text)
        .ok_or_else(|| "a time such as 2026-01-31T08:00:00Z, or a day, 2026-01-31".into())
}

impl ExportArgs {
    fn filter(&self) -> EventFilter {
        EventFilter {
            from: self.from,
            to: self.to,
            tenant: self.tenant.clone(),
            actor: self.actor.clone(),
            operation: self.operation.clone(),
            correlation_id: self.correlation_id,
            for_purview_only: self.projection.is_for_purview(),
        }
    }
}

/// Writes the lines to `out`, or to the file that `args` name and a summary to `out`. [`ExitStatus::Refused`] when
/// the file is there already, or on a signal; the file is then as it was.
///
/// # Errors
/// What PostgreSQL, `out` or the file report. Lines written to `out` before that stay; the file is as it was.
pub async fn run(
    args: &ExportArgs,
    store: &StoreSettings,
    rules: &ProjectionRules,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from >= to
    {
        complain(&format!("--from {from} is not before --to {to}"));
        return Ok(ExitStatus::Misused);
    }
    let Some(path) = &args.output else {
        export(args, store, rules, out).await?;
        return Ok(ExitStatus::Success);
    };
    let in_file = || format!("write {}", path.display());
    let mut file = match PartialFile::create(path, args.force) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return already_there(path),
        file => file.with_context(in_file)?,
    };
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    // Rows may come so fast that they take every turn: the signals are looked at first.
    let exported = tokio::select! {
        biased;
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        exported = export(args, store, rules, &mut file) => Some(exported?),
    };
    let Some(event_count) = exported else {
        complain("stopped by a signal; no file was written");
        return Ok(ExitStatus::Refused);
    };
    match file.finish() {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return already_there(path),
        finished => finished.with_context(in_file)?,
    }
    writeln!(out, "{} events in {}", with_thousands(i64::try_from(event_count)?), path.display())?;
    Ok(ExitStatus::Success)
}

fn already_there(path: &std::path::Path) -> anyhow::Result<ExitStatus> {
    complain(&format!("nothing was done: {} is there already; --force replaces it", path.display()));
    Ok(ExitStatus::Refused)
}

/// Writes every line to `out`; returns how many events there were.
async fn export(
    args: &ExportArgs,
    store: &StoreSettings,
    rules: &ProjectionRules,
    out: &mut dyn Write,
) -> anyhow::Result<u64> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let mut progress = Progress::new(args.from, args.to);
    let mut lines = String::with_capacity(WRITE_LEN_BYTES * 2);
    args.projection.write_head(args.format, &mut lines);
    let exported = session
        .for_each_event(&args.filter(), |row| -> anyhow::Result<()> {
            args.projection.write_line(row, rules, args.format, &mut lines);
            if lines.len() >= WRITE_LEN_BYTES {
                out.write_all(lines.as_bytes()).context("write lines")?;
                lines.clear();
                failpoint::at("export_after_write");
            }
            progress.count(row.timestamp);
            Ok(())
        })
        .await;
    progress.finish();
    let event_count = exported?;
    session.close().await;
    out.write_all(lines.as_bytes()).context("write lines")?;
    out.flush().context("write lines")?;
    Ok(event_count)
}
