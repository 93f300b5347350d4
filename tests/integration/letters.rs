//! Dead letters in Kafka: each once, whatever is killed when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use audit_consumer::model::sample::SamplePlan;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::account::PLAN;
use crate::scene::{Scene, Stack, send, wait_for};

/// Two of a hundred records are dead letters.
pub(crate) const FEW: SamplePlan = SamplePlan { invalid_ppm: 20_000, duplicate_ppm: 0, ..PLAN };
pub(crate) const WAITING: &str = "SELECT count(*) FROM audit_events.dead_letters WHERE relayed_at IS NULL";

/// A record of a topic.
#[derive(Debug, Clone)]
pub(crate) struct Letter {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Letter {
    /// The last header of a name, as text.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        self.find_header(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
    }

    pub(crate) fn find_header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(key, _)| key == name)?;
        Some(std::str::from_utf8(value.as_deref().unwrap()).unwrap())
    }
}

/// Reads a topic from end to end, as a reader of this isolation level sees it.
#[track_caller]
pub(crate) fn read_topic(stack: &Stack, topic: &str, isolation_level: &str) -> Vec<Letter> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", stack.brokers())
        .set("group.id", "reader-of-tests")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation_level)
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
    let partition_count = i32::try_from(metadata.topics()[0].partitions().len()).unwrap();
    assert!(partition_count > 0, "no topic {topic}");
    let mut list = TopicPartitionList::new();
    (0..partition_count)
        .for_each(|partition| list.add_partition_offset(topic, partition, Offset::Beginning).unwrap());
    consumer.assign(&list).unwrap();
    let (mut letters, mut ended) = (Vec::new(), BTreeSet::new());
    let deadline = Instant::now() + Duration::from_secs(60);
    while ended.len() < usize::try_from(partition_count).unwrap() {
        assert!(Instant::now() < deadline, "{topic} has no end");
        match consumer.poll(Duration::from_secs(1)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            Some(Err(error)) => panic!("{topic}: {error}"),
            Some(Ok(message)) => letters.push(Letter {
                partition: message.partition(),
                offset: message.offset(),
                timestamp: message.timestamp().to_millis(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers: message
                    .headers()
                    .map(|headers| {
                        headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect()
                    })
                    .unwrap_or_default(),
            }),
        }
    }
    letters
}

pub(crate) fn letter_topic(scene: &Scene) -> String {
    format!("{}.dlq", scene.topic)
}

#[track_caller]
pub(crate) fn wait_until_relayed(scene: &Scene, patience: Duration) {
    wait_for("no dead letter waits", patience, || scene.number(WAITING) == 0);
}

/// Asserts that a `read_committed` reader sees each dead letter of the table once, where its row says; returns how
/// many there are, and how many records an earlier transaction left that was aborted.
#[track_caller]
pub(crate) fn check_one_to_one(scene: &Scene) -> (usize, usize) {
    let topic = letter_topic(scene);
    let committed = read_topic(&scene.stack, &topic, "read_committed");
    let mut seen: BTreeMap<String, (i32, i64)> = BTreeMap::new();
    for letter in &committed {
        let id = letter.header("dlq.id").to_owned();
        let before = seen.insert(id.clone(), (letter.partition, letter.offset));
        assert_eq!(before, None, "{id} is there twice");
    }
    let rows = scene.sql(
        "SELECT stream_id || ':' || source_partition || ':' || source_offset || ' ' || relay_partition || ' ' || \
                relay_offset FROM audit_events.dead_letters WHERE relayed_at IS NOT NULL",
    );
    let marked: BTreeMap<String, (i32, i64)> = rows
        .lines()
        .map(|line| {
            let parts: Vec<&str> = line.split(' ').collect();
            (parts[0].to_owned(), (parts[1].parse().unwrap(), parts[2].parse().unwrap()))
        })
        .collect();
    assert_eq!(marked, seen, "what is marked is there, at that place, and nothing else");
    assert_eq!(scene.number(WAITING), 0);
    let everything = read_topic(&scene.stack, &topic, "read_uncommitted");
    let places: BTreeSet<(i32, i64)> = seen.values().copied().collect();
    let all: BTreeSet<(i32, i64)> =
        everything.iter().map(|letter| (letter.partition, letter.offset)).collect();
    assert!(places.is_subset(&all));
    (committed.len(), all.len() - places.len())
}

#[test]
fn a_letter_carries_the_record_and_every_header() {
    let scene = Scene::new("letter", 2);
    let producer = scene.producer(&[]);
    let headers = rdkafka::message::OwnedHeaders::new()
        .insert(rdkafka::message::Header {
            key: "traceparent",
            value: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        })
        .insert(rdkafka::message::Header::<&[u8]> { key: "empty", value: None });
    // Not older than the source topic's retention.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let timestamp_ms = i64::try_from(now.as_millis()).unwrap() - 60_000;
    let payload = br#"{"correlation_id":"0189d2a4-0000-7000-8000-000000000001","status":"Odd"}"#;
    let record: rdkafka::producer::BaseRecord<'_, [u8], [u8]> =
        rdkafka::producer::BaseRecord::to(&scene.topic)
            .key(&b"\xffkey"[..])
            .payload(&payload[..])
            .partition(1)
            .timestamp(timestamp_ms)
            .headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    send(&producer, &scene.topic, None, None, Some(0));
    rdkafka::producer::Producer::flush(&producer, Duration::from_secs(10)).unwrap();
    let mut daemon = scene.daemon();
    scene.wait_until_read(2, Duration::from_secs(30));
    wait_until_relayed(&scene, Duration::from_secs(30));
    check_one_to_one(&scene);
    let letters = read_topic(&scene.stack, &letter_topic(&scene), "read_committed");
    let letter = letters.iter().find(|letter| letter.partition == 1).unwrap();
    assert_eq!(letter.key.as_deref(), Some(&b"\xffkey"[..]));
    assert_eq!(letter.value.as_deref(), Some(&payload[..]));
    assert_eq!(letter.timestamp, Some(timestamp_ms));
    let stream = scene.sql("SELECT stream_id FROM audit_events.streams");
    let (detail, reason) = (
        scene.sql("SELECT detail FROM audit_events.dead_letters WHERE source_partition = 1"),
        scene.sql("SELECT reason FROM audit_events.dead_letters WHERE source_partition = 1"),
    );
    let expect: Vec<(&str, Option<String>)> = vec![
        ("traceparent", Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into())),
        ("empty", None),
        ("dlq.id", Some(format!("{stream}:1:0"))),
        ("dlq.topic", Some(scene.topic.clone())),
        ("dlq.partition", Some("1".into())),
        ("dlq.offset", Some("0".into())),
        ("dlq.timestamp", Some(timestamp_ms.to_string())),
        ("dlq.group", Some(scene.name.clone())),
        ("dlq.reason", Some(reason)),
        ("dlq.detail", Some(detail)),
        ("dlq.attempt", Some("1".into())),
        ("dlq.version", Some("1".into())),
        ("correlation_id", Some("0189d2a4-0000-7000-8000-000000000001".into())),
    ];
    let found: Vec<(&str, Option<String>)> = letter
        .headers
        .iter()
        .map(|(key, value)| (&**key, value.clone().map(|value| String::from_utf8(value).unwrap())))
        .collect();
    assert_eq!(found, expect);
    let tombstone = letters.iter().find(|letter| letter.partition == 0).unwrap();
    assert_eq!((&tombstone.key, &tombstone.value), (&None, &None));
    assert_eq!(tombstone.header("dlq.reason"), "tombstone");
    let status = daemon.status().unwrap();
    assert_eq!(status["relay"]["role"], "leader", "{status:#}");
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
}

#[test]
fn marks_and_positions_that_were_lost_bring_no_letter_twice() {
    let scene = Scene::new("relaylost", 3);
    scene.produce(&FEW, 0, 5_000);
    let mut daemon = scene.daemon();
    scene.wait_until_read(5_000, Duration::from_secs(60));
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let forget =
        "UPDATE audit_events.dead_letters SET relayed_at = NULL, relay_partition = NULL, relay_offset = NULL";
    for (is_position_lost, is_part) in [(false, true), (true, true), (false, false)] {
        // A failover that lost marks; then one of Kafka's group, too.
        scene.sql(&format!("{forget} WHERE {}", if is_part { "source_offset % 3 = 0" } else { "true" }));
        if is_position_lost {
            scene.delete_group(&format!("{}.dlq", scene.name));
        }
        let mut daemon = scene.daemon();
        wait_until_relayed(&scene, Duration::from_secs(30));
        assert!(daemon.terminate(Duration::from_secs(15)).0.success());
        let (letter_count, _) = check_one_to_one(&scene);
        assert_eq!(u64::try_from(letter_count).unwrap(), FEW.totals(5_000).dead_letters);
    }
}

#[test]
fn a_position_behind_its_letters_brings_no_letter_twice() {
    let scene = Scene::new("relaytorn", 3);
    scene.produce(&FEW, 0, 5_000);
    let mut daemon = scene.daemon();
    scene.wait_until_read(5_000, Duration::from_secs(60));
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    // What a torn transaction leaves: letters, no position behind them, and rows without a mark.
    let group: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", scene.stack.brokers())
        .set("group.id", format!("{}.dlq", scene.name))
        .create()
        .unwrap();
    let mut positions = TopicPartitionList::new();
    for partition in 0..3 {
        positions.add_partition(&scene.topic, partition);
    }
    let positions = group.committed_offsets(positions, Duration::from_secs(10)).unwrap();
    for partition in 0..3 {
        let mut element = positions.find_partition(&scene.topic, partition).unwrap();
        let Offset::Offset(next) = element.offset() else { panic!("{:?}", element.offset()) };
        let behind = next * 2 / 3;
        element.set_offset(Offset::Offset(behind)).unwrap();
        let lost = scene.number(&format!(
            "WITH lost AS (UPDATE audit_events.dead_letters SET relayed_at = NULL, relay_partition = NULL, relay_offset = NULL \
              WHERE source_partition = {partition} AND source_offset >= {behind} RETURNING 1) SELECT count(*) FROM lost"
        ));
        assert!(lost > 0);
    }
    group.commit(&positions, rdkafka::consumer::CommitMode::Sync).unwrap();
    drop(group);
    let mut daemon = scene.daemon();
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let (letter_count, _) = check_one_to_one(&scene);
    assert_eq!(u64::try_from(letter_count).unwrap(), FEW.totals(5_000).dead_letters);
    assert!(daemon.log_text().contains("gone or behind"));
}

#[test]
fn a_topic_that_takes_less_gets_a_part_with_hash_and_pointer() {
    const LIMIT: usize = 20_000;
    let scene = Scene::new("relaysize", 1).set("DLQ_BREAKER_SHARE", "100");
    scene.create_topic_named(&letter_topic(&scene), 1, &[("max.message.bytes", &LIMIT.to_string())]);
    let sizes: Vec<usize> = (0..40)
        .map(|step| LIMIT - 1_500 + step * 50)
        .chain([LIMIT, LIMIT + 1, LIMIT * 10, 600_000])
        .collect();
    let payloads: Vec<Option<Vec<u8>>> = sizes.iter().map(|size| Some(vec![b'x'; *size])).collect();
    scene.send_all(&payloads);
    let mut daemon = scene.daemon();
    scene.wait_until_read(u64::try_from(sizes.len()).unwrap(), Duration::from_secs(60));
    wait_until_relayed(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    check_one_to_one(&scene);
    let letters = read_topic(&scene.stack, &letter_topic(&scene), "read_committed");
    assert_eq!(letters.len(), sizes.len());
    let (mut whole_count, mut cut_count) = (0, 0);
    for letter in letters {
        let size = sizes[usize::try_from(letter.header("dlq.offset").parse::<i64>().unwrap()).unwrap()];
        let value = letter.value.clone().unwrap();
        match letter.find_header("dlq.truncated") {
            None => {
                assert_eq!(value.len(), size);
                whole_count += 1;
            }
            Some(what) => {
                assert_eq!(what, "value");
                assert!(value.len() < size && value.iter().all(|byte| *byte == b'x'));
                assert_eq!(letter.header("dlq.value.length"), size.to_string());
                let hash = scene.sql(&format!("SELECT encode(sha256(payload), 'hex') FROM audit_events.dead_letters WHERE source_offset = {}", letter.header("dlq.offset")));
                assert_eq!(letter.header("dlq.value.sha256"), hash);
                let row = letter.header("dlq.pointer").strip_prefix("audit_events.dead_letters/").unwrap();
                assert_eq!(scene.number(&format!("SELECT octet_length(payload) FROM audit_events.dead_letters WHERE dead_letter_id = {row}")), u64::try_from(size).unwrap());
                cut_count += 1;
            }
        }
    }
    assert!(whole_count > 0 && cut_count > 4, "{whole_count} whole, {cut_count} cut");
}

#[test]
fn a_letter_topic_that_was_made_takes_a_record_as_large_as_its_source_does() {
    let scene = Scene::new("relaylarge", 1);
    // The broker's limit for the source is 8 MiB; this is decoded as too large, and kept whole.
    scene.send_all(&[Some(vec![b'x'; 7_900_000])]);
    let mut daemon = scene.daemon();
    scene.wait_until_read(1, Duration::from_secs(30));
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let letters = read_topic(&scene.stack, &letter_topic(&scene), "read_committed");
    assert_eq!(letters[0].value.as_ref().map(Vec::len), Some(7_900_000));
    assert_eq!(letters[0].header("dlq.reason"), "too_large");
}

#[test]
fn a_topic_that_refuses_old_timestamps_gets_the_letter_all_the_same() {
    let scene = Scene::new("relaytime", 1);
    scene.create_topic_named(&letter_topic(&scene), 3, &[("message.timestamp.before.max.ms", "3600000")]);
    let producer = scene.producer(&[]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let old_ms = i64::try_from(now.as_millis()).unwrap() - 7_200_000;
    let record: rdkafka::producer::BaseRecord<'_, [u8], [u8]> =
        rdkafka::producer::BaseRecord::to(&scene.topic).payload(&b"old"[..]).timestamp(old_ms);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    rdkafka::producer::Producer::flush(&producer, Duration::from_secs(10)).unwrap();
    let mut daemon = scene.daemon();
    scene.wait_until_read(1, Duration::from_secs(30));
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    check_one_to_one(&scene);
    let letters = read_topic(&scene.stack, &letter_topic(&scene), "read_committed");
    assert_eq!(letters[0].header("dlq.timestamp"), old_ms.to_string());
    assert!(letters[0].timestamp.unwrap() > old_ms + 3_600_000);
}

/// Access rules of a broker, taken away when dropped: the last one first, as the first one allows that.
struct Rules<'a> {
    stack: &'a Stack,
    rules: Vec<Vec<&'a str>>,
}

impl<'a> Rules<'a> {
    fn add(stack: &'a Stack, rules: &[&[&'a str]]) -> Self {
        let mut added = Self { stack, rules: Vec::new() };
        for rule in rules {
            added.run(&["--add"], rule);
            added.rules.push(rule.to_vec());
        }
        added
    }

    fn run(&self, what: &[&str], rule: &[&str]) {
        let tool =
            ["kafka-tool", "org.apache.kafka.tools.AclCommand", "--bootstrap-server", self.stack.brokers()];
        self.stack.run(&[&tool, what, rule].concat());
    }
}

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        self.rules.iter().rev().for_each(|rule| self.run(&["--remove", "--force"], rule));
    }
}

#[test]
fn a_letter_topic_that_can_not_be_made_holds_up_letters_and_nothing_else() {
    let stack = Stack::private();
    let scene = Scene::on(&stack, "relayrights", 2);
    let topic = letter_topic(&scene);
    // Once a resource has a rule, what no rule allows is refused: so the cluster is allowed to everyone first.
    let rules: [&[&str]; 4] = [
        &["--allow-principal", "User:*", "--operation", "All", "--cluster"],
        &["--deny-principal", "User:*", "--operation", "Create", "--cluster"],
        &["--allow-principal", "User:*", "--operation", "All", "--topic", &topic],
        &["--deny-principal", "User:*", "--operation", "Create", "--topic", &topic],
    ];
    let rules = Rules::add(&stack, &rules);
    scene.produce(&PLAN, 0, 10_000);
    let mut daemon = scene.daemon();
    scene.wait_until_read(10_000, Duration::from_secs(60));
    let metric = |text: &str| daemon.get("/metrics").is_some_and(|(_, metrics)| metrics.contains(text));
    wait_for("the alert's metric", Duration::from_secs(20), || metric("audit_consumer_relay_stuck 1"));
    let dead_letter_count = PLAN.totals(10_000).dead_letters;
    wait_for("the backlog is told", Duration::from_secs(20), || {
        metric(&format!("audit_consumer_relay_waiting {dead_letter_count}"))
    });
    let (code, body) = daemon.get("/readyz").unwrap();
    assert!(code == 200 && body.contains(&topic) && body.contains("create topic"), "{code} {body}");
    assert!(!scene.topics().contains(&topic));
    drop(rules);
    wait_until_relayed(&scene, Duration::from_secs(60));
    wait_for("all is well again", Duration::from_secs(20), || metric("audit_consumer_relay_stuck 0"));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert_eq!(u64::try_from(check_one_to_one(&scene).0).unwrap(), dead_letter_count);
    scene.verify().check(PLAN.totals(10_000));
}

#[test]
fn positions_and_transactional_ids_that_expire_bring_no_letter_twice() {
    // The private stack's broker forgets offsets after a minute and transactional ids after 20 seconds.
    let stack = Stack::private();
    let scene = Scene::on(&stack, "relayexpiry", 3);
    scene.produce(&FEW, 0, 5_000);
    let mut daemon = scene.daemon();
    scene.wait_until_read(5_000, Duration::from_secs(60));
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    // This broker makes any topic that is asked for by name, with one partition; ours has as many as its source.
    assert_eq!(scene.partition_count_of(&letter_topic(&scene)), 3);
    let group = format!("{}.dlq", scene.name);
    let position_count = || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", stack.brokers())
            .set("group.id", &group)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for partition in 0..3 {
            list.add_partition(&scene.topic, partition);
        }
        let found = consumer.committed_offsets(list, Duration::from_secs(10)).unwrap();
        found.elements().iter().filter(|element| element.offset() != Offset::Invalid).count()
    };
    assert_eq!(position_count(), 3);
    let waited = wait_for("kafka forgets the positions", Duration::from_secs(150), || position_count() == 0);
    eprintln!("positions were forgotten after {waited:?}");
    // A failover lost some marks meanwhile, and there is more to send.
    scene.sql("UPDATE audit_events.dead_letters SET relayed_at = NULL, relay_partition = NULL, relay_offset = NULL WHERE source_offset % 2 = 0");
    scene.produce(&FEW, 5_000, 8_000);
    let mut daemon = scene.daemon();
    scene.wait_until_read(8_000, Duration::from_secs(60));
    wait_until_relayed(&scene, Duration::from_secs(60));
    assert!(daemon.log_text().contains("the relay's position was gone"));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert_eq!(u64::try_from(check_one_to_one(&scene).0).unwrap(), FEW.totals(8_000).dead_letters);
}

#[test]
fn streams_that_are_handed_over_with_letters_on_the_way_bring_none_twice() {
    let scene = Scene::new("relayhand", 3);
    scene.produce(&FEW, 0, 4_000);
    // The first group sends, and dies before it marks anything; then it hands over, and the marks are lost, and back.
    let mut daemon = scene.daemon_with(&[("FAILPOINTS", "relay_before_mark=return")]);
    daemon.wait_for_end(Duration::from_secs(60));
    let groups = [scene.name.clone(), format!("{}-b", scene.name)];
    let scene = scene.set("KAFKA_GROUP_ID", &groups[0]);
    let mut daemon = scene.daemon();
    scene.wait_until_read(4_000, Duration::from_secs(60));
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let mut scene = scene;
    let mut produced_count = 4_000;
    for (from, to) in [(0, 1), (1, 0), (0, 1)] {
        scene = scene.set("KAFKA_GROUP_ID", &groups[to]);
        scene.done(&[
            "offsets",
            "adopt",
            "--topic",
            &scene.topic,
            "--from-group",
            &groups[from],
            "--reason",
            "test",
        ]);
        scene.sql("UPDATE audit_events.dead_letters SET relayed_at = NULL, relay_partition = NULL, relay_offset = NULL WHERE source_offset % 2 = 0");
        scene.produce(&FEW, produced_count, produced_count + 1_000);
        produced_count += 1_000;
        // It dies before it marks what it found and sent.
        let mut daemon = scene.daemon_with(&[("FAILPOINTS", "relay_before_mark=return")]);
        daemon.wait_for_end(Duration::from_secs(60));
        let mut daemon = scene.daemon();
        scene.wait_until_read(produced_count, Duration::from_secs(60));
        wait_until_relayed(&scene, Duration::from_secs(60));
        assert!(daemon.terminate(Duration::from_secs(15)).0.success());
        assert_eq!(
            u64::try_from(check_one_to_one(&scene).0).unwrap(),
            FEW.totals(produced_count).dead_letters
        );
    }
}
