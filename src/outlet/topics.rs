//! Dead letter topics: there, or made; and how large a record they take.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Handle;

use super::{OutletError, OutletSettings};
use crate::kafka::{self, Link};
use crate::model::dead_letter::TOPIC_SUFFIX;
use crate::native::LetGo;

/// How long a question or a creation may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a topic that was made may be unknown to the broker that we ask.
const CREATED_PATIENCE: Duration = Duration::from_secs(10);
/// Kafka's default of `max.message.bytes` (topic-level configs of its documentation), for a topic whose settings we may
/// not read.
const RECORD_MAX_LEN_BYTES: usize = 1_048_588;
/// What a dead letter may need beyond its record: our headers.
const LETTER_MARGIN_BYTES: usize = 16 * 1024;

/// A topic to send to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// How many partitions it has; at least 1.
    pub partition_count: i32,
    /// The largest record batch that it takes, in bytes (`max.message.bytes`).
    pub record_max_len_bytes: usize,
}

/// `RD_KAFKA_EVENT_ERROR` of rdkafka.h.
const ERROR_EVENTS: &str = "8";

/// Looks after topics.
pub struct Topics {
    admin: LetGo<AdminClient<Link>>,
}

impl std::fmt::Debug for Topics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topics").finish_non_exhaustive()
    }
}

impl Topics {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`OutletError::Unavailable`] when librdkafka refuses the properties.
    pub fn new(settings: &OutletSettings) -> Result<Self, OutletError> {
        const STEP: &str = "make the admin client";
        let mut config = settings.client(STEP)?;
        // rdkafka's admin client asks for no events; its errors tell why brokers keep us out.
        config.set("enabled_events", ERROR_EVENTS);
        let made: Result<AdminClient<Link>, KafkaError> = config.create_with_context(settings.link());
        let admin = made.map_err(|error| OutletError::of(STEP, error))?;
        admin.inner().context().refresh(admin.inner());
        Ok(Self { admin: kafka::let_go(admin) })
    }

    /// How many partitions `topic` has; `None` when there is no such topic. Blocks for 5 s at most.
    ///
    /// # Errors
    /// [`OutletError::Unavailable`], [`OutletError::Refused`].
    pub fn partition_count(&self, topic: &str) -> Result<Option<i32>, OutletError> {
        const STEP: &str = "look the topic up";
        let client = self.admin.inner();
        client.context().refresh(client);
        let metadata = client.fetch_metadata(Some(topic), TIMEOUT);
        let metadata = match metadata {
            Err(error) if OutletError::is_missing(&error) => return Ok(None),
            other => other.map_err(|error| {
                client.context().catch_up(client);
                OutletError::of(STEP, error).because_of(client.context())
            })?,
        };
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error() {
            Some(code) if super::is_error(code) => {
                let error = KafkaError::MetadataFetch(code.into());
                if OutletError::is_missing(&error) { Ok(None) } else { Err(OutletError::of(STEP, error)) }
            }
            _ => Ok(i32::try_from(found.partitions().len()).ok().filter(|count| *count > 0)),
        }
    }

    /// The dead letter topic of `source_topic`, made with as many partitions as its source has when it is missing.
    /// A topic that we make keeps its records (`retention.ms=-1`): letters carry the original timestamps, and those
    /// may be older than any retention. Blocks for half a minute at most.
    ///
    /// # Errors
    /// [`OutletError::Refused`] when it is missing and can't be made.
    pub fn letter_topic(&self, source_topic: &str) -> Result<Topic, OutletError> {
        let name = format!("{source_topic}{TOPIC_SUFFIX}");
        if let Some(found) = self.find(&name)? {
            return Ok(found);
        }
        self.create(&name, source_topic)?;
        self.wait_for(&name)?;
        self.find(&name)?.ok_or_else(|| OutletError::Doubt {
            step: "make the dead letter topic",
            reason: format!("{name} was made and is not there"),
        })
    }

    /// A topic, if it is there. Blocks for 10 s at most.
    ///
    /// # Errors
    /// [`OutletError::Unavailable`], [`OutletError::Refused`].
    pub fn find(&self, name: &str) -> Result<Option<Topic>, OutletError> {
        let Some(partition_count) = self.partition_count(name)? else { return Ok(None) };
        let record_max_len_bytes = self.record_max_len_bytes(name)?.unwrap_or(RECORD_MAX_LEN_BYTES);
        Ok(Some(Topic { name: name.to_owned(), partition_count, record_max_len_bytes }))
    }

    fn create(&self, name: &str, source_topic: &str) -> Result<(), OutletError> {
        const STEP: &str = "make the dead letter topic";
        let partition_count = self.partition_count(source_topic)?.unwrap_or(1);
        // As large as the source's records may be, and our headers.
        let max_len_bytes = self
            .record_max_len_bytes(source_topic)?
            .map(|len_bytes| len_bytes.saturating_add(LETTER_MARGIN_BYTES).to_string());
        let mut topic = NewTopic::new(name, partition_count, TopicReplication::Fixed(-1))
            .set("cleanup.policy", "delete")
            .set("retention.ms", "-1")
            .set("retention.bytes", "-1");
        if let Some(max_len_bytes) = &max_len_bytes {
            topic = topic.set("max.message.bytes", max_len_bytes);
        }
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
        let created = Handle::current().block_on(self.admin.create_topics([&topic], &options));
        let created = created.map_err(|error| OutletError::of(STEP, error))?;
        match created.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
                Err(OutletError::Refused {
                    step: STEP,
                    advice: format!(
                        "create topic {name} with {partition_count} partitions, or grant the right to create it"
                    ),
                    source: KafkaError::AdminOp(code),
                })
            }
            _ => {
                tracing::info!(topic = name, partition_count, "made the dead letter topic");
                Ok(())
            }
        }
    }

    fn wait_for(&self, name: &str) -> Result<(), OutletError> {
        const PAUSE: Duration = Duration::from_millis(100);
        let mut waited = Duration::ZERO;
        loop {
            if self.partition_count(name)?.is_some() || waited >= CREATED_PATIENCE {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
            waited += PAUSE;
        }
    }

    /// `max.message.bytes` of a topic; `None` when we may not know it.
    fn record_max_len_bytes(&self, topic: &str) -> Result<Option<usize>, OutletError> {
        Ok(self.setting(topic, "max.message.bytes")?.and_then(|value| value.parse().ok()))
    }

    /// Whether Kafka takes records out of the middle of a topic (`cleanup.policy`); `None` when we may not know it.
    /// Blocks for 5 s at most.
    ///
    /// # Errors
    /// [`OutletError::Unavailable`].
    pub fn is_compacted(&self, topic: &str) -> Result<Option<bool>, OutletError> {
        Ok(self.setting(topic, "cleanup.policy")?.map(|policy| policy.contains("compact")))
    }

    fn setting(&self, topic: &str, name: &str) -> Result<Option<String>, OutletError> {
        const STEP: &str = "look the topic's settings up";
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let described = Handle::current()
            .block_on(self.admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options));
        let described = described.map_err(|error| OutletError::of(STEP, error))?;
        let resource = match described.into_iter().next() {
            Some(Ok(resource)) => resource,
            Some(Err(
                RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::UnknownTopicOrPartition,
            ))
            | None => return Ok(None),
            Some(Err(code)) => return Err(OutletError::of(STEP, KafkaError::AdminOp(code))),
        };
        let entry = resource.entries.into_iter().find(|entry| entry.name == name);
        Ok(entry.and_then(|entry| entry.value))
    }
}
