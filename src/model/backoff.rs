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
        Self { inner, most }
    }

    /// How long to wait before the next try.
    pub fn next_wait(&mut self) -> Duration {
        self.inner.next_backoff().unwrap_or(self.most)
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
        let mut policy = RetryPolicy::new(Duration::from_millis(100), Duration::from_secs(2));
        let waits: Vec<_> = (0..200).map(|_| policy.next_wait()).collect();
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(3)));
        assert!(waits.iter().skip(20).all(|wait| *wait >= Duration::from_millis(900)));
        policy.reset();
        assert!(policy.next_wait() <= Duration::from_millis(150));
    }
}
