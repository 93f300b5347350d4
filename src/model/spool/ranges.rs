//! What the ranges that a spool holds of one partition say: whether it has a record, up to where it goes on without a
//! hole, and where spooling begins. Ranges stand in the order in which they were written; they may overlap.

use crate::model::position::{Offset, OffsetRange};

/// Whether one of `ranges` has the record at `position`.
#[must_use]
pub fn holds(ranges: &[OffsetRange], position: Offset) -> bool {
    ranges.iter().any(|range| range.start() <= position && position < range.end())
}

/// The first offset of all `ranges`.
#[must_use]
pub fn first(ranges: &[OffsetRange]) -> Option<Offset> {
    ranges.iter().map(OffsetRange::start).min()
}

/// The first start of a range behind `position`.
#[must_use]
pub fn first_after(ranges: &[OffsetRange], position: Offset) -> Option<Offset> {
    ranges.iter().map(OffsetRange::start).filter(|start| *start > position).min()
}

/// The offset behind what is held from `position` on without a hole; `position` when nothing is held there.
#[must_use]
pub fn end_from(ranges: &[OffsetRange], mut position: Offset) -> Offset {
    let mut ranges = ranges.to_vec();
    ranges.sort_by_key(OffsetRange::start);
    for range in ranges {
        if range.start() <= position && position < range.end() {
            position = range.end();
        }
    }
    position
}

/// Where a partition begins to spool while PostgreSQL can't be asked; `None`: nothing tells, and it is not guessed.
///
/// `known`: the position that PostgreSQL held when it was asked last, and the one that Kafka's group mirrors; `tail`: the
/// end of the newest batch that the spool holds. From what is known to be stored it goes on behind what is held from
/// there without a hole; not behind the newest batch, as there may be a hole before that.
#[must_use]
pub fn spool_start(
    known: (Option<Offset>, Option<Offset>),
    tail: Option<Offset>,
    ranges: &[OffsetRange],
) -> Option<Offset> {
    let known = known.0.max(known.1).map(|known| end_from(ranges, known));
    known.or(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> Offset {
        Offset::new(offset).unwrap()
    }

    fn ranges(bounds: &[(i64, i64)]) -> Vec<OffsetRange> {
        bounds.iter().map(|(start, end)| OffsetRange::new(at(*start), at(*end)).unwrap()).collect()
    }

    #[test]
    fn what_is_held_is_told_in_whatever_order_it_was_written() {
        let held = ranges(&[(5, 7), (2, 4), (4, 5), (9, 10)]);
        let holding: Vec<i64> = (0..11).filter(|offset| holds(&held, at(*offset))).collect();
        assert_eq!(holding, [2, 3, 4, 5, 6, 9]);
        assert_eq!(
            (first(&held), first_after(&held, at(5)), first_after(&held, at(9))),
            (Some(at(2)), Some(at(9)), None)
        );
        assert_eq!([0, 3, 6, 7, 9].map(|from| end_from(&held, at(from)).as_i64()), [0, 7, 7, 7, 10]);
    }

    #[test]
    fn spooling_begins_behind_what_is_known_and_then_behind_what_is_held() {
        let held = ranges(&[(4, 6), (8, 9)]);
        let check = |known, mirror, tail: Option<i64>, expected: Option<i64>| {
            let known: (Option<i64>, Option<i64>) = (known, mirror);
            let start = spool_start((known.0.map(at), known.1.map(at)), tail.map(at), &held);
            assert_eq!(start, expected.map(at));
        };
        check(Some(4), Some(2), Some(9), Some(6));
        check(Some(1), Some(2), Some(9), Some(2));
        check(None, None, Some(9), Some(9));
        check(None, None, None, None);
    }
}
