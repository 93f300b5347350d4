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

#[test]
fn probe() {
    use ingest::Ingest;
    let env = |name: &str, or: u8| std::env::var(name).ok().and_then(|own| own.parse().ok()).unwrap_or(or);
    let mut model = Ingest::any(env("N", 3), env("F", 2));
    model.partitions = usize::from(env("P", 1));
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
