//! Which events a lane has read not long ago: those that come again are likely to be upstream duplicates.
//!
//! A hint and no more: what it says decides only by which statement a row is stored. An id that it has forgotten, or that
//! came to another lane, collides in PostgreSQL and is merged then; one that it takes for another is merged in vain.

use uuid::Uuid;

/// How many ids are remembered at most; each takes 8 bytes.
const COUNT: u64 = 1 << 17;

/// The ids that came last, roughly: an id takes the place of an earlier one by its hash.
#[derive(Debug)]
pub struct RecentIds {
    fingerprints: Box<[u64]>,
}

impl Default for RecentIds {
    fn default() -> Self {
        Self { fingerprints: (0..COUNT).map(|_| 0).collect() }
    }
}

impl RecentIds {
    /// Notes that `id` came; whether it came before.
    pub fn note(&mut self, id: Uuid) -> bool {
        // Versions 4 and 7 have their random bits in the lower half, version 1 its time in the upper one.
        let (high, low) = id.as_u64_pair();
        let fingerprint = low ^ high.rotate_left(32);
        let place = usize::try_from(fingerprint % COUNT).unwrap_or_default();
        let Some(known) = self.fingerprints.get_mut(place) else { return false };
        std::mem::replace(known, fingerprint) == fingerprint
    }

    /// Forgets all: records will be read again, and are no duplicates of themselves.
    pub fn clear(&mut self) {
        self.fingerprints.fill(0);
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
        // 10,000 in 131,072 places: of about one in 13 another has the place, or takes it.
        assert!(known_count > 9_000, "{known_count} of 10,000 are known");
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
