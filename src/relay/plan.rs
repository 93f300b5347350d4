//! What to do with waiting dead letters, given how far their partitions were sent. Pure.

use std::collections::HashMap;

use uuid::Uuid;

use crate::model::dead_letter::{DeadLetterId, LetterName};
use crate::model::position::{Offset, Partition, StreamId};
use crate::outlet::Position;

/// The partitions' positions, all of `stream`: nothing of a partition at or beyond its position is in the topic.
pub type Positions = HashMap<Partition, Position>;

/// The dead letters that may be in the topic already: those below their position. The others surely are not.
#[must_use]
pub fn unsure(ids: &[DeadLetterId], positions: &Positions) -> Vec<DeadLetterId> {
    let is_below = |id: &&DeadLetterId| {
        positions.get(&id.key.partition).is_none_or(|position| id.offset < position.next)
    };
    ids.iter().filter(is_below).copied().collect()
}

/// The positions after `sent` was sent by `transaction`: of each partition of it, and never back. A dead letter below
/// its position (it became one late, by a failover) leaves the position where it is.
#[must_use]
pub fn advanced(
    (stream, handover): (StreamId, i64),
    positions: &Positions,
    sent: &[DeadLetterId],
    transaction: Uuid,
) -> Positions {
    let mut next: Positions = HashMap::new();
    for id in sent {
        let partition = id.key.partition;
        let before = next.get(&partition).or_else(|| positions.get(&partition));
        let before = before.map_or(Offset::default(), |position| position.next);
        let after = before.max(id.offset.next());
        next.insert(partition, Position { stream, next: after, transaction, handover });
    }
    next
}

/// Of each partition the later one of two positions. One that is too late costs only that more is looked up.
#[must_use]
pub fn later(mut positions: Positions, others: Positions) -> Positions {
    for (partition, other) in others {
        let position = positions.entry(partition).or_insert(other);
        if position.next < other.next {
            *position = other;
        }
    }
    positions
}

/// What the letters that are in the topic tell of positions: after the last of each partition. For positions that are gone,
/// of another stream, or from before a hand-over, and for such as a torn transaction left behind its letters.
#[derive(Debug)]
pub struct Rebuild<'a> {
    stream: (StreamId, i64),
    /// Only letters of this group count; `None`: those of any, for a stream that changed hands.
    group: Option<&'a str>,
    next: HashMap<Partition, Offset>,
}

impl<'a> Rebuild<'a> {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(stream: (StreamId, i64), group: Option<&'a str>, partitions: &[Partition]) -> Self {
        let next = partitions.iter().map(|partition| (*partition, Offset::default())).collect();
        Self { stream, group, next }
    }

    /// Counts a letter of the topic.
    pub fn see(&mut self, letter: &LetterName) {
        let is_ours =
            letter.id.key.stream == self.stream.0 && self.group.is_none_or(|group| letter.group == group);
        if let Some(next) = self.next.get_mut(&letter.id.key.partition).filter(|_| is_ours) {
            *next = (*next).max(letter.id.offset.next());
        }
    }

    /// The positions: 0 where no letter was seen.
    #[must_use]
    pub fn finish(self) -> Positions {
        let (stream, handover) = self.stream;
        let position = |next| Position { stream, next, transaction: Uuid::nil(), handover };
        self.next.into_iter().map(|(partition, next)| (partition, position(next))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::position::StreamPartition;

    const STREAM: StreamId = StreamId(Uuid::from_u128(1));

    fn id(partition: i32, offset: i64) -> DeadLetterId {
        let key = StreamPartition { stream: STREAM, partition: Partition(partition) };
        DeadLetterId { key, offset: Offset::new(offset).unwrap() }
    }

    fn positions(of: &[(i32, i64)]) -> Positions {
        of.iter()
            .map(|(partition, next)| {
                let next = Offset::new(*next).unwrap();
                (
                    Partition(*partition),
                    Position { stream: STREAM, next, transaction: Uuid::nil(), handover: 0 },
                )
            })
            .collect()
    }

    #[test]
    fn what_lies_below_the_position_or_has_none_is_unsure() {
        let ids = [id(0, 4), id(0, 5), id(1, 0), id(2, 0)];
        assert_eq!(unsure(&ids, &positions(&[(0, 5), (1, 0)])), [id(0, 4), id(2, 0)]);
    }

    #[test]
    fn positions_advance_and_never_go_back() {
        let transaction = Uuid::from_u128(7);
        let after = advanced(
            (STREAM, 0),
            &positions(&[(0, 5), (1, 9)]),
            &[id(0, 7), id(0, 6), id(1, 3)],
            transaction,
        );
        let plain: Vec<(i32, i64)> = [0, 1, 2]
            .into_iter()
            .filter_map(|partition| Some((partition, after.get(&Partition(partition))?.next.as_i64())))
            .collect();
        assert_eq!(plain, [(0, 8), (1, 9)]);
        assert!(after.values().all(|position| position.transaction == transaction));
    }

    #[test]
    fn the_later_position_counts() {
        let later = later(positions(&[(0, 5), (1, 9), (2, 0)]), positions(&[(0, 7), (1, 3), (2, 0), (3, 4)]));
        let mut next: Vec<_> =
            later.iter().map(|(partition, own)| (partition.0, own.next.as_i64())).collect();
        next.sort_unstable();
        assert_eq!(next, [(0, 7), (1, 9), (2, 0), (3, 4)]);
    }

    #[test]
    fn a_rebuilt_position_stands_after_the_last_letter_of_its_own_stream_and_group() {
        let of = |id, group: &str| LetterName { id, group: group.into() };
        let other = DeadLetterId {
            key: StreamPartition { stream: StreamId(Uuid::nil()), partition: Partition(0) },
            ..id(0, 99)
        };
        let found = [
            of(id(0, 3), "ours"),
            of(id(0, 8), "ours"),
            of(id(0, 12), "theirs"),
            of(id(1, 50), "ours"),
            of(other, "ours"),
        ];
        let next = |partition, group| {
            let mut rebuild = Rebuild::new((STREAM, 0), group, &[Partition(partition)]);
            found.iter().for_each(|letter| rebuild.see(letter));
            rebuild.finish()[&Partition(partition)].next.as_i64()
        };
        assert_eq!(next(0, Some("ours")), 9);
        assert_eq!(next(0, None), 13);
        assert_eq!(next(2, None), 0);
    }
}
