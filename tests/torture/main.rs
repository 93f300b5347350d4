//! The torture rig: three daemons, a real broker, a real PostgreSQL with a replica, a proxy between them, and faults by a
//! seed. The producer keeps a ledger of what the broker acknowledged. After a quiet phase the oracle compares tables,
//! dead letter topic and day files with the ledger. `make torture MINUTES=2` runs it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a rig that can't go on must stop loudly; it measures real time and talks to people"
)]

mod daemon_http;
mod fault;
mod fleet;
mod ledger;
mod mutants;
mod nemesis;
mod options;
mod oracle;
mod payload;
mod power;
mod producer;
mod proxy;
mod random;
mod report;
mod servers;
mod settings;
mod side;
mod spool_files;
mod takeover;
mod topics;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use self::fleet::Fleet;
use self::nemesis::{Nemesis, OUTAGE_POINTS, POINTS, wait_until};
use self::options::Options;
use self::oracle::rows::Rows;
use self::producer::Feed;
use self::random::Random;
use self::report::{Outcome, Verdict, report_path};
use self::servers::Servers;
use self::side::{AGAIN_TOPIC, DELETED_TOPIC, SPOOLED_TOPIC, Side};

const DAEMON_COUNT: usize = 3;
const TOPIC: &str = "torture.main";
const GROUP: &str = "torture";
const PARTITION_COUNT: i32 = 6;
const SAY_INTERVAL: Duration = Duration::from_secs(10);
/// How long the daemons may take to begin.
const START_PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test` runs every test target; this one is not meant by it.
    let verdict = match args.first().map(String::as_str) {
        Some("run") => Options::parse(&args[1..]).and_then(|options| run(&options)),
        Some("mutants") => mutants::check(&args[1..]),
        _ => {
            println!(
                "the torture rig does not run with the tests: make torture MINUTES=2 [SEED=n] [FAULTS=short]"
            );
            return;
        }
    };
    let code = match verdict {
        Ok(verdict) => verdict.exit_code(),
        Err(error) => {
            eprintln!("torture: the rig could not run: {error:#}");
            Verdict::Invalid.exit_code()
        }
    };
    std::process::exit(code);
}

/// A run from an empty directory to the report.
fn run(options: &Options) -> anyhow::Result<Verdict> {
    if !cfg!(feature = "failpoints") {
        bail!("crash points need --all-features");
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(&options.dir);
    eprintln!("torture: {}", options.command());
    let servers = Arc::new(Servers::start(&dir, options.ports, DAEMON_COUNT)?);
    let outcome = play(options, &servers);
    servers.stop();
    let outcome = outcome.with_context(|| format!("logs and data are in {}", dir.display()))?;
    let points = [POINTS, OUTAGE_POINTS].concat();
    let verdict = outcome.finish(options, &points, &report_path(options.mutant.as_deref()))?;
    // After a failure what is on it may be of interest; the next run takes it away.
    if verdict != Verdict::Failed {
        servers.unmount();
    }
    Ok(verdict)
}

fn migrate(servers: &Servers) -> anyhow::Result<()> {
    let mut command = std::process::Command::new(servers.binary());
    let output = command.arg("migrate").env("DATABASE_URL", servers.url()).output()?;
    if !output.status.success() {
        bail!("migrate: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Produces under faults, lets all come to rest, and looks what became of it.
fn play(options: &Options, servers: &Arc<Servers>) -> anyhow::Result<Outcome> {
    topics::create(&servers.brokers(), TOPIC, PARTITION_COUNT)?;
    migrate(servers)?;
    servers.watch()?;
    let indices = Arc::new(AtomicU64::new(0));
    let feed = side::feed(&servers.brokers(), TOPIC, PARTITION_COUNT, &indices, options.seed);
    let side = Arc::new(Side::new(&feed, options.seed)?);
    let homes = (0..DAEMON_COUNT)
        .map(|index| settings::home(servers, index, options))
        .collect::<anyhow::Result<_>>()?;
    let fleet = Fleet::start(homes);
    let began_at = Instant::now();
    let steady = {
        let (feed, rate) = (Arc::clone(&feed), options.records_per_second);
        let random = Random::new(options.seed, "producer");
        std::thread::spawn(move || producer::send_steadily(&feed, rate, random))
    };
    let transactions = {
        let (feed, random) = (Arc::clone(&feed), Random::new(options.seed, "transactions"));
        std::thread::spawn(move || producer::send_transactions(&feed, random))
    };
    let stored =
        "SELECT coalesce(sum(events + duplicates + dead_letters), 0) FROM audit_events.consumer_offsets";
    let has_begun = || servers.sql(stored).is_ok_and(|count| count != "0");
    if !wait_until(START_PATIENCE, has_begun) {
        bail!("nothing is stored after {START_PATIENCE:?}: {}", fleet.log_tail(0));
    }
    let of_the_run = (Arc::clone(servers), Arc::clone(&fleet));
    let nemesis = Nemesis::new(of_the_run, (Arc::clone(&feed), Arc::clone(&side)), options)?;
    let lanes = nemesis.run(options);
    while Instant::now() < nemesis.ends_at || !lanes.iter().all(JoinHandle::is_finished) {
        let left = nemesis.ends_at.saturating_duration_since(Instant::now());
        std::thread::sleep(SAY_INTERVAL.min(left.max(Duration::from_secs(1))));
        let stored = servers.sql(stored).unwrap_or_else(|_| "?".to_owned());
        say_progress(began_at, &feed, &stored, &nemesis);
    }
    lanes.into_iter().for_each(|lane| drop(lane.join()));
    feed.is_over.store(true, Ordering::SeqCst);
    [&servers.broker_link].into_iter().chain(&servers.database_links).for_each(proxy::Link::calm);
    fleet.disarm();
    let findings = std::mem::take(&mut *nemesis.findings.lock().unwrap());
    let mut outcome =
        Outcome { findings, transactions: transactions.join().unwrap_or_default(), ..Outcome::default() };
    steady.join().map_err(|_panic| anyhow::anyhow!("the producer panicked"))??;
    eprintln!("torture: the faults are over; waiting until all is stored, relayed and projected");
    let over_at = Instant::now();
    if let Some(missing) = oracle::wait_until_quiet(servers, &fleet, options.quiet_patience) {
        outcome.findings.add("stuck", || format!("{missing}\n{}", states(&fleet)));
    }
    outcome.quiet = over_at.elapsed();
    outcome.elapsed = began_at.elapsed();
    outcome.down = servers.downtime.total();
    fleet.end();
    examine(servers, &fleet, (&feed, &side), &mut outcome)?;
    outcome.fired = nemesis.fired();
    outcome.lossy_failovers = nemesis.lossy_failover_count.load(Ordering::SeqCst);
    outcome.lost_positions = nemesis.lost_position_count.load(Ordering::SeqCst);
    outcome.fenced = fleet.fenced_count.load(Ordering::SeqCst);
    outcome.points = counted(fleet.crashed());
    outcome.invalid = nemesis.troubles();
    Ok(outcome)
}

/// What the daemons say of themselves.
fn states(fleet: &Fleet) -> String {
    let state = |index| {
        let status = fleet.status(index).unwrap_or_default();
        format!(
            "daemon {index}: notes {}, held {}, spool {}, relay {}\n{}",
            status["notes"],
            status["held"],
            status["spool"],
            status["relay"],
            fleet.last_of_relay(index)
        )
    };
    (0..fleet.count()).map(state).collect::<Vec<_>>().join("\n")
}

fn counted(names: Vec<&'static str>) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    names.into_iter().for_each(|name| *counts.entry(name).or_default() += 1);
    counts
}

fn say_progress(began_at: Instant, feed: &Feed, stored: &str, nemesis: &Nemesis) {
    let fired: Vec<String> =
        nemesis.fired().iter().map(|(fault, count)| format!("{} {count}", fault.name())).collect();
    eprintln!(
        "torture: {:4} s  {} records acknowledged, {stored} stored; {}",
        began_at.elapsed().as_secs(),
        feed.acknowledged_count.load(Ordering::SeqCst),
        fired.join(", ")
    );
}

/// The condition for rows of a topic.
fn of_topic(topic: &str) -> String {
    format!("stream_id IN (SELECT stream_id FROM audit_events.streams WHERE topic = '{topic}')")
}

/// The oracle.
fn examine(
    servers: &Servers,
    fleet: &Fleet,
    (feed, side): (&Feed, &Side),
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let findings = &mut outcome.findings;
    for unexpected in fleet.unexpected() {
        findings.add("daemon_ended", || {
            format!("daemon {}: {}\n{}", unexpected.daemon, unexpected.status, unexpected.log_tail)
        });
    }
    let repeated = feed.repeated_offset_count.load(Ordering::SeqCst);
    if repeated > 0 {
        findings.add("broker_repeated_offsets", || format!("{repeated} offsets were acknowledged twice"));
    }
    outcome.kinds = feed.ledger.counts();
    let index_count = feed.next_index.load(Ordering::SeqCst);
    let mut rows = Rows::new(index_count)?;
    rows.check(servers, (TOPIC, &of_topic(TOPIC), &feed.ledger), findings)?;
    oracle::check_counters(servers, (TOPIC, &feed.ledger, &rows), findings)?;
    rows.check(servers, (DELETED_TOPIC, &of_topic(DELETED_TOPIC), &side.deleted.ledger), findings)?;
    rows.check(servers, (SPOOLED_TOPIC, &of_topic(SPOOLED_TOPIC), &side.spooled.ledger), findings)?;
    rows.check_incarnations(servers, (AGAIN_TOPIC, &side.incarnations()), findings)?;
    rows.check_events(findings);
    outcome.letters = oracle::letters::check(&servers.brokers(), (&format!("{TOPIC}.dlq"), &rows), findings)?;
    outcome.day_file_lines = oracle::check_day_files(fleet, &rows, findings)?;
    oracle::check_zombies(servers, findings)?;
    for index in 0..fleet.count() {
        oracle::verify(servers, fleet, index, findings)?;
    }
    (outcome.lost, outcome.doubled) = (rows.lost_count, rows.doubled_count);
    outcome.unacknowledged = rows.unacknowledged_count;
    Ok(())
}
