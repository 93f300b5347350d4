//! PostgreSQL in memory: the tables, what a commit does to them, who holds which lock.

use std::collections::{BTreeMap, VecDeque};

use audit_consumer::model::batch::{Batch, Entry, Fate as BatchFate};
use audit_consumer::model::position::{Epoch, OffsetRange, StreamPartition};
use audit_consumer::model::rejection::RejectionCode;
use audit_consumer::store::{CommitPath, CommittedPart, StalePart, StoreError, Telling, copy};
use uuid::Uuid;

use crate::kafka::{Kafka, RecordKind, at, audit_id};
use crate::plan::Mutant;

/// How many commits an asynchronous standby may lag.
const HISTORY_COUNT: usize = 16;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Event,
    Duplicate,
    Letter(RejectionCode),
}

/// A row of `consumer_offsets`.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) first: i64,
    pub(crate) next: i64,
    pub(crate) epoch: i64,
    /// Events, duplicates, dead letters, absent offsets.
    pub(crate) counts: [i64; 4],
    pub(crate) owner: Option<Uuid>,
    pub(crate) owner_session: Option<u64>,
    pub(crate) is_released: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Gap {
    pub(crate) partition: usize,
    pub(crate) start: i64,
    pub(crate) end: i64,
}

/// What is stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    pub(crate) rows: Vec<Option<Row>>,
    /// By partition and offset.
    pub(crate) fates: Vec<BTreeMap<i64, Fate>>,
    /// Which record is the event, by identity.
    pub(crate) kept: BTreeMap<usize, (usize, i64)>,
    pub(crate) gaps: Vec<Gap>,
    pub(crate) spool_ranges: BTreeMap<Uuid, Vec<(StreamPartition, OffsetRange)>>,
}

impl Tables {
    /// Writes what an instance holds.
    pub(crate) fn tell(
        &mut self,
        instance: Uuid,
        ranges: &[(StreamPartition, OffsetRange)],
        telling: Telling,
    ) {
        let is_passed = |(key, range): &(StreamPartition, OffsetRange)| {
            let row = self.rows[key.partition.0 as usize].as_ref();
            row.is_some_and(|row| range.end().as_i64() <= row.next)
        };
        let told = self.spool_ranges.entry(instance).or_default();
        told.retain(|range| telling == Telling::More && !is_passed(range));
        told.extend_from_slice(ranges);
    }
}

/// What the server does with questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerMode {
    Up,
    Refusing,
    Silent,
    ReadOnly,
    Misconfigured,
}

#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) tables: Tables,
    history: VecDeque<Tables>,
    pub(crate) mode: ServerMode,
    /// Sessions, and the process that each belongs to.
    pub(crate) sessions: BTreeMap<u64, u8>,
    next_session: u64,
    /// Who holds the lock of a position.
    pub(crate) locks: BTreeMap<usize, u64>,
    /// Who waits for it.
    pub(crate) waiting: BTreeMap<u64, usize>,
    pub(crate) has_failed_over: bool,
    /// Which life of which process was granted a partition last, as the oracle saw it.
    pub(crate) granted: Vec<Option<(u8, u32)>>,
}

/// What a commit would store, or why it is refused.
type Sorted = Result<Vec<(usize, i64, usize, Fate)>, StoreError>;

impl Database {
    pub(crate) fn new(partition_count: usize) -> Self {
        Self {
            tables: Tables {
                rows: vec![None; partition_count],
                fates: vec![BTreeMap::new(); partition_count],
                ..Tables::default()
            },
            history: VecDeque::new(),
            mode: ServerMode::Up,
            sessions: BTreeMap::new(),
            next_session: 1,
            locks: BTreeMap::new(),
            waiting: BTreeMap::new(),
            has_failed_over: false,
            granted: vec![None; partition_count],
        }
    }

    pub(crate) fn open(&mut self, process: u8) -> u64 {
        let id = self.next_session;
        self.next_session += 1;
        self.sessions.insert(id, process);
        id
    }

    /// Ends a session; a transaction under way is rolled back.
    pub(crate) fn end(&mut self, session: u64) {
        self.sessions.remove(&session);
        self.unlock(session);
    }

    pub(crate) fn unlock(&mut self, session: u64) {
        self.locks.retain(|_, holder| *holder != session);
        self.waiting.remove(&session);
    }

    pub(crate) fn end_all(&mut self) {
        self.sessions.clear();
        self.locks.clear();
        self.waiting.clear();
    }

    /// Keeps what stands now, for a standby that lags.
    pub(crate) fn remember(&mut self) {
        if self.tables.rows.iter().any(Option::is_none) {
            return;
        }
        if self.history.len() == HISTORY_COUNT {
            self.history.pop_front();
        }
        self.history.push_back(self.tables.clone());
    }

    /// A standby takes over that lacks the last `lost_count` commits. Returns how many were lost.
    pub(crate) fn fail_over(&mut self, lost_count: usize) -> usize {
        self.end_all();
        let lost_count = lost_count.min(self.history.len().saturating_sub(1));
        self.history.truncate(self.history.len() - lost_count);
        if lost_count > 0
            && let Some(tables) = self.history.back()
        {
            self.tables = tables.clone();
            self.has_failed_over = true;
        }
        lost_count
    }

    /// Where `batch` is stale.
    pub(crate) fn stale(&self, batch: &Batch, mutant: Option<Mutant>) -> Vec<StalePart> {
        let stale = |part: &audit_consumer::model::batch::Part| {
            let row = self.tables.rows[part.key.partition.0 as usize].as_ref();
            let current = row.map(|row| (Epoch(row.epoch), at(row.next)));
            let is_there = |next| next == part.start || mutant == Some(Mutant::NoCompareAndSet);
            let is_current = current.is_some_and(|(epoch, next)| epoch == part.epoch && is_there(next));
            (!is_current).then_some(StalePart { key: part.key, current })
        };
        batch.parts().iter().filter_map(stale).collect()
    }

    /// Stores `batch`, whose positions are locked and not stale.
    pub(crate) fn store(
        &mut self,
        kafka: &Kafka,
        batch: &Batch,
        path: CommitPath,
    ) -> Result<Vec<CommittedPart>, StoreError> {
        let sorted = self.sort(kafka, batch, path)?;
        let mut parts = Vec::new();
        for part in batch.parts() {
            let partition = part.key.partition.0 as usize;
            let count = |wanted: fn(&Fate) -> bool| {
                sorted.iter().filter(|(of, _, _, fate)| *of == partition && wanted(fate)).count() as u64
            };
            let committed = CommittedPart {
                key: part.key,
                end: part.end,
                event_count: count(|fate| matches!(fate, Fate::Event)),
                duplicate_count: count(|fate| matches!(fate, Fate::Duplicate)),
                dead_letter_count: count(|fate| matches!(fate, Fate::Letter(_))),
                absent_count: part.absent_count,
            };
            let Some(row) = self.tables.rows[partition].as_mut() else { continue };
            row.next = part.end.as_i64();
            let CommittedPart { event_count, duplicate_count, dead_letter_count, absent_count, .. } =
                committed;
            let more = [event_count, duplicate_count, dead_letter_count, absent_count];
            row.counts.iter_mut().zip(more).for_each(|(count, more)| *count += more as i64);
            parts.push(committed);
        }
        for (partition, offset, identity, fate) in sorted {
            self.tables.fates[partition].insert(offset, fate);
            if fate == Fate::Event {
                self.tables.kept.insert(identity, (partition, offset));
            }
        }
        self.remember();
        Ok(parts)
    }

    /// What becomes of each record of `batch`.
    pub(crate) fn sort(&self, kafka: &Kafka, batch: &Batch, path: CommitPath) -> Sorted {
        let mut sorted: Vec<(usize, i64, usize, Fate)> = Vec::with_capacity(batch.entries().len());
        let mut kept = BTreeMap::new();
        // As PostgreSQL does it: those that came before last.
        let is_late = |entry: &&Entry| {
            path == CommitPath::Direct
                && matches!(&entry.fate, BatchFate::Event(_, noted) if noted.is_repeated)
        };
        let (late, early): (Vec<&Entry>, Vec<&Entry>) = batch.entries().iter().partition(is_late);
        for entry in early.into_iter().chain(late) {
            let Some(part) = batch.part_of(entry) else { return Err(broken("a record without a partition")) };
            let (partition, offset) = (part.key.partition.0 as usize, entry.offset.as_i64());
            let record = kafka.logs[partition].record(offset);
            let Some(record) = record.filter(|record| is_same(batch, entry, &record.payload)) else {
                return Err(broken(&format!("the log has no such record at {partition}:{offset}")));
            };
            if self.tables.fates[partition].contains_key(&offset) {
                let is_event = matches!(entry.fate, BatchFate::Event(..));
                return Err(if is_event && path == CommitPath::Direct {
                    refused("23505")
                } else {
                    broken(&format!("{partition}:{offset} is stored already"))
                });
            }
            let before = self.tables.kept.get(&record.identity).or_else(|| kept.get(&record.identity));
            let fate = match &entry.fate {
                BatchFate::DeadLetter(letter) => Fate::Letter(letter.rejection.code),
                BatchFate::Event(row, noted) => {
                    let id = copy::ids_of(batch.row(row)).map(|(id, _)| id);
                    if id != Some(audit_id(record.identity)) {
                        return Err(broken(&format!("another event's row at {partition}:{offset}")));
                    }
                    match before {
                        _ if record.kind == RecordKind::Refused => return Err(refused("22P05")),
                        None => Fate::Event,
                        Some(_) if path == CommitPath::Direct && !noted.is_repeated => {
                            return Err(refused("23505"));
                        }
                        Some((of, at)) => {
                            let other = kafka.logs[*of].record(*at);
                            let is_same = other.is_some_and(|other| other.payload == record.payload);
                            if is_same {
                                Fate::Duplicate
                            } else {
                                Fate::Letter(RejectionCode::AuditIdConflict)
                            }
                        }
                    }
                }
            };
            if fate == Fate::Event {
                kept.insert(record.identity, (partition, offset));
            }
            sorted.push((partition, offset, record.identity, fate));
        }
        Ok(sorted)
    }
}

fn is_same(batch: &Batch, entry: &Entry, payload: &[u8]) -> bool {
    batch.record_of(entry).is_some_and(|(chunk, record)| chunk.value(record) == Some(payload))
}

fn sql(text: &str) -> sqlx::Error {
    sqlx::Error::Protocol(text.to_owned())
}

pub(crate) fn unavailable(sqlstate: &str) -> StoreError {
    StoreError::Unavailable { sqlstate: sqlstate.into(), source: sql("simulated") }
}

pub(crate) fn contended(sqlstate: &str) -> StoreError {
    StoreError::Contended { sqlstate: sqlstate.into(), source: sql("simulated") }
}

pub(crate) fn misconfigured(sqlstate: &str) -> StoreError {
    StoreError::Misconfigured { sqlstate: sqlstate.into(), source: sql("simulated") }
}

pub(crate) fn refused(sqlstate: &str) -> StoreError {
    StoreError::Refused { sqlstate: sqlstate.into(), source: sql("simulated") }
}

pub(crate) fn timed_out() -> StoreError {
    StoreError::StatementTimeout(sql("simulated"))
}

pub(crate) fn broken(text: &str) -> StoreError {
    StoreError::Broken(text.to_owned())
}
