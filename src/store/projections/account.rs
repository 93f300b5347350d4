//! What there is to show of day files, and to verify.

use sqlx::Row;
use uuid::Uuid;

use super::{is_passed, is_pending, len_of};
use crate::model::projection::DaySink;
use crate::store::{Session, StoreError};

/// An instance that writes day files of a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectionInstance {
    /// Of which sink.
    pub sink: DaySink,
    /// Which.
    pub instance: Uuid,
    /// The latest intent.
    pub intended: i64,
    /// The latest that is on disk.
    pub confirmed: i64,
    /// Whether it has a session to PostgreSQL; of another role's sessions less is shown, then the process id decides.
    pub is_alive: bool,
    /// When it recorded something last, in RFC 3339; none before its first intent.
    pub intended_at: Option<String>,
}

/// A day file as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectionFile {
    /// Of which sink.
    pub sink: DaySink,
    /// Whose.
    pub instance: Uuid,
    /// Its name.
    pub name: String,
    /// Its length.
    pub len_bytes: u64,
    /// How much of that is confirmed.
    pub confirmed_len_bytes: u64,
    /// How many lines it has.
    pub line_count: u64,
    /// When something was recorded of it last, in RFC 3339.
    pub recorded_at: String,
    /// How long ago that was, in seconds.
    pub age_seconds: u64,
}

/// How far a sink is in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectionLag {
    /// Which sink.
    pub sink: DaySink,
    /// Of which topic.
    pub topic: String,
    /// Which partition.
    pub partition: i32,
    /// The next offset that nobody has intended to write; none before the first look.
    pub cursor: Option<i64>,
    /// The position.
    pub position: i64,
}

/// The lines of a sink against the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectionLines {
    /// Which sink.
    pub sink: DaySink,
    /// Lines of all files of all instances, as recorded.
    pub line_count: i64,
    /// Rows that should have one: those below the cursors, and those of filled gaps wherever the cursors are.
    pub row_count: i64,
    /// Rows of those that are pending.
    pub pending_count: i64,
    /// Lines whose rows retention dropped; of rows that were pending then there are none.
    pub dropped_count: i64,
}

fn sink_of(row: &sqlx::postgres::PgRow) -> Result<DaySink, StoreError> {
    let name: String = row.try_get("sink")?;
    DaySink::read(&name).ok_or_else(|| StoreError::Broken(format!("an unknown sink {name}")))
}

impl Session {
    /// Every instance that ever wrote, by sink.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn projection_instances(&mut self) -> Result<Vec<ProjectionInstance>, StoreError> {
        let rows = sqlx::query(
            "SELECT i.sink, i.instance_id, i.intended, i.confirmed, \
                    to_char(i.intended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS intended_at, \
                    EXISTS (SELECT FROM pg_stat_activity AS a \
                             WHERE a.pid = i.session_pid \
                               AND coalesce(a.backend_start = i.session_start, true)) AS is_alive \
               FROM audit_events.projection_instances AS i ORDER BY i.sink, i.begun_at, i.instance_id",
        )
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(ProjectionInstance {
                    sink: sink_of(row)?,
                    instance: row.try_get("instance_id")?,
                    intended: row.try_get("intended")?,
                    confirmed: row.try_get("confirmed")?,
                    is_alive: row.try_get("is_alive")?,
                    intended_at: row.try_get("intended_at")?,
                })
            })
            .collect()
    }

    /// Every day file, of one instance or all, by sink, instance and name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn projection_files(
        &mut self,
        instance: Option<Uuid>,
    ) -> Result<Vec<ProjectionFile>, StoreError> {
        let rows = sqlx::query(
            "SELECT s.sink, s.instance_id, s.file_name, max(s.end_len_bytes) AS len_bytes, \
                    coalesce(max(s.end_len_bytes) FILTER (WHERE s.intent <= i.confirmed), 0) AS confirmed_len_bytes, \
                    sum(s.line_count)::bigint AS line_count, \
                    to_char(max(s.created_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS recorded_at, \
                    greatest(extract(epoch FROM now() - max(s.created_at)), 0)::bigint AS age_seconds \
               FROM audit_events.projection_segments AS s JOIN audit_events.projection_instances AS i \
              USING (sink, instance_id) \
              WHERE $1::uuid IS NULL OR s.instance_id = $1 \
              GROUP BY s.sink, s.instance_id, s.file_name ORDER BY s.sink, s.instance_id, s.file_name",
        )
        .bind(instance)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(ProjectionFile {
                    sink: sink_of(row)?,
                    instance: row.try_get("instance_id")?,
                    name: row.try_get("file_name")?,
                    len_bytes: len_of(row, "len_bytes")?,
                    confirmed_len_bytes: len_of(row, "confirmed_len_bytes")?,
                    line_count: len_of(row, "line_count")?,
                    recorded_at: row.try_get("recorded_at")?,
                    age_seconds: len_of(row, "age_seconds")?,
                })
            })
            .collect()
    }

    /// How far each sink that was ever on is, by topic and partition.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn projection_lags(&mut self) -> Result<Vec<ProjectionLag>, StoreError> {
        let rows = sqlx::query(
            "SELECT k.sink, s.topic, o.partition, c.next_offset AS cursor, o.next_offset AS position \
               FROM (SELECT DISTINCT sink FROM audit_events.projection_instances) AS k \
              CROSS JOIN audit_events.consumer_offsets AS o \
               JOIN audit_events.streams AS s USING (stream_id) \
               LEFT JOIN audit_events.projection_cursors AS c \
                 ON c.sink = k.sink AND c.stream_id = o.stream_id AND c.partition = o.partition \
              ORDER BY k.sink, s.topic, s.created_at, o.partition",
        )
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(ProjectionLag {
                    sink: sink_of(row)?,
                    topic: row.try_get("topic")?,
                    partition: row.try_get("partition")?,
                    cursor: row.try_get("cursor")?,
                    position: row.try_get("position")?,
                })
            })
            .collect()
    }

    /// Counts lines against rows, sink by sink. One statement each, so at one moment; it reads all rows, for an hour at
    /// most.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn projection_lines(&mut self) -> Result<Vec<ProjectionLines>, StoreError> {
        sqlx::query("BEGIN READ ONLY").execute(&mut self.connection).await?;
        sqlx::query("SET LOCAL statement_timeout = '1h'").execute(&mut self.connection).await?;
        let (is_passed, is_pending) = (is_passed("c"), is_pending("c"));
        let sql = format!(
            "SELECT (SELECT coalesce(sum(line_count), 0)::bigint FROM audit_events.projection_segments \
                      WHERE sink = $1) AS line_count, \
                    (SELECT coalesce(sum(CASE WHEN $2 THEN purview_lines ELSE trust_lines END), 0)::bigint \
                       FROM audit_events.retention_counts) AS dropped_count, \
                    count(*) AS row_count, count(*) FILTER (WHERE {is_pending}) AS pending_count \
               FROM audit_events.events AS e JOIN audit_events.projection_cursors AS c \
                 ON c.sink = $1 AND c.stream_id = e.stream_id AND c.partition = e.source_partition AND {is_passed} \
              WHERE e.purview_compatible OR NOT $2"
        );
        let mut lines = Vec::new();
        for sink in DaySink::ALL {
            let row = sqlx::query(sqlx::AssertSqlSafe(&*sql))
                .bind(sink.as_str())
                .bind(sink.projection().is_for_purview())
                .fetch_one(&mut self.connection)
                .await?;
            lines.push(ProjectionLines {
                sink,
                line_count: row.try_get("line_count")?,
                row_count: row.try_get("row_count")?,
                pending_count: row.try_get("pending_count")?,
                dropped_count: row.try_get("dropped_count")?,
            });
        }
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(lines)
    }
}
