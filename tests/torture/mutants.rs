//! A check of the rig: takes out what keeps the promise, one at a time, by a switch that releases do not have; each time the
//! run must fail.

use std::process::Command;

use serde_json::Value;

use crate::report::{Verdict, report_path};

/// A switch, what it takes out, and the faults that show it.
const MUTANTS: &[(&str, &str, &str)] = &[
    ("mutant_no_cas", "the compare-and-set on the position", "swallow_commit,half_open_database"),
    ("mutant_no_epoch", "the epoch of a claim", "zombie"),
    ("mutant_no_fsync", "the fsync of the spool", "only_copy"),
    ("mutant_no_read_back", "the read-back of the relay's transaction", "lie_end_txn"),
];
const MINUTES: &str = "1.5";
/// A mutant may never come to rest.
const QUIET_SECONDS: &str = "60";
const RECORDS_PER_SECOND: &str = "1000";

/// Runs each mutant, or those named, as a process of its own; fails when one of them passes.
pub(crate) fn check(names: &[String]) -> anyhow::Result<Verdict> {
    let mut survivors = Vec::new();
    let mut lines = Vec::new();
    for (name, what, faults) in MUTANTS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("torture: without {what}");
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["run", "--minutes", MINUTES, "--seed", "7", "--faults", faults, "--mutant", name]);
        command.args(["--quiet-seconds", QUIET_SECONDS, "--records-per-second", RECORDS_PER_SECOND]);
        let code = command.status()?.code();
        let is_found = code == Some(Verdict::Failed.exit_code());
        lines
            .push(format!("{name}: {}", if is_found { found(name)? } else { format!("exit code {code:?}") }));
        if !is_found {
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

/// By which checks a mutant was found, and how often each.
fn found(name: &str) -> anyhow::Result<String> {
    let report: Value = serde_json::from_slice(&std::fs::read(report_path(Some(name)))?)?;
    Ok(format!("found by {}", report["findings"]))
}
