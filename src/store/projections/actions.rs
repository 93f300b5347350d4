//! What an operator does about an instance that never returns.

use serde_json::json;
use sqlx::Row;
use uuid::Uuid;

use crate::model::projection::DaySink;
use crate::store::{Session, StoreError};

/// What became of an adoption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// So many ranges are pending now, for whichever instance takes them.
    Done {
        /// How many.
        range_count: u64,
    },
    /// All that it intended is confirmed: there is nothing to hand over.
    Nothing,
    /// There is no such instance.
    Unknown,
    /// It has a session to PostgreSQL: it lives.
    Alive,
}

impl Session {
    /// Takes the open intent of an instance away from it: its ranges are pending then, and the instance, should it return,
    /// finds that it has no process. Recorded in `projection_actions`.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn adopt_projection(
        &mut self,
        (sink, instance): (DaySink, Uuid),
        (actor, reason): (&str, &str),
    ) -> Result<Adoption, StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        let adoption = self.adopt_open((sink, instance), (actor, reason)).await?;
        let end = if matches!(adoption, Adoption::Done { .. }) { "COMMIT" } else { "ROLLBACK" };
        sqlx::query(end).execute(&mut self.connection).await?;
        Ok(adoption)
    }

    async fn adopt_open(
        &mut self,
        (sink, instance): (DaySink, Uuid),
        (actor, reason): (&str, &str),
    ) -> Result<Adoption, StoreError> {
        let row = sqlx::query(
            "SELECT intended, confirmed, EXISTS (SELECT FROM pg_stat_activity AS a \
                     WHERE a.pid = i.session_pid \
                               AND coalesce(a.backend_start = i.session_start, true)) AS is_alive \
               FROM audit_events.projection_instances AS i WHERE sink = $1 AND instance_id = $2 FOR UPDATE",
        )
        .bind(sink.as_str())
        .bind(instance)
        .fetch_optional(&mut self.connection)
        .await?;
        let Some(row) = row else { return Ok(Adoption::Unknown) };
        let (intended, confirmed): (i64, i64) = (row.try_get("intended")?, row.try_get("confirmed")?);
        if row.try_get("is_alive")? {
            return Ok(Adoption::Alive);
        }
        if intended == confirmed {
            return Ok(Adoption::Nothing);
        }
        // The files of one intent may name the same range: each holds the events of its own day.
        let pending = sqlx::query(
            "WITH gone AS (DELETE FROM audit_events.projection_segments \
                            WHERE sink = $1 AND instance_id = $2 AND intent = $3 RETURNING *), \
             ranges AS (SELECT DISTINCT r.* FROM gone, unnest(stream_ids, partitions, start_offsets, end_offsets) \
                               AS r (stream_id, partition, start_offset, end_offset)) \
             INSERT INTO audit_events.projection_pending (sink, stream_id, partition, start_offset, end_offset, cause) \
             SELECT $1, stream_id, partition, start_offset, end_offset, 'adopted' FROM ranges \
              ORDER BY stream_id, partition, start_offset \
             RETURNING stream_id, partition, start_offset, end_offset",
        )
        .bind(sink.as_str())
        .bind(instance)
        .bind(intended)
        .fetch_all(&mut self.connection)
        .await?;
        sqlx::query(
            "UPDATE audit_events.projection_instances SET confirmed = intended, run_id = NULL \
              WHERE sink = $1 AND instance_id = $2",
        )
        .bind(sink.as_str())
        .bind(instance)
        .execute(&mut self.connection)
        .await?;
        let mut ranges = Vec::new();
        for row in &pending {
            let (start, end): (i64, i64) = (row.try_get("start_offset")?, row.try_get("end_offset")?);
            ranges.push(json!({
                "stream_id": row.try_get::<Uuid, _>("stream_id")?.to_string(), "partition": row.try_get::<i32, _>("partition")?,
                "start_offset": start, "end_offset": end,
            }));
        }
        sqlx::query(
            "INSERT INTO audit_events.projection_actions (action, sink, instance_id, actor, reason, details) \
             VALUES ('adopt', $1, $2, $3, $4, $5)",
        )
        .bind(sink.as_str())
        .bind(instance)
        .bind(actor)
        .bind(reason)
        .bind(json!({"intent": intended, "ranges": ranges}))
        .execute(&mut self.connection)
        .await?;
        Ok(Adoption::Done { range_count: u64::try_from(pending.len()).unwrap_or(u64::MAX) })
    }
}
