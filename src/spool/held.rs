//! What the spool holds, by partition: ranges, tails, numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::position::{Offset, OffsetRange, StreamPartition};
use crate::model::spool::{BatchLine, Closing, SegmentNumber};

use super::scan::SegmentScan;

/// Ranges of one partition, in the order in which they were written; neighbours are joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionRanges {
    /// The partition of the stream.
    pub key: StreamPartition,
    /// The topic's name.
    pub topic: Arc<str>,
    /// The ranges; empty ones are left out.
    pub ranges: Vec<OffsetRange>,
}

/// Where a partition goes on that the spool holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// The partition of the stream.
    pub key: StreamPartition,
    /// The topic's name.
    pub topic: Arc<str>,
    /// The position after the newest batch that is held.
    pub position: Offset,
}

/// What one segment holds of one partition.
#[derive(Debug, Clone)]
pub(super) struct SegmentPart {
    pub(super) topic: Arc<str>,
    pub(super) ranges: Vec<OffsetRange>,
    /// The end of its newest batch.
    pub(super) newest_end: Offset,
    /// The end of the batch that reaches furthest.
    pub(super) furthest_end: Offset,
    pub(super) record_count: u64,
}

/// A segment that is held.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) number: SegmentNumber,
    pub(super) created_at_ms: i64,
    /// Where its last durable batch ends.
    pub(super) end: Closing,
    /// The length of the file, with a footer or what could not be cut off.
    pub(super) file_len_bytes: u64,
    pub(super) batch_count: u64,
    pub(super) record_count: u64,
    pub(super) parts: BTreeMap<StreamPartition, SegmentPart>,
}

impl Segment {
    /// What `scan` found of whole batches up to `end`.
    pub(super) fn of(scan: &SegmentScan, end: Closing, file_len_bytes: u64) -> Self {
        let mut segment = Self {
            number: scan.number,
            created_at_ms: scan.header.map_or(0, |header| header.created_at_ms),
            end,
            file_len_bytes,
            batch_count: 0,
            record_count: 0,
            parts: BTreeMap::new(),
        };
        for batch in scan.batches.iter().filter(|batch| batch.closing.len_bytes <= end.len_bytes) {
            segment.add(&batch.line);
        }
        segment
    }

    pub(super) fn add(&mut self, line: &BatchLine) {
        self.batch_count += 1;
        self.record_count += line.record_count;
        let part = self.parts.entry(line.key).or_insert_with(|| SegmentPart {
            topic: Arc::clone(&line.topic),
            ranges: Vec::new(),
            newest_end: line.range.end(),
            furthest_end: line.range.end(),
            record_count: 0,
        });
        part.newest_end = line.range.end();
        part.furthest_end = part.furthest_end.max(line.range.end());
        part.record_count += line.record_count;
        join(&mut part.ranges, line.range);
    }

    /// Whether PostgreSQL holds all of it, by the positions that the caller reported.
    pub(super) fn is_drained(&self, positions: &BTreeMap<StreamPartition, Offset>) -> bool {
        self.parts.iter().all(|(key, part)| part.is_drained(positions.get(key)))
    }
}

impl SegmentPart {
    pub(super) fn is_drained(&self, position: Option<&Offset>) -> bool {
        position.is_some_and(|position| self.furthest_end <= *position)
    }
}

/// The ranges of batch lines by partition.
pub(super) fn ranges_of<'a>(lines: impl Iterator<Item = &'a BatchLine>) -> Vec<PartitionRanges> {
    let mut by_key = BTreeMap::new();
    for line in lines {
        add_range(&mut by_key, line.key, &line.topic, line.range);
    }
    by_key.into_values().collect()
}

/// Adds a range to the others of its partition.
pub(super) fn add_range(
    by_key: &mut BTreeMap<StreamPartition, PartitionRanges>,
    key: StreamPartition,
    topic: &Arc<str>,
    range: OffsetRange,
) {
    let new = || PartitionRanges { key, topic: Arc::clone(topic), ranges: Vec::new() };
    join(&mut by_key.entry(key).or_insert_with(new).ranges, range);
}

/// Adds `range` to `ranges`, to the last one when that ends where it starts.
fn join(ranges: &mut Vec<OffsetRange>, range: OffsetRange) {
    if range.is_empty() {
        return;
    }
    match ranges.last_mut() {
        Some(last) if last.end() == range.start() => {
            *last = OffsetRange::new(last.start(), range.end()).unwrap_or(*last);
        }
        _ => ranges.push(range),
    }
}

/// The ranges by partition and start; those that overlap or touch are one: what goes to `spool_ranges`.
#[must_use]
pub fn joined(held: &[PartitionRanges]) -> Vec<(StreamPartition, OffsetRange)> {
    let mut ranges: Vec<(StreamPartition, OffsetRange)> =
        held.iter().flat_map(|held| held.ranges.iter().map(|range| (held.key, *range))).collect();
    ranges.sort_by_key(|(key, range)| (*key, range.start()));
    let mut joined: Vec<(StreamPartition, OffsetRange)> = Vec::with_capacity(ranges.len());
    for (key, range) in ranges {
        match joined.last_mut() {
            Some((last_key, last)) if *last_key == key && range.start() <= last.end() => {
                *last = OffsetRange::new(last.start(), last.end().max(range.end())).unwrap_or(*last);
            }
            _ => joined.push((key, range)),
        }
    }
    joined
}

/// What of `ranges` is in none of `others`.
pub(super) fn without(ranges: &[OffsetRange], others: &[OffsetRange]) -> Vec<OffsetRange> {
    let mut left = ranges.to_vec();
    for other in others {
        left = left
            .into_iter()
            .flat_map(|range| {
                let before = OffsetRange::new(range.start(), range.end().min(other.start()));
                let after = OffsetRange::new(range.start().max(other.end()), range.end());
                // An empty `other` inside of a range would only cut it in two.
                if other.is_empty() { [Some(range), None] } else { [before, after] }
            })
            .flatten()
            .filter(|range| !range.is_empty())
            .collect();
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::position::{Partition, StreamId};

    fn ranges(bounds: &[(i64, i64)]) -> Vec<OffsetRange> {
        let at = |offset| Offset::new(offset).unwrap();
        bounds.iter().map(|(start, end)| OffsetRange::new(at(*start), at(*end)).unwrap()).collect()
    }

    #[test]
    fn neighbours_are_joined_and_nothing_else() {
        let mut joined = Vec::new();
        for range in ranges(&[(0, 2), (2, 5), (5, 5), (7, 9), (3, 4)]) {
            join(&mut joined, range);
        }
        assert_eq!(joined, ranges(&[(0, 5), (7, 9), (3, 4)]));
    }

    #[test]
    fn what_is_in_other_ranges_is_left_out() {
        let check = |from: &[_], others: &[_], expected: &[_]| {
            assert_eq!(without(&ranges(from), &ranges(others)), ranges(expected));
        };
        check(&[(0, 10)], &[], &[(0, 10)]);
        check(&[(0, 10)], &[(3, 5)], &[(0, 3), (5, 10)]);
        check(&[(0, 10)], &[(0, 5), (8, 12)], &[(5, 8)]);
        check(&[(0, 10), (20, 30)], &[(5, 25)], &[(0, 5), (25, 30)]);
        check(&[(0, 10)], &[(0, 10)], &[]);
        check(&[(0, 10)], &[(20, 30)], &[(0, 10)]);
        check(&[(0, 10)], &[(4, 4)], &[(0, 10)]);
    }

    #[test]
    fn ranges_that_overlap_are_published_once() {
        let at = |offset| Offset::new(offset).unwrap();
        let range = |(start, end)| OffsetRange::new(at(start), at(end)).unwrap();
        let held = |partition, ranges: &[(i64, i64)]| PartitionRanges {
            key: StreamPartition { stream: StreamId(uuid::Uuid::nil()), partition: Partition(partition) },
            topic: "t".into(),
            ranges: ranges.iter().copied().map(range).collect(),
        };
        let found =
            joined(&[held(1, &[(100, 200), (100, 300), (400, 500)]), held(0, &[(300, 400), (0, 300)])]);
        let plain: Vec<(i32, i64, i64)> = found
            .iter()
            .map(|(key, range)| (key.partition.0, range.start().as_i64(), range.end().as_i64()))
            .collect();
        assert_eq!(plain, [(0, 0, 400), (1, 100, 300), (1, 400, 500)]);
    }
}
