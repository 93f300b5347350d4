//! How far an export is, by the time of its events; on standard error, and only where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

use crate::model::event::Timestamp;
use crate::observe::Clock;

/// After how many events the bar moves.
const STEP_COUNT: u64 = 4_096;

/// A bar over the range of time that is exported: from the first event, or `--from`, to now, or `--to`.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    /// In seconds, as [`seconds`] counts.
    start: Option<u64>,
    event_count: u64,
}

impl Progress {
    pub(super) fn new(from: Option<Timestamp>, to: Option<Timestamp>) -> Self {
        let now = Timestamp::from_unix_micros(Clock::default().unix_ms().saturating_mul(1_000));
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3}% of the time, {msg}") {
            bar.set_style(style);
        }
        // Until the first event is known, the length is where the end stands.
        let (start, end) = (from.map_or(0, seconds), to.or(now).map_or(0, seconds));
        bar.set_length(end.saturating_sub(start));
        Self { bar, start: from.map(seconds), event_count: 0 }
    }

    /// Counts an event at `time`; they come in order.
    pub(super) fn count(&mut self, time: Timestamp) {
        let start = *self.start.get_or_insert_with(|| {
            let start = seconds(time);
            self.bar.set_length(self.bar.length().unwrap_or(0).saturating_sub(start));
            start
        });
        self.event_count += 1;
        if self.event_count.is_multiple_of(STEP_COUNT) {
            let done = seconds(time).saturating_sub(start);
            self.bar.set_position(done.min(self.bar.length().unwrap_or(done)));
            self.bar.set_message(format!("{} events, at {time}", self.event_count));
        }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Seconds since the first time that an event can have.
fn seconds(time: Timestamp) -> u64 {
    let micros = time.as_unix_micros().saturating_sub(Timestamp::MIN.as_unix_micros());
    u64::try_from(micros / 1_000_000).unwrap_or(0)
}
