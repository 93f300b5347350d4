//! What a lane tells the board, the metrics, the log and the traces; per batch, not per record.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::lane::GiveUp;
use super::spans::BatchSpans;
use crate::model::batch::{Batch, DeadLetter, Entry, Fate};
use crate::model::federated::SourceFlag;
use crate::model::record::Chunk;
use crate::model::rejection::RejectionCode;
use crate::model::spool::mode::Mode;
use crate::model::trace::{TraceContext, TraceId};
use crate::observe::Metrics;
use crate::observe::board::Board;
use crate::store::{CommitOutcome, CommitPath, CommittedPart, StoreError};

/// How many dead letters the log names in a second, by each lane.
const TOLD_MAX_COUNT: u64 = 20;

/// A lane's way to them.
#[derive(Debug, Clone)]
pub(super) struct LaneFacts {
    metrics: Arc<Metrics>,
    board: Board,
    spans: BatchSpans,
    /// In which second how many dead letters were named.
    told: Arc<Mutex<(i64, u64)>>,
}

/// Says in the log that a record is a dead letter; `true` when it did.
fn tell(batch: &Batch, entry: &Entry, letter: &DeadLetter) -> bool {
    let Some((chunk, record)) = batch.record_of(entry) else { return false };
    let context = TraceContext::of(chunk.headers(record), letter.correlation_id);
    tracing::info!(
        topic = &*chunk.source.topic,
        partition = chunk.source.partition.0,
        offset = entry.offset.as_i64(),
        reason = letter.rejection.code.as_str(),
        correlation_id = letter.correlation_id.map(tracing::field::display),
        trace_id = context.map(|context| tracing::field::display(context.trace)),
        "a record is a dead letter; `dlq show` has it"
    );
    true
}

impl LaneFacts {
    pub(super) fn new(metrics: Arc<Metrics>, board: Board, spans: BatchSpans) -> Self {
        Self { metrics, board, spans, told: Arc::default() }
    }

    /// Whether the log may name another dead letter.
    fn may_tell(&self, now_ms: i64) -> bool {
        let second = now_ms.div_euclid(1000);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.0 != second {
            *told = (second, 0);
        }
        told.1 += 1;
        told.1 <= TOLD_MAX_COUNT
    }

    pub(super) fn took(&self, chunk: &Chunk, elapsed: Duration) {
        self.metrics.consumed(&chunk.source.topic, chunk.records.len(), elapsed);
        let oldest_ms = chunk.records.first().and_then(|record| record.timestamp_ms);
        if let Some(owned) = self.board.lock().owned.get_mut(&chunk.assignment) {
            owned.took(chunk.end, oldest_ms);
        }
    }

    pub(super) fn gave_up(&self, why: &GiveUp) {
        self.metrics.gave_up(match why {
            GiveUp::ClaimedElsewhere => "claimed_elsewhere",
            GiveUp::PositionMoved => "position_moved",
            GiveUp::Discontinuity => "discontinuity",
            GiveUp::Broken(_) => "broken",
            GiveUp::BreakerOpened(_) => "breaker_opened",
        });
    }

    pub(super) fn found_committed(&self) {
        self.metrics.found_committed();
    }

    /// A piece of work ended; `has_batch`: it was to commit one.
    pub(super) fn worked(
        &self,
        has_batch: bool,
        outcome: &Result<Option<CommitOutcome>, StoreError>,
        (elapsed, default_count): (Duration, u64),
    ) {
        let name = match outcome {
            Ok(Some(CommitOutcome::Committed { .. })) => "committed",
            Ok(Some(CommitOutcome::Stale(_)) | None) => "stale",
            Err(error) => {
                self.metrics.database_error(error.class());
                error.class()
            }
        };
        if has_batch {
            self.metrics.commit_ended(name, elapsed);
        }
        if name == "committed" {
            self.metrics.default_partition_rows(default_count);
        }
    }

    pub(super) fn committed(&self, batch: &Batch, parts: &[CommittedPart], path: CommitPath, now_ms: i64) {
        let sum = |count: fn(&CommittedPart) -> u64| parts.iter().map(count).sum::<u64>();
        let event_count = sum(|part| part.event_count);
        let duplicate_count = sum(|part| part.duplicate_count);
        let dead_letter_count = sum(|part| part.dead_letter_count);
        let spooled_count = self.spooled_count(batch, parts);
        let path = match path {
            CommitPath::Direct => "direct",
            CommitPath::Merge => "merge",
        };
        self.metrics.events_committed(path, event_count.saturating_sub(spooled_count));
        self.metrics.events_committed("spool", spooled_count);
        self.metrics.counted(duplicate_count, dead_letter_count, sum(|part| part.absent_count));
        self.metrics.batch_committed(u32::try_from(batch.entries().len()).unwrap_or(u32::MAX));
        let mut rejected: BTreeMap<RejectionCode, u64> = BTreeMap::new();
        let mut flagged: BTreeMap<SourceFlag, u64> = BTreeMap::new();
        let mut trust: BTreeMap<u8, u64> = BTreeMap::new();
        let mut told_count = 0;
        for entry in batch.entries() {
            match &entry.fate {
                Fate::DeadLetter(letter) => {
                    *rejected.entry(letter.rejection.code).or_default() += 1;
                    told_count += u64::from(self.may_tell(now_ms) && tell(batch, entry, letter));
                }
                Fate::Event(_, noted) => {
                    *trust.entry(noted.trust_percent).or_default() += 1;
                    if let Some(flag) = noted.flag {
                        *flagged.entry(flag).or_default() += 1;
                    }
                }
            }
        }
        let rejected_count: u64 = rejected.values().sum();
        if rejected_count > told_count && self.may_tell(now_ms) {
            tracing::info!(
                count = rejected_count - told_count,
                "more records of the same commit are dead letters"
            );
        }
        self.metrics.trusted(&trust);
        flagged.into_iter().for_each(|(flag, count)| self.metrics.flagged(flag, count));
        let conflict_count = dead_letter_count.saturating_sub(rejected.values().sum());
        if conflict_count > 0 {
            *rejected.entry(RejectionCode::AuditIdConflict).or_default() += conflict_count;
        }
        rejected.iter().for_each(|(code, count)| self.metrics.rejected(*code, *count));
        let latencies_ms = || {
            batch.entries().iter().filter_map(|entry| {
                let timestamp_ms = batch.record_of(entry)?.1.timestamp_ms?;
                Some(u64::try_from(now_ms.saturating_sub(timestamp_ms)).unwrap_or(0))
            })
        };
        self.metrics.end_to_end(latencies_ms());
        let mut board = self.board.lock();
        board.totals.events += event_count;
        board.totals.duplicates += duplicate_count;
        board.totals.dead_letters += dead_letter_count;
        rejected.into_iter().for_each(|(code, count)| *board.rejections.entry(code).or_default() += count);
        latencies_ms().for_each(|latency_ms| board.latencies.add(latency_ms));
    }

    /// A commit was tried and ended. Returns the trace that tells of it, while traces go anywhere.
    pub(super) fn traced(
        &self,
        (batch, path): &(Batch, CommitPath),
        outcome: &Result<Option<CommitOutcome>, StoreError>,
        elapsed: Duration,
    ) -> Option<TraceId> {
        let outcome =
            outcome.as_ref().map_or_else(|error| Some(Err(error)), |outcome| outcome.as_ref().map(Ok))?;
        self.spans.committed((batch, *path), outcome, elapsed)
    }

    /// How many of the events stored came by the spool.
    fn spooled_count(&self, batch: &Batch, parts: &[CommittedPart]) -> u64 {
        let board = self.board.lock();
        let is_drained = |part: &&CommittedPart| {
            let own = batch.parts().iter().find(|own| own.key == part.key);
            own.and_then(|own| board.owned.get(&own.assignment))
                .is_some_and(|owned| owned.mode == Mode::Draining)
        };
        parts.iter().filter(is_drained).map(|part| part.event_count).sum()
    }
}
