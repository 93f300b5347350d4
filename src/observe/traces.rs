//! Spans to an OpenTelemetry collector, by OTLP over gRPC and the standard `OTEL_*` variables. Off without an
//! endpoint.
//!
//! A span for each commit (`COPY audit_events`, by the database conventions). Never here: record bodies.

use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

/// Either of these switches traces on.
const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
/// How long the last spans may take when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The exporter can't be made.
#[derive(Debug, thiserror::Error)]
#[error("make the trace exporter from OTEL_EXPORTER_OTLP_ENDPOINT: {0}")]
pub struct TracesError(String);

/// Where spans go, if anywhere.
#[derive(Debug, Default)]
pub struct Traces {
    provider: Option<SdkTracerProvider>,
}

impl Traces {
    /// Traces as the environment says. Inside a tokio runtime; connects when there is something to send.
    ///
    /// # Errors
    /// When the variables can't be used.
    pub fn from_environment() -> Result<Self, TracesError> {
        let is_on =
            ENDPOINT_VARIABLES.iter().any(|name| std::env::var(name).is_ok_and(|value| !value.is_empty()));
        if !is_on {
            return Ok(Self::default());
        }
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .build()
            .map_err(|error| TracesError(error.to_string()))?;
        // OTEL_SERVICE_NAME wins over the name given here.
        let resource = Resource::builder().with_service_name("audit-consumer").build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        Ok(Self { provider: Some(provider) })
    }

    /// What spans are made by; none while traces are off.
    #[must_use]
    pub fn tracer(&self) -> Option<SdkTracer> {
        self.provider.as_ref().map(|provider| provider.tracer("audit-consumer"))
    }

    /// Sends what is left, within 2 s. Blocks.
    pub fn shutdown(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(FLUSH_TIMEOUT)
        {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}
