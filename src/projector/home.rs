//! `LOG_DIR`: whose it is, and that one process writes there.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::model::projection::{DayFile, DaySink};
use crate::outlet::day_files::disk::{Disk as DayDisk, LocalDisk as LocalDayDisk};
use crate::spool;
use crate::spool::disk::{Disk, LocalDisk, LockFault};

/// The directory of this instance's files. Its lock is held until this is dropped.
#[derive(Debug)]
pub struct Home {
    root: PathBuf,
    instance: Uuid,
    _lock: <LocalDisk as Disk>::Lock,
}

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another process writes there: stop.
    #[error("LOG_DIR={} is in use by {holder}; each process needs one of its own", root.display())]
    Held {
        /// The directory.
        root: PathBuf,
        /// Who has it, as far as that is known.
        holder: String,
    },
    /// It has no `INSTANCE`, and files that are named like ours: to write there would push them aside.
    #[error(
        "LOG_DIR={} has no INSTANCE, and {} in it is a day file of another program or instance; name another directory, or \
         move its day files away",
        root.display(),
        file.display()
    )]
    Foreign {
        /// The directory.
        root: PathBuf,
        /// One of the files.
        file: PathBuf,
    },
    /// It can't be made, or not be written to: try again later.
    #[error(
        "use LOG_DIR={}: {source}; make it writable, name another, or set PURVIEW_LOG=off and TRUST_LOG=off",
        root.display()
    )]
    Failed {
        /// The directory.
        root: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl HomeError {
    /// What kind it is, for metrics.
    #[must_use]
    pub const fn class(&self) -> &'static str {
        match self {
            Self::Held { .. } => "held",
            Self::Foreign { .. } => "foreign",
            Self::Failed { .. } => "home",
        }
    }
}

impl Home {
    /// Takes `root` for this process: makes it if there is none, with `LOCK` and the instance's id in it. Blocking.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn open(root: &Path) -> Result<Self, HomeError> {
        let failed = |source| HomeError::Failed { root: root.to_owned(), source };
        // Before the spool makes it for itself alone: shippers must get through.
        LocalDayDisk.create_dir(root).map_err(failed)?;
        let owner = format!("process {}\n", std::process::id());
        let lock = LocalDisk.lock(&root.join("LOCK"), &owner).map_err(|fault| match fault {
            LockFault::Held(holder) => {
                let holder = holder.trim();
                let holder = if holder.is_empty() { "another process" } else { holder };
                HomeError::Held { root: root.to_owned(), holder: holder.to_owned() }
            }
            LockFault::Io(source) => failed(source),
        })?;
        if Self::instance_in(root).map_err(failed)?.is_none()
            && let Some(file) = day_file_in(root).map_err(failed)?
        {
            return Err(HomeError::Foreign { root: root.to_owned(), file });
        }
        // Under the lock, so no other process writes an id at the same time.
        let instance = spool::instance_of(root).map_err(failed)?;
        Ok(Self { root: root.to_owned(), instance, _lock: lock })
    }

    /// The id of the instance whose directory `root` is; `None` when it is nobody's yet. Changes nothing. Blocking.
    ///
    /// # Errors
    /// What the system says.
    pub fn instance_in(root: &Path) -> io::Result<Option<Uuid>> {
        match std::fs::read_to_string(root.join("INSTANCE")) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The id of the instance, the same after every restart.
    #[must_use]
    pub const fn instance(&self) -> Uuid {
        self.instance
    }
}

/// A file in `root` that is named like a day file, if there is one, below `root`.
fn day_file_in(root: &Path) -> io::Result<Option<PathBuf>> {
    for sink in DaySink::ALL {
        let folder = Path::new(sink.as_str());
        let names = LocalDayDisk.names(&root.join(folder))?;
        if let Some(name) = names.iter().find(|name| DayFile::read(sink, name).is_some()) {
            return Ok(Some(folder.join(name)));
        }
    }
    Ok(None)
}
