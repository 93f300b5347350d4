//! Exports: what is rendered here, and what the views of the database give.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::account::PLAN;
use crate::scene::{Scene, scaled, wait_for};

/// Rows made by the database, from plain to hostile; `$n` of them, a second apart from 2026-01-01 on.
const INSERT: &str = r#"
INSERT INTO audit_events.events (audit_id, correlation_id, timestamp, stream_id, source_partition, source_offset,
    duration_ms, bypass_llm, purview_compatible, operation, command, args, actor, status, result_signature,
    client_app, caller_ip_address, federated_source, query_intent, trust_score, metadata, schema_version, tenant_id,
    extra)
SELECT md5('a' || i)::uuid, md5('c' || i / 4)::uuid,
       '2026-01-01T00:00:00Z'::timestamptz + i * interval '1 second' + (i % 1000) * interval '1 microsecond',
       md5('s')::uuid, 0, i, CASE WHEN i % 5 > 0 THEN i END, i % 2 = 0, i % 7 > 0,
       'op-' || i % 3, texts[1 + i % 11], CASE WHEN i % 3 > 0 THEN texts[1 + i / 11 % 11] END,
       'user-' || i % 9 || texts[1 + i % 5], (ARRAY['Success', 'Failure', 'Pending'])[1 + i % 3], '20' || i % 5,
       texts[1 + i / 3 % 11], (ARRAY['127.0.0.1', '10.1.2.3', '::1', '::ffff:1.2.3.4', '::1.2.3.4', '2001:db8::1:0:0:1',
       '10.0.0.0/8'])[1 + i % 7]::inet,
       'src-' || i % 4, CASE WHEN i % 2 > 0 THEN texts[1 + i / 7 % 11] END,
       (ARRAY['0', '1', '0.80', '0.1234567890123456', '1.000', '0.5'])[1 + i % 6]::numeric,
       metadata[1 + i % array_length(metadata, 1)], '2.0', 'tenant-' || i % 2,
       CASE WHEN i % 4 = 0 THEN extra[1 + i / 4 % array_length(extra, 1)] END
  FROM generate_series(1, COUNT) AS i,
       (SELECT ARRAY['plain', '', 'a,b', 'say "hi"', E'tab\tline\nend\r', E'back\\slash', 'ünïcödé 漢字 🦀',
                     E'\u0001\u001f\u007f\u0085\u2028', '<script>&amp;', ' padded ', '=1+1'] AS texts,
               ARRAY['{}', '{"region": "eu", "shard": 7}',
                     '{"resource": 1, "metadata.resource": 2, "metadata.metadata.resource": 3, "metadata.x": 4}',
                     '{"command": {"a": [1, {"b": "c : , } ]"}]}, "trustScore": "0.9", "metadata": {"metadata": 1}}',
                     '{"": "", " ": 0, "a\"b": "\\\"", "\\": "\u0001\n", "auditId\n": 1, "\nauditId": 2, "漢字": "🦀"}',
                     '{"n": [1.50, 1e3, -0.0, 123456789012345678901234567890.123456789, 1E-20, 5e-1]}',
                     '{"metadata.": 1, "metadata..args": 2, "xmetadata.args": 3, "metadata.args ": 4, "Args": 5, "args": 6}',
                     '[1, "a"]', '"text"', 'null', '7.00',
                     '{"deep": [[[[[[[[[[{"a": {"b": {"c": [[[[]]]]}}}]]]]]]]]]]}']::jsonb[] AS metadata,
               ARRAY['{"unknown": 1.0}', '{"extra": {"extra": 1}, "x y": null}', '{"actor": "mallory"}', '[]',
                     '{"timestamp": "2026-01-01T00:00:00.1234567Z"}']::jsonb[] AS extra) AS varied
"#;

fn insert(scene: &Scene, count: u64) {
    scene.sql(
        "SELECT audit_events.ensure_partition(t) FROM generate_series('2026-01-01'::timestamptz, '2026-03-01', '1 month') AS t",
    );
    scene.sql(&INSERT.replace("COUNT", &count.to_string()));
}

/// JSON with the keys of every object sorted and no white space; numbers as they are written.
fn sorted(json: &str) -> String {
    let json = json.trim();
    if json.starts_with('{') {
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(json).unwrap();
        let parts: Vec<String> = members
            .iter()
            .map(|(key, value)| format!("{}:{}", serde_json::to_string(key).unwrap(), sorted(value.get())))
            .collect();
        return format!("{{{}}}", parts.join(","));
    }
    if json.starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(json).unwrap();
        let parts: Vec<String> = items.iter().map(|item| sorted(item.get())).collect();
        return format!("[{}]", parts.join(","));
    }
    json.to_owned()
}

/// A folder of this scene's own.
fn folder(scene: &Scene) -> std::path::PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&scene.name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The validator of a schema of `deploy/schemas`, formats asserted.
pub(crate) fn validator(name: &str) -> jsonschema::Validator {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/schemas").join(name);
    let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap()
}

#[test]
fn the_views_and_the_renderer_give_the_same_json() {
    let scene = Scene::new("views", 1);
    insert(&scene, scaled(6_000, 60_000));
    for (form, view, column) in
        [("purview", "purview_export", "purview_log"), ("o365", "o365_export", "o365_record")]
    {
        let rendered = scene.done(&["export", form]);
        let viewed =
            scene.sql(&format!("SELECT {column} FROM audit_events.{view} ORDER BY timestamp, audit_id"));
        let (rendered, viewed): (Vec<&str>, Vec<&str>) =
            (rendered.lines().collect(), viewed.lines().collect());
        assert_eq!(rendered.len(), viewed.len(), "{form}");
        assert!(u64::try_from(rendered.len()).unwrap() > scaled(5_000, 50_000));
        for (ours, theirs) in rendered.iter().zip(&viewed) {
            assert_eq!(sorted(ours), sorted(theirs), "{form}");
        }
    }
    // Settings change what they name.
    let set = scene.set("PURVIEW_DOMAIN", "example.com").set("PURVIEW_IDENTITY", "object");
    let line = set.done(&["export", "purview", "--to", "2026-01-01T00:00:02Z"]);
    assert!(line.contains(r#"claims/upn":"user-1"#) && line.contains("@example.com\""), "{line}");
}

#[test]
fn lines_are_valid_and_in_the_order_of_time_over_partitions_and_what_has_none() {
    let scene = Scene::new("order", 1);
    insert(&scene, 3_000);
    // Far apart in time: in partitions of other months, and in the default partition before, between and after.
    scene.sql(
        "INSERT INTO audit_events.events (audit_id, correlation_id, timestamp, stream_id, source_partition, \
                source_offset, operation, command, actor, status) \
         SELECT md5('far' || i)::uuid, md5('c')::uuid, t::timestamptz, md5('f')::uuid, 0, i, 'far', 'c', 'a', 'Success' \
           FROM unnest(ARRAY['0001-01-01T00:00:00Z', '9999-12-31T23:59:59.999999Z', '2026-02-10T00:00:00Z', \
                             '2024-05-05T05:05:05Z', '2026-02-10T00:00:00Z']) WITH ORDINALITY AS far (t, i)",
    );
    let in_default = scene.number("SELECT count(*) FROM audit_events.events_default");
    assert!(in_default >= 3, "{in_default}");
    for (form, schema, time, id) in [
        ("trust", "trust-log.schema.json", "timestamp", "audit_id"),
        ("purview", "purview-log.schema.json", "time", ""),
        ("events", "event.schema.json", "timestamp", "audit_id"),
        ("o365", "o365.schema.json", "Timestamp", "Id"),
    ] {
        let validator = validator(schema);
        let text = scene.done(&["export", form]);
        let mut last = (String::new(), String::new());
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            // Rows that no record can make: metadata or extra that is no object.
            let is_strange = |key: &str, may_be_null: bool| {
                value.get(key).is_some_and(|value| !(value.is_object() || may_be_null && value.is_null()))
            };
            let is_by_hand =
                is_strange("Metadata", false) || is_strange("metadata", true) || is_strange("Extra", true);
            let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
            assert!(errors.is_empty() || is_by_hand, "{errors:?} {line}");
            let place =
                (value[time].as_str().unwrap().to_owned(), value[id].as_str().unwrap_or("").to_owned());
            // The full text of a time that was cut is longer, and one second can't be compared as text.
            let is_cut = place.0.len() != 27;
            assert!(is_cut || last <= place, "{last:?} {place:?}");
            if !is_cut {
                last = place;
            }
        }
        let expect = if ["purview", "o365"].contains(&form) { " WHERE purview_compatible" } else { "" };
        let count = scene.number(&format!("SELECT count(*) FROM audit_events.events{expect}"));
        assert_eq!(u64::try_from(text.lines().count()).unwrap(), count, "{form}");
    }
}

#[test]
fn filters_choose_and_times_are_half_open() {
    let scene = Scene::new("filters", 1);
    insert(&scene, 2_000);
    // What would end a text in SQL, begin another one or be a parameter.
    let hostile = r#"it's \' $1 %s "q" -- $$ ;"#;
    scene.sql(&format!(
        "INSERT INTO audit_events.events (audit_id, correlation_id, timestamp, stream_id, source_partition, \
                source_offset, operation, command, actor, status) \
         SELECT md5('h' || i)::uuid, md5('c')::uuid, '2026-01-01', md5('h')::uuid, 0, i, 'hostile', 'c', \
                (ARRAY[$q${hostile}$q$, 'other'])[i], 'Success' FROM generate_series(1, 2) AS i"
    ));
    let (from, to) = ("2026-01-01T00:05:00.000300Z", "2026-01-01T00:20:00.000200Z");
    let actor = scene.sql("SELECT actor FROM audit_events.events WHERE source_offset = 700");
    let correlation = scene.sql("SELECT correlation_id FROM audit_events.events WHERE source_offset = 700");
    for (args, condition) in [
        (vec!["--from", from, "--to", to], format!("timestamp >= '{from}' AND timestamp < '{to}'")),
        (vec!["--from", from], format!("timestamp >= '{from}'")),
        (vec!["--to", to], format!("timestamp < '{to}'")),
        (vec!["--from", "2026-01-01", "--to", "2026-01-02"], "true".into()),
        (vec!["--to", "2026-01-01"], "false".into()),
        (vec!["--tenant", "tenant-1"], "tenant_id = 'tenant-1'".into()),
        (
            vec!["--operation", "op-2", "--tenant", "tenant-0"],
            "operation = 'op-2' AND tenant_id = 'tenant-0'".into(),
        ),
        (vec!["--actor", &actor, "--from", from], format!("actor = $q${actor}$q$ AND timestamp >= '{from}'")),
        (vec!["--correlation-id", &correlation], format!("correlation_id = '{correlation}'")),
        (vec!["--actor", "nobody"], "false".into()),
        (vec!["--actor", hostile], "source_offset = 1 AND operation = 'hostile'".into()),
        (vec!["--actor", "nobody' OR 'a' = 'a"], "false".into()),
        (vec!["--tenant", r"nobody\' OR 1 = 1 --"], "false".into()),
    ] {
        let mut all = vec!["export", "trust"];
        all.extend(&args);
        let found: Vec<String> = scene
            .done(&all)
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["audit_id"].as_str().unwrap().to_owned())
            .collect();
        let expect = scene.sql(&format!(
            "SELECT audit_id FROM audit_events.events WHERE {condition} ORDER BY timestamp, audit_id"
        ));
        assert_eq!(found.join("\n"), expect, "{args:?}");
    }
    for (args, code, part) in [
        (vec!["--from", "yesterday"], 2, "a time such as"),
        (vec!["--from", to, "--to", from], 2, "is not before"),
        (vec!["--correlation-id", "x"], 2, "invalid value"),
        (vec!["--format", "xml"], 2, "jsonl, csv"),
        (vec!["--force"], 2, "--output"),
        (vec!["--database-url", "postgresql://audit:audit@127.0.0.1:1/x"], 3, "check that PostgreSQL runs"),
    ] {
        let mut all = vec!["export", "events"];
        all.extend(&args);
        let output = scene.command(&all);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(part) && output.stdout.is_empty(), "{args:?}: {said}");
    }
    assert_eq!(scene.command(&["export", "everything"]).status.code(), Some(2));
}

#[test]
fn postgresql_reads_the_csv_back_as_it_was() {
    let scene = Scene::new("csv", 1);
    insert(&scene, 2_000);
    let path = folder(&scene).join("events.csv");
    let name = path.to_str().unwrap();
    let said = scene.done(&["export", "events", "--format", "csv", "-o", name]);
    assert_eq!(said, format!("2,000 events in {name}\n"));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.starts_with(
            "audit_id,correlation_id,timestamp,operation,command,args,actor,status,duration_ms,"
        )
    );
    // As the superuser: the account under test may not read files. Its own parser is the judge of the quoting.
    let columns = text.lines().next().unwrap();
    let url = scene.setting("DATABASE_URL");
    let copied = Command::new("psql")
        .args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", url])
        .args(["-c", "CREATE TABLE public.back (LIKE audit_events.events)"])
        .args([
            "-c",
            "ALTER TABLE public.back ALTER stream_id DROP NOT NULL, ALTER source_offset DROP NOT NULL",
        ])
        .args([
            "-c",
            "ALTER TABLE public.back ALTER ingested_at DROP NOT NULL, ALTER source_partition DROP NOT NULL",
        ])
        .args(["-c", &format!("\\copy public.back ({columns}) FROM '{name}' (FORMAT csv, HEADER match)")])
        .output()
        .unwrap();
    assert!(copied.status.success(), "{copied:?}");
    // An address with a mask (a row inserted by hand) loses it, by the rule for addresses. Extra is without the
    // full text of a time, which stands in its column.
    let plain = "audit_id, correlation_id, timestamp, operation, command, args, actor, status, duration_ms, \
        result_signature, client_app, host(caller_ip_address), federated_source, query_intent, bypass_llm, \
        trust_score::text, purview_compatible, metadata, schema_version, tenant_id";
    for (one, other) in [("audit_events.events", "public.back"), ("public.back", "audit_events.events")] {
        let lost =
            scene.sql(&format!("SELECT {plain} FROM {one} EXCEPT ALL SELECT {plain} FROM {other} LIMIT 3"));
        assert_eq!(lost, "", "in {one}, not in {other}");
    }
    for form in ["purview", "trust", "o365"] {
        let text = scene.done(&["export", form, "--format", "csv", "--actor", "user-1"]);
        assert!(text.lines().next().unwrap().matches(',').count() >= 8, "{text}");
    }
}

#[test]
fn a_file_is_there_whole_or_not_at_all() {
    let scene = Scene::new("file", 1);
    insert(&scene, 500);
    let folder = folder(&scene);
    let path = folder.join("trust.jsonl");
    let name = path.to_str().unwrap();
    let args = ["export", "trust", "-o", name];
    scene.done(&args);
    let first = std::fs::read(&path).unwrap();
    assert_eq!(first.iter().filter(|byte| **byte == b'\n').count(), 500);
    let refused = scene.command(&args);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is there already; --force replaces it"));
    scene.done(&["export", "trust", "-o", name, "--force", "--to", "2026-01-01T00:00:11Z"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 10);
    // A row that no event can be, in the middle of an export: an error, and the file is as it was.
    scene.sql(
        "INSERT INTO audit_events.events (audit_id, correlation_id, timestamp, stream_id, source_partition, \
                source_offset, operation, command, actor, status) \
         VALUES (md5('x')::uuid, md5('c')::uuid, 'infinity', md5('f')::uuid, 0, 1, 'o', 'c', 'a', 'Success')",
    );
    let broken = scene.command(&["export", "trust", "-o", name, "--force"]);
    let said = String::from_utf8_lossy(&broken.stderr);
    assert!(broken.status.code() == Some(1) && said.contains("outside of the years 0001 to 9999"), "{said}");
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 10);
    let unwritable = scene.command(&["export", "trust", "-o", "/nowhere/at/all"]);
    assert_eq!(unwritable.status.code(), Some(1), "{unwritable:?}");
    let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["trust.jsonl"], "no temporary file stays");
}

#[test]
fn what_is_exported_and_sent_again_is_all_duplicates() {
    let scene = Scene::new("again", 2);
    let count = 500;
    scene.produce(&PLAN, 0, count);
    let mut daemon = scene.daemon();
    scene.wait_until_read(count, Duration::from_secs(30));
    let (first, path) = (PLAN.totals(count), folder(&scene).join("events.jsonl"));
    scene.done(&["export", "events", "-o", path.to_str().unwrap()]);
    let input = std::fs::File::open(&path).unwrap();
    let sent = Command::new(env!("CARGO_BIN_EXE_audit-consumer"))
        .args(["emit", "--topic", &scene.topic, "--kafka-brokers", scene.setting("KAFKA_BROKERS")])
        .stdin(input)
        .output()
        .unwrap();
    assert!(sent.status.success(), "{sent:?}");
    scene.wait_until_read(count + first.events, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let account = scene.verify();
    assert_eq!(account.total("events"), first.events);
    assert_eq!(account.total("duplicates"), first.duplicates + first.events);
}

/// Runs `command` to its end; returns how long it took and the most memory it had, in KiB.
fn watched(command: &mut Command) -> (Duration, u64) {
    let started_at = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let (path, mut peak_kib) = (format!("/proc/{}/status", child.id()), 0);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak_kib = peak_kib.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success(), "{command:?}");
    (started_at.elapsed(), peak_kib)
}

#[test]
fn memory_does_not_grow_with_what_is_exported() {
    let scene = Scene::new("memory", 1);
    let count = scaled(200_000, 1_000_000);
    insert(&scene, count);
    let url = scene.setting("DATABASE_URL").to_owned();
    let folder = folder(&scene);
    let export = |form: &str, to: &str| {
        let path = folder.join(format!("{form}-{to}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_audit-consumer"));
        command.args(["export", form, "--database-url", &url, "--to", to, "--force", "-o"]).arg(&path);
        watched(&mut command)
    };
    let (_, few_kib) = export("purview", "2026-01-01T00:10:00Z");
    let (took, all_kib) = export("purview", "2027-01-01");
    let (events_took, _) = export("events", "2027-01-01");
    assert!(few_kib > 1_000, "{few_kib}");
    assert!(all_kib < 64 << 10, "{all_kib} KiB");
    assert!(all_kib < few_kib + (8 << 10), "{few_kib} KiB for a few, {all_kib} KiB for all");
    let copy = "\\copy (SELECT purview_log FROM audit_events.purview_export ORDER BY timestamp, audit_id) TO '/dev/null'";
    let (view_took, view_kib) = watched(Command::new("psql").args(["-Xq", "-d", &url, "-c", copy]));
    let copy =
        "\\copy (SELECT * FROM audit_events.events ORDER BY timestamp, audit_id) TO '/dev/null' (FORMAT csv)";
    let (copy_took, _) = watched(Command::new("psql").args(["-Xq", "-d", &url, "-c", copy]));
    eprintln!(
        "{count} events: export purview {took:?}, {all_kib} KiB ({few_kib} KiB for 600); export events {events_took:?}; \
         psql \\copy of the view {view_took:?}, {view_kib} KiB; of the table as csv {copy_took:?}"
    );
}

#[test]
fn a_signal_in_the_middle_leaves_no_file() {
    let scene = Scene::new("signal", 1);
    insert(&scene, 100_000);
    let folder = folder(&scene);
    let names = || -> Vec<std::fs::DirEntry> {
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap()).collect()
    };
    let mut export = Command::new(env!("CARGO_BIN_EXE_audit-consumer"))
        .args(["export", "purview", "--database-url", scene.setting("DATABASE_URL"), "-o"])
        .arg(folder.join("all.jsonl"))
        // So slow that a row is always there, and that it takes half a minute when nobody stops it.
        .env("FAILPOINTS", "export_after_write=sleep(50)")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("some lines are written", Duration::from_secs(20), || {
        names().iter().any(|entry| entry.metadata().is_ok_and(|file| file.len() > 0))
    });
    assert!(names()[0].file_name().to_str().unwrap().starts_with(".all.jsonl.partial-"));
    kill_process(Pid::from_child(&export), Signal::TERM).unwrap();
    let told_at = Instant::now();
    let mut said = String::new();
    export.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(export.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("stopped by a signal"), "{said}");
    assert!(told_at.elapsed() < Duration::from_secs(10), "not at once, but after {:?}", told_at.elapsed());
    assert!(names().is_empty());
}

#[test]
fn an_export_outlives_the_statement_timeout_and_keeps_no_partition_from_being_made() {
    let scene = Scene::new("long", 1);
    insert(&scene, 60_000);
    // Nobody reads its output: it stands in the middle of January's partition.
    let mut export = Command::new(env!("CARGO_BIN_EXE_audit-consumer"))
        .args(["export", "events", "--from", "2025-12-31", "--statement-timeout-ms", "300"])
        .args(["--database-url", scene.setting("DATABASE_URL")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                AND application_name = 'audit-consumer/operator' AND wait_event = 'ClientWrite'";
    wait_for("the export waits for its reader", Duration::from_secs(20), || scene.number(busy) == 1);
    std::thread::sleep(Duration::from_millis(600));
    // What the default partition's lock would hold up.
    scene.sql("SET lock_timeout = '2s'; SELECT audit_events.ensure_partition('2020-06-01')");
    let mut text = String::new();
    export.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(export.wait().unwrap().success());
    assert_eq!(text.lines().count(), 60_000);
}

#[test]
fn who_may_only_read_may_export_and_who_may_write_may_keep_the_registry() {
    let scene = Scene::new("rights", 1);
    insert(&scene, 100);
    let role = format!("{}_r", scene.name);
    for group in ["read", "write"] {
        scene.sql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'r' IN ROLE audit_events_{group}"));
        let url = scene.setting("DATABASE_URL").replace("audit:audit@", &format!("{role}:r@"));
        let run = |args: &[&str]| scene.command_with(args, &[("DATABASE_URL", url.as_str())]);
        for args in [&["export", "purview"][..], &["trust"], &["sources", "list"]] {
            let output = run(args);
            assert!(output.status.success(), "{group} {args:?}: {output:?}");
        }
        let changed = run(&["sources", "disable", "local"]);
        assert_eq!(changed.status.success(), group == "write", "{changed:?}");
        let view = format!(
            "SET ROLE {role}; SELECT count(*) FROM audit_events.purview_export, audit_events.o365_export"
        );
        assert_eq!(scene.number(&view), 86 * 86);
        scene.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
    }
}
