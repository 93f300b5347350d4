//! Traces, as an OpenTelemetry collector gets them: one in this process, and the OpenTelemetry Collector itself.

mod collector;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use audit_consumer::model::sample::SamplePlan;
use uuid::Uuid;

use self::collector::{Collector, Official, Seen, trace_of};
use crate::account::PLAN;
use crate::letters::wait_until_relayed;
use crate::scene::{Scene, Stack, send, wait_for};
use crate::spooling::{check_drained, scene as spooling_scene, wait_until};

const VALID: SamplePlan = SamplePlan { invalid_ppm: 0, duplicate_ppm: 0, ..PLAN };
const PATIENCE: Duration = Duration::from_secs(30);

/// An event with this correlation id; with status `Nope` it is none.
fn event(correlation_id: Uuid, status: &str) -> String {
    format!(
        r#"{{"audit_id":"{}","correlation_id":"{correlation_id}","timestamp":"2026-11-24T10:00:00Z","operation":"o","command":"c","actor":"a","status":"{status}"}}"#,
        Uuid::now_v7()
    )
}

/// The scene, its spans sent to `endpoint` soon.
fn traced(scene: Scene, endpoint: &str) -> Scene {
    scene.set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).set("OTEL_BSP_SCHEDULE_DELAY", "100")
}

/// Sends to partition 0 without headers.
fn send_plain(scene: &Scene, payloads: &[String]) {
    let payloads: Vec<Option<Vec<u8>>> =
        payloads.iter().map(|payload| Some(payload.clone().into_bytes())).collect();
    scene.send_all(&payloads);
}

#[test]
fn a_record_is_followed_from_emit_through_commit_dead_letter_and_redrive() {
    let collector = Collector::start();
    let scene = traced(Scene::new("traced", 1), &collector.endpoint()).set("DLQ_BREAKER_SHARE", "100");
    let [good, bad, plain] = [(); 3].map(|()| Uuid::new_v4());
    let input = format!("{}\n{}\n", event(good, "Success"), event(bad, "Nope"));
    scene.fed(&["emit", "--topic", &scene.topic], &input);
    send_plain(&scene, &[event(plain, "Success")]);
    let mut daemon = scene.daemon();
    scene.wait_until_read(3, PATIENCE);
    wait_until_relayed(&scene, PATIENCE);
    scene.done(&["dlq", "redrive", "--all", "--why", "once more"]);
    scene.wait_until_read(4, PATIENCE);
    wait_until_relayed(&scene, PATIENCE);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let (topic, letters) = (scene.topic.as_str(), format!("{}.dlq", scene.topic));
    let (sends, processes) = (format!("send {topic}"), format!("process {topic}"));

    let (sent, processed) = check_record(&collector, &scene, good);
    check_step(&collector, &scene, good, (&sent, &processed));
    // One without a header: its correlation id is the trace's, and nothing comes before us.
    let spans = collector.trace(plain);
    assert_eq!(
        spans.iter().map(|span| (span.name(), span.parent())).collect::<Vec<_>>(),
        [(&*processes, vec![])]
    );

    // The dead letter: sent, refused, sent to its topic; sent back, refused again, and again.
    let spans = collector.trace(bad);
    let names: Vec<&str> = spans.iter().map(|span| span.name()).collect();
    let send_letters = format!("send {letters}");
    assert_eq!(names, [&sends, &processes, &send_letters, &sends, &processes, &send_letters]);
    for refused in spans.iter().filter(|span| span.name() == processes || span.name() == send_letters) {
        assert_eq!(
            (refused.status(), &*refused.attribute("error.type")),
            ("error", "invalid_status"),
            "{refused:?}"
        );
    }
    let resource = collector.resource();
    assert_eq!(resource["service.name"], "audit-consumer");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
}

/// What stands in a row finds its trace: what sent it, and what processed it.
#[track_caller]
fn check_record(collector: &Collector, scene: &Scene, good: Uuid) -> (Seen, Seen) {
    let (sends, processes) = (format!("send {}", scene.topic), format!("process {}", scene.topic));
    let id =
        scene.sql(&format!("SELECT correlation_id FROM audit_events.events WHERE correlation_id = '{good}'"));
    let spans = collector.trace(Uuid::parse_str(&id).unwrap());
    assert_eq!(spans.iter().map(|span| span.name()).collect::<Vec<_>>(), [&sends, &processes]);
    let [sent, processed] = spans.try_into().unwrap();
    assert_eq!((sent.kind(), processed.kind()), ("producer", "consumer"));
    assert_eq!((sent.parent(), processed.parent()), (Vec::new(), sent.id()));
    processed.check(&[
        ("messaging.system", "kafka"),
        ("messaging.operation.name", "process"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", &scene.topic),
        ("messaging.destination.partition.id", "0"),
        ("messaging.consumer.group.name", &scene.name),
        ("messaging.kafka.offset", "0"),
        ("messaging.message.conversation_id", &id),
    ]);
    assert_eq!((sent.status(), processed.status()), ("unset", "unset"));
    assert_eq!(sent.attribute("messaging.kafka.offset"), "0");
    (sent, processed)
}

/// The step, in a trace of its own, links to its records, and they to it.
#[track_caller]
fn check_step(collector: &Collector, scene: &Scene, good: Uuid, (sent, processed): (&Seen, &Seen)) {
    let (topic, id) = (&scene.topic, good.to_string());
    let [link] = <[_; 1]>::try_from(processed.links()).unwrap();
    let step = collector.spans().into_iter().find(|span| span.id() == link.span_id).unwrap();
    assert_eq!((step.name(), step.kind(), step.parent()), (processed.name(), "consumer", Vec::new()));
    assert_eq!(step.trace(), link.trace_id);
    let own = step.links().into_iter().find(|link| link.trace_id == good.as_bytes()).unwrap();
    assert_eq!(own.span_id, sent.id());
    let audit_id =
        scene.sql(&format!("SELECT audit_id FROM audit_events.events WHERE correlation_id = '{good}'"));
    let expect = [
        ("messaging.destination.partition.id", "0"),
        ("messaging.kafka.offset", "0"),
        ("messaging.message.conversation_id", &*id),
        ("messaging.message.id", &*audit_id),
    ];
    assert_eq!(
        collector::texts(&own.attributes),
        expect.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    );
    step.check(&[
        ("audit_consumer.commit.path", "direct"),
        ("audit_consumer.commit.outcome", "committed"),
        ("audit_consumer.records.from", "kafka"),
    ]);
    let below: Vec<Seen> = collector.spans().into_iter().filter(|span| span.parent() == step.id()).collect();
    let (polls, rest): (Vec<&Seen>, Vec<&Seen>) =
        below.iter().partition(|span| span.name() == format!("poll {topic}"));
    let [copy] = rest.try_into().unwrap();
    assert_eq!((copy.name(), copy.kind(), copy.status()), ("COPY audit_events", "client", "unset"));
    copy.check(&[
        ("db.system.name", "postgresql"),
        ("db.namespace", &scene.name),
        ("db.collection.name", "audit_events.events"),
        ("db.operation.name", "COPY"),
        ("server.address", "127.0.0.1"),
    ]);
    for poll in &polls {
        assert_eq!(poll.kind(), "client");
        poll.check(&[("messaging.operation.type", "receive"), ("messaging.destination.partition.id", "0")]);
        assert!(step.from() <= poll.from() && poll.to() <= step.to() && copy.from() >= step.from());
    }
    let count = |span: &Seen| span.attribute("messaging.batch.message_count").parse::<u64>().unwrap();
    assert_eq!(polls.iter().map(|poll| count(poll)).sum::<u64>(), count(&step));
}

/// The dead letter of a record without a header names its trace, and the span that sent it; so does the log.
#[test]
fn a_dead_letter_names_its_trace() {
    let collector = Collector::start();
    let scene = traced(Scene::new("tracedletter", 1), &collector.endpoint());
    let letters = format!("{}.dlq", scene.topic);
    let send_letters = format!("send {letters}");
    let refused = Uuid::new_v4();
    let mut daemon = scene.daemon();
    send_plain(&scene, &[event(refused, "Nope")]);
    scene.wait_until_read(1, PATIENCE);
    wait_until_relayed(&scene, PATIENCE);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let sent_letters = crate::letters::read_topic(&scene.stack, &letters, "read_committed");
    let header = sent_letters
        .iter()
        .filter_map(|letter| letter.find_header("traceparent"))
        .find(|text| text.contains(&trace_of(refused)))
        .unwrap();
    let sent = collector.trace(refused).into_iter().find(|span| span.name() == send_letters).unwrap();
    assert_eq!(header, format!("00-{}-{}-01", trace_of(refused), sent.id_text()));
    assert!(daemon.log_text().contains(&format!("trace_id={}", trace_of(refused))), "{}", daemon.log_text());
    assert!(daemon.log_text().contains(&format!("correlation_id={refused}")));
}

#[test]
fn an_outage_is_in_the_traces_of_its_records_and_its_errors_are_kept() {
    let collector = Collector::start();
    let stack = Stack::private();
    let (scene, dir) = spooling_scene(&stack, "tracedspool", 1);
    // A commit meets the dead session first, and not a look at positions.
    let scene = traced(scene, &collector.endpoint()).set("VERIFY_INTERVAL_MS", "60000");
    let mut daemon = scene.daemon();
    daemon.wait_until_reading(1);
    let [before, during] = [(); 2].map(|()| Uuid::new_v4());
    send_plain(&scene, &[event(before, "Success")]);
    scene.wait_until_read(1, PATIENCE);
    stack.run(&["stop", "postgres", "immediate"]);
    send_plain(&scene, &[event(during, "Success")]);
    wait_until(&daemon, "spooling", 1);
    wait_for("the record is in the spool", PATIENCE, || {
        daemon.status().is_some_and(|status| status["spool"]["records"] == 1)
    });
    stack.run(&["start", "postgres"]);
    scene.wait_until_read(2, Duration::from_secs(60));
    wait_until(&daemon, "live", 1);
    check_drained(&scene, &daemon, &dir);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let spans = collector.trace(during);
    let names: Vec<&str> = spans.iter().map(|span| span.name()).collect();
    assert_eq!(names, [&format!("spool {}", scene.topic), &format!("process {}", scene.topic)]);
    let step_of = |span: &Seen| {
        let link = span.links().remove(0);
        collector.spans().into_iter().find(|step| step.id() == link.span_id).unwrap()
    };
    assert_eq!(step_of(&spans[0]).attribute("messaging.batch.message_count"), "1");
    assert_eq!(step_of(&spans[1]).attribute("audit_consumer.records.from"), "spool");
    // The commit that PostgreSQL did not answer.
    let failed: Vec<Seen> = collector
        .spans()
        .into_iter()
        .filter(|span| span.name() == "COPY audit_events" && span.status() == "error")
        .collect();
    assert!(!failed.is_empty());
    for copy in &failed {
        assert_eq!(copy.attribute("error.type"), "unavailable");
        let root = collector.spans().into_iter().find(|span| span.id() == copy.parent()).unwrap();
        assert_eq!(
            (root.status(), &*root.attribute("audit_consumer.commit.outcome")),
            ("error", "unavailable")
        );
    }
}

#[test]
fn a_tenth_is_kept_by_correlation_id_and_dead_letters_always() {
    let collector = Collector::start();
    let scene = traced(Scene::new("sampled", 2), &collector.endpoint()).set("DLQ_BREAKER_SHARE", "100");
    let scene = scene
        .set("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        .set("OTEL_TRACES_SAMPLER_ARG", "0.1")
        .set("OTEL_BSP_MAX_QUEUE_SIZE", "20000");
    // Two records of each of 6,000 requests, in two partitions: 600 +- 120 are 5 standard deviations.
    let requests: Vec<Uuid> = (0..6_000).map(|_| Uuid::new_v4()).collect();
    let producer = scene.producer(&[]);
    for partition in 0..2 {
        for id in &requests {
            send(&producer, &scene.topic, None, Some(event(*id, "Success").as_bytes()), Some(partition));
        }
    }
    let refused: Vec<Uuid> = (0..50).map(|_| Uuid::new_v4()).collect();
    for id in &refused {
        send(&producer, &scene.topic, None, Some(event(*id, "Nope").as_bytes()), Some(0));
    }
    rdkafka::producer::Producer::flush(&producer, PATIENCE).unwrap();
    let mut daemon = scene.daemon();
    scene.wait_until_read(12_050, PATIENCE);
    wait_until_relayed(&scene, PATIENCE);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let mut counts: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    let processes = format!("process {}", scene.topic);
    for span in collector.spans().iter().filter(|span| span.name() == processes && !span.links().is_empty()) {
        if !span.attribute("messaging.message.conversation_id").is_empty() {
            *counts.entry(span.trace()).or_default() += 1;
        }
    }
    let kept: Vec<usize> =
        requests.iter().filter_map(|id| counts.get(id.as_bytes().as_slice()).copied()).collect();
    assert!(kept.iter().all(|count| *count == 2), "a request is kept or dropped as a whole");
    assert!((480..=720).contains(&kept.len()), "{} of 6,000", kept.len());
    assert!(refused.iter().all(|id| counts.get(id.as_bytes().as_slice()) == Some(&1)));
    // A step names no more than 128 of them, and says how many it left out.
    let steps: Vec<Seen> = collector
        .spans()
        .into_iter()
        .filter(|span| span.name() == processes && span.parent().is_empty())
        .collect();
    assert!(steps.iter().all(|step| step.links().len() <= 128));
    let is_committed = |step: &&Seen| step.attribute("audit_consumer.commit.outcome") == "committed";
    let linked: usize = steps.iter().filter(is_committed).map(Seen::linked_count).sum();
    assert_eq!(linked, kept.len() * 2 + refused.len());
}

#[test]
fn a_collector_that_is_away_or_silent_costs_a_counter_and_nothing_else() {
    // Nobody listens there; and here somebody does, who never answers.
    let closed = "127.0.0.1:1".parse().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for (name, address) in [("away", closed), ("silent", silent.local_addr().unwrap())] {
        let scene = traced(Scene::new(name, 2), &format!("http://{address}"));
        let count = 20_000;
        scene.produce(&VALID, 0, count);
        let started_at = Instant::now();
        let mut daemon = scene.daemon();
        scene.wait_until_read(count, PATIENCE);
        assert!(started_at.elapsed() < Duration::from_secs(15), "{name}: {:?}", started_at.elapsed());
        wait_for("spans are dropped, and counted", PATIENCE, || {
            daemon.metric("audit_consumer_spans_total{outcome=\"dropped\"}") > 0
        });
        assert_eq!(daemon.metric("audit_consumer_spans_total{outcome=\"sent\"}"), 0);
        let (status, took) = daemon.terminate(Duration::from_secs(20));
        assert!(status.success() && took < Duration::from_secs(8), "{name}: {status} in {took:?}");
        assert!(!daemon.log_text().contains("span"), "{}", daemon.log_text());
        scene.verify().check(VALID.totals(count));
    }
}

#[test]
fn emit_begins_the_trace_and_the_environment_switches_it_off() {
    let collector = Collector::start();
    let scene = traced(Scene::new("emitted", 1), &collector.endpoint());
    let [traced, plain, off] = [(); 3].map(|()| Uuid::new_v4());
    let topic = scene.topic.clone();
    let emit = ["emit", "--topic", &topic];
    scene.fed(&emit, &event(traced, "Success"));
    scene.fed(&[&emit[..], &["--no-traceparent"]].concat(), &event(plain, "Success"));
    let scene = scene.set("OTEL_SDK_DISABLED", "true");
    scene.fed(&emit, &event(off, "Success"));
    let headers: Vec<Option<String>> =
        crate::letters::read_topic(&scene.stack, &scene.topic, "read_committed")
            .iter()
            .map(|record| record.find_header("traceparent").map(str::to_owned))
            .collect();
    let [first, second, third] = headers.try_into().unwrap();
    let span = collector.trace(traced).remove(0);
    assert_eq!(first, Some(format!("00-{}-{}-01", trace_of(traced), span.id_text())));
    assert_eq!(second, None);
    assert!(third.is_some_and(|header| header.starts_with(&format!("00-{}-", trace_of(off)))));
    let traces: BTreeSet<Vec<u8>> = collector.spans().iter().map(Seen::trace).collect();
    assert_eq!(traces, BTreeSet::from([traced.as_bytes().to_vec()]));
    let refused = scene
        .set("OTEL_SDK_DISABLED", "")
        .set("OTEL_TRACES_SAMPLER", "sometimes")
        .fed(&["emit", "--topic", "no.such.topic", "--timeout-ms", "1000"], "");
    assert!(refused.contains("OTEL_TRACES_SAMPLER=sometimes: always_on"), "{refused}");
}

#[test]
fn the_opentelemetry_collector_takes_our_spans() {
    let official = Official::start();
    let scene = traced(Scene::new("official", 1), &official.endpoint());
    let id = Uuid::new_v4();
    scene.fed(&["emit", "--topic", &scene.topic], &event(id, "Success"));
    let mut daemon = scene.daemon();
    scene.wait_until_read(1, PATIENCE);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    wait_for("it prints the trace", PATIENCE, || official.printed().matches(&trace_of(id)).count() >= 3);
    let printed = official.printed();
    for expect in [
        format!("Trace ID       : {}", trace_of(id)),
        format!("-> messaging.message.conversation_id: Str({id})"),
        format!("Name           : send {}", scene.topic),
        format!("Name           : process {}", scene.topic),
        "Name           : COPY audit_events".into(),
        "Kind           : Consumer".into(),
        "-> db.system.name: Str(postgresql)".into(),
        "-> service.name: Str(audit-consumer)".into(),
        // The step's link to the record.
        format!("     -> Trace ID: {}", trace_of(id)),
    ] {
        assert!(printed.contains(&expect), "{expect} is not in {printed}");
    }
}
