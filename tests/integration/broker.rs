//! What the relay relies on, on the broker and library at hand: an upgrade that changes it is noticed here.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::letters::read_topic;
use crate::scene::Scene;

const PATIENCE: Duration = Duration::from_secs(20);

fn producer(scene: &Scene) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", scene.stack.brokers())
        .set("transactional.id", &scene.name)
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer
}

/// A consumer whose group nobody joins.
fn group(scene: &Scene) -> (BaseConsumer, ConsumerGroupMetadata) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", scene.stack.brokers())
        .set("group.id", format!("{}.dlq", scene.name))
        .set("isolation.level", "read_committed")
        .create()
        .unwrap();
    let metadata = consumer.group_metadata().unwrap();
    (consumer, metadata)
}

fn position(topic: &str, partition: i32, offset: i64, metadata: &str) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    let mut element = list.add_partition(topic, partition);
    element.set_offset(Offset::Offset(offset)).unwrap();
    element.set_metadata(metadata);
    list
}

fn committed(scene: &Scene, partition: i32) -> (Offset, String) {
    let mut list = TopicPartitionList::new();
    list.add_partition(&scene.topic, partition);
    let list = group(scene).0.committed_offsets(list, PATIENCE).unwrap();
    (list.elements()[0].offset(), list.elements()[0].metadata().to_owned())
}

fn send(producer: &BaseProducer, topic: &str, payload: &str) {
    let record: BaseRecord<'_, [u8], str> = BaseRecord::to(topic).payload(payload).partition(0);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
}

#[track_caller]
fn code(result: KafkaResult<()>) -> RDKafkaErrorCode {
    match result {
        Err(KafkaError::Transaction(error)) => error.code(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_position_is_committed_with_a_transaction_for_a_group_that_nobody_joined() {
    let scene = Scene::new("brokergroup", 2);
    let (producer, (_, metadata)) = (producer(&scene), group(&scene));
    producer.begin_transaction().unwrap();
    send(&producer, &scene.topic, "one");
    let next = position(&scene.topic, 1, 7, "stream transaction");
    producer.send_offsets_to_transaction(&next, &metadata, PATIENCE).unwrap();
    producer.commit_transaction(PATIENCE).unwrap();
    assert_eq!(committed(&scene, 1), (Offset::Offset(7), "stream transaction".into()));
    assert_eq!(committed(&scene, 0).0, Offset::Invalid, "a key without a position has none");

    producer.begin_transaction().unwrap();
    send(&producer, &scene.topic, "two");
    let next = position(&scene.topic, 1, 9, "");
    producer.send_offsets_to_transaction(&next, &metadata, PATIENCE).unwrap();
    producer.abort_transaction(PATIENCE).unwrap();
    assert_eq!(committed(&scene, 1).0, Offset::Offset(7), "an abort leaves it where it was");
    assert_eq!(read_topic(&scene.stack, &scene.topic, "read_committed").len(), 1);
    assert_eq!(read_topic(&scene.stack, &scene.topic, "read_uncommitted").len(), 2);
}

#[test]
fn a_producer_that_begins_fences_the_one_before_and_ends_its_transaction() {
    let scene = Scene::new("brokerfence", 1);
    let (old, (_, metadata)) = (producer(&scene), group(&scene));
    old.begin_transaction().unwrap();
    send(&old, &scene.topic, "of the old one");
    old.send_offsets_to_transaction(&position(&scene.topic, 0, 5, "old"), &metadata, PATIENCE).unwrap();
    let new = producer(&scene);
    // When init_transactions has returned, the old transaction is over: nothing hides what is committed next.
    assert_eq!(committed(&scene, 0).0, Offset::Invalid);
    new.begin_transaction().unwrap();
    send(&new, &scene.topic, "of the new one");
    new.send_offsets_to_transaction(&position(&scene.topic, 0, 6, "new"), &metadata, PATIENCE).unwrap();
    new.commit_transaction(PATIENCE).unwrap();
    let fenced = code(old.commit_transaction(PATIENCE));
    assert!(
        matches!(
            fenced,
            RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::ProducerFenced
                | RDKafkaErrorCode::InvalidProducerEpoch
        ),
        "{fenced:?}"
    );
    assert_eq!(
        committed(&scene, 0),
        (Offset::Offset(6), "new".into()),
        "a fenced commit leaves it where it was"
    );
    let values: Vec<_> = read_topic(&scene.stack, &scene.topic, "read_committed")
        .into_iter()
        .map(|record| String::from_utf8(record.value.unwrap()).unwrap())
        .collect();
    assert_eq!(values, ["of the new one"]);
}

#[test]
fn a_position_of_a_partition_that_does_not_exist_is_refused_and_ends_the_transaction() {
    let scene = Scene::new("brokerkey", 1);
    let (producer, (_, metadata)) = (producer(&scene), group(&scene));
    producer.begin_transaction().unwrap();
    send(&producer, &scene.topic, "lost");
    let nowhere = position(&scene.topic, 1, 1, "");
    let refused = producer.send_offsets_to_transaction(&nowhere, &metadata, Duration::from_secs(5));
    // It is retried until the time is up, or refused at once: in either case it is not committed.
    let refused = code(refused);
    assert!(
        matches!(refused, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::OperationTimedOut),
        "{refused:?}"
    );
    producer.abort_transaction(PATIENCE).unwrap();
    assert_eq!(read_topic(&scene.stack, &scene.topic, "read_committed").len(), 0);
    producer.begin_transaction().unwrap();
    send(&producer, &scene.topic, "after an abort the producer goes on");
    producer.commit_transaction(PATIENCE).unwrap();
    assert_eq!(read_topic(&scene.stack, &scene.topic, "read_committed").len(), 1);
}
