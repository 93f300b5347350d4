//! Imports: what a source was when its import began, the rows of a table in a fixed order, and the events that are
//! stored already. The rows themselves are stored by [`Session::commit`], as those of any stream.
//!
//! # Why a row's number is the same in each run
//!
//! A row's offset is its rank by `(timestamp, audit_id, the row's own text)`. The text makes the order total whatever keys
//! the table has: rows that are equal in it are the same row, and whichever comes first has the same content. Time goes
//! first so that rows reach the time partitions one partition after the other, and the predecessor's index gives the
//! order without a sort.
//!
//! No order alone keeps numbers where they are, as a row that comes later may belong in the middle. So the number of
//! rows and a fingerprint of all of them are recorded before the first is stored, and read again by every run in the
//! snapshot in which it reads the rows: where they differ, nothing is stored. A change between two runs is refused, and
//! a change during a run is not in its snapshot.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::claim::StreamIdentity;
use super::error::StoreError;
use super::export::{EVENT_ROW_COLUMNS, event_row, moment};
use super::session::Session;
use crate::model::event::Timestamp;
use crate::model::position::{IMPORT_PREFIX, StreamId};
use crate::model::projection::EventRow;

/// The group and the cluster of every import.
pub const IMPORT_GROUP: &str = "import";

/// The columns without which a table is not of the predecessor's shape.
const COLUMNS_NEEDED: [&str; 7] =
    ["audit_id", "correlation_id", "timestamp", "operation", "command", "actor", "status"];

/// What a source was when its import began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportSource {
    /// The table's name with its schema, or the file's path, and what the operator added to it.
    pub name: String,
    /// Rows of a table, lines of a file.
    pub record_count: i64,
    /// The file's length; `None`: a table.
    pub len_bytes: Option<i64>,
    /// Of all its content.
    pub fingerprint: String,
}

impl ImportSource {
    /// The stream of this source.
    #[must_use]
    pub fn stream(&self) -> StreamIdentity {
        StreamIdentity {
            cluster_id: IMPORT_GROUP.into(),
            topic: format!("{IMPORT_PREFIX}{}", self.name).into(),
            topic_id: Uuid::nil(),
        }
    }
}

/// A table that is not of the predecessor's shape, or is not there.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// What PostgreSQL reports.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It can't be imported, and why.
    #[error("{0}")]
    Unfit(String),
}

impl From<sqlx::Error> for TableError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Session {
    /// Opens a snapshot, and reads in it what the table `name` is. The session then reads its rows, or is dropped.
    ///
    /// Not cancel safe: when the future is dropped, the session must be dropped too.
    ///
    /// # Errors
    /// [`TableError`]; the session must then be dropped.
    pub async fn open_table(&mut self, name: &str) -> Result<ImportSource, TableError> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
                     SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; \
                     SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'; SET LOCAL intervalstyle = 'iso_8601'";
        sqlx::raw_sql(begin).execute(&mut self.connection).await?;
        let row = sqlx::query(
            "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, \
                    array(SELECT w.name FROM unnest($2::text[]) AS w (name) WHERE NOT EXISTS ( \
                          SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 \
                             AND NOT a.attisdropped AND a.attname = w.name)) AS missing, \
                    c.relkind::text = 'p' AND n.nspname = 'audit_events' AS is_ours \
               FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
              WHERE c.oid = to_regclass($1) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
        )
        .bind(name)
        .bind(COLUMNS_NEEDED.map(str::to_owned).to_vec())
        .fetch_optional(&mut self.connection)
        .await?;
        let Some(row) = row else {
            return Err(TableError::Unfit(format!(
                "there is no table {name} in this database, or this role may not see its schema; the predecessor's is \
                 core.audit_events, or audit_events_legacy.events after `migrate --adopt-legacy`"
            )));
        };
        let (table, missing): (String, Vec<String>) = (row.try_get("name")?, row.try_get("missing")?);
        if row.try_get("is_ours")? {
            return Err(TableError::Unfit(format!("{table} is this program's own table")));
        }
        if !missing.is_empty() {
            return Err(TableError::Unfit(format!(
                "{table} is not of the predecessor's shape: it has no column {}",
                missing.join(", ")
            )));
        }
        let (record_count, fingerprint) = self.fingerprint(&table).await?;
        Ok(ImportSource { name: table, record_count, len_bytes: None, fingerprint })
    }

    /// The number of rows, and 128 bits that depend on each of them and not on their order: two sums of the halves of
    /// each row's hash. Against changes by accident, as is all that is recorded here.
    async fn fingerprint(&mut self, table: &str) -> Result<(i64, String), StoreError> {
        let sql = format!(
            "SELECT count(*) AS record_count, \
                    mod(coalesce(sum(('x' || substr(h.hash, 1, 16))::bit(64)::bigint::numeric), 0) \
                        + 18446744073709551616 * count(*), 18446744073709551616)::text || ':' || \
                    mod(coalesce(sum(('x' || substr(h.hash, 17, 16))::bit(64)::bigint::numeric), 0) \
                        + 18446744073709551616 * count(*), 18446744073709551616)::text AS fingerprint \
               FROM (SELECT encode(sha256(convert_to(to_jsonb(t)::text, 'UTF8')), 'hex') AS hash FROM {table} AS t) AS h"
        );
        let row = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch_one(&mut self.connection).await?;
        Ok((row.try_get("record_count")?, row.try_get("fingerprint")?))
    }

    /// Calls `visit` for each row of the source that [`Self::open_table`] read, as JSON, in the fixed order and without
    /// the first `skip_count`; until it says `false`. It gets the text's first `kept_max_len_bytes` bytes, which alone
    /// come from the server (as characters), and the length of all of it.
    ///
    /// Not cancel safe: when the future is dropped, the session must be dropped too.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn for_each_row(
        &mut self,
        source: &ImportSource,
        (skip_count, kept_max_len_bytes): (i64, usize),
        mut visit: impl AsyncFnMut(Vec<u8>, usize) -> bool,
    ) -> Result<(), StoreError> {
        // The outer query only cuts; rows come from a subquery in its order, as nothing else could reorder them.
        let sql = format!(
            "SELECT octet_length(r.row) AS len_bytes, \
                    CASE WHEN octet_length(r.row) > $2 THEN left(r.row, $2) ELSE r.row END AS row \
               FROM (SELECT to_jsonb(t)::text AS row FROM {} AS t \
                      ORDER BY t.timestamp, t.audit_id, to_jsonb(t)::text COLLATE \"C\" OFFSET $1) AS r",
            source.name
        );
        let kept_max = i32::try_from(kept_max_len_bytes).unwrap_or(i32::MAX);
        let query = sqlx::query(AssertSqlSafe(sql)).bind(skip_count).bind(kept_max);
        let mut rows = query.persistent(false).fetch(&mut self.connection);
        while let Some(row) = rows.try_next().await? {
            let (text, len_bytes): (String, i32) = (row.try_get("row")?, row.try_get("len_bytes")?);
            let mut value = text.into_bytes();
            value.truncate(kept_max_len_bytes);
            if !visit(value, usize::try_from(len_bytes).unwrap_or(0)).await {
                break;
            }
        }
        Ok(())
    }

    /// Records what `source` is, unless its stream is known; returns what is recorded for it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn register_import(
        &mut self,
        stream: StreamId,
        source: &ImportSource,
        actor: &str,
    ) -> Result<ImportSource, StoreError> {
        sqlx::query(
            "INSERT INTO audit_events.imports (stream_id, kind, source, record_count, len_bytes, fingerprint, actor) \
             VALUES ($1, CASE WHEN $4::bigint IS NULL THEN 'table' ELSE 'file' END, $2, $3, $4, $5, $6) \
             ON CONFLICT (stream_id) DO NOTHING",
        )
        .bind(stream.0)
        .bind(&source.name)
        .bind(source.record_count)
        .bind(source.len_bytes)
        .bind(&source.fingerprint)
        .bind(actor)
        .execute(&mut self.connection)
        .await?;
        let known = self.known_import(stream).await?;
        known.ok_or_else(|| StoreError::Broken(format!("the import of {} is not recorded", source.name)))
    }

    /// What is recorded for the import `stream`.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn known_import(&mut self, stream: StreamId) -> Result<Option<ImportSource>, StoreError> {
        let row = sqlx::query(
            "SELECT source, record_count, len_bytes, fingerprint FROM audit_events.imports WHERE stream_id = $1",
        )
        .bind(stream.0)
        .fetch_optional(&mut self.connection)
        .await?;
        row.map(|row| {
            Ok(ImportSource {
                name: row.try_get("source")?,
                record_count: row.try_get("record_count")?,
                len_bytes: row.try_get("len_bytes")?,
                fingerprint: row.try_get("fingerprint")?,
            })
        })
        .transpose()
    }

    /// Calls `visit` for each stored event that has one of `ids` and a time from `from` to `to`, both included.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn for_each_stored(
        &mut self,
        ids: &[Uuid],
        (from, to): (Timestamp, Timestamp),
        mut visit: impl FnMut(&EventRow<'_>),
    ) -> Result<(), StoreError> {
        let (from, to): (DateTime<Utc>, DateTime<Utc>) = (moment(from)?, moment(to)?);
        let sql = format!(
            "SELECT {EVENT_ROW_COLUMNS} FROM audit_events.events \
              WHERE audit_id = ANY ($1) AND timestamp BETWEEN $2 AND $3"
        );
        let mut rows =
            sqlx::query(AssertSqlSafe(sql)).bind(ids).bind(from).bind(to).fetch(&mut self.connection);
        while let Some(row) = rows.try_next().await? {
            visit(&event_row(&row)?);
        }
        Ok(())
    }
}
