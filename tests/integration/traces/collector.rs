//! Those who take spans.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::Link;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::scene::wait_for;

/// A correlation id as a trace id: 32 digits.
pub(super) fn trace_of(id: Uuid) -> String {
    id.simple().to_string()
}

/// Attributes as texts.
pub(super) fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &AnyValue| match value.value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|own| (own.key.clone(), text(own.value.as_ref().unwrap()))).collect()
}

/// A span that arrived.
#[derive(Debug, Clone)]
pub(super) struct Seen(Span);

impl Seen {
    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    pub(super) fn trace(&self) -> Vec<u8> {
        self.0.trace_id.clone()
    }

    pub(super) fn id(&self) -> Vec<u8> {
        self.0.span_id.clone()
    }

    pub(super) fn id_text(&self) -> String {
        self.0.span_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Empty: it is a root.
    pub(super) fn parent(&self) -> Vec<u8> {
        self.0.parent_span_id.clone()
    }

    pub(super) fn kind(&self) -> &'static str {
        ["unspecified", "internal", "server", "client", "producer", "consumer"]
            [usize::try_from(self.0.kind).unwrap()]
    }

    pub(super) fn status(&self) -> &'static str {
        ["unset", "ok", "error"]
            [self.0.status.as_ref().map_or(0, |status| usize::try_from(status.code).unwrap())]
    }

    pub(super) fn from(&self) -> u64 {
        self.0.start_time_unix_nano
    }

    pub(super) fn to(&self) -> u64 {
        self.0.end_time_unix_nano
    }

    pub(super) fn links(&self) -> Vec<Link> {
        self.0.links.clone()
    }

    /// Links, and those that were left out.
    pub(super) fn linked_count(&self) -> usize {
        self.0.links.len() + usize::try_from(self.0.dropped_links_count).unwrap()
    }

    /// Empty where there is none.
    pub(super) fn attribute(&self, key: &str) -> String {
        texts(&self.0.attributes).remove(key).unwrap_or_default()
    }

    #[track_caller]
    pub(super) fn check(&self, expect: &[(&str, &str)]) {
        for (key, value) in expect {
            assert_eq!(self.attribute(key), *value, "{key} of {self:?}");
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Received(Arc<Mutex<Vec<ResourceSpans>>>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().extend(request.into_inner().resource_spans);
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

/// A collector in this process.
pub(super) struct Collector {
    address: SocketAddr,
    received: Received,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    pub(super) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let received = Received::default();
        let service = TraceServiceServer::new(received.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        runtime.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        wait_for("the collector", Duration::from_secs(10), || TcpStream::connect(address).is_ok());
        Self { address, received, _runtime: runtime }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All that arrived, by when they began.
    pub(super) fn spans(&self) -> Vec<Seen> {
        let received = self.received.0.lock().unwrap();
        let scopes = received.iter().flat_map(|resource| &resource.scope_spans);
        let mut spans: Vec<Seen> = scopes.flat_map(|scope| &scope.spans).cloned().map(Seen).collect();
        spans.sort_by_key(|span| (span.from(), span.to()));
        spans
    }

    /// Those of one trace, by when they began.
    pub(super) fn trace(&self, id: Uuid) -> Vec<Seen> {
        self.spans().into_iter().filter(|span| span.trace() == id.as_bytes()).collect()
    }

    /// What is said of the process that sent the last ones.
    pub(super) fn resource(&self) -> BTreeMap<String, String> {
        let received = self.received.0.lock().unwrap();
        texts(&received.last().unwrap().resource.as_ref().unwrap().attributes)
    }
}

/// The OpenTelemetry Collector, which prints what it takes.
pub(super) struct Official {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Drop for Official {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        assert!(ended.is_ok() || std::thread::panicking(), "{ended:?}");
    }
}

impl Official {
    pub(super) fn start() -> Self {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/tools");
        let found = Command::new(tools).arg("otelcol").output().unwrap();
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let program = String::from_utf8(found.stdout).unwrap();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("otelcol-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:{port}'}}}}}}}}\n\
             exporters: {{debug: {{verbosity: detailed}}}}\n\
             service:\n  telemetry: {{metrics: {{level: none}}}}\n\
             \x20 pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}\n"
        );
        std::fs::write(folder.join("config.yaml"), config).unwrap();
        let log = folder.join("log");
        let child = Command::new(program.trim())
            .arg(format!("--config={}", folder.join("config.yaml").display()))
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        wait_for("the collector", Duration::from_secs(30), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self { child, port, log }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn printed(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}
