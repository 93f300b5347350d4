//! How records become a batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Batch, DeadLetter, Entry, Fate, Noted, Part, Payload};
use crate::model::event::{Timestamp, UtcDay};
use crate::model::position::{Epoch, Offset, StreamPartition};
use crate::model::record::{AssignmentId, Chunk, Record};

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
    /// Room for rows and entries that an earlier batch has left.
    spare: Option<(Vec<u8>, Vec<Entry>)>,
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
            spare: None,
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
            *self = Self { limits: self.limits, payload, entries, parts, days, spare: self.spare.take() };
        }
    }

    fn take_unsorted(&mut self) -> Batch {
        let empty = Self { spare: self.spare.take(), ..Self::new(self.limits) };
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
        match self.spare.take() {
            Some((rows, entries)) => (self.payload.rows, self.entries) = (rows, entries),
            None => {
                self.payload.rows.reserve(batch.payload.rows.len());
                self.entries.reserve(batch.entries.len());
            }
        }
        batch
    }

    /// Keeps the room of a batch that is done with for one to come: asked for anew with each batch, memory would be
    /// split up and grow.
    pub fn reuse(&mut self, batch: Batch) {
        let Batch { payload, mut entries, .. } = batch;
        if let Ok(Payload { mut rows, .. }) = Arc::try_unwrap(payload) {
            rows.clear();
            entries.clear();
            self.spare = Some((rows, entries));
        }
    }
}
