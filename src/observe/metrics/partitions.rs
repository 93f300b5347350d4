//! Partitions in numbers.

use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

use super::PREFIX;
use crate::model::spool::mode::Mode;

/// A partition's position and lag, for the gauges.
#[derive(Debug, Clone)]
pub struct LagSample {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The position that PostgreSQL holds.
    pub position: i64,
    /// Offsets between the position and the end, if the end is known.
    pub lag_records: Option<u64>,
    /// Offsets between what is stored or spooled and the end, if the end is known.
    pub kafka_lag_records: Option<u64>,
    /// Where its records go.
    pub mode: Mode,
}

/// Whether each partition has series of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionLabel {
    /// It has.
    On,
    /// Lags are sums over all partitions, and there is no position.
    Off,
}

/// What becomes of partitions.
#[derive(Debug)]
pub struct PartitionMetrics {
    label: PartitionLabel,
    modes: IntGaugeVec,
    paused: IntGauge,
    assigned: IntGauge,
    held: IntGaugeVec,
    position: IntGaugeVec,
    lag: IntGaugeVec,
    kafka_lag: IntGaugeVec,
}

impl PartitionMetrics {
    pub(super) fn new(r: &Registry, label: PartitionLabel) -> Result<Self, prometheus::Error> {
        let of_partition: &[&str] = match label {
            PartitionLabel::On => &["topic", "partition"],
            PartitionLabel::Off => &[],
        };
        Ok(Self {
            label,
            modes: make!(
                r,
                IntGaugeVec,
                "partitions",
                "Partitions owned, by where their records go: live, spooling, draining",
                &["mode"]
            ),
            paused: make!(
                r,
                IntGauge,
                "partitions_paused",
                "Partitions that are not read now, as what they are read for is behind"
            ),
            assigned: make!(r, IntGauge, "partitions_assigned", "Partitions owned and read"),
            held: make!(
                r,
                IntGaugeVec,
                "partitions_held",
                "Partitions assigned by Kafka and not read, by reason",
                &["reason"]
            ),
            position: make!(r, IntGaugeVec, "position", "The position that PostgreSQL holds", of_partition),
            lag: make!(
                r,
                IntGaugeVec,
                "lag_records",
                "Offsets between PostgreSQL's position and the end",
                of_partition
            ),
            kafka_lag: make!(
                r,
                IntGaugeVec,
                "kafka_lag_records",
                "Offsets between what is stored or spooled and the end",
                of_partition
            ),
        })
    }

    /// The partitions that are read, and why others are held; series of partitions that went away go too.
    pub fn set<'a>(&self, owned: &[LagSample], held: impl Iterator<Item = &'a str>, paused_count: usize) {
        self.paused.set(i64::try_from(paused_count).unwrap_or(i64::MAX));
        for mode in Mode::ALL {
            let count = owned.iter().filter(|sample| sample.mode == mode).count();
            self.modes.with_label_values(&[mode.as_str()]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.assigned.set(i64::try_from(owned.len()).unwrap_or(i64::MAX));
        self.held.reset();
        for reason in held {
            self.held.with_label_values(&[reason]).inc();
        }
        self.position.reset();
        self.lag.reset();
        self.kafka_lag.reset();
        for sample in owned {
            let partition = sample.partition.to_string();
            let both = [sample.topic.as_str(), partition.as_str()];
            let labels = match self.label {
                PartitionLabel::On => &both[..],
                PartitionLabel::Off => &[],
            };
            if self.label == PartitionLabel::On {
                self.position.with_label_values(labels).set(sample.position);
            }
            let lags = [(&self.lag, sample.lag_records), (&self.kafka_lag, sample.kafka_lag_records)];
            for (gauge, lag_records) in lags {
                if let Some(lag_records) = lag_records {
                    gauge.with_label_values(labels).add(i64::try_from(lag_records).unwrap_or(i64::MAX));
                }
            }
        }
    }
}
