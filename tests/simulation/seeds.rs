//! Many seeds, over all cores; and those that failed once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::run::{Outcome, Recording, run};
use crate::trace::Violation;
use crate::world::lock;

/// How many lines of a failing seed's trace are shown.
const TAIL_COUNT: usize = 60;
/// After so many failures nothing new is learnt.
const FAILURE_MAX_COUNT: usize = 20;
/// How often a long run tells how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// A number from the environment.
pub(crate) fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_error| panic!("{name}={text} is no number")))
}

/// What many seeds did.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    seed_count: u64,
    record_count: u64,
    step_count: u64,
    simulated: Duration,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) failures: Vec<(u64, Violation)>,
    seconds: f64,
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seed_count += 1;
        self.record_count += outcome.record_count;
        self.step_count += outcome.step_count;
        self.simulated += outcome.simulated;
        outcome.counts.into_iter().for_each(|(name, count)| *self.counts.entry(name).or_default() += count);
        self.failures.extend(outcome.violation.map(|violation| (seed, violation)));
    }

    fn text(&self) -> String {
        format!(
            "{} seeds, {} records, {} steps, {:.0} simulated hours in {:.1} s ({:.0} seeds a second): {} failed",
            self.seed_count,
            self.record_count,
            self.step_count,
            self.simulated.as_secs_f64() / 3600.0,
            self.seconds,
            self.seed_count as f64 / self.seconds,
            self.failures.len()
        )
    }

    fn to_json(&self) -> Value {
        let failures = self.failures.iter().map(|(seed, violation)| {
            json!({"seed": seed, "property": violation.property, "detail": violation.detail})
        });
        json!({
            "seeds": self.seed_count,
            "records": self.record_count,
            "steps": self.step_count,
            "simulated_seconds": self.simulated.as_secs(),
            "seconds": self.seconds,
            "seeds_per_second": self.seed_count as f64 / self.seconds,
            "occurrences": self.counts,
            "failures": failures.collect::<Vec<_>>(),
        })
    }
}

/// Runs `count` seeds from `first` on.
pub(crate) fn run_many(first: u64, count: u64) -> Summary {
    let (next, is_over) = (AtomicU64::new(first), AtomicBool::new(false));
    let summary = Mutex::new(Summary::default());
    let (started_at, told_at) = (Instant::now(), Mutex::new(Instant::now()));
    let work = || {
        while !is_over.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            let outcome = run(seed, None, Recording::Off);
            if let Some(violation) = &outcome.violation {
                eprintln!("seed {seed}: {}: {}", violation.property, violation.detail);
            }
            let mut summary = lock(&summary);
            summary.add(seed, outcome);
            summary.seconds = started_at.elapsed().as_secs_f64();
            if summary.failures.len() >= FAILURE_MAX_COUNT {
                is_over.store(true, Ordering::Relaxed);
            }
            let mut told_at = lock(&told_at);
            if told_at.elapsed() >= PROGRESS_INTERVAL {
                *told_at = Instant::now();
                eprintln!("{}", summary.text());
            }
        }
    };
    std::thread::scope(|scope| {
        let thread_count = std::thread::available_parallelism().map_or(1, usize::from);
        (0..thread_count).for_each(|_| drop(scope.spawn(work)));
    });
    let summary = summary.into_inner().expect("no thread died");
    println!("{}", summary.text());
    summary
}

/// The seeds that failed once, with what was wrong then.
pub(crate) fn kept() -> Vec<u64> {
    let text = std::fs::read_to_string(kept_path()).expect("tests/simulation/seeds.txt");
    let seeds = text.lines().filter_map(|line| line.split('#').next()).map(str::trim);
    seeds.filter(|seed| !seed.is_empty()).map(|seed| seed.parse().expect("a seed")).collect()
}

fn kept_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simulation/seeds.txt")
}

/// Writes the failures down, shows the end of the first one, and panics; when there are any.
pub(crate) fn must_hold(failures: &[(u64, Violation)]) {
    let Some((seed, violation)) = failures.first() else { return };
    let known = kept();
    let mut file = std::fs::OpenOptions::new().append(true).open(kept_path()).expect("seeds.txt");
    for (seed, violation) in failures.iter().filter(|(seed, _)| !known.contains(seed)) {
        writeln!(file, "{seed} # {}", violation.property).expect("write down a seed");
    }
    let outcome = run(*seed, None, Recording::On);
    let skipped = outcome.lines.len().saturating_sub(TAIL_COUNT);
    let mut tail = String::new();
    for line in outcome.lines.iter().skip(skipped) {
        writeln!(tail, "{line}").expect("write to a string");
    }
    println!("{tail}");
    panic!("seed {seed}: {}: {}; again: make sim SEED={seed}", violation.property, violation.detail);
}

/// Writes `target/reports/simulation.json`.
pub(crate) fn report(summary: &Summary, first: u64) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/reports");
    std::fs::create_dir_all(&directory).expect("target/reports");
    let mut report = summary.to_json();
    report["first_seed"] = json!(first);
    let text = format!("{report:#}\n");
    std::fs::write(directory.join("simulation.json"), text).expect("write the report");
}
