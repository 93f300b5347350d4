//! What Kafka says of partitions before they are claimed: the topic's id and the watermarks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
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
    /// Of which nobody told the watermarks in time. They are asked of last: one without a leader holds up only its like.
    silent: HashSet<Arc<TopicPartition>>,
}

type Described = HashMap<Arc<TopicPartition>, Result<Description, String>>;

/// Why a partition is not described.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Undescribed {
    /// Nobody answered: so may it be with the others.
    Silent(String),
    /// It is this partition's.
    Refused(String),
}

impl Describer {
    pub(super) fn new(reset: OffsetReset) -> Self {
        Self { cluster_id: None, reset, silent: HashSet::new() }
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
        match self.cluster_and_topics(consumer, sources) {
            Ok((cluster_id, ids)) => {
                let reset = self.reset;
                let ask = |source: &TopicPartition| {
                    let topic_id = topic_id(ids.get(&*source.topic))?;
                    watermarks(consumer, source, (&cluster_id, topic_id), reset)
                };
                ask_each(sources, &mut self.silent, ask)
            }
            Err(reason) => sources.iter().map(|source| (Arc::clone(source), Err(reason.clone()))).collect(),
        }
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
}

/// Asks of each of `sources`, and of those in `silent` last; after the first that nobody answers for, of none.
fn ask_each<T>(
    sources: &[Arc<TopicPartition>],
    silent: &mut HashSet<Arc<TopicPartition>>,
    ask: impl Fn(&TopicPartition) -> Result<T, Undescribed>,
) -> HashMap<Arc<TopicPartition>, Result<T, String>> {
    let (last, first): (Vec<_>, Vec<_>) = sources.iter().partition(|source| silent.contains(*source));
    let mut silence: Option<String> = None;
    let mut answers = HashMap::with_capacity(sources.len());
    for source in first.into_iter().chain(last) {
        let answer = match &silence {
            Some(reason) => Err(reason.clone()),
            None => match ask(source) {
                Ok(answer) => {
                    silent.remove(source);
                    Ok(answer)
                }
                Err(Undescribed::Refused(reason)) => {
                    silent.remove(source);
                    Err(reason)
                }
                Err(Undescribed::Silent(reason)) => {
                    silent.insert(Arc::clone(source));
                    silence = Some(reason.clone());
                    Err(reason)
                }
            },
        };
        answers.insert(Arc::clone(source), answer);
    }
    answers
}

fn topic_id(told: Option<&TopicId>) -> Result<Uuid, Undescribed> {
    let reason = match told {
        Some(TopicId::Is(id)) if id.is_nil() => "the cluster is too old to have topic ids",
        Some(TopicId::Is(id)) => return Ok(*id),
        Some(TopicId::Missing) => "there is no such topic",
        None => "the broker can't tell the topic's id now",
    };
    Err(Undescribed::Refused(reason.into()))
}

fn watermarks<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    source: &TopicPartition,
    (cluster_id, topic_id): (&Arc<str>, Uuid),
    reset: OffsetReset,
) -> Result<Description, Undescribed> {
    let told = consumer.client().fetch_watermarks(&source.topic, source.partition.0, TIMEOUT);
    let (low, high) = told.map_err(|error| {
        let reason = format!("no broker told the watermarks: {error}");
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure,
            )
            | None => Undescribed::Silent(reason),
            Some(_) => Undescribed::Refused(reason),
        }
    })?;
    let (Some(low), Some(high)) = (Offset::new(low), Offset::new(high)) else {
        return Err(Undescribed::Refused("the broker told negative watermarks".into()));
    };
    let initial = match reset {
        OffsetReset::Earliest => low,
        OffsetReset::Latest => high,
    };
    Ok(Description { cluster_id: Arc::clone(cluster_id), topic_id, low, high, initial, mirror: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::position::Partition;

    #[test]
    fn a_partition_without_an_answer_holds_up_those_behind_it_once() {
        let sources: Vec<Arc<TopicPartition>> = (0..5)
            .map(|partition| Arc::new(TopicPartition { topic: "t".into(), partition: Partition(partition) }))
            .collect();
        let mut silent = HashSet::new();
        let mut round = |leaderless: &[i32]| {
            let answers = ask_each(&sources, &mut silent, |source| match source.partition.0 {
                0 => Err(Undescribed::Refused("refused".into())),
                partition if leaderless.contains(&partition) => Err(Undescribed::Silent("silent".into())),
                partition => Ok(partition),
            });
            let mut told: Vec<i32> = answers.into_values().flatten().collect();
            told.sort_unstable();
            told
        };
        assert_eq!(round(&[2]), [1], "a refusal is its own; silence is everybody's behind it");
        assert_eq!(round(&[2]), [1, 3, 4], "the silent one was asked last");
        assert_eq!(round(&[2, 3]), [1], "another one");
        assert_eq!(round(&[2, 3]), [1, 4]);
        assert_eq!(round(&[]), [1, 2, 3, 4]);
        assert_eq!(round(&[4]), [1, 2, 3], "who was answered for is asked in turn again");
    }
}
