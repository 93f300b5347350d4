//! Trust by actor, and the registry of federated sources.

use std::time::Duration;

use serde_json::{Value, json};

use crate::scene::{Daemon, Scene, wait_for};

#[test]
fn trust_is_told_by_actor_with_the_last_days() {
    let scene = Scene::new("trust", 1);
    scene.sql(
        "INSERT INTO audit_events.events (audit_id, correlation_id, timestamp, stream_id, source_partition, \
                source_offset, operation, command, actor, status, trust_score, bypass_llm) \
         SELECT md5(i::text)::uuid, md5('c')::uuid, now() - days * interval '1 day', md5('f')::uuid, 0, i, 'o', 'c', \
                actor, status, score, i % 2 = 0 \
           FROM (VALUES (1, 0, 'alice', 'Success', 0.9), (2, 0, 'alice', 'Failure', 0.7), (3, 1, 'alice', 'Pending', 0.1), \
                        (4, 40, 'alice', 'Success', 1), (5, 2, E'bob\\n', 'Success', 0.30), (6, -3, 'carol', 'Success', 1.00)) \
                AS v (i, days, actor, status, score)",
    );
    let all: Value = serde_json::from_str(&scene.done(&["trust", "--json"])).unwrap();
    let actors = all["actors"].as_array().unwrap();
    let names: Vec<&str> = actors.iter().map(|actor| actor["actor"].as_str().unwrap()).collect();
    assert_eq!(names, ["bob\n", "alice", "carol"], "the least trusted first");
    let alice = &actors[1];
    let average: f64 = scene
        .sql("SELECT avg_trust_score FROM audit_events.trust_summary WHERE actor = 'alice'")
        .parse()
        .unwrap();
    assert!((alice["average_trust_score"].as_f64().unwrap() - average).abs() < 1e-9, "{alice:#}");
    assert_eq!(
        [&alice["operations"], &alice["successes"], &alice["failures"], &alice["bypasses"]],
        [4, 2, 1, 2]
    );
    let history = alice["history"].as_array().unwrap();
    assert_eq!(
        (history.len(), &history[13], &history[12], &history[11]),
        (14, &0.8.into(), &0.1.into(), &Value::Null)
    );
    assert!(actors[2]["history"].as_array().unwrap().iter().all(Value::is_null), "what is ahead has no bar");

    let table = scene.done(&["trust"]);
    assert!(table.contains("bob?") && table.contains("·············▇".trim_start_matches('·')), "{table}");
    let since = scene.sql("SELECT to_char(now() - interval '20 days', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')");
    let one: Value =
        serde_json::from_str(&scene.done(&["trust", "--json", "--actor", "alice", "--since", &since]))
            .unwrap();
    assert_eq!((&one["actor_count"], &one["actors"][0]["operations"]), (&1.into(), &3.into()), "{one:#}");
    assert!(scene.done(&["trust", "--actor", "nobody"]).contains("0 actors"));
    assert_eq!(scene.command(&["trust", "--since", "yesterday"]).status.code(), Some(2));
}

#[test]
fn the_registry_of_sources_holds_names_and_no_secrets() {
    let scene = Scene::new("sources", 1);
    let json = |args: &[&str]| -> Value { serde_json::from_str(&scene.done(args)).unwrap() };
    let listed = json(&["sources", "list", "--json"]);
    let names: Vec<&str> =
        listed["sources"].as_array().unwrap().iter().map(|source| source["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["kafka", "local"]);
    let metadata =
        r#"{"token_endpoint": "https://login.example/token", "secret_ref": "vault:kv/x", "n": 1.50}"#;
    let add = [
        "sources",
        "add",
        "kaggle",
        "--type",
        "oauth",
        "--auth",
        "oauth2",
        "--handler",
        "handlers/kaggle.py",
    ];
    let added =
        json(&[&add[..], &["--metadata", metadata, "--disabled", "--actor", "carol", "--json"]].concat());
    assert_eq!((&added["enabled"], &added["changed_by"]), (&false.into(), &"carol".into()), "{added:#}");
    assert_eq!(
        scene.sql("SELECT metadata ->> 'n' FROM audit_events.federated_sources WHERE source_name = 'kaggle'"),
        "1.5"
    );
    let enabled = json(&["sources", "enable", "kaggle", "--actor", "dave", "--json"]);
    assert_eq!((&enabled["enabled"], &enabled["changed_by"]), (&true.into(), &"dave".into()), "{enabled:#}");
    let again = json(&["sources", "enable", "kaggle", "--actor", "erin", "--json"]);
    assert_eq!(again["changed_by"], "dave", "nothing changed");
    assert_eq!(json(&["sources", "disable", "kaggle", "--json"])["enabled"], false);
    assert_eq!(json(&["sources", "show", "kaggle", "--json"])["handler"], "handlers/kaggle.py");
    assert!(scene.done(&["sources", "list"]).contains("disabled"));
    assert!(scene.done(&["sources", "show", "kaggle"]).contains("vault:kv/x"));

    let other = |handler: &str, metadata: &str| {
        let args = ["sources", "add", "x", "--type", "t", "--handler", handler, "--metadata", metadata];
        let output = scene.command(&args);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    for (handler, metadata, part) in [
        ("h", r#"{"password": "hunter2"}"#, "speaks of a secret"),
        ("h", r#"{"a": [{"ClientSecret": "hunter2"}]}"#, "speaks of a secret"),
        ("h", r#"{"access_token": "hunter2"}"#, "speaks of a secret"),
        ("https://me:hunter2@host/x", "{}", "names a password"),
        ("https://host/x?token=hunter2", "{}", "is given a value"),
        ("h", "[]", "no JSON object"),
        ("h", "{", "no JSON object"),
        ("h", r#"{"a": "b\u0000"}"#, "nothing was done"),
    ] {
        let (code, said) = other(handler, metadata);
        assert!(
            code == Some(1) && said.contains(part) && !said.contains("hunter2"),
            "{handler} {metadata}: {said}"
        );
    }
    for args in [&add[..], &["sources", "show", "nobody"], &["sources", "enable", "nobody"]] {
        let output = scene.command(args);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.federated_sources"), 3);
}

/// An event with that number, naming that source.
fn event_of(number: u32, source: Option<&str>) -> Option<Vec<u8>> {
    let event = json!({
        "audit_id": format!("00000000-0000-4000-8000-{number:012}"),
        "correlation_id": "00000000-0000-4000-8000-000000000000",
        "timestamp": "2026-11-24T10:00:00Z", "operation": "ask", "command": "query", "actor": "alice",
        "status": "Success", "federated_source": source,
    });
    Some(event.to_string().into_bytes())
}

fn flagged_count(daemon: &Daemon, flag: &str) -> u64 {
    let name = format!("audit_consumer_flagged_events_total{{flag=\"{flag}\"}} ");
    let metrics = daemon.get("/metrics").map(|(_, text)| text).unwrap_or_default();
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    value.map_or(0, |value| value.parse().unwrap())
}

#[test]
fn an_event_of_an_unknown_or_disabled_source_is_stored_and_flagged() {
    let scene = Scene::new("flags", 1);
    for (name, more) in [("crm", &[][..]), ("wiki", &["--disabled"])] {
        scene.done(&[&["sources", "add", name, "--type", "t", "--handler", "h"], more].concat());
    }
    let named = [None, Some("local"), Some("crm"), Some("wiki"), Some("nobody"), Some("CRM"), Some("")];
    let events: Vec<_> = (0..).zip(named).map(|(number, source)| event_of(number, source)).collect();
    scene.send_all(&events);
    let flags =
        "SELECT string_agg(coalesce(source_flag, '-'), ' ' ORDER BY source_offset) FROM audit_events.events";
    let mut daemon = scene.daemon();
    scene.wait_until_read(7, Duration::from_secs(40));
    assert_eq!(scene.sql(flags), "- - - disabled unregistered unregistered unregistered");
    wait_for("flags counted", Duration::from_secs(10), || {
        (flagged_count(&daemon, "disabled"), flagged_count(&daemon, "unregistered")) == (1, 3)
    });
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());

    // What was stored stays as it was flagged, and a flag is no part of an event's content: the same event with
    // another flag is a duplicate, by the merge path.
    scene.done(&["sources", "enable", "wiki"]);
    scene.done(&["sources", "disable", "crm"]);
    scene.send_all(&[event_of(3, Some("wiki")), event_of(2, Some("crm")), event_of(7, Some("crm"))]);
    let daemon = scene.daemon();
    scene.wait_until_read(10, Duration::from_secs(40));
    assert_eq!(scene.sql(flags), "- - - disabled unregistered unregistered unregistered disabled");

    // A daemon that has its claims reads the registry again by itself, and goes on with what it read last when
    // the registry can't be read.
    scene.done(&["sources", "disable", "local"]);
    let mut number = 8;
    wait_for("the registry read again", Duration::from_secs(90), || {
        scene.send_all(&[event_of(number, None)]);
        number += 1;
        scene.wait_until_read(u64::from(number) + 2, Duration::from_secs(30));
        scene.sql("SELECT source_flag FROM audit_events.events ORDER BY source_offset DESC LIMIT 1")
            == "disabled"
    });
    scene.sql("ALTER TABLE audit_events.federated_sources RENAME TO away");
    wait_for("the registry not read", Duration::from_secs(90), || {
        daemon.log_text().contains("the registry of sources can't be read")
    });
    scene.send_all(&[event_of(number, None), event_of(number + 1, Some("kafka"))]);
    scene.wait_until_read(u64::from(number) + 4, Duration::from_secs(30));
    let last = scene.sql(
        "SELECT string_agg(coalesce(source_flag, '-'), ' ' ORDER BY source_offset) \
           FROM (SELECT * FROM audit_events.events ORDER BY source_offset DESC LIMIT 2) AS e",
    );
    assert_eq!(last, "disabled -");
    let account = scene.verify();
    assert_eq!((account.total("duplicates"), account.total("dead_letters")), (2, 0));
}
