//! Day files in numbers; the label `sink` is `purview` or `trust`.

use std::collections::BTreeMap;
use std::time::Instant;

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::PREFIX;
use crate::model::projection::DaySink;
use crate::observe::board::ProjectionState;

/// Day files.
#[derive(Debug)]
pub struct ProjectionMetrics {
    lines: IntCounterVec,
    failures: IntCounterVec,
    orphaned: IntCounterVec,
    rebuilt: IntCounterVec,
    outrun: IntCounterVec,
    waiting: IntGaugeVec,
    lag: GaugeVec,
    stuck: IntGaugeVec,
}

impl ProjectionMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            lines: make!(
                r,
                IntCounterVec,
                "projection_lines_total",
                "Lines written to day files, by sink",
                &["sink"]
            ),
            failures: make!(
                r,
                IntCounterVec,
                "projection_failures_total",
                "Rounds of the projector that failed, by sink and class",
                &["sink", "class"]
            ),
            orphaned: make!(
                r,
                IntCounterVec,
                "projection_orphaned_bytes_total",
                "Bytes of day files that were moved to .orphan files, by sink",
                &["sink"]
            ),
            rebuilt: make!(
                r,
                IntCounterVec,
                "projection_rebuilt_total",
                "Day files that were cut or removed by somebody and written again, by sink",
                &["sink"]
            ),
            outrun: make!(
                r,
                IntCounterVec,
                "projection_outrun_total",
                "Rounds of the projector that ended as another instance took the same offsets, by sink",
                &["sink"]
            ),
            waiting: make!(
                r,
                IntGaugeVec,
                "projection_lag_records",
                "Offsets between the positions and the cursors of the day files, as last seen here, by sink",
                &["sink"]
            ),
            lag: make!(
                r,
                GaugeVec,
                "projection_lag_seconds",
                "How long ago all lines were written; 0 while they are, by sink",
                &["sink"]
            ),
            stuck: make!(
                r,
                IntGaugeVec,
                "projection_stuck",
                "1 while day files can't be written (disk, database, a copied directory), by sink",
                &["sink"]
            ),
        })
    }

    /// The series of a sink that is on begin at 0.
    pub fn begin(&self, sink: DaySink) {
        for counter in [&self.lines, &self.orphaned, &self.rebuilt, &self.outrun] {
            counter.with_label_values(&[sink.as_str()]).inc_by(0);
        }
    }

    /// Another instance was faster.
    pub fn outrun(&self, sink: DaySink) {
        self.outrun.with_label_values(&[sink.as_str()]).inc();
    }

    /// Lines were written, and are durable.
    pub fn wrote(&self, sink: DaySink, line_count: u64) {
        self.lines.with_label_values(&[sink.as_str()]).inc_by(line_count);
    }

    /// A round failed.
    pub fn failed(&self, sink: DaySink, class: &'static str) {
        self.failures.with_label_values(&[sink.as_str(), class]).inc();
    }

    /// Bytes were moved to an orphan file.
    pub fn orphaned(&self, sink: DaySink, len_bytes: u64) {
        self.orphaned.with_label_values(&[sink.as_str()]).inc_by(len_bytes);
    }

    /// A file was written again.
    pub fn rebuilt(&self, sink: DaySink) {
        self.rebuilt.with_label_values(&[sink.as_str()]).inc();
    }

    /// How the sinks that are on stand at `now`.
    pub fn set(&self, states: &BTreeMap<&'static str, ProjectionState>, now: Instant) {
        for (sink, state) in states {
            let labels = [*sink];
            self.waiting
                .with_label_values(&labels)
                .set(i64::try_from(state.waiting_count).unwrap_or(i64::MAX));
            self.lag.with_label_values(&labels).set(state.lag(now).as_secs_f64());
            self.stuck.with_label_values(&labels).set(i64::from(state.trouble.is_some()));
        }
    }
}
