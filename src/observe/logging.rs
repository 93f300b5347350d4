//! Log lines on standard error: RFC 3339 times in UTC, a constant message and fields.

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// The log can't be set up.
#[derive(Debug, thiserror::Error)]
#[error("install the log: {0}")]
pub struct LoggingError(String);

/// Sends log lines from `level` up to standard error, as JSON objects or as text. librdkafka's own lines come from
/// WARN up, unless `level` is below INFO; what it says that matters is logged by us.
///
/// # Errors
/// When a log was installed before.
pub fn install(level: Level, as_json: bool) -> Result<(), LoggingError> {
    let own = level.as_str().to_lowercase();
    let theirs = if level == Level::INFO { "warn" } else { own.as_str() };
    // rdkafka reports an error when it closes a consumer whose brokers are gone already: that is the normal end.
    let filter = EnvFilter::new(format!(
        "{theirs},audit_consumer={own},librdkafka={theirs},rdkafka::consumer::base_consumer=off"
    ));
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let installed = if as_json { lines.json().finish().try_init() } else { lines.finish().try_init() };
    installed.map_err(|error| LoggingError(error.to_string()))
}
