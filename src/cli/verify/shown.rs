//! The report, for people and for programs.

use std::collections::HashSet;
use std::io::Write;

use serde_json::{Value, json};

use super::super::table::{Cell, Table, with_thousands};
use super::{KafkaAnswer, Report};
use crate::model::position::is_import;
use crate::store::{FateCounts, PartitionAccount};

impl Report {
    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for partition in &self.account.partitions {
            if let Some(position) = &partition.position {
                totals.positions += 1;
                totals.produced += position.produced();
                totals.absent += position.absent;
            }
            totals.stored.events += partition.stored.rows.events;
            totals.stored.duplicates += partition.stored.rows.duplicates;
            totals.stored.dead_letters += partition.stored.rows.dead_letters;
            totals.gaps += partition.gaps;
            totals.dropped += partition.stored.dropped;
            if let Some(lag) = self.lag(partition) {
                totals.lag = Some(totals.lag.unwrap_or(0) + lag);
            }
        }
        totals
    }

    pub(super) fn to_json(&self) -> Value {
        let totals = self.totals();
        let findings: Vec<Value> = self
            .findings
            .iter()
            .filter_map(|(index, finding)| Some((self.account.partitions.get(*index)?, finding)))
            .map(|(partition, finding)| {
                json!({
                    "code": finding.code.as_str(), "group": partition.group, "topic": partition.topic,
                    "stream_id": partition.key.stream.to_string(), "partition": partition.key.partition.0,
                    "expected": finding.expected, "found": finding.found, "text": finding.text,
                })
            })
            .collect();
        let repeated = &self.account.repeated_ids;
        let examples: Vec<Value> = repeated
            .examples
            .iter()
            .map(|(id, count)| json!({"audit_id": id.to_string(), "timestamps": count}))
            .collect();
        let (is_reachable, reason) = match &self.kafka {
            KafkaAnswer::NotAsked => (None, None),
            KafkaAnswer::Silent(reason) => (Some(false), Some(reason)),
            KafkaAnswer::Watermarks(_) => (Some(true), None),
        };
        json!({
            "ok": self.verdict(), "not_compared": self.not_compared(),
            "totals": {
                "positions": totals.positions, "produced": totals.produced, "events": totals.stored.events,
                "duplicates": totals.stored.duplicates, "dead_letters": totals.stored.dead_letters,
                "dead_letters_by_reason": self.account.dead_letters_by_reason,
                "absent": totals.absent, "gaps": totals.gaps, "dropped": totals.dropped, "lag": totals.lag,
            },
            "letters": self.letters.to_json(), "spool": self.spool.to_json(),
            "records": self.records.to_json(),
            "projections": self.projections.to_json(),
            "kafka": {"reachable": is_reachable, "reason": reason},
            "partitions": self.account.partitions.iter().map(|p| self.partition_json(p)).collect::<Vec<_>>(),
            "findings": findings,
            "audit_ids_under_several_times": {"count": repeated.count, "examples": examples},
        })
    }

    fn partition_json(&self, partition: &PartitionAccount) -> Value {
        let counts = |counts: &FateCounts| json!({"events": counts.events, "duplicates": counts.duplicates, "dead_letters": counts.dead_letters});
        let (position, stored) = (partition.position.as_ref(), &partition.stored);
        let watermarks = self.watermarks(partition);
        json!({
            "group": partition.group, "topic": partition.topic, "stream_id": partition.key.stream.to_string(),
            "partition": partition.key.partition.0, "retired": partition.is_retired,
            "first_offset": position.map(|p| p.first), "next_offset": position.map(|p| p.next),
            "counters": position.map(|p| counts(&p.counters)), "absent": position.map(|p| p.absent),
            "rows": counts(&stored.rows), "dropped": stored.dropped, "distinct_offsets": stored.distinct_offsets,
            "lowest_offset": stored.bounds.map(|(low, _)| low),
            "highest_offset": stored.bounds.map(|(_, high)| high),
            "gaps": partition.gaps,
            "kafka_low": watermarks.map(|(low, _)| low.as_i64()),
            "kafka_end": watermarks.map(|(_, end)| end.as_i64()),
            "lag": self.lag(partition), "kafka_note": self.note(partition),
        })
    }

    pub(super) fn write_tables(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        self.partition_table().write_to(out)?;
        let totals = self.totals();
        writeln!(out)?;
        writeln!(
            out,
            "{} offsets read = {} events + {} duplicates + {} dead letters + {} absent{}",
            with_thousands(totals.produced),
            with_thousands(totals.stored.events),
            with_thousands(totals.stored.duplicates),
            with_thousands(totals.stored.dead_letters),
            with_thousands(totals.absent),
            if self.findings.is_empty() { "" } else { " does not hold, see below" },
        )?;
        if totals.gaps > 0 {
            writeln!(out, "of the absent, {} were declared as gaps", with_thousands(totals.gaps))?;
        }
        if totals.dropped > 0 {
            writeln!(out, "of the events, {} were dropped by retention", with_thousands(totals.dropped))?;
        }
        for (reason, count) in &self.account.dead_letters_by_reason {
            writeln!(out, "dead letters, {reason}: {}", with_thousands(*count))?;
        }
        let repeated = &self.account.repeated_ids;
        if repeated.count > 0 {
            writeln!(out, "audit ids under several timestamps: {}", with_thousands(repeated.count))?;
            for (id, count) in &repeated.examples {
                writeln!(out, "  {id} under {count}")?;
            }
        }
        match &self.kafka {
            KafkaAnswer::NotAsked => writeln!(out, "kafka was not asked")?,
            KafkaAnswer::Silent(reason) => writeln!(out, "not compared with kafka: {reason}")?,
            KafkaAnswer::Watermarks(_) => {
                let lag = totals.lag.map_or_else(|| "unknown".into(), with_thousands);
                writeln!(out, "lag to kafka's end, in offsets: {lag}")?;
            }
        }
        let lines = self.records.lines().into_iter().chain(self.letters.lines()).chain(self.spool.lines());
        for line in lines {
            writeln!(out, "{line}")?;
        }
        self.projections.write_to(out)?;
        self.write_notes_and_findings(out)
    }

    fn write_notes_and_findings(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let imports = self.account.partitions.iter().filter(|partition| is_import(&partition.topic)).count();
        if imports > 0 {
            writeln!(out, "imports, which have no topic in kafka to be compared with: {imports}")?;
        }
        for partition in self.account.partitions.iter().filter(|partition| !is_import(&partition.topic)) {
            if let Some(note) = self.note(partition) {
                writeln!(out, "not compared with kafka: {}: {note}", name_of(partition))?;
            }
        }
        writeln!(out)?;
        if self.findings.is_empty() {
            let not_compared = self.not_compared();
            if not_compared.is_empty() {
                writeln!(out, "the account holds")?;
                return Ok(());
            }
            writeln!(out, "the account holds as far as it was compared; this was not:")?;
            for what in not_compared {
                writeln!(out, "  {what}")?;
            }
            return Ok(());
        }
        writeln!(out, "the account does not hold: {} findings", self.findings.len())?;
        let mut table = Table::new(&["finding", "partition", "expected", "found", "meaning"]);
        for (index, finding) in &self.findings {
            let name = self.account.partitions.get(*index).map(name_of).unwrap_or_default();
            table.push(vec![
                finding.code.as_str().into(),
                name.as_str().into(),
                finding.expected.as_str().into(),
                finding.found.as_str().into(),
                finding.text.as_str().into(),
            ]);
        }
        table.write_to(out)?;
        Ok(())
    }

    fn partition_table(&self) -> Table {
        let mut table = Table::new(&[
            "group",
            "topic",
            "partition",
            "first",
            "next",
            "events",
            "duplicates",
            "dead letters",
            "absent",
            "gaps",
            "kafka end",
            "lag",
            "account",
        ]);
        let broken: HashSet<usize> = self.findings.iter().map(|(index, _)| *index).collect();
        for (index, partition) in self.account.partitions.iter().enumerate() {
            let position = partition.position.as_ref();
            let rows = &partition.stored.rows;
            table.push(vec![
                partition.group.as_str().into(),
                topic_of(partition).as_str().into(),
                i64::from(partition.key.partition.0).into(),
                position.map(|p| p.first).into(),
                position.map(|p| p.next).into(),
                rows.events.into(),
                rows.duplicates.into(),
                rows.dead_letters.into(),
                position.map(|p| p.absent).into(),
                partition.gaps.into(),
                self.watermarks(partition).map(|(_, end)| end.as_i64()).into(),
                self.lag(partition).into(),
                Cell::from(if broken.contains(&index) { "BROKEN" } else { "holds" }),
            ]);
        }
        table
    }
}

/// Sums over the partitions of a report; events, duplicates and dead letters as the tables have them, or had.
#[derive(Debug, Default)]
struct Totals {
    positions: i64,
    produced: i64,
    stored: FateCounts,
    absent: i64,
    gaps: i64,
    dropped: i64,
    lag: Option<i64>,
}

fn topic_of(partition: &PartitionAccount) -> String {
    match (&*partition.topic, partition.is_retired) {
        ("", _) => format!("unknown stream {}", partition.key.stream),
        (topic, true) => format!("{topic} (retired)"),
        (topic, false) => topic.into(),
    }
}

fn name_of(partition: &PartitionAccount) -> String {
    format!("{}/{}", topic_of(partition), partition.key.partition)
}
