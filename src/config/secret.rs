//! Values that are never shown, and files that hold them.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What stands in the place of a secret.
pub(super) const HIDDEN: &str = "***";
/// A file of secrets is not longer than this: another one was meant.
const FILE_MAX_LEN_BYTES: u64 = 64 << 10;

/// A value that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `value`.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value itself, for the one place that needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// A file that holds a secret, and may hold another one later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    variable: &'static str,
    path: PathBuf,
}

/// A file of a secret can't be used. Names the variable and the path, never what it holds.
#[derive(Debug, thiserror::Error)]
#[error("{variable}={path}: {reason}", path = .path.display())]
pub struct SecretFileError {
    variable: &'static str,
    path: PathBuf,
    pub(super) reason: String,
}

impl SecretFile {
    pub(super) const fn new(variable: &'static str, path: PathBuf) -> Self {
        Self { variable, path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file holds now, without the line end behind it.
    ///
    /// # Errors
    /// When it can't be read, is empty, longer than 64 KiB or no text.
    pub fn read(&self) -> Result<Secret, SecretFileError> {
        let mut bytes = Vec::new();
        File::open(&self.path)
            .and_then(|file| file.take(FILE_MAX_LEN_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| self.wrong(format!("can't be read: {error}")))?;
        if u64::try_from(bytes.len()).is_ok_and(|len_bytes| len_bytes > FILE_MAX_LEN_BYTES) {
            return Err(self.wrong("holds more than 64 KiB; name a file with nothing but the secret"));
        }
        let text =
            String::from_utf8(bytes).map_err(|_not_text| self.wrong("holds bytes that are no text"))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.trim().is_empty() {
            return Err(self.wrong("is empty; write the secret into it"));
        }
        if text.contains('\0') {
            return Err(self.wrong("holds a NUL byte"));
        }
        Ok(Secret::new(text.to_owned()))
    }

    /// What is wrong with what the file holds.
    #[must_use]
    pub fn wrong(&self, reason: impl Into<String>) -> SecretFileError {
        SecretFileError { variable: self.variable, path: self.path.clone(), reason: reason.into() }
    }
}
