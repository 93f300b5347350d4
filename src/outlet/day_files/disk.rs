//! What day files need of a disk, and the real one. The tests have a second one, which fails call by call and forgets
//! what was not synced when it crashes.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Shippers read as members of the group.
const FOLDER_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

/// A disk.
pub trait Disk: Debug {
    /// An open file.
    type File: DiskFile;

    /// Makes a folder and those above it; fine when it is there.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a file for reading and writing, makes it if there is none.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Self::File>;

    /// How long a file is; `None`: there is none.
    ///
    /// # Errors
    /// What the system says.
    fn len_bytes(&self, path: &Path) -> io::Result<Option<u64>>;

    /// The names of what is in a folder; none when it is not there.
    ///
    /// # Errors
    /// What the system says.
    fn names(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// An open file of a [`Disk`].
pub trait DiskFile: Debug {
    /// How long it is.
    ///
    /// # Errors
    /// What the system says.
    fn len_bytes(&self) -> io::Result<u64>;

    /// Reads some bytes from `at` on; 0: there are none.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, room: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `at`, or a part of them on error.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes bytes and length durable. After an error the file must be closed.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts it to `len_bytes`.
    ///
    /// # Errors
    /// What the system says.
    fn cut(&mut self, len_bytes: u64) -> io::Result<()>;

    /// Whether it still is the file of that name.
    ///
    /// # Errors
    /// What the system says.
    fn is_at(&self, path: &Path) -> io::Result<bool>;
}

/// The disk of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalDisk;

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

impl Disk for LocalDisk {
    type File = File;

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)
    }

    fn len_bytes(&self, path: &Path) -> io::Result<Option<u64>> {
        Ok(found(fs::metadata(path))?.map(|metadata| metadata.len()))
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let Some(entries) = found(fs::read_dir(path))? else { return Ok(Vec::new()) };
        // A name that is no text is none of ours.
        entries
            .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

impl DiskFile for File {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, room: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(self, room, at)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&mut self, len_bytes: u64) -> io::Result<()> {
        self.set_len(len_bytes)
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let (own, named) = (self.metadata()?, found(fs::metadata(path))?);
        Ok(named.is_some_and(|named| (named.dev(), named.ino()) == (own.dev(), own.ino())))
    }
}
