//! One event in several forms: at which times it is the same, and what of it was told.

use serde_json::{Value, json};

use super::past::{CORE, Past, event};
use super::{import, totals};
use crate::scene::Scene;

fn at(index: u64, time: &str) -> Value {
    let mut event = event(index);
    event["timestamp"] = json!(time);
    event
}

#[test]
fn an_event_whose_time_was_rounded_stands_once_and_an_id_at_another_time_is_said() {
    for (name, is_table_first) in [("timestable", true), ("timesfile", false)] {
        let scene = Scene::new(name, 1);
        let past = Past::new(&scene, CORE);
        // None of these has metadata. The table rounds the first to .123457, and we cut it to .123456.
        past.insert_events(&[
            at(1, "2026-02-17T00:00:00.1234567Z"),
            at(2, "2026-02-17T01:00:00Z"),
            at(3, "2026-02-17T02:00:00Z"),
            at(4, "2026-02-17T03:00:00.5Z"),
        ]);
        for event in [
            at(1, "2026-02-17T00:00:00.1234567Z"),
            at(2, "2026-02-17T23:00:00Z"),
            at(3, "2026-02-18T02:00:00.000001Z"),
            // A microsecond that nobody has rounded.
            at(4, "2026-02-17T03:00:00.500001Z"),
        ] {
            past.log_event(&event);
        }
        let purview = past.purview_file();
        let sources = [["--table", "core.audit_events"], ["--files", purview.to_str().unwrap()]];
        let (first, second) = if is_table_first { (0, 1) } else { (1, 0) };
        assert_eq!(totals(&import(&scene, &sources[first])), [4, 0, 0, 0]);
        let foreseen = totals(&import(&scene, &[&sources[second][..], &["--dry-run"]].concat()));
        let report = import(&scene, &sources[second]);
        assert_eq!((totals(&report), foreseen), ([1, 1, 2, 0], [1, 1, 2, 0]), "{report:#}");
        let letters = scene.sql(
            "SELECT reason, audit_id IS NOT NULL, correlation_id IS NOT NULL, \
                    detail ~ '01:00:00.000000Z' AND detail ~ '23:00:00.000000Z' FROM audit_events.dead_letters ORDER BY 4",
        );
        assert_eq!(letters, "audit_id_conflict|t|t|f\naudit_id_conflict|t|t|t");
        // The trust lines are those of the Purview lines.
        let trust = past.trust_file();
        let report = import(&scene, &["--files", trust.to_str().unwrap()]);
        let expect = if is_table_first { [0, 2, 2, 0] } else { [0, 4, 0, 0] };
        assert_eq!(totals(&report), expect, "{report:#}");
        assert_eq!(scene.number("SELECT count(*) FROM audit_events.events"), 5);
        scene.verify();
    }
}

#[test]
fn a_row_that_was_null_says_which_fields_got_a_default() {
    let scene = Scene::new("importnull", 1);
    let past = Past::new(&scene, CORE);
    let mut events = [event(0), event(1), event(2)];
    for name in ["caller_ip_address", "metadata", "args", "tenant_id"] {
        events[1][name] = Value::Null;
    }
    events[2]["args"] = Value::Null;
    past.insert_events(&events);
    import(&scene, &["--table", "core.audit_events"]);
    let marks = scene.sql(
        "SELECT host(caller_ip_address), args IS NULL, metadata -> 'audit-consumer.imported' FROM audit_events.events \
          ORDER BY timestamp",
    );
    let assumed = r#"{"from": "row", "assumed": ["caller_ip_address", "metadata", "tenant_id"]}"#;
    assert_eq!(marks, format!("10.1.2.3|f|\n127.0.0.1|t|{assumed}\n10.1.2.3|t|"));
}
