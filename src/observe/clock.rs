//! The one source of time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A source of time; `default()` is the machine's.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Where a simulated wall clock stood at which moment.
    simulated: Option<(Instant, SystemTime)>,
}

impl Clock {
    /// A clock whose wall clock stands at `start` now, and goes with the monotonic one: for simulations.
    #[must_use]
    pub fn simulated(start: SystemTime) -> Self {
        Self { simulated: Some((Self::default().monotonic(), start)) }
    }

    /// Now, for measuring spans. It stands still with tokio's clock, where that is paused.
    #[must_use]
    pub fn monotonic(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Now, for what others are told of times.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place where time comes from")]
    pub fn system(&self) -> SystemTime {
        match self.simulated {
            Some((at, start)) => start + self.monotonic().saturating_duration_since(at),
            None => SystemTime::now(),
        }
    }

    /// Milliseconds since the Unix epoch; 0 on a clock that stands before it.
    #[must_use]
    pub fn unix_ms(&self) -> i64 {
        let since = self.system().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}
