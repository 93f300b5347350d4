//! Several daemons, joining, leaving, and one that stops in the middle of a COPY.

use std::time::{Duration, Instant};

use audit_consumer::model::sample::SamplePlan;
use rustix::process::Signal;

use crate::account::PLAN;
use crate::scene::{Scene, scaled, wait_for};

#[test]
fn daemons_that_join_and_leave_share_the_work_without_loss_or_double() {
    let scene = Scene::new("rebalance", 12);
    let part_count = scaled(4, 12);
    let record_count = part_count * 10_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for part in 0..part_count {
                scene.produce(&PLAN, part * 10_000, (part + 1) * 10_000);
                std::thread::sleep(Duration::from_millis(1_500));
            }
        });
        let mut first = scene.daemon();
        first.wait_until_reading(12);
        let mut second = scene.daemon();
        wait_for("two share", Duration::from_secs(40), || second.partition_count() == 6);
        let third = scene.daemon();
        wait_for("three share", Duration::from_secs(40), || third.partition_count() == 4);
        assert!(first.terminate(Duration::from_secs(15)).0.success());
        third.kill();
        wait_for("one is left", Duration::from_secs(40), || second.partition_count() == 12);
        scene.wait_until_read(record_count, Duration::from_secs(180));
        assert!(second.terminate(Duration::from_secs(15)).0.success());
    });
    scene.verify().check(PLAN.totals(record_count));
}

/// Without duplicates: one would end the COPY with an error before it lasts.
pub(crate) const DISTINCT: SamplePlan = SamplePlan { duplicate_ppm: 0, ..PLAN };

/// Lanes within a transaction that lasts.
pub(crate) const DAWDLING: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
    AND application_name = 'audit-consumer/lane' AND now() - xact_start > interval '300 ms'";

#[test]
fn a_daemon_that_is_stopped_in_a_copy_is_replaced_refused_and_recovers() {
    let scene = Scene::new("stopped", 4);
    let record_count = 60_000;
    scene.produce(&DISTINCT, 0, record_count / 2);
    // It dawdles in its second COPY, or in one soon after.
    let mut first = scene.daemon_with(&[("FAILPOINTS", "commit_in_copy=1*off->1*sleep(10000)")]);
    wait_for("a COPY", Duration::from_secs(30), || scene.number(DAWDLING) > 0);
    first.signal(Signal::STOP);
    let stopped_at = Instant::now();
    let stored = "SELECT sum(next_offset) FROM audit_events.consumer_offsets";

    let mut second = scene.daemon();
    // Kafka's session time-out is 6 s here.
    wait_for("the second daemon has taken over", Duration::from_secs(11), || second.partition_count() == 4);
    let before = scene.number(stored);
    scene.produce(&DISTINCT, record_count / 2, record_count);
    wait_for("progress", Duration::from_secs(10), || scene.number(stored) > before);
    assert!(stopped_at.elapsed() < Duration::from_secs(25));

    first.signal(Signal::CONT);
    wait_for("the first daemon works on", Duration::from_secs(60), || {
        first.partition_count() == 2 && second.partition_count() == 2
    });
    scene.wait_until_read(record_count, Duration::from_secs(60));
    for daemon in [&mut first, &mut second] {
        assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    }
    scene.verify().check(DISTINCT.totals(record_count));
}

#[test]
fn a_commit_that_is_abandoned_for_one_partition_is_read_again_for_the_others() {
    let scene = Scene::new("abandoned", 4).set("LANES", "1").set("BATCH_LINGER_MS", "1000");
    scene.produce(&PLAN, 0, 8_000);
    // The time partition is there before the lock, so that the COPY is what waits.
    let mut first = scene.daemon();
    scene.wait_until_read(8_000, Duration::from_secs(30));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            scene.sql(
                "BEGIN; LOCK TABLE audit_events.events IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(14); COMMIT",
            );
        });
        let locked = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted \
                      AND relation = 'audit_events.events'::regclass";
        wait_for("the lock", Duration::from_secs(10), || scene.number(locked) > 0);
        // Few enough for one batch: nothing comes after it that would show that it is missing.
        scene.produce(&PLAN, 8_000, 8_040);
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND application_name = 'audit-consumer/lane' AND wait_event_type = 'Lock'";
        wait_for("the commit is under way", Duration::from_secs(10), || scene.number(waiting) > 0);
        let mut second = scene.daemon();
        // Kafka takes two partitions away; the commit of all four does not end in time.
        wait_for("the commit is abandoned", Duration::from_secs(20), || {
            first.log_text().contains("a commit under way was abandoned")
        });
        // Nothing more is produced: what was in the abandoned batch must be stored all the same.
        scene.wait_until_read(8_040, Duration::from_secs(40));
        for daemon in [&mut first, &mut second] {
            assert!(daemon.terminate(Duration::from_secs(15)).0.success());
        }
    });
    scene.verify().check(PLAN.totals(8_040));
}
