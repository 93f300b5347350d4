//! How fast, from Kafka to PostgreSQL, beside `psql \copy` of the same rows into the same table in the same run.
//!
//! `make bench` runs every section; names of sections run those: `make bench ARGS="--records 400000 backlog"`. It needs
//! a running stack (`deploy/local/stack`) and the release binary. docs/PERFORMANCE.md explains the figures.
#![expect(
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::as_conversions,
    reason = "a benchmark that can't go on must stop loudly; it measures real time and talks to people"
)]

mod backlog;
mod bed;
mod besides;
mod daemon;
mod filled;
mod flame;
mod latency;
mod load;
mod memory;
mod outage;
mod plot;
mod rounds;
mod rowwise;
mod waits;

use std::time::Instant;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use self::bed::Bed;
use self::daemon::through;
use self::load::{Shape, with_topic};

const REPORT: &str = "target/reports/bench.json";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Section {
    /// A backlog of 250, 600 and 2,000 bytes by 1, 2 and 4 lanes, beside one and two sessions of \copy
    Backlog,
    /// Batches of 1,000 to 50,000 records by 1, 2 and 4 lanes
    Batches,
    /// From send to commit at 2,000 and 20,000 records/s, and of a lone record
    Latency,
    /// To the spool while PostgreSQL is away, and back
    Outage,
    /// 20 million rows in the table already
    Filled,
    /// 5 % upstream duplicates
    Duplicates,
    /// 2 % dead letters, while their topic works, is slow, or can't be made
    Letters,
    /// Day files, and how they catch up
    Days,
    /// Relay, metrics and traces at 1 %, together
    Besides,
    /// One INSERT and one COMMIT for each event, as the predecessor does
    Rowwise,
    /// What sessions wait for in PostgreSQL
    Waits,
    /// Peak memory over 10 million records
    Memory,
    /// A flame graph of the daemon; only when it is asked for
    Flame,
}

/// Measures audit-consumer on this machine.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Options {
    /// Sections; by default all of them
    sections: Vec<Section>,
    /// Records of a backlog
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,
    /// How often each case is measured, interleaved with those it is compared with
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Rows that are in the table before `filled`
    #[arg(long, default_value_t = 20_000_000)]
    filled_rows: u64,
    /// Records of `memory`
    #[arg(long, default_value_t = 10_000_000)]
    memory_records: u64,
    /// What `cargo bench` hands to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let mut options = Options::parse();
    if options.sections.is_empty() {
        options.sections =
            Section::value_variants().iter().copied().filter(|own| *own != Section::Flame).collect();
    }
    let bed = Bed::from_env()?;
    let started_at = Instant::now();
    let mut report = json!({
        "command": std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        "records": options.records, "rounds": options.rounds, "machine": bed.machine()?,
    });
    warm_up(&bed, &options)?;
    for section in &options.sections {
        let name = section.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        println!("\n== {name}");
        let measured = measure(*section, &bed, &options).with_context(|| format!("section {name}"))?;
        report[name] = measured;
        report["seconds"] = json!(started_at.elapsed().as_secs());
        // After each section: a run that is cut off leaves what it has.
        std::fs::create_dir_all("target/reports")?;
        std::fs::write(REPORT, format!("{report:#}\n")).with_context(|| format!("write {REPORT}"))?;
    }
    println!("\nreport: {REPORT}");
    Ok(())
}

/// One load that does not count: the first one makes files for the WAL that the later ones only use again.
fn warm_up(bed: &Bed, options: &Options) -> anyhow::Result<()> {
    let record_count = options.records / 2;
    with_topic(bed, "warm-up", (Shape::of(600), record_count), |topic| {
        through(bed, topic, record_count, &[]).map(drop)
    })
}

fn measure(section: Section, bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    match section {
        Section::Backlog => backlog::measure(bed, options),
        Section::Batches => backlog::measure_batches(bed, options),
        Section::Latency => latency::measure(bed, options),
        Section::Outage => outage::measure(bed, options),
        Section::Filled => filled::measure(bed, options),
        Section::Duplicates => besides::measure_duplicates(bed, options),
        Section::Letters => besides::measure_letters(bed, options),
        Section::Days => besides::measure_days(bed, options),
        Section::Besides => besides::measure_observed(bed, options),
        Section::Rowwise => rowwise::measure(bed, options),
        Section::Waits => waits::measure(bed, options),
        Section::Memory => memory::measure(bed, options),
        Section::Flame => flame::measure(bed, options),
    }
}
