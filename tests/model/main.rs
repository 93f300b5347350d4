//! The protocol of DESIGN as state machines, explored whole: `docs/RELIABILITY.md` tells what is modelled and what is
//! not. `TEST_SCALE=full` explores more than a million states, a few minutes; otherwise the bounds are small.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "a test that can't go on must stop loudly, and tells people what it saw"
)]

mod graph;
mod ingest;
mod relay;

#[test]
fn probe() {
    use ingest::Ingest;
    let env = |name: &str, or: u8| std::env::var(name).ok().and_then(|own| own.parse().ok()).unwrap_or(or);
    let mut model = Ingest::any(env("N", 3), env("F", 2));
    model.partitions = usize::from(env("P", 1));
    model.drained_counts = env("D", 1) == 1;
    model.is_repaired = env("R", 0) == 1;
    if let Ok(of) = std::env::var("FS") {
        for (place, own) in model.faults_of.iter_mut().zip(of.split(',')) {
            *place = own.parse().unwrap();
        }
        model.faults = model.faults_of.iter().sum();
    }
    if let Ok(mutant) = std::env::var("MUTANT") {
        model.mutant = ingest::Mutant::ALL.into_iter().find(|own| format!("{own:?}") == mutant);
    }
    let seen = graph::explore(&model, 30_000_000);
    println!(
        "{:?} generated {} unique {} depth {} goals {} whole {}",
        seen.elapsed, seen.state_count, seen.unique_count, seen.depth, seen.goal_count, seen.is_whole
    );
    println!("{:#?}", seen.notes);
    if let Some(finding) = seen.finding {
        println!("{}", finding.property);
        finding.path.iter().enumerate().for_each(|(index, step)| println!("{:3}. {step}", index + 1));
        println!("{}", finding.state);
    }
}

#[test]
fn prelay() {
    use relay::Relaying;
    let env = |name: &str, or: u8| std::env::var(name).ok().and_then(|own| own.parse().ok()).unwrap_or(or);
    let mutant = std::env::var("MUTANT").ok();
    let model = Relaying {
        letters: env("N", 3),
        faults: env("F", 2),
        has_tears: env("T", 0) == 1,
        is_repaired: env("R", 0) == 1,
        mutant: relay::Mutant::ALL.into_iter().find(|own| Some(format!("{own:?}")) == mutant),
    };
    let seen = graph::explore(&model, 30_000_000);
    println!(
        "{:?} generated {} unique {} depth {} goals {} whole {}",
        seen.elapsed, seen.state_count, seen.unique_count, seen.depth, seen.goal_count, seen.is_whole
    );
    println!("{:#?}", seen.notes);
    if let Some(finding) = seen.finding {
        println!("{}", finding.property);
        finding.path.iter().enumerate().for_each(|(index, step)| println!("{:3}. {step}", index + 1));
        println!("{}", finding.state);
    }
}
