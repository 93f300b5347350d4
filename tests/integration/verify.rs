//! `verify` against Kafka: what was altered, taken away or added by hand, so that the account still adds up.

use std::time::Duration;

use rdkafka::producer::Producer;
use serde_json::Value;

use crate::account::PLAN;
use crate::letters::wait_until_relayed;
use crate::scene::{Scene, send};

/// By hand, past the triggers.
const BY_HAND: &str = "SET session_replication_role = replica;";

fn verify(scene: &Scene, args: &[&str]) -> (Option<i32>, Value) {
    let output = scene.command(&[&["verify", "--json"], args].concat());
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

/// Changes something by hand, looks for exactly this finding, whose text names `text`, and changes it back.
#[track_caller]
fn check_found(scene: &Scene, (change, back): (&str, &str), code: &str, text: &str) {
    scene.sql(&format!("{BY_HAND} {change}"));
    let (exit, report) = verify(scene, &[]);
    let findings: Vec<_> = report["findings"].as_array().unwrap().iter().collect();
    let is_found = findings.len() == 1 && findings[0]["code"] == code;
    assert!(is_found && exit == Some(1), "{change}: {exit:?} {findings:#?}");
    assert!(findings[0]["text"].as_str().unwrap().contains(text), "{change}: {text}: {findings:#?}");
    scene.sql(&format!("{BY_HAND} {back}"));
}

fn stored(name: &str, record_count: u64) -> Scene {
    let scene = Scene::new(name, 3);
    // A transaction that was aborted: offsets without a record, in the middle.
    scene.produce(&PLAN, 0, record_count / 2);
    let producer = scene.producer(&[("transactional.id", scene.topic.as_str())]);
    producer.init_transactions(Duration::from_secs(20)).unwrap();
    producer.begin_transaction().unwrap();
    for partition in 0..3 {
        send(&producer, &scene.topic, None, Some(b"{}"), Some(partition));
    }
    producer.flush(Duration::from_secs(20)).unwrap();
    producer.abort_transaction(Duration::from_secs(20)).unwrap();
    scene.produce(&PLAN, record_count / 2, record_count);
    let mut daemon = scene.daemon();
    scene.wait_until_read(record_count, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene
}

#[test]
fn what_was_changed_by_hand_is_found_while_kafka_has_the_record() {
    let scene = stored("altered", 3_000);
    let (exit, report) = verify(&scene, &[]);
    assert_eq!((exit, &report["records"]["compared"]), (Some(0), &Value::from(3_000)), "{report:#}");

    let some = "SELECT concat_ws(' ', audit_id, source_partition, source_offset) FROM audit_events.events ORDER BY audit_id LIMIT 1";
    let some = scene.sql(some);
    let [id, partition, offset] = some.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let (id, partition, offset): (&str, &str, &str) = (id, partition, offset);
    let event = format!("UPDATE audit_events.events SET {{}} WHERE audit_id = '{id}'");
    let update = |set: &str| event.replace("{}", set);
    let here = |what: &str| format!("offsets {offset} ({what})");
    for (there, back, what) in [
        ("actor = actor || '!'", "actor = rtrim(actor, '!')", "actor"),
        ("status = status, trust_score = trust_score / 2", "trust_score = trust_score * 2", "trust_score"),
        ("metadata = metadata || '{\"added\": 1}'", "metadata = metadata - 'added'", "metadata"),
        (
            "tenant_id = tenant_id || '!', args = coalesce(args, '') || '!'",
            "tenant_id = rtrim(tenant_id, '!'), args = rtrim(args, '!')",
            "args tenant_id",
        ),
        (
            "timestamp = timestamp + interval '1 us'",
            "timestamp = timestamp - interval '1 us'",
            "audit_id or timestamp",
        ),
    ] {
        check_found(&scene, (&update(there), &update(back)), "event_altered", &here(what));
    }
    let other = "00000000-0000-4000-8000-000000000000";
    let renamed = format!("UPDATE audit_events.events SET audit_id = '{id}' WHERE audit_id = '{other}'");
    let there = update(&format!("audit_id = '{other}'"));
    check_found(&scene, (&there, &renamed), "event_altered", &here("audit_id or timestamp"));

    // A row that is gone, with its counter: the account adds up.
    let gone = format!(
        "CREATE TABLE public.gone AS SELECT * FROM audit_events.events WHERE audit_id = '{id}'; \
         DELETE FROM audit_events.events WHERE audit_id = '{id}'; \
         UPDATE audit_events.consumer_offsets SET events = events - 1, absent = absent + 1 WHERE partition = {partition}"
    );
    let back = format!(
        "INSERT INTO audit_events.events SELECT * FROM public.gone; DROP TABLE public.gone; \
         UPDATE audit_events.consumer_offsets SET events = events + 1, absent = absent - 1 WHERE partition = {partition}"
    );
    check_found(&scene, (&gone, &back), "record_missing", &format!("offsets {offset}"));

    // An event that never was, at an offset of the aborted transaction.
    let absent = format!(
        "SELECT min(o) FROM generate_series(0, (SELECT next_offset - 1 FROM audit_events.consumer_offsets WHERE partition = {partition})) AS o \
          WHERE NOT EXISTS (SELECT FROM audit_events.events WHERE source_partition = {partition} AND source_offset = o) \
            AND NOT EXISTS (SELECT FROM audit_events.duplicates WHERE source_partition = {partition} AND source_offset = o) \
            AND NOT EXISTS (SELECT FROM audit_events.dead_letters WHERE source_partition = {partition} AND source_offset = o)"
    );
    let absent = scene.sql(&absent);
    let made = format!(
        "CREATE TABLE public.made AS SELECT * FROM audit_events.events WHERE audit_id = '{id}'; \
         UPDATE public.made SET audit_id = '{other}', source_offset = {absent}; \
         INSERT INTO audit_events.events SELECT * FROM public.made; \
         UPDATE audit_events.consumer_offsets SET events = events + 1, absent = absent - 1 WHERE partition = {partition}"
    );
    let back = format!(
        "DELETE FROM audit_events.events WHERE audit_id = '{other}'; DROP TABLE public.made; \
         UPDATE audit_events.consumer_offsets SET events = events - 1, absent = absent + 1 WHERE partition = {partition}"
    );
    check_found(&scene, (&made, &back), "row_without_record", &format!("offsets {absent}"));

    let letter =
        "SELECT dead_letter_id FROM audit_events.dead_letters WHERE length(payload) > 2 ORDER BY 1 LIMIT 1";
    let letter = scene.sql(letter);
    let there = format!(
        "UPDATE audit_events.dead_letters SET payload = payload || '\\x20' WHERE dead_letter_id = {letter}"
    );
    let back = format!(
        "UPDATE audit_events.dead_letters SET payload = substr(payload, 1, length(payload) - 1) WHERE dead_letter_id = {letter}"
    );
    check_found(&scene, (&there, &back), "dead_letter_altered", "offsets");
    assert_eq!(verify(&scene, &[]).0, Some(0));
}

#[test]
fn letters_whose_rows_are_all_gone_are_found_in_their_topic() {
    let scene = Scene::new("lettersgone", 1);
    scene.send_all(&[Some(b"one".to_vec()), Some(b"two".to_vec())]);
    let mut daemon = scene.daemon();
    scene.wait_until_read(2, Duration::from_secs(30));
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    // Nothing but the dead letter topic speaks of them.
    scene.delete_records(0, -1);
    assert_eq!(verify(&scene, &[]).0, Some(0));
    let gone = "CREATE TABLE public.gone AS SELECT * FROM audit_events.dead_letters; DELETE FROM audit_events.dead_letters; \
                UPDATE audit_events.consumer_offsets SET dead_letters = 0, absent = absent + 2";
    let back = "INSERT INTO audit_events.dead_letters OVERRIDING SYSTEM VALUE SELECT * FROM public.gone; \
                UPDATE audit_events.consumer_offsets SET dead_letters = 2, absent = absent - 2";
    check_found(&scene, (gone, back), "letter_unknown", "letters without a row");
    assert_eq!(verify(&scene, &[]).0, Some(0));
}

#[test]
fn a_sample_compares_less_and_what_kafka_has_deleted_is_not_missed() {
    let scene = stored("sampled", 6_000);
    let compared = |args: &[&str]| {
        let (exit, report) = verify(&scene, args);
        assert_eq!(exit, Some(0), "{report:#}");
        report["records"]["compared"].as_u64().unwrap()
    };
    let sampled = compared(&["--sample", "1000"]);
    assert!((900..=1_000).contains(&sampled), "{sampled}");
    assert_eq!(compared(&["--sample", "0"]), 0);
    assert_eq!(compared(&["--no-kafka"]), 0);
    let low = 500;
    scene.delete_records(1, low);
    let stored = scene.number(&format!(
        "SELECT count(*) FROM (SELECT source_partition, source_offset FROM audit_events.events \
            UNION ALL SELECT source_partition, source_offset FROM audit_events.duplicates \
            UNION ALL SELECT source_partition, source_offset FROM audit_events.dead_letters) AS r \
          WHERE source_partition <> 1 OR source_offset >= {low}"
    ));
    assert_eq!(compared(&[]), stored);
}

#[test]
fn what_could_not_be_compared_is_not_called_right() {
    let scene = stored("silence", 600);
    let output = scene.command_with(&["verify", "--json"], &[("KAFKA_BROKERS", "127.0.0.1:1")]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{report:#}");
    assert_eq!((&report["ok"], &report["kafka"]["reachable"]), (&Value::Null, &Value::Bool(false)));
    assert_eq!(report["not_compared"].as_array().unwrap().len(), 1, "{report:#}");
    let (exit, report) = verify(&scene, &["--no-kafka"]);
    assert_eq!((exit, &report["ok"]), (Some(0), &Value::Bool(true)), "it was not to be compared: {report:#}");

    // Kafka answers: it has nothing of that topic any more.
    scene.delete_topic();
    let (exit, report) = verify(&scene, &[]);
    assert_eq!((exit, &report["ok"]), (Some(0), &Value::Bool(true)), "{report:#}");
    assert_eq!(report["partitions"][0]["kafka_note"], "there is no such topic", "{report:#}");
    // That another cluster has nothing of it says nothing.
    scene.sql(&format!("{BY_HAND} UPDATE audit_events.streams SET cluster_id = 'another'"));
    let (exit, report) = verify(&scene, &[]);
    assert_eq!((exit, &report["ok"]), (Some(3), &Value::Null), "{report:#}");
    assert_eq!(report["not_compared"].as_array().unwrap().len(), 3, "{report:#}");
}

#[test]
fn beside_a_daemon_that_stores_nothing_differs() {
    let scene = Scene::new("besides", 3);
    let mut daemon = scene.daemon();
    daemon.wait_until_reading(3);
    std::thread::scope(|scope| {
        let producing = scope.spawn(|| {
            for part in 0..40 {
                scene.produce(&PLAN, part * 500, (part + 1) * 500);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let mut round_count = 0;
        while !producing.is_finished() {
            let (exit, report) = verify(&scene, &[]);
            assert_eq!(exit, Some(0), "{report:#}");
            assert!(report["records"]["notes"].as_array().unwrap().is_empty(), "{report:#}");
            round_count += 1;
        }
        assert!(round_count >= 3, "{round_count}");
    });
    scene.wait_until_read(20_000, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let (exit, report) = verify(&scene, &[]);
    assert_eq!((exit, &report["records"]["compared"]), (Some(0), &Value::from(20_000)));
}
