//! Where an import reads from: a table in one snapshot, or a file.
//!
//! A file is read twice: once for its length, its lines and its SHA-256, which are compared with what is recorded, and
//! once for its records. The second time no more than that length is read, and its hash is compared again at the end:
//! a file that is written to in between ends the import with an error, and not with numbers that nobody can repeat.

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::model::legacy::{LINES_MAX_LEN_BYTES, LegacyRecord, LineRecords};
use crate::model::position::Offset;
use crate::store::{ImportSource, Session, SessionPurpose, StoreSettings, TableError};

/// How much of a file is read at once.
const READ_LEN_BYTES: usize = 256 << 10;

/// A source that can't be imported, and why, in one line: the others can.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unread(pub(super) String);

/// What reading gives, in order.
#[derive(Debug)]
pub(super) enum Item {
    /// The next record.
    Record(LegacyRecord),
    /// There are no more, and how many numbers behind the last hold none.
    End { absent_after: u64 },
}

/// A source, by its name.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// A table, as the operator named it.
    Table(String),
    /// A file, by its canonical path.
    File(PathBuf),
}

/// A source that was looked at.
#[derive(Debug)]
pub(super) struct Opened {
    /// What it is.
    pub(super) source: ImportSource,
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    /// The session holds the snapshot in which the table was looked at; the table's own name.
    Table(Box<Session>, ImportSource),
    File(PathBuf),
}

impl Origin {
    /// The sources that a command line names, in the order in which they are imported: Purview files before trust files,
    /// as a trust line alone lacks most of its event; each by name.
    ///
    /// # Errors
    /// A pattern that names nothing, in one line.
    pub(super) fn of(table: Option<&str>, patterns: &[String]) -> Result<Vec<Self>, String> {
        if let Some(table) = table {
            return Ok(vec![Self::Table(table.to_owned())]);
        }
        let mut paths = Vec::new();
        for pattern in patterns {
            let found = matching(Path::new(pattern)).map_err(|error| format!("{pattern}: {error}"))?;
            if found.is_empty() {
                return Err(format!("{pattern}: there is no such file"));
            }
            paths.extend(found);
        }
        paths.sort_by_key(|path| (is_trust(path), path.clone()));
        paths.dedup();
        Ok(paths.into_iter().map(Self::File).collect())
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Table(name) => name.clone(),
            Self::File(path) => path.display().to_string(),
        }
    }

    /// Looks at the source: all of it is read once.
    pub(super) async fn open(&self, store: &StoreSettings) -> anyhow::Result<Opened> {
        match self {
            Self::Table(name) => {
                let mut session = store.connect(SessionPurpose::Operator).await?;
                let source = session.open_table(name).await.map_err(|error| match error {
                    TableError::Store(error) => anyhow::Error::from(error),
                    TableError::Unfit(reason) => Unread(reason).into(),
                })?;
                Ok(Opened { source: source.clone(), reader: Reader::Table(Box::new(session), source) })
            }
            Self::File(path) => {
                let name = path.to_str().map(str::to_owned);
                let name = name.ok_or_else(|| Unread("its path is not UTF-8; rename it".into()))?;
                let (path, at) = (path.clone(), path.clone());
                let seen = tokio::task::spawn_blocking(move || look_at(&at)).await?;
                let (record_count, len_bytes, fingerprint) =
                    seen.map_err(|error| Unread(format!("it can't be read: {error}")))?;
                let source = ImportSource { name, record_count, len_bytes: Some(len_bytes), fingerprint };
                Ok(Opened { source, reader: Reader::File(path) })
            }
        }
    }
}

impl Opened {
    pub(super) const fn is_table(&self) -> bool {
        matches!(self.reader, Reader::Table(..))
    }

    /// Reads the records from `start` on into `items`, until the other side is gone.
    pub(super) async fn read(&mut self, start: Offset, items: mpsc::Sender<Item>) -> anyhow::Result<()> {
        match &mut self.reader {
            Reader::Table(session, table) => read_table(session, table, start, &items).await,
            Reader::File(path) => {
                let (path, source) = (path.clone(), self.source.clone());
                let read = tokio::task::spawn_blocking(move || read_file(&path, &source, start, &items));
                read.await.context("read the file")?
            }
        }
    }
}

async fn read_table(
    session: &mut Session,
    table: &ImportSource,
    start: Offset,
    items: &mpsc::Sender<Item>,
) -> anyhow::Result<()> {
    let skip_count = start.as_i64().saturating_sub(LineRecords::FIRST.as_i64());
    let mut offset = start;
    session
        .for_each_row(table, skip_count, async |value| {
            let record = LegacyRecord { offset, absent_before: 0, value };
            offset = offset.next();
            items.send(Item::Record(record)).await.is_ok()
        })
        .await?;
    // The other side tells what went wrong there.
    drop(items.send(Item::End { absent_after: 0 }).await);
    Ok(())
}

/// A file's lines, its length and its hash.
fn look_at(path: &Path) -> std::io::Result<(i64, i64, String)> {
    let mut reader = BufReader::with_capacity(READ_LEN_BYTES, File::open(path)?);
    let mut hash = Sha256::new();
    let (mut line_count, mut len_bytes, mut is_open) = (0i64, 0i64, false);
    loop {
        let piece = reader.fill_buf()?;
        let Some(last) = piece.last() else { break };
        is_open = *last != b'\n';
        hash.update(piece);
        let feeds = piece.iter().filter(|byte| **byte == b'\n').count();
        line_count = line_count.saturating_add(i64::try_from(feeds).unwrap_or(i64::MAX));
        let piece_len = piece.len();
        len_bytes = len_bytes.saturating_add(i64::try_from(piece_len).unwrap_or(i64::MAX));
        reader.consume(piece_len);
    }
    Ok((line_count + i64::from(is_open), len_bytes, hex(&hash.finalize())))
}

/// Reads no more than the length that was seen. Blocking.
fn read_file(
    path: &Path,
    source: &ImportSource,
    start: Offset,
    items: &mpsc::Sender<Item>,
) -> anyhow::Result<()> {
    let in_file = || format!("read {}", path.display());
    let len_bytes = source.len_bytes.unwrap_or(0).unsigned_abs();
    let file = File::open(path).with_context(in_file)?.take(len_bytes);
    let mut reader = BufReader::with_capacity(READ_LEN_BYTES, file);
    let (mut hash, mut records, mut line) = (Sha256::new(), LineRecords::default(), Vec::new());
    let is_heard = Cell::new(true);
    let send = |record: LegacyRecord| {
        if record.offset >= start && items.blocking_send(Item::Record(record)).is_err() {
            is_heard.set(false);
        }
    };
    while is_heard.get() && next_line(&mut reader, &mut hash, &mut line).with_context(in_file)? {
        records.push(&line, send);
    }
    let (_, absent_after) = records.finish(send);
    if !is_heard.get() {
        return Ok(());
    }
    if hex(&hash.finalize()) != source.fingerprint {
        anyhow::bail!(
            "{} was written to while it was imported; stop what writes to it, and import it under another name",
            path.display()
        );
    }
    drop(items.blocking_send(Item::End { absent_after }));
    Ok(())
}

/// Reads the next line, without its line feed, of which no more is kept than a record may have; `false` at the end.
fn next_line(reader: &mut impl BufRead, hash: &mut Sha256, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    let mut has_any = false;
    loop {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Ok(has_any);
        }
        has_any = true;
        let feed = piece.iter().position(|byte| *byte == b'\n');
        let content = piece.get(..feed.unwrap_or(piece.len())).unwrap_or_default();
        let room = LINES_MAX_LEN_BYTES.saturating_sub(line.len());
        line.extend_from_slice(content.get(..room).unwrap_or(content));
        let used = feed.map_or(piece.len(), |at| at + 1);
        hash.update(piece.get(..used).unwrap_or_default());
        reader.consume(used);
        if feed.is_some() {
            return Ok(true);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let written = write!(text, "{byte:02x}");
        debug_assert!(written.is_ok(), "writing to a string can't fail");
        text
    })
}

/// Whether a file is a trust log, by its name or its directory's.
fn is_trust(path: &Path) -> bool {
    let name =
        |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name(path).starts_with("trust") || path.parent().is_some_and(|parent| name(parent) == "trust")
}

/// The canonical paths of the files that `pattern` names; `*` and `?` count in its last part only.
fn matching(pattern: &Path) -> std::io::Result<Vec<PathBuf>> {
    let name = pattern.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if !name.contains(['*', '?']) {
        return Ok(vec![pattern.canonicalize()?]);
    }
    let parent = pattern.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        let is_match = matches(name.as_bytes(), entry.file_name().to_string_lossy().as_bytes());
        if is_match && entry.path().is_file() {
            found.push(entry.path().canonicalize()?);
        }
    }
    Ok(found)
}

/// Whether `name` is as `pattern` says: `*` is any bytes, `?` one. A hidden file is named only with its dot.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    // Back to the last `*`, which then takes one byte more: linear in the product of both lengths at worst.
    let (mut at, mut place, mut star) = (0, 0, None);
    while place < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, place));
                at += 1;
            }
            Some(byte) if *byte == b'?' || Some(byte) == name.get(place) => {
                at += 1;
                place += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                (at, place) = (star_at + 1, taken + 1);
            }
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, expect: bool) {
        assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expect, "{pattern} {name}");
    }

    #[test]
    fn patterns_name_files() {
        check("audit_*.jsonl", "audit_20260217.jsonl", true);
        check("audit_*.jsonl", "audit_20260217.jsonl.gz", false);
        check("*", "a", true);
        check("*a*b?", "xaxbxbc", true);
        check("*a*b?", "xaxbxb", false);
        check("?", "", false);
        check("*", ".hidden", false);
    }

    #[test]
    fn purview_files_come_before_trust_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["purview/audit_2.jsonl", "purview/audit_1.jsonl", "trust/trust_1.jsonl", "purview/other.txt"]
        {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let pattern = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let patterns = [pattern("trust/*"), pattern("purview/*.jsonl"), pattern("purview/audit_1.jsonl")];
        let names: Vec<String> = Origin::of(None, &patterns)
            .unwrap()
            .iter()
            .map(|origin| origin.name().rsplit_once('/').unwrap().1.to_owned())
            .collect();
        assert_eq!(names, ["audit_1.jsonl", "audit_2.jsonl", "trust_1.jsonl"]);
        assert!(Origin::of(None, &[pattern("none*")]).unwrap_err().contains("no such file"));
        assert!(Origin::of(None, &[pattern("none")]).is_err());
    }

    #[test]
    fn lines_and_hash_are_those_of_the_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for (text, lines) in [("", 0), ("a", 1), ("a\n", 1), ("\n\na", 3)] {
            std::fs::write(&path, text).unwrap();
            let (line_count, len_bytes, fingerprint) = look_at(&path).unwrap();
            assert_eq!((line_count, len_bytes), (lines, i64::try_from(text.len()).unwrap()), "{text:?}");
            assert_eq!(fingerprint, hex(&Sha256::digest(text.as_bytes())));
        }
    }
}
