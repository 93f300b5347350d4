//! Rows of the tables against the ledger: each record once, by its coordinates, as what it is.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, bail};

use super::Findings;
use crate::ledger::{Entry, Ledger};
use crate::payload::Payloads;
use crate::producer::Feed;
use crate::servers::Servers;

/// What stands in the tables.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) event_count: u64,
    pub(crate) duplicate_count: u64,
    pub(crate) letter_count: u64,
    /// How many event rows each index of the plan has.
    pub(crate) by_index: Vec<u8>,
    /// How many rows each offset of the topic has that was read last, by partition.
    counts: Vec<Vec<u8>>,
    /// Coordinates of dead letters, by partition.
    pub(crate) letters: Vec<(usize, usize)>,
    pub(crate) lost_count: u64,
    pub(crate) doubled_count: u64,
    /// Records that were never acknowledged, and are there.
    pub(crate) unacknowledged_count: u64,
    /// Whether the event of an index must be there.
    is_certain: Vec<bool>,
}

/// The three tables: `e`, `d` or `l`, partition, offset, audit id.
fn query(stream: &str) -> String {
    format!(
        "SELECT 'e', source_partition, source_offset, audit_id FROM audit_events.events WHERE {stream} \
         UNION ALL \
         SELECT 'd', source_partition, source_offset, audit_id FROM audit_events.duplicates WHERE {stream} \
         UNION ALL \
         SELECT 'l', source_partition, source_offset, NULL FROM audit_events.dead_letters WHERE {stream}"
    )
}

impl Rows {
    /// Of no topic yet, for events up to this index.
    pub(crate) fn new(index_count: u64) -> anyhow::Result<Self> {
        let len = usize::try_from(index_count)?;
        Ok(Self { by_index: vec![0; len], is_certain: vec![false; len], ..Self::default() })
    }

    /// Reads what stands of a topic and compares each row with the ledger, then the ledger with the rows. `stream`: the
    /// condition for the topic's rows.
    pub(crate) fn check(
        &mut self,
        servers: &Servers,
        (topic, stream, ledger): (&str, &str, &Ledger),
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let lengths = ledger.lengths();
        self.counts = lengths.iter().map(|len| vec![0; *len]).collect();
        let failed = ledger.failed();
        let mut child = servers.copy_out(&query(stream)).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("psql has no output")?;
        for line in BufReader::new(output).lines() {
            let line = line?;
            let parts: Vec<&str> = line.split('\t').collect();
            let [fate, partition, offset, audit_id] = parts[..] else { bail!("psql said {line}") };
            let place = (partition.parse()?, offset.parse()?);
            let index = Payloads::index_of(audit_id);
            let entry = ledger.entry(place.0, place.1);
            self.count(fate, place, index);
            if entry.is_none() && failed_as(&failed, fate, index) {
                self.unacknowledged_count += 1;
                continue;
            }
            if !entry.is_some_and(|entry| fits(entry, fate, index)) {
                let what = if entry.is_none() { "row_of_no_record" } else { "row_of_another_kind" };
                findings.add(what, || {
                    format!(
                        "{topic} partition {partition} offset {offset}: {fate} {audit_id}, ledger {entry:?}"
                    )
                });
            }
        }
        if !child.wait()?.success() {
            bail!("psql could not copy the tables");
        }
        self.check_ledger(topic, ledger, findings);
        Ok(())
    }

    /// A topic that was created again: by its events, which are in one incarnation each, it is found out which stream is
    /// which incarnation.
    pub(crate) fn check_incarnations(
        &mut self,
        servers: &Servers,
        (topic, incarnations): (&str, &[Arc<Feed>]),
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let firsts = servers.sql(&format!(
            "SELECT DISTINCT ON (stream_id) stream_id || ' ' || source_offset || ' ' || audit_id \
               FROM audit_events.events \
              WHERE stream_id IN (SELECT stream_id FROM audit_events.streams WHERE topic = '{topic}')"
        ))?;
        let mut conditions = vec!["false".to_owned(); incarnations.len()];
        for line in firsts.lines() {
            let parts: Vec<&str> = line.split(' ').collect();
            let [stream, offset, audit_id] = parts[..] else { bail!("psql said {line}") };
            let (offset, index) = (offset.parse()?, Payloads::index_of(audit_id));
            let is_of =
                |feed: &Arc<Feed>| feed.ledger.entry(0, offset).is_some_and(|e| Some(e.index) == index);
            match incarnations.iter().position(is_of) {
                Some(place) => conditions[place] = format!("stream_id = '{stream}'"),
                None => findings.add("row_of_no_record", || format!("{topic}: {line}")),
            }
        }
        for (feed, condition) in incarnations.iter().zip(&conditions) {
            self.check(servers, (topic, condition, &feed.ledger), findings)?;
        }
        Ok(())
    }

    fn count(&mut self, fate: &str, (partition, offset): (usize, usize), index: Option<u64>) {
        match fate {
            "e" => self.event_count += 1,
            "d" => self.duplicate_count += 1,
            _ => {
                self.letter_count += 1;
                self.letters.push((partition, offset));
            }
        }
        if let Some(count) = self.counts.get_mut(partition).and_then(|counts| counts.get_mut(offset)) {
            *count = count.saturating_add(1);
        }
        let index = index.filter(|_| fate == "e").and_then(|index| usize::try_from(index).ok());
        if let Some(count) = index.and_then(|index| self.by_index.get_mut(index)) {
            *count = count.saturating_add(1);
        }
    }

    /// Each record once.
    fn check_ledger(&mut self, topic: &str, ledger: &Ledger, findings: &mut Findings) {
        let (mut lost, mut doubled) = (0, 0);
        ledger.each(|partition, offset, entry| {
            let count =
                self.counts.get(partition).and_then(|counts| counts.get(offset)).copied().unwrap_or(0);
            let place = || format!("{topic} partition {partition} offset {offset}: {entry:?}, {count} rows");
            if count == 0 && entry.kind.is_certain() {
                lost += 1;
                findings.add("lost", place);
            } else if count > 1 {
                doubled += 1;
                findings.add("doubled", place);
            }
            if entry.kind.is_event() && entry.kind.is_certain() {
                let slot = usize::try_from(entry.index).ok().and_then(|index| self.is_certain.get_mut(index));
                slot.into_iter().for_each(|slot| *slot = true);
            }
        });
        self.lost_count += lost;
        self.doubled_count += doubled;
    }

    /// Each event of the plan once, over all topics.
    pub(crate) fn check_events(&mut self, findings: &mut Findings) {
        for (index, (count, is_certain)) in self.by_index.iter().zip(&self.is_certain).enumerate() {
            if *count == 0 && *is_certain {
                self.lost_count += 1;
                findings.add("event_missing", || format!("event {index} has no row of its own"));
            } else if *count > 1 {
                self.doubled_count += 1;
                findings.add("event_twice", || format!("event {index} has {count} rows"));
            }
        }
    }
}

fn fits(entry: Entry, fate: &str, index: Option<u64>) -> bool {
    match fate {
        // Of an event and its duplicates, in other partitions, any may be first.
        "e" | "d" => entry.kind.is_event() && index == Some(entry.index),
        _ => entry.kind.is_letter(),
    }
}

/// Whether the row may be of a record that was never acknowledged.
fn failed_as(failed: &std::collections::HashSet<u64>, fate: &str, index: Option<u64>) -> bool {
    failed.iter().filter_map(|packed| Entry::unpack(*packed)).any(|entry| fits(entry, fate, index))
}
