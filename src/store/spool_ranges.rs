//! `spool_ranges`: what instances hold on their disks, so that nobody declares a gap over it.

use sqlx::Row;
use uuid::Uuid;

use super::commit::offset_of;
use super::error::StoreError;
use super::session::Session;
use crate::model::position::{Offset, OffsetRange, StreamPartition};

/// An instance whose spool holds records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolHolder {
    /// Which one.
    pub instance: Uuid,
    /// Where what it holds begins.
    pub start: Offset,
}

/// How much of what it holds an instance tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// All. Only over the session that has told the positions by which it was found out: a failover since then has ended
    /// it, and has taken back no more than that session saw.
    All,
    /// What is known of it. What was told before stays, until the position has passed it.
    More,
}

impl Telling {
    /// What goes before the ranges are written.
    const fn forget(self) -> &'static str {
        match self {
            Self::All => "DELETE FROM audit_events.spool_ranges WHERE instance_id = $1",
            Self::More => {
                "DELETE FROM audit_events.spool_ranges AS r USING audit_events.consumer_offsets AS o \
                  WHERE r.instance_id = $1 AND o.stream_id = r.stream_id AND o.partition = r.partition \
                    AND r.end_offset <= o.next_offset"
            }
        }
    }
}

impl Session {
    /// Writes that `instance` holds `ranges`.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn publish_spool_ranges(
        &mut self,
        instance: Uuid,
        ranges: &[(StreamPartition, OffsetRange)],
        telling: Telling,
    ) -> Result<(), StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        sqlx::query(telling.forget()).bind(instance).execute(&mut self.connection).await?;
        sqlx::query(
            "INSERT INTO audit_events.spool_ranges (instance_id, stream_id, partition, start_offset, end_offset) \
             SELECT $1, r.stream_id, r.partition, r.start_offset, r.end_offset \
               FROM unnest($2::uuid[], $3::integer[], $4::bigint[], $5::bigint[]) \
                    AS r (stream_id, partition, start_offset, end_offset) \
             ON CONFLICT (instance_id, stream_id, partition, start_offset) \
             DO UPDATE SET end_offset = greatest(spool_ranges.end_offset, excluded.end_offset), updated_at = now()",
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

    /// What another instance than `own` holds of `range` in its spool: the part that begins first, if any.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(super) async fn spool_holder(
        &mut self,
        key: StreamPartition,
        range: OffsetRange,
        own: Uuid,
    ) -> Result<Option<SpoolHolder>, StoreError> {
        let row = sqlx::query(
            "SELECT instance_id, start_offset FROM audit_events.spool_ranges \
              WHERE stream_id = $1 AND partition = $2 AND start_offset < $4 AND end_offset > $3 \
                AND instance_id <> $5 ORDER BY start_offset LIMIT 1",
        )
        .bind(key.stream.0)
        .bind(key.partition.0)
        .bind(range.start().as_i64())
        .bind(range.end().as_i64())
        .bind(own)
        .fetch_optional(&mut self.connection)
        .await?;
        row.map(|row| {
            Ok(SpoolHolder { instance: row.try_get("instance_id")?, start: offset_of(&row, "start_offset")? })
        })
        .transpose()
    }
}
