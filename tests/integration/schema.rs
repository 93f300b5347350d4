//! The schema: two ways to make it, what it refuses, and the role that is enough to run.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::account::PLAN;
use crate::scene::Scene;

/// Runs psql as the schema's owner; returns whether it succeeded and what it said.
fn as_owner(scene: &Scene, args: &[&str]) -> (bool, String) {
    let url = scene.setting("DATABASE_URL");
    let output =
        Command::new("psql").args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", url]).args(args).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_schema_is_made_by_psql_and_by_migrate_in_any_order() {
    let scene = Scene::new("schema", 1);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    let args: Vec<&str> = files.iter().flat_map(|file| ["-f", file.as_str()]).collect();
    for step in ["psql", "migrate", "psql"] {
        if step == "psql" {
            let (is_done, said) = as_owner(&scene, &args);
            assert!(is_done, "{said}");
        } else {
            scene.done(&["migrate"]);
        }
    }
    // From nothing, psql first.
    scene.sql("DROP SCHEMA audit_events CASCADE; DROP TABLE _sqlx_migrations");
    assert!(as_owner(&scene, &args).0);
    scene.done(&["migrate"]);
    scene.produce(&PLAN, 0, 100);
    let mut daemon = scene.daemon();
    scene.wait_until_read(100, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(100));
}

#[test]
fn what_was_stored_is_append_only_for_its_owner_too() {
    let scene = Scene::new("appendonly", 1);
    scene.produce(&PLAN, 0, 300);
    let mut daemon = scene.daemon();
    scene.wait_until_read(300, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let partition = scene.sql("SELECT DISTINCT tableoid::regclass FROM audit_events.events LIMIT 1");
    for table in
        ["audit_events.events", partition.as_str(), "audit_events.duplicates", "audit_events.dead_letters"]
    {
        for statement in [format!("DELETE FROM {table}"), format!("TRUNCATE {table}")] {
            let (is_done, said) = as_owner(&scene, &["-c", &statement]);
            // What is done to dead letters refers to them, and that is checked first.
            let is_refused = said.contains("append only") || said.contains("foreign key");
            assert!(!is_done && is_refused, "{statement}: {said}");
        }
    }
    for statement in [
        "UPDATE audit_events.events SET actor = 'someone else'".to_owned(),
        format!("UPDATE {partition} SET actor = 'someone else'"),
        "UPDATE audit_events.dead_letters SET reason = 'none'".to_owned(),
        "UPDATE audit_events.consumer_offsets SET events = events + 1".to_owned(),
    ] {
        assert!(!as_owner(&scene, &["-c", &statement]).0, "{statement}");
    }
    assert!(as_owner(&scene, &["-c", "UPDATE audit_events.dead_letters SET relayed_at = now()"]).0);
    scene.verify().check(PLAN.totals(300));
}

#[test]
fn a_role_that_may_only_write_is_enough_to_run() {
    let scene = Scene::new("writer", 2);
    let role = format!("{}_w", scene.name);
    scene.sql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'w' IN ROLE audit_events_write"));
    // The partition of the events' month is made by this role, through the function.
    let month = "SELECT partition_name FROM audit_events.partition_ranges WHERE NOT is_default";
    for partition in scene.sql(month).lines() {
        scene.sql(&format!("DROP TABLE audit_events.{partition}"));
    }
    let url = scene.setting("DATABASE_URL").replace("audit:audit@", &format!("{role}:w@"));
    scene.produce(&PLAN, 0, 500);
    let mut daemon = scene.daemon_with(&[("DATABASE_URL", url.as_str())]);
    scene.wait_until_read(500, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(500));
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.events_default"), 0);
    scene.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}
