//! Every way to log in to Kafka carries records and dead letters, and the commands.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::scene::wait_for;

#[test]
fn every_login_with_a_password_stores_records_and_relays_dead_letters() {
    let stack = Stack::private();
    // SCRAM-SHA-512 is that of the test of another password.
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        let scene = Scene::on(&stack, "sasl", 1);
        let user = if mechanism == "PLAIN" { "audit".to_owned() } else { scene.name.clone() };
        if mechanism != "PLAIN" {
            set_scram_password(&stack, &user, mechanism, PLAIN_PASSWORD);
        }
        let scene = with(
            sasl(scene, mechanism),
            &[("KAFKA_SASL_USERNAME", &user), ("KAFKA_SASL_PASSWORD", PLAIN_PASSWORD)],
        );
        let daemon = scene.daemon();
        check_end_to_end(&scene, 1);
        let emitted = scene.done(&["emit", "--topic", &scene.topic, "--generate", "10"]);
        assert!(emitted.contains("10"), "{emitted}");
        scene.wait_until_read(12, PATIENCE);
        let shown = scene.done(&["check"]);
        assert!(shown.contains("kafka       connected"), "{shown}");
        assert!(!shown.contains(PLAIN_PASSWORD), "{shown}");
        let listed = scene.done(&["offsets", "list"]);
        assert!(listed.contains(&scene.topic), "{listed}");
        assert!(!daemon.log_text().contains(PLAIN_PASSWORD), "{}", daemon.log_text());
        finish(&scene, daemon);
    }
}

#[test]
fn a_certificate_of_ours_stores_records_and_relays_dead_letters() {
    let stack = Stack::private();
    let scene = Scene::on(&stack, "mutual", 1);
    let file = |name: &str| certificate(&stack, name);
    let scene = with(
        scene,
        &[
            ("KAFKA_BROKERS", stack.setting("KAFKA_MUTUAL")),
            ("KAFKA_SECURITY_PROTOCOL", "ssl"),
            ("KAFKA_SSL_CA_FILE", &file("ca.pem")),
            ("KAFKA_SSL_CERTIFICATE_FILE", &file("client.pem")),
            ("KAFKA_SSL_KEY_FILE", &file("client-locked.key")),
            ("KAFKA_SSL_KEY_PASSWORD_FILE", &file("client-locked.password")),
        ],
    );
    let daemon = scene.daemon();
    check_end_to_end(&scene, 1);
    finish(&scene, daemon);
}

#[test]
fn a_token_is_read_from_its_file_again_before_it_expires() {
    let stack = Stack::private();
    let scene = sasl(Scene::on(&stack, "token", 1), "OAUTHBEARER");
    let path = secret_file(&scene, "token", &token(8));
    let scene = scene.set("KAFKA_SASL_TOKEN_FILE", path.to_str().unwrap());
    let is_renewed = AtomicBool::new(true);
    let daemon = std::thread::scope(|threads| {
        threads.spawn(|| {
            while is_renewed.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_secs(1));
                replace(&path, &token(8));
            }
        });
        let stop = StopsWhenDropped(&is_renewed);
        let daemon = scene.daemon();
        check_end_to_end(&scene, 1);
        // The first token expires, and the broker asks for a login every 3 s (connections.max.reauth.ms).
        std::thread::sleep(Duration::from_secs(9));
        check_end_to_end(&scene, 2);
        assert!(!daemon.log_text().contains("ERROR"), "{}", daemon.log_text());
        drop(stop);
        daemon
    });
    // Nobody renews it: it expires, and that is said.
    wait_for("the expired token is complained of", PATIENCE, || {
        let log = daemon.log_text();
        log.contains("connections to kafka fail until this is mended")
            && log.contains("KAFKA_SASL_TOKEN_FILE")
    });
    replace(&path, &token(600));
    check_end_to_end(&scene, 3);
    finish(&scene, daemon);
}

/// So that a failed assertion ends the thread that renews.
struct StopsWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopsWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
