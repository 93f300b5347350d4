//! What the predecessor did with events: rows of its table, lines of its files, and records in Kafka.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::scene::Scene;

/// Where the predecessor's table is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) schema: &'static str,
    pub(super) events: &'static str,
}

/// As its migration makes it.
pub(super) const CORE: Place = Place { schema: "core", events: "audit_events" };
/// As its README names it.
pub(super) const OURS: Place = Place { schema: "audit_events", events: "events" };

impl Place {
    pub(super) fn table(self) -> String {
        format!("{}.{}", self.schema, self.events)
    }
}

/// The predecessor's schema and directory.
pub(super) struct Past<'s> {
    scene: &'s Scene,
    place: Place,
    pub(super) logs: PathBuf,
}

impl<'s> Past<'s> {
    /// Makes its schema, owned by the role that migrates, and its directory.
    pub(super) fn new(scene: &'s Scene, place: Place) -> Self {
        let sql = include_str!("predecessor.sql");
        let sql = sql.replace("@schema@", place.schema).replace("@events@", place.events);
        scene.sql(&format!("SET ROLE audit; {sql}"));
        let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("past-{}", scene.name));
        for dir in ["purview", "trust"] {
            std::fs::create_dir_all(logs.join(dir)).unwrap();
        }
        Self { scene, place, logs }
    }

    /// Rows, as the daemon inserted them.
    pub(super) fn insert(&self, indexes: impl Iterator<Item = u64>) {
        self.insert_events(&indexes.map(event).collect::<Vec<_>>());
    }

    pub(super) fn insert_events(&self, events: &[Value]) {
        for part in events.chunks(100) {
            let rows = serde_json::to_string(part).unwrap().replace('\'', "''");
            self.scene.sql(&format!(
                "INSERT INTO {0} SELECT r.* FROM jsonb_populate_recordset(NULL::{0}, '{rows}') AS r \
                 ON CONFLICT (audit_id) DO NOTHING",
                self.place.table()
            ));
        }
    }

    pub(super) fn purview_file(&self) -> PathBuf {
        self.logs.join("purview/audit_20260217.jsonl")
    }

    pub(super) fn trust_file(&self) -> PathBuf {
        self.logs.join("trust/trust_20260217.jsonl")
    }

    /// Lines, as the daemon appended them to both files.
    pub(super) fn log(&self, indexes: impl Iterator<Item = u64>) {
        for index in indexes {
            self.log_event(&event(index));
        }
    }

    pub(super) fn log_event(&self, event: &Value) {
        append(&self.purview_file(), &format!("{}\n", purview_line(event)));
        append(&self.trust_file(), &format!("{}\n", trust_line(event)));
    }

    /// Events as the wrapper left them when nothing else worked: over many lines, and the trust line beside.
    pub(super) fn log_by_wrapper(&self, indexes: impl Iterator<Item = u64>) {
        for index in indexes {
            self.log_event_by_wrapper(&event(index));
        }
    }

    pub(super) fn log_event_by_wrapper(&self, event: &Value) {
        append(&self.purview_file(), &format!("{event:#}\n"));
        append(&self.trust_file(), &format!("{}\n", trust_line(event)));
    }
}

impl Drop for Past<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.logs).unwrap();
        }
    }
}

pub(super) fn append(path: &Path, text: &str) {
    let mut whole = std::fs::read(path).unwrap_or_default();
    whole.extend_from_slice(text.as_bytes());
    std::fs::write(path, whole).unwrap();
}

pub(super) fn audit_id(index: u64) -> String {
    format!("5b1f0c7e-51d6-4a53-9f0d-{index:012x}")
}

/// The event at `index`, as a producer sent it. Every third has a score of three digits, every fifth metadata.
pub(super) fn event(index: u64) -> Value {
    let score = if index.is_multiple_of(3) { 0.876 } else { 0.8 };
    let metadata =
        if index.is_multiple_of(5) { json!({"region": "eu", "n": [index, 1.5]}) } else { json!({}) };
    json!({
        "audit_id": audit_id(index), "correlation_id": "a3c0f6c2-7a44-4c62-8d9f-4f0f6f0f9c11",
        "timestamp": format!("2026-02-17T{:02}:{:02}:00.{:03}Z", index / 60 % 24, index % 60, index % 1000),
        "operation": "ritual.query", "command": "query", "args": format!("what's \"next\" é {index}"),
        "actor": if index.is_multiple_of(2) { "alice@corp" } else { "bob" }, "status": "Success",
        "duration_ms": index, "result_signature": "200", "client_app": "portal", "caller_ip_address": "10.1.2.3",
        "federated_source": "notion", "query_intent": Value::Null, "bypass_llm": index.is_multiple_of(7),
        "trust_score": score, "purview_compatible": true, "metadata": metadata, "schema_version": "2.0",
        "tenant_id": "spel-local-forge",
    })
}

/// The daemon's Purview line: no metadata.
fn purview_line(event: &Value) -> String {
    let actor = event["actor"].as_str().unwrap();
    let mut line = json!({
        "time": event["timestamp"], "operationName": event["operation"], "category": "FederatedQuery",
        "correlationId": event["correlation_id"], "resultType": event["status"],
        "resultSignature": event["result_signature"], "durationMs": event["duration_ms"],
        "callerIpAddress": event["caller_ip_address"],
        "identity": {"claim": [{"typ": "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn", "val": format!("{actor}@local")}]},
    });
    line["properties"] = json!({
        "resource": event["command"], "command": event["command"], "args": event["args"],
        "clientApp": event["client_app"], "schemaVersion": event["schema_version"], "auditId": event["audit_id"],
        "tenantId": event["tenant_id"], "federatedSource": event["federated_source"], "bypassLLM": event["bypass_llm"],
        "queryIntent": event["query_intent"], "trustScore": event["trust_score"],
    });
    ascii(&line)
}

fn trust_line(event: &Value) -> String {
    let fields = [
        "timestamp",
        "audit_id",
        "correlation_id",
        "operation",
        "status",
        "trust_score",
        "actor",
        "command",
        "args",
    ];
    let line: serde_json::Map<String, Value> =
        fields.iter().map(|field| ((*field).to_owned(), event[*field].clone())).collect();
    ascii(&Value::Object(line))
}

/// JSON as Python's `json.dumps` writes it: nothing but ASCII.
fn ascii(value: &Value) -> String {
    let mut text = String::new();
    for unit in value.to_string().encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => text.push(char::from(byte)),
            _ => write!(text, "\\u{unit:04x}").unwrap(),
        }
    }
    text
}
