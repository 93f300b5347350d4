//! Spans to an OpenTelemetry collector, by OTLP over gRPC and the standard `OTEL_*` variables. Off without an endpoint.
//!
//! A span is made when what it tells of has ended, by the pure facts of it: so a record's trace can have the id that the
//! record gives it, and an error is kept whatever the share of traces that are kept is (a sampler that is asked when a
//! span begins can't know). What is made goes into the SDK's queue (`OTEL_BSP_*`) and is sent by a thread of its own.
//! While the collector is away, or slower than we are, spans are dropped and counted, before they are even made; nothing
//! waits for it.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::{InstrumentationScope, Key, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator, RandomIdGenerator, SpanData, SpanExporter,
    SpanProcessor,
};

use super::metrics::SpanCounter;
use crate::model::trace::{Sampling, SpanId, TraceId};

/// Either of these switches traces on.
const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
/// How long the last spans may take when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// OpenTelemetry's defaults of `OTEL_BSP_MAX_QUEUE_SIZE` and `OTEL_SPAN_LINK_COUNT_LIMIT`.
const QUEUE_MAX_COUNT: usize = 2048;
const LINK_MAX_COUNT: usize = 128;

/// Traces can't be had as the environment says.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// A variable has a value that is not understood.
    #[error("{variable}={value}: {accepted}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is accepted.
        accepted: &'static str,
    },
    /// The exporter can't be made.
    #[error("make the trace exporter from OTEL_EXPORTER_OTLP_ENDPOINT: {0}")]
    Exporter(String),
}

/// Where spans go, if anywhere. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Traces {
    sampling: Sampling,
    export: Option<Arc<Export>>,
}

impl Default for Traces {
    fn default() -> Self {
        Self { sampling: Sampling::new(1.0, true), export: None }
    }
}

/// The way out.
#[derive(Debug)]
struct Export {
    processor: BatchSpanProcessor,
    counter: SpanCounter,
    /// How many spans were given to the processor and not yet sent.
    pending_count: Arc<AtomicUsize>,
    queue_max_count: usize,
    link_max_count: usize,
    scope: InstrumentationScope,
}

impl Traces {
    /// Traces as the environment says; `counter` counts what becomes of spans. Inside a tokio runtime; connects when there
    /// is something to send.
    ///
    /// # Errors
    /// When the variables can't be used.
    pub fn from_environment(counter: SpanCounter) -> Result<Self, TracesError> {
        if !is_on() {
            // `emit` writes headers without them, too.
            return Ok(Self { sampling: sampling().unwrap_or(Sampling::new(1.0, true)), export: None });
        }
        let sampling = sampling()?;
        if let Some(value) = variable("OTEL_EXPORTER_OTLP_PROTOCOL").filter(|value| value != "grpc") {
            let (variable, accepted) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
            return Err(TracesError::Variable { variable, value, accepted });
        }
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .build()
            .map_err(|error| TracesError::Exporter(error.to_string()))?;
        let pending_count = Arc::new(AtomicUsize::new(0));
        let exporter =
            Counted { exporter, counter: counter.clone(), pending_count: Arc::clone(&pending_count) };
        let queue_max_count = number("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_MAX_COUNT)?;
        let config = BatchConfigBuilder::default().with_max_queue_size(queue_max_count).build();
        let mut processor = BatchSpanProcessor::new(exporter, config);
        processor.set_resource(&resource());
        let export = Export {
            processor,
            counter,
            pending_count,
            queue_max_count,
            link_max_count: number("OTEL_SPAN_LINK_COUNT_LIMIT", LINK_MAX_COUNT)?,
            scope: InstrumentationScope::builder("audit-consumer")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        };
        Ok(Self { sampling, export: Some(Arc::new(export)) })
    }

    /// Which traces are kept.
    #[must_use]
    pub const fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// Whether spans go anywhere.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.export.is_some()
    }

    /// How many links a span may have.
    pub(super) fn link_max_count(&self) -> usize {
        self.export.as_ref().map_or(0, |export| export.link_max_count)
    }

    /// How many spans are taken now; 0 while they go nowhere.
    #[must_use]
    pub fn room_count(&self) -> usize {
        self.export.as_ref().map_or(0, |export| {
            export.queue_max_count.saturating_sub(export.pending_count.load(Ordering::Relaxed))
        })
    }

    /// The id of a trace that tells of a step; `None` while spans go nowhere.
    #[must_use]
    pub fn begin(&self) -> Option<TraceId> {
        self.export.as_ref().and_then(|_| self.new_trace())
    }

    /// The id of a trace that begins here.
    #[must_use]
    pub fn new_trace(&self) -> Option<TraceId> {
        TraceId::new(RandomIdGenerator::default().new_trace_id().to_bytes())
    }

    /// A span's id.
    #[must_use]
    pub fn new_span(&self) -> Option<SpanId> {
        SpanId::new(RandomIdGenerator::default().new_span_id().to_bytes())
    }

    /// Gives a span away, made by `make`; counts it as dropped while the queue is full.
    pub(super) fn give(&self, make: impl FnOnce(InstrumentationScope) -> SpanData) {
        let Some(export) = &self.export else { return };
        // So the processor's queue, which is as long, is never full.
        let taken = export.pending_count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < export.queue_max_count).then_some(count + 1)
        });
        if taken.is_err() {
            export.counter.dropped(1);
            return;
        }
        export.processor.on_end(make(export.scope.clone()));
    }

    /// Counts spans that are not even given away.
    pub fn drop_spans(&self, count: usize) {
        if let Some(export) = &self.export {
            export.counter.dropped(count);
        }
    }

    /// Sends what is left, within 2 s. Blocks.
    pub fn shutdown(&self) {
        if let Some(export) = &self.export
            && let Err(error) = export.processor.shutdown_with_timeout(FLUSH_TIMEOUT)
        {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

/// An exporter whose spans are counted.
#[derive(Debug)]
struct Counted {
    exporter: opentelemetry_otlp::SpanExporter,
    counter: SpanCounter,
    pending_count: Arc<AtomicUsize>,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let outcome = self.exporter.export(batch).await;
        self.pending_count.fetch_sub(count, Ordering::Relaxed);
        match &outcome {
            Ok(()) => self.counter.sent(count),
            Err(error) => {
                self.counter.failed(count);
                tracing::debug!(%error, count, "spans were not sent");
            }
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// A variable's value, if there is one.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn is_on() -> bool {
    let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    !is_disabled && ENDPOINT_VARIABLES.iter().any(|name| variable(name).is_some())
}

/// What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say of the process; our own name where they give none.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version);
    let given = Resource::builder().build().get(&Key::new("service.name"));
    let is_given = given.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    if is_given { resource.build() } else { resource.with_service_name("audit-consumer").build() }
}

fn number<T: FromStr>(name: &'static str, default: T) -> Result<T, TracesError> {
    let Some(value) = variable(name) else { return Ok(default) };
    value.parse().map_err(|_error| TracesError::Variable {
        variable: name,
        value,
        accepted: "a whole number",
    })
}

/// `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
fn sampling() -> Result<Sampling, TracesError> {
    read_sampling(variable("OTEL_TRACES_SAMPLER").as_deref(), variable("OTEL_TRACES_SAMPLER_ARG").as_deref())
}

fn read_sampling(name: Option<&str>, argument: Option<&str>) -> Result<Sampling, TracesError> {
    let ratio = || {
        let value = argument.unwrap_or("1");
        value.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or_else(|| {
            TracesError::Variable {
                variable: "OTEL_TRACES_SAMPLER_ARG",
                value: value.to_owned(),
                accepted: "a share from 0 to 1",
            }
        })
    };
    Ok(match name.unwrap_or("parentbased_always_on") {
        "always_on" => Sampling::new(1.0, false),
        "always_off" => Sampling::new(0.0, false),
        "traceidratio" => Sampling::new(ratio()?, false),
        "parentbased_always_on" => Sampling::new(1.0, true),
        "parentbased_always_off" => Sampling::new(0.0, true),
        "parentbased_traceidratio" => Sampling::new(ratio()?, true),
        other => {
            return Err(TracesError::Variable {
                variable: "OTEL_TRACES_SAMPLER",
                value: other.to_owned(),
                accepted: "always_on, always_off, traceidratio, or one of these with parentbased_ before it",
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampler_is_read_as_opentelemetry_has_it() {
        let read = |name, argument| read_sampling(name, argument).map_err(|error| error.to_string());
        assert_eq!(read(None, None), Ok(Sampling::new(1.0, true)));
        assert_eq!(read(Some("always_off"), None), Ok(Sampling::new(0.0, false)));
        assert_eq!(read(Some("traceidratio"), Some("0.1")), Ok(Sampling::new(0.1, false)));
        assert_eq!(read(Some("traceidratio"), None), Ok(Sampling::new(1.0, false)));
        assert_eq!(read(Some("parentbased_traceidratio"), Some("0.25")), Ok(Sampling::new(0.25, true)));
        for (name, argument, message) in [
            ("ratio", None, "OTEL_TRACES_SAMPLER=ratio: always_on, always_off, traceidratio, "),
            ("traceidratio", Some("10"), "OTEL_TRACES_SAMPLER_ARG=10: a share from 0 to 1"),
            ("parentbased_traceidratio", Some("x"), "OTEL_TRACES_SAMPLER_ARG=x: a share from 0 to 1"),
        ] {
            let error = read(Some(name), argument).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
