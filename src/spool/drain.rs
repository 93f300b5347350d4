//! Reading back for PostgreSQL, oldest first.

use crate::model::position::{Offset, StreamPartition};
use crate::model::spool::walk::{Depth, Step, Walk};
use crate::model::spool::{SegmentNumber, SpooledBatch};

use super::disk::Disk;
use super::error::{Doing, SpoolError};
use super::held::{PartitionRanges, without};
use super::recover::{Quarantined, QuarantinedWhen, quarantined};
use super::scan::{Lines, UnknownBatches};
use super::{DrainedSegment, Spool};

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
            let Some(index) = self.segments.iter().position(|segment| segment.number >= drain.next) else {
                return Ok(Next::End);
            };
            let Some(segment) = self.segments.get(index) else { return Ok(Next::End) };
            let (number, end_len_bytes) = (segment.number, segment.end.len_bytes);
            let is_last = index + 1 == self.segments.len();
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
            let open = drain.open.insert(open);
            if open.lines.at >= end_len_bytes {
                if is_last {
                    return Ok(Next::End);
                }
                drain.next = number.next();
                continue;
            }
            let step = open.lines.next().doing("read", &path)?.map(|line| open.walk.step(line.bytes));
            match step {
                Some(Step::Batch(_)) => {
                    if let Some(batch) = open.walk.take_batch()
                        && !self.is_drained(batch.line.key, batch.line.range.end())
                    {
                        return Ok(Next::Batch(Box::new(batch)));
                    }
                }
                Some(Step::Header(_) | Step::Record) => {}
                None | Some(Step::Footer(_) | Step::Damage { .. }) => {
                    let quarantined = self.quarantine(number)?;
                    drain.next = number.next();
                    return Ok(Next::Quarantined(Box::new(quarantined)));
                }
            }
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
            self.disk.rename(&from, &to).doing("move", &from)?;
            self.segments.pop_front();
            self.drained.push_back(DrainedSegment { number, at_ms: now_ms, len_bytes });
            self.sync_names()?;
        }
        Ok(())
    }

    /// Moves a segment to quarantine that turned out to be damaged, and says what was in it.
    fn quarantine(&mut self, number: SegmentNumber) -> Result<Quarantined, SpoolError> {
        if self.segments.back().is_some_and(|segment| segment.number == number) {
            self.active = None;
        }
        let scan = self.scan(number, &self.layout.segment(number))?;
        let file = self.move_to_quarantine(number, scan.len_bytes)?;
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
