//! What traces tell of the lanes' commits and of the spooler's appends.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::KeyValue;

use crate::model::batch::{Batch, Entry, Fate};
use crate::model::decode::identify;
use crate::model::position::TopicPartition;
use crate::model::record::Chunk;
use crate::model::trace::{TraceContext, TraceId};
use crate::observe::spans::{Failure, Lasted, Messaging, Operation, Server, Statement, Step, TracedRecord};
use crate::observe::{Clock, Traces};
use crate::store::{CommitOutcome, CommitPath, Store, StoreError, copy};

/// The table that a commit copies to.
const TABLE: &str = "audit_events.events";

/// Makes spans of what the pipeline did.
#[derive(Debug, Clone)]
pub(super) struct BatchSpans {
    pub(super) traces: Traces,
    group: Arc<str>,
    server: Option<Server>,
    pub(super) clock: Clock,
}

impl BatchSpans {
    pub(super) fn new(store: &impl Store, traces: Traces, clock: Clock) -> Self {
        // Where the URL is in a file: the one at the start.
        let server = store.place().map(|(host, port, database)| Server { host, port, database });
        Self { traces, group: Arc::clone(store.group()), server, clock }
    }

    /// A commit ended that took `elapsed`. Returns the trace that tells of it, while traces go anywhere. A stale one is told
    /// by nobody: what it holds is told by whoever stores it.
    pub(super) fn committed(
        &self,
        (batch, path): (&Batch, CommitPath),
        outcome: Result<&CommitOutcome, &StoreError>,
        elapsed: Duration,
    ) -> Option<TraceId> {
        let trace = self.traces.begin().filter(|_| !matches!(outcome, Ok(CommitOutcome::Stale(_))))?;
        let lasted = self.lasted(elapsed);
        let chunks = chunks_of(batch);
        let path = match path {
            CommitPath::Direct => "direct",
            CommitPath::Merge => "merge",
        };
        let from = if chunks.iter().all(|(chunk, _)| chunk.polled.is_some()) { "kafka" } else { "spool" };
        let name = outcome.err().map_or("committed", StoreError::class);
        let failure = outcome
            .err()
            .map(|error| Failure { kind: Cow::Borrowed(error.class()), message: error.to_string() });
        let polls =
            chunks.iter().filter(|_| outcome.is_ok()).filter_map(|(chunk, count)| self.poll(chunk, *count));
        let polls: Vec<Messaging<'_>> = polls.collect();
        let first = polls.iter().map(|poll| poll.lasted.from).min();
        let sources: Vec<&Arc<TopicPartition>> = chunks.iter().map(|(chunk, _)| &chunk.source).collect();
        let root = Messaging {
            lasted: Lasted { from: first.map_or(lasted.from, |first| first.min(lasted.from)), ..lasted },
            ..self.messaging(Operation::Process, &sources, batch.entries().len(), lasted)
        };
        let step = Step {
            trace,
            root,
            polls,
            statement: Some(Statement {
                operation: "COPY",
                table: TABLE,
                // Not what we call an error below SQL.
                sqlstate: outcome.err().and_then(StoreError::sqlstate).filter(|code| code.len() == 5),
                server: self.server.as_ref(),
                lasted,
            }),
            attributes: vec![
                KeyValue::new("audit_consumer.commit.path", path),
                KeyValue::new("audit_consumer.commit.outcome", name),
                KeyValue::new("audit_consumer.records.from", from),
            ],
            failure,
        };
        self.traces.step(step, batch.entries().iter().filter_map(|entry| traced(batch, entry)));
        Some(trace)
    }

    /// The records of `chunk` whose traces are kept, while traces go anywhere. Without room for spans the records are not
    /// looked into, and all counted as dropped.
    pub(super) fn kept_of(&self, chunk: &Chunk) -> Vec<TracedRecord> {
        let sampling = self.traces.sampling();
        if self.traces.room_count() == 0 {
            self.traces.drop_spans(chunk.records.len());
            return Vec::new();
        }
        let records = chunk.records.iter().filter_map(|record| {
            // Nothing was decoded yet.
            let identity = chunk.value(record).map(identify).unwrap_or_default();
            let context = TraceContext::of(chunk.headers(record), identity.correlation_id)?;
            Some(TracedRecord {
                context,
                span: None,
                partition: Some(chunk.source.partition),
                offset: Some(record.offset),
                correlation_id: identity.correlation_id,
                audit_id: identity.audit_id,
                rejection: None,
            })
        });
        records.filter(|record| sampling.keeps(&record.context)).collect()
    }

    /// An append to the spool ended that took `elapsed`; of its records these are kept.
    pub(super) fn spooled(
        &self,
        (sources, record_count): (&[&Arc<TopicPartition>], usize),
        kept: impl Iterator<Item = TracedRecord>,
        (elapsed, error): (Duration, Option<&str>),
    ) {
        let Some(trace) = self.traces.begin() else { return };
        let failure = error.map(|error| Failure { kind: "disk".into(), message: error.to_owned() });
        let root = self.messaging(Operation::Spool, sources, record_count, self.lasted(elapsed));
        let step = Step { trace, root, polls: Vec::new(), statement: None, attributes: Vec::new(), failure };
        self.traces.step(step, kept);
    }

    fn messaging<'a>(
        &'a self,
        operation: Operation,
        sources: &[&'a Arc<TopicPartition>],
        record_count: usize,
        lasted: Lasted,
    ) -> Messaging<'a> {
        let first = sources.first();
        let topic = first.filter(|first| sources.iter().all(|source| source.topic == first.topic));
        let partition = first.filter(|first| sources.iter().all(|source| source == *first));
        Messaging {
            operation,
            topic: topic.map(|source| &*source.topic),
            partition: partition.map(|source| source.partition),
            group: Some(&self.group),
            record_count,
            lasted,
        }
    }

    fn lasted(&self, elapsed: Duration) -> Lasted {
        let to = self.clock.system();
        Lasted { from: to.checked_sub(elapsed).unwrap_or(to), to }
    }

    /// How a chunk was polled; `None`: it came from the spool.
    fn poll<'a>(&'a self, chunk: &'a Chunk, record_count: usize) -> Option<Messaging<'a>> {
        let at = |ms: i64| UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(ms).ok()?));
        let polled = chunk.polled?;
        let (from, to): (SystemTime, SystemTime) = (at(polled.from_ms)?, at(polled.to_ms)?);
        Some(Messaging {
            operation: Operation::Poll,
            topic: Some(&chunk.source.topic),
            partition: Some(chunk.source.partition),
            group: Some(&self.group),
            record_count,
            lasted: Lasted { from, to },
        })
    }
}

/// The chunks that the batch's records came in, each with how many of them.
fn chunks_of(batch: &Batch) -> Vec<(&Arc<Chunk>, usize)> {
    let mut chunks: Vec<(&Arc<Chunk>, usize)> = Vec::new();
    for (chunk, _) in batch.entries().iter().filter_map(|entry| batch.record_of(entry)) {
        match chunks.last_mut() {
            Some((last, count)) if Arc::ptr_eq(last, chunk) => *count += 1,
            _ => chunks.push((chunk, 1)),
        }
    }
    chunks
}

/// What is known of a record of a batch; `None`: it belongs to no trace.
fn traced(batch: &Batch, entry: &Entry) -> Option<TracedRecord> {
    let (chunk, record) = batch.record_of(entry)?;
    let (audit_id, correlation_id, rejection) = match &entry.fate {
        Fate::Event(row, _) => {
            let (audit_id, correlation_id) = copy::ids_of(batch.row(row))?;
            (Some(audit_id), Some(correlation_id), None)
        }
        Fate::DeadLetter(letter) => {
            (letter.audit_id, letter.correlation_id, Some(Cow::Borrowed(letter.rejection.code.as_str())))
        }
    };
    Some(TracedRecord {
        context: TraceContext::of(chunk.headers(record), correlation_id)?,
        span: None,
        partition: Some(chunk.source.partition),
        offset: Some(entry.offset),
        correlation_id,
        audit_id,
        rejection,
    })
}
