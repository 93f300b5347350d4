//! What others see of the process (the board, logs, metrics, traces), and its clock.

pub mod board;
mod clock;
mod history;
mod latency;
mod logging;
mod metrics;
mod recent;
mod traces;

pub use clock::Clock;
pub use history::{History, STEP, Step};
pub use logging::{LoggingError, TRACE_TARGET, install};
pub use metrics::{LagSample, Metrics, PartitionLabel};
pub use recent::{RecentLine, RecentLines};
pub use traces::{Traces, TracesError};
