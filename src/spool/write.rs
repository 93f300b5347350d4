//! Appending, and closing segments.

use std::collections::BTreeMap;

use crate::model::spool::{
    BatchLine, BatchStamp, Checksum, Closing, EncodedChunk, FOOTER_LEN_BYTES_MAX, Footer,
    HEADER_LEN_BYTES_MAX, Header, encode_footer, encode_header,
};

use super::disk::{Disk, DiskFile};
use super::error::{Doing, Shortage, SpoolError};
use super::held::Segment;
use super::{DrainedSegment, Spool};
use crate::failpoint;

/// The file that is written to: the one of the last segment.
#[derive(Debug)]
pub(super) struct Active<F> {
    file: F,
}

impl<D: Disk> Spool<D> {
    /// Appends chunks, each as a batch, and returns when all of them are on the disk. `now_ms` is written down
    /// with them. Chunks without an offset are left out.
    ///
    /// Blocks for the write and the sync.
    ///
    /// # Errors
    /// None of the chunks is held then. [`SpoolError::Full`] and [`SpoolError::Failed`]: pause and append the
    /// same chunks again later.
    pub fn append<'a>(
        &mut self,
        chunks: impl IntoIterator<Item = &'a EncodedChunk>,
        now_ms: i64,
    ) -> Result<(), SpoolError> {
        let (mut lines, mut batches) = (std::mem::take(&mut self.lines), Vec::new());
        lines.clear();
        let (append, mut number) = (self.next_batch, self.next_batch);
        for chunk in chunks.into_iter().filter(|chunk| !chunk.range().is_empty()) {
            batches.push(chunk.append_to(&mut lines, BatchStamp { number, append, created_at_ms: now_ms }));
            number = number.next();
        }
        let written = if batches.is_empty() { Ok(()) } else { self.write(&lines, &batches, now_ms) };
        self.lines = lines;
        written
    }

    fn write(&mut self, lines: &[u8], batches: &[BatchLine], now_ms: i64) -> Result<(), SpoolError> {
        let len_bytes = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        self.make_room(len_bytes.saturating_add(HEADER_LEN_BYTES_MAX + FOOTER_LEN_BYTES_MAX))?;
        let is_long = |segment: &Segment| segment.end.len_bytes >= self.limits.segment_len_bytes;
        if self.active.is_some() && self.segments.back().is_some_and(is_long) {
            self.seal_active();
        }
        if self.active.is_none() {
            self.begin_segment(now_ms)?;
        }
        let (Some(active), Some(segment)) = (&mut self.active, self.segments.back_mut()) else {
            return Ok(());
        };
        segment.file_len_bytes += len_bytes;
        let appended = active.file.append(lines);
        failpoint::at("spool_before_sync");
        if let Err(error) = appended.and_then(|()| active.file.sync()) {
            let path = self.layout.segment(segment.number);
            self.give_up_active();
            return Err(error).doing("append to", &path);
        }
        failpoint::at("spool_after_sync");
        segment.end.len_bytes += len_bytes;
        segment.end.checksum = segment.end.checksum.then(lines);
        for batch in batches {
            segment.add(batch);
            self.next_batch = batch.number.next();
            // A position that went back (a failover lost commits) is told by what is appended from there.
            if let Some(position) = self.positions.get_mut(&batch.key) {
                *position = (*position).min(batch.range.start());
            }
        }
        self.previous = Some(segment.end);
        Ok(())
    }

    /// Makes room for `needed_len_bytes` more, at the cost of drained segments.
    fn make_room(&mut self, needed_len_bytes: u64) -> Result<(), SpoolError> {
        let removable_len_bytes = self.removable_len_bytes();
        let held_len_bytes = self.total_len_bytes();
        let max_len_bytes = self.limits.max_len_bytes;
        if (held_len_bytes - removable_len_bytes).saturating_add(needed_len_bytes) > max_len_bytes {
            return Err(SpoolError::Full(Shortage::Limit { held_len_bytes, max_len_bytes }));
        }
        let min_free_len_bytes = self.limits.min_free_len_bytes;
        let wanted_len_bytes = needed_len_bytes.saturating_add(min_free_len_bytes);
        let free_len_bytes = self.free_len_bytes()?;
        if free_len_bytes.saturating_add(removable_len_bytes) < wanted_len_bytes {
            return Err(SpoolError::Full(Shortage::Floor { free_len_bytes, min_free_len_bytes }));
        }
        let too_long = held_len_bytes.saturating_add(needed_len_bytes).saturating_sub(max_len_bytes);
        let too_low = wanted_len_bytes.saturating_sub(free_len_bytes);
        self.remove_drained(too_long.max(too_low))?;
        // What was removed may be still counted as used, by a process that reads it: ask again.
        let free_len_bytes = if too_low > 0 { self.free_len_bytes()? } else { free_len_bytes };
        if free_len_bytes < wanted_len_bytes {
            return Err(SpoolError::Full(Shortage::Floor { free_len_bytes, min_free_len_bytes }));
        }
        Ok(())
    }

    /// How much an append would find room for. What the disk does not tell counts as none.
    pub(super) fn room_len_bytes(&self) -> u64 {
        let removable_len_bytes = self.removable_len_bytes();
        let kept_len_bytes = self.total_len_bytes() - removable_len_bytes;
        let free_len_bytes = self.free_len_bytes().unwrap_or(0).saturating_add(removable_len_bytes);
        let in_limit = self.limits.max_len_bytes.saturating_sub(kept_len_bytes);
        in_limit.min(free_len_bytes.saturating_sub(self.limits.min_free_len_bytes))
    }

    fn free_len_bytes(&self) -> Result<u64, SpoolError> {
        let root = self.layout.root();
        self.disk.free_len_bytes(root).doing("ask for the free space of", root)
    }

    /// Removes drained segments, oldest first, until `len_bytes` are given back.
    fn remove_drained(&mut self, len_bytes: u64) -> Result<(), SpoolError> {
        let mut given_back = 0;
        while given_back < len_bytes && self.removable_len_bytes() > 0 {
            given_back += self.remove_oldest_drained()?;
        }
        Ok(())
    }

    /// Removes the oldest drained segment, or empties it when it is the only one. Returns its length.
    fn remove_oldest_drained(&mut self) -> Result<u64, SpoolError> {
        let is_only_one = self.drained.len() == 1;
        let Some(oldest) = self.drained.front_mut() else { return Ok(0) };
        let DrainedSegment { number, at_ms, len_bytes, .. } = *oldest;
        let path = self.layout.drained_segment(number, at_ms);
        if is_only_one {
            self.disk.empty(&path).doing("empty", &path)?;
            oldest.len_bytes = 0;
            oldest.parts = Some(BTreeMap::new());
        } else {
            self.disk.remove(&path).doing("remove", &path)?;
            self.drained.pop_front();
        }
        Ok(len_bytes)
    }

    /// The length of the drained segments that may go, the oldest first: up to one that has what PostgreSQL lacks again,
    /// after a failover.
    fn removable_len_bytes(&self) -> u64 {
        self.drained
            .iter()
            .take_while(|segment| !self.is_lacked(segment))
            .map(|segment| segment.len_bytes)
            .sum()
    }

    /// Whether PostgreSQL lacks something of a drained segment, by the positions that the caller reported.
    fn is_lacked(&self, segment: &DrainedSegment) -> bool {
        segment.parts.iter().flatten().any(|(key, part)| {
            self.positions.get(key).is_some_and(|position| !part.is_drained(Some(position)))
        })
    }

    /// Removes drained segments whose time is over, and of which PostgreSQL lacks nothing.
    ///
    /// # Errors
    /// [`SpoolError::Failed`]; the rest is removed the next time.
    pub fn prune(&mut self, now_ms: i64) -> Result<(), SpoolError> {
        let keep_ms = i64::try_from(self.limits.keep.as_millis()).unwrap_or(i64::MAX);
        let is_over = |segment: &DrainedSegment| {
            let is_old = now_ms.saturating_sub(segment.at_ms) >= keep_ms;
            is_old && segment.len_bytes > 0
        };
        let may_go = |spool: &Self, segment: &DrainedSegment| is_over(segment) && !spool.is_lacked(segment);
        while self.drained.len() > 1
            && self.drained.front().is_some_and(|segment| segment.len_bytes == 0 || may_go(self, segment))
        {
            self.remove_oldest_drained()?;
        }
        if self.drained.front().is_some_and(|segment| may_go(self, segment)) {
            self.remove_oldest_drained()?;
        }
        Ok(())
    }

    /// Creates the next segment and makes its header and its name durable.
    fn begin_segment(&mut self, now_ms: i64) -> Result<(), SpoolError> {
        let number = self.next_segment;
        self.next_segment = number.next();
        let path = self.layout.segment(number);
        let header = Header {
            segment: number,
            instance: self.instance,
            created_at_ms: now_ms,
            next_batch: self.next_batch,
            previous: self.previous,
        };
        let mut line = Vec::new();
        encode_header(&mut line, &header);
        let mut file = self.disk.create(&path).doing("create", &path)?;
        let written = file.append(&line).and_then(|()| file.sync()).doing("begin", &path);
        if let Err(error) = written.and_then(|()| self.sync_names()) {
            drop(file);
            self.remove_or_leave(&path);
            return Err(error);
        }
        let len_bytes = u64::try_from(line.len()).unwrap_or(u64::MAX);
        let end = Closing { segment: number, len_bytes, checksum: Checksum::of(&line) };
        self.segments.push_back(Segment {
            number,
            created_at_ms: now_ms,
            end,
            file_len_bytes: len_bytes,
            batch_count: 0,
            record_count: 0,
            parts: BTreeMap::new(),
        });
        self.active = Some(Active { file });
        Ok(())
    }

    /// Ends the active segment with a footer. When that fails, it ends without one.
    pub(super) fn seal_active(&mut self) {
        let (Some(mut active), Some(segment)) = (self.active.take(), self.segments.back_mut()) else {
            return;
        };
        let (batch_count, record_count) = (segment.batch_count, segment.record_count);
        let mut line = Vec::new();
        encode_footer(&mut line, &Footer { closing: segment.end, batch_count, record_count });
        segment.file_len_bytes += u64::try_from(line.len()).unwrap_or(u64::MAX);
        if let Err(error) = active.file.append(&line).and_then(|()| active.file.sync()) {
            tracing::warn!(segment = segment.number.0, %error, "a spool segment ends without its footer");
            self.active = Some(active);
            self.give_up_active();
        }
    }

    /// Never writes to the active segment again. What is behind its last durable batch is cut off if that can
    /// be done; the next header names the end either way.
    pub(super) fn give_up_active(&mut self) {
        let (Some(mut active), Some(segment)) = (self.active.take(), self.segments.back_mut()) else {
            return;
        };
        if segment.batch_count == 0 {
            let path = self.layout.segment(segment.number);
            self.segments.pop_back();
            self.remove_or_leave(&path);
            return;
        }
        match active.file.cut(segment.end.len_bytes) {
            Ok(()) => segment.file_len_bytes = segment.end.len_bytes,
            Err(error) => {
                tracing::warn!(segment = segment.number.0, %error, "a spool segment keeps an unfinished append");
            }
        }
    }

    /// Removes a file in which nothing was acknowledged; the next start knows it for one if it stays.
    fn remove_or_leave(&self, path: &std::path::Path) {
        if let Err(error) = self.disk.remove(path) {
            tracing::warn!(path = %path.display(), %error, "an unused spool segment stays until the next start");
        }
    }
}
