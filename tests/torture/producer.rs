//! Sends records to the broker, past the proxy, and writes down what it acknowledged: steadily, and in transactions of
//! which some are aborted.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;

use crate::ledger::{Entry, Kind, Ledger};
use crate::payload::Payloads;
use crate::random::Random;

/// How many records a transaction has, and how long to wait between two.
const TRANSACTION_RECORD_COUNT: u64 = 20;
const TRANSACTION_PAUSE: Duration = Duration::from_millis(250);
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(10);
/// How many records of the steady producer may be under way, and how long it may have no answer; a broker that is
/// killed is back before.
const IN_FLIGHT_MAX: i32 = 25_000;
const STUCK_AFTER: Duration = Duration::from_secs(90);

/// What all producers of a run share.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) payloads: Payloads,
    pub(crate) partition_count: AtomicI32,
    pub(crate) next_index: Arc<AtomicU64>,
    pub(crate) acknowledged_count: AtomicU64,
    pub(crate) is_over: AtomicBool,
    /// Offsets that were acknowledged twice: a fault of the rig or of the broker.
    pub(crate) repeated_offset_count: AtomicU64,
}

/// Takes delivery reports.
struct Reports {
    feed: Arc<Feed>,
    /// Of a transaction: what it delivered, until its end is known.
    held: Option<Mutex<Vec<(i32, i64, Entry)>>>,
    /// How many records were acknowledged or given up.
    settled_count: AtomicU64,
}

impl Reports {
    fn new(feed: &Arc<Feed>, held: Option<Mutex<Vec<(i32, i64, Entry)>>>) -> Self {
        Self { feed: Arc::clone(feed), held, settled_count: AtomicU64::new(0) }
    }

    /// Writes down what the transaction delivered.
    fn settle(&self, kind: impl Fn(Kind) -> Kind) {
        let Some(held) = &self.held else { return };
        for (partition, offset, entry) in held.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.feed.note(partition, offset, Entry { kind: kind(entry.kind), ..entry });
        }
    }
}

impl Feed {
    fn note(&self, partition: i32, offset: i64, entry: Entry) {
        if self.ledger.acknowledge(partition, offset, entry).is_some() {
            self.repeated_offset_count.fetch_add(1, Ordering::SeqCst);
        }
        self.acknowledged_count.fetch_add(1, Ordering::SeqCst);
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "20")
            .set("queue.buffering.max.messages", "30000")
            .set("reconnect.backoff.max.ms", "1000")
            .set("topic.metadata.refresh.interval.ms", "5000");
        config
    }
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        self.settled_count.fetch_add(1, Ordering::SeqCst);
        let Some(entry) = Entry::unpack(u64::try_from(opaque).unwrap_or(0)) else { return };
        match (result, &self.held) {
            (Ok(message), None) => self.feed.note(message.partition(), message.offset(), entry),
            (Ok(message), Some(held)) => {
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                held.push((message.partition(), message.offset(), entry));
            }
            (Err(_), _) => self.feed.ledger.fail(entry),
        }
    }
}

/// Sends the record at `index` to a partition; waits while the queue is full.
fn send(producer: &ThreadedProducer<Reports>, feed: &Feed, index: u64, partition: i32) {
    let mut payload = Vec::new();
    let (entry, has_value) = feed.payloads.write(index, &mut payload);
    let key = index.to_string();
    loop {
        let opaque = usize::try_from(entry.pack()).unwrap_or(0);
        let mut record: BaseRecord<'_, str, [u8], usize> = BaseRecord::with_opaque_to(&feed.topic, opaque);
        record.key = Some(&key);
        record.payload = has_value.then_some(payload.as_slice());
        record.partition = Some(partition);
        match producer.send(record) {
            Ok(()) => return,
            Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => {
                std::thread::sleep(TICK);
            }
            Err(_) => return feed.ledger.fail(entry),
        }
    }
}

fn partition_of(random: &mut Random, feed: &Feed) -> i32 {
    let count = u64::try_from(feed.partition_count.load(Ordering::SeqCst)).unwrap_or(1);
    i32::try_from(random.within(0..count)).unwrap_or(0)
}

/// The producer of [`send_steadily`]. librdkafka was seen without any broker after a restart of
/// the only one, and stuck: so one that gets no answer for long is replaced, and what it had under way counts as given up.
struct Steady {
    producer: ThreadedProducer<Reports>,
    settled_count: u64,
    moved_at: Instant,
}

impl Steady {
    fn new(feed: &Arc<Feed>) -> anyhow::Result<Self> {
        let mut config = feed.config();
        // A broker that is away must not make records fail whose fate nobody then knows.
        config.set("message.timeout.ms", "600000");
        let producer = config.create_with_context(Reports::new(feed, None))?;
        Ok(Self { producer, settled_count: 0, moved_at: Instant::now() })
    }

    /// Whether it has answers to wait for and gets none.
    fn is_stuck(&mut self) -> bool {
        let settled_count = self.producer.context().settled_count.load(Ordering::SeqCst);
        if settled_count != self.settled_count || self.producer.in_flight_count() == 0 {
            (self.settled_count, self.moved_at) = (settled_count, Instant::now());
        }
        self.moved_at.elapsed() > STUCK_AFTER
    }

    /// Gives up what is under way.
    fn give_up(&self) {
        self.producer.purge(PurgeConfig::default().queue().inflight());
        drop(self.producer.flush(Duration::from_secs(10)));
    }
}

/// Sends so many records a second until the feed is over; returns when all are acknowledged or given up.
pub(crate) fn send_steadily(
    feed: &Arc<Feed>,
    records_per_second: u64,
    mut random: Random,
) -> anyhow::Result<()> {
    let mut steady = Steady::new(feed)?;
    let started_at = Instant::now();
    let mut sent_count = 0;
    while !feed.is_over.load(Ordering::SeqCst) {
        let millis = u64::try_from(started_at.elapsed().as_millis())?;
        let wanted_count = millis * records_per_second / 1000;
        // What was not sent while the queue was full is not made up for at once.
        sent_count = sent_count.max(wanted_count.saturating_sub(records_per_second));
        while sent_count < wanted_count && steady.producer.in_flight_count() < IN_FLIGHT_MAX {
            let index = feed.next_index.fetch_add(1, Ordering::SeqCst);
            send(&steady.producer, feed, index, partition_of(&mut random, feed));
            sent_count += 1;
        }
        if steady.is_stuck() {
            eprintln!("torture: librdkafka's producer was stuck, and is replaced");
            steady.give_up();
            steady = Steady::new(feed)?;
        }
        std::thread::sleep(TICK);
    }
    while steady.producer.flush(Duration::from_secs(1)).is_err() {
        if steady.is_stuck() {
            steady.give_up();
            break;
        }
    }
    Ok(())
}

/// Sends so many events to a partition and waits until they are acknowledged. Events only: what no other record repeats
/// may be lost without a trace in the account of others.
pub(crate) fn send_events(feed: &Arc<Feed>, partition: i32, count: usize) -> anyhow::Result<()> {
    let mut config = feed.config();
    config.set("message.timeout.ms", "60000");
    let producer: ThreadedProducer<Reports> = config.create_with_context(Reports::new(feed, None))?;
    let mut sent_count = 0;
    while sent_count < count {
        let index = feed.next_index.fetch_add(1, Ordering::SeqCst);
        if feed.payloads.is_event(index) {
            send(&producer, feed, index, partition);
            sent_count += 1;
        }
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(())
}

/// Sends transactions until the feed is over; every third or so is aborted. Returns how many were committed, aborted,
/// and of unknown end.
pub(crate) fn send_transactions(feed: &Arc<Feed>, mut random: Random) -> [u64; 3] {
    let mut counts = [0; 3];
    let mut producer = None;
    while !feed.is_over.load(Ordering::SeqCst) {
        std::thread::sleep(TRANSACTION_PAUSE);
        if producer.is_none() {
            producer = transactional(feed).ok();
        }
        let Some(open) = &producer else { continue };
        let end = transaction(open, feed, &mut random);
        // After an end that is not certain a new producer ends what the old one left.
        if end == End::Unknown || open.client().fatal_error().is_some() {
            producer = None;
        }
        let [committed, aborted, unknown] = &mut counts;
        *match end {
            End::Committed => committed,
            End::Aborted => aborted,
            End::Unknown => unknown,
        } += 1;
    }
    counts
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Committed,
    Aborted,
    Unknown,
}

fn transactional(feed: &Arc<Feed>) -> anyhow::Result<ThreadedProducer<Reports>> {
    let reports = Reports::new(feed, Some(Mutex::default()));
    let mut config = feed.config();
    config.set("transactional.id", "torture-producer").set("transaction.timeout.ms", "10000");
    let producer: ThreadedProducer<Reports> = config.create_with_context(reports)?;
    producer.init_transactions(TRANSACTION_TIMEOUT)?;
    Ok(producer)
}

fn transaction(producer: &ThreadedProducer<Reports>, feed: &Feed, random: &mut Random) -> End {
    if producer.begin_transaction().is_err() {
        return End::Unknown;
    }
    for _ in 0..TRANSACTION_RECORD_COUNT {
        let index = feed.next_index.fetch_add(1, Ordering::SeqCst);
        send(producer, feed, index, partition_of(random, feed));
    }
    let is_sent = producer.flush(TRANSACTION_TIMEOUT).is_ok();
    let wants_abort = !is_sent || random.percent(35);
    if wants_abort {
        // Whether or not the broker hears of it: a transaction that nobody commits is aborted by its time-out.
        let end = producer.abort_transaction(TRANSACTION_TIMEOUT).map_or(End::Unknown, |()| End::Aborted);
        producer.context().settle(|_| Kind::Aborted);
        return end;
    }
    for _ in 0..3 {
        match producer.commit_transaction(TRANSACTION_TIMEOUT) {
            Ok(()) => {
                producer.context().settle(|kind| kind);
                return End::Committed;
            }
            Err(rdkafka::error::KafkaError::Transaction(error)) if error.is_retriable() => {}
            Err(_) => break,
        }
    }
    producer.context().settle(Kind::unsure);
    End::Unknown
}
