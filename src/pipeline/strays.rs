//! Strays: what the spool holds of partitions that no lane drains, as they belong to another instance, to a topic that
//! was created again, or to nobody.
//!
//! The daemon stores them only where their owner can't read them from Kafka; `spool drain` stores all. A partition is
//! never claimed for that: epoch and position are read, and the commit is refused when either has moved. The owner, if
//! there is one, finds that its position has moved, and goes on from there. So two instances can cost each other a
//! batch, and never take a partition from each other.
//!
//! Batches over a declared gap were taken for lost; they are set aside, that is, copied to quarantine before their
//! segment may go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::spooler::{SharedSpool, with_spool};
use super::storer::{Purpose, StoredCounts, Storer, decode_record};
use crate::failpoint;
use crate::model::batch::{BatchBuilder, BatchLimits};
use crate::model::decode::DecodeRules;
use crate::model::position::{Epoch, Offset, OffsetRange, StreamPartition};
use crate::model::record::{AssignmentId, Chunk};
use crate::model::spool::BatchLine;
use crate::observe::Traces;
use crate::spool::disk::{Disk, LocalDisk};
use crate::spool::{Drain, Next, Quarantined, SpoolError};
use crate::store::{Store, StoreError, StoreSettings};

/// What is to become of the spool's batches, by partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sorting {
    /// Stored from PostgreSQL's position on.
    pub store: BTreeSet<StreamPartition>,
    /// Declared gaps: what overlaps one is set aside, and stored beside that as the position says.
    pub gaps: BTreeMap<StreamPartition, Vec<OffsetRange>>,
}

impl Sorting {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.store.is_empty() && self.gaps.is_empty()
    }

    fn is_aside(&self, line: &BatchLine) -> bool {
        self.gaps.get(&line.key).is_some_and(|gaps| gaps.iter().any(|gap| overlap(*gap, line.range)))
    }
}

/// Whether two ranges have an offset in common.
#[must_use]
pub fn overlap(one: OffsetRange, other: OffsetRange) -> bool {
    one.start() < other.end() && other.start() < one.end()
}

/// What a pass over the spool did.
#[derive(Debug, Default)]
pub struct PassReport {
    /// What was stored, by partition.
    pub counts: BTreeMap<StreamPartition, StoredCounts>,
    /// Partitions whose position moved meanwhile by somebody else: another pass goes on.
    pub stale: BTreeSet<StreamPartition>,
    /// Partitions of which something is missing before what the spool holds next: `[position, start)`.
    pub holes: BTreeMap<StreamPartition, OffsetRange>,
    /// Partitions of which PostgreSQL took no more, and why.
    pub failed: BTreeMap<StreamPartition, String>,
    /// How many batches were set aside.
    pub aside_count: u64,
    /// Partitions of which a batch could not be set aside, and why.
    pub not_aside: BTreeMap<StreamPartition, String>,
    /// Segments that turned out to be damaged, and what was in them.
    pub quarantined: Vec<Quarantined>,
}

/// Why a pass ended early. Nothing is lost, and another one goes on where it stopped.
#[derive(Debug, thiserror::Error)]
pub enum StrayError {
    /// PostgreSQL.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A thread that read the spool died: a bug.
    #[error("a thread of the spool died")]
    Died,
}

/// Reads the spool and stores what it is told to.
#[derive(Debug)]
pub struct Strays<S: Store = StoreSettings, D: Disk = LocalDisk> {
    spool: SharedSpool<D>,
    storer: Storer<S>,
    limits: BatchLimits,
}

impl<S: Store, D: Disk> Strays<S, D> {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(
        spool: SharedSpool<D>,
        store: S,
        (rules, limits): (Arc<DecodeRules>, BatchLimits),
        traces: Traces,
    ) -> Self {
        Self { spool, storer: Storer::new(store, rules, traces), limits }
    }

    /// Ends the session.
    pub async fn close(self) {
        self.storer.close().await;
    }

    /// Reads the spool from its oldest batch to its end. `each` hears how many records were read.
    ///
    /// # Errors
    /// See [`StrayError`].
    pub async fn pass(
        &mut self,
        sorting: &Sorting,
        mut each: impl FnMut(u64) + Send,
    ) -> Result<PassReport, StrayError> {
        let mut report = PassReport::default();
        self.storer.read_sources().await?;
        let mut next = self.storer.positions(&sorting.store).await?;
        let mut builder = BatchBuilder::new(self.limits);
        let mut cursor = Drain::default();
        loop {
            let (found, read) = self.read(cursor).await?;
            cursor = read;
            let batch = match found {
                Next::End => break,
                Next::Quarantined(what) => {
                    tracing::error!(
                        ?what,
                        "a segment of the spool is damaged; what can be read of it is in quarantine"
                    );
                    report.quarantined.push(*what);
                    continue;
                }
                Next::Batch(batch) => batch,
            };
            each(batch.line.record_count);
            let line = batch.line.clone();
            let mut chunk = batch.into_chunk(AssignmentId(0));
            if sorting.is_aside(&line) {
                (cursor, chunk) = self.set_aside(cursor, &line, (chunk, &mut report)).await?;
            }
            self.push(&mut builder, &mut next, (line.key, chunk), &mut report);
            if builder.is_full() {
                self.flush(&mut builder, &mut next, &mut report).await?;
            }
        }
        self.flush(&mut builder, &mut next, &mut report).await?;
        Ok(report)
    }

    /// Adds what of `chunk` lies behind the partition's position.
    fn push(
        &self,
        builder: &mut BatchBuilder,
        next: &mut BTreeMap<StreamPartition, (Epoch, Offset)>,
        (key, chunk): (StreamPartition, Chunk),
        report: &mut PassReport,
    ) {
        let Some((epoch, position)) = next.get_mut(&key) else { return };
        if chunk.end <= *position {
            return;
        }
        if chunk.start > *position {
            if let Some(hole) = OffsetRange::new(*position, chunk.start) {
                report.holes.entry(key).or_insert(hole);
            }
            return;
        }
        let chunk = Arc::new(chunk.from(*position));
        let (rules, sources) = (Arc::clone(&self.storer.rules), Arc::clone(&self.storer.sources));
        let pushed = builder.push(&chunk, key, *epoch, |record, rows| {
            decode_record((chunk.value(record), record.offset), (key, &rules, &sources), rows)
        });
        match pushed {
            Ok(()) => *position = chunk.end,
            // It would have to follow what was pushed before it; then the next pass takes it.
            Err(gap) => {
                tracing::error!(partition = %key, ?gap, "a batch of the spool does not follow the one before")
            }
        }
    }

    async fn flush(
        &mut self,
        builder: &mut BatchBuilder,
        next: &mut BTreeMap<StreamPartition, (Epoch, Offset)>,
        report: &mut PassReport,
    ) -> Result<(), StrayError> {
        if builder.is_empty() {
            return Ok(());
        }
        failpoint::at("stray_before_commit");
        let stored = self.storer.store(builder.take(), Purpose::Advance).await?;
        failpoint::at("stray_after_commit");
        for (key, counts) in stored.counts {
            report.counts.entry(key).or_default().add(counts);
        }
        for (key, why) in &stored.failed {
            tracing::warn!(partition = %key, why, "postgresql takes no more of what the spool holds of a partition");
        }
        next.retain(|key, _| !stored.stale.contains(key) && !stored.failed.contains_key(key));
        report.stale.extend(stored.stale);
        report.failed.extend(stored.failed);
        Ok(())
    }

    /// Stores what of `chunk` lies in an open gap of `key`; returns what of it was stored.
    ///
    /// # Errors
    /// See [`StrayError`].
    pub async fn fill(
        &mut self,
        key: StreamPartition,
        chunk: Chunk,
        (actor, reason): (&str, &str),
    ) -> Result<StoredCounts, StrayError> {
        self.storer.read_sources().await?;
        let chunk = Arc::new(chunk);
        let (rules, sources) = (Arc::clone(&self.storer.rules), Arc::clone(&self.storer.sources));
        let mut builder = BatchBuilder::new(self.limits);
        let pushed = builder.push(&chunk, key, Epoch(0), |record, rows| {
            decode_record((chunk.value(record), record.offset), (key, &rules, &sources), rows)
        });
        debug_assert!(pushed.is_ok(), "the first chunk of a batch follows nothing");
        let stored = self.storer.store(builder.take(), Purpose::FillGap(actor, reason)).await?;
        Ok(stored.counts.get(&key).copied().unwrap_or_default())
    }

    /// Epoch and position of each of `keys` that has one.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn positions(
        &mut self,
        keys: &BTreeSet<StreamPartition>,
    ) -> Result<BTreeMap<StreamPartition, (Epoch, Offset)>, StoreError> {
        self.storer.positions(keys).await
    }

    async fn read(&self, mut cursor: Drain<D::File>) -> Result<(Next, Drain<D::File>), StrayError> {
        let read = with_spool(&self.spool, move |spool| {
            let next = spool.next(&mut cursor);
            (next, cursor)
        });
        let (next, cursor) = read.await.ok_or(StrayError::Died)?;
        Ok((next?, cursor))
    }

    /// Copies a batch to quarantine. Where that fails, its partition is noted: its segments may not go then.
    async fn set_aside(
        &self,
        cursor: Drain<D::File>,
        line: &BatchLine,
        (chunk, report): (Chunk, &mut PassReport),
    ) -> Result<(Drain<D::File>, Chunk), StrayError> {
        let of_thread = line.clone();
        let set = with_spool(&self.spool, move |spool| {
            let file = spool.set_aside(&cursor, (&of_thread, &chunk));
            (file, cursor, chunk)
        });
        let (file, cursor, chunk) = set.await.ok_or(StrayError::Died)?;
        match file {
            Ok(Some(file)) => {
                report.aside_count += 1;
                tracing::error!(
                    partition = %line.key, range = %line.range, file = %file.display(),
                    "records that were declared a gap are set aside; `spool drain --fill-gap --reason WHY` stores them"
                );
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(partition = %line.key, range = %line.range, %error, "records over a gap were not set aside");
                report.not_aside.insert(line.key, error.to_string());
            }
        }
        Ok((cursor, chunk))
    }
}
