//! The schema of the predecessor is renamed, or nothing is.

use super::past::{OURS, Past};
use crate::scene::Scene;

/// `migrate --adopt-legacy`, which must refuse; returns its one line.
#[track_caller]
fn refused(scene: &Scene) -> String {
    let output = scene.command(&["migrate", "--adopt-legacy"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("nothing was done") && said.trim_end().lines().count() == 1, "{said}");
    said
}

/// The schemas of either program, in order.
fn schemas(scene: &Scene) -> String {
    scene.sql("SELECT string_agg(nspname, ' ' ORDER BY nspname) FROM pg_namespace WHERE nspname LIKE 'audit_events%'")
}

#[test]
fn going_there_back_and_there_again_leaves_both_schemas() {
    let scene = Scene::new("adopttwice", 1);
    scene.sql("DROP SCHEMA audit_events CASCADE; DROP TABLE _sqlx_migrations");
    let past = Past::new(&scene, OURS);
    past.insert(0..3);
    scene.done(&["migrate", "--adopt-legacy"]);
    // Back, as the guide says.
    scene.sql(
        "ALTER SCHEMA audit_events RENAME TO audit_events_new; ALTER SCHEMA audit_events_legacy RENAME TO audit_events",
    );
    let said = refused(&scene);
    assert_eq!(schemas(&scene), "audit_events audit_events_new");
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.events"), 3);
    // There again, as the line says.
    let statements = said.split('`').find(|part| part.starts_with("BEGIN")).unwrap();
    scene.sql(statements);
    assert_eq!(schemas(&scene), "audit_events audit_events_legacy");
    assert!(scene.done(&["migrate", "--adopt-legacy"]).contains("nothing to adopt"));
    let report = super::import(&scene, &["--table", "audit_events_legacy.events"]);
    assert_eq!(super::totals(&report), [3, 0, 0, 0]);
    scene.verify();
}

#[test]
fn a_name_that_is_taken_and_a_schema_that_is_gone_are_said_before_anything_is_renamed() {
    let scene = Scene::new("adopttaken", 1);
    scene.sql("DROP SCHEMA audit_events CASCADE");
    let past = Past::new(&scene, OURS);
    let said = refused(&scene);
    assert!(said.contains("_sqlx_migrations"), "{said}");
    assert_eq!(schemas(&scene), "audit_events");
    scene.sql("DROP TABLE _sqlx_migrations; CREATE SCHEMA audit_events_legacy");
    let said = refused(&scene);
    assert!(said.contains("there is a schema audit_events_legacy already"), "{said}");
    assert_eq!(schemas(&scene), "audit_events audit_events_legacy");
    scene.sql("ALTER SCHEMA audit_events_legacy RENAME TO other");
    assert!(scene.done(&["migrate", "--adopt-legacy"]).contains("is now audit_events_legacy"));
    drop(past);
}
