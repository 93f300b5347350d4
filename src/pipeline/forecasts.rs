//! When the spool will be full, and when Kafka deletes what is nowhere else: for people, decided is nothing by it.

use std::collections::HashMap;

use crate::model::forecast::Growth;
use crate::model::record::AssignmentId;
use crate::observe::board::Board;

/// How far the rates look back, and how often they are sampled at most.
const SPOOL_WINDOW_MS: i64 = 60_000;
const SPOOL_SPACING_MS: i64 = 1_000;
const LOW_WINDOW_MS: i64 = 600_000;
const LOW_SPACING_MS: i64 = 10_000;

/// What was seen so far.
#[derive(Debug)]
pub(super) struct Forecasts {
    spool: Growth,
    lows: HashMap<AssignmentId, Growth>,
}

impl Default for Forecasts {
    fn default() -> Self {
        Self { spool: Growth::over(SPOOL_WINDOW_MS, SPOOL_SPACING_MS), lows: HashMap::new() }
    }
}

impl Forecasts {
    /// Looks at the board and writes what is to be expected there.
    pub(super) fn update(&mut self, board: &Board, now_ms: i64) {
        let mut board = board.lock();
        let stats = &board.spool.stats;
        self.spool.note(now_ms, stats.held_len_bytes);
        let full_in_seconds = self.spool.seconds_until(stats.room_len_bytes).filter(|_| board.spool.is_on);
        board.spool.full_in_seconds = full_in_seconds;
        self.lows.retain(|assignment, _| board.owned.contains_key(assignment));
        let mut soonest: Option<f64> = None;
        for (assignment, owned) in &board.owned {
            let Some(low) = owned.low else { continue };
            let growth =
                self.lows.entry(*assignment).or_insert_with(|| Growth::over(LOW_WINDOW_MS, LOW_SPACING_MS));
            growth.note(now_ms, u64::try_from(low.as_i64()).unwrap_or(0));
            let kept = owned.spooled_to.map_or(owned.position, |spooled_to| spooled_to.max(owned.position));
            // With nothing to read there is nothing to lose.
            if owned.end.is_some_and(|end| end <= kept) {
                continue;
            }
            let seconds = growth.seconds_until(low.distance_to(kept).unwrap_or(0));
            soonest = match (soonest, seconds) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        board.retention_loss_in_seconds = soonest;
    }
}
