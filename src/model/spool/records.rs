//! From the record lines of a batch back to its records.
//!
//! What is read are the very bytes that were written, as the batch line's checksum says, so they are taken as
//! [`super::EncodedChunk`] writes them: every field in its place.

use std::ops::Range;
use std::sync::Arc;

use super::text::unescape;
use super::{BatchLine, BatchNumber, CHECKSUM_PREFIX, CHECKSUM_SUFFIX, Checksum, RECORD_PREFIX, count};
use crate::model::base64;
use crate::model::position::{Offset, OffsetRange, TopicPartition};
use crate::model::record::{AssignmentId, Chunk, Record};

/// Why the records of a batch are not those that its batch line speaks of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordsFault {
    /// Other bytes stand before the batch line than it says.
    #[error("batch {0} covers other lines than those before it")]
    Contents(BatchNumber),
    /// One of the record lines is not as this version of the format has it.
    #[error("batch {number} holds a record that can't be understood: its line {line}")]
    Line {
        /// Which batch.
        number: BatchNumber,
        /// Which of its lines, from 1.
        line: u64,
    },
    /// The offsets of the records don't fill the range.
    #[error("the records of batch {0} don't add up to its range")]
    Account(BatchNumber),
}

/// A batch that was read back whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpooledBatch {
    /// What it is.
    pub line: BatchLine,
    records: Vec<Record>,
    arena: Vec<u8>,
}

impl SpooledBatch {
    /// Its records as a chunk that was read under `assignment`.
    #[must_use]
    pub fn into_chunk(self, assignment: AssignmentId) -> Chunk {
        let Self { line, records, arena } = self;
        let source = TopicPartition { topic: line.topic, partition: line.key.partition };
        let (start, end) = (line.range.start(), line.range.end());
        let absent_after = line.absent_after;
        Chunk { assignment, source: Arc::new(source), start, end, absent_after, records, polled: None, arena }
    }
}

/// How many offsets of `range` hold no record; `None` when the records, each with the absent offsets before
/// it, and `absent_after` don't fill the range exactly and in order.
pub(super) fn absent_count(
    range: OffsetRange,
    records: impl Iterator<Item = (Offset, u64)>,
    absent_after: u64,
) -> Option<u64> {
    let (mut next, mut absent_count) = (range.start(), 0u64);
    for (offset, absent_before) in records {
        if next.distance_to(offset)? != absent_before {
            return None;
        }
        absent_count = absent_count.checked_add(absent_before)?;
        next = offset.next();
    }
    let is_filled = next.distance_to(range.end())? == absent_after;
    is_filled.then(|| absent_count.checked_add(absent_after))?
}

/// Reads the record lines of a batch.
///
/// # Errors
/// See [`RecordsFault`].
pub(super) fn parse_records(line: BatchLine, lines: &[u8]) -> Result<SpooledBatch, RecordsFault> {
    let number = line.number;
    let are_its_own = count(lines.len()) == line.len_bytes && Checksum::of(lines) == line.records_checksum;
    if !are_its_own {
        return Err(RecordsFault::Contents(number));
    }
    let (mut records, mut arena) = (Vec::new(), Vec::with_capacity(lines.len()));
    let mut reader = Reader { rest: lines };
    while !reader.rest.is_empty() {
        let line = count(records.len()) + 1;
        records.push(reader.record(&mut arena).ok_or(RecordsFault::Line { number, line })?);
    }
    let offsets = records.iter().map(|record| (record.offset, record.absent_before));
    let adds_up = count(records.len()) == line.record_count
        && absent_count(line.range, offsets, line.absent_after) == Some(line.absent_count);
    if adds_up { Ok(SpooledBatch { line, records, arena }) } else { Err(RecordsFault::Account(number)) }
}

/// What is not read yet of record lines. Its functions return `None` where another thing stands there.
struct Reader<'a> {
    rest: &'a [u8],
}

/// Where a text is in the arena.
type Kept = Range<usize>;

impl Reader<'_> {
    fn record(&mut self, arena: &mut Vec<u8>) -> Option<Record> {
        self.literal(RECORD_PREFIX)?;
        self.literal(br#","offset":"#)?;
        let offset = Offset::new(self.number()?)?;
        self.literal(br#","absent_before":"#)?;
        let absent_before = self.number()?;
        let has_timestamp = self.literal(br#","timestamp_ms":"#).is_some();
        let timestamp_ms = if has_timestamp { Some(self.number()?) } else { None };
        let key = self.bytes(br#","key"#, arena)?;
        let value = self.bytes(br#","value"#, arena)?;
        let has_headers = self.literal(br#","headers":["#).is_some();
        let headers = if has_headers { self.headers(arena)? } else { Vec::new() };
        self.literal(CHECKSUM_PREFIX)?;
        let (_digits, rest) = self.rest.split_first_chunk::<8>()?;
        self.rest = rest;
        self.literal(CHECKSUM_SUFFIX)?;
        self.literal(b"\n")?;
        Some(Record { offset, absent_before, timestamp_ms, key, value, headers })
    }

    fn headers(&mut self, arena: &mut Vec<u8>) -> Option<Vec<(Kept, Option<Kept>)>> {
        let mut headers = Vec::new();
        loop {
            let key = self.bytes(br#"{"key"#, arena)??;
            let value = self.bytes(br#","value"#, arena)?;
            headers.push((key, value));
            self.literal(b"}")?;
            if self.literal(b",").is_none() {
                self.literal(b"]")?;
                return Some(headers);
            }
        }
    }

    /// Puts what follows `name`, as a text or as base64, into the arena; `Some(None)` when the field is not there.
    fn bytes(&mut self, name: &[u8], arena: &mut Vec<u8>) -> Option<Option<Kept>> {
        let start = arena.len();
        let Some(rest) = self.rest.strip_prefix(name) else { return Some(None) };
        if let Some(text) = rest.strip_prefix(br#"":""#) {
            self.rest = unescape(arena, text)?;
        } else {
            let text = rest.strip_prefix(br#"_base64":""#)?;
            let len = text.iter().position(|byte| *byte == b'"')?;
            let (encoded, rest) = text.split_at_checked(len)?;
            arena.extend(base64::decode(str::from_utf8(encoded).ok()?)?);
            self.rest = rest.strip_prefix(b"\"")?;
        }
        Some(Some(start..arena.len()))
    }

    fn number<T: std::str::FromStr>(&mut self) -> Option<T> {
        let is_of_it = |byte: &u8| byte.is_ascii_digit() || *byte == b'-';
        let len = self.rest.iter().position(|byte| !is_of_it(byte))?;
        let (digits, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        str::from_utf8(digits).ok()?.parse().ok()
    }

    fn literal(&mut self, literal: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(literal)?;
        Some(())
    }
}
