//! `spool drain`: what a spool holds goes to PostgreSQL, without a daemon.
//!
//! 1. Take the directory's lock, and recover it as a daemon would.
//! 2. Hold again what was drained before and PostgreSQL has lost since, by a failover. Publish what is held, so that
//!    nobody declares a gap over it meanwhile.
//! 3. Store it from PostgreSQL's positions on, pass by pass, as long as a pass stores something.
//! 4. With `--fill-gap`: store what lies in declared gaps, from every file of the directory.
//! 5. Let go what PostgreSQL has, publish what is left, and say what that is.
//!
//! It can be stopped and begun again anywhere: the positions, and the gaps that are open, tell what is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use clap::builder::NonEmptyStringValueParser;
use serde_json::json;

use crate::app;
use crate::cli::ExitStatus;
use crate::cli::table::{Table, with_thousands};
use crate::config::Config;
use crate::model::position::{Offset, OffsetRange, StreamPartition};
use crate::model::record::AssignmentId;
use crate::model::spool::SpooledBatch;
use crate::observe::{Clock, Traces};
use crate::pipeline::{PassReport, SharedSpool, Sorting, StoredCounts, StrayError, Strays, overlap};
use crate::spool::disk::LocalDisk;
use crate::spool::{
    self, Inspection, PartitionRanges, Quarantined, QuarantinedWhen, Recovery, Spool, SpoolError, joined,
};
use crate::store::{Session, SessionPurpose, StoreError, StoreSettings, Telling};

/// How many batches of a gap are read ahead.
const READ_AHEAD_COUNT: usize = 2;
/// How often PostgreSQL, or an owner who moves positions meanwhile, is waited for, and how long.
const RETRY_MAX_COUNT: u32 = 10;
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Which spool, and what of it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DrainArgs {
    /// The spool's directory, instead of SPOOL_DIR: also that of an instance that is gone
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Store the records of declared gaps too, also from quarantine: the gaps are closed and the counts corrected
    #[arg(long, requires = "reason")]
    pub fill_gap: bool,
    /// Why gaps are filled, for the record
    #[arg(long, value_name = "TEXT", requires = "fill_gap", value_parser = NonEmptyStringValueParser::new())]
    pub reason: Option<String>,
    /// Who fills them, for the record
    #[arg(long, env = "USER", default_value = "unknown", value_name = "NAME")]
    pub actor: String,
    /// Write one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// What was done, and what is left.
#[derive(Debug, Default)]
struct Done {
    stored: BTreeMap<StreamPartition, StoredCounts>,
    filled: BTreeMap<StreamPartition, StoredCounts>,
    /// What is left, and why.
    left: Vec<(PartitionRanges, String)>,
    /// What else must be known.
    notes: Vec<String>,
    topics: BTreeMap<StreamPartition, Arc<str>>,
}

/// Drains the spool in `dir`. [`ExitStatus::Refused`] while a daemon has it, and for a directory that `args` name and
/// that was never a spool.
///
/// # Errors
/// What PostgreSQL, the disk or `out` report; what was stored until then is stored.
pub async fn run(
    args: &DrainArgs,
    dir: &Path,
    config: &Config,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    // Before anything is written there, or removed.
    if args.dir.is_some()
        && let Some(reason) = tokio::task::block_in_place(|| no_spool(dir))?
    {
        return refuse(args, out, &reason);
    }
    let mut store = app::store_settings(config);
    let limits = app::spool_limits(config.spool.as_ref());
    let opened = tokio::task::block_in_place(|| {
        let instance = spool::instance_of(dir).with_context(|| format!("read {}", dir.display()))?;
        Ok::<_, anyhow::Error>((instance, Spool::open(dir, limits, instance, LocalDisk)))
    });
    let (instance, opened) = opened?;
    let (spool, recovery) = match opened {
        Err(error @ SpoolError::Held { .. }) => {
            let reason = format!("{error}; a daemon drains its spool by itself, stop it first");
            return refuse(args, out, &reason);
        }
        opened => opened?,
    };
    store.instance = instance;
    let drain = Drain {
        spool: Arc::new(Mutex::new(spool)),
        dir: dir.to_owned(),
        store,
        settings: (Arc::new(app::decode_rules(config)), app::batch_limits(config)),
        traces: super::super::traces(),
    };
    let mut done = Done::default();
    let outcome = drain.run(args, &recovery, &mut done).await;
    tokio::task::block_in_place(|| drain.traces.shutdown());
    if outcome.is_err() {
        done.notes.push("it ended early; what is told here is stored, say it again for the rest".into());
    }
    if args.json {
        writeln!(out, "{:#}", done.to_json())?;
    } else {
        done.write_to(out)?;
    }
    outcome?;
    Ok(if done.is_well() { ExitStatus::Success } else { ExitStatus::Findings })
}

/// Why `dir` is not drained, when no process ever opened a spool in it: to open it would make one there, find it empty
/// and say that all is well.
fn no_spool(dir: &Path) -> Result<Option<String>, SpoolError> {
    if Inspection::new(dir, LocalDisk).was_opened()? {
        return Ok(None);
    }
    let inner = dir.join("spool");
    let advice = if Inspection::new(&inner, LocalDisk).was_opened().unwrap_or(false) {
        format!("there is one in it: --dir {}", inner.display())
    } else {
        "name by --dir what its daemon had as SPOOL_DIR, or LOG_DIR/spool where that was not set".into()
    };
    Ok(Some(format!("{} is no spool, it has no segments and no drained/; {advice}", dir.display())))
}

fn refuse(args: &DrainArgs, out: &mut dyn Write, reason: &str) -> anyhow::Result<ExitStatus> {
    if args.json {
        writeln!(out, "{:#}", json!({"ok": false, "refused": reason}))?;
    } else {
        writeln!(out, "nothing was done: {reason}")?;
    }
    Ok(ExitStatus::Refused)
}

/// A spool that is drained.
struct Drain {
    spool: SharedSpool,
    dir: PathBuf,
    store: StoreSettings,
    settings: (Arc<crate::model::decode::DecodeRules>, crate::model::batch::BatchLimits),
    traces: Traces,
}

impl Drain {
    async fn run(&self, args: &DrainArgs, recovery: &Recovery, done: &mut Done) -> anyhow::Result<()> {
        let mut session = self.store.connect(SessionPurpose::Operator).await?;
        let mut strays = Strays::new(
            Arc::clone(&self.spool),
            self.store.clone(),
            self.settings.clone(),
            self.traces.clone(),
        );
        self.hold_again(&mut strays).await?;
        self.publish(&mut session).await?;
        for held in self.with_spool(|spool| spool.held()) {
            done.topics.insert(held.key, held.topic);
        }
        let mut damaged: Vec<(PathBuf, PartitionRanges)> = Vec::new();
        for cut in &recovery.cuts {
            let file = cut.file.clone().unwrap_or_else(|| self.dir.clone());
            damaged.extend(cut.whole.iter().chain(&cut.broken).map(|ranges| (file.clone(), ranges.clone())));
        }
        damaged.extend(recovery.quarantined.iter().flat_map(ranges_of));
        done.notes.extend(recovery.missing.iter().map(ToString::to_string));
        let last = self.store_all(&mut strays, done, &mut damaged).await?;
        if let Some(reason) = args.reason.as_deref().filter(|_| args.fill_gap) {
            self.fill_gaps((&mut session, &mut strays), (&args.actor, reason), done).await?;
        }
        self.let_go((&mut session, &mut strays), (&last, &damaged), done).await?;
        self.publish(&mut session).await?;
        strays.close().await;
        session.close().await;
        Ok(())
    }

    fn with_spool<T>(&self, work: impl FnOnce(&mut Spool) -> T) -> T {
        tokio::task::block_in_place(|| work(&mut self.spool.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Holds drained records again that lie behind PostgreSQL's position.
    async fn hold_again(&self, strays: &mut Strays) -> anyhow::Result<()> {
        while self.with_spool(|spool| spool.look_into_drained())? {}
        let keys = self.with_spool(|spool| spool.drained()).iter().map(|drained| drained.key).collect();
        for (key, (_, position)) in strays.positions(&keys).await? {
            if self.with_spool(|spool| spool.restore(key, position))? {
                tracing::warn!(partition = %key, %position, "postgresql has lost what was drained before; it is drained once more");
            }
        }
        Ok(())
    }

    async fn publish(&self, session: &mut Session) -> anyhow::Result<()> {
        let ranges = joined(&self.with_spool(|spool| spool.held()));
        // Every drained segment was looked into, and what PostgreSQL lacks of them is held again.
        Ok(session.publish_spool_ranges(self.store.instance, &ranges, Telling::All).await?)
    }

    /// Passes over the spool until one stores nothing more; returns what that one said.
    async fn store_all(
        &self,
        strays: &mut Strays,
        done: &mut Done,
        damaged: &mut Vec<(PathBuf, PartitionRanges)>,
    ) -> anyhow::Result<PassReport> {
        let sorting = Sorting { store: done.topics.keys().copied().collect(), ..Sorting::default() };
        let mut idle_count = 0;
        loop {
            let record_count = self.with_spool(|spool| spool.stats().record_count);
            let bar = bar(record_count, "records read");
            let report = strays.pass(&sorting, |record_count| bar.inc(record_count)).await;
            bar.finish_and_clear();
            let report = match report {
                Err(StrayError::Store(StoreError::Unavailable { .. } | StoreError::Contended { .. }))
                    if idle_count < RETRY_MAX_COUNT =>
                {
                    idle_count += 1;
                    tokio::time::sleep(RETRY_WAIT).await;
                    continue;
                }
                report => report.map_err(plain)?,
            };
            damaged.extend(report.quarantined.iter().flat_map(ranges_of));
            for (key, counts) in &report.counts {
                done.stored.entry(*key).or_default().add(*counts);
            }
            if !report.counts.is_empty() {
                idle_count = 0;
            } else if report.stale.is_empty() || idle_count >= RETRY_MAX_COUNT {
                return Ok(report);
            } else {
                // Somebody else moves these positions.
                idle_count += 1;
                tokio::time::sleep(RETRY_WAIT).await;
            }
        }
    }

    /// Stores what any file of the directory holds of open gaps, until nothing of a pass lies in one.
    async fn fill_gaps(
        &self,
        (session, strays): (&mut Session, &mut Strays),
        actor: (&str, &str),
        done: &mut Done,
    ) -> anyhow::Result<()> {
        let inspection = Inspection::new(&self.dir, LocalDisk);
        let files = tokio::task::block_in_place(|| inspection.files())?;
        let bar = bar(u64::try_from(files.len()).unwrap_or(0), "files looked through for gaps");
        for file in files {
            bar.inc(1);
            if file.len_bytes == 0 {
                continue;
            }
            let summary = tokio::task::block_in_place(|| inspection.summary(&file))?;
            let keys: BTreeSet<StreamPartition> = summary.ranges.iter().map(|ranges| ranges.key).collect();
            for ranges in &summary.ranges {
                done.topics.insert(ranges.key, Arc::clone(&ranges.topic));
            }
            let mut before = Vec::new();
            loop {
                // A batch may lie in two gaps, and a gap that was filled in part has another range now.
                let gaps = session.open_gaps(&keys).await?;
                if gaps == before {
                    break;
                }
                let (sender, mut batches) = tokio::sync::mpsc::channel::<SpooledBatch>(READ_AHEAD_COUNT);
                let (read, of) = (Inspection::new(&self.dir, LocalDisk), file.clone());
                let wanted = gaps.clone();
                let reader = tokio::task::spawn_blocking(move || {
                    read.read(&of, |batch| {
                        let is_wanted = wanted
                            .iter()
                            .any(|(key, gap)| *key == batch.line.key && overlap(*gap, batch.line.range));
                        if is_wanted && sender.blocking_send(batch).is_err() {
                            tracing::debug!("nobody fills gaps any more");
                        }
                    })
                });
                while let Some(batch) = batches.recv().await {
                    let (key, range) = (batch.line.key, batch.line.range);
                    let Some((_, gap)) =
                        gaps.iter().find(|(other, gap)| *other == key && overlap(*gap, range))
                    else {
                        continue;
                    };
                    let chunk = batch.into_chunk(AssignmentId(0)).from(gap.start()).until(gap.end());
                    let counts = strays.fill(key, chunk, actor).await.map_err(plain)?;
                    if counts != StoredCounts::default() {
                        done.filled.entry(key).or_default().add(counts);
                    }
                }
                reader.await.context("read the spool")??;
                before = gaps;
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Lets go what PostgreSQL has, and notes what is left.
    async fn let_go(
        &self,
        (session, strays): (&mut Session, &mut Strays),
        (last, damaged): (&PassReport, &[(PathBuf, PartitionRanges)]),
        done: &mut Done,
    ) -> anyhow::Result<()> {
        let all = tokio::task::block_in_place(|| self.all_ranges())?;
        let mut keys: BTreeSet<StreamPartition> = all.iter().map(|ranges| ranges.key).collect();
        keys.extend(damaged.iter().map(|(_, ranges)| ranges.key));
        let positions = strays.positions(&keys).await?;
        let mut gaps = session.open_gaps(&keys).await?;
        gaps.retain(|(key, gap)| {
            joined(&all).iter().any(|(other, range)| other == key && overlap(*range, *gap))
        });
        for (key, gap) in &gaps {
            let topic = all.iter().find(|ranges| ranges.key == *key).map(|ranges| Arc::clone(&ranges.topic));
            done.notes.push(format!(
                "{}/{}: the gap {gap} was declared over records that are here: --fill-gap --reason WHY stores them",
                topic.unwrap_or_else(|| "".into()),
                key.partition
            ));
        }
        let is_free = |key: &StreamPartition| !gaps.iter().any(|(other, _)| other == key);
        let free = positions.iter().filter(|(key, _)| is_free(key));
        let drained: Vec<(StreamPartition, Offset)> = free.map(|(key, (_, next))| (*key, *next)).collect();
        let now_ms = Clock::default().unix_ms();
        self.with_spool(|spool| {
            drained.iter().try_for_each(|(key, next)| spool.mark_drained(*key, *next, now_ms))
        })?;
        let group = &self.store.group;
        for held in self.with_spool(|spool| spool.held()) {
            let key = held.key;
            let why = if !is_free(&key) {
                "it lies over a gap, see below".into()
            } else if let Some(why) = last.failed.get(&key) {
                format!("postgresql refuses it: {why}")
            } else if let Some(hole) = last.holes.get(&key) {
                format!(
                    "{hole} comes before it and is not here: a daemon reads it from kafka; if nothing has it: offsets declare-gap"
                )
            } else if positions.contains_key(&key) {
                "another process moves its position: say it again".into()
            } else {
                format!(
                    "group {group} has no position of it in this database: wrong database or group, or `offsets list` shows why"
                )
            };
            done.left.push((held, why));
        }
        for (file, ranges) in damaged {
            let next = positions.get(&ranges.key).map_or(Offset::default(), |(_, next)| *next);
            let behind = ranges.ranges.iter().filter_map(|range| {
                OffsetRange::new(range.start().max(next), range.end()).filter(|range| !range.is_empty())
            });
            let lost = PartitionRanges { ranges: behind.collect(), ..ranges.clone() };
            if !lost.ranges.is_empty() {
                let why =
                    format!("damaged, see {}: a daemon reads it from kafka, if that has it", file.display());
                done.left.push((lost, why));
            }
        }
        Ok(())
    }

    /// What is in any file of the directory.
    fn all_ranges(&self) -> Result<Vec<PartitionRanges>, SpoolError> {
        let inspection = Inspection::new(&self.dir, LocalDisk);
        let mut all = Vec::new();
        for file in inspection.files()?.into_iter().filter(|file| file.len_bytes > 0) {
            all.extend(inspection.summary(&file)?.ranges);
        }
        Ok(all)
    }
}

/// What was in a damaged segment; nothing for a batch that was set aside, which is whole.
fn ranges_of(file: &Quarantined) -> Vec<(PathBuf, PartitionRanges)> {
    if file.when == QuarantinedWhen::SetAside {
        return Vec::new();
    }
    file.whole.iter().chain(&file.broken).map(|ranges| (file.file.clone(), ranges.clone())).collect()
}

/// The error without its wrapper, which decides the exit code and the advice.
fn plain(error: StrayError) -> anyhow::Error {
    match error {
        StrayError::Store(error) => error.into(),
        StrayError::Spool(error) => error.into(),
        error @ StrayError::Died => error.into(),
    }
}

fn bar(len: u64, message: &'static str) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new(len).with_message(message);
    if let Ok(style) = indicatif::ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

impl Done {
    fn is_well(&self) -> bool {
        self.left.is_empty() && self.notes.is_empty()
    }

    fn write_to(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut table =
            Table::new(&["topic", "partition", "what", "events", "duplicates", "dead letters", "absent"]);
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let rows = [("stored", &self.stored), ("filled", &self.filled)];
        let mut record_count = 0;
        for (what, by_key) in rows {
            for (key, counts) in by_key {
                let topic = self.topics.get(key).map_or("", |topic| topic);
                record_count += counts.events + counts.duplicates + counts.dead_letters;
                table.push(vec![
                    topic.into(),
                    i64::from(key.partition.0).into(),
                    what.into(),
                    count(counts.events).into(),
                    count(counts.duplicates).into(),
                    count(counts.dead_letters).into(),
                    count(counts.absent).into(),
                ]);
            }
        }
        if record_count > 0 {
            table.write_to(out)?;
        }
        writeln!(out, "{} records were stored", with_thousands(count(record_count)))?;
        for (held, why) in &self.left {
            let ranges = held.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            writeln!(out, "left: {}/{} {ranges}: {why}", held.topic, held.key.partition)?;
        }
        for note in &self.notes {
            writeln!(out, "{note}")?;
        }
        if self.is_well() {
            writeln!(out, "nothing is left in the spool that postgresql lacks")?;
        }
        Ok(())
    }

    fn to_json(&self) -> serde_json::Value {
        let counts = |by_key: &BTreeMap<StreamPartition, StoredCounts>| {
            let rows = by_key.iter().map(|(key, counts)| {
                json!({
                    "topic": self.topics.get(key).map(|topic| &**topic), "stream_id": key.stream.to_string(),
                    "partition": key.partition.0, "events": counts.events, "duplicates": counts.duplicates,
                    "dead_letters": counts.dead_letters, "absent": counts.absent,
                })
            });
            rows.collect::<Vec<_>>()
        };
        let left = self.left.iter().map(|(held, why)| {
            let ranges: Vec<_> = held
                .ranges
                .iter()
                .map(|range| json!([range.start().as_i64(), range.end().as_i64()]))
                .collect();
            json!({
                "topic": &*held.topic, "stream_id": held.key.stream.to_string(),
                "partition": held.key.partition.0, "ranges": ranges, "why": why,
            })
        });
        json!({
            "ok": self.is_well(), "notes": &self.notes, "stored": counts(&self.stored), "filled": counts(&self.filled),
            "left": left.collect::<Vec<_>>(),
        })
    }
}
