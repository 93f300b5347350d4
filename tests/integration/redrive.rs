//! What an operator does to dead letters, and breakers.

use std::collections::BTreeMap;
use std::time::Duration;

use audit_consumer::model::sample::SamplePlan;
use serde_json::Value;

use crate::account::PLAN;
use crate::letters::{Letter, check_one_to_one, letter_topic, read_topic, wait_until_relayed};
use crate::scene::{Scene, scaled, wait_for};

const VALID: SamplePlan = SamplePlan { invalid_ppm: 0, duplicate_ppm: 0, ..PLAN };

fn event(index: u64) -> Vec<u8> {
    let mut payload = Vec::new();
    assert!(VALID.write(index, &mut payload));
    payload
}

fn json(scene: &Scene, args: &[&str]) -> (bool, Value) {
    let output = scene.command(args);
    let json = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{args:?}: {error}: {output:?}"));
    (output.status.success(), json)
}

fn stored_count(scene: &Scene) -> u64 {
    scene.number(
        "SELECT coalesce(sum(events + duplicates + dead_letters), 0) FROM audit_events.consumer_offsets",
    )
}

#[test]
fn redriven_records_become_events_or_come_back_until_the_loop_guard_stops_them() {
    // Events longer than the limit, which is then raised; and a record that is never an event.
    let scene = Scene::new("redrive", 2).set("MAX_EVENT_BYTES", "1024").set("DLQ_BREAKER_SHARE", "100");
    let long = |index| {
        let text = String::from_utf8(event(index)).unwrap();
        let long = text.replacen('{', &format!("{{\"extra\":\"{}\",", "x".repeat(2_000)), 1);
        Some(long.into_bytes())
    };
    scene.send_all(&[long(1), Some(event(2)), Some(b"never an event".to_vec()), long(3)]);
    let mut daemon = scene.daemon();
    scene.wait_until_read(4, Duration::from_secs(30));
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let (_, listed) = json(&scene, &["dlq", "list", "--json"]);
    assert_eq!(listed["total"], 3, "{listed:#}");
    let (_, dry) = json(&scene, &["dlq", "redrive", "--reason", "too_large", "--dry-run", "--json"]);
    assert_eq!((&dry["redriven"], &dry["dry_run"]), (&2.into(), &true.into()), "{dry:#}");
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.dead_letter_actions"), 0);

    let scene = scene.set("MAX_EVENT_BYTES", "1MiB");
    let mut daemon = scene.daemon();
    for attempt in 1..=5 {
        let expect_stored = stored_count(&scene);
        let (is_done, answer) =
            json(&scene, &["dlq", "redrive", "--all", "--why", "the limit is raised", "--json"]);
        match attempt {
            1 => assert_eq!((&answer["redriven"], is_done), (&3.into(), true), "{answer:#}"),
            5 => assert_eq!(
                (&answer["redriven"], &answer["left"], is_done),
                (&0.into(), &1.into(), false),
                "{answer:#}"
            ),
            _ => assert_eq!((&answer["redriven"], is_done), (&1.into(), true), "{answer:#}"),
        }
        let sent_count = answer["redriven"].as_u64().unwrap();
        scene.wait_until_read(expect_stored + sent_count, Duration::from_secs(30));
    }
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.events"), 3, "both long ones are events now");
    check_one_to_one(&scene);
    let mut attempts: Vec<String> = read_topic(&scene.stack, &letter_topic(&scene), "read_committed")
        .iter()
        .filter(|letter| letter.value.as_deref() == Some(b"never an event"))
        .map(|letter| letter.header("dlq.attempt").to_owned())
        .collect();
    attempts.sort();
    assert_eq!(attempts, ["1", "2", "3", "4", "5"]);
    let last = scene.sql("SELECT max(dead_letter_id) FROM audit_events.dead_letters");
    let (_, shown) = json(&scene, &["dlq", "show", &last, "--json"]);
    assert_eq!((&shown["attempt"], &shown["state"]), (&5.into(), &"relayed".into()), "{shown:#}");
    assert_eq!(
        scene.done(&["dlq", "show", shown["dlq_id"].as_str().unwrap(), "--payload"]),
        "never an event"
    );
    let first = scene.sql("SELECT min(dead_letter_id) FROM audit_events.dead_letters");
    let (_, shown) = json(&scene, &["dlq", "show", &first, "--json"]);
    assert_eq!(shown["state"], "redriven");
    assert_eq!(shown["actions"][0]["reason"], "the limit is raised");

    let (is_done, answer) = json(&scene, &["dlq", "discard", "--ids", &last, "--why", "noise", "--json"]);
    assert_eq!((&answer["discarded"], is_done), (&1.into(), true));
    let (is_done, answer) = json(&scene, &["dlq", "discard", "--ids", &last, "--why", "noise", "--json"]);
    assert_eq!((&answer["discarded"], is_done), (&0.into(), false), "once is enough");
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.dead_letters"), 7, "no row is deleted");
    let listed = scene.done(&["dlq", "list"]);
    assert!(listed.contains("discarded") && listed.contains("redriven"), "{listed}");
    scene.verify();
}

/// The records of the source topic that a redrive brought.
fn redriven(scene: &Scene) -> Vec<Letter> {
    let all = read_topic(&scene.stack, &scene.topic, "read_committed");
    all.into_iter().filter(|record| record.find_header("dlq.redrive").is_some()).collect()
}

#[test]
fn a_redrive_that_is_killed_at_every_step_sends_each_record_once() {
    let scene = Scene::new("redrivekill", 3).set("DLQ_BREAKER_SHARE", "100");
    let letter_count = scaled(3_500, 6_500);
    let payloads: Vec<Option<Vec<u8>>> =
        (0..letter_count).map(|index| Some(format!("no event {index}").into_bytes())).collect();
    scene.send_all(&payloads);
    let mut daemon = scene.daemon();
    scene.wait_until_read(letter_count, Duration::from_secs(30));
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let mut settled_count = 0;
    for point in [
        "redrive_after_intent",
        "relay_after_send",
        "relay_before_commit",
        "relay_after_commit",
        "redrive_before_settle",
    ] {
        for pass in 0..scaled(2, 3) {
            let point = format!("{point}={pass}*off->return");
            let args = ["dlq", "redrive", "--all", "--why", "test", "--json"];
            let mut output = scene.command_with(&args, &[("FAILPOINTS", &point)]);
            // PostgreSQL may hear later than we that the one before was killed.
            wait_for("the one before is gone", Duration::from_secs(30), || {
                let is_gone =
                    !String::from_utf8_lossy(&output.stdout).contains("is under way in this database");
                if !is_gone {
                    output = scene.command_with(&args, &[("FAILPOINTS", &point)]);
                }
                is_gone
            });
            if !output.status.success() {
                settled_count += 1;
                assert_eq!(
                    std::os::unix::process::ExitStatusExt::signal(&output.status),
                    Some(9),
                    "{point}: {output:?}"
                );
            }
        }
    }
    // It may have nothing left to do.
    scene.command(&["dlq", "redrive", "--all", "--why", "test"]);
    assert!(settled_count >= 5, "only {settled_count} were killed");
    let records = redriven(&scene);
    let mut values: Vec<&[u8]> = records.iter().map(|record| record.value.as_deref().unwrap()).collect();
    values.sort_unstable();
    values.dedup();
    let letter_count = usize::try_from(letter_count).unwrap();
    assert_eq!((records.len(), values.len()), (letter_count, letter_count), "each once");
    assert_eq!(
        scene.sql("SELECT state, count(*) FROM audit_events.dead_letter_states GROUP BY state"),
        format!("redriven|{letter_count}")
    );
}

/// A later page had what the daemon had rejected again of the earlier ones: up to 4 attempts in one command.
#[test]
fn what_is_rejected_again_while_a_redrive_runs_waits_for_the_next_one() {
    let scene = Scene::new("redriveonce", 1).set("DLQ_BREAKER_SHARE", "100");
    // 8 transactions: the daemon has stored copies of the first long before the last.
    let letter_count = 1_600;
    let payloads: Vec<Option<Vec<u8>>> =
        (0..letter_count).map(|index| Some(format!("no event {index}").into_bytes())).collect();
    scene.send_all(&payloads);
    let mut daemon = scene.daemon();
    scene.wait_until_read(letter_count, Duration::from_secs(30));
    let (is_done, answer) = json(&scene, &["dlq", "redrive", "--all", "--why", "test", "--json"]);
    assert_eq!(
        (&answer["redriven"], &answer["left"], is_done),
        (&letter_count.into(), &0.into(), true),
        "{answer:#}"
    );
    scene.wait_until_read(2 * letter_count, Duration::from_secs(30));
    wait_until_relayed(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let mut attempts: BTreeMap<String, u64> = BTreeMap::new();
    for letter in read_topic(&scene.stack, &letter_topic(&scene), "read_committed") {
        *attempts.entry(letter.header("dlq.attempt").to_owned()).or_default() += 1;
    }
    let expect = ["1", "2"].map(|attempt| (attempt.to_owned(), letter_count));
    assert_eq!(attempts, BTreeMap::from(expect), "each once more, and none twice");
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.dead_letters"), 2 * letter_count);
    scene.verify();
}

#[test]
fn what_is_refused_is_said_in_the_one_json_object() {
    let scene = Scene::new("dlqrefused", 1);
    let check = |args: &[&str], expect: &str| {
        let (is_done, answer) = json(&scene, args);
        let said = answer["refused"].as_str().unwrap_or_default();
        assert!(!is_done && said.contains(expect), "{args:?}: {answer:#}");
    };
    check(&["dlq", "resume", "--why", "?", "--json"], "no breaker of that choice is open");
    check(&["dlq", "redrive", "--why", "?", "--json"], "or say --all");
    check(&["dlq", "discard", "--ids", "7", "--why", "?", "--json"], "there is no dead letter 7");
    check(&["dlq", "show", "7", "--json"], "there is no dead letter 7");
}

#[test]
fn headers_that_are_no_text_survive_the_way_there_and_back() {
    let scene = Scene::new("redriveraw", 1).set("DLQ_BREAKER_SHARE", "100");
    scene.send_all(&[Some(b"no event".to_vec())]);
    let mut daemon = scene.daemon();
    scene.wait_until_read(1, Duration::from_secs(30));
    // A producer that writes such a header is hard to find; a row that has one is not.
    let headers = r#"[{"key_base64": "/wE=", "value": "AP8="}, {"key": "plain", "value": null}]"#;
    scene.sql(&format!(
        "ALTER TABLE audit_events.dead_letters DISABLE TRIGGER append_only; \
         UPDATE audit_events.dead_letters SET headers = '{headers}'"
    ));
    assert!(scene.command(&["dlq", "redrive", "--all", "--why", "test"]).status.success());
    scene.wait_until_read(2, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let kept = scene.sql("SELECT headers -> 0, headers -> 1 FROM audit_events.dead_letters ORDER BY source_offset DESC LIMIT 1");
    assert_eq!(kept, r#"{"value": "AP8=", "key_base64": "/wE="}|{"key": "plain", "value": null}"#);
}

#[test]
fn a_breaker_stops_a_partition_until_an_operator_says_so() {
    let scene = Scene::new("breaker", 2).set("DLQ_BREAKER_WINDOW", "200").set("BATCH_MAX_EVENTS", "100");
    let garbage: Vec<Option<Vec<u8>>> = (0..2_000).map(|_| Some(b"no event".to_vec())).collect();
    scene.send_all(&garbage);
    let mut daemon = scene.daemon();
    daemon.wait_for_hold("breaker_open");
    let stopped_at = stored_count(&scene);
    assert!((200..2_000).contains(&stopped_at), "{stopped_at}");
    let (code, body) = daemon.get("/readyz").unwrap();
    assert!(code == 503 && body.contains("breaker_open") && body.contains("dlq resume"), "{code} {body}");
    assert!(daemon.get("/metrics").unwrap().1.contains("audit_consumer_breakers_opened_total 1"));
    assert_eq!(daemon.log_text().matches("breaker_open").count(), 1, "one log line");
    assert_eq!(daemon.partition_count(), 1, "the other partition goes on");
    wait_for("it is recorded", Duration::from_secs(20), || {
        scene.number("SELECT count(*) FROM audit_events.offset_actions WHERE action = 'open_breaker'") == 1
    });
    assert_eq!(stored_count(&scene), stopped_at);
    scene.done(&["dlq", "resume", "--topic", &scene.topic, "--partition", "0", "--why", "let them through"]);
    wait_for("it goes on", Duration::from_secs(30), || stored_count(&scene) > stopped_at);
    wait_for("it opens again", Duration::from_secs(30), || {
        daemon
            .get("/metrics")
            .is_some_and(|(_, text)| text.contains("audit_consumer_breakers_opened_total 2"))
    });
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    // A restart closes it, too; and a breaker that is off never opens.
    let mut daemon = scene.daemon_with(&[("DLQ_BREAKER_SHARE", "100")]);
    scene.wait_until_read(2_000, Duration::from_secs(60));
    assert!(daemon.holds().is_empty());
    let refused = scene.command(&["dlq", "resume", "--topic", "another", "--why", "?"]);
    assert_eq!(refused.status.code(), Some(1));
    wait_until_relayed(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    check_one_to_one(&scene);
    scene.verify();
}

#[test]
fn what_a_letter_topic_lacks_or_has_twice_is_found_by_verify() {
    let scene = Scene::new("dlqverify", 2);
    scene.send_all(&[Some(b"one".to_vec()), Some(b"two".to_vec())]);
    let mut daemon = scene.daemon();
    scene.wait_until_read(2, Duration::from_secs(30));
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let letters = scene.verify().0["letters"].clone();
    assert_eq!((&letters[0]["rows"], &letters[0]["in_topic"]), (&2.into(), &2.into()), "{letters:#}");
    let codes = || {
        let (_, report) = json(&scene, &["verify", "--json"]);
        let findings = report["findings"].as_array().unwrap().clone();
        findings.iter().map(|finding| finding["code"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // A copy that nobody asked for.
    let copy = read_topic(&scene.stack, &letter_topic(&scene), "read_committed").remove(0);
    let producer = scene.producer(&[]);
    let mut headers = rdkafka::message::OwnedHeaders::new();
    for (key, value) in &copy.headers {
        headers = headers.insert(rdkafka::message::Header { key, value: value.as_ref() });
    }
    let topic = letter_topic(&scene);
    let record: rdkafka::producer::BaseRecord<'_, [u8], [u8]> =
        rdkafka::producer::BaseRecord::to(&topic).payload(&b"copy"[..]).headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    rdkafka::producer::Producer::flush(&producer, Duration::from_secs(10)).unwrap();
    assert_eq!(codes(), ["letter_twice"]);
    // A letter that is marked and was never sent.
    scene.sql("INSERT INTO audit_events.dead_letters (stream_id, source_partition, source_offset, group_id, topic, reason, detail, relayed_at, relay_partition, relay_offset) \
               SELECT stream_id, source_partition, 1000, group_id, topic, reason, detail, now(), 0, 1000 FROM audit_events.dead_letters LIMIT 1");
    assert!(codes().iter().any(|code| code == "letter_missing"));
}
