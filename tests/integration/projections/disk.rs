//! Files that somebody cuts, removes or adds to; disks that take nothing.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use super::{Follower, MIDNIGHT, check_union, files, lines, orphan_count, scene, wait_until_written};
use crate::scene::{Daemon, Scene, wait_for};

/// The files of MIDNIGHT's two days.
const DAYS: [&str; 2] = ["20261026", "20261027"];

fn metric(daemon: &Daemon, line: &str) -> bool {
    daemon.get("/metrics").is_some_and(|(_, text)| text.contains(line))
}

#[track_caller]
fn produce_and_write(scene: &Scene, start: u64, end: u64) {
    scene.produce(&MIDNIGHT, start, end);
    scene.wait_until_read(end, Duration::from_secs(60));
    wait_until_written(scene, Duration::from_secs(60));
}

#[test]
fn a_disk_that_is_full_or_no_directory_stops_day_files_and_nothing_else() {
    let (scene, folder) = scene("projectfull", 3);
    let homes = [folder.join("a")];
    // Writing to this device finds no room. The other sink's folder is a file, and can't be made.
    std::fs::create_dir_all(homes[0].join("purview")).unwrap();
    std::fs::write(homes[0].join("INSTANCE"), "0190163d-8694-739b-aea5-966c26f8ad91\n").unwrap();
    let full = homes[0].join(format!("purview/audit_{}.jsonl", DAYS[1]));
    symlink("/dev/full", &full).unwrap();
    std::fs::write(homes[0].join("trust"), "no folder").unwrap();
    let mut daemon = scene.daemon();
    scene.produce(&MIDNIGHT, 0, 5_000);
    scene.wait_until_read(5_000, Duration::from_secs(60));
    for sink in ["purview", "trust"] {
        let stuck = format!("audit_consumer_projection_stuck{{sink=\"{sink}\"}} 1");
        wait_for("it says so", Duration::from_secs(30), || metric(&daemon, &stuck));
    }
    assert!(metric(&daemon, "projection_failures_total{class=\"full\",sink=\"purview\"}"));
    let (code, body) = daemon.get("/readyz").unwrap();
    assert!(code == 200 && body.contains("purview day files wait, records are stored"), "{code} {body}");
    // Ingestion goes on while they wait.
    scene.produce(&MIDNIGHT, 5_000, 8_000);
    scene.wait_until_read(8_000, Duration::from_secs(60));
    let warned = daemon.log_text().matches("day files wait; ingestion goes on").count();
    assert_eq!(warned, 2, "once for each sink");
    std::fs::remove_file(&full).unwrap();
    std::fs::remove_file(homes[0].join("trust")).unwrap();
    let follower = Follower::start(&homes);
    wait_until_written(&scene, Duration::from_secs(90));
    wait_for("all is well", Duration::from_secs(30), || {
        metric(&daemon, "audit_consumer_projection_stuck{sink=\"purview\"} 0")
            && metric(&daemon, "audit_consumer_projection_stuck{sink=\"trust\"} 0")
    });
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    check_union(&scene, &homes);
    follower.finish().check_seen_once(&scene);
    scene.verify().check(MIDNIGHT.totals(8_000));
}

#[test]
fn a_directory_that_can_not_be_made_stops_day_files_and_nothing_else() {
    let (scene, folder) = scene("projecthome", 2);
    let homes = [folder.join("a")];
    std::fs::write(&homes[0], "no directory").unwrap();
    let mut daemon = scene.daemon();
    scene.produce(&MIDNIGHT, 0, 3_000);
    scene.wait_until_read(3_000, Duration::from_secs(60));
    wait_for("it says so", Duration::from_secs(30), || {
        metric(&daemon, "audit_consumer_projection_stuck{sink=\"trust\"} 1")
    });
    // PostgreSQL may show the first commit before the daemon has heard of it.
    wait_for("it is ready", Duration::from_secs(30), || {
        daemon.get("/readyz").is_some_and(|(code, _)| code == 200)
    });
    assert!(daemon.log_text().contains("day files can't be written"), "{}", daemon.log_text());
    std::fs::remove_file(&homes[0]).unwrap();
    wait_until_written(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    check_union(&scene, &homes);
}

fn cut(path: &Path, len_bytes: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len_bytes).unwrap();
}

#[test]
fn files_that_were_cut_or_removed_are_written_again_byte_for_byte() {
    let (scene, folder) = scene("projectcut", 3);
    let homes = [folder.join("a")];
    let path = |day: &str| homes[0].join(format!("purview/audit_{day}.jsonl"));
    let mut daemon = scene.daemon();
    for part in 0..4 {
        produce_and_write(&scene, part * 1_000, (part + 1) * 1_000);
    }
    let before: Vec<Vec<u8>> = DAYS.map(|day| std::fs::read(path(day)).unwrap()).into();
    // While it runs: noticed when the next line goes there.
    std::fs::remove_file(path(DAYS[1])).unwrap();
    produce_and_write(&scene, 4_000, 5_000);
    let again = std::fs::read(path(DAYS[1])).unwrap();
    assert!(again.starts_with(&before[1]) && again.len() > before[1].len());
    cut(&path(DAYS[1]), 12_345);
    produce_and_write(&scene, 5_000, 6_000);
    assert!(std::fs::read(path(DAYS[1])).unwrap().starts_with(&again));
    assert!(metric(&daemon, "audit_consumer_projection_rebuilt_total{sink=\"purview\"} 2"));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let before: Vec<Vec<u8>> = DAYS.map(|day| std::fs::read(path(day)).unwrap()).into();
    // While it is away: `verify` says it, and the next start writes them.
    std::fs::remove_file(path(DAYS[0])).unwrap();
    cut(&path(DAYS[1]), 99);
    let report = scene.command(&["verify", "--no-kafka"]);
    let said = String::from_utf8_lossy(&report.stdout);
    assert_eq!(report.status.code(), Some(1), "{said}");
    assert!(said.contains("file_missing") && said.contains("the file ends early"), "{said}");
    let mut daemon = scene.daemon();
    wait_for("both are written again", Duration::from_secs(60), || {
        metric(&daemon, "audit_consumer_projection_rebuilt_total{sink=\"purview\"} 2")
    });
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let after: Vec<Vec<u8>> = DAYS.map(|day| std::fs::read(path(day)).unwrap()).into();
    assert!(before == after);
    check_union(&scene, &homes);
    assert_eq!(orphan_count(&folder), 0);
    scene.verify();
    // A changed byte.
    let mut bytes = std::fs::read(path(DAYS[0])).unwrap();
    bytes[500] ^= 1;
    std::fs::write(path(DAYS[0]), bytes).unwrap();
    let report = scene.command(&["verify", "--no-kafka"]);
    let said = String::from_utf8_lossy(&report.stdout);
    assert!(
        report.status.code() == Some(1) && said.contains("the lines are not those of the rows"),
        "{said}"
    );
}

#[test]
fn what_stands_in_the_way_is_orphaned_and_not_lost() {
    let (scene, folder) = scene("projectorphan", 2);
    let homes = [folder.join("a")];
    let path = homes[0].join(format!("trust/trust_{}.jsonl", DAYS[1]));
    let mut daemon = scene.daemon();
    produce_and_write(&scene, 0, 4_000);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"what\":\"is this\"}\n{\"half\":").unwrap();
    let report = scene.command(&["verify", "--no-kafka"]);
    let said = String::from_utf8_lossy(&report.stdout);
    assert!(report.status.code() == Some(1) && said.contains("file_longer"), "{said}");
    let mut daemon = scene.daemon();
    produce_and_write(&scene, 4_000, 5_000);
    assert!(daemon.log_text().contains("longer than recorded"), "{}", daemon.log_text());
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let orphans =
        std::fs::read_to_string(homes[0].join(format!("trust/trust_{}.jsonl.orphan", DAYS[1]))).unwrap();
    assert_eq!(orphans, "{\"what\":\"is this\"}\n{\"half\":");
    check_union(&scene, &homes);
    scene.verify();
}

#[test]
fn what_stands_behind_a_file_is_orphaned_under_steady_traffic_too() {
    const MORE: &str = "{\"what\":\"is this\"}\n";
    let (scene, folder) = scene("projecttail", 2);
    let homes = [folder.join("a")];
    // A file of a day that gets no further line.
    let path = homes[0].join(format!("trust/trust_{}.jsonl", DAYS[0]));
    let mut daemon = scene.daemon();
    produce_and_write(&scene, 0, 4_000);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(MORE.as_bytes()).unwrap();
    let mut daemon = scene.daemon();
    let orphan = homes[0].join(format!("trust/trust_{}.jsonl.orphan", DAYS[0]));
    let mut produced = 4_000;
    // Each look finds rows, as often as it may look.
    wait_for("it is orphaned", Duration::from_secs(120), || {
        scene.produce(&MIDNIGHT, produced, produced + 5);
        produced += 5;
        orphan.try_exists().unwrap()
    });
    scene.wait_until_read(produced, Duration::from_secs(60));
    wait_until_written(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert_eq!(std::fs::read_to_string(&orphan).unwrap(), MORE);
    check_union(&scene, &homes);
    scene.verify();
}

#[test]
fn a_day_has_further_files_when_its_file_is_long() {
    let (scene, folder) = scene("projectroll", 2);
    let scene = scene.set("DAY_FILE_MAX_BYTES", "100KiB");
    let homes = [folder.join("a")];
    let follower = Follower::start(&homes);
    let mut daemon = scene.daemon();
    for part in 0..6 {
        produce_and_write(&scene, part * 1_000, (part + 1) * 1_000);
    }
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    check_union(&scene, &homes);
    follower.finish().check_seen_once(&scene);
    let names: Vec<String> = files(&homes, "purview")
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert!(names.contains(&format!("audit_{}.2.jsonl", DAYS[1])), "{names:?}");
    assert!(!lines(&homes, "trust").is_empty());
    scene.verify();
}
