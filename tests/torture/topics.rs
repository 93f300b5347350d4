//! Topics of the run.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::producer::Feed;

/// How many partitions the topic gets more at once.
const GROWTH: i32 = 2;
const TIMEOUT: Duration = Duration::from_secs(20);

fn admin(brokers: &str) -> anyhow::Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new().set("bootstrap.servers", brokers).create()?)
}

fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT))
}

/// Makes a topic.
pub(crate) fn create(brokers: &str, name: &str, partition_count: i32) -> anyhow::Result<()> {
    let topic = NewTopic::new(name, partition_count, TopicReplication::Fixed(1));
    for _ in 0..10 {
        match block_on(admin(brokers)?.create_topics([&topic], &options()))?.map(|mut done| done.pop()) {
            Ok(Some(Ok(_)) | Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists)))) => return Ok(()),
            _ => std::thread::sleep(Duration::from_secs(1)),
        }
    }
    bail!("topic {name} can't be made")
}

/// Adds partitions to the feed's topic; false: it has enough.
pub(crate) fn grow(feed: &Feed, most: i32) -> anyhow::Result<bool> {
    let count = feed.partition_count.load(Ordering::SeqCst) + GROWTH;
    if count > most {
        return Ok(false);
    }
    let partitions = NewPartitions::new(&feed.topic, usize::try_from(count)?);
    let done = block_on(admin(&feed.brokers)?.create_partitions([&partitions], &options()))?;
    // While the broker is away.
    let Ok(done) = done else { return Ok(false) };
    if done.iter().any(Result::is_err) {
        return Ok(false);
    }
    // The producers learn of them first.
    std::thread::sleep(Duration::from_secs(6));
    feed.partition_count.store(count, Ordering::SeqCst);
    Ok(true)
}

/// Deletes the records of a partition of the feed's topic before `offset`.
pub(crate) fn delete_records(feed: &Feed, partition: i32, offset: i64) -> anyhow::Result<()> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&feed.topic, partition, Offset::Offset(offset))?;
    block_on(admin(&feed.brokers)?.delete_records(&list, &options()))??;
    Ok(())
}

/// Deletes a topic of one partition and makes it again.
pub(crate) fn recreate(brokers: &str, name: &str) -> anyhow::Result<()> {
    let deleted = block_on(admin(brokers)?.delete_topics(&[name], &options()))??;
    if let Some(Err((_, code))) = deleted.first() {
        bail!("topic {name} can't be deleted: {code}");
    }
    // Its name is free only when the broker has forgotten it.
    std::thread::sleep(Duration::from_secs(2));
    create(brokers, name, 1)
}

/// The end of each partition, as a reader of this isolation level sees it.
pub(crate) fn ends(brokers: &str, topic: &str) -> anyhow::Result<Vec<i64>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "torture-oracle")
        .set("isolation.level", "read_committed")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let topic_metadata = metadata.topics().first().context("no topic")?;
    let mut ends = Vec::new();
    for partition in 0..i32::try_from(topic_metadata.partitions().len())? {
        ends.push(consumer.fetch_watermarks(topic, partition, TIMEOUT)?.1);
    }
    Ok(ends)
}
