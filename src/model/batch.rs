//! A batch: what one commit stores, with where it starts and ends in each partition.
//!
//! A batch says `start -> end` for each of its partitions, so that applying it is a compare-and-set on the
//! positions. Every offset in `[start, end)` is accounted for exactly once: as an event's row, as a dead
//! letter or as absent; [`Batch::parts`] counts them and [`Part::is_balanced`] checks the sum. A batch can be
//! split at any record and can lose whole partitions, and what is left still says the truth about itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::event::{Timestamp, UtcDay};
use super::federated::SourceFlag;
use super::position::{Epoch, Offset, StreamPartition};
use super::record::{AssignmentId, Chunk, Record};
use super::rejection::Rejection;
use uuid::Uuid;

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

    /// The binary COPY rows, as runs of bytes that lie together; joined they are [`Self::event_count`] rows.
    pub fn row_runs(&self) -> impl Iterator<Item = &[u8]> {
        let mut events = self.entries.iter().filter_map(|entry| match &entry.fate {
            Fate::Event(range, _) => Some(range.clone()),
            Fate::DeadLetter(_) => None,
        });
        let mut open = events.next();
        std::iter::from_fn(move || {
            let mut run = open.take()?;
            for next in events.by_ref() {
                if next.start != run.end {
                    open = Some(next);
                    break;
                }
                run.end = next.end;
            }
            Some(self.row(&run))
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

/// When a batch closes; whichever comes first. Age is the caller's, as this module knows no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// The most records.
    pub record_count: usize,
    /// The most bytes of encoded rows.
    pub len_bytes: usize,
}

/// Collects chunks into a batch.
#[derive(Debug)]
pub struct BatchBuilder {
    limits: BatchLimits,
    payload: Payload,
    entries: Vec<Entry>,
    parts: Vec<Part>,
    days: BTreeMap<UtcDay, u64>,
}

/// What the decoder made of one record.
#[derive(Debug)]
pub enum Decoded {
    /// An event of this time; its row was appended to the rows.
    Event(Timestamp, Noted),
    /// Nothing was appended.
    DeadLetter(DeadLetter),
}

/// A chunk that does not start where the batch ends in that partition: a record was lost or doubled between
/// poll and batch. The partition must be read again from its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discontinuity {
    /// Where the batch ends.
    pub expected: Offset,
    /// Where the chunk starts.
    pub found: Offset,
}

impl BatchBuilder {
    /// An empty batch.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            payload: Payload::default(),
            entries: Vec::new(),
            parts: Vec::new(),
            days: BTreeMap::new(),
        }
    }

    /// Whether nothing was added since the last [`Self::take`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether the batch has reached a limit.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let is_large = self.entries.len() >= self.limits.record_count
            || self.payload.rows.len() >= self.limits.len_bytes;
        is_large && !self.is_empty()
    }

    /// Whether the batch has a share of `assignment`.
    #[must_use]
    pub fn contains(&self, assignment: AssignmentId) -> bool {
        self.parts.iter().any(|part| part.assignment == assignment)
    }

    /// Adds `chunk` whole, decoding each record by `decode`, which appends an event's row to the rows.
    ///
    /// # Errors
    /// [`Discontinuity`], and the batch is as before.
    pub fn push(
        &mut self,
        chunk: &Arc<Chunk>,
        key: StreamPartition,
        epoch: Epoch,
        mut decode: impl FnMut(&Record, &mut Vec<u8>) -> Decoded,
    ) -> Result<(), Discontinuity> {
        let part_index = self.part_index(chunk, key, epoch)?;
        let chunk_index = self.payload.chunks.len();
        let (mut events, mut letters, mut absent) = (0, 0, chunk.absent_after);
        let mut absent_between = self.parts.get(part_index).map_or(0, |part| part.absent_after);
        self.entries.reserve(chunk.records.len());
        for (record_index, record) in chunk.records.iter().enumerate() {
            let row_start = self.payload.rows.len();
            let fate = match decode(record, &mut self.payload.rows) {
                Decoded::Event(time, noted) => {
                    events += 1;
                    *self.days.entry(UtcDay::of(time)).or_default() += 1;
                    Fate::Event(row_start..self.payload.rows.len(), noted)
                }
                Decoded::DeadLetter(letter) => {
                    letters += 1;
                    self.payload.rows.truncate(row_start);
                    Fate::DeadLetter(Arc::new(letter))
                }
            };
            absent += record.absent_before;
            self.entries.push(Entry {
                part_index,
                offset: record.offset,
                absent_before: record.absent_before + absent_between,
                chunk_index,
                record_index,
                fate,
            });
            absent_between = 0;
        }
        if !chunk.records.is_empty() {
            self.payload.chunks.push(Arc::clone(chunk));
        }
        if let Some(part) = self.parts.get_mut(part_index) {
            part.end = chunk.end;
            part.event_count += events;
            part.dead_letter_count += letters;
            part.absent_count += absent;
            part.absent_after = absent_between + chunk.absent_after;
        }
        Ok(())
    }

    fn part_index(
        &mut self,
        chunk: &Chunk,
        key: StreamPartition,
        epoch: Epoch,
    ) -> Result<usize, Discontinuity> {
        let found = self.parts.iter().position(|p| p.key == key && p.assignment == chunk.assignment);
        if let Some(index) = found {
            let expected = self.parts.get(index).map_or(chunk.start, |part| part.end);
            return if expected == chunk.start {
                Ok(index)
            } else {
                Err(Discontinuity { expected, found: chunk.start })
            };
        }
        self.parts.push(Part {
            key,
            assignment: chunk.assignment,
            epoch,
            start: chunk.start,
            end: chunk.start,
            event_count: 0,
            dead_letter_count: 0,
            absent_count: 0,
            absent_after: 0,
        });
        Ok(self.parts.len() - 1)
    }

    /// Drops the partitions for which `drop` says so.
    pub fn remove(&mut self, drop: impl FnMut(&Part) -> bool) {
        if self.parts.is_empty() {
            return;
        }
        let Batch { payload, entries, parts, days } = self.take_unsorted().without(drop);
        // Without parts nothing points into the payload any more: the builder stays the empty one that it is now.
        if !parts.is_empty()
            && let Ok(payload) = Arc::try_unwrap(payload)
        {
            *self = Self { limits: self.limits, payload, entries, parts, days };
        }
    }

    fn take_unsorted(&mut self) -> Batch {
        let empty = Self::new(self.limits);
        let Self { payload, entries, parts, days, .. } = std::mem::replace(self, empty);
        Batch { payload: Arc::new(payload), entries, parts, days }
    }

    /// The batch so far; the builder is empty afterwards and has room for as many rows.
    pub fn take(&mut self) -> Batch {
        let mut batch = self.take_unsorted();
        let mut order: Vec<usize> = (0..batch.parts.len()).collect();
        order.sort_by_key(|&index| batch.parts.get(index).map(|part| part.key));
        let mut moved = vec![0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            if let Some(slot) = moved.get_mut(old) {
                *slot = new;
            }
        }
        for entry in &mut batch.entries {
            entry.part_index = moved.get(entry.part_index).copied().unwrap_or_default();
        }
        batch.parts.sort_by_key(|part| part.key);
        self.payload.rows.reserve(batch.payload.rows.len());
        self.entries.reserve(batch.entries.len());
        batch
    }
}

#[cfg(test)]
mod tests;
