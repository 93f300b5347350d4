//! The account balances, and reading again changes nothing.

use std::time::Duration;

use audit_consumer::model::sample::SamplePlan;

use crate::scene::{Scene, scaled};

pub(crate) const PLAN: SamplePlan = SamplePlan {
    seed: 11,
    start_unix_micros: 1_793_000_000_000_000,
    invalid_ppm: 30_000,
    duplicate_ppm: 20_000,
};

#[test]
fn every_record_is_accounted_for_and_a_rerun_changes_nothing() {
    let scene = Scene::new("account", 12);
    let record_count = scaled(40_000, 200_000);
    scene.produce(&PLAN, 0, record_count);
    let mut daemon = scene.daemon();
    scene.wait_until_read(record_count, Duration::from_secs(120));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());

    let account = scene.verify();
    account.check(PLAN.totals(record_count));
    assert_eq!(account.total("lag"), 0);
    assert_eq!(account.0["partitions"].as_array().unwrap().len(), 12);
    let before = scene.sql("SELECT sum(hashtextextended(e::text, 0)) FROM audit_events.events AS e");

    let mut again = scene.daemon();
    again.wait_until_reading(12);
    std::thread::sleep(Duration::from_secs(2));
    assert!(again.terminate(Duration::from_secs(15)).0.success());
    scene.verify().check(PLAN.totals(record_count));
    assert_eq!(scene.sql("SELECT sum(hashtextextended(e::text, 0)) FROM audit_events.events AS e"), before);
}
