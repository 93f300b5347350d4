//! Records that are read again, against the rows that were stored of them.

use std::fmt::Write;

use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::commit::offset_of;
use super::error::StoreError;
use super::merge::CONTENT_COLUMNS;
use super::session::Session;
use crate::model::batch::{Batch, Rows};
use crate::model::position::{Offset, OffsetRange, StreamPartition};

/// What a record was stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// An event.
    Event,
    /// A duplicate of an event.
    Duplicate,
    /// A dead letter.
    DeadLetter,
}

/// A record that is an event, and what differs in the row that should be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Of the record.
    pub offset: Offset,
    /// Of the record.
    pub audit_id: Uuid,
    /// No row has its audit id and time.
    pub is_absent: bool,
    /// The row that has them is another record's.
    pub is_elsewhere: bool,
    /// The columns that differ.
    pub columns: Vec<String>,
}

/// A dead letter as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLetter {
    /// Of the record.
    pub offset: Offset,
    /// The SHA-256 of its value, if it has one.
    pub payload_sha256: Option<Vec<u8>>,
    /// The SHA-256 of its key, if it has one.
    pub key_sha256: Option<Vec<u8>>,
}

/// What stands in the tables of a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredRange {
    /// Every offset that stands in a table, in order; one that stands twice is there twice.
    pub fates: Vec<(Offset, Fate)>,
    /// Events of the batch that have no row which is the same.
    pub mismatches: Vec<Mismatch>,
    /// Its dead letters.
    pub letters: Vec<StoredLetter>,
}

impl Session {
    /// What stands in the tables of `range` of `key`, and how the rows differ from `batch`, which is the same range read
    /// again. Changes nothing but a temporary table of the session.
    ///
    /// Not cancel safe: when the future is dropped, the session must be dropped too.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn compare(
        &mut self,
        (key, range): (StreamPartition, OffsetRange),
        batch: &Batch,
    ) -> Result<StoredRange, StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        let mut stored = StoredRange { fates: self.fates(key, range).await?, ..StoredRange::default() };
        if batch.event_count() > 0 {
            self.create_merge_table().await?;
            self.copy_events("pg_temp.incoming", batch, Rows::All).await?;
            stored.mismatches = self.mismatches().await?;
        }
        if stored.fates.iter().any(|(_, fate)| *fate == Fate::DeadLetter) {
            stored.letters = self.stored_letters(key, range).await?;
        }
        // The temporary table empties itself.
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(stored)
    }

    async fn fates(
        &mut self,
        key: StreamPartition,
        range: OffsetRange,
    ) -> Result<Vec<(Offset, Fate)>, StoreError> {
        let of_range =
            "stream_id = $1 AND source_partition = $2 AND source_offset >= $3 AND source_offset < $4";
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT source_offset, 1 AS fate FROM audit_events.events WHERE {of_range} \
             UNION ALL SELECT source_offset, 2 FROM audit_events.duplicates WHERE {of_range} \
             UNION ALL SELECT source_offset, 3 FROM audit_events.dead_letters WHERE {of_range} ORDER BY 1"
        )))
        .bind(key.stream.0)
        .bind(key.partition.0)
        .bind(range.start().as_i64())
        .bind(range.end().as_i64())
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let fate = match row.try_get::<i32, _>("fate")? {
                    1 => Fate::Event,
                    2 => Fate::Duplicate,
                    _ => Fate::DeadLetter,
                };
                Ok((offset_of(row, "source_offset")?, fate))
            })
            .collect()
    }

    async fn mismatches(&mut self) -> Result<Vec<Mismatch>, StoreError> {
        let (mut differing, mut same) = (String::new(), String::new());
        for column in CONTENT_COLUMNS {
            let separator = if same.is_empty() { "" } else { ", " };
            // Writing to a String can't fail.
            let written = write!(
                differing,
                "{separator}CASE WHEN i.{column} IS DISTINCT FROM e.{column} THEN '{column}' END"
            )
            .and_then(|()| {
                let and = if same.is_empty() { "" } else { " AND " };
                write!(same, "{and}i.{column} IS NOT DISTINCT FROM e.{column}")
            });
            debug_assert!(written.is_ok());
        }
        self.plan_by_primary_key().await?;
        let is_elsewhere = "(e.stream_id, e.source_partition, e.source_offset) \
                            IS DISTINCT FROM (i.stream_id, i.source_partition, i.source_offset)";
        let rows = sqlx::raw_sql(AssertSqlSafe(format!(
            "SELECT i.source_offset, i.audit_id, e.audit_id IS NULL AS is_absent, {is_elsewhere} AS is_elsewhere, \
                    CASE WHEN e.audit_id IS NULL THEN '{{}}' ELSE array_remove(ARRAY[{differing}], NULL) END::text[] AS columns \
               FROM pg_temp.incoming AS i LEFT JOIN audit_events.events AS e USING (audit_id, timestamp) \
              WHERE e.audit_id IS NULL OR {is_elsewhere} OR NOT ({same}) ORDER BY i.source_offset"
        )))
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Mismatch {
                    offset: offset_of(row, "source_offset")?,
                    audit_id: row.try_get("audit_id")?,
                    is_absent: row.try_get("is_absent")?,
                    is_elsewhere: row.try_get("is_elsewhere")?,
                    columns: row.try_get("columns")?,
                })
            })
            .collect()
    }

    async fn stored_letters(
        &mut self,
        key: StreamPartition,
        range: OffsetRange,
    ) -> Result<Vec<StoredLetter>, StoreError> {
        let rows = sqlx::query(
            "SELECT source_offset, sha256(payload) AS payload, sha256(record_key) AS key FROM audit_events.dead_letters \
              WHERE stream_id = $1 AND source_partition = $2 AND source_offset >= $3 AND source_offset < $4 \
              ORDER BY source_offset",
        )
        .bind(key.stream.0)
        .bind(key.partition.0)
        .bind(range.start().as_i64())
        .bind(range.end().as_i64())
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(StoredLetter {
                    offset: offset_of(row, "source_offset")?,
                    payload_sha256: row.try_get("payload")?,
                    key_sha256: row.try_get("key")?,
                })
            })
            .collect()
    }
}
