//! The world that a seed makes: one Kafka, one PostgreSQL, some processes with a disk each.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::database::Database;
use crate::disk::SimDisk;
use crate::kafka::Kafka;
use crate::plan::{Plan, Rates};
use crate::rng::Rng;
use crate::trace::{Trace, Who};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One life of a process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) index: u8,
    pub(crate) life: u32,
    pub(crate) is_alive: AtomicBool,
    is_frozen: AtomicBool,
    thawed: Notify,
}

impl Process {
    pub(crate) fn new(index: u8, life: u32) -> Self {
        Self {
            index,
            life,
            is_alive: AtomicBool::new(true),
            is_frozen: AtomicBool::new(false),
            thawed: Notify::new(),
        }
    }

    pub(crate) fn freeze(&self) {
        self.is_frozen.store(true, Ordering::Relaxed);
    }

    pub(crate) fn thaw(&self) {
        self.is_frozen.store(false, Ordering::Relaxed);
        self.thawed.notify_waiters();
    }

    /// Whether it is alive and does not stand still.
    pub(crate) fn is_well(&self) -> bool {
        self.is_alive.load(Ordering::Relaxed) && !self.is_frozen.load(Ordering::Relaxed)
    }

    /// Waits while the process stands still; for ever when it is dead.
    pub(crate) async fn gate(&self) {
        loop {
            if !self.is_alive.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            let thawed = self.thawed.notified();
            if !self.is_frozen.load(Ordering::Relaxed) {
                return;
            }
            thawed.await;
        }
    }

    pub(crate) const fn who(&self) -> Who {
        Who(self.index)
    }
}

/// What a machine keeps over the lives of its process.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(crate) disk: SimDisk,
    /// The offsets that the spool has acknowledged, by partition.
    pub(crate) acknowledged: Vec<BTreeSet<i64>>,
    /// Whether calls of the disk have failed: what was acknowledged may be damaged by now.
    pub(crate) has_failed: bool,
    /// Whether the disk has no room.
    pub(crate) is_full: bool,
    /// The process that lives on it, since when it does without standing still.
    pub(crate) well_since: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) rng: Mutex<Rng>,
    pub(crate) trace: Mutex<Trace>,
    pub(crate) kafka: Mutex<Kafka>,
    pub(crate) kafka_changed: Notify,
    pub(crate) database: Mutex<Database>,
    /// A lock was let go, a session ended, the server went or came.
    pub(crate) database_changed: Notify,
    pub(crate) machines: Mutex<Vec<Machine>>,
    pub(crate) rates: Mutex<Rates>,
    started_at: Instant,
}

impl World {
    pub(crate) fn new(plan: Plan, trace: Trace) -> Self {
        let machine =
            || Machine { acknowledged: vec![BTreeSet::new(); plan.partition_count], ..Machine::default() };
        Self {
            rng: Mutex::new(Rng::new(plan.seed)),
            trace: Mutex::new(trace),
            kafka: Mutex::new(Kafka::new(plan.partition_count, plan.process_count)),
            kafka_changed: Notify::new(),
            database: Mutex::new(Database::new(plan.partition_count)),
            database_changed: Notify::new(),
            machines: Mutex::new((0..plan.process_count).map(|_| machine()).collect()),
            rates: Mutex::new(plan.rates),
            started_at: Instant::now(),
            plan,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started_at.elapsed()
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        lock(&self.rng).below(bound)
    }

    pub(crate) fn between(&self, first: u64, last: u64) -> u64 {
        lock(&self.rng).between(first, last)
    }

    /// Whether something happens that does so many times of a thousand.
    pub(crate) fn chance(&self, permille: u64) -> bool {
        permille > 0 && lock(&self.rng).chance(permille)
    }

    /// The same, as often as `rate` says now.
    pub(crate) fn fails(&self, rate: fn(&Rates) -> u64) -> bool {
        let rate = rate(&lock(&self.rates));
        self.chance(rate)
    }

    /// Waits between `first` and `last` milliseconds.
    pub(crate) async fn pause(&self, first: u64, last: u64) {
        let ms = self.between(first, last);
        if ms == 0 {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    pub(crate) fn note(&self, who: Who, name: &'static str, numbers: &[i64]) {
        self.note_with(who, name, numbers, format_args!(""));
    }

    pub(crate) fn note_with(
        &self,
        who: Who,
        name: &'static str,
        numbers: &[i64],
        detail: fmt::Arguments<'_>,
    ) {
        lock(&self.trace).step(self.elapsed(), who, name, numbers, detail);
    }

    pub(crate) fn violate(&self, property: &'static str, detail: String) {
        lock(&self.trace).violate(self.elapsed(), property, detail);
    }

    pub(crate) fn is_violated(&self) -> bool {
        lock(&self.trace).violation.is_some()
    }
}
