//! Emits one audit event from Rust, and waits until Kafka has acknowledged it.
//!
//! ```text
//! KAFKA_BROKERS=localhost:19092 cargo run --example emit_event -- ritual.query query alice
//! ```
//!
//! What matters, in a service as here:
//! - `acks=all` to a replicated topic: an acknowledged event survives the loss of a broker.
//! - `enable.idempotence`: librdkafka's own retries make no second record.
//! - Wait for the delivery. An event without an acknowledgement is not sent: keep it, and send **the same bytes** again.
//!   Its `audit_id` and `timestamp` are what it is known by, so a second one is a counted duplicate. Made anew with
//!   another id or time it would be another event.
//! - The `correlation_id` as the key keeps the events of one request in order.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::time::Duration;

use anyhow::{Context, bail};
use chrono::{SecondsFormat, Utc};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use serde_json::json;
use uuid::Uuid;

/// How long Kafka may take to acknowledge an event.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [operation, command, actor] = words.as_slice() else {
        bail!("usage: emit_event OPERATION COMMAND ACTOR");
    };
    let brokers = std::env::var("KAFKA_BROKERS").unwrap_or_else(|_| "localhost:19092".into());
    let topic = std::env::var("EMIT_TOPIC").unwrap_or_else(|_| "forge.audit.query.executed".into());

    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("client.id", "emit_event")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string())
        .create()
        .context("make a kafka producer")?;

    let correlation_id = Uuid::new_v4().to_string();
    let event = json!({
        "audit_id": Uuid::new_v4().to_string(),
        "correlation_id": correlation_id,
        "timestamp": Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
        "operation": operation,
        "command": command,
        "actor": actor,
        "status": "Success",
        "client_app": "emit_event.rs",
        "metadata": {"pid": std::process::id()},
    });
    let payload = event.to_string();
    let record = FutureRecord::to(&topic).key(&correlation_id).payload(&payload);
    match producer.send(record, DELIVERY_TIMEOUT).await {
        Ok(place) => println!("{topic}[{}]@{}", place.partition, place.offset),
        Err((error, _)) => bail!("{brokers} did not acknowledge it, send it again: {error}\n{payload}"),
    }
    producer.flush(DELIVERY_TIMEOUT).context("flush the producer")
}
