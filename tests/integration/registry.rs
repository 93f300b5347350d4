//! Trust by actor, and the registry of federated sources.

use serde_json::Value;

use crate::scene::Scene;

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
