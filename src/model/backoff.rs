//! How long to wait before the next try.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

/// Waits that grow from `first` to `most` by half at each try, each spread by 50 % either way (so that many
/// instances do not come back at once). Never ends: an outage may last any time.
#[derive(Debug)]
pub struct RetryPolicy {
    inner: ExponentialBackoff,
    most: Duration,
    /// What the next wait is spread by; `None`: by chance.
    spread: Option<u64>,
}

impl RetryPolicy {
    /// A policy that begins at `first` and stays at about `most`.
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        let inner = ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            max_interval: most,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Self { inner, most, spread: None }
    }

    /// The policy whose waits are spread by `seed`, always the same: many instances have many seeds.
    #[must_use]
    pub fn spread_by(mut self, seed: u64) -> Self {
        self.inner.randomization_factor = 0.0;
        self.spread = Some(seed);
        self
    }

    /// How long to wait before the next try.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.inner.next_backoff().unwrap_or(self.most);
        let Some(state) = &mut self.spread else { return wait };
        // splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // Between a half and one and a half.
        let permille = u32::try_from(500 + (mixed ^ (mixed >> 31)) % 1001).unwrap_or(1000);
        wait.saturating_mul(permille) / 1000
    }

    /// Begins again after a success.
    pub fn reset(&mut self) {
        self.inner.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_bounded_and_never_end() {
        let policy = || RetryPolicy::new(Duration::from_millis(100), Duration::from_secs(2));
        for mut policy in [policy(), policy().spread_by(7)] {
            let waits: Vec<_> = (0..200).map(|_| policy.next_wait()).collect();
            assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(3)));
            assert!(waits.iter().skip(20).all(|wait| *wait >= Duration::from_millis(900)));
            policy.reset();
            assert!(policy.next_wait() <= Duration::from_millis(150));
        }
    }

    #[test]
    fn a_seed_spreads_waits_the_same_way_each_time_and_another_seed_otherwise() {
        let waits = |seed| {
            let mut policy =
                RetryPolicy::new(Duration::from_millis(100), Duration::from_secs(2)).spread_by(seed);
            (0..20).map(|_| policy.next_wait()).collect::<Vec<_>>()
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }
}
