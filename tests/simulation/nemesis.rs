//! Does what the plan says, then makes everything well again and waits for the goal.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::database::ServerMode;
use crate::disk::{Crash, Plan as DiskPlan, SimFault};
use crate::fleet::Fleet;
use crate::oracle;
use crate::plan::{Fault, Rates};
use crate::trace::Who;
use crate::world::{World, lock};

/// How often the group's coordinator, and we, look.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the quiet time may last: longer than every wait in the program, one after the other.
const QUIET_MAX: Duration = Duration::from_secs(2400);
/// How long it lasts at least behind the goal: a look at what is spooled.
const QUIET_AFTER_GOAL: Duration = Duration::from_secs(12);

/// What ends by itself.
#[derive(Debug, Clone, Copy)]
enum Heal {
    Database,
    Kafka(u8),
    Disk(u8),
}

pub(crate) struct Nemesis {
    world: Arc<World>,
    fleet: Fleet,
    heals: Vec<(Instant, Heal)>,
}

/// Notes who of the group lives.
async fn coordinate(world: Arc<World>) {
    loop {
        sleep(LOOK_INTERVAL).await;
        let living: Vec<u8> = {
            let machines = lock(&world.machines);
            let well = machines.iter().zip(0u8..).filter(|(machine, _)| machine.well_since.is_some());
            well.map(|(_, index)| index).collect()
        };
        if lock(&world.kafka).heartbeats(&living, Instant::now()) {
            world.note(Who::WORLD, "expelled", &[]);
            world.rebalance();
        }
    }
}

impl Nemesis {
    pub(crate) fn new(world: &Arc<World>, fleet: Fleet) -> Self {
        Self { world: Arc::clone(world), fleet, heals: Vec::new() }
    }

    /// The whole run.
    pub(crate) async fn run(mut self) {
        let coordinator = tokio::spawn(coordinate(Arc::clone(&self.world)));
        self.storm().await;
        self.heal_all();
        self.calm().await;
        coordinator.abort();
    }

    async fn storm(&mut self) {
        let world = Arc::clone(&self.world);
        let begun_at = Instant::now();
        let mut faults = world.plan.faults.iter().peekable();
        let mut produced = world.plan.produced.iter().peekable();
        let end = begun_at + world.plan.window;
        while Instant::now() < end && !world.is_violated() {
            let now = Instant::now();
            while let Some((_, partition, count)) = produced.next_if(|(at, ..)| begun_at + *at <= now) {
                self.produce(*partition, *count);
            }
            self.heal(now);
            self.fleet.step();
            if let Some((_, fault)) = faults.next_if(|(at, _)| begun_at + *at <= now) {
                self.strike(*fault).await;
                continue;
            }
            self.fleet.check();
            let mut next = end.min(now + LOOK_INTERVAL);
            let due = [
                faults.peek().map(|(at, _)| begun_at + *at),
                produced.peek().map(|(at, ..)| begun_at + *at),
                self.heals.iter().map(|(at, _)| *at).min(),
                self.fleet.due_at(),
            ];
            due.into_iter().flatten().for_each(|at| next = next.min(at));
            sleep_until(next.max(now + Duration::from_millis(1))).await;
        }
    }

    fn produce(&self, partition: usize, count: u64) {
        let mut kafka = lock(&self.world.kafka);
        for _ in 0..count {
            kafka.produce(partition, &mut lock(&self.world.rng));
        }
        let end = kafka.logs[partition].end();
        drop(kafka);
        self.world.note(Who::WORLD, "produced", &[partition as i64, end]);
        self.world.kafka_changed.notify_waiters();
    }

    fn heal(&mut self, now: Instant) {
        let (due, later) = std::mem::take(&mut self.heals).into_iter().partition(|(at, _)| *at <= now);
        self.heals = later;
        let due: Vec<(Instant, Heal)> = due;
        for (_, heal) in due {
            self.world.note_with(Who::WORLD, "healed", &[], format_args!("{heal:?}"));
            match heal {
                Heal::Database => self.set_mode(ServerMode::Up),
                Heal::Kafka(process) => {
                    lock(&self.world.kafka).is_reachable[usize::from(process)] = true;
                    self.world.kafka_changed.notify_waiters();
                }
                Heal::Disk(process) => {
                    let mut machines = lock(&self.world.machines);
                    let machine = &mut machines[usize::from(process)];
                    machine.disk.fail(None);
                    machine.disk.set_capacity(None);
                    machine.is_full = false;
                }
            }
        }
    }

    fn heal_all(&mut self) {
        self.world.note(Who::WORLD, "calm", &[]);
        *lock(&self.world.rates) = Rates::default();
        let now = Instant::now();
        self.heals.iter_mut().for_each(|(at, _)| *at = now);
        self.heal(now);
    }

    fn set_mode(&self, mode: ServerMode) {
        let mut database = lock(&self.world.database);
        database.mode = mode;
        if mode == ServerMode::Refusing {
            database.end_all();
        }
        drop(database);
        self.world.database_changed.notify_waiters();
    }

    fn heal_after(&mut self, after: Duration, heal: Heal) {
        self.heals.push((Instant::now() + after, heal));
    }

    async fn strike(&mut self, fault: Fault) {
        self.world.note_with(Who::WORLD, name(fault), &[], format_args!("{fault:?}"));
        match fault {
            Fault::Kill(process, after) => self.fleet.kill(process, Crash::Everything, after).await,
            Fault::PowerOff(process, after) => {
                let crash = if self.world.chance(500) { Crash::Nothing } else { Crash::Torn };
                self.fleet.kill(process, crash, after).await;
            }
            Fault::Terminate(process, after) => self.fleet.terminate(process, after).await,
            Fault::Freeze(process, lasts) => self.fleet.freeze(process, lasts),
            Fault::Zombie(process, most) => self.make_zombie(process, most).await,
            Fault::DatabaseDown(lasts) => self.strike_database(ServerMode::Refusing, lasts),
            Fault::DatabaseSilent(lasts) => self.strike_database(ServerMode::Silent, lasts),
            Fault::DatabaseReadOnly(lasts) => self.strike_database(ServerMode::ReadOnly, lasts),
            Fault::DatabaseMisconfigured(lasts) => self.strike_database(ServerMode::Misconfigured, lasts),
            Fault::DatabaseRestart => {
                lock(&self.world.database).end_all();
                self.world.database_changed.notify_waiters();
            }
            Fault::Failover(lost_count) => {
                let lost_count = lock(&self.world.database).fail_over(lost_count as usize);
                self.world.note(Who::WORLD, "failed_over", &[lost_count as i64]);
                self.world.database_changed.notify_waiters();
            }
            Fault::KafkaAway(process, lasts) => self.cut_off(process, lasts),
            Fault::KafkaDown(lasts) => {
                (0..self.world.plan.process_count).for_each(|process| self.cut_off(process as u8, lasts));
            }
            Fault::Rebalance => self.world.rebalance(),
            Fault::Retention(partition, percent) => {
                let mut kafka = lock(&self.world.kafka);
                let log = &mut kafka.logs[usize::from(partition)];
                log.low += (log.end() - log.low) * percent as i64 / 100;
                let low = log.low;
                drop(kafka);
                self.world.note(Who::WORLD, "deleted", &[i64::from(partition), low]);
            }
            Fault::DiskFails(process, first, lasts) => {
                let fault =
                    lock(&self.world.rng).pick(&[SimFault::Device, SimFault::NoRoom, SimFault::ShortWrite]);
                let is_lasting = self.world.chance(500);
                let plan = DiskPlan { first, is_lasting, fault };
                lock(&self.world.machines)[usize::from(process)].disk.fail(Some(plan));
                self.heal_after(lasts, Heal::Disk(process));
            }
            Fault::DiskFull(process, lasts) => {
                let mut machines = lock(&self.world.machines);
                let machine = &mut machines[usize::from(process)];
                machine.disk.set_capacity(Some(1));
                machine.is_full = true;
                drop(machines);
                self.heal_after(lasts, Heal::Disk(process));
            }
        }
    }

    /// Freezes a process with a batch under way, perhaps, until another has claimed its partitions.
    async fn make_zombie(&mut self, process: u8, most: Duration) {
        let world = Arc::clone(&self.world);
        let end = Instant::now() + most;
        for partition in 0..world.plan.partition_count {
            self.produce(partition, 3);
        }
        sleep(Duration::from_millis(world.below(60))).await;
        let is_its = |owner: &Option<(u8, u32)>| owner.is_some_and(|(owner, _)| owner == process);
        let before = lock(&world.database).granted.clone();
        self.fleet.freeze(process, most);
        self.cut_off(process, most);
        while Instant::now() < end && !world.is_violated() {
            let changed = world.database_changed.notified();
            let now = lock(&world.database).granted.clone();
            let is_taken = before.iter().zip(&now).any(|(before, now)| is_its(before) && !is_its(now));
            if is_taken {
                world.note(Who(process), "zombie", &[]);
                break;
            }
            self.heal(Instant::now());
            self.fleet.step();
            // A grant lets locks go.
            drop(tokio::time::timeout(LOOK_INTERVAL, changed).await);
        }
        self.fleet.thaw(process);
    }

    fn strike_database(&mut self, mode: ServerMode, lasts: Duration) {
        self.set_mode(mode);
        self.heals.retain(|(_, heal)| !matches!(heal, Heal::Database));
        self.heal_after(lasts, Heal::Database);
    }

    fn cut_off(&mut self, process: u8, lasts: Duration) {
        lock(&self.world.kafka).is_reachable[usize::from(process)] = false;
        self.heal_after(lasts, Heal::Kafka(process));
    }

    /// Waits for the goal.
    async fn calm(&mut self) {
        let end = Instant::now() + QUIET_MAX;
        let mut reached_at: Option<Instant> = None;
        while !self.world.is_violated() {
            let now = Instant::now();
            self.fleet.step();
            self.fleet.check();
            let is_goal =
                self.fleet.is_whole() && oracle::is_stored(&self.world) && self.fleet.spools_are_empty();
            reached_at = if is_goal { reached_at.or(Some(now)) } else { None };
            if reached_at.is_some_and(|at| now.duration_since(at) >= QUIET_AFTER_GOAL) {
                for wrong in oracle::account(&self.world) {
                    self.world.violate("every record is accounted for once", wrong);
                }
                return;
            }
            if now >= end {
                self.fleet.say();
                let wrong = oracle::account(&self.world);
                let detail = format!("{wrong:?}, spools are empty: {}", self.fleet.spools_are_empty());
                self.world.violate("all is stored once faults have stopped", detail);
                return;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}

const fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Kill(..) => "kill",
        Fault::PowerOff(..) => "power_off",
        Fault::Terminate(..) => "terminate",
        Fault::Freeze(..) => "freeze",
        Fault::Zombie(..) => "freeze_until_claimed",
        Fault::DatabaseDown(_) => "database_down",
        Fault::DatabaseSilent(_) => "database_silent",
        Fault::DatabaseReadOnly(_) => "database_read_only",
        Fault::DatabaseMisconfigured(_) => "database_misconfigured",
        Fault::DatabaseRestart => "database_restart",
        Fault::Failover(_) => "failover",
        Fault::KafkaAway(..) => "kafka_away",
        Fault::KafkaDown(_) => "kafka_down",
        Fault::Rebalance => "rebalance",
        Fault::Retention(..) => "retention",
        Fault::DiskFails(..) => "disk_fails",
        Fault::DiskFull(..) => "disk_full",
    }
}
