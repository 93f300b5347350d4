//! Which time partitions of `events` are there, so that a batch finds a place for each of its rows.

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::error::StoreError;
use super::session::Session;
use crate::model::batch::Batch;
use crate::model::event::UtcDay;

/// How many day ranges a session remembers; the oldest known are forgotten first.
const KNOWN_MAX_COUNT: usize = 512;

/// Ranges of days for which this session knows where rows go.
#[derive(Debug, Default)]
pub(super) struct KnownPartitions {
    /// Half open ranges in Unix microseconds, and whether rows there go to a partition of their own.
    ranges: Vec<(i64, i64, bool)>,
}

impl KnownPartitions {
    fn find(&self, day: UtcDay) -> Option<bool> {
        let at = day.start_unix_micros();
        self.ranges
            .iter()
            .rev()
            .find(|(lower, upper, _)| (*lower..*upper).contains(&at))
            .map(|(_, _, own)| *own)
    }

    fn remember(&mut self, lower: i64, upper: i64, own: bool) {
        if self.ranges.len() >= KNOWN_MAX_COUNT {
            self.ranges.remove(0);
        }
        self.ranges.push((lower, upper, own));
    }
}

impl Session {
    /// Makes the partitions that the events of `batch` need, where the schema makes any, and returns how many
    /// of its events will stand in the default partition. Outside any transaction, before the batch.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn ensure_partitions(&mut self, batch: &Batch) -> Result<u64, StoreError> {
        let mut default_count = 0;
        for (day, event_count) in batch.days() {
            let own = match self.partitions.find(day) {
                Some(own) => own,
                None => self.ensure_partition(day).await?,
            };
            if !own {
                default_count += event_count;
            }
        }
        Ok(default_count)
    }

    async fn ensure_partition(&mut self, day: UtcDay) -> Result<bool, StoreError> {
        let micros = day.start_unix_micros();
        let at = DateTime::<Utc>::from_timestamp_micros(micros)
            .ok_or_else(|| StoreError::Broken(format!("no such day: {micros} us")))?;
        let row = sqlx::query(
            "SELECT (extract(epoch FROM lower(r)) * 1000000)::bigint, (extract(epoch FROM upper(r)) * 1000000)::bigint \
               FROM audit_events.ensure_partition($1) AS r",
        )
        .bind(at)
        .fetch_one(&mut self.connection)
        .await?;
        let bounds: (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        match bounds {
            (Some(lower), Some(upper)) => self.partitions.remember(lower, upper, true),
            _ => self.partitions.remember(micros, micros.saturating_add(1), false),
        }
        Ok(bounds.0.is_some())
    }
}
