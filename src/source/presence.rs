//! Whether Kafka still has what a spool holds: asked by whoever reads no partition.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;

use super::Lookup;
use crate::config::KafkaProperties;
use crate::model::position::{Offset, Partition, StreamId, TopicPartition};

/// What Kafka has of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Nothing: there is no such topic, or it has fewer partitions.
    Missing,
    /// Records of this stream, from this offset on.
    There {
        /// The stream: another one than before, when the topic was created again.
        stream: StreamId,
        /// The first offset that Kafka has.
        low: Offset,
    },
}

/// The answer, by partition; one of which Kafka says nothing now is not in it.
pub type Presences = Pin<Box<dyn Future<Output = BTreeMap<TopicPartition, Presence>> + Send>>;

/// Asks Kafka on a thread where waiting is allowed.
pub(super) async fn look_up(
    properties: KafkaProperties,
    partitions: BTreeSet<TopicPartition>,
) -> BTreeMap<TopicPartition, Presence> {
    let asked = tokio::task::spawn_blocking(move || presences(&properties, partitions));
    asked.await.unwrap_or_default()
}

fn presences(
    properties: &KafkaProperties,
    partitions: BTreeSet<TopicPartition>,
) -> BTreeMap<TopicPartition, Presence> {
    let mut found = BTreeMap::new();
    let Ok(mut lookup) = Lookup::new(properties) else { return found };
    let Ok(topics) = lookup.topics() else { return found };
    let mut by_topic: BTreeMap<Arc<str>, Vec<Partition>> = BTreeMap::new();
    for TopicPartition { topic, partition } in partitions {
        by_topic.entry(topic).or_default().push(partition);
    }
    for (topic, partitions) in by_topic {
        let count = topics.iter().find(|(name, _)| **name == *topic).map_or(0, |(_, count)| *count);
        let of = |partition| TopicPartition { topic: Arc::clone(&topic), partition };
        let is_there = |partition: &Partition| usize::try_from(partition.0).is_ok_and(|index| index < count);
        let (there, missing): (Vec<Partition>, Vec<Partition>) = partitions.into_iter().partition(is_there);
        found.extend(missing.into_iter().map(|partition| (of(partition), Presence::Missing)));
        for (partition, described) in lookup.describe_partitions(&topic, &there) {
            let Ok(now) = described else { continue };
            let stream = StreamId::of(&now.cluster_id, &topic, now.topic_id);
            found.insert(of(partition), Presence::There { stream, low: now.low });
        }
    }
    found
}
