//! Day files that were there before, grew for long, or were put away.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::{Follower, check_union, event, orphan_count, scene, wait_until_written};
use crate::scene::{Scene, wait_for};

/// Events of 2026-03-01, numbered from `start` on.
fn produce(scene: &Scene, start: usize, end: usize) {
    let payloads: Vec<_> = (start..end).map(|index| event(index, "2026-03-01T12:00:00Z", true)).collect();
    scene.send_all(&payloads);
    scene.wait_until_read(u64::try_from(end).unwrap(), Duration::from_secs(60));
}

#[test]
fn day_files_of_another_program_are_left_alone() {
    let (scene, folder) = scene("projectforeign", 1);
    let homes = [folder.join("a")];
    let (theirs, away) = (homes[0].join("purview/audit_20260301.jsonl"), folder.join("theirs"));
    std::fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    std::fs::write(&theirs, "theirs\n").unwrap();
    let mut daemon = scene.daemon();
    produce(&scene, 0, 100);
    wait_for("it says so", Duration::from_secs(30), || {
        daemon.log_text().contains("purview/audit_20260301.jsonl in it is a day file of another program")
    });
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "theirs\n");
    assert!(!homes[0].join("INSTANCE").try_exists().unwrap() && orphan_count(&folder) == 0);
    std::fs::rename(&theirs, &away).unwrap();
    wait_until_written(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert_eq!(check_union(&scene, &homes), 200);
    scene.verify();
}

#[test]
fn a_file_that_was_put_away_stays_away_and_late_events_begin_another() {
    let (scene, folder) = scene("projectarchive", 1);
    let homes = [folder.join("a")];
    let path = homes[0].join("purview/audit_20260301.jsonl");
    let mut daemon = scene.daemon();
    produce(&scene, 0, 100);
    wait_until_written(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.sql("UPDATE audit_events.projection_segments SET created_at = now() - interval '8 days'");
    let follower = Follower::start(&homes);
    daemon = scene.daemon();
    // It has seen the file before that goes.
    wait_for("it has begun", Duration::from_secs(30), || {
        let running = "SELECT count(*) FROM audit_events.projection_instances WHERE begun_at > \
             (SELECT max(intended_at) FROM audit_events.projection_instances)";
        scene.number(running) == 2
    });
    std::thread::sleep(Duration::from_secs(2));
    let first = std::fs::read_to_string(&path).unwrap();
    assert_eq!(first.lines().count(), 100);
    let archive = folder.join("archived");
    std::fs::rename(&path, &archive).unwrap();
    produce(&scene, 100, 150);
    wait_until_written(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert!(!path.try_exists().unwrap(), "it is not written again");
    let second = std::fs::read_to_string(homes[0].join("purview/audit_20260301.1.jsonl")).unwrap();
    assert_eq!(second.lines().count(), 50);
    std::fs::rename(&archive, &path).unwrap();
    assert_eq!(check_union(&scene, &homes), 300);
    follower.finish().check_seen_once(&scene);
    scene.verify();
}

#[test]
fn many_small_records_of_a_file_become_one() {
    const COUNT: usize = 600;
    let (scene, folder) = scene("projectmerge", 3);
    let homes = [folder.join("a")];
    let mut daemon = scene.daemon();
    produce(&scene, 0, COUNT);
    wait_until_written(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    // As if each line had been an intent.
    let ids: HashMap<String, String> = scene
        .sql("SELECT audit_id || ' ' || format('%s,%s', source_partition, source_offset) FROM audit_events.events")
        .lines()
        .map(|line| line.split_once(' ').map(|(id, place)| (id.to_owned(), place.to_owned())).unwrap())
        .collect();
    let text = std::fs::read_to_string(homes[0].join("trust/trust_20260301.jsonl")).unwrap();
    let (mut at, mut values) = (0, Vec::new());
    for line in text.split_inclusive('\n') {
        let value: Value = serde_json::from_str(line).unwrap();
        let place = &ids[value["audit_id"].as_str().unwrap()];
        values.push(format!("({at}, {}, {place})", at + line.len()));
        at += line.len();
    }
    assert_eq!(values.len(), COUNT);
    scene.sql(&format!(
        "BEGIN; CREATE TEMP TABLE old ON COMMIT DROP AS SELECT DISTINCT ON (sink) * FROM audit_events.projection_segments \
           WHERE sink = 'trust'; \
         DELETE FROM audit_events.projection_segments WHERE sink = 'trust'; \
         INSERT INTO audit_events.projection_segments (sink, instance_id, file_name, start_len_bytes, end_len_bytes, line_count, \
                intent, rules, stream_ids, partitions, start_offsets, end_offsets) \
         SELECT sink, instance_id, file_name, v.a, v.b, 1, intent, rules, ARRAY[stream_ids[1]], ARRAY[v.p], ARRAY[v.o], \
                ARRAY[v.o + 1] FROM old, (VALUES {}) AS v (a, b, p, o); COMMIT",
        values.join(", ")
    ));
    let records = "SELECT count(*) FROM audit_events.projection_segments WHERE sink = 'trust'";
    assert_eq!(scene.number(records), 600);
    scene.verify();
    let mut daemon = scene.daemon();
    wait_for("they are one", Duration::from_secs(40), || scene.number(records) == 1);
    produce(&scene, COUNT, COUNT + 10);
    wait_until_written(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert_eq!(check_union(&scene, &homes), 2 * (COUNT + 10));
    assert_eq!(orphan_count(&folder), 0);
    scene.verify();
}
