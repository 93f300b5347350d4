//! Events in the order of their time, as many as there are, in constant memory.
//!
//! One `REPEATABLE READ READ ONLY` transaction, so that an export shows one moment. Time partitions are read one
//! after the other, by name: the server sorts a partition at a time (on disk where it must), and the rows come as
//! fast as they are taken, by binary COPY, which costs both ends the least. Times without a partition of their own
//! are read from the default partition.
//!
//! A role that may not read the table reads the view of its tenants' events, with the same ranges of time.
//!
//! A savepoint is rolled back after each partition, which gives its lock back and keeps the snapshot: so a long
//! export does not keep the daemon from making a time partition, but while it reads the default one. A partition
//! that is dropped meanwhile is an error (42P01), never a hole. The snapshot holds vacuum back.

mod tuple;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Row, ValueRef};
use uuid::Uuid;

use self::tuple::Tuples;
use super::error::StoreError;
use super::session::Session;
use crate::model::event::{Status, Timestamp};
use crate::model::projection::EventRow;

/// The time 2000-01-01T00:00:00Z, from which PostgreSQL counts, in Unix microseconds.
const POSTGRES_EPOCH_UNIX_MICROS: i64 = 946_684_800_000_000;

/// What the server may take to sort a partition before it sorts on disk. With its default of 4 MiB it would merge
/// in several passes what it sorted.
const SORT_MEMORY: &str = "64MB";
/// After how many rows others have their turn: rows may come so fast that none of them is waited for.
const TURN_COUNT: u64 = 256;

/// Why a row can be no event.
const NO_TIME: &str = "a time outside of the years 0001 to 9999";
const NO_STATUS: &str = "an unknown status";

/// The columns that [`event_row`] and [`Tuples`] read, of `events`.
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
        let statements = self.begin_export(filter).await?;
        for statement in statements {
            execute(&mut self.connection, "SAVEPOINT before_window").await?;
            event_count += copy(&mut self.connection, &statement, &mut visit).await?;
            execute(&mut self.connection, "ROLLBACK TO SAVEPOINT before_window").await?;
        }
        execute(&mut self.connection, "COMMIT").await?;
        Ok(event_count)
    }

    /// Opens the transaction; returns the COPYs that give the filter's events, in order: one for each range of time
    /// and the table that holds its events. COPY takes no parameters, so the server quotes the filter's values.
    async fn begin_export(&mut self, filter: &EventFilter) -> Result<Vec<String>, StoreError> {
        execute(&mut self.connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        execute(&mut self.connection, "SET LOCAL statement_timeout = 0").await?;
        execute(&mut self.connection, "SET LOCAL idle_in_transaction_session_timeout = 0").await?;
        sqlx::query(
            "SELECT set_config('work_mem', $1, true) \
              WHERE pg_size_bytes(current_setting('work_mem')) < pg_size_bytes($1)",
        )
        .bind(SORT_MEMORY)
        .execute(&mut self.connection)
        .await?;
        let rows = sqlx::query(
            "WITH partitions AS (SELECT CASE WHEN has_table_privilege('audit_events.events', 'SELECT') \
                                        THEN quote_ident(partition_name) ELSE 'reader_events' END AS name, \
                                        lower, upper, is_default \
                                   FROM audit_events.partition_ranges), \
             others AS (SELECT * FROM partitions WHERE NOT is_default), \
             gaps AS (SELECT lag(upper, 1, '-infinity') OVER (ORDER BY lower) AS lower, lower AS upper FROM others \
                      UNION ALL SELECT coalesce(max(upper), '-infinity'), 'infinity' FROM others), \
             windows AS (SELECT name, lower, upper FROM others \
                         UNION ALL SELECT p.name, g.lower, g.upper FROM partitions AS p, gaps AS g \
                                    WHERE p.is_default AND g.lower < g.upper) \
             SELECT concat('COPY (SELECT ', $8, ' FROM audit_events.', name, ' WHERE true', \
                           ' AND timestamp >= ' || quote_literal(nullif(greatest(lower, $1), '-infinity')), \
                           ' AND timestamp < ' || quote_literal(nullif(least(upper, $2), 'infinity')), \
                           ' AND tenant_id = ' || quote_literal($3::text), \
                           ' AND actor = ' || quote_literal($4::text), \
                           ' AND operation = ' || quote_literal($5::text), \
                           ' AND correlation_id = ' || quote_literal($6::uuid), \
                           CASE WHEN $7 THEN ' AND purview_compatible' END, \
                           ' ORDER BY timestamp, audit_id) TO STDOUT (FORMAT binary)') \
               FROM windows WHERE lower < coalesce($2, 'infinity') AND upper > coalesce($1, '-infinity') \
              ORDER BY windows.lower",
        )
        .bind(filter.from.map(moment).transpose()?)
        .bind(filter.to.map(moment).transpose()?)
        .bind(filter.tenant.as_deref())
        .bind(filter.actor.as_deref())
        .bind(filter.operation.as_deref())
        .bind(filter.correlation_id)
        .bind(filter.for_purview_only)
        .bind(EVENT_ROW_COLUMNS)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(|row| row.try_get(0).map_err(StoreError::from)).collect()
    }
}

async fn execute(connection: &mut PgConnection, sql: &'static str) -> Result<(), StoreError> {
    sqlx::query(sql).execute(connection).await?;
    Ok(())
}

/// Calls `visit` for each row that `statement` gives; returns how many there were.
async fn copy<E: From<StoreError>>(
    connection: &mut PgConnection,
    statement: &str,
    visit: &mut impl FnMut(&EventRow<'_>) -> Result<(), E>,
) -> Result<u64, E> {
    let mut messages = connection.copy_out_raw(statement).await.map_err(StoreError::from)?;
    let mut event_count: u64 = 0;
    while let Some(message) = messages.try_next().await.map_err(StoreError::from)? {
        // A message ends where a row ends (documentation of the protocol, "COPY Operations").
        let mut tuples = Tuples::of(&message);
        while let Some(row) = tuples.next()? {
            visit(&row)?;
            event_count += 1;
        }
        if event_count.is_multiple_of(TURN_COUNT) {
            tokio::task::yield_now().await;
        }
    }
    Ok(event_count)
}

pub(super) fn event_row(row: &PgRow) -> Result<EventRow<'_>, StoreError> {
    let audit_id: Uuid = row.try_get("audit_id")?;
    let status: &str = row.try_get("status")?;
    Ok(EventRow {
        audit_id,
        correlation_id: row.try_get("correlation_id")?,
        timestamp: timestamp(row)?.ok_or_else(|| broken(audit_id, NO_TIME))?,
        operation: row.try_get("operation")?,
        command: row.try_get("command")?,
        args: row.try_get("args")?,
        actor: row.try_get("actor")?,
        status: Status::read(status).ok_or_else(|| broken(audit_id, NO_STATUS))?,
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

fn broken(audit_id: Uuid, what: &str) -> StoreError {
    StoreError::Broken(format!("the event {audit_id} in the table has {what}"))
}

/// The row's time from its binary form, as chrono can't hold `infinity`; `None`: no time of an event.
fn timestamp(row: &PgRow) -> Result<Option<Timestamp>, StoreError> {
    let value = row.try_get_raw("timestamp")?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    Ok(bytes.try_into().ok().and_then(|micros| event_time(i64::from_be_bytes(micros))))
}

/// The time that is `micros` microseconds after 2000-01-01T00:00:00Z.
fn event_time(micros: i64) -> Option<Timestamp> {
    Timestamp::from_unix_micros(micros.checked_add(POSTGRES_EPOCH_UNIX_MICROS)?)
}

pub(super) fn moment(time: Timestamp) -> Result<DateTime<Utc>, StoreError> {
    DateTime::from_timestamp_micros(time.as_unix_micros())
        .ok_or_else(|| StoreError::Broken(format!("chrono does not know the time {time}")))
}
