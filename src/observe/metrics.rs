//! The metrics, as one typed surface: a method for each fact, names in one place.
//!
//! Prefix `audit_consumer_`, base units, `_total` on counters, label values from closed sets (topics and
//! partitions where the partition is the subject). Lanes report per batch, not per record.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use super::board::{RelayRole, RelayState};
use crate::model::federated::SourceFlag;
use crate::model::rejection::RejectionCode;

const PREFIX: &str = "audit_consumer";

/// From a record's own time to its commit: 5 ms to 10 minutes.
const END_TO_END_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0];
/// How long a commit or a stage takes: 1 ms to 1 minute.
const DURATION_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// Trust scores, by tenths.
const TRUST_SCORES: &[f64] = &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// Records in a batch.
const BATCH_RECORDS: &[f64] = &[1.0, 10.0, 100.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 50_000.0];

/// The process's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// What becomes of records while PostgreSQL is away.
    pub spool: SpoolMetrics,
    state: IntGaugeVec,
    records_consumed: IntCounterVec,
    events_committed: IntCounterVec,
    duplicates: IntCounter,
    rejected: IntCounterVec,
    flagged_events: IntCounterVec,
    dead_letters: IntCounterVec,
    absent: IntCounter,
    default_partition_rows: IntCounter,
    batch_records: Histogram,
    commit_duration: HistogramVec,
    stage_duration: HistogramVec,
    end_to_end: Histogram,
    database_errors: IntCounterVec,
    database_up: IntGauge,
    kafka_up: IntGauge,
    claims: IntCounterVec,
    given_up: IntCounterVec,
    commits_found: IntCounter,
    rebalances: IntCounterVec,
    offset_gaps: IntCounter,
    /// Partitions.
    pub partitions: PartitionMetrics,
    oldest_uncommitted: Gauge,
    trust_score: Histogram,
    retention_loss: Gauge,
    relay_leader: IntGauge,
    relay_waiting: IntGauge,
    relay_oldest: Gauge,
    relay_stuck: IntGauge,
    relay_failures: IntCounterVec,
    breakers_opened: IntCounter,
    /// Day files.
    pub projections: ProjectionMetrics,
    /// Spans.
    pub spans: SpanCounter,
}

macro_rules! make {
    ($maker:expr, $kind:ident, $name:literal, $help:literal $(, $labels:expr)?) => {{
        let options = Opts::new($name, $help).namespace(PREFIX);
        make!(@new $maker, $kind, options $(, $labels)?)
    }};
    ($maker:expr, $kind:ident, $name:literal, $help:literal, buckets $buckets:expr $(, $labels:expr)?) => {{
        let options = HistogramOpts::new($name, $help).namespace(PREFIX).buckets($buckets.to_vec());
        make!(@new $maker, $kind, options $(, $labels)?)
    }};
    (@new $maker:expr, $kind:ident, $options:expr) => {{
        let metric = $kind::with_opts($options)?;
        $maker.register(Box::new(metric.clone()))?;
        metric
    }};
    (@new $maker:expr, $kind:ident, $options:expr, $labels:expr) => {{
        let metric = $kind::new($options, $labels)?;
        $maker.register(Box::new(metric.clone()))?;
        metric
    }};
}

mod partitions;
mod projections;
mod spans;
mod spool;
#[cfg(test)]
mod tests;

use partitions::PartitionMetrics;
pub use partitions::{LagSample, PartitionLabel};
use projections::ProjectionMetrics;
pub use spans::SpanCounter;
use spool::SpoolMetrics;

impl Metrics {
    /// The metrics in a registry of their own, with the process's own (CPU, memory, file descriptors).
    ///
    /// # Errors
    /// When two metrics share a name, which a test excludes.
    #[expect(clippy::too_many_lines, reason = "a table, an entry a metric")]
    pub fn new(partition_label: PartitionLabel) -> Result<Self, prometheus::Error> {
        let r = Registry::new();
        #[cfg(target_os = "linux")]
        r.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let build_info =
            make!(r, IntGaugeVec, "build_info", "Constant 1, labelled with the version", &["version"]);
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            state: make!(r, IntGaugeVec, "state", "1 for the state that the process is in", &["state"]),
            records_consumed: make!(
                r,
                IntCounterVec,
                "records_consumed_total",
                "Records decoded for PostgreSQL, from Kafka or from the spool; those that go to the spool count when it drains",
                &["topic"]
            ),
            events_committed: make!(
                r,
                IntCounterVec,
                "events_committed_total",
                "Events stored, by commit path",
                &["path"]
            ),
            duplicates: make!(r, IntCounter, "duplicates_total", "Upstream duplicates counted"),
            rejected: make!(
                r,
                IntCounterVec,
                "rejected_total",
                "Records that are no events, by reason",
                &["reason"]
            ),
            flagged_events: make!(
                r,
                IntCounterVec,
                "flagged_events_total",
                "Events of committed batches that name a federated source which is unregistered or disabled; duplicates too",
                &["flag"]
            ),
            dead_letters: make!(
                r,
                IntCounterVec,
                "dead_letters_total",
                "Dead letters, by outcome",
                &["outcome"]
            ),
            absent: make!(
                r,
                IntCounter,
                "absent_total",
                "Offsets without a record (compaction, aborted transactions, control records)"
            ),
            default_partition_rows: make!(
                r,
                IntCounter,
                "default_partition_rows_total",
                "Events stored in the default time partition"
            ),
            batch_records: make!(r, Histogram, "batch_records", "Records in a committed batch", buckets BATCH_RECORDS),
            commit_duration: make!(r, HistogramVec, "commit_duration_seconds", "Duration of a commit, by outcome", buckets DURATION_SECONDS, &["outcome"]),
            stage_duration: make!(r, HistogramVec, "stage_duration_seconds", "Duration of a stage for one chunk", buckets DURATION_SECONDS, &["stage"]),
            end_to_end: make!(r, Histogram, "end_to_end_seconds", "From a record's own time to its commit", buckets END_TO_END_SECONDS),
            database_errors: make!(
                r,
                IntCounterVec,
                "database_errors_total",
                "Errors of PostgreSQL, by class",
                &["class"]
            ),
            database_up: make!(
                r,
                IntGauge,
                "database_up",
                "1 while PostgreSQL answers; 0 also while it was not asked yet, without partitions"
            ),
            kafka_up: make!(
                r,
                IntGauge,
                "kafka_up",
                "1 while there is a connection to a broker, looked at every 10 s"
            ),
            claims: make!(r, IntCounterVec, "claims_total", "Claims of partitions, by outcome", &["outcome"]),
            given_up: make!(
                r,
                IntCounterVec,
                "stale_commits_total",
                "Partitions given up, to be claimed and read again or held, by cause",
                &["cause"]
            ),
            commits_found: make!(
                r,
                IntCounter,
                "commits_found_total",
                "Commits whose answer never came, found to have succeeded"
            ),
            rebalances: make!(
                r,
                IntCounterVec,
                "rebalances_total",
                "Partition changes by Kafka, by kind",
                &["kind"]
            ),
            offset_gaps: make!(r, IntCounter, "offset_gaps_total", "Gaps declared by this process"),
            partitions: PartitionMetrics::new(&r, partition_label)?,
            oldest_uncommitted: make!(
                r,
                Gauge,
                "oldest_uncommitted_age_seconds",
                "Age, by its own time, of the oldest record that was read and is not committed, or of the oldest segment of the spool; 0: there is none"
            ),
            trust_score: make!(r, Histogram, "trust_score", "Trust scores of the events of committed batches, cut to two digits; duplicates too", buckets TRUST_SCORES),
            retention_loss: make!(
                r,
                Gauge,
                "retention_loss_in_seconds",
                "When Kafka deletes a record that is neither in PostgreSQL nor in the spool, at the rate of the last 10 minutes; +Inf: not to be foreseen"
            ),
            relay_leader: make!(r, IntGauge, "relay_leader", "1 while this process relays dead letters"),
            relay_waiting: make!(
                r,
                IntGauge,
                "relay_waiting",
                "Dead letters that are not in their topic yet; told by the leader"
            ),
            relay_oldest: make!(
                r,
                Gauge,
                "relay_oldest_age_seconds",
                "Age of the oldest dead letter that is not in its topic yet; told by the leader"
            ),
            relay_stuck: make!(
                r,
                IntGauge,
                "relay_stuck",
                "1 while Kafka does not take dead letters (topic, rights, broker)"
            ),
            relay_failures: make!(
                r,
                IntCounterVec,
                "relay_failures_total",
                "Transactions of the relay that failed, by class",
                &["class"]
            ),
            breakers_opened: make!(
                r,
                IntCounter,
                "breakers_opened_total",
                "Partitions stopped as too many of their records were dead letters"
            ),
            spool: SpoolMetrics::new(&r)?,
            projections: ProjectionMetrics::new(&r)?,
            spans: SpanCounter::new(&r)?,
            registry: r,
        };
        metrics.begin_series();
        Ok(metrics)
    }

    /// Series with labels of closed sets begin at 0, so that the first increase is seen as one.
    fn begin_series(&self) {
        let begin = |counter: &IntCounterVec, values: &[&str]| {
            values.iter().for_each(|value| counter.with_label_values(&[*value]).inc_by(0));
        };
        begin(&self.events_committed, &["direct", "merge", "spool"]);
        RejectionCode::ALL
            .iter()
            .for_each(|code| self.rejected.with_label_values(&[code.as_str()]).inc_by(0));
        SourceFlag::ALL
            .iter()
            .for_each(|flag| self.flagged_events.with_label_values(&[flag.as_str()]).inc_by(0));
        begin(&self.dead_letters, &["stored", "relayed"]);
        begin(
            &self.given_up,
            &["claimed_elsewhere", "position_moved", "discontinuity", "broken", "breaker_opened"],
        );
        begin(&self.rebalances, &["assign", "revoke", "lost"]);
        begin(&self.claims, &["granted"]);
        ["committed", "stale"]
            .iter()
            .for_each(|outcome| drop(self.commit_duration.with_label_values(&[*outcome])));
    }

    /// The state of the process: one of `starting`, `running`, `degraded`, `halted`, `stopping`.
    pub fn set_state(&self, state: &'static str) {
        for candidate in ["starting", "running", "degraded", "halted", "stopping"] {
            self.state.with_label_values(&[candidate]).set(i64::from(candidate == state));
        }
    }

    /// Records were taken from Kafka, and decoding them took this long.
    pub fn consumed(&self, topic: &str, record_count: usize, decode_duration: Duration) {
        self.records_consumed
            .with_label_values(&[topic])
            .inc_by(u64::try_from(record_count).unwrap_or(u64::MAX));
        self.stage_duration.with_label_values(&["decode"]).observe(decode_duration.as_secs_f64());
    }

    /// A commit ended.
    pub fn commit_ended(&self, outcome: &'static str, duration: Duration) {
        self.commit_duration.with_label_values(&[outcome]).observe(duration.as_secs_f64());
    }

    /// Events were stored by this path.
    pub fn events_committed(&self, path: &'static str, event_count: u64) {
        self.events_committed.with_label_values(&[path]).inc_by(event_count);
    }

    /// A batch of this many records was committed.
    pub fn batch_committed(&self, record_count: u32) {
        self.batch_records.observe(f64::from(record_count));
    }

    /// Duplicates were counted, dead letters stored, offsets absent.
    pub fn counted(&self, duplicate_count: u64, dead_letter_count: u64, absent_count: u64) {
        self.duplicates.inc_by(duplicate_count);
        self.dead_letters.with_label_values(&["stored"]).inc_by(dead_letter_count);
        self.absent.inc_by(absent_count);
    }

    /// Records became dead letters for this reason.
    pub fn rejected(&self, code: RejectionCode, record_count: u64) {
        self.rejected.with_label_values(&[code.as_str()]).inc_by(record_count);
    }

    /// Events named a source that the registry flags.
    pub fn flagged(&self, flag: SourceFlag, event_count: u64) {
        self.flagged_events.with_label_values(&[flag.as_str()]).inc_by(event_count);
    }

    /// Events had these trust scores in percent, each so often.
    pub fn trusted(&self, counts: &BTreeMap<u8, u64>) {
        let local = self.trust_score.local();
        for (percent, count) in counts {
            (0..*count).for_each(|_| local.observe(f64::from(*percent) / 100.0));
        }
        local.flush();
    }

    /// Latencies from a record's own time to its commit.
    pub fn end_to_end(&self, latencies_ms: impl Iterator<Item = u64>) {
        let local = self.end_to_end.local();
        for latency_ms in latencies_ms {
            local.observe(Duration::from_millis(latency_ms).as_secs_f64());
        }
        local.flush();
    }

    /// Dead letters were found in, or brought into, their topic and marked.
    pub fn relayed(&self, marked_count: u64, duration: Duration) {
        self.dead_letters.with_label_values(&["relayed"]).inc_by(marked_count);
        self.stage_duration.with_label_values(&["relay"]).observe(duration.as_secs_f64());
    }

    /// A transaction of the relay failed.
    pub fn relay_failed(&self, class: &'static str) {
        self.relay_failures.with_label_values(&[class]).inc();
    }

    /// A breaker opened.
    pub fn breaker_opened(&self) {
        self.breakers_opened.inc();
    }

    /// What the relay does.
    pub fn set_relay(&self, relay: &RelayState) {
        self.relay_leader.set(i64::from(relay.role == RelayRole::Leader));
        self.relay_waiting.set(i64::try_from(relay.waiting_count).unwrap_or(i64::MAX));
        self.relay_oldest.set(relay.oldest_age_seconds);
        self.relay_stuck.set(i64::from(relay.trouble.is_some()));
    }

    /// Events went to the default time partition.
    pub fn default_partition_rows(&self, event_count: u64) {
        self.default_partition_rows.inc_by(event_count);
    }

    /// PostgreSQL reported an error of this class.
    pub fn database_error(&self, class: &'static str) {
        self.database_errors.with_label_values(&[class]).inc();
    }

    /// A partition was claimed, or not.
    pub fn claimed(&self, outcome: &'static str) {
        self.claims.with_label_values(&[outcome]).inc();
    }

    /// A partition was given up.
    pub fn gave_up(&self, cause: &'static str) {
        self.given_up.with_label_values(&[cause]).inc();
    }

    /// A commit whose answer never came was found to have succeeded.
    pub fn found_committed(&self) {
        self.commits_found.inc();
    }

    /// Kafka assigned or revoked partitions.
    pub fn rebalanced(&self, kind: &'static str) {
        self.rebalances.with_label_values(&[kind]).inc();
    }

    /// A gap was declared.
    pub fn gap_declared(&self) {
        self.offset_gaps.inc();
    }

    /// Whether PostgreSQL and Kafka answer.
    pub fn set_up(&self, is_database_up: bool, is_kafka_up: bool) {
        self.database_up.set(i64::from(is_database_up));
        self.kafka_up.set(i64::from(is_kafka_up));
    }

    /// How old the oldest record is that was read and is not committed.
    pub fn set_oldest_uncommitted(&self, age: Duration) {
        self.oldest_uncommitted.set(age.as_secs_f64());
    }

    /// When Kafka deletes a record that is nowhere else; `None`: not to be foreseen.
    pub fn set_retention_loss(&self, seconds: Option<f64>) {
        self.retention_loss.set(seconds.unwrap_or(f64::INFINITY));
    }

    /// All metrics in Prometheus's text format.
    ///
    /// # Errors
    /// When a metric can't be written, which is a bug.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}
