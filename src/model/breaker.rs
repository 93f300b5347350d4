//! The breaker: stops a partition when too many of its records are dead letters. A bad deploy upstream must not
//! empty a topic into its dead letter topic.
//!
//! It counts what was committed, so each time it was closed again it lets at least one window through: closing it
//! always makes progress.

use std::collections::VecDeque;

/// When to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerRule {
    /// More dead letters than this, in percent of the window's records, open it; 100 never does.
    pub share_percent: u8,
    /// How many records a window holds at least. It is as long as the batches that it takes to reach that.
    pub window_count: u64,
}

/// The breaker of one partition.
#[derive(Debug, Clone)]
pub struct Breaker {
    rule: BreakerRule,
    /// Records and dead letters of the latest batches, oldest first.
    batches: VecDeque<(u64, u64)>,
    record_count: u64,
    dead_letter_count: u64,
}

/// What made a breaker open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Records in the window.
    pub record_count: u64,
    /// Dead letters among them.
    pub dead_letter_count: u64,
}

impl Breaker {
    /// A closed breaker with an empty window.
    #[must_use]
    pub fn new(rule: BreakerRule) -> Self {
        Self { rule, batches: VecDeque::new(), record_count: 0, dead_letter_count: 0 }
    }

    /// Counts a committed batch. `Some` when the window is full and its share of dead letters is over the limit.
    #[must_use]
    pub fn count(&mut self, record_count: u64, dead_letter_count: u64) -> Option<Opened> {
        if record_count == 0 {
            return None;
        }
        self.batches.push_back((record_count, dead_letter_count));
        self.record_count += record_count;
        self.dead_letter_count += dead_letter_count;
        while let Some((oldest_count, oldest_dead_count)) = self.batches.front().copied()
            && self.record_count - oldest_count >= self.rule.window_count
        {
            self.batches.pop_front();
            self.record_count -= oldest_count;
            self.dead_letter_count -= oldest_dead_count;
        }
        let is_full = self.record_count >= self.rule.window_count;
        let is_over =
            self.dead_letter_count * 100 > self.record_count.saturating_mul(self.rule.share_percent.into());
        (is_full && is_over)
            .then_some(Opened { record_count: self.record_count, dead_letter_count: self.dead_letter_count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(share_percent: u8, batches: &[(u64, u64)], expect: Option<(u64, u64)>) {
        let mut breaker = Breaker::new(BreakerRule { share_percent, window_count: 1000 });
        let opened: Vec<Option<Opened>> =
            batches.iter().map(|(records, dead)| breaker.count(*records, *dead)).collect();
        let (last, earlier) = opened.split_last().unwrap();
        assert!(earlier.iter().all(Option::is_none), "{opened:?}");
        let expect =
            expect.map(|(record_count, dead_letter_count)| Opened { record_count, dead_letter_count });
        assert_eq!(*last, expect);
    }

    #[test]
    fn it_opens_over_the_share_of_a_full_window_only() {
        check(50, &[(999, 999)], None);
        check(50, &[(999, 999), (1, 0)], Some((1000, 999)));
        check(50, &[(1000, 500)], None);
        check(50, &[(1000, 501)], Some((1000, 501)));
        check(0, &[(5000, 1)], Some((5000, 1)));
        check(100, &[(5000, 5000)], None);
    }

    #[test]
    fn old_batches_leave_the_window() {
        check(50, &[(2000, 0), (600, 600), (400, 0)], Some((1000, 600)));
        check(50, &[(600, 300), (600, 300), (600, 0), (600, 0)], None);
        check(50, &[(0, 0), (1, 1), (1, 1)], None);
    }
}
