//! The spool's metrics.

use std::time::Duration;

use prometheus::{Gauge, IntCounter, IntGauge, Opts, Registry};

use super::PREFIX;
use crate::observe::board::SpoolState;

/// What becomes of records while PostgreSQL is away, and after.
#[derive(Debug)]
pub struct SpoolMetrics {
    appended: IntCounter,
    drained: IntCounter,
    quarantined: IntCounter,
    set_aside: IntCounter,
    quarantined_files: IntGauge,
    records: IntGauge,
    bytes: IntGauge,
    capacity: IntGauge,
    oldest: Gauge,
    stuck: IntGauge,
    full_in: Gauge,
}

impl SpoolMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            appended: make!(r, IntCounter, "spooled_total", "Records appended to the spool"),
            drained: make!(r, IntCounter, "drained_total", "Records read back from the spool for PostgreSQL"),
            quarantined: make!(
                r,
                IntCounter,
                "spool_quarantined_total",
                "Segments of the spool found damaged"
            ),
            set_aside: make!(
                r,
                IntCounter,
                "spool_set_aside_total",
                "Batches of the spool that PostgreSQL does not take as they are, copied to quarantine"
            ),
            quarantined_files: make!(
                r,
                IntGauge,
                "spool_quarantined_files",
                "Files in the spool's quarantine"
            ),
            records: make!(
                r,
                IntGauge,
                "spool_records",
                "Records in the spool that may not be in PostgreSQL"
            ),
            bytes: make!(r, IntGauge, "spool_bytes", "Bytes of all files of the spool"),
            capacity: make!(r, IntGauge, "spool_capacity_bytes", "Bytes that the spool may hold"),
            oldest: make!(
                r,
                Gauge,
                "spool_oldest_age_seconds",
                "Age of the oldest segment that holds something which may not be in PostgreSQL; 0: there is none"
            ),
            stuck: make!(
                r,
                IntGauge,
                "spool_stuck",
                "1 while the spool takes nothing (full, or its disk fails)"
            ),
            full_in: make!(
                r,
                Gauge,
                "spool_full_in_seconds",
                "When the spool will be full, at the rate of the last minute; +Inf while it does not grow"
            ),
        })
    }

    /// Records were appended to the spool.
    pub fn appended(&self, record_count: u64) {
        self.appended.inc_by(record_count);
    }

    /// Records were read back from the spool.
    pub fn drained(&self, record_count: u64) {
        self.drained.inc_by(record_count);
    }

    /// A segment of the spool was found damaged.
    pub fn quarantined(&self) {
        self.quarantined.inc();
    }

    /// Batches were set aside.
    pub fn set_aside(&self, batch_count: u64) {
        self.set_aside.inc_by(batch_count);
    }

    /// What the spool holds, as of `now_ms` since the Unix epoch.
    pub fn set(&self, spool: &SpoolState, now_ms: i64) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.quarantined_files.set(gauge(spool.stats.quarantined_file_count));
        self.records.set(gauge(spool.stats.record_count));
        self.bytes.set(gauge(spool.stats.total_len_bytes));
        self.capacity.set(gauge(spool.max_len_bytes));
        let age_ms = spool.stats.oldest_created_at_ms.map_or(0, |at| now_ms.saturating_sub(at));
        let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
        self.oldest.set(age.as_secs_f64());
        self.stuck.set(i64::from(spool.trouble.is_some()));
        self.full_in.set(spool.full_in_seconds.unwrap_or(f64::INFINITY));
    }
}
