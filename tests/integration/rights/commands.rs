//! Which command needs which role: README's table, by running each.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::Login;
use crate::account::PLAN;
use crate::scene::{Scene, wait_for};

/// The columns of README's table. Those that may nothing come first: what they leave is there for the others.
const ROLES: [&str; 5] =
    ["audit_reader", "audit_events_read", "audit_admin", "audit_writer", "audit_events_write"];
const SPOOLED: u64 = 200;

/// Whether a command may be run, for each of `ROLES`, as README says; by the command's name.
fn table_of_readme() -> Vec<(String, Vec<bool>)> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let mut lines = readme.lines().skip_while(|line| !line.starts_with("| command | `audit_"));
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let head = cells(lines.next().unwrap());
    let columns = ROLES.map(|role| head.iter().position(|cell| *cell == format!("`{role}`")).unwrap());
    let rows = lines.skip(1).take_while(|line| line.starts_with('|')).map(cells);
    rows.flat_map(|row| {
        let may: Vec<bool> = columns.iter().map(|column| row[*column] == "yes").collect();
        let names: Vec<String> = row[0].split(", ").map(|name| name.trim_matches('`').to_owned()).collect();
        names.into_iter().map(move |name| (name, may.clone()))
    })
    .collect()
}

/// Runs a command as the role of `url`: `true`: it did its work; `false`: PostgreSQL refused it. Else it panics.
#[track_caller]
fn could(scene: &Scene, url: &str, args: &[&str], settings: &[(&str, &str)]) -> bool {
    let settings: Vec<_> = settings.iter().copied().chain([("DATABASE_URL", url)]).collect();
    let output = scene.command_with(args, &settings);
    let said =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    let is_refused = said.contains("permission denied");
    assert!(output.status.success() != is_refused, "{args:?}: {:?}: {said}", output.status);
    !is_refused
}

fn runs(scene: &Scene, url: &str) -> bool {
    let mut daemon = scene.daemon_with(&[("DATABASE_URL", url)]);
    let mut is_held = false;
    wait_for("it reads, or is refused", Duration::from_secs(60), || {
        is_held = daemon.holds().iter().any(|code| code == "database_misconfigured");
        is_held || daemon.partition_count() == 1
    });
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    !is_held
}

/// Leaves records in a spool, of a daemon that is gone.
fn spool_and_die(scene: &Scene, dir: &str) {
    let daemon = scene.daemon_with(&[("SPOOL_DIR", dir), ("SPOOL_AFTER_MS", "0")]);
    daemon.wait_until_reading(1);
    let lock = |limit: i32| format!("ALTER DATABASE {} CONNECTION LIMIT {limit}", scene.name);
    scene.sql(&lock(0));
    scene.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
        WHERE usename = 'audit' AND datname = current_database()",
    );
    scene.produce(&PLAN, 1_000, 1_000 + SPOOLED);
    wait_for("the spool holds what came", Duration::from_secs(60), || {
        daemon.status().is_some_and(|status| status["spool"]["records"].as_u64() >= Some(SPOOLED))
    });
    daemon.kill();
    scene.sql(&lock(-1));
}

/// The id of a dead letter that is there to be redriven or given up.
fn letter(scene: &Scene) -> String {
    scene.sql("SELECT min(dead_letter_id) FROM audit_events.dead_letter_states WHERE state IN ('waiting', 'relayed')")
}

fn stream(scene: &Scene) -> String {
    scene.sql(&format!("SELECT stream_id FROM audit_events.streams WHERE topic = '{}'", scene.topic))
}

/// Runs what README calls `name` as the role of `url`, with what it needs made before.
#[expect(clippy::too_many_lines, reason = "a table, an entry a command")]
fn attempt(scene: &Scene, name: &str, url: &str, (number, spool): (usize, &str)) -> bool {
    let run = |args: &[&str]| could(scene, url, args, &[]);
    let source = format!("{}{number}", name.rsplit(' ').next().unwrap());
    match name {
        "run" => runs(scene, url),
        "migrate" | "verify" | "trust" | "offsets list" | "dlq list" | "projections list"
        | "sources list" => run(&name.split(' ').collect::<Vec<_>>()),
        "export" => run(&["export", "purview"]),
        "import" => {
            let file = format!("{spool}-{number}.jsonl");
            std::fs::write(&file, "{\"time\": \"2026-02-17T00:00:00Z\", \"operationName\": \"none\"}\n")
                .unwrap();
            run(&["import", "--files", &file])
        }
        "spool drain" => run(&["spool", "drain", "--dir", spool]),
        "dlq show" => run(&["dlq", "show", &letter(scene)]),
        "dlq redrive" | "dlq discard" => {
            let verb = name.trim_start_matches("dlq ");
            run(&["dlq", verb, "--ids", &letter(scene), "--why", "a test"])
        }
        "dlq resume" => {
            scene.sql(&format!(
                "INSERT INTO audit_events.offset_actions (group_id, stream_id, partition, action, actor, reason, details) \
                 VALUES ('{}', '{}', 0, 'open_breaker', 'a test', 'a test', '{{}}')",
                scene.name,
                stream(scene)
            ));
            run(&["dlq", "resume", "--topic", &scene.topic, "--why", "a test"])
        }
        "projections adopt" => {
            let instance = scene.sql("SELECT gen_random_uuid()");
            scene.sql(&format!(
                "INSERT INTO audit_events.projection_instances (sink, instance_id, intended) VALUES ('purview', '{instance}', 1); \
                 INSERT INTO audit_events.projection_segments VALUES \
                 ('purview', '{instance}', 'audit_20260101.jsonl', 0, 10, 1, 1, '{{}}', ARRAY['{}'::uuid], ARRAY[0], ARRAY[0], ARRAY[1])",
                stream(scene)
            ));
            run(&["projections", "adopt", &instance, "--reason", "a test"])
        }
        "sources show" => run(&["sources", "show", "local"]),
        "sources add" => run(&["sources", "add", &source, "--type", "native", "--handler", "/x"]),
        "sources enable" | "sources disable" => {
            run(&["sources", name.trim_start_matches("sources "), "kafka"])
        }
        "offsets adopt" => {
            let other = format!("{}.other", scene.name);
            let args = [
                "offsets",
                "adopt",
                "--topic",
                &scene.topic,
                "--from-group",
                &scene.name,
                "--reason",
                "a test",
            ];
            let is_done = could(scene, url, &args, &[("KAFKA_GROUP_ID", &other)]);
            for table in ["streams", "consumer_offsets"] {
                scene.sql(&format!(
                    "UPDATE audit_events.{table} SET group_id = '{}' WHERE group_id = '{other}'",
                    scene.name
                ));
            }
            is_done
        }
        "retention list" => run(&["retention", "list"]),
        "retention plan" => run(&["retention", "plan", "--keep", "1d"]),
        "retention apply" => run(&["retention", "apply", "--keep", "1d", "--reason", "a test"]),
        "retention hold" => {
            run(&["retention", "hold", &format!("actor=nobody {number}"), "--reason", "a test"])
        }
        "retention release" => {
            scene.sql("INSERT INTO audit_events.legal_holds VALUES ('actor', 'somebody', 'me', 'a test') ON CONFLICT DO NOTHING");
            run(&["retention", "release", "actor=somebody", "--reason", "a test"])
        }
        "offsets declare-gap" => {
            let next = scene.number(&format!(
                "SELECT next_offset FROM audit_events.consumer_offsets WHERE stream_id = '{}'",
                stream(scene)
            ));
            scene.delete_records(0, i64::try_from(next).unwrap() + 10);
            run(&[
                "offsets",
                "declare-gap",
                "--topic",
                &scene.topic,
                "--partition",
                "0",
                "--reason",
                "a test",
                "--yes",
            ])
        }
        other => panic!("README's table names {other}, which no test runs"),
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of settings, and the comparison")]
fn each_command_needs_the_role_that_readme_says() {
    let table = table_of_readme();
    let scene = Scene::new("commands", 1);
    let logins =
        ROLES.map(|role| Login::new(&scene, role.trim_start_matches("audit_"), &format!("IN ROLE {role}")));
    scene.produce(&PLAN, 0, 1_000);
    let mut daemon = scene.daemon();
    scene.wait_until_read(1_000, Duration::from_secs(60));
    wait_for("dead letters are relayed", Duration::from_secs(60), || {
        scene.number("SELECT count(*) FROM audit_events.dead_letters WHERE relayed_at IS NULL") == 0
    });
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let spool = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-spool", scene.name));
    let spool = spool.to_str().unwrap();

    // What leaves the account as it is comes first; then what takes records away from it.
    let rank = |name: &str| match name {
        "run" => 0,
        "spool drain" => 2,
        "offsets declare-gap" => 3,
        "projections adopt" => 4,
        _ => 1,
    };
    let mut table: Vec<_> = table.into_iter().collect();
    table.sort_by_key(|(name, _)| rank(name));
    let mut wrong = Vec::new();
    for (name, expect) in &table {
        match name.as_str() {
            "spool drain" => spool_and_die(&scene, spool),
            "offsets declare-gap" => scene.produce(&PLAN, 2_000, 2_100),
            _ => {}
        }
        let could: Vec<bool> = logins
            .iter()
            .enumerate()
            .map(|(number, login)| attempt(&scene, name, &login.url(), (number, spool)))
            .collect();
        if could != *expect {
            wrong.push(format!("{name}: {ROLES:?}: README says {expect:?}, but {could:?}"));
        }
        if name == "spool drain" {
            let stored =
                "SELECT sum(events + duplicates + dead_letters) >= 1200 FROM audit_events.consumer_offsets";
            assert_eq!(scene.sql(stored), "t");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Every command that asks PostgreSQL for rows is in the table.
    let named: Vec<&str> = table.iter().map(|(name, _)| name.as_str()).collect();
    for (group, commands) in [
        ("", ["run", "migrate", "import", "export", "trust", "verify"].as_slice()),
        ("offsets ", &["list", "adopt", "declare-gap"]),
        ("dlq ", &["list", "show", "redrive", "discard", "resume"]),
        ("projections ", &["list", "adopt"]),
        ("sources ", &["list", "show", "add", "enable", "disable"]),
        ("retention ", &["list", "plan", "apply", "hold", "release"]),
        ("spool ", &["drain"]),
    ] {
        for command in commands {
            assert!(
                named.contains(&format!("{group}{command}").as_str()),
                "README's table lacks {group}{command}"
            );
        }
    }
    let usage = scene.done(&["--help"]);
    let known: Vec<&str> = usage
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(known.len() > 10, "{known:?}");
    for command in known.iter().filter(|command| !["check", "emit", "healthcheck", "help"].contains(command))
    {
        assert!(
            named.iter().any(|name| name.split(' ').next() == Some(*command)),
            "README's table lacks {command}"
        );
    }
}

/// Grafana's macros, for all time.
fn expand(sql: &str) -> String {
    let mut sql = sql.replace("${actor:sqlstring}", "''").replace("${tenant:sqlstring}", "''");
    sql = sql.replace("${correlation_id:sqlstring}", "''");
    while let Some((before, rest)) = sql.split_once("$__timeFilter(") {
        let (column, after) = rest.split_once(')').unwrap();
        sql = format!("{before}{column} > now() - interval '1 year'{after}");
    }
    while let Some((before, rest)) = sql.split_once("$__timeGroupAlias(") {
        let (arguments, after) = rest.split_once(')').unwrap();
        let column = arguments.split(',').next().unwrap();
        sql = format!("{before}date_trunc('hour', {column}) AS time{after}");
    }
    sql
}

#[test]
fn the_dashboard_for_auditors_works_for_a_reader_of_one_tenant() {
    let scene = Scene::new("auditor", 1);
    super::insert_events(&scene, 20);
    let login = Login::new(&scene, "r", "IN ROLE audit_reader");
    scene.sql(&format!("INSERT INTO audit_events.reader_tenants VALUES ('{}', 'a')", login.name));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/dashboards/compliance.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let panels = panels.iter().chain(panels.iter().filter_map(|panel| panel["panels"].as_array()).flatten());
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let questions: Vec<&str> = targets.filter_map(|target| target["rawSql"].as_str()).collect();
    assert!(questions.len() >= 20, "{}", questions.len());
    for question in &questions {
        let answer = login.sql(&expand(question)).unwrap();
        let is_of_others = answer.contains("actor of b") || answer.contains("actor of c");
        assert!(!is_of_others, "{question}: {answer}");
    }
    let events = questions.iter().find(|question| question.contains("count(*) AS events FROM")).unwrap();
    assert_eq!(login.sql(&expand(events)).as_deref(), Ok("20"));
}
