//! Which events a lane has read not long ago: those that come again are likely to be upstream duplicates.
//!
//! A hint and no more: what it says decides only by which statement a row is stored. An id that it has forgotten, or that
//! came to another lane, collides in PostgreSQL and is merged then; one that it takes for another is merged in vain.

use uuid::Uuid;

/// How many places there are, each for [`PLACE_COUNT`] ids.
const SHELF_COUNT: usize = 1 << 14;
/// So many ids of a shelf are remembered, the newest first: 64 bytes, which processors read at once.
const PLACE_COUNT: usize = 8;

/// The last ids, by a fingerprint of 64 bits: some 131,072 in 1 MiB. One that fewer than 10,000 others have followed is
/// forgotten less than once in a million times.
#[derive(Debug)]
pub struct RecentIds {
    shelves: Box<[[u64; PLACE_COUNT]]>,
}

impl Default for RecentIds {
    fn default() -> Self {
        Self { shelves: vec![[0; PLACE_COUNT]; SHELF_COUNT].into_boxed_slice() }
    }
}

impl RecentIds {
    /// Notes that `id` came; whether it came before.
    pub fn note(&mut self, id: Uuid) -> bool {
        // Versions 4 and 7 have their random bits in the lower half, version 1 its time in the upper one.
        let (high, low) = id.as_u64_pair();
        let fingerprint = low ^ high.rotate_left(32);
        let index = usize::try_from(fingerprint % (1 << 14)).unwrap_or_default();
        let Some(shelf) = self.shelves.get_mut(index) else { return false };
        if shelf.contains(&fingerprint) {
            return true;
        }
        shelf.rotate_right(1);
        if let Some(newest) = shelf.first_mut() {
            *newest = fingerprint;
        }
        false
    }

    /// Forgets all: records will be read again, and are no duplicates of themselves.
    pub fn clear(&mut self) {
        self.shelves.fill([0; PLACE_COUNT]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_came_not_long_ago_is_known() {
        let mut recent = RecentIds::default();
        let ids: Vec<Uuid> = (0..10_000).map(|_| Uuid::now_v7()).collect();
        let came_before = ids.iter().filter(|id| recent.note(**id)).count();
        assert_eq!(came_before, 0, "each is another one");
        let known_count = ids.iter().filter(|id| recent.note(**id)).count();
        assert_eq!(known_count, 10_000);
        recent.clear();
        assert!(!recent.note(ids[0]), "all are forgotten");
        let others = (0..10_000).filter(|_| recent.note(Uuid::new_v4())).count();
        assert_eq!(others, 0, "others are not");
    }

    #[test]
    fn it_forgets() {
        let mut recent = RecentIds::default();
        let first = Uuid::from_u128(1 << 64);
        assert!(!recent.note(first));
        for number in 2..4_000_000u128 {
            recent.note(Uuid::from_u128(number * 0x9e37_79b9_7f4a_7c15));
        }
        assert!(!recent.note(first), "another one has its place");
    }
}
