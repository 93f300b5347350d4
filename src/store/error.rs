//! What PostgreSQL's errors mean, by SQLSTATE: the one table, also in ARCHITECTURE.md.
//!
//! | class | meaning | what the caller does |
//! | --- | --- | --- |
//! | 08, 57P01-57P03, 53, 58, 25006, I/O error, TLS handshake, time-out | [`StoreError::Unavailable`] | retry with backoff |
//! | 40001, 40P01, 55P03 | [`StoreError::Contended`] | retry with jitter |
//! | 57014 | [`StoreError::StatementTimeout`] | halve the batch; a single record: an outage |
//! | 22, 23, 54 | [`StoreError::Refused`] | merge path or halve the batch |
//! | 42, 28, 3D; 23502, 23503, and 23514 that names no constraint (no partition for the row) | [`StoreError::Misconfigured`] | not ready, named; nothing becomes a dead letter |
//! | anything else | [`StoreError::Unknown`] | hold the partition, named; nothing becomes a dead letter |

/// What an edge to PostgreSQL may answer but success. Variants by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL is away, or the connection is: try again later, nothing is known to be stored.
    #[error("postgresql is unavailable ({sqlstate}): {source}")]
    Unavailable {
        /// The SQLSTATE, or `io` or `tls` for an error below SQL.
        sqlstate: String,
        /// What was reported.
        #[source]
        source: sqlx::Error,
    },
    /// Somebody else holds a lock that we need: try again soon.
    #[error("postgresql is contended ({sqlstate}): {source}")]
    Contended {
        /// The SQLSTATE.
        sqlstate: String,
        /// What was reported.
        #[source]
        source: sqlx::Error,
    },
    /// The statement ran into `STATEMENT_TIMEOUT_MS`.
    #[error("statement ran into statement_timeout: {0}")]
    StatementTimeout(#[source] sqlx::Error),
    /// PostgreSQL refuses the data.
    #[error("postgresql refuses the data ({sqlstate}): {source}")]
    Refused {
        /// The SQLSTATE.
        sqlstate: String,
        /// What was reported.
        #[source]
        source: sqlx::Error,
    },
    /// The role, the password, the database, the schema or a right is wrong: an operator must act.
    #[error("postgresql is not set up for us ({sqlstate}): {source}")]
    Misconfigured {
        /// The SQLSTATE.
        sqlstate: String,
        /// What was reported.
        #[source]
        source: sqlx::Error,
    },
    /// An error that the table does not know.
    #[error("unknown postgresql error ({sqlstate}): {source}")]
    Unknown {
        /// The SQLSTATE, or `none`.
        sqlstate: String,
        /// What was reported.
        #[source]
        source: sqlx::Error,
    },
    /// What PostgreSQL holds contradicts the promise. Nothing was stored; the partition must stop.
    #[error("the account is broken: {0}")]
    Broken(String),
}

impl StoreError {
    /// PostgreSQL did not answer in the time that we give it to `what`.
    #[must_use]
    pub fn no_answer(what: &str) -> Self {
        let error = std::io::Error::new(std::io::ErrorKind::TimedOut, format!("{what}: no answer in time"));
        Self::Unavailable { sqlstate: "io".into(), source: sqlx::Error::Io(error) }
    }

    /// The variant's name, for metrics and logs.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Contended { .. } => "contended",
            Self::StatementTimeout(_) => "statement_timeout",
            Self::Refused { .. } => "refused",
            Self::Misconfigured { .. } => "misconfigured",
            Self::Unknown { .. } => "unknown",
            Self::Broken(_) => "broken",
        }
    }

    /// The SQLSTATE, where there is one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Unavailable { sqlstate, .. }
            | Self::Contended { sqlstate, .. }
            | Self::Refused { sqlstate, .. }
            | Self::Misconfigured { sqlstate, .. }
            | Self::Unknown { sqlstate, .. } => Some(sqlstate),
            Self::StatementTimeout(_) => Some("57014"),
            Self::Broken(_) => None,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(source: sqlx::Error) -> Self {
        let Some(sqlstate) =
            source.as_database_error().and_then(|error| error.code()).map(|c| c.into_owned())
        else {
            return match source {
                sqlx::Error::Configuration(_) => Self::Misconfigured { sqlstate: "none".into(), source },
                sqlx::Error::Tls(_) => Self::Unavailable { sqlstate: "tls".into(), source },
                sqlx::Error::Io(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => Self::Unavailable { sqlstate: "io".into(), source },
                _ => Self::Unknown { sqlstate: "none".into(), source },
            };
        };
        let names_constraint = source.as_database_error().is_some_and(|error| error.constraint().is_some());
        match (sqlstate.as_str(), sqlstate.get(..2).unwrap_or_default()) {
            // The schema is not ours any more, or a time partition was attached under an open COPY: no record's fault.
            ("23502" | "23503", _) => Self::Misconfigured { sqlstate, source },
            ("23514", _) if !names_constraint => Self::Misconfigured { sqlstate, source },
            ("57P01" | "57P02" | "57P03" | "25006", _) | (_, "08" | "53" | "58") => {
                Self::Unavailable { sqlstate, source }
            }
            ("40001" | "40P01" | "55P03", _) => Self::Contended { sqlstate, source },
            ("57014", _) => Self::StatementTimeout(source),
            (_, "22" | "23" | "54") => Self::Refused { sqlstate, source },
            (_, "42" | "28" | "3D") => Self::Misconfigured { sqlstate, source },
            _ => Self::Unknown { sqlstate, source },
        }
    }
}
