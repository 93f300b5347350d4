//! Start-up: from whatever is in the directory to a spool that works, and a report.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::model::spool::walk::Depth;
use crate::model::spool::{BatchNumber, Closing, Footer, Header, SegmentNumber, encode_footer};

use super::disk::{Disk, DiskFile, Entry, LockFault};
use super::error::{Doing, SpoolError};
use super::held::{PartitionRanges, Segment, Tail, ranges_of};
use super::layout::{Layout, Name, UNFINISHED_SUFFIX};
use super::scan::{Damage, READ_LEN_BYTES, SegmentScan, UnknownBatches};
use super::verdict::{Successor, Verdict, judge};
use super::{DrainedSegment, Spool, SpoolLimits};

/// What start-up found, and what became of it. Empty but for `held` and `tails` when all is well.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// The ranges that are held.
    pub held: Vec<PartitionRanges>,
    /// Where the partitions go on that are held.
    pub tails: Vec<Tail>,
    /// What was cut off segments now.
    pub cuts: Vec<Cut>,
    /// What is in quarantine, of this start and of earlier ones.
    pub quarantined: Vec<Quarantined>,
    /// Segments that should be there.
    pub missing: Vec<Missing>,
    /// Names that are none of ours; those files are left alone.
    pub strangers: Vec<String>,
}

/// Bytes at the end of a segment that were cut off.
///
/// Behind an end that the next segment names, nothing was acknowledged. Without a next segment it may be an
/// append that was never finished, or the last one that was acknowledged and is damaged: its ranges, as far as
/// they can be read, are not held, and lie behind the tails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Which segment.
    pub segment: SegmentNumber,
    /// Where it ends now, in bytes from its start.
    pub at: u64,
    /// How many bytes came behind.
    pub len_bytes: u64,
    /// The file that they were copied to; `None` when there is no room, and they stay where they are.
    pub file: Option<PathBuf>,
    /// The first damage in them.
    pub damage: Option<Damage>,
    /// The ranges of batches in them that are whole.
    pub whole: Vec<PartitionRanges>,
    /// The ranges of batches in them that are not.
    pub broken: Vec<PartitionRanges>,
}

/// When a file came into quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuarantinedWhen {
    /// Just now.
    Now,
    /// At an earlier start, or while an earlier process drained.
    Earlier,
    /// At any time before: it is no damage, but a batch that was set aside.
    SetAside,
}

/// A file in quarantine. Nothing of it is held: what PostgreSQL lacks of its ranges has to be read again from
/// Kafka, or out of the file by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The file.
    pub file: PathBuf,
    /// The segment that it is, or was cut off.
    pub segment: SegmentNumber,
    /// Since when.
    pub when: QuarantinedWhen,
    /// The first damage in it; `None` when it is whole and contradicts its successor.
    pub damage: Option<Damage>,
    /// The ranges of batches that are whole.
    pub whole: Vec<PartitionRanges>,
    /// The ranges of batches that are damaged.
    pub broken: Vec<PartitionRanges>,
    /// Batches whose ranges are not known.
    pub unknown: UnknownBatches,
}

/// A segment that is nowhere, although its successor names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The segment.
    pub segment: SegmentNumber,
    /// The segment that names it.
    pub named_by: SegmentNumber,
    /// How many batches are missing with it and with those before it.
    pub batches: UnknownBatches,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "segment {} is missing, which segment {} names as the one before it",
            self.segment, self.named_by
        )
    }
}

/// Opens a directory; see [`Spool::open`].
pub(super) fn open<D: Disk>(
    layout: Layout,
    limits: SpoolLimits,
    instance: Uuid,
    disk: D,
) -> Result<(Spool<D>, Recovery), SpoolError> {
    for path in [layout.root().to_owned(), layout.quarantine(), layout.drained()] {
        disk.create_dir(&path).doing("create directory", &path)?;
    }
    let path = layout.lock();
    let lock = match disk.lock(&path, &format!("process {}", std::process::id())) {
        Ok(lock) => lock,
        Err(LockFault::Held(owner)) => {
            let holder = if owner.trim().is_empty() { "another process" } else { owner.trim() };
            return Err(SpoolError::Held { directory: layout.root().to_owned(), holder: holder.to_owned() });
        }
        Err(LockFault::Io(error)) => return Err(error).doing("lock", &path),
    };
    let parent = layout.root().parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    disk.sync_dir(parent).doing("sync directory", parent)?;
    let mut spool = Spool {
        layout,
        disk,
        limits,
        instance,
        _lock: lock,
        segments: VecDeque::new(),
        active: None,
        drained: VecDeque::new(),
        quarantined_file_count: 0,
        quarantined_len_bytes: 0,
        positions: BTreeMap::new(),
        next_segment: SegmentNumber(1),
        next_batch: BatchNumber(1),
        previous: None,
        lines: Vec::new(),
    };
    spool.sync_names()?;
    let recovery = spool.recover()?;
    Ok((spool, recovery))
}

impl<D: Disk> Spool<D> {
    fn recover(&mut self) -> Result<Recovery, SpoolError> {
        let mut recovery = Recovery::default();
        let root = self.layout.root().to_owned();
        let segments = self.names(&root, &mut recovery)?;
        let drained = self.names(&self.layout.drained(), &mut recovery)?;
        let in_quarantine = self.names(&self.layout.quarantine(), &mut recovery)?;
        let known: BTreeSet<SegmentNumber> = [&segments, &drained, &in_quarantine]
            .into_iter()
            .flatten()
            .map(|(name, _)| name.segment())
            .collect();
        self.next_segment = known.last().map_or(SegmentNumber(1), |number| number.next());
        for (name, entry) in drained {
            if let Name::Drained(number, at_ms) = name {
                let len_bytes = entry.len_bytes;
                let parts = (len_bytes == 0).then(BTreeMap::new);
                self.drained.push_back(DrainedSegment { number, at_ms, len_bytes, parts, end: None });
            }
        }
        for (name, entry) in in_quarantine {
            let quarantined = self.look_into_quarantine(name, &entry)?;
            recovery.quarantined.push(quarantined);
        }
        let mut scans = Vec::with_capacity(segments.len());
        for (name, _) in segments {
            let path = self.layout.segment(name.segment());
            scans.push(self.scan(name.segment(), &path)?);
        }
        recovery.missing = missing(&scans, &known);
        self.settle(scans, &mut recovery)?;
        recovery.held = self.held();
        recovery.tails = self.tails();
        Ok(recovery)
    }

    /// The files of ours in a directory, by number. What was not finished is removed, strangers are reported.
    fn names(&self, path: &Path, recovery: &mut Recovery) -> Result<Vec<(Name, Entry)>, SpoolError> {
        let mut names = Vec::new();
        for entry in self.disk.list(path).doing("list", path)? {
            if entry.name.ends_with(UNFINISHED_SUFFIX) {
                let unfinished = path.join(&entry.name);
                self.disk.remove(&unfinished).doing("remove", &unfinished)?;
            } else if let Some(name) = Name::parse(&entry.name) {
                names.push((name, entry));
            } else if !Layout::is_lock(&entry.name) {
                recovery.strangers.push(entry.name);
            }
        }
        names.sort_by_key(|(name, _)| name.segment());
        Ok(names)
    }

    pub(super) fn scan(&self, number: SegmentNumber, path: &Path) -> Result<SegmentScan, SpoolError> {
        let file = self.disk.open(path).doing("open", path)?;
        SegmentScan::read(number, file, Depth::Checksums).doing("read", path)
    }

    fn look_into_quarantine(&mut self, name: Name, entry: &Entry) -> Result<Quarantined, SpoolError> {
        let file = self.layout.quarantine().join(&entry.name);
        let scan = self.scan(name.segment(), &file)?;
        self.quarantined_file_count += 1;
        self.quarantined_len_bytes += entry.len_bytes;
        let when = match name {
            Name::Batch(_) => QuarantinedWhen::SetAside,
            Name::Segment(_) | Name::Drained(..) | Name::Tail(_) => QuarantinedWhen::Earlier,
        };
        Ok(quarantined(file, &scan, when, scan.unknown(None, None)))
    }

    /// Finds the verdict on each segment, and carries it out.
    fn settle(&mut self, scans: Vec<SegmentScan>, recovery: &mut Recovery) -> Result<(), SpoolError> {
        let headers: Vec<_> = scans.iter().map(|scan| scan.header).collect();
        let mut before = None;
        for (index, scan) in scans.into_iter().enumerate() {
            let behind = headers.get(index + 1..).unwrap_or_default();
            let successor = successor(behind);
            let after = scan.found_lines().map(|line| line.number.next()).max();
            let until = behind.first().copied().flatten().map(|header| header.next_batch);
            match judge(&scan, successor) {
                Verdict::Keep => self.keep(&scan, scan.end(), scan.len_bytes),
                Verdict::Unused => {
                    let path = self.layout.segment(scan.number);
                    self.disk.remove(&path).doing("remove", &path)?;
                }
                Verdict::Seal(end) => self.cut_and_seal(&scan, end, recovery)?,
                Verdict::Quarantine(_) => {
                    let path = self.layout.segment(scan.number);
                    let file = self.move_to_quarantine(scan.number, &path, scan.len_bytes)?;
                    let unknown = scan.unknown(before, until);
                    recovery.quarantined.push(quarantined(file, &scan, QuarantinedWhen::Now, unknown));
                }
            }
            before = after.or(before);
        }
        self.previous = self.segments.back().map(|segment| segment.end);
        Ok(())
    }

    fn keep(&mut self, scan: &SegmentScan, end: Closing, file_len_bytes: u64) {
        let mut kept = scan.batches.iter().filter(|batch| batch.closing.len_bytes <= end.len_bytes);
        self.next_batch = kept.next_back().map_or(self.next_batch, |batch| batch.line.number.next());
        self.segments.push_back(Segment::of(scan, end, file_len_bytes));
    }

    fn cut_and_seal(
        &mut self,
        scan: &SegmentScan,
        end: Closing,
        recovery: &mut Recovery,
    ) -> Result<(), SpoolError> {
        let path = self.layout.segment(scan.number);
        self.keep(scan, end, scan.len_bytes);
        let tail_len_bytes = scan.len_bytes - end.len_bytes;
        let tail = self.layout.tail(scan.number, end.len_bytes);
        let saved = match self.save_tail(&path, end.len_bytes, tail_len_bytes, &tail) {
            Err(SpoolError::Full(_)) => None,
            saved => Some(saved?),
        };
        if tail_len_bytes > 0 {
            recovery.cuts.push(Cut {
                segment: scan.number,
                at: end.len_bytes,
                len_bytes: tail_len_bytes,
                file: saved.is_some().then_some(tail),
                damage: scan.damages.first().cloned(),
                whole: ranges_of(scan.whole_lines(end.len_bytes)),
                broken: ranges_of(scan.broken_lines()),
            });
        }
        if saved.is_some() {
            match self.write_sealed(&path, end) {
                Ok(file_len_bytes) => {
                    if let Some(segment) = self.segments.back_mut() {
                        segment.file_len_bytes = file_len_bytes;
                    }
                    return Ok(());
                }
                Err(SpoolError::Full(_)) => {}
                Err(error) => return Err(error),
            }
        }
        // No room: it stays as it is, and the next header says where it ended.
        let mut file = self.disk.open(&path).doing("open", &path)?;
        file.sync().doing("sync", &path)
    }

    fn save_tail(&mut self, from: &Path, at: u64, len_bytes: u64, to: &Path) -> Result<(), SpoolError> {
        if len_bytes == 0 {
            return Ok(());
        }
        self.write_whole((from, at, len_bytes), to, &[])?;
        self.quarantined_file_count += 1;
        self.quarantined_len_bytes += len_bytes;
        Ok(())
    }

    /// Puts the segment up to `end`, with a footer, in its own place. Returns its length.
    ///
    /// Were other bytes read now than for the verdict, the footer would be right about those of the verdict, and
    /// the damage would show when they are read.
    fn write_sealed(&self, path: &Path, end: Closing) -> Result<u64, SpoolError> {
        let counts = self.segments.back().map(|segment| (segment.batch_count, segment.record_count));
        let (batch_count, record_count) = counts.unwrap_or_default();
        let mut footer = Vec::new();
        encode_footer(&mut footer, &Footer { closing: end, batch_count, record_count });
        let len_bytes = end.len_bytes + u64::try_from(footer.len()).unwrap_or(u64::MAX);
        self.write_whole((path, 0, end.len_bytes), path, &footer)?;
        Ok(len_bytes)
    }

    /// Writes `len_bytes` of a file, beginning at `at`, and `last` to a new file, and gives it the name `to`.
    fn write_whole(
        &self,
        (from, at, len_bytes): (&Path, u64, u64),
        to: &Path,
        last: &[u8],
    ) -> Result<(), SpoolError> {
        let mut source = self.disk.open(from).doing("open", from)?;
        source.go_to(at).doing("read", from)?;
        self.write_with(to, |target| {
            copy(&mut source, target, len_bytes)?;
            target.append(last)
        })
    }

    /// Writes a new file with the name `to`.
    pub(super) fn write_new(&self, to: &Path, bytes: &[u8]) -> Result<(), SpoolError> {
        self.write_with(to, |target| target.append(bytes))
    }

    /// Gives the name `to` to a file only when it is whole and durable.
    fn write_with(
        &self,
        to: &Path,
        write: impl FnOnce(&mut D::File) -> std::io::Result<()>,
    ) -> Result<(), SpoolError> {
        let unfinished = Layout::unfinished(to);
        let mut target = self.disk.create(&unfinished).doing("create", &unfinished)?;
        let written = write(&mut target).and_then(|()| target.sync());
        if let Err(error) = written.and_then(|()| self.disk.rename(&unfinished, to)) {
            // It takes room; if it stays, the next start removes it.
            if let Err(error) = self.disk.remove(&unfinished) {
                tracing::warn!(path = %unfinished.display(), %error, "an unfinished spool file stays");
            }
            return Err(error).doing("write", to);
        }
        self.sync_names()
    }

    /// Moves a segment to quarantine, and returns where it is.
    pub(super) fn move_to_quarantine(
        &mut self,
        number: SegmentNumber,
        from: &Path,
        len_bytes: u64,
    ) -> Result<PathBuf, SpoolError> {
        let to = self.layout.segment_in_quarantine(number);
        self.disk.rename(from, &to).doing("quarantine", from)?;
        self.quarantined_file_count += 1;
        self.quarantined_len_bytes += len_bytes;
        self.sync_names()?;
        Ok(to)
    }
}

fn copy(source: &mut impl DiskFile, target: &mut impl DiskFile, len_bytes: u64) -> std::io::Result<()> {
    let mut block = vec![0; READ_LEN_BYTES];
    let mut left = len_bytes;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        let room = block.get_mut(..wanted).unwrap_or_default();
        let read = source.read(room)?;
        let bytes = room.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        target.append(bytes)?;
        left -= u64::try_from(read).unwrap_or(u64::MAX);
    }
    Ok(())
}

/// What the headers behind a segment say of it. One that can't be read may be of a segment that was never begun:
/// then the next one counts.
fn successor(behind: &[Option<Header>]) -> Successor {
    match behind.iter().flatten().next().map(|header| header.previous) {
        None if behind.is_empty() => Successor::None,
        None | Some(None) => Successor::Silent,
        Some(Some(closing)) => Successor::Names(closing),
    }
}

/// The segments that headers name and that are nowhere.
pub(super) fn missing(scans: &[SegmentScan], known: &BTreeSet<SegmentNumber>) -> Vec<Missing> {
    let mut found = Vec::new();
    let mut before: Option<BatchNumber> = None;
    for scan in scans {
        let named = scan.header.and_then(|header| Some((header.next_batch, header.previous?.segment)));
        if let Some((next_batch, segment)) = named.filter(|(_, segment)| !known.contains(segment)) {
            let batches = match before {
                Some(before) => UnknownBatches::Exactly(next_batch.0.saturating_sub(before.0)),
                None => UnknownBatches::AtLeast(1),
            };
            found.push(Missing { segment, named_by: scan.number, batches });
        }
        before = scan.found_lines().map(|line| line.number.next()).max().or(before);
    }
    found
}

/// What is to be said of a file in quarantine.
pub(super) fn quarantined(
    file: PathBuf,
    scan: &SegmentScan,
    when: QuarantinedWhen,
    unknown: UnknownBatches,
) -> Quarantined {
    Quarantined {
        file,
        segment: scan.number,
        when,
        damage: scan.damages.first().cloned(),
        whole: ranges_of(scan.whole_lines(0)),
        broken: ranges_of(scan.broken_lines()),
        unknown,
    }
}
