//! The outbox: rows of `dead_letters` that are not in their dead letter topic yet, and who relays them.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::commit::offset_of;
use super::error::StoreError;
use super::session::{APPLICATION_NAME_PREFIX, Session};
use crate::model::dead_letter::{DeadLetterId, DeadLetterRow, headers_from_json};
use crate::model::position::{Offset, Partition, StreamId, StreamPartition};

/// How many dead letters go in one Kafka transaction at most …
pub const LETTER_MAX_COUNT: i64 = 500;
/// … and how many bytes of keys, values and headers, beyond a first one.
pub(super) const LETTERS_MAX_LEN_BYTES: i64 = 8 << 20;
/// How long a dead letter is, of `dead_letters AS d`; reads no payload.
pub(super) const LETTER_LEN_BYTES: &str = "(coalesce(octet_length(d.payload), 0) + coalesce(octet_length(d.record_key), 0) \
    + pg_column_size(d.headers))";
/// How many waiting dead letters are counted at most.
const BACKLOG_MAX_COUNT: i64 = 100_000;
/// A relay that asks nothing of PostgreSQL for so long is stopped: another one ends its session and takes over. Longer
/// than all time limits of one Kafka transaction together.
const LEADER_SILENCE: &str = "3 minutes";

/// A stream with dead letters that wait for the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingStream {
    /// The stream.
    pub stream: StreamId,
    /// Its topic.
    pub topic: String,
    /// The latest hand-over of the stream from one group to another (its `action_id`); 0 when there was none.
    pub handover: i64,
    /// The groups that handed it over.
    pub former_groups: Vec<String>,
}

/// How many dead letters wait, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Backlog {
    /// How many.
    pub count: u64,
    /// How long ago the oldest was stored, in seconds.
    pub oldest_age_seconds: f64,
}

/// Where a dead letter was found or put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed {
    /// Which.
    pub id: DeadLetterId,
    /// In which partition of the dead letter topic.
    pub partition: Partition,
    /// At which offset.
    pub offset: Offset,
}

/// The columns that [`row_of`] reads, of `dead_letters AS d`.
pub(super) const ROW_COLUMNS: &str = "d.dead_letter_id, d.stream_id, d.source_partition, d.source_offset, d.group_id, d.topic, d.reason, \
    d.detail, d.sqlstate, (extract(epoch FROM d.record_timestamp) * 1000)::bigint AS timestamp_ms, d.record_key, \
    d.payload, d.headers, d.correlation_id, \
    to_char(d.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS created_at_text";

pub(super) fn row_of(row: &PgRow) -> Result<DeadLetterRow, StoreError> {
    let headers: serde_json::Value = row.try_get("headers")?;
    let id = id_of(row)?;
    Ok(DeadLetterRow {
        row_id: row.try_get("dead_letter_id")?,
        id,
        group: row.try_get("group_id")?,
        topic: row.try_get("topic")?,
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        sqlstate: row.try_get("sqlstate")?,
        timestamp_ms: row.try_get("timestamp_ms")?,
        key: row.try_get("record_key")?,
        value: row.try_get("payload")?,
        headers: headers_from_json(&headers)
            .map_err(|error| StoreError::Broken(format!("dead letter {id}: {error}")))?,
        correlation_id: row.try_get("correlation_id")?,
        created_at: row.try_get("created_at_text")?,
    })
}

pub(super) fn id_of(row: &PgRow) -> Result<DeadLetterId, StoreError> {
    let key = StreamPartition {
        stream: StreamId(row.try_get("stream_id")?),
        partition: Partition(row.try_get("source_partition")?),
    };
    Ok(DeadLetterId { key, offset: offset_of(row, "source_offset")? })
}

impl Session {
    /// Takes the lock of the one relay of `group`, which this session then holds until it ends. `false`: another
    /// session has it. One of ours that has been silent for [`LEADER_SILENCE`] loses it: its session is ended.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn lead_relay(&mut self, group: &str) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT pg_try_advisory_lock(hashtextextended('audit-consumer/relay/' || $1, 0)) AS is_leader",
        )
        .bind(group)
        .fetch_one(&mut self.connection)
        .await?;
        let is_leader: bool = row.try_get("is_leader")?;
        if !is_leader {
            let ended = sqlx::query(
                "SELECT pg_terminate_backend(a.pid) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid), \
                        hashtextextended('audit-consumer/relay/' || $1, 0) AS k \
                  WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
                    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                    AND (l.classid::bigint << 32) | l.objid::bigint = k \
                    AND starts_with(a.application_name, $2) AND a.usename = current_user \
                    AND a.state_change < now() - $3::interval",
            )
            .bind(group)
            .bind(APPLICATION_NAME_PREFIX)
            .bind(LEADER_SILENCE)
            .fetch_all(&mut self.connection)
            .await?;
            if !ended.is_empty() {
                tracing::warn!(
                    silence = LEADER_SILENCE,
                    "the relay's leader was silent; its session was ended"
                );
            }
        }
        Ok(is_leader)
    }

    /// The streams of `group` with dead letters that wait, oldest stream first. Those of imports have no topic to go to.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn waiting_streams(&mut self, group: &str) -> Result<Vec<WaitingStream>, StoreError> {
        let rows = sqlx::query(
            "SELECT s.stream_id, s.topic, h.handover, h.former_groups FROM audit_events.streams AS s, LATERAL ( \
                    SELECT coalesce(max(a.action_id), 0) AS handover, \
                           coalesce(array_agg(DISTINCT a.details ->> 'from_group') \
                                    FILTER (WHERE a.details ? 'from_group'), '{}') AS former_groups \
                      FROM audit_events.offset_actions AS a \
                     WHERE a.stream_id = s.stream_id AND a.action = 'adopt_from_group') AS h \
              WHERE s.group_id = $1 AND NOT starts_with(s.topic, 'import:') AND EXISTS ( \
                    SELECT FROM audit_events.dead_letters AS d \
                     WHERE d.stream_id = s.stream_id AND d.relayed_at IS NULL) \
              ORDER BY s.created_at, s.stream_id",
        )
        .bind(group)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(WaitingStream {
                    stream: StreamId(row.try_get("stream_id")?),
                    topic: row.try_get("topic")?,
                    handover: row.try_get("handover")?,
                    former_groups: row.try_get("former_groups")?,
                })
            })
            .collect()
    }

    /// How many dead letters of `group` wait, and how old the oldest of them is; no more than 100,000 are looked at.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn relay_backlog(&mut self, group: &str) -> Result<Backlog, StoreError> {
        let row = sqlx::query(
            "SELECT count(*) AS waiting_count, \
                    coalesce(extract(epoch FROM now() - min(w.created_at)), 0)::float8 AS oldest_age_seconds \
               FROM (SELECT d.created_at \
                       FROM audit_events.dead_letters AS d JOIN audit_events.streams AS s USING (stream_id) \
                      WHERE d.relayed_at IS NULL AND s.group_id = $1 LIMIT $2) AS w",
        )
        .bind(group)
        .bind(BACKLOG_MAX_COUNT)
        .fetch_one(&mut self.connection)
        .await?;
        let count: i64 = row.try_get("waiting_count")?;
        Ok(Backlog {
            count: u64::try_from(count).unwrap_or(0),
            oldest_age_seconds: row.try_get("oldest_age_seconds")?,
        })
    }

    /// The first dead letters of `stream` that wait, by partition and offset: at most [`LETTER_MAX_COUNT`], and some
    /// MiB of them.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Broken`] when a row's headers are not as we write them.
    pub async fn waiting_letters(&mut self, stream: StreamId) -> Result<Vec<DeadLetterRow>, StoreError> {
        let sql = format!(
            "WITH first AS ( \
                 SELECT w.*, sum(w.len_bytes) OVER (ORDER BY w.source_partition, w.source_offset) AS total_len_bytes \
                   FROM (SELECT d.stream_id, d.source_partition, d.source_offset, {LETTER_LEN_BYTES} AS len_bytes \
                           FROM audit_events.dead_letters AS d WHERE d.stream_id = $1 AND d.relayed_at IS NULL \
                          ORDER BY d.source_partition, d.source_offset LIMIT {LETTER_MAX_COUNT}) AS w) \
             SELECT {ROW_COLUMNS} FROM first AS f \
               JOIN audit_events.dead_letters AS d USING (stream_id, source_partition, source_offset) \
              WHERE f.total_len_bytes - f.len_bytes <= {LETTERS_MAX_LEN_BYTES} \
              ORDER BY d.source_partition, d.source_offset"
        );
        let rows =
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(stream.0).fetch_all(&mut self.connection).await?;
        rows.iter().map(row_of).collect()
    }

    /// Notes where dead letters of `stream` are. Those that are marked already stay as they are; returns how many were not.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn mark_relayed(&mut self, stream: StreamId, relayed: &[Relayed]) -> Result<u64, StoreError> {
        let ints = |read: fn(&Relayed) -> i32| relayed.iter().map(read).collect::<Vec<i32>>();
        let bigints = |read: fn(&Relayed) -> i64| relayed.iter().map(read).collect::<Vec<i64>>();
        let marked = sqlx::query(
            "UPDATE audit_events.dead_letters AS d \
                SET relayed_at = now(), relay_partition = m.relay_partition, relay_offset = m.relay_offset \
               FROM unnest($2::integer[], $3::bigint[], $4::integer[], $5::bigint[]) \
                    AS m (source_partition, source_offset, relay_partition, relay_offset) \
              WHERE d.stream_id = $1 AND d.source_partition = m.source_partition \
                AND d.source_offset = m.source_offset AND d.relayed_at IS NULL",
        )
        .bind(stream.0)
        .bind(ints(|letter| letter.id.key.partition.0))
        .bind(bigints(|letter| letter.id.offset.as_i64()))
        .bind(ints(|letter| letter.partition.0))
        .bind(bigints(|letter| letter.offset.as_i64()))
        .execute(&mut self.connection)
        .await?;
        Ok(marked.rows_affected())
    }
}
