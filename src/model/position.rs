//! Where we are in a partition: offsets, half open ranges, streams, epochs.
//!
//! A position is the next offset to read, never the last one read. A range `[start, end)` may have gaps
//! (compaction, aborted transactions, control records), so records are counted, never subtracted.

use std::fmt;

use uuid::Uuid;

/// An offset in a partition, or the position before it: `Offset(n)` as a position says that `n` is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(i64);

impl Offset {
    /// The offset `value`, or `None` when it is negative (librdkafka's logical offsets are).
    #[must_use]
    pub const fn new(value: i64) -> Option<Self> {
        if value < 0 { None } else { Some(Self(value)) }
    }

    /// The number as Kafka and PostgreSQL write it; never negative.
    #[must_use]
    pub const fn as_i64(self) -> i64 {
        self.0
    }

    /// The position after the record at this offset. Saturates at the largest offset that Kafka can name.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// How many offsets lie in `[self, end)`; `None` when `end` is before `self`.
    #[must_use]
    pub const fn distance_to(self, end: Self) -> Option<u64> {
        if end.0 < self.0 { None } else { Some(end.0.abs_diff(self.0)) }
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A partition number of a topic, as Kafka counts them (from 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub i32);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A topic by name, with a partition: what Kafka assigns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: std::sync::Arc<str>,
    /// The partition's number.
    pub partition: Partition,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// One incarnation of one topic on one cluster. A topic that is deleted and created again is another stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub Uuid);

/// The namespace of stream ids: `UUIDv5(DNS, "stream.audit-consumer")`, fixed for ever.
const STREAM_NAMESPACE: Uuid = Uuid::from_u128(0x7cef_67fd_0c59_55c5_80e3_87ef_dff9_c1d8);

/// What the names of imports begin with. No topic of Kafka can be named so: a topic's name holds no colon.
pub const IMPORT_PREFIX: &str = "import:";

/// Whether `topic` names an import: a stream that comes from a table or a file, and has no topic in Kafka.
#[must_use]
pub fn is_import(topic: &str) -> bool {
    topic.starts_with(IMPORT_PREFIX)
}

impl StreamId {
    /// The id of (cluster id, topic, topic id): a `UUIDv5` (RFC 9562), so that it can be computed without PostgreSQL.
    /// The parts are joined by a line feed, which none of them can hold.
    #[must_use]
    pub fn of(cluster_id: &str, topic: &str, topic_id: Uuid) -> Self {
        let name = format!("{cluster_id}\n{topic}\n{}", topic_id.hyphenated());
        Self(Uuid::new_v5(&STREAM_NAMESPACE, name.as_bytes()))
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.hyphenated())
    }
}

/// A stream's partition: the key of a position in PostgreSQL. Rows are locked in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamPartition {
    /// The stream.
    pub stream: StreamId,
    /// The partition's number.
    pub partition: Partition,
}

impl fmt::Display for StreamPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.stream, self.partition)
    }
}

/// How often a partition was claimed: a commit under an older epoch is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub i64);

/// A half open range of offsets `[start, end)` of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OffsetRange {
    start: Offset,
    end: Offset,
}

impl OffsetRange {
    /// The range `[start, end)`, or `None` when `end` is before `start`.
    #[must_use]
    pub fn new(start: Offset, end: Offset) -> Option<Self> {
        (start <= end).then_some(Self { start, end })
    }

    /// The first offset in the range.
    #[must_use]
    pub const fn start(&self) -> Offset {
        self.start
    }

    /// The offset after the range.
    #[must_use]
    pub const fn end(&self) -> Offset {
        self.end
    }

    /// How many offsets (not records) the range spans.
    #[must_use]
    pub const fn span(&self) -> u64 {
        self.end.0.abs_diff(self.start.0)
    }

    /// Its first `count` offsets, or all of them.
    #[must_use]
    pub fn first(&self, count: u64) -> Self {
        let end = self.start.0.saturating_add(i64::try_from(count).unwrap_or(i64::MAX));
        Self { start: self.start, end: self.end.min(Offset(end)) }
    }

    /// Whether the range holds no offset.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_id_is_the_same_for_ever() {
        let id = StreamId::of("cluster", "topic", Uuid::from_u128(7));
        assert_eq!(id, StreamId::of("cluster", "topic", Uuid::from_u128(7)));
        assert_eq!(id.to_string(), "1e61a423-b898-53e4-ad22-0d2d466306d8");
    }

    #[test]
    fn a_recreated_topic_is_another_stream() {
        assert_ne!(StreamId::of("c", "t", Uuid::from_u128(1)), StreamId::of("c", "t", Uuid::from_u128(2)));
        assert_ne!(StreamId::of("c", "t", Uuid::from_u128(1)), StreamId::of("d", "t", Uuid::from_u128(1)));
    }

    #[test]
    fn ranges_are_half_open_and_never_backward() {
        let at = |n| Offset::new(n).unwrap();
        assert_eq!(OffsetRange::new(at(3), at(5)).unwrap().span(), 2);
        assert!(OffsetRange::new(at(3), at(3)).unwrap().is_empty());
        assert_eq!(OffsetRange::new(at(5), at(3)), None);
        let range = OffsetRange::new(at(3), at(9)).unwrap();
        assert_eq!(range.first(2), OffsetRange::new(at(3), at(5)).unwrap());
        assert_eq!((range.first(6), range.first(u64::MAX), range.first(0).is_empty()), (range, range, true));
        assert_eq!(Offset::new(-1001), None);
        assert_eq!(at(5).distance_to(at(3)), None);
        assert_eq!(at(3).next(), at(4));
    }
}
