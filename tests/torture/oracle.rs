//! After the quiet phase: what stands in PostgreSQL, in the dead letter topic and in the day files, against the ledger.

pub(crate) mod letters;
pub(crate) mod rows;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use crate::fleet::Fleet;
use crate::ledger::{Kind, Ledger};
use crate::payload::Payloads;
use crate::servers::Servers;
use crate::side::{self, AGAIN_TOPIC, DELETED_TOPIC, SPOOLED_TOPIC};
use crate::{TOPIC, topics};

use self::rows::Rows;

/// How many offenders are shown.
pub(crate) const SHOWN_MAX_COUNT: usize = 20;

/// What is wrong: a count for each check, and some offenders for people.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) shown: Vec<String>,
}

impl Findings {
    pub(crate) fn add(&mut self, what: &'static str, offender: impl FnOnce() -> String) {
        let count = self.counts.entry(what).or_default();
        *count += 1;
        if *count <= u64::try_from(SHOWN_MAX_COUNT).unwrap_or(0) {
            self.shown.push(format!("{what}: {}", offender()));
        }
    }
}

/// Waits until everything that was produced is stored, relayed and projected, and no spool holds anything. Returns what
/// is still missing after `patience`.
pub(crate) fn wait_until_quiet(servers: &Servers, fleet: &Fleet, patience: Duration) -> Option<String> {
    let deadline = Instant::now() + patience;
    loop {
        side::adopt_where_held(servers, fleet);
        let missing = match missing(servers, fleet) {
            Ok(None) => return None,
            Ok(Some(missing)) => missing,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() > deadline {
            return Some(missing);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What waits, by name.
const WAITING: &[(&str, &str)] = &[
    ("ranges in spools", "SELECT count(*) FROM audit_events.spool_ranges"),
    ("dead letters to be relayed", "SELECT count(*) FROM audit_events.dead_letters WHERE relayed_at IS NULL"),
    (
        "partitions whose day files are behind",
        "SELECT (SELECT count(*) FROM audit_events.consumer_offsets AS o \
                  CROSS JOIN unnest(ARRAY['purview', 'trust']) AS s (sink) \
                   LEFT JOIN audit_events.projection_cursors AS c USING (sink, stream_id, partition) \
                  WHERE c.next_offset IS DISTINCT FROM o.next_offset) \
              + (SELECT count(*) FROM audit_events.projection_instances WHERE intended <> confirmed) \
              + (SELECT count(*) FROM audit_events.projection_pending)",
    ),
];

/// The first partition that is not read to its end.
fn behind(servers: &Servers, topic: &str) -> anyhow::Result<Option<String>> {
    let ends = topics::ends(&servers.brokers(), topic)?;
    let positions = servers.sql(&format!(
        "SELECT partition || ' ' || next_offset FROM audit_events.consumer_offsets \
           JOIN audit_events.streams USING (stream_id, group_id) WHERE topic = '{topic}' AND retired_at IS NULL"
    ))?;
    let positions: BTreeMap<usize, i64> = positions
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(partition, next)| Some((partition.parse().ok()?, next.parse().ok()?)))
        .collect();
    for (partition, end) in ends.iter().enumerate() {
        let position = positions.get(&partition).copied().unwrap_or(0);
        if position < *end {
            return Ok(Some(format!("{topic} {partition} stands at {position}, its end is {end}")));
        }
    }
    Ok(None)
}

fn missing(servers: &Servers, fleet: &Fleet) -> anyhow::Result<Option<String>> {
    for topic in [TOPIC, DELETED_TOPIC, SPOOLED_TOPIC, AGAIN_TOPIC] {
        if let Some(behind) = behind(servers, topic)? {
            return Ok(Some(behind));
        }
    }
    for (what, query) in WAITING {
        let count = servers.sql(query)?;
        if count != "0" {
            return Ok(Some(format!("{count} {what}")));
        }
    }
    let held = (0..fleet.count()).find(|index| {
        fleet.status(*index).is_none_or(|status| status["spool"]["records"] != 0 || status["ready"] != true)
    });
    Ok(held.map(|index| format!("daemon {index} is not ready, or its spool holds records")))
}

/// About how many records are compared once more, after the first daemon's `verify` has compared all of them.
const COMPARED_AGAIN: &str = "--sample=10000";

/// What `verify --json` finds with this daemon's directories. The records are those of all: the first daemon's compares
/// each of them.
pub(crate) fn verify(
    servers: &Servers,
    fleet: &Fleet,
    index: usize,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let mut command = Command::new(servers.binary());
    command
        .args(["verify", "--json"])
        .args((index > 0).then_some(COMPARED_AGAIN))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(fleet.homes[index].settings.iter().map(|(key, value)| (key, value)));
    command.env("DATABASE_URL", servers.url()).env("KAFKA_BROKERS", servers.brokers()).env("FAILPOINTS", "");
    let output = command.output()?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("verify: {}", String::from_utf8_lossy(&output.stderr)))?;
    std::fs::write(fleet.homes[index].dir.join("verify.json"), &output.stdout)?;
    if !output.status.success() {
        findings.add("verify", || {
            let mut report = report;
            let findings = report["findings"].take();
            format!("daemon {index}: {findings:#}")
        });
    }
    Ok(())
}

/// The counters of the position rows against the rows themselves and the ledger.
pub(crate) fn check_counters(
    servers: &Servers,
    (topic, ledger, rows): (&str, &Ledger, &Rows),
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let counters = servers.sql(&format!(
        "SELECT sum(events) || ' ' || sum(duplicates) || ' ' || sum(dead_letters) \
           FROM audit_events.consumer_offsets JOIN audit_events.streams USING (stream_id, group_id) \
          WHERE topic = '{topic}'"
    ))?;
    let counted: Vec<u64> = counters.split(' ').filter_map(|part| part.parse().ok()).collect();
    let found = [rows.event_count, rows.duplicate_count, rows.letter_count];
    if counted != found {
        findings.add("counters", || format!("positions count {counted:?}, the tables hold {found:?}"));
    }
    let counts = ledger.counts();
    let certain: u64 =
        Kind::ALL.iter().zip(counts).filter(|(kind, _)| kind.is_certain()).map(|(_, n)| n).sum();
    let most = certain
        + Kind::ALL
            .iter()
            .zip(counts)
            .filter(|(kind, _)| matches!(kind, Kind::UnsureEvent | Kind::UnsurePoison))
            .map(|(_, count)| count)
            .sum::<u64>()
        + u64::try_from(ledger.failed().len())?;
    let sum: u64 = counted.iter().sum();
    if sum < certain || sum > most {
        findings.add("counters", || format!("{sum} records are counted, the ledger has {certain} to {most}"));
    }
    Ok(())
}

/// No daemon has committed what another one had claimed since.
pub(crate) fn check_zombies(servers: &Servers, findings: &mut Findings) -> anyhow::Result<()> {
    let zombies = servers.sql("SELECT to_json(z) FROM torture.zombies AS z ORDER BY at")?;
    zombies.lines().for_each(|line| findings.add("zombie_commit", || line.to_owned()));
    Ok(())
}

/// Day files: each event's line once over all instances.
pub(crate) fn check_day_files(fleet: &Fleet, rows: &Rows, findings: &mut Findings) -> anyhow::Result<u64> {
    let mut line_count = 0;
    for (sink, key) in [("purview", "\"auditId\":\""), ("trust", "\"audit_id\":\"")] {
        let mut seen = vec![0u8; rows.by_index.len()];
        for path in day_files(fleet, sink)? {
            let file = BufReader::new(std::fs::File::open(&path)?);
            for line in file.lines() {
                let line = line?;
                line_count += 1;
                let id = line.split_once(key).and_then(|(_, rest)| rest.get(..36));
                let index = id.and_then(Payloads::index_of).and_then(|index| usize::try_from(index).ok());
                match index.and_then(|index| seen.get_mut(index)) {
                    Some(count) => *count = count.saturating_add(1),
                    None => findings.add("day_file_unknown", || format!("{}: {line}", path.display())),
                }
            }
        }
        for (index, (lines, events)) in seen.iter().zip(&rows.by_index).enumerate() {
            if lines < events {
                findings
                    .add("day_file_missing", || format!("{sink}: event {index}: {lines} of {events} lines"));
            } else if lines > events {
                findings
                    .add("day_file_twice", || format!("{sink}: event {index}: {lines} lines for {events}"));
            }
        }
    }
    Ok(line_count)
}

fn day_files(fleet: &Fleet, sink: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for home in &fleet.homes {
        let dir = home.dir.join(sink);
        if !dir.try_exists()? {
            continue;
        }
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                files.push(path);
            }
        }
    }
    Ok(files)
}
