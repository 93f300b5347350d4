//! What is recorded of a file, written again: an intent that was not finished, a file that was cut or removed.

use std::collections::BTreeSet;
use std::time::Instant;

use super::draft::{KnownFile, Put};
use super::lines::SegmentLines;
use super::writer::{Fault, SinkWriter, answered};
use super::{LINES_MAX_LEN_BYTES, TAIL_PATIENCE};
use crate::model::projection::DayFile;
use crate::outlet::day_files::{DayFileError, DayFiles};
use crate::store::{FileRecord, Segment, SegmentScope};

fn lengths_of(day_files: &DayFiles, files: BTreeSet<DayFile>) -> Result<Vec<(DayFile, u64)>, DayFileError> {
    files.into_iter().map(|file| Ok((file, day_files.len_bytes(&file.to_string())?))).collect()
}

impl SinkWriter {
    /// Compares the lengths of all files with what is recorded, those of which nothing is recorded too. One that is short is
    /// written again, unless its last line is old and it is gone whole.
    pub(super) async fn compare_lengths(&mut self, now: Instant) -> Result<(), Fault> {
        let Some(known) = &self.known else { return Ok(()) };
        let mut files: BTreeSet<DayFile> = known.files.keys().copied().collect();
        let sink = self.writer.sink;
        let lengths = self
            .with_files(move |day_files| {
                files.extend(day_files.names()?.iter().filter_map(|name| DayFile::read(sink, name)));
                lengths_of(day_files, files)
            })
            .await?;
        let Some(known) = &mut self.known else { return Ok(()) };
        for (file, len_bytes) in lengths {
            let name = file.to_string();
            let open = known.open.iter().find(|segment| segment.file_name == name);
            // One that is not recorded is of an intent that a failover or `projections adopt` took away.
            let record = known.files.entry(file).or_insert(KnownFile::of(&FileRecord::default(), now));
            if len_bytes > record.len_bytes {
                tracing::warn!(
                    file = name,
                    len_bytes,
                    recorded_len_bytes = record.len_bytes,
                    "a day file is longer than recorded, after a failover or by foreign hands"
                );
                known.longer.push((file, now));
            }
            if len_bytes < open.map_or(record.len_bytes, |segment| segment.start_len_bytes) {
                if len_bytes == 0 && now >= record.missed_until {
                    record.is_archived = true;
                } else {
                    known.short.push(file);
                }
            }
        }
        Ok(())
    }

    /// Marks those of the files to be written that are gone and got their last line long ago: somebody put them away, and
    /// their lines go to the day's next file. Whether there are such.
    pub(super) async fn notice_archived(&mut self, puts: &[Put]) -> Result<bool, Fault> {
        let (now, sink) = (self.clock.monotonic(), self.writer.sink);
        let Some(known) = &self.known else { return Ok(false) };
        let is_old = |file: &DayFile| known.files.get(file).is_some_and(|known| now >= known.missed_until);
        let behind = puts.iter().filter(|put| put.at > 0).filter_map(|put| DayFile::read(sink, &put.name));
        let old: BTreeSet<DayFile> = behind.filter(is_old).collect();
        if old.is_empty() {
            return Ok(false);
        }
        let lengths = self.with_files(move |day_files| lengths_of(day_files, old)).await?;
        let mut is_any = false;
        for (file, _) in lengths.iter().filter(|(_, len_bytes)| *len_bytes == 0) {
            if let Some(record) = self.known.as_mut().and_then(|known| known.files.get_mut(file)) {
                record.is_archived = true;
                is_any = true;
            }
        }
        Ok(is_any)
    }

    /// Writes what is intended and may not be in its files, and files that were found short.
    pub(super) async fn finish_open(&mut self) -> Result<(), Fault> {
        while let Some(file) = self.known.as_ref().and_then(|known| known.short.last().copied()) {
            match self.rebuild(&file.to_string()).await {
                // Its rows are gone, or it was made by another version: the others go on.
                Err(fault @ Fault::Unrenderable { .. }) => {
                    tracing::error!(error = %fault, "a day file that was cut or removed can't be written again");
                    self.metrics.projections.failed(self.writer.sink, "unrenderable");
                }
                outcome => outcome?,
            }
            if let Some(known) = &mut self.known {
                known.short.pop();
            }
        }
        let open = self.known.as_ref().map(|known| known.open.clone()).unwrap_or_default();
        for segment in &open {
            match self.restore(segment).await {
                Err(Fault::File(DayFileError::Short { .. })) => self.rebuild(&segment.file_name).await?,
                outcome => outcome?,
            }
            self.sync(&segment.file_name).await?;
        }
        if !open.is_empty() {
            let line_count = open.iter().map(|segment| segment.line_count).sum();
            self.metrics.projections.wrote(self.writer.sink, line_count);
        }
        if let Some(known) = &mut self.known {
            known.open.clear();
        }
        Ok(())
    }

    /// Orphans what still stands beyond the recorded length of a file some time after it was found, one file a call.
    /// For when all that was looked for is written; asks the disk only when there is such a file.
    pub(super) async fn orphan_tails(&mut self) -> Result<(), Fault> {
        let now = self.clock.monotonic();
        let Some(known) = &mut self.known else { return Ok(()) };
        let is_due = |at: &Instant| now.saturating_duration_since(*at) >= TAIL_PATIENCE;
        let Some(index) = known.longer.iter().position(|(_, at)| is_due(at)) else { return Ok(()) };
        let (file, _) = known.longer.remove(index);
        let Some(len_bytes) = known.files.get(&file).map(|known| known.len_bytes) else { return Ok(()) };
        let cut = self.with_files(move |files| files.cut(&file.to_string(), len_bytes)).await;
        if cut.is_err()
            && let Some(known) = &mut self.known
        {
            known.longer.push((file, now));
        }
        self.metrics.projections.orphaned(self.writer.sink, cut?);
        Ok(())
    }

    async fn sync(&mut self, name: &str) -> Result<(), Fault> {
        let name = name.to_owned();
        self.with_files(move |files| files.sync(&name)).await
    }

    /// Writes a whole file again, as far as it is recorded; what is right in it stays.
    async fn rebuild(&mut self, name: &str) -> Result<(), Fault> {
        tracing::warn!(
            file = name,
            sink = %self.writer.sink,
            "a day file was cut or removed by somebody; it is written again from the rows"
        );
        let writer = self.writer;
        let segments = answered(self.session()?.segments(writer, SegmentScope::File(name))).await?;
        for segment in &segments {
            self.restore(segment).await?;
        }
        self.sync(name).await?;
        self.metrics.projections.rebuilt(writer.sink);
        Ok(())
    }

    /// Renders a segment again, and puts it where it belongs.
    async fn restore(&mut self, segment: &Segment) -> Result<(), Fault> {
        let unrenderable = |why: String| Fault::Unrenderable { file: segment.file_name.clone(), why };
        let Some(mut rendered) = SegmentLines::new(self.writer.sink, segment) else {
            return Err(unrenderable("it was written by another version of this program".into()));
        };
        let (mut at, mut lines) = (segment.start_len_bytes, String::new());
        while let Some(more) = answered(rendered.next(self.session()?)).await? {
            lines.push_str(&more);
            if lines.len() >= LINES_MAX_LEN_BYTES {
                at = self.put(&segment.file_name, at, std::mem::take(&mut lines)).await?;
            }
        }
        let end = at.saturating_add(u64::try_from(lines.len()).unwrap_or(u64::MAX));
        let line_count = rendered.line_count();
        if (end, line_count) != (segment.end_len_bytes, segment.line_count) {
            return Err(unrenderable(format!(
                "its rows give {line_count} lines up to byte {end} instead of {} up to {}",
                segment.line_count, segment.end_len_bytes
            )));
        }
        self.put(&segment.file_name, at, lines).await?;
        Ok(())
    }

    async fn put(&mut self, name: &str, at: u64, lines: String) -> Result<u64, Fault> {
        let (name, len_bytes) = (name.to_owned(), u64::try_from(lines.len()).unwrap_or(u64::MAX));
        let put = self.with_files(move |files| files.put(&name, at, lines.as_bytes())).await?;
        self.metrics.projections.orphaned(self.writer.sink, put);
        Ok(at.saturating_add(len_bytes))
    }
}
