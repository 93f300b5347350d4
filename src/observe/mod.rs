//! What others see of the process (logs, metrics), and its clock.

mod clock;
mod logging;
mod metrics;

pub use clock::Clock;
pub use logging::{LoggingError, install};
pub use metrics::{LagSample, Metrics};
