//! PostgreSQL that falls silent while it is asked what a role may do.

use std::time::Duration;

use super::Login;
use crate::proxy::Proxy;
use crate::scene::Scene;

#[test]
fn a_postgresql_that_falls_silent_while_rights_are_asked_does_not_hold_the_start_up() {
    let scene = Scene::new("silentstart", 1);
    let writer = Login::new(&scene, "w", "IN ROLE audit_writer");
    // Behind the handshake, and within the first look at rights.
    for text in ["pg_backend_pid", "rolsuper"] {
        let proxy = Proxy::new(&writer.url(), Some(text), Duration::from_secs(300));
        let settings = [("DATABASE_URL", proxy.url.as_str()), ("REQUIRE_LEAST_PRIVILEGE", "true")];
        let mut daemon = scene.daemon_with(&settings);
        daemon.wait_until_reading(1);
        assert!(daemon.terminate(Duration::from_secs(15)).0.success(), "{text}");
    }
}
