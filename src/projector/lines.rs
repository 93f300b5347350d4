//! The lines of a segment, rendered again from the rows, a piece at a time.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::{LINES_MAX_LEN_BYTES, ROW_MAX_COUNT};
use crate::model::position::{OffsetRange, StreamPartition};
use crate::model::projection::{DayFile, DaySink, LineFormat, ProjectionRules};
use crate::store::{PageEnd, Segment, Session, StoreError};

/// What is left of a segment to render.
#[derive(Debug)]
pub struct SegmentLines {
    file: DayFile,
    rules: ProjectionRules,
    ranges: VecDeque<(StreamPartition, OffsetRange)>,
    line_count: u64,
}

impl SegmentLines {
    /// All lines of `segment`; `None` when it was recorded by a program whose lines differ from ours.
    #[must_use]
    pub fn new(sink: DaySink, segment: &Segment) -> Option<Self> {
        Some(Self {
            file: DayFile::read(sink, &segment.file_name)?,
            rules: ProjectionRules::from_record(&segment.rules)?,
            ranges: segment.ranges.iter().copied().collect(),
            line_count: 0,
        })
    }

    /// The next lines, some MiB of them at most and perhaps none; `None` at the end.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn next(&mut self, session: &mut Session) -> Result<Option<String>, StoreError> {
        let Some((key, range)) = self.ranges.pop_front() else { return Ok(None) };
        let mut lines = String::new();
        let (file, rules, line_count) = (self.file, &self.rules, &mut self.line_count);
        let scope = (key, range, Some(file.day));
        let end = session
            .projection_rows(file.sink, scope, ROW_MAX_COUNT, |offset, row| {
                file.sink.projection().write_line(row, rules, LineFormat::JsonLines, &mut lines);
                *line_count += 1;
                if lines.len() >= LINES_MAX_LEN_BYTES {
                    ControlFlow::Break(offset.next())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .await?;
        if let PageEnd::Before(offset) = end
            && let Some(left) = OffsetRange::new(offset, range.end()).filter(|left| !left.is_empty())
        {
            self.ranges.push_front((key, left));
        }
        Ok(Some(lines))
    }

    /// How many lines there were so far.
    #[must_use]
    pub const fn line_count(&self) -> u64 {
        self.line_count
    }
}
