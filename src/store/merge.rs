//! The merge path: how events are stored of which some are stored already.
//!
//! The rows are copied into a temporary table and inserted from there with `ON CONFLICT (audit_id, timestamp)
//! DO NOTHING`. What was not inserted is compared with what stands there: the same content is a counted
//! duplicate, other content is a dead letter (`audit_id_conflict`). A row that stands there under the incoming
//! record's own coordinates was stored before under a position that says it was not: [`StoreError::Broken`].

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::commit::{CommittedPart, broken_if_duplicate, literal, offset_of};
use super::copy::{self, EVENT_COLUMNS};
use super::error::StoreError;
use super::session::Session;
use crate::failpoint;
use crate::model::batch::{Batch, DeadLetter, Entry, Rows};
use crate::model::position::{Offset, Partition, StreamId, StreamPartition};
use crate::model::rejection::{Rejection, RejectionCode};

/// The columns that are an event's content; compared by value (`jsonb` and `numeric` compare so).
pub(super) const CONTENT_COLUMNS: [&str; 19] = [
    "correlation_id",
    "operation",
    "command",
    "args",
    "actor",
    "status",
    "duration_ms",
    "result_signature",
    "client_app",
    "caller_ip_address",
    "federated_source",
    "query_intent",
    "bypass_llm",
    "trust_score",
    "purview_compatible",
    "metadata",
    "schema_version",
    "tenant_id",
    "extra",
];

/// A record that was not inserted, as its (audit id, time) is taken.
struct Collision {
    key: StreamPartition,
    offset: Offset,
    audit_id: Uuid,
    /// As PostgreSQL writes it.
    timestamp: String,
    is_same: bool,
    /// What stands there.
    kept: (StreamPartition, Offset),
}

impl Session {
    /// Stores the events of `rows`, and corrects the counters in the position rows and in `parts`.
    pub(super) async fn merge_events(
        &mut self,
        group: &str,
        (batch, rows): (&Batch, Rows),
        parts: &mut [CommittedPart],
    ) -> Result<(), StoreError> {
        let row_count = batch.row_count(rows);
        if row_count == 0 {
            return Ok(());
        }
        self.create_merge_table().await?;
        self.copy_events("pg_temp.incoming", batch, rows).await?;
        // In the order of the key: two lanes that merge the same events then never wait for each other in a ring.
        let insert = format!(
            "INSERT INTO audit_events.events ({EVENT_COLUMNS}) SELECT {EVENT_COLUMNS} FROM pg_temp.incoming \
              ORDER BY audit_id, timestamp, stream_id, source_partition, source_offset \
             ON CONFLICT (audit_id, timestamp) DO NOTHING"
        );
        let inserted = sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut self.connection).await;
        // The target names (audit_id, timestamp), so a violation is one of the coordinates.
        let inserted_count = inserted.map_err(|error| broken_if_duplicate(error.into()))?.rows_affected();
        failpoint::at("merge_after_insert");
        let missing_count = row_count.saturating_sub(inserted_count);
        if missing_count == 0 {
            return Ok(());
        }
        let collisions = self.collisions().await?;
        if u64::try_from(collisions.len()) != Ok(missing_count) {
            return Err(StoreError::Broken(format!(
                "{missing_count} events were not inserted, but {} stand under other coordinates: \
                 records were stored before under a position that says they were not",
                collisions.len()
            )));
        }
        self.store_duplicates(&collisions).await?;
        self.store_conflicts(group, batch, &collisions).await?;
        for part in parts.iter_mut() {
            let count = |is_same| {
                let of_part = collisions.iter().filter(|c| c.key == part.key && c.is_same == is_same);
                u64::try_from(of_part.count()).unwrap_or(u64::MAX)
            };
            (part.duplicate_count, part.dead_letter_count) =
                (count(true), part.dead_letter_count + count(false));
            part.event_count = part.event_count.saturating_sub(count(true) + count(false));
        }
        self.recount(group, &collisions).await
    }

    pub(super) async fn create_merge_table(&mut self) -> Result<(), StoreError> {
        if !self.has_merge_table {
            let create = format!(
                "CREATE TEMP TABLE IF NOT EXISTS incoming ON COMMIT DELETE ROWS AS \
                 SELECT {EVENT_COLUMNS} FROM audit_events.events WITH NO DATA"
            );
            sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut self.connection).await?;
            self.has_merge_table = true;
        }
        Ok(())
    }

    /// Without statistics on the temporary table the planner may read all of `events`; the primary key is always the right
    /// way to the rows of a batch. For this transaction.
    pub(super) async fn plan_by_primary_key(&mut self) -> Result<(), StoreError> {
        sqlx::raw_sql("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off")
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    async fn collisions(&mut self) -> Result<Vec<Collision>, StoreError> {
        let columns = |alias: &str| CONTENT_COLUMNS.map(|column| format!("{alias}.{column}")).join(", ");
        let query = format!(
            "SELECT i.stream_id, i.source_partition, i.source_offset, i.audit_id, i.timestamp::text AS timestamp, \
                    ({}) IS NOT DISTINCT FROM ({}) AS is_same, e.stream_id AS kept_stream_id, \
                    e.source_partition AS kept_partition, e.source_offset AS kept_offset \
               FROM pg_temp.incoming AS i JOIN audit_events.events AS e USING (audit_id, timestamp) \
              WHERE (e.stream_id, e.source_partition, e.source_offset) \
                    <> (i.stream_id, i.source_partition, i.source_offset)",
            columns("i"),
            columns("e")
        );
        self.plan_by_primary_key().await?;
        let rows = sqlx::raw_sql(AssertSqlSafe(query)).fetch_all(&mut self.connection).await?;
        rows.iter()
            .map(|row| {
                Ok(Collision {
                    key: StreamPartition {
                        stream: StreamId(row.try_get("stream_id")?),
                        partition: Partition(row.try_get("source_partition")?),
                    },
                    offset: offset_of(row, "source_offset")?,
                    audit_id: row.try_get("audit_id")?,
                    timestamp: row.try_get("timestamp")?,
                    is_same: row.try_get("is_same")?,
                    kept: (
                        StreamPartition {
                            stream: StreamId(row.try_get("kept_stream_id")?),
                            partition: Partition(row.try_get("kept_partition")?),
                        },
                        offset_of(row, "kept_offset")?,
                    ),
                })
            })
            .collect()
    }

    async fn store_duplicates(&mut self, collisions: &[Collision]) -> Result<(), StoreError> {
        let same: Vec<&Collision> = collisions.iter().filter(|collision| collision.is_same).collect();
        if same.is_empty() {
            return Ok(());
        }
        let streams: Vec<Uuid> = same.iter().map(|c| c.key.stream.0).collect();
        let partitions: Vec<i32> = same.iter().map(|c| c.key.partition.0).collect();
        let offsets: Vec<i64> = same.iter().map(|c| c.offset.as_i64()).collect();
        let audit_ids: Vec<Uuid> = same.iter().map(|c| c.audit_id).collect();
        let timestamps: Vec<&str> = same.iter().map(|c| c.timestamp.as_str()).collect();
        let kept_streams: Vec<Uuid> = same.iter().map(|c| c.kept.0.stream.0).collect();
        let kept_partitions: Vec<i32> = same.iter().map(|c| c.kept.0.partition.0).collect();
        let kept_offsets: Vec<i64> = same.iter().map(|c| c.kept.1.as_i64()).collect();
        let stored = sqlx::query(
            "INSERT INTO audit_events.duplicates (stream_id, source_partition, source_offset, audit_id, timestamp, \
                                                  kept_stream_id, kept_partition, kept_offset) \
             SELECT d.stream_id, d.source_partition, d.source_offset, d.audit_id, d.timestamp::timestamptz, \
                    d.kept_stream_id, d.kept_partition, d.kept_offset \
               FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::uuid[], $5::text[], $6::uuid[], $7::integer[], \
                           $8::bigint[]) \
                    AS d (stream_id, source_partition, source_offset, audit_id, timestamp, kept_stream_id, \
                          kept_partition, kept_offset)",
        )
        .bind(streams)
        .bind(partitions)
        .bind(offsets)
        .bind(audit_ids)
        .bind(timestamps)
        .bind(kept_streams)
        .bind(kept_partitions)
        .bind(kept_offsets)
        .execute(&mut self.connection)
        .await
        .map_err(|error| broken_if_duplicate(error.into()))?;
        if u64::try_from(same.len()) == Ok(stored.rows_affected()) {
            Ok(())
        } else {
            let stored_count = stored.rows_affected();
            Err(StoreError::Broken(format!(
                "{stored_count} duplicates were stored instead of {}",
                same.len()
            )))
        }
    }

    async fn store_conflicts(
        &mut self,
        group: &str,
        batch: &Batch,
        collisions: &[Collision],
    ) -> Result<(), StoreError> {
        let conflicts: Vec<&Collision> = collisions.iter().filter(|collision| !collision.is_same).collect();
        if conflicts.is_empty() {
            return Ok(());
        }
        let entries: HashMap<(StreamPartition, Offset), &Entry> =
            batch.entries().iter().filter_map(|e| Some(((batch.part_of(e)?.key, e.offset), e))).collect();
        let mut rows = Vec::new();
        for conflict in &conflicts {
            let record =
                entries.get(&(conflict.key, conflict.offset)).and_then(|entry| batch.record_of(entry));
            let Some((chunk, record)) = record else {
                return Err(StoreError::Broken(format!(
                    "offset {} came back but was never sent",
                    conflict.offset
                )));
            };
            let (kept, offset) = conflict.kept;
            let detail = format!(
                "another event with this audit_id and timestamp stands at {}:{}:{offset}",
                kept.stream, kept.partition
            );
            let letter = DeadLetter {
                rejection: Rejection::new(RejectionCode::AuditIdConflict, detail),
                sqlstate: None,
                audit_id: Some(conflict.audit_id),
                correlation_id: chunk
                    .value(record)
                    .and_then(|value| crate::model::decode::identify(value).correlation_id),
            };
            copy::encode_dead_letter(&mut rows, &letter, (conflict.key, group), (chunk, record));
        }
        self.copy_dead_letter_rows(&rows, u64::try_from(conflicts.len()).unwrap_or(u64::MAX)).await
    }

    /// Moves what was no event after all from `events` to the counters where it belongs.
    async fn recount(&mut self, group: &str, collisions: &[Collision]) -> Result<(), StoreError> {
        let mut counts: HashMap<StreamPartition, (u64, u64)> = HashMap::new();
        for collision in collisions {
            let (same, other) = counts.entry(collision.key).or_default();
            *(if collision.is_same { same } else { other }) += 1;
        }
        for (key, (same, other)) in counts {
            let update = format!(
                "UPDATE audit_events.consumer_offsets SET events = events - {same} - {other}, \
                        duplicates = duplicates + {same}, dead_letters = dead_letters + {other} \
                  WHERE group_id = {} AND stream_id = '{}' AND partition = {}",
                literal(group),
                key.stream,
                key.partition
            );
            let updated = sqlx::raw_sql(AssertSqlSafe(update)).execute(&mut self.connection).await?;
            if updated.rows_affected() != 1 {
                return Err(StoreError::Broken(format!("the position row of {key} went away in the commit")));
            }
        }
        Ok(())
    }
}
