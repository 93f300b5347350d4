//! The lines of the spool: how records that PostgreSQL can't take now are written, and read back.
//!
//! A segment is text: one JSON object a line, each line ended by a line feed, so that `jq` and people can read
//! it. There are four kinds of lines. Their keys are written in a fixed order without spaces; the checksum
//! stands last, so what it covers can be told without parsing.
//!
//! ```text
//! {"kind":"header","magic":"audit-consumer spool","format":1,"segment":2,"instance":UUID,
//!  "created_at_ms":1,"batch":8,"previous":{"segment":1,"len_bytes":4711,"crc32c":"89abcdef"},"crc":"01234567"}
//! {"kind":"record","offset":20,"absent_before":0,"timestamp_ms":1,"key":"k","value":"v",
//!  "headers":[{"key":"h","value":"v"}],"crc":"01234567"}
//! {"kind":"batch","batch":8,"append":8,"stream":UUID,"topic":"t","partition":0,"start":20,"end":21,
//!  "records":1,"absent":0,"absent_after":0,"created_at_ms":1,"len_bytes":123,"records_crc":"89abcdef","crc":..}
//! {"kind":"footer","segment":2,"batches":1,"records":1,"len_bytes":815,"segment_crc":"89abcdef","crc":..}
//! ```
//!
//! `crc` is CRC-32C (Castagnoli, RFC 3720 section 12.1) of all bytes of the line before `,"crc"`, in eight
//! lower case hexadecimal digits. Numbers are decimal. A key or value that is UTF-8 is a JSON string; other
//! bytes stand as base64 in `key_base64` or `value_base64`. A record without a key, a value (tombstone), a
//! timestamp or headers lacks those fields. What is read back is what was written, byte for byte.
//!
//! A **batch** is the unit that is held or not held. Its record lines come first, its batch line ends it and
//! says what it covers: one partition of one stream, `[start, end)`, how many records and how many absent
//! offsets, and the length and the CRC-32C of its record lines. `records + absent = end - start`, always.
//! Batches are numbered from 1 through all segments that name each other, without a gap, so one that is missing,
//! doubled or out of place is noticed. `append` is the number of the first batch that was made durable together with this one:
//! after a crash only the last append may be incomplete.
//!
//! The **header** says which segment came before, where its last batch ended, and the CRC-32C of its bytes up
//! to there. So a segment that is missing is noticed, and a segment whose end could not be written is known to
//! end where its successor says. `previous` is `null` when no segment was held before it. The **footer** ends a segment that is
//! full: it says what the segment holds, with the length and the CRC-32C of all bytes before it.
//!
//! [`walk`] reads the lines of a segment one by one and says of each what it means or what is wrong with it.

pub mod mode;
mod parse;
pub mod ranges;
mod records;
mod text;
pub mod walk;

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use super::base64;
use super::position::{Offset, OffsetRange, StreamPartition};
use super::record::{Chunk, Record};
use text::escape;

pub use parse::{Line, LineFault, parse_line, split_checksum};
pub use records::{RecordsFault, SpooledBatch};

/// Numbers for metrics and `spool list`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoolStats {
    /// How many segments hold something that may not be in PostgreSQL.
    pub segment_count: u64,
    /// How many records those segments hold; a partition that is drained out of a segment does not count.
    pub record_count: u64,
    /// The length of those segments.
    pub held_len_bytes: u64,
    /// The length of all files: segments, drained and quarantined ones.
    pub total_len_bytes: u64,
    /// How much can be appended, at the cost of drained segments.
    pub room_len_bytes: u64,
    /// When the oldest of those segments was begun, in milliseconds since the Unix epoch.
    pub oldest_created_at_ms: Option<i64>,
    /// How many files are in quarantine.
    pub quarantined_file_count: u64,
}

/// The version of the format that is written, and the only one that is read.
pub const FORMAT: u32 = 1;
/// What each segment says of itself.
pub const MAGIC: &str = "audit-consumer spool";
/// No footer is longer: 5 numbers of at most 20 digits, 2 checksums, and the keys.
pub const FOOTER_LEN_BYTES_MAX: u64 = 256;
/// No header is longer: 6 numbers of at most 20 digits, a UUID, 2 checksums, and the keys.
pub const HEADER_LEN_BYTES_MAX: u64 = 512;

/// What stands before the digits of a line's checksum, and after them.
const CHECKSUM_PREFIX: &[u8] = b",\"crc\":\"";
const CHECKSUM_SUFFIX: &[u8] = b"\"}";
/// About how long a record line is without what the record holds.
const LINE_LEN_BYTES: usize = 128;
/// How a record line begins.
const RECORD_PREFIX: &[u8] = br#"{"kind":"record""#;

/// The number of a segment, from 1. Numbers are never used twice in a directory; some may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of a batch, from 1, through all segments of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchNumber(pub u64);

impl BatchNumber {
    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for BatchNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A CRC-32C, which can go on over more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checksum(pub u32);

impl Checksum {
    /// The checksum of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc32c::crc32c(bytes))
    }

    /// The checksum of what this one covers, followed by `bytes`.
    #[must_use]
    pub fn then(self, bytes: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.0, bytes))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Where a segment's last whole batch ends, and the checksum of all bytes up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing {
    /// Which segment.
    pub segment: SegmentNumber,
    /// The end of its last batch, in bytes from its start.
    pub len_bytes: u64,
    /// The checksum of those bytes.
    pub checksum: Checksum,
}

/// A segment's first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its number.
    pub segment: SegmentNumber,
    /// The instance that wrote it.
    pub instance: Uuid,
    /// When, in milliseconds since the Unix epoch.
    pub created_at_ms: i64,
    /// The number that its first batch has.
    pub next_batch: BatchNumber,
    /// The segment before it, if there was one.
    pub previous: Option<Closing>,
}

/// The line that ends a batch, and makes it one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchLine {
    /// Its number.
    pub number: BatchNumber,
    /// The first batch that was made durable together with it.
    pub append: BatchNumber,
    /// The partition of the stream that it belongs to.
    pub key: StreamPartition,
    /// The topic's name.
    pub topic: Arc<str>,
    /// The offsets that it accounts for.
    pub range: OffsetRange,
    /// How many records it holds.
    pub record_count: u64,
    /// How many offsets of the range hold no record, those behind the last record included.
    pub absent_count: u64,
    /// How many offsets behind the last record hold no record.
    pub absent_after: u64,
    /// When it was written, in milliseconds since the Unix epoch.
    pub created_at_ms: i64,
    /// The length of its record lines.
    pub len_bytes: u64,
    /// The checksum of its record lines.
    pub records_checksum: Checksum,
}

/// The line that ends a full segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Where the last batch ended; the footer begins there.
    pub closing: Closing,
    /// How many batches the segment holds.
    pub batch_count: u64,
    /// How many records.
    pub record_count: u64,
}

/// A chunk whose records don't add up to its range can't be spooled: it would be believed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the records of {key} from {start} to {end} don't add up to that range")]
pub struct Contradiction {
    /// The partition of the stream.
    pub key: StreamPartition,
    /// Where the chunk says that it starts.
    pub start: Offset,
    /// Where it says that it ends.
    pub end: Offset,
}

/// Which batch comes next, and when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchStamp {
    /// Its number.
    pub number: BatchNumber,
    /// The first batch that is made durable together with it.
    pub append: BatchNumber,
    /// Now, in milliseconds since the Unix epoch.
    pub created_at_ms: i64,
}

/// Appends a header line.
pub fn encode_header(out: &mut Vec<u8>, header: &Header) {
    let start = out.len();
    let Header { segment, instance, created_at_ms, next_batch, previous } = header;
    let previous = previous.map_or_else(
        || "null".to_owned(),
        |Closing { segment, len_bytes, checksum }| {
            format!(r#"{{"segment":{segment},"len_bytes":{len_bytes},"crc32c":"{checksum}"}}"#)
        },
    );
    let line = format!(
        r#"{{"kind":"header","magic":"{MAGIC}","format":{FORMAT},"segment":{segment},"instance":"{instance}","#
    );
    out.extend_from_slice(line.as_bytes());
    let line = format!(r#""created_at_ms":{created_at_ms},"batch":{next_batch},"previous":{previous}"#);
    out.extend_from_slice(line.as_bytes());
    close_line(out, start);
}

/// Appends a footer line.
pub fn encode_footer(out: &mut Vec<u8>, footer: &Footer) {
    let start = out.len();
    let Footer { closing: Closing { segment, len_bytes, checksum }, batch_count, record_count } = footer;
    let line = format!(
        r#"{{"kind":"footer","segment":{segment},"batches":{batch_count},"records":{record_count},"len_bytes":{len_bytes},"segment_crc":"{checksum}""#
    );
    out.extend_from_slice(line.as_bytes());
    close_line(out, start);
}

/// The record lines of a chunk, and what its batch line will say of them but for its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedChunk {
    key: StreamPartition,
    topic: Arc<str>,
    range: OffsetRange,
    record_count: u64,
    absent_count: u64,
    absent_after: u64,
    lines: Vec<u8>,
    checksum: Checksum,
}

impl EncodedChunk {
    /// Encodes the records of `chunk`.
    ///
    /// # Errors
    /// [`Contradiction`] when the chunk's counts don't add up to its range.
    pub fn new(key: StreamPartition, chunk: &Chunk) -> Result<Self, Contradiction> {
        let (range, absent_count) = account(key, chunk)?;
        let mut lines = Vec::with_capacity(chunk.arena.len() / 4 * 5 + chunk.records.len() * LINE_LEN_BYTES);
        for record in &chunk.records {
            encode_record(&mut lines, chunk, record);
        }
        Ok(Self {
            key,
            topic: Arc::clone(&chunk.source.topic),
            range,
            record_count: count(chunk.records.len()),
            absent_count,
            absent_after: chunk.absent_after,
            checksum: Checksum::of(&lines),
            lines,
        })
    }

    /// Its offsets.
    #[must_use]
    pub const fn range(&self) -> OffsetRange {
        self.range
    }

    /// How many records it has.
    #[must_use]
    pub const fn record_count(&self) -> u64 {
        self.record_count
    }

    /// The length of its record lines.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        count(self.lines.len())
    }

    /// Appends it as a batch: its record lines and its batch line.
    pub fn append_to(&self, out: &mut Vec<u8>, stamp: BatchStamp) -> BatchLine {
        let line = BatchLine {
            number: stamp.number,
            append: stamp.append,
            key: self.key,
            topic: Arc::clone(&self.topic),
            range: self.range,
            record_count: self.record_count,
            absent_count: self.absent_count,
            absent_after: self.absent_after,
            created_at_ms: stamp.created_at_ms,
            len_bytes: self.len_bytes(),
            records_checksum: self.checksum,
        };
        out.extend_from_slice(&self.lines);
        encode_batch_line(out, &line);
        line
    }
}

fn encode_batch_line(out: &mut Vec<u8>, line: &BatchLine) {
    let start = out.len();
    let BatchLine { number, append, key, range, .. } = line;
    let head =
        format!(r#"{{"kind":"batch","batch":{number},"append":{append},"stream":"{}","topic":""#, key.stream);
    out.extend_from_slice(head.as_bytes());
    escape(out, &line.topic);
    let place = format!(r#"","partition":{},"start":{},"end":{}"#, key.partition, range.start(), range.end());
    out.extend_from_slice(place.as_bytes());
    let BatchLine { record_count, absent_count, absent_after, created_at_ms, .. } = line;
    let counts = format!(
        r#","records":{record_count},"absent":{absent_count},"absent_after":{absent_after},"created_at_ms":{created_at_ms}"#
    );
    out.extend_from_slice(counts.as_bytes());
    let contents = format!(r#","len_bytes":{},"records_crc":"{}""#, line.len_bytes, line.records_checksum);
    out.extend_from_slice(contents.as_bytes());
    close_line(out, start);
}

fn encode_record(out: &mut Vec<u8>, chunk: &Chunk, record: &Record) {
    let start = out.len();
    out.extend_from_slice(RECORD_PREFIX);
    record_fields(out, chunk, record);
    close_line(out, start);
}

/// Appends a record as one JSON line for people: where it is from, then the fields of its record line.
pub fn encode_shown_record(out: &mut Vec<u8>, key: StreamPartition, chunk: &Chunk, record: &Record) {
    out.extend_from_slice(br#"{"topic":""#);
    escape(out, &chunk.source.topic);
    let place = format!(r#"","stream":"{}","partition":{}"#, key.stream, key.partition);
    out.extend_from_slice(place.as_bytes());
    record_fields(out, chunk, record);
    out.extend_from_slice(b"}\n");
}

/// Everything of a record line between its kind and its checksum.
fn record_fields(out: &mut Vec<u8>, chunk: &Chunk, record: &Record) {
    out.extend_from_slice(br#","offset":"#);
    out.extend_from_slice(record.offset.as_i64().to_string().as_bytes());
    out.extend_from_slice(br#","absent_before":"#);
    out.extend_from_slice(record.absent_before.to_string().as_bytes());
    if let Some(timestamp_ms) = record.timestamp_ms {
        out.extend_from_slice(br#","timestamp_ms":"#);
        out.extend_from_slice(timestamp_ms.to_string().as_bytes());
    }
    if let Some(key) = chunk.key(record) {
        out.push(b',');
        bytes_field(out, "key", key);
    }
    if let Some(value) = chunk.value(record) {
        out.push(b',');
        bytes_field(out, "value", value);
    }
    if record.headers.is_empty() {
        return;
    }
    let mut separator: &[u8] = br#","headers":["#;
    for (key, value) in chunk.headers(record) {
        out.extend_from_slice(separator);
        out.push(b'{');
        bytes_field(out, "key", key);
        if let Some(value) = value {
            out.push(b',');
            bytes_field(out, "value", value);
        }
        out.push(b'}');
        separator = b",";
    }
    out.push(b']');
}

/// `"name":"text"`, or `"name_base64":"..."` for what is not UTF-8.
fn bytes_field(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            out.extend_from_slice(b"\":\"");
            escape(out, text);
        }
        Err(_) => {
            out.extend_from_slice(b"_base64\":\"");
            out.extend_from_slice(base64::encode(bytes).as_bytes());
        }
    }
    out.push(b'"');
}

/// Ends the line that began at `start`.
fn close_line(out: &mut Vec<u8>, start: usize) {
    let checksum = Checksum::of(out.get(start..).unwrap_or_default());
    out.extend_from_slice(CHECKSUM_PREFIX);
    out.extend_from_slice(checksum.to_string().as_bytes());
    out.extend_from_slice(CHECKSUM_SUFFIX);
    out.push(b'\n');
}

/// The range of a chunk and how many offsets of it are absent, when its records add up to it.
fn account(key: StreamPartition, chunk: &Chunk) -> Result<(OffsetRange, u64), Contradiction> {
    let contradiction = Contradiction { key, start: chunk.start, end: chunk.end };
    let range = OffsetRange::new(chunk.start, chunk.end).ok_or(contradiction)?;
    let offsets = chunk.records.iter().map(|record| (record.offset, record.absent_before));
    let absent_count = records::absent_count(range, offsets, chunk.absent_after).ok_or(contradiction)?;
    Ok((range, absent_count))
}

/// A length in memory as it is written; `usize` is never wider than 64 bits here.
fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
