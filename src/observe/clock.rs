//! The one source of time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A source of time.
#[derive(Debug, Clone, Default)]
pub struct Clock;

impl Clock {
    /// Now, for measuring spans.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place where time comes from")]
    pub fn monotonic(&self) -> Instant {
        Instant::now()
    }

    /// Now, for what others are told of times.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place where time comes from")]
    pub fn system(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Milliseconds since the Unix epoch; 0 on a clock that stands before it.
    #[must_use]
    pub fn unix_ms(&self) -> i64 {
        let since = self.system().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}
