//! What becomes of records: gaps upstream, records that are no events, events of any time, stale batches.

use std::sync::Arc;
use std::time::Duration;

use audit_consumer::config::{DatabaseTarget, Secret};
use audit_consumer::model::batch::{BatchBuilder, BatchLimits, Decoded, Noted};
use audit_consumer::model::decode::{AssumeUtc, DecodeRules, decode};
use audit_consumer::model::position::{Offset, Partition, TopicPartition};
use audit_consumer::model::record::{AssignmentId, Chunk, Record};
use audit_consumer::model::sample::SamplePlan;
use audit_consumer::store::copy::encode_event;
use audit_consumer::store::{
    ClaimAnswer, ClaimRequest, ClaimedPosition, CommitOutcome, CommitPath, SessionPurpose, StoreSettings,
    StreamIdentity,
};
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::Producer;
use uuid::Uuid;

use crate::account::PLAN;
use crate::scene::{Daemon, Scene, block_on, send, wait_for};

/// Valid events only.
const VALID: SamplePlan = SamplePlan { invalid_ppm: 0, duplicate_ppm: 0, ..PLAN };

fn event(index: u64) -> Vec<u8> {
    let mut payload = Vec::new();
    assert!(VALID.write(index, &mut payload));
    payload
}

/// The sample event at `index` with `from` in its text replaced by `to`.
fn altered(index: u64, from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(event(index)).unwrap();
    assert!(text.contains(from), "{text}");
    text.replacen(from, to, 1).into_bytes()
}

#[test]
fn aborted_transactions_are_stepped_over_and_nothing_of_them_is_stored() {
    let scene = Scene::new("aborted", 2);
    let producer = scene.producer(&[("transactional.id", scene.topic.as_str())]);
    producer.init_transactions(Duration::from_secs(20)).unwrap();
    let mut next = 0;
    for (record_count, is_aborted) in [(40, true), (25, false), (1, true), (30, false), (10, true)] {
        producer.begin_transaction().unwrap();
        for index in next..next + record_count {
            let partition = i32::try_from(index % 2).unwrap();
            send(&producer, &scene.topic, None, Some(&event(index)), Some(partition));
        }
        next += record_count;
        producer.flush(Duration::from_secs(20)).unwrap();
        if is_aborted {
            producer.abort_transaction(Duration::from_secs(20)).unwrap();
        } else {
            producer.commit_transaction(Duration::from_secs(20)).unwrap();
        }
    }
    let mut daemon = scene.daemon();
    scene.wait_until_read(55, Duration::from_secs(30));
    // The markers and aborted records at the end hold no record; the positions go over them all the same.
    wait_for("positions at the end", Duration::from_secs(20), || {
        let output = scene.command(&["verify", "--json"]);
        String::from_utf8_lossy(&output.stdout).contains("\"lag\": 0")
    });
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let account = scene.verify();
    assert_eq!((account.total("events"), account.total("dead_letters"), account.total("lag")), (55, 0, 0));
    assert!(account.total("absent") >= 51, "{:#}", account.0["totals"]);
}

#[test]
fn the_holes_of_a_compacted_topic_are_stepped_over() {
    let scene = Scene::new("plain", 1);
    let topic = format!("{}.compacted", scene.topic);
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "200"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("max.compaction.lag.ms", "500"),
    ];
    scene.create_topic_named(&topic, 1, &settings);
    let scene = scene.set("KAFKA_TOPICS", &topic);
    let producer = scene.producer(&[]);
    for index in 0..400 {
        send(&producer, &topic, Some(&(index % 7).to_string()), Some(&event(index)), None);
        if index % 100 == 99 {
            producer.flush(Duration::from_secs(20)).unwrap();
            std::thread::sleep(Duration::from_millis(400));
        }
    }
    send(&producer, &topic, Some("last"), Some(&event(400)), None);
    producer.flush(Duration::from_secs(20)).unwrap();
    let left = || {
        let consumer: BaseConsumer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", scene.stack.brokers())
            .set("group.id", "count")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, rdkafka::Offset::Beginning).unwrap();
        consumer.assign(&list).unwrap();
        let mut count = 0;
        while let Some(Ok(message)) = consumer.poll(Duration::from_secs(5)) {
            assert!(message.payload().is_some());
            count += 1;
        }
        count
    };
    wait_for("compaction", Duration::from_secs(40), || left() < 300);
    let mut daemon = scene.daemon();
    wait_for("the position at the end", Duration::from_secs(30), || {
        scene.sql("SELECT sum(next_offset) FROM audit_events.consumer_offsets") == "401"
    });
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let account = scene.verify();
    assert_eq!(account.total("events") + account.total("absent"), 401);
    assert!(account.total("absent") > 100, "{:#}", account.0["totals"]);
}

#[test]
fn records_that_are_no_events_are_dead_letters_and_their_neighbours_are_stored() {
    let scene = Scene::new("poison", 1);
    let duration = "\"duration_ms\":";
    let in_duration = |value: &str| altered(1, duration, &format!("{duration}{value},\"x\":"));
    let time_at = String::from_utf8(event(1)).unwrap().find("\"timestamp\":\"").unwrap() + 13;
    let with_time = |time: &str| {
        let text = String::from_utf8(event(1)).unwrap();
        let end = text[time_at..].find('"').unwrap() + time_at;
        format!("{}{time}{}", &text[..time_at], &text[end..]).into_bytes()
    };
    let mut large = event(1);
    large.splice(1..1, format!("\"big\":\"{}\",", "x".repeat(1_000_000)).into_bytes());
    let mut broken_utf8 = event(1);
    let at = broken_utf8.len() - 6;
    broken_utf8[at] = 0xff;
    let cases: Vec<(&str, Option<Vec<u8>>)> = vec![
        ("nul_character", Some(altered(1, "what's", "what\\u0000s"))),
        ("invalid_json", Some(altered(1, "what's", "what\u{0}s"))),
        ("nul_character", Some(altered(1, "eu-central", "eu\\u0000central"))),
        ("too_large", Some(large)),
        ("lone_surrogate", Some(altered(1, "what's", "\\ud800"))),
        ("lone_surrogate", Some(altered(1, "eu-central", "\\udfff"))),
        ("invalid_utf8", Some(broken_utf8)),
        ("wrong_type", Some(in_duration("\"1.7\""))),
        ("invalid_integer", Some(in_duration("1.7"))),
        ("out_of_range", Some(in_duration("3e9"))),
        ("out_of_range", Some(in_duration("-1"))),
        ("wrong_type", Some(in_duration("\"abc\""))),
        ("wrong_type", Some(altered(1, "\"bypass_llm\":", "\"bypass_llm\":\"yes\",\"x\":"))),
        ("out_of_range", Some(altered(1, "\"trust_score\":0", "\"trust_score\":7"))),
        ("invalid_timestamp", Some(with_time("yesterday"))),
        ("invalid_timestamp", Some(with_time("2026-02-17 10:00:00"))),
        ("invalid_uuid", Some(altered(1, "\"audit_id\":\"", "\"audit_id\":\"x"))),
        ("invalid_status", Some(altered(1, "\"status\":\"", "\"status\":\"x"))),
        ("invalid_ip", Some(altered(1, "\"10.1.", "\"10.1.1."))),
        ("invalid_metadata", Some(altered(1, "\"metadata\":{", "\"metadata\":[],\"x\":{"))),
        ("duplicate_key", Some(altered(1, "\"metadata\":{", "\"metadata\":{\"region\":1,"))),
        ("out_of_range", Some(altered(1, "\"shard\":7", "\"shard\":1e999"))),
        ("tombstone", None),
        ("empty_payload", Some(vec![])),
        ("invalid_json", Some(b"{\"audit_id\"".to_vec())),
        ("not_an_object", Some(b"[1,2,3]".to_vec())),
        ("missing_field", Some(b"{}".to_vec())),
    ];
    let good = |number: usize| Some(event(1_000 + u64::try_from(number).unwrap()));
    let mut payloads = vec![good(0)];
    for (number, (_, payload)) in cases.iter().enumerate() {
        payloads.extend([payload.clone(), good(number + 1)]);
    }
    scene.send_all(&payloads);
    let mut daemon = scene.daemon();
    scene.wait_until_read(u64::try_from(payloads.len()).unwrap(), Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());

    let account = scene.verify();
    assert_eq!(account.total("dead_letters"), u64::try_from(cases.len()).unwrap());
    assert_eq!(account.total("events"), u64::try_from(cases.len() + 1).unwrap());
    for (number, (code, payload)) in cases.iter().enumerate() {
        let query = format!(
            "SELECT reason, coalesce(octet_length(payload), -1), coalesce(encode(substr(payload, 1, 2000), 'hex'), '') \
               FROM audit_events.dead_letters WHERE source_offset = {}",
            2 * number + 1
        );
        let len = payload.as_ref().map_or(-1, |bytes| i64::try_from(bytes.len()).unwrap());
        let start: String = payload.iter().flatten().take(2000).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(scene.sql(&query), format!("{code}|{len}|{start}"), "record {number}");
    }
}

#[test]
fn what_postgresql_alone_refuses_is_found_by_halving() {
    let scene = Scene::new("halving", 2);
    scene.sql("ALTER TABLE audit_events.events ADD CONSTRAINT no_poison CHECK (args NOT LIKE '%poison%')");
    let producer = scene.producer(&[]);
    for index in 0..500 {
        let payload =
            if index == 77 || index == 400 { altered(index, "what's", "poison") } else { event(index) };
        send(&producer, &scene.topic, Some(&index.to_string()), Some(&payload), None);
    }
    producer.flush(Duration::from_secs(20)).unwrap();
    let mut daemon = scene.daemon();
    scene.wait_until_read(500, Duration::from_secs(60));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let account = scene.verify();
    assert_eq!((account.total("events"), account.total("dead_letters")), (498, 2));
    let reasons = "SELECT DISTINCT reason, sqlstate FROM audit_events.dead_letters";
    assert_eq!(scene.sql(reasons), "refused_by_database|23514");
}

#[test]
fn the_same_id_and_time_is_a_duplicate_by_value_and_a_conflict_otherwise() {
    let scene = Scene::new("conflict", 1);
    let respelled = altered(1, "\"shard\":7", "\"shard\":7.0");
    let other = altered(1, "what's", "who's");
    let other_time = altered(1, "\"timestamp\":\"2", "\"timestamp\":\"1");
    scene.send_all(&[Some(event(1)), Some(respelled.clone()), Some(other), Some(other_time), Some(event(2))]);
    let mut daemon = scene.daemon();
    scene.wait_until_read(5, Duration::from_secs(30));
    // Once more, when the first is committed long since.
    scene.send_all(&[Some(respelled.clone()), Some(event(3))]);
    scene.wait_until_read(7, Duration::from_secs(30));
    // The lane knows them all from before, so nothing collides.
    let by_path = |daemon: &Daemon| {
        ["direct", "merge"]
            .map(|path| daemon.metric(&format!("audit_consumer_events_committed_total{{path=\"{path}\"}}")))
    };
    assert_eq!(by_path(&daemon), [4, 0]);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    // Another process knows none of them: it collides, and the whole batch is merged; it lingers until it
    // has both records, however slow the machine is.
    daemon = scene.daemon_with(&[("BATCH_LINGER_MS", "1000")]);
    scene.send_all(&[Some(event(4)), Some(respelled)]);
    scene.wait_until_read(9, Duration::from_secs(30));
    assert_eq!(by_path(&daemon), [0, 1]);
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    let account = scene.verify();
    let found = (account.total("events"), account.total("duplicates"), account.total("dead_letters"));
    assert_eq!(found, (5, 3, 1));
    assert_eq!(scene.sql("SELECT reason FROM audit_events.dead_letters"), "audit_id_conflict");
    assert_eq!(scene.sql("SELECT DISTINCT kept_offset FROM audit_events.duplicates"), "0");
}

#[test]
fn events_of_any_time_find_their_partition() {
    let scene = Scene::new("times", 1);
    let months = scene.sql(
        "SELECT string_agg(to_char(now() + m * interval '1 month', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), ' ' ORDER BY m) \
           FROM generate_series(-1, 1) AS m",
    );
    let times = format!("1970-01-01T00:00:00Z 9999-12-31T23:59:59.999999Z {months}");
    let payloads: Vec<Option<Vec<u8>>> = times
        .split(' ')
        .enumerate()
        .map(|(index, time)| {
            let text = String::from_utf8(event(u64::try_from(index).unwrap())).unwrap();
            let (head, tail) = text.split_once("\"timestamp\":\"").unwrap();
            let (_, tail) = tail.split_once('"').unwrap();
            Some(format!("{head}\"timestamp\":\"{time}\"{tail}").into_bytes())
        })
        .collect();
    scene.send_all(&payloads);
    let mut daemon = scene.daemon();
    scene.wait_until_read(5, Duration::from_secs(30));
    assert!(daemon.terminate(Duration::from_secs(15)).0.success());
    scene.verify();
    let places = "SELECT count(*) FILTER (WHERE tableoid = 'audit_events.events_default'::regclass), \
                         count(DISTINCT tableoid) FROM audit_events.events";
    assert_eq!(scene.sql(places), "2|4");

    // A row in the default partition moves when its partition is made later.
    scene.sql("INSERT INTO audit_events.events (audit_id, correlation_id, timestamp, operation, command, actor, status, \
                   stream_id, source_partition, source_offset) \
               SELECT gen_random_uuid(), gen_random_uuid(), now() - interval '5 years', 'o', 'c', 'a', 'Success', \
                   gen_random_uuid(), 0, 0");
    let place = "SELECT tableoid::regclass FROM audit_events.events WHERE operation = 'o'";
    assert_eq!(scene.sql(place), "audit_events.events_default");
    scene.sql("SELECT audit_events.ensure_partition(now() - interval '5 years')");
    assert_ne!(scene.sql(place), "audit_events.events_default");
}

#[test]
fn a_batch_that_is_stale_in_one_of_six_partitions_is_stored_once_in_the_five() {
    let scene = Scene::new("stale", 1);
    block_on(async {
        let timeouts = (Duration::from_secs(60), Duration::from_secs(10));
        let store = |instance| {
            let url = Secret::new(scene.setting("DATABASE_URL").to_owned());
            StoreSettings::new(DatabaseTarget::of_url(url), "g", Uuid::from_u128(instance), timeouts)
        };
        let (ours, theirs) = (store(1), store(2));
        let stream =
            StreamIdentity { cluster_id: "c".into(), topic: "t".into(), topic_id: Uuid::from_u128(7) };
        let at = |offset| Offset::new(offset).unwrap();
        let requests: Vec<ClaimRequest> = (0..6)
            .map(|partition| ClaimRequest {
                stream: stream.clone(),
                partition: Partition(partition),
                low: at(0),
                high: at(1_000),
                initial: at(0),
            })
            .collect();
        let mut session = ours.connect(SessionPurpose::Lane).await.unwrap();
        let granted: Vec<ClaimedPosition> = ours
            .claim(&mut session, &requests)
            .await
            .unwrap()
            .into_iter()
            .map(|answer| match answer {
                ClaimAnswer::Granted(position) => position,
                other => panic!("{other:?}"),
            })
            .collect();
        let batch = six_partitions(&requests, &granted);

        let mut other = theirs.connect(SessionPurpose::Claim).await.unwrap();
        theirs.claim(&mut other, &requests[3..4]).await.unwrap();

        let stored =
            || scene.sql("SELECT count(*), count(DISTINCT source_partition) FROM audit_events.events");
        let CommitOutcome::Stale(stale) = session.commit("g", &batch, CommitPath::Direct).await.unwrap()
        else {
            panic!("not stale")
        };
        assert_eq!(stale.iter().map(|part| part.key).collect::<Vec<_>>(), [requests[3].key()]);
        assert_eq!(stored(), "0|0");
        let rest = batch.without(|part| part.key == requests[3].key());
        let outcome = session.commit("g", &rest, CommitPath::Direct).await.unwrap();
        assert!(matches!(outcome, CommitOutcome::Committed { .. }));
        assert_eq!(stored(), "50|5");
        // The same batch once more, as after a COMMIT whose answer was lost: nothing is stored again.
        for path in [CommitPath::Direct, CommitPath::Merge] {
            let outcome = session.commit("g", &rest, path).await.unwrap();
            assert!(matches!(outcome, CommitOutcome::Stale(ref stale) if stale.len() == 5), "{outcome:?}");
        }
        assert_eq!(stored(), "50|5");
    });
}

fn six_partitions(
    requests: &[ClaimRequest],
    granted: &[ClaimedPosition],
) -> audit_consumer::model::batch::Batch {
    let rules =
        DecodeRules { tenant_id: "t".into(), assume_utc: AssumeUtc::No, payload_max_len_bytes: 1 << 20 };
    let mut builder = BatchBuilder::new(BatchLimits { record_count: 1_000, len_bytes: 1 << 20 });
    for (request, position) in requests.iter().zip(granted) {
        let (mut arena, mut records) = (Vec::new(), Vec::new());
        for number in 0..10 {
            let index = u64::try_from(request.partition.0).unwrap() * 10 + number;
            let start = arena.len();
            arena.extend(event(index));
            records.push(Record {
                offset: Offset::new(i64::try_from(number).unwrap()).unwrap(),
                absent_before: 0,
                timestamp_ms: None,
                key: None,
                value: Some(start..arena.len()),
                headers: vec![],
            });
        }
        let source = TopicPartition { topic: "t".into(), partition: request.partition };
        let chunk = Arc::new(Chunk {
            polled: None,
            assignment: AssignmentId(1),
            source: Arc::new(source),
            start: position.next,
            end: Offset::new(10).unwrap(),
            absent_after: 0,
            records,
            arena,
        });
        let pushed = builder.push(&chunk, request.key(), position.epoch, |record, rows| {
            let event = decode(chunk.value(record), &rules).unwrap();
            encode_event(rows, &event, None, (request.key(), record.offset));
            Decoded::Event(event.timestamp, Noted { flag: None, trust_percent: 80, is_repeated: false })
        });
        pushed.unwrap();
    }
    builder.take()
}
