//! What becomes of spans.

use prometheus::{IntCounterVec, Opts, Registry};

use super::PREFIX;

/// Counts spans. Cheap to clone; what one clone counts all have.
#[derive(Debug, Clone)]
pub struct SpanCounter(IntCounterVec);

impl SpanCounter {
    /// In a registry.
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        let spans = make!(r, IntCounterVec, "spans_total", "Spans, by outcome", &["outcome"]);
        ["sent", "failed", "dropped"].iter().for_each(|outcome| {
            spans.with_label_values(&[outcome]);
        });
        Ok(Self(spans))
    }

    /// For a command whose metrics nobody scrapes.
    ///
    /// # Errors
    /// When the name is wrong, which a test excludes.
    pub fn of_command() -> Result<Self, prometheus::Error> {
        Self::new(&Registry::new())
    }

    fn count(&self, outcome: &str, count: usize) {
        self.0.with_label_values(&[outcome]).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// The collector has them.
    pub(in crate::observe) fn sent(&self, count: usize) {
        self.count("sent", count);
    }

    /// The collector did not take them, or was away.
    pub(in crate::observe) fn failed(&self, count: usize) {
        self.count("failed", count);
    }

    /// The queue was full.
    pub(in crate::observe) fn dropped(&self, count: usize) {
        self.count("dropped", count);
    }
}
