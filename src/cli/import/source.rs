//! Where an import reads from: a table in one snapshot, or a file.
//!
//! A file is read twice: once for its length, its lines and its SHA-256, which are compared with what is recorded, and
//! once for its records. The second time no more than that length is read, and its hash is compared again at the end:
//! a file that is written to in between ends the import with an error, and not with numbers that nobody can repeat.
//!
//! Memory is bounded by bytes: of a record no more than `MAX_EVENT_BYTES` are kept, and records go to the storing side in
//! chunks ([`Outbox`]), of which [`QUEUE_COUNT`] wait at most.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::model::legacy::{LegacyRecord, Line, LineRecords};
use crate::model::position::Offset;
use crate::store::{ImportSource, Session, SessionPurpose, StoreSettings, TableError};

/// How much of a file is read at once.
const READ_LEN_BYTES: usize = 256 << 10;
/// How many chunks wait between reading and storing.
pub(super) const QUEUE_COUNT: usize = 4;
/// When a chunk is sent: it has this many records, …
const CHUNK_RECORD_COUNT: usize = 256;
/// … or this many bytes, and so at most one record more.
const CHUNK_LEN_BYTES: usize = 1 << 20;

/// A source that can't be imported, and why, in one line: the others can.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unread(pub(super) String);

/// What reading gives, in order.
#[derive(Debug)]
pub(super) enum Item {
    /// The next records.
    Records(Vec<LegacyRecord>),
    /// There are no more, and how many numbers behind the last hold none.
    End { absent_after: u64 },
}

/// Records on their way to the storing side.
struct Outbox {
    items: mpsc::Sender<Item>,
    records: Vec<LegacyRecord>,
    len_bytes: usize,
}

impl Outbox {
    const fn new(items: mpsc::Sender<Item>) -> Self {
        Self { items, records: Vec::new(), len_bytes: 0 }
    }

    fn push(&mut self, record: LegacyRecord) {
        self.len_bytes += record.value.len();
        self.records.push(record);
    }

    /// Whether what was pushed is to be sent before more is.
    const fn is_full(&self) -> bool {
        self.records.len() >= CHUNK_RECORD_COUNT || self.len_bytes >= CHUNK_LEN_BYTES
    }

    fn take(&mut self) -> Item {
        self.len_bytes = 0;
        Item::Records(std::mem::take(&mut self.records))
    }

    /// Sends what was pushed; `false`: the other side is gone, and tells what went wrong there.
    async fn send(&mut self) -> bool {
        let item = self.take();
        self.items.send(item).await.is_ok()
    }

    /// The same for a thread of its own.
    fn send_blocking(&mut self) -> bool {
        let item = self.take();
        self.items.blocking_send(item).is_ok()
    }
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

    /// Reads the records from `start` on into `items`, until the other side is gone; of a record no more than
    /// `kept_max_len_bytes`.
    pub(super) async fn read(
        &mut self,
        start: Offset,
        kept_max_len_bytes: usize,
        items: mpsc::Sender<Item>,
    ) -> anyhow::Result<()> {
        let outbox = Outbox::new(items);
        match &mut self.reader {
            Reader::Table(session, table) => {
                read_table(session, table, (start, kept_max_len_bytes), outbox).await
            }
            Reader::File(path) => {
                let (path, source) = (path.clone(), self.source.clone());
                let read = move || read_file(&path, &source, (start, kept_max_len_bytes), outbox);
                tokio::task::spawn_blocking(read).await.context("read the file")?
            }
        }
    }
}

async fn read_table(
    session: &mut Session,
    table: &ImportSource,
    (start, kept_max_len_bytes): (Offset, usize),
    mut outbox: Outbox,
) -> anyhow::Result<()> {
    let skip_count = start.as_i64().saturating_sub(LineRecords::FIRST.as_i64());
    let mut offset = start;
    session
        .for_each_row(table, (skip_count, kept_max_len_bytes), async |value, len_bytes| {
            outbox.push(LegacyRecord { offset, absent_before: 0, value, len_bytes });
            offset = offset.next();
            !outbox.is_full() || outbox.send().await
        })
        .await?;
    if outbox.send().await {
        drop(outbox.items.send(Item::End { absent_after: 0 }).await);
    }
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
    (start, kept_max_len_bytes): (Offset, usize),
    mut outbox: Outbox,
) -> anyhow::Result<()> {
    let in_file = || format!("read {}", path.display());
    let len_bytes = source.len_bytes.unwrap_or(0).unsigned_abs();
    let file = File::open(path).with_context(in_file)?.take(len_bytes);
    let mut lines = Lines {
        reader: BufReader::with_capacity(READ_LEN_BYTES, file),
        hash: Sha256::new(),
        head: Vec::new(),
        kept_max_len_bytes,
    };
    let mut records = LineRecords::new(kept_max_len_bytes);
    let is_wanted = |record: &LegacyRecord| record.offset >= start;
    while let Some(line) = lines.next().with_context(in_file)? {
        records.push(line, |record| {
            if is_wanted(&record) {
                outbox.push(record);
            }
        });
        if outbox.is_full() && !outbox.send_blocking() {
            return Ok(());
        }
    }
    let (_, absent_after) = records.finish(|record| {
        if is_wanted(&record) {
            outbox.push(record);
        }
    });
    if hex(&lines.hash.finalize()) != source.fingerprint {
        anyhow::bail!(
            "{} was written to while it was imported; stop what writes to it, and import it under another name",
            path.display()
        );
    }
    if outbox.send_blocking() {
        drop(outbox.items.blocking_send(Item::End { absent_after }));
    }
    Ok(())
}

/// The lines of a file, of which no more is in memory than is kept.
struct Lines<R> {
    reader: R,
    /// Of all that was read.
    hash: Sha256,
    head: Vec<u8>,
    kept_max_len_bytes: usize,
}

impl<R: BufRead> Lines<R> {
    /// The next line; `None` at the end.
    fn next(&mut self) -> std::io::Result<Option<Line<'_>>> {
        self.head.clear();
        let (mut len_bytes, mut is_rest_blank, mut has_any) = (0, true, false);
        loop {
            let piece = self.reader.fill_buf()?;
            let feed = piece.iter().position(|byte| *byte == b'\n');
            let content = piece.get(..feed.unwrap_or(piece.len())).unwrap_or_default();
            let room = self.kept_max_len_bytes.saturating_sub(self.head.len());
            let (kept, rest) = content.split_at_checked(room).unwrap_or((content, &[]));
            self.head.extend_from_slice(kept);
            is_rest_blank = is_rest_blank && rest.trim_ascii().is_empty();
            len_bytes += content.len();
            has_any = has_any || !piece.is_empty();
            let (is_end, used) = (piece.is_empty(), feed.map_or(piece.len(), |at| at + 1));
            self.hash.update(piece.get(..used).unwrap_or_default());
            self.reader.consume(used);
            if feed.is_some() || is_end {
                let line = Line { head: &self.head, len_bytes, is_rest_blank };
                return Ok(has_any.then_some(line));
            }
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

    #[test]
    fn of_a_long_line_no_more_is_in_memory_than_is_kept() {
        let text = [&b"short\n"[..], &vec![b'x'; 1 << 20], b"\n\n", &vec![b' '; 5_000], b"\nend"].concat();
        let mut lines = Lines {
            reader: BufReader::with_capacity(64, text.as_slice()),
            hash: Sha256::new(),
            head: Vec::new(),
            kept_max_len_bytes: 1_000,
        };
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push((line.head.len(), line.len_bytes, line.is_rest_blank));
        }
        assert_eq!(
            found,
            [(5, 5, true), (1_000, 1 << 20, false), (0, 0, true), (1_000, 5_000, true), (3, 3, true)]
        );
        assert!(lines.head.capacity() < 3_000, "{}", lines.head.capacity());
        assert_eq!(hex(&lines.hash.finalize()), hex(&Sha256::digest(&text)));
    }

    #[test]
    fn what_waits_to_be_stored_is_bounded_by_bytes() {
        let (items, mut taken) = mpsc::channel(QUEUE_COUNT);
        let mut outbox = Outbox::new(items);
        let mut sent_count = 0;
        let record = |len_bytes: usize| LegacyRecord {
            offset: LineRecords::FIRST,
            absent_before: 0,
            value: vec![0; len_bytes],
            len_bytes,
        };
        for len_bytes in [CHUNK_LEN_BYTES / 2, CHUNK_LEN_BYTES / 2, 1, 2 * CHUNK_LEN_BYTES] {
            outbox.push(record(len_bytes));
            if outbox.is_full() {
                assert!(outbox.send_blocking());
                sent_count += 1;
            }
        }
        assert_eq!(sent_count, 2);
        for expect in [2, 2] {
            let Ok(Item::Records(records)) = taken.try_recv() else { panic!("no records") };
            assert_eq!(records.len(), expect);
        }
        (0..CHUNK_RECORD_COUNT).for_each(|_| outbox.push(record(0)));
        assert!(outbox.is_full());
    }
}
