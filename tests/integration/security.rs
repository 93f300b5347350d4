//! Security in transit, against a broker and a PostgreSQL that ask for it: an authority, certificates and logins of
//! the private stack's own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::letters::{letter_topic, read_topic, wait_until_relayed};
use crate::scene::{Daemon, Scene, Stack};

mod kafka;
mod postgres;
mod refusals;
mod rotation;

/// A relay whose connection broke needs 15 s to know, 10 s to abort, and 30 s at most to begin again.
const PATIENCE: Duration = Duration::from_secs(90);
/// The password that `deploy/local/stack` gives the user `audit` for PLAIN.
const PLAIN_PASSWORD: &str = "plain-secret";

/// The path of a file of `deploy/local/certificates`.
fn certificate(stack: &Stack, name: &str) -> String {
    format!("{}/{name}", stack.setting("STACK_CERTIFICATES"))
}

/// Settings by name, as a scene takes them.
fn with(scene: Scene, settings: &[(&str, &str)]) -> Scene {
    settings.iter().fold(scene, |scene, (name, value)| scene.set(name, value))
}

/// The scene's clients connect by TLS and log in by `mechanism`.
fn sasl(scene: Scene, mechanism: &str) -> Scene {
    let (brokers, ca) =
        (scene.stack.setting("KAFKA_SASL_SSL").to_owned(), certificate(&scene.stack, "ca.pem"));
    with(
        scene,
        &[
            ("KAFKA_BROKERS", &brokers),
            ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl"),
            ("KAFKA_SASL_MECHANISM", mechanism),
            ("KAFKA_SSL_CA_FILE", &ca),
        ],
    )
}

/// Sets the password of a user for a SCRAM mechanism, at the broker.
fn set_scram_password(stack: &Stack, user: &str, mechanism: &str, password: &str) {
    let config = format!("{mechanism}=[iterations=4096,password={password}]");
    stack.run(&[
        "kafka-tool",
        "kafka.admin.ConfigCommand",
        "--bootstrap-server",
        stack.brokers(),
        "--alter",
        "--entity-type",
        "users",
        "--entity-name",
        user,
        "--add-config",
        &config,
    ]);
}

/// A file of this test's own, which holds `text`.
fn secret_file(scene: &Scene, name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.{name}", scene.name));
    replace(&path, text);
    path
}

/// Replaces a file as Kubernetes does: nobody sees a half of it.
fn replace(path: &PathBuf, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, format!("{text}\n")).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// A token without a signature, as Kafka's own validator for tests takes it, that expires in `seconds`.
fn token(seconds: i64) -> String {
    let now =
        i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs())
            .unwrap();
    let claims = serde_json::json!({"sub": "audit", "iat": now, "exp": now + seconds});
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.", part(r#"{"alg":"none"}"#), part(&claims.to_string()))
}

/// Sends an event and a record that is none, and waits until both are stored and the dead letter is relayed.
#[track_caller]
fn check_end_to_end(scene: &Scene, round: u64) {
    let event = format!(
        r#"{{"audit_id":"{}","correlation_id":"{}","timestamp":"2026-10-01T00:00:00Z","operation":"o","command":"c","actor":"a","status":"Success"}}"#,
        uuid::Uuid::new_v4(),
        uuid::Uuid::new_v4()
    );
    scene.send_all(&[Some(event.into_bytes()), Some(b"no event".to_vec())]);
    scene.wait_until_read(2 * round, PATIENCE);
    wait_until_relayed(scene, PATIENCE);
    let letters = read_topic(&scene.stack, &letter_topic(scene), "read_committed").len();
    let stored = scene.number("SELECT count(*) FROM audit_events.events");
    assert_eq!((stored, u64::try_from(letters).unwrap()), (round, round));
}

/// Ends the daemon, and asks the oracle, which reads Kafka with the scene's settings, too.
#[track_caller]
fn finish(scene: &Scene, mut daemon: Daemon) {
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let account = scene.verify();
    assert_eq!(account.total("lag"), 0, "{account:?}");
}

/// Runs `check` with each case's settings, all at once, and looks for its words in the line of `service`.
#[track_caller]
fn check_refusals(scene: &Scene, service: &str, cases: &[(&str, BTreeMap<&str, String>, &[&str])]) {
    std::thread::scope(|threads| {
        let run = |settings: &BTreeMap<&str, String>| {
            let settings: Vec<(&str, &str)> =
                settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
            scene.command_with(&["check"], &settings)
        };
        let outputs: Vec<_> =
            cases.iter().map(|(_, settings, _)| threads.spawn(move || run(settings))).collect();
        for ((case, _, expect), output) in cases.iter().zip(outputs) {
            let output = output.join().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let line = text.lines().find(|line| line.starts_with(service) && line.contains("FAILED"));
            let line = line.unwrap_or_else(|| panic!("{case}: {text}"));
            for words in *expect {
                assert!(line.contains(words), "{case}: {words:?} is not in {line:?}");
            }
            assert_eq!(output.status.code(), Some(3), "{case}: {text}");
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(stderr.is_empty(), "{case}: one line is enough: {stderr}");
        }
    });
}

/// Runs SQL on the private stack as the superuser.
fn admin(stack: &Stack, sql: &str) -> String {
    stack.psql("postgres", sql)
}

/// A login of the test's own that may do what `audit` may; dropped with the guard.
struct Role<'a> {
    stack: &'a Stack,
    name: String,
}

impl<'a> Role<'a> {
    fn create(stack: &'a Stack, name: &str, password: &str) -> Self {
        admin(stack, &format!("DROP ROLE IF EXISTS {name}"));
        admin(stack, &format!("CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE audit"));
        Self { stack, name: name.to_owned() }
    }

    fn set_password(&self, password: &str) {
        admin(self.stack, &format!("ALTER ROLE {} PASSWORD '{password}'", self.name));
    }

    /// Ends its sessions, as a restart of the server would.
    fn end_sessions(&self) {
        admin(
            self.stack,
            &format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'",
                self.name
            ),
        );
    }

    fn url(&self, scene: &Scene, password: &str) -> String {
        let port = self.stack.setting("PG_PORT");
        format!("postgresql://{}:{password}@localhost:{port}/{}", self.name, scene.name)
    }
}
