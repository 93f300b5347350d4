//! What Kafka says of partitions before they are claimed: the topic's id and the watermarks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use uuid::Uuid;

use super::{Description, OffsetReset};
use crate::model::position::{Offset, TopicPartition};
use crate::native::{TopicId, TopicIdRequest};

/// How long each question may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Describes partitions; keeps the cluster's id.
#[derive(Debug)]
pub(super) struct Describer {
    cluster_id: Option<Arc<str>>,
    reset: OffsetReset,
}

type Described = HashMap<Arc<TopicPartition>, Result<Description, String>>;

impl Describer {
    pub(super) fn new(reset: OffsetReset) -> Self {
        Self { cluster_id: None, reset }
    }

    /// The cluster's id, when it was told.
    pub(super) fn cluster_id(&self) -> Option<&str> {
        self.cluster_id.as_deref()
    }

    /// Describes `sources`; after the first question without an answer the rest is not asked.
    pub(super) fn describe<C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        sources: &[Arc<TopicPartition>],
    ) -> Described {
        let outcome = self.cluster_and_topics(consumer, sources);
        let mut silent: Option<String> = None;
        sources
            .iter()
            .map(|source| {
                let described = match (&outcome, &silent) {
                    (Err(reason), _) | (_, Some(reason)) => Err(reason.clone()),
                    (Ok((cluster_id, ids)), None) => {
                        self.describe_one(consumer, source, cluster_id, ids).inspect_err(|reason| {
                            silent = Some(reason.clone());
                        })
                    }
                };
                (Arc::clone(source), described)
            })
            .collect()
    }

    /// Adds the group's offsets in Kafka to what was described, where it has any.
    pub(super) fn add_mirrors<C: ConsumerContext>(consumer: &BaseConsumer<C>, described: &mut Described) {
        let mut list = TopicPartitionList::new();
        for source in described.keys() {
            list.add_partition(&source.topic, source.partition.0);
        }
        let committed = match consumer.committed_offsets(list, TIMEOUT) {
            Ok(committed) => committed,
            Err(error) => {
                tracing::warn!(%error, "no broker told the group's offsets");
                return;
            }
        };
        for (source, description) in described.iter_mut() {
            let found = committed.find_partition(&source.topic, source.partition.0);
            if let (Ok(description), Some(KafkaOffset::Offset(offset))) =
                (description, found.map(|found| found.offset()))
            {
                description.mirror = Offset::new(offset);
            }
        }
    }

    fn cluster_and_topics<C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        sources: &[Arc<TopicPartition>],
    ) -> Result<(Arc<str>, HashMap<String, TopicId>), String> {
        if self.cluster_id.is_none() {
            self.cluster_id = consumer.client().fetch_cluster_id(TIMEOUT).map(Arc::from);
        }
        let Some(cluster_id) = self.cluster_id.clone() else {
            return Err("no broker told the cluster id".into());
        };
        let mut topics: Vec<&str> = sources.iter().map(|source| &*source.topic).collect();
        topics.sort_unstable();
        topics.dedup();
        let request = TopicIdRequest::send(consumer, &topics, TIMEOUT).ok_or("a topic's name holds a NUL")?;
        match request.poll(TIMEOUT) {
            Some(Ok(ids)) => Ok((cluster_id, ids.into_iter().collect())),
            Some(Err(reason)) => Err(format!("no broker told the topic ids: {reason}")),
            None => Err("no broker told the topic ids in time".into()),
        }
    }

    fn describe_one<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        source: &TopicPartition,
        cluster_id: &Arc<str>,
        ids: &HashMap<String, TopicId>,
    ) -> Result<Description, String> {
        let topic_id = match ids.get(&*source.topic) {
            Some(TopicId::Is(id)) => known(*id).ok_or("the cluster is too old to have topic ids")?,
            Some(TopicId::Missing) => return Err("there is no such topic".into()),
            None => return Err("the broker can't tell the topic's id now".into()),
        };
        let (low, high) = consumer
            .client()
            .fetch_watermarks(&source.topic, source.partition.0, TIMEOUT)
            .map_err(|error| format!("no broker told the watermarks: {error}"))?;
        let (Some(low), Some(high)) = (Offset::new(low), Offset::new(high)) else {
            return Err("the broker told negative watermarks".into());
        };
        let initial = match self.reset {
            OffsetReset::Earliest => low,
            OffsetReset::Latest => high,
        };
        Ok(Description { cluster_id: Arc::clone(cluster_id), topic_id, low, high, initial, mirror: None })
    }
}

fn known(id: Uuid) -> Option<Uuid> {
    (!id.is_nil()).then_some(id)
}
