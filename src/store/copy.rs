//! Binary COPY: how an event and a dead letter become rows for PostgreSQL.
//!
//! The format is PostgreSQL's `COPY ... (FORMAT binary)` (documentation of COPY, "Binary Format"): a
//! signature, two 32-bit words, then tuples, then a trailer. A tuple is a 16-bit column count, and for each
//! column a 32-bit length (-1: null) and that many bytes in the column type's binary send format. All numbers
//! are big endian. Tuples are independent of each other, so a batch may be cut between any two.

use std::net::IpAddr;

use uuid::Uuid;

use crate::model::batch::DeadLetter;
use crate::model::dead_letter::headers_to_json;
use crate::model::event::{Event, Timestamp, TrustScore};
use crate::model::federated::SourceFlag;
use crate::model::position::{Offset, StreamPartition};
use crate::model::record::{Chunk, Record};

/// What stands before the first tuple: signature, flags 0, header extension length 0.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What stands after the last tuple: a column count of -1.
pub const TRAILER: &[u8] = &[0xff, 0xff];

/// The columns of an event's tuple, in order; the same for `events` and for the table that merges.
pub const EVENT_COLUMNS: &str = "audit_id, correlation_id, timestamp, operation, command, args, actor, \
    status, duration_ms, result_signature, client_app, caller_ip_address, federated_source, query_intent, \
    bypass_llm, trust_score, purview_compatible, metadata, schema_version, tenant_id, extra, source_flag, \
    stream_id, source_partition, source_offset";
const EVENT_COLUMN_COUNT: i16 = 25;

/// The columns of a dead letter's tuple, in order.
pub const DEAD_LETTER_COLUMNS: &str = "stream_id, source_partition, source_offset, group_id, topic, reason, \
    detail, sqlstate, record_timestamp, record_key, payload, headers, payload_len_bytes, correlation_id, \
    audit_id";
const DEAD_LETTER_COLUMN_COUNT: i16 = 15;

/// PostgreSQL counts time from 2000-01-01T00:00:00Z; this is that moment in Unix microseconds.
const POSTGRES_EPOCH_UNIX_MICROS: i64 = 946_684_800_000_000;
/// The family bytes of `inet` (src/include/utils/inet.h: `PGSQL_AF_INET`, `PGSQL_AF_INET6`).
const INET_FAMILY_V4: u8 = 2;
const INET_FAMILY_V6: u8 = 3;
/// The version byte before the text of a binary `jsonb`.
const JSONB_VERSION: u8 = 1;
/// `numeric` holds digits of base 10,000.
const NUMERIC_DIGITS_PER_WORD: u8 = 4;

/// Appends the tuple of `event`, which was read at `offset` of `key`; `flag`: what is wrong with its source.
pub fn encode_event(
    rows: &mut Vec<u8>,
    event: &Event<'_>,
    flag: Option<SourceFlag>,
    (key, offset): (StreamPartition, Offset),
) {
    rows.extend_from_slice(&EVENT_COLUMN_COUNT.to_be_bytes());
    uuid(rows, Some(event.audit_id));
    uuid(rows, Some(event.correlation_id));
    timestamp(rows, Some(event.timestamp));
    text(rows, Some(&event.operation));
    text(rows, Some(&event.command));
    text(rows, event.args.as_deref());
    text(rows, Some(&event.actor));
    text(rows, Some(event.status.as_str()));
    match event.duration_ms {
        Some(duration_ms) => field(rows, &duration_ms.to_be_bytes()),
        None => null(rows),
    }
    text(rows, Some(&event.result_signature));
    text(rows, Some(&event.client_app));
    inet(rows, event.caller_ip_address);
    text(rows, Some(&event.federated_source));
    text(rows, event.query_intent.as_deref());
    field(rows, &[u8::from(event.bypass_llm)]);
    numeric(rows, event.trust_score);
    field(rows, &[u8::from(event.purview_compatible)]);
    jsonb(rows, Some(&event.metadata));
    text(rows, Some(&event.schema_version));
    text(rows, Some(&event.tenant_id));
    jsonb(rows, event.extra.as_deref());
    text(rows, flag.map(SourceFlag::as_str));
    coordinates(rows, key, offset);
}

/// Appends the tuple of a dead letter: the record as it came, and why it is none of the events.
pub fn encode_dead_letter(
    rows: &mut Vec<u8>,
    letter: &DeadLetter,
    (key, group): (StreamPartition, &str),
    (chunk, record): (&Chunk, &Record),
) {
    let payload = chunk.value(record);
    rows.extend_from_slice(&DEAD_LETTER_COLUMN_COUNT.to_be_bytes());
    coordinates(rows, key, record.offset);
    text(rows, Some(group));
    text(rows, Some(&chunk.source.topic));
    text(rows, Some(letter.rejection.code.as_str()));
    text(rows, Some(letter.rejection.detail()));
    text(rows, letter.sqlstate.as_deref());
    timestamp(rows, record.timestamp_ms.and_then(|ms| Timestamp::from_unix_micros(ms.checked_mul(1000)?)));
    bytes(rows, chunk.key(record));
    bytes(rows, payload);
    jsonb(rows, Some(&headers_to_json(chunk.headers(record)).to_string()));
    match payload.map(|payload| i64::try_from(payload.len())) {
        Some(Ok(len_bytes)) => field(rows, &len_bytes.to_be_bytes()),
        _ => null(rows),
    }
    uuid(rows, letter.correlation_id);
    uuid(rows, letter.audit_id);
}

/// `audit_id` and `correlation_id` of a tuple of [`encode_event`].
#[must_use]
pub fn ids_of(row: &[u8]) -> Option<(Uuid, Uuid)> {
    // Behind the number of columns, each behind its length.
    let id = |at: usize| Some(Uuid::from_bytes(*row.get(at..)?.first_chunk()?));
    Some((id(2 + 4)?, id(2 + 4 + 16 + 4)?))
}

fn coordinates(rows: &mut Vec<u8>, key: StreamPartition, offset: Offset) {
    uuid(rows, Some(key.stream.0));
    field(rows, &key.partition.0.to_be_bytes());
    field(rows, &offset.as_i64().to_be_bytes());
}

fn null(rows: &mut Vec<u8>) {
    rows.extend_from_slice(&(-1i32).to_be_bytes());
}

/// One field. A record is far under 2 GiB (`MAX_EVENT_BYTES`), so the length always fits; were it not to, the
/// length would be wrong and PostgreSQL would refuse the tuple.
fn field(rows: &mut Vec<u8>, bytes: &[u8]) {
    let len_bytes = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    rows.extend_from_slice(&len_bytes.to_be_bytes());
    rows.extend_from_slice(bytes);
}

fn text(rows: &mut Vec<u8>, value: Option<&str>) {
    bytes(rows, value.map(str::as_bytes));
}

fn bytes(rows: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => field(rows, value),
        None => null(rows),
    }
}

fn uuid(rows: &mut Vec<u8>, value: Option<Uuid>) {
    match value {
        Some(value) => field(rows, value.as_bytes()),
        None => null(rows),
    }
}

fn timestamp(rows: &mut Vec<u8>, value: Option<Timestamp>) {
    match value {
        // The difference can't overflow: a timestamp lies within the years 0001 to 9999.
        Some(value) => field(rows, &(value.as_unix_micros() - POSTGRES_EPOCH_UNIX_MICROS).to_be_bytes()),
        None => null(rows),
    }
}

fn inet(rows: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            rows.extend_from_slice(&8i32.to_be_bytes());
            rows.extend_from_slice(&[INET_FAMILY_V4, 32, 0, 4]);
            rows.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            rows.extend_from_slice(&20i32.to_be_bytes());
            rows.extend_from_slice(&[INET_FAMILY_V6, 128, 0, 16]);
            rows.extend_from_slice(&v6.octets());
        }
    }
}

fn jsonb(rows: &mut Vec<u8>, value: Option<&str>) {
    let Some(value) = value else { return null(rows) };
    let len_bytes = i32::try_from(value.len() + 1).unwrap_or(i32::MAX);
    rows.extend_from_slice(&len_bytes.to_be_bytes());
    rows.push(JSONB_VERSION);
    rows.extend_from_slice(value.as_bytes());
}

/// `numeric`: word count, weight of the first word, sign, digits after the point, words of base 10,000. The
/// whole part of a trust score is 0 or 1, so it is one word, and the digits behind it follow in words of four.
fn numeric(rows: &mut Vec<u8>, score: TrustScore) {
    let scale = score.scale();
    let words = scale.div_ceil(NUMERIC_DIGITS_PER_WORD);
    let padding = words * NUMERIC_DIGITS_PER_WORD - scale;
    let mut rest = u128::from(score.unscaled()) * 10u128.pow(u32::from(padding));
    let mut digits = [0u16; 6];
    for slot in digits.iter_mut().take(usize::from(words) + 1).rev() {
        *slot = u16::try_from(rest % 10_000).unwrap_or_default();
        rest /= 10_000;
    }
    // Leading and trailing zero words are left out, as PostgreSQL itself sends them.
    let all = digits.get(..=usize::from(words)).unwrap_or_default();
    let leading = all.iter().take_while(|word| **word == 0).count();
    let kept = all.get(leading..).unwrap_or_default();
    let trailing = kept.iter().rev().take_while(|word| **word == 0).count();
    let kept = kept.get(..kept.len() - trailing).unwrap_or_default();
    let weight = if kept.is_empty() { 0 } else { -i16::try_from(leading).unwrap_or_default() };
    rows.extend_from_slice(&i32::try_from(8 + 2 * kept.len()).unwrap_or_default().to_be_bytes());
    rows.extend_from_slice(&i16::try_from(kept.len()).unwrap_or_default().to_be_bytes());
    rows.extend_from_slice(&weight.to_be_bytes());
    rows.extend_from_slice(&0i16.to_be_bytes());
    rows.extend_from_slice(&i16::from(scale).to_be_bytes());
    for word in kept {
        rows.extend_from_slice(&word.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_numeric(unscaled: u64, scale: u8, expect: &[i16]) {
        let mut rows = vec![];
        numeric(&mut rows, TrustScore::new(unscaled, scale).unwrap());
        let words: Vec<i16> =
            rows[4..].chunks(2).map(|pair| i16::from_be_bytes([pair[0], pair[1]])).collect();
        assert_eq!(words, expect, "{unscaled}e-{scale}");
        let len_bytes = i32::from_be_bytes([rows[0], rows[1], rows[2], rows[3]]);
        assert_eq!(usize::try_from(len_bytes).unwrap(), rows.len() - 4);
    }

    #[test]
    fn a_score_is_encoded_as_postgresql_sends_it() {
        check_numeric(0, 0, &[0, 0, 0, 0]);
        check_numeric(0, 2, &[0, 0, 0, 2]);
        check_numeric(1, 0, &[1, 0, 0, 0, 1]);
        check_numeric(100, 2, &[1, 0, 0, 2, 1]);
        check_numeric(80, 2, &[1, -1, 0, 2, 8000]);
        check_numeric(8, 1, &[1, -1, 0, 1, 8000]);
        check_numeric(1, 5, &[1, -2, 0, 5, 1000]);
        check_numeric(10_001, 8, &[2, -1, 0, 8, 1, 1]);
        check_numeric(1, 16, &[1, -4, 0, 16, 1]);
    }
}
