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
mod nemesis;
mod options;
mod oracle;
mod payload;
mod producer;
mod proxy;
mod random;
mod report;
mod servers;
mod spool_files;
mod topics;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use self::fleet::{Fleet, Home};
use self::ledger::Ledger;
use self::nemesis::{Nemesis, OUTAGE_POINTS, POINTS, wait_until};
use self::options::Options;
use self::oracle::rows::Rows;
use self::payload::{MAX_EVENT_LEN_BYTES, Payloads};
use self::producer::Feed;
use self::random::Random;
use self::report::{Outcome, Verdict};
use self::servers::Servers;

const DAEMON_COUNT: usize = 3;
const TOPIC: &str = "torture.main";
const GROUP: &str = "torture";
const PARTITION_COUNT: i32 = 6;
/// The first HTTP port of the daemons, after those of PostgreSQL.
const HTTP_PORT_OFFSET: u16 = 10;
const SAY_INTERVAL: Duration = Duration::from_secs(10);
/// How long the daemons may take to begin, and to have everything done when the faults are over.
const START_PATIENCE: Duration = Duration::from_secs(60);
const QUIET_PATIENCE: Duration = Duration::from_secs(240);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test` runs every test target; this one is not meant by it.
    if args.first().map(String::as_str) != Some("run") {
        println!(
            "the torture rig does not run with the tests: make torture MINUTES=2 [SEED=n] [FAULTS=short]"
        );
        return;
    }
    let code = match run(&args[1..]) {
        Ok(verdict) => verdict.exit_code(),
        Err(error) => {
            eprintln!("torture: the rig could not run: {error:#}");
            Verdict::Invalid.exit_code()
        }
    };
    std::process::exit(code);
}

fn run(args: &[String]) -> anyhow::Result<Verdict> {
    let options = Options::parse(args)?;
    if !cfg!(feature = "failpoints") {
        bail!("crash points need --all-features");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = root.join("target/stack-torture");
    eprintln!("torture: {}", options.command());
    let servers = Arc::new(Servers::start(&dir, options.ports, DAEMON_COUNT)?);
    let outcome = play(&options, &servers);
    servers.stop();
    let outcome = outcome.with_context(|| format!("logs and data are in {}", dir.display()))?;
    let points = [POINTS, OUTAGE_POINTS].concat();
    outcome.finish(&options, &points, &root.join("target/reports/torture.json"))
}

/// The settings of a daemon: everything happens soon.
fn home(servers: &Servers, index: usize, mutant: Option<&str>) -> anyhow::Result<Home> {
    let dir = servers.dir.join(format!("daemon-{index}"));
    std::fs::create_dir_all(&dir)?;
    let http_port = servers.ports.postgres + HTTP_PORT_OFFSET + u16::try_from(index)?;
    let mut settings = vec![
        ("DATABASE_URL", servers.proxied_url(index)),
        ("KAFKA_BROKERS", servers.proxied_brokers()),
        ("KAFKA_TOPICS", TOPIC.to_owned()),
        ("KAFKA_GROUP_ID", GROUP.to_owned()),
        ("KAFKA_SESSION_TIMEOUT_MS", "4000".to_owned()),
        ("KAFKA_PROPERTIES", "topic.metadata.refresh.interval.ms=5000".to_owned()),
        ("HTTP_ADDRESS", format!("127.0.0.1:{http_port}")),
        ("LOG_DIR", dir.display().to_string()),
        ("MAX_EVENT_BYTES", MAX_EVENT_LEN_BYTES.to_string()),
        ("SPOOL_AFTER_MS", "500".to_owned()),
        ("SPOOL_MIN_FREE_BYTES", "1MiB".to_owned()),
        ("SPOOL_SEGMENT_BYTES", "1MiB".to_owned()),
        ("PROJECT_LAG_MAX_MS", "3000".to_owned()),
        ("VERIFY_INTERVAL_MS", "2000".to_owned()),
        ("CLAIM_TIMEOUT_MS", "5000".to_owned()),
        ("LOCK_TIMEOUT_MS", "5000".to_owned()),
        ("STATEMENT_TIMEOUT_MS", "20000".to_owned()),
    ];
    // One of them is a static member: its restarts are no rebalance.
    if index == 0 {
        settings.push(("KAFKA_INSTANCE_ID", "torture-0".to_owned()));
    }
    if let Some(mutant) = mutant {
        settings.push(("FAILPOINTS", format!("{mutant}=return")));
    }
    let settings = settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Ok(Home { dir, http_port, settings })
}

fn migrate(servers: &Servers) -> anyhow::Result<()> {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_audit-consumer"));
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
    let feed = Arc::new(Feed {
        brokers: servers.brokers(),
        topic: TOPIC.to_owned(),
        ledger: Arc::new(Ledger::default()),
        payloads: Payloads::new(options.seed),
        partition_count: AtomicI32::new(PARTITION_COUNT),
        next_index: AtomicU64::new(0),
        acknowledged_count: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        repeated_offset_count: AtomicU64::new(0),
    });
    let homes = (0..DAEMON_COUNT)
        .map(|index| home(servers, index, options.mutant.as_deref()))
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
    let lasts = Duration::from_secs_f64(options.minutes * 60.0);
    let nemesis = Nemesis::new((Arc::clone(servers), Arc::clone(&fleet), Arc::clone(&feed)), lasts)?;
    let lanes = nemesis.run(options);
    while Instant::now() < nemesis.ends_at {
        std::thread::sleep(SAY_INTERVAL.min(nemesis.ends_at - Instant::now()));
        let stored = servers.sql(stored).unwrap_or_else(|_| "?".to_owned());
        say_progress(began_at, &feed, &stored, &nemesis);
    }
    lanes.into_iter().for_each(|lane| drop(lane.join()));
    feed.is_over.store(true, Ordering::SeqCst);
    [&servers.broker_link].into_iter().chain(&servers.database_links).for_each(proxy::Link::calm);
    fleet.disarm();
    let mut outcome = Outcome { transactions: transactions.join().unwrap_or_default(), ..Outcome::default() };
    steady.join().map_err(|_panic| anyhow::anyhow!("the producer panicked"))??;
    eprintln!("torture: the faults are over; waiting until all is stored, relayed and projected");
    let over_at = Instant::now();
    if let Some(missing) = oracle::wait_until_quiet(servers, &fleet, TOPIC, QUIET_PATIENCE) {
        outcome.findings.add("stuck", || format!("{missing}; {}", states(&fleet)));
    }
    outcome.quiet = over_at.elapsed();
    outcome.elapsed = began_at.elapsed();
    outcome.down = servers.downtime.total();
    fleet.end();
    examine(servers, &fleet, &feed, &mut outcome)?;
    outcome.fired = nemesis.fired();
    outcome.lossy_failovers = nemesis.lossy_failover_count.load(Ordering::SeqCst);
    outcome.lost_positions = nemesis.lost_position_count.load(Ordering::SeqCst);
    outcome.points = counted(fleet.crashed());
    outcome.invalid = nemesis.troubles();
    Ok(outcome)
}

/// What the daemons say of themselves.
fn states(fleet: &Fleet) -> String {
    let state = |index| {
        let status = fleet.status(index).unwrap_or_default();
        format!(
            "daemon {index}: notes {}, held {}, spool {}",
            status["notes"], status["held"], status["spool"]
        )
    };
    (0..fleet.count()).map(state).collect::<Vec<_>>().join("; ")
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

/// The oracle.
fn examine(servers: &Servers, fleet: &Fleet, feed: &Feed, outcome: &mut Outcome) -> anyhow::Result<()> {
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
    let rows = Rows::check(servers, (TOPIC, &feed.ledger), index_count, findings)?;
    oracle::check_counters(servers, (TOPIC, &feed.ledger, &rows), findings)?;
    outcome.letters = oracle::letters::check(&servers.brokers(), (&format!("{TOPIC}.dlq"), &rows), findings)?;
    outcome.day_file_lines = oracle::check_day_files(fleet, &rows, findings)?;
    for index in 0..fleet.count() {
        oracle::verify(servers, fleet, index, findings)?;
    }
    (outcome.lost, outcome.doubled) = (rows.lost_count, rows.doubled_count);
    outcome.unacknowledged = rows.unacknowledged_count;
    Ok(())
}
