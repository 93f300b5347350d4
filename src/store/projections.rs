//! Day files as PostgreSQL knows them: who writes which offsets, and what stands in which file. The protocol is told in
//! [`crate::projector`].

mod account;
mod actions;
mod rows;
mod segments;

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::commit::offset_of;
use super::error::StoreError;
use super::session::Session;
use crate::model::position::{Offset, OffsetRange, Partition, StreamId, StreamPartition};
use crate::model::projection::DaySink;

pub use account::{ProjectionFile, ProjectionInstance, ProjectionLag, ProjectionLines};
pub use actions::Adoption;
pub use rows::PageEnd;
pub use segments::{Segment, SegmentScope};

/// Who writes: one process of one instance, for one sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// Which files.
    pub sink: DaySink,
    /// Whose.
    pub instance: Uuid,
    /// This process.
    pub run: Uuid,
}

/// What is recorded of an instance when a process begins to write for it.
#[derive(Debug, Clone, PartialEq)]
pub struct WriterState {
    /// The process that wrote before; none after `projections adopt`.
    pub former_run: Option<Uuid>,
    /// The latest intent.
    pub intended: i64,
    /// What is intended and not confirmed, by file.
    pub open: Vec<Segment>,
    /// Every file of the instance, by name.
    pub files: BTreeMap<String, FileRecord>,
}

/// A file as recorded.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FileRecord {
    /// Its length when all that is intended is written.
    pub len_bytes: u64,
    /// How many records of it there are that could be one.
    pub small_count: i64,
    /// How long ago the newest was made, in seconds.
    pub age_seconds: f64,
}

/// Offsets that may be written next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectionWork {
    /// Of which partition.
    pub key: StreamPartition,
    /// Which offsets; all of their rows are committed.
    pub range: OffsetRange,
    /// Where they come from.
    pub origin: WorkOrigin,
}

/// Where work comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkOrigin {
    /// They are next behind the cursor.
    Cursor,
    /// They are next behind the cursor, and a gap was declared over them: they are passed over.
    Gap,
    /// They were left behind the cursor: the row of `projection_pending`.
    Pending(i64),
}

/// What an intent takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The work, its range cut to what is taken.
    pub work: ProjectionWork,
    /// What of a pending range is left for later.
    pub left: Option<OffsetRange>,
}

/// What became of an intent or a confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It stands.
    Done,
    /// Nothing was recorded: some of the offsets were taken by another instance.
    Outrun,
    /// Nothing was recorded: what PostgreSQL knows of us is not what we believe. The process that writes for this
    /// instance, as it stands there.
    NotOurs(Option<Uuid>),
}

impl Session {
    /// Begins to write for an instance, as its only process: what an earlier one tries to record from now on is refused.
    /// `after`: only if the process that is named there is this one, or that one, or none; else nothing is changed, and
    /// the answer is who is named.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn begin_projection(
        &mut self,
        writer: Writer,
        after: Option<Option<Uuid>>,
    ) -> Result<Result<WriterState, Uuid>, StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        sqlx::query(
            "INSERT INTO audit_events.projection_instances (sink, instance_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(writer.sink.as_str())
        .bind(writer.instance)
        .execute(&mut self.connection)
        .await?;
        let row = sqlx::query(
            "SELECT run_id, intended, confirmed FROM audit_events.projection_instances \
              WHERE sink = $1 AND instance_id = $2 FOR UPDATE",
        )
        .bind(writer.sink.as_str())
        .bind(writer.instance)
        .fetch_one(&mut self.connection)
        .await?;
        let former_run: Option<Uuid> = row.try_get("run_id")?;
        if let (Some(run), Some(expected)) = (former_run, after)
            && run != writer.run
            && expected != Some(run)
        {
            sqlx::query("ROLLBACK").execute(&mut self.connection).await?;
            return Ok(Err(run));
        }
        sqlx::query(
            "UPDATE audit_events.projection_instances \
                SET run_id = $3, begun_at = now(), session_pid = pg_backend_pid(), \
                    session_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()) \
              WHERE sink = $1 AND instance_id = $2",
        )
        .bind(writer.sink.as_str())
        .bind(writer.instance)
        .bind(writer.run)
        .execute(&mut self.connection)
        .await?;
        let (intended, confirmed): (i64, i64) = (row.try_get("intended")?, row.try_get("confirmed")?);
        let open = match intended == confirmed {
            true => Vec::new(),
            false => self.segments(writer, SegmentScope::Intent(intended)).await?,
        };
        let rows = sqlx::query(
            "SELECT file_name, max(end_len_bytes) AS len_bytes, \
                    count(*) FILTER (WHERE cardinality(start_offsets) < $3) AS small_count, \
                    extract(epoch FROM now() - max(created_at))::float8 AS age_seconds \
               FROM audit_events.projection_segments WHERE sink = $1 AND instance_id = $2 GROUP BY file_name",
        )
        .bind(writer.sink.as_str())
        .bind(writer.instance)
        .bind(segments::MERGED_RANGE_COUNT)
        .fetch_all(&mut self.connection)
        .await?;
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        let mut files = BTreeMap::new();
        for row in &rows {
            let record = FileRecord {
                len_bytes: len_of(row, "len_bytes")?,
                small_count: row.try_get("small_count")?,
                age_seconds: row.try_get("age_seconds")?,
            };
            files.insert(row.try_get("file_name")?, record);
        }
        Ok(Ok(WriterState { former_run, intended, open, files }))
    }

    /// What of `group` may be written next, by partition: behind the cursors of `owned`, which are made at the first
    /// offset of a partition that has none, and unless `left_after` is `None`, of partitions that nobody wrote for so long,
    /// and pending ranges.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn projection_work(
        &mut self,
        (sink, group): (DaySink, &str),
        owned: &[StreamPartition],
        left_after: Option<std::time::Duration>,
    ) -> Result<Vec<ProjectionWork>, StoreError> {
        sqlx::query(
            "INSERT INTO audit_events.projection_cursors (sink, stream_id, partition, next_offset) \
             SELECT $1, o.stream_id, o.partition, o.first_offset FROM audit_events.consumer_offsets AS o \
              WHERE o.group_id = $2 AND NOT EXISTS (SELECT FROM audit_events.projection_cursors AS c \
                    WHERE c.sink = $1 AND c.stream_id = o.stream_id AND c.partition = o.partition) \
             ON CONFLICT DO NOTHING",
        )
        .bind(sink.as_str())
        .bind(group)
        .execute(&mut self.connection)
        .await?;
        // Positions here, rows in later statements: each row below one of these positions is visible then.
        let rows = sqlx::query(
            "SELECT o.stream_id, o.partition, c.next_offset AS start_offset, NULL::bigint AS pending_id, \
                    g.start_offset <= c.next_offset AS is_gap, \
                    CASE WHEN g.start_offset <= c.next_offset THEN least(g.end_offset, o.next_offset) \
                         ELSE least(g.start_offset, o.next_offset) END AS end_offset \
               FROM audit_events.consumer_offsets AS o \
               JOIN audit_events.projection_cursors AS c \
                 ON c.sink = $1 AND c.stream_id = o.stream_id AND c.partition = o.partition \
               LEFT JOIN unnest($3::uuid[], $4::integer[]) AS w (stream_id, partition) \
                 ON w.stream_id = o.stream_id AND w.partition = o.partition \
               LEFT JOIN LATERAL (SELECT g.start_offset, g.end_offset FROM audit_events.offset_gaps AS g \
                                   WHERE g.stream_id = o.stream_id AND g.partition = o.partition \
                                     AND g.end_offset > c.next_offset ORDER BY g.start_offset LIMIT 1) AS g ON true \
              WHERE o.group_id = $2 AND c.next_offset < o.next_offset \
                AND (w.stream_id IS NOT NULL OR o.committed_at < now() - $5::float8 * interval '1 second') \
             UNION ALL \
             SELECT p.stream_id, p.partition, p.start_offset, p.pending_id, false, p.end_offset \
               FROM audit_events.projection_pending AS p \
               JOIN audit_events.consumer_offsets AS o \
                 ON o.stream_id = p.stream_id AND o.partition = p.partition AND o.next_offset >= p.end_offset \
              WHERE p.sink = $1 AND o.group_id = $2 AND $5 IS NOT NULL \
              ORDER BY 1, 2, 3",
        )
        .bind(sink.as_str())
        .bind(group)
        .bind(owned.iter().map(|key| key.stream.0).collect::<Vec<_>>())
        .bind(owned.iter().map(|key| key.partition.0).collect::<Vec<_>>())
        .bind(left_after.map(|left_after| left_after.as_secs_f64()))
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let pending: Option<i64> = row.try_get("pending_id")?;
                let is_gap: Option<bool> = row.try_get("is_gap")?;
                let origin = match (pending, is_gap) {
                    (Some(id), _) => WorkOrigin::Pending(id),
                    (None, Some(true)) => WorkOrigin::Gap,
                    (None, _) => WorkOrigin::Cursor,
                };
                let range = range_of(offset_of(row, "start_offset")?, offset_of(row, "end_offset")?)?;
                Ok(ProjectionWork { key: key_of(row)?, range, origin })
            })
            .collect()
    }

    /// Records that `writer` writes what `taken` says, as `segments`, and that the intent `number - 1` is on disk, all or
    /// nothing. Without segments there is nothing to write: the cursors move, and no intent is open.
    ///
    /// Not cancel safe: when the future is dropped, or fails, the outcome is unknown and the session must be dropped.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn intend(
        &mut self,
        writer: Writer,
        number: i64,
        (taken, segments): (&[Taken], &[Segment]),
    ) -> Result<Recorded, StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        let intended = if segments.is_empty() { number - 1 } else { number };
        let mut recorded = self.advance(writer, number - 1, intended).await?;
        if recorded == Recorded::Done && !self.take(writer.sink, taken).await? {
            recorded = Recorded::Outrun;
        }
        if recorded != Recorded::Done {
            sqlx::query("ROLLBACK").execute(&mut self.connection).await?;
            return Ok(recorded);
        }
        for segment in segments {
            self.insert_segment(writer, number, segment).await?;
        }
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(Recorded::Done)
    }

    /// Records that the intent `number` is on disk.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn confirm(&mut self, writer: Writer, number: i64) -> Result<Recorded, StoreError> {
        self.advance(writer, number, number).await
    }

    /// From the intent `known` to `intended`; `known` is on disk.
    async fn advance(&mut self, writer: Writer, known: i64, intended: i64) -> Result<Recorded, StoreError> {
        let moved = sqlx::query(
            "UPDATE audit_events.projection_instances \
                SET confirmed = $4, intended = $5, \
                    confirmed_at = CASE WHEN confirmed < $4 THEN now() ELSE confirmed_at END, \
                    intended_at = CASE WHEN intended < $5 THEN now() ELSE intended_at END \
              WHERE sink = $1 AND instance_id = $2 AND run_id = $3 AND intended = $4",
        )
        .bind(writer.sink.as_str())
        .bind(writer.instance)
        .bind(writer.run)
        .bind(known)
        .bind(intended)
        .execute(&mut self.connection)
        .await?;
        if moved.rows_affected() == 1 {
            return Ok(Recorded::Done);
        }
        let run: Option<Option<Uuid>> = sqlx::query_scalar(
            "SELECT run_id FROM audit_events.projection_instances WHERE sink = $1 AND instance_id = $2",
        )
        .bind(writer.sink.as_str())
        .bind(writer.instance)
        .fetch_optional(&mut self.connection)
        .await?;
        Ok(Recorded::NotOurs(run.flatten()))
    }

    /// Moves the cursors and takes pending ranges out; `false`: some were not where they should be.
    async fn take(&mut self, sink: DaySink, taken: &[Taken]) -> Result<bool, StoreError> {
        let is_pending = |taken: &&Taken| matches!(taken.work.origin, WorkOrigin::Pending(_));
        let cursors: Vec<&Taken> = taken.iter().filter(|taken| !is_pending(taken)).collect();
        let moved = sqlx::query(
            "UPDATE audit_events.projection_cursors AS c SET next_offset = w.end_offset, moved_at = now() \
               FROM unnest($2::uuid[], $3::integer[], $4::bigint[], $5::bigint[]) \
                    AS w (stream_id, partition, start_offset, end_offset) \
              WHERE c.sink = $1 AND c.stream_id = w.stream_id AND c.partition = w.partition \
                AND c.next_offset = w.start_offset",
        )
        .bind(sink.as_str())
        .bind(cursors.iter().map(|taken| taken.work.key.stream.0).collect::<Vec<_>>())
        .bind(cursors.iter().map(|taken| taken.work.key.partition.0).collect::<Vec<_>>())
        .bind(cursors.iter().map(|taken| taken.work.range.start().as_i64()).collect::<Vec<_>>())
        .bind(cursors.iter().map(|taken| taken.work.range.end().as_i64()).collect::<Vec<_>>())
        .execute(&mut self.connection)
        .await?;
        if u64::try_from(cursors.len()) != Ok(moved.rows_affected()) {
            return Ok(false);
        }
        for pending in taken.iter().filter(is_pending) {
            let WorkOrigin::Pending(id) = pending.work.origin else { continue };
            if !self.take_pending(sink, id, pending).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn take_pending(&mut self, sink: DaySink, id: i64, pending: &Taken) -> Result<bool, StoreError> {
        let left = pending.left.filter(|left| !left.is_empty());
        let moved = sqlx::query(
            "WITH gone AS (DELETE FROM audit_events.projection_pending \
                            WHERE pending_id = $1 AND sink = $2 RETURNING *), \
             rest AS (INSERT INTO audit_events.projection_pending \
                             (sink, stream_id, partition, start_offset, end_offset, cause) \
                      SELECT sink, stream_id, partition, $3, $4, cause FROM gone WHERE $3::bigint IS NOT NULL) \
             SELECT FROM gone",
        )
        .bind(id)
        .bind(sink.as_str())
        .bind(left.map(|left| left.start().as_i64()))
        .bind(left.map(|left| left.end().as_i64()))
        .fetch_all(&mut self.connection)
        .await?;
        Ok(moved.len() == 1)
    }
}

/// In SQL: whether the cursor named `cursor`, which has a row, has passed the event `e`. One of a gap that was filled
/// counts as passed wherever the cursor is: it is written from `projection_pending`, and that may be earlier.
fn is_passed(cursor: &str) -> String {
    format!(
        "(e.source_offset < {cursor}.next_offset \
          OR EXISTS (SELECT FROM audit_events.offset_gaps AS g \
                      WHERE g.stream_id = e.stream_id AND g.partition = e.source_partition \
                        AND e.source_offset >= g.start_offset AND e.source_offset < g.end_offset))"
    )
}

/// In SQL: whether the event `e` was passed and is still to be written, in the sink of the cursor named `cursor`.
fn is_pending(cursor: &str) -> String {
    format!(
        "EXISTS (SELECT FROM audit_events.projection_pending AS q \
                  WHERE q.sink = {cursor}.sink AND q.stream_id = e.stream_id AND q.partition = e.source_partition \
                    AND e.source_offset >= q.start_offset AND e.source_offset < q.end_offset)"
    )
}

/// In SQL: whether a segment names the event `e`, which has a line in the sink of the cursor named `cursor`; the cursor
/// may have no row.
pub(super) fn has_segment(cursor: &str) -> String {
    let (is_passed, is_pending) = (is_passed(cursor), is_pending(cursor));
    format!("({cursor}.sink IS NOT NULL AND {is_passed} AND NOT {is_pending})")
}

fn len_of(row: &PgRow, column: &str) -> Result<u64, StoreError> {
    let value: i64 = row.try_get(column)?;
    u64::try_from(value).map_err(|_negative| StoreError::Broken(format!("column {column} holds {value}")))
}

fn key_of(row: &PgRow) -> Result<StreamPartition, StoreError> {
    let stream = StreamId(row.try_get("stream_id")?);
    Ok(StreamPartition { stream, partition: Partition(row.try_get("partition")?) })
}

fn range_of(start: Offset, end: Offset) -> Result<OffsetRange, StoreError> {
    OffsetRange::new(start, end)
        .ok_or_else(|| StoreError::Broken(format!("a range of a projection from {start} to {end}")))
}
