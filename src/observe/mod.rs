//! What others see of the process (the board, logs, metrics, traces), and its clock.

pub mod board;
mod clock;
mod history;
mod latency;
mod logging;
mod metrics;
mod recent;
pub mod spans;
mod traces;

pub use clock::Clock;
pub use history::{History, STEP, Step};
pub use logging::{LoggingError, install};
pub use metrics::{LagSample, Metrics, PartitionLabel, SpanCounter};
pub use recent::{RecentLine, RecentLines};
pub use traces::{Traces, TracesError};
