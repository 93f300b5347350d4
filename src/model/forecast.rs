//! How fast something grows, and so when it will have grown by so much.

use std::collections::VecDeque;

/// A number that grows, as it was seen over the last while.
#[derive(Debug, Clone)]
pub struct Growth {
    window_ms: i64,
    spacing_ms: i64,
    /// Time and value, oldest first.
    samples: VecDeque<(i64, u64)>,
}

impl Growth {
    /// Looks back over `window_ms`, at a sample every `spacing_ms` at most.
    #[must_use]
    pub const fn over(window_ms: i64, spacing_ms: i64) -> Self {
        Self { window_ms, spacing_ms, samples: VecDeque::new() }
    }

    /// Notes the value at a time. One that is smaller than before, or a time that is, begins anew.
    pub fn note(&mut self, at_ms: i64, value: u64) {
        match self.samples.back() {
            Some((last_ms, last)) if *last > value || *last_ms > at_ms => self.samples.clear(),
            Some((last_ms, _)) if at_ms - last_ms < self.spacing_ms => return,
            _ => {}
        }
        self.samples.push_back((at_ms, value));
        while self.samples.get(1).is_some_and(|(second_ms, _)| at_ms - second_ms >= self.window_ms) {
            self.samples.pop_front();
        }
    }

    /// In how many seconds it will have grown by `room`, at the rate of the window; `None` while it does not grow.
    #[must_use]
    #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "an estimate for people")]
    pub fn seconds_until(&self, room: u64) -> Option<f64> {
        let ((first_ms, first), (last_ms, last)) = (self.samples.front()?, self.samples.back()?);
        let (elapsed_ms, grown) = (last_ms - first_ms, last - first);
        (elapsed_ms > 0 && grown > 0).then(|| room as f64 / grown as f64 * elapsed_ms as f64 / 1_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(samples: &[(i64, u64)]) -> Growth {
        let mut growth = Growth::over(60_000, 1_000);
        samples.iter().for_each(|(at_ms, value)| growth.note(*at_ms, *value));
        growth
    }

    fn check(samples: &[(i64, u64)], room: u64, expected: Option<f64>) {
        assert_eq!(growth(samples).seconds_until(room), expected, "{samples:?}");
    }

    #[test]
    fn the_rate_of_the_window_tells_when_there_is_no_room_left() {
        check(&[], 100, None);
        check(&[(0, 5)], 100, None);
        check(&[(0, 0), (10_000, 100)], 50, Some(5.0));
        check(&[(0, 0), (10_000, 100)], 0, Some(0.0));
        // Standing still.
        check(&[(0, 7), (10_000, 7)], 50, None);
        // Falling, and a clock that was set back, begin anew.
        check(&[(0, 100), (10_000, 50), (20_000, 60)], 10, Some(10.0));
        check(&[(50_000, 0), (10_000, 10), (20_000, 20)], 10, Some(10.0));
        // What came before the window does not count, but for the sample that begins it.
        check(&[(0, 0), (100_000, 1_000), (160_000, 1_060)], 60, Some(60.0));
        // Samples that are too close are left out.
        check(&[(0, 0), (10, 1_000), (10_000, 100)], 100, Some(10.0));
    }

    #[test]
    fn a_long_life_keeps_few_samples() {
        let mut growth = Growth::over(60_000, 1_000);
        for at in 0..100_000 {
            growth.note(at * 100, u64::try_from(at).unwrap());
        }
        assert!(growth.samples.len() <= 62, "{}", growth.samples.len());
    }
}
