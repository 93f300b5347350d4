//! The files of a daemon's spool, while it is down.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::random::Random;
use crate::side::SPOOLED_TOPIC;

/// The segments that hold batches, oldest first.
fn segments(spool: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(spool) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    found.sort();
    found
}

/// How long the segments are in all.
pub(crate) fn held_len_bytes(spool: &Path) -> u64 {
    segments(spool).iter().filter_map(|path| fs::metadata(path).ok()).map(|metadata| metadata.len()).sum()
}

/// How many segments are looked at for one that holds no record's only copy.
const LOOK_COUNT: usize = 16;

/// Changes a bit in a segment, or adds half a line to the last one; says what was done. A bit of a record whose only copy
/// is there would be a loss that nobody can mend, so what holds some of [`SPOOLED_TOPIC`] is spared.
pub(crate) fn damage(spool: &Path, is_torn_tail: bool, random: &mut Random) -> Option<String> {
    let segments = segments(spool);
    if is_torn_tail {
        let path = segments.last()?;
        let mut file = fs::OpenOptions::new().append(true).open(path).ok()?;
        file.write_all(b"{\"kind\":\"record\",\"half\":").ok()?;
        return Some(format!("half a line at the end of {}", path.display()));
    }
    let is_spared =
        |bytes: &[u8]| bytes.windows(SPOOLED_TOPIC.len()).any(|window| window == SPOOLED_TOPIC.as_bytes());
    let (path, mut bytes) = (0..LOOK_COUNT).find_map(|_| {
        let path = segments.get(random.index(segments.len()))?;
        let bytes = fs::read(path).ok()?;
        (!bytes.is_empty() && !is_spared(&bytes)).then_some((path, bytes))
    })?;
    let at = random.index(bytes.len());
    *bytes.get_mut(at)? ^= 1 << random.index(8);
    // In place: the file stays the daemon's.
    fs::write(path, &bytes).ok()?;
    Some(format!("a bit of byte {at} of {} in {}", bytes.len(), path.display()))
}
