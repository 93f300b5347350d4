//! The last 15 minutes, in steps of 5 s: for people who have no time series at hand. Constant memory, never on disk.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Clock;
use super::board::{Board, BoardState};
use super::latency::Latencies;

/// How long a step is.
pub const STEP: Duration = Duration::from_secs(5);
/// How many steps are kept: 15 minutes.
const STEP_COUNT: usize = 180;

/// What happened in one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// When it ended, in milliseconds since the Unix epoch.
    pub ended_at_ms: i64,
    /// Records stored in PostgreSQL per second: events, duplicates and dead letters.
    pub stored_per_second: f64,
    /// Records appended to the spool per second.
    pub spooled_per_second: f64,
    /// The 99th percentile of the latencies from a record's own time to its commit; `None` without commits.
    pub p99_ms: Option<u64>,
    /// The mode of the process at its end.
    pub mode: &'static str,
}

/// The counters as they stood when a step began.
#[derive(Debug)]
struct Counters {
    at: Instant,
    stored_count: u64,
    spooled_count: u64,
    latencies: Latencies,
}

impl Counters {
    fn of(board: &BoardState, at: Instant) -> Self {
        Self {
            at,
            stored_count: board.totals.record_count(),
            spooled_count: board.spooled_count,
            latencies: board.latencies.clone(),
        }
    }

    /// The step from `earlier` to these, at whose end the process was in `mode`; a late one is longer than [`STEP`].
    fn step_since(&self, earlier: &Self, ended_at_ms: i64, mode: &'static str) -> Step {
        let seconds = self.at.saturating_duration_since(earlier.at).as_secs_f64();
        let per_second = |now: u64, then: u64| {
            // Exact: no process counts 2^32 records within a step.
            let count = u32::try_from(now.saturating_sub(then)).unwrap_or(u32::MAX);
            if seconds > 0.0 { f64::from(count) / seconds } else { 0.0 }
        };
        Step {
            ended_at_ms,
            stored_per_second: per_second(self.stored_count, earlier.stored_count),
            spooled_per_second: per_second(self.spooled_count, earlier.spooled_count),
            p99_ms: self.latencies.since(&earlier.latencies).percentile_ms(99),
            mode,
        }
    }
}

/// The steps, oldest first. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<Mutex<VecDeque<Step>>>);

impl History {
    /// The steps of the last 15 minutes, oldest first.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn push(&self, step: Step) {
        let mut steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if steps.len() == STEP_COUNT {
            steps.pop_front();
        }
        steps.push_back(step);
    }

    /// Adds a step every [`STEP`], for ever. Cancel safe: what is dropped is the step that was going on.
    pub async fn record(self, board: Board, clock: Clock) -> Infallible {
        let mut before = Counters::of(&board.lock(), clock.monotonic());
        loop {
            tokio::time::sleep(STEP).await;
            let (now, mode) = {
                let board = board.lock();
                (Counters::of(&board, clock.monotonic()), board.mode_counts().word())
            };
            self.push(now.step_since(&before, clock.unix_ms(), mode));
            before = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_tells_what_came_within_it() {
        let mut board = BoardState::default();
        board.totals.events = 1_000;
        board.latencies.add(60_000);
        let start = Clock::default().monotonic();
        let before = Counters::of(&board, start);
        board.totals.events += 70;
        board.totals.duplicates += 20;
        board.totals.dead_letters += 10;
        board.spooled_count += 50;
        (0..100).for_each(|_| board.latencies.add(4));
        let step = Counters::of(&board, start + Duration::from_secs(10)).step_since(&before, 7, "live");
        let expected = Step {
            ended_at_ms: 7,
            stored_per_second: 10.0,
            spooled_per_second: 5.0,
            p99_ms: Some(4),
            mode: "live",
        };
        assert_eq!(step, expected);
        let later = Counters::of(&board, start + Duration::from_secs(15));
        let idle = later.step_since(&Counters::of(&board, start + Duration::from_secs(10)), 8, "live");
        assert_eq!((idle.stored_per_second, idle.p99_ms), (0.0, None));
    }

    #[test]
    fn the_last_fifteen_minutes_are_kept_and_no_more() {
        let history = History::default();
        let board = BoardState::default();
        let counters = Counters::of(&board, Clock::default().monotonic());
        (0..500).for_each(|ended_at_ms| history.push(counters.step_since(&counters, ended_at_ms, "idle")));
        let steps = history.steps();
        let ends = (steps.first().unwrap().ended_at_ms, steps.last().unwrap().ended_at_ms);
        assert_eq!((steps.len(), ends), (STEP_COUNT, (320, 499)));
        assert_eq!(STEP * u32::try_from(STEP_COUNT).unwrap(), Duration::from_secs(900));
    }
}
