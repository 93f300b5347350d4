//! What a lane tells the board and the metrics; per batch, not per record.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::board::Board;
use super::lane::GiveUp;
use crate::model::batch::{Batch, Fate};
use crate::model::record::Chunk;
use crate::store::{CommitOutcome, CommitPath, CommittedPart, StoreError};

/// A lane's way to the metrics.
#[derive(Debug, Clone)]
pub(super) struct LaneFacts {}

impl LaneFacts {
    pub(super) fn new() -> Self {
        Self {}
    }

    pub(super) fn took(&self, _chunk: &Chunk, _elapsed: Duration) {}

    pub(super) fn gave_up(&self, _why: &GiveUp) {}

    pub(super) fn found_committed(&self) {}

    pub(super) fn worked(
        &self,
        _batch: Option<&Batch>,
        _outcome: &Result<Option<CommitOutcome>, StoreError>,
        (_elapsed, _default_count): (Duration, u64),
    ) {
    }

    pub(super) fn committed(
        &self,
        batch: &Batch,
        parts: &[CommittedPart],
        _path: CommitPath,
        now: SystemTime,
        board: &Board,
    ) {
        let now_ms = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
        let mut board = board.lock();
        for part in parts {
            board.totals.events += part.event_count;
            board.totals.duplicates += part.duplicate_count;
            board.totals.dead_letters += part.dead_letter_count;
        }
        for entry in batch.entries() {
            let Fate::Event(_) = entry.fate else { continue };
            let timestamp_ms = batch.record_of(entry).and_then(|(_, record)| record.timestamp_ms);
            if let Some(timestamp_ms) = timestamp_ms {
                board.latencies.add(u64::try_from(now_ms.saturating_sub(timestamp_ms)).unwrap_or(0));
            }
        }
    }
}
