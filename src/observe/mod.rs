//! What others see of the process (the board, logs, metrics, traces), and its clock.

pub mod board;
mod clock;
mod latency;
mod logging;
mod metrics;
mod traces;

pub use clock::Clock;
pub use logging::{LoggingError, TRACE_TARGET, install};
pub use metrics::{LagSample, Metrics, PartitionLabel};
pub use traces::{Traces, TracesError};
