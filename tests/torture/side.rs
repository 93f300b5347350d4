//! Topics beside the main one, for faults that are meant to lose records in Kafka: of one records are deleted before they
//! are read, of one when only a spool has them, and one is created again. So the main topic's account stays strict.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::bail;
use rustix::process::Signal;

use crate::fleet::Fleet;
use crate::ledger::Ledger;
use crate::nemesis::wait_until;
use crate::payload::Payloads;
use crate::producer::{self, Feed};
use crate::servers::Servers;
use crate::topics;

pub(crate) const DELETED_TOPIC: &str = "torture.deleted";
pub(crate) const SPOOLED_TOPIC: &str = "torture.spooled";
const SPOOLED_PARTITION_COUNT: i32 = 6;
pub(crate) const AGAIN_TOPIC: &str = "torture.again";

/// How many records one of these faults sends, and how many of them are deleted.
const RECORD_COUNT: usize = 100;
const DELETED_COUNT: usize = 60;
/// Longer than a fetch waits at the broker (`fetch.wait.max.ms`), so that none is under way.
const FETCH_PATIENCE: Duration = Duration::from_millis(1_000);
/// How long the daemons may take to declare a gap, or to go on with an adopted topic.
const PATIENCE: Duration = Duration::from_secs(90);

/// The side topics.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) deleted: Arc<Feed>,
    pub(crate) spooled: Arc<Feed>,
    /// The topic that is created again: one feed for each time, the latest last.
    again: Mutex<Vec<Arc<Feed>>>,
}

/// A feed of a topic with its own ledger.
pub(crate) fn feed(
    brokers: &str,
    topic: &str,
    partition_count: i32,
    indices: &Arc<AtomicU64>,
    seed: u64,
) -> Arc<Feed> {
    Arc::new(Feed {
        brokers: brokers.to_owned(),
        topic: topic.to_owned(),
        ledger: Arc::new(Ledger::default()),
        payloads: Payloads::new(seed),
        partition_count: AtomicI32::new(partition_count),
        next_index: Arc::clone(indices),
        acknowledged_count: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        repeated_offset_count: AtomicU64::new(0),
    })
}

impl Side {
    /// Makes the topics; they share the main feed's events, each of which is in one topic only.
    pub(crate) fn new(main: &Feed, seed: u64) -> anyhow::Result<Self> {
        let side = |topic, partition_count| {
            topics::create(&main.brokers, topic, partition_count)?;
            anyhow::Ok(feed(&main.brokers, topic, partition_count, &main.next_index, seed))
        };
        Ok(Self {
            deleted: side(DELETED_TOPIC, 1)?,
            spooled: side(SPOOLED_TOPIC, SPOOLED_PARTITION_COUNT)?,
            again: Mutex::new(vec![side(AGAIN_TOPIC, 1)?]),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Feed>>> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The incarnations of the topic that is created again.
    pub(crate) fn incarnations(&self) -> Vec<Arc<Feed>> {
        self.lock().clone()
    }

    /// While no daemon reads, records come and most of them are deleted. True: a gap was declared.
    pub(crate) fn delete_records(&self, servers: &Servers, fleet: &Fleet) -> anyhow::Result<bool> {
        let gaps = || servers.sql("SELECT count(*) FROM audit_events.offset_gaps").unwrap_or_default();
        let before = gaps();
        fleet.signal_all(Signal::STOP);
        std::thread::sleep(FETCH_PATIENCE);
        let start = self.deleted.ledger.lengths().first().copied().unwrap_or(0);
        let sent = producer::send_events(&self.deleted, 0, RECORD_COUNT);
        let end = start + DELETED_COUNT;
        let deleted = sent.and_then(|()| topics::delete_records(&self.deleted, 0, i64::try_from(end)?));
        fleet.signal_all(Signal::CONT);
        deleted?;
        // Those before, too: a failover may lose them, and Kafka has them no more.
        self.deleted.ledger.mark_deleted(0, end);
        Ok(wait_until(PATIENCE, || {
            let now = gaps();
            !now.is_empty() && now != before
        }))
    }

    /// The topic is deleted and created again, with other records; then an operator adopts it.
    pub(crate) fn recreate(&self, servers: &Servers, fleet: &Fleet, seed: u64) -> anyhow::Result<bool> {
        let Some(old) = self.lock().last().cloned() else { bail!("no incarnation") };
        producer::send_events(&old, 0, RECORD_COUNT)?;
        // What was not read by then is gone; what was may be lost by a failover.
        old.ledger.mark_deleted(0, usize::MAX);
        topics::recreate(&old.brokers, AGAIN_TOPIC)?;
        let new = feed(&old.brokers, AGAIN_TOPIC, 1, &old.next_index, seed);
        self.lock().push(Arc::clone(&new));
        producer::send_events(&new, 0, RECORD_COUNT)?;
        let streams = format!("SELECT count(*) FROM audit_events.streams WHERE topic = '{AGAIN_TOPIC}'");
        let wanted = self.lock().len();
        Ok(wait_until(PATIENCE, || {
            adopt_where_held(servers, fleet);
            servers.sql(&streams).is_ok_and(|count| count.parse().is_ok_and(|count: usize| count >= wanted))
        }))
    }
}

/// What an operator does when a daemon holds the topic because it was created again. An asynchronous failover may lose
/// an adoption, so it may be asked for again.
pub(crate) fn adopt_where_held(servers: &Servers, fleet: &Fleet) {
    let is_held = |index| {
        let status = fleet.status(index).unwrap_or_default();
        let held = status["held"].as_array().cloned().unwrap_or_default();
        held.iter().any(|hold| hold["code"] == "topic_recreated")
    };
    if !(0..fleet.count()).any(is_held) {
        return;
    }
    let mut command = Command::new(servers.binary());
    command.args([
        "offsets",
        "adopt",
        "--topic",
        AGAIN_TOPIC,
        "--reason",
        "the torture rig",
        "--actor",
        "rig",
    ]);
    command.env_clear().envs(fleet.homes[0].settings.iter().map(|(key, value)| (key, value)));
    command.env("DATABASE_URL", servers.url()).env("KAFKA_BROKERS", servers.brokers()).env("FAILPOINTS", "");
    // Whether it went well shows in what the daemons hold then.
    drop(command.output());
}
