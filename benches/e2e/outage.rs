//! PostgreSQL is away, and comes back: to the spool, from there to PostgreSQL, and the live way, all by one clock.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;

use crate::Options;
use crate::bed::{Bed, Usage};
use crate::daemon::{DATABASE, Daemon, Figures, Watch, wait_for};
use crate::load::{PARTITION_COUNT, Shape, with_topic};
use crate::rounds::Rounds;

/// Records from the first sight of some to that of all.
#[derive(Debug, Default)]
struct Stretch {
    first: Option<(Instant, u64, Usage)>,
    last: Option<(Instant, u64, Usage)>,
}

impl Stretch {
    fn saw(&mut self, count: u64, used: Usage) -> u64 {
        let now = (Instant::now(), count, used);
        if count > 0 {
            self.first.get_or_insert(now);
            self.last = Some(now);
        }
        count
    }

    fn figures(&self, peak_mib: f64) -> anyhow::Result<Figures> {
        let (Some((from, before, used_before)), Some((to, count, used))) = (self.first, self.last) else {
            anyhow::bail!("nothing was seen");
        };
        anyhow::ensure!(count > before, "all was there at the first look: take more --records");
        let seconds = to.duration_since(from).as_secs_f64();
        Ok(Figures { peak_mib, ..Figures::new(count - before, seconds, used.since(used_before)) })
    }
}

pub(crate) fn measure(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let record_count = options.records / 2;
    let rounds = with_topic(bed, "outage", (Shape::of(600), record_count), |topic| {
        let mut rounds = Rounds::default();
        for _ in 0..options.rounds {
            let (append, drain) = there_and_back(bed, topic, record_count)?;
            rounds.add("live", live(bed, topic, record_count)?);
            rounds.add("append", append);
            rounds.add("drain", drain);
        }
        Ok(rounds)
    })?;
    Ok(rounds.report(&format!("{record_count} records of 600 bytes: to the spool, and back"), &["live"]))
}

fn live(bed: &Bed, topic: &str, record_count: u64) -> anyhow::Result<Figures> {
    bed.fresh_database(DATABASE)?;
    start_at_zero(bed, topic)?;
    let mut stretch = Stretch::default();
    let mut watch = Watch::open(&bed.admin_url(DATABASE))?;
    let mut daemon = Daemon::start(bed, topic, &[])?;
    wait_for(&mut daemon, record_count, |daemon| Ok(stretch.saw(watch.stored()?.0, bed.cpu(daemon.id())?)))?;
    let figures = stretch.figures(daemon.peak_mib()?);
    daemon.stop()?;
    figures
}

fn there_and_back(bed: &Bed, topic: &str, record_count: u64) -> anyhow::Result<(Figures, Figures)> {
    bed.fresh_database(DATABASE)?;
    start_at_zero(bed, topic)?;
    let spool = bed.dir.join("spool");
    if spool.try_exists()? {
        std::fs::remove_dir_all(&spool)?;
    }
    bed.stack(&["stop", "postgres"])?;
    let spool_dir = spool.display().to_string();
    let settings =
        [("SPOOL_DIR", spool_dir.as_str()), ("SPOOL_AFTER_MS", "1000"), ("SPOOL_MIN_FREE_BYTES", "1MiB")];
    let mut append = Stretch::default();
    let spooled = Daemon::start(bed, topic, &settings).and_then(|mut daemon| {
        wait_for(&mut daemon, record_count, |daemon| {
            let count = Daemon::metric("audit_consumer_spooled_total") as u64;
            Ok(append.saw(count, bed.cpu(daemon.id())?))
        })?;
        Ok(daemon)
    });
    bed.stack(&["start", "postgres"])?;
    let mut daemon = spooled?;
    let append = append.figures(daemon.peak_mib()?)?;
    let mut watch = Watch::open(&bed.admin_url(DATABASE))?;
    let mut drain = Stretch::default();
    wait_for(&mut daemon, record_count, |daemon| Ok(drain.saw(watch.stored()?.0, bed.cpu(daemon.id())?)))?;
    let drain = drain.figures(daemon.peak_mib()?)?;
    daemon.stop()?;
    std::fs::remove_dir_all(&spool)?;
    Ok((append, drain))
}

/// Without PostgreSQL a daemon begins where the group's offset in Kafka is.
fn start_at_zero(bed: &Bed, topic: &str) -> anyhow::Result<()> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &bed.brokers).set("group.id", topic).create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITION_COUNT {
        list.add_partition_offset(topic, partition, Offset::Offset(0))?;
    }
    // A group's last member may not be gone yet.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match consumer.commit(&list, CommitMode::Sync) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
