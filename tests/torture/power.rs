//! Power cuts: a process that is killed leaves what the kernel has of its files; a machine that loses its power leaves what
//! was made durable. A library in the daemons notes what that is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

/// Builds the library; returns where it is.
pub(crate) fn build(dir: &Path) -> anyhow::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture/synced.c");
    let library = dir.join("synced.so");
    let mut command = Command::new("gcc");
    let status =
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status()?;
    if !status.success() {
        bail!("gcc could not build {}", library.display());
    }
    Ok(library)
}

/// What the daemon of `home` has made durable is noted here.
pub(crate) fn note_of(home: &Path) -> PathBuf {
    home.join("synced")
}

/// Cuts the files of a daemon that is down to what it had made durable; returns how many bytes went.
pub(crate) fn cut(home: &Path) -> anyhow::Result<u64> {
    let notes = std::fs::read_to_string(note_of(home)).unwrap_or_default();
    let durable: HashMap<&str, u64> = notes
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(len, path)| Some((path, len.parse().ok()?)))
        .collect();
    let mut gone = 0;
    for folder in ["spool", "purview", "trust"] {
        let Ok(entries) = std::fs::read_dir(home.join(folder)) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "jsonl") {
                continue;
            }
            let len = std::fs::metadata(&path)?.len();
            let kept = path.to_str().and_then(|path| durable.get(path)).copied().unwrap_or(0);
            if kept < len {
                std::fs::OpenOptions::new().write(true).open(&path)?.set_len(kept)?;
                gone += len - kept;
            }
        }
    }
    Ok(gone)
}
