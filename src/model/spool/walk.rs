//! A segment, line by line: what each line means, and what is wrong with it.
//!
//! The walk never stops at damage. It says what is wrong, forgets the records of the batch that it was in, and
//! goes on with the next line, so that batches behind the damage are still found. Whatever it says is held has
//! a batch line with the right checksum, and before it the very bytes that the batch line covers.

use super::parse::parse_line;
use super::records::parse_records;
use super::{
    BatchLine, BatchNumber, Checksum, Closing, Footer, Header, Line, LineFault, RecordsFault, SegmentNumber,
    SpooledBatch, count,
};

/// What is wrong with a line or with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The line itself.
    #[error(transparent)]
    Line(#[from] LineFault),
    /// What a batch line covers.
    #[error(transparent)]
    Records(#[from] RecordsFault),
    /// The segment does not begin with a header.
    #[error("the segment does not begin with its header")]
    NoHeader,
    /// The header names another segment than the file.
    #[error("the header is the one of segment {0}")]
    OtherSegment(SegmentNumber),
    /// A header stands inside of a segment.
    #[error("a header stands inside of the segment")]
    SecondHeader,
    /// Batches are missing, doubled or swapped.
    #[error("batch {found} stands where batch {expected} should")]
    Order {
        /// The number that is due.
        expected: BatchNumber,
        /// The number that is there.
        found: BatchNumber,
    },
    /// The footer speaks of another segment than the lines before it.
    #[error("the footer covers other lines than those before it")]
    Footer,
    /// Something follows the footer.
    #[error("a line follows the footer")]
    AfterFooter,
    /// The segment ends elsewhere than its successor or its footer says.
    #[error("the segment's successor names another end")]
    OtherEnd,
    /// A segment that has a successor has neither a footer nor is its end named.
    #[error("the segment has no end")]
    NoEnd,
}

/// A batch, and what is there of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Its batch line and all that it covers.
    Whole(BatchLine),
    /// Only its batch line.
    Broken(BatchLine),
}

impl Found {
    /// Its batch line.
    #[must_use]
    pub const fn line(&self) -> &BatchLine {
        match self {
            Self::Whole(line) | Self::Broken(line) => line,
        }
    }
}

/// What a line means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The segment begins.
    Header(Header),
    /// A record of the batch that follows.
    Record,
    /// A batch ends; the walk's [`Walk::closing`] is behind it.
    Batch(BatchLine),
    /// The segment ends as it should.
    Footer(Footer),
    /// Something is wrong.
    Damage {
        /// What.
        fault: Fault,
        /// The batch, when the line ends one.
        batch: Option<Found>,
    },
}

/// Where in a segment the walk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    Body,
    End,
}

/// Whether the records before a batch line have to be parsed, or only checked to be the bytes that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only checksums. What passes was written by [`super::EncodedChunk`].
    Checksums,
    /// Each record, as for reading it back.
    Records,
}

/// A walk through one segment.
#[derive(Debug)]
pub struct Walk {
    segment: SegmentNumber,
    depth: Depth,
    place: Place,
    next_batch: Option<BatchNumber>,
    closing: Closing,
    batch_count: u64,
    record_count: u64,
    /// The lines since the last line that was no record.
    pending: Vec<u8>,
    pending_count: u64,
    batch: Option<SpooledBatch>,
    is_damaged: bool,
}

impl Walk {
    /// A walk from the first line of `segment`.
    #[must_use]
    pub fn new(segment: SegmentNumber, depth: Depth) -> Self {
        Self {
            segment,
            depth,
            place: Place::Start,
            next_batch: None,
            closing: Closing { segment, len_bytes: 0, checksum: Checksum::default() },
            batch_count: 0,
            record_count: 0,
            pending: Vec::new(),
            pending_count: 0,
            batch: None,
            is_damaged: false,
        }
    }

    /// Where the last line ended that was a header or a batch in its place, with no damage before it.
    #[must_use]
    pub const fn closing(&self) -> Closing {
        self.closing
    }

    /// The number of the batch that is due; `None` before the header.
    #[must_use]
    pub const fn next_batch(&self) -> Option<BatchNumber> {
        self.next_batch
    }

    /// The records of the batch that the last step found; only with [`Depth::Records`], and only once.
    pub const fn take_batch(&mut self) -> Option<SpooledBatch> {
        self.batch.take()
    }

    /// The next line, with its line feed unless the file ends without one.
    pub fn step(&mut self, line: &[u8]) -> Step {
        let step = self.judge(line);
        self.is_damaged |= matches!(step, Step::Damage { .. });
        step
    }

    fn judge(&mut self, line: &[u8]) -> Step {
        let parsed = parse_line(line);
        let place = std::mem::replace(&mut self.place, Place::Body);
        if place == Place::End {
            self.place = Place::End;
            self.forget_records();
            let batch = match parsed {
                Ok(Line::Batch(batch)) => Some(Found::Broken(batch)),
                _ => None,
            };
            return Step::Damage { fault: Fault::AfterFooter, batch };
        }
        match (place, parsed) {
            (Place::Start, Ok(Line::Header(header))) => self.header(header, line),
            (Place::Start, Err(fault)) => damage(fault.into()),
            (Place::Start, Ok(Line::Record)) => {
                self.record(line);
                damage(Fault::NoHeader)
            }
            (Place::Start, Ok(Line::Batch(batch))) => {
                Step::Damage { fault: Fault::NoHeader, batch: Some(Found::Broken(batch)) }
            }
            (Place::Start, Ok(Line::Footer(_))) => damage(Fault::NoHeader),
            (_, Ok(Line::Record)) => {
                self.record(line);
                Step::Record
            }
            (_, Ok(Line::Batch(batch))) => self.batch(batch, line),
            (_, Ok(Line::Footer(footer))) => self.footer(footer),
            (_, Ok(Line::Header(_))) => {
                self.forget_records();
                damage(Fault::SecondHeader)
            }
            (_, Err(fault)) => {
                self.forget_records();
                damage(fault.into())
            }
        }
    }

    fn header(&mut self, header: Header, line: &[u8]) -> Step {
        if header.segment != self.segment {
            return damage(Fault::OtherSegment(header.segment));
        }
        self.next_batch = Some(header.next_batch);
        self.close(line);
        Step::Header(header)
    }

    fn record(&mut self, line: &[u8]) {
        self.pending.extend_from_slice(line);
        self.pending_count += 1;
    }

    fn batch(&mut self, batch: BatchLine, line: &[u8]) -> Step {
        let records = std::mem::take(&mut self.pending);
        let record_count = std::mem::take(&mut self.pending_count);
        let expected = self.next_batch.unwrap_or(batch.number);
        let found = match self.check(&batch, &records, record_count) {
            Ok(found) => found,
            Err(fault) => {
                self.next_batch = Some(batch.number.next().max(expected));
                return Step::Damage { fault: fault.into(), batch: Some(Found::Broken(batch)) };
            }
        };
        self.next_batch = Some(batch.number.next().max(expected));
        if batch.number != expected || batch.append > batch.number {
            let fault = Fault::Order { expected, found: batch.number };
            return Step::Damage { fault, batch: Some(Found::Whole(batch)) };
        }
        self.batch = found;
        self.batch_count += 1;
        self.record_count += batch.record_count;
        self.close(&records);
        self.close(line);
        self.pending = records;
        self.pending.clear();
        Step::Batch(batch)
    }

    fn check(
        &self,
        batch: &BatchLine,
        records: &[u8],
        record_count: u64,
    ) -> Result<Option<SpooledBatch>, RecordsFault> {
        if self.depth == Depth::Records {
            return parse_records(batch.clone(), records).map(Some);
        }
        let is_whole = record_count == batch.record_count
            && count(records.len()) == batch.len_bytes
            && Checksum::of(records) == batch.records_checksum;
        if is_whole { Ok(None) } else { Err(RecordsFault::Contents(batch.number)) }
    }

    fn footer(&mut self, footer: Footer) -> Step {
        let expected =
            Footer { closing: self.closing, batch_count: self.batch_count, record_count: self.record_count };
        let is_right = footer == expected && self.pending.is_empty();
        self.forget_records();
        self.place = Place::End;
        if is_right { Step::Footer(footer) } else { damage(Fault::Footer) }
    }

    /// Moves the closing over `bytes`, which follow it. Behind damage it stays.
    fn close(&mut self, bytes: &[u8]) {
        if self.is_damaged {
            return;
        }
        self.closing.len_bytes += count(bytes.len());
        self.closing.checksum = self.closing.checksum.then(bytes);
    }

    fn forget_records(&mut self) {
        self.pending.clear();
        self.pending_count = 0;
    }
}

const fn damage(fault: Fault) -> Step {
    Step::Damage { fault, batch: None }
}
