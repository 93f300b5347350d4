//! Streams: topics that are created again, that belong to another group, whose records were deleted.

use std::time::Duration;

use crate::account::PLAN;
use crate::scene::{Scene, send, wait_for};
use rdkafka::producer::Producer;
use rustix::process::Signal;

#[test]
fn a_topic_that_was_created_again_halts_until_it_is_adopted() {
    let scene = Scene::new("recreated", 2);
    scene.produce(&PLAN, 0, 200);
    let mut daemon = scene.daemon();
    scene.wait_until_read(200, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.delete_topic();
    scene.create_topic(2, &[]);
    scene.produce(&PLAN, 1_000, 1_900);

    let mut daemon = scene.daemon();
    daemon.wait_for_hold("topic_recreated");
    assert_eq!(daemon.partition_count(), 0);
    let (code, body) = daemon.get("/readyz").unwrap();
    assert!(code == 503 && body.contains("offsets adopt"), "{code} {body}");
    assert_eq!(scene.number("SELECT sum(next_offset) FROM audit_events.consumer_offsets"), 200);

    scene.done(&[
        "offsets",
        "adopt",
        "--topic",
        &scene.topic,
        "--reason",
        "created again on purpose",
        "--actor",
        "me",
    ]);
    scene.wait_until_read(1_100, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify();
    let action = "SELECT actor, action, reason FROM audit_events.offset_actions";
    assert_eq!(scene.sql(action), "me|adopt|created again on purpose");
}

#[test]
fn a_topic_that_is_created_again_under_a_running_daemon_is_never_read_as_the_old_one() {
    let scene = Scene::new("undernose", 1);
    scene.produce(&PLAN, 0, 20);
    let daemon = scene.daemon();
    scene.wait_until_read(20, Duration::from_secs(30));
    // The daemon sees nothing of the time between; what it sees is a topic of the same name that goes on.
    daemon.signal(Signal::STOP);
    scene.delete_topic();
    scene.create_topic(1, &[]);
    // More records than before: the position lies inside of the new topic.
    scene.produce(&PLAN, 1_000, 1_500);
    daemon.signal(Signal::CONT);
    daemon.wait_for_hold("topic_recreated");
    assert_eq!(daemon.partition_count(), 0, "what is held is not read as well");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(scene.number("SELECT sum(next_offset) FROM audit_events.consumer_offsets"), 20);
    scene.verify();
}

#[test]
fn a_regex_never_takes_a_dead_letter_topic() {
    let scene = Scene::new("regex", 1);
    let dlq = format!("{}.dlq", scene.topic);
    scene.create_topic_named(&dlq, 1, &[]);
    let producer = scene.producer(&[]);
    for _ in 0..10 {
        send(&producer, &dlq, None, Some(b"{}"), Some(0));
    }
    producer.flush(Duration::from_secs(20)).unwrap();
    scene.produce(&PLAN, 0, 50);
    let regex = format!("^{}.*", scene.topic.replace('.', "\\."));
    let mut daemon = scene.daemon_with(&[("KAFKA_TOPICS", regex.as_str())]);
    scene.wait_until_read(50, Duration::from_secs(30));
    std::thread::sleep(Duration::from_secs(2));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(50));
    assert_eq!(scene.sql("SELECT topic FROM audit_events.streams"), scene.topic);
}

#[test]
fn a_stream_belongs_to_one_group_until_another_adopts_it() {
    let scene = Scene::new("foreign", 1);
    scene.produce(&PLAN, 0, 100);
    let mut daemon = scene.daemon();
    scene.wait_until_read(100, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.produce(&PLAN, 100, 150);

    let first = scene.setting("KAFKA_GROUP_ID").to_owned();
    let scene = scene.set("KAFKA_GROUP_ID", &format!("{first}.other"));
    let mut daemon = scene.daemon();
    daemon.wait_for_hold("foreign_group");
    assert!(daemon.get("/readyz").unwrap().1.contains("--from-group"));
    scene.done(&["offsets", "adopt", "--topic", &scene.topic, "--from-group", &first, "--reason", "renamed"]);
    scene.wait_until_read(150, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(150));
}

#[test]
fn records_deleted_before_they_were_read_are_held_and_then_a_declared_gap() {
    let scene = Scene::new("deleted", 1);
    scene.produce(&PLAN, 0, 100);
    let mut daemon = scene.daemon();
    scene.wait_until_read(100, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.produce(&PLAN, 100, 200);
    scene.delete_records(0, 150);

    let mut daemon = scene.daemon();
    daemon.wait_for_hold("records_deleted");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(scene.number("SELECT sum(next_offset) FROM audit_events.consumer_offsets"), 100);
    scene.done(&[
        "offsets",
        "declare-gap",
        "--topic",
        &scene.topic,
        "--partition",
        "0",
        "--reason",
        "gone",
        "--yes",
    ]);
    wait_for("the end", Duration::from_secs(30), || {
        scene.number("SELECT sum(next_offset) FROM audit_events.consumer_offsets") == 200
    });
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let account = scene.verify();
    assert_eq!(account.total("absent"), 50);
    assert_eq!(
        scene.sql("SELECT start_offset, end_offset, reason FROM audit_events.offset_gaps"),
        "100|150|gone"
    );
}

#[test]
fn deleted_records_become_a_gap_by_themselves_after_the_wait() {
    let scene = Scene::new("overdue", 1).set("GAP_WAIT_MS", "3000");
    scene.produce(&PLAN, 0, 10);
    let mut daemon = scene.daemon();
    scene.wait_until_read(10, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.produce(&PLAN, 10, 30);
    scene.delete_records(0, 20);
    let mut daemon = scene.daemon();
    daemon.wait_for_hold("records_deleted");
    wait_for("the end", Duration::from_secs(30), || {
        scene.number("SELECT sum(next_offset) FROM audit_events.consumer_offsets") == 30
    });
    assert!(daemon.get("/metrics").unwrap().1.contains("audit_consumer_offset_gaps_total 1"));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify();
    assert_eq!(scene.sql("SELECT declared_by FROM audit_events.offset_gaps"), "audit-consumer");
}
