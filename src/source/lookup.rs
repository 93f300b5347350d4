//! Questions to Kafka outside of any group: which topics there are, what they are, where partitions end.
//!
//! Blocking: an async caller asks from `spawn_blocking`. Never here: records, groups, committed offsets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use uuid::Uuid;

use super::describe::Describer;
use super::{Description, OffsetReset};
use crate::config::KafkaProperties;
use crate::kafka::{self, Link};
use crate::model::position::{Offset, Partition, TopicPartition};
use crate::native::{TopicId, TopicIdRequest};

/// How long each question may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// No broker answered in time, or it refused: ask again later.
    #[error("kafka is unavailable: {0}")]
    Unavailable(#[source] KafkaError),
    /// The brokers refuse our login, or we their certificate: an operator must act.
    #[error("kafka keeps us out: {0}")]
    KeptOut(String),
    /// librdkafka refuses the properties: an operator must act.
    #[error("kafka's properties are wrong: {0}")]
    Misconfigured(#[source] KafkaError),
    /// Kafka says nothing certain of this topic; the text says why.
    #[error("{topic}: {reason}")]
    Undescribed {
        /// Which topic.
        topic: String,
        /// Why.
        reason: String,
    },
}

/// Asks Kafka; a consumer that belongs to no group and reads nothing.
pub struct Lookup {
    consumer: BaseConsumer<Link>,
    describer: Describer,
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookup").field("describer", &self.describer).finish_non_exhaustive()
    }
}

impl Lookup {
    /// A lookup with `properties` as the daemon uses them: those of the group are left
    /// out. Connects to nothing yet.
    ///
    /// # Errors
    /// [`LookupError::Misconfigured`].
    pub fn new(properties: &KafkaProperties) -> Result<Self, LookupError> {
        let mut properties = properties.clone();
        properties.given.retain(|(name, _)| !name.starts_with("group."));
        let consumer: BaseConsumer<Link> = kafka::client_config(&properties)
            .and_then(|config| config.create_with_context(Link::new(&properties)))
            .map_err(LookupError::Misconfigured)?;
        consumer.context().refresh(consumer.client());
        Ok(Self { consumer, describer: Describer::new(OffsetReset::Earliest) })
    }

    fn unavailable(&self, error: KafkaError) -> LookupError {
        self.kept_out().unwrap_or(LookupError::Unavailable(error))
    }

    /// Whether that is why a question had no answer.
    fn kept_out(&self) -> Option<LookupError> {
        let link = self.consumer.context();
        link.catch_up(self.consumer.client());
        link.take_refusal().map(|refusal| LookupError::KeptOut(link.explain(refusal)))
    }

    /// The topics of the cluster with the number of their partitions, by name. Blocks for 5 s at most.
    ///
    /// # Errors
    /// [`LookupError::Unavailable`], [`LookupError::KeptOut`].
    pub fn topics(&self) -> Result<Vec<(String, usize)>, LookupError> {
        let metadata =
            self.consumer.client().fetch_metadata(None, TIMEOUT).map_err(|error| self.unavailable(error))?;
        let mut topics: Vec<(String, usize)> =
            metadata.topics().iter().map(|topic| (topic.name().into(), topic.partitions().len())).collect();
        topics.sort_unstable();
        Ok(topics)
    }

    /// The cluster's id and the topic's id. Blocks for 15 s at most.
    ///
    /// # Errors
    /// [`LookupError::Undescribed`], [`LookupError::KeptOut`].
    pub fn describe(&mut self, topic: &str) -> Result<(Arc<str>, Uuid), LookupError> {
        // Every topic has a partition 0.
        let first = self.describe_partitions(topic, &[Partition(0)]).into_iter().next();
        match first {
            Some((_, Ok(description))) => Ok((description.cluster_id, description.topic_id)),
            Some((_, Err(reason))) => {
                let undescribed = LookupError::Undescribed { topic: topic.into(), reason };
                Err(self.kept_out().unwrap_or(undescribed))
            }
            None => Err(LookupError::Undescribed { topic: topic.into(), reason: "nothing was said".into() }),
        }
    }

    /// What Kafka says of `partitions` of one topic, or why that can't be known now. After the first question
    /// without an answer the rest is not asked. Blocks for 15 s at most while brokers are silent.
    pub fn describe_partitions(
        &mut self,
        topic: &str,
        partitions: &[Partition],
    ) -> HashMap<Partition, Result<Description, String>> {
        let topic: Arc<str> = topic.into();
        let sources: Vec<Arc<TopicPartition>> = partitions
            .iter()
            .map(|&partition| Arc::new(TopicPartition { topic: Arc::clone(&topic), partition }))
            .collect();
        self.consumer.context().refresh(self.consumer.client());
        let described = self.describer.describe(&self.consumer, &sources);
        described.into_iter().map(|(source, description)| (source.partition, description)).collect()
    }

    /// The cluster's id, once something was described.
    #[must_use]
    pub fn cluster_id(&self) -> Option<&str> {
        self.describer.cluster_id()
    }

    /// Whether Kafka says that there is no such topic; `false` when it does not tell. Blocks for 5 s at most.
    #[must_use]
    pub fn is_missing(&self, topic: &str) -> bool {
        let request = TopicIdRequest::send(&self.consumer, &[topic], TIMEOUT);
        let answer = request.and_then(|request| request.poll(TIMEOUT)).and_then(Result::ok);
        answer.into_iter().flatten().any(|(name, id)| name == topic && id == TopicId::Missing)
    }

    /// The first offset that Kafka has of a partition, and the position after the last one that a reader of
    /// the configured `isolation.level` may see. Blocks for 5 s at most.
    ///
    /// # Errors
    /// [`LookupError::Unavailable`], for a partition that is not there too; [`LookupError::Undescribed`] when
    /// the broker tells nonsense.
    pub fn watermarks(&self, topic: &str, partition: Partition) -> Result<(Offset, Offset), LookupError> {
        let (low, high) = self
            .consumer
            .client()
            .fetch_watermarks(topic, partition.0, TIMEOUT)
            .map_err(|error| self.unavailable(error))?;
        Offset::new(low).zip(Offset::new(high)).ok_or_else(|| LookupError::Undescribed {
            topic: topic.into(),
            reason: format!("the broker told negative watermarks of partition {partition}"),
        })
    }
}
