//! What the spool may answer but success.

use std::io;
use std::path::PathBuf;

use crate::model::spool::Contradiction;

/// Why the spool does not do what it was asked. Variants by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process has the directory: stop, or go on without a spool.
    #[error("spool directory {} is in use by {holder}", directory.display())]
    Held {
        /// The directory.
        directory: PathBuf,
        /// Who has it, as far as that is known.
        holder: String,
    },
    /// There is no room: pause, and append again later. Nothing of what was asked to be appended is held.
    #[error("spool is full: {0}")]
    Full(Shortage),
    /// The disk fails: pause, and append again later. Nothing of what was asked to be appended is held.
    #[error("{doing} {}: {source}", path.display())]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A chunk contradicts itself: stop the partition. Nothing of what was asked to be appended is held.
    #[error(transparent)]
    Broken(#[from] Contradiction),
}

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// `SPOOL_MAX_BYTES`.
    #[error("it holds {held_len_bytes} of at most {max_len_bytes} bytes")]
    Limit {
        /// What all files of the directory hold.
        held_len_bytes: u64,
        /// What they may.
        max_len_bytes: u64,
    },
    /// `SPOOL_MIN_FREE_BYTES`.
    #[error("the disk has {free_len_bytes} bytes left, and {min_free_len_bytes} must stay free")]
    Floor {
        /// What is left.
        free_len_bytes: u64,
        /// What must stay free.
        min_free_len_bytes: u64,
    },
    /// The system says so.
    #[error("the disk takes no more bytes")]
    Disk,
}

/// Names what was being done to which file.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str, path: &std::path::Path) -> Result<T, SpoolError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str, path: &std::path::Path) -> Result<T, SpoolError> {
        self.map_err(|source| {
            if super::disk::is_full(&source) {
                return SpoolError::Full(Shortage::Disk);
            }
            SpoolError::Failed { doing, path: path.to_owned(), source }
        })
    }
}
