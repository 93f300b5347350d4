//! What each part of the way costs, without servers: decoding, encoding as a row, encoding as a line of the spool, and an
//! append to a spool on a disk.
//!
//! Run: `cargo bench --bench parts`. Figures and their machine stand in docs/PERFORMANCE.md.
#![expect(
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark that can't go on stops; what the macros make"
)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use audit_consumer::model::decode::{AssumeUtc, DecodeRules, decode};
use audit_consumer::model::federated::FederatedSources;
use audit_consumer::model::position::{Offset, Partition, StreamId, StreamPartition, TopicPartition};
use audit_consumer::model::record::{AssignmentId, Chunk, Record};
use audit_consumer::model::spool::{BatchNumber, BatchStamp, EncodedChunk};
use audit_consumer::spool::disk::LocalDisk;
use audit_consumer::spool::{Spool, SpoolLimits};
use audit_consumer::store::copy::encode_event;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use uuid::Uuid;

/// How many sources the registry has.
const SOURCE_COUNT: u32 = 100;
/// Records of a chunk, and chunks of an append, as the spooler takes them under a backlog.
const CHUNK_RECORD_COUNT: usize = 1_000;
const APPEND_CHUNK_COUNT: usize = 8;

/// What a producer sends: every common field, a small metadata object, no escapes. 600 bytes.
const TYPICAL: &str = r#"{"audit_id":"0190163d-8694-739b-aea5-966c26f8ad91","correlation_id":"6f9619ff-8b86-d011-b42d-00cf4fc964ff","timestamp":"2026-11-24T10:00:00.123456Z","operation":"ritual.query","command":"query","args":"--source crm --limit 10","actor":"alice.smith","status":"Success","duration_ms":58,"result_signature":"200","client_app":"ritual-cli","caller_ip_address":"10.20.30.40","federated_source":"crm","query_intent":"count customers","bypass_llm":false,"trust_score":0.95,"purview_compatible":true,"metadata":{"rows":1204,"cache":"miss","source_version":"7.3"},"schema_version":"2.0","tenant_id":"contoso"}"#;

/// The same with escapes, unknown fields and a larger metadata object.
const RICH: &str = r#"{"audit_id":"0190163d-8694-739b-aea5-966c26f8ad91","correlation_id":"6f9619ff-8b86-d011-b42d-00cf4fc964ff","timestamp":"2026-11-24T10:00:00.123456789+01:00","operation":"ritual.query","command":"query \"all\"","args":"a\tb\u00e9","actor":"alice.smith","status":"Failure","duration_ms":5.8e1,"caller_ip_address":"2001:db8::1","trust_score":0.8,"metadata":{"rows":[1,2,3,4.5e3],"plan":{"steps":[{"name":"scan","cost":12.5},{"name":"sort","cost":99.0}],"text":"line\nline"},"k1":1,"k2":2,"k3":3,"k4":4,"k5":5,"k6":6,"k7":7,"k8":8},"region":"eu-west","build":{"commit":"0a1b2c","dirty":false}}"#;

fn rules() -> DecodeRules {
    DecodeRules { tenant_id: "default".to_owned(), assume_utc: AssumeUtc::No, payload_max_len_bytes: 1 << 20 }
}

const fn key() -> StreamPartition {
    StreamPartition { stream: StreamId(Uuid::from_u128(7)), partition: Partition(3) }
}

/// A chunk of typical records.
fn chunk(start: i64) -> Chunk {
    let mut arena = Vec::new();
    let records = (0..CHUNK_RECORD_COUNT).map(|index| {
        let from = arena.len();
        arena.extend_from_slice(TYPICAL.as_bytes());
        Record {
            offset: offset(start + i64::try_from(index).expect("small")),
            absent_before: 0,
            timestamp_ms: Some(1_780_000_000_000),
            key: None,
            value: Some(from..arena.len()),
            headers: Vec::new(),
        }
    });
    let records: Vec<Record> = records.collect();
    Chunk {
        assignment: AssignmentId(1),
        source: Arc::new(TopicPartition { topic: "audit".into(), partition: Partition(3) }),
        start: offset(start),
        end: offset(start + i64::try_from(CHUNK_RECORD_COUNT).expect("small")),
        absent_after: 0,
        records,
        polled: None,
        arena,
    }
}

fn offset(value: i64) -> Offset {
    Offset::new(value).expect("an offset is not negative")
}

fn decoding(criterion: &mut Criterion) {
    let rules = rules();
    let names = (0..SOURCE_COUNT).map(|number| (format!("source-{number}"), true));
    let sources: FederatedSources = names.chain([("crm".to_owned(), true)]).collect();
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    for (name, payload) in [("typical", TYPICAL), ("rich", RICH)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| decode(black_box(Some(payload.as_bytes())), black_box(&rules)).expect("valid"));
        });
    }
    group.bench_function("typical and its source", |bencher| {
        bencher.iter(|| {
            let event = decode(black_box(Some(TYPICAL.as_bytes())), black_box(&rules)).expect("valid");
            assert_eq!(sources.flag(black_box(&event.federated_source)), None, "it is registered");
        });
    });
    group.finish();
}

fn encoding(criterion: &mut Criterion) {
    let rules = rules();
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(1));
    for (name, payload) in [("typical", TYPICAL), ("rich", RICH)] {
        let event = decode(Some(payload.as_bytes()), &rules).expect("valid");
        let mut rows = Vec::new();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                rows.clear();
                encode_event(&mut rows, black_box(&event), None, (key(), offset(5)));
                black_box(rows.len())
            });
        });
    }
    group.finish();
}

fn spooling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("spool");
    group.throughput(Throughput::Elements(u64::try_from(CHUNK_RECORD_COUNT).expect("small")));
    let chunk_once = chunk(0);
    let stamp = BatchStamp { number: BatchNumber(1), append: BatchNumber(1), created_at_ms: 1 };
    let mut lines = Vec::new();
    group.bench_function("encode a chunk", |bencher| {
        bencher.iter(|| {
            lines.clear();
            let encoded = EncodedChunk::new(key(), black_box(&chunk_once)).expect("it adds up");
            black_box(encoded.append_to(&mut lines, stamp));
        });
    });
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut spool = open(directory.path());
    let mut next = 0;
    group.throughput(Throughput::Elements(
        u64::try_from(CHUNK_RECORD_COUNT * APPEND_CHUNK_COUNT).expect("small"),
    ));
    group.sample_size(20);
    group.bench_function("append, to the disk", |bencher| {
        bencher.iter(|| {
            let chunks: Vec<EncodedChunk> = (0..APPEND_CHUNK_COUNT)
                .map(|_| {
                    let chunk = chunk(next);
                    next = chunk.end.as_i64();
                    EncodedChunk::new(key(), &chunk).expect("it adds up")
                })
                .collect();
            spool.append(&chunks, 1).expect("there is room");
        });
    });
    group.finish();
}

fn open(directory: &Path) -> Spool<LocalDisk> {
    let limits = SpoolLimits {
        segment_len_bytes: 64 << 20,
        max_len_bytes: 64 << 30,
        min_free_len_bytes: 0,
        keep: Duration::ZERO,
    };
    let (spool, _) =
        Spool::open(directory, limits, Uuid::from_u128(1), LocalDisk).expect("an empty directory");
    spool
}

criterion_group!(parts, decoding, encoding, spooling);
criterion_main!(parts);
