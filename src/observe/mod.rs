//! What others see of the process (logs, metrics, traces), and its clock.

mod clock;
mod logging;
mod metrics;
mod traces;

pub use clock::Clock;
pub use logging::{LoggingError, TRACE_TARGET, install};
pub use metrics::{LagSample, Metrics};
pub use traces::{Traces, TracesError};
