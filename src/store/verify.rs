//! The account, proven: what the position rows say against the rows that stand in the tables.
//!
//! Everything is read in one `REPEATABLE READ READ ONLY` transaction. A commit moves a position and stores its
//! rows at once, so the snapshot holds both or neither, and a running daemon can't make a finding. Rows are
//! counted by offset in one pass over the coordinates of `events`, `duplicates` and `dead_letters`, which their
//! unique indexes give in order: the server sorts on disk at worst, and we hold one line a partition.
//!
//! While it runs, the snapshot holds vacuum back, and a daemon that needs a new time partition waits.

mod finding;

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

pub use self::finding::{Finding, FindingCode};
use super::error::StoreError;
use super::session::Session;
use crate::model::position::{Offset, Partition, StreamId, StreamPartition};

/// How long one question of an account may take; the session's own limit is meant for commits.
const STATEMENT_TIMEOUT: &str = "SET LOCAL statement_timeout = '1h'";
/// How many ids are shown as examples.
const EXAMPLE_MAX_COUNT: i64 = 20;

/// Which part of the account to prove; empty: all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountScope {
    /// Only of this group.
    pub group: Option<String>,
    /// Only of this topic.
    pub topic: Option<String>,
}

/// Counts by fate of an offset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FateCounts {
    /// Events.
    pub events: i64,
    /// Upstream duplicates.
    pub duplicates: i64,
    /// Dead letters.
    pub dead_letters: i64,
}

impl FateCounts {
    /// All of them.
    #[must_use]
    pub const fn sum(&self) -> i64 {
        self.events.saturating_add(self.duplicates).saturating_add(self.dead_letters)
    }
}

/// What the position row of a partition says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionAccount {
    /// Where the group began.
    pub first: i64,
    /// The next offset to read.
    pub next: i64,
    /// The counters.
    pub counters: FateCounts,
    /// Offsets without a record, and those of declared gaps.
    pub absent: i64,
}

/// What stands in the tables of a partition, or stood there until retention dropped it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowAccount {
    /// Rows.
    pub rows: FateCounts,
    /// Different offsets over all of them, the dropped ones too.
    pub distinct_offsets: i64,
    /// Of the events and different offsets: those that retention dropped, as it recorded them.
    pub dropped: i64,
    /// The lowest and the highest offset, unless there are no rows.
    pub bounds: Option<(i64, i64)>,
    /// The lowest offset that stands more than once.
    pub first_repeated: Option<i64>,
}

/// The account of one partition of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionAccount {
    /// Of which group; empty when the stream is unknown.
    pub group: String,
    /// Of which topic; empty when the stream is unknown.
    pub topic: String,
    /// Of which partition.
    pub key: StreamPartition,
    /// Whether a newer incarnation of the topic was adopted.
    pub is_retired: bool,
    /// What the position row says; `None`: there is none.
    pub position: Option<PositionAccount>,
    /// What stands in the tables.
    pub stored: RowAccount,
    /// Offsets of declared gaps; part of `absent`.
    pub gaps: i64,
}

/// Audit ids that stand under several timestamps. Each is an event of its own; an upstream that repeats an
/// event under another time shows here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepeatedIds {
    /// How many ids.
    pub count: i64,
    /// Some of them, with how many timestamps each has; at most 20.
    pub examples: Vec<(Uuid, i64)>,
}

/// All that one snapshot of the database says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// By topic, stream age and partition; those of unknown streams last.
    pub partitions: Vec<PartitionAccount>,
    /// Dead letters by reason code.
    pub dead_letters_by_reason: BTreeMap<String, i64>,
    /// Audit ids under several timestamps.
    pub repeated_ids: RepeatedIds,
}

impl PartitionAccount {
    /// What the database alone proves wrong; empty when the account holds.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let stored = &self.stored;
        let Some(position) = &self.position else {
            return vec![Finding::new(
                FindingCode::OrphanRows,
                (0, stored.rows.sum()),
                "rows stand in the tables, but no position row counts them",
            )];
        };
        let counters = &position.counters;
        let mut findings = position.balance();
        for (code, counter, rows, table) in [
            (FindingCode::EventsDiffer, counters.events, stored.rows.events, "events"),
            (FindingCode::DuplicatesDiffer, counters.duplicates, stored.rows.duplicates, "duplicates"),
            (FindingCode::DeadLettersDiffer, counters.dead_letters, stored.rows.dead_letters, "dead_letters"),
        ] {
            if counter != rows {
                let dropped = match stored.dropped {
                    count @ 1.. if code == FindingCode::EventsDiffer => {
                        format!(", with {count} that retention dropped")
                    }
                    _ => String::new(),
                };
                let text = format!("the counter says {counter}, the table {table} has {rows} rows{dropped}");
                findings.push(Finding::new(code, (counter, rows), text));
            }
        }
        if let Some(first) = stored.first_repeated {
            let text = format!("offsets stand more than once in the tables, the first is {first}");
            findings.push(Finding::new(
                FindingCode::Overlap,
                (stored.distinct_offsets, stored.rows.sum()),
                text,
            ));
        }
        if let Some((low, high)) = stored.bounds
            && (low < position.first || high >= position.next)
        {
            findings.push(Finding::new(
                FindingCode::BeyondPosition,
                (
                    format!("[{}, {})", position.first, position.next),
                    format!("[{low}, {})", high.saturating_add(1)),
                ),
                format!(
                    "rows stand at offsets from {low} to {high}, outside of what the position says was read"
                ),
            ));
        }
        findings.extend(position.hole(stored.distinct_offsets));
        findings
    }

    /// What Kafka's watermarks prove wrong: `low` is the first offset that it has, `end` the position after the
    /// last one, both asked after the account was read.
    #[must_use]
    pub fn findings_in_kafka(&self, low: Offset, end: Offset) -> Vec<Finding> {
        let Some(position) = &self.position else { return Vec::new() };
        let mut findings = Vec::new();
        if position.next > end.as_i64() {
            findings.push(Finding::new(
                FindingCode::BeyondEnd,
                (format!("at most {end}"), position.next),
                "the position is behind kafka's end: kafka lost records that are stored here",
            ));
        }
        if position.next < low.as_i64() {
            findings.push(Finding::new(
                FindingCode::RecordsDeleted,
                (format!("at least {low}"), position.next),
                format!(
                    "kafka deleted the records of [{}, {low}) before they were read; see `offsets declare-gap`",
                    position.next
                ),
            ));
        }
        findings
    }
}

impl PositionAccount {
    /// How many offsets the position says were read.
    #[must_use]
    pub const fn produced(&self) -> i64 {
        self.next.saturating_sub(self.first)
    }

    fn balance(&self) -> Vec<Finding> {
        let sum = self.first.saturating_add(self.counters.sum()).saturating_add(self.absent);
        if sum == self.next {
            return Vec::new();
        }
        let text = "first_offset + events + duplicates + dead_letters + absent is not next_offset";
        vec![Finding::new(FindingCode::AccountUnbalanced, (self.next, sum), text)]
    }

    fn hole(&self, distinct_offsets: i64) -> Option<Finding> {
        let found = distinct_offsets.saturating_add(self.absent);
        (found != self.produced()).then(|| {
            let text = format!(
                "{} offsets were read, but {distinct_offsets} stand in the tables and {} are counted as absent",
                self.produced(),
                self.absent
            );
            Finding::new(FindingCode::Hole, (self.produced(), found), text)
        })
    }
}

impl Session {
    /// Reads the account of `scope` in one snapshot. Takes one pass over the coordinates of all rows in scope,
    /// and one over their audit ids.
    ///
    /// Not cancel safe: when the future is dropped, the session must be dropped too.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn account(&mut self, scope: &AccountScope) -> Result<Account, StoreError> {
        sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut self.connection).await?;
        sqlx::query(STATEMENT_TIMEOUT).execute(&mut self.connection).await?;
        // Before the snapshot, which this is not part of: a partition that is dropped after it would be missing from
        // `events`, and not yet be in `retention_counts`.
        sqlx::query("LOCK TABLE audit_events.events IN ACCESS SHARE MODE")
            .execute(&mut self.connection)
            .await?;
        let streams = self.streams_in(scope).await?;
        let account = Account {
            partitions: self.partition_accounts(scope, streams.as_deref()).await?,
            dead_letters_by_reason: self.dead_letter_reasons(streams.as_deref()).await?,
            repeated_ids: self.repeated_ids(streams.as_deref()).await?,
        };
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(account)
    }

    /// The streams in scope; `None`: all, also those that `streams` does not know.
    async fn streams_in(&mut self, scope: &AccountScope) -> Result<Option<Vec<Uuid>>, StoreError> {
        if *scope == AccountScope::default() {
            return Ok(None);
        }
        let rows = sqlx::query(
            "SELECT s.stream_id FROM audit_events.streams AS s \
              WHERE ($1::text IS NULL OR s.topic = $1) \
                AND ($2::text IS NULL OR s.group_id = $2 OR EXISTS ( \
                     SELECT FROM audit_events.consumer_offsets AS o \
                      WHERE o.stream_id = s.stream_id AND o.group_id = $2))",
        )
        .bind(&scope.topic)
        .bind(&scope.group)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<_, StoreError>>().map(Some)
    }

    async fn partition_accounts(
        &mut self,
        scope: &AccountScope,
        streams: Option<&[Uuid]>,
    ) -> Result<Vec<PartitionAccount>, StoreError> {
        // Two groupings, not count(DISTINCT ..): the inner one needs no sort where an index gives the order,
        // and the outer one none at all.
        let rows = sqlx::query(
            "WITH stored AS ( \
               SELECT stream_id, source_partition AS partition, \
                      sum(events)::bigint AS event_rows, sum(duplicates)::bigint AS duplicate_rows, \
                      sum(dead_letters)::bigint AS dead_letter_rows, count(*) AS distinct_offsets, \
                      min(source_offset) AS low, max(source_offset) AS high, \
                      min(source_offset) FILTER (WHERE events + duplicates + dead_letters > 1) AS first_repeated \
                 FROM (SELECT stream_id, source_partition, source_offset, \
                              sum(event) AS events, sum(duplicate) AS duplicates, sum(dead_letter) AS dead_letters \
                         FROM (SELECT stream_id, source_partition, source_offset, \
                                      1 AS event, 0 AS duplicate, 0 AS dead_letter FROM audit_events.events \
                                UNION ALL SELECT stream_id, source_partition, source_offset, 0, 1, 0 \
                                            FROM audit_events.duplicates \
                                UNION ALL SELECT stream_id, source_partition, source_offset, 0, 0, 1 \
                                            FROM audit_events.dead_letters) AS r \
                        WHERE $1::uuid[] IS NULL OR stream_id = ANY ($1) \
                        GROUP BY stream_id, source_partition, source_offset) AS by_offset \
                GROUP BY stream_id, source_partition), \
             gaps AS ( \
               SELECT stream_id, partition, sum(end_offset - start_offset)::bigint AS gaps \
                 FROM audit_events.offset_gaps WHERE closed_at IS NULL GROUP BY stream_id, partition), \
             dropped AS ( \
               SELECT stream_id, partition, sum(events)::bigint AS dropped, min(low_offset) AS low, \
                      max(high_offset) AS high \
                 FROM audit_events.retention_counts \
                WHERE $1::uuid[] IS NULL OR stream_id = ANY ($1) GROUP BY stream_id, partition), \
             positions AS ( \
               SELECT * FROM audit_events.consumer_offsets \
                WHERE ($1::uuid[] IS NULL OR stream_id = ANY ($1)) AND ($2::text IS NULL OR group_id = $2)) \
             SELECT coalesce(p.group_id, s.group_id, '') AS group_id, coalesce(s.topic, '') AS topic, stream_id, \
                    partition, s.retired_at IS NOT NULL AS is_retired, p.first_offset, p.next_offset, \
                    p.events, p.duplicates, p.dead_letters, p.absent, \
                    coalesce(r.event_rows, 0) + coalesce(d.dropped, 0) AS event_rows, coalesce(d.dropped, 0) AS dropped, coalesce(r.duplicate_rows, 0) AS duplicate_rows, \
                    coalesce(r.dead_letter_rows, 0) AS dead_letter_rows, \
                    coalesce(r.distinct_offsets, 0) + coalesce(d.dropped, 0) AS distinct_offsets, \
                    least(r.low, d.low) AS low, greatest(r.high, d.high) AS high, r.first_repeated, \
                    coalesce(g.gaps, 0) AS gaps \
               FROM positions AS p FULL JOIN stored AS r USING (stream_id, partition) \
               FULL JOIN dropped AS d USING (stream_id, partition) \
               LEFT JOIN gaps AS g USING (stream_id, partition) \
               LEFT JOIN audit_events.streams AS s USING (stream_id) \
              ORDER BY s.topic NULLS LAST, s.created_at, stream_id, partition, group_id",
        )
        .bind(streams)
        .bind(&scope.group)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(partition_account).collect()
    }

    async fn dead_letter_reasons(
        &mut self,
        streams: Option<&[Uuid]>,
    ) -> Result<BTreeMap<String, i64>, StoreError> {
        let rows = sqlx::query(
            "SELECT reason, count(*) FROM audit_events.dead_letters \
              WHERE $1::uuid[] IS NULL OR stream_id = ANY ($1) GROUP BY reason",
        )
        .bind(streams)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    async fn repeated_ids(&mut self, streams: Option<&[Uuid]>) -> Result<RepeatedIds, StoreError> {
        // (audit_id, timestamp) is the primary key: two rows of an id stand under two timestamps.
        let rows = sqlx::query(
            "SELECT audit_id, count(*) AS timestamp_count, count(*) OVER () AS id_count FROM audit_events.events \
              WHERE $1::uuid[] IS NULL OR stream_id = ANY ($1) \
              GROUP BY audit_id HAVING count(*) > 1 ORDER BY audit_id LIMIT $2",
        )
        .bind(streams)
        .bind(EXAMPLE_MAX_COUNT)
        .fetch_all(&mut self.connection)
        .await?;
        let count = rows.first().map(|row| row.try_get("id_count")).transpose()?.unwrap_or(0);
        let examples = rows
            .iter()
            .map(|row| Ok((row.try_get("audit_id")?, row.try_get("timestamp_count")?)))
            .collect::<Result<_, StoreError>>()?;
        Ok(RepeatedIds { count, examples })
    }
}

fn partition_account(row: &PgRow) -> Result<PartitionAccount, StoreError> {
    let next: Option<i64> = row.try_get("next_offset")?;
    let position = match next {
        None => None,
        Some(next) => Some(PositionAccount {
            first: row.try_get("first_offset")?,
            next,
            counters: FateCounts {
                events: row.try_get("events")?,
                duplicates: row.try_get("duplicates")?,
                dead_letters: row.try_get("dead_letters")?,
            },
            absent: row.try_get("absent")?,
        }),
    };
    let bounds: (Option<i64>, Option<i64>) = (row.try_get("low")?, row.try_get("high")?);
    Ok(PartitionAccount {
        group: row.try_get("group_id")?,
        topic: row.try_get("topic")?,
        key: StreamPartition {
            stream: StreamId(row.try_get("stream_id")?),
            partition: Partition(row.try_get("partition")?),
        },
        is_retired: row.try_get("is_retired")?,
        position,
        stored: RowAccount {
            rows: FateCounts {
                events: row.try_get("event_rows")?,
                duplicates: row.try_get("duplicate_rows")?,
                dead_letters: row.try_get("dead_letter_rows")?,
            },
            distinct_offsets: row.try_get("distinct_offsets")?,
            dropped: row.try_get("dropped")?,
            bounds: bounds.0.zip(bounds.1),
            first_repeated: row.try_get("first_repeated")?,
        },
        gaps: row.try_get("gaps")?,
    })
}

#[cfg(test)]
mod tests;
