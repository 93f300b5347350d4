//! PostgreSQL over TLS, with its certificate checked and with one of ours.

use super::*;
use crate::scene::wait_for;

const SSL_SESSIONS: &str = "SELECT count(*) FILTER (WHERE s.ssl), count(*) FILTER (WHERE NOT s.ssl), max(s.client_dn) \
    FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) WHERE a.application_name LIKE 'audit-consumer/%' \
    AND a.datname = current_database()";

#[test]
fn records_are_stored_over_tls_with_both_certificates_checked() {
    let stack = Stack::private();
    let scene = Scene::on(&stack, "pgtls", 1);
    let role = Role::create(&stack, "audit_mtls", "mtls");
    let file = |name: &str| certificate(&stack, name);
    let url = role.url(&scene, "mtls");
    let scene = with(
        scene,
        &[
            ("DATABASE_URL", &url),
            ("PGSSLMODE", "verify-full"),
            ("PGSSLROOTCERT", &file("ca.pem")),
            ("PGSSLCERT", &file("client.pem")),
            ("PGSSLKEY", &file("client.key")),
        ],
    );
    let daemon = scene.daemon();
    check_end_to_end(&scene, 1);
    let sessions = scene.sql(SSL_SESSIONS);
    let (with_tls, others) = sessions.split_once('|').unwrap();
    assert!(with_tls.parse::<u64>().unwrap() >= 2, "{sessions}");
    assert_eq!(others, "0|/CN=audit_mtls");
    // The URL wins over the environment.
    let without = scene.command_with(&["check"], &[("DATABASE_URL", &format!("{url}?sslmode=disable"))]);
    let text = String::from_utf8_lossy(&without.stdout).into_owned();
    assert!(text.contains("no encryption") && without.status.code() == Some(3), "{text}");
    finish(&scene, daemon);
}

#[test]
fn a_postgresql_that_can_not_be_trusted_is_refused_in_one_line() {
    let stack = Stack::private();
    let scene = Scene::on(&stack, "pgrefusals", 1);
    let tls = Role::create(&stack, "audit_tls", "tls");
    let mtls = Role::create(&stack, "audit_mtls", "mtls");
    let file = |name: &str| certificate(&stack, name);
    let settings = |url: String, more: &[(&'static str, String)]| {
        let mut settings = BTreeMap::from([
            ("DATABASE_URL", url),
            ("PGSSLMODE", "verify-full".to_owned()),
            ("PGSSLROOTCERT", file("ca.pem")),
        ]);
        settings.extend(more.iter().cloned());
        settings
    };
    let url = || tls.url(&scene, "tls");
    let stranger = [("PGSSLCERT", file("stranger.pem")), ("PGSSLKEY", file("stranger.key"))];
    let without_tls = Stack::shared().setting("DATABASE_URL").replace("/forge", "/postgres");
    check_refusals(
        &scene,
        "postgresql",
        &[
            (
                "unknown authority",
                settings(url(), &[("PGSSLROOTCERT", file("other-ca.pem"))]),
                &["UnknownIssuer", "PGSSLROOTCERT"],
            ),
            ("wrong password", settings(tls.url(&scene, "wrong"), &[]), &["28P01", "DATABASE_URL"]),
            ("no tls", settings(url(), &[("PGSSLMODE", "disable".to_owned())]), &["no encryption"]),
            (
                "no certificate of ours",
                settings(mtls.url(&scene, "mtls"), &[]),
                &["requires a valid client certificate", "PGSSLCERT"],
            ),
            (
                "a certificate of a stranger",
                settings(mtls.url(&scene, "mtls"), &stranger),
                &["PGSSLCERT and PGSSLKEY"],
            ),
            ("a server without tls", settings(without_tls, &[]), &["the server speaks no TLS"]),
        ],
    );
    let cases: [(&str, &[&str]); 2] = [
        ("expired", &["has expired", "renew it"]),
        ("elsewhere", &["another host name", "elsewhere.example"]),
    ];
    for (name, expect) in cases {
        serve(&stack, name);
        check_refusals(&scene, "postgresql", &[(name, settings(url(), &[]), expect)]);
    }
    // A daemon says it, waits, and goes on when the certificate is renewed.
    let path = file("ca.pem");
    let daemon_url = url();
    let verified =
        [("DATABASE_URL", daemon_url.as_str()), ("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &path)];
    let daemon = scene.daemon_with(&verified);
    wait_for("the daemon tells it", PATIENCE, || daemon.log_text().contains("another host name"));
    serve(&stack, "server");
    check_end_to_end(&scene, 1);
    finish(&scene, daemon);
}

/// Has PostgreSQL show another of its certificates from the next connection on.
fn serve(stack: &Stack, name: &str) {
    admin(stack, &format!("ALTER SYSTEM SET ssl_cert_file = '{name}.crt'"));
    admin(stack, &format!("ALTER SYSTEM SET ssl_key_file = '{name}.key'"));
    admin(stack, "SELECT pg_reload_conf()");
    let expect = format!("{name}.crt");
    wait_for("the certificate is in use", PATIENCE, || admin(stack, "SHOW ssl_cert_file") == expect);
}
