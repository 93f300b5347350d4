//! Retention: whole time partitions of `events` go, never rows, and what went is recorded in the transaction that drops
//! them, so the account still adds up.
//!
//! While a partition is counted its rows can't change: SHARE keeps writers out of it, and out of no other. A batch with an
//! event for it waits, or is refused as contended and tried again. The drop itself needs `events` for itself, for a moment:
//! it waits for running commits [`DROP_LOCK_TIMEOUT`] at most, so that a long reader can't make it hold all others up.

use std::time::Duration;

use serde_json::json;
use sqlx::Row;

use super::error::StoreError;
use super::projections::has_segment;
use super::session::Session;
use crate::failpoint;
use crate::model::event::UtcDay;
use crate::model::projection::DaySink;
use crate::model::retention::{Keep, LegalHold};

/// How long counting one partition may take; the session's own limit is meant for commits.
const STATEMENT_TIMEOUT: &str = "SET LOCAL statement_timeout = '6h'";
/// How long a drop may wait for `events`, while all who come after it wait too.
const DROP_LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '2s'";
/// How often a drop is tried, and how long commits have `events` for themselves between.
const DROP_TRIES: u32 = 5;
const DROP_PAUSE: Duration = Duration::from_secs(1);

/// `$1` sink names that need no line, `e` an event: the sinks that still have to write it, as `k.sink`.
const UNPROJECTED: &str = "\
    sinks AS (SELECT DISTINCT i.sink FROM audit_events.projection_instances AS i WHERE i.sink <> ALL ($1::text[])), \
    groups AS (SELECT DISTINCT c.sink, o.group_id FROM audit_events.projection_cursors AS c \
                 JOIN audit_events.consumer_offsets AS o USING (stream_id, partition)), \
    due AS (SELECT k.sink, o.stream_id, o.partition, \
                   CASE WHEN c.stream_id IS NOT NULL THEN c.next_offset ELSE 0 END AS next_offset \
              FROM sinks AS k CROSS JOIN audit_events.consumer_offsets AS o \
              LEFT JOIN audit_events.projection_cursors AS c \
                ON c.sink = k.sink AND c.stream_id = o.stream_id AND c.partition = o.partition \
             WHERE c.stream_id IS NOT NULL \
                OR EXISTS (SELECT FROM groups AS g WHERE g.sink = k.sink AND g.group_id = o.group_id)), \
    open AS (SELECT sink, stream_id, partition, start_offset, end_offset FROM audit_events.projection_pending \
             UNION ALL \
             SELECT s.sink, u.stream_id, u.partition, u.start_offset, u.end_offset \
               FROM audit_events.projection_segments AS s \
               JOIN audit_events.projection_instances AS i USING (sink, instance_id) \
              CROSS JOIN LATERAL unnest(s.stream_ids, s.partitions, s.start_offsets, s.end_offsets) \
                    AS u (stream_id, partition, start_offset, end_offset) \
              WHERE s.intent > i.confirmed)";

/// What may be dropped, and what may not.
#[derive(Debug, Clone, Copy)]
pub struct Expiry<'a> {
    /// How long events are kept.
    pub keep: Keep,
    /// Holds beyond those that are recorded.
    pub holds: &'a [LegalHold],
    /// Sinks whose lines are not waited for, as nobody writes them any more.
    pub ignored: &'a [DaySink],
}

/// A time partition of `events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimePartition {
    /// Its name, without the schema.
    pub name: String,
    /// Its first moment, in RFC 3339.
    pub lower: String,
    /// The moment after its last, in RFC 3339.
    pub upper: String,
    /// Its bytes on disk, with indexes.
    pub len_bytes: i64,
    /// Whether all of its events are older than what is kept.
    pub is_expired: bool,
}

/// What is in a time partition, and what keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Its events.
    pub event_count: i64,
    /// Holds that name some of them, and how many.
    pub held: Vec<(LegalHold, i64)>,
    /// Sinks that have no line yet for some of them, and for how many.
    pub unprojected: Vec<(DaySink, i64)>,
}

impl Survey {
    /// Whether nothing keeps it.
    #[must_use]
    pub const fn is_free(&self) -> bool {
        self.held.is_empty() && self.unprojected.is_empty()
    }
}

/// What became of a time partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dropping {
    /// It is gone, and recorded.
    Dropped(Survey),
    /// Something keeps it; nothing was changed.
    Kept(Survey),
    /// `events` was in use all the time, or somebody else drops; nothing was changed.
    Busy,
    /// It is not there any more, or not as it was.
    Gone,
}

/// Something that was held, lifted or dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionAction {
    /// When, in RFC 3339.
    pub at: String,
    /// `drop`, `hold` or `release`.
    pub action: String,
    /// The time partition, or the hold.
    pub subject: String,
    /// How many events went.
    pub event_count: Option<i64>,
    /// Who, as said.
    pub actor: String,
    /// Who, as PostgreSQL knows it.
    pub login: String,
    /// Why.
    pub reason: String,
}

impl Session {
    /// The time partitions but the default one, oldest first; and how many events of the default one, which is never
    /// dropped, are older than what is kept.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn time_partitions(&mut self, keep: Keep) -> Result<(Vec<TimePartition>, i64), StoreError> {
        let rows = sqlx::query(
            "SELECT partition_name, upper <= now() - $1::text::interval AS is_expired, \
                    CASE WHEN isfinite(lower) THEN to_char(lower, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') \
                         ELSE lower::text END AS lower_text, \
                    CASE WHEN isfinite(upper) THEN to_char(upper, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') \
                         ELSE upper::text END AS upper_text, \
                    pg_total_relation_size(format('audit_events.%I', partition_name)::regclass) AS len_bytes \
               FROM audit_events.partition_ranges WHERE NOT is_default ORDER BY partition_ranges.lower",
        )
        .bind(keep.interval())
        .fetch_all(&mut self.connection)
        .await?;
        let partitions = rows.iter().map(|row| {
            Ok(TimePartition {
                name: row.try_get("partition_name")?,
                lower: row.try_get("lower_text")?,
                upper: row.try_get("upper_text")?,
                len_bytes: row.try_get("len_bytes")?,
                is_expired: row.try_get("is_expired")?,
            })
        });
        let partitions = partitions.collect::<Result<_, StoreError>>()?;
        let row = sqlx::query(
            "SELECT count(*) FROM audit_events.events_default WHERE timestamp < now() - $1::text::interval",
        )
        .bind(keep.interval())
        .fetch_one(&mut self.connection)
        .await?;
        Ok((partitions, row.try_get(0)?))
    }

    /// What is in `partition`, and what keeps it, without holding anybody up.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn survey(
        &mut self,
        partition: &TimePartition,
        expiry: Expiry<'_>,
    ) -> Result<Survey, StoreError> {
        sqlx::query("BEGIN READ ONLY").execute(&mut self.connection).await?;
        let survey = self.survey_within(partition, expiry).await?;
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(survey)
    }

    async fn survey_within(
        &mut self,
        partition: &TimePartition,
        expiry: Expiry<'_>,
    ) -> Result<Survey, StoreError> {
        sqlx::query(STATEMENT_TIMEOUT).execute(&mut self.connection).await?;
        let table = self.quoted(partition).await?;
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
            .fetch_one(&mut self.connection)
            .await?;
        let event_count = row.try_get(0)?;
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "WITH holds AS (SELECT kind, value FROM audit_events.legal_holds \
                            UNION SELECT * FROM unnest($1::text[], $2::text[])) \
             SELECT h.kind, h.value, count(*) FROM holds AS h JOIN {table} AS e \
                 ON CASE h.kind WHEN 'tenant' THEN e.tenant_id = h.value WHEN 'actor' THEN e.actor = h.value \
                         ELSE e.correlation_id::text = h.value END \
              GROUP BY h.kind, h.value ORDER BY h.kind, h.value"
        )))
        .bind(expiry.holds.iter().map(|hold| hold.kind().as_str()).collect::<Vec<_>>())
        .bind(expiry.holds.iter().map(LegalHold::value).collect::<Vec<_>>())
        .fetch_all(&mut self.connection)
        .await?;
        let held = rows.iter().map(|row| {
            let (kind, value): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
            let hold = format!("{kind}={value}")
                .parse()
                .map_err(|error| StoreError::Broken(format!("legal_holds has {kind}={value}: {error}")))?;
            Ok((hold, row.try_get(2)?))
        });
        let held = held.collect::<Result<_, StoreError>>()?;
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "WITH {UNPROJECTED} \
             SELECT d.sink, count(*) FROM due AS d JOIN {table} AS e \
                 ON e.stream_id = d.stream_id AND e.source_partition = d.partition \
              WHERE (e.purview_compatible OR d.sink <> 'purview') \
                AND (e.source_offset >= d.next_offset \
                     OR EXISTS (SELECT FROM open AS o WHERE o.sink = d.sink AND o.stream_id = e.stream_id \
                                   AND o.partition = e.source_partition AND e.source_offset >= o.start_offset \
                                   AND e.source_offset < o.end_offset)) \
              GROUP BY d.sink ORDER BY d.sink"
        )))
        .bind(expiry.ignored.iter().map(|sink| sink.as_str()).collect::<Vec<_>>())
        .fetch_all(&mut self.connection)
        .await?;
        let unprojected = rows.iter().map(|row| {
            let name: &str = row.try_get(0)?;
            let sink = DaySink::read(name);
            Ok((sink.ok_or_else(|| StoreError::Broken(format!("an unknown sink {name}")))?, row.try_get(1)?))
        });
        let unprojected = unprojected.collect::<Result<_, StoreError>>()?;
        Ok(Survey { event_count, held, unprojected })
    }

    async fn quoted(&mut self, partition: &TimePartition) -> Result<String, StoreError> {
        let quoted = sqlx::query("SELECT format('audit_events.%I', $1::text)").bind(&partition.name);
        Ok(quoted.fetch_one(&mut self.connection).await?.try_get(0)?)
    }

    /// Drops `partition` if it has expired and nothing keeps it, and records who did it and why, with how many events of
    /// which stream and partition went, in the same transaction.
    ///
    /// Not cancel safe: when the future is dropped, the session must be dropped too.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped, and it is not known whether the partition is gone.
    pub async fn drop_partition(
        &mut self,
        partition: &TimePartition,
        expiry: Expiry<'_>,
        (actor, reason): (&str, &str),
    ) -> Result<Dropping, StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        // One at a time: two would count side by side, and then each keep the other from dropping.
        let alone =
            sqlx::query("SELECT pg_try_advisory_xact_lock(hashtextextended('audit_events.retention', 0))");
        if !alone.fetch_one(&mut self.connection).await?.try_get::<bool, _>(0)? {
            return self.rolled_back(Dropping::Busy).await;
        }
        let table = self.quoted(partition).await?;
        let found = sqlx::query("SELECT to_regclass($1) IS NOT NULL").bind(&table);
        if !found.fetch_one(&mut self.connection).await?.try_get::<bool, _>(0)? {
            return self.rolled_back(Dropping::Gone).await;
        }
        // Nobody sets a hold while we look at them.
        sqlx::query("LOCK TABLE audit_events.legal_holds IN SHARE MODE")
            .execute(&mut self.connection)
            .await?;
        let lock = format!("LOCK TABLE {table} IN SHARE MODE");
        sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut self.connection).await?;
        let found = sqlx::query(
            "SELECT upper <= now() - $2::text::interval AND date_trunc('second', upper) = $3::text::timestamptz \
                    AND date_trunc('second', lower) = $4::text::timestamptz \
               FROM audit_events.partition_ranges WHERE partition_name = $1 AND NOT is_default",
        )
        .bind(&partition.name)
        .bind(expiry.keep.interval())
        .bind(&partition.upper)
        .bind(&partition.lower)
        .fetch_optional(&mut self.connection)
        .await?;
        if !found.map(|row| row.try_get(0)).transpose()?.unwrap_or(false) {
            return self.rolled_back(Dropping::Gone).await;
        }
        let survey = self.survey_within(partition, expiry).await?;
        if !survey.is_free() {
            return self.rolled_back(Dropping::Kept(survey)).await;
        }
        self.record_drop((partition, &table), (expiry, &survey), (actor, reason)).await?;
        failpoint::at("retention_recorded");
        if !self.try_drop(&table).await? {
            return self.rolled_back(Dropping::Busy).await;
        }
        failpoint::at("retention_before_commit");
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        failpoint::at("retention_after_commit");
        Ok(Dropping::Dropped(survey))
    }

    async fn rolled_back(&mut self, outcome: Dropping) -> Result<Dropping, StoreError> {
        sqlx::query("ROLLBACK").execute(&mut self.connection).await?;
        Ok(outcome)
    }

    async fn record_drop(
        &mut self,
        (partition, table): (&TimePartition, &str),
        (expiry, survey): (Expiry<'_>, &Survey),
        (actor, reason): (&str, &str),
    ) -> Result<(), StoreError> {
        let details = json!({
            "keep": expiry.keep.to_string(), "bytes": partition.len_bytes,
            "legal_holds": expiry.holds.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "ignored_sinks": expiry.ignored.iter().map(|sink| sink.as_str()).collect::<Vec<_>>(),
        });
        let row = sqlx::query(
            "INSERT INTO audit_events.retention_actions \
                    (action, partition_name, lower_bound, upper_bound, event_count, actor, reason, details) \
             VALUES ('drop', $1, $2::text::timestamptz, $3::text::timestamptz, $4, $5, $6, \
                     $7 || jsonb_build_object('recorded_holds', (SELECT coalesce(jsonb_agg(kind || '=' || value \
                                                                 ORDER BY kind, value), '[]') \
                                                               FROM audit_events.legal_holds))) RETURNING action_id",
        )
        .bind(&partition.name)
        .bind(&partition.lower)
        .bind(&partition.upper)
        .bind(survey.event_count)
        .bind(actor)
        .bind(reason)
        .bind(details)
        .fetch_one(&mut self.connection)
        .await?;
        let action: i64 = row.try_get(0)?;
        // Of a sink that is ignored some may be pending: whoever takes their range later finds no row for a line.
        let (in_purview, in_trust) = (has_segment("p"), has_segment("t"));
        let counted = sqlx::query(sqlx::AssertSqlSafe(format!(
            "INSERT INTO audit_events.retention_counts \
             SELECT $1, e.stream_id, e.source_partition, count(*), min(e.source_offset), max(e.source_offset), \
                    count(*) FILTER (WHERE e.purview_compatible AND {in_purview}), count(*) FILTER (WHERE {in_trust}) \
               FROM {table} AS e \
               LEFT JOIN audit_events.projection_cursors AS p ON p.sink = 'purview' \
                AND p.stream_id = e.stream_id AND p.partition = e.source_partition \
               LEFT JOIN audit_events.projection_cursors AS t ON t.sink = 'trust' \
                AND t.stream_id = e.stream_id AND t.partition = e.source_partition \
              GROUP BY e.stream_id, e.source_partition RETURNING events"
        )))
        .bind(action)
        .fetch_all(&mut self.connection)
        .await?;
        let mut sum = 0_i64;
        for row in &counted {
            sum = sum.saturating_add(row.try_get(0)?);
        }
        if sum == survey.event_count {
            return Ok(());
        }
        Err(StoreError::Broken(format!(
            "{}: {} events were counted, and {sum} by stream and partition",
            partition.name, survey.event_count
        )))
    }

    /// Whether it was dropped; `false`: `events` is in use.
    async fn try_drop(&mut self, table: &str) -> Result<bool, StoreError> {
        sqlx::query(DROP_LOCK_TIMEOUT).execute(&mut self.connection).await?;
        let drop = format!("DROP TABLE {table}");
        for _ in 0..DROP_TRIES {
            sqlx::query("SAVEPOINT before_drop").execute(&mut self.connection).await?;
            let dropped = sqlx::query(sqlx::AssertSqlSafe(&*drop)).execute(&mut self.connection).await;
            match dropped.map_err(StoreError::from) {
                Ok(_) => return Ok(true),
                Err(StoreError::Contended { .. }) => {
                    sqlx::query("ROLLBACK TO before_drop").execute(&mut self.connection).await?;
                    tokio::time::sleep(DROP_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Records a hold; `false`: it was there already, and nothing changed.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn hold(
        &mut self,
        hold: &LegalHold,
        (actor, reason): (&str, &str),
    ) -> Result<bool, StoreError> {
        let sql = "INSERT INTO audit_events.legal_holds (kind, value, actor, reason) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT DO NOTHING";
        let query = sqlx::query(sql).bind(hold.kind().as_str()).bind(hold.value()).bind(actor).bind(reason);
        self.change_hold("hold", query, hold, (actor, reason)).await
    }

    /// Lifts a hold; `false`: there is none.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn release_hold(
        &mut self,
        hold: &LegalHold,
        (actor, reason): (&str, &str),
    ) -> Result<bool, StoreError> {
        let sql = "DELETE FROM audit_events.legal_holds WHERE kind = $1 AND value = $2";
        let query = sqlx::query(sql).bind(hold.kind().as_str()).bind(hold.value());
        self.change_hold("release", query, hold, (actor, reason)).await
    }

    async fn change_hold(
        &mut self,
        action: &str,
        change: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
        hold: &LegalHold,
        (actor, reason): (&str, &str),
    ) -> Result<bool, StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        let is_changed = change.execute(&mut self.connection).await?.rows_affected() > 0;
        if is_changed {
            sqlx::query(
                "INSERT INTO audit_events.retention_actions (action, actor, reason, details) VALUES ($1, $2, $3, $4)",
            )
            .bind(action)
            .bind(actor)
            .bind(reason)
            .bind(json!({"kind": hold.kind().as_str(), "value": hold.value()}))
            .execute(&mut self.connection)
            .await?;
        }
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(is_changed)
    }

    /// The holds that are recorded, by kind and name: each with who set it, when and why, as `hold` actions are.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn legal_holds(&mut self) -> Result<Vec<RetentionAction>, StoreError> {
        self.actions_of(
            "SELECT to_char(held_at, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS at, 'hold' AS action, \
                    concat(kind, '=', value) AS subject, NULL::bigint AS event_count, actor, ''::text AS login, reason \
               FROM audit_events.legal_holds ORDER BY kind, value",
        )
        .await
    }

    /// Whether events of `day` were dropped.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn is_dropped(&mut self, day: UtcDay) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT EXISTS (SELECT FROM audit_events.retention_actions \
                             WHERE action = 'drop' AND event_count > 0 AND upper_bound > d.start \
                               AND lower_bound < d.start + interval '1 day') \
               FROM (SELECT to_timestamp($1 / 1000000) AS start) AS d",
        )
        .bind(day.start_unix_micros())
        .fetch_one(&mut self.connection)
        .await?;
        Ok(row.try_get(0)?)
    }

    /// All that was ever done, oldest first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn retention_actions(&mut self) -> Result<Vec<RetentionAction>, StoreError> {
        self.actions_of(
            "SELECT to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS at, action, \
                    coalesce(partition_name, concat(details->>'kind', '=', details->>'value')) AS subject, \
                    event_count, actor, login, reason \
               FROM audit_events.retention_actions ORDER BY action_id",
        )
        .await
    }

    async fn actions_of(&mut self, sql: &'static str) -> Result<Vec<RetentionAction>, StoreError> {
        let rows = sqlx::query(sql).fetch_all(&mut self.connection).await?;
        rows.iter()
            .map(|row| {
                Ok(RetentionAction {
                    at: row.try_get("at")?,
                    action: row.try_get("action")?,
                    subject: row.try_get("subject")?,
                    event_count: row.try_get("event_count")?,
                    actor: row.try_get("actor")?,
                    login: row.try_get("login")?,
                    reason: row.try_get("reason")?,
                })
            })
            .collect()
    }
}
