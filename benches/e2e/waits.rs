//! What the daemon's sessions, and that of `\copy`, wait for in PostgreSQL: which resource is at its limit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Options;
use crate::backlog::Rows;
use crate::bed::Bed;
use crate::daemon::{COPY_DATABASE, DATABASE, Watch, by_copy, through};
use crate::load::{Shape, with_topic};
use crate::rounds::rounded;

const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How often sessions were seen in each state.
type Seen = BTreeMap<String, u64>;

/// Looks while something runs.
#[derive(Debug)]
struct Sampler {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Seen>>,
}

impl Sampler {
    fn start(bed: &Bed, database: &'static str) -> anyhow::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, mut watch) = (Arc::clone(&is_over), Watch::open(&bed.admin_url("postgres"))?);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::new();
            while !over.load(Ordering::Relaxed) {
                watch.note_waits(database, &mut seen)?;
                std::thread::sleep(LOOK_INTERVAL);
            }
            Ok(seen)
        });
        Ok(Self { is_over, thread })
    }

    fn finish(self) -> anyhow::Result<Seen> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panic| anyhow::anyhow!("the sampler died"))?
    }
}

pub(crate) fn measure(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let record_count = options.records / 2;
    let mut report = json!({});
    with_topic(bed, "waits", (Shape::of(600), record_count), |topic| {
        for lanes in ["1", "2", "4"] {
            let sampler = Sampler::start(bed, DATABASE)?;
            let figures = through(bed, topic, record_count, &[("LANES", lanes)]);
            let seen = sampler.finish()?;
            report[format!("lanes_{lanes}")] =
                shown(&format!("{lanes} lanes, {:.0}/s", figures?.per_second), &seen);
        }
        let rows = Rows::export(bed)?;
        for (name, files) in [("copy_1", &rows.whole), ("copy_2", &rows.halves)] {
            let sampler = Sampler::start(bed, COPY_DATABASE)?;
            let figures = by_copy(bed, files, record_count);
            let seen = sampler.finish()?;
            report[name] = shown(&format!("{name}, {:.0}/s", figures?.per_second), &seen);
        }
        Ok(())
    })?;
    Ok(report)
}

/// The shares of the states of sessions that were within a transaction or a statement.
fn shown(name: &str, seen: &Seen) -> Value {
    let sum: u64 = seen.values().sum();
    let share = |count: u64| rounded(count as f64 / sum.max(1) as f64);
    let mut shares: Vec<(&String, f64)> = seen.iter().map(|(state, count)| (state, share(*count))).collect();
    shares.sort_by(|one, other| other.1.total_cmp(&one.1));
    let text: Vec<String> = shares
        .iter()
        .filter(|(_, share)| *share >= 0.01)
        .map(|(state, share)| format!("{state} {:.0} %", share * 100.0))
        .collect();
    println!("{name:<24} {}", text.join(", "));
    json!(shares.into_iter().collect::<BTreeMap<_, _>>())
}
