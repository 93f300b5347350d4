//! Least privilege: what each role may do, and nothing else; what a tenant's reader sees, and can't see.

mod commands;
mod silence;

use std::process::Command;
use std::time::Duration;

use crate::account::PLAN;
use crate::scene::{Scene, wait_for};

/// A login that goes with its test.
struct Login<'s> {
    scene: &'s Scene,
    name: String,
}

impl<'s> Login<'s> {
    /// A login with `attributes`, such as `IN ROLE audit_writer`.
    fn new(scene: &'s Scene, suffix: &str, attributes: &str) -> Self {
        let name = format!("{}_{suffix}", scene.name);
        scene.sql(&format!("CREATE ROLE {name} LOGIN PASSWORD 'x' {attributes}"));
        Self { scene, name }
    }

    fn url(&self) -> String {
        self.scene.setting("DATABASE_URL").replace("audit:audit@", &format!("{}:x@", self.name))
    }

    /// Runs SQL as this login; the answer, or what was refused.
    fn sql(&self, sql: &str) -> Result<String, String> {
        let output = Command::new("psql")
            .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-c", sql])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    #[track_caller]
    fn check_refused(&self, sql: &str) {
        let said = self.sql(sql);
        let is_refused = said.as_ref().is_err_and(|said| said.contains("permission denied"));
        assert!(is_refused, "{}: {sql}: {said:?}", self.name);
    }
}

impl Drop for Login<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.scene.sql(&format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name));
        }
    }
}

/// Stores `count` events of each of the tenants a, b and c, by hand.
fn insert_events(scene: &Scene, count: u64) {
    scene.sql(&format!(
        "WITH s AS (INSERT INTO audit_events.streams (stream_id, cluster_id, topic, topic_id, group_id) \
                    VALUES (gen_random_uuid(), 'c', 't', gen_random_uuid(), 'g') RETURNING stream_id), \
              p AS (INSERT INTO audit_events.consumer_offsets (group_id, stream_id, partition, first_offset, next_offset, events) \
                    SELECT 'g', stream_id, 0, 0, {0}, {0} FROM s) \
         INSERT INTO audit_events.events (audit_id, correlation_id, timestamp, stream_id, source_offset, \
                     source_partition, operation, command, actor, status, tenant_id) \
         SELECT gen_random_uuid(), gen_random_uuid(), now() - i * interval '1 s', stream_id, i, 0, 'o', 'c', \
                'actor of ' || chr((97 + i % 3)::integer), 'Success', chr((97 + i % 3)::integer) \
           FROM s, generate_series(0, {0} - 1) AS i",
        count * 3
    ));
}

/// What a role may do with tables and views beyond SELECT, and with functions that are not for everybody.
const GRANTED: &str = "
SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
    SELECT c.relname || ': ' || string_agg(a.privilege_type, ' ' ORDER BY a.privilege_type) AS line
      FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
     WHERE c.relnamespace = 'audit_events'::regnamespace AND a.grantee = to_regrole(:role)
       AND a.privilege_type <> 'SELECT' AND c.relname !~ '^events_(p[0-9]|default)'
     GROUP BY c.relname
    UNION ALL
    SELECT c.relname || ' (' || string_agg(DISTINCT t.attname, ' ' ORDER BY t.attname) || '): '
           || string_agg(DISTINCT a.privilege_type, ' ')
      FROM pg_class AS c JOIN pg_attribute AS t ON t.attrelid = c.oid CROSS JOIN LATERAL aclexplode(t.attacl) AS a
     WHERE c.relnamespace = 'audit_events'::regnamespace AND a.grantee = to_regrole(:role)
     GROUP BY c.relname
    UNION ALL
    SELECT p.proname || '()' FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(p.proacl) AS a
     WHERE p.pronamespace = 'audit_events'::regnamespace AND a.grantee = to_regrole(:role)) AS l";

const WRITER: &str = "\
consumer_offsets: INSERT UPDATE
dead_letters (relay_offset relay_partition relayed_at): UPDATE
dead_letters: INSERT
duplicates: INSERT
ensure_partition()
ensure_partitions_ahead()
events: INSERT
imports: INSERT
offset_actions: INSERT
offset_gaps (closed_at): UPDATE
offset_gaps: INSERT
projection_cursors: INSERT UPDATE
projection_instances: INSERT UPDATE
projection_pending: DELETE INSERT
projection_segments: DELETE INSERT
spool_ranges: DELETE INSERT UPDATE
streams: INSERT";

const ADMIN: &str = "\
consumer_offsets (absent committed_at epoch group_id next_offset): UPDATE
dead_letter_actions: INSERT
federated_sources: INSERT UPDATE
legal_holds: DELETE INSERT
offset_actions: INSERT
offset_gaps: INSERT
projection_actions: INSERT
projection_instances (confirmed run_id): UPDATE
projection_pending: INSERT
projection_segments: DELETE
reader_tenants: DELETE INSERT
retention_actions: INSERT
spool_ranges: DELETE
streams (group_id retired_at): UPDATE
streams: INSERT";

#[test]
fn each_role_has_the_rights_of_its_work_and_no_others() {
    let scene = Scene::new("granted", 1);
    let granted = |role: &str| {
        let lines = scene.sql(&GRANTED.replace(":role", &format!("'{role}'")));
        let mut lines: Vec<String> = lines.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for (role, expect) in [("audit_writer", WRITER), ("audit_admin", ADMIN), ("audit_reader", "")] {
        let mut expect: Vec<&str> = expect.lines().collect();
        expect.sort_unstable();
        assert_eq!(granted(role), expect, "{role}");
    }
    // A reader reads views only, and each of those, but for the time partitions, is a barrier that runs as its owner.
    let views = "SELECT string_agg(c.relname || ' ' || c.relkind::text || ' ' || coalesce(array_to_string(c.reloptions, ' '), ''), \
        E'\\n' ORDER BY c.relname) FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a \
        WHERE a.grantee = to_regrole('audit_reader') AND c.relname <> 'partition_ranges'";
    let barrier = "v security_barrier=true security_invoker=false";
    let names =
        ["actions", "dead_letters", "events", "gaps", "o365_export", "positions", "purview_export", "scope"];
    let names = names.iter().chain(&["sources", "trust_summary"]);
    let expect: Vec<String> = names.map(|name| format!("reader_{name} {barrier}")).collect();
    assert_eq!(scene.sql(views).lines().collect::<Vec<_>>(), expect);

    // A partition that is made later is as its parent: its writer may insert, its reader may nothing.
    scene.sql("SELECT audit_events.ensure_partition(now() - interval '3 years')");
    let rights = "SELECT string_agg(DISTINCT r || ': ' || p, ', ' ORDER BY r || ': ' || p) FROM pg_inherits AS i, \
        unnest(ARRAY['audit_writer', 'audit_admin', 'audit_reader']) AS r, \
        unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p \
        WHERE i.inhparent = 'audit_events.events'::regclass AND has_table_privilege(r, i.inhrelid, p)";
    assert_eq!(scene.sql(rights), "audit_admin: SELECT, audit_writer: INSERT, audit_writer: SELECT");
    let everywhere = "SELECT count(*) = count(*) FILTER (WHERE has_table_privilege('audit_writer', inhrelid, 'INSERT')) \
        AND count(*) > 3 FROM pg_inherits WHERE inhparent = 'audit_events.events'::regclass";
    assert_eq!(scene.sql(everywhere), "t");
}

#[test]
fn a_reader_sees_its_tenants_by_whatever_way() {
    let scene = Scene::new("tenants", 1);
    insert_events(&scene, 40);
    let one = Login::new(&scene, "one", "IN ROLE audit_reader");
    let two = Login::new(&scene, "two", "IN ROLE audit_reader");
    let none = Login::new(&scene, "none", "IN ROLE audit_reader");
    let all = Login::new(&scene, "all", "IN ROLE audit_reader");
    let old = Login::new(&scene, "old", "IN ROLE audit_events_read");
    let tenants = [(&one, "a"), (&two, "a"), (&two, "c"), (&all, "*")];
    let admin = Login::new(&scene, "admin", "IN ROLE audit_admin");
    for (login, tenant) in tenants {
        let sql = format!("INSERT INTO audit_events.reader_tenants VALUES ('{}', '{tenant}')", login.name);
        admin.sql(&sql).unwrap();
    }
    for (login, tenants, count, of_all) in [
        (&one, "a", 40, 0),
        (&two, "a c", 80, 0),
        (&none, "", 0, 0),
        (&all, "a b c", 120, 1),
        (&old, "a b c", 120, 1),
    ] {
        for view in ["reader_events", "reader_purview_export", "reader_o365_export"] {
            let sql = format!(
                "SELECT coalesce(string_agg(DISTINCT tenant_id, ' ' ORDER BY tenant_id), ''), count(*) FROM audit_events.{view}"
            );
            assert_eq!(login.sql(&sql).unwrap(), format!("{tenants}|{count}"), "{}: {view}", login.name);
        }
        let trust = "SELECT coalesce(sum(total_operations), 0) FROM audit_events.reader_trust_summary";
        assert_eq!(login.sql(trust).unwrap(), count.to_string(), "{}", login.name);
        let positions = login.sql("SELECT count(*) FROM audit_events.reader_positions").unwrap();
        assert_eq!(positions, of_all.to_string(), "{}", login.name);
        let is_empty = login.sql("SELECT count(*) = 0 FROM audit_events.reader_sources").unwrap();
        assert_eq!(is_empty == "t", of_all == 0, "{}", login.name);

        // The commands keep to the same rows.
        let url = login.url();
        let exported = scene.command_with(&["export", "events"], &[("DATABASE_URL", url.as_str())]);
        assert!(exported.status.success(), "{exported:?}");
        let lines = String::from_utf8(exported.stdout).unwrap();
        assert_eq!(lines.lines().count(), count, "{}", login.name);
        let trust = scene.command_with(&["trust", "--json"], &[("DATABASE_URL", url.as_str())]);
        let trust: serde_json::Value = serde_json::from_slice(&trust.stdout).unwrap();
        assert_eq!(trust["actor_count"], tenants.split_whitespace().count(), "{trust:#}");
    }
    let names = [&one, &two, &none, &all].map(|login| format!("'{}'", login.name)).join(", ");
    admin.sql(&format!("DELETE FROM audit_events.reader_tenants WHERE role IN ({names})")).unwrap();
    assert_eq!(one.sql("SELECT count(*) FROM audit_events.reader_events").unwrap(), "0");
}

#[test]
fn a_reader_widens_nothing() {
    let scene = Scene::new("widen", 1);
    insert_events(&scene, 10);
    let other = Login::new(&scene, "other", "IN ROLE audit_reader");
    let reader = Login::new(&scene, "reader", "IN ROLE audit_reader");
    for (login, tenant) in [(&reader, "a"), (&other, "b")] {
        scene.sql(&format!("INSERT INTO audit_events.reader_tenants VALUES ('{}', '{tenant}')", login.name));
    }
    // No table, no partition whenever it was made, no view of others, nothing of the registry of readers.
    scene.sql("SELECT audit_events.ensure_partition(now() - interval '2 years')");
    let tables = "SELECT quote_ident(relname) FROM pg_class WHERE relnamespace = 'audit_events'::regnamespace \
        AND relkind IN ('r', 'p', 'v') AND relname !~ '^reader_' AND relname <> 'partition_ranges' UNION SELECT 'reader_tenants'";
    let tables = scene.sql(tables);
    assert!(tables.lines().count() > 20 && tables.contains("events_p"), "{tables}");
    for table in tables.lines() {
        reader.check_refused(&format!("SELECT count(*) FROM audit_events.{table}"));
    }
    for view in ["reader_events", "reader_tenants"] {
        reader.check_refused(&format!("DELETE FROM audit_events.{view}"));
    }
    reader.check_refused(&format!("INSERT INTO audit_events.reader_tenants VALUES ('{}', 'b')", reader.name));
    reader.check_refused("SELECT audit_events.ensure_partition(now())");
    reader.check_refused("SELECT audit_events.grant_roles()");

    let count =
        "SELECT string_agg(DISTINCT tenant_id, ' ') || ' ' || count(*) FROM audit_events.reader_events";
    for role in ["audit", "audit_writer", "audit_events_read", other.name.as_str()] {
        reader.check_refused(&format!("SET ROLE {role}"));
        reader.check_refused(&format!("SET SESSION AUTHORIZATION {role}"));
    }
    // A role that it is a member of changes nothing, nor does another meaning of names.
    scene.sql(&format!("GRANT {} TO {}", other.name, reader.name));
    for set in [
        format!("SET ROLE {}", other.name),
        "SET ROLE audit_reader".to_owned(),
        "SET search_path = pg_temp, audit_events".to_owned(),
        "CREATE TEMP TABLE reader_tenants AS SELECT session_user AS role, '*'::text AS tenant; \
         CREATE TEMP VIEW reader_scope AS SELECT ARRAY['b'] AS tenants, true AS is_all; SET search_path = pg_temp, public"
            .to_owned(),
        "SET row_security = off".to_owned(),
    ] {
        assert_eq!(reader.sql(&format!("{set}; {count}")).as_deref(), Ok("a 10"), "{set}");
    }
    // A condition sees no row that the view does not show, however cheap it says it is.
    let leak = "CREATE FUNCTION pg_temp.leak(tenant text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS \
        $$ BEGIN RAISE WARNING 'saw %', tenant; RETURN true; END $$;";
    for view in ["reader_events", "reader_purview_export", "reader_o365_export"] {
        let output = Command::new("psql")
            .args(["-XqAt", "-d", &reader.url(), "-c"])
            .arg(format!("{leak} SELECT count(*) FROM audit_events.{view} WHERE pg_temp.leak(tenant_id)"))
            .output()
            .unwrap();
        let (seen, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(seen.trim(), "10", "{view}: {said}");
        let is_only_its_own =
            said.matches("saw a").count() == 10 && !said.contains("saw b") && !said.contains("saw c");
        assert!(is_only_its_own, "{view}: {said}");
    }
}

/// What `check` and the daemon say of a role: `check`'s exit code and whether `check` and `run` complain.
#[track_caller]
fn check_judged(scene: &Scene, url: &str, expect: Option<&str>) {
    let settings = [("DATABASE_URL", url), ("REQUIRE_LEAST_PRIVILEGE", "true")];
    let lax = scene.command_with(&["check"], &settings[..1]);
    let strict = scene.command_with(&["check"], &settings);
    let said = String::from_utf8_lossy(&lax.stdout).into_owned();
    assert_eq!(lax.status.code(), Some(0), "{said}");
    assert_eq!(strict.status.code(), Some(if expect.is_some() { 2 } else { 0 }), "{strict:?}");
    assert_eq!(said.contains("append only: void"), expect.is_some(), "{said}");
    assert!(said.contains(expect.unwrap_or("")), "{said}");

    let mut daemon = scene.daemon_with(&settings);
    if let Some(expect) = expect {
        assert_eq!(daemon.wait_for_end(Duration::from_secs(20)).code(), Some(2));
        let log = daemon.log_text();
        assert!(log.contains(expect) && log.contains("REQUIRE_LEAST_PRIVILEGE=true"), "{log}");
    } else {
        daemon.wait_until_reading(1);
        assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    }
    let mut daemon = scene.daemon_with(&settings[..1]);
    daemon.wait_until_reading(1);
    if let Some(expect) = expect {
        wait_for("it warns", Duration::from_secs(20), || daemon.log_text().contains(expect));
    }
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let is_warned = daemon.log_text().contains("more rights than it needs");
    assert_eq!(is_warned, expect.is_some(), "{}", daemon.log_text());
}

#[test]
fn a_role_that_may_change_what_is_append_only_is_told_and_refused() {
    let scene = Scene::new("excess", 1);
    let writer = Login::new(&scene, "w", "IN ROLE audit_writer");
    check_judged(&scene, &writer.url(), None);
    let superuser = Login::new(&scene, "su", "SUPERUSER");
    check_judged(&scene, &superuser.url(), Some("is a superuser"));
    check_judged(&scene, scene.setting("DATABASE_URL"), Some("owns the schema audit_events or its tables"));
    // Not inherited, but SET ROLE away.
    let middle = Login::new(&scene, "middle", "NOINHERIT IN ROLE audit");
    let deputy = Login::new(&scene, "deputy", &format!("IN ROLE audit_writer, {}", middle.name));
    let mut reasons = vec![(deputy, "owns the schema audit_events or its tables")];
    for (suffix, grant, reason) in [
        ("update", "UPDATE (actor) ON audit_events.events", "may UPDATE on audit_events.events"),
        ("delete", "DELETE ON audit_events.events_default", "may DELETE on audit_events.events_default"),
        ("truncate", "TRUNCATE ON audit_events.dead_letters", "may TRUNCATE on audit_events.dead_letters"),
    ] {
        let login = Login::new(&scene, suffix, "IN ROLE audit_writer");
        scene.sql(&format!("GRANT {grant} TO {}", login.name));
        reasons.push((login, reason));
    }
    for (login, reason) in &reasons {
        let url = login.url();
        let settings = [("DATABASE_URL", url.as_str()), ("REQUIRE_LEAST_PRIVILEGE", "true")];
        let checked = scene.command_with(&["check"], &settings);
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.code() == Some(2) && said.contains(reason), "{}: {said}", login.name);
    }

    // A daemon that started before its role was given more: its sessions are refused from then on.
    let url = writer.url();
    let daemon = scene.daemon_with(&[("DATABASE_URL", &url), ("REQUIRE_LEAST_PRIVILEGE", "true")]);
    daemon.wait_until_reading(1);
    scene.sql(&format!("GRANT DELETE ON audit_events.events TO {}", writer.name));
    scene.sql(&format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{}'",
        writer.name
    ));
    scene.produce(&PLAN, 0, 100);
    wait_for("its sessions are refused", Duration::from_secs(30), || {
        daemon.status().is_some_and(|status| status["database"]["state"] == "misconfigured")
    });
    assert_eq!(scene.number("SELECT count(*) FROM audit_events.events"), 0);
    scene.sql(&format!("REVOKE DELETE ON audit_events.events FROM {}", writer.name));
    scene.wait_until_read(100, Duration::from_secs(60));
}

#[test]
fn a_migrating_role_that_may_create_no_roles_is_told_which_are_missing() {
    let scene = Scene::new("migrating", 1);
    scene.sql("DROP SCHEMA audit_events CASCADE; DROP TABLE _sqlx_migrations");
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let admin_url = scene.stack.admin_url(&scene.name);
    let made = Command::new("psql")
        .args(["-Xq", "-d", &admin_url, "-f", folder.join("deploy/sql/roles.sql").to_str().unwrap()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let migrator = Login::new(&scene, "m", "NOCREATEROLE IN ROLE audit_migrate");
    scene.sql(&format!("ALTER ROLE {} SET role = 'audit_migrate'", migrator.name));
    let url = migrator.url();
    let settings = [("DATABASE_URL", url.as_str())];
    let migrated = scene.command_with(&["migrate"], &settings);
    assert!(migrated.status.success(), "{migrated:?}");
    assert!(!String::from_utf8_lossy(&migrated.stdout).contains("WARNING"), "{migrated:?}");
    let owners = "SELECT string_agg(DISTINCT relowner::regrole::text, ' ') FROM pg_class \
        WHERE relnamespace = 'audit_events'::regnamespace";
    assert_eq!(scene.sql(owners), "audit_migrate");

    // Under a name that nobody has: the roles are the cluster's, so others use those of the migrations now.
    let source = scene.sql("SELECT pg_get_functiondef('audit_events.grant_roles'::regproc)");
    let renamed = source.replace("audit_reader", &format!("{}_r", scene.name));
    migrator.sql(&renamed).unwrap();
    let told = scene.command_with(&["migrate"], &settings);
    let said = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        told.status.success() && said.contains(&format!("CREATE ROLE {}_r NOLOGIN;", scene.name)),
        "{said}"
    );
    let late = Login::new(&scene, "r", "");
    let told = scene.command_with(&["migrate"], &settings);
    assert!(!String::from_utf8_lossy(&told.stdout).contains("WARNING"), "{told:?}");
    assert_eq!(late.sql("SELECT count(*) FROM audit_events.reader_events").unwrap(), "0");

    // And what it made is enough to run.
    let writer = Login::new(&scene, "w", "IN ROLE audit_writer");
    let url = writer.url();
    scene.produce(&PLAN, 0, 200);
    let mut daemon = scene.daemon_with(&[("DATABASE_URL", &url), ("REQUIRE_LEAST_PRIVILEGE", "true")]);
    scene.wait_until_read(200, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    drop((late, writer));
    scene.sql("DROP SCHEMA audit_events CASCADE; DROP OWNED BY audit_migrate");
}
