//! What the spool needs of a disk, and the real one.
//!
//! The trait exists because the tests have a second disk, which fails call by call and forgets what was not
//! synced when it crashes. Nothing is promised about bytes that were appended and not synced: after a crash
//! any part of them may be there.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::failpoint;

/// The owner alone may read what is spooled.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A file in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its length.
    pub len_bytes: u64,
}

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockFault {
    /// Another process has it; what that one wrote of itself, which is empty when it is just starting.
    Held(String),
    /// The file can't be made or locked.
    Io(io::Error),
}

/// A disk.
pub trait Disk: Debug + Send + 'static {
    /// An open file.
    type File: DiskFile;
    /// A lock; let go when dropped.
    type Lock: Debug + Send;
    /// Whether its calls may take long, and are made on a thread where waiting is allowed.
    const IS_SLOW: bool = true;

    /// Makes a directory that only the owner may enter; fine when it is there.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes the lock of `path` and writes `owner` into it, without waiting.
    ///
    /// # Errors
    /// [`LockFault`].
    fn lock(&self, path: &Path, owner: &str) -> Result<Self::Lock, LockFault>;

    /// The regular files of a directory, by name.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Opens a file for reading from its start.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Self::File>;

    /// Makes an empty file, for appending, that only the owner may read.
    ///
    /// # Errors
    /// What the system says; a file that is there already.
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// Gives a file another name, in place of what has it.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Empties a file and leaves its name.
    ///
    /// # Errors
    /// What the system says.
    fn empty(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// How many bytes a process without privileges may still write.
    ///
    /// # Errors
    /// What the system says.
    fn free_len_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// An open file of a [`Disk`].
pub trait DiskFile: Debug + Read + Send + 'static {
    /// Goes to `at`, in bytes from the start.
    ///
    /// # Errors
    /// What the system says.
    fn go_to(&mut self, at: u64) -> io::Result<()>;

    /// Appends all of `bytes`, or a part of them on error.
    ///
    /// # Errors
    /// What the system says.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the bytes durable. Never called again on this file after it failed: Linux forgets the bytes
    /// that it could not write, and says that all is well the second time (`fsync(2)`, notes; PostgreSQL
    /// wiki, "Fsync Errors").
    ///
    /// # Errors
    /// What the system says.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts the file to `len_bytes`.
    ///
    /// # Errors
    /// What the system says.
    fn cut(&mut self, len_bytes: u64) -> io::Result<()>;
}

/// The disk of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    type File = File;
    type Lock = File;

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
    }

    fn lock(&self, path: &Path, owner: &str) -> Result<File, LockFault> {
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path);
        let mut file = options.map_err(LockFault::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockFault::Held(fs::read_to_string(path).unwrap_or_default()));
            }
            Err(TryLockError::Error(error)) => return Err(LockFault::Io(error)),
        }
        // Who holds it is for people; the lock is held whether or not a full disk takes the line.
        let written = file.set_len(0).and_then(|()| file.write_all(owner.as_bytes()));
        match written {
            Ok(()) => Ok(file),
            Err(error) if is_full(&error) => Ok(file),
            Err(error) => Err(LockFault::Io(error)),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // Moved by its owner between the two calls.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                entries.push(Entry { name, len_bytes: metadata.len() });
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        File::open(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create_new(true).mode(FILE_MODE).open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn empty(&self, path: &Path) -> io::Result<()> {
        OpenOptions::new().write(true).open(path)?.set_len(0)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn free_len_bytes(&self, path: &Path) -> io::Result<u64> {
        let status = rustix::fs::statvfs(path)?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }
}

impl DiskFile for File {
    fn go_to(&mut self, at: u64) -> io::Result<()> {
        self.seek(SeekFrom::Start(at)).map(|_at| ())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        if failpoint::is_on("mutant_no_fsync") {
            return Ok(());
        }
        self.sync_data()
    }

    fn cut(&mut self, len_bytes: u64) -> io::Result<()> {
        self.set_len(len_bytes)
    }
}

/// Whether an error says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
