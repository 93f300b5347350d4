//! What a lane believes of a position, against what PostgreSQL says: PostgreSQL is right.

use super::position::{Epoch, Offset};

/// What a lane knows of a partition that it owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Belief {
    /// The epoch of its claim.
    pub epoch: Epoch,
    /// The position that PostgreSQL held when it was heard of last.
    pub position: Offset,
    /// The end of the batch that starts there and is to be committed next, or was sent and never answered.
    pub batch_end: Option<Offset>,
}

/// What a look at PostgreSQL means for a belief.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is true.
    Holds,
    /// The batch is stored: its COMMIT had succeeded, and the answer never came.
    StoredBefore(Offset),
    /// The position is another one (a failover took it back, or somebody else stored): read again from there.
    Moved,
    /// The claim is another one, or there is no row.
    ClaimedElsewhere,
}

impl Belief {
    /// Compares with the epoch and position in the row, if there is one.
    #[must_use]
    pub fn against(&self, found: Option<(Epoch, Offset)>) -> Verdict {
        match found {
            Some((epoch, _)) if epoch != self.epoch => Verdict::ClaimedElsewhere,
            Some((_, position)) if position == self.position => Verdict::Holds,
            Some((_, position)) if Some(position) == self.batch_end => Verdict::StoredBefore(position),
            Some(_) => Verdict::Moved,
            None => Verdict::ClaimedElsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgresql_is_right_about_epoch_and_position() {
        let at = |offset| Offset::new(offset).unwrap();
        let belief = Belief { epoch: Epoch(3), position: at(10), batch_end: Some(at(15)) };
        let check = |epoch, position, expected| {
            assert_eq!(belief.against(Some((Epoch(epoch), at(position)))), expected);
        };
        check(3, 10, Verdict::Holds);
        check(3, 15, Verdict::StoredBefore(at(15)));
        check(3, 9, Verdict::Moved);
        check(3, 12, Verdict::Moved);
        check(4, 10, Verdict::ClaimedElsewhere);
        check(2, 15, Verdict::ClaimedElsewhere);
        assert_eq!(belief.against(None), Verdict::ClaimedElsewhere);
    }
}
