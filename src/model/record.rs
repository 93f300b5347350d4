//! Records as they came from Kafka: raw bytes in one arena for many records, nothing decoded yet.

use std::ops::Range;
use std::sync::Arc;

use super::position::{Offset, TopicPartition};

/// Names one assignment of one partition to this process. Never used twice while the process lives, so that
/// a record which was read under an earlier assignment is told apart and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssignmentId(pub u64);

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
    /// The bytes that the records' ranges point into.
    pub arena: Vec<u8>,
}

impl Chunk {
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
