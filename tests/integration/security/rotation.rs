//! Passwords change in their files while the daemon runs.

use super::*;
use crate::scene::wait_for;

const MECHANISM: &str = "SCRAM-SHA-512";

#[test]
fn another_password_for_kafka_needs_no_restart() {
    let stack = Stack::private();
    let scene = Scene::on(&stack, "kafkarotation", 1);
    set_scram_password(&stack, &scene.name, MECHANISM, "first");
    let path = secret_file(&scene, "password", "a wrong one");
    let scene = with(
        sasl(scene, MECHANISM),
        &[("KAFKA_SASL_PASSWORD_FILE", path.to_str().unwrap()), ("KAFKA_SESSION_TIMEOUT_MS", "45000")],
    );
    let user = scene.name.clone();
    let scene = scene.set("KAFKA_SASL_USERNAME", &user);

    // A wrong password is told once, and mended without a restart.
    let daemon = scene.daemon();
    let complaint = "connections to kafka fail until this is mended";
    wait_for("the wrong password is told", PATIENCE, || daemon.log_text().contains(complaint));
    assert!(daemon.log_text().contains("KAFKA_SASL_PASSWORD"), "{}", daemon.log_text());
    wait_for("status tells it", PATIENCE, || {
        daemon.status().is_some_and(|status| status["kafka_reachable"] == false)
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(daemon.log_text().matches(complaint).count(), 1, "{}", daemon.log_text());
    assert!(!daemon.log_text().contains("librdkafka"), "one line is enough: {}", daemon.log_text());
    replace(&path, "first");
    check_end_to_end(&scene, 1);

    // The password changes at the broker, which asks for it every 3 s (connections.max.reauth.ms) and ends those that
    // have another; then in the file.
    set_scram_password(&stack, &scene.name, MECHANISM, "second");
    std::thread::sleep(Duration::from_secs(5));
    replace(&path, "second");
    check_end_to_end(&scene, 2);
    finish(&scene, daemon);
}

#[test]
fn another_password_for_postgresql_needs_no_restart() {
    let stack = Stack::private();
    let scene = Scene::on(&stack, "pgrotation", 1);
    let role = Role::create(&stack, &format!("r_{}", scene.name), "first");
    let path = secret_file(&scene, "url", &role.url(&scene, "first"));
    let scene = with(scene, &[("DATABASE_URL", ""), ("DATABASE_URL_FILE", path.to_str().unwrap())]);
    let daemon = scene.daemon();
    check_end_to_end(&scene, 1);

    role.set_password("second");
    role.end_sessions();
    wait_for("the old password is refused, and told", PATIENCE, || {
        daemon.log_text().contains("password authentication failed")
    });
    let told = daemon.status().unwrap()["database"].clone();
    assert_eq!(told["state"], "misconfigured", "{told}");
    replace(&path, &role.url(&scene, "second"));
    check_end_to_end(&scene, 2);
    assert!(!daemon.log_text().contains(":first@"), "{}", daemon.log_text());
    finish(&scene, daemon);
}
