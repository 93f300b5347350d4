//! The spool on this disk against positions and gaps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::cli::table::with_thousands;
use crate::model::position::{Offset, OffsetRange, StreamPartition};
use crate::pipeline::overlap;
use crate::spool::disk::LocalDisk;
use crate::spool::{Inspection, PartitionRanges, SegmentPlace, SpoolError, joined};
use crate::store::{Account, Finding, FindingCode, SessionPurpose, StoreError, StoreSettings};

/// How often the directory is read, when a file is gone meanwhile.
const READ_MAX_COUNT: usize = 3;

/// What the spool holds of one partition.
#[derive(Debug)]
struct Row {
    topic: Arc<str>,
    key: StreamPartition,
    /// Ranges that wait for PostgreSQL: held, and behind the position.
    waiting: Vec<OffsetRange>,
}

/// What was found in `SPOOL_DIR`.
#[derive(Debug, Default)]
pub(super) struct SpoolView {
    dir: Option<PathBuf>,
    rows: Vec<Row>,
    /// Why it was not looked at.
    note: Option<String>,
    pub(super) findings: Vec<(StreamPartition, Finding)>,
}

impl SpoolView {
    /// Reads the spool in `dir`, if there is one, against `account`, which was read before.
    pub(super) async fn compare(
        dir: Option<&Path>,
        account: &Account,
        store: &StoreSettings,
    ) -> Result<Self, StoreError> {
        let is_there =
            |dir: &&Path| dir.try_exists().unwrap_or(true) && Inspection::new(dir, LocalDisk).is_spool();
        let Some(dir) = dir.filter(is_there) else {
            return Ok(Self::default());
        };
        let mut view = Self { dir: Some(dir.to_owned()), ..Self::default() };
        // A daemon may move a file between listing and reading it.
        let read = || (0..READ_MAX_COUNT).find_map(|_| ranges(dir).ok()).map_or_else(|| ranges(dir), Ok);
        let (held, all) = match tokio::task::block_in_place(read) {
            Ok(ranges) => ranges,
            Err(error) => {
                view.note = Some(error.to_string());
                return Ok(view);
            }
        };
        let next: BTreeMap<StreamPartition, Offset> = account
            .partitions
            .iter()
            .filter_map(|partition| Some((partition.key, Offset::new(partition.position?.next)?)))
            .collect();
        for (key, range) in joined(&held) {
            let start = next.get(&key).map_or(range.start(), |next| range.start().max(*next));
            let Some(waiting) = OffsetRange::new(start, range.end()).filter(|range| !range.is_empty()) else {
                continue;
            };
            match view.rows.last_mut().filter(|row| row.key == key) {
                Some(row) => row.waiting.push(waiting),
                None => {
                    let topic = held.iter().find(|held| held.key == key).map(|held| Arc::clone(&held.topic));
                    view.rows.push(Row {
                        topic: topic.unwrap_or_else(|| "".into()),
                        key,
                        waiting: vec![waiting],
                    });
                }
            }
        }
        let mut session = store.connect(SessionPurpose::Operator).await?;
        let keys: BTreeSet<StreamPartition> = all.iter().map(|ranges| ranges.key).collect();
        let gaps = session.open_gaps(&keys).await?;
        session.close().await;
        let ranges = joined(&all);
        for (key, gap) in gaps {
            for (_, range) in ranges.iter().filter(|(other, range)| *other == key && overlap(*range, gap)) {
                let text = format!(
                    "records that were declared lost are in {}; `spool drain --fill-gap --reason WHY` stores them",
                    dir.display()
                );
                let finding =
                    Finding::new(FindingCode::GapIsSpooled, (format!("no gap over {range}"), gap), text);
                view.findings.push((key, finding));
            }
        }
        Ok(view)
    }

    /// Why it was not compared.
    pub(super) fn note(&self) -> Option<String> {
        let (dir, note) = (self.dir.as_ref()?, self.note.as_ref()?);
        Some(format!("the spool in {}: {note}", dir.display()))
    }

    /// What is to be said of it, a line each.
    pub(super) fn lines(&self) -> Vec<String> {
        let Some(dir) = &self.dir else { return Vec::new() };
        if let Some(note) = &self.note {
            return vec![format!("the spool in {} was not compared: {note}", dir.display())];
        }
        let mut lines: Vec<String> = self
            .rows
            .iter()
            .map(|row| {
                let ranges = row.waiting.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                format!("waiting in the spool: {}/{} {ranges}", row.topic, row.key.partition)
            })
            .collect();
        let span: u64 = self.rows.iter().flat_map(|row| &row.waiting).map(OffsetRange::span).sum();
        lines.push(format!(
            "offsets that wait in the spool: {}",
            with_thousands(i64::try_from(span).unwrap_or(i64::MAX))
        ));
        lines
    }

    pub(super) fn to_json(&self) -> Value {
        let row = |row: &Row| {
            let waiting: Vec<Value> = row
                .waiting
                .iter()
                .map(|range| json!([range.start().as_i64(), range.end().as_i64()]))
                .collect();
            json!({
                "topic": &*row.topic, "stream_id": row.key.stream.to_string(), "partition": row.key.partition.0,
                "waiting": waiting,
            })
        };
        json!({
            "dir": self.dir.as_ref().map(|dir| dir.display().to_string()), "note": self.note,
            "partitions": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// What is held, and what is anywhere in the directory.
fn ranges(dir: &Path) -> Result<(Vec<PartitionRanges>, Vec<PartitionRanges>), SpoolError> {
    let inspection = Inspection::new(dir, LocalDisk);
    let (mut held, mut all) = (Vec::new(), Vec::new());
    for file in inspection.files()?.into_iter().filter(|file| file.len_bytes > 0) {
        let ranges = inspection.summary(&file)?.ranges;
        if file.place == SegmentPlace::Held {
            held.extend(ranges.iter().cloned());
        }
        all.extend(ranges);
    }
    Ok((held, all))
}
