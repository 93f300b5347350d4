//! A machine's disk, which dies with the process that uses it, and notes what the spool acknowledges.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use audit_consumer::model::spool::{BatchLine, Line, parse_line};
use audit_consumer::spool::disk::{Disk, DiskFile, Entry, LockFault};

use crate::disk::{SimDisk, SimFile, SimLock};
use crate::plan::Mutant;
use crate::world::{Process, World, lock};

#[derive(Debug, Clone)]
pub(crate) struct MachineDisk {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
    pub(crate) disk: SimDisk,
}

#[derive(Debug)]
pub(crate) struct MachineFile {
    disk: MachineDisk,
    file: SimFile,
    /// What was appended since the last sync.
    unsynced: Vec<u8>,
}

impl MachineDisk {
    /// Nothing is done any more by what is left of a dead process.
    fn check(&self) -> io::Result<()> {
        if self.process.is_alive.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(io::Error::other("the process is dead"))
        }
    }

    fn file(&self, file: SimFile) -> MachineFile {
        MachineFile { disk: self.clone(), file, unsynced: Vec::new() }
    }

    /// Notes the failure of a call.
    fn seen<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &outcome
            && error.raw_os_error().is_some()
        {
            // A full disk loses nothing.
            lock(&self.world.machines)[usize::from(self.process.index)].has_failed |=
                error.raw_os_error() == Some(5);
            self.world.note(
                self.process.who(),
                "disk_failed",
                &[i64::from(error.raw_os_error().unwrap_or(0))],
            );
        }
        outcome
    }

    /// Drained segments go when the disk is full: nobody is promised what they held any more.
    fn forget_drained(&self, path: &Path) {
        let is_drained = path.components().any(|part| part.as_os_str() == "drained");
        let mut machines = lock(&self.world.machines);
        let machine = &mut machines[usize::from(self.process.index)];
        if !(is_drained && machine.is_full) {
            return;
        }
        for batch in batches(&self.disk.bytes(path)) {
            let offsets = batch.range.start().as_i64()..batch.range.end().as_i64();
            machine.acknowledged[batch.key.partition.0 as usize].retain(|offset| !offsets.contains(offset));
        }
    }

    /// What was synced is acknowledged by whoever asked for it.
    fn acknowledge(&self, bytes: &[u8]) {
        for batch in batches(bytes) {
            let (partition, range) = (batch.key.partition.0, batch.range);
            let numbers = [i64::from(partition), range.start().as_i64(), range.end().as_i64()];
            self.world.note(self.process.who(), "spooled", &numbers);
            let mut machines = lock(&self.world.machines);
            let acknowledged = &mut machines[usize::from(self.process.index)].acknowledged;
            acknowledged[partition as usize].extend(numbers[1]..numbers[2]);
        }
    }
}

/// The batch lines among `bytes`.
fn batches(bytes: &[u8]) -> impl Iterator<Item = BatchLine> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let lines = lines.filter(|line| line.starts_with(br#"{"kind":"batch""#));
    lines.filter_map(|line| match parse_line(line) {
        Ok(Line::Batch(batch)) => Some(batch),
        Ok(Line::Header(_) | Line::Record | Line::Footer(_)) | Err(_) => None,
    })
}

impl Disk for MachineDisk {
    type File = MachineFile;
    type Lock = SimLock;
    const IS_SLOW: bool = false;

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        self.seen(self.disk.create_dir(path))
    }

    fn lock(&self, path: &Path, owner: &str) -> Result<SimLock, LockFault> {
        self.check().map_err(LockFault::Io)?;
        self.disk.lock(path, owner)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.check()?;
        self.seen(self.disk.list(path))
    }

    fn open(&self, path: &Path) -> io::Result<MachineFile> {
        self.check()?;
        self.seen(self.disk.open(path)).map(|file| self.file(file))
    }

    fn create(&self, path: &Path) -> io::Result<MachineFile> {
        self.check()?;
        self.seen(self.disk.create(path)).map(|file| self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        let is_drained = to.components().any(|part| part.as_os_str() == "drained");
        self.seen(self.disk.rename(from, to))?;
        self.world.note(self.process.who(), if is_drained { "segment_drained" } else { "renamed" }, &[]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        self.forget_drained(path);
        self.seen(self.disk.remove(path))
    }

    fn empty(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        self.forget_drained(path);
        self.seen(self.disk.empty(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        self.seen(self.disk.sync_dir(path))
    }

    fn free_len_bytes(&self, path: &Path) -> io::Result<u64> {
        self.check()?;
        self.seen(self.disk.free_len_bytes(path))
    }
}

impl Read for MachineFile {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.disk.check()?;
        self.disk.seen(self.file.read(room))
    }
}

impl DiskFile for MachineFile {
    fn go_to(&mut self, at: u64) -> io::Result<()> {
        self.disk.check()?;
        self.disk.seen(self.file.go_to(at))
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.check()?;
        self.disk.seen(self.file.append(bytes))?;
        self.unsynced.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.check()?;
        let unsynced = std::mem::take(&mut self.unsynced);
        if !self.disk.world.plan.is_mutant(Mutant::NoSync) {
            self.disk.seen(self.file.sync())?;
        }
        self.disk.acknowledge(&unsynced);
        Ok(())
    }

    fn cut(&mut self, len_bytes: u64) -> io::Result<()> {
        self.disk.check()?;
        self.disk.seen(self.file.cut(len_bytes))
    }
}
