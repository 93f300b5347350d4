//! One line of the spool: what is read means what others read in it, comes back when it is written again, and no byte
//! of it can be another one without that being noticed.

use std::sync::Arc;

use audit_consumer::model::position::{Offset, Partition, StreamId, StreamPartition};
use audit_consumer::model::record::{AssignmentId, Chunk};
use audit_consumer::model::spool::walk::{Depth, Step, Walk};
use audit_consumer::model::spool::{
    BatchLine, BatchNumber, BatchStamp, Checksum, EncodedChunk, Header, Line, LineFault, SegmentNumber,
    encode_footer, encode_header, parse_line, split_checksum,
};
use serde_json::Value;
use uuid::Uuid;

use super::spool_segment::{Plain, plain};

/// What a line without its line feed ends with, around eight digits.
const CHECKSUM: (&[u8], &[u8]) = (b",\"crc\":\"", b"\"}");
const SEGMENT: SegmentNumber = SegmentNumber(2);

/// Checks the first line of `bytes`, as it is and with a right checksum.
pub fn check(bytes: &[u8]) {
    let line = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    check_line(line);
    check_line(&sealed(body(line)));
}

/// The bytes before a checksum, if they end with one, right or wrong; else all of them.
fn body(bytes: &[u8]) -> &[u8] {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let before = text.strip_suffix(CHECKSUM.1).and_then(|text| text.split_last_chunk::<8>());
    before.and_then(|(rest, _digits)| rest.strip_suffix(CHECKSUM.0)).unwrap_or(text)
}

/// A line with the checksum that `body` has.
fn sealed(body: &[u8]) -> Vec<u8> {
    [body, CHECKSUM.0, Checksum::of(body).to_string().as_bytes(), CHECKSUM.1, b"\n"].concat()
}

fn check_line(line: &[u8]) {
    let parsed = parse_line(line);
    assert_eq!(parsed, parse_line(line), "the same bytes are the same line");
    match split_checksum(line) {
        Ok(body) => {
            assert_eq!(sealed(body), line, "a line is its body and the body's checksum");
            assert!(matches!(parsed, Ok(_) | Err(LineFault::Malformed(_))), "{parsed:?}");
            check_damage(line);
        }
        Err(fault) => assert_eq!(parsed, Err(fault)),
    }
    match parsed {
        Ok(Line::Header(header)) => check_header(line, &header),
        Ok(Line::Batch(batch)) => check_batch(line, &batch),
        Ok(Line::Footer(footer)) => {
            let mut again = Vec::new();
            encode_footer(&mut again, &footer);
            assert_eq!(parse_line(&again), Ok(Line::Footer(footer)));
            assert_eq!(number(line, "/batches"), Some(footer.batch_count.into()));
            assert_eq!(number(line, "/len_bytes"), Some(footer.closing.len_bytes.into()));
        }
        Ok(Line::Record) => check_record(line),
        Err(_) => {}
    }
}

/// A CRC-32C finds every change within 32 bits that follow each other, so every change of one byte. It does not count bytes
/// of 0 while its register is 0, so one of those may be missing; JSON text has none.
fn check_damage(line: &[u8]) {
    let seed = usize::try_from(Checksum::of(line).0).unwrap_or_default();
    for round in 0..4 {
        // Some bytes of the line, and its last ones.
        let at = if round == 3 {
            line.len() - 1 - seed % 18.min(line.len())
        } else {
            (seed >> (8 * round)) % line.len()
        };
        let mut other = line.to_vec();
        other[at] ^= u8::try_from(1 + (seed >> round) % 255).unwrap();
        assert!(parse_line(&other).is_err(), "byte {at} is another one: {}", String::from_utf8_lossy(&other));
        other.remove(at);
        let is_noticed = split_checksum(&other).is_err() || line.contains(&0);
        assert!(is_noticed, "byte {at} is missing: {}", String::from_utf8_lossy(&other));
        assert!(split_checksum(&line[..at]).is_err(), "the line is cut at {at}");
    }
}

/// A number of the line, as others read it.
fn number(line: &[u8], pointer: &str) -> Option<i128> {
    let value = serde_json::from_slice::<Value>(line).ok()?;
    let number = value.pointer(pointer)?;
    number.as_u64().map(i128::from).or_else(|| number.as_i64().map(i128::from))
}

fn check_header(line: &[u8], header: &Header) {
    let mut again = Vec::new();
    encode_header(&mut again, header);
    assert_eq!(parse_line(&again), Ok(Line::Header(*header)));
    assert_eq!(number(line, "/segment"), Some(header.segment.0.into()));
    assert_eq!(number(line, "/batch"), Some(header.next_batch.0.into()));
    assert_eq!(number(line, "/previous/len_bytes"), header.previous.map(|closing| closing.len_bytes.into()));
    let step = Walk::new(header.segment, Depth::Checksums).step(line);
    assert_eq!(step, Step::Header(*header));
}

fn check_batch(line: &[u8], batch: &BatchLine) {
    assert_eq!(batch.record_count.checked_add(batch.absent_count), Some(batch.range.span()), "{batch:?}");
    assert_eq!(parse_line(&batch_text(batch)), Ok(Line::Batch(batch.clone())));
    assert_eq!(number(line, "/start"), Some(batch.range.start().as_i64().into()));
    assert_eq!(number(line, "/end"), Some(batch.range.end().as_i64().into()));
    assert_eq!(number(line, "/partition"), Some(batch.key.partition.0.into()));
    // Alone it covers nothing, unless it says so.
    let says_nothing =
        batch.len_bytes == 0 && batch.record_count == 0 && batch.records_checksum == Checksum::of(b"");
    let found = walked(batch.number, &[line]);
    assert!(found.is_none() || says_nothing, "{batch:?}");
}

/// The batch line as the format has it.
fn batch_text(batch: &BatchLine) -> Vec<u8> {
    let BatchLine { number, append, key, range, record_count, absent_count, absent_after, .. } = batch;
    let BatchLine { created_at_ms, len_bytes, records_checksum, topic, .. } = batch;
    let topic = serde_json::to_string(&**topic).unwrap();
    let (stream, partition, start, end) = (key.stream, key.partition, range.start(), range.end());
    let body = format!(
        r#"{{"kind":"batch","batch":{number},"append":{append},"stream":"{stream}","topic":{topic},"partition":{partition},"start":{start},"end":{end},"records":{record_count},"absent":{absent_count},"absent_after":{absent_after},"created_at_ms":{created_at_ms},"len_bytes":{len_bytes},"records_crc":"{records_checksum}""#
    );
    sealed(body.as_bytes())
}

/// A record alone in a batch: what is read of it is what others read, and comes back when it is written again.
fn check_record(line: &[u8]) {
    let json = serde_json::from_slice::<Value>(line).ok();
    let whole =
        |name: &str| json.as_ref().and_then(|json| json.get(name)?.as_i64()).filter(|number| *number >= 0);
    let Some((offset, absent_before)) = whole("offset").zip(whole("absent_before")) else { return };
    let Some((start, end)) = offset.checked_sub(absent_before).zip(offset.checked_add(1)) else { return };
    let Some((start, end)) = Offset::new(start).zip(Offset::new(end)) else { return };
    let covers = BatchLine {
        number: BatchNumber(1),
        append: BatchNumber(1),
        key: StreamPartition { stream: StreamId(Uuid::nil()), partition: Partition(3) },
        topic: Arc::from("t"),
        range: audit_consumer::model::position::OffsetRange::new(start, end).unwrap(),
        record_count: 1,
        absent_count: absent_before.unsigned_abs(),
        absent_after: 0,
        created_at_ms: 0,
        len_bytes: u64::try_from(line.len()).unwrap(),
        records_checksum: Checksum::of(line),
    };
    let Some(chunk) = walked(BatchNumber(1), &[line, &batch_text(&covers)]) else { return };
    let read = plain(&chunk);
    assert_eq!((read.start, read.end, read.records.len()), (start.as_i64(), end.as_i64(), 1));
    check_as_others_read(&json.unwrap(), &read);
    let mut again = Vec::new();
    let stamp = BatchStamp { number: BatchNumber(1), append: BatchNumber(1), created_at_ms: 0 };
    EncodedChunk::new(covers.key, &chunk).unwrap().append_to(&mut again, stamp);
    let lines: Vec<&[u8]> = again.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(walked(BatchNumber(1), &lines).as_ref().map(plain), Some(read));
}

/// Texts and numbers of the record are those of the JSON.
fn check_as_others_read(json: &Value, read: &Plain) {
    let record = &read.records[0];
    // `-0` is a float to `serde_json`.
    let time = json.get("timestamp_ms").map(|time| time.as_i64().unwrap_or(0));
    assert_eq!(time, record.timestamp_ms);
    for (name, bytes) in [("key", &record.key), ("value", &record.value)] {
        if let Some(text) = json.get(name) {
            assert_eq!(text.as_str().map(str::as_bytes), bytes.as_deref());
        }
        let has_it = json.get(name).is_some() || json.get(format!("{name}_base64")).is_some();
        assert_eq!(has_it, bytes.is_some(), "{name}");
    }
    let headers = json.get("headers").and_then(Value::as_array).map_or(0, Vec::len);
    assert_eq!(headers, record.headers.len());
}

/// The batch that `lines` are behind a header, if they are one.
fn walked(first: BatchNumber, lines: &[&[u8]]) -> Option<Chunk> {
    let header = Header {
        segment: SEGMENT,
        instance: Uuid::nil(),
        created_at_ms: 0,
        next_batch: first,
        previous: None,
    };
    let mut walk = Walk::new(SEGMENT, Depth::Records);
    let mut head = Vec::new();
    encode_header(&mut head, &header);
    assert_eq!(walk.step(&head), Step::Header(header));
    let mut batch = None;
    for line in lines {
        let step = walk.step(line);
        batch = walk.take_batch();
        assert_eq!(matches!(step, Step::Batch(_)), batch.is_some(), "{step:?}");
    }
    batch.map(|batch| batch.into_chunk(AssignmentId(1)))
}
