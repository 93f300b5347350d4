//! Reading back for PostgreSQL, oldest first.

use std::path::PathBuf;

use crate::model::position::{Offset, StreamPartition};
use crate::model::record::Chunk;
use crate::model::spool::walk::{Depth, Step, Walk};
use crate::model::spool::{
    BatchLine, BatchStamp, Checksum, Closing, EncodedChunk, Footer, Header, SegmentNumber, SpooledBatch,
    encode_footer, encode_header,
};

use super::disk::{Disk, DiskFile, Entry};
use super::error::{Doing, SpoolError};
use super::held::{PartitionRanges, without};
use super::recover::{Quarantined, QuarantinedWhen, quarantined};
use super::scan::{Lines, UnknownBatches};
use super::{DrainedSegment, Spool};
use crate::failpoint;

/// How far a drain has read. Begins at the oldest batch; any number of them can read one spool.
#[derive(Debug)]
pub struct Drain<F> {
    next: SegmentNumber,
    open: Option<OpenSegment<F>>,
}

#[derive(Debug)]
struct OpenSegment<F> {
    number: SegmentNumber,
    walk: Walk,
    lines: Lines<F>,
}

/// What stands next in a segment.
enum Read {
    Batch(Box<SpooledBatch>),
    /// Its last durable batch is behind us.
    End,
    Damage,
}

impl<F: DiskFile> OpenSegment<F> {
    fn next_batch(&mut self, end_len_bytes: u64) -> std::io::Result<Read> {
        while self.lines.at < end_len_bytes {
            let Some(line) = self.lines.next()? else { return Ok(Read::Damage) };
            match self.walk.step(line.bytes) {
                Step::Header(_) | Step::Record => {}
                Step::Batch(_) => {
                    let batch = self.walk.take_batch();
                    return Ok(batch.map_or(Read::Damage, |batch| Read::Batch(Box::new(batch))));
                }
                Step::Footer(_) | Step::Damage { .. } => return Ok(Read::Damage),
            }
        }
        Ok(Read::End)
    }
}

impl<F> Default for Drain<F> {
    fn default() -> Self {
        Self { next: SegmentNumber(0), open: None }
    }
}

/// What a drain finds next.
#[derive(Debug)]
pub enum Next {
    /// A batch. It may lie before PostgreSQL's position in part, or in whole.
    Batch(Box<SpooledBatch>),
    /// A segment turned out to be damaged, and was moved to quarantine. What was read of it before is right.
    Quarantined(Box<Quarantined>),
    /// Nothing more for now.
    End,
}

impl<D: Disk> Spool<D> {
    /// The next batch of a drain, in the order in which they were appended. Batches that lie before the
    /// position of [`Spool::mark_drained`] are left out.
    ///
    /// # Errors
    /// [`SpoolError::Failed`] when the disk can't be read, or a damaged segment can't be moved. The same call
    /// can be made again later.
    pub fn next(&mut self, drain: &mut Drain<D::File>) -> Result<Next, SpoolError> {
        loop {
            let index = self.segments.iter().position(|segment| segment.number >= drain.next);
            let Some((segment, behind)) = index.and_then(|index| {
                let segment = self.segments.get(index)?;
                Some((segment, self.segments.len() - index - 1))
            }) else {
                return Ok(Next::End);
            };
            let (number, end_len_bytes) = (segment.number, segment.end.len_bytes);
            let path = self.layout.segment(number);
            let open = match drain.open.take().filter(|open| open.number == number) {
                Some(open) => open,
                None => OpenSegment {
                    number,
                    walk: Walk::new(number, Depth::Records),
                    lines: Lines::new(self.disk.open(&path).doing("open", &path)?),
                },
            };
            drain.next = number;
            match drain.open.insert(open).next_batch(end_len_bytes).doing("read", &path)? {
                Read::Batch(batch) if self.is_drained(batch.line.key, batch.line.range.end()) => {}
                Read::Batch(batch) => return Ok(Next::Batch(batch)),
                Read::End if behind == 0 => return Ok(Next::End),
                Read::End => drain.next = number.next(),
                Read::Damage => {
                    let quarantined = self.quarantine(number)?;
                    drain.next = number.next();
                    return Ok(Next::Quarantined(Box::new(quarantined)));
                }
            }
        }
    }

    /// Copies a batch that `drain` has just found to quarantine, as its offsets were declared a gap. The copy is a segment
    /// of this one batch. [`Spool::mark_drained`] may pass over it then. Returns the file, or `None` when it was there
    /// already.
    ///
    /// # Errors
    /// [`SpoolError::Full`] and [`SpoolError::Failed`]; the copy can be tried again.
    pub fn set_aside(
        &mut self,
        drain: &Drain<D::File>,
        (line, chunk): (&BatchLine, &Chunk),
    ) -> Result<Option<PathBuf>, SpoolError> {
        let BatchLine { number, append, created_at_ms, .. } = *line;
        let (segment, instance) = (drain.next, self.instance);
        let mut lines = Vec::new();
        encode_header(
            &mut lines,
            &Header { segment, instance, created_at_ms, next_batch: number, previous: None },
        );
        EncodedChunk::new(line.key, chunk)?
            .append_to(&mut lines, BatchStamp { number, append, created_at_ms });
        let len_bytes = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        let closing = Closing { segment, len_bytes, checksum: Checksum::of(&lines) };
        encode_footer(&mut lines, &Footer { closing, batch_count: 1, record_count: line.record_count });
        let path = self.layout.batch(drain.next, number);
        let len_bytes = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        let quarantine = self.layout.quarantine();
        let is_there = |entry: &Entry| {
            path.file_name().is_some_and(|name| *name == *entry.name) && entry.len_bytes == len_bytes
        };
        if self.disk.list(&quarantine).doing("list", &quarantine)?.iter().any(is_there) {
            return Ok(None);
        }
        self.write_new(&path, &lines)?;
        self.quarantined_file_count += 1;
        self.quarantined_len_bytes += len_bytes;
        Ok(Some(path))
    }

    /// Notes that PostgreSQL's position of a partition has gone back to `position`, if it has (a failover that lost
    /// commits): what lies behind it, and was not moved away yet, is held again.
    pub fn note_position(&mut self, key: StreamPartition, position: Offset) {
        if let Some(known) = self.positions.get_mut(&key) {
            *known = (*known).min(position);
        }
    }

    fn is_drained(&self, key: StreamPartition, end: Offset) -> bool {
        self.positions.get(&key).is_some_and(|position| end <= *position)
    }

    /// Notes that PostgreSQL's position of a partition is `position`, or has gone back to it. Segments that lie
    /// before the positions are moved to `drained/`, as of `now_ms`.
    ///
    /// # Errors
    /// [`SpoolError::Failed`] when a segment can't be moved; it is moved by a later call.
    pub fn mark_drained(
        &mut self,
        key: StreamPartition,
        position: Offset,
        now_ms: i64,
    ) -> Result<(), SpoolError> {
        self.positions.insert(key, position);
        while self.segments.front().is_some_and(|segment| segment.is_drained(&self.positions)) {
            if self.segments.len() == 1 {
                self.seal_active();
            }
            let Some(segment) = self.segments.front() else { break };
            let (number, len_bytes) = (segment.number, segment.file_len_bytes);
            let from = self.layout.segment(number);
            let to = self.layout.drained_segment(number, now_ms);
            failpoint::at("drain_before_move");
            self.disk.rename(&from, &to).doing("move", &from)?;
            failpoint::at("drain_after_move");
            let moved = self.segments.pop_front();
            let (end, parts) = moved.map(|segment| (segment.end, segment.parts)).unzip();
            self.drained.push_back(DrainedSegment { number, at_ms: now_ms, len_bytes, parts, end });
            self.sync_names()?;
        }
        Ok(())
    }

    /// Moves a segment to quarantine that turned out to be damaged, and says what was in it.
    fn quarantine(&mut self, number: SegmentNumber) -> Result<Quarantined, SpoolError> {
        if self.segments.back().is_some_and(|segment| segment.number == number) {
            self.active = None;
        }
        let path = self.layout.segment(number);
        let scan = self.scan(number, &path)?;
        let file = self.move_to_quarantine(number, &path, scan.len_bytes)?;
        let mut report = quarantined(file, &scan, QuarantinedWhen::Now, UnknownBatches::Exactly(0));
        let index = self.segments.iter().position(|segment| segment.number == number);
        // What it held is known, so whatever can't be read any more has its range all the same.
        if let Some(segment) = index.and_then(|index| self.segments.remove(index)) {
            report.broken.clear();
            for (key, part) in segment.parts {
                let whole = report.whole.iter().find(|whole| whole.key == key);
                let ranges = without(&part.ranges, whole.map_or(&[], |whole| whole.ranges.as_slice()));
                if !ranges.is_empty() {
                    report.broken.push(PartitionRanges { key, topic: part.topic, ranges });
                }
            }
        }
        Ok(report)
    }
}
