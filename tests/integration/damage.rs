//! What is read from Kafka and can't be read a second time: records in front of damaged ones, and records that Kafka
//! deletes behind our backs.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rdkafka::producer::Producer;

use crate::account::PLAN;
use crate::scene::{Scene, Stack, send, wait_for};

const STORED: &str = "SELECT coalesce(sum(next_offset), 0) FROM audit_events.consumer_offsets";

fn produce_to(scene: &Scene, partition: i32, indices: Range<u64>) {
    let (producer, mut payload) = (scene.producer(&[]), Vec::new());
    for index in indices {
        let has_value = PLAN.write(index, &mut payload);
        send(&producer, &scene.topic, None, has_value.then_some(payload.as_slice()), Some(partition));
    }
    producer.flush(Duration::from_secs(20)).unwrap();
}

#[test]
fn records_in_front_of_damaged_ones_are_stored_while_those_are_held() {
    let scene = Scene::new("damaged", 2);
    // A batch for each range, at least.
    for range in [0..50, 50..60, 60..70] {
        produce_to(&scene, 0, range);
    }
    // Beside it a partition that is sound, and can't be read to its end, as a transaction is open.
    produce_to(&scene, 1, 70..90);
    let open = scene.producer(&[("transactional.id", &scene.name)]);
    open.init_transactions(Duration::from_secs(20)).unwrap();
    open.begin_transaction().unwrap();
    send(&open, &scene.topic, None, Some(b"never committed"), Some(1));
    open.flush(Duration::from_secs(20)).unwrap();
    let mut payload = Vec::new();
    let index = (50..60).find(|index| PLAN.write(*index, &mut payload) && !payload.is_empty()).unwrap();
    let log = format!("kafka/data/{}-0/00000000000000000000.log", scene.topic);
    let log = Path::new(scene.stack.setting("STACK_DIR")).join(log);
    let found = std::fs::read(&log).unwrap().windows(payload.len()).position(|bytes| bytes == payload);
    let at = u64::try_from(found.unwrap()).unwrap();
    let file = std::fs::File::options().write(true).open(&log).unwrap();
    file.write_all_at(&[!payload[0]], at).unwrap();

    let mut daemon = scene.daemon();
    wait_for("what can be read is stored", Duration::from_secs(20), || scene.number(STORED) >= 50 + 20);
    daemon.wait_for_hold("kafka_unavailable");
    std::thread::sleep(Duration::from_secs(3));
    let status = daemon.status().unwrap();
    assert_eq!(daemon.holds().len(), 1, "{status:#}");
    let detail = status["held"][0]["detail"].as_str().unwrap();
    let position = scene.number(STORED) - 20;
    assert!(detail.contains(&format!("behind position {position} can't be read")), "{status:#}");
    assert!(position <= index, "the damaged batch begins before record {index}");

    file.write_all_at(&payload[..1], at).unwrap();
    wait_for("all is stored", Duration::from_secs(60), || scene.number(STORED) == 70 + 20);
    open.abort_transaction(Duration::from_secs(20)).unwrap();
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(90));
}

#[test]
fn what_was_read_before_kafka_deleted_it_is_stored() {
    let stack = Stack::private();
    let scene = Scene::on(&stack, "deletedahead", 1);
    let mut daemon = scene.daemon_with(&[("LANES", "1")]);
    daemon.wait_until_reading(1);
    stack.run(&["stop", "postgres", "immediate"]);
    // More than there is room for.
    scene.produce(&PLAN, 0, 100_000);
    wait_for("reading stops", Duration::from_secs(30), || {
        daemon.metric("audit_consumer_partitions_paused") == 1
    });
    let decoded = format!("audit_consumer_records_consumed_total{{topic=\"{}\"}}", scene.topic);
    let decoded_count = daemon.metric(&decoded);
    scene.delete_records(0, -1);
    stack.run(&["start", "postgres"]);
    daemon.wait_for_hold("records_deleted");
    // What waited for the lane, too.
    let position = scene.number(STORED);
    assert!(position > decoded_count + 1_000, "{position} of {decoded_count} and more");
    assert_eq!(position, daemon.metric(&decoded), "all that was decoded is stored");
    let declare = ["offsets", "declare-gap", "--partition", "0", "--reason", "gone", "--yes", "--topic"];
    scene.done(&[&declare[..], &[&scene.topic]].concat());
    wait_for("the end", Duration::from_secs(30), || scene.number(STORED) == 100_000);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert_eq!(scene.verify().total("absent"), 100_000 - position);
}
