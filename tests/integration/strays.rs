//! What a spool holds of partitions that nobody drains there: of another instance, of a topic that was created again,
//! over a declared gap; and `spool drain`. On a stack of its own.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::account::PLAN;
use crate::scene::{Daemon, Scene, Stack, wait_for};
use crate::spooling::{check_drained, held_count, modes, scene, wait_until};

/// Spools the records from 1,000 to 4,000 of each plan in `dir`, and dies; Kafka has none of them any more.
fn spool_and_die(stack: &Stack, scene: &Scene, dir: &str) {
    scene.produce(&PLAN, 0, 1_000);
    let daemon = scene.daemon_with(&[("SPOOL_DIR", dir)]);
    scene.wait_until_read(1_000, Duration::from_secs(60));
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 1_000, 4_000);
    wait_until(&daemon, "spooling", 2);
    wait_for("the spool holds what came", Duration::from_secs(60), || {
        held_count(scene, Path::new(dir)) >= 3_000
    });
    daemon.kill();
    for partition in 0..2 {
        scene.delete_records(partition, -1);
    }
    stack.run(&["start", "postgres"]);
}

fn json_of(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn what_only_the_spool_of_another_instance_holds_is_stored_from_there() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "strayed", 2);
    scene.produce(&PLAN, 0, 1_000);
    let mut first = scene.daemon();
    scene.wait_until_read(1_000, Duration::from_secs(60));
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 1_000, 4_000);
    wait_until(&first, "spooling", 2);
    wait_for("the spool holds what came", Duration::from_secs(60), || held_count(&scene, &dir) >= 3_000);
    // One partition moves to an instance without a spool, and Kafka forgets what was spooled.
    let mut second = scene.daemon_with(&[("SPOOL_DIR", "off"), ("GAP_WAIT_MS", "12000")]);
    second.wait_for_hold("database_unavailable");
    wait_for("the first has one partition", Duration::from_secs(60), || modes(&first).len() == 1);
    for partition in 0..2 {
        scene.delete_records(partition, -1);
    }
    stack.run(&["start", "postgres"]);
    scene.wait_until_read(4_000, Duration::from_secs(120));
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.offset_gaps"), 0);
    check_drained(&scene, &first, &dir);
    // Nobody took a partition from the other: each goes on with its own.
    wait_for("both read", Duration::from_secs(60), || {
        modes(&first) == ["live"] && second.partition_count() == 1
    });
    assert!(first.log_text().contains("stored from the spool, as kafka has it no more"));
    for daemon in [&first, &second] {
        assert!(!daemon.log_text().contains("ClaimedElsewhere"), "nobody claimed what the other reads");
    }
    scene.produce(&PLAN, 4_000, 5_000);
    scene.wait_until_read(5_000, Duration::from_secs(60));
    for daemon in [&mut first, &mut second] {
        assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    }
    let report = scene.verify();
    report.check(PLAN.totals(5_000));
    assert_eq!(report.total("absent"), 0);
}

#[test]
fn a_gap_that_was_declared_over_a_spool_is_filled_by_hand() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "gapfilled", 2);
    let (dir, gone) = (dir.join("own"), dir.join("gone"));
    let gone = gone.to_str().unwrap();
    spool_and_die(&stack, &scene, gone);
    // Nobody knows of that spool: an instance on another disk waits, and gives them up.
    let other = [("SPOOL_DIR", dir.to_str().unwrap()), ("GAP_WAIT_MS", "1000")];
    let mut daemon = scene.daemon_with(&other);
    wait_for("gaps are declared", Duration::from_secs(60), || {
        scene.number("SELECT count(*) FROM audit_events.offset_gaps WHERE closed_at IS NULL") == 2
    });
    scene.produce(&PLAN, 4_000, 5_000);
    scene.wait_until_read(2_000, Duration::from_secs(60));
    assert_eq!(scene.verify().total("gaps"), 3_000);
    // Without being told so it fills none.
    let drain = ["spool", "drain", "--json", "--dir", gone];
    let refused = scene.command(&drain);
    assert_eq!(refused.status.code(), Some(1));
    let notes = json_of(&refused)["notes"].as_array().unwrap().clone();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes.iter().all(|note| note.as_str().unwrap().contains("--fill-gap")), "{notes:?}");
    // Its own daemon, back again, sets them aside: the spool is free, and verify shows what is there.
    let back = scene.daemon_with(&[("SPOOL_DIR", gone)]);
    wait_for("they are set aside", Duration::from_secs(60), || {
        back.status().is_some_and(|status| status["spool"]["records"] == 0)
    });
    let aside_count = std::fs::read_dir(Path::new(gone).join("quarantine")).unwrap().count();
    assert!(aside_count > 0);
    let while_it_runs = scene.command(&drain);
    assert_eq!(while_it_runs.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&while_it_runs.stdout).contains("stop it first"), "{while_it_runs:?}");
    back.kill();
    let found = scene.command_with(&["verify", "--json"], &[("SPOOL_DIR", gone)]);
    assert_eq!(found.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&found.stdout).contains("gap_is_spooled"), "{found:?}");
    // It is filled, whenever the command dies.
    let fill = [&drain[..], &["--fill-gap", "--reason", "the disk of a node that was lost"]].concat();
    for point in ["fill_before_commit", "fill_after_commit"] {
        let killed = scene.command_with(&fill, &[("FAILPOINTS", &format!("{point}=1*off->return"))]);
        assert_eq!(killed.status.code(), None, "{killed:?}");
    }
    let filled = scene.command(&fill);
    assert_eq!(filled.status.code(), Some(0), "{filled:?}");
    assert_eq!(json_of(&filled)["left"], serde_json::json!([]));
    let again = json_of(&scene.command(&fill));
    assert_eq!(again["filled"], serde_json::json!([]), "a gap is filled once");
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.offset_gaps WHERE closed_at IS NULL"), 0);
    assert!(scene.number("SELECT count(*) FROM audit_events.offset_actions WHERE action = 'fill_gap'") > 0);
    // Day files are to take each filled offset once.
    let pending = "SELECT sum(end_offset - start_offset) FROM audit_events.projection_pending \
                    WHERE sink = 'trust' AND cause = 'gap_filled'";
    assert_eq!(scene.number(pending), 3_000);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let report = scene.verify();
    report.check(PLAN.totals(5_000));
    assert_eq!((report.total("absent"), report.total("gaps")), (0, 0));
    let clean = scene.command_with(&["verify", "--json"], &[("SPOOL_DIR", gone)]);
    assert_eq!(clean.status.code(), Some(0), "{clean:?}");
}

#[test]
fn a_spool_whose_instance_is_gone_is_drained_by_hand() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "drained", 2);
    let dir = dir.to_str().unwrap();
    spool_and_die(&stack, &scene, dir);
    let drain = ["spool", "drain", "--json", "--dir", dir];
    let small = ("BATCH_MAX_EVENTS", "700");
    for point in ["stray_before_commit", "stray_after_commit"] {
        let point = format!("{point}=1*off->return");
        let killed = scene.command_with(&drain, &[small, ("FAILPOINTS", &point)]);
        assert_eq!(killed.status.code(), None, "{killed:?}");
    }
    let drained = scene.command_with(&drain, &[small]);
    assert_eq!(drained.status.code(), Some(0), "{drained:?}");
    let stored = json_of(&drained)["stored"].as_array().unwrap().clone();
    assert!(stored.iter().any(|row| row["events"].as_u64().unwrap() > 0), "{stored:?}");
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.spool_ranges"), 0);
    let mut daemon = scene.daemon();
    scene.produce(&PLAN, 4_000, 5_000);
    scene.wait_until_read(5_000, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let report = scene.verify();
    report.check(PLAN.totals(5_000));
    assert_eq!(report.total("absent"), 0);
}

#[test]
fn what_was_spooled_of_a_topic_that_is_created_again_stays_with_the_old_one() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "oldtopic", 2);
    scene.produce(&PLAN, 0, 1_000);
    let mut daemon = scene.daemon();
    scene.wait_until_read(1_000, Duration::from_secs(60));
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 1_000, 3_000);
    wait_until(&daemon, "spooling", 2);
    wait_for("the spool holds what came", Duration::from_secs(60), || held_count(&scene, &dir) >= 2_000);
    scene.delete_topic();
    scene.create_topic(2, &[]);
    scene.produce(&PLAN, 3_000, 4_500);
    stack.run(&["start", "postgres"]);
    // The old topic's records are all stored, under the old stream; of the new one none, before somebody says so.
    scene.wait_until_read(3_000, Duration::from_secs(120));
    daemon.wait_for_hold("topic_recreated");
    check_drained(&scene, &daemon, &dir);
    assert_eq!(scene.number("SELECT count(DISTINCT stream_id) FROM audit_events.events"), 1);
    scene.done(&["offsets", "adopt", "--topic", &scene.topic, "--reason", "created again on purpose"]);
    scene.wait_until_read(4_500, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(4_500));
    let by_stream = "SELECT string_agg(read::text, ' ' ORDER BY read) FROM (SELECT sum(next_offset - first_offset) \
                     AS read FROM audit_events.consumer_offsets GROUP BY stream_id) AS s";
    assert_eq!(scene.sql(by_stream), "1500 3000");
}

/// Copies the database as it is, so often: standbys that lag.
fn copy_database(stack: &Stack, scene: &Scene, count: u32) {
    for index in 0..count {
        let sql = format!("CREATE DATABASE {0}_{index} OWNER audit TEMPLATE {0}", scene.name);
        stack.psql("postgres", &sql);
    }
}

/// The database is gone, and copy `index` is in its place.
fn fail_over(stack: &Stack, scene: &Scene, index: u32) {
    stack.psql("postgres", &format!("DROP DATABASE {} WITH (FORCE)", scene.name));
    stack.psql("postgres", &format!("ALTER DATABASE {0}_{index} RENAME TO {0}", scene.name));
}

#[test]
fn what_failovers_take_back_is_drained_once_more_each_time() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "takenback", 2);
    let scene = scene.set("GAP_WAIT_MS", "12000");
    scene.produce(&PLAN, 0, 1_000);
    let mut daemon = scene.daemon();
    scene.wait_until_read(1_000, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    copy_database(&stack, &scene, 3);
    daemon = scene.daemon();
    wait_until(&daemon, "live", 2);
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 1_000, 4_000);
    wait_until(&daemon, "spooling", 2);
    wait_for("the spool holds what came", Duration::from_secs(60), || held_count(&scene, &dir) >= 3_000);
    stack.run(&["start", "postgres"]);
    scene.wait_until_read(4_000, Duration::from_secs(120));
    check_drained(&scene, &daemon, &dir);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    // What was drained is nowhere but in the spool's drained segments.
    for partition in 0..2 {
        scene.delete_records(partition, -1);
    }
    fail_over(&stack, &scene, 0);
    let mut daemon = scene.daemon();
    // Then under its eyes, to the same position each time.
    for next in [Some(1), Some(2), None] {
        scene.wait_until_read(4_000, Duration::from_secs(120));
        wait_until(&daemon, "live", 2);
        check_drained(&scene, &daemon, &dir);
        next.iter().for_each(|index| fail_over(&stack, &scene, *index));
    }
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let report = scene.verify();
    report.check(PLAN.totals(4_000));
    assert_eq!((report.total("absent"), report.total("gaps")), (0, 0));
}

#[test]
fn what_a_stray_has_stored_and_a_failover_takes_back_is_stored_once_more() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "straylost", 1);
    scene.produce(&PLAN, 0, 1_000);
    let mut first = scene.daemon();
    scene.wait_until_read(1_000, Duration::from_secs(60));
    assert!(first.terminate(Duration::from_secs(15)).0.success());
    copy_database(&stack, &scene, 2);
    first = scene.daemon();
    wait_until(&first, "live", 1);
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 1_000, 4_000);
    wait_until(&first, "spooling", 1);
    wait_for("the spool holds what came", Duration::from_secs(60), || held_count(&scene, &dir) >= 3_000);
    first.kill();
    scene.delete_records(0, -1);
    stack.run(&["start", "postgres"]);
    // The partition is another instance's, which has nothing of it.
    let mut second = scene.daemon_with(&[("SPOOL_DIR", "off"), ("GAP_WAIT_MS", "25000")]);
    second.wait_for_hold("records_deleted");
    let mut first = scene.daemon();
    scene.wait_until_read(4_000, Duration::from_secs(60));
    check_drained(&scene, &first, &dir);
    fail_over(&stack, &scene, 0);
    scene.wait_until_read(4_000, Duration::from_secs(120));
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.offset_gaps"), 0);
    wait_for("the owner goes on", Duration::from_secs(30), || second.partition_count() == 1);
    assert_eq!(first.partition_count(), 0);
    check_drained(&scene, &first, &dir);
    // And by hand, when no daemon runs.
    for daemon in [&mut first, &mut second] {
        assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    }
    fail_over(&stack, &scene, 1);
    let drained = scene.command(&["spool", "drain", "--json", "--dir", dir.to_str().unwrap()]);
    assert_eq!(drained.status.code(), Some(0), "{drained:?}");
    let report = scene.verify();
    report.check(PLAN.totals(4_000));
    assert_eq!((report.total("absent"), report.total("gaps")), (0, 0));
}

/// Its drained segments are looked into one by one, and a failover has taken back what was drained from them.
#[test]
fn a_process_that_starts_again_takes_back_nothing_that_it_told() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "untold", 1);
    let scene = scene.set("SPOOL_SEGMENT_BYTES", "1MiB");
    scene.produce(&PLAN, 0, 1_000);
    let mut first = scene.daemon();
    scene.wait_until_read(1_000, Duration::from_secs(60));
    assert!(first.terminate(Duration::from_secs(15)).0.success());
    copy_database(&stack, &scene, 1);
    first = scene.daemon();
    wait_until(&first, "live", 1);
    let instance = first.status().unwrap()["instance"].as_str().unwrap().to_owned();
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 1_000, 10_000);
    wait_until(&first, "spooling", 1);
    wait_for("the spool holds what came", Duration::from_secs(60), || held_count(&scene, &dir) >= 9_000);
    stack.run(&["start", "postgres"]);
    scene.wait_until_read(10_000, Duration::from_secs(120));
    check_drained(&scene, &first, &dir);
    assert!(first.terminate(Duration::from_secs(15)).0.success());
    scene.delete_records(0, -1);
    // The standby had got what was told when the outage ended, and not yet the position that followed.
    fail_over(&stack, &scene, 0);
    scene.sql(&format!(
        "INSERT INTO audit_events.spool_ranges (instance_id, stream_id, partition, start_offset, end_offset) \
         SELECT '{instance}', stream_id, partition, next_offset, next_offset + 9000 FROM audit_events.consumer_offsets"
    ));
    let mut second = scene.daemon_with(&[("SPOOL_DIR", "off"), ("GAP_WAIT_MS", "12000")]);
    second.wait_for_hold("records_deleted");
    // The gap is overdue, and only what is told keeps it from being declared.
    std::thread::sleep(Duration::from_secs(15));
    let mut first = scene.daemon();
    scene.wait_until_read(10_000, Duration::from_secs(120));
    check_drained(&scene, &first, &dir);
    for daemon in [&mut first, &mut second] {
        assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    }
    let report = scene.verify();
    report.check(PLAN.totals(10_000));
    assert_eq!((report.total("absent"), report.total("gaps")), (0, 0));
}

#[test]
fn files_that_may_not_grow_pause_and_drop_nothing() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "filesize", 2);
    scene.produce(&PLAN, 0, 1_000);
    // In blocks of 1,024 bytes: the log, which the daemon writes too, is smaller.
    let mut daemon = scene.daemon_limited("ulimit -f 256");
    scene.wait_until_read(1_000, Duration::from_secs(60));
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 1_000, 20_000);
    wait_for("it says that it takes nothing", Duration::from_secs(60), || {
        daemon.get("/readyz").is_some_and(|(_, body)| body.contains("the spool takes nothing"))
    });
    assert_eq!(daemon.get("/livez").unwrap().0, 200, "polling goes on");
    stack.run(&["start", "postgres"]);
    scene.wait_until_read(20_000, Duration::from_secs(120));
    check_drained(&scene, &daemon, &dir);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(20_000));
}

#[test]
fn the_seconds_to_a_full_spool_are_told() {
    let stack = Stack::private();
    let (scene, _dir) = scene(&stack, "fullin", 1);
    let daemon = scene.daemon();
    wait_for("it runs", Duration::from_secs(30), || daemon.partition_count() == 1);
    assert!(full_in(&daemon).is_infinite(), "it does not grow");
    stack.run(&["stop", "postgres", "immediate"]);
    let mut produced = 0;
    wait_for("it grows, and has an end", Duration::from_secs(60), || {
        scene.produce(&PLAN, produced, produced + 500);
        produced += 500;
        full_in(&daemon).is_finite()
    });
    assert!(full_in(&daemon) > 0.0);
    stack.run(&["start", "postgres"]);
}

fn full_in(daemon: &Daemon) -> f64 {
    let metrics = daemon.get("/metrics").unwrap().1;
    let line =
        metrics.lines().find(|line| line.starts_with("audit_consumer_spool_full_in_seconds ")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}
