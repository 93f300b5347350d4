//! The relay, killed, stopped, fenced or left without an answer at every step: each letter once.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::letters::{FEW, Letter, WAITING, check_one_to_one, letter_topic, read_topic, wait_until_relayed};
use crate::scene::{Daemon, Scene, Stack, scaled, send, wait_for};

/// Every step of the relay at which the process is killed.
const KILL_POINTS: [&str; 8] = [
    "relay_after_read",
    "relay_after_send",
    "relay_after_offsets",
    "relay_before_commit",
    "relay_after_commit",
    "relay_before_read_back",
    "relay_before_mark",
    "relay_after_mark",
];

#[test]
fn a_relay_that_is_killed_at_every_step_sends_each_letter_once() {
    // A static member that comes back has its partitions at once.
    let scene = Scene::new("relaykill", 6).set("KAFKA_INSTANCE_ID", "only");
    let round_count = scaled(3, 20);
    let record_count = scaled(300, 720);
    let mut produced_count = 0;
    for round in 0..round_count {
        for point in KILL_POINTS {
            scene.produce(&FEW, produced_count, produced_count + record_count);
            produced_count += record_count;
            // At the first transaction, or, where the rows are enough for several, at a later one.
            let mut daemon = scene.daemon_with(&[("FAILPOINTS", &format!("{point}=return"))]);
            let status = daemon.wait_for_end(Duration::from_secs(40));
            assert_eq!(
                std::os::unix::process::ExitStatusExt::signal(&status),
                Some(9),
                "{point}, round {round}"
            );
        }
    }
    let mut daemon = scene.daemon();
    scene.wait_until_read(produced_count, Duration::from_secs(120));
    wait_until_relayed(&scene, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let (letter_count, aborted_count) = check_one_to_one(&scene);
    assert_eq!(u64::try_from(letter_count).unwrap(), FEW.totals(produced_count).dead_letters);
    assert!(aborted_count > 0, "no transaction was ever aborted");
    eprintln!("{produced_count} records, {letter_count} letters, {aborted_count} aborted records");
    scene.verify().check(FEW.totals(produced_count));
}

fn end_relay_sessions(scene: &Scene) -> u64 {
    scene.number(&format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
          WHERE datname = '{}' AND application_name = 'audit-consumer/relay'",
        scene.name
    ))
}

#[test]
fn two_leaders_against_each_other_send_each_letter_once() {
    let scene = Scene::new("relaytwo", 4);
    // Whoever leads dawdles at some step for longer than the other one waits, and meanwhile its session, and the lock
    // with it, is taken away.
    let steps = KILL_POINTS.map(|point| format!("{point}=15%sleep(3000)")).join(";");
    let settings = [("FAILPOINTS", steps.as_str())];
    let mut daemons = [scene.daemon_with(&settings), scene.daemon_with(&settings)];
    let round_count = scaled(20, 100);
    for round in 0..round_count {
        scene.produce(&FEW, round * 500, (round + 1) * 500);
        std::thread::sleep(Duration::from_millis(700));
        end_relay_sessions(&scene);
    }
    scene.wait_until_read(round_count * 500, Duration::from_secs(60));
    wait_until_relayed(&scene, Duration::from_secs(90));
    // It was fenced, or found the other's position in place of its own; one that dawdles still finds out when it goes on.
    let met = |daemon: &Daemon| {
        let metrics = daemon.get("/metrics").unwrap().1;
        ["fenced", "doubt"]
            .iter()
            .any(|class| metrics.contains(&format!("relay_failures_total{{class=\"{class}\"}}")))
    };
    wait_for("a leader meets the other", Duration::from_secs(30), || daemons.iter().any(met));
    for daemon in &mut daemons {
        assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    }
    let (letter_count, aborted_count) = check_one_to_one(&scene);
    eprintln!("{letter_count} letters, {aborted_count} aborted records");
}

#[test]
fn a_stopped_relay_holds_readers_up_for_half_a_minute_at_most_and_is_fenced_then() {
    let scene = Scene::new("relaystop", 1);
    scene.send_all(&[Some(b"no event".to_vec())]);
    let daemon = scene.daemon_with(&[("FAILPOINTS", "relay_after_send=1*sleep(2000)")]);
    let topic = letter_topic(&scene);
    wait_for("the letter is sent", Duration::from_secs(30), || {
        scene.number("SELECT count(*) FROM audit_events.dead_letters") == 1
            && !uncommitted(&scene, &topic).is_empty()
    });
    daemon.signal(Signal::STOP);
    let stopped_at = Instant::now();
    let producer = scene.producer(&[]);
    send(&producer, &topic, None, Some(b"behind it"), Some(0));
    rdkafka::producer::Producer::flush(&producer, Duration::from_secs(10)).unwrap();
    let sees_it = || {
        read_topic(&scene.stack, &topic, "read_committed")
            .iter()
            .any(|letter| letter.value.as_deref() == Some(b"behind it"))
    };
    assert!(!sees_it(), "nothing was open");
    wait_for("readers go on", Duration::from_secs(31), sees_it);
    eprintln!("readers waited {:?}", stopped_at.elapsed());
    assert!(stopped_at.elapsed() <= Duration::from_secs(30));
    daemon.signal(Signal::CONT);
    wait_until_relayed(&scene, Duration::from_secs(60));
    let letters = read_topic(&scene.stack, &topic, "read_committed");
    assert_eq!(letters.iter().filter(|letter| letter.find_header("dlq.id").is_some()).count(), 1);
}

#[test]
fn clients_that_take_long_to_make_hold_nothing_else_up() {
    let scene = Scene::new("relayclients", 1);
    scene.send_all(&[Some(b"no event".to_vec())]);
    // One thread for all tasks: were it the one that waits, nobody would look after sockets and signals.
    let settings = [("FAILPOINTS", "relay_in_clients=sleep(60000)"), ("TOKIO_WORKER_THREADS", "1")];
    let mut daemon = scene.daemon_with(&settings);
    wait_for("the letter waits", Duration::from_secs(30), || scene.number(WAITING) == 1);
    for _ in 0..20 {
        assert_eq!(daemon.get("/livez").unwrap().0, 200);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(scene.number(WAITING), 1, "the clients were made");
    let (status, elapsed) = daemon.terminate(Duration::from_secs(15));
    assert!(status.success(), "{status}");
    eprintln!("stopped after {elapsed:?}");
}

/// The records of a topic that may not be there yet.
fn uncommitted(scene: &Scene, topic: &str) -> Vec<Letter> {
    let topics = scene.topics();
    if topics.iter().any(|name| name == topic) {
        read_topic(&scene.stack, topic, "read_uncommitted")
    } else {
        vec![]
    }
}

#[test]
fn a_broker_that_is_killed_during_a_commit_costs_time_and_no_letter() {
    let stack = Stack::private();
    let scene = Scene::on(&stack, "relaybroker", 3).set("KAFKA_SESSION_TIMEOUT_MS", "45000");
    let round_count = scaled(2, 20);
    let points = ["relay_after_send", "relay_before_commit", "relay_after_commit"];
    // Each third transaction or so waits just there while the broker is killed.
    let steps = points.map(|point| format!("{point}=40%sleep(700)")).join(";");
    let mut daemon = scene.daemon_with(&[("FAILPOINTS", &steps)]);
    daemon.wait_until_reading(3);
    for round in 0..round_count {
        scene.produce(&FEW, round * 1_000, (round + 1) * 1_000);
        std::thread::sleep(Duration::from_millis(300 + round * 173 % 900));
        stack.run(&["restart", "kafka", "immediate"]);
    }
    scene.wait_until_read(round_count * 1_000, Duration::from_secs(120));
    wait_until_relayed(&scene, Duration::from_secs(120));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let (letter_count, aborted_count) = check_one_to_one(&scene);
    assert_eq!(u64::try_from(letter_count).unwrap(), FEW.totals(round_count * 1_000).dead_letters);
    eprintln!("{letter_count} letters, {aborted_count} aborted records");
    scene.verify();
}

/// A call of librdkafka that does not return (as if: the thread that makes it sleeps beforehand) is given up after 20 s; its
/// transaction can't be aborted meanwhile, and the call goes on when another producer has taken over. Its clients take a
/// minute to be destroyed: nobody waits for that.
#[test]
fn a_call_that_does_not_return_is_given_up_and_costs_no_letter() {
    let scene = Scene::new("relayhung", 2);
    let points = "relay_no_abort=return;relay_in_offsets=1*sleep(40000);client_drop=sleep(60000)";
    let mut daemon = scene.daemon_with(&[("FAILPOINTS", points)]);
    scene.produce(&FEW, 0, 500);
    scene.wait_until_read(500, Duration::from_secs(30));
    let waiting_count = scene.number(WAITING);
    assert!(waiting_count > 0);
    // It is counted while the call lasts: who watches sees that letters wait.
    wait_for("the backlog is shown", Duration::from_secs(15), || {
        daemon.status().is_some_and(|status| status["relay"]["waiting"] == waiting_count)
    });
    assert_eq!(scene.number(WAITING), waiting_count, "the call has not ended yet");
    wait_until_relayed(&scene, Duration::from_secs(30));
    assert!(daemon.get("/metrics").unwrap().1.contains("relay_failures_total{class=\"doubt\"}"));
    // The call that was given up goes on, and is refused.
    wait_for("the call returns", Duration::from_secs(40), || {
        daemon.log_text().contains("that was given up has returned")
    });
    assert!(daemon.log_text().contains("sent=Err("), "{}", daemon.log_text());
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    check_one_to_one(&scene);
    scene.verify().check(FEW.totals(500));
}

/// Kafka's client does not return to a relay whose transaction is committed: it is given up with its clients, and the next
/// ones find its letters.
#[test]
fn a_relay_that_hangs_begins_again_and_doubles_no_letter() {
    let scene = Scene::new("relaygivenup", 2);
    let points = "relay_impatient=return;relay_before_read_back=1*sleep(40000)";
    let mut daemon = scene.daemon_with(&[("FAILPOINTS", points)]);
    scene.produce(&FEW, 0, 500);
    scene.wait_until_read(500, Duration::from_secs(30));
    assert!(scene.number(WAITING) > 0);
    wait_until_relayed(&scene, Duration::from_secs(35));
    let log = daemon.log_text();
    assert!(log.contains("read the transaction back: kafka's client does not return"), "{log}");
    assert!(daemon.get("/metrics").unwrap().1.contains("relay_failures_total{class=\"doubt\"} 1"));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    check_one_to_one(&scene);
    scene.verify().check(FEW.totals(500));
}
