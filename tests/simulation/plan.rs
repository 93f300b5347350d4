//! What a seed says: how large the world is, how it is set up, and what fails when.

use std::time::Duration;

use crate::rng::Rng;

/// A guard that is taken out, to see whether the oracle turns red.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The position is moved wherever it stands.
    NoCompareAndSet,
    /// A claim leaves the epoch as it is.
    NoEpoch,
    /// What Kafka has deleted is passed over without a gap.
    GapSkipped,
    /// A sync of the disk does nothing.
    NoSync,
    /// Drained segments go at once.
    DrainedNotKept,
    /// A partition is read from Kafka while the spool holds its position.
    LiveBeforeDrain,
    /// A gap is declared whatever spools hold.
    GapOverSpools,
    /// Each telling of what a spool holds replaces the one before.
    Untold,
}

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process dies, and comes back after this.
    Kill(u8, Duration),
    /// Its machine loses its power: what was not synced is gone, or torn.
    PowerOff(u8, Duration),
    /// SIGTERM, and a start after this.
    Terminate(u8, Duration),
    /// It stands still for this long.
    Freeze(u8, Duration),
    /// It stands still, cut off from Kafka, until another has claimed what it had, or for this long.
    Zombie(u8, Duration),
    /// PostgreSQL refuses connections.
    DatabaseDown(Duration),
    /// PostgreSQL does not answer.
    DatabaseSilent(Duration),
    /// PostgreSQL takes no writes: a standby.
    DatabaseReadOnly(Duration),
    /// A right is missing.
    DatabaseMisconfigured(Duration),
    /// All sessions end.
    DatabaseRestart,
    /// The primary is lost with its last commits: so many of them.
    Failover(u64),
    /// A process does not reach Kafka.
    KafkaAway(u8, Duration),
    /// Nobody does.
    KafkaDown(Duration),
    /// Partitions move.
    Rebalance,
    /// Kafka deletes this share of a partition, in percent.
    Retention(u8, u64),
    /// Calls of a process's disk fail for this long, from so many calls on.
    DiskFails(u8, u64, Duration),
    /// A process's disk is full for this long.
    DiskFull(u8, Duration),
}

/// How often single questions to PostgreSQL go wrong, of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rates {
    /// The connection breaks before anything was done.
    pub(crate) lost_question: u64,
    /// It breaks after it was done.
    pub(crate) lost_answer: u64,
    /// Nobody answers.
    pub(crate) silence: u64,
    /// COMMIT is sent, and the connection breaks.
    pub(crate) torn_commit: u64,
    /// It takes up to some seconds.
    pub(crate) slow: u64,
    /// A lock or a deadlock.
    pub(crate) contended: u64,
    /// `statement_timeout`.
    pub(crate) timeout: u64,
    /// Kafka says nothing of a partition.
    pub(crate) undescribed: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) process_count: usize,
    pub(crate) partition_count: usize,
    pub(crate) lane_count: usize,
    pub(crate) batch_record_count: usize,
    pub(crate) linger: Duration,
    pub(crate) statement_timeout: Duration,
    pub(crate) lock_timeout: Duration,
    pub(crate) spool_after: Duration,
    pub(crate) gap_wait: Duration,
    pub(crate) segment_len_bytes: u64,
    /// Which processes have a spool.
    pub(crate) has_spool: Vec<bool>,
    pub(crate) rates: Rates,
    /// In order of time.
    pub(crate) faults: Vec<(Duration, Fault)>,
    /// When how many records come to which partition, in order of time.
    pub(crate) produced: Vec<(Duration, usize, u64)>,
    /// When everything is well again.
    pub(crate) window: Duration,
    pub(crate) mutant: Option<Mutant>,
}

/// The kinds of faults, for [`fault`].
const KIND_COUNT: u64 = 16;

impl Plan {
    pub(crate) fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut rng = Rng::new(seed.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ 0x51);
        let secs = Duration::from_secs;
        let process_count = rng.pick(&[1, 2, 2, 2, 3]);
        let partition_count = rng.pick(&[1, 1, 2, 3]);
        let window = secs(rng.between(30, 150));
        let mut plan = Self {
            seed,
            process_count,
            partition_count,
            lane_count: rng.pick(&[1, 1, 2]),
            batch_record_count: rng.pick(&[1, 4, 16, 64]),
            linger: Duration::from_millis(rng.pick(&[1, 20, 200])),
            statement_timeout: secs(rng.pick(&[5, 10, 30])),
            lock_timeout: secs(rng.pick(&[2, 5])),
            spool_after: secs(rng.pick(&[0, 3, 8])),
            gap_wait: secs(rng.pick(&[60, 90])),
            segment_len_bytes: rng.pick(&[1000, 4000, 16000]),
            has_spool: (0..process_count).map(|_| rng.chance(850)).collect(),
            rates: Rates::default(),
            faults: Vec::new(),
            produced: produced(partition_count, window, &mut rng),
            window,
            mutant,
        };
        plan.rates = rates(&mut rng);
        plan.faults = faults(&plan, &mut rng);
        if rng.chance(300) {
            only_copies(&mut plan, &mut rng);
        }
        plan.faults.sort_by_key(|(at, _)| *at);
        plan.produced.sort_by_key(|(at, ..)| *at);
        plan
    }

    pub(crate) fn is_mutant(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

fn produced(partition_count: usize, window: Duration, rng: &mut Rng) -> Vec<(Duration, usize, u64)> {
    let mut produced: Vec<(Duration, usize, u64)> = (0..rng.between(3, 14))
        .map(|_| {
            let at = Duration::from_millis(rng.below(window.as_millis() as u64));
            (at, rng.below(partition_count as u64) as usize, rng.between(1, 12))
        })
        .collect();
    produced.extend((0..partition_count).map(|partition| (Duration::ZERO, partition, rng.between(2, 10))));
    produced.sort_by_key(|(at, ..)| *at);
    produced
}

fn rates(rng: &mut Rng) -> Rates {
    let mut rate = |most: u64| if rng.chance(250) { rng.between(1, most) } else { 0 };
    Rates {
        lost_question: rate(60),
        lost_answer: rate(60),
        silence: rate(20),
        torn_commit: rate(200),
        slow: rate(60),
        contended: rate(60),
        timeout: rate(60),
        undescribed: rate(100),
    }
}

/// Some kinds of faults, each as often as it comes: what is always there hides what is rare.
fn faults(plan: &Plan, rng: &mut Rng) -> Vec<(Duration, Fault)> {
    let mut kinds: Vec<u64> = (0..KIND_COUNT).filter(|_| rng.chance(300)).collect();
    if kinds.is_empty() {
        kinds.push(rng.below(KIND_COUNT));
    }
    let mut faults: Vec<(Duration, Fault)> = (0..rng.between(1, 9))
        .map(|_| {
            let at = Duration::from_millis(rng.below(plan.window.as_millis() as u64));
            (at, fault(rng.pick(&kinds), plan, rng))
        })
        .collect();
    if rng.chance(100) {
        let at = Duration::from_millis(rng.below(plan.window.as_millis() as u64));
        let process = rng.below(plan.process_count as u64) as u8;
        faults.push((at, Fault::Zombie(process, Duration::from_secs(40))));
    }
    faults
}

/// An outage in which records come, and are deleted by Kafka while only spools hold them; then perhaps what has them
/// goes away, or what was drained is lost again.
fn only_copies(plan: &mut Plan, rng: &mut Rng) {
    let mut now = Duration::from_secs(rng.between(5, 15));
    let outage = Duration::from_secs(rng.between(12, 40));
    let fault = if rng.chance(700) { Fault::DatabaseDown(outage) } else { Fault::DatabaseSilent(outage) };
    plan.faults.push((now, fault));
    for partition in 0..plan.partition_count {
        let at = now + Duration::from_millis(rng.below(outage.as_millis() as u64));
        plan.produced.push((at, partition, rng.between(3, 12)));
    }
    now += outage - Duration::from_secs(rng.between(0, 2));
    for partition in 0..plan.partition_count as u8 {
        plan.faults.push((now, Fault::Retention(partition, rng.pick(&[100, 100, 70]))));
    }
    let process = rng.below(plan.process_count as u64) as u8;
    now += Duration::from_millis(rng.below(20_000));
    match rng.below(4) {
        0 => plan.faults.push((now, Fault::Kill(process, Duration::from_secs(rng.between(60, 250))))),
        1 => plan.faults.push((now, Fault::PowerOff(process, Duration::from_secs(rng.between(1, 250))))),
        _ => plan.faults.push((now, Fault::Rebalance)),
    }
    for _ in 0..rng.below(3) {
        now += Duration::from_millis(rng.between(100, 60_000));
        plan.faults.push((now, Fault::Failover(rng.below(12))));
    }
    plan.window = plan.window.max(now + Duration::from_secs(1));
}

fn fault(kind: u64, plan: &Plan, rng: &mut Rng) -> Fault {
    let process = rng.below(plan.process_count as u64) as u8;
    let mut last = |most: u64| {
        let span = if rng.chance(500) { 1500 } else { most * 1000 };
        Duration::from_millis(rng.between(50, span))
    };
    match kind {
        0 => Fault::Kill(process, last(40)),
        1 => Fault::PowerOff(process, last(40)),
        2 => Fault::Terminate(process, last(20)),
        3 => Fault::Freeze(process, last(40)),
        4 => Fault::DatabaseDown(last(60)),
        5 => Fault::DatabaseSilent(last(60)),
        6 => Fault::DatabaseReadOnly(last(60)),
        7 => Fault::DatabaseMisconfigured(last(20)),
        8 => Fault::DatabaseRestart,
        9 => Fault::Failover(rng.below(12)),
        10 => Fault::KafkaAway(process, last(40)),
        11 => Fault::KafkaDown(last(20)),
        12 => Fault::Rebalance,
        13 => Fault::Retention(rng.below(plan.partition_count as u64) as u8, rng.between(20, 100)),
        14 => {
            let lasts = last(20);
            Fault::DiskFails(process, rng.below(30), lasts)
        }
        _ => Fault::DiskFull(process, last(20)),
    }
}
