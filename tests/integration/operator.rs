//! What an operator sees when something is set up wrong, and how a daemon stops.

use std::path::Path;
use std::time::Duration;

use crate::account::PLAN;
use crate::rebalance::{DAWDLING, DISTINCT};
use crate::scene::{Scene, wait_for};

/// Runs `args` and expects this exit code and a line with every part of `expect`.
#[track_caller]
fn check(scene: &Scene, args: &[&str], code: i32, expect: &[&str]) {
    let output = scene.command(args);
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in expect {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    assert!(!text.contains("panicked") && !text.contains("stack backtrace"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

#[test]
fn what_is_set_up_wrong_is_said_in_one_line() {
    let scene = Scene::new("wrong", 1);
    let url = scene.setting("DATABASE_URL").to_owned();
    let wrong_password = url.replace("audit:audit@", "audit:s3cret@");
    check(&scene, &["migrate", "--database-url", &wrong_password], 1, &["28P01", "check user and password"]);
    check(&scene, &["check", "--database-url", &wrong_password], 3, &["28P01", "guarantee: none"]);
    check(
        &scene,
        &["migrate", "--database-url", "postgresql://audit:audit@127.0.0.1:1/x"],
        3,
        &["check that PostgreSQL runs"],
    );
    check(
        &scene,
        &["check", "--kafka-brokers", "127.0.0.1:1"],
        3,
        &["kafka       FAILED", "check KAFKA_BROKERS"],
    );
    check(&scene, &["run", "--lanes", "99"], 2, &["LANES=99: a whole number from 1 to 16"]);
    check(&scene, &["run", "--kafka-topics", "a.dlq"], 2, &["dead letter topic, which is never consumed"]);
    let unknown = ["check", "--kafka-properties", "queued.min.messages=many"];
    check(
        &scene,
        &unknown,
        3,
        &["kafka       FAILED", "kafka's properties are wrong", "queued.min.messages"],
    );
    check(&scene, &["check"], 0, &["guarantee: every record"]);
}

/// It was made a spool, found empty, and all was said to be well.
#[test]
fn a_directory_that_was_never_a_spool_is_not_drained() {
    let scene = Scene::new("nospool", 1);
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nospool").join(&scene.name);
    let spool = logs.join("spool");
    std::fs::create_dir_all(&spool).unwrap();
    // As a daemon leaves its LOG_DIR, and a file that somebody writes there.
    let names = ["INSTANCE", "LOCK", "report.new"];
    names.iter().for_each(|name| std::fs::write(logs.join(name), name).unwrap());
    let (logs, spool) = (logs.to_str().unwrap(), spool.to_str().unwrap());
    let drain_logs = ["spool", "drain", "--dir", logs];
    let drain_spool = ["spool", "drain", "--dir", spool];
    check(&scene, &drain_logs, 1, &["nothing was done", "is no spool", "SPOOL_DIR"]);
    check(&scene, &drain_spool, 1, &["is no spool"]);
    // The spool in it, from its first start on, although it never held anything.
    check(&scene, &["spool", "drain", "--spool-dir", spool], 0, &["nothing is left in the spool"]);
    check(&scene, &drain_logs, 1, &["nothing was done", format!("--dir {spool}").as_str()]);
    check(&scene, &drain_spool, 0, &["nothing is left in the spool"]);
    let entries = std::fs::read_dir(logs).unwrap();
    let mut left: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort_unstable();
    assert_eq!(left, ["INSTANCE", "LOCK", "report.new", "spool"]);
}

#[test]
fn a_wrong_password_and_a_missing_schema_are_waited_out_and_nothing_is_lost() {
    let scene = Scene::new("mended", 2);
    scene.produce(&PLAN, 0, 1_000);
    let url = scene.setting("DATABASE_URL").replace("audit:audit@", "audit:s3cret@");
    let daemon = scene.daemon_with(&[("DATABASE_URL", url.as_str())]);
    daemon.wait_for_hold("database_misconfigured");
    let (code, body) = daemon.get("/readyz").unwrap();
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("28P01"), "{body}");
    drop(daemon);

    scene.sql("ALTER SCHEMA audit_events RENAME TO away");
    let mut daemon = scene.daemon();
    daemon.wait_for_hold("database_misconfigured");
    assert!(
        daemon.log_text().contains("42P01") || daemon.log_text().contains("3F000"),
        "{}",
        daemon.log_text()
    );
    scene.sql("ALTER SCHEMA away RENAME TO audit_events");
    scene.wait_until_read(1_000, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(1_000));
}

#[test]
fn brokers_that_can_not_be_reached_are_waited_for() {
    let scene = Scene::new("nobroker", 1);
    let mut daemon = scene.daemon_with(&[("KAFKA_BROKERS", "127.0.0.1:1")]);
    wait_for("a line about the brokers", Duration::from_secs(20), || {
        daemon.log_text().contains("no broker answers")
    });
    assert_eq!(daemon.get("/livez").unwrap().0, 200);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
}

#[test]
fn sigterm_on_an_idle_topic_ends_at_once_and_the_next_start_goes_on_at_once() {
    let scene = Scene::new("idle", 3).set("KAFKA_SESSION_TIMEOUT_MS", "30000");
    let mut daemon = scene.daemon();
    daemon.wait_until_reading(3);
    let (status, elapsed) = daemon.terminate(Duration::from_secs(10));
    assert!(status.success() && elapsed < Duration::from_secs(5), "{status} {elapsed:?}");
    let unreleased = "SELECT count(*) FROM audit_events.consumer_offsets WHERE released_at IS NULL";
    assert_eq!(scene.number(unreleased), 0);

    scene.produce(&PLAN, 0, 300);
    let mut next = scene.daemon();
    let waited = scene.wait_until_read(300, Duration::from_secs(10));
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    assert!(next.terminate(Duration::from_secs(10)).0.success());
}

#[test]
fn sigterm_in_the_middle_of_a_commit_ends_within_the_deadline() {
    let scene = Scene::new("midcommit", 4);
    let mut read_before = 0;
    for round in 0..3 {
        // For each round, as it may read all that there is.
        scene.produce(&DISTINCT, round * 20_000, (round + 1) * 20_000);
        let mut daemon = scene.daemon_with(&[("FAILPOINTS", "commit_in_copy=1*off->1*sleep(3000)")]);
        wait_for("a COPY", Duration::from_secs(20), || scene.number(DAWDLING) > 0);
        let (status, elapsed) = daemon.terminate(Duration::from_secs(10));
        assert!(status.success(), "{status} after {elapsed:?}");
        let read = scene.number("SELECT sum(next_offset) FROM audit_events.consumer_offsets");
        assert!(read >= read_before);
        read_before = read;
        scene.verify();
    }
    let mut daemon = scene.daemon();
    scene.wait_until_read(60_000, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(10)).0.success());
    scene.verify().check(DISTINCT.totals(60_000));
}

#[test]
fn spans_go_to_the_collector_that_the_environment_names() {
    let scene = Scene::new("spans", 1);
    let collector = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    scene.produce(&PLAN, 0, 100);
    let mut daemon = scene.daemon_with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ]);
    scene.wait_until_read(100, Duration::from_secs(30));
    // What an HTTP/2 client sends first (RFC 9113, section 3.4).
    let (mut connection, _) = collector.accept().unwrap();
    let mut preface = [0; 16];
    std::io::Read::read_exact(&mut connection, &mut preface).unwrap();
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n");
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
}

#[test]
fn what_is_logged_reaches_the_log() {
    let scene = Scene::new("logged", 1);
    scene.send_all(&[Some(b"no event".to_vec())]);
    let mut daemon = scene.daemon();
    scene.wait_until_read(1, Duration::from_secs(30));
    crate::letters::wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    // From modules that lost lines once while no collector was named.
    for line in ["app: started", "claims: claimed", "letters: relaying dead letters", "pipeline: stopped"] {
        assert!(daemon.log_text().contains(line), "{line}");
    }
}
