//! Holding drained segments again, when PostgreSQL has lost what it got from them.

use crate::model::position::{Offset, StreamPartition};

use super::disk::Disk;
use super::error::{Doing, SpoolError};
use super::held::Segment;
use super::scan::SegmentScan;
use super::{DrainedSegment, Spool};

impl<D: Disk> Spool<D> {
    /// Holds drained segments again that have records of `key` behind `position`, and with them all that were drained
    /// after the oldest of those. Returns whether there are any.
    ///
    /// Each is moved back by its name, the newest first: whenever that ends, what is held has no hole, and the next
    /// start finds it so.
    ///
    /// # Errors
    /// [`SpoolError::Failed`]; what was moved until then is held, and the rest is moved by another call.
    pub fn restore(&mut self, key: StreamPartition, position: Offset) -> Result<bool, SpoolError> {
        let mut scans = Vec::with_capacity(self.drained.len());
        let mut wanted_count = 0;
        // An emptied segment, and what was drained before it, is no more.
        for segment in self.drained.iter().rev().take_while(|segment| segment.len_bytes > 0) {
            let path = self.layout.drained_segment(segment.number, segment.at_ms);
            let scan = self.scan(segment.number, &path)?;
            if scan.damage_count > 0 {
                tracing::error!(path = %path.display(), "a drained segment of the spool is damaged, and not held again");
                break;
            }
            let is_wanted = |scan: &SegmentScan| {
                scan.whole_lines(0).any(|line| line.key == key && line.range.end() > position)
            };
            scans.push(scan);
            if scans.last().is_some_and(is_wanted) {
                wanted_count = scans.len();
            }
        }
        for scan in scans.into_iter().take(wanted_count) {
            let Some(DrainedSegment { number, at_ms, .. }) = self.drained.back().copied() else { break };
            let (from, to) = (self.layout.drained_segment(number, at_ms), self.layout.segment(number));
            self.disk.rename(&from, &to).doing("move back", &from)?;
            self.drained.pop_back();
            self.segments.push_front(Segment::of(&scan, scan.end(), scan.len_bytes));
        }
        self.note_position(key, position);
        self.sync_names()?;
        Ok(wanted_count > 0)
    }
}
