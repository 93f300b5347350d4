//! Two faults that need an eye on who owns what.

mod group;

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use crate::fleet::Fleet;
use crate::nemesis::{Nemesis, wait_until};
use crate::oracle::Findings;
use crate::producer::{self, Feed};
use crate::random::Random;
use crate::servers::{SMALL_DISK, Servers};
use crate::{GROUP, power, settings, topics};

/// How long Kafka may take to give the partitions of a daemon that left away.
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(15);
/// How long the stopped daemon then has, alone.
const ZOMBIE_LASTS: Duration = Duration::from_millis(1_500);
/// How many records are in a spool only.
const ONLY_COUNT: usize = 200;
const SPOOL_PATIENCE: Duration = Duration::from_secs(15);
const STORE_PATIENCE: Duration = Duration::from_secs(45);

/// A daemon is stopped and made to leave the group; once another one has claimed a partition of its, it goes on while all
/// others are stopped and no heartbeat passes: it takes itself for the owner, and nobody but PostgreSQL can tell it otherwise.
pub(crate) fn wake_a_zombie(nemesis: &Nemesis, random: &mut Random) -> anyhow::Result<bool> {
    let (servers, fleet) = (&nemesis.servers, &nemesis.fleet);
    let zombie = random.index(fleet.count());
    let owned = format!("SELECT count(*) FROM torture.owners WHERE daemon = '{zombie}'");
    let count = || servers.sql(&owned).ok().and_then(|count| count.parse::<u64>().ok());
    let member = group::member(&servers.brokers(), GROUP, &settings::client_id(zombie))?;
    let (Some(before), Some(member)) = (count(), member) else { return Ok(false) };
    if !fleet.signal(zombie, Signal::STOP) {
        return Ok(false);
    }
    // Sooner than its session would end: that it would notice by its own clock.
    let has_left = group::leave(&servers.brokers(), GROUP, &member);
    if let Err(error) = &has_left {
        nemesis.say(&format!("daemon {zombie} can't be made to leave: {error:#}"));
    }
    let is_taken =
        has_left.is_ok() && wait_until(TAKEOVER_PATIENCE, || count().is_some_and(|count| count < before));
    fleet.signal_all(Signal::STOP);
    servers.broker_link.deafen(true);
    fleet.signal(zombie, Signal::CONT);
    std::thread::sleep(ZOMBIE_LASTS);
    fleet.signal_all(Signal::CONT);
    servers.broker_link.deafen(false);
    Ok(is_taken)
}

/// A daemon and a partition of `topic` that it reads.
fn reader(fleet: &Fleet, topic: &str) -> Option<(usize, i32)> {
    for index in 0..fleet.count() {
        // Its disk may be full.
        if index == SMALL_DISK {
            continue;
        }
        let status = fleet.status(index).unwrap_or_default();
        for partition in status["partitions"].as_array().into_iter().flatten() {
            if partition["topic"] == topic {
                return Some((index, i32::try_from(partition["partition"].as_i64()?).ok()?));
            }
        }
    }
    None
}

/// Records that only a spool has: PostgreSQL is away when they come, Kafka deletes them, and then the machine of the spool
/// loses its power. They must be stored when PostgreSQL is back. `None`: it did not come so far.
pub(crate) fn only_copy(
    servers: &Servers,
    fleet: &Fleet,
    feed: &Arc<Feed>,
    findings: &mut Findings,
) -> anyhow::Result<Option<()>> {
    let mut held = None;
    servers.restart_database("immediate", Duration::from_secs(2), || {
        held = hold_only(fleet, feed).ok().flatten();
    })?;
    let Some((partition, start, end)) = held else { return Ok(None) };
    // Another topic may have a duplicate of one of them, which was stored first.
    let stored = format!(
        "SELECT count(*) FROM (SELECT stream_id, source_partition, source_offset FROM audit_events.events \
                               UNION ALL \
                               SELECT stream_id, source_partition, source_offset FROM audit_events.duplicates) AS r \
          WHERE stream_id IN (SELECT stream_id FROM audit_events.streams WHERE topic = '{}') \
            AND source_partition = {partition} AND source_offset >= {start} AND source_offset < {end}",
        feed.topic
    );
    let mut count = String::new();
    let is_stored = wait_until(STORE_PATIENCE, || {
        count = servers.sql(&stored).unwrap_or_default();
        count == ONLY_COUNT.to_string()
    });
    let gaps = servers.sql(&format!(
        "SELECT count(*) FROM audit_events.offset_gaps JOIN audit_events.streams USING (stream_id, group_id) \
          WHERE topic = '{}' AND partition = {partition} AND end_offset > {start}",
        feed.topic
    ))?;
    if gaps != "0" {
        findings.add("spooled_lost", || {
            format!("{} partition {partition} [{start}, {end}): {count} of {ONLY_COUNT} records", feed.topic)
        });
    }
    if is_stored {
        // From now on a failover may lose them, and with them what was drained. Until then the ledger is strict.
        feed.ledger.mark_deleted(partition, end);
    }
    Ok(Some(()))
}

/// The partition and the offsets of records that one spool holds and nothing else.
fn hold_only(fleet: &Fleet, feed: &Arc<Feed>) -> anyhow::Result<Option<(usize, usize, usize)>> {
    let Some((daemon, partition)) = reader(fleet, &feed.topic) else { return Ok(None) };
    let place = usize::try_from(partition)?;
    let len = || feed.ledger.lengths().get(place).copied().unwrap_or(0);
    let start = len();
    producer::send_events(feed, partition, ONLY_COUNT)?;
    let end = len();
    let wanted = i64::try_from(end)?;
    let holds_all = || {
        let status = fleet.status(daemon).unwrap_or_default();
        status["partitions"].as_array().into_iter().flatten().any(|found| {
            let is_it = found["topic"] == feed.topic.as_str() && found["partition"] == partition;
            is_it && found["spooled_to"].as_i64().is_some_and(|to| to >= wanted)
        })
    };
    if !wait_until(SPOOL_PATIENCE, holds_all) {
        return Ok(None);
    }
    topics::delete_records(feed, partition, wanted)?;
    fleet.want(daemon, false);
    fleet.kill(daemon);
    wait_until(SPOOL_PATIENCE, || !fleet.is_running(daemon));
    let cut = power::cut(&fleet.homes[daemon].dir);
    fleet.want(daemon, true);
    cut?;
    Ok(Some((place, start, end)))
}
