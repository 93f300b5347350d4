//! Every record that Kafka still has, against the row that was stored of it: what was altered by hand is found too.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::super::table::with_thousands;
use crate::config::KafkaProperties;
use crate::model::batch::{Batch, BatchBuilder, BatchLimits};
use crate::model::decode::{DecodeRules, decode};
use crate::model::event::UtcDay;
use crate::model::federated::FederatedSources;
use crate::model::position::{Epoch, Offset, OffsetRange, StreamPartition, TopicPartition};
use crate::model::record::{Chunk, Record};
use crate::pipeline::decode_record;
use crate::source::{Lookup, LookupError, Replay};
use crate::store::{
    Fate, Finding, FindingCode, Mismatch, Session, SessionPurpose, StoreError, StoreSettings, StoredRange,
};

/// How many records are compared at once, and how many bytes of them.
const BATCH_RECORD_COUNT: usize = 2_000;
const BATCH_LEN_BYTES: usize = 4 << 20;
/// How many chunks wait for the comparison.
const CHUNK_QUEUE_COUNT: usize = 16;
/// How many records of a sample stand next to each other.
const SAMPLE_RUN_COUNT: u64 = 100;
/// How many offsets are named for each finding.
const EXAMPLE_COUNT: usize = 5;

/// What Kafka still has of one partition's stored records.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) key: StreamPartition,
    pub(super) source: Arc<TopicPartition>,
    pub(super) range: OffsetRange,
    /// Whether retention dropped events of it.
    pub(super) is_thinned: bool,
    /// Whether Kafka takes records out of its middle, or may for all that we know.
    pub(super) is_compacted: bool,
}

/// How to compare.
#[derive(Debug, Clone, Copy)]
pub(super) struct Comparing<'a> {
    pub(super) store: &'a StoreSettings,
    pub(super) kafka_properties: &'a KafkaProperties,
    pub(super) rules: &'a DecodeRules,
    /// About how many records, over all partitions; `None`: all.
    pub(super) sample: Option<u64>,
}

/// What was compared.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Whether it was tried.
    is_asked: bool,
    /// Records that were compared with their rows.
    compared_count: u64,
    /// Records whose events retention dropped.
    dropped_count: u64,
    /// Offsets below the positions that Kafka still has.
    span: u64,
    is_sample: bool,
    /// Why not all were compared.
    pub(super) notes: Vec<String>,
    wrong: BTreeMap<(StreamPartition, FindingCode), Wrong>,
}

/// What is wrong in a partition, counted, with some examples.
#[derive(Debug, Default)]
struct Wrong {
    count: u64,
    examples: Vec<String>,
}

/// A run of a partition's offsets, with at most so many records.
#[derive(Debug, Clone)]
struct Window {
    stored: Stored,
    range: OffsetRange,
}

impl Records {
    /// Compares `stored` with the rows, a partition after the other.
    ///
    /// # Errors
    /// PostgreSQL's. What Kafka does not tell is noted.
    pub(super) async fn compare(
        stored: Vec<Stored>,
        how: Comparing<'_>,
        progress: &ProgressBar,
    ) -> anyhow::Result<Result<Self, StoreError>> {
        let span = stored.iter().map(|stored| stored.range.span()).sum();
        let windows = windows(stored, how.sample);
        let mut records = Self { is_asked: true, span, is_sample: how.sample.is_some(), ..Self::default() };
        if windows.is_empty() {
            return Ok(Ok(records));
        }
        progress.set_length(windows.iter().map(|window| window.range.span()).sum());
        progress.set_style(bar());
        progress.set_message("comparing records");
        let mut session = match how.store.connect(SessionPurpose::Operator).await {
            Ok(session) => session,
            Err(error) => return Ok(Err(error)),
        };
        let (chunks_in, mut chunks) = mpsc::channel(CHUNK_QUEUE_COUNT);
        let properties = how.kafka_properties.clone();
        let reading = tokio::task::spawn_blocking(move || read(&properties, &windows, &chunks_in));
        let compared = records.compare_all(&mut session, how.rules, &mut chunks, progress).await;
        // The reader stops when nobody takes more.
        drop(chunks);
        let read = reading.await?;
        if let Err(error) = compared {
            if error.sqlstate() == Some("25006") {
                records
                    .notes
                    .push(format!("records were not compared, as that takes a temporary table: {error}"));
                return Ok(Ok(records));
            }
            return Ok(Err(error));
        }
        session.close().await;
        if let Err(error) = read {
            records.notes.push(format!("not all records were compared: {error}"));
        }
        Ok(Ok(records))
    }

    async fn compare_all(
        &mut self,
        session: &mut Session,
        rules: &DecodeRules,
        chunks: &mut mpsc::Receiver<(Stored, Arc<Chunk>)>,
        progress: &ProgressBar,
    ) -> Result<(), StoreError> {
        let mut days = HashMap::new();
        let mut pending: Vec<Arc<Chunk>> = Vec::new();
        let mut of: Option<Stored> = None;
        loop {
            let next = chunks.recv().await;
            let is_continued = match (&next, pending.last(), &of) {
                (Some((stored, chunk)), Some(last), Some(of)) => {
                    stored.key == of.key && last.end == chunk.start && !is_full(&pending)
                }
                _ => false,
            };
            if !is_continued && let Some(of) = of.take() {
                let taken = std::mem::take(&mut pending);
                self.compare_chunks(session, (rules, &mut days), (&of, &taken)).await?;
                progress.inc(taken.iter().filter_map(|chunk| chunk.start.distance_to(chunk.end)).sum());
            }
            let Some((stored, chunk)) = next else { return Ok(()) };
            pending.push(chunk);
            of = Some(stored);
        }
    }

    async fn compare_chunks(
        &mut self,
        session: &mut Session,
        (rules, days): (&DecodeRules, &mut HashMap<UtcDay, bool>),
        (of, chunks): (&Stored, &[Arc<Chunk>]),
    ) -> Result<(), StoreError> {
        let ends = chunks.first().zip(chunks.last());
        let Some(range) = ends.and_then(|(first, last)| OffsetRange::new(first.start, last.end)) else {
            return Ok(());
        };
        let batch = batch_of(of.key, rules, chunks)?;
        let stored = session.compare((of.key, range), &batch).await?;
        let mismatches: HashMap<Offset, &Mismatch> =
            stored.mismatches.iter().map(|mismatch| (mismatch.offset, mismatch)).collect();
        let mut fates: BTreeMap<Offset, Fate> = stored.fates.iter().copied().collect();
        let records = chunks.iter().flat_map(|chunk| chunk.records.iter().map(move |record| (chunk, record)));
        for (chunk, record) in records {
            let fate = fates.remove(&record.offset);
            let mismatch = mismatches.get(&record.offset).copied();
            match judge((chunk, record), (fate, mismatch), (&stored, rules)) {
                Verdict::Same => self.compared_count += 1,
                Verdict::Wrong(code, why) => {
                    self.compared_count += 1;
                    self.found(of.key, code, format!("{}{why}", record.offset));
                }
                Verdict::NoRow(day) => {
                    // The event that a duplicate repeats may be another partition's, or another stream's.
                    let may_be_dropped = of.is_thinned || fate == Some(Fate::Duplicate);
                    if may_be_dropped && is_dropped(session, days, day).await? {
                        self.dropped_count += 1;
                    } else {
                        self.compared_count += 1;
                        self.found(of.key, FindingCode::RecordMissing, record.offset.to_string());
                    }
                }
            }
        }
        let rows_alone = fates.keys().filter(|_| !of.is_compacted);
        for offset in rows_alone {
            self.found(of.key, FindingCode::RowWithoutRecord, offset.to_string());
        }
        Ok(())
    }

    fn found(&mut self, key: StreamPartition, code: FindingCode, example: String) {
        let wrong = self.wrong.entry((key, code)).or_default();
        wrong.count += 1;
        if wrong.examples.len() < EXAMPLE_COUNT {
            wrong.examples.push(example);
        }
    }

    /// What is wrong, by partition.
    pub(super) fn findings(&self) -> impl Iterator<Item = (StreamPartition, Finding)> {
        self.wrong.iter().map(|((key, code), wrong)| {
            let what = match code {
                FindingCode::RecordMissing => "records below the position are in no table",
                FindingCode::RowWithoutRecord => {
                    "rows stand at offsets where kafka has no record, and nothing is compacted"
                }
                FindingCode::DeadLetterAltered => "dead letters are not the record that kafka has",
                _ => "rows are not what their record in kafka says",
            };
            let text = format!("{what}; offsets {}", wrong.examples.join(", "));
            (*key, Finding::new(*code, (0, wrong.count), text))
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "asked": self.is_asked, "compared": self.compared_count, "dropped": self.dropped_count,
            "offsets_in_kafka": self.span, "sample": self.is_sample, "notes": self.notes,
        })
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        if !self.is_asked {
            return Vec::new();
        }
        let count = |count: u64| with_thousands(i64::try_from(count).unwrap_or(i64::MAX));
        let mut line = format!("records in kafka compared with their rows: {}", count(self.compared_count));
        if self.is_sample {
            line.push_str(&format!(", a sample of {} offsets", count(self.span)));
        }
        if self.dropped_count > 0 {
            line.push_str(&format!("; {} more were dropped by retention", count(self.dropped_count)));
        }
        std::iter::once(line).chain(self.notes.iter().cloned()).collect()
    }
}

/// What became of a record.
enum Verdict {
    Same,
    Wrong(FindingCode, String),
    /// No row is there; the day of the event, if it is one.
    NoRow(Option<UtcDay>),
}

fn judge(
    (chunk, record): (&Chunk, &Record),
    (fate, mismatch): (Option<Fate>, Option<&Mismatch>),
    (stored, rules): (&StoredRange, &DecodeRules),
) -> Verdict {
    let altered = |why: String| Verdict::Wrong(FindingCode::EventAltered, format!(" ({why})"));
    match fate {
        None => {
            let day = decode(chunk.value(record), rules).ok().map(|event| UtcDay::of(event.timestamp));
            Verdict::NoRow(day)
        }
        Some(Fate::DeadLetter) => {
            let sha256 = |bytes: Option<&[u8]>| bytes.map(|bytes| Sha256::digest(bytes).to_vec());
            let (payload, key) = (sha256(chunk.value(record)), sha256(chunk.key(record)));
            let is_same = stored.letters.iter().any(|letter| {
                letter.offset == record.offset && letter.payload_sha256 == payload && letter.key_sha256 == key
            });
            if is_same {
                return Verdict::Same;
            }
            Verdict::Wrong(FindingCode::DeadLetterAltered, String::new())
        }
        Some(fate) => match (mismatch, fate, decode(chunk.value(record), rules)) {
            (_, _, Err(rejection)) => {
                altered(format!("no event by these settings: {}", rejection.code.as_str()))
            }
            (None, _, Ok(_)) => Verdict::Same,
            (Some(mismatch), _, Ok(_)) if mismatch.is_absent => match fate {
                Fate::Event => altered("audit_id or timestamp".to_owned()),
                // The event that it repeats is not there any more.
                Fate::Duplicate | Fate::DeadLetter => {
                    let day =
                        decode(chunk.value(record), rules).ok().map(|event| UtcDay::of(event.timestamp));
                    Verdict::NoRow(day)
                }
            },
            (Some(mismatch), Fate::Event, Ok(_)) if mismatch.is_elsewhere => {
                altered("audit_id or timestamp".to_owned())
            }
            (Some(mismatch), _, Ok(_)) if mismatch.columns.is_empty() => Verdict::Same,
            (Some(mismatch), _, Ok(_)) => altered(mismatch.columns.join(" ")),
        },
    }
}

async fn is_dropped(
    session: &mut Session,
    days: &mut HashMap<UtcDay, bool>,
    day: Option<UtcDay>,
) -> Result<bool, StoreError> {
    let Some(day) = day else { return Ok(false) };
    if let Some(is_dropped) = days.get(&day) {
        return Ok(*is_dropped);
    }
    let is_dropped = session.is_dropped(day).await?;
    days.insert(day, is_dropped);
    Ok(is_dropped)
}

fn is_full(chunks: &[Arc<Chunk>]) -> bool {
    chunks.iter().map(|chunk| chunk.records.len()).sum::<usize>() >= BATCH_RECORD_COUNT
        || chunks.iter().map(|chunk| chunk.arena.len()).sum::<usize>() >= BATCH_LEN_BYTES
}

/// The records as the daemon decodes them; no registry, as the flag for a source is no part of an event's content.
fn batch_of(key: StreamPartition, rules: &DecodeRules, chunks: &[Arc<Chunk>]) -> Result<Batch, StoreError> {
    let sources = FederatedSources::default();
    let mut builder = BatchBuilder::new(BatchLimits { record_count: usize::MAX, len_bytes: usize::MAX });
    for chunk in chunks {
        let pushed = builder.push(chunk, key, Epoch(0), |record, rows| {
            decode_record((chunk.value(record), record.offset), (key, rules, &sources), rows)
        });
        pushed.map_err(|gap| StoreError::Broken(format!("{} was read after {}", gap.found, gap.expected)))?;
    }
    Ok(builder.take())
}

/// What is read: all, or runs of records that lie about as far from each other.
fn windows(stored: Vec<Stored>, sample: Option<u64>) -> Vec<Window> {
    let all = stored.into_iter().filter(|stored| !stored.range.is_empty());
    let all: Vec<Window> = all.map(|stored| Window { range: stored.range, stored }).collect();
    let Some(sample) = sample else { return all };
    let span: u64 = all.iter().map(|window| window.range.span()).sum();
    if span <= sample {
        return all;
    }
    let run_count = sample.div_ceil(SAMPLE_RUN_COUNT);
    let mut windows = Vec::new();
    for run in 0..run_count {
        // Which of all offsets, as if the partitions stood one behind the other.
        let mut at = u128::from(run) * u128::from(span) / u128::from(run_count.max(1));
        for window in &all {
            let len = u128::from(window.range.span());
            if at < len {
                let skipped = window.range.first(u64::try_from(at).unwrap_or(u64::MAX)).end();
                let rest = OffsetRange::new(skipped, window.range.end());
                let range = rest.map(|rest| rest.first(SAMPLE_RUN_COUNT.min(sample)));
                windows.extend(range.map(|range| Window { range, stored: window.stored.clone() }));
                break;
            }
            at -= len;
        }
    }
    windows
}

/// Reads the windows, until nobody takes more. Blocking.
fn read(
    properties: &KafkaProperties,
    windows: &[Window],
    chunks: &mpsc::Sender<(Stored, Arc<Chunk>)>,
) -> Result<(), LookupError> {
    let (replay, lookup) = (Replay::new(properties)?, Lookup::new(properties)?);
    for window in windows {
        let Window { stored, range } = window;
        let (mut is_taken, mut is_first) = (true, true);
        replay.read(&stored.source, *range, &mut |chunk| {
            let is_short = std::mem::take(&mut is_first)
                && chunk.records.first().is_none_or(|record| record.absent_before > 0);
            // What is absent at the beginning may have been deleted since we asked what there is.
            let low = if is_short {
                lookup.watermarks(&stored.source.topic, stored.source.partition).map(|(low, _)| low).ok()
            } else {
                None
            };
            let chunk = chunk.from(low.unwrap_or(range.start()));
            is_taken = chunks.blocking_send((stored.clone(), Arc::new(chunk))).is_ok();
            is_taken
        })?;
        if !is_taken {
            return Ok(());
        }
    }
    Ok(())
}

fn bar() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {eta}")
        .unwrap_or_else(|_template| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::position::{Partition, StreamId};

    fn stored(partition: i32, start: i64, end: i64) -> Stored {
        let range =
            Offset::new(start).zip(Offset::new(end)).and_then(|(start, end)| OffsetRange::new(start, end));
        Stored {
            key: StreamPartition { stream: StreamId(uuid::Uuid::nil()), partition: Partition(partition) },
            source: Arc::new(TopicPartition { topic: "t".into(), partition: Partition(partition) }),
            range: range.unwrap(),
            is_thinned: false,
            is_compacted: false,
        }
    }

    #[test]
    fn a_sample_is_spread_over_all_partitions_and_never_larger_than_asked() {
        let all = || vec![stored(0, 0, 0), stored(1, 500, 10_500), stored(2, 0, 5_000)];
        let read = |sample| -> Vec<(i32, i64, u64)> {
            let windows = windows(all(), sample);
            windows
                .iter()
                .map(|window| {
                    (window.stored.key.partition.0, window.range.start().as_i64(), window.range.span())
                })
                .collect()
        };
        assert_eq!(read(None), [(1, 500, 10_000), (2, 0, 5_000)]);
        assert_eq!(read(Some(20_000)), [(1, 500, 10_000), (2, 0, 5_000)]);
        assert_eq!(read(Some(300)), [(1, 500, 100), (1, 5_500, 100), (2, 0, 100)]);
        assert_eq!(read(Some(7)), [(1, 500, 7)]);
        assert_eq!(read(Some(0)), []);
    }
}
