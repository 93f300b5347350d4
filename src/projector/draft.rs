//! What one intent is to write: lines by file, and where they come from.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use super::LINES_MAX_LEN_BYTES;
use crate::model::event::UtcDay;
use crate::model::position::{Offset, OffsetRange, StreamPartition};
use crate::model::projection::{DayFile, DaySink, EventRow, LineFormat, ProjectionRules};
use crate::outlet::day_files::OPEN_MAX_COUNT;
use crate::store::{FileRecord, Segment, Taken};

/// A file as we know it.
#[derive(Debug, Clone, Copy)]
pub(super) struct KnownFile {
    /// Its recorded length.
    pub(super) len_bytes: u64,
    /// How many records of it are small.
    pub(super) small_count: i64,
    /// Until when it is missed when it is gone.
    pub(super) missed_until: Instant,
    /// It is gone, and was put away by somebody: it is not written to any more.
    pub(super) is_archived: bool,
}

impl KnownFile {
    pub(super) fn of(record: &FileRecord, missed_until: Instant) -> Self {
        Self {
            len_bytes: record.len_bytes,
            small_count: record.small_count,
            missed_until,
            is_archived: false,
        }
    }
}

/// The files of an instance and sink.
pub(super) type KnownFiles = BTreeMap<DayFile, KnownFile>;

/// The file that the next line of a day goes to, and its length.
fn place(files: &KnownFiles, (sink, day): (DaySink, UtcDay), max_len_bytes: u64) -> (DayFile, u64) {
    let first = DayFile { sink, day, roll: 0 };
    let last = DayFile { roll: u32::MAX, ..first };
    match files.range(first..=last).next_back() {
        None => (first, 0),
        Some((file, known)) => {
            let is_full = max_len_bytes > 0 && known.len_bytes >= max_len_bytes;
            if is_full || known.is_archived { (file.next_roll(), 0) } else { (*file, known.len_bytes) }
        }
    }
}

/// The lines of one file.
#[derive(Debug)]
struct FileDraft {
    file: DayFile,
    start_len_bytes: u64,
    lines: String,
    line_count: u64,
    /// The ranges that have lines here; the last one may still be open.
    ranges: Vec<(StreamPartition, OffsetRange)>,
    is_in_range: bool,
}

/// What is to be put into one file.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) name: String,
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) line_count: u64,
}

/// An intent in the making.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    sink: DaySink,
    rules: &'a ProjectionRules,
    known: &'a KnownFiles,
    file_max_len_bytes: u64,
    files: BTreeMap<UtcDay, FileDraft>,
    len_bytes: usize,
    pub(super) taken: Vec<Taken>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        sink: DaySink,
        (rules, file_max_len_bytes): (&'a ProjectionRules, u64),
        known: &'a KnownFiles,
    ) -> Self {
        let (files, taken) = (BTreeMap::new(), Vec::new());
        Self { sink, rules, known, file_max_len_bytes, files, len_bytes: 0, taken }
    }

    pub(super) fn is_full(&self) -> bool {
        self.len_bytes >= LINES_MAX_LEN_BYTES
    }

    /// Takes the row at `offset`; breaks with the offset from which on rows are for a later intent.
    pub(super) fn take(&mut self, offset: Offset, row: &EventRow<'_>) -> ControlFlow<Offset> {
        let day = UtcDay::of(row.timestamp);
        if !self.files.contains_key(&day) && self.files.len() >= OPEN_MAX_COUNT {
            return ControlFlow::Break(offset);
        }
        let draft = self.files.entry(day).or_insert_with(|| {
            let (file, start_len_bytes) = place(self.known, (self.sink, day), self.file_max_len_bytes);
            FileDraft {
                file,
                start_len_bytes,
                lines: String::new(),
                line_count: 0,
                ranges: Vec::new(),
                is_in_range: false,
            }
        });
        let len_before = draft.lines.len();
        self.sink.projection().write_line(row, self.rules, LineFormat::JsonLines, &mut draft.lines);
        draft.line_count += 1;
        draft.is_in_range = true;
        self.len_bytes += draft.lines.len() - len_before;
        if self.is_full() { ControlFlow::Break(offset.next()) } else { ControlFlow::Continue(()) }
    }

    /// The rows since the last call were those of `taken`.
    pub(super) fn end_range(&mut self, taken: Taken) {
        for draft in self.files.values_mut() {
            if std::mem::take(&mut draft.is_in_range) {
                draft.ranges.push((taken.work.key, taken.work.range));
            }
        }
        if !taken.work.range.is_empty() {
            self.taken.push(taken);
        }
    }

    /// What is to be recorded, and what is to be written.
    pub(super) fn finish(self) -> (Vec<Taken>, Vec<Segment>, Vec<Put>) {
        let (mut segments, mut puts) = (Vec::new(), Vec::new());
        for draft in self.files.into_values() {
            let len_bytes = u64::try_from(draft.lines.len()).unwrap_or(u64::MAX);
            segments.push(Segment {
                file_name: draft.file.to_string(),
                start_len_bytes: draft.start_len_bytes,
                end_len_bytes: draft.start_len_bytes.saturating_add(len_bytes),
                line_count: draft.line_count,
                rules: self.rules.to_record(),
                ranges: draft.ranges,
            });
            puts.push(Put {
                name: draft.file.to_string(),
                at: draft.start_len_bytes,
                bytes: draft.lines.into_bytes(),
                line_count: draft.line_count,
            });
        }
        (self.taken, segments, puts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::Timestamp;

    #[test]
    fn the_next_line_goes_to_the_days_last_file_unless_that_is_full_or_put_away() {
        let day = |text| UtcDay::of(Timestamp::from_text(text).unwrap());
        let (sink, today) = (DaySink::Trust, day("2026-01-31"));
        let file = |day, roll| DayFile { sink, day, roll };
        #[expect(clippy::disallowed_methods, reason = "no test of time")]
        let missed_until = Instant::now();
        let known =
            |len_bytes, is_archived| KnownFile { len_bytes, small_count: 1, missed_until, is_archived };
        let mut files = KnownFiles::new();
        let check = |files: &KnownFiles, max_len_bytes, expect| {
            assert_eq!(place(files, (sink, today), max_len_bytes), expect);
        };
        check(&files, 0, (file(today, 0), 0));
        files.insert(file(day("2026-02-01"), 3), known(9, false));
        files.insert(file(day("2026-01-30"), 5), known(9, false));
        check(&files, 0, (file(today, 0), 0));
        files.insert(file(today, 0), known(100, false));
        check(&files, 0, (file(today, 0), 100));
        check(&files, 101, (file(today, 0), 100));
        check(&files, 100, (file(today, 1), 0));
        files.insert(file(today, 1), known(7, false));
        check(&files, 100, (file(today, 1), 7));
        files.insert(file(today, 1), known(7, true));
        check(&files, 100, (file(today, 2), 0));
    }
}
