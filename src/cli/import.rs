//! `import`: what the predecessor left, into the events.
//!
//! A table or a file is a stream like a topic's partition, `import:<source>`, whose offsets are ranks of rows or numbers
//! of lines, and its records go through the same decode and the same commit: the position moves by compare-and-set
//! under a claim, in the transaction that stores the rows, and the database checks the account. So an import may be
//! killed anywhere and begun again, and two at once can cost time, never a row.
//!
//! What is peculiar to it: numbers mean something only while the source stays as it was (`source.rs`, and the record in
//! `audit_events.imports`), and a record may tell an event that is stored already, in another form (`batch.rs`).

mod batch;
mod commit;
mod report;
mod seen;
mod source;

use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::batch::{Candidate, Candidates};
use self::commit::Importer;
use self::report::{Counts, Report, SourceReport};
use self::seen::Seen;
use self::source::{Item, Origin, QUEUE_COUNT, Unread};
use super::ExitStatus;
use crate::failpoint;
use crate::model::batch::BatchLimits;
use crate::model::decode::DecodeRules;
use crate::model::legacy::LineRecords;
use crate::model::position::{Offset, Partition, StreamPartition};
use crate::store::{
    Claim, ClaimAnswer, ClaimRequest, ClaimedPosition, IMPORT_GROUP, ImportSource, Session, SessionPurpose,
    StoreError, StoreSettings, StreamIdentity,
};

/// How long beyond `STATEMENT_TIMEOUT_MS` PostgreSQL's answer is waited for; the outcome of a commit is then unknown.
pub(super) const WORK_MARGIN: Duration = Duration::from_secs(15);
/// The one partition of an import.
const PARTITION: Partition = Partition(0);

/// What to import.
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["table", "files"])))]
pub struct ImportArgs {
    /// A table or view of the predecessor's shape, such as core.audit_events or audit_events_legacy.events
    #[arg(long, value_name = "NAME")]
    pub table: Option<String>,
    /// The predecessor's day files: paths, or patterns with * and ? in the file's name; Purview before trust files
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    pub files: Vec<String>,
    /// Import a source that has changed since, under another name; what is stored of it already counts as duplicates
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub name: Option<String>,
    /// Store nothing; only count what would become of each record
    #[arg(long)]
    pub dry_run: bool,
    /// Write one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// Who, for the record
    #[arg(long, env = "USER", default_value = "unknown", value_name = "NAME")]
    pub actor: String,
}

/// What an import depends on beside its arguments.
#[derive(Debug, Clone)]
pub struct ImportSettings {
    /// PostgreSQL; the group is that of imports, whatever it says.
    pub store: StoreSettings,
    /// How to decode.
    pub rules: DecodeRules,
    /// When a batch closes.
    pub limits: BatchLimits,
    /// How long PostgreSQL's answer is waited for: a look-up with its commit, a claim, a report. Looking at a table and
    /// the first row of it, which may be sorted, take as long as they take.
    pub work_deadline: Duration,
}

/// Imports every source and writes what became of it to `out`. [`ExitStatus::Refused`] when a source was refused; the
/// others are imported all the same.
///
/// # Errors
/// What PostgreSQL, a source or `out` report. What was stored before stays, and the same command goes on from there.
pub async fn run(
    args: &ImportArgs,
    settings: &ImportSettings,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let mut settings = settings.clone();
    settings.store.group = IMPORT_GROUP.into();
    let origins = match Origin::of(args.table.as_deref(), &args.files) {
        Ok(origins) => origins,
        Err(reason) => {
            super::complain(&reason);
            return Ok(ExitStatus::Refused);
        }
    };
    let mut report = Report::new(args.dry_run);
    let mut seen = Seen::default();
    for origin in &origins {
        let outcome = import(args, &settings, origin, &mut seen).await;
        let source = match outcome {
            Ok(source) => source,
            Err(error) => match error.downcast::<Unread>() {
                Ok(unread) => SourceReport::refused(&origin.name(), unread.to_string()),
                Err(error) => {
                    // What was done before it is told first.
                    report.write_to(args.json, out)?;
                    return Err(error.context(format!("import {}", origin.name())));
                }
            },
        };
        report.sources.push(source);
    }
    report.write_to(args.json, out)?;
    Ok(if report.is_whole() { ExitStatus::Success } else { ExitStatus::Refused })
}

/// Imports one source, from its position to its end.
async fn import(
    args: &ImportArgs,
    settings: &ImportSettings,
    origin: &Origin,
    seen: &mut Seen,
) -> anyhow::Result<SourceReport> {
    let deadline = settings.work_deadline;
    let progress = ProgressBar::new_spinner().with_message(format!("looking at {}", origin.name()));
    progress.enable_steady_tick(Duration::from_millis(200));
    let opened = origin.open(&settings.store).await;
    progress.finish_and_clear();
    let mut opened = opened?;
    if let Some(name) = &args.name {
        opened.source.name = format!("{}@{name}", opened.source.name);
    }
    let stream = opened.source.stream();
    let key = StreamPartition { stream: stream.id(), partition: PARTITION };
    let end = end_of(&opened.source)?;
    let registered = in_time(deadline, "begin an import", register(args, settings, &opened.source)).await?;
    let (session, position) = match registered {
        Registered::Changed(reason) => return Ok(SourceReport::refused(&opened.source.name, reason)),
        Registered::At(session, position) => (session, position),
    };
    let before = match position {
        Some(_) => in_time(deadline, "report", report::total(&settings.store, key)).await?,
        None => Counts::default(),
    };
    let start = position.map_or(LineRecords::FIRST, |position| position.next);
    let progress = bar(&opened.source, start);
    let mut sink = match position {
        None => Sink::Count(Counts::default(), seen, session),
        Some(position) => {
            session.close().await;
            let claim = Claim { key, epoch: position.epoch };
            Sink::Store(Box::new(Importer::new(settings, &stream, claim, position.next)))
        }
    };
    if start < end {
        let (tx, rx) = mpsc::channel(QUEUE_COUNT);
        let is_row = opened.is_table();
        let kept_max_len_bytes = settings.rules.payload_max_len_bytes;
        let (read, stored) = tokio::join!(
            opened.read(start, kept_max_len_bytes, tx),
            drive(settings, rx, (is_row, start), &mut sink, &progress)
        );
        progress.finish_and_clear();
        // A reader whose other side is gone says nothing, and what ends without its end was ended by the reader.
        read?;
        stored?;
    }
    let total = match sink {
        Sink::Count(counts, _, session) => {
            session.close().await;
            counts
        }
        Sink::Store(importer) => {
            importer.release().await?;
            in_time(deadline, "report", report::total(&settings.store, key)).await?
        }
    };
    Ok(SourceReport::done(&opened.source, total, total.since(before)))
}

/// Waits for PostgreSQL's answer to `what`, no longer than `deadline`.
async fn in_time<T>(
    deadline: Duration,
    what: &str,
    asked: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(deadline, asked).await.unwrap_or_else(|_elapsed| Err(StoreError::no_answer(what)))
}

/// How an import begins.
enum Registered {
    /// Not at all, and why: the source is not what it was.
    Changed(String),
    /// From a position that is claimed; a dry run has none.
    At(Box<Session>, Option<ClaimedPosition>),
}

/// Compares `source` with what is recorded of it, and records and claims it, but for a dry run.
async fn register(
    args: &ImportArgs,
    settings: &ImportSettings,
    source: &ImportSource,
) -> Result<Registered, StoreError> {
    let mut session = settings.store.connect(SessionPurpose::Operator).await?;
    let stream = source.stream();
    let known = if args.dry_run {
        session.known_import(stream.id()).await?
    } else {
        let known = session.register_import(stream.id(), source, &args.actor).await?;
        failpoint::at("import_registered");
        Some(known)
    };
    if let Some(reason) = known.and_then(|known| changed(&known, source)) {
        session.close().await;
        return Ok(Registered::Changed(reason));
    }
    let position = match args.dry_run {
        true => None,
        false => Some(claim(settings, &mut session, &stream, source).await?),
    };
    Ok(Registered::At(Box::new(session), position))
}

/// Claims the one partition of `stream`, which is that of `source`.
async fn claim(
    settings: &ImportSettings,
    session: &mut Session,
    stream: &StreamIdentity,
    source: &ImportSource,
) -> Result<ClaimedPosition, StoreError> {
    let end = end_of(source)?;
    let request = ClaimRequest {
        stream: stream.clone(),
        partition: PARTITION,
        low: LineRecords::FIRST,
        high: end,
        initial: LineRecords::FIRST,
    };
    let answers = settings.store.claim(session, std::slice::from_ref(&request)).await?;
    failpoint::at("import_claimed");
    match answers.first() {
        Some(ClaimAnswer::Granted(position)) => Ok(*position),
        other => Err(StoreError::Broken(format!("the import's position is out of range: {other:?}"))),
    }
}

/// Where the records go.
enum Sink<'s> {
    /// Nowhere: a dry run, with the session in which it looks.
    Count(Counts, &'s mut Seen, Box<Session>),
    /// To PostgreSQL.
    Store(Box<Importer>),
}

/// Takes the records and gives them to the sink in batches.
async fn drive(
    settings: &ImportSettings,
    mut items: mpsc::Receiver<Item>,
    (is_row, start): (bool, Offset),
    sink: &mut Sink<'_>,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    let mut open = Candidates::new(settings.limits);
    let mut behind = start;
    while let Some(item) = items.recv().await {
        match item {
            Item::Records(records) => {
                for record in records {
                    if !open.has_room() {
                        flush(settings, &mut open, 0, sink).await?;
                        progress.set_position(behind.as_i64().unsigned_abs());
                    }
                    behind = record.offset.next();
                    open.push(Candidate::read(record, is_row, &settings.rules));
                }
            }
            Item::End { absent_after } => {
                flush(settings, &mut open, absent_after, sink).await?;
                return Ok(());
            }
        }
    }
    anyhow::bail!("reading stopped at {behind}, before the end")
}

async fn flush(
    settings: &ImportSettings,
    open: &mut Candidates,
    absent_after: u64,
    sink: &mut Sink<'_>,
) -> anyhow::Result<()> {
    let mut candidates = open.take();
    match sink {
        Sink::Store(importer) => importer.store(candidates, absent_after).await?,
        Sink::Count(counts, seen, session) => {
            let ImportSettings { rules, limits, work_deadline, .. } = settings;
            let mut rest = candidates.as_mut_slice();
            while !rest.is_empty() {
                let looked_up = batch::look_up(session, rest, limits.len_bytes, rules);
                let count = in_time(*work_deadline, "look up", looked_up).await?;
                let (done, others) = std::mem::take(&mut rest).split_at_mut(count);
                done.iter().for_each(|candidate| counts.foresee(candidate, seen));
                rest = others;
            }
            counts.absent += absent_after;
        }
    }
    Ok(())
}

fn end_of(source: &ImportSource) -> Result<Offset, StoreError> {
    let first = LineRecords::FIRST.as_i64();
    let end = source.record_count.checked_add(first).and_then(Offset::new);
    end.ok_or_else(|| StoreError::Broken(format!("{} has {} records", source.name, source.record_count)))
}

/// Why a source can't go on under the numbers that it had; `None`: it is as it was.
fn changed(known: &ImportSource, now: &ImportSource) -> Option<String> {
    if known == now {
        return None;
    }
    let size = |source: &ImportSource| match source.len_bytes {
        Some(len_bytes) => format!("{} lines, {len_bytes} bytes", source.record_count),
        None => format!("{} rows", source.record_count),
    };
    let what = if known.record_count == now.record_count && known.len_bytes == now.len_bytes {
        "other content of the same size".to_owned()
    } else {
        format!("{} then, {} now", size(known), size(now))
    };
    Some(format!(
        "it has changed since its import began ({what}), so its numbers are no longer those of then; make sure that \
         nothing writes to it, then import it under another name, `--name second`: what is stored of it already counts \
         as duplicates"
    ))
}

fn bar(source: &ImportSource, start: Offset) -> ProgressBar {
    let bar = ProgressBar::new(source.record_count.unsigned_abs());
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3}% {pos}/{len} {msg} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(source.name.clone());
    bar.set_position(start.as_i64().unsigned_abs().saturating_sub(1));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_goes_on_only_as_it_was() {
        let was =
            ImportSource { name: "f".into(), record_count: 2, len_bytes: Some(10), fingerprint: "a".into() };
        assert_eq!(changed(&was, &was.clone()), None);
        let grown =
            ImportSource { record_count: 3, len_bytes: Some(15), fingerprint: "b".into(), ..was.clone() };
        let line = changed(&was, &grown).unwrap();
        assert!(
            line.contains("2 lines, 10 bytes then, 3 lines, 15 bytes now") && line.contains("--name"),
            "{line}"
        );
        let other = ImportSource { fingerprint: "b".into(), ..was.clone() };
        assert!(changed(&was, &other).unwrap().contains("other content"));
    }
}
