//! Day files: each event in one file of one instance, once, whatever is killed when.

mod disk;
mod follower;
mod old;
mod operator;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_consumer::model::sample::SamplePlan;
use serde_json::Value;

use self::follower::Follower;
use crate::account::PLAN;
use crate::scene::{Daemon, Scene, Stack, scaled, wait_for};

/// Two seconds before midnight; a record is a millisecond.
const MIDNIGHT: SamplePlan = SamplePlan { start_unix_micros: 1_793_059_200_000_000 - 2_000_000, ..PLAN };

/// Sinks with the form of their lines and the key of the time.
const SINKS: [(&str, &str); 2] = [("purview", "time"), ("trust", "timestamp")];

/// A scene that writes day files, and a folder for directories.
fn scene_on(scene: Scene) -> (Scene, PathBuf) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dayfiles").join(&scene.name);
    if folder.try_exists().unwrap() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    std::fs::create_dir_all(&folder).unwrap();
    let scene = scene.set("PURVIEW_LOG", "on").set("TRUST_LOG", "on");
    let home = folder.join("a");
    (scene.set("LOG_DIR", home.to_str().unwrap()), folder)
}

fn scene(name: &str, partition_count: i32) -> (Scene, PathBuf) {
    scene_on(Scene::new(name, partition_count))
}

/// The day files of a sink in some directories.
fn files(homes: &[PathBuf], sink: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for home in homes {
        let Ok(entries) = std::fs::read_dir(home.join(sink)) else { continue };
        let paths = entries.map(|entry| entry.unwrap().path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl")));
    }
    found.sort();
    found
}

fn lines(homes: &[PathBuf], sink: &str) -> Vec<String> {
    let texts = files(homes, sink).into_iter().map(|path| std::fs::read_to_string(path).unwrap());
    texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Waits until every event is written and confirmed by somebody.
#[track_caller]
fn wait_until_written(scene: &Scene, patience: Duration) {
    let missing = "SELECT (SELECT count(*) FROM audit_events.consumer_offsets AS o \
          CROSS JOIN unnest(ARRAY['purview', 'trust']) AS s (sink) \
           LEFT JOIN audit_events.projection_cursors AS c USING (sink, stream_id, partition) \
          WHERE c.next_offset IS DISTINCT FROM o.next_offset) \
        + (SELECT count(*) FROM audit_events.projection_instances WHERE intended <> confirmed) \
        + (SELECT count(*) FROM audit_events.projection_pending)";
    wait_for("day files are written", patience, || scene.number(missing) == 0);
}

/// The line of each row, by `export`.
fn exported(scene: &Scene, sink: &str) -> Vec<String> {
    let mut lines: Vec<String> = scene.done(&["export", sink]).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Asserts that the files of all directories together hold the line of each row once, each in the file of its day, valid
/// by its schema; returns how many lines there are.
#[track_caller]
fn check_union(scene: &Scene, homes: &[PathBuf]) -> usize {
    let mut count = 0;
    for (sink, time) in SINKS {
        let expect = exported(scene, sink);
        let mut found = lines(homes, sink);
        found.sort();
        check_equal(&found, &expect, sink);
        count += found.len();
        let validator = crate::export::validator(&format!("{sink}-log.schema.json"));
        for path in files(homes, sink) {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            for line in std::fs::read_to_string(&path).unwrap().lines() {
                let value: Value = serde_json::from_str(line).unwrap();
                assert!(validator.is_valid(&value), "{sink}: {line}");
                let day = value[time].as_str().unwrap()[..10].replace('-', "");
                assert!(name.contains(&day), "{name} has a line of {day}");
            }
        }
    }
    count
}

#[track_caller]
fn check_equal(found: &[String], expect: &[String], what: &str) {
    if found == expect {
        return;
    }
    let count = |lines: &[String]| {
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        lines.iter().for_each(|line| *counts.entry(line.clone()).or_default() += 1);
        counts
    };
    let (found_counts, expect_counts) = (count(found), count(expect));
    let keys: BTreeSet<&String> = found_counts.keys().chain(expect_counts.keys()).collect();
    let of = |counts: &BTreeMap<String, i64>, key: &String| counts.get(key).copied().unwrap_or(0);
    let differ: Vec<String> = keys
        .into_iter()
        .filter(|key| of(&found_counts, key) != of(&expect_counts, key))
        .map(|key| format!("{} instead of {}: {key}", of(&found_counts, key), of(&expect_counts, key)))
        .collect();
    panic!(
        "{what}: {} lines for {} rows; {} differ, such as {:?}",
        found.len(),
        expect.len(),
        differ.len(),
        differ.first()
    );
}

fn ended_by_kill(daemon: &mut Daemon) {
    let status = daemon.wait_for_end(Duration::from_secs(40));
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{}", daemon.log_text());
}

/// Every step of the projector at which the process is killed.
const KILL_POINTS: [&str; 7] = [
    "project_before_intent",
    "project_after_intent",
    "project_in_write",
    "project_after_write",
    "project_after_sync",
    "project_before_confirm",
    "project_after_confirm",
];

#[test]
fn a_projector_that_is_killed_at_every_step_writes_each_line_once() {
    let (scene, folder) = scene("projectkill", 6);
    // A static member that comes back has its partitions at once.
    let scene = scene.set("KAFKA_INSTANCE_ID", "only");
    let homes = [folder.join("a")];
    let follower = Follower::start(&homes);
    let (round_count, record_count) = (scaled(2, 12), scaled(400, 1_200));
    let mut produced_count = 0;
    for round in 0..round_count {
        for point in KILL_POINTS {
            scene.produce(&MIDNIGHT, produced_count, produced_count + record_count);
            produced_count += record_count;
            // In some rounds at a later time than the first.
            let skip = if round % 2 == 1 && point == "project_in_write" { "1*off->" } else { "" };
            ended_by_kill(&mut scene.daemon_with(&[("FAILPOINTS", &format!("{point}={skip}return"))]));
        }
    }
    let mut daemon = scene.daemon();
    scene.wait_until_read(produced_count, Duration::from_secs(120));
    wait_until_written(&scene, Duration::from_secs(60));
    let metrics = daemon.get("/metrics").unwrap().1;
    assert!(metrics.contains("audit_consumer_projection_lines_total{sink=\"purview\"}"), "{metrics}");
    assert!(metrics.contains("audit_consumer_projection_stuck{sink=\"trust\"} 0"), "{metrics}");
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let line_count = check_union(&scene, &homes);
    follower.finish().check_seen_once(&scene);
    assert_eq!(line_count / 2, usize::try_from(MIDNIGHT.totals(produced_count).events).unwrap());
    scene.verify().check(MIDNIGHT.totals(produced_count));
    assert_eq!(orphan_count(&folder), 0, "the process died, the disk did not");
}

fn orphan_count(folder: &Path) -> usize {
    let mut count = 0;
    for home in std::fs::read_dir(folder).unwrap() {
        for sink in ["purview", "trust"] {
            let Ok(entries) = std::fs::read_dir(home.as_ref().unwrap().path().join(sink)) else { continue };
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            count += names.filter(|name| name.ends_with(".orphan")).count();
        }
    }
    count
}

#[test]
fn instances_that_come_and_go_write_each_line_once() {
    let (scene, folder) = scene("projectmany", 12);
    let scene = scene.set("BATCH_MAX_EVENTS", "500");
    let homes = ["a", "b", "c"].map(|name| folder.join(name));
    let start = |index: usize| scene.daemon_with(&[("LOG_DIR", homes[index].to_str().unwrap())]);
    let follower = Follower::start(&homes);
    let part_count = scaled(5, 16);
    let record_count = part_count * 4_000;
    let mut last = None;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for part in 0..part_count {
                scene.produce(&MIDNIGHT, part * 4_000, (part + 1) * 4_000);
                std::thread::sleep(Duration::from_millis(1_500));
            }
        });
        let mut first = start(0);
        first.wait_until_reading(12);
        let second = start(1);
        wait_for("two share", Duration::from_secs(40), || second.partition_count() == 6);
        let third = start(2);
        wait_for("three share", Duration::from_secs(40), || third.partition_count() == 4);
        second.kill();
        assert!(first.terminate(Duration::from_secs(15)).0.success());
        wait_for("one is left", Duration::from_secs(40), || third.partition_count() == 12);
        scene.wait_until_read(record_count, Duration::from_secs(180));
        last = Some(third);
    });
    // What was left open by the one that was killed, it finishes.
    let mut daemons = [last.unwrap(), start(1)];
    wait_until_written(&scene, Duration::from_secs(90));
    for daemon in &mut daemons {
        assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    }
    check_union(&scene, &homes);
    follower.finish().check_seen_once(&scene);
    for home in &homes {
        assert!(!files(std::slice::from_ref(home), "purview").is_empty(), "{} took part", home.display());
        let settings = [("LOG_DIR", home.to_str().unwrap())];
        let report = scene.command_with(&["verify", "--json", "--no-kafka"], &settings);
        let report: Value = serde_json::from_slice(&report.stdout).unwrap();
        assert_eq!(report["projections"]["findings"], Value::Array(vec![]), "{report:#}");
        assert!(!report["projections"]["files"].as_array().unwrap().is_empty());
    }
    assert_eq!(orphan_count(&folder), 0);
}

#[test]
fn three_instances_are_killed_and_postgresql_crashes_and_each_line_is_written_once() {
    const ROUND: u64 = 5_000;
    let stack = Stack::private();
    let (scene, folder) = scene_on(Scene::on(&stack, "projectcrash", 6));
    // What the ones that are killed leave is written by others soon, too.
    let scene = scene.set("PROJECT_LAG_MAX_MS", "0");
    let homes = ["a", "b", "c"].map(|name| folder.join(name));
    let start = |index: usize| scene.daemon_with(&[("LOG_DIR", homes[index].to_str().unwrap())]);
    let follower = Follower::start(&homes);
    let mut daemons = [0, 1, 2].map(|index| Some(start(index)));
    let round_count = scaled(4, 20);
    for round in 0..round_count {
        scene.produce(&MIDNIGHT, round * ROUND, (round + 1) * ROUND);
        std::thread::sleep(Duration::from_secs(2));
        if round % 2 == 1 {
            stack.run(&["stop", "postgres", "immediate"]);
        }
        let index = usize::try_from(round).unwrap() % daemons.len();
        daemons[index].take().unwrap().kill();
        std::thread::sleep(Duration::from_secs(1));
        if round % 2 == 1 {
            stack.run(&["start", "postgres"]);
        }
        daemons[index] = Some(start(index));
    }
    scene.wait_until_read(round_count * ROUND, Duration::from_secs(180));
    wait_until_written(&scene, Duration::from_secs(180));
    for daemon in daemons.iter_mut().flatten() {
        assert!(daemon.terminate(Duration::from_secs(15)).0.success(), "{}", daemon.log_text());
    }
    check_union(&scene, &homes);
    follower.finish().check_seen_once(&scene);
    assert_eq!(orphan_count(&folder), 0);
    scene.verify().check(MIDNIGHT.totals(round_count * ROUND));
}

/// An event at a time of this text.
fn event(index: usize, time: &str, is_for_purview: bool) -> Option<Vec<u8>> {
    let id = format!("0189d2a4-0000-7000-8000-{index:012x}");
    let json = format!(
        r#"{{"audit_id":"{id}","correlation_id":"{id}","timestamp":"{time}","operation":"o","command":"c",
            "actor":"a","status":"Success","purview_compatible":{is_for_purview},"metadata":{{"i":{index}}}}}"#
    );
    Some(json.into_bytes())
}

#[test]
fn each_event_is_in_the_file_of_its_own_day_whenever_it_comes() {
    let (scene, folder) = scene("projectdays", 1);
    let homes = [folder.join("a")];
    let mut times: Vec<String> = [
        "2026-03-01T23:59:59.999999Z",
        "2026-03-02T00:00:00Z",
        "2026-03-02T00:30:00+01:00",
        "2026-03-01T23:30:00-01:00",
        "2026-03-01T23:59:59.9999999Z",
        "1970-01-01T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "2100-12-31T23:59:59Z",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
        "2024-02-29T12:00:00Z",
    ]
    .map(str::to_owned)
    .into();
    // More days than files are open at once, again and again.
    times.extend((0..200).map(|index| format!("2025-{:02}-{:02}T12:00:00Z", 1 + index % 12, 1 + index % 28)));
    let payloads: Vec<Option<Vec<u8>>> =
        times.iter().enumerate().map(|(index, time)| event(index, time, index % 3 > 0)).collect();
    scene.send_all(&payloads);
    let mut daemon = scene.daemon();
    scene.wait_until_read(u64::try_from(times.len()).unwrap(), Duration::from_secs(30));
    wait_until_written(&scene, Duration::from_secs(60));
    // Late ones.
    scene.send_all(&[event(900, "2026-03-01T00:00:00Z", true), event(901, "1970-01-01T10:00:00Z", true)]);
    scene.wait_until_read(u64::try_from(times.len()).unwrap() + 2, Duration::from_secs(30));
    wait_until_written(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    check_union(&scene, &homes);
    let count = |sink: &str, name: &str| {
        std::fs::read_to_string(homes[0].join(sink).join(name)).unwrap().lines().count()
    };
    assert_eq!(count("trust", "trust_20260301.jsonl"), 4, "three at midnight, one late");
    assert_eq!(count("trust", "trust_20260302.jsonl"), 2);
    assert_eq!(count("trust", "trust_19700101.jsonl"), 2);
    assert_eq!(count("trust", "trust_99991231.jsonl"), 1);
    let purview = lines(&homes, "purview").len();
    assert_eq!(
        u64::try_from(purview).unwrap(),
        scene.number("SELECT count(*) FROM audit_events.events WHERE purview_compatible")
    );
    assert!(purview < lines(&homes, "trust").len());
    scene.verify();
}
