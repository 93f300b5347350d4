//! A transactional producer, and the position that it commits with its records.
//!
//! The position of the relay: key (source topic, source partition), value the offset after the last dead letter that
//! was sent, metadata the stream and the transaction. It is committed in the same Kafka transaction as the letters,
//! so a reader of it knows what is there; and the transaction's name in it tells whether a commit whose answer was
//! lost had succeeded. (Kafka refuses a key whose partition does not exist, so the source's is used: a dead letter
//! topic may have fewer.)

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Message, OwnedHeaders};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};
use rdkafka::topic_partition_list::TopicPartitionList;
use uuid::Uuid;

use super::{OutletError, OutletSettings, Purpose, Topic};
use crate::failpoint;
use crate::kafka::{self, Link};
use crate::model::dead_letter::OutgoingRecord;
use crate::model::position::{Offset, Partition, StreamId};
use crate::native::{self, LetGo};

/// After this the broker aborts a transaction of a producer that says nothing. It looks every 10 s (its
/// `transaction.abort.timed.out.transaction.cleanup.interval.ms`), so readers of `read_committed` wait for 30 s at
/// most.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(20);
/// How long taking over may take: an earlier transaction is ended first.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long sending may take; below the transaction's own limit.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the offsets, and the commit, may take.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(15);
/// What librdkafka has not said by then it may never say, see [`Producer::send_position`].
const HUNG_AFTER: Duration = Duration::from_secs(20);
/// How long asking for positions may take.
const POSITION_TIMEOUT: Duration = Duration::from_secs(15);
/// How long ending a transaction that failed may take: if it is not ended the broker does it.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);
/// librdkafka's own bounds of a batch and of `message.max.bytes`.
const BATCH_MAX_LEN_BYTES: usize = 1_000_000;
const MESSAGE_MAX_LEN_BYTES: usize = 1_000_000_000;
/// What librdkafka may count beside what [`OutgoingRecord::len_bytes`] does.
const MESSAGE_SLACK_BYTES: usize = 4096;

/// Where a record was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Placement {
    /// In which partition of the topic.
    pub partition: Partition,
    /// At which offset.
    pub offset: Offset,
}

/// How far the letters of one source partition were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The stream of the source partition.
    pub stream: StreamId,
    /// The offset after the last letter that was sent.
    pub next: Offset,
    /// The transaction that committed this.
    pub transaction: Uuid,
    /// The latest hand-over of the stream between groups when it was committed: a position from before says nothing of
    /// what the other group sent.
    pub handover: i64,
}

impl Position {
    fn metadata(&self) -> String {
        format!("{} {} {}", self.stream, self.transaction, self.handover)
    }

    fn read(offset: rdkafka::Offset, metadata: &str) -> Option<Self> {
        let rdkafka::Offset::Offset(next) = offset else { return None };
        let mut parts = metadata.split(' ');
        Some(Self {
            stream: StreamId(parts.next()?.parse().ok()?),
            next: Offset::new(next)?,
            transaction: parts.next()?.parse().ok()?,
            handover: parts.next()?.parse().ok()?,
        })
    }
}

/// Collects delivery reports.
#[derive(Debug)]
struct Deliveries {
    placed: Mutex<HashMap<usize, Result<Placement, KafkaError>>>,
    link: Link,
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Result<Placement, KafkaError>>> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.link.generate_oauth_token(config)
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let placed = match result {
            Ok(message) => Offset::new(message.offset())
                .map(|offset| Placement { partition: Partition(message.partition()), offset })
                .ok_or(KafkaError::MessageProduction(RDKafkaErrorCode::Fail)),
            Err((error, _)) => Err(error.clone()),
        };
        self.lock().insert(index, placed);
    }
}

/// A transactional producer that has fenced every earlier one, with a consumer for its positions.
pub struct Producer {
    producer: Arc<LetGo<BaseProducer<Deliveries>>>,
    positions: LetGo<BaseConsumer<Link>>,
    group_metadata: Arc<ConsumerGroupMetadata>,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl Producer {
    /// A producer for records to `topics`; when this returns, every earlier producer for `purpose` is fenced and its
    /// transactions are ended. Blocks for half a minute at most.
    ///
    /// # Errors
    /// [`OutletError`].
    pub fn start(settings: &OutletSettings, purpose: Purpose, topics: &[Topic]) -> Result<Self, OutletError> {
        const STEP: &str = "begin as the transactional producer";
        let limits = topics.iter().map(|topic| topic.record_max_len_bytes);
        let batch_len_bytes = limits.clone().min().unwrap_or(BATCH_MAX_LEN_BYTES).min(BATCH_MAX_LEN_BYTES);
        let message_len_bytes = limits.max().unwrap_or(BATCH_MAX_LEN_BYTES);
        let message_len_bytes = message_len_bytes
            .max(BATCH_MAX_LEN_BYTES)
            .saturating_add(MESSAGE_SLACK_BYTES)
            .min(MESSAGE_MAX_LEN_BYTES);
        let millis = |duration: Duration| duration.as_millis().to_string();
        let mut config = settings.client(STEP)?;
        config.set("transactional.id", settings.transactional_id(purpose));
        config.set("transaction.timeout.ms", millis(TRANSACTION_TIMEOUT));
        config.set("message.timeout.ms", millis(SEND_TIMEOUT));
        // librdkafka wants it below the transaction's limit.
        config.set("socket.timeout.ms", millis(SEND_TIMEOUT));
        // A batch of several records must fit each topic; one record alone may be as large as any allows.
        config.set("batch.size", batch_len_bytes.max(1).to_string());
        config.set("message.max.bytes", message_len_bytes.to_string());
        let producer: BaseProducer<Deliveries> = config
            .create_with_context(Deliveries { placed: Mutex::default(), link: settings.link() })
            .map_err(|error| OutletError::of(STEP, error))?;
        let producer = kafka::let_go(producer);
        producer.context().link.refresh(producer.client());
        producer.init_transactions(INIT_TIMEOUT).map_err(|error| {
            producer.context().link.catch_up(producer.client());
            OutletError::of(STEP, error).because_of(&producer.context().link)
        })?;
        let mut config = settings.client(STEP)?;
        // `read_committed` makes librdkafka ask for stable positions (KIP-447).
        config.set("group.id", settings.position_group()).set("isolation.level", "read_committed");
        let positions: BaseConsumer<Link> =
            config.create_with_context(settings.link()).map_err(|error| OutletError::of(STEP, error))?;
        let positions = kafka::let_go(positions);
        positions.context().refresh(positions.client());
        let group_metadata = positions.group_metadata().ok_or_else(|| OutletError::Doubt {
            step: STEP,
            reason: "librdkafka has no metadata of the group".into(),
        })?;
        Ok(Self { producer: Arc::new(producer), positions, group_metadata: Arc::new(group_metadata) })
    }

    /// The committed positions of the partitions of `topic`; one that has none is left out. To be asked after
    /// [`Self::start`]: only then no other producer can move them unseen. Blocks for 15 s at most.
    ///
    /// # Errors
    /// [`OutletError`].
    pub fn positions(
        &self,
        topic: &str,
        partitions: &[Partition],
    ) -> Result<HashMap<Partition, Position>, OutletError> {
        const STEP: &str = "read the relay's position";
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(topic, partition.0);
        }
        self.positions.context().refresh(self.positions.client());
        let found = self.positions.committed_offsets(list, POSITION_TIMEOUT);
        let found = found.map_err(|error| OutletError::of(STEP, error))?;
        let mut positions = HashMap::new();
        for element in found.elements() {
            element.error().map_err(|error| OutletError::of(STEP, error))?;
            if let Some(position) = Position::read(element.offset(), element.metadata()) {
                positions.insert(Partition(element.partition()), position);
            }
        }
        Ok(positions)
    }

    /// Sends `records` to `topic` and commits `positions` of the partitions of `source_topic` with them, in one
    /// transaction. Returns where each record is, in order. Blocks for a minute at most.
    ///
    /// # Errors
    /// [`OutletError`]: the producer must be dropped, and whether the transaction was committed is not known (but for
    /// [`OutletError::TooLarge`] and [`OutletError::TimestampRefused`]: it was not).
    pub fn transact(
        &self,
        topic: &str,
        records: &[(Partition, OutgoingRecord)],
        (source_topic, positions): (&str, &HashMap<Partition, Position>),
    ) -> Result<Vec<Placement>, OutletError> {
        self.producer.context().link.refresh(self.producer.client());
        let sent = self.send(topic, records, (source_topic, positions));
        let placements = sent.map_err(|error| {
            let why = self.refusal_among_deliveries(topic);
            self.abort();
            why.unwrap_or(error)
        })?;
        // From here on the outcome is unknown until the broker has answered: no abort.
        failpoint::at("relay_before_commit");
        self.producer
            .commit_transaction(COMMIT_TIMEOUT)
            .map_err(|error| OutletError::of("commit the transaction", error))?;
        failpoint::at("relay_after_commit");
        Ok(placements)
    }

    fn send(
        &self,
        topic: &str,
        records: &[(Partition, OutgoingRecord)],
        (source_topic, positions): (&str, &HashMap<Partition, Position>),
    ) -> Result<Vec<Placement>, OutletError> {
        const STEP: &str = "send the records";
        self.producer.context().lock().clear();
        self.producer.begin_transaction().map_err(|error| OutletError::of("begin the transaction", error))?;
        for (index, (partition, record)) in records.iter().enumerate() {
            self.enqueue(topic, (index, *partition), record)?;
        }
        self.producer.flush(SEND_TIMEOUT).map_err(|error| OutletError::of(STEP, error))?;
        let placements: Vec<Placement> = {
            let deliveries = self.producer.context().lock();
            (0..records.len()).filter_map(|index| deliveries.get(&index)?.as_ref().ok().copied()).collect()
        };
        if placements.len() != records.len() {
            let reason = format!("only {} of {} records were taken", placements.len(), records.len());
            return Err(OutletError::Doubt { step: STEP, reason });
        }
        failpoint::at("relay_after_send");
        if !positions.is_empty() {
            let mut list = TopicPartitionList::new();
            for (partition, position) in positions {
                let mut element = list.add_partition(source_topic, partition.0);
                element.set_metadata(position.metadata());
                element
                    .set_offset(rdkafka::Offset::Offset(position.next.as_i64()))
                    .map_err(|error| OutletError::of("name the position", error))?;
            }
            self.send_position(list)?;
        }
        failpoint::at("relay_after_offsets");
        Ok(placements)
    }

    /// Sends the position within the transaction, on a thread of its own, as librdkafka (2.12) may not return from it,
    /// whatever the limit: it waits for a connection to the group's coordinator, and when what it remembers as
    /// coordinator is a broker that it has dropped meanwhile (as it drops those that an answer to a metadata request
    /// does not name), nobody makes that connection, and nothing but another broker's change of state wakes it. The thread
    /// and its producer are left behind then; the next producer fences it.
    fn send_position(&self, list: TopicPartitionList) -> Result<(), OutletError> {
        const STEP: &str = "send the position";
        let doubt = |reason: String| OutletError::Doubt { step: STEP, reason };
        let (producer, group) = (Arc::clone(&self.producer), Arc::clone(&self.group_metadata));
        let (sender, answer) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("relay-position".into()).spawn(move || {
            failpoint::at("relay_in_offsets");
            let sent = producer.send_offsets_to_transaction(&list, &group, COMMIT_TIMEOUT);
            drop(producer);
            if let Err(mpsc::SendError(sent)) = sender.send(sent) {
                tracing::info!(?sent, "a call of librdkafka that was given up has returned");
            }
        });
        drop(thread.map_err(|error| doubt(error.to_string()))?);
        match answer.recv_timeout(HUNG_AFTER) {
            Ok(sent) => sent.map_err(|error| OutletError::of(STEP, error)),
            Err(error) => Err(doubt(format!("librdkafka does not return; a new producer is made ({error})"))),
        }
    }

    fn enqueue(
        &self,
        topic: &str,
        (index, partition): (usize, Partition),
        record: &OutgoingRecord,
    ) -> Result<(), OutletError> {
        const STEP: &str = "send a record";
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in &record.headers {
            headers = native::add_header(headers, key, value.as_deref());
        }
        let mut outgoing: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(topic, index).partition(partition.0).headers(headers);
        outgoing.key = record.key.as_deref();
        outgoing.payload = record.value.as_deref();
        outgoing.timestamp = record.timestamp_ms;
        self.producer.send(outgoing).map_err(|(error, _)| refusal(STEP, topic, error))
    }

    /// What the broker itself said against a record, if anything. (The first one that it refuses makes librdkafka give
    /// up all that are queued, each with an error that says no more than that.)
    fn refusal_among_deliveries(&self, topic: &str) -> Option<OutletError> {
        self.producer.poll(Duration::ZERO);
        let deliveries = self.producer.context().lock();
        let refusals = deliveries.values().filter_map(|delivery| {
            let error = delivery.as_ref().err()?.clone();
            let is_ours = matches!(
                error.rdkafka_error_code(),
                Some(
                    RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight | RDKafkaErrorCode::State
                )
            );
            (!is_ours).then(|| refusal("send the records", topic, error))
        });
        refusals.max_by_key(|refusal| {
            matches!(refusal, OutletError::TooLarge { .. } | OutletError::TimestampRefused { .. })
        })
    }

    /// Ends a transaction that was not committed, so that readers need not wait; if that fails the broker does it.
    fn abort(&self) {
        if failpoint::is_on("relay_no_abort") {
            return;
        }
        self.producer.purge(PurgeConfig::default().queue().inflight());
        // Reports that are not served would hold the abort up.
        let ended =
            self.producer.flush(ABORT_TIMEOUT).and_then(|()| self.producer.abort_transaction(ABORT_TIMEOUT));
        if let Err(error) = ended {
            tracing::debug!(%error, "the transaction was not aborted; the broker does it");
        }
    }
}

fn refusal(step: &'static str, topic: &str, error: KafkaError) -> OutletError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
            OutletError::TooLarge { topic: topic.to_owned() }
        }
        Some(RDKafkaErrorCode::InvalidTimestamp) => OutletError::TimestampRefused { topic: topic.to_owned() },
        _ => OutletError::of(step, error),
    }
}
