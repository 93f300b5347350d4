//! Day files: bytes at their places in files that log shippers follow.
//!
//! # What it promises
//!
//! - After [`DayFiles::put`] and [`DayFiles::sync`] the bytes are at their place, and durable, file name included.
//! - Doing both again, after any crash or error, gives the same file: what is there and is right stays where it is, what
//!   is missing is added. A reader that follows the file sees no byte twice.
//! - Nothing is deleted: what stands in the way goes to `<name>.orphan`, whole lines of it, before the file is cut.
//!
//! What is there already is compared and, where it is right, *written again in its place*: an earlier sync of it may have
//! failed, after which Linux holds bytes that it has not written for clean, and says of the next sync that all is well
//! (`fsync(2)`, notes). A reader does not notice. For the same reason a file whose write or sync failed is closed.
//!
//! Files have mode 0640 and folders 0750: a shipper reads them as a member of the daemon's group, and nobody else does,
//! as they name who did what.
//!
//! Never here: what the bytes are, and where they belong; PostgreSQL, Kafka, a clock.

pub mod disk;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use self::disk::{Disk, DiskFile, LocalDisk};
use crate::failpoint;

/// How many files are open at once; the one that was not used for longest is closed for another.
pub const OPEN_MAX_COUNT: usize = 64;
/// How much is compared or copied at once.
const PIECE_LEN_BYTES: usize = 64 << 10;

/// Why a file does not take what it should. Nothing is known of what it holds behind the place then.
#[derive(Debug, thiserror::Error)]
pub enum DayFileError {
    /// It ends before the place: somebody cut or removed it. What is missing must be put first.
    #[error("{} has {len_bytes} bytes instead of at least {expected_len_bytes}", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// Its length; 0 when it was not there.
        len_bytes: u64,
        /// Where the bytes were to be put.
        expected_len_bytes: u64,
    },
    /// The disk fails, is full or read only: try again later.
    #[error("{doing} {}: {source}", path.display())]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

impl DayFileError {
    /// What kind it is, for metrics.
    #[must_use]
    pub fn class(&self) -> &'static str {
        use std::io::ErrorKind;
        match self {
            Self::Short { .. } => "short",
            Self::Failed { source, .. } => match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => "full",
                ErrorKind::ReadOnlyFilesystem => "read_only",
                ErrorKind::PermissionDenied => "denied",
                _ => "io",
            },
        }
    }
}

/// Names what was being done to which file.
trait Doing<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, DayFileError>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, DayFileError> {
        self.map_err(|source| DayFileError::Failed { doing, path: path.to_owned(), source })
    }
}

#[derive(Debug)]
struct OpenFile<F> {
    name: String,
    file: F,
}

/// The files of one folder.
#[derive(Debug)]
pub struct DayFiles<D: Disk = LocalDisk> {
    folder: PathBuf,
    disk: D,
    /// The one that was used last stands last.
    open: Vec<OpenFile<D::File>>,
}

impl<D: Disk> DayFiles<D> {
    /// The files of `folder`, which is made with the first of them.
    #[must_use]
    pub fn new(folder: PathBuf, disk: D) -> Self {
        Self { folder, disk, open: Vec::new() }
    }

    /// Where a file is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// How long a file is; 0 when it is not there.
    ///
    /// # Errors
    /// [`DayFileError::Failed`].
    pub fn len_bytes(&self, name: &str) -> Result<u64, DayFileError> {
        let path = self.path(name);
        self.disk.len_bytes(&path).doing("look at", &path).map(|len_bytes| len_bytes.unwrap_or(0))
    }

    /// The names of what is in the folder; none when it is not there.
    ///
    /// # Errors
    /// [`DayFileError::Failed`].
    pub fn names(&self) -> Result<Vec<String>, DayFileError> {
        self.disk.names(&self.folder).doing("list", &self.folder)
    }

    /// Puts `bytes`, which are whole lines, at `at` of a file, which is made if `at` is 0. What stands there and differs
    /// goes to the orphans, from the first line that differs on; what follows bytes that are equal stays. Returns how
    /// many bytes were orphaned. Durable after [`Self::sync`].
    ///
    /// # Errors
    /// [`DayFileError`]; [`DayFileError::Short`] when the file ends before `at`.
    pub fn put(&mut self, name: &str, at: u64, bytes: &[u8]) -> Result<u64, DayFileError> {
        let path = self.path(name);
        if at > 0 && self.len_bytes(name)? < at {
            let len_bytes = self.len_bytes(name)?;
            self.close(name);
            return Err(DayFileError::Short { path, len_bytes, expected_len_bytes: at });
        }
        let mut open = self.take(name)?;
        let len_bytes = open.file.len_bytes().doing("look at", &path)?;
        if len_bytes < at {
            return Err(DayFileError::Short { path, len_bytes, expected_len_bytes: at });
        }
        let mut orphaned_len_bytes = 0;
        if len_bytes > at
            && let Some(equal) = first_difference(&open.file, at, bytes).doing("read", &path)?
        {
            let line = bytes.get(..equal).unwrap_or_default().iter().rposition(|byte| *byte == b'\n');
            let place = at.saturating_add(as_len(line.map_or(0, |line| line + 1)));
            orphaned_len_bytes = self.orphan(&mut open, place)?;
        }
        // With fail points a write is torn in the middle of a line.
        let first =
            if cfg!(feature = "failpoints") { bytes.len().saturating_sub(bytes.len() / 2) } else { 0 };
        let (first, rest) = bytes.split_at_checked(first).unwrap_or((&[], bytes));
        open.file.write_at(first, at).doing("write", &path)?;
        failpoint::at("project_in_write");
        open.file.write_at(rest, at.saturating_add(as_len(first.len()))).doing("write", &path)?;
        self.open.push(open);
        Ok(orphaned_len_bytes)
    }

    /// Makes what was put into a file durable.
    ///
    /// # Errors
    /// [`DayFileError::Failed`]: what was put since the last sync must be put again.
    pub fn sync(&mut self, name: &str) -> Result<(), DayFileError> {
        let path = self.path(name);
        let mut open = self.take(name)?;
        open.file.sync().doing("sync", &path)?;
        self.open.push(open);
        Ok(())
    }

    /// Orphans what a file holds beyond `len_bytes`; returns how much.
    ///
    /// # Errors
    /// [`DayFileError::Failed`].
    pub fn cut(&mut self, name: &str, len_bytes: u64) -> Result<u64, DayFileError> {
        if self.len_bytes(name)? <= len_bytes {
            return Ok(0);
        }
        let mut open = self.take(name)?;
        let orphaned_len_bytes = self.orphan(&mut open, len_bytes)?;
        open.file.sync().doing("sync", &self.path(name))?;
        self.open.push(open);
        Ok(orphaned_len_bytes)
    }

    fn close(&mut self, name: &str) {
        self.open.retain(|open| open.name != name);
    }

    /// Takes an open file out of the list, or opens it; on success it is to be put back. A file that has lost its name
    /// is not written to any more.
    fn take(&mut self, name: &str) -> Result<OpenFile<D::File>, DayFileError> {
        let path = self.path(name);
        if let Some(index) = self.open.iter().position(|open| open.name == name) {
            let open = self.open.remove(index);
            if open.file.is_at(&path).doing("look at", &path)? {
                return Ok(open);
            }
        }
        while self.open.len() >= OPEN_MAX_COUNT {
            self.open.remove(0);
        }
        self.open_file(name)
    }

    fn open_file(&self, name: &str) -> Result<OpenFile<D::File>, DayFileError> {
        let path = self.path(name);
        self.disk.create_dir(&self.folder).doing("make folder", &self.folder)?;
        let file = self.disk.open(&path).doing("open", &path)?;
        // Also when it was there: whoever made it may have died before its name was durable.
        for folder in [Some(self.folder.as_path()), self.folder.parent()].into_iter().flatten() {
            self.disk.sync_dir(folder).doing("sync folder", folder)?;
        }
        Ok(OpenFile { name: name.to_owned(), file })
    }

    /// Copies what stands from `place` on to the orphans, and cuts it off when that is durable.
    fn orphan(&mut self, open: &mut OpenFile<D::File>, place: u64) -> Result<u64, DayFileError> {
        let (path, name) = (self.path(&open.name), format!("{}.orphan", open.name));
        let orphan_path = self.path(&name);
        let mut orphans = self.open_file(&name)?;
        let start = orphans.file.len_bytes().doing("look at", &orphan_path)?;
        let (mut piece, mut copied_len_bytes) = (vec![0; PIECE_LEN_BYTES], 0_u64);
        loop {
            let read = open.file.read_at(&mut piece, place.saturating_add(copied_len_bytes));
            let len = read.doing("read", &path)?;
            let bytes = piece.get(..len).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            let at = start.saturating_add(copied_len_bytes);
            orphans.file.write_at(bytes, at).doing("write", &orphan_path)?;
            copied_len_bytes = copied_len_bytes.saturating_add(as_len(len));
        }
        orphans.file.sync().doing("sync", &orphan_path)?;
        open.file.cut(place).doing("cut", &path)?;
        Ok(copied_len_bytes)
    }
}

fn as_len(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// How many of `bytes` stand at `at` before the first that differs; `None`: what is there does not differ, as far as
/// both go.
fn first_difference<F: DiskFile>(file: &F, at: u64, bytes: &[u8]) -> std::io::Result<Option<usize>> {
    let (mut piece, mut equal) = (vec![0; PIECE_LEN_BYTES], 0);
    while let Some(expected) = bytes.get(equal..).filter(|rest| !rest.is_empty()) {
        let room = piece.len().min(expected.len());
        let len =
            file.read_at(piece.get_mut(..room).unwrap_or_default(), at.saturating_add(as_len(equal)))?;
        if len == 0 {
            return Ok(None);
        }
        let found = piece.get(..len).unwrap_or_default();
        if let Some(index) = found.iter().zip(expected).position(|(one, other)| one != other) {
            return Ok(Some(equal + index));
        }
        equal += len;
    }
    Ok(None)
}
