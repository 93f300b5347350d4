//! What an operator may do to dead letters: look, redrive, discard, close a breaker. Each is recorded with who, when
//! and why in `dead_letter_actions` or `offset_actions`; no row of `dead_letters` changes.
//!
//! A redrive has two sides, so it is told in two steps: intended before its Kafka transaction, settled when its
//! outcome is known. One session at a time does either to the dead letters of a group (an advisory lock).

use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use super::dead_letters::{LETTER_LEN_BYTES, LETTERS_MAX_LEN_BYTES, ROW_COLUMNS, Relayed, id_of, row_of};
use super::error::StoreError;
use super::session::Session;
use crate::model::dead_letter::{DeadLetterId, DeadLetterRow, LetterName};
use crate::model::position::{Partition, StreamId, StreamPartition};

/// Which dead letters; each part that is not given takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// Of this topic.
    pub topic: Option<String>,
    /// With this reason code.
    pub reason: Option<String>,
    /// Stored at or after this time: anything that PostgreSQL reads as one, in UTC.
    pub since: Option<String>,
    /// These rows (`dead_letter_id`).
    pub row_ids: Option<Vec<i64>>,
}

/// A page of dead letters, in the order of their `dead_letter_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LetterPage {
    /// The one before the page; 0: it is the first page.
    pub after: i64,
    /// The last one that any page may have.
    pub last: i64,
    /// How many the page has at most.
    pub max_count: i64,
}

/// What became of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LetterState {
    /// Not in the dead letter topic yet.
    Waiting,
    /// In the dead letter topic.
    Relayed,
    /// A redrive was intended, and its outcome is not known.
    Redriving,
    /// Sent back to the source topic.
    Redriven,
    /// Given up by an operator.
    Discarded,
}

impl LetterState {
    const ALL: [Self; 5] = [Self::Waiting, Self::Relayed, Self::Redriving, Self::Redriven, Self::Discarded];

    /// The state as text, as `dead_letter_states` has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Relayed => "relayed",
            Self::Redriving => "redriving",
            Self::Redriven => "redriven",
            Self::Discarded => "discarded",
        }
    }

    fn read(text: &str) -> Result<Self, StoreError> {
        let found = Self::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| StoreError::Broken(format!("dead_letter_states holds the state {text}")))
    }

    /// Whether a redrive or discard may still be done.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Relayed)
    }
}

/// Dead letters that have topic, reason and state in common.
#[derive(Debug, Clone, PartialEq)]
pub struct LetterCount {
    /// The source topic.
    pub topic: String,
    /// The reason code.
    pub reason: String,
    /// What became of them.
    pub state: LetterState,
    /// How many.
    pub count: i64,
    /// How long ago the oldest and the newest were stored, in seconds.
    pub age_seconds: (f64, f64),
}

/// A dead letter and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterStatus {
    /// The row.
    pub row: DeadLetterRow,
    /// What became of it.
    pub state: LetterState,
    /// Where it is in the dead letter topic.
    pub relayed: Option<Relayed>,
    /// What was done to it, oldest first, as JSON objects.
    pub actions: Vec<Value>,
}

/// A redrive whose outcome was not recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRedrive {
    /// Its id.
    pub id: Uuid,
    /// Its dead letters.
    pub letters: Vec<DeadLetterId>,
    /// What was noted with the intent.
    pub details: Value,
}

/// Partitions of a group, for `resume`; a part that is not given takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionScope {
    /// Of this topic.
    pub topic: Option<String>,
    /// This one.
    pub partition: Option<Partition>,
}

/// The condition of a [`LetterFilter`] on `dead_letter_states AS t`, with its parameters from `$1` on: the group,
/// topic, reason, since, row ids.
const FILTER: &str = "EXISTS (SELECT FROM audit_events.streams AS s WHERE s.stream_id = t.stream_id AND s.group_id = $1) \
    AND ($2::text IS NULL OR t.topic = $2) AND ($3::text IS NULL OR t.reason = $3) \
    AND ($4::text IS NULL OR t.created_at >= $4::timestamptz) \
    AND ($5::bigint[] IS NULL OR t.dead_letter_id = ANY ($5))";

macro_rules! bind_filter {
    ($query:expr, $group:expr, $filter:expr) => {
        $query
            .bind($group)
            .bind($filter.topic.as_deref())
            .bind($filter.reason.as_deref())
            .bind($filter.since.as_deref())
            .bind($filter.row_ids.as_deref())
    };
}

impl Session {
    /// Counts the dead letters of `group` by topic, reason and state.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Refused`] when `since` is no time.
    pub async fn count_letters(
        &mut self,
        group: &str,
        filter: &LetterFilter,
    ) -> Result<Vec<LetterCount>, StoreError> {
        let sql = format!(
            "SELECT t.topic, t.reason, t.state, count(*) AS letter_count, \
                    extract(epoch FROM now() - min(t.created_at))::float8 AS oldest, \
                    extract(epoch FROM now() - max(t.created_at))::float8 AS newest \
               FROM audit_events.dead_letter_states AS t WHERE {FILTER} \
              GROUP BY t.topic, t.reason, t.state ORDER BY t.topic, t.reason, t.state"
        );
        let query = bind_filter!(sqlx::query(sqlx::AssertSqlSafe(sql)), group, filter);
        let rows = query.fetch_all(&mut self.connection).await?;
        rows.iter()
            .map(|row| {
                Ok(LetterCount {
                    topic: row.try_get("topic")?,
                    reason: row.try_get("reason")?,
                    state: LetterState::read(row.try_get("state")?)?,
                    count: row.try_get("letter_count")?,
                    age_seconds: (row.try_get("oldest")?, row.try_get("newest")?),
                })
            })
            .collect()
    }

    /// One dead letter by its coordinates or its `dead_letter_id`, whatever its group.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn letter(
        &mut self,
        id: Result<DeadLetterId, i64>,
    ) -> Result<Option<LetterStatus>, StoreError> {
        let sql = format!(
            "SELECT {ROW_COLUMNS}, d.relay_partition, d.relay_offset, t.state, coalesce((SELECT json_agg(json_build_object( \
                        'action', a.action, 'redrive_id', a.redrive_id, 'actor', a.actor, 'reason', a.reason, \
                        'details', a.details, 'at', a.at) ORDER BY a.action_id) \
                      FROM audit_events.dead_letter_actions AS a WHERE a.stream_id = d.stream_id \
                       AND a.source_partition = d.source_partition AND a.source_offset = d.source_offset), '[]') AS actions \
               FROM audit_events.dead_letters AS d JOIN audit_events.dead_letter_states AS t USING (dead_letter_id) \
              WHERE ($1::bigint IS NULL OR d.dead_letter_id = $1) AND ($2::uuid IS NULL OR \
                    (d.stream_id, d.source_partition, d.source_offset) = ($2, $3::integer, $4::bigint)) LIMIT 1"
        );
        let (row_id, coordinates) = match id {
            Ok(id) => (None, Some(id)),
            Err(row_id) => (Some(row_id), None),
        };
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(row_id)
            .bind(coordinates.map(|id| id.key.stream.0))
            .bind(coordinates.map(|id| id.key.partition.0))
            .bind(coordinates.map(|id| id.offset.as_i64()))
            .fetch_optional(&mut self.connection)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let actions: Value = row.try_get("actions")?;
        let relay_partition: Option<i32> = row.try_get("relay_partition")?;
        let relayed = match relay_partition {
            Some(partition) => Some(Relayed {
                id: id_of(&row)?,
                partition: Partition(partition),
                offset: super::commit::offset_of(&row, "relay_offset")?,
            }),
            None => None,
        };
        Ok(Some(LetterStatus {
            row: row_of(&row)?,
            state: LetterState::read(row.try_get("state")?)?,
            relayed,
            actions: actions.as_array().cloned().unwrap_or_default(),
        }))
    }

    /// Takes the lock of the one who redrives or discards dead letters in this database, whatever the group (streams
    /// change hands); this session then holds it until it ends. `false`: another session has it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn lock_letters(&mut self) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT pg_try_advisory_lock(hashtextextended('audit-consumer/redrive', 0)) AS is_ours",
        )
        .fetch_one(&mut self.connection)
        .await?;
        Ok(row.try_get("is_ours")?)
    }

    /// The highest `dead_letter_id` of `group` that may be redriven or discarded now; 0 when there is none. What is
    /// rejected from now on has a higher one, also a record that was redriven: each rejection is a row of its own, and
    /// the ids are given in the order of time.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Refused`] when `since` is no time.
    pub async fn newest_open_letter(
        &mut self,
        group: &str,
        filter: &LetterFilter,
    ) -> Result<i64, StoreError> {
        let sql = format!(
            "SELECT t.dead_letter_id FROM audit_events.dead_letter_states AS t \
              WHERE {FILTER} AND t.state IN ('waiting', 'relayed') ORDER BY t.dead_letter_id DESC LIMIT 1"
        );
        let query = bind_filter!(sqlx::query(sqlx::AssertSqlSafe(sql)), group, filter);
        let row = query.fetch_optional(&mut self.connection).await?;
        Ok(row.map(|row| row.try_get("dead_letter_id")).transpose()?.unwrap_or(0))
    }

    /// The dead letters of `group` that may still be redriven or discarded, as `page` says, and some MiB of them.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open_letters(
        &mut self,
        group: &str,
        filter: &LetterFilter,
        page: LetterPage,
    ) -> Result<Vec<DeadLetterRow>, StoreError> {
        let sql = format!(
            "SELECT {ROW_COLUMNS} FROM audit_events.dead_letters AS d \
               JOIN (SELECT o.dead_letter_id, \
                            sum({LETTER_LEN_BYTES}) OVER (ORDER BY o.dead_letter_id) - {LETTER_LEN_BYTES} AS before \
                       FROM (SELECT t.dead_letter_id FROM audit_events.dead_letter_states AS t \
                              WHERE {FILTER} AND t.state IN ('waiting', 'relayed') \
                                AND t.dead_letter_id > $6 AND t.dead_letter_id <= $7 \
                              ORDER BY t.dead_letter_id LIMIT $8) AS o \
                       JOIN audit_events.dead_letters AS d USING (dead_letter_id)) AS t USING (dead_letter_id) \
              WHERE t.before <= {LETTERS_MAX_LEN_BYTES} ORDER BY d.dead_letter_id"
        );
        let query = bind_filter!(sqlx::query(sqlx::AssertSqlSafe(sql)), group, filter);
        let query = query.bind(page.after).bind(page.last).bind(page.max_count);
        let rows = query.fetch_all(&mut self.connection).await?;
        rows.iter().map(row_of).collect()
    }

    /// Records `action` for `letters`, in one statement: all or none.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Refused`] when one of them was redriven or discarded meanwhile.
    pub async fn record_letter_action(
        &mut self,
        (action, redrive): (&str, Option<Uuid>),
        letters: &[DeadLetterId],
        (actor, reason): (&str, &str),
        details: &Value,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO audit_events.dead_letter_actions \
                    (stream_id, source_partition, source_offset, action, redrive_id, actor, reason, details) \
             SELECT l.stream_id, l.source_partition, l.source_offset, $4, $5, $6, $7, $8 \
               FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) AS l (stream_id, source_partition, source_offset)",
        )
        .bind(letters.iter().map(|id| id.key.stream.0).collect::<Vec<_>>())
        .bind(letters.iter().map(|id| id.key.partition.0).collect::<Vec<_>>())
        .bind(letters.iter().map(|id| id.offset.as_i64()).collect::<Vec<_>>())
        .bind(action)
        .bind(redrive)
        .bind(actor)
        .bind(reason)
        .bind(details)
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// The redrives of `group` that were intended and never settled, oldest first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open_redrives(&mut self, group: &str) -> Result<Vec<OpenRedrive>, StoreError> {
        let rows = sqlx::query(
            "SELECT a.redrive_id, a.stream_id, a.source_partition, a.source_offset, a.details \
               FROM audit_events.dead_letter_actions AS a JOIN audit_events.streams AS s USING (stream_id) \
              WHERE a.action = 'redrive_intended' AND s.group_id = $1 AND NOT EXISTS ( \
                    SELECT FROM audit_events.dead_letter_actions AS b \
                     WHERE b.redrive_id = a.redrive_id AND b.action <> 'redrive_intended') \
              ORDER BY a.action_id",
        )
        .bind(group)
        .fetch_all(&mut self.connection)
        .await?;
        let mut redrives: Vec<OpenRedrive> = Vec::new();
        for row in &rows {
            let (id, letter) = (row.try_get("redrive_id")?, id_of(row)?);
            match redrives.iter_mut().find(|redrive| redrive.id == id) {
                Some(redrive) => redrive.letters.push(letter),
                None => {
                    redrives.push(OpenRedrive {
                        id,
                        letters: vec![letter],
                        details: row.try_get("details")?,
                    });
                }
            }
        }
        Ok(redrives)
    }

    /// Records that the breaker of a partition opened; once for each `opening`.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn record_breaker(
        &mut self,
        group: &str,
        key: StreamPartition,
        (opening, reason): (Uuid, &str),
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO audit_events.offset_actions (group_id, stream_id, partition, action, actor, reason, details) \
             SELECT $1, $2, $3, 'open_breaker', 'audit-consumer', $4, jsonb_build_object('opening', $5::text) \
              WHERE NOT EXISTS (SELECT FROM audit_events.offset_actions \
                     WHERE group_id = $1 AND stream_id = $2 AND partition = $3 AND details ->> 'opening' = $5::text)",
        )
        .bind(group)
        .bind(key.stream.0)
        .bind(key.partition.0)
        .bind(reason)
        .bind(opening.to_string())
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Whether the breaker that was recorded last for this partition was not closed by an operator.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn is_breaker_open(&mut self, group: &str, key: StreamPartition) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT action = 'open_breaker' AS is_open FROM audit_events.offset_actions \
              WHERE group_id = $1 AND stream_id = $2 AND partition = $3 AND action IN ('open_breaker', 'resume') \
              ORDER BY action_id DESC LIMIT 1",
        )
        .bind(group)
        .bind(key.stream.0)
        .bind(key.partition.0)
        .fetch_optional(&mut self.connection)
        .await?;
        Ok(row.map(|row| row.try_get("is_open")).transpose()?.unwrap_or(false))
    }

    /// Closes the breakers of `group` that are open in `scope`; returns their partitions by topic.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn resume(
        &mut self,
        group: &str,
        scope: &PartitionScope,
        (actor, reason): (&str, &str),
    ) -> Result<Vec<(String, Partition)>, StoreError> {
        let rows = sqlx::query(
            "INSERT INTO audit_events.offset_actions (group_id, stream_id, partition, action, actor, reason, details) \
             SELECT l.group_id, l.stream_id, l.partition, 'resume', $4, $5, jsonb_build_object('topic', s.topic) \
               FROM (SELECT DISTINCT ON (stream_id, partition) * FROM audit_events.offset_actions \
                      WHERE group_id = $1 AND action IN ('open_breaker', 'resume') \
                      ORDER BY stream_id, partition, action_id DESC) AS l \
               JOIN audit_events.streams AS s USING (stream_id) \
              WHERE l.action = 'open_breaker' AND ($2::text IS NULL OR s.topic = $2) \
                AND ($3::integer IS NULL OR l.partition = $3) \
             RETURNING details ->> 'topic' AS topic, partition",
        )
        .bind(group)
        .bind(scope.topic.as_deref())
        .bind(scope.partition.map(|partition| partition.0))
        .bind(actor)
        .bind(reason)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(|row| Ok((row.try_get("topic")?, Partition(row.try_get("partition")?)))).collect()
    }

    /// The dead letters of `stream` as far as a comparison with the topic needs them: each with where it was relayed
    /// to, by partition and offset.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn relayed_letters(
        &mut self,
        stream: StreamId,
    ) -> Result<Vec<(LetterName, Option<Relayed>)>, StoreError> {
        let rows = sqlx::query(
            "SELECT stream_id, source_partition, source_offset, group_id, relay_partition, relay_offset \
               FROM audit_events.dead_letters WHERE stream_id = $1 ORDER BY source_partition, source_offset",
        )
        .bind(stream.0)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let id = id_of(row)?;
                let partition: Option<i32> = row.try_get("relay_partition")?;
                let name = LetterName { id, group: row.try_get("group_id")? };
                let Some(partition) = partition else { return Ok((name, None)) };
                let offset = super::commit::offset_of(row, "relay_offset")?;
                Ok((name, Some(Relayed { id, partition: Partition(partition), offset })))
            })
            .collect()
    }
}
