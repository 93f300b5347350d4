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
    start: Option<Timestamp>,
    event_count: u64,
}

impl Progress {
    pub(super) fn new(from: Option<Timestamp>, to: Option<Timestamp>) -> Self {
        let now = Timestamp::from_unix_micros(Clock.unix_ms().saturating_mul(1_000));
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3}% of the time, {msg}") {
            bar.set_style(style);
        }
        let mut progress = Self { bar, start: None, event_count: 0 };
        if let Some(from) = from {
            progress.begin(from);
        }
        if let Some(end) = to.or(now) {
            // Until the start is known it stands for the whole of it.
            progress.bar.set_length(seconds(end).saturating_sub(progress.start.map_or(0, seconds)));
        }
        progress
    }

    fn begin(&mut self, start: Timestamp) {
        self.start = Some(start);
    }

    /// Counts an event at `time`; they come in order.
    pub(super) fn count(&mut self, time: Timestamp) {
        if self.start.is_none() {
            self.begin(time);
            self.bar.set_length(self.bar.length().unwrap_or(0).saturating_sub(seconds(time)));
        }
        self.event_count += 1;
        if self.event_count.is_multiple_of(STEP_COUNT) {
            let done = seconds(time).saturating_sub(self.start.map_or(0, seconds));
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
