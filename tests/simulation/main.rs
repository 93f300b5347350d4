//! The program itself, with Kafka, PostgreSQL and the disk simulated: a seed decides what fails when, and time stands
//! still while anybody works. `docs/RELIABILITY.md` tells what is simulated and what not.
//!
//! `SEED=n` runs one seed and prints all of it; `N=n` runs so many.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that can't go on must stop loudly, and tells people what it saw; it measures real time"
)]

use audit_consumer::spool::disk as disk_api;

mod claims;
mod database;
#[allow(dead_code, reason = "the spool's own tests use the rest")]
mod disk;
mod expected;
mod fleet;
mod kafka;
mod machine;
mod mutants;
mod nemesis;
mod oracle;
mod plan;
mod rng;
mod run;
mod seeds;
mod source;
mod store;
mod trace;
mod transaction;
mod world;

use std::sync::{PoisonError, RwLock};

use self::run::{Recording, run};

/// How many seeds run twice.
const TWICE_COUNT: u64 = 50;
/// How many seeds run in CI, and when all is asked for.
const SEED_COUNT: u64 = 20_000;
const SEED_COUNT_FULL: u64 = 1_000_000;

/// Mutants switch something off for the whole process: nothing else runs meanwhile.
static SWITCHES: RwLock<()> = RwLock::new(());

#[test]
fn a_seed_gives_the_same_run_each_time() {
    let _on = SWITCHES.read().unwrap_or_else(PoisonError::into_inner);
    for seed in 0..TWICE_COUNT {
        let (one, other) = (run(seed, None, Recording::Off), run(seed, None, Recording::On));
        assert_eq!((one.hash, one.step_count), (other.hash, other.step_count), "seed {seed}");
    }
}

/// `SEED=n` runs that one and prints all of it; `N=n` runs so many, from `FIRST` on.
#[test]
fn seeds_hold() {
    let _on = SWITCHES.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(seed) = seeds::variable("SEED") {
        let outcome = run(seed, None, Recording::On);
        outcome.lines.iter().for_each(|line| println!("{line}"));
        println!("{:#?}", outcome.counts);
        assert!(outcome.violation.is_none(), "seed {seed}: {:?}", outcome.violation);
        return;
    }
    let kept = seeds::kept().into_iter().filter_map(|seed| {
        let violation = run(seed, None, Recording::Off).violation?;
        Some((seed, violation))
    });
    seeds::must_hold(&kept.collect::<Vec<_>>());
    let is_full = std::env::var("TEST_SCALE").is_ok_and(|scale| scale == "full");
    let usual = if is_full { SEED_COUNT_FULL } else { SEED_COUNT };
    let (first, count) = (seeds::variable("FIRST").unwrap_or(0), seeds::variable("N").unwrap_or(usual));
    let summary = seeds::run_many(first, count);
    seeds::report(&summary, first);
    println!("{:#?}", summary.counts);
    seeds::must_hold(&summary.failures);
    if count >= SEED_COUNT {
        let rare: Vec<_> = expected::OCCURRENCES
            .iter()
            .filter(|(name, least)| summary.counts.get(name).copied().unwrap_or(0) < *least)
            .collect();
        assert!(rare.is_empty(), "too rare, or never: {rare:?}");
    }
}

#[track_caller]
fn holds(seed: u64) {
    let _on = SWITCHES.read().unwrap_or_else(PoisonError::into_inner);
    let violation = run(seed, None, Recording::Off).violation;
    assert!(violation.is_none(), "seed {seed}: {violation:?}");
}

/// The gap was overdue and held back by a row of `spool_ranges`, which the failover lost.
#[test]
fn no_gap_is_declared_before_spools_have_told_again_what_a_failover_took_back() {
    holds(1003);
}

/// The spool's own test: `what_is_drained_in_a_segment_that_stays_is_told_and_held_again`.
#[test]
fn what_was_drained_in_a_segment_that_stays_is_no_gap_after_a_failover() {
    holds(2499);
    holds(7459);
}

/// The spool's own test: `what_an_append_left_behind_the_end_keeps_nothing_from_being_held_again`.
#[test]
fn what_is_left_behind_the_end_of_a_drained_segment_is_no_damage() {
    holds(9169);
    holds(4131);
    holds(98402);
}

#[test]
fn each_guard_that_is_taken_out_is_missed() {
    let _alone = SWITCHES.write().unwrap_or_else(PoisonError::into_inner);
    let survivors = mutants::survivors();
    assert!(survivors.is_empty(), "nobody missed {survivors:?}");
}
