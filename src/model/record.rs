//! Records as they came from Kafka: raw bytes in one arena for many records, nothing decoded yet.

use std::ops::Range;
use std::sync::Arc;

use super::position::{Offset, TopicPartition};

/// Names one assignment of one partition to this process. Never used twice while the process lives, so that
/// a record which was read under an earlier assignment is told apart and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssignmentId(pub u64);

/// When a chunk's records were taken from Kafka, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polled {
    /// The first of them.
    pub from_ms: i64,
    /// The chunk was closed.
    pub to_ms: i64,
}

/// One record of a [`Chunk`]: where its parts lie in the chunk's arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The record's offset.
    pub offset: Offset,
    /// How many offsets before this one, back to the record before or to the chunk's start, hold no record
    /// that a reader may see (compaction, aborted transactions, control records).
    pub absent_before: u64,
    /// The record's own time in milliseconds since the Unix epoch, when it has one.
    pub timestamp_ms: Option<i64>,
    /// The key, or `None` when the record has none.
    pub key: Option<Range<usize>>,
    /// The value, or `None` for a tombstone.
    pub value: Option<Range<usize>>,
    /// The headers in their order: key bytes and value bytes.
    pub headers: Vec<(Range<usize>, Option<Range<usize>>)>,
}

/// Records of one partition, in offset order, without a hole: it covers `[start, end)`, and every offset in
/// it is a record or counted as absent.
#[derive(Debug)]
pub struct Chunk {
    /// The assignment under which the records were read.
    pub assignment: AssignmentId,
    /// Where they come from.
    pub source: Arc<TopicPartition>,
    /// The position before the first record.
    pub start: Offset,
    /// The position after the last record, and after what is absent behind it.
    pub end: Offset,
    /// How many offsets are absent behind the last record, up to `end`.
    pub absent_after: u64,
    /// The records.
    pub records: Vec<Record>,
    /// When it was polled; `None`: it did not come from Kafka now.
    pub polled: Option<Polled>,
    /// The bytes that the records' ranges point into.
    pub arena: Vec<u8>,
}

impl Chunk {
    /// The chunk from `position` on: what lies before it is left out. All of it when it starts there or behind.
    #[must_use]
    pub fn from(mut self, position: Offset) -> Self {
        if position <= self.start {
            return self;
        }
        self.start = position.min(self.end);
        self.records.retain(|record| record.offset >= position);
        match self.records.first_mut() {
            // All between is absent: what was a record lies before the position.
            Some(first) => first.absent_before = self.start.distance_to(first.offset).unwrap_or(0),
            None => self.absent_after = self.start.distance_to(self.end).unwrap_or(0),
        }
        self
    }

    /// The chunk up to `position`: what lies there or behind is left out. All of it when it ends there or before.
    #[must_use]
    pub fn until(mut self, position: Offset) -> Self {
        if position >= self.end {
            return self;
        }
        self.end = position.max(self.start);
        self.records.retain(|record| record.offset < position);
        let last = self.records.last().map(|record| record.offset.next());
        self.absent_after = last.unwrap_or(self.start).distance_to(self.end).unwrap_or(0);
        self
    }

    /// The bytes of `range`; empty when the range is not one of this chunk's records'.
    #[must_use]
    pub fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.arena.get(range.clone()).unwrap_or_default()
    }

    /// The value of `record`, or `None` for a tombstone.
    #[must_use]
    pub fn value<'a>(&'a self, record: &Record) -> Option<&'a [u8]> {
        record.value.as_ref().map(|range| self.bytes(range))
    }

    /// The key of `record`.
    #[must_use]
    pub fn key<'a>(&'a self, record: &Record) -> Option<&'a [u8]> {
        record.key.as_ref().map(|range| self.bytes(range))
    }

    /// The headers of `record` in their order.
    pub fn headers<'a>(&'a self, record: &'a Record) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
        record
            .headers
            .iter()
            .map(|(key, value)| (self.bytes(key), value.as_ref().map(|range| self.bytes(range))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::position::Partition;

    /// The chunk `[10, 20)` with records at 12, 13 and 17.
    fn chunk() -> Chunk {
        let at = |offset| Offset::new(offset).unwrap();
        let record = |offset, absent_before| Record {
            offset: at(offset),
            absent_before,
            timestamp_ms: None,
            key: None,
            value: None,
            headers: Vec::new(),
        };
        Chunk {
            assignment: AssignmentId(1),
            source: Arc::new(TopicPartition { topic: "t".into(), partition: Partition(0) }),
            start: at(10),
            end: at(20),
            absent_after: 2,
            records: vec![record(12, 2), record(13, 0), record(17, 3)],
            polled: None,
            arena: Vec::new(),
        }
    }

    #[test]
    fn a_trimmed_chunk_accounts_for_every_offset_that_is_left() {
        for position in 5..25 {
            let trimmed = chunk().from(Offset::new(position).unwrap());
            let absent: u64 = trimmed.records.iter().map(|record| record.absent_before).sum();
            let record_count = u64::try_from(trimmed.records.len()).unwrap();
            let span = trimmed.start.distance_to(trimmed.end).unwrap();
            assert_eq!(absent + trimmed.absent_after + record_count, span, "from {position}");
            assert_eq!(trimmed.start.as_i64(), position.clamp(10, 20));
            assert!(trimmed.records.iter().all(|record| record.offset >= trimmed.start));
        }
        for position in 5..25 {
            let trimmed = chunk().until(Offset::new(position).unwrap());
            let absent: u64 = trimmed.records.iter().map(|record| record.absent_before).sum();
            let record_count = u64::try_from(trimmed.records.len()).unwrap();
            let span = trimmed.start.distance_to(trimmed.end).unwrap();
            assert_eq!(absent + trimmed.absent_after + record_count, span, "until {position}");
            assert_eq!(trimmed.end.as_i64(), position.clamp(10, 20));
            assert!(trimmed.records.iter().all(|record| record.offset < trimmed.end));
        }
        let offsets =
            |chunk: Chunk| chunk.records.iter().map(|record| record.offset.as_i64()).collect::<Vec<_>>();
        assert_eq!(offsets(chunk().from(Offset::new(13).unwrap())), [13, 17]);
    }
}
