//! Names, series and their number.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{LagSample, Metrics, PartitionLabel};
use crate::model::federated::SourceFlag;
use crate::model::projection::DaySink;
use crate::model::rejection::RejectionCode;
use crate::model::spool::mode::Mode;
use crate::observe::board::ProjectionState;

#[test]
fn every_metric_has_the_prefix_a_help_text_and_its_kinds_ending() {
    let metrics = Metrics::new(PartitionLabel::On).unwrap();
    metrics.set_state("running");
    metrics.consumed("t", 3, Duration::from_millis(1));
    metrics.rejected(RejectionCode::InvalidJson, 1);
    metrics.claimed("granted");
    let text = metrics.render().unwrap();
    for line in text.lines().filter(|line| line.starts_with("# ")) {
        let mut words = line.split(' ').skip(1);
        let (kind, name) = (words.next().unwrap(), words.next().unwrap());
        assert!(name.starts_with("audit_consumer_") || name.starts_with("process_"), "{line}");
        if kind == "TYPE" {
            assert_eq!(line.ends_with(" counter"), name.ends_with("_total"), "{line}");
        }
    }
    assert!(text.contains("audit_consumer_records_consumed_total{topic=\"t\"} 3"), "{text}");
    assert!(text.contains("audit_consumer_rejected_total{reason=\"invalid_json\"} 1"));
}

fn sample(partition: i32, lag_records: u64) -> LagSample {
    LagSample {
        topic: "t".into(),
        partition,
        position: 5,
        lag_records: Some(lag_records),
        kafka_lag_records: Some(lag_records / 2),
        mode: Mode::Spooling,
    }
}

#[test]
fn series_of_partitions_that_went_away_go_too() {
    let metrics = Metrics::new(PartitionLabel::On).unwrap();
    metrics.partitions.set(&[sample(1, 2)], ["records_deleted"].into_iter(), 1);
    let text = metrics.render().unwrap();
    for line in [
        "audit_consumer_lag_records{partition=\"1\",topic=\"t\"} 2",
        "audit_consumer_kafka_lag_records{partition=\"1\",topic=\"t\"} 1",
        "audit_consumer_partitions{mode=\"spooling\"} 1",
        "audit_consumer_partitions{mode=\"live\"} 0",
        "audit_consumer_partitions_paused 1",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    metrics.partitions.set(&[], std::iter::empty(), 0);
    assert!(!metrics.render().unwrap().contains("lag_records{"));
}

/// How many series a scrape has.
fn series_count(metrics: &Metrics) -> usize {
    metrics.render().unwrap().lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn a_thousand_partitions_stay_under_twenty_thousand_series_and_a_switch_drops_theirs() {
    let samples: Vec<LagSample> = (0..1_000).map(|partition| sample(partition, 4)).collect();
    let of = |label| {
        let metrics = Metrics::new(label).unwrap();
        metrics.partitions.set(&samples, std::iter::empty(), 0);
        RejectionCode::ALL.iter().for_each(|code| metrics.rejected(*code, 1));
        (series_count(&metrics), metrics.render().unwrap())
    };
    let (with_label, _) = of(PartitionLabel::On);
    assert!((3_000..20_000).contains(&with_label), "{with_label} series");
    let (without, text) = of(PartitionLabel::Off);
    assert!(without < 300, "{without} series");
    assert!(
        text.contains("audit_consumer_lag_records 4000\n")
            && text.contains("audit_consumer_kafka_lag_records 2000\n")
    );
    assert!(!text.contains("partition=\""));
}

#[test]
fn trust_scores_are_counted_by_tenths() {
    let metrics = Metrics::new(PartitionLabel::On).unwrap();
    metrics.trusted(&[(0, 1), (80, 3), (81, 1), (100, 2)].into());
    let text = metrics.render().unwrap();
    for (le, count) in [("0.1", 1), ("0.8", 4), ("0.9", 5), ("1", 7), ("+Inf", 7)] {
        assert!(
            text.contains(&format!("audit_consumer_trust_score_bucket{{le=\"{le}\"}} {count}\n")),
            "{text}"
        );
    }
}

/// Metrics of which every family has a series.
fn every_family() -> Metrics {
    let metrics = Metrics::new(PartitionLabel::On).unwrap();
    metrics.set_state("running");
    metrics.consumed("t", 3, Duration::from_millis(1));
    metrics.claimed("granted");
    metrics.database_error("unavailable");
    metrics.relay_failed("kafka");
    metrics.flagged(SourceFlag::Disabled, 1);
    metrics.partitions.set(&[sample(0, 1)], ["records_deleted"].into_iter(), 0);
    metrics.projections.begin(DaySink::Trust);
    metrics.projections.failed(DaySink::Trust, "full");
    metrics.projections.set(&BTreeMap::from([("trust", ProjectionState::default())]), now());
    metrics
}

#[expect(clippy::disallowed_methods, reason = "no test of time")]
fn now() -> Instant {
    Instant::now()
}

/// The rows of the table in docs/METRICS.md as they should be.
fn rows(metrics: &Metrics) -> Vec<String> {
    let families = metrics.registry.gather();
    let ours = families.iter().filter(|family| family.name().starts_with("audit_consumer_"));
    let row = |family: &prometheus::proto::MetricFamily| {
        let metric = family.get_metric().first().unwrap();
        let labels: Vec<String> =
            metric.get_label().iter().map(|label| format!("`{}`", label.name())).collect();
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        format!("| `{}` | {kind} | {} | {} |", family.name(), labels.join(", "), family.help())
    };
    ours.map(row).collect()
}

#[test]
fn the_table_of_metrics_is_true() {
    let expect = rows(&every_family());
    let text = include_str!("../../../docs/METRICS.md");
    let found: Vec<&str> = text.lines().filter(|line| line.starts_with("| `audit_consumer_")).collect();
    assert!(found == expect, "docs/METRICS.md should have these rows:\n{}", expect.join("\n"));
}

#[test]
fn every_family_that_is_made_has_a_series_in_these_tests() {
    let sources = [
        include_str!("../metrics.rs"),
        include_str!("partitions.rs"),
        include_str!("projections.rs"),
        include_str!("spans.rs"),
        include_str!("spool.rs"),
    ];
    let is_name = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let made: BTreeSet<String> = sources
        .iter()
        .flat_map(|source| source.split("make!(").skip(1))
        .filter_map(|rest| rest.split('"').nth(1).filter(|name| is_name(name)))
        .map(|name| format!("audit_consumer_{name}"))
        .collect();
    let families = every_family().registry.gather();
    let shown: BTreeSet<String> = families
        .iter()
        .map(|family| family.name().to_owned())
        .filter(|name| name.starts_with("audit_consumer_"))
        .collect();
    assert_eq!(made, shown);
}
