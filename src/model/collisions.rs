//! How often batches meet events that are stored already, and so by which path the next one goes first.
//!
//! The direct path costs the least, but a batch that collides on it (23505) is rolled back and committed again by the
//! merge path: it costs about twice as much as one that is merged at once. So the merge path goes first while more than
//! a quarter of the last batches collided, and no longer.

/// What a collision counts; shares are out of this.
const WHOLE: u32 = 1 << 16;
/// The share of batches that collide from which on all are merged at once.
const MERGE_FIRST_SHARE: u32 = WHOLE / 4;
/// Each batch counts an eighth, so of the last eight it is about two thirds of the share that is told.
const WEIGHT: u32 = 8;

/// The collisions of the last batches.
#[derive(Debug, Default)]
pub struct Collisions {
    share: u32,
    /// Whether the batch that comes next did not go by the direct path.
    is_refused: bool,
}

impl Collisions {
    /// Notes that PostgreSQL refused a batch on the direct path, as some event is stored already or as another session
    /// stores the same ones: it comes again, and must be merged.
    pub const fn refused(&mut self) {
        self.is_refused = true;
    }

    /// Notes that a batch was committed with `found` upstream duplicates, `expected` of which were known beforehand.
    pub const fn committed(&mut self, found: u64, expected: u64) {
        let hit = if found > expected { WHOLE } else { 0 };
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
    fn duplicates_that_were_expected_are_no_collision() {
        let mut collisions = Collisions::default();
        (0..100).for_each(|_| collisions.committed(5, 5));
        assert!(!collisions.is_merge_first());
    }
}
