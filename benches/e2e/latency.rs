//! From send to commit. A connection of ours looks at the positions all the time: a record is committed when its
//! partition's position is behind it, as anybody else sees it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Options;
use crate::bed::{Bed, cpu_micros};
use crate::daemon::{DATABASE, Daemon, Watch, wait_for};
use crate::load::{Delivered, Feed, PARTITION_COUNT, Shape};
use crate::rounds::rounded;

const STEADY: Duration = Duration::from_secs(30);
/// What is left out at the beginning: the first connections, the first pages of a table.
const WARM_UP: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
const LONE_COUNT: u64 = 60;
const LONE_INTERVAL: Duration = Duration::from_millis(300);

/// When each partition's position was first seen where.
type Seen = BTreeMap<i32, Vec<(Instant, i64)>>;

/// At each rate, and of a lone record.
pub(crate) fn measure(bed: &Bed, _: &Options) -> anyhow::Result<Value> {
    let mut report = json!({});
    for (name, rate) in [("2000_per_second", 2_000), ("20000_per_second", 20_000)] {
        report[name] = case(bed, name, |feed| {
            let (started_at, mut sent) = (Instant::now(), 0u32);
            while started_at.elapsed() < WARM_UP + STEADY {
                let due = (started_at.elapsed().as_secs_f64() * f64::from(rate)) as u32;
                while sent < due {
                    feed.send()?;
                    sent += 1;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })?;
    }
    report["lone"] = case(bed, "lone", |feed| {
        // The first ones warm up.
        for _ in 0..LONE_COUNT + (WARM_UP.as_millis() / LONE_INTERVAL.as_millis()) as u64 {
            feed.send()?;
            std::thread::sleep(LONE_INTERVAL);
        }
        Ok(())
    })?;
    Ok(report)
}

fn case(bed: &Bed, name: &str, send: impl FnOnce(&mut Feed) -> anyhow::Result<()>) -> anyhow::Result<Value> {
    let topic = format!("{}.latency.{name}", bed.run);
    bed.create_topic(&topic, PARTITION_COUNT)?;
    bed.fresh_database(DATABASE)?;
    let mut daemon = Daemon::start(bed, &topic, &[])?;
    let partitions = "SELECT count(*) FROM audit_events.consumer_offsets";
    wait_for(&mut daemon, u64::from(PARTITION_COUNT.unsigned_abs()), |_| {
        Ok(bed.psql(DATABASE, partitions)?.parse()?)
    })?;
    let is_over = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (is_over, mut watch) = (Arc::clone(&is_over), Watch::open(&bed.admin_url(DATABASE))?);
        std::thread::spawn(move || -> anyhow::Result<Seen> {
            let mut seen = Seen::new();
            while !is_over.load(Ordering::Relaxed) {
                watch.note(&mut seen)?;
                std::thread::sleep(LOOK_INTERVAL);
            }
            Ok(seen)
        })
    };
    let mut feed = Feed::new(bed, &topic, Shape::of(600), (0, true))?;
    let started_at = Instant::now();
    send(&mut feed)?;
    let delivered = feed.finish()?;
    let count = delivered.len() as u64;
    let mut watch = Watch::open(&bed.admin_url(DATABASE))?;
    wait_for(&mut daemon, count, |_| Ok(watch.stored()?.0))?;
    // The last position is to be seen by the other connection, too.
    std::thread::sleep(Duration::from_millis(50));
    is_over.store(true, Ordering::Relaxed);
    let seen = watcher.join().map_err(|_panic| anyhow::anyhow!("the watch died"))??;
    let cpu_us = cpu_micros(daemon.id())?.own as f64 / count as f64;
    daemon.stop()?;
    bed.delete_topics(&[&topic])?;
    let warm: Vec<Delivered> =
        delivered.into_iter().filter(|record| record.sent_at.duration_since(started_at) > WARM_UP).collect();
    percentiles(name, latencies_ms(&warm, &seen), cpu_us)
}

/// Of each record, in milliseconds, in order.
fn latencies_ms(delivered: &[Delivered], seen: &Seen) -> Vec<f64> {
    let mut latencies: Vec<f64> = delivered
        .iter()
        .filter_map(|record| {
            let positions = seen.get(&record.partition)?;
            let first = positions.partition_point(|(_, position)| *position <= record.offset);
            let (at, _) = positions.get(first)?;
            Some(at.saturating_duration_since(record.sent_at).as_secs_f64() * 1e3)
        })
        .collect();
    latencies.sort_by(f64::total_cmp);
    latencies
}

fn percentiles(name: &str, latencies: Vec<f64>, cpu_us: f64) -> anyhow::Result<Value> {
    let at = |share: f64| {
        let index = ((latencies.len() as f64 * share).ceil() as usize).clamp(1, latencies.len().max(1)) - 1;
        latencies.get(index).copied()
    };
    let [Some(p50), Some(p99), Some(p999), Some(most)] = [at(0.5), at(0.99), at(0.999), at(1.0)] else {
        anyhow::bail!("{name}: no latency was measured");
    };
    println!(
        "{name:<20} {} records: p50 {p50:.1} ms, p99 {p99:.1} ms, p99.9 {p999:.1} ms, most {most:.1} ms; \
         {cpu_us:.1} us of the daemon's CPU each",
        latencies.len()
    );
    Ok(json!({
        "records": latencies.len(), "p50_ms": rounded(p50), "p99_ms": rounded(p99), "p999_ms": rounded(p999),
        "max_ms": rounded(most), "client_us": rounded(cpu_us),
    }))
}
