//! Resident memory over a long backlog.

use std::time::Instant;

use serde_json::{Value, json};

use crate::Options;
use crate::bed::Bed;
use crate::daemon::{DATABASE, through_with};
use crate::load::{Shape, with_topic};

const SHOWN_COUNT: usize = 10;

pub(crate) fn measure(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let record_count = options.memory_records;
    let mut samples = Vec::new();
    let figures = with_topic(bed, "memory", (Shape::of(600), record_count), |topic| {
        bed.fresh_database(DATABASE)?;
        let started_at = Instant::now();
        through_with(bed, topic, record_count, &[], |daemon| {
            samples.push((started_at.elapsed().as_secs(), daemon.resident_mib()?.round()));
            Ok(())
        })
    })?;
    let shown: Vec<(u64, f64)> = samples
        .chunks(samples.len().div_ceil(SHOWN_COUNT).max(1))
        .filter_map(|part| part.last().copied())
        .collect();
    println!(
        "{record_count} records of 600 bytes at {:.0}/s: peak {:.0} MiB",
        figures.per_second, figures.peak_mib
    );
    let over_time: Vec<String> =
        shown.iter().map(|(second, mib)| format!("{mib:.0} at {second} s")).collect();
    println!("resident, in MiB: {}", over_time.join(", "));
    Ok(json!({
        "records": record_count, "per_second": figures.per_second.round(), "peak_rss_mib": figures.peak_mib.round(),
        "resident_mib_by_second": shown,
    }))
}
