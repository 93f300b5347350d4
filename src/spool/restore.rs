//! Holding drained segments again, when PostgreSQL has lost what it got from them.

use crate::model::position::{Offset, StreamPartition};
use crate::model::spool::Closing;

use super::disk::Disk;
use super::error::{Doing, SpoolError};
use super::held::Segment;
use super::scan::SegmentScan;
use super::verdict::{Successor, Verdict, judge};
use super::{DrainedSegment, Spool};

impl DrainedSegment {
    /// Whether it has, or may have, records of `key` behind `position`.
    fn reaches_behind(&self, key: StreamPartition, position: Offset) -> bool {
        self.parts
            .as_ref()
            .is_none_or(|parts| parts.get(&key).is_some_and(|part| !part.is_drained(Some(&position))))
    }
}

impl<D: Disk> Spool<D> {
    /// Looks into the newest drained segment of an earlier process that was not looked into yet. Returns whether there was
    /// one: then there may be more. Reads the whole file.
    ///
    /// # Errors
    /// [`SpoolError::Failed`]; the same one is looked into by another call.
    pub fn look_into_drained(&mut self) -> Result<bool, SpoolError> {
        match self.drained.iter().rposition(|segment| segment.parts.is_none()) {
            Some(index) => self.scan_drained(index).map(|_scan| true),
            None => Ok(false),
        }
    }

    /// Holds drained segments again that have records of `key` behind `position`, and with them all that were drained
    /// after the oldest of those. Returns whether there are any.
    ///
    /// Each is moved back by its name, the newest first: whenever that ends, what is held has no hole but what is in
    /// quarantine, and the next start finds it so.
    ///
    /// # Errors
    /// [`SpoolError::Failed`]; what was moved until then is held, and the rest is moved by another call.
    pub fn restore(&mut self, key: StreamPartition, position: Offset) -> Result<bool, SpoolError> {
        self.note_position(key, position);
        let oldest = self.drained.iter().position(|segment| segment.reaches_behind(key, position));
        let (mut scans, mut wanted_count) = (Vec::new(), 0);
        for index in (oldest.unwrap_or(self.drained.len())..self.drained.len()).rev() {
            let Some((scan, end)) = self.scan_drained(index)? else { continue };
            scans.push((scan, end));
            if self.drained.get(index).is_some_and(|segment| segment.reaches_behind(key, position)) {
                wanted_count = scans.len();
            }
        }
        for (scan, end) in scans.into_iter().take(wanted_count) {
            let Some(DrainedSegment { number, at_ms, .. }) = self.drained.back() else { break };
            let (from, to) = (self.layout.drained_segment(*number, *at_ms), self.layout.segment(*number));
            self.disk.rename(&from, &to).doing("move back", &from)?;
            self.drained.pop_back();
            self.segments.push_front(Segment::of(&scan, end, scan.len_bytes));
        }
        if wanted_count > 0 {
            self.sync_names()?;
        }
        Ok(wanted_count > 0)
    }

    /// Reads a drained segment, and notes what it has up to its end. `None`: it is damaged, and was moved to quarantine. What
    /// an append left behind a known end is no damage.
    fn scan_drained(&mut self, index: usize) -> Result<Option<(SegmentScan, Closing)>, SpoolError> {
        let Some(segment) = self.drained.get(index) else { return Ok(None) };
        let path = self.layout.drained_segment(segment.number, segment.at_ms);
        let scan = self.scan(segment.number, &path)?;
        // The newest one of an earlier process has nobody who names its end.
        let verdict = judge(&scan, segment.end.map_or(Successor::Silent, Successor::Names));
        let end = match &verdict {
            Verdict::Keep | Verdict::Unused => scan.end(),
            Verdict::Seal(end) => *end,
            Verdict::Quarantine(_) => scan.start,
        };
        if matches!(verdict, Verdict::Quarantine(_)) {
            let (number, len_bytes) = (segment.number, segment.len_bytes);
            self.drained.remove(index);
            let moved_to = self.move_to_quarantine(number, &path, len_bytes)?;
            tracing::error!(path = %path.display(), moved_to = %moved_to.display(), "a drained segment of the spool is damaged; postgresql has what it held, unless a failover has taken it back: `spool inspect` lists it, `verify` tells what is missing");
            return Ok(None);
        }
        if let Some(segment) = self.drained.get_mut(index) {
            segment.parts = Some(Segment::of(&scan, end, scan.len_bytes).parts);
        }
        // The one before ended where this one says.
        if let Some((before, previous)) = index
            .checked_sub(1)
            .and_then(|before| self.drained.get_mut(before))
            .zip(scan.header.and_then(|header| header.previous))
            && before.number == previous.segment
        {
            before.end = Some(previous);
        }
        Ok(Some((scan, end)))
    }
}
