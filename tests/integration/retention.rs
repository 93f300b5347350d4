//! Retention: whole time partitions go, and the account still adds up.

use std::path::Path;
use std::time::{Duration, Instant};

use audit_consumer::model::sample::SamplePlan;
use rdkafka::producer::Producer;
use serde_json::Value;

use crate::account::PLAN;
use crate::scene::{Scene, send, wait_for};

/// Valid events of January 2018, and of March.
const JANUARY: SamplePlan =
    SamplePlan { seed: 71, start_unix_micros: 1_515_000_000_000_000, invalid_ppm: 0, duplicate_ppm: 0 };
const MARCH: SamplePlan = SamplePlan { seed: 73, start_unix_micros: 1_520_000_000_000_000, ..JANUARY };

/// What `retention` says, and its exit code.
fn retention(scene: &Scene, args: &[&str]) -> (Option<i32>, Value) {
    let output = scene.command(&[&["retention"], args, &["--json"]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let report = serde_json::from_str(&said);
    (output.status.code(), report.unwrap_or_else(|error| panic!("{error}: {said} {:?}", output.stderr)))
}

fn apply(scene: &Scene, args: &[&str]) -> (Option<i32>, Value) {
    retention(scene, &[&["apply", "--keep", "7y", "--reason", "a test", "--actor", "me"], args].concat())
}

/// The states of the partitions of January and March 2018, as far as they are there.
#[track_caller]
fn check(report: &Value, expect: &[(&str, &str, Option<u64>)]) {
    let partitions = report["partitions"].as_array().unwrap().iter();
    let old = partitions.filter(|partition| partition["state"] != "kept");
    let found: Vec<_> = old
        .map(|partition| {
            let text = |name: &str| partition[name].as_str().unwrap();
            (text("name"), text("state"), partition["events"].as_u64())
        })
        .collect();
    assert_eq!(found, expect, "{report:#}");
}

/// Waits until each event that has not been dropped has its lines.
fn wait_until_written(scene: &Scene) {
    wait_for("day files are written", Duration::from_secs(60), || {
        let lines = "SELECT coalesce(sum(line_count), 0) FROM audit_events.projection_segments AS s \
                       JOIN audit_events.projection_instances AS i USING (sink, instance_id) WHERE s.intent <= i.confirmed";
        let wanted = "SELECT (SELECT count(*) + count(*) FILTER (WHERE purview_compatible) FROM audit_events.events) \
                           + (SELECT coalesce(sum(purview_lines + trust_lines), 0) FROM audit_events.retention_counts)";
        scene.number(lines) == scene.number(wanted)
    });
}

/// A scene with a directory of its own for day files, which are off.
fn scene_with_log_dir(name: &str) -> Scene {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("retention-{name}"));
    if folder.try_exists().unwrap() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    Scene::new(name, 2).set("LOG_DIR", folder.to_str().unwrap())
}

/// A scene with 300 events of January 2018, 200 of March and 100 of late; nothing runs.
fn old_events(name: &str) -> Scene {
    let scene = scene_with_log_dir(name).set("PURVIEW_LOG", "on").set("TRUST_LOG", "on");
    scene.produce(&JANUARY, 0, 300);
    scene.produce(&MARCH, 0, 200);
    scene.produce(&PLAN, 0, 100);
    let mut daemon = scene.daemon();
    scene.wait_until_read(600, Duration::from_secs(60));
    wait_until_written(&scene);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene
}

#[test]
fn what_is_dropped_is_recorded_and_the_account_and_the_day_files_still_hold() {
    let scene = old_events("retention");
    let before = scene.verify();
    let (code, plan) = retention(&scene, &["plan", "--keep", "7y"]);
    assert_eq!(code, Some(0));
    let (january, march) = ("events_p20180101", "events_p20180301");
    check(&plan, &[(january, "droppable", Some(300)), (march, "droppable", Some(200))]);
    let (_, plan) = retention(&scene, &["plan", "--keep", "100y"]);
    check(&plan, &[]);

    let hold = "SELECT concat('actor=', min(actor)) FROM audit_events.events WHERE timestamp BETWEEN '2018-03-01' AND '2018-04-01'";
    let hold = scene.sql(hold);
    scene.done(&["retention", "hold", &hold, "--reason", "case 12", "--actor", "legal"]);
    let correlation = "SELECT concat('correlation_id=', upper(max(correlation_id::text))) FROM audit_events.events WHERE timestamp < '2018-02-01'";
    let correlation = scene.sql(correlation);
    let (_, plan) = retention(&scene, &["plan", "--keep", "7y", "--legal-hold", &correlation]);
    let states = plan["partitions"].as_array().unwrap().iter().map(|partition| partition["state"].as_str());
    assert_eq!(states.filter(|state| *state == Some("held")).count(), 2, "{plan:#}");
    // The same actors are in both months, so the recorded hold keeps both.
    let (code, report) = apply(&scene, &[]);
    assert_eq!(code, Some(0));
    assert!(report["partitions"][0]["reasons"][0].as_str().unwrap().contains(&hold), "{report:#}");
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.events"), before.total("events"));

    scene.done(&["retention", "release", &hold, "--reason", "closed", "--actor", "legal"]);
    let tenant = scene.sql("SELECT concat('tenant=', max(tenant_id)) FROM audit_events.events");
    let (_, report) = apply(&scene, &["--legal-hold", &tenant]);
    assert_eq!(report["partitions"][0]["state"], "held", "{report:#}");
    let (code, report) = apply(&scene, &["--legal-hold", "tenant=none such"]);
    assert_eq!(code, Some(0));
    check(&report, &[(january, "dropped", Some(300)), (march, "dropped", Some(200))]);

    let after = scene.verify();
    for name in ["events", "duplicates", "dead_letters", "produced", "absent"] {
        assert_eq!(after.total(name), before.total(name), "{name}");
    }
    assert_eq!(after.total("dropped"), 500);
    let left = before.total("events") - 500;
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.events"), left);
    let recorded = "SELECT string_agg(concat_ws('|', action, coalesce(partition_name, details->>'value'), event_count, actor, \
        login, reason), E'\\n' ORDER BY action_id) FROM audit_events.retention_actions";
    let held = hold.trim_start_matches("actor=");
    let expect = [
        format!("hold|{held}|legal|audit|case 12"),
        format!("release|{held}|legal|audit|closed"),
        format!("drop|{january}|300|me|audit|a test"),
        format!("drop|{march}|200|me|audit|a test"),
    ];
    assert_eq!(scene.sql(recorded), expect.join("\n"));
    let counts = "SELECT sum(events) = 500 AND count(DISTINCT partition) = 2 AND min(low_offset) = 0 FROM audit_events.retention_counts";
    assert_eq!(scene.sql(counts), "t");

    // A late event of a time that was dropped is stored, and counted once more.
    scene.produce(&JANUARY, 1_000, 1_010);
    let mut daemon = scene.daemon();
    scene.wait_until_read(610, Duration::from_secs(60));
    wait_until_written(&scene);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert_eq!(scene.verify().total("events"), before.total("events") + 10);
    let (_, report) = apply(&scene, &[]);
    check(&report, &[(january, "dropped", Some(10))]);
    assert_eq!(scene.verify().total("dropped"), 510);
}

#[test]
fn a_count_that_was_altered_is_found() {
    let scene = old_events("retentioncount");
    assert_eq!(apply(&scene, &[]).0, Some(0));
    for statement in
        ["UPDATE audit_events.retention_counts SET events = 1", "DELETE FROM audit_events.retention_counts"]
    {
        let url = scene.setting("DATABASE_URL");
        let output =
            std::process::Command::new("psql").args(["-Xq", "-d", url, "-c", statement]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("append only"), "{output:?}");
    }
    scene.verify();
    scene.sql(
        "ALTER TABLE audit_events.retention_counts DISABLE TRIGGER append_only; \
         UPDATE audit_events.retention_counts SET events = events - 1 \
          WHERE (action_id, partition) = (SELECT min(action_id), 0 FROM audit_events.retention_counts)",
    );
    let output = scene.command(&["verify", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("events_differ") && said.contains("\"hole\""), "{said}");
}

#[test]
fn events_that_day_files_lack_keep_their_partition() {
    let scene = old_events("retentionlack");
    // The purview sink is off, and on for its cursor: more events come, of which it has no lines.
    let scene = scene.set("PURVIEW_LOG", "off");
    scene.produce(&MARCH, 200, 230);
    let mut daemon = scene.daemon();
    scene.wait_until_read(630, Duration::from_secs(60));
    wait_for("trust lines are written", Duration::from_secs(60), || {
        scene.number(
            "SELECT count(*) FROM audit_events.projection_cursors AS c JOIN audit_events.consumer_offsets AS o \
              USING (stream_id, partition) WHERE c.sink = 'trust' AND c.next_offset < o.next_offset",
        ) == 0 && scene.number("SELECT sum(intended - confirmed) FROM audit_events.projection_instances") == 0
    });
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let (code, report) = apply(&scene, &[]);
    assert_eq!(code, Some(1));
    check(
        &report,
        &[("events_p20180101", "dropped", Some(300)), ("events_p20180301", "unprojected", Some(230))],
    );
    let reason = report["partitions"][1]["reasons"][0].as_str().unwrap();
    assert!(reason.ends_with("events have no line in the day files of purview yet"), "{reason}");
    scene.verify();
    let (code, report) = apply(&scene, &["--ignore-sink", "purview"]);
    assert_eq!(code, Some(0));
    check(&report, &[("events_p20180301", "dropped", Some(230))]);
    let ignored =
        "SELECT details->'ignored_sinks' FROM audit_events.retention_actions ORDER BY action_id DESC LIMIT 1";
    assert_eq!(scene.sql(ignored), "[\"purview\"]");
    scene.verify();
}

#[test]
fn what_was_pending_in_a_sink_that_is_ignored_is_expected_in_no_day_file() {
    let scene = scene_with_log_dir("retentionpending");
    let scene = scene.set("KAFKA_INSTANCE_ID", "only").set("PURVIEW_LOG", "on");
    scene.produce(&JANUARY, 0, 300);
    // It dies with an open intent, which is handed over, and nobody takes: the sink is off from now on.
    let mut daemon = scene.daemon_with(&[("FAILPOINTS", "project_after_intent=return")]);
    let status = daemon.wait_for_end(Duration::from_secs(40));
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{}", daemon.log_text());
    let mut daemon = scene.daemon_with(&[("PURVIEW_LOG", "off")]);
    scene.wait_until_read(300, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let instance = scene.sql("SELECT instance_id FROM audit_events.projection_instances");
    wait_for("its session is gone", Duration::from_secs(30), || {
        scene.command(&["projections", "adopt", &instance, "--reason", "a test"]).status.success()
    });
    let pending = "SELECT count(*) FROM audit_events.projection_pending";
    assert!(scene.number(pending) > 0);
    scene.verify();
    let january = "events_p20180101";
    let (code, report) = apply(&scene, &[]);
    assert_eq!(code, Some(1));
    check(&report, &[(january, "unprojected", Some(300))]);
    let (code, report) = apply(&scene, &["--ignore-sink", "purview"]);
    assert_eq!(code, Some(0));
    check(&report, &[(january, "dropped", Some(300))]);
    assert_eq!(scene.number("SELECT sum(purview_lines) FROM audit_events.retention_counts"), 0);
    scene.verify();
    // On again it takes the ranges, finds nothing in them, and goes on.
    scene.produce(&MARCH, 0, 100);
    let mut daemon = scene.daemon();
    scene.wait_until_read(400, Duration::from_secs(60));
    let missing = "SELECT count(*) FROM audit_events.consumer_offsets AS o \
         LEFT JOIN audit_events.projection_cursors AS c ON c.sink = 'purview' \
          AND c.stream_id = o.stream_id AND c.partition = o.partition \
        WHERE c.next_offset IS DISTINCT FROM o.next_offset";
    wait_for("all is passed", Duration::from_secs(60), || {
        scene.number(missing) == 0 && scene.number(pending) == 0
    });
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify();
}

#[test]
fn a_duplicate_of_an_event_that_was_dropped_from_another_partition_is_not_missed() {
    let scene = Scene::new("retentiondup", 2);
    let late = SamplePlan { seed: 79, start_unix_micros: PLAN.start_unix_micros, ..JANUARY };
    let produce = |partition: i32| {
        let producer = scene.producer(&[]);
        let mut payload = Vec::new();
        for index in 0..21 {
            let plan = if index < 20 { &JANUARY } else { &late };
            assert!(plan.write(index, &mut payload));
            send(&producer, &scene.topic, None, Some(payload.as_slice()), Some(partition));
        }
        producer.flush(Duration::from_secs(20)).unwrap();
    };
    let mut daemon = scene.daemon();
    produce(0);
    scene.wait_until_read(21, Duration::from_secs(60));
    produce(1);
    scene.wait_until_read(42, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert_eq!(scene.verify().total("duplicates"), 21);
    let (code, report) = apply(&scene, &[]);
    assert_eq!(code, Some(0));
    check(&report, &[("events_p20180101", "dropped", Some(20))]);
    let records = scene.verify().0["records"].clone();
    assert_eq!((&records["compared"], &records["dropped"]), (&2.into(), &40.into()), "{records:#}");
    // An event of a day of which nothing was dropped is missed by its own record, and by its duplicate's.
    scene.sql(
        "SET session_replication_role = replica; DELETE FROM audit_events.events; \
         UPDATE audit_events.consumer_offsets SET events = events - 1, absent = absent + 1 WHERE partition = 0",
    );
    let output = scene.command(&["verify", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let codes: Vec<_> = findings.iter().map(|finding| finding["code"].as_str().unwrap()).collect();
    assert_eq!((output.status.code(), codes), (Some(1), vec!["record_missing"; 2]), "{report:#}");
}

#[test]
fn a_drop_does_not_wait_for_a_long_reader_and_holds_no_commit_up_for_long() {
    let scene = old_events("retentionbusy");
    let url = scene.setting("DATABASE_URL").to_owned();
    let mut reader = std::process::Command::new("psql")
        .args(["-Xq", "-d", &url, "-c"])
        .arg("BEGIN; SELECT count(*) FROM audit_events.events; SELECT pg_sleep(60)")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the reader reads", Duration::from_secs(20), || {
        scene.number("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND wait_event = 'PgSleep' AND datname = current_database()") == 1
    });
    let mut daemon = scene.daemon();
    daemon.wait_until_reading(2);
    std::thread::scope(|scope| {
        let applied = scope.spawn(|| apply(&scene, &[]));
        let mut total = 600;
        while !applied.is_finished() {
            scene.produce(&PLAN, total, total + 50);
            total += 50;
            let took = scene.wait_until_read(total, Duration::from_secs(20));
            assert!(took < Duration::from_secs(6), "{took:?}");
        }
        let (code, report) = applied.join().unwrap();
        assert_eq!(code, Some(1));
        check(&report, &[("events_p20180101", "busy", None), ("events_p20180301", "busy", None)]);
    });
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.retention_actions"), 0);
    reader.kill().unwrap();
    reader.wait().unwrap();
    scene.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND pid <> pg_backend_pid() AND datname = current_database()");
    let started = Instant::now();
    let (code, report) = apply(&scene, &[]);
    assert_eq!(code, Some(0), "{report:#}");
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert_eq!(scene.verify().total("dropped"), 500);
}

#[test]
fn a_drop_that_is_killed_at_any_step_is_done_and_recorded_once() {
    let scene = old_events("retentionkill");
    let args = ["retention", "apply", "--keep", "7y", "--reason", "a test", "--json"];
    let dropped = "SELECT coalesce(sum(event_count), 0) FROM audit_events.retention_actions";
    // What stands after each: nothing twice is dropped, and what is not recorded is still there.
    for (point, expect) in
        [("retention_recorded", 0), ("retention_before_commit", 0), ("retention_after_commit", 300)]
    {
        wait_for("the one before is gone", Duration::from_secs(30), || {
            scene.number("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'audit-consumer/operator' AND datname = current_database()") == 0
        });
        let output = scene.command_with(&args, &[("FAILPOINTS", &format!("{point}=return"))]);
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&output.status),
            Some(9),
            "{point}: {output:?}"
        );
        wait_for("what was under way is rolled back", Duration::from_secs(30), || {
            scene.number(dropped) == expect
        });
        assert_eq!(scene.verify().total("dropped"), expect, "{point}");
    }
    let (code, report) = apply(&scene, &[]);
    assert_eq!(code, Some(0));
    check(&report, &[("events_p20180301", "dropped", Some(200))]);
    assert_eq!(scene.verify().total("dropped"), 500);
}

#[test]
fn of_two_that_drop_at_once_each_partition_goes_once() {
    let scene = old_events("retentiontwo");
    let reports = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| apply(&scene, &[]).1)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
    });
    // Whoever was kept out says so, and finds the rest.
    let (code, report) = apply(&scene, &[]);
    assert_eq!(code, Some(0), "{report:#} {reports:#?}");
    let recorded = "SELECT count(*) || ' ' || sum(event_count) FROM audit_events.retention_actions";
    assert_eq!(scene.sql(recorded), "2 500");
    assert_eq!(scene.verify().total("dropped"), 500);
}

#[test]
fn a_drop_under_the_eyes_of_verify_is_seen_before_or_after_and_never_in_between() {
    let scene = old_events("retentioneyes");
    // As `apply` does it, with its COMMIT held back.
    let drop = "BEGIN; \
        INSERT INTO audit_events.retention_actions (action, partition_name, lower_bound, upper_bound, event_count, actor, reason, details) \
        VALUES ('drop', 'events_p20180101', '2018-01-01', '2018-02-01', 300, 'me', 'a test', '{}'); \
        INSERT INTO audit_events.retention_counts SELECT (SELECT max(action_id) FROM audit_events.retention_actions), stream_id, \
            source_partition, count(*), min(source_offset), max(source_offset), count(*) FILTER (WHERE purview_compatible), count(*) \
          FROM audit_events.events_p20180101 GROUP BY stream_id, source_partition; \
        DROP TABLE audit_events.events_p20180101; SELECT pg_sleep(4); COMMIT";
    let mut dropping = std::process::Command::new("psql")
        .args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", scene.setting("DATABASE_URL"), "-c", drop])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("it is dropped, and not committed", Duration::from_secs(20), || {
        scene.number("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()") == 1
    });
    assert_eq!(scene.verify().total("dropped"), 300);
    assert!(dropping.wait().unwrap().success());
}
