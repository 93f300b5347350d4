//! What stands in which file, as PostgreSQL knows it.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{Writer, len_of, range_of};
use crate::model::position::{Offset, OffsetRange, Partition, StreamId, StreamPartition};
use crate::store::{Session, StoreError};

/// A record of so many ranges is not merged with others any more.
pub(super) const MERGED_RANGE_COUNT: i32 = 512;

/// A part of a file: the lines of the events of `ranges`, in this order, on the file's day, by `rules`.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// The file's name.
    pub file_name: String,
    /// Where it starts in the file.
    pub start_len_bytes: u64,
    /// Where it ends.
    pub end_len_bytes: u64,
    /// How many lines it has.
    pub line_count: u64,
    /// The rules as recorded.
    pub rules: serde_json::Value,
    /// Where its events come from.
    pub ranges: Vec<(StreamPartition, OffsetRange)>,
}

/// Which segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentScope<'a> {
    /// Those of one intent.
    Intent(i64),
    /// Those of one file.
    File(&'a str),
}

impl Session {
    pub(super) async fn insert_segment(
        &mut self,
        writer: Writer,
        number: i64,
        segment: &Segment,
    ) -> Result<(), StoreError> {
        let bigint = |value: u64| {
            i64::try_from(value).map_err(|_large| StoreError::Broken(format!("a day file of {value} bytes")))
        };
        let ranges = &segment.ranges;
        sqlx::query(
            "INSERT INTO audit_events.projection_segments \
                    (sink, instance_id, file_name, start_len_bytes, end_len_bytes, line_count, intent, rules, \
                     stream_ids, partitions, start_offsets, end_offsets) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .bind(writer.sink.as_str())
        .bind(writer.instance)
        .bind(&segment.file_name)
        .bind(bigint(segment.start_len_bytes)?)
        .bind(bigint(segment.end_len_bytes)?)
        .bind(bigint(segment.line_count)?)
        .bind(number)
        .bind(&segment.rules)
        .bind(ranges.iter().map(|(key, _)| key.stream.0).collect::<Vec<_>>())
        .bind(ranges.iter().map(|(key, _)| key.partition.0).collect::<Vec<_>>())
        .bind(ranges.iter().map(|(_, range)| range.start().as_i64()).collect::<Vec<_>>())
        .bind(ranges.iter().map(|(_, range)| range.end().as_i64()).collect::<Vec<_>>())
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// What is recorded of an instance's files, by file and place.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Broken`] for a record that we never make.
    pub async fn segments(
        &mut self,
        writer: Writer,
        scope: SegmentScope<'_>,
    ) -> Result<Vec<Segment>, StoreError> {
        let (intent, file_name) = match scope {
            SegmentScope::Intent(number) => (Some(number), None),
            SegmentScope::File(name) => (None, Some(name)),
        };
        let rows = sqlx::query(
            "SELECT file_name, start_len_bytes, end_len_bytes, line_count, rules, stream_ids, partitions, \
                    start_offsets, end_offsets \
               FROM audit_events.projection_segments \
              WHERE sink = $1 AND instance_id = $2 AND ($3::bigint IS NULL OR intent = $3) \
                AND ($4::text IS NULL OR file_name = $4) \
              ORDER BY file_name, start_len_bytes",
        )
        .bind(writer.sink.as_str())
        .bind(writer.instance)
        .bind(intent)
        .bind(file_name)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(segment_of).collect()
    }

    /// Makes one record of the small ones of a file (fewer than 512 ranges) up to the intent `number`,
    /// which is on disk; each that has other rules than the one before it begins another record.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn merge_segments(
        &mut self,
        writer: Writer,
        file_name: &str,
        number: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "WITH gone AS (DELETE FROM audit_events.projection_segments \
                            WHERE sink = $1 AND instance_id = $2 AND file_name = $3 AND intent <= $4 \
                              AND cardinality(start_offsets) < $5 RETURNING *), \
             neighbours AS (SELECT *, lag(end_len_bytes) OVER w = start_len_bytes AND lag(rules) OVER w = rules AS goes_on \
                              FROM gone WINDOW w AS (ORDER BY start_len_bytes)), \
             numbered AS (SELECT *, count(*) FILTER (WHERE goes_on IS NOT TRUE) OVER (ORDER BY start_len_bytes) AS island \
                            FROM neighbours), \
             parts AS (SELECT n.island, n.start_len_bytes, r.* FROM numbered AS n, \
                              unnest(n.stream_ids, n.partitions, n.start_offsets, n.end_offsets) \
                              WITH ORDINALITY AS r (stream_id, partition, start_offset, end_offset, place)), \
             ranges AS (SELECT island, array_agg(stream_id ORDER BY start_len_bytes, place) AS stream_ids, \
                               array_agg(partition ORDER BY start_len_bytes, place) AS partitions, \
                               array_agg(start_offset ORDER BY start_len_bytes, place) AS start_offsets, \
                               array_agg(end_offset ORDER BY start_len_bytes, place) AS end_offsets \
                          FROM parts GROUP BY island), \
             whole AS (SELECT island, rules, min(start_len_bytes) AS start_len_bytes, \
                              max(end_len_bytes) AS end_len_bytes, sum(line_count)::bigint AS line_count, \
                              max(intent) AS intent, max(created_at) AS created_at \
                         FROM numbered GROUP BY island, rules) \
             INSERT INTO audit_events.projection_segments \
                    (sink, instance_id, file_name, start_len_bytes, end_len_bytes, line_count, intent, rules, \
                     stream_ids, partitions, start_offsets, end_offsets, created_at) \
             SELECT $1, $2, $3, w.start_len_bytes, w.end_len_bytes, w.line_count, w.intent, w.rules, r.stream_ids, \
                    r.partitions, r.start_offsets, r.end_offsets, w.created_at \
               FROM whole AS w JOIN ranges AS r USING (island)",
        )
        .bind(writer.sink.as_str())
        .bind(writer.instance)
        .bind(file_name)
        .bind(number)
        .bind(MERGED_RANGE_COUNT)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }
}

fn segment_of(row: &PgRow) -> Result<Segment, StoreError> {
    let file_name: String = row.try_get("file_name")?;
    let (streams, partitions): (Vec<Uuid>, Vec<i32>) =
        (row.try_get("stream_ids")?, row.try_get("partitions")?);
    let (starts, ends): (Vec<i64>, Vec<i64>) = (row.try_get("start_offsets")?, row.try_get("end_offsets")?);
    let mut ranges = Vec::with_capacity(streams.len());
    for ((stream, partition), (start, end)) in
        streams.into_iter().zip(partitions).zip(starts.into_iter().zip(ends))
    {
        let bounds = Offset::new(start).zip(Offset::new(end));
        let (start, end) = bounds
            .ok_or_else(|| StoreError::Broken(format!("a negative offset in a segment of {file_name}")))?;
        let key = StreamPartition { stream: StreamId(stream), partition: Partition(partition) };
        ranges.push((key, range_of(start, end)?));
    }
    Ok(Segment {
        start_len_bytes: len_of(row, "start_len_bytes")?,
        end_len_bytes: len_of(row, "end_len_bytes")?,
        line_count: len_of(row, "line_count")?,
        rules: row.try_get("rules")?,
        file_name,
        ranges,
    })
}
