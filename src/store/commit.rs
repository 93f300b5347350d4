//! The commit: one transaction that moves the positions and stores the rows, or does neither.

use std::fmt::Write;

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Either, Row};

use super::copy::{self, DEAD_LETTER_COLUMNS, EVENT_COLUMNS};
use super::error::StoreError;
use super::session::Session;
use crate::failpoint;
use crate::model::batch::{Batch, Fate, Part, Rows};
use crate::model::collisions::Collisions;
use crate::model::position::{Epoch, Offset, Partition, StreamId, StreamPartition};

/// How much of a COPY goes to the socket at once, in bytes (sqlx flushes at each send).
const COPY_SEND_LEN_BYTES: usize = 256 * 1024;

/// By which path a batch was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommitPath {
    /// COPY straight into `events`, but for events that were read not long ago: those go as by `Merge`.
    Direct,
    /// COPY into a temporary table, then insert what is not there yet.
    Merge,
}

impl CommitPath {
    /// The one to go by first, after what was met.
    #[must_use]
    pub const fn after(collisions: &Collisions) -> Self {
        if collisions.is_merge_first() { Self::Merge } else { Self::Direct }
    }
}

/// What the commit stored of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedPart {
    /// The position that was moved.
    pub key: StreamPartition,
    /// Where it stands now.
    pub end: Offset,
    /// Events stored.
    pub event_count: u64,
    /// Upstream duplicates counted.
    pub duplicate_count: u64,
    /// Dead letters stored.
    pub dead_letter_count: u64,
    /// Offsets without a record.
    pub absent_count: u64,
}

/// A partition in which the batch is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StalePart {
    /// Which one.
    pub key: StreamPartition,
    /// The epoch and position that PostgreSQL holds; `None`: there is no row.
    pub current: Option<(Epoch, Offset)>,
}

/// How a commit that PostgreSQL answered ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitOutcome {
    /// All of the batch is stored.
    Committed {
        /// By which path.
        path: CommitPath,
        /// What was stored where.
        parts: Vec<CommittedPart>,
    },
    /// Nothing of the batch is stored, as it is stale in these partitions. The session stays usable.
    Stale(Vec<StalePart>),
}

impl Session {
    /// Commits `batch` for `group` by `path`.
    ///
    /// Not cancel safe: when the future is dropped, the outcome is unknown and the session must be dropped.
    ///
    /// # Errors
    /// See [`StoreError`]. The session must then be dropped, and the outcome is unknown unless the error is
    /// [`StoreError::Refused`] or [`StoreError::Broken`]; committing again is always safe.
    pub async fn commit(
        &mut self,
        group: &str,
        batch: &Batch,
        path: CommitPath,
    ) -> Result<CommitOutcome, StoreError> {
        if batch.is_empty() {
            return Ok(CommitOutcome::Committed { path, parts: Vec::new() });
        }
        let unbalanced = batch.parts().iter().find(|part| !part.is_balanced());
        if let Some(part) = unbalanced {
            return Err(StoreError::Broken(format!("a batch does not add up before the commit: {part:?}")));
        }
        failpoint::at("commit_before_begin");
        let stale = self.begin(group, batch).await?;
        failpoint::at("commit_after_cas");
        if !stale.is_empty() {
            sqlx::query("ROLLBACK").execute(&mut self.connection).await?;
            return Ok(CommitOutcome::Stale(stale));
        }
        let mut parts: Vec<CommittedPart> = batch.parts().iter().map(CommittedPart::as_planned).collect();
        match path {
            CommitPath::Direct => {
                self.copy_events("audit_events.events", batch, Rows::Repeated(false)).await?;
                self.merge_events(group, (batch, Rows::Repeated(true)), &mut parts).await?;
            }
            CommitPath::Merge => self.merge_events(group, (batch, Rows::All), &mut parts).await?,
        }
        self.copy_dead_letters(group, batch).await?;
        failpoint::at("commit_before_commit");
        sqlx::raw_sql("COMMIT").execute(&mut self.connection).await?;
        failpoint::at("commit_after_commit");
        Ok(CommitOutcome::Committed { path, parts })
    }

    /// BEGIN and the compare-and-set in one round trip. Returns where the batch is stale; the transaction is
    /// open either way.
    async fn begin(&mut self, group: &str, batch: &Batch) -> Result<Vec<StalePart>, StoreError> {
        let statement = begin_statement(group, batch.parts());
        let (mut current, mut moved_count) = (Vec::new(), 0);
        {
            let mut answers = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_many(&mut self.connection);
            while let Some(answer) = answers.try_next().await? {
                match answer {
                    Either::Left(result) => moved_count = result.rows_affected(),
                    Either::Right(row) => {
                        let key = StreamPartition {
                            stream: StreamId(row.try_get("stream_id")?),
                            partition: Partition(row.try_get("partition")?),
                        };
                        current.push((key, Epoch(row.try_get("epoch")?), offset_of(&row, "next_offset")?));
                    }
                }
            }
        }
        let stale: Vec<StalePart> = batch
            .parts()
            .iter()
            .filter_map(|part| {
                let found =
                    current.iter().find(|(key, ..)| *key == part.key).map(|(_, epoch, next)| (*epoch, *next));
                (!is_current(found, part)).then_some(StalePart { key: part.key, current: found })
            })
            .collect();
        let expected_count = batch.parts().len();
        if stale.is_empty() && u64::try_from(expected_count) != Ok(moved_count) {
            return Err(StoreError::Broken(format!(
                "{moved_count} positions moved instead of {expected_count}"
            )));
        }
        Ok(stale)
    }

    /// Copies event rows of the batch into `table`.
    pub(super) async fn copy_events(
        &mut self,
        table: &str,
        batch: &Batch,
        rows: Rows,
    ) -> Result<(), StoreError> {
        let expected_count = batch.row_count(rows);
        if expected_count == 0 {
            return Ok(());
        }
        let statement = format!("COPY {table} ({EVENT_COLUMNS}) FROM STDIN (FORMAT binary)");
        let mut ordered: Vec<&[u8]> = batch.event_rows(rows).collect();
        // Neighbours in the primary key's index are inserted one after the other; docs/PERFORMANCE.md has what that gains.
        ordered.sort_by_cached_key(|row| copy::ids_of(row).map(|(audit_id, _)| audit_id));
        let copied_count = self.copy_in(&statement, ordered.into_iter()).await?;
        if copied_count == expected_count {
            Ok(())
        } else {
            Err(StoreError::Broken(format!(
                "{table}: {copied_count} rows were copied instead of {expected_count}"
            )))
        }
    }

    pub(super) async fn copy_dead_letters(&mut self, group: &str, batch: &Batch) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        let mut expected_count = 0u64;
        for entry in batch.entries() {
            let Fate::DeadLetter(letter) = &entry.fate else { continue };
            let Some((part, (chunk, record))) = batch.part_of(entry).zip(batch.record_of(entry)) else {
                return Err(StoreError::Broken(format!(
                    "the record at offset {} is not in its batch",
                    entry.offset
                )));
            };
            copy::encode_dead_letter(&mut rows, letter, (part.key, group), (chunk, record));
            expected_count += 1;
        }
        self.copy_dead_letter_rows(&rows, expected_count).await
    }

    /// Copies encoded rows into `dead_letters`.
    pub(super) async fn copy_dead_letter_rows(
        &mut self,
        rows: &[u8],
        expected_count: u64,
    ) -> Result<(), StoreError> {
        if expected_count == 0 {
            return Ok(());
        }
        let statement =
            format!("COPY audit_events.dead_letters ({DEAD_LETTER_COLUMNS}) FROM STDIN (FORMAT binary)");
        let copied_count =
            self.copy_in(&statement, std::iter::once(rows)).await.map_err(broken_if_duplicate)?;
        if copied_count == expected_count {
            Ok(())
        } else {
            Err(StoreError::Broken(format!(
                "{copied_count} dead letters were copied instead of {expected_count}"
            )))
        }
    }

    async fn copy_in<'a>(
        &mut self,
        statement: &str,
        rows: impl Iterator<Item = &'a [u8]>,
    ) -> Result<u64, StoreError> {
        let mut copy = self.connection.copy_in_raw(statement).await?;
        let mut buffer = Vec::with_capacity(COPY_SEND_LEN_BYTES + copy::HEADER.len());
        buffer.extend_from_slice(copy::HEADER);
        for row in rows {
            for piece in row.chunks(COPY_SEND_LEN_BYTES) {
                if buffer.len() + piece.len() > COPY_SEND_LEN_BYTES {
                    copy.send(buffer.as_slice()).await?;
                    buffer.clear();
                }
                if piece.len() == COPY_SEND_LEN_BYTES {
                    copy.send(piece).await?;
                } else {
                    buffer.extend_from_slice(piece);
                }
            }
        }
        buffer.extend_from_slice(copy::TRAILER);
        copy.send(buffer.as_slice()).await?;
        failpoint::at("commit_in_copy");
        Ok(copy.finish().await?)
    }
}

impl CommittedPart {
    pub(super) fn as_planned(part: &Part) -> Self {
        Self {
            key: part.key,
            end: part.end,
            event_count: part.event_count,
            duplicate_count: 0,
            dead_letter_count: part.dead_letter_count,
            absent_count: part.absent_count,
        }
    }
}

/// A unique violation on a table that names records by their coordinates: they were stored before, under a
/// position that says they were not.
pub(super) fn broken_if_duplicate(error: StoreError) -> StoreError {
    match &error {
        StoreError::Refused { sqlstate, source } if sqlstate == "23505" => {
            StoreError::Broken(source.to_string())
        }
        _ => error,
    }
}

pub(super) fn offset_of(row: &sqlx::postgres::PgRow, column: &str) -> Result<Offset, StoreError> {
    let value: i64 = row.try_get(column)?;
    Offset::new(value).ok_or_else(|| StoreError::Broken(format!("column {column} holds {value}")))
}

/// Quotes `text` as an SQL literal: with `standard_conforming_strings`, which is on in every session of ours,
/// only the quote is special.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Whether the position stands where `part` begins, under its epoch.
fn is_current(found: Option<(Epoch, Offset)>, part: &Part) -> bool {
    found.is_some_and(|(epoch, next)| {
        epoch == part.epoch && (next == part.start || failpoint::is_on("mutant_no_cas"))
    })
}

fn begin_statement(group: &str, parts: &[Part]) -> String {
    let group = literal(group);
    let (mut keys, mut moves) = (String::new(), String::new());
    for part in parts {
        let separator = if keys.is_empty() { "" } else { ", " };
        let Part { key: StreamPartition { stream, partition }, epoch, start, end, .. } = part;
        let (events, letters, absent) = (part.event_count, part.dead_letter_count, part.absent_count);
        // Writing to a String can't fail.
        let written = write!(keys, "{separator}('{stream}'::uuid, {partition})").and_then(|()| {
            write!(
                moves,
                "{separator}('{stream}'::uuid, {partition}, {}::bigint, {start}::bigint, {end}::bigint, \
                 {events}::bigint, {letters}::bigint, {absent}::bigint)",
                epoch.0
            )
        });
        debug_assert!(written.is_ok());
    }
    let start = if failpoint::is_on("mutant_no_cas") { "" } else { "AND o.next_offset = w.start_offset" };
    format!(
        "BEGIN; \
         SELECT stream_id, partition, epoch, next_offset FROM audit_events.consumer_offsets \
          WHERE group_id = {group} AND (stream_id, partition) IN ({keys}) \
          ORDER BY stream_id, partition FOR UPDATE; \
         UPDATE audit_events.consumer_offsets AS o \
            SET next_offset = w.next_offset, events = o.events + w.events, \
                dead_letters = o.dead_letters + w.dead_letters, absent = o.absent + w.absent, committed_at = now() \
           FROM (VALUES {moves}) AS w (stream_id, partition, epoch, start_offset, next_offset, events, \
                                       dead_letters, absent) \
          WHERE o.group_id = {group} AND o.stream_id = w.stream_id AND o.partition = w.partition \
            AND o.epoch = w.epoch {start}"
    )
}
