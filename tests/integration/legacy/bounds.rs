//! What an import takes of memory, connections and time.

use std::time::{Duration, Instant};

use serde_json::json;

use super::past::{CORE, Past, append, event};
use super::{import, json as json_of, totals};
use crate::proxy::Proxy;
use crate::scene::Scene;

/// In how many transactions the duplicates were stored.
fn commit_count(scene: &Scene) -> u64 {
    scene.number("SELECT count(DISTINCT xmin::text) FROM audit_events.duplicates")
}

#[test]
fn a_line_or_row_longer_than_an_event_may_be_is_cut_and_refused() {
    let scene = Scene::new("importlong", 1).set("MAX_EVENT_BYTES", "2KiB");
    let past = Past::new(&scene, CORE);
    let long = |index: u64| {
        let mut event = event(index);
        event["args"] = json!("x".repeat(5_000));
        event
    };
    past.log(0..1);
    past.log_event(&long(1));
    past.log_event_by_wrapper(&long(2));
    past.log(3..4);
    let purview = past.purview_file();
    append(&purview, &"y".repeat(40 << 20));
    let file = ["--files", purview.to_str().unwrap()];
    let foreseen = totals(&import(&scene, &[&file[..], &["--dry-run"]].concat()));
    let report = import(&scene, &file);
    // Of the wrapper's event 21 lines are absent.
    assert_eq!((totals(&report), foreseen), ([2, 0, 3, 21], [2, 0, 3, 21]), "{report:#}");
    past.insert_events(&[event(4), long(5)]);
    assert_eq!(totals(&import(&scene, &["--table", "core.audit_events"])), [1, 0, 1, 0]);
    let letters = scene.sql(
        "SELECT reason, length(payload), substring(detail from '^[0-9]+')::integer > 5000, \
                right(convert_from(payload, 'UTF8'), 200) = repeat('x', 200) FROM audit_events.dead_letters ORDER BY topic DESC, source_offset",
    );
    let cut = "too_large|2048|t|t";
    assert_eq!(letters, [cut, cut, cut, "too_large|2048|t|f"].join("\n"));
    let detail = scene.sql("SELECT detail FROM audit_events.dead_letters WHERE detail ~ '^41943040 '");
    assert!(detail.contains("at most 2048") && detail.contains("the first 2048 are kept"), "{detail}");
    scene.verify();
}

#[test]
fn stored_events_that_lines_tell_are_held_within_the_bytes_of_a_batch() {
    let scene = Scene::new("importbytes", 1).set("BATCH_MAX_BYTES", "1MiB");
    let past = Past::new(&scene, CORE);
    for index in 0..40 {
        let mut event = event(index);
        event["metadata"] = json!({ "blob": "x".repeat(100_000) });
        past.log_event_by_wrapper(&event);
    }
    let [purview, trust] =
        [past.purview_file(), past.trust_file()].map(|path| path.to_str().unwrap().to_owned());
    assert_eq!(totals(&import(&scene, &["--files", &purview]))[0], 40);
    // The lines are small, the events that they tell are four megabytes.
    assert_eq!(totals(&import(&scene, &["--files", &trust, "--dry-run"])), [0, 40, 0, 0]);
    assert_eq!(totals(&import(&scene, &["--files", &trust])), [0, 40, 0, 0]);
    let commit_count = commit_count(&scene);
    assert!((4..=10).contains(&commit_count), "{commit_count} commits");
    scene.verify();
}

#[test]
fn lines_that_repeat_each_other_are_stored_in_one_batch() {
    let scene = Scene::new("importrepeat", 1);
    let past = Past::new(&scene, CORE);
    (0..30).for_each(|_| past.log(0..10));
    let purview = past.purview_file();
    let report = import(&scene, &["--files", purview.to_str().unwrap()]);
    assert_eq!(totals(&report), [10, 290, 0, 0]);
    assert_eq!(commit_count(&scene), 1);
    scene.verify();
}

#[test]
fn a_dry_run_looks_through_one_connection() {
    let scene = Scene::new("importonce", 1);
    let past = Past::new(&scene, CORE);
    past.insert(0..100);
    let proxy = Proxy::new(scene.setting("DATABASE_URL"), None, Duration::ZERO);
    let settings = [("DATABASE_URL", proxy.url.as_str()), ("BATCH_MAX_EVENTS", "10")];
    let args = ["import", "--json", "--table", "core.audit_events", "--dry-run"];
    let output = scene.command_with(&args, &settings);
    assert_eq!(totals(&json_of(std::str::from_utf8(&output.stdout).unwrap())), [100, 0, 0, 0]);
    // And one that reads the table.
    assert_eq!(proxy.connection_count(), 2);
}

#[test]
fn an_answer_that_never_comes_is_not_waited_for() {
    let scene = Scene::new("importsilent", 1);
    let past = Past::new(&scene, CORE);
    past.log(0..50);
    let purview = past.purview_file();
    let started = Instant::now();
    let silence = Duration::from_secs(90);
    // In the look-up of the first batch.
    let proxy = Proxy::new(scene.setting("DATABASE_URL"), Some("timestamp BETWEEN"), silence);
    let settings =
        [("DATABASE_URL", proxy.url.as_str()), ("BATCH_MAX_EVENTS", "10"), ("STATEMENT_TIMEOUT_MS", "1000")];
    let args = ["import", "--json", "--files", purview.to_str().unwrap()];
    let output = scene.command_with(&args, &settings);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(totals(&json_of(std::str::from_utf8(&output.stdout).unwrap())), [50, 0, 0, 0]);
    let took = started.elapsed();
    assert!(took > Duration::from_secs(10) && took < Duration::from_secs(60), "{took:?}");
    scene.verify();
}
