//! What the poll thread knows of each assigned partition, and how records become chunks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use rdkafka::message::{BorrowedMessage, Message, Timestamp};
use uuid::Uuid;

use crate::model::position::{Offset, TopicPartition};
use crate::model::record::{AssignmentId, Chunk, Polled, Record};
use crate::native;
use crate::observe::Clock;

/// A chunk is handed on when its records reach this many bytes …
const CHUNK_LEN_BYTES: usize = 128 * 1024;
/// … or this number.
const CHUNK_RECORD_COUNT: usize = 1024;

/// An assigned partition.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) source: Arc<TopicPartition>,
    pub(super) assignment: AssignmentId,
    pub(super) lane_index: usize,
    pub(super) topic_id: Uuid,
    /// The position: the next offset that we expect.
    pub(super) next: Offset,
    /// The position behind the last chunk that passed the gate.
    pub(super) handed_to: Offset,
    /// The consumer reported an error since the last record: a gap now may be a loss.
    pub(super) is_suspect: bool,
    /// Since when it is suspect and got nothing, although there is more.
    pub(super) stands_since: Option<Instant>,
    open: Option<Chunk>,
    clock: Clock,
    /// How large the last chunk was, in bytes and records: the next one is likely to be as large.
    last_size: (usize, usize),
}

/// What to do after a record was looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Appended {
    /// Go on.
    Open,
    /// The open chunk is large enough.
    Full,
    /// Offsets are missing right after an error: read again from this slot's position.
    Suspect,
    /// The record lies before the position; it was dropped.
    Old,
}

impl Slot {
    pub(super) fn new(
        source: Arc<TopicPartition>,
        (assignment, lane_index): (AssignmentId, usize),
        topic_id: Uuid,
        (next, clock): (Offset, Clock),
    ) -> Self {
        Self {
            source,
            assignment,
            lane_index,
            topic_id,
            next,
            handed_to: next,
            is_suspect: false,
            stands_since: None,
            open: None,
            clock,
            last_size: (0, 0),
        }
    }

    /// Adds a record to the open chunk.
    pub(super) fn append(&mut self, message: &BorrowedMessage<'_>) -> Appended {
        let Some(offset) = Offset::new(message.offset()) else { return Appended::Old };
        let Some(absent_before) = self.next.distance_to(offset) else { return Appended::Old };
        if absent_before > 0 && self.is_suspect {
            return Appended::Suspect;
        }
        (self.is_suspect, self.stands_since) = (false, None);
        let chunk = self.open_chunk();
        let record = record_of(message, offset, absent_before, &mut chunk.arena);
        chunk.records.push(record);
        chunk.end = offset.next();
        let is_full = chunk.arena.len() >= CHUNK_LEN_BYTES || chunk.records.len() >= CHUNK_RECORD_COUNT;
        self.next = offset.next();
        if is_full { Appended::Full } else { Appended::Open }
    }

    /// Moves the position over offsets that hold no record, up to `end`.
    pub(super) fn advance(&mut self, end: Offset) {
        if let Some(absent) = self.next.distance_to(end).filter(|absent| *absent > 0) {
            let chunk = self.open_chunk();
            chunk.end = end;
            chunk.absent_after += absent;
            self.next = end;
        }
    }

    /// The open chunk, closed.
    pub(super) fn take(&mut self) -> Option<Chunk> {
        let mut chunk = self.open.take()?;
        if let Some(polled) = &mut chunk.polled {
            polled.to_ms = self.clock.unix_ms();
        }
        self.last_size = (chunk.arena.len(), chunk.records.len());
        Some(chunk)
    }

    fn open_chunk(&mut self) -> &mut Chunk {
        let (assignment, source, start) = (self.assignment, &self.source, self.next);
        let ((len_bytes, record_count), clock) = (self.last_size, &self.clock);
        // A chunk that ends in absent offsets is closed by the caller before records are added to it.
        self.open.get_or_insert_with(|| Chunk {
            assignment,
            source: Arc::clone(source),
            start,
            end: start,
            absent_after: 0,
            records: Vec::with_capacity(record_count),
            polled: Some(clock.unix_ms()).map(|ms| Polled { from_ms: ms, to_ms: ms }),
            arena: Vec::with_capacity(len_bytes + len_bytes / 16),
        })
    }
}

fn record_of(
    message: &BorrowedMessage<'_>,
    offset: Offset,
    absent_before: u64,
    arena: &mut Vec<u8>,
) -> Record {
    let mut keep = |bytes: &[u8]| -> Range<usize> {
        let start = arena.len();
        arena.extend_from_slice(bytes);
        start..arena.len()
    };
    let timestamp_ms = match message.timestamp() {
        Timestamp::NotAvailable => None,
        Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) => Some(ms),
    };
    let key = message.key().map(&mut keep);
    let value = message.payload().map(&mut keep);
    let mut headers = Vec::new();
    native::for_each_header(message, |key, value| headers.push((keep(key), value.map(&mut keep))));
    Record { offset, absent_before, timestamp_ms, key, value, headers }
}
