//! Reading a spool directory along, without its lock and without changing it.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::model::spool::SpooledBatch;
use crate::model::spool::walk::Depth;
use crate::model::spool::{Header, SegmentNumber};

use super::disk::{Disk, Entry, LocalDisk};
use super::error::{Doing, SpoolError};
use super::held::{PartitionRanges, ranges_of};
use super::layout::{Layout, Name};
use super::recover::{Missing, missing};
use super::scan::{Damage, FooterSeen, SegmentScan};

/// How often a file is read that is moved each time before it can be opened.
const READ_MAX_COUNT: usize = 3;

/// A view of a spool directory.
#[derive(Debug)]
pub struct Inspection<D: Disk = LocalDisk> {
    layout: Layout,
    disk: D,
}

/// Where a segment's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SegmentPlace {
    /// It is held.
    Held,
    /// PostgreSQL has it. It may be empty: then its time was over.
    Drained,
    /// It is damaged, or was cut off another one.
    Quarantined,
}

/// A file of a spool directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentFile {
    /// Where it is.
    pub place: SegmentPlace,
    /// Which segment.
    pub number: SegmentNumber,
    /// Its path.
    pub path: PathBuf,
    /// Its length when it was listed.
    pub len_bytes: u64,
}

/// What a segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSummary {
    /// Its first line, when that can be read.
    pub header: Option<Header>,
    /// The length of the file.
    pub len_bytes: u64,
    /// Whether it is full and ends as it should.
    pub is_sealed: bool,
    /// How many whole batches it has.
    pub batch_count: u64,
    /// How many records in them.
    pub record_count: u64,
    /// The ranges of the whole batches.
    pub ranges: Vec<PartitionRanges>,
    /// How many lines are damaged, or stand where they should not.
    pub damage_count: u64,
}

/// What kind of finding it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingKind {
    /// The last append to the newest segment is not whole: it is under way, or the next start cuts it off.
    Unfinished,
    /// Damage.
    Damage,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Of which kind.
    pub kind: FindingKind,
    /// In which file.
    pub path: PathBuf,
    /// In which line, and what.
    pub damage: Damage,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Damage { line_number, at, fault } = &self.damage;
        let what = match self.kind {
            FindingKind::Unfinished => "not finished: ",
            FindingKind::Damage => "",
        };
        write!(f, "{}: line {line_number} (byte {at}): {what}{fault}", self.path.display())
    }
}

impl<D: Disk> Inspection<D> {
    /// A view of `directory`.
    #[must_use]
    pub fn new(directory: &Path, disk: D) -> Self {
        Self { layout: Layout::new(directory), disk }
    }

    /// Whether the directory is one of a spool, or may be: any but one that can be read and has nothing of it.
    #[must_use]
    pub fn is_spool(&self) -> bool {
        let (root, instance) = (self.layout.root(), self.layout.instance());
        let is_ours =
            |entry: &Entry| Name::parse(&entry.name).is_some() || root.join(&entry.name) == instance;
        self.disk.list(root).map_or(true, |entries| entries.iter().any(is_ours))
    }

    /// Whether a process ever opened a spool in the directory: a file of one is there, or the folder that each start
    /// makes. `INSTANCE` and `LOCK` alone prove nothing, the directory of day files has them too.
    ///
    /// # Errors
    /// [`SpoolError::Failed`] when it can't be read.
    pub fn was_opened(&self) -> Result<bool, SpoolError> {
        let (drained, quarantine) = (self.layout.drained(), self.layout.quarantine());
        let has_files = |count: usize| count > 0;
        Ok(self.file_count(self.layout.root())?.is_some_and(has_files)
            || self.file_count(&drained)?.is_some()
            || self.file_count(&quarantine)?.is_some_and(has_files))
    }

    /// How many files of a spool are in `directory`; `None` when that is no directory.
    fn file_count(&self, directory: &Path) -> Result<Option<usize>, SpoolError> {
        match self.disk.list(directory) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            listed => {
                let entries = listed.doing("list", directory)?;
                Ok(Some(entries.iter().filter(|entry| Name::parse(&entry.name).is_some()).count()))
            }
        }
    }

    /// The files, by place, then by number.
    ///
    /// # Errors
    /// [`SpoolError::Failed`] when the directory can't be read.
    pub fn files(&self) -> Result<Vec<SegmentFile>, SpoolError> {
        let mut files = Vec::new();
        let places = [
            (SegmentPlace::Held, self.layout.root().to_owned()),
            (SegmentPlace::Drained, self.layout.drained()),
            (SegmentPlace::Quarantined, self.layout.quarantine()),
        ];
        for (place, directory) in places {
            for entry in self.disk.list(&directory).doing("list", &directory)? {
                if let Some(name) = Name::parse(&entry.name) {
                    let (number, path) = (name.segment(), directory.join(&entry.name));
                    files.push(SegmentFile { place, number, path, len_bytes: entry.len_bytes });
                }
            }
        }
        files.sort_by_key(|file| (file.place, file.number));
        Ok(files)
    }

    /// Reads `files`, in their order, each once and where it is by then: a process that drains moves segments to
    /// `drained/`, back, or to `quarantine/`, also while the directory is listed. One that is gone is left out. Returns
    /// the files as they were read, each with what `read` gave.
    ///
    /// # Errors
    /// What `read` says of a file that is there; [`SpoolError::Failed`] when the directory can't be read.
    pub fn read_each<T>(
        &self,
        files: Vec<SegmentFile>,
        mut read: impl FnMut(&SegmentFile) -> Result<T, SpoolError>,
    ) -> Result<Vec<(SegmentFile, T)>, SpoolError> {
        let (mut found, mut paths) = (Vec::with_capacity(files.len()), BTreeSet::new());
        for mut file in files {
            for _ in 0..READ_MAX_COUNT {
                if paths.contains(&file.path) {
                    break;
                }
                match read(&file) {
                    Err(SpoolError::Failed { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                    outcome => {
                        let value = outcome?;
                        paths.insert(file.path.clone());
                        found.push((file, value));
                        break;
                    }
                }
                let Some(moved) = self.moved(&file)? else { break };
                file = moved;
            }
        }
        Ok(found)
    }

    /// Where the segment is by now whose file is no longer where it was listed.
    fn moved(&self, file: &SegmentFile) -> Result<Option<SegmentFile>, SpoolError> {
        // Out of quarantine nothing is moved but by hand; and other files there have the number of a segment, too.
        if file.place == SegmentPlace::Quarantined {
            return Ok(None);
        }
        let quarantined = self.layout.segment_in_quarantine(file.number);
        let is_it = |other: &SegmentFile| {
            other.number == file.number
                && (other.place != SegmentPlace::Quarantined || other.path == quarantined)
        };
        Ok(self.files()?.into_iter().find(is_it))
    }

    /// What a file holds, by its checksums.
    ///
    /// # Errors
    /// [`SpoolError::Failed`] when it can't be read; also when it was moved or removed since it was listed.
    pub fn summary(&self, file: &SegmentFile) -> Result<SegmentSummary, SpoolError> {
        let scan = self.scan(file, Depth::Checksums, |_batch| ())?;
        let record_count = scan.whole_lines(0).map(|line| line.record_count).sum();
        Ok(SegmentSummary {
            header: scan.header,
            len_bytes: scan.len_bytes,
            is_sealed: scan.footer == FooterSeen::Right && scan.damage_count == 0,
            batch_count: u64::try_from(scan.whole_lines(0).count()).unwrap_or(u64::MAX),
            record_count,
            ranges: ranges_of(scan.whole_lines(0)),
            damage_count: scan.damage_count,
        })
    }

    /// Reads every line of a file as for draining it, and returns what is wrong: the first thousand findings.
    ///
    /// # Errors
    /// As for [`Self::summary`].
    pub fn verify(&self, file: &SegmentFile) -> Result<Vec<Finding>, SpoolError> {
        if file.place == SegmentPlace::Drained && file.len_bytes == 0 {
            return Ok(Vec::new());
        }
        let newest = self.files()?.into_iter().rev().find(|other| other.place == SegmentPlace::Held);
        let scan = self.scan(file, Depth::Records, |_batch| ())?;
        let is_newest = newest.is_some_and(|newest| newest.path == file.path);
        let is_cut_at_start = is_newest && (scan.has_torn_tail() || scan.footer == FooterSeen::Right);
        let kind = if is_cut_at_start { FindingKind::Unfinished } else { FindingKind::Damage };
        let finding = |damage| Finding { kind, path: file.path.clone(), damage };
        Ok(scan.damages.into_iter().map(finding).collect())
    }

    /// The segments that should be there: each header names the one before it.
    ///
    /// # Errors
    /// As for [`Self::summary`].
    pub fn missing(&self) -> Result<Vec<Missing>, SpoolError> {
        let files = self.files()?;
        let known = files.iter().map(|file| file.number).collect();
        let held = files.into_iter().filter(|file| file.place == SegmentPlace::Held).collect();
        let scans = self.read_each(held, |file| self.scan(file, Depth::Checksums, |_batch| ()))?;
        let scans: Vec<SegmentScan> = scans.into_iter().map(|(_file, scan)| scan).collect();
        Ok(missing(&scans, &known))
    }

    /// Hands over the whole batches of a file that stand in their places, in order, one in memory at a time;
    /// [`crate::model::spool::encode_shown_record`] makes lines for people of their records.
    ///
    /// # Errors
    /// As for [`Self::summary`].
    pub fn read(&self, file: &SegmentFile, each: impl FnMut(SpooledBatch)) -> Result<(), SpoolError> {
        self.scan(file, Depth::Records, each).map(|_scan| ())
    }

    fn scan(
        &self,
        file: &SegmentFile,
        depth: Depth,
        each: impl FnMut(SpooledBatch),
    ) -> Result<SegmentScan, SpoolError> {
        let open = self.disk.open(&file.path).doing("open", &file.path)?;
        SegmentScan::read_each(file.number, open, depth, each).doing("read", &file.path)
    }
}
