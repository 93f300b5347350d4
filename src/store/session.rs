//! One dedicated connection to PostgreSQL. Never pooled: after any error inside a transaction or a COPY the
//! session is dropped, which closes the connection, and another one is opened.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Connection, Row};
use uuid::Uuid;

use super::error::StoreError;
use super::partitions::KnownPartitions;
use super::tls;
use crate::config::DatabaseTarget;
use crate::native;

/// How long opening a session may take, with all that is asked in it before it is used.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach PostgreSQL, and who we are there.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    target: DatabaseTarget,
    statement_timeout: Duration,
    lock_timeout: Duration,
    /// The consumer group: the first part of the key of a position.
    pub group: Arc<str>,
    /// This process, in claims.
    pub instance: Uuid,
    /// `REQUIRE_LEAST_PRIVILEGE`: no session is opened by a role with [`super::ExcessRights`], but for operators.
    pub requires_least_privilege: bool,
}

impl StoreSettings {
    /// Settings for sessions with `target`; connects to nothing yet.
    #[must_use]
    pub fn new(
        target: DatabaseTarget,
        group: &str,
        instance: Uuid,
        (statement_timeout, lock_timeout): (Duration, Duration),
    ) -> Self {
        Self {
            target,
            statement_timeout,
            lock_timeout,
            group: group.into(),
            instance,
            requires_least_privilege: false,
        }
    }

    /// How long a statement may take.
    #[must_use]
    pub const fn statement_timeout(&self) -> Duration {
        self.statement_timeout
    }

    /// Host, port and database, as far as the URL names them now.
    #[must_use]
    pub fn place(&self) -> Option<(String, u16, String)> {
        let options = self.target.options().ok()?;
        Some((options.get_host().to_owned(), options.get_port(), options.get_database()?.to_owned()))
    }

    /// Opens a session for `purpose`.
    ///
    /// Cancel safe: a dropped future closes the connection.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Unavailable`] after 5 s in all, wherever PostgreSQL fell silent;
    /// [`StoreError::Misconfigured`] when `DATABASE_URL_FILE` can't be read, and for [`super::ExcessRights`] where least
    /// privilege is required.
    pub async fn connect(&self, purpose: SessionPurpose) -> Result<Session, StoreError> {
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, self.open(purpose)).await;
        opened.map_err(|_elapsed| StoreError::no_answer("connect"))?
    }

    async fn open(&self, purpose: SessionPurpose) -> Result<Session, StoreError> {
        let millis = |duration: Duration| duration.as_millis().to_string();
        let target = self.target.options().map_err(|error| sqlx::Error::Configuration(Box::new(error)))?;
        let target = target.log_statements(log::LevelFilter::Off).disable_statement_logging();
        let options = target.application_name(purpose.application_name()).options([
            ("statement_timeout", millis(self.statement_timeout)),
            ("lock_timeout", millis(self.lock_timeout)),
            ("idle_in_transaction_session_timeout", millis(self.statement_timeout)),
            ("tcp_keepalives_idle", "10".into()),
            ("tcp_keepalives_interval", "5".into()),
            ("tcp_keepalives_count", "3".into()),
            ("timezone", "UTC".into()),
            // What our statements rely on, whatever the role's or the database's defaults are.
            ("default_transaction_isolation", "read committed".into()),
            ("default_transaction_read_only", "off".into()),
            ("standard_conforming_strings", "on".into()),
            ("datestyle", "ISO".into()),
        ]);
        let mut connection = PgConnection::connect_with(&options).await.map_err(tls::explained)?;
        if let Err(error) = native::send_at_once(options.get_port()) {
            tracing::debug!(%error, "TCP_NODELAY is not set: short commits take 40 ms longer");
        }
        let asked = sqlx::query("SELECT pg_backend_pid()").fetch_one(&mut connection).await;
        let row = asked.map_err(tls::explained)?;
        let pid = row.try_get(0)?;
        let mut session =
            Session { connection, pid, partitions: KnownPartitions::default(), has_merge_table: false };
        if self.requires_least_privilege && purpose != SessionPurpose::Operator {
            session.refuse_excess_rights().await?;
        }
        Ok(session)
    }
}

/// What a session is for; names it in `pg_stat_activity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionPurpose {
    /// Commits batches.
    Lane,
    /// Claims and releases partitions.
    Claim,
    /// Relays dead letters.
    Relay,
    /// Writes day files.
    Projector,
    /// Reads the registry of sources.
    Registry,
    /// Serves an operator's command.
    Operator,
}

/// What the name of each of our sessions starts with: a claim terminates no others.
pub(super) const APPLICATION_NAME_PREFIX: &str = "audit-consumer";

impl SessionPurpose {
    const fn application_name(self) -> &'static str {
        match self {
            Self::Lane => "audit-consumer/lane",
            Self::Claim => "audit-consumer/claim",
            Self::Relay => "audit-consumer/relay",
            Self::Projector => "audit-consumer/projector",
            Self::Registry => "audit-consumer/registry",
            Self::Operator => "audit-consumer/operator",
        }
    }
}

/// An open session.
#[derive(Debug)]
pub struct Session {
    pub(super) connection: PgConnection,
    pub(super) pid: i32,
    pub(super) partitions: KnownPartitions,
    pub(super) has_merge_table: bool,
}

impl Session {
    /// The connection, for an operator's own statements.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Says goodbye to PostgreSQL; an error only means that it is gone already.
    pub async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "session was gone before it was closed");
        }
    }
}
