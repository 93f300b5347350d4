//! The last warnings and errors of the log, for the status page: at most 20 lines, each at most 500 bytes long.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, SecondsFormat};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::Clock;

/// How many lines are kept.
const LINE_MAX_COUNT: usize = 20;
/// How long a line may be, in bytes.
const TEXT_MAX_LEN_BYTES: usize = 500;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentLine {
    /// When it came last, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// WARN or ERROR.
    pub level: Level,
    /// Its message and fields, cut at 500 bytes.
    pub text: String,
    /// How often it came while it was kept.
    pub count: u64,
}

impl RecentLine {
    /// When it came last: RFC 3339 in UTC, with milliseconds.
    #[must_use]
    pub fn at(&self) -> String {
        let at = DateTime::from_timestamp_millis(self.at_ms).unwrap_or_default();
        at.to_rfc3339_opts(SecondsFormat::Millis, true)
    }
}

/// The last warnings and errors. Clones share them; as a layer it takes what passes its filter.
#[derive(Debug, Clone, Default)]
pub struct RecentLines {
    lines: Arc<Mutex<VecDeque<RecentLine>>>,
    clock: Clock,
}

impl RecentLines {
    /// The lines, newest first.
    #[must_use]
    pub fn newest_first(&self) -> Vec<RecentLine> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    /// A line that is there already becomes the newest again, so that one trouble does not push out all others.
    fn push(&self, level: Level, mut text: String) {
        text.truncate(text.floor_char_boundary(TEXT_MAX_LEN_BYTES));
        let at_ms = self.clock.unix_ms();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let same = lines.iter().position(|line| line.level == level && line.text == text);
        let count = same.and_then(|index| lines.remove(index)).map_or(0, |line| line.count) + 1;
        if lines.len() == LINE_MAX_COUNT {
            lines.pop_front();
        }
        lines.push_back(RecentLine { at_ms, level, text, count });
    }
}

impl<S: Subscriber> Layer<S> for RecentLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::WARN {
            return;
        }
        let mut words = Words::default();
        event.record(&mut words);
        self.push(level, words.message + &words.fields);
    }
}

/// An event as text: the message, then ` name=value` for each field.
#[derive(Debug, Default)]
struct Words {
    message: String,
    fields: String,
}

impl Words {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let written = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
        debug_assert!(written.is_ok(), "a text takes everything");
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn lines_of(write: impl FnOnce()) -> Vec<RecentLine> {
        let recent = RecentLines::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(recent.clone()), write);
        recent.newest_first()
    }

    #[test]
    fn warnings_and_errors_are_kept_with_their_fields_newest_first() {
        let lines = lines_of(|| {
            tracing::warn!(lane = 3, error = %"<b>away</b>", "postgresql is away");
            tracing::info!("not this");
            tracing::error!("the spool can't be read");
        });
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["the spool can't be read", "postgresql is away lane=3 error=<b>away</b>"]);
        assert_eq!(lines.first().map(|line| line.level), Some(Level::ERROR));
    }

    #[test]
    fn there_are_twenty_lines_at_most_and_one_that_comes_again_is_counted() {
        let lines = lines_of(|| {
            (0..30).for_each(|number| tracing::warn!(number, "one of many"));
            (0..1000).for_each(|_| tracing::warn!(number = 15, "one of many"));
        });
        assert_eq!(lines.len(), 20);
        let newest = lines.first().unwrap();
        assert_eq!((newest.text.as_str(), newest.count), ("one of many number=15", 1001));
    }

    #[test]
    fn a_text_is_cut_on_a_character_boundary() {
        let lines = lines_of(|| tracing::error!("{}", "é".repeat(400)));
        assert!((TEXT_MAX_LEN_BYTES - 1..=TEXT_MAX_LEN_BYTES).contains(&lines.first().unwrap().text.len()));
    }

    #[test]
    fn a_time_is_told_in_utc() {
        let line = RecentLine { at_ms: 1_767_323_045_006, level: Level::WARN, text: String::new(), count: 1 };
        assert_eq!(line.at(), "2026-01-02T03:04:05.006Z");
    }
}
