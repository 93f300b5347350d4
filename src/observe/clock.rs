//! The one source of time.
use std::time::{Instant, SystemTime};
/// A source of time.
#[derive(Debug, Clone, Default)]
pub struct Clock;
impl Clock {
    /// Now, for measuring spans.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    pub fn monotonic(&self) -> Instant {
        Instant::now()
    }
    /// Now, on the wall.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    pub fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}
