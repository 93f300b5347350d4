//! The protocol of ARCHITECTURE.md as state machines, explored whole: `docs/RELIABILITY.md` tells what is modelled and
//! what is not. `TEST_SCALE=full` explores some twenty million states, a few minutes; otherwise the bounds are small.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test that can't go on must stop loudly, and tells people what it saw"
)]

mod graph;
mod ingest;
mod relay;
mod report;

use std::collections::HashSet;

use stateright::Checker;

use self::graph::{Protocol, STUCK, Seen, explore};
use self::ingest::Ingest;
use self::relay::Relaying;

/// More than the largest bounds have: beyond it a model has become too large, and memory is bounded.
const STATES_MAX: usize = 12_000_000;

/// Explores all of `model`, and finds nothing. Returns what occurred.
#[track_caller]
fn holds(name: &str, faults: u8, model: &impl Protocol) -> Seen {
    let seen = explore(model, STATES_MAX);
    report::run(name, faults, &seen);
    if let Some(finding) = &seen.finding {
        report::tell(finding);
        println!("{}", finding.state);
    }
    assert!(seen.finding.is_none(), "{name}: {:?}", seen.finding.map(|finding| finding.property));
    assert!(seen.is_whole, "{name}: more than {STATES_MAX} states");
    assert!(seen.goal_count > 0, "{name}: the goal is never reached");
    seen
}

/// Explores `model` to its first finding, which must be that `property` does not hold.
#[track_caller]
fn fails(name: &str, model: &impl Protocol, property: &str) {
    let seen = explore(model, STATES_MAX);
    report::found(name, &seen);
    let found = seen.finding.map(|finding| finding.property);
    assert_eq!(found, Some(property), "{name}");
}

#[track_caller]
fn has_shown(model: &impl Protocol, seen: &[Seen]) {
    let shown: HashSet<&str> = seen.iter().flat_map(|seen| seen.notes.keys().copied()).collect();
    let missing: Vec<&&str> = model.expected_notes().iter().filter(|note| !shown.contains(**note)).collect();
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

/// One partition and faults of these kinds: crash, disk lost, outage, failover, rebalance, COMMIT without an answer,
/// retention.
fn of_kinds(records: u8, faults_of: [u8; 7]) -> Ingest {
    Ingest { faults: faults_of.iter().sum(), faults_of, ..Ingest::any(records, 0) }
}

const CRASH: [u8; 7] = [1, 0, 1, 0, 0, 0, 1];
const FAILOVER: [u8; 7] = [0, 0, 1, 1, 0, 0, 1];
const REBALANCE: [u8; 7] = [0, 0, 1, 0, 1, 0, 1];
/// What is drained twice and taken back twice; what a stray has stored, taken back.
const DRAINED_TWICE: [u8; 7] = [0, 0, 1, 2, 0, 0, 1];
const DRAINED_STRAY: [u8; 7] = [0, 0, 1, 1, 1, 0, 1];

#[test]
fn ingest_stores_everything_once_whatever_two_faults_do() {
    let records = if report::is_full() { 4 } else { 3 };
    let model = Ingest::any(records, 2);
    let mut seen = vec![holds("ingest, two faults", 2, &model)];
    let least = if report::is_full() { 1_000_000 } else { 200_000 };
    assert!(seen[0].unique_count >= least, "only {} states", seen[0].unique_count);
    if report::is_full() {
        let model = Ingest { partitions: 2, ..Ingest::any(2, 2) };
        seen.push(holds("ingest, two partitions in one batch, two faults", 2, &model));
    } else {
        let model = Ingest { partitions: 2, ..Ingest::any(2, 1) };
        seen.push(holds("ingest, two partitions in one batch, one fault", 1, &model));
    }
    let records = if report::is_full() { 3 } else { 2 };
    for (name, kinds) in [
        ("ingest: outage, crash, retention", CRASH),
        ("ingest: outage, failover, retention", FAILOVER),
        ("ingest: outage, rebalance, retention", REBALANCE),
    ] {
        seen.push(holds(name, 3, &of_kinds(records, kinds)));
    }
    seen.push(holds("ingest: outage, two failovers, retention", 4, &of_kinds(2, DRAINED_TWICE)));
    let records = if report::is_full() { 2 } else { 1 };
    let name = "ingest: outage, failover, rebalance, retention";
    seen.push(holds(name, 4, &of_kinds(records, DRAINED_STRAY)));
    has_shown(&model, &seen);
}

#[test]
fn every_mutant_of_ingest_is_caught() {
    use ingest::Mutant;
    const TWICE: &str = "no event is stored twice";
    const LOST: &str = "nothing is lost below the position";
    const LAST_COPY: &str = "we never drop the last copy";
    for mutant in Mutant::ALL {
        let (model, property) = match mutant {
            Mutant::NoCompareAndSet => (Ingest::any(3, 2), TWICE),
            Mutant::NoEpoch => (Ingest::any(3, 2), "a zombie stores nothing"),
            Mutant::GapSkipped | Mutant::HoleSkipped => (Ingest::any(3, 2), LOST),
            Mutant::NoVerifyTimer | Mutant::LiveBeforeDrain => (Ingest::any(3, 2), STUCK),
            Mutant::GapIgnoresSpools => (of_kinds(2, CRASH), "no gap is declared over what is held"),
            Mutant::NothingSetAside => (of_kinds(2, CRASH), LAST_COPY),
            Mutant::NothingKept => (of_kinds(2, FAILOVER), LAST_COPY),
            Mutant::DrainedNotTold => (of_kinds(2, DRAINED_STRAY), "no gap is declared over what is held"),
            Mutant::StrayNotHeldAgain => (of_kinds(1, DRAINED_STRAY), STUCK),
        };
        fails(&format!("ingest: {mutant:?}"), &model.with(mutant), property);
    }
}

fn relaying(letters: u8, faults: u8) -> Relaying {
    Relaying { letters, faults, mutant: None }
}

#[test]
fn the_relay_sends_each_letter_once_whatever_two_faults_do() {
    let model = relaying(if report::is_full() { 3 } else { 2 }, 2);
    let seen = holds("relay, two faults", 2, &model);
    has_shown(&model, &[seen]);
}

#[test]
fn every_mutant_of_the_relay_is_caught() {
    use relay::Mutant;
    const TWICE: &str = "a letter is in the topic at most once";
    const NOT_THERE: &str = "a row is marked only if its letter is there";
    for mutant in Mutant::ALL {
        let property = match mutant {
            Mutant::PositionBeforeInit
            | Mutant::NothingLookedUp
            | Mutant::NothingFenced
            | Mutant::PositionBelieved => TWICE,
            Mutant::MarkByBelief | Mutant::BelowIsSent => NOT_THERE,
        };
        let model = Relaying { mutant: Some(mutant), ..relaying(2, 2) };
        fails(&format!("relay: {mutant:?}"), &model, property);
    }
}

#[test]
fn the_graph_has_the_states_that_stateright_finds() {
    fn check<M: Protocol<State: Send + Sync, Action: Send> + Clone + Send + Sync + 'static>(model: M) {
        let seen = explore(&model, STATES_MAX);
        let checker = model.checker().threads(1).spawn_bfs().join();
        checker.assert_properties();
        assert_eq!(seen.unique_count, checker.unique_state_count());
    }
    check(Ingest::any(3, 1));
    check(relaying(2, 1));
}
