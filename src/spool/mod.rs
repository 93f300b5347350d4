//! The spool: records that PostgreSQL can't take now wait on local disk.
//!
//! # What it promises
//!
//! - What [`Spool::append`] has answered `Ok` for is on the disk, and comes back byte for byte, or [`Recovery`]
//!   says that it does not. What it has answered an error for is not held.
//! - Nothing comes back that was not appended.
//! - Start-up ends: whatever is in the directory, [`Spool::open`] reads it once and either works with what is
//!   intact or names the file and the error of the system. Nothing has to be removed by hand.
//! - A full or failing disk is an answer, never a loss: the caller pauses and appends again.
//!
//! Never here: Kafka, PostgreSQL, threads, a clock (times are passed in), decisions about positions. The
//! position row in PostgreSQL is the only authority; the spool is a queue of batches that may be behind it.
//!
//! # The directory
//!
//! ```text
//! INSTANCE                                        the id of the instance, the same after every restart
//! LOCK                                            held as long as the process lives; names the process
//! segment-0000000000000007.jsonl                  what is held; the highest number is written to
//! drained/segment-0000000000000006-drained-1700000000000.jsonl   PostgreSQL has it; kept for SPOOL_KEEP
//! quarantine/segment-0000000000000003.jsonl       a damaged segment
//! quarantine/segment-0000000000000005-tail-4711.jsonl            what was cut off a segment at byte 4711
//! quarantine/segment-0000000000000004-batch-38.jsonl             a batch that was set aside
//! *.new                                           being written; removed at the next start
//! ```
//!
//! Directories have mode 0700 and files 0600. The lines of a segment are told in [`crate::model::spool`].
//! Segments have ascending numbers, and each header names the segment before it; a number whose creation
//! failed is left out. `LOCK` is a lock of the kind of `flock(2)`: it ends with the process, however that
//! ends, and the file stays.
//!
//! # Writing
//!
//! 1. All batches of an append are put together, then room is made: drained segments go, oldest first, while
//!    `SPOOL_MAX_BYTES` or `SPOOL_MIN_FREE_BYTES` asks for it, up to one that PostgreSQL lacks something of again. Not
//!    enough: [`SpoolError::Full`].
//! 2. A segment of 64 MiB gets its footer and is synced. A new one is created with its header, synced, and its
//!    name is made durable by a sync of the directories, before anything is appended.
//! 3. One write, one `fdatasync`. Then, and only then, the batches are held.
//!
//! When anything fails in 2 or 3, the segment is given up: it ends at its last durable batch, is cut there if
//! the disk lets us, and is never written or synced again, as Linux says that all is well the second time.
//! The next append begins a new segment, whose header says where the one before it ended. So what is behind
//! that end, whole or not, is known to be nothing that was promised.
//!
//! # Start-up
//!
//! Each segment is read once. What becomes of it depends on it and on its successor, which knows where it ended:
//!
//! | found | verdict |
//! | --- | --- |
//! | a footer, no damage, and the end that the successor names | kept |
//! | no footer, no damage, no successor | sealed: the process ended while it was written |
//! | the end that the successor names is reached without damage | cut there and sealed |
//! | no successor that says where it ended, damage, and a footer that is right about all batches | cut behind the last batch and sealed |
//! | no successor, no footer, and damage that an append under way can leave | cut behind the last batch before it and sealed |
//! | its successor names an older segment, or it holds no batch | nothing was ever acknowledged in it: removed, or quarantined when it holds more than a header |
//! | anything else | quarantined |
//!
//! Damage that an append under way can leave: all batches behind it belong to the append that was due there.
//! The last append that *was* acknowledged looks the same when it is damaged later, so the ranges that can
//! still be read in what was cut are reported too, and the tail stands before them: they are read again.
//!
//! To cut is to copy the bytes to `quarantine/` first. To seal is to write what is intact, and a footer, to a
//! new file, sync it and let it take the place: what an earlier process could not sync may be in memory only,
//! and a sync of the same file would not tell. When there is no room for that, the file stays as it is, is
//! synced for what that is worth, and the next header says where it ended.
//!
//! The intact batches of a quarantined segment are not held: their ranges are reported and read again from
//! Kafka. Files in `quarantine/` are reported at every start for as long as they are there.
//!
//! One loss can't be seen: bytes that were synced and vanish from the end of the newest segment, exactly at
//! the end of a batch, or the whole newest segment. Then the tail stands earlier, and those records are read
//! again from Kafka.
//!
//! # Draining
//!
//! [`Spool::next`] gives batches oldest first, one in memory at a time, and leaves out those that lie before
//! the position that [`Spool::mark_drained`] was told. A segment moves to `drained/` when all of its batches
//! lie before the positions, and all older segments have moved: so what is in the directory has no holes that
//! were made on purpose. A batch that PostgreSQL must not take is copied to `quarantine/` by
//! [`Spool::set_aside`] before it is marked. How far a segment is drained is not written down: after a restart its batches come
//! again, and PostgreSQL's position says which of them to drop. The newest drained segment is emptied instead
//! of removed when its time is over: its name proves that its successor's predecessor is not missing. When a failover
//! has taken PostgreSQL's position back, [`Spool::restore`] holds drained segments again; one that is damaged goes to
//! quarantine then, and takes no other with it.
//!
//! # Reading along
//!
//! [`Inspection`] reads a directory without the lock, also while it is written to. What it shows are whole
//! batches; the last append may be on its way to the disk at that moment. A segment that is moved meanwhile is read
//! where it is then.

pub mod disk;
mod drain;
mod error;
mod held;
mod inspect;
mod layout;
mod recover;
mod restore;
mod scan;
mod verdict;
mod write;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use crate::model::position::{Offset, StreamPartition};
use crate::model::spool::{BatchNumber, Closing, SegmentNumber, SpoolStats};

use self::disk::{Disk, LocalDisk};
use self::error::Doing;
use self::held::{Segment, SegmentPart, add_range};
use self::layout::Layout;
use self::write::Active;

pub use drain::{Drain, Next};
pub use error::{Shortage, SpoolError};
pub use held::{PartitionRanges, Tail, joined};
pub use inspect::{Finding, FindingKind, Inspection, SegmentFile, SegmentPlace, SegmentSummary};
pub use recover::{Cut, Missing, Quarantined, QuarantinedWhen, Recovery};
pub use scan::{Damage, UnknownBatches};

/// The length at which a segment is closed, unless it is set otherwise.
pub const SEGMENT_LEN_BYTES: u64 = 64 << 20;

/// A drain of a spool on the real disk.
pub type LocalDrain = Drain<<LocalDisk as Disk>::File>;

/// The id of the instance whose spool is in `directory`: written there once, and the same after every restart.
///
/// # Errors
/// What the system says.
pub fn instance_of(directory: &Path) -> std::io::Result<Uuid> {
    let disk = LocalDisk;
    disk.create_dir(directory)?;
    let path = Layout::new(directory).instance();
    let known = match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().ok(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(instance) = known {
        return Ok(instance);
    }
    // New, or never finished. Should another process do the same now, only one of them gets the lock.
    let instance = Uuid::new_v4();
    let unfinished = path.with_extension("new");
    let mut file = std::fs::File::create(&unfinished)?;
    std::io::Write::write_all(&mut file, format!("{instance}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, &path)?;
    disk.sync_dir(directory)?;
    Ok(instance)
}

/// How much the spool may take, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolLimits {
    /// A segment is closed by the first append that finds it this long.
    pub segment_len_bytes: u64,
    /// The most that all files together hold (`SPOOL_MAX_BYTES`).
    pub max_len_bytes: u64,
    /// What an append leaves free on the disk (`SPOOL_MIN_FREE_BYTES`).
    pub min_free_len_bytes: u64,
    /// How long drained segments are kept (`SPOOL_KEEP`).
    pub keep: Duration,
}

/// A segment that was drained.
#[derive(Debug, Clone)]
struct DrainedSegment {
    number: SegmentNumber,
    at_ms: i64,
    len_bytes: u64,
    /// What can be held again of it: nothing of one that is damaged, or older than such a one. `None`: it was drained by
    /// an earlier process, and not looked into yet.
    parts: Option<BTreeMap<StreamPartition, SegmentPart>>,
    /// Where its last durable batch ends, if that is known: behind it an append may stand that was never finished.
    end: Option<Closing>,
}

/// An open spool directory. Its lock is held until this is dropped.
#[derive(Debug)]
pub struct Spool<D: Disk = LocalDisk> {
    layout: Layout,
    disk: D,
    limits: SpoolLimits,
    instance: Uuid,
    _lock: D::Lock,
    /// What is held, oldest first. The active segment is the last one.
    segments: VecDeque<Segment>,
    active: Option<Active<D::File>>,
    /// Oldest first.
    drained: VecDeque<DrainedSegment>,
    quarantined_file_count: u64,
    quarantined_len_bytes: u64,
    /// Where PostgreSQL is, as far as the caller told.
    positions: BTreeMap<StreamPartition, Offset>,
    next_segment: SegmentNumber,
    next_batch: BatchNumber,
    /// The end of the segment that the next header will name.
    previous: Option<Closing>,
    /// The lines of an append; kept for its room.
    lines: Vec<u8>,
}

impl<D: Disk> Spool<D> {
    /// Opens a directory, making it if there is none: takes its lock and recovers what it holds.
    ///
    /// # Errors
    /// [`SpoolError::Held`] while another process has it, [`SpoolError::Failed`] or [`SpoolError::Full`] when the
    /// disk can't be read or what has to be moved can't be moved. Nothing is lost then, and it may be opened again.
    pub fn open(
        directory: &Path,
        limits: SpoolLimits,
        instance: Uuid,
        disk: D,
    ) -> Result<(Self, Recovery), SpoolError> {
        recover::open(Layout::new(directory), limits, instance, disk)
    }

    /// The ranges that are held and that PostgreSQL may lack, by partition: what goes to `spool_ranges`.
    #[must_use]
    pub fn held(&self) -> Vec<PartitionRanges> {
        let mut by_key = BTreeMap::new();
        for (key, part) in self.segments.iter().flat_map(|segment| &segment.parts) {
            if part.is_drained(self.positions.get(key)) {
                continue;
            }
            for range in &part.ranges {
                add_range(&mut by_key, *key, &part.topic, *range);
            }
        }
        by_key.into_values().collect()
    }

    /// The ranges that are drained and kept, by partition: what [`Spool::restore`] can hold again. In drained segments, as
    /// far as they were [looked into](Spool::look_into_drained), and in segments that stay for another partition.
    #[must_use]
    pub fn drained(&self) -> Vec<PartitionRanges> {
        let mut by_key = BTreeMap::new();
        let moved = self.drained.iter().filter_map(|segment| segment.parts.as_ref()).flatten();
        let staying = self.segments.iter().flat_map(|segment| &segment.parts);
        let staying = staying.filter(|(key, part)| part.is_drained(self.positions.get(key)));
        for (key, part) in moved.chain(staying) {
            part.ranges.iter().for_each(|range| add_range(&mut by_key, *key, &part.topic, *range));
        }
        by_key.into_values().collect()
    }

    /// Where each partition goes on that is held: behind its newest batch. A partition that is drained has none:
    /// there PostgreSQL knows.
    #[must_use]
    pub fn tails(&self) -> Vec<Tail> {
        let mut by_key = BTreeMap::new();
        let parts = self.segments.iter().flat_map(|segment| &segment.parts);
        for (key, part) in parts.filter(|(key, part)| !part.is_drained(self.positions.get(key))) {
            let topic = std::sync::Arc::clone(&part.topic);
            by_key.insert(*key, Tail { key: *key, topic, position: part.newest_end });
        }
        by_key.into_values().collect()
    }

    /// Numbers of what is there.
    #[must_use]
    pub fn stats(&self) -> SpoolStats {
        let mut stats = SpoolStats {
            total_len_bytes: self.total_len_bytes(),
            room_len_bytes: self.room_len_bytes(),
            quarantined_file_count: self.quarantined_file_count,
            ..SpoolStats::default()
        };
        for segment in self.segments.iter().filter(|segment| !segment.is_drained(&self.positions)) {
            stats.segment_count += 1;
            stats.held_len_bytes += segment.end.len_bytes;
            let parts = segment.parts.iter();
            let left = parts.filter(|(key, part)| !part.is_drained(self.positions.get(key)));
            stats.record_count += left.map(|(_, part)| part.record_count).sum::<u64>();
            stats.oldest_created_at_ms.get_or_insert(segment.created_at_ms);
        }
        stats
    }

    /// The length of all files.
    fn total_len_bytes(&self) -> u64 {
        let held: u64 = self.segments.iter().map(|segment| segment.file_len_bytes).sum();
        held + self.drained_len_bytes() + self.quarantined_len_bytes
    }

    /// Makes all names durable. The root comes last: a name that was moved out of it is durable elsewhere first,
    /// also when an earlier sync of that directory failed.
    fn sync_names(&self) -> Result<(), SpoolError> {
        for path in [self.layout.drained(), self.layout.quarantine(), self.layout.root().to_owned()] {
            self.disk.sync_dir(&path).doing("sync directory", &path)?;
        }
        Ok(())
    }

    fn drained_len_bytes(&self) -> u64 {
        self.drained.iter().map(|segment| segment.len_bytes).sum()
    }
}

#[cfg(test)]
mod tests;
