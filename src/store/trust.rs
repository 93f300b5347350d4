//! Trust by actor: what `reader_trust_summary` says, for a part of the events that the role may read, with the averages
//! of the last days.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::error::StoreError;
use super::session::Session;
use crate::model::event::Timestamp;

/// How many days the history has, today (in UTC) as the last.
pub const TRUST_HISTORY_DAY_COUNT: usize = 14;
/// The most actors that are told of, those with the least average score first.
pub const TRUST_ACTOR_MAX_COUNT: i64 = 1_000;

/// How long the question may take; the session's own limit is meant for commits.
const STATEMENT_TIMEOUT: &str = "SET LOCAL statement_timeout = '1h'";

/// Which events count; each part that is not given takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustFilter {
    /// Of this actor.
    pub actor: Option<String>,
    /// At or after this time.
    pub since: Option<Timestamp>,
}

/// The trust of one actor.
#[derive(Debug, Clone, PartialEq)]
pub struct ActorTrust {
    /// Who.
    pub actor: String,
    /// Events.
    pub operation_count: i64,
    /// Events that succeeded.
    pub success_count: i64,
    /// Events that failed.
    pub failure_count: i64,
    /// Events that bypassed the language model.
    pub bypass_count: i64,
    /// The average trust score, from 0 to 1.
    pub average: f64,
    /// The least trust score, from 0 to 1.
    pub least: f64,
    /// The time of the latest event, RFC 3339 in UTC with whole seconds.
    pub last_activity: String,
    /// The average score of each of the last days, oldest first; `None`: no event.
    pub history: Vec<Option<f64>>,
}

/// The trust of several actors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrustReport {
    /// Those with the least average score first; at most [`TRUST_ACTOR_MAX_COUNT`].
    pub actors: Vec<ActorTrust>,
    /// How many there are.
    pub actor_count: i64,
}

impl Session {
    /// The trust of the actors of `filter`.
    ///
    /// Not cancel safe: when the future is dropped, the session must be dropped too.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn trust(&mut self, filter: &TrustFilter) -> Result<TrustReport, StoreError> {
        let since = match filter.since.map(|time| DateTime::from_timestamp_micros(time.as_unix_micros())) {
            None => None,
            Some(Some(time)) => Some(time),
            Some(None) => return Err(StoreError::Broken("chrono does not know the time".into())),
        };
        sqlx::query("BEGIN READ ONLY").execute(&mut self.connection).await?;
        sqlx::query(STATEMENT_TIMEOUT).execute(&mut self.connection).await?;
        let report = self.trust_of(filter.actor.as_deref(), since).await?;
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(report)
    }

    async fn trust_of(
        &mut self,
        actor: Option<&str>,
        since: Option<DateTime<Utc>>,
    ) -> Result<TrustReport, StoreError> {
        // One pass: by actor and day, those older than the history as one; then the days together.
        let rows = sqlx::query(
            "WITH days AS ( \
               SELECT actor, count(*) AS n, count(*) FILTER (WHERE status = 'Success') AS successes, \
                      count(*) FILTER (WHERE status = 'Failure') AS failures, \
                      count(*) FILTER (WHERE bypass_llm) AS bypasses, sum(trust_score) AS total, \
                      min(trust_score) AS least, max(timestamp) AS last_activity, \
                      today - least(greatest((timestamp AT TIME ZONE 'UTC')::date, today - $3::integer), today + 1) \
                      AS days_ago \
                 FROM audit_events.reader_events, (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS t \
                WHERE ($1::text IS NULL OR actor = $1) AND ($2::timestamptz IS NULL OR timestamp >= $2) \
                GROUP BY actor, days_ago), \
             actors AS ( \
               SELECT actor, sum(n)::bigint AS operations, sum(successes)::bigint AS successes, \
                      sum(failures)::bigint AS failures, sum(bypasses)::bigint AS bypasses, \
                      (sum(total) / sum(n))::float8 AS average, min(least)::float8 AS least, \
                      to_char(max(last_activity) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS last_activity, \
                      array_agg(days_ago) AS days, array_agg((total / n)::float8) AS averages \
                 FROM days GROUP BY actor) \
             SELECT *, count(*) OVER () AS actor_count FROM actors ORDER BY average, actor LIMIT $4",
        )
        .bind(actor)
        .bind(since)
        .bind(i32::try_from(TRUST_HISTORY_DAY_COUNT).unwrap_or(i32::MAX))
        .bind(TRUST_ACTOR_MAX_COUNT)
        .fetch_all(&mut self.connection)
        .await?;
        let actor_count = rows.first().map(|row| row.try_get("actor_count")).transpose()?.unwrap_or(0);
        Ok(TrustReport { actors: rows.iter().map(actor_trust).collect::<Result<_, _>>()?, actor_count })
    }
}

fn actor_trust(row: &PgRow) -> Result<ActorTrust, StoreError> {
    Ok(ActorTrust {
        actor: row.try_get("actor")?,
        operation_count: row.try_get("operations")?,
        success_count: row.try_get("successes")?,
        failure_count: row.try_get("failures")?,
        bypass_count: row.try_get("bypasses")?,
        average: row.try_get("average")?,
        least: row.try_get("least")?,
        last_activity: row.try_get("last_activity")?,
        history: history(&row.try_get::<Vec<i32>, _>("days")?, &row.try_get::<Vec<f64>, _>("averages")?),
    })
}

/// The averages of the last days, oldest first, from those of some days; days outside of the history are left out.
fn history(days_ago: &[i32], averages: &[f64]) -> Vec<Option<f64>> {
    let mut history = vec![None; TRUST_HISTORY_DAY_COUNT];
    for (days_ago, average) in days_ago.iter().zip(averages) {
        let place =
            usize::try_from(*days_ago).ok().and_then(|ago| TRUST_HISTORY_DAY_COUNT.checked_sub(ago + 1));
        if let Some(day) = place.and_then(|place| history.get_mut(place)) {
            *day = Some(*average);
        }
    }
    history
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_ends_today_and_other_days_are_left_out() {
        let history = history(&[0, 13, 14, -1], &[0.5, 0.25, 0.1, 0.9]);
        assert_eq!((history.len(), history[13], history[0]), (14, Some(0.5), Some(0.25)));
        assert_eq!(history.iter().flatten().count(), 2);
    }
}
