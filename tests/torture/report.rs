//! What a run found, for programs and for people.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::fault::Fault;
use crate::ledger::Kind;
use crate::options::Options;
use crate::oracle::Findings;
use crate::oracle::letters::LetterCounts;

/// The least rate outside of the windows in which a server is down.
const RATE_LEAST: f64 = 2_000.0;
/// From how many minutes on every crash point must have been passed.
const EVERY_POINT_MINUTES: f64 = 45.0;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    /// The promise was broken.
    Failed,
    /// It says nothing: a fault did not happen, or too little was produced.
    Invalid,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Invalid => "invalid",
        }
    }

    pub(crate) const fn exit_code(self) -> i32 {
        match self {
            Self::Passed => 0,
            Self::Failed => 1,
            Self::Invalid => 2,
        }
    }
}

/// Where the report of a run is, or of one with a mutant.
pub(crate) fn report_path(mutant: Option<&str>) -> PathBuf {
    let reports = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/reports");
    reports.join(mutant.map_or_else(|| "torture.json".to_owned(), |mutant| format!("torture-{mutant}.json")))
}

/// All that is known of a run.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) kinds: [u64; Kind::ALL.len()],
    pub(crate) fired: BTreeMap<Fault, u64>,
    pub(crate) points: BTreeMap<&'static str, u64>,
    pub(crate) findings: Findings,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) unacknowledged: u64,
    pub(crate) letters: LetterCounts,
    pub(crate) day_file_lines: u64,
    pub(crate) transactions: [u64; 3],
    pub(crate) fenced: u64,
    pub(crate) lossy_failovers: u64,
    pub(crate) lost_positions: i64,
    pub(crate) elapsed: Duration,
    pub(crate) down: Duration,
    pub(crate) quiet: Duration,
    /// Why the run says nothing.
    pub(crate) invalid: Vec<String>,
}

impl Outcome {
    fn record_count(&self) -> u64 {
        self.kinds.iter().sum()
    }

    fn per_second(&self, time: Duration) -> f64 {
        let count = u32::try_from(self.record_count()).unwrap_or(u32::MAX);
        f64::from(count) / time.as_secs_f64().max(1.0)
    }

    /// Outside of the windows in which a server is down.
    fn rate(&self) -> f64 {
        self.per_second(self.elapsed.saturating_sub(self.down))
    }

    /// Adds why the run says nothing, if it does not.
    fn judge(&mut self, options: &Options, points: &[&'static str]) -> Verdict {
        for fault in options.selection.faults() {
            if !self.fired.contains_key(fault) {
                self.invalid.push(format!("{} never happened", fault.name()));
            }
        }
        if self.rate()
            < RATE_LEAST.min(f64::from(u32::try_from(options.records_per_second).unwrap_or(0)) * 0.9)
        {
            self.invalid.push(format!("{:.0} records/s instead of {RATE_LEAST:.0}", self.rate()));
        }
        let missing: Vec<&str> =
            points.iter().copied().filter(|point| !self.points.contains_key(point)).collect();
        let wants_points = options.selection.has(Fault::CrashPoint) && options.minutes >= EVERY_POINT_MINUTES;
        if wants_points && !missing.is_empty() {
            self.invalid.push(format!("no daemon died at {}", missing.join(", ")));
        }
        if !self.findings.counts.is_empty() {
            Verdict::Failed
        } else if self.invalid.is_empty() {
            Verdict::Passed
        } else {
            Verdict::Invalid
        }
    }

    fn to_json(&self, options: &Options, verdict: Verdict) -> Value {
        let kinds: BTreeMap<&str, u64> = Kind::ALL.iter().map(|kind| kind.name()).zip(self.kinds).collect();
        let fired: BTreeMap<&str, u64> =
            self.fired.iter().map(|(fault, count)| (fault.name(), *count)).collect();
        let [committed, aborted, unknown] = self.transactions;
        json!({
            "verdict": verdict.name(),
            "command": options.command(),
            "seed": options.seed,
            "minutes": options.minutes,
            "selection": options.selection.name(),
            "mutant": options.mutant,
            "seconds": self.elapsed.as_secs(),
            "seconds_down": self.down.as_secs(),
            "seconds_until_quiet": self.quiet.as_secs(),
            "records": self.record_count(),
            "records_by_kind": kinds,
            "records_per_second": self.per_second(self.elapsed).round(),
            "records_per_second_while_up": self.rate().round(),
            "transactions": {"committed": committed, "aborted": aborted, "unknown": unknown},
            "unacknowledged_and_stored": self.unacknowledged,
            "faults": fired,
            "crash_points": self.points,
            "failovers_that_lost_commits": self.lossy_failovers,
            "offsets_lost_by_failovers": self.lost_positions,
            "lost": self.lost,
            "doubled": self.doubled,
            "dead_letters": {
                "wanted": self.letters.wanted,
                "found": self.letters.committed,
                "in_aborted_transactions": self.letters.aborted,
            },
            "day_file_lines": self.day_file_lines,
            "static_members_given_up": self.fenced,
            "findings": self.findings.counts,
            "offenders": self.findings.shown,
            "invalid": self.invalid,
        })
    }

    /// Judges the run, writes the report and prints what people want to know.
    pub(crate) fn finish(
        mut self,
        options: &Options,
        points: &[&'static str],
        path: &Path,
    ) -> anyhow::Result<Verdict> {
        let verdict = self.judge(options, points);
        let report = self.to_json(options, verdict);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(path, format!("{report:#}\n"))?;
        let fired: Vec<String> =
            self.fired.iter().map(|(fault, count)| format!("{} {count}", fault.name())).collect();
        eprintln!("torture: faults: {}", fired.join(", "));
        eprintln!(
            "torture: {} records, {} lost, {} doubled; {} dead letters wanted, {} found; {:.0} records/s while up",
            self.record_count(),
            self.lost,
            self.doubled,
            self.letters.wanted,
            self.letters.committed,
            self.rate()
        );
        for offender in &self.findings.shown {
            eprintln!("torture: {offender}");
        }
        for reason in &self.invalid {
            eprintln!("torture: invalid: {reason}");
        }
        eprintln!(
            "torture: {} after {} s; report: {}; again: {}",
            verdict.name(),
            self.elapsed.as_secs(),
            path.display(),
            options.command()
        );
        Ok(verdict)
    }
}
