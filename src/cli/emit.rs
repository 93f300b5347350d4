//! `emit`: events into Kafka, acknowledged by all in-sync replicas, by an idempotent producer.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use serde_json::json;
use uuid::Uuid;

use super::ExitStatus;
use super::table::with_thousands;
use crate::config::Config;
use crate::kafka::{self, Link};
use crate::model::position::{Offset, Partition};
use crate::model::sample::{SamplePlan, SampleTotals};
use crate::model::trace::{SpanId, TRACEPARENT, TraceContext, TraceId, traceparent};
use crate::observe::spans::{Failure, Lasted, Messaging, Operation, TracedRecord};
use crate::observe::{Clock, Traces};

/// The most deliveries that are printed one by one.
const PRINTED_COUNT: usize = 20;
/// How long a full producer queue is waited for between tries.
const QUEUE_WAIT: Duration = Duration::from_millis(5);

/// What to send.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct EmitArgs {
    /// The topic
    #[arg(long, env = "EMIT_TOPIC", default_value = "forge.audit.query.executed", value_name = "TOPIC")]
    topic: String,
    /// Generate this many events instead of reading standard input
    #[arg(long, value_name = "N")]
    generate: Option<u64>,
    /// Generate at most this many a second
    #[arg(long, value_name = "PER_SECOND", requires = "generate")]
    rate: Option<u32>,
    /// Per cent of generated records that are no events
    #[arg(long, default_value_t = 0.0, value_name = "PCT", requires = "generate")]
    invalid: f64,
    /// Per cent of generated records that repeat an earlier event
    #[arg(long, default_value_t = 0.0, value_name = "PCT", requires = "generate")]
    duplicate: f64,
    /// Distinguishes generated events of different runs; by default the time
    #[arg(long, value_name = "N", requires = "generate")]
    seed: Option<u64>,
    /// Send lines from standard input as they are, even if they are no JSON
    #[arg(long, conflicts_with = "generate")]
    raw: bool,
    /// Give up on a record that is not acknowledged after this time, in milliseconds
    #[arg(long, default_value_t = 30_000, value_name = "MS")]
    timeout_ms: u32,
    /// Write no header `traceparent`
    #[arg(long)]
    no_traceparent: bool,
    /// Print every record's partition and offset
    #[arg(long)]
    verbose: bool,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Counts deliveries; the first error is kept.
#[derive(Debug)]
struct Deliveries {
    link: Link,
    delivered_count: AtomicU64,
    failed_count: AtomicU64,
    keeps_places: bool,
    places: std::sync::Mutex<Vec<(i32, i64)>>,
    first_error: std::sync::OnceLock<KafkaError>,
    traces: Traces,
    clock: Clock,
}

/// A record that is on its way, as its trace tells of it.
#[derive(Debug)]
struct Sent {
    context: Option<(TraceId, SpanId)>,
    correlation_id: Option<Uuid>,
    began: SystemTime,
}

impl Deliveries {
    fn new(link: Link, keeps_places: bool) -> Self {
        Self {
            link,
            delivered_count: AtomicU64::default(),
            failed_count: AtomicU64::default(),
            keeps_places,
            places: std::sync::Mutex::default(),
            first_error: std::sync::OnceLock::default(),
            traces: super::traces(),
            clock: Clock::default(),
        }
    }
}

impl ClientContext for Deliveries {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        self.link.log(level, fac, log_message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.link.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.link.generate_oauth_token(config)
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        self.tell(result, &sent);
        match result {
            Ok(message) => {
                self.delivered_count.fetch_add(1, Ordering::Relaxed);
                if self.keeps_places {
                    let mut places = self.places.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    places.push((message.partition(), message.offset()));
                }
            }
            Err((error, _)) => {
                self.failed_count.fetch_add(1, Ordering::Relaxed);
                self.first_error.get_or_init(|| error.clone());
            }
        }
    }
}

impl Deliveries {
    /// The span of sending, with which the record's trace begins.
    fn tell(&self, result: &DeliveryResult<'_>, sent: &Sent) {
        let Some((trace, span)) = sent.context.filter(|_| self.traces.is_on()) else { return };
        let failure = result.as_ref().err().map(|(error, _)| Failure {
            kind: error.rdkafka_error_code().map_or("kafka".into(), |code| format!("{code:?}").into()),
            message: error.to_string(),
        });
        if !self.traces.sampling().keeps_trace(trace) && failure.is_none() {
            return;
        }
        let (message, is_sent) = match result {
            Ok(message) => (message, true),
            Err((_, message)) => (message, false),
        };
        let messaging = Messaging {
            operation: Operation::Send,
            topic: Some(message.topic()),
            partition: None,
            group: None,
            record_count: 1,
            lasted: Lasted { from: sent.began, to: self.clock.system() },
        };
        let record = TracedRecord {
            context: TraceContext { trace, parent: None },
            span: Some(span),
            partition: is_sent.then_some(Partition(message.partition())),
            offset: Offset::new(message.offset()).filter(|_| is_sent),
            correlation_id: sent.correlation_id,
            audit_id: None,
            rejection: None,
        };
        self.traces.give_record(&messaging, record, None, failure.as_ref());
    }
}

type Sender = ThreadedProducer<Deliveries>;

/// Sends what `args` say.
///
/// # Errors
/// A record that can't be read from standard input (with its line), a producer that librdkafka refuses.
pub(super) fn run(args: &EmitArgs, config: &Config, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    if !(0.0..=100.0).contains(&args.invalid) || !(0.0..=100.0).contains(&(args.invalid + args.duplicate)) {
        bail!("--invalid and --duplicate are per cents, together from 0 to 100");
    }
    let clock = Clock::default();
    let producer = producer(args, config).context("make a kafka producer")?;
    let started_at = clock.monotonic();
    let sent = match args.generate {
        Some(record_count) => generate(args, record_count, &producer, &clock),
        None => read_and_send(args, &producer).map(|sent_count| (sent_count, None)),
    };
    let flushed = producer.flush(Duration::from_millis(u64::from(args.timeout_ms)) + Duration::from_secs(1));
    producer.context().traces.shutdown();
    let (sent_count, totals) = sent?;
    let seconds = clock.monotonic().saturating_duration_since(started_at).as_secs_f64();
    let deliveries = producer.context();
    let delivered_count = deliveries.delivered_count.load(Ordering::Relaxed);
    if delivered_count < sent_count {
        if let Some(refusal) = deliveries.link.take_refusal().filter(|_| delivered_count == 0) {
            let why = deliveries.link.explain(refusal);
            bail!("no record was delivered to topic {}: kafka keeps us out: {why}", args.topic);
        }
        let error = deliveries.first_error.get().cloned().or(flushed.err());
        let reason = error.map_or_else(|| "not acknowledged in time".into(), |error| error.to_string());
        bail!(
            "{delivered_count} of {sent_count} records were delivered to topic {}: {reason}; check KAFKA_BROKERS={} \
             and that the topic exists",
            args.topic,
            config.kafka.brokers
        );
    }
    report(args, out, deliveries, (delivered_count, seconds, totals))?;
    Ok(ExitStatus::Success)
}

fn producer(args: &EmitArgs, config: &Config) -> Result<Sender, KafkaError> {
    let properties = config.kafka.connection_properties();
    let mut client = kafka::client_config(&properties)?;
    client
        .set("client.id", "audit-consumer-emit")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", args.timeout_ms.to_string())
        .set("message.max.bytes", "16777216")
        .set("queue.buffering.max.messages", "200000")
        .set("linger.ms", "5");
    let keeps_places = args.verbose || args.generate.is_none();
    let link = Link::new(&properties);
    let producer: Sender = client.create_with_context(Deliveries::new(link, keeps_places))?;
    producer.context().link.refresh(producer.client());
    Ok(producer)
}

/// Sends one record, with which its trace begins; waits while the producer's queue is full. Its key is its correlation id.
fn send(
    producer: &Sender,
    args: &EmitArgs,
    key: Option<&str>,
    payload: Option<&[u8]>,
) -> Result<(), KafkaError> {
    let Deliveries { traces, clock, .. } = &**producer.context();
    let correlation_id = key.and_then(|key| Uuid::try_parse(key).ok());
    let trace = correlation_id.and_then(|id| TraceId::new(id.into_bytes())).or_else(|| traces.new_trace());
    let context = trace.zip(traces.new_span()).filter(|_| !args.no_traceparent);
    let header = context.map(|(trace, span)| traceparent(trace, span, traces.sampling().keeps_trace(trace)));
    let mut sent = Box::new(Sent { context, correlation_id, began: clock.system() });
    loop {
        let mut record: BaseRecord<'_, str, [u8], Box<Sent>> = BaseRecord::with_opaque_to(&args.topic, sent);
        record.key = key;
        record.payload = payload;
        record.headers = header
            .as_deref()
            .map(|value| OwnedHeaders::new().insert(Header { key: TRACEPARENT, value: Some(value) }));
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => {
                sent = record.delivery_opaque;
                std::thread::sleep(QUEUE_WAIT);
            }
            Err((error, _)) => return Err(error),
        }
    }
}

fn generate(
    args: &EmitArgs,
    record_count: u64,
    producer: &Sender,
    clock: &Clock,
) -> anyhow::Result<(u64, Option<SampleTotals>)> {
    let now_micros = clock.unix_ms().saturating_mul(1000);
    let plan = SamplePlan {
        seed: args.seed.unwrap_or_else(|| now_micros.unsigned_abs()),
        start_unix_micros: now_micros,
        invalid_ppm: parts_per_million(args.invalid),
        duplicate_ppm: parts_per_million(args.duplicate),
    };
    let bar = ProgressBar::new(record_count);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} records, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    let started_at = clock.monotonic();
    let mut payload = Vec::new();
    for index in 0..record_count {
        let has_value = plan.write(index, &mut payload);
        let key = plan.correlation_id(index);
        send(producer, args, Some(&key), has_value.then_some(payload.as_slice()))
            .with_context(|| format!("send record {index} to topic {}", args.topic))?;
        if index % 256 == 0 {
            bar.set_position(index);
        }
        if let Some(rate) = args.rate {
            pace(clock, started_at, index + 1, rate);
        }
    }
    bar.finish_and_clear();
    Ok((record_count, Some(plan.totals(record_count))))
}

/// Waits until `count` records may have been sent at `rate` a second.
fn pace(clock: &Clock, started_at: Instant, count: u64, rate: u32) {
    let due_micros = count.saturating_mul(1_000_000) / u64::from(rate.max(1));
    let elapsed = clock.monotonic().saturating_duration_since(started_at);
    if let Some(wait) =
        Duration::from_micros(due_micros).checked_sub(elapsed).filter(|wait| wait.as_millis() > 0)
    {
        std::thread::sleep(wait);
    }
}

/// Sends what stands on standard input: JSON values one after the other, or lines as they are.
fn read_and_send(args: &EmitArgs, producer: &Sender) -> anyhow::Result<u64> {
    let input = std::io::stdin().lock();
    let mut sent_count = 0;
    if args.raw {
        for line in input.split(b'\n') {
            let line = line.context("read standard input")?;
            send(producer, args, None, Some(&line))?;
            sent_count += 1;
        }
        return Ok(sent_count);
    }
    let values = serde_json::Deserializer::from_reader(input).into_iter::<Box<serde_json::value::RawValue>>();
    for value in values {
        let value = value.with_context(|| {
            format!(
                "record {} on standard input is no JSON ({sent_count} sent before it; --raw sends any line)",
                sent_count + 1
            )
        })?;
        let key = correlation_id(&value);
        send(producer, args, key.as_deref(), Some(value.get().as_bytes()))
            .with_context(|| format!("send record {} to topic {}", sent_count + 1, args.topic))?;
        sent_count += 1;
    }
    Ok(sent_count)
}

/// The record's key: its correlation id, so that one request's events keep their order.
fn correlation_id(value: &serde_json::value::RawValue) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Keyed {
        correlation_id: String,
    }
    serde_json::from_str::<Keyed>(value.get()).ok().map(|keyed| keyed.correlation_id)
}

#[expect(
    clippy::as_conversions,
    reason = "a per cent from 0 to 100 as parts per million; the range was checked"
)]
fn parts_per_million(per_cent: f64) -> u64 {
    (per_cent * 10_000.0).round() as u64
}

fn report(
    args: &EmitArgs,
    out: &mut dyn Write,
    deliveries: &Arc<Deliveries>,
    (delivered_count, seconds, totals): (u64, f64, Option<SampleTotals>),
) -> std::io::Result<()> {
    let places = deliveries.places.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if args.verbose || places.len() <= PRINTED_COUNT {
        for (partition, offset) in places.iter() {
            if args.json {
                writeln!(out, "{}", json!({"topic": args.topic, "partition": partition, "offset": offset}))?;
            } else {
                writeln!(out, "{}[{partition}]@{offset}", args.topic)?;
            }
        }
    }
    let expected = totals.unwrap_or_default();
    if args.json && totals.is_some() {
        let summary = json!({
            "topic": args.topic, "produced": delivered_count, "events": expected.events,
            "duplicates": expected.duplicates, "dead_letters": expected.dead_letters, "seconds": seconds,
        });
        writeln!(out, "{summary}")?;
    } else if totals.is_some() {
        let number = |count: u64| with_thousands(i64::try_from(count).unwrap_or(i64::MAX));
        writeln!(
            out,
            "produced {} records in {seconds:.1} s: expect {} events, {} duplicates, {} dead letters",
            number(delivered_count),
            number(expected.events),
            number(expected.duplicates),
            number(expected.dead_letters)
        )?;
    }
    Ok(())
}
