//! What an operator may do to positions: adopt a stream; gaps have [`super::gaps`]. Each act is recorded in
//! `offset_actions` with who, when and why, in the same transaction and under the row lock. There is no rewind: a
//! position never moves back by our hand.

use serde_json::json;
use sqlx::Row;
use uuid::Uuid;

use super::commit::offset_of;
use super::error::StoreError;
use super::session::Session;
use crate::model::position::{Offset, Partition, StreamId, StreamPartition};

/// A stream as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRow {
    /// The stream.
    pub stream: StreamId,
    /// The cluster's id.
    pub cluster_id: String,
    /// The topic's name.
    pub topic: String,
    /// The topic's id.
    pub topic_id: Uuid,
    /// The group that it belongs to.
    pub group: String,
    /// Whether a newer incarnation was adopted.
    pub is_retired: bool,
}

/// A position as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetRow {
    /// Of which group.
    pub group: String,
    /// Of which topic.
    pub topic: String,
    /// Whether the stream is retired.
    pub is_retired: bool,
    /// Of which partition.
    pub key: StreamPartition,
    /// How often it was claimed.
    pub epoch: i64,
    /// Where the group began.
    pub first: Offset,
    /// The next offset to read.
    pub next: Offset,
    /// Events stored.
    pub event_count: i64,
    /// Upstream duplicates counted.
    pub duplicate_count: i64,
    /// Dead letters stored.
    pub dead_letter_count: i64,
    /// Offsets without a record, and those of declared gaps.
    pub absent_count: i64,
    /// The process that claimed it, unless it released it.
    pub owner: Option<Uuid>,
}

impl Session {
    /// The streams of every group, by topic and age.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn streams(&mut self) -> Result<Vec<StreamRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT stream_id, cluster_id, topic, topic_id, group_id, retired_at IS NOT NULL AS is_retired \
               FROM audit_events.streams ORDER BY topic, created_at",
        )
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(StreamRow {
                    stream: StreamId(row.try_get("stream_id")?),
                    cluster_id: row.try_get("cluster_id")?,
                    topic: row.try_get("topic")?,
                    topic_id: row.try_get("topic_id")?,
                    group: row.try_get("group_id")?,
                    is_retired: row.try_get("is_retired")?,
                })
            })
            .collect()
    }

    /// The positions of every group, by topic, stream and partition.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn offset_rows(&mut self) -> Result<Vec<OffsetRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT o.*, s.topic, s.retired_at IS NOT NULL AS is_retired, \
                    CASE WHEN o.released_at IS NULL THEN o.owner_instance END AS owner \
               FROM audit_events.consumer_offsets AS o JOIN audit_events.streams AS s USING (stream_id) \
              ORDER BY s.topic, s.created_at, o.partition",
        )
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(OffsetRow {
                    group: row.try_get("group_id")?,
                    topic: row.try_get("topic")?,
                    is_retired: row.try_get("is_retired")?,
                    key: StreamPartition {
                        stream: StreamId(row.try_get("stream_id")?),
                        partition: Partition(row.try_get("partition")?),
                    },
                    epoch: row.try_get("epoch")?,
                    first: offset_of(row, "first_offset")?,
                    next: offset_of(row, "next_offset")?,
                    event_count: row.try_get("events")?,
                    duplicate_count: row.try_get("duplicates")?,
                    dead_letter_count: row.try_get("dead_letters")?,
                    absent_count: row.try_get("absent")?,
                    owner: row.try_get("owner")?,
                })
            })
            .collect()
    }

    /// Makes `to` the stream of its topic for `group`: the streams that the group knew for that topic are
    /// retired, and `to` is registered. Its partitions begin at their low watermarks. Returns how many
    /// streams were retired.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn adopt_stream(
        &mut self,
        group: &str,
        to: &super::StreamIdentity,
        (actor, reason): (&str, &str),
    ) -> Result<u64, StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        let id = to.id();
        let retired = sqlx::query(
            "UPDATE audit_events.streams SET retired_at = now() \
              WHERE topic = $1 AND group_id = $2 AND stream_id <> $3 AND retired_at IS NULL RETURNING stream_id",
        )
        .bind(&*to.topic)
        .bind(group)
        .bind(id.0)
        .fetch_all(&mut self.connection)
        .await?;
        let retired_ids: Vec<String> = retired
            .iter()
            .map(|row| Ok(row.try_get::<Uuid, _>("stream_id")?.to_string()))
            .collect::<Result<_, StoreError>>()?;
        sqlx::query(
            "INSERT INTO audit_events.streams (stream_id, cluster_id, topic, topic_id, group_id) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (stream_id) DO UPDATE SET retired_at = NULL \
              WHERE streams.group_id = excluded.group_id",
        )
        .bind(id.0)
        .bind(&*to.cluster_id)
        .bind(&*to.topic)
        .bind(to.topic_id)
        .bind(group)
        .execute(&mut self.connection)
        .await?;
        let details = json!({"topic": &*to.topic, "retired": retired_ids});
        self.record_action(group, (id, None), "adopt", (actor, reason), details).await?;
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(u64::try_from(retired.len()).unwrap_or(u64::MAX))
    }

    /// Hands the streams of `topic` from `from_group` to `group`, with their positions: the account goes on.
    /// Returns how many streams changed hands.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn adopt_from_group(
        &mut self,
        group: &str,
        (topic, from_group): (&str, &str),
        (actor, reason): (&str, &str),
    ) -> Result<u64, StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        let moved = sqlx::query(
            "UPDATE audit_events.streams SET group_id = $1 WHERE topic = $2 AND group_id = $3 RETURNING stream_id",
        )
        .bind(group)
        .bind(topic)
        .bind(from_group)
        .fetch_all(&mut self.connection)
        .await?;
        for row in &moved {
            let stream = StreamId(row.try_get("stream_id")?);
            sqlx::query(
                "UPDATE audit_events.consumer_offsets SET group_id = $1, epoch = epoch + 1 \
                  WHERE group_id = $2 AND stream_id = $3",
            )
            .bind(group)
            .bind(from_group)
            .bind(stream.0)
            .execute(&mut self.connection)
            .await?;
            let details = json!({"topic": topic, "from_group": from_group});
            self.record_action(group, (stream, None), "adopt_from_group", (actor, reason), details).await?;
        }
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(u64::try_from(moved.len()).unwrap_or(u64::MAX))
    }

    pub(super) async fn record_action(
        &mut self,
        group: &str,
        (stream, partition): (StreamId, Option<Partition>),
        action: &str,
        (actor, reason): (&str, &str),
        details: serde_json::Value,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO audit_events.offset_actions (group_id, stream_id, partition, action, actor, reason, details) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(group)
        .bind(stream.0)
        .bind(partition.map(|partition| partition.0))
        .bind(action)
        .bind(actor)
        .bind(reason)
        .bind(details)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }
}
