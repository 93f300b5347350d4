//! A check of the rig: takes out what keeps the promise, one at a time, by a switch that releases do not have; each time the
//! run must fail.

use crate::options::Options;
use crate::report::Verdict;

/// A switch, what it takes out, and the faults that show it.
const MUTANTS: &[(&str, &str, &str)] = &[
    (
        "mutant_no_cas",
        "the compare-and-set on the position",
        "swallow_commit,half_open_database,stop,kill,failover,zombie",
    ),
    ("mutant_no_epoch", "the epoch of a claim", "zombie"),
    ("mutant_no_fsync", "the fsync of the spool", "only_copy"),
    ("mutant_no_read_back", "the read-back of the relay's transaction", "lie_end_txn"),
];
const MINUTES: &str = "1.5";
/// A mutant may never come to rest.
const QUIET_SECONDS: &str = "60";
const RECORDS_PER_SECOND: &str = "1000";

/// Runs each mutant, or those named; fails when one of them passes.
pub(crate) fn check(
    names: &[String],
    run: impl Fn(Options) -> anyhow::Result<(Verdict, Vec<String>)>,
) -> anyhow::Result<Verdict> {
    let mut survivors = Vec::new();
    let mut lines = Vec::new();
    for (name, what, faults) in MUTANTS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("torture: without {what}");
        let args = [
            "--minutes",
            MINUTES,
            "--seed",
            "7",
            "--faults",
            faults,
            "--mutant",
            name,
            "--quiet-seconds",
            QUIET_SECONDS,
            "--records-per-second",
            RECORDS_PER_SECOND,
        ];
        let (verdict, findings) = run(Options::parse(&args.map(str::to_owned))?)?;
        lines.push(format!("{name}: {verdict:?}, by {}", findings.join(", ")));
        if verdict != Verdict::Failed {
            survivors.push(*name);
        }
    }
    for line in lines {
        eprintln!("torture: {line}");
    }
    if survivors.is_empty() {
        eprintln!("torture: each mutant was found");
        return Ok(Verdict::Passed);
    }
    eprintln!("torture: not found: {}", survivors.join(", "));
    Ok(Verdict::Failed)
}
