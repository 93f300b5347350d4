//! What is measured with: events of a given length, and how they get into Kafka.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, ClientContext};

use crate::bed::Bed;

/// Over how many partitions a backlog is spread.
pub(crate) const PARTITION_COUNT: i32 = 12;
/// How far back the original of a duplicate lies at most, in records.
const DUPLICATE_WINDOW: u64 = 5_000;
const FLUSH_PATIENCE: Duration = Duration::from_secs(120);

/// Which ids events have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// By time, UUID version 7 (RFC 9562).
    Ordered,
    /// Random, version 4.
    Random,
}

/// The events of a load; the same seed gives the same bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) seed: u64,
    /// The length of a record, in bytes; 250 have the required fields only.
    pub(crate) len: usize,
    pub(crate) ids: Ids,
    /// The time of the first event, in microseconds since the Unix epoch; each one after is a millisecond later.
    pub(crate) start_unix_micros: i64,
    pub(crate) duplicate_per_cent: u64,
    /// A duplicate goes to any partition, not to its original's, as it would by its key.
    pub(crate) strays: bool,
    pub(crate) invalid_per_cent: u64,
}

impl Shape {
    /// Events of now, all different and valid.
    pub(crate) fn of(len: usize) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            seed: 1,
            len,
            ids: Ids::Ordered,
            start_unix_micros: i64::try_from(now.as_micros()).unwrap_or_default(),
            duplicate_per_cent: 0,
            strays: false,
            invalid_per_cent: 0,
        }
    }

    const fn random(&self, index: u64, purpose: u64) -> u64 {
        mixed(mixed(self.seed ^ purpose.wrapping_mul(0xd1b5_4a32_d192_ed03)).wrapping_add(index))
    }

    fn partition(&self, index: u64) -> i32 {
        let index = if self.strays { index } else { self.event_of(index) };
        // Four neighbours stay together, as those of one correlation id do.
        let choice = self.random(index / 4, 1) % u64::from(PARTITION_COUNT.unsigned_abs());
        i32::try_from(choice).unwrap_or_default()
    }

    /// Whose event the record at `index` carries: its own or that of an earlier one.
    fn event_of(&self, index: u64) -> u64 {
        let is_own = |index: u64| self.random(index, 2) % 100 >= self.duplicate_per_cent;
        if is_own(index) || index == 0 {
            return index;
        }
        let back = 1 + self.random(index, 3) % DUPLICATE_WINDOW.min(index);
        (0..=index - back).rev().take(64).find(|earlier| is_own(*earlier)).unwrap_or(index)
    }

    fn id(&self, index: u64, micros: i64) -> uuid::Uuid {
        let random =
            (u128::from(self.random(index, 4)) << 64 | u128::from(self.random(index, 5))).to_be_bytes();
        match self.ids {
            Ids::Random => uuid::Builder::from_random_bytes(random).into_uuid(),
            Ids::Ordered => {
                let millis = u64::try_from(micros / 1000).unwrap_or_default();
                let mut bits = [0; 10];
                bits.copy_from_slice(&random[..10]);
                uuid::Builder::from_unix_timestamp_millis(millis, &bits).into_uuid()
            }
        }
    }

    /// Writes the record at `index`.
    fn write(&self, index: u64, text: &mut String) {
        text.clear();
        let index = self.event_of(index);
        if self.random(index, 6) % 100 < self.invalid_per_cent {
            text.push_str("{\"audit_id\":");
            return;
        }
        let random = self.random(index, 7);
        let micros = self.start_unix_micros + i64::try_from(index).unwrap_or_default() * 1000;
        let time = chrono::DateTime::from_timestamp_micros(micros).unwrap_or_default();
        let (audit_id, correlation_id) = (self.id(index, micros), self.id(index / 4 + (1 << 40), 0));
        // Writing to a String can't fail.
        let mut written = write!(
            text,
            "{{\"audit_id\":\"{audit_id}\",\"correlation_id\":\"{correlation_id}\",\"timestamp\":\"{}\",\
             \"operation\":\"ritual.query\",\"command\":\"query\",\"actor\":\"user-{:03}\",\"status\":\"Success\"",
            time.format("%Y-%m-%dT%H:%M:%S%.6fZ"),
            random % 400
        );
        if self.len >= 600 {
            written = written.and_then(|()| {
                write!(
                    text,
                    ",\"duration_ms\":{},\"result_signature\":\"200\",\"client_app\":\"ritual-cli\",\
                     \"caller_ip_address\":\"10.1.{}.{}\",\"federated_source\":\"local\",\
                     \"query_intent\":\"wish_queue\",\"bypass_llm\":{},\"trust_score\":0.{:02},\
                     \"schema_version\":\"2.0\",\"metadata\":{{\"region\":\"eu\",\"shard\":7}}",
                    random % 900,
                    random >> 8 & 255,
                    random >> 16 & 255,
                    random & 1 == 1,
                    random % 100
                )
            });
        }
        text.push_str(",\"args\":\"");
        let mut word = index;
        while text.len() + 2 < self.len {
            word = mixed(word);
            written = written.and_then(|()| write!(text, "{word:x} "));
        }
        text.truncate(self.len.max(text.len().min(self.len + 2)) - 2);
        text.push_str("\"}");
        debug_assert!(written.is_ok());
    }
}

/// A mixed 64-bit number (splitmix64, Steele, Lea and Flood 2014).
const fn mixed(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A record that the broker has, and when it was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivered {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) sent_at: Instant,
}

#[derive(Debug, Default)]
struct Deliveries {
    keeps: bool,
    delivered: Mutex<Vec<Delivered>>,
    count: std::sync::atomic::AtomicU64,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Instant>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent_at: Box<Instant>) {
        let Ok(message) = result else { return };
        self.count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if self.keeps {
            let delivered =
                Delivered { partition: message.partition(), offset: message.offset(), sent_at: *sent_at };
            self.delivered.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(delivered);
        }
    }
}

/// Sends records and counts what the broker acknowledges.
pub(crate) struct Feed {
    producer: ThreadedProducer<Deliveries>,
    topic: String,
    shape: Shape,
    sent_count: u64,
    text: String,
}

impl Feed {
    /// `linger_ms`: how long the producer waits for company; `keeps`: note each delivery.
    pub(crate) fn new(
        bed: &Bed,
        topic: &str,
        shape: Shape,
        (linger_ms, keeps): (u32, bool),
    ) -> anyhow::Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &bed.brokers)
            .set("enable.idempotence", "true")
            .set("queue.buffering.max.messages", "200000")
            .set("linger.ms", linger_ms.to_string());
        let producer = config.create_with_context(Deliveries { keeps, ..Deliveries::default() })?;
        Ok(Self { producer, topic: topic.to_owned(), shape, sent_count: 0, text: String::new() })
    }

    /// Sends the next record.
    pub(crate) fn send(&mut self) -> anyhow::Result<()> {
        self.shape.write(self.sent_count, &mut self.text);
        let partition = self.shape.partition(self.sent_count);
        let mut sent_at = Box::new(Instant::now());
        loop {
            let record = BaseRecord::<'_, (), str, _>::with_opaque_to(&self.topic, sent_at)
                .partition(partition)
                .payload(self.text.as_str());
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => {
                    sent_at = record.delivery_opaque;
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err((error, _)) => bail!("send to {}: {error}", self.topic),
            }
        }
        self.sent_count += 1;
        Ok(())
    }

    /// Waits until the broker has all; returns the deliveries, if they were kept.
    pub(crate) fn finish(self) -> anyhow::Result<Vec<Delivered>> {
        self.producer.flush(FLUSH_PATIENCE)?;
        let deliveries: &Arc<Deliveries> = self.producer.context();
        let count = deliveries.count.load(std::sync::atomic::Ordering::Relaxed);
        if count != self.sent_count {
            bail!("{count} of {} records were delivered to {}", self.sent_count, self.topic);
        }
        Ok(std::mem::take(
            &mut *deliveries.delivered.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        ))
    }
}

/// Makes `topic` and fills it with `record_count` records.
pub(crate) fn fill(bed: &Bed, topic: &str, shape: Shape, record_count: u64) -> anyhow::Result<()> {
    bed.create_topic(topic, PARTITION_COUNT)?;
    let bar = ProgressBar::new(record_count);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {human_pos}/{human_len} records into Kafka, {per_sec}",
    )?);
    let mut feed = Feed::new(bed, topic, shape, (5, false))?;
    for index in 0..record_count {
        feed.send().with_context(|| format!("record {index}"))?;
        if index % 1024 == 0 {
            bar.set_position(index);
        }
    }
    bar.finish_and_clear();
    feed.finish().map(drop)
}

/// Runs `body` over a topic with `record_count` records of `shape`, and deletes it with its dead letters afterwards.
pub(crate) fn with_topic<T>(
    bed: &Bed,
    name: &str,
    (shape, record_count): (Shape, u64),
    body: impl FnOnce(&str) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let topic = format!("{}.{name}", bed.run);
    let outcome = fill(bed, &topic, shape, record_count).and_then(|()| body(&topic));
    // What was measured counts more than that it is cleaned up.
    if let Err(error) = bed.delete_topics(&[&topic, &format!("{topic}.dlq")]) {
        println!("topic {topic} stays: {error:#}");
    }
    outcome
}
