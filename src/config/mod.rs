//! Settings as meant: read once from flags and environment, checked whole, and from then on values that can't be
//! wrong.
//!
//! Every setting is an environment variable and a flag of the same name in kebab case; the flag wins. An empty
//! variable counts as not set. A wrong value gives one line with the variable, the value and what is accepted.

mod database;
mod http;
mod kafka;
mod parse;
mod projection;
mod secret;
#[expect(clippy::doc_markdown, reason = "its comments are help texts for a terminal, not Markdown")]
mod settings;
mod token;

use std::path::PathBuf;
use std::time::Duration;

pub use database::{DatabaseTarget, DatabaseTargetError};
pub use http::HttpConfig;
pub use kafka::{KafkaConfig, KafkaLogin, KafkaProperties, TopicSelection};
pub use projection::DayFileConfig;
pub use secret::{Secret, SecretFile, SecretFileError};
pub use settings::Settings;
pub use token::TokenClaims;

use crate::model::breaker::BreakerRule;
use crate::model::dead_letter::LetterFormat;
use crate::model::projection::ProjectionRules;
use parse::Reader;

/// The default of `LOG_DIR`, and where `SPOOL_DIR` is by default.
const LOG_DIR: &str = "/logs";

/// A setting whose value can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{variable}={}: {}", one_line(.value), one_line(.accepted))]
pub struct ConfigError {
    /// The environment variable.
    pub variable: &'static str,
    /// The value that was given; `***` for a secret.
    pub value: String,
    /// What is wrong with it and what is accepted.
    pub accepted: String,
}

/// The text with its control characters escaped, so that a refusal is one line and tells a terminal nothing.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Every setting that was found wrong, each on a line of its own.
#[derive(Debug, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl std::fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

/// The process's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Kafka.
    pub kafka: KafkaConfig,
    /// PostgreSQL.
    pub database: DatabaseConfig,
    /// Batches and lanes.
    pub batch: BatchConfig,
    /// Decoding.
    pub event: EventConfig,
    /// Dead letters.
    pub letters: LetterConfig,
    /// The spool; `None`: `SPOOL_DIR=off`.
    pub spool: Option<SpoolConfig>,
    /// Lines for others: `PURVIEW_RESOURCE_ID`, `PURVIEW_CATEGORY`, `PURVIEW_IDENTITY` and `PURVIEW_DOMAIN`.
    pub projection: ProjectionRules,
    /// Day files.
    pub day_files: DayFileConfig,
    /// The process itself.
    pub process: ProcessConfig,
    shown: Vec<ShownSetting>,
}

/// How to reach and use PostgreSQL.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// `DATABASE_URL` or `DATABASE_URL_FILE`, with `PGSSLMODE` and the like.
    pub target: DatabaseTarget,
    /// `REQUIRE_LEAST_PRIVILEGE`.
    pub requires_least_privilege: bool,
    /// `STATEMENT_TIMEOUT_MS`.
    pub statement_timeout: Duration,
    /// `LOCK_TIMEOUT_MS`.
    pub lock_timeout: Duration,
    /// `CLAIM_TIMEOUT_MS`.
    pub claim_timeout: Duration,
    /// `VERIFY_INTERVAL_MS`.
    pub verify_interval: Duration,
    /// `GAP_WAIT_MS`.
    pub gap_wait: Duration,
    /// `PARTITION_INTERVAL`: `day`, `week` or `month`.
    pub partition_interval: &'static str,
}

/// When a batch closes, and how many are under way.
#[derive(Debug, Clone, Copy)]
pub struct BatchConfig {
    /// `BATCH_MAX_EVENTS`.
    pub record_count: usize,
    /// `BATCH_MAX_BYTES`.
    pub len_bytes: usize,
    /// `BATCH_LINGER_MS`.
    pub linger: Duration,
    /// `LANES`.
    pub lane_count: usize,
}

/// How events are decoded.
#[derive(Debug, Clone)]
pub struct EventConfig {
    /// `TENANT_ID`.
    pub tenant_id: String,
    /// `ASSUME_UTC`.
    pub assume_utc: bool,
    /// `MAX_EVENT_BYTES`.
    pub payload_max_len_bytes: usize,
}

/// What becomes of records that are no events.
#[derive(Debug, Clone, Copy)]
pub struct LetterConfig {
    /// `DLQ_FORMAT`.
    pub format: LetterFormat,
    /// `DLQ_BREAKER_SHARE` and `DLQ_BREAKER_WINDOW`.
    pub breaker: BreakerRule,
}

/// Where records wait while PostgreSQL is away, and how much of them.
#[derive(Debug, Clone)]
pub struct SpoolConfig {
    /// `SPOOL_DIR`.
    pub dir: PathBuf,
    /// `SPOOL_AFTER_MS`.
    pub after: Duration,
    /// `SPOOL_MAX_BYTES`.
    pub max_len_bytes: usize,
    /// `SPOOL_MIN_FREE_BYTES`.
    pub min_free_len_bytes: usize,
    /// `SPOOL_SEGMENT_BYTES`.
    pub segment_len_bytes: usize,
    /// `SPOOL_KEEP_MS`.
    pub keep: Duration,
}

/// Where the process listens, logs and keeps files, and how it stops.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// The HTTP side.
    pub http: HttpConfig,
    /// `LOG_DIR`.
    pub log_dir: PathBuf,
    /// `LOG_LEVEL`.
    pub log_level: tracing::Level,
    /// `LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `METRICS_PARTITION_LABEL`.
    pub has_partition_label: bool,
    /// `SHUTDOWN_DEADLINE_MS`.
    pub shutdown_deadline: Duration,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A setting as `check` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownSetting {
    /// The environment variable.
    pub variable: &'static str,
    /// The value in effect, secrets hidden.
    pub value: String,
    /// Whether it is the default.
    pub is_default: bool,
}

impl Config {
    /// Reads every setting.
    ///
    /// # Errors
    /// All settings that are wrong, not only the first.
    pub fn resolve(settings: &Settings) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::default();
        let config = Self {
            kafka: kafka::read(settings, &mut reader),
            database: Self::database(settings, &mut reader),
            batch: BatchConfig {
                record_count: reader.number(
                    "BATCH_MAX_EVENTS",
                    &settings.batch_max_events,
                    "10000",
                    1..=100_000,
                ),
                len_bytes: reader.bytes(
                    "BATCH_MAX_BYTES",
                    &settings.batch_max_bytes,
                    "8MiB",
                    1 << 10..=256 << 20,
                ),
                linger: reader.millis("BATCH_LINGER_MS", &settings.batch_linger_ms, "20", 1..=60_000),
                lane_count: reader.number("LANES", &settings.lanes, "2", 1..=16),
            },
            event: EventConfig {
                tenant_id: reader.text("TENANT_ID", &settings.tenant_id, "spel-local-forge"),
                assume_utc: reader.flag("ASSUME_UTC", &settings.assume_utc),
                payload_max_len_bytes: reader.bytes(
                    "MAX_EVENT_BYTES",
                    &settings.max_event_bytes,
                    "512KiB",
                    1 << 10..=16 << 20,
                ),
            },
            letters: LetterConfig {
                format: reader.one_of(
                    "DLQ_FORMAT",
                    &settings.dlq_format,
                    "raw",
                    &[("raw", LetterFormat::Raw), ("envelope", LetterFormat::Envelope)],
                ),
                breaker: BreakerRule {
                    share_percent: reader.number(
                        "DLQ_BREAKER_SHARE",
                        &settings.dlq_breaker_share,
                        "50",
                        0..=100,
                    ),
                    window_count: reader.number(
                        "DLQ_BREAKER_WINDOW",
                        &settings.dlq_breaker_window,
                        "1000",
                        1..=1_000_000_000,
                    ),
                },
            },
            spool: Self::spool(settings, &mut reader),
            projection: projection::read(settings, &mut reader),
            day_files: projection::day_files(settings, &mut reader),
            process: Self::process(settings, &mut reader),
            shown: Vec::new(),
        };
        let (shown, errors) = reader.finish();
        if errors.is_empty() { Ok(Self { shown, ..config }) } else { Err(ConfigErrors(errors)) }
    }

    fn database(settings: &Settings, reader: &mut Reader) -> DatabaseConfig {
        DatabaseConfig {
            target: database::read(settings, reader),
            requires_least_privilege: reader
                .flag("REQUIRE_LEAST_PRIVILEGE", &settings.require_least_privilege),
            statement_timeout: reader.millis(
                "STATEMENT_TIMEOUT_MS",
                &settings.statement_timeout_ms,
                "60000",
                100..=3_600_000,
            ),
            lock_timeout: reader.millis(
                "LOCK_TIMEOUT_MS",
                &settings.lock_timeout_ms,
                "10000",
                100..=3_600_000,
            ),
            claim_timeout: reader.millis(
                "CLAIM_TIMEOUT_MS",
                &settings.claim_timeout_ms,
                "10000",
                1_000..=120_000,
            ),
            verify_interval: reader.millis(
                "VERIFY_INTERVAL_MS",
                &settings.verify_interval_ms,
                "15000",
                100..=3_600_000,
            ),
            gap_wait: reader.millis("GAP_WAIT_MS", &settings.gap_wait_ms, "3600000", 0..=u64::from(u32::MAX)),
            partition_interval: reader.one_of(
                "PARTITION_INTERVAL",
                &settings.partition_interval,
                "month",
                &[("day", "day"), ("week", "week"), ("month", "month")],
            ),
        }
    }

    fn spool(settings: &Settings, reader: &mut Reader) -> Option<SpoolConfig> {
        let log_dir = settings.log_dir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or(LOG_DIR);
        let dir = reader.text(
            "SPOOL_DIR",
            &settings.spool_dir,
            &format!("{}/spool", log_dir.trim_end_matches('/')),
        );
        let (any, most) = (1 << 20..=1 << 50, 0..=1 << 50);
        let config = SpoolConfig {
            after: reader.millis("SPOOL_AFTER_MS", &settings.spool_after_ms, "5000", 0..=86_400_000),
            max_len_bytes: reader.bytes("SPOOL_MAX_BYTES", &settings.spool_max_bytes, "10GiB", any.clone()),
            min_free_len_bytes: reader.bytes(
                "SPOOL_MIN_FREE_BYTES",
                &settings.spool_min_free_bytes,
                "2GiB",
                most,
            ),
            segment_len_bytes: reader.bytes(
                "SPOOL_SEGMENT_BYTES",
                &settings.spool_segment_bytes,
                "64MiB",
                any,
            ),
            keep: reader.millis(
                "SPOOL_KEEP_MS",
                &settings.spool_keep_ms,
                "86400000",
                0..=u64::from(u32::MAX),
            ),
            dir: PathBuf::from(&dir),
        };
        (dir != "off").then_some(config)
    }

    fn process(settings: &Settings, reader: &mut Reader) -> ProcessConfig {
        ProcessConfig {
            http: http::read(settings, reader),
            log_dir: PathBuf::from(reader.text("LOG_DIR", &settings.log_dir, LOG_DIR)),
            log_level: reader.one_of(
                "LOG_LEVEL",
                &settings.log_level,
                "INFO",
                &[
                    ("TRACE", tracing::Level::TRACE),
                    ("DEBUG", tracing::Level::DEBUG),
                    ("INFO", tracing::Level::INFO),
                    ("WARN", tracing::Level::WARN),
                    ("WARNING", tracing::Level::WARN),
                    ("ERROR", tracing::Level::ERROR),
                    ("CRITICAL", tracing::Level::ERROR),
                ],
            ),
            log_format: reader.one_of(
                "LOG_FORMAT",
                &settings.log_format,
                "text",
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            ),
            has_partition_label: reader.one_of(
                "METRICS_PARTITION_LABEL",
                &settings.metrics_partition_label,
                "on",
                &[("on", true), ("off", false)],
            ),
            shutdown_deadline: reader.millis(
                "SHUTDOWN_DEADLINE_MS",
                &settings.shutdown_deadline_ms,
                "10000",
                1_000..=600_000,
            ),
        }
    }

    /// Every setting in effect, secrets hidden.
    #[must_use]
    pub fn shown(&self) -> &[ShownSetting] {
        &self.shown
    }
}

#[cfg(test)]
mod tests;
