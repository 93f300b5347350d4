//! A batch: what one commit stores, with where it starts and ends in each partition.
//!
//! A batch says `start -> end` for each of its partitions, so that applying it is a compare-and-set on the
//! positions. Every offset in `[start, end)` is accounted for exactly once: as an event's row, as a dead
//! letter or as absent; [`Batch::parts`] counts them and [`Part::is_balanced`] checks the sum. A batch can be
//! split at any record and can lose whole partitions, and what is left still says the truth about itself.

mod builder;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::event::UtcDay;
use super::federated::SourceFlag;
use super::position::{Epoch, Offset, StreamPartition};
use super::record::{AssignmentId, Chunk, Record};
use super::rejection::Rejection;
use uuid::Uuid;

pub use builder::{BatchBuilder, BatchLimits, Decoded, Discontinuity};

/// One partition's share of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which position the batch moves.
    pub key: StreamPartition,
    /// The assignment under which the records were read.
    pub assignment: AssignmentId,
    /// The claim under which the batch is committed.
    pub epoch: Epoch,
    /// The position before the batch.
    pub start: Offset,
    /// The position after the batch.
    pub end: Offset,
    /// Rows for `events`.
    pub event_count: u64,
    /// Dead letters.
    pub dead_letter_count: u64,
    /// Offsets that hold no record.
    pub absent_count: u64,
    /// Those of them that lie behind the last record.
    absent_after: u64,
}

impl Part {
    /// Whether every offset of `[start, end)` is an event, a dead letter or absent.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.start.distance_to(self.end)
            == Some(self.event_count + self.dead_letter_count + self.absent_count)
    }
}

/// A record of a batch that can't be stored as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Why.
    pub rejection: Rejection,
    /// The SQLSTATE, when PostgreSQL refused it.
    pub sqlstate: Option<String>,
    /// The event's id, when it could be read.
    pub audit_id: Option<Uuid>,
    /// The correlation id, when it could be read.
    pub correlation_id: Option<Uuid>,
}

/// What of an event stands in its row and is to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    /// What is wrong with its source.
    pub flag: Option<SourceFlag>,
    /// Its trust score in percent, cut to a whole number.
    pub trust_percent: u8,
    /// An event with this id was read not long ago: it may be an upstream duplicate.
    pub is_repeated: bool,
}

/// Some of a batch's event rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Every one.
    All,
    /// Those whose event was read not long ago, if [`Noted::is_repeated`] is this.
    Repeated(bool),
}

impl Rows {
    fn has(self, noted: Noted) -> bool {
        match self {
            Self::All => true,
            Self::Repeated(is_repeated) => noted.is_repeated == is_repeated,
        }
    }
}

/// What becomes of one record.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It is an event: its binary COPY row lies in [`Batch::rows`] at this range.
    Event(Range<usize>, Noted),
    /// It is a dead letter.
    DeadLetter(Arc<DeadLetter>),
}

/// One record of a batch.
#[derive(Debug, Clone)]
pub struct Entry {
    part_index: usize,
    /// The record's offset.
    pub offset: Offset,
    absent_before: u64,
    chunk_index: usize,
    record_index: usize,
    /// What becomes of it.
    pub fate: Fate,
}

/// What the entries of a batch point into; shared by the halves of a split batch.
#[derive(Debug, Default)]
struct Payload {
    rows: Vec<u8>,
    chunks: Vec<Arc<Chunk>>,
}

/// A batch. Immutable but for what makes it smaller, see the module's text.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    payload: Arc<Payload>,
    entries: Vec<Entry>,
    parts: Vec<Part>,
    days: BTreeMap<UtcDay, u64>,
}

impl Batch {
    /// The partitions in (stream, partition) order: the order in which their rows are locked.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The records in the order in which they were added; offsets rise within a partition.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The partition of `entry`.
    #[must_use]
    pub fn part_of(&self, entry: &Entry) -> Option<&Part> {
        self.parts.get(entry.part_index)
    }

    /// The record behind `entry` as it came from Kafka.
    #[must_use]
    pub fn record_of(&self, entry: &Entry) -> Option<(&Arc<Chunk>, &Record)> {
        let chunk = self.payload.chunks.get(entry.chunk_index)?;
        Some((chunk, chunk.records.get(entry.record_index)?))
    }

    /// The binary COPY row of an event's fate.
    #[must_use]
    pub fn row(&self, row: &Range<usize>) -> &[u8] {
        self.payload.rows.get(row.clone()).unwrap_or_default()
    }

    /// How many events fall on which day, in order (of the whole batch, after a split too).
    pub fn days(&self) -> impl Iterator<Item = (UtcDay, u64)> {
        self.days.iter().map(|(day, count)| (*day, *count))
    }

    /// How many rows for `events` the batch holds.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.parts.iter().map(|part| part.event_count).sum()
    }

    /// How many of `rows` there are. All together are as many as the parts say.
    #[must_use]
    pub fn row_count(&self, rows: Rows) -> u64 {
        let repeated = self
            .entries
            .iter()
            .filter(|entry| matches!(&entry.fate, Fate::Event(_, noted) if noted.is_repeated));
        match rows {
            Rows::All => self.event_count(),
            Rows::Repeated(true) => u64::try_from(repeated.count()).unwrap_or(u64::MAX),
            Rows::Repeated(false) => self.event_count().saturating_sub(self.row_count(Rows::Repeated(true))),
        }
    }

    /// How many dead letters the batch holds.
    #[must_use]
    pub fn dead_letter_count(&self) -> u64 {
        self.parts.iter().map(|part| part.dead_letter_count).sum()
    }

    /// Whether the batch moves no position.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The binary COPY rows, in the order in which they were added; they are [`Self::row_count`].
    pub fn event_rows(&self, rows: Rows) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().filter_map(move |entry| match &entry.fate {
            Fate::Event(range, noted) => rows.has(*noted).then(|| self.row(range)),
            Fate::DeadLetter(_) => None,
        })
    }

    /// The batch without the partitions for which `drop` says so.
    #[must_use]
    pub fn without(mut self, mut drop: impl FnMut(&Part) -> bool) -> Self {
        let mut kept_index = 0;
        let moved: Vec<Option<usize>> = self
            .parts
            .iter()
            .map(|part| {
                (!drop(part)).then(|| {
                    kept_index += 1;
                    kept_index - 1
                })
            })
            .collect();
        self.entries.retain_mut(|entry| match moved.get(entry.part_index).copied().flatten() {
            Some(index) => {
                entry.part_index = index;
                true
            }
            None => false,
        });
        let mut kept = moved.iter();
        self.parts.retain(|_| kept.next().is_some_and(Option::is_some));
        self
    }

    /// The batch under another epoch of `key`.
    #[must_use]
    pub fn under(mut self, key: StreamPartition, epoch: Epoch) -> Self {
        self.parts.iter_mut().filter(|part| part.key == key).for_each(|part| part.epoch = epoch);
        self
    }

    /// The two halves of the batch, to be committed one after the other, or `None` when it holds fewer than
    /// two records. What is absent behind a partition's last record goes with the half that has that record.
    #[must_use]
    pub fn split(self) -> Option<(Self, Self)> {
        if self.entries.len() < 2 {
            return None;
        }
        let mut first = self.entries;
        let second = first.split_off(first.len() / 2);
        let mut ends: Vec<Offset> = self.parts.iter().map(|part| part.start).collect();
        for entry in &first {
            if let Some(end) = ends.get_mut(entry.part_index) {
                *end = entry.offset.next();
            }
        }
        let more: Vec<bool> =
            (0..self.parts.len()).map(|index| second.iter().any(|e| e.part_index == index)).collect();
        let mut first_parts = self.parts.clone();
        let mut second_parts = self.parts;
        for (((one, two), middle), more) in first_parts.iter_mut().zip(&mut second_parts).zip(ends).zip(more)
        {
            if more {
                one.end = middle;
                one.absent_after = 0;
                two.start = middle;
            } else {
                two.start = two.end;
            }
        }
        let half = |entries, parts| {
            Self { payload: Arc::clone(&self.payload), entries, parts, days: self.days.clone() }
                .recounted()
                .without(|part| part.start == part.end)
        };
        Some((half(first, first_parts), half(second, second_parts)))
    }

    /// The batch of one record with that record as a dead letter; any other batch is returned as it is.
    #[must_use]
    pub fn with_only_record_dead(mut self, letter: DeadLetter) -> Self {
        if let [only] = self.entries.as_mut_slice() {
            only.fate = Fate::DeadLetter(Arc::new(letter));
            return self.recounted();
        }
        self
    }

    /// Counts again what the entries are; nothing is found by subtracting offsets.
    fn recounted(mut self) -> Self {
        for part in &mut self.parts {
            (part.event_count, part.dead_letter_count, part.absent_count) = (0, 0, part.absent_after);
        }
        for entry in &self.entries {
            if let Some(part) = self.parts.get_mut(entry.part_index) {
                match entry.fate {
                    Fate::Event(..) => part.event_count += 1,
                    Fate::DeadLetter(_) => part.dead_letter_count += 1,
                }
                part.absent_count += entry.absent_before;
            }
        }
        self
    }
}

#[cfg(test)]
mod tests;
