//! The records of a file: where each begins, and how many lines hold none.
//!
//! A record is one line. The exception is what the predecessor's wrapper left when all else failed: an event printed
//! over many lines, as `jq` does: `{` alone on the first, `}` alone on the last, and every line between indented. It is
//! one record, at the number of its first line, and the other lines are absent. An object that is not closed ends
//! before the next line that begins with a brace: what was torn in the middle is one record, and the next is whole.
//!
//! Lines are numbered from 1, by line feeds alone, and a number is the record's offset. What stands behind the last line
//! feed is a line, unless it is empty. So numbers depend on the bytes before them and on nothing else: not on how much
//! of a record is kept, which is a setting.

use crate::model::position::Offset;

/// How long an object over many lines may be, in bytes: what is longer is cut into records there. More than
/// `MAX_EVENT_BYTES` allows, so that no event is.
pub const LINES_MAX_LEN_BYTES: usize = 17 << 20;

/// A record of a file or table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyRecord {
    /// Its rank in the table, or the number of its first line.
    pub offset: Offset,
    /// How many lines, or rows, hold no record, between the record before this one (or the start) and it.
    pub absent_before: u64,
    /// Its bytes, without the last line feed, from the first to as many as are kept.
    pub value: Vec<u8>,
    /// How many bytes it has; more than those of `value`: that is cut.
    pub len_bytes: usize,
}

/// A line without its line feed, of which no more need be in memory than is kept of a record.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Its first bytes.
    pub head: &'a [u8],
    /// How many bytes it has.
    pub len_bytes: usize,
    /// Whether all that is not in `head` is white space.
    pub is_rest_blank: bool,
}

impl<'a> Line<'a> {
    /// A line that is all there.
    #[must_use]
    pub const fn whole(bytes: &'a [u8]) -> Self {
        Self { head: bytes, len_bytes: bytes.len(), is_rest_blank: true }
    }

    /// Whether it is `text`, but for white space behind it.
    fn is(self, text: &[u8]) -> bool {
        self.is_rest_blank && self.head.trim_ascii_end() == text
    }

    fn is_blank(self) -> bool {
        self.is_rest_blank && self.head.trim_ascii().is_empty()
    }
}

/// Turns lines, in order, into records.
#[derive(Debug)]
pub struct LineRecords {
    /// How many bytes of a record are kept.
    kept_max_len_bytes: usize,
    /// The number of the next line.
    next: Offset,
    absent_count: u64,
    open: Option<(LegacyRecord, u64)>,
}

impl LineRecords {
    /// The number of the first line.
    pub const FIRST: Offset = match Offset::new(1) {
        Some(first) => first,
        None => unreachable!(),
    };

    /// Before the first line; of a record at most `kept_max_len_bytes` are kept.
    #[must_use]
    pub const fn new(kept_max_len_bytes: usize) -> Self {
        Self { kept_max_len_bytes, next: Self::FIRST, absent_count: 0, open: None }
    }

    /// Takes the next line; gives the records that it completes, at most two.
    pub fn push(&mut self, line: Line<'_>, mut visit: impl FnMut(LegacyRecord)) {
        let offset = self.next;
        self.next = self.next.next();
        if let Some((mut record, line_count)) = self.open.take() {
            let is_next_record = line.head.starts_with(b"{");
            let has_room = record.len_bytes.saturating_add(line.len_bytes) < LINES_MAX_LEN_BYTES;
            if is_next_record || !has_room {
                self.close(record, line_count, &mut visit);
            } else {
                record.len_bytes += 1 + line.len_bytes;
                self.keep(&mut record.value, b"\n");
                self.keep(&mut record.value, line.head);
                if line.is(b"}") {
                    self.close(record, line_count + 1, &mut visit);
                } else {
                    self.open = Some((record, line_count + 1));
                }
                return;
            }
        }
        if line.is_blank() {
            self.absent_count += 1;
            return;
        }
        let mut value = Vec::new();
        self.keep(&mut value, line.head);
        let absent_before = std::mem::take(&mut self.absent_count);
        let record = LegacyRecord { offset, absent_before, value, len_bytes: line.len_bytes };
        if line.is(b"{") {
            self.open = Some((record, 1));
        } else {
            visit(record);
        }
    }

    /// The file has ended: gives what is still open. Returns the position behind the last line, and how many lines
    /// behind the last record hold none.
    pub fn finish(mut self, mut visit: impl FnMut(LegacyRecord)) -> (Offset, u64) {
        if let Some((record, line_count)) = self.open.take() {
            self.close(record, line_count, &mut visit);
        }
        (self.next, self.absent_count)
    }

    fn close(&mut self, record: LegacyRecord, line_count: u64, visit: &mut impl FnMut(LegacyRecord)) {
        self.absent_count += line_count.saturating_sub(1);
        visit(record);
    }

    /// Appends `bytes` as far as there is room.
    fn keep(&self, value: &mut Vec<u8>, bytes: &[u8]) {
        let room = self.kept_max_len_bytes.saturating_sub(value.len());
        value.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of `text` as (line, absent before, value), then the end and what is absent behind the last one.
    #[track_caller]
    fn check(text: &str, expect: &[(i64, u64, &str)], end: (i64, u64)) {
        let mut found = Vec::new();
        let mut records = LineRecords::new(1 << 20);
        let visit = |record: LegacyRecord, found: &mut Vec<_>| {
            found.push((
                record.offset.as_i64(),
                record.absent_before,
                String::from_utf8(record.value).unwrap(),
            ));
        };
        let lines = text.strip_suffix('\n').unwrap_or(text);
        if !text.is_empty() {
            lines.split('\n').for_each(|line| {
                records.push(Line::whole(line.as_bytes()), |record| visit(record, &mut found))
            });
        }
        let (next, absent_after) = records.finish(|record| visit(record, &mut found));
        let span: u64 = found.iter().map(|(_, absent, _)| absent + 1).sum::<u64>() + absent_after;
        assert_eq!(
            u64::try_from(next.as_i64()).unwrap(),
            span + 1,
            "every line is a record or absent: {text:?}"
        );
        let found: Vec<(i64, u64, &str)> =
            found.iter().map(|(line, absent, value)| (*line, *absent, value.as_str())).collect();
        assert_eq!((found.as_slice(), (next.as_i64(), absent_after)), (expect, end), "{text:?}");
    }

    #[test]
    fn a_line_is_a_record_and_a_blank_one_is_absent() {
        check("", &[], (1, 0));
        check("a\nb\n", &[(1, 0, "a"), (2, 0, "b")], (3, 0));
        check("a\nb", &[(1, 0, "a"), (2, 0, "b")], (3, 0));
        check("\n \r\na\n\n\n", &[(3, 2, "a")], (6, 2));
        check("{}\n}\n", &[(1, 0, "{}"), (2, 0, "}")], (3, 0));
    }

    #[test]
    fn an_object_over_many_lines_is_one_record() {
        check("{\n  \"a\": 1\n}\nb\n", &[(1, 0, "{\n  \"a\": 1\n}"), (4, 2, "b")], (5, 0));
        check("x\n{\n\n  \"a\": {\n  }\n}\n", &[(1, 0, "x"), (2, 0, "{\n\n  \"a\": {\n  }\n}")], (7, 4));
    }

    #[test]
    fn a_torn_object_takes_nothing_of_the_next() {
        check("{\n  \"a\": \n{\"b\":1}\n", &[(1, 0, "{\n  \"a\": "), (3, 1, "{\"b\":1}")], (4, 0));
        check("{\n{\n}\n", &[(1, 0, "{"), (2, 0, "{\n}")], (4, 1));
        check("{\n  \"a\": 1\n", &[(1, 0, "{\n  \"a\": 1")], (3, 1));
    }

    #[test]
    fn what_never_ends_is_cut() {
        let mut records = LineRecords::new(LINES_MAX_LEN_BYTES);
        let mut found = Vec::new();
        records.push(Line::whole(b"{"), |record| found.push(record));
        let line = vec![b' '; 1 << 20];
        (0..20).for_each(|_| records.push(Line::whole(&line), |record| found.push(record)));
        records.push(Line::whole(&vec![b'x'; LINES_MAX_LEN_BYTES + 5]), |record| found.push(record));
        let lens: Vec<usize> = found.iter().map(|record| record.value.len()).collect();
        assert_eq!(lens.len(), 2);
        assert!(lens.iter().all(|len| *len <= LINES_MAX_LEN_BYTES), "{lens:?}");
        let absent: u64 = found.iter().map(|record| record.absent_before).sum();
        assert_eq!(records.finish(|_| ()).0.as_i64(), i64::try_from(absent).unwrap() + 3);
    }

    #[test]
    fn numbers_do_not_depend_on_how_much_is_kept() {
        let text = "   \n{\n  \"a\": 1\n}  \nlonger than any\n                    \n{        \n}         x\n}\n{ }\n";
        let records = |kept_max: usize| {
            let mut found = Vec::new();
            let mut records = LineRecords::new(kept_max);
            for line in text.trim_end().split('\n') {
                let line = line.as_bytes();
                let (head, rest) = line.split_at(line.len().min(kept_max));
                let is_rest_blank = rest.trim_ascii().is_empty();
                let line = Line { head, len_bytes: line.len(), is_rest_blank };
                records.push(line, |record| found.push(record));
            }
            let end = records.finish(|record| found.push(record));
            (found, end)
        };
        let (whole, end) = records(1 << 20);
        assert!(whole.iter().all(|record| record.value.len() == record.len_bytes));
        let offsets: Vec<i64> = whole.iter().map(|record| record.offset.as_i64()).collect();
        assert_eq!(offsets, [2, 5, 7, 10]);
        for kept_max in 1..30 {
            let (found, found_end) = records(kept_max);
            assert_eq!(found_end, end, "{kept_max}");
            assert_eq!(found.len(), whole.len(), "{kept_max}");
            for (record, whole) in found.iter().zip(&whole) {
                assert!(record.value.len() <= kept_max && whole.value.starts_with(&record.value));
                assert_eq!(
                    LegacyRecord { value: whole.value.clone(), ..record.clone() },
                    *whole,
                    "{kept_max}"
                );
            }
        }
    }
}
