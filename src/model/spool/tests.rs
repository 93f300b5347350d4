//! Lines come back as they were written, or not at all.

use proptest::prelude::*;

use super::walk::{Depth, Fault, Found, Step, Walk};
use super::*;
use crate::model::position::{Partition, StreamId, TopicPartition};
use crate::model::record::AssignmentId;

/// One record as bytes: offset, absent before, timestamp, key, value, headers.
pub(crate) type Plain =
    (i64, u64, Option<i64>, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

pub(crate) fn at(offset: i64) -> Offset {
    Offset::new(offset).unwrap()
}

pub(crate) fn key(partition: i32) -> StreamPartition {
    StreamPartition { stream: StreamId(Uuid::from_u128(0xabc)), partition: Partition(partition) }
}

/// A chunk of `partition` that starts at `start`; the records have offsets and what is absent before them.
pub(crate) fn chunk_of(partition: i32, start: i64, records: &[Plain], absent_after: u64) -> Chunk {
    let mut arena = Vec::new();
    let mut add = |bytes: &[u8]| {
        let start = arena.len();
        arena.extend_from_slice(bytes);
        start..arena.len()
    };
    let records: Vec<Record> = records
        .iter()
        .map(|(offset, absent_before, timestamp_ms, key, value, headers)| Record {
            offset: at(*offset),
            absent_before: *absent_before,
            timestamp_ms: *timestamp_ms,
            key: key.as_deref().map(&mut add),
            value: value.as_deref().map(&mut add),
            headers: headers.iter().map(|(key, value)| (add(key), value.as_deref().map(&mut add))).collect(),
        })
        .collect();
    let next = records.last().map_or(start, |record| record.offset.next().as_i64());
    Chunk {
        polled: None,
        assignment: AssignmentId(1),
        source: Arc::new(TopicPartition { topic: "audit.events".into(), partition: Partition(partition) }),
        start: at(start),
        end: at(next + i64::try_from(absent_after).unwrap()),
        absent_after,
        records,
        arena,
    }
}

/// A chunk of `count` small records from `start` on.
pub(crate) fn small_chunk(partition: i32, start: i64, count: i64) -> Chunk {
    let records: Vec<Plain> = (start..start + count)
        .map(|offset| (offset, 0, Some(offset), None, Some(format!("v{partition}-{offset}").into()), vec![]))
        .collect();
    chunk_of(partition, start, &records, 0)
}

/// Everything that a chunk says, with bytes instead of ranges.
pub(crate) fn plain(chunk: &Chunk) -> (String, i64, i64, u64, Vec<Plain>) {
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let records = chunk.records.iter().map(|record| {
        let headers = chunk.headers(record).map(|(key, value)| (key.to_vec(), owned(value))).collect();
        let (key, value) = (owned(chunk.key(record)), owned(chunk.value(record)));
        (record.offset.as_i64(), record.absent_before, record.timestamp_ms, key, value, headers)
    });
    let (start, end) = (chunk.start.as_i64(), chunk.end.as_i64());
    (chunk.source.to_string(), start, end, chunk.absent_after, records.collect())
}

fn stamp(number: u64) -> BatchStamp {
    BatchStamp { number: BatchNumber(number), append: BatchNumber(number), created_at_ms: 1_700_000_000_000 }
}

fn header(next_batch: u64) -> Header {
    Header {
        segment: SegmentNumber(2),
        instance: Uuid::from_u128(0x123),
        created_at_ms: 1_700_000_000_000,
        next_batch: BatchNumber(next_batch),
        previous: Some(Closing {
            segment: SegmentNumber(1),
            len_bytes: 4711,
            checksum: Checksum(0x89ab_cdef),
        }),
    }
}

/// A whole segment with `chunks` as its batches, from number 8 on.
fn segment_of(chunks: &[Chunk]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_header(&mut out, &header(8));
    let mut record_count = 0;
    for (number, chunk) in (8..).zip(chunks) {
        let key = StreamPartition { partition: chunk.source.partition, ..key(0) };
        record_count +=
            EncodedChunk::new(key, chunk).unwrap().append_to(&mut out, stamp(number)).record_count;
    }
    let closing =
        Closing { segment: SegmentNumber(2), len_bytes: count(out.len()), checksum: Checksum::of(&out) };
    encode_footer(&mut out, &Footer { closing, batch_count: count(chunks.len()), record_count });
    out
}

fn walk(bytes: &[u8]) -> (Vec<Step>, Vec<SpooledBatch>) {
    let mut walk = Walk::new(SegmentNumber(2), Depth::Records);
    let (mut steps, mut batches) = (Vec::new(), Vec::new());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        steps.push(walk.step(line));
        batches.extend(walk.take_batch());
    }
    (steps, batches)
}

fn golden_chunks() -> Vec<Chunk> {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    vec![
        chunk_of(
            0,
            20,
            &[
                (20, 0, Some(1_700_000_000_001), text("user-1"), text(r#"{"operation":"login"}"#), vec![]),
                (23, 2, None, Some(vec![0xff, 0x00]), Some(vec![0xc3, 0x28]), vec![]),
                (24, 0, Some(-1), None, None, vec![]),
                (
                    25,
                    0,
                    Some(0),
                    text(""),
                    text("quote \" backslash \\ lf \n nul \0 del \u{7f} \u{2028} ü 🦀"),
                    vec![
                        (b"traceparent".to_vec(), text("00-1")),
                        (b"none".to_vec(), None),
                        (vec![0xfe], Some(vec![0xfd])),
                    ],
                ),
            ],
            3,
        ),
        chunk_of(2_147_483_647, 7, &[], 5),
        small_chunk(1, 9_223_372_036_854_775_800, 3),
    ]
}

const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/spool/segment.jsonl");

#[test]
fn the_golden_segment_is_written_byte_for_byte() {
    assert_eq!(
        String::from_utf8(segment_of(&golden_chunks())).unwrap(),
        std::str::from_utf8(GOLDEN).unwrap()
    );
}

#[test]
fn the_golden_segment_is_read_back() {
    let (steps, batches) = walk(GOLDEN);
    assert!(steps.iter().all(|step| !matches!(step, Step::Damage { .. })), "{steps:?}");
    assert!(matches!(steps.last(), Some(Step::Footer(footer)) if footer.record_count == 7));
    let chunks: Vec<_> = batches.into_iter().map(|batch| plain(&batch.into_chunk(AssignmentId(9)))).collect();
    assert_eq!(chunks, golden_chunks().iter().map(plain).collect::<Vec<_>>());
}

#[test]
fn every_line_is_an_object_that_others_can_read() {
    for line in std::str::from_utf8(GOLDEN).unwrap().lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(value["kind"].is_string() && value["crc"].is_string(), "{line}");
    }
}

#[test]
fn a_shown_record_says_where_it_is_from() {
    let chunk = small_chunk(3, 5, 1);
    let mut out = Vec::new();
    encode_shown_record(&mut out, key(3), &chunk, &chunk.records[0]);
    let line = r#"{"topic":"audit.events","stream":"00000000-0000-0000-0000-000000000abc","partition":3,"offset":5,"absent_before":0,"timestamp_ms":5,"value":"v3-5"}"#;
    assert_eq!(String::from_utf8(out).unwrap(), format!("{line}\n"));
}

#[test]
fn a_chunk_that_does_not_add_up_is_refused() {
    let check = |change: fn(&mut Chunk)| {
        let mut chunk = small_chunk(0, 10, 3);
        change(&mut chunk);
        let refused = EncodedChunk::new(key(0), &chunk);
        assert_eq!(refused, Err(Contradiction { key: key(0), start: chunk.start, end: chunk.end }));
    };
    check(|chunk| chunk.end = at(14));
    check(|chunk| chunk.end = at(9));
    check(|chunk| chunk.absent_after = 1);
    check(|chunk| chunk.records[1].absent_before = 1);
    check(|chunk| chunk.records.swap(0, 1));
    check(|chunk| drop(chunk.records.remove(1)));
    check(|chunk| chunk.absent_after = u64::MAX);
}

#[test]
fn no_flipped_bit_and_no_cut_makes_another_line() {
    for line in GOLDEN.split_inclusive(|byte| *byte == b'\n') {
        parse_line(line).unwrap();
        for index in 0..line.len() {
            assert!(parse_line(&line[..index]).is_err());
            for bit in 0..8 {
                let mut flipped = line.to_vec();
                flipped[index] ^= 1 << bit;
                assert!(parse_line(&flipped).is_err(), "{}", String::from_utf8_lossy(&flipped));
            }
        }
    }
}

#[test]
fn a_line_of_another_format_is_malformed() {
    for (from, to) in [
        (r#""format":1"#, r#""format":2"#),
        ("audit-consumer spool", "other"),
        (r#""kind":"header""#, r#""kind":"headers""#),
        (r#""segment":2"#, r#""segment":-2"#),
    ] {
        let text = std::str::from_utf8(GOLDEN).unwrap().lines().next().unwrap();
        let changed = text.rsplit_once(",\"crc\"").unwrap().0.replace(from, to);
        let line = format!("{changed},\"crc\":\"{}\"}}\n", Checksum::of(changed.as_bytes()));
        assert!(matches!(parse_line(line.as_bytes()), Err(LineFault::Malformed(_))), "{line}");
    }
}

#[test]
fn batches_that_are_missing_doubled_or_swapped_are_noticed() {
    let chunks: Vec<Chunk> = (0..3).map(|start| small_chunk(0, start, 1)).collect();
    let segment = segment_of(&chunks);
    let lines: Vec<&[u8]> = segment.split_inclusive(|byte| *byte == b'\n').collect();
    let (head, one, two, three) =
        (lines[0], lines[1..3].concat(), lines[3..5].concat(), lines[5..7].concat());
    let check = |parts: &[&[u8]], expected: u64, found: u64| {
        let (steps, _) = walk(&parts.concat());
        let first = steps.into_iter().find(|step| matches!(step, Step::Damage { .. }));
        let Some(Step::Damage { fault, batch: Some(Found::Whole(_)) }) = first else { panic!("{first:?}") };
        assert_eq!(fault, Fault::Order { expected: BatchNumber(expected), found: BatchNumber(found) });
    };
    check(&[head, &two], 8, 9);
    check(&[head, &one, &three], 9, 10);
    check(&[head, &one, &one], 9, 8);
    check(&[head, &one, &three, &two], 9, 10);
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        any::<String>().prop_map(String::into_bytes),
        "[\\x00-\\x7f]{0,40}".prop_map(String::into_bytes),
    ]
}

fn any_chunk() -> impl Strategy<Value = Chunk> {
    let headers = prop::collection::vec((any_bytes(), prop::option::of(any_bytes())), 0..3);
    let record = (
        0..3u64,
        prop::option::of(any::<i64>()),
        prop::option::of(any_bytes()),
        prop::option::of(any_bytes()),
        headers,
    );
    (0..1000i64, prop::collection::vec(record, 0..6), 0..3u64).prop_map(|(start, records, absent_after)| {
        let mut next = start;
        let records: Vec<Plain> = records
            .into_iter()
            .map(|(gap, timestamp_ms, key, value, headers)| {
                let offset = next + i64::try_from(gap).unwrap();
                next = offset + 1;
                (offset, gap, timestamp_ms, key, value, headers)
            })
            .collect();
        chunk_of(1, start, &records, absent_after)
    })
}

proptest! {
    #[test]
    fn whatever_bytes_records_hold_come_back(chunks in prop::collection::vec(any_chunk(), 0..4)) {
        let segment = segment_of(&chunks);
        prop_assert!(segment.split(|byte| *byte == b'\n').all(|line| line.iter().all(|byte| *byte >= b' ')));
        let (steps, batches) = walk(&segment);
        let is_damaged = steps.iter().any(|step| matches!(step, Step::Damage { .. }));
        prop_assert!(!is_damaged);
        let read: Vec<_> = batches.into_iter().map(|batch| plain(&batch.into_chunk(AssignmentId(1)))).collect();
        prop_assert_eq!(read, chunks.iter().map(plain).collect::<Vec<_>>());
    }

    #[test]
    fn any_bytes_are_walked_to_their_end(bytes: Vec<u8>) {
        let (_, batches) = walk(&bytes);
        prop_assert!(batches.is_empty());
    }
}
