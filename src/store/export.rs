//! Events in the order of their time, as many as there are, in constant memory.
//!
//! One `REPEATABLE READ READ ONLY` transaction, so that an export shows one moment. Time partitions are read one
//! after the other, by name: the server sorts a partition at a time (on disk where it must), and the rows come as
//! fast as they are taken. Times without a partition of their own are read from the default partition.
//!
//! A savepoint is rolled back after each partition, which gives its lock back and keeps the snapshot: so a long
//! export does not keep the daemon from making a time partition, but while it reads the default one. A partition
//! that is dropped meanwhile is an error (42P01), never a hole. The snapshot holds vacuum back.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Row, ValueRef};
use uuid::Uuid;

use super::error::StoreError;
use super::session::Session;
use crate::model::event::{Status, Timestamp};
use crate::model::projection::EventRow;

/// The time 2000-01-01T00:00:00Z, from which PostgreSQL counts, in Unix microseconds.
const POSTGRES_EPOCH_UNIX_MICROS: i64 = 946_684_800_000_000;

/// The columns that [`event_row`] reads, of `events`.
pub(super) const EVENT_ROW_COLUMNS: &str = "audit_id, correlation_id, timestamp, operation, command, args, actor, \
    status, duration_ms, result_signature, client_app, host(caller_ip_address) AS caller_ip_address, federated_source, \
    query_intent, bypass_llm, trust_score::text AS trust_score, purview_compatible, metadata::text AS metadata, \
    schema_version, tenant_id, extra::text AS extra";

/// Which events; each part that is not given takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// At or after this time.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub to: Option<Timestamp>,
    /// Of this tenant.
    pub tenant: Option<String>,
    /// By this actor.
    pub actor: Option<String>,
    /// Of this operation.
    pub operation: Option<String>,
    /// With this correlation id.
    pub correlation_id: Option<Uuid>,
    /// Only those with `purview_compatible`.
    pub for_purview_only: bool,
}

/// A range of time and the table that holds its events.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    /// The table's name, quoted where it must be.
    table: String,
    /// The first moment; `None`: no bound.
    start: Option<DateTime<Utc>>,
    /// The moment after the last one; `None`: no bound.
    end: Option<DateTime<Utc>>,
}

impl Session {
    /// Calls `visit` for each event of `filter`, by `(timestamp, audit_id)`; returns how many there were. As long
    /// as it takes: the session's statement timeout does not count here.
    ///
    /// Not cancel safe, and after an error of `visit` the same: the session must be dropped.
    ///
    /// # Errors
    /// See [`StoreError`], and what `visit` returns; [`StoreError::Broken`] for a row that no event can be.
    pub async fn for_each_event<E: From<StoreError>>(
        &mut self,
        filter: &EventFilter,
        mut visit: impl FnMut(&EventRow<'_>) -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut event_count = 0;
        let windows = self.begin_export(filter).await?;
        for window in windows {
            execute(&mut self.connection, "SAVEPOINT before_window").await?;
            event_count += read_window(&mut self.connection, filter, &window, &mut visit).await?;
            execute(&mut self.connection, "ROLLBACK TO SAVEPOINT before_window").await?;
        }
        execute(&mut self.connection, "COMMIT").await?;
        Ok(event_count)
    }

    /// Opens the transaction; returns the ranges that hold the filter's time, in order.
    async fn begin_export(&mut self, filter: &EventFilter) -> Result<Vec<Window>, StoreError> {
        execute(&mut self.connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        execute(&mut self.connection, "SET LOCAL statement_timeout = 0").await?;
        execute(&mut self.connection, "SET LOCAL idle_in_transaction_session_timeout = 0").await?;
        let rows = sqlx::query(
            "WITH partitions AS (SELECT quote_ident(partition_name) AS name, lower, upper, is_default \
                                   FROM audit_events.partition_ranges), \
             others AS (SELECT * FROM partitions WHERE NOT is_default), \
             gaps AS (SELECT lag(upper, 1, '-infinity') OVER (ORDER BY lower) AS lower, lower AS upper FROM others \
                      UNION ALL SELECT coalesce(max(upper), '-infinity'), 'infinity' FROM others), \
             windows AS (SELECT name, lower, upper FROM others \
                         UNION ALL SELECT p.name, g.lower, g.upper FROM partitions AS p, gaps AS g \
                                    WHERE p.is_default AND g.lower < g.upper) \
             SELECT name, nullif(greatest(lower, $1), '-infinity') AS lower, \
                    nullif(least(upper, $2), 'infinity') AS upper \
               FROM windows WHERE lower < coalesce($2, 'infinity') AND upper > coalesce($1, '-infinity') \
              ORDER BY windows.lower",
        )
        .bind(filter.from.map(moment).transpose()?)
        .bind(filter.to.map(moment).transpose()?)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let (start, end) = (row.try_get("lower")?, row.try_get("upper")?);
                Ok(Window { table: row.try_get("name")?, start, end })
            })
            .collect()
    }
}

async fn execute(connection: &mut PgConnection, sql: &'static str) -> Result<(), StoreError> {
    sqlx::query(sql).execute(connection).await?;
    Ok(())
}

async fn read_window<E: From<StoreError>>(
    connection: &mut PgConnection,
    filter: &EventFilter,
    window: &Window,
    visit: &mut impl FnMut(&EventRow<'_>) -> Result<(), E>,
) -> Result<u64, E> {
    let sql = format!(
        "SELECT {EVENT_ROW_COLUMNS} \
           FROM audit_events.{table} \
          WHERE ($1::timestamptz IS NULL OR timestamp >= $1) AND ($2::timestamptz IS NULL OR timestamp < $2) \
            AND ($3::text IS NULL OR tenant_id = $3) AND ($4::text IS NULL OR actor = $4) \
            AND ($5::text IS NULL OR operation = $5) AND ($6::uuid IS NULL OR correlation_id = $6) \
            AND (purview_compatible OR NOT $7) \
          ORDER BY timestamp, audit_id",
        table = window.table
    );
    // Not kept as a prepared statement: each table has its own, and its plan is made for these values.
    let mut rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(window.start)
        .bind(window.end)
        .bind(filter.tenant.as_deref())
        .bind(filter.actor.as_deref())
        .bind(filter.operation.as_deref())
        .bind(filter.correlation_id)
        .bind(filter.for_purview_only)
        .persistent(false)
        .fetch(connection);
    let mut event_count = 0;
    while let Some(row) = rows.try_next().await.map_err(StoreError::from)? {
        visit(&event_row(&row)?)?;
        event_count += 1;
    }
    Ok(event_count)
}

pub(super) fn event_row(row: &PgRow) -> Result<EventRow<'_>, StoreError> {
    let audit_id: Uuid = row.try_get("audit_id")?;
    let status: &str = row.try_get("status")?;
    let broken = |what: &str| StoreError::Broken(format!("the event {audit_id} in the table has {what}"));
    Ok(EventRow {
        audit_id,
        correlation_id: row.try_get("correlation_id")?,
        timestamp: timestamp(row)?.ok_or_else(|| broken("a time outside of the years 0001 to 9999"))?,
        operation: row.try_get("operation")?,
        command: row.try_get("command")?,
        args: row.try_get("args")?,
        actor: row.try_get("actor")?,
        status: Status::read(status).ok_or_else(|| broken("an unknown status"))?,
        duration_ms: row.try_get("duration_ms")?,
        result_signature: row.try_get("result_signature")?,
        client_app: row.try_get("client_app")?,
        caller_ip_address: row.try_get("caller_ip_address")?,
        federated_source: row.try_get("federated_source")?,
        query_intent: row.try_get("query_intent")?,
        bypass_llm: row.try_get("bypass_llm")?,
        trust_score: row.try_get("trust_score")?,
        purview_compatible: row.try_get("purview_compatible")?,
        metadata: row.try_get("metadata")?,
        schema_version: row.try_get("schema_version")?,
        tenant_id: row.try_get("tenant_id")?,
        extra: row.try_get("extra")?,
    })
}

/// The row's time from its binary form, as chrono can't hold `infinity`; `None`: no time of an event.
fn timestamp(row: &PgRow) -> Result<Option<Timestamp>, StoreError> {
    let value = row.try_get_raw("timestamp")?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    let micros = bytes.try_into().map(i64::from_be_bytes).ok();
    let unix_micros = micros.and_then(|micros| micros.checked_add(POSTGRES_EPOCH_UNIX_MICROS));
    Ok(unix_micros.and_then(Timestamp::from_unix_micros))
}

pub(super) fn moment(time: Timestamp) -> Result<DateTime<Utc>, StoreError> {
    DateTime::from_timestamp_micros(time.as_unix_micros())
        .ok_or_else(|| StoreError::Broken(format!("chrono does not know the time {time}")))
}
