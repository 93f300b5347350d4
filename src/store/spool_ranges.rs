//! `spool_ranges`: what instances hold on their disks, so that nobody declares a gap over it.

use uuid::Uuid;

use super::error::StoreError;
use super::session::Session;
use crate::model::position::{OffsetRange, StreamPartition};

impl Session {
    /// Replaces what `instance` is said to hold by `ranges`.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn publish_spool_ranges(
        &mut self,
        instance: Uuid,
        ranges: &[(StreamPartition, OffsetRange)],
    ) -> Result<(), StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        sqlx::query("DELETE FROM audit_events.spool_ranges WHERE instance_id = $1")
            .bind(instance)
            .execute(&mut self.connection)
            .await?;
        sqlx::query(
            "INSERT INTO audit_events.spool_ranges (instance_id, stream_id, partition, start_offset, end_offset) \
             SELECT $1, r.stream_id, r.partition, r.start_offset, r.end_offset \
               FROM unnest($2::uuid[], $3::integer[], $4::bigint[], $5::bigint[]) \
                    AS r (stream_id, partition, start_offset, end_offset)",
        )
        .bind(instance)
        .bind(ranges.iter().map(|(key, _)| key.stream.0).collect::<Vec<_>>())
        .bind(ranges.iter().map(|(key, _)| key.partition.0).collect::<Vec<_>>())
        .bind(ranges.iter().map(|(_, range)| range.start().as_i64()).collect::<Vec<_>>())
        .bind(ranges.iter().map(|(_, range)| range.end().as_i64()).collect::<Vec<_>>())
        .execute(&mut self.connection)
        .await?;
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(())
    }

    /// The instance that holds something of `range` in its spool, if any.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn spool_holder(
        &mut self,
        key: StreamPartition,
        range: OffsetRange,
    ) -> Result<Option<Uuid>, StoreError> {
        let holder = sqlx::query_scalar(
            "SELECT instance_id FROM audit_events.spool_ranges \
              WHERE stream_id = $1 AND partition = $2 AND start_offset < $4 AND end_offset > $3 LIMIT 1",
        )
        .bind(key.stream.0)
        .bind(key.partition.0)
        .bind(range.start().as_i64())
        .bind(range.end().as_i64())
        .fetch_optional(&mut self.connection)
        .await?;
        Ok(holder)
    }
}
