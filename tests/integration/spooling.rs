//! Outages of PostgreSQL that last: records go to the spool, and from there to PostgreSQL. On a stack of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::account::PLAN;
use crate::scene::{Daemon, Scene, Stack, is_full, scaled, wait_for};

/// A scene with a spool directory, which takes over soon.
pub(crate) fn scene(stack: &Stack, name: &str, partition_count: i32) -> (Scene, PathBuf) {
    let scene = Scene::on(stack, name, partition_count).set("SPOOL_AFTER_MS", "1000");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("spool").join(&scene.name);
    let scene = scene.set("SPOOL_DIR", dir.to_str().unwrap()).set("SPOOL_MIN_FREE_BYTES", "1MiB");
    (scene, dir)
}

pub(crate) fn modes(daemon: &Daemon) -> Vec<String> {
    let status = daemon.status().unwrap_or_default();
    let partitions = status["partitions"].as_array().cloned().unwrap_or_default();
    partitions.iter().map(|partition| partition["mode"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
pub(crate) fn wait_until(daemon: &Daemon, mode: &str, partition_count: usize) {
    wait_for(&format!("{partition_count} partitions {mode}"), Duration::from_secs(60), || {
        let modes = modes(daemon);
        modes.len() == partition_count && modes.iter().all(|other| other == mode)
    });
}

/// How many records the spool in `dir` holds, by its own command.
pub(crate) fn held_count(scene: &Scene, dir: &Path) -> u64 {
    let output = scene.command(&["spool", "list", "--json", "--dir", dir.to_str().unwrap()]);
    let Ok(list) = serde_json::from_slice::<Value>(&output.stdout) else { return 0 };
    let segments = list["segments"].as_array().unwrap().clone();
    let held = segments.iter().filter(|segment| segment["state"] == "held");
    held.map(|segment| segment["records"].as_u64().unwrap()).sum()
}

#[track_caller]
pub(crate) fn check_drained(scene: &Scene, daemon: &Daemon, dir: &Path) {
    wait_for("nothing undrained is left", Duration::from_secs(60), || {
        daemon.status().is_some_and(|status| status["spool"]["records"] == 0)
    });
    wait_for("no range is published", Duration::from_secs(30), || {
        scene.number("SELECT count(*) FROM audit_events.spool_ranges") == 0
    });
    scene.done(&["spool", "verify", "--dir", dir.to_str().unwrap()]);
}

#[test]
fn an_outage_is_spooled_and_drained_with_crashes_in_between() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "spooled", 6);
    let scene = scene.set("KAFKA_INSTANCE_ID", "only");
    let outages: &[u64] = if is_full() { &[5, 60, 600] } else { &[5, 30] };
    let mut daemon = scene.daemon();
    let mut produced_count = 0;
    let mut produce = |record_count: u64| {
        scene.produce(&PLAN, produced_count, produced_count + record_count);
        produced_count += record_count;
        produced_count
    };
    for seconds in outages {
        let before = produce(20_000);
        scene.wait_until_read(before, Duration::from_secs(120));
        stack.run(&["stop", "postgres", "immediate"]);
        produce(10_000);
        wait_until(&daemon, "spooling", 6);
        let (code, body) = daemon.get("/readyz").unwrap();
        assert!(code == 200 && body.contains("records go to the spool"), "{code} {body}");
        wait_for("the spool holds what came", Duration::from_secs(60), || held_count(&scene, &dir) >= 10_000);
        // A crash within the outage: it goes on from its own spool.
        daemon.kill();
        daemon = scene.daemon();
        wait_until(&daemon, "spooling", 6);
        produce(10_000);
        wait_for("the spool holds that, too", Duration::from_secs(60), || held_count(&scene, &dir) >= 20_000);
        std::thread::sleep(Duration::from_secs(*seconds));
        stack.run(&["start", "postgres"]);
        // And one while it drains, or just before.
        std::thread::sleep(Duration::from_millis(1_500));
        daemon.kill();
        daemon = scene.daemon();
        let stored = produce(5_000);
        scene.wait_until_read(stored, Duration::from_secs(120));
        wait_until(&daemon, "live", 6);
        check_drained(&scene, &daemon, &dir);
    }
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(produced_count));
    assert!(scene.number("SELECT sum(events) FROM audit_events.consumer_offsets") > 0);
}

#[test]
fn what_kafka_deleted_during_an_outage_comes_from_the_spool() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "spoolonly", 2);
    scene.produce(&PLAN, 0, 4_000);
    let mut daemon = scene.daemon();
    scene.wait_until_read(4_000, Duration::from_secs(60));
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 4_000, 12_000);
    wait_until(&daemon, "spooling", 2);
    wait_for("the spool holds what came", Duration::from_secs(60), || held_count(&scene, &dir) >= 8_000);
    // Retention runs out behind the outage: only the spool has them now.
    for partition in 0..2 {
        scene.delete_records(partition, -1);
    }
    daemon.kill();
    stack.run(&["start", "postgres"]);
    daemon = scene.daemon();
    scene.wait_until_read(12_000, Duration::from_secs(120));
    wait_until(&daemon, "live", 2);
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.offset_gaps"), 0);
    check_drained(&scene, &daemon, &dir);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let report = scene.verify();
    report.check(PLAN.totals(12_000));
    assert_eq!(report.total("absent"), 0);
}

#[test]
fn a_daemon_that_starts_in_an_outage_goes_on_from_the_mirror_and_never_guesses() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "spoolstart", 3);
    scene.produce(&PLAN, 0, 3_000);
    stack.run(&["stop", "postgres", "immediate"]);
    // Nobody knows a position: nothing is read.
    let daemon = scene.daemon();
    daemon.wait_for_hold("database_unavailable");
    wait_for("it says why", Duration::from_secs(30), || {
        daemon.get("/readyz").is_some_and(|(_, body)| body.contains("it is not guessed"))
    });
    assert_eq!(daemon.partition_count(), 0);
    stack.run(&["start", "postgres"]);
    scene.wait_until_read(3_000, Duration::from_secs(60));
    wait_for("the mirror", Duration::from_secs(30), || scene.mirrored_count() == 3_000);
    daemon.kill();
    // Now Kafka's group tells one; the spool of the one before is gone with its disk.
    if dir.try_exists().unwrap() {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 3_000, 5_000);
    let mut daemon = scene.daemon();
    wait_until(&daemon, "spooling", 3);
    wait_for("the spool holds what is new", Duration::from_secs(60), || held_count(&scene, &dir) == 2_000);
    stack.run(&["start", "postgres"]);
    scene.wait_until_read(5_000, Duration::from_secs(60));
    check_drained(&scene, &daemon, &dir);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(5_000));
}

#[test]
fn two_instances_share_an_outage_and_nothing_is_stored_twice() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "spooltwo", 4);
    let dirs = ["a", "b"].map(|name| dir.join(name).to_str().unwrap().to_owned());
    let start = |index: usize| scene.daemon_with(&[("SPOOL_DIR", dirs[index].as_str())]);
    let mut daemons = vec![start(0), start(1)];
    scene.produce(&PLAN, 0, 8_000);
    scene.wait_until_read(8_000, Duration::from_secs(60));
    let record_count = scaled(16_000, 60_000);
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 8_000, record_count / 2);
    wait_for("all spool", Duration::from_secs(60), || {
        daemons.iter().flat_map(modes).filter(|mode| mode == "spooling").count() == 4
    });
    // One dies, and the other takes its partitions over, from the mirror: both spools hold some of the same records.
    daemons.remove(0).kill();
    wait_for("the other spools them", Duration::from_secs(60), || modes(&daemons[0]).len() == 4);
    scene.produce(&PLAN, record_count / 2, record_count);
    daemons.push(start(0));
    std::thread::sleep(Duration::from_secs(3));
    stack.run(&["start", "postgres"]);
    scene.wait_until_read(record_count, Duration::from_secs(120));
    // The one that was started again stands last.
    for (daemon, dir) in daemons.iter().zip([&dirs[1], &dirs[0]]) {
        check_drained(&scene, daemon, Path::new(dir));
    }
    for daemon in &mut daemons {
        assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    }
    scene.verify().check(PLAN.totals(record_count));
}

#[test]
fn a_full_spool_pauses_and_drops_nothing() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "spoolfull", 2);
    let scene = scene.set("SPOOL_MAX_BYTES", "3MiB").set("SPOOL_SEGMENT_BYTES", "1MiB");
    scene.produce(&PLAN, 0, 1_000);
    let mut daemon = scene.daemon();
    scene.wait_until_read(1_000, Duration::from_secs(60));
    stack.run(&["stop", "postgres", "immediate"]);
    scene.produce(&PLAN, 1_000, 20_000);
    let says_full =
        || daemon.get("/readyz").is_some_and(|(_, body)| body.contains("the spool takes nothing"));
    wait_for("it is full", Duration::from_secs(60), says_full);
    assert!(daemon.get("/metrics").unwrap().1.contains("audit_consumer_spool_stuck 1"));
    assert_eq!(daemon.get("/livez").unwrap().0, 200, "polling goes on");
    stack.run(&["start", "postgres"]);
    scene.wait_until_read(20_000, Duration::from_secs(120));
    check_drained(&scene, &daemon, &dir);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(20_000));
}

#[test]
fn two_processes_do_not_share_a_spool() {
    let stack = Stack::private();
    let (scene, _) = scene(&stack, "spoollock", 1);
    let first = scene.daemon();
    wait_for("it runs", Duration::from_secs(30), || first.status().is_some());
    let mut second = scene.daemon();
    let status = second.wait_for_end(Duration::from_secs(20));
    assert_eq!(status.code(), Some(1));
    let said = second.log_text();
    assert!(said.contains("is in use by process") && said.contains("SPOOL_DIR"), "{said}");
}
