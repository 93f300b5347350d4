//! What became of each source, as a table or as JSON.

use std::io::Write;

use serde_json::{Value, json};

use super::batch::{Candidate, Standing};
use super::seen::{Meeting, Seen};
use crate::cli::table::{Cell, Table, with_thousands};
use crate::model::position::StreamPartition;
use crate::store::{IMPORT_GROUP, ImportSource, SessionPurpose, StoreError, StoreSettings};

/// Records by their fate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) imported: u64,
    pub(super) duplicates: u64,
    pub(super) dead_letters: u64,
    pub(super) absent: u64,
}

impl Counts {
    /// What came to them since they were `before`.
    pub(super) const fn since(self, before: Self) -> Self {
        Self {
            imported: self.imported.saturating_sub(before.imported),
            duplicates: self.duplicates.saturating_sub(before.duplicates),
            dead_letters: self.dead_letters.saturating_sub(before.dead_letters),
            absent: self.absent.saturating_sub(before.absent),
        }
    }

    /// Counts what would become of a record.
    pub(super) fn foresee(&mut self, candidate: &Candidate, seen: &mut Seen) {
        self.absent += candidate.record.absent_before;
        match candidate.standing {
            Standing::NoEvent | Standing::Conflict(_) => self.dead_letters += 1,
            Standing::Known => self.duplicates += 1,
            Standing::New(audit_id, time) => match seen.meet(audit_id, time) {
                Meeting::First => self.imported += 1,
                // A repetition with other content would be a dead letter; that is not foreseen.
                Meeting::Again => self.duplicates += 1,
                Meeting::AtAnotherTime => self.dead_letters += 1,
            },
        }
    }

    const fn sum(&self) -> u64 {
        self.imported + self.duplicates + self.dead_letters + self.absent
    }

    fn to_json(self) -> Value {
        json!({
            "imported": self.imported, "duplicates": self.duplicates, "dead_letters": self.dead_letters,
            "absent": self.absent,
        })
    }
}

/// One source.
#[derive(Debug)]
pub(super) struct SourceReport {
    name: String,
    stream: Option<String>,
    record_count: i64,
    /// Of the whole import, over all runs.
    total: Counts,
    /// Of this run.
    now: Counts,
    /// Why it was not imported.
    refused: Option<String>,
}

impl SourceReport {
    pub(super) fn refused(name: &str, reason: String) -> Self {
        let nothing = Counts::default();
        Self {
            name: name.into(),
            stream: None,
            record_count: 0,
            total: nothing,
            now: nothing,
            refused: Some(reason),
        }
    }

    pub(super) fn done(source: &ImportSource, total: Counts, now: Counts) -> Self {
        Self {
            name: source.name.clone(),
            stream: Some(source.stream().topic.to_string()),
            record_count: source.record_count,
            total,
            now,
            refused: None,
        }
    }

    /// Whether each number of the source is accounted for.
    fn is_whole(&self) -> bool {
        self.refused.is_none() && u64::try_from(self.record_count) == Ok(self.total.sum())
    }
}

/// Every source.
#[derive(Debug)]
pub(super) struct Report {
    is_dry_run: bool,
    pub(super) sources: Vec<SourceReport>,
}

impl Report {
    pub(super) const fn new(is_dry_run: bool) -> Self {
        Self { is_dry_run, sources: Vec::new() }
    }

    /// Whether every source was imported to its end.
    pub(super) fn is_whole(&self) -> bool {
        self.sources.iter().all(SourceReport::is_whole)
    }

    fn totals(&self) -> Counts {
        let mut totals = Counts::default();
        for source in &self.sources {
            totals.imported += source.total.imported;
            totals.duplicates += source.total.duplicates;
            totals.dead_letters += source.total.dead_letters;
            totals.absent += source.total.absent;
        }
        totals
    }

    pub(super) fn write_to(&self, as_json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
        if as_json {
            writeln!(out, "{:#}", self.to_json())?;
            return Ok(());
        }
        let mut table = Table::new(&[
            "source",
            "records",
            "imported",
            "duplicates",
            "dead letters",
            "absent",
            if self.is_dry_run { "" } else { "in this run" },
        ]);
        let number = |count: u64| Cell::Number(i64::try_from(count).unwrap_or(i64::MAX));
        for source in self.sources.iter().filter(|source| source.refused.is_none()) {
            let mut row = vec![source.name.as_str().into(), source.record_count.into()];
            let Counts { imported, duplicates, dead_letters, absent } = source.total;
            row.extend([imported, duplicates, dead_letters, absent].map(number));
            if !self.is_dry_run {
                row.push(number(source.now.sum()));
            }
            table.push(row);
        }
        table.write_to(out)?;
        let totals = self.totals();
        let said = |count: u64| with_thousands(i64::try_from(count).unwrap_or(i64::MAX));
        writeln!(
            out,
            "\n{} records = {} {} + {} duplicates + {} dead letters + {} absent",
            said(totals.sum()),
            said(totals.imported),
            if self.is_dry_run { "that would be imported" } else { "imported" },
            said(totals.duplicates),
            said(totals.dead_letters),
            said(totals.absent),
        )?;
        if self.is_dry_run {
            writeln!(out, "a dry run: nothing was stored")?;
        } else if totals.dead_letters > 0 {
            writeln!(out, "dead letters: `KAFKA_GROUP_ID={IMPORT_GROUP} audit-consumer dlq list`")?;
        }
        for source in &self.sources {
            if let Some(reason) = &source.refused {
                writeln!(out, "not imported: {}: {reason}", source.name)?;
            }
        }
        Ok(())
    }

    fn to_json(&self) -> Value {
        let sources = self.sources.iter().map(|source| {
            json!({
                "source": source.name, "stream": source.stream, "records": source.record_count,
                "total": source.total.to_json(), "in_this_run": source.now.to_json(), "refused": source.refused,
            })
        });
        json!({
            "ok": self.is_whole(), "dry_run": self.is_dry_run, "totals": self.totals().to_json(),
            "sources": sources.collect::<Vec<_>>(),
        })
    }
}

/// What the account of an import says, over all runs.
pub(super) async fn total(store: &StoreSettings, key: StreamPartition) -> Result<Counts, StoreError> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let rows = session.offset_rows().await?;
    session.close().await;
    let count = |count: i64| u64::try_from(count).unwrap_or(0);
    let row = rows.iter().find(|row| row.key == key && row.group == IMPORT_GROUP);
    Ok(row.map_or_else(Counts::default, |row| Counts {
        imported: count(row.event_count),
        duplicates: count(row.duplicate_count),
        dead_letters: count(row.dead_letter_count),
        absent: count(row.absent_count),
    }))
}
