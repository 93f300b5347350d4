//! Gaps: offsets that were passed over because Kafka had deleted their records.
//!
//! A gap is declared by hand, or after `GAP_WAIT_MS`, and counted in `absent`. When its records turn up after all (a spool
//! held them), they fill it: their counts leave `absent`, and what is left of the gap stays declared. Both are one
//! transaction under the lock of the position's row, with a line in `offset_actions`.

use std::collections::BTreeSet;

use serde_json::json;
use sqlx::Row;
use uuid::Uuid;

use super::commit::{CommitOutcome, CommitPath, CommittedPart, StalePart, offset_of};
use super::error::StoreError;
use super::session::Session;
use super::spool_ranges::SpoolHolder;
use crate::failpoint;
use crate::model::batch::{Batch, Part, Rows};
use crate::model::position::{Offset, OffsetRange, Partition, StreamId, StreamPartition};

/// A gap to declare: the offsets from the position up to `low`, which Kafka has deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GapDeclaration<'a> {
    /// In which partition.
    pub key: StreamPartition,
    /// The first offset that Kafka still has.
    pub low: Offset,
    /// Who declares it.
    pub actor: &'a str,
    /// Why.
    pub reason: &'a str,
    /// Whose spool is no hindrance: the instance's own, which it has looked into.
    pub own: Uuid,
}

/// What became of a declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapAnswer {
    /// It is declared.
    Declared(OffsetRange),
    /// The position is not below the first offset that Kafka has.
    NotBelow,
    /// The spool of an instance holds the record at the position.
    Held(SpoolHolder),
}

impl Session {
    /// Declares the gap between the position of `gap.key` and `gap.low`, or where the spool of an instance begins before
    /// that: its length is added to `absent`, the position moves to its end, the epoch is bumped so that an owner
    /// notices. What spools hold can't change until that is committed.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn declare_gap(
        &mut self,
        group: &str,
        gap: &GapDeclaration<'_>,
    ) -> Result<GapAnswer, StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        let row = sqlx::query(
            "SELECT next_offset FROM audit_events.consumer_offsets \
              WHERE group_id = $1 AND stream_id = $2 AND partition = $3 FOR UPDATE",
        )
        .bind(group)
        .bind(gap.key.stream.0)
        .bind(gap.key.partition.0)
        .fetch_optional(&mut self.connection)
        .await?;
        let position = row.map(|row| offset_of(&row, "next_offset")).transpose()?;
        let range = position
            .and_then(|position| OffsetRange::new(position, gap.low))
            .filter(|range| !range.is_empty());
        let Some(range) = range else {
            sqlx::query("ROLLBACK").execute(&mut self.connection).await?;
            return Ok(GapAnswer::NotBelow);
        };
        sqlx::query("LOCK TABLE audit_events.spool_ranges IN SHARE MODE")
            .execute(&mut self.connection)
            .await?;
        let holder = self.spool_holder(gap.key, range, gap.own).await?;
        let range = match holder {
            None => range,
            // What lies before that is nowhere.
            Some(holder) => match OffsetRange::new(range.start(), holder.start) {
                Some(before) if !before.is_empty() => before,
                _ => {
                    sqlx::query("ROLLBACK").execute(&mut self.connection).await?;
                    return Ok(GapAnswer::Held(holder));
                }
            },
        };
        sqlx::query(
            "UPDATE audit_events.consumer_offsets \
                SET next_offset = $4, absent = absent + ($4 - next_offset), epoch = epoch + 1, committed_at = now() \
              WHERE group_id = $1 AND stream_id = $2 AND partition = $3",
        )
        .bind(group)
        .bind(gap.key.stream.0)
        .bind(gap.key.partition.0)
        .bind(range.end().as_i64())
        .execute(&mut self.connection)
        .await?;
        let bounds = (range.start(), range.end());
        self.insert_gap((group, gap.key), bounds, (gap.actor, gap.reason)).await?;
        let details = json!({"start_offset": range.start().as_i64(), "end_offset": range.end().as_i64()});
        self.record_action(
            group,
            (gap.key.stream, Some(gap.key.partition)),
            "declare_gap",
            (gap.actor, gap.reason),
            details,
        )
        .await?;
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(GapAnswer::Declared(range))
    }

    /// The gaps of these partitions that are declared and not filled, by partition and start. They belong to the stream,
    /// whichever group has it by now.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open_gaps(
        &mut self,
        keys: &BTreeSet<StreamPartition>,
    ) -> Result<Vec<(StreamPartition, OffsetRange)>, StoreError> {
        let rows = sqlx::query(
            "SELECT stream_id, partition, start_offset, end_offset FROM audit_events.offset_gaps \
               JOIN unnest($1::uuid[], $2::integer[]) AS k (stream_id, partition) USING (stream_id, partition) \
              WHERE closed_at IS NULL ORDER BY stream_id, partition, start_offset",
        )
        .bind(keys.iter().map(|key| key.stream.0).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.partition.0).collect::<Vec<_>>())
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let stream = StreamId(row.try_get("stream_id")?);
                let key = StreamPartition { stream, partition: Partition(row.try_get("partition")?) };
                let (start, end) = (offset_of(row, "start_offset")?, offset_of(row, "end_offset")?);
                let range = OffsetRange::new(start, end);
                Ok((
                    key,
                    range
                        .ok_or_else(|| StoreError::Broken(format!("a gap of {key} ends before it begins")))?,
                ))
            })
            .collect()
    }

    /// Stores `batch`, which is of one partition and lies in one open gap of it. What it covers is then no gap any
    /// more; what of the gap lies before and behind it is.
    ///
    /// Not cancel safe, as [`Session::commit`]. An error leaves the outcome unknown, and filling again is always safe:
    /// [`CommitOutcome::Stale`] says that there is no such gap.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn fill_gap(
        &mut self,
        group: &str,
        batch: &Batch,
        (actor, reason): (&str, &str),
    ) -> Result<CommitOutcome, StoreError> {
        let [part] = batch.parts() else {
            return Err(StoreError::Broken("a gap is filled by a batch of one partition".into()));
        };
        if !part.is_balanced() {
            return Err(StoreError::Broken(format!("a batch does not add up before the commit: {part:?}")));
        }
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        if !self.move_from_absent(group, part).await? || !self.close_gap(group, part).await? {
            sqlx::query("ROLLBACK").execute(&mut self.connection).await?;
            return Ok(CommitOutcome::Stale(vec![StalePart { key: part.key, current: None }]));
        }
        let mut parts = vec![CommittedPart::as_planned(part)];
        self.merge_events(group, (batch, Rows::All), &mut parts).await?;
        self.copy_dead_letters(group, batch).await?;
        let details = json!({"start_offset": part.start.as_i64(), "end_offset": part.end.as_i64()});
        let place = (part.key.stream, Some(part.key.partition));
        self.record_action(group, place, "fill_gap", (actor, reason), details).await?;
        failpoint::at("fill_before_commit");
        sqlx::raw_sql("COMMIT").execute(&mut self.connection).await?;
        failpoint::at("fill_after_commit");
        Ok(CommitOutcome::Committed { path: CommitPath::Merge, parts })
    }

    /// Counts the offsets of `part` as what they are instead of as absent, and so locks the position's row; `false`:
    /// there is none.
    async fn move_from_absent(&mut self, group: &str, part: &Part) -> Result<bool, StoreError> {
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let found_count = part.event_count + part.dead_letter_count;
        let moved = sqlx::query(
            "UPDATE audit_events.consumer_offsets \
                SET events = events + $4, dead_letters = dead_letters + $5, absent = absent - $6 \
              WHERE group_id = $1 AND stream_id = $2 AND partition = $3",
        )
        .bind(group)
        .bind(part.key.stream.0)
        .bind(part.key.partition.0)
        .bind(count(part.event_count))
        .bind(count(part.dead_letter_count))
        .bind(count(found_count))
        .execute(&mut self.connection)
        .await?;
        Ok(moved.rows_affected() == 1)
    }

    /// Closes the open gap that holds `part`, and declares again what of it lies outside; `false`: there is none.
    async fn close_gap(&mut self, group: &str, part: &Part) -> Result<bool, StoreError> {
        let closed = sqlx::query(
            "UPDATE audit_events.offset_gaps SET closed_at = now() \
              WHERE stream_id = $1 AND partition = $2 AND closed_at IS NULL \
                AND start_offset <= $3 AND end_offset >= $4 \
             RETURNING start_offset, end_offset, reason, declared_by",
        )
        .bind(part.key.stream.0)
        .bind(part.key.partition.0)
        .bind(part.start.as_i64())
        .bind(part.end.as_i64())
        .fetch_optional(&mut self.connection)
        .await?;
        let Some(gap) = closed else { return Ok(false) };
        let (start, end) = (offset_of(&gap, "start_offset")?, offset_of(&gap, "end_offset")?);
        for (start, end) in
            [(start, part.start), (part.end, end)].into_iter().filter(|(start, end)| start < end)
        {
            self.insert_gap(
                (group, part.key),
                (start, end),
                (&gap.try_get::<String, _>("declared_by")?, &gap.try_get::<String, _>("reason")?),
            )
            .await?;
        }
        Ok(true)
    }

    async fn insert_gap(
        &mut self,
        (group, key): (&str, StreamPartition),
        (start, end): (Offset, Offset),
        (actor, reason): (&str, &str),
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO audit_events.offset_gaps \
                    (group_id, stream_id, partition, start_offset, end_offset, reason, declared_by) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(group)
        .bind(key.stream.0)
        .bind(key.partition.0)
        .bind(start.as_i64())
        .bind(end.as_i64())
        .bind(reason)
        .bind(actor)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }
}
