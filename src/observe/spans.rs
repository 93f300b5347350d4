//! What spans look like: OpenTelemetry's conventions for messaging (in development) and for databases (stable).
//!
//! What is done with many records at once (a commit, an append to the spool, a transaction of dead letters) is a *step*
//! with a trace of its own: a root span, what was done within it below, and links to the records' traces. And in the trace
//! of each record that is kept stands a span that links back: so its trace tells what became of it, and the step with whom.
//! Never here: record bodies.

use std::borrow::Cow;
use std::time::SystemTime;

use opentelemetry::trace::{Link, SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{KeyValue, trace};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use uuid::Uuid;

use super::traces::Traces;
use crate::model::position::{Offset, Partition};
use crate::model::trace::{Parent, SpanId, TraceContext, TraceId};

/// What is done with records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Taken from Kafka.
    Poll,
    /// Stored in PostgreSQL.
    Process,
    /// Appended to the spool.
    Spool,
    /// Sent to a topic.
    Send,
}

impl Operation {
    /// `messaging.operation.name`, `messaging.operation.type` and the span's kind.
    const fn names(self) -> (&'static str, &'static str, SpanKind) {
        match self {
            Self::Poll => ("poll", "receive", SpanKind::Client),
            Self::Process => ("process", "process", SpanKind::Consumer),
            Self::Spool => ("spool", "process", SpanKind::Consumer),
            Self::Send => ("send", "send", SpanKind::Producer),
        }
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `error.type`: one of a closed set.
    pub kind: Cow<'static, str>,
    /// For people.
    pub message: String,
}

/// From when to when something lasted.
#[derive(Debug, Clone, Copy)]
pub struct Lasted {
    /// When it began.
    pub from: SystemTime,
    /// When it ended.
    pub to: SystemTime,
}

/// What was done with a topic's records at once.
#[derive(Debug, Clone)]
pub struct Messaging<'a> {
    /// What.
    pub operation: Operation,
    /// The topic; `None`: of several.
    pub topic: Option<&'a str>,
    /// The partition; `None`: of several.
    pub partition: Option<Partition>,
    /// The consumer group.
    pub group: Option<&'a str>,
    /// How many records.
    pub record_count: usize,
    /// When.
    pub lasted: Lasted,
}

/// A statement of PostgreSQL.
#[derive(Debug, Clone)]
pub struct Statement<'a> {
    /// `db.operation.name`.
    pub operation: &'static str,
    /// `db.collection.name`.
    pub table: &'static str,
    /// The SQLSTATE, when PostgreSQL answered with one.
    pub sqlstate: Option<&'a str>,
    /// Which PostgreSQL.
    pub server: Option<&'a Server>,
    /// When.
    pub lasted: Lasted,
}

/// A PostgreSQL, by its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `server.address`.
    pub host: String,
    /// `server.port`.
    pub port: u16,
    /// `db.namespace`.
    pub database: String,
}

impl Server {
    fn attributes(&self) -> [KeyValue; 3] {
        [
            KeyValue::new("db.namespace", self.database.clone()),
            KeyValue::new("server.address", self.host.clone()),
            KeyValue::new("server.port", i64::from(self.port)),
        ]
    }
}

/// A step, for [`Traces::step`].
#[derive(Debug, Clone)]
pub struct Step<'a> {
    /// Its trace.
    pub trace: TraceId,
    /// The root span.
    pub root: Messaging<'a>,
    /// What was polled for it.
    pub polls: Vec<Messaging<'a>>,
    /// What was asked of PostgreSQL.
    pub statement: Option<Statement<'a>>,
    /// More of the root span.
    pub attributes: Vec<KeyValue>,
    /// Why it failed; then nothing became of its records yet, and they get no spans.
    pub failure: Option<Failure>,
}

/// A record of a step.
#[derive(Debug, Clone)]
pub struct TracedRecord {
    /// Its place in its trace.
    pub context: TraceContext,
    /// The span that tells of it; `None`: a new one.
    pub span: Option<SpanId>,
    /// Its partition, where there is one yet.
    pub partition: Option<Partition>,
    /// Its offset.
    pub offset: Option<Offset>,
    /// `correlation_id`.
    pub correlation_id: Option<Uuid>,
    /// `audit_id`.
    pub audit_id: Option<Uuid>,
    /// Why it is a dead letter: such a record's span is kept always.
    pub rejection: Option<Cow<'static, str>>,
}

impl TracedRecord {
    /// A link to the span that it was sent by; where the trace alone is known, to the one that tells of it.
    fn link(&self) -> Option<Link> {
        let to = match self.context.parent {
            Some(parent) => sender(self.context.trace, parent),
            None => context(self.context.trace, self.span?),
        };
        Some(Link::new(to, self.attributes(), 0))
    }

    fn attributes(&self) -> Vec<KeyValue> {
        let text = |name: &'static str, value: Option<String>| value.map(|value| KeyValue::new(name, value));
        [
            text(
                "messaging.destination.partition.id",
                self.partition.map(|partition| partition.0.to_string()),
            ),
            self.offset.map(|offset| KeyValue::new("messaging.kafka.offset", offset.as_i64())),
            text("messaging.message.conversation_id", self.correlation_id.map(|id| id.to_string())),
            text("messaging.message.id", self.audit_id.map(|id| id.to_string())),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl Messaging<'_> {
    fn name(&self) -> String {
        let (name, ..) = self.operation.names();
        self.topic.map_or_else(|| name.to_owned(), |topic| format!("{name} {topic}"))
    }

    fn attributes(&self) -> Vec<KeyValue> {
        let (name, kind, _) = self.operation.names();
        let mut attributes = vec![
            KeyValue::new("messaging.system", "kafka"),
            KeyValue::new("messaging.operation.name", name),
            KeyValue::new("messaging.operation.type", kind),
        ];
        let text = |name: &'static str, value: &str| KeyValue::new(name, value.to_owned());
        attributes.extend(self.topic.map(|topic| text("messaging.destination.name", topic)));
        let partition = self.partition.map(|partition| partition.0.to_string());
        attributes.extend(partition.map(|id| KeyValue::new("messaging.destination.partition.id", id)));
        attributes.extend(self.group.map(|group| text("messaging.consumer.group.name", group)));
        attributes
    }

    fn count(&self) -> KeyValue {
        KeyValue::new("messaging.batch.message_count", i64::try_from(self.record_count).unwrap_or(i64::MAX))
    }
}

/// A span that is to be made.
struct Draft {
    context: SpanContext,
    parent: Option<(SpanId, bool)>,
    kind: SpanKind,
    name: String,
    lasted: Lasted,
    attributes: Vec<KeyValue>,
    links: SpanLinks,
    status: Status,
}

impl Draft {
    fn into_span(self, instrumentation_scope: opentelemetry::InstrumentationScope) -> SpanData {
        SpanData {
            span_context: self.context,
            parent_span_id: self.parent.map_or(trace::SpanId::INVALID, |(span, _)| span_id(span)),
            parent_span_is_remote: self.parent.is_some_and(|(_, is_remote)| is_remote),
            span_kind: self.kind,
            name: self.name.into(),
            start_time: self.lasted.from,
            end_time: self.lasted.to,
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: self.links,
            status: self.status,
            instrumentation_scope,
        }
    }
}

fn span_links(links: Vec<Link>, dropped_count: u32) -> SpanLinks {
    let mut all = SpanLinks::default();
    (all.links, all.dropped_count) = (links, dropped_count);
    all
}

fn span_id(span: SpanId) -> trace::SpanId {
    trace::SpanId::from_bytes(span.as_bytes())
}

/// The context of a span that is kept.
fn context(trace: TraceId, span: SpanId) -> SpanContext {
    let trace = trace::TraceId::from_bytes(trace.as_bytes());
    SpanContext::new(trace, span_id(span), TraceFlags::SAMPLED, false, TraceState::NONE)
}

/// The context of the span that a record was sent by.
fn sender(trace: TraceId, parent: Parent) -> SpanContext {
    let flags = if parent.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let trace = trace::TraceId::from_bytes(trace.as_bytes());
    SpanContext::new(trace, span_id(parent.span), flags, true, TraceState::NONE)
}

fn status(failure: Option<&Failure>) -> (Status, Option<KeyValue>) {
    match failure {
        Some(failure) => (
            Status::error(failure.message.clone()),
            Some(KeyValue::new("error.type", failure.kind.to_string())),
        ),
        None => (Status::Unset, None),
    }
}

impl Traces {
    /// Tells of a step that has ended, and of its records: those whose traces are kept, and those that are dead letters.
    /// A step of which nothing is kept, and that did not fail, is not told.
    pub fn step(&self, step: Step<'_>, records: impl Iterator<Item = TracedRecord>) {
        if !self.is_on() {
            return;
        }
        let (sampling, room_count, has_failed) = (self.sampling(), self.room_count(), step.failure.is_some());
        let (mut kept, mut kept_count) = (Vec::new(), 0);
        for mut record in records {
            if record.rejection.is_some() || sampling.keeps(&record.context) {
                kept_count += 1;
                if kept.len() < room_count {
                    // A link to a record whose trace alone is known leads to what tells of it here.
                    record.span = record.span.or_else(|| self.new_span().filter(|_| !has_failed));
                    kept.push(record);
                }
            }
        }
        let Some(root_span) = self.new_span().filter(|_| kept_count > 0 || has_failed) else { return };
        if room_count == 0 {
            let record_count = if has_failed { 0 } else { kept_count };
            self.drop_spans(1 + step.polls.len() + usize::from(step.statement.is_some()) + record_count);
            return;
        }
        let root = context(step.trace, root_span);
        let links: Vec<Link> =
            kept.iter().take(self.link_max_count()).filter_map(TracedRecord::link).collect();
        let dropped_count = u32::try_from(kept_count - links.len()).unwrap_or(u32::MAX);
        let (status, error) = status(step.failure.as_ref());
        let mut attributes = step.root.attributes();
        attributes.push(step.root.count());
        attributes.extend(step.attributes.iter().cloned().chain(error));
        self.give(|scope| {
            let links = span_links(links, dropped_count);
            let (_, _, kind) = step.root.operation.names();
            // It is not what the records name as their sender.
            let kind = if kind == SpanKind::Producer { SpanKind::Client } else { kind };
            let (name, lasted) = (step.root.name(), step.root.lasted);
            Draft { context: root.clone(), parent: None, kind, name, lasted, attributes, links, status }
                .into_span(scope)
        });
        self.give_children(&step, root_span);
        if !has_failed {
            self.drop_spans(kept_count - kept.len());
            for record in kept {
                self.give_record(&step.root, record, Some(&root), None);
            }
        }
    }

    fn give_children(&self, step: &Step<'_>, root: SpanId) {
        for poll in &step.polls {
            let Some(span) = self.new_span() else { continue };
            let (_, _, kind) = poll.operation.names();
            let mut attributes = poll.attributes();
            attributes.push(poll.count());
            self.give(|scope| {
                let (context, parent, name) = (context(step.trace, span), Some((root, false)), poll.name());
                let (links, status, lasted) = (SpanLinks::default(), Status::Unset, poll.lasted);
                Draft { context, parent, kind, name, lasted, attributes, links, status }.into_span(scope)
            });
        }
        let (Some(statement), Some(span)) = (&step.statement, self.new_span()) else { return };
        let (status, error) = status(step.failure.as_ref());
        let sqlstate =
            statement.sqlstate.map(|sqlstate| KeyValue::new("db.response.status_code", sqlstate.to_owned()));
        let attributes = [
            KeyValue::new("db.system.name", "postgresql"),
            KeyValue::new("db.collection.name", statement.table),
            KeyValue::new("db.operation.name", statement.operation),
        ];
        let server = statement.server.into_iter().flat_map(Server::attributes);
        let attributes = attributes.into_iter().chain(server).chain(sqlstate).chain(error).collect();
        self.give(|scope| {
            let (context, parent, kind) = (context(step.trace, span), Some((root, false)), SpanKind::Client);
            let (name, links) = (format!("{} audit_events", statement.operation), SpanLinks::default());
            Draft { context, parent, kind, name, lasted: statement.lasted, attributes, links, status }
                .into_span(scope)
        });
    }

    /// Tells of one record, in its own trace.
    pub fn give_record(
        &self,
        messaging: &Messaging<'_>,
        record: TracedRecord,
        step: Option<&SpanContext>,
        failure: Option<&Failure>,
    ) {
        let Some(span) = record.span.or_else(|| self.new_span()) else { return };
        self.give(|scope| {
            let (mut status, error) = status(failure);
            let mut attributes = messaging.attributes();
            attributes.retain(|own| own.key.as_str() != "messaging.destination.partition.id");
            attributes.extend(record.attributes().into_iter().chain(error));
            if let Some(rejection) = &record.rejection {
                status = Status::error("the record is a dead letter");
                attributes.push(KeyValue::new("error.type", rejection.to_string()));
            }
            let links = span_links(step.cloned().map(Link::with_context).into_iter().collect(), 0);
            let (_, _, kind) = messaging.operation.names();
            let parent = record.context.parent.map(|parent| (parent.span, true));
            let (context, name, lasted) =
                (context(record.context.trace, span), messaging.name(), messaging.lasted);
            Draft { context, parent, kind, name, lasted, attributes, links, status }.into_span(scope)
        });
    }
}
