//! What traces tell of dead letters that were sent, to their topic or back to the source's.

use std::borrow::Cow;
use std::time::Instant;

use crate::model::dead_letter::DeadLetterRow;
use crate::observe::spans::{Failure, Lasted, Messaging, Operation, Step, TracedRecord};
use crate::observe::{Clock, Traces};

/// Makes spans of transactions of dead letters.
#[derive(Debug, Clone)]
pub struct LetterSpans {
    /// Where they go.
    pub traces: Traces,
    /// Time.
    pub clock: Clock,
}

/// Dead letters that are about to be sent.
#[derive(Debug)]
pub struct TracedLetters {
    records: Vec<TracedRecord>,
    count: usize,
    began_at: Instant,
}

impl LetterSpans {
    /// What the dead letter topic gets: kept always. A letter's span has the same id for ever: where its `traceparent` is
    /// ours it names it, and who finds letters sent by a relay that died tells of them once more.
    #[must_use]
    pub fn letters<'a>(&self, rows: impl ExactSizeIterator<Item = &'a DeadLetterRow>) -> TracedLetters {
        self.begin(rows, |row, record| {
            record.span = row.id.span();
            record.rejection = Some(Cow::Owned(row.reason.clone()));
        })
    }

    /// What a source topic gets back.
    #[must_use]
    pub fn redriven<'a>(&self, rows: impl ExactSizeIterator<Item = &'a DeadLetterRow>) -> TracedLetters {
        self.begin(rows, |_, _| {})
    }

    fn begin<'a>(
        &self,
        rows: impl ExactSizeIterator<Item = &'a DeadLetterRow>,
        change: impl Fn(&DeadLetterRow, &mut TracedRecord),
    ) -> TracedLetters {
        let count = rows.len();
        let traced = rows.filter(|_| self.traces.is_on()).filter_map(|row| {
            let mut record = TracedRecord {
                context: row.trace_context()?,
                span: None,
                // Where it will stand is not known yet.
                partition: None,
                offset: None,
                correlation_id: row.correlation_id,
                audit_id: None,
                rejection: None,
            };
            change(row, &mut record);
            Some(record)
        });
        TracedLetters { records: traced.collect(), count, began_at: self.clock.monotonic() }
    }

    /// They were sent to `topic` by a producer of `group`, or not: `error` is its class and for people.
    pub fn ended(&self, letters: TracedLetters, topic: &str, error: Option<(&'static str, String)>) {
        let Some(trace) = self.traces.begin() else { return };
        let elapsed = self.clock.monotonic().saturating_duration_since(letters.began_at);
        let to = self.clock.system();
        let root = Messaging {
            operation: Operation::Send,
            topic: Some(topic),
            partition: None,
            group: None,
            record_count: letters.count,
            lasted: Lasted { from: to.checked_sub(elapsed).unwrap_or(to), to },
        };
        let failure = error.map(|(kind, message)| Failure { kind: Cow::Borrowed(kind), message });
        let (polls, attributes) = (Vec::new(), Vec::new());
        let step = Step { trace, root, polls, statement: None, attributes, failure };
        self.traces.step(step, letters.records.into_iter());
    }
}
