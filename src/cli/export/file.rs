//! A file that is there whole or not at all: written under another name beside its own, made durable, then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file under its temporary name, readable by its owner only; removed when it is dropped before it is finished.
#[derive(Debug)]
pub(super) struct PartialFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    replaces: bool,
    is_finished: bool,
}

impl PartialFile {
    /// Begins a file that will be `path`. Its temporary name is hidden and ends in this process's id.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when `path` is there and `replaces` is not set; what the file system reports.
    pub(super) fn create(path: &Path, replaces: bool) -> io::Result<Self> {
        if !replaces && path.symlink_metadata().is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let Some(name) = path.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file's name"));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".partial-{}", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        Ok(Self { file, temporary, path: path.to_owned(), replaces, is_finished: false })
    }

    /// Makes the content durable, gives the file its name, and makes that durable.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when somebody else has made the file meanwhile; what the file system reports.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if self.replaces {
            fs::rename(&self.temporary, &self.path)?;
        } else {
            // A second name fails where a file is, which a rename would replace.
            match fs::hard_link(&self.temporary, &self.path) {
                Ok(()) => fs::remove_file(&self.temporary)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
                // A file system without second names.
                Err(_) if self.path.symlink_metadata().is_ok() => {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                Err(_) => fs::rename(&self.temporary, &self.path)?,
            }
        }
        self.is_finished = true;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
    }
}

impl Write for PartialFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.is_finished
            && let Err(error) = fs::remove_file(&self.temporary)
        {
            tracing::error!(%error, file = %self.temporary.display(), "an unfinished file stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut dropped = PartialFile::create(&path, false).unwrap();
        dropped.write_all(b"half").unwrap();
        drop(dropped);
        assert_eq!(names(folder.path()), Vec::<String>::new());
        let mut file = PartialFile::create(&path, false).unwrap();
        file.write_all(b"whole").unwrap();
        assert!(path.symlink_metadata().is_err());
        file.finish().unwrap();
        assert_eq!(
            (names(folder.path()), fs::read(&path).unwrap()),
            (vec!["a".to_owned()], b"whole".to_vec())
        );
    }

    #[test]
    fn a_file_is_replaced_only_when_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "theirs").unwrap();
        let refused = PartialFile::create(&path, false).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        fs::remove_file(&path).unwrap();
        let file = PartialFile::create(&path, false).unwrap();
        fs::write(&path, "made meanwhile").unwrap();
        assert_eq!(file.finish().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"made meanwhile");
        let mut file = PartialFile::create(&path, true).unwrap();
        file.write_all(b"ours").unwrap();
        file.finish().unwrap();
        assert_eq!(
            (names(folder.path()), fs::read(&path).unwrap()),
            (vec!["a".to_owned()], b"ours".to_vec())
        );
    }
}
