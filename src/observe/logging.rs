//! Log lines on standard error: RFC 3339 times in UTC, a constant message and fields. What concerns a record has its
//! `correlation_id` and `trace_id`, what concerns a commit the `trace_id` of its own trace.

use tracing::Level;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::recent::RecentLines;

/// The log can't be set up.
#[derive(Debug, thiserror::Error)]
#[error("install the log: {0}")]
pub struct LoggingError(String);

/// Sends log lines from `level` up to standard error, as JSON objects or as text. Returns where
/// the last warnings and errors are to be found, which are kept whatever `level` is.
/// librdkafka's own lines come from WARN up at INFO; what it says that matters is logged by us.
///
/// # Errors
/// When a log was installed before.
pub fn install(level: Level, as_json: bool) -> Result<RecentLines, LoggingError> {
    let own = level.as_str().to_lowercase();
    let theirs = if level == Level::INFO { "warn" } else { own.as_str() };
    // rdkafka reports an error when it closes a consumer whose brokers are gone already: that is the normal end.
    let filter = EnvFilter::new(format!(
        "{theirs},audit_consumer={own},librdkafka={theirs},rdkafka::consumer::base_consumer=off"
    ));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let lines = if as_json { lines.json().boxed() } else { lines.boxed() };
    // Not an `Option` of a layer: an absent one with a filter makes tracing-subscriber 0.3.23 lose lines of some places.
    let recent = RecentLines::default();
    let kept = EnvFilter::new("warn,rdkafka::consumer::base_consumer=off");
    let layers = vec![lines.with_filter(filter).boxed(), recent.clone().with_filter(kept).boxed()];
    tracing_subscriber::registry()
        .with(layers)
        .try_init()
        .map_err(|error| LoggingError(error.to_string()))?;
    Ok(recent)
}
