//! What is read from Kafka and can't be read a second time: records in front of damaged ones, and records that Kafka
//! deletes behind our backs.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::account::PLAN;
use crate::scene::{Scene, Stack, wait_for};

const STORED: &str = "SELECT coalesce(sum(next_offset), 0) FROM audit_events.consumer_offsets";

#[test]
fn records_in_front_of_damaged_ones_are_stored_while_those_are_held() {
    let scene = Scene::new("damaged", 1);
    // A batch for each range, at least.
    for (start, end) in [(0, 50), (50, 60), (60, 70)] {
        scene.produce(&PLAN, start, end);
    }
    let mut payload = Vec::new();
    let index = (50..60).find(|index| PLAN.write(*index, &mut payload) && !payload.is_empty()).unwrap();
    let log = format!("kafka/data/{}-0/00000000000000000000.log", scene.topic);
    let log = Path::new(scene.stack.setting("STACK_DIR")).join(log);
    let found = std::fs::read(&log).unwrap().windows(payload.len()).position(|bytes| bytes == payload);
    let at = u64::try_from(found.unwrap()).unwrap();
    let file = std::fs::File::options().write(true).open(&log).unwrap();
    file.write_all_at(&[!payload[0]], at).unwrap();

    let mut daemon = scene.daemon();
    wait_for("what can be read is stored", Duration::from_secs(20), || scene.number(STORED) >= 50);
    daemon.wait_for_hold("kafka_unavailable");
    let status = daemon.status().unwrap();
    let detail = status["held"][0]["detail"].as_str().unwrap();
    let position = scene.number(STORED);
    assert!(detail.contains(&format!("behind position {position} can't be read")), "{status:#}");
    assert!(position <= index, "the damaged batch begins before record {index}");

    file.write_all_at(&payload[..1], at).unwrap();
    wait_for("all is stored", Duration::from_secs(60), || scene.number(STORED) == 70);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(70));
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
