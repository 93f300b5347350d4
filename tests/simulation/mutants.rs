//! A check of the oracle: each guard is taken out, and the seeds must turn red.

use std::time::Instant;

use crate::plan::Mutant;
use crate::run::{Recording, run};

/// A guard that is taken out.
pub(crate) struct Guard {
    pub(crate) mutant: Mutant,
    /// The switch in the program that goes with it.
    pub(crate) switch: Option<&'static str>,
    /// The property that must fail first in some seed.
    pub(crate) property: &'static str,
    /// How many seeds may be needed.
    pub(crate) seed_max: u64,
}

pub(crate) const GUARDS: &[Guard] = &[
    Guard {
        mutant: Mutant::NoCompareAndSet,
        switch: Some("mutant_no_cas"),
        property: "no record is stored twice, or other than it was read",
        seed_max: 1000,
    },
    Guard { mutant: Mutant::NoEpoch, switch: None, property: "a zombie stores nothing", seed_max: 2000 },
    Guard {
        mutant: Mutant::GapSkipped,
        switch: None,
        property: "every record is accounted for once",
        seed_max: 1000,
    },
    Guard {
        mutant: Mutant::NoSync,
        switch: None,
        property: "what the spool has acknowledged survives a power loss",
        seed_max: 1000,
    },
    Guard {
        mutant: Mutant::DrainedNotKept,
        switch: None,
        property: "what the spool has acknowledged survives a power loss",
        seed_max: 3000,
    },
    Guard {
        mutant: Mutant::LiveBeforeDrain,
        switch: Some("mutant_live_before_drain"),
        property: "all is stored once faults have stopped",
        seed_max: 3000,
    },
    Guard {
        mutant: Mutant::GapOverSpools,
        switch: None,
        property: "no gap is declared over what a spool holds",
        seed_max: 5000,
    },
    Guard {
        mutant: Mutant::Untold,
        switch: Some("mutant_untold"),
        property: "who tells all that it holds leaves nothing out",
        seed_max: 5000,
    },
];

/// Whether the program was built with its switches.
const HAS_SWITCHES: bool = cfg!(feature = "failpoints");

#[cfg(feature = "failpoints")]
fn set(switch: &str, is_on: bool) {
    if is_on {
        fail::cfg(switch, "return").expect("switch");
    } else {
        fail::remove(switch);
    }
}

#[cfg(not(feature = "failpoints"))]
fn set(_switch: &str, _is_on: bool) {}

/// The first seed in which the guard is missed, and by which property.
fn first_seed(guard: &Guard) -> Option<u64> {
    let mut others = 0;
    (0..guard.seed_max).find(|seed| {
        let violation = run(*seed, Some(guard.mutant), Recording::Off).violation;
        if let Some(violation) = violation.as_ref().filter(|violation| violation.property != guard.property) {
            others += 1;
            println!("{:?}, seed {seed}: {}: {}", guard.mutant, violation.property, violation.detail);
        }
        violation.is_some_and(|violation| violation.property == guard.property)
    })
}

/// Runs seeds without each guard until it is missed. Returns those that nobody misses.
pub(crate) fn survivors() -> Vec<Mutant> {
    let mut survivors = Vec::new();
    for guard in GUARDS.iter().filter(|guard| HAS_SWITCHES || guard.switch.is_none()) {
        let started_at = Instant::now();
        guard.switch.iter().for_each(|switch| set(switch, true));
        let seed = first_seed(guard);
        guard.switch.iter().for_each(|switch| set(switch, false));
        let seconds = started_at.elapsed().as_secs_f64();
        println!("{:?}: {} in seed {seed:?}, {seconds:.1} s", guard.mutant, guard.property);
        if seed.is_none() {
            survivors.push(guard.mutant);
        }
    }
    survivors
}
