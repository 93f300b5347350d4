//! The road from the predecessor: its schema adopted, its table and its files imported, each event once.

mod adoption;
mod bounds;
mod past;
mod same;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use self::past::{CORE, OURS, Past, append, audit_id, event};
use crate::scene::{Scene, scaled};

/// Which events were kept where: `[start, end)`.
struct Plan {
    /// In Kafka, in the table and in the files.
    whole: (u64, u64),
    /// In the table and in the files: Kafka has deleted them.
    aged: (u64, u64),
    /// In the files alone: the table's database was away.
    outage: (u64, u64),
    /// Left by the wrapper, in the files alone.
    wrapper: (u64, u64),
    /// In the trust file alone.
    trust: (u64, u64),
}

const PLAN: Plan =
    Plan { whole: (0, 200), aged: (200, 350), outage: (350, 450), wrapper: (450, 470), trust: (470, 500) };
const EVENT_COUNT: u64 = 500;

/// Makes what `PLAN` says, with some rows and lines that can't be events.
fn past<'s>(scene: &'s Scene, place: past::Place) -> Past<'s> {
    let past = Past::new(scene, place);
    past.insert(PLAN.whole.0..PLAN.aged.1);
    scene.sql(&format!(
        "INSERT INTO {} (audit_id, correlation_id, timestamp, operation, status, actor, command, caller_ip_address) VALUES \
         (md5('a')::uuid, md5('c')::uuid, 'infinity', 'o', 'Success', 'a', 'c', '127.0.0.1'), \
         (md5('b')::uuid, md5('c')::uuid, '2026-02-18', 'o', 'Success', 'a', 'c', '10.0.0.0/8')",
        place.table()
    ));
    past.log(PLAN.whole.0..PLAN.outage.1);
    append(&past.purview_file(), "\n{\"time\": \"2026-02-17T00:00:00Z\", \"operationName\": \"rit\n   \n");
    past.log_by_wrapper(PLAN.wrapper.0..PLAN.wrapper.1);
    // Read again by the daemon, as its offsets were committed later than its lines were written.
    past.log(PLAN.outage.0..PLAN.outage.0 + 10);
    let only_trust = past.trust_file();
    let purview = std::fs::read(past.purview_file()).unwrap();
    past.log(PLAN.trust.0..PLAN.trust.1);
    std::fs::write(past.purview_file(), purview).unwrap();
    append(&only_trust, "{\"timestamp\": \"2026-02-17T00:00:00Z\", \"audit_id\": \"none\"}\n");
    past
}

fn send_to_kafka(scene: &Scene, (start, end): (u64, u64)) {
    let payloads: Vec<Option<Vec<u8>>> =
        (start..end).map(|index| Some(event(index).to_string().into_bytes())).collect();
    scene.send_all(&payloads);
}

/// Lets a daemon store what Kafka has.
fn store_from_kafka(scene: &Scene) {
    send_to_kafka(scene, PLAN.whole);
    let mut daemon = scene.daemon();
    scene.wait_until_read(PLAN.whole.1, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Imports as `args` say; returns the report.
#[track_caller]
fn import(scene: &Scene, args: &[&str]) -> Value {
    json(&scene.done(&[&["import", "--json"], args].concat()))
}

/// Imported, duplicates, dead letters and absent of all sources.
fn totals(report: &Value) -> [u64; 4] {
    ["imported", "duplicates", "dead_letters", "absent"].map(|name| report["totals"][name].as_u64().unwrap())
}

fn in_this_run(report: &Value) -> u64 {
    let sources = report["sources"].as_array().unwrap();
    sources
        .iter()
        .flat_map(|source| source["in_this_run"].as_object().unwrap().values())
        .map(|v| v.as_u64().unwrap())
        .sum()
}

/// Every event of the plan stands once, as the best of its forms tells it.
#[track_caller]
fn check_events(scene: &Scene) {
    let counts = scene.sql("SELECT count(*), count(DISTINCT audit_id) FROM audit_events.events");
    assert_eq!(counts, format!("{EVENT_COUNT}|{EVENT_COUNT}"));
    for index in [0, 3, 5, 205, 210, 351, 355, 450, 455] {
        let id = audit_id(index);
        let row = scene.sql(&format!(
            "SELECT operation, args, actor, duration_ms, client_app, host(caller_ip_address), bypass_llm FROM \
             audit_events.events WHERE audit_id = '{id}'"
        ));
        let event = event(index);
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        let flag = if event["bypass_llm"] == true { "t" } else { "f" };
        assert_eq!(
            row,
            format!("ritual.query|{}|{}|{index}|portal|10.1.2.3|{flag}", text("args"), text("actor")),
            "{index}"
        );
    }
    let of = |index: u64, what: &str| {
        scene.sql(&format!("SELECT {what} FROM audit_events.events WHERE audit_id = '{}'", audit_id(index)))
    };
    let mark = "metadata -> 'audit-consumer.imported' ->> 'from'";
    for (index, score, from, region) in [
        (15, "0.876", "", "eu"),
        (210, "0.88", "", "eu"),
        (360, "0.876", "purview", ""),
        (465, "0.876", "", "eu"),
        (480, "0.876", "trust", ""),
    ] {
        let found = [of(index, "trust_score"), of(index, mark), of(index, "metadata ->> 'region'")];
        assert_eq!(found, [score, from, region], "{index}");
    }
    assert!(of(480, "metadata -> 'audit-consumer.imported' -> 'assumed'").contains("caller_ip_address"));
    assert_eq!(of(480, "duration_ms"), "");
}

/// The commands of the code blocks of docs/MIGRATION.md that are to be typed, by section.
fn steps() -> Vec<(String, String)> {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/MIGRATION.md")).unwrap();
    let (mut section, mut is_inside, mut steps) = (String::new(), false, Vec::new());
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut section);
        } else if line.starts_with("```") {
            is_inside = line == "```sh";
        } else if is_inside && !line.starts_with("export ") {
            steps.push((section.clone(), line.to_owned()));
        }
    }
    steps
}

/// Types every step of docs/MIGRATION.md.
fn walk(scene: &Scene, past: &Past<'_>, place: past::Place, table: &str) {
    let folder = Path::new(env!("CARGO_BIN_EXE_audit-consumer")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut seen = 0;
    for (section, line) in steps() {
        if section.starts_with("5.") && seen == 4 {
            store_from_kafka(scene);
        }
        let mut command = Command::new("sh");
        command.args(["-c", &line]).env("PATH", &path).env("OLD_TABLE", table).env("OLD_LOGS", &past.logs);
        for name in ["DATABASE_URL", "KAFKA_BROKERS"] {
            command.env(name, scene.setting(name));
        }
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        let is_refused = place.schema == OURS.schema && line == "audit-consumer migrate";
        assert_eq!(output.status.code(), Some(i32::from(is_refused)), "{line}: {said} {complaint}");
        match (&section[..2], seen) {
            ("2.", 0) if is_refused => {
                assert!(
                    complaint.contains("migrate --adopt-legacy`")
                        && complaint.contains("table audit_events.events"),
                    "{complaint}"
                );
                assert_eq!(scene.number(&format!("SELECT count(*) FROM {}", place.table())), 352);
            }
            ("2.", 1) if place.schema == OURS.schema => {
                assert!(
                    said.contains("is now audit_events_legacy")
                        && said.contains("audit_events_legacy.trust_summary"),
                    "{said}"
                );
            }
            ("2.", 1) => assert!(said.contains("nothing to adopt"), "{said}"),
            ("3.", _) if line.ends_with("list") => assert!(said.contains("notion"), "{said}"),
            ("5.", _) => assert!(said.contains(" 150 ") && said.contains(" 200 "), "{said}"),
            ("7.", _) => {
                assert!(said.contains("invalid_timestamp") && said.contains("invalid_json"), "{said}")
            }
            ("8.", _) if line.starts_with("psql") => assert_eq!(said, "0\n"),
            ("8.", _) => assert!(
                said.contains("the account holds") && said.contains("imports, which have no topic"),
                "{said}"
            ),
            _ => {}
        }
        seen += 1;
    }
    assert_eq!(seen, 11, "the steps of docs/MIGRATION.md");
}

#[test]
fn the_way_of_the_migration_guide_brings_every_event_here_once() {
    for (name, place, table) in
        [("guideours", OURS, "audit_events_legacy.events"), ("guidecore", CORE, "core.audit_events")]
    {
        let scene = Scene::new(name, 1);
        scene.sql("DROP SCHEMA audit_events CASCADE; DROP TABLE _sqlx_migrations");
        let past = past(&scene, place);
        scene.sql(&format!(
            r#"UPDATE {}.federated_sources SET metadata = '{{"mcp_compatible": true, "client_secret": "hunter2", "token_env": "T"}}'
                WHERE source_name = 'notion'"#,
            place.schema
        ));
        walk(&scene, &past, place, table);
        check_events(&scene);
        let flagged = scene.sql(
            "SELECT count(*), count(source_flag) FROM audit_events.events WHERE federated_source = 'notion'",
        );
        assert_eq!(flagged, "470|0", "sources are registered before anything is stored");
        let metadata =
            scene.sql("SELECT metadata FROM audit_events.federated_sources WHERE source_name = 'notion'");
        assert_eq!(metadata, r#"{"token_env": "T", "mcp_compatible": true}"#);
        let rows_kept = scene.number(&format!("SELECT count(*) FROM {table}"));
        assert_eq!(rows_kept, 352, "nothing of the old table is gone");
        // All again, as the guide says: nothing comes to it.
        let file = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
        let files = [file(past.logs.join("purview/audit_*.jsonl")), file(past.logs.join("trust/*"))];
        let again = import(&scene, &["--table", table]);
        assert_eq!((totals(&again), in_this_run(&again)), ([150, 200, 2, 0], 0));
        let again = import(&scene, &["--files", &files[0], &files[1]]);
        // Purview: 450 lines, one torn, two blank, 20 events over 22 lines each, 10 again. Trust: 510 lines and a bad one.
        assert_eq!(in_this_run(&again), 0);
        assert_eq!(
            totals(&again)[0],
            150,
            "100 of the outage, 20 of the wrapper, 30 of the trust file alone"
        );
        assert_eq!(totals(&again)[2], 2);
        scene.verify();
        check_events(&scene);
        assert_eq!(scene.command(&["migrate", "--adopt-legacy"]).status.code(), Some(0), "again");
    }
}

#[test]
fn an_import_that_is_killed_anywhere_goes_on_and_stores_each_row_once() {
    let scene = Scene::new("importkill", 1).set("BATCH_MAX_EVENTS", "40");
    let past = past(&scene, CORE);
    store_from_kafka(&scene);
    let pattern = past.logs.join("purview/*");
    let trust = past.logs.join("trust/*");
    let files = ["import", "--files", pattern.to_str().unwrap(), trust.to_str().unwrap()];
    let table = ["import", "--table", "core.audit_events"];
    let mut killed_count = 0;
    for args in [&table[..], &files[..]] {
        // How often each is passed before it kills: the first two are passed once in a run.
        for (point, times) in [
            ("import_registered", 1),
            ("import_claimed", 1),
            ("import_before_commit", scaled(2, 4)),
            ("commit_in_copy", scaled(2, 4)),
            ("import_after_commit", 2),
        ] {
            for passed_count in 0..times {
                let action = match passed_count {
                    0 => format!("{point}=return"),
                    count => format!("{point}={count}*off->return"),
                };
                let output = scene.command_with(args, &[("FAILPOINTS", &action)]);
                let is_killed = output.status.signal() == Some(9);
                killed_count += u64::from(is_killed);
                assert!(output.status.success() || is_killed, "{action}: {output:?}");
                scene.verify();
            }
        }
        assert!(scene.command(args).status.success());
    }
    assert!(killed_count >= 12, "killed {killed_count} times");
    check_events(&scene);
    let account = scene.verify();
    assert_eq!(account.total("events"), EVENT_COUNT);
    assert_eq!(account.total("dead_letters"), 4);
    assert_eq!(in_this_run(&import(&scene, &table[1..])), 0);
}

#[test]
fn two_imports_at_once_store_each_row_once() {
    let scene = Scene::new("importtwice", 1).set("BATCH_MAX_EVENTS", "20");
    let past = past(&scene, CORE);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let output = scene.command(&["import", "--table", "core.audit_events"]);
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.success() || said.contains("took it over") || said.contains("unavailable"),
                    "{said}"
                );
            });
        }
    });
    let report = import(&scene, &["--table", "core.audit_events"]);
    assert_eq!(totals(&report), [350, 0, 2, 0]);
    assert_eq!(scene.verify().total("events"), 350);
    drop(past);
}

#[test]
fn a_dry_run_foresees_and_stores_nothing() {
    let scene = Scene::new("importdry", 1);
    let past = past(&scene, CORE);
    store_from_kafka(&scene);
    let before = scene.sql("SELECT count(*) FROM audit_events.streams");
    let (purview, trust) = (past.purview_file(), past.trust_file());
    let files = ["--files", trust.to_str().unwrap(), purview.to_str().unwrap()];
    let foreseen = [
        totals(&import(&scene, &["--table", "core.audit_events", "--dry-run"])),
        totals(&import(&scene, &[&files[..], &["--dry-run"]].concat())),
    ];
    assert_eq!(foreseen[0], [150, 200, 2, 0]);
    assert_eq!(scene.sql("SELECT count(*) FROM audit_events.streams"), before);
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.events"), 200);
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.imports"), 0);
    // Of the files alone, what is foreseen is what comes.
    let done = totals(&import(&scene, &files));
    assert_eq!((done, done[0]), (foreseen[1], 300));
}

#[test]
fn a_source_that_changed_is_refused_and_can_be_imported_anew() {
    let scene = Scene::new("importchanged", 1);
    let past = past(&scene, CORE);
    let purview = past.purview_file();
    let file = ["--files", purview.to_str().unwrap()];
    import(&scene, &["--table", "core.audit_events"]);
    import(&scene, &file);
    let stored = scene.sql("SELECT count(*) FROM audit_events.events");
    past.insert(600..601);
    past.log(600..602);
    for args in [&["--table", "core.audit_events"][..], &file[..]] {
        let output = scene.command(&[&["import"], args].concat());
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("it has changed since its import began") && said.contains("--name"), "{said}");
    }
    assert_eq!(scene.sql("SELECT count(*) FROM audit_events.events"), stored);
    let report = import(&scene, &["--table", "core.audit_events", "--name", "second"]);
    assert_eq!(totals(&report), [1, 350, 2, 0]);
    assert_eq!(report["sources"][0]["stream"], "import:core.audit_events@second");
    let report = import(&scene, &[&file[..], &["--name", "second"]].concat());
    assert_eq!(totals(&report)[0], 1, "{report:#}");
    // The same length, other bytes.
    let text = std::fs::read_to_string(&purview).unwrap().replacen("portal", "postal", 1);
    std::fs::write(&purview, text).unwrap();
    let output = scene.command(&["import", file[0], file[1], "--name", "second"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("other content of the same size"));
    scene.verify();
}

#[test]
fn what_can_not_be_imported_is_said_in_one_line() {
    let scene = Scene::new("importunfit", 1);
    scene.sql("CREATE TABLE public.other (audit_id uuid, timestamp timestamptz)");
    for (args, part) in [
        (&["--table", "core.audit_events"][..], "there is no table"),
        (&["--table", "audit_events.events"], "own table"),
        (&["--table", "public.other"], "has no column correlation_id, operation"),
        (&["--files", "/nowhere/audit_*.jsonl"], "/nowhere/audit_*.jsonl"),
    ] {
        let output = scene.command(&[&["import"], args].concat());
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(scene.command(&["import"]).status.code(), Some(2));
    assert_eq!(scene.command(&["import", "--table", "a", "--files", "b"]).status.code(), Some(2));
}

#[test]
fn what_an_import_rejects_keeps_its_line_and_goes_to_no_topic() {
    let scene = Scene::new("importletters", 1);
    let past = Past::new(&scene, CORE);
    past.log(0..3);
    append(&past.purview_file(), "no event\n");
    // The same event, told otherwise.
    let lines = std::fs::read_to_string(past.purview_file()).unwrap();
    let other = lines.lines().next().unwrap().replace("portal", "console");
    append(&past.purview_file(), &format!("{other}\n"));
    let report = import(&scene, &["--files", past.purview_file().to_str().unwrap()]);
    assert_eq!(totals(&report), [3, 0, 2, 0]);
    let letters = scene.sql(
        "SELECT source_offset, reason, convert_from(payload, 'UTF8'), relayed_at IS NULL FROM audit_events.dead_letters \
          ORDER BY source_offset",
    );
    assert_eq!(letters, format!("4|invalid_json|no event|t\n5|audit_id_conflict|{other}|t"));
    let in_group = [("KAFKA_GROUP_ID", "import")];
    let redriven = scene.command_with(&["dlq", "redrive", "--all", "--why", "mended"], &in_group);
    let said = String::from_utf8(redriven.stdout).unwrap();
    assert!(redriven.status.code() == Some(1) && said.contains("has no topic"), "{said}");
    let listed = scene.command_with(&["dlq", "list"], &in_group);
    assert!(String::from_utf8(listed.stdout).unwrap().contains("audit_id_conflict"));
    // A daemon whose group has the same name has nothing to relay.
    let mut daemon = scene.daemon_with(&in_group);
    daemon.wait_until_reading(1);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    assert!(scene.done(&["offsets", "list"]).contains("import:"));
    assert!(scene.topics().iter().all(|topic| !topic.starts_with("import")));
    let discarded = scene.command_with(&["dlq", "discard", "--all", "--why", "seen"], &in_group);
    assert!(discarded.status.success(), "{discarded:?}");
    scene.verify();
}
