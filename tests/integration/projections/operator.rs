//! Settings that change, failovers, copies, and instances that never return.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{
    Follower, MIDNIGHT, check_equal, check_union, ended_by_kill, event, exported, lines, orphan_count, scene,
    wait_until_written,
};
use crate::scene::{Scene, wait_for};

const TABLES: [&str; 3] = ["projection_cursors", "projection_instances", "projection_segments"];

#[test]
fn an_intent_is_finished_under_the_settings_by_which_it_was_made() {
    let (scene, folder) = scene("projectrules", 2);
    let scene = scene.set("KAFKA_INSTANCE_ID", "only");
    let homes = [folder.join("a")];
    scene.produce(&MIDNIGHT, 0, 1_000);
    ended_by_kill(&mut scene.daemon_with(&[("FAILPOINTS", "project_in_write=return"), ("TRUST_LOG", "off")]));
    let old = exported(&scene, "purview");
    let scene = scene.set("PURVIEW_DOMAIN", "example.com").set("PURVIEW_IDENTITY", "object");
    let mut daemon = scene.daemon();
    scene.wait_until_read(1_000, Duration::from_secs(60));
    wait_until_written(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let new = exported(&scene, "purview");
    let found = lines(&homes, "purview");
    let of = |lines: &[String]| found.iter().filter(|line| lines.contains(line)).count();
    assert_eq!(of(&old) + of(&new), new.len());
    assert!(of(&old) > 0, "none was written under the old settings");
    assert_eq!(orphan_count(&folder), 0);
    scene.verify();
}

fn save(scene: &Scene) {
    for table in TABLES {
        scene.sql(&format!("CREATE TABLE public.{table} AS SELECT * FROM audit_events.{table}"));
    }
}

/// As an asynchronous failover to a standby that had not more: all at once, or a running process sees a cursor that
/// went back beside an intent that did not, which no failover gives.
fn restore(scene: &Scene) {
    let table_sql = |table| {
        format!(
            "DELETE FROM audit_events.{table}; INSERT INTO audit_events.{table} SELECT * FROM public.{table};"
        )
    };
    scene.sql(&format!("BEGIN; {} COMMIT", TABLES.map(table_sql).concat()));
}

#[test]
fn a_failover_that_loses_intents_repeats_no_line() {
    let (scene, folder) = scene("projectlost", 1);
    let homes = [folder.join("a")];
    let follower = Follower::start(&homes);
    let mut daemon = scene.daemon();
    let mut produced_count = 0;
    let mut more = |count: u64| {
        scene.produce(&MIDNIGHT, produced_count, produced_count + count);
        produced_count += count;
        scene.wait_until_read(produced_count, Duration::from_secs(60));
        wait_until_written(&scene, Duration::from_secs(60));
    };
    more(1_000);
    save(&scene);
    more(1_500);
    // Under a running process, which finds its numbers changed.
    restore(&scene);
    more(1_500);
    assert!(daemon.log_text().contains("has changed; reading it again"), "{}", daemon.log_text());
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    // And while it is away.
    restore(&scene);
    daemon = scene.daemon();
    more(500);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    check_union(&scene, &homes);
    follower.finish().check_seen_once(&scene);
    assert_eq!(orphan_count(&folder), 0);
    scene.verify();
}

#[test]
fn what_an_instance_left_that_never_returns_is_adopted_once() {
    let (scene, folder) = scene("projectadopt", 3);
    let homes = ["a", "b"].map(|name| folder.join(name));
    scene.produce(&MIDNIGHT, 0, 3_000);
    ended_by_kill(
        &mut scene.daemon_with(&[("FAILPOINTS", "project_after_intent=return"), ("TRUST_LOG", "off")]),
    );
    let mut daemon = scene.daemon_with(&[("LOG_DIR", homes[1].to_str().unwrap())]);
    scene.wait_until_read(3_000, Duration::from_secs(60));
    let list: Value = serde_json::from_str(&scene.done(&["projections", "list", "--json"])).unwrap();
    let instances = list["instances"].as_array().unwrap();
    let away = instances.iter().find(|instance| instance["running"] == false).unwrap();
    assert!(
        away["intended"] != away["confirmed"] && list["cursors"].as_array().unwrap().len() >= 3,
        "{list:#}"
    );
    let instance = away["instance"].as_str().unwrap().to_owned();
    let open = list["files"].as_array().unwrap().iter().find(|file| file["instance"] == *instance).unwrap();
    assert!(open["bytes"].as_u64() > Some(0) && open["confirmed_bytes"] == 0, "{list:#}");
    let table = scene.done(&["projections", "list"]);
    assert!(table.contains("away, has an open intent") && table.contains("runs"), "{table}");
    let said =
        scene.done(&["projections", "adopt", &instance, "--reason", "its disk is lost", "--actor", "ann"]);
    assert!(said.contains("ranges are pending") && said.contains("within seconds"), "{said}");
    wait_until_written(&scene, Duration::from_secs(60));
    check_union(&scene, &homes);
    let recorded = scene.sql("SELECT actor || ': ' || reason FROM audit_events.projection_actions");
    assert_eq!(recorded, "ann: its disk is lost");
    let again = scene.command(&["projections", "adopt", &instance, "--reason", "again"]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    let running = scene
        .sql("SELECT instance_id FROM audit_events.projection_instances WHERE run_id IS NOT NULL LIMIT 1");
    let alive = scene.command(&["projections", "adopt", &running, "--reason", "by mistake"]);
    assert_eq!(alive.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&alive.stdout).contains("the instance runs"), "{alive:?}");
    let unknown =
        scene.command(&["projections", "adopt", "00000000-0000-0000-0000-000000000001", "--reason", "x"]);
    assert!(
        unknown.status.code() == Some(1)
            && String::from_utf8_lossy(&unknown.stdout).contains("there is no instance")
    );
    // It returns all the same, and takes part.
    let mut returned = scene.daemon();
    wait_for("they share", Duration::from_secs(40), || returned.partition_count() > 0);
    scene.produce(&MIDNIGHT, 3_000, 6_000);
    scene.wait_until_read(6_000, Duration::from_secs(60));
    wait_until_written(&scene, Duration::from_secs(60));
    for daemon in [&mut daemon, &mut returned] {
        assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    }
    check_union(&scene, &homes);
    scene.verify();
}

/// What was filled of a gap may be written before the cursor comes there.
#[test]
fn lines_and_rows_agree_while_a_sink_catches_up_over_a_filled_gap() {
    let (scene, folder) = scene("projectfilled", 1);
    let scene = scene.set("KAFKA_INSTANCE_ID", "only");
    let homes = [folder.join("a")];
    let events = |start: usize, end: usize| -> Vec<Option<Vec<u8>>> {
        (start..end).map(|index| event(index, "2026-03-01T12:00:00Z", true)).collect()
    };
    scene.send_all(&events(0, 100));
    let mut daemon = scene.daemon();
    scene.wait_until_read(100, Duration::from_secs(60));
    wait_until_written(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.send_all(&events(100, 300));
    let mut daemon = scene.daemon_with(&[("PURVIEW_LOG", "off"), ("TRUST_LOG", "off")]);
    scene.wait_until_read(300, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    // As if some of that had been a gap, and was filled.
    scene.sql(
        "INSERT INTO audit_events.offset_gaps (group_id, stream_id, partition, start_offset, end_offset, reason, \
                declared_by, closed_at) \
         SELECT group_id, stream_id, partition, 200, 250, 'a test', 'me', now() FROM audit_events.consumer_offsets; \
         INSERT INTO audit_events.projection_pending (sink, stream_id, partition, start_offset, end_offset, cause) \
         SELECT s, stream_id, partition, 200, 250, 'gap_filled' FROM audit_events.consumer_offsets, \
                unnest(ARRAY['purview', 'trust']) AS s",
    );
    scene.verify();
    // It dies when the pending range is taken, and before the cursor has passed it.
    let points = "project_before_intent=1*off->return";
    ended_by_kill(&mut scene.daemon_with(&[("FAILPOINTS", points), ("TRUST_LOG", "off")]));
    let state = "SELECT (SELECT count(*) FROM audit_events.projection_pending WHERE sink = 'purview'), next_offset < 250 \
                   FROM audit_events.projection_cursors WHERE sink = 'purview'";
    assert_eq!(scene.sql(state), "0|t");
    scene.verify();
    let mut daemon = scene.daemon();
    wait_until_written(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert_eq!(check_union(&scene, &homes), 600);
    scene.verify();
}

#[test]
fn two_processes_do_not_share_a_directory_and_a_copy_of_one_is_found_out() {
    let (scene, folder) = scene("projectcopy", 2);
    // What the one that stops leaves is written by the other soon.
    let scene = scene.set("PROJECT_LAG_MAX_MS", "0");
    let first = scene.daemon();
    let instance = folder.join("a/INSTANCE");
    wait_for("it began", Duration::from_secs(30), || {
        instance.try_exists().unwrap()
            && scene.number("SELECT count(*) FROM audit_events.projection_instances") == 2
    });
    let mut second = scene.daemon();
    assert_eq!(second.wait_for_end(Duration::from_secs(20)).code(), Some(1));
    let said = second.log_text();
    assert!(said.contains("is in use by process") && said.contains("LOG_DIR"), "{said}");
    // A copy has no lock in common.
    std::fs::create_dir_all(folder.join("b")).unwrap();
    std::fs::copy(instance, folder.join("b/INSTANCE")).unwrap();
    let copy = scene.daemon_with(&[("LOG_DIR", folder.join("b").to_str().unwrap())]);
    scene.produce(&MIDNIGHT, 0, 1_000);
    scene.wait_until_read(1_000, Duration::from_secs(60));
    wait_for("one of them stops writing", Duration::from_secs(60), || {
        [&first, &copy].iter().any(|daemon| daemon.log_text().contains("writes day files for instance"))
    });
    wait_until_written(&scene, Duration::from_secs(60));
    let homes = ["a", "b"].map(|name| Path::new(&folder).join(name));
    for sink in ["purview", "trust"] {
        let mut found = lines(&homes, sink);
        found.sort();
        check_equal(&found, &exported(&scene, sink), sink);
    }
}
