//! Day files against the rows: the count of all lines in PostgreSQL, and every byte of the files of this `LOG_DIR`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};

use super::super::table::{Table, with_thousands};
use crate::model::projection::{DayFile, DaySink};
use crate::projector::{Home, SegmentLines};
use crate::store::{
    ProjectionFile, ProjectionLines, SegmentScope, Session, SessionPurpose, StoreError, StoreSettings, Writer,
};

/// A file of this `LOG_DIR`, compared.
#[derive(Debug)]
struct ComparedFile {
    file: ProjectionFile,
    /// Why it was not compared.
    note: Option<String>,
}

/// What is wrong.
#[derive(Debug)]
struct Difference {
    code: &'static str,
    name: String,
    expected: String,
    found: String,
    text: &'static str,
}

/// Day files, compared.
#[derive(Debug, Default)]
pub(super) struct Projections {
    lines: Vec<ProjectionLines>,
    files: Vec<ComparedFile>,
    /// Why no file was compared.
    note: Option<String>,
    /// Whether files may be there, and could not be looked at.
    is_unread: bool,
    differences: Vec<Difference>,
}

impl Projections {
    /// Compares what was ever written. Files of other instances are only counted.
    ///
    /// # Errors
    /// PostgreSQL's. What the disk says is a difference, or noted.
    pub(super) async fn compare(store: &StoreSettings, log_dir: &Path) -> Result<Self, StoreError> {
        let mut session = store.connect(SessionPurpose::Operator).await?;
        let mut projections = Self { lines: session.projection_lines().await?, ..Self::default() };
        projections.compare_counts();
        match Home::instance_in(log_dir) {
            Ok(Some(instance)) => {
                // Their lengths first: whatever stands in a file was recorded before it was written.
                let mut lengths = lengths_in(log_dir);
                for file in session.projection_files(Some(instance)).await? {
                    let len_bytes = lengths.remove(&(file.sink, file.name.clone())).unwrap_or(0);
                    projections.compare_length(log_dir, (file.sink, &file.name), (len_bytes, file.len_bytes));
                    projections.compare_file(&mut session, log_dir, file).await?;
                }
                for ((sink, name), len_bytes) in lengths {
                    projections.compare_length(log_dir, (sink, &name), (len_bytes, 0));
                }
            }
            Ok(None) => projections.note = Some(format!("{} has no INSTANCE", log_dir.display())),
            Err(error) => {
                projections.note = Some(format!("{}: {error}", log_dir.display()));
                projections.is_unread = true;
            }
        }
        session.close().await;
        Ok(projections)
    }

    fn compare_length(
        &mut self,
        log_dir: &Path,
        (sink, name): (DaySink, &str),
        (found, recorded): (u64, u64),
    ) {
        if found > recorded {
            self.differences.push(Difference {
                code: "file_longer",
                name: log_dir.join(sink.as_str()).join(name).display().to_string(),
                expected: format!("at most {recorded} bytes"),
                found: format!("{found} bytes"),
                text: "what follows was never recorded, or a failover lost the record; a running daemon puts it into FILE.orphan",
            });
        }
    }

    pub(super) fn is_ok(&self) -> bool {
        self.differences.is_empty()
    }

    /// What was to be compared and could not be, and why.
    pub(super) fn not_compared(&self) -> Option<String> {
        self.note.as_ref().filter(|_| self.is_unread).map(|note| format!("day files: {note}"))
    }

    fn compare_counts(&mut self) {
        for lines in &self.lines {
            let expected =
                lines.row_count.saturating_sub(lines.pending_count).saturating_add(lines.dropped_count);
            if lines.line_count != expected {
                self.differences.push(Difference {
                    code: "lines_differ",
                    name: lines.sink.to_string(),
                    expected: with_thousands(expected),
                    found: with_thousands(lines.line_count),
                    text: "lines of day files, as recorded, for the rows behind the cursors or in filled gaps",
                });
            }
        }
    }

    async fn compare_file(
        &mut self,
        session: &mut Session,
        log_dir: &Path,
        file: ProjectionFile,
    ) -> Result<(), StoreError> {
        let path = log_dir.join(file.sink.as_str()).join(&file.name);
        let mut note = None;
        let day = DayFile::read(file.sink, &file.name).map(|file| file.day);
        if let Some(day) = day
            && session.is_dropped(day).await?
        {
            note = Some("retention dropped events of that day".to_owned());
            self.files.push(ComparedFile { file, note });
            return Ok(());
        }
        match std::fs::File::open(&path) {
            Ok(disk) => {
                let mut reader = std::io::BufReader::with_capacity(1 << 20, disk);
                if let Some((found, text)) = compare_bytes(session, &file, &mut reader, &mut note).await? {
                    let expected = format!("{} bytes", file.confirmed_len_bytes);
                    let name = path.display().to_string();
                    self.differences.push(Difference { code: "file_differs", name, expected, found, text });
                }
            }
            Err(error) => {
                let is_old = error.kind() == std::io::ErrorKind::NotFound && file.age_seconds > 7 * 86_400;
                if is_old {
                    note = Some("not there, and older than 7 days: put away by somebody".to_owned());
                } else if file.confirmed_len_bytes > 0 {
                    self.differences.push(Difference {
                        code: "file_missing",
                        name: path.display().to_string(),
                        expected: format!("{} bytes", file.confirmed_len_bytes),
                        found: error.to_string(),
                        text: "the file can't be read; a running daemon writes it again from the rows",
                    });
                }
            }
        }
        self.files.push(ComparedFile { file, note });
        Ok(())
    }

    pub(super) fn to_json(&self) -> Value {
        let lines = self.lines.iter().map(|lines| {
            json!({
                "sink": lines.sink.as_str(), "lines": lines.line_count, "rows": lines.row_count,
                "pending": lines.pending_count, "dropped": lines.dropped_count,
            })
        });
        let files = self.files.iter().map(|compared| {
            json!({
                "sink": compared.file.sink.as_str(), "file": compared.file.name,
                "bytes": compared.file.confirmed_len_bytes, "note": compared.note,
            })
        });
        let differences = self.differences.iter().map(|difference| {
            json!({
                "code": difference.code, "file": difference.name, "expected": difference.expected,
                "found": difference.found, "text": difference.text,
            })
        });
        json!({
            "sinks": lines.collect::<Vec<_>>(), "files": files.collect::<Vec<_>>(), "note": self.note,
            "findings": differences.collect::<Vec<_>>(),
        })
    }

    /// A line for each sink that was ever on, and for what was not compared; then what differs.
    pub(super) fn write_to(&self, out: &mut dyn std::io::Write) -> anyhow::Result<()> {
        let written: Vec<&ProjectionLines> =
            self.lines.iter().filter(|lines| lines.line_count > 0 || lines.row_count > 0).collect();
        for lines in &written {
            let of_sink = self.files.iter().filter(|compared| compared.file.sink == lines.sink);
            writeln!(
                out,
                "{} day files: {} lines for {} rows, {} pending{}; {} files of this LOG_DIR compared",
                lines.sink,
                with_thousands(lines.line_count),
                with_thousands(lines.row_count),
                with_thousands(lines.pending_count),
                match lines.dropped_count {
                    0 => String::new(),
                    count => format!(", and for {} rows that retention dropped", with_thousands(count)),
                },
                of_sink.filter(|compared| compared.note.is_none()).count(),
            )?;
        }
        if let Some(note) = self.note.as_ref().filter(|_| !written.is_empty()) {
            writeln!(out, "day files were not compared with their rows: {note}")?;
        }
        for compared in &self.files {
            if let Some(note) = &compared.note {
                writeln!(out, "not compared: {}: {note}", compared.file.name)?;
            }
        }
        if self.differences.is_empty() {
            return Ok(());
        }
        writeln!(out)?;
        writeln!(out, "day files differ: {} findings", self.differences.len())?;
        let mut table = Table::new(&["finding", "file", "expected", "found", "meaning"]);
        for difference in &self.differences {
            table.push(vec![
                difference.code.into(),
                difference.name.as_str().into(),
                difference.expected.as_str().into(),
                difference.found.as_str().into(),
                difference.text.into(),
            ]);
        }
        table.write_to(out)?;
        Ok(())
    }
}

/// The lengths of the day files in a directory, in bytes. What can't be read is told when the file is compared.
fn lengths_in(log_dir: &Path) -> BTreeMap<(DaySink, String), u64> {
    let of_sink = |sink: DaySink| {
        let entries = std::fs::read_dir(log_dir.join(sink.as_str())).into_iter().flatten().flatten();
        entries.filter_map(move |entry| {
            let name = entry.file_name().into_string().ok()?;
            DayFile::read(sink, &name)?;
            Some(((sink, name), entry.metadata().ok()?.len()))
        })
    };
    DaySink::ALL.into_iter().flat_map(of_sink).collect()
}

/// Compares what is confirmed of a file with its rows; what was found instead and what that means.
async fn compare_bytes(
    session: &mut Session,
    file: &ProjectionFile,
    reader: &mut impl Read,
    note: &mut Option<String>,
) -> Result<Option<(String, &'static str)>, StoreError> {
    let writer = Writer { sink: file.sink, instance: file.instance, run: uuid::Uuid::nil() };
    let mut at: u64 = 0;
    for segment in session.segments(writer, SegmentScope::File(&file.name)).await? {
        if segment.end_len_bytes > file.confirmed_len_bytes {
            break;
        }
        if segment.start_len_bytes != at {
            let found = format!("a record that starts at byte {} instead of {at}", segment.start_len_bytes);
            return Ok(Some((found, "what is recorded of the file has a hole")));
        }
        let Some(mut rendered) = SegmentLines::new(file.sink, &segment) else {
            *note = Some("written by another version of this program".into());
            return Ok(None);
        };
        while let Some(lines) = rendered.next(session).await? {
            let mut found = vec![0; lines.len()];
            if let Err(error) = reader.read_exact(&mut found) {
                return Ok(Some((format!("{error} behind byte {at}"), "the file ends early")));
            }
            if found != lines.as_bytes() {
                let found = format!("others behind byte {at}");
                return Ok(Some((found, "the lines are not those of the rows")));
            }
            at = at.saturating_add(u64::try_from(lines.len()).unwrap_or(u64::MAX));
        }
        if (at, rendered.line_count()) != (segment.end_len_bytes, segment.line_count) {
            let found = format!("rows for {at} bytes");
            return Ok(Some((found, "rows of the file are missing, or were added behind its back")));
        }
    }
    Ok(None)
}
