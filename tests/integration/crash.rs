//! Killed at random moments, under load.

use std::time::Duration;

use crate::account::PLAN;
use crate::scene::{Scene, scaled};

#[test]
fn a_daemon_that_is_killed_again_and_again_loses_and_doubles_nothing() {
    let scene = Scene::new("crash", 6).set("BATCH_MAX_EVENTS", "2000");
    let kill_count = scaled(6, 25);
    let record_count = 6_000 * kill_count;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for part in 0..kill_count {
                scene.produce(&PLAN, part * 6_000, (part + 1) * 6_000);
                std::thread::sleep(Duration::from_millis(400));
            }
        });
        for round in 0..kill_count {
            let daemon = scene.daemon();
            // The moment differs from round to round; a killed member's partitions wait for the session time-out,
            // so every third round is longer than that.
            let pause_ms = if round % 3 == 2 { 7_000 + round * 131 % 900 } else { 700 + round * 373 % 1_300 };
            std::thread::sleep(Duration::from_millis(pause_ms));
            daemon.kill();
        }
    });
    let mut daemon = scene.daemon();
    scene.wait_until_read(record_count, Duration::from_secs(180));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(record_count));
}
