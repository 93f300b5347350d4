//! Lets faults happen: one thread for each lane, by the seed.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::fault::{Deck, Fault, Lane};
use crate::fleet::{CrashPoint, Fleet};
use crate::options::Options;
use crate::oracle::Findings;
use crate::producer::Feed;
use crate::proxy::{Ending, Link};
use crate::random::Random;
use crate::servers::{SMALL_DISK, Servers};
use crate::side::Side;
use crate::spool_files;
use crate::{takeover, topics};

/// Crash points that any load passes.
pub(crate) const POINTS: &[&str] = &[
    "commit_before_begin",
    "commit_after_cas",
    "commit_in_copy",
    "commit_before_commit",
    "commit_after_commit",
    "merge_after_insert",
    "claim_before_commit",
    "claim_after_commit",
    "release_before",
    "release_after",
    "relay_after_read",
    "relay_after_send",
    "relay_after_offsets",
    "relay_before_commit",
    "relay_after_commit",
    "relay_before_read_back",
    "relay_before_mark",
    "relay_after_mark",
    "project_before_intent",
    "project_after_intent",
    "project_in_write",
    "project_after_write",
    "project_after_sync",
    "project_before_confirm",
    "project_after_confirm",
];
/// ... and those that an outage passes.
pub(crate) const OUTAGE_POINTS: &[&str] =
    &["spool_before_sync", "spool_after_sync", "drain_before_move", "drain_after_move", "drain_fed"];

/// A short run leaves so much of its time, in percent, for each kind to come once.
const FIRST_ROUND_PERCENT: u64 = 60;
const PAUSE_LEAST_MS: u64 = 500;
/// How long to wait for an answer that is to be swallowed.
const SWALLOW_PATIENCE: Duration = Duration::from_secs(10);
/// How long a relay that was lied to lives on.
const LIE_LASTS: Duration = Duration::from_millis(150);
/// How long a daemon may take to spool, in an outage.
const SPOOL_PATIENCE: Duration = Duration::from_secs(8);
/// ... and to fill a small disk.
const FULL_PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const PARTITION_MAX_COUNT: i32 = 12;

/// What lets faults happen.
#[derive(Debug)]
pub(crate) struct Nemesis {
    pub(crate) servers: Arc<Servers>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) side: Arc<Side>,
    seed: u64,
    pub(crate) ends_at: Instant,
    fired: Mutex<BTreeMap<Fault, u64>>,
    log: Mutex<std::fs::File>,
    began_at: Instant,
    /// Failovers that took positions back, and by how many offsets in all.
    pub(crate) lossy_failover_count: AtomicU64,
    pub(crate) lost_position_count: AtomicI64,
    /// What the rig itself could not do.
    troubles: Mutex<Vec<String>>,
    /// What faults that look for themselves found.
    pub(crate) findings: Mutex<Findings>,
}

impl Nemesis {
    pub(crate) fn new(
        (servers, fleet): (Arc<Servers>, Arc<Fleet>),
        (feed, side): (Arc<Feed>, Arc<Side>),
        options: &Options,
    ) -> anyhow::Result<Arc<Self>> {
        let log = std::fs::File::create(servers.dir.join("faults.log"))?;
        let began_at = Instant::now();
        let lasts = Duration::from_secs_f64(options.minutes * 60.0);
        Ok(Arc::new(Self {
            servers,
            fleet,
            feed,
            side,
            seed: options.seed,
            ends_at: began_at + lasts,
            fired: Mutex::default(),
            log: Mutex::new(log),
            began_at,
            lossy_failover_count: AtomicU64::new(0),
            lost_position_count: AtomicI64::new(0),
            troubles: Mutex::default(),
            findings: Mutex::default(),
        }))
    }

    /// Starts the lanes; they end when the time is over and each chosen fault has happened, or after twice the time.
    pub(crate) fn run(self: &Arc<Self>, options: &Options) -> Vec<std::thread::JoinHandle<()>> {
        let lanes = Lane::ALL.into_iter().filter_map(|lane| {
            let deck = Deck::new(
                lane,
                &options.selection,
                Random::new(options.seed, &format!("deck {}", lane.name())),
            )?;
            let this = Arc::clone(self);
            let random = Random::new(options.seed, lane.name());
            Some(std::thread::spawn(move || this.run_lane(lane, deck, random)))
        });
        lanes.collect()
    }

    fn run_lane(&self, lane: Lane, mut deck: Deck, mut random: Random) {
        let lasts_ms = u64::try_from((self.ends_at - self.began_at).as_millis()).unwrap_or(u64::MAX);
        let kind_count = u64::try_from(deck.kind_count()).unwrap_or(1);
        let share_ms = lasts_ms * FIRST_ROUND_PERCENT / 100 / kind_count;
        let pause_most_ms = lane.pause_most_ms().min(share_ms).max(PAUSE_LEAST_MS + 1);
        loop {
            let due_at = Instant::now() + random.millis(PAUSE_LEAST_MS..pause_most_ms);
            // What has not happened gets as much time again.
            let is_over = due_at >= self.ends_at;
            let is_late = due_at >= self.ends_at + (self.ends_at - self.began_at);
            if is_late || is_over && !deck.only_missing(&self.fired()) {
                return;
            }
            std::thread::sleep(due_at - Instant::now());
            let Some(fault) = deck.next() else { return };
            self.say(&format!("{} begins", fault.name()));
            match self.inject(fault, &mut random) {
                Ok(true) => {
                    *self.lock().entry(fault).or_default() += 1;
                    self.say(&format!("{} done", fault.name()));
                }
                Ok(false) => self.say(&format!("{} did not happen", fault.name())),
                Err(error) => {
                    self.say(&format!("{}: {error:#}", fault.name()));
                    let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
                    troubles.push(format!("{}: {error:#}", fault.name()));
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Fault, u64>> {
        self.fired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line of the log of faults.
    pub(crate) fn say(&self, text: &str) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        // For people; the run does not depend on it.
        drop(writeln!(log, "{:8.2} {text}", self.began_at.elapsed().as_secs_f64()));
    }

    /// How often each fault happened.
    pub(crate) fn fired(&self) -> BTreeMap<Fault, u64> {
        let mut fired = self.lock().clone();
        let crash_count = u64::try_from(self.fleet.crashed().len()).unwrap_or(0);
        fired.remove(&Fault::CrashPoint);
        if crash_count > 0 {
            fired.insert(Fault::CrashPoint, crash_count);
        }
        fired
    }

    pub(crate) fn troubles(&self) -> Vec<String> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// False: it did not happen.
    fn inject(&self, fault: Fault, random: &mut Random) -> anyhow::Result<bool> {
        let servers = &self.servers;
        let database = &servers.database_links[random.index(servers.database_links.len())];
        let broker = &servers.broker_link;
        match fault {
            Fault::Kill => {
                let daemon = self.unarmed(random).unwrap_or_else(|| random.index(self.fleet.count()));
                Ok(self.fleet.kill(daemon))
            }
            Fault::Stop => Ok(self.stop_daemon(random)),
            Fault::CrashPoint => Ok(self.crash(POINTS, random)),
            Fault::Storm => Ok(self.storm(random)),
            Fault::Zombie => takeover::wake_a_zombie(self, random),
            Fault::OnlyCopy => {
                let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
                let copied = takeover::only_copy(servers, &self.fleet, &self.side.spooled, &mut findings)?;
                Ok(copied.is_some())
            }
            Fault::ClockJump => self.fleet.jump(random),
            Fault::DatabaseRestart => {
                servers.restart_database("immediate", Duration::ZERO, || {}).map(|()| true)
            }
            Fault::DatabaseOutage | Fault::BitFlip | Fault::TornTail | Fault::DiskFull => {
                self.outage(fault, random)
            }
            Fault::Failover => self.fail_over(random),
            Fault::BrokerRestart => servers.restart_broker(false).map(|()| true),
            Fault::BrokerKill => servers.restart_broker(true).map(|()| true),
            Fault::DeleteRecords => self.side.delete_records(servers, &self.fleet),
            Fault::Recreate => self.side.recreate(servers, &self.fleet, self.seed),
            Fault::Growth => topics::grow(&self.feed, PARTITION_MAX_COUNT),
            Fault::CutDatabase => Ok(end_some(database, Ending::Cut, random)),
            Fault::CutBroker => Ok(end_some(broker, Ending::Cut, random)),
            Fault::ResetDatabase => Ok(end_some(database, Ending::Reset, random)),
            Fault::ResetBroker => Ok(end_some(broker, Ending::Reset, random)),
            Fault::HalfOpenDatabase => {
                Ok(end_some(database, Ending::HalfOpen(random.millis(1_000..20_000)), random))
            }
            Fault::HalfOpenBroker => {
                Ok(end_some(broker, Ending::HalfOpen(random.millis(1_000..12_000)), random))
            }
            Fault::DelayDatabase => Ok(delay(database, random)),
            Fault::DelayBroker => Ok(delay(broker, random)),
            Fault::SwallowCommit => Ok(swallow(database)),
            Fault::SwallowEndTxn => Ok(swallow(broker)),
            Fault::LieEndTxn => Ok(self.lie(broker)),
        }
    }

    /// The relay is told that a transaction was committed that still is open, and dies: the next relay aborts it.
    fn lie(&self, broker: &Link) -> bool {
        let leads = |index: &usize| {
            self.fleet.status(*index).is_some_and(|status| status["relay"]["role"] == "leader")
        };
        let Some(leader) = (0..self.fleet.count()).find(leads) else { return false };
        let moved = counts_on(|| broker.lied_count());
        broker.lie(true);
        let is_told = wait_until(SWALLOW_PATIENCE, moved);
        std::thread::sleep(LIE_LASTS);
        let is_killed = self.fleet.kill(leader);
        // What it asked for before it died.
        std::thread::sleep(LIE_LASTS);
        broker.lie(false);
        is_told && is_killed
    }

    /// For shorter or longer than Kafka's session.
    fn stop_daemon(&self, random: &mut Random) -> bool {
        let daemon = random.index(self.fleet.count());
        let lasts = random.millis(500..9_000);
        let is_stopped = self.fleet.signal(daemon, Signal::STOP);
        std::thread::sleep(lasts);
        self.fleet.signal(daemon, Signal::CONT) && is_stopped
    }

    /// Arms a daemon that is not armed, and kills it so that its next process is the armed one. An outage, which is rare,
    /// takes one that is armed otherwise, too, and what it arms stays armed until it dies there: one at a time.
    fn crash(&self, points: &[&'static str], random: &mut Random) -> bool {
        let any = random.index(self.fleet.count());
        let is_outage = points == OUTAGE_POINTS;
        let is_waiting = is_outage && (0..self.fleet.count()).any(|index| self.fleet.stays_armed(index));
        let Some(daemon) = self.unarmed(random).or(is_outage.then_some(any)).filter(|_| !is_waiting) else {
            return self.fleet.kill(any);
        };
        // What has not happened yet comes first.
        let crashed = self.fleet.crashed();
        let mut points = points.to_vec();
        random.shuffle(&mut points);
        points.sort_by_key(|point| crashed.iter().filter(|name| *name == point).count());
        let name = points[random.index(3.min(points.len()))];
        let hit = match name {
            name if name.starts_with("commit") => random.within(1..30),
            _ if is_outage => 1,
            _ => random.within(1..3),
        };
        self.say(&format!("daemon {daemon} is armed with {name} at hit {hit}"));
        self.fleet.arm(daemon, CrashPoint { name, hit, stays: is_outage });
        self.fleet.kill(daemon)
    }

    /// A daemon that is not to die at a crash point, by chance.
    fn unarmed(&self, random: &mut Random) -> Option<usize> {
        let mut order: Vec<usize> = (0..self.fleet.count()).collect();
        random.shuffle(&mut order);
        order.into_iter().find(|daemon| !self.fleet.is_armed(*daemon))
    }

    fn storm(&self, random: &mut Random) -> bool {
        let mut count = 0;
        for _ in 0..3 {
            count += u32::from(self.fleet.terminate(random.index(self.fleet.count())));
            std::thread::sleep(random.millis(300..2_000));
        }
        count > 0
    }

    /// PostgreSQL is away, and what else goes wrong meanwhile.
    fn outage(&self, fault: Fault, random: &mut Random) -> anyhow::Result<bool> {
        let daemon = random.index(self.fleet.count());
        if fault == Fault::DatabaseOutage {
            self.crash(OUTAGE_POINTS, random);
        }
        let (mut happened, away) = (true, random.millis(3_000..9_000));
        let mut inner = random.clone();
        self.servers.restart_database("immediate", away, || {
            happened = match fault {
                Fault::BitFlip | Fault::TornTail => self.damage(daemon, fault, &mut inner),
                Fault::DiskFull => self.wait_for_full(),
                _ => true,
            };
        })?;
        random.next();
        Ok(happened)
    }

    /// Kills a daemon that spools, changes a file of its spool, and lets it come back.
    fn damage(&self, daemon: usize, fault: Fault, random: &mut Random) -> bool {
        let spool = self.fleet.homes[daemon].dir.join("spool");
        let mut is_damaged = false;
        wait_until(SPOOL_PATIENCE, || spool_files::held_len_bytes(&spool) > 20_000);
        self.fleet.want(daemon, false);
        self.fleet.kill(daemon);
        if wait_until(SPOOL_PATIENCE, || !self.fleet.is_running(daemon)) {
            let damaged = spool_files::damage(&spool, fault == Fault::TornTail, random);
            self.say(&format!("daemon {daemon}: {damaged:?}"));
            is_damaged = damaged.is_some();
        }
        self.fleet.want(daemon, true);
        is_damaged
    }

    /// The spool of one daemon is on a small disk.
    fn wait_for_full(&self) -> bool {
        wait_until(FULL_PATIENCE, || {
            self.fleet.status(SMALL_DISK).is_some_and(|status| !status["spool"]["trouble"].is_null())
        })
    }

    fn fail_over(&self, random: &mut Random) -> anyhow::Result<bool> {
        let failover = self.servers.fail_over(random.millis(300..3_000))?;
        self.say(&format!("failover: positions went back by {}", failover.lost_count));
        if failover.lost_count > 0 {
            self.lossy_failover_count.fetch_add(1, Ordering::SeqCst);
            self.lost_position_count.fetch_add(failover.lost_count, Ordering::SeqCst);
        }
        Ok(true)
    }
}

/// Ends about half of a link's connections, at least the first.
fn end_some(link: &Link, ending: Ending, random: &mut Random) -> bool {
    let first = random.index(2);
    link.end(ending, |index| index % 2 == first || random.percent(20)) > 0
}

/// Whether an answer was swallowed; when none came, none that comes later is.
fn swallow(link: &Link) -> bool {
    let moved = counts_on(|| link.swallowed_count());
    link.swallow(true);
    let is_swallowed = wait_until(SWALLOW_PATIENCE, moved);
    link.swallow(false);
    is_swallowed
}

fn delay(link: &Link, random: &mut Random) -> bool {
    link.delay(random.millis(5..120));
    std::thread::sleep(random.millis(1_000..6_000));
    link.delay(Duration::ZERO);
    true
}

/// Whether a counter has moved since.
fn counts_on(count: impl Fn() -> u64) -> impl FnMut() -> bool {
    let before = count();
    move || count() > before
}

/// Waits until `condition` holds; false: it did not in time.
pub(crate) fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
