//! PostgreSQL and Kafka go away and come back, under load. On a stack of its own.

use std::time::{Duration, Instant};

use crate::account::PLAN;
use crate::scene::{Scene, Stack, scaled, wait_for};

const STORED: &str = "SELECT coalesce(sum(next_offset), 0) FROM audit_events.consumer_offsets";

#[test]
fn postgresql_that_crashes_under_load_costs_time_and_nothing_else() {
    let stack = Stack::private();
    let scene = Scene::on(&stack, "pgcrash", 6);
    let round_count = scaled(2, 5);
    let record_count = round_count * 30_000;
    let mut daemon = scene.daemon();
    for round in 0..round_count {
        scene.produce(&PLAN, round * 30_000, round * 30_000 + 15_000);
        stack.run(&["stop", "postgres", "immediate"]);
        std::thread::sleep(Duration::from_secs(2));
        let (code, body) = daemon.get("/readyz").unwrap();
        assert_eq!(code, 200, "an outage must not block a rollout: {body}");
        assert_eq!(daemon.get("/livez").unwrap().0, 200);
        scene.produce(&PLAN, round * 30_000 + 15_000, (round + 1) * 30_000);
        stack.run(&["start", "postgres"]);
        let back_at = Instant::now();
        let before = scene.number(STORED);
        wait_for("progress within 5 s", Duration::from_secs(5), || scene.number(STORED) > before);
        eprintln!("postgresql: stored again after {:?}", back_at.elapsed());
        scene.wait_until_read((round + 1) * 30_000, Duration::from_secs(60));
    }
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(record_count));
}

#[test]
fn kafka_that_restarts_under_load_costs_time_and_nothing_else() {
    let stack = Stack::private();
    // Longer than the restart: a member whose session runs out joins as a new one, and Kafka then waits for the old
    // one's session once more.
    let scene = Scene::on(&stack, "kafkacrash", 6).set("KAFKA_SESSION_TIMEOUT_MS", "45000");
    let round_count = scaled(1, 3);
    let record_count = round_count * 40_000;
    let mut daemon = scene.daemon();
    daemon.wait_until_reading(6);
    for round in 0..round_count {
        scene.produce(&PLAN, round * 40_000, round * 40_000 + 20_000);
        stack.run(&["restart", "kafka", if round % 2 == 0 { "immediate" } else { "" }]);
        let answers_at = Instant::now();
        let before = scene.number(STORED);
        // Kafka is back when it takes a record again.
        scene.produce(&PLAN, round * 40_000 + 20_000, round * 40_000 + 20_001);
        let back_at = Instant::now();
        wait_for("progress within 5 s", Duration::from_secs(5), || scene.number(STORED) > before);
        eprintln!(
            "kafka: stored again {:?} after it took a record, {:?} after it answered",
            back_at.elapsed(),
            answers_at.elapsed()
        );
        scene.produce(&PLAN, round * 40_000 + 20_001, (round + 1) * 40_000);
        scene.wait_until_read((round + 1) * 40_000, Duration::from_secs(60));
    }
    // What tells of it while nobody answers, and for how long.
    let is_told = |what: bool| daemon.status().is_some_and(|status| status["kafka_reachable"] == what);
    stack.run(&["stop", "kafka"]);
    wait_for("it is told", Duration::from_secs(20), || is_told(false));
    for _ in 0..30 {
        assert!(is_told(false), "it stays told");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (code, body) = daemon.get("/readyz").unwrap();
    assert!(code == 200 && body.contains("no broker of kafka answers"), "{code} {body}");
    stack.run(&["start", "kafka"]);
    wait_for("its return is told", Duration::from_secs(30), || is_told(true));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(record_count));
}
