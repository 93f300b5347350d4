//! From lines to headers, batches and footers.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use uuid::Uuid;

use super::{
    BatchLine, BatchNumber, CHECKSUM_PREFIX, CHECKSUM_SUFFIX, Checksum, Closing, FORMAT, Footer, Header,
    MAGIC, RECORD_PREFIX, SegmentNumber,
};
use crate::model::position::{Offset, OffsetRange, Partition, StreamId, StreamPartition};

/// What a line is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The first of a segment.
    Header(Header),
    /// A record, not parsed yet: only a batch line makes it count.
    Record,
    /// The end of a batch.
    Batch(BatchLine),
    /// The last of a full segment.
    Footer(Footer),
}

/// Why bytes are no line of a segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// The line feed is missing: the file ends in the middle of the line.
    #[error("the line has no end")]
    Unended,
    /// The line does not end with a checksum.
    #[error("the line does not end with a checksum")]
    Unchecked,
    /// The bytes of the line are not those that were written.
    #[error("the line's checksum is {found}, and it says {said}")]
    Checksum {
        /// Of the bytes that are there.
        found: Checksum,
        /// What the line says.
        said: Checksum,
    },
    /// The bytes are those that were written, but not by this version of the format.
    #[error("the line can't be understood: {0}")]
    Malformed(String),
}

/// What a line, with its line feed, is before its checksum, once that was found to be right.
///
/// # Errors
/// Every [`LineFault`] but [`LineFault::Malformed`].
pub fn split_checksum(line: &[u8]) -> Result<&[u8], LineFault> {
    let text = line.strip_suffix(b"\n").ok_or(LineFault::Unended)?;
    let (rest, digits) = text
        .strip_suffix(CHECKSUM_SUFFIX)
        .and_then(|text| text.split_last_chunk::<8>())
        .ok_or(LineFault::Unchecked)?;
    let body = rest.strip_suffix(CHECKSUM_PREFIX).ok_or(LineFault::Unchecked)?;
    let said = checksum(digits).ok_or(LineFault::Unchecked)?;
    let found = Checksum::of(body);
    if found == said { Ok(body) } else { Err(LineFault::Checksum { found, said }) }
}

/// Eight lower case hexadecimal digits.
fn checksum(digits: &[u8; 8]) -> Option<Checksum> {
    let mut value = 0u32;
    for digit in digits {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        value = value << 4 | u32::from(digit);
    }
    Some(Checksum(value))
}

/// What a line, with its line feed, is.
///
/// # Errors
/// The first [`LineFault`] that it has.
pub fn parse_line(line: &[u8]) -> Result<Line, LineFault> {
    let body = split_checksum(line)?;
    if body.starts_with(RECORD_PREFIX) {
        return Ok(Line::Record);
    }
    let is = |kind: &[u8]| {
        body.strip_prefix(br#"{"kind":""#).and_then(|rest| rest.strip_prefix(kind)).map(|rest| rest.first())
            == Some(Some(&b'"'))
    };
    if is(b"batch") {
        return read::<BatchWire<'_>>(line)?.into_line().map(Line::Batch);
    }
    if is(b"header") {
        return read::<HeaderWire<'_>>(line)?.into_header().map(Line::Header);
    }
    if is(b"footer") {
        return read::<FooterWire<'_>>(line)?.into_footer().map(Line::Footer);
    }
    Err(LineFault::Malformed("its kind is unknown".into()))
}

fn read<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, LineFault> {
    serde_json::from_slice(line).map_err(|error| LineFault::Malformed(error.to_string()))
}

fn malformed(field: &str) -> LineFault {
    LineFault::Malformed(format!("{field} is not what it can be"))
}

fn offset(value: i64) -> Result<Offset, LineFault> {
    Offset::new(value).ok_or_else(|| malformed("offset"))
}

fn uuid(text: &str) -> Result<Uuid, LineFault> {
    Uuid::try_parse(text).map_err(|_not_hyphenated| malformed("uuid"))
}

fn wire_checksum(digits: &str) -> Result<Checksum, LineFault> {
    digits.as_bytes().try_into().ok().and_then(checksum).ok_or_else(|| malformed("checksum"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderWire<'a> {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    magic: &'a str,
    format: u32,
    segment: u64,
    instance: &'a str,
    created_at_ms: i64,
    batch: u64,
    #[serde(borrow)]
    previous: Option<ClosingWire<'a>>,
    #[serde(rename = "crc")]
    _crc: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClosingWire<'a> {
    segment: u64,
    len_bytes: u64,
    crc32c: &'a str,
}

impl HeaderWire<'_> {
    fn into_header(self) -> Result<Header, LineFault> {
        if self.magic != MAGIC || self.format != FORMAT {
            return Err(LineFault::Malformed(format!("format {} of '{}'", self.format, self.magic)));
        }
        let closing = |wire: ClosingWire<'_>| {
            let (segment, len_bytes) = (SegmentNumber(wire.segment), wire.len_bytes);
            Ok(Closing { segment, len_bytes, checksum: wire_checksum(wire.crc32c)? })
        };
        Ok(Header {
            segment: SegmentNumber(self.segment),
            instance: uuid(self.instance)?,
            created_at_ms: self.created_at_ms,
            next_batch: BatchNumber(self.batch),
            previous: self.previous.map(closing).transpose()?,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchWire<'a> {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    batch: u64,
    append: u64,
    stream: &'a str,
    #[serde(borrow)]
    topic: Cow<'a, str>,
    partition: i32,
    start: i64,
    end: i64,
    records: u64,
    absent: u64,
    absent_after: u64,
    created_at_ms: i64,
    len_bytes: u64,
    records_crc: &'a str,
    #[serde(rename = "crc")]
    _crc: IgnoredAny,
}

impl BatchWire<'_> {
    fn into_line(self) -> Result<BatchLine, LineFault> {
        let range = OffsetRange::new(offset(self.start)?, offset(self.end)?);
        let range = range.ok_or_else(|| malformed("range"))?;
        if self.records.checked_add(self.absent) != Some(range.span()) {
            return Err(malformed("account"));
        }
        let key =
            StreamPartition { stream: StreamId(uuid(self.stream)?), partition: Partition(self.partition) };
        Ok(BatchLine {
            number: BatchNumber(self.batch),
            append: BatchNumber(self.append),
            key,
            topic: self.topic.into(),
            range,
            record_count: self.records,
            absent_count: self.absent,
            absent_after: self.absent_after,
            created_at_ms: self.created_at_ms,
            len_bytes: self.len_bytes,
            records_checksum: wire_checksum(self.records_crc)?,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FooterWire<'a> {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    segment: u64,
    batches: u64,
    records: u64,
    len_bytes: u64,
    segment_crc: &'a str,
    #[serde(rename = "crc")]
    _crc: IgnoredAny,
}

impl FooterWire<'_> {
    fn into_footer(self) -> Result<Footer, LineFault> {
        let closing = Closing {
            segment: SegmentNumber(self.segment),
            len_bytes: self.len_bytes,
            checksum: wire_checksum(self.segment_crc)?,
        };
        Ok(Footer { closing, batch_count: self.batches, record_count: self.records })
    }
}
