//! How often batches meet events that are stored already, and so by which path the next one goes first.
//!
//! The direct path costs the least, but a batch that collides on it (23505) is rolled back, which leaves dead rows behind,
//! and is committed again by the merge path. So the merge path goes first while more than a quarter of the last batches
//! collided, and no longer.

/// What a collision counts; shares are out of this.
const WHOLE: u32 = 1 << 16;
/// The share of batches that collide from which on all are merged at once.
const MERGE_FIRST_SHARE: u32 = WHOLE / 4;
/// Each batch counts an eighth: the last eight make two thirds of the share.
const WEIGHT: u32 = 8;

/// The collisions of the last batches.
#[derive(Debug, Default)]
pub struct Collisions {
    share: u32,
    /// Whether the direct path refused the batch that comes next.
    is_refused: bool,
}

impl Collisions {
    /// Notes that PostgreSQL refused a batch on the direct path, as some event is stored already or as another session
    /// stores the same ones: it comes again, and must be merged.
    pub const fn refused(&mut self) {
        self.is_refused = true;
    }

    /// Notes that a batch was committed, `met_count` of whose events were stored already, with the same content or with
    /// another; `expected_count` of them were known beforehand.
    pub const fn committed(&mut self, met_count: u64, expected_count: u64) {
        let hit = if self.is_refused || met_count > expected_count { WHOLE } else { 0 };
        self.share = self.share - self.share / WEIGHT + hit / WEIGHT;
        self.is_refused = false;
    }

    /// Whether the next batch goes by the merge path at once.
    #[must_use]
    pub const fn is_merge_first(&self) -> bool {
        self.is_refused || self.share > MERGE_FIRST_SHARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commits as a lane does: a batch that collides on the direct path comes again.
    fn commit(collisions: &mut Collisions, collides: bool) -> bool {
        if collides && !collisions.is_merge_first() {
            collisions.refused();
            assert!(collisions.is_merge_first(), "the batch that was refused is merged");
        }
        let was_merged = collisions.is_merge_first();
        collisions.committed(u64::from(collides), 0);
        was_merged
    }

    #[test]
    fn one_collision_is_merged_alone() {
        let mut collisions = Collisions::default();
        let merged: Vec<bool> = (0..40).map(|number| commit(&mut collisions, number % 20 == 0)).collect();
        let expected: Vec<bool> = (0..40).map(|number| number % 20 == 0).collect();
        assert_eq!(merged, expected);
    }

    #[test]
    fn while_all_collide_the_merge_path_goes_first_and_then_no_more() {
        let mut collisions = Collisions::default();
        (0..3).for_each(|_| assert!(commit(&mut collisions, true)));
        assert!(collisions.is_merge_first(), "after the third in a row");
        (0..1_000).for_each(|_| assert!(commit(&mut collisions, true)));
        let merged_count = (0..100).filter(|_| commit(&mut collisions, false)).count();
        assert_eq!(merged_count, 11, "merged in vain until its share has fallen to a quarter");
    }

    #[test]
    fn a_batch_that_was_refused_has_collided_whatever_was_met_then() {
        let mut collisions = Collisions::default();
        for _ in 0..3 {
            collisions.refused();
            collisions.committed(0, 0);
        }
        assert!(collisions.is_merge_first());
    }

    #[test]
    fn duplicates_that_were_expected_are_no_collision() {
        let mut collisions = Collisions::default();
        (0..100).for_each(|_| collisions.committed(5, 5));
        assert!(!collisions.is_merge_first());
    }
}
