//! A disk in memory that fails the n-th call, and forgets on a crash what was not synced. The spool's own tests
//! (`src/spool/tests.rs`) use it, too.
//!
//! A name is durable after a sync of its directory, bytes after a sync of their file. A sync that fails loses the
//! bytes for good and says so once: later syncs of the same file succeed and leave zeros there, as on Linux.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk_api::{Disk, DiskFile, Entry, LockFault};

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SimFault {
    /// An error of the device. A write leaves nothing.
    Device,
    /// No room. A write leaves nothing.
    NoRoom,
    /// A write leaves its first half and finds no room for the rest; other calls as for no room.
    ShortWrite,
}

/// From which call on calls fail.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) first: u64,
    /// Whether later calls fail too.
    pub(super) is_lasting: bool,
    pub(super) fault: SimFault,
}

/// What a crash leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// Nothing: neither bytes nor names.
    Nothing,
    /// Everything, as only the process died: what is in memory alone is still in memory alone.
    Everything,
    /// All names; of the bytes some blocks, the others read as zeros.
    Torn,
}

#[derive(Debug, Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Up to here a sync has nothing to do.
    clean_len: usize,
    /// What a failed sync lost.
    lost: Vec<std::ops::Range<usize>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    inodes: Vec<Inode>,
    locks: BTreeSet<PathBuf>,
    call_count: u64,
    plan: Option<Plan>,
    capacity: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    inode: usize,
    at: usize,
}

#[derive(Debug)]
pub(super) struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locks.remove(&self.path);
    }
}

impl SimDisk {
    pub(super) fn fail(&self, plan: Option<Plan>) {
        let mut state = self.state();
        state.plan = plan;
        state.call_count = 0;
    }

    pub(super) fn call_count(&self) -> u64 {
        self.state().call_count
    }

    pub(super) fn set_capacity(&self, capacity: Option<u64>) {
        self.state().capacity = capacity;
    }

    pub(super) fn crash(&self, crash: Crash) {
        let mut state = self.state();
        state.locks.clear();
        if crash == Crash::Nothing {
            state.names = state.durable_names.clone();
        }
        for inode in &mut state.inodes {
            match crash {
                Crash::Nothing => inode.bytes = inode.durable.clone(),
                Crash::Everything => continue,
                Crash::Torn => {
                    let synced_len = inode.durable.len();
                    for (index, byte) in inode.bytes.iter_mut().enumerate().skip(synced_len) {
                        if index / 16 % 3 == 0 {
                            *byte = 0;
                        }
                    }
                }
            }
            inode.durable = inode.bytes.clone();
            inode.clean_len = inode.bytes.len();
            inode.lost.clear();
        }
        if crash != Crash::Everything {
            state.durable_names = state.names.clone();
        }
    }

    /// Another disk with what is on this one, that does not fail.
    pub(super) fn image(&self) -> Self {
        let mut state = self.state().clone();
        (state.plan, state.capacity) = (None, None);
        Self(Arc::new(Mutex::new(state)))
    }

    /// The bytes of a file, as they are read now.
    pub(super) fn bytes(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.names[path]].bytes.clone()
    }

    /// Puts a file there, durable.
    pub(super) fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        let inode = state.inodes.len();
        let bytes = bytes.to_vec();
        state.inodes.push(Inode { clean_len: bytes.len(), durable: bytes.clone(), bytes, lost: vec![] });
        state.names.insert(path.to_owned(), inode);
        state.durable_names.insert(path.to_owned(), inode);
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self) -> Result<(), SimFault> {
        let mut state = self.state();
        state.call_count += 1;
        let Some(plan) = state.plan else { return Ok(()) };
        let fails = state.call_count == plan.first || (plan.is_lasting && state.call_count > plan.first);
        if fails { Err(plan.fault) } else { Ok(()) }
    }

    fn io_call(&self) -> io::Result<()> {
        self.call().map_err(error)
    }
}

fn error(fault: SimFault) -> io::Error {
    match fault {
        SimFault::Device => io::Error::from_raw_os_error(5),
        SimFault::NoRoom | SimFault::ShortWrite => io::Error::from_raw_os_error(28),
    }
}

impl State {
    fn used(&self) -> u64 {
        let inodes: BTreeSet<usize> = self.names.values().copied().collect();
        u64::try_from(inodes.iter().map(|inode| self.inodes[*inode].bytes.len()).sum::<usize>()).unwrap()
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Disk for SimDisk {
    type File = SimFile;
    type Lock = SimLock;
    const IS_SLOW: bool = false;

    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        self.io_call()
    }

    fn lock(&self, path: &Path, _owner: &str) -> Result<SimLock, LockFault> {
        self.io_call().map_err(LockFault::Io)?;
        if !self.state().locks.insert(path.to_owned()) {
            return Err(LockFault::Held("process 4711".into()));
        }
        Ok(SimLock { disk: self.clone(), path: path.to_owned() })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.io_call()?;
        let state = self.state();
        let inside = state.names.iter().filter(|(name, _)| name.parent() == Some(path));
        let entry = |(name, inode): (&PathBuf, &usize)| Entry {
            name: name.file_name().unwrap().to_str().unwrap().to_owned(),
            len_bytes: u64::try_from(state.inodes[*inode].bytes.len()).unwrap(),
        };
        Ok(inside.map(entry).collect())
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        self.io_call()?;
        let inode = self.state().inode(path)?;
        Ok(SimFile { disk: self.clone(), inode, at: 0 })
    }

    fn create(&self, path: &Path) -> io::Result<SimFile> {
        self.io_call()?;
        let mut state = self.state();
        if state.names.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.names.insert(path.to_owned(), inode);
        Ok(SimFile { disk: self.clone(), inode, at: 0 })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.io_call()?;
        let mut state = self.state();
        let inode = state.inode(from)?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.io_call()?;
        let mut state = self.state();
        state.inode(path)?;
        state.names.remove(path);
        Ok(())
    }

    fn empty(&self, path: &Path) -> io::Result<()> {
        self.io_call()?;
        let mut state = self.state();
        let inode = state.inode(path)?;
        state.inodes[inode] = Inode::default();
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.io_call()?;
        let mut state = self.state();
        let State { names, durable_names, .. } = &mut *state;
        durable_names.retain(|name, _| name.parent() != Some(path));
        let inside = names.iter().filter(|(name, _)| name.parent() == Some(path));
        durable_names.extend(inside.map(|(name, inode)| (name.clone(), *inode)));
        Ok(())
    }

    fn free_len_bytes(&self, _path: &Path) -> io::Result<u64> {
        self.io_call()?;
        let state = self.state();
        Ok(state.capacity.map_or(u64::MAX / 2, |capacity| capacity.saturating_sub(state.used())))
    }
}

impl Read for SimFile {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.disk.io_call()?;
        let state = self.disk.state();
        let bytes = &state.inodes[self.inode].bytes;
        let left = &bytes[self.at.min(bytes.len())..];
        let len = left.len().min(room.len());
        room[..len].copy_from_slice(&left[..len]);
        self.at += len;
        Ok(len)
    }
}

impl DiskFile for SimFile {
    fn go_to(&mut self, at: u64) -> io::Result<()> {
        self.disk.io_call()?;
        self.at = usize::try_from(at).unwrap();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let fault = self.disk.call().err();
        let mut state = self.disk.state();
        let room = state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used()));
        let room = usize::try_from(room).unwrap();
        let (fault, len) = match fault {
            None if room < bytes.len() => (Some(SimFault::NoRoom), room),
            None => (None, bytes.len()),
            Some(SimFault::ShortWrite) => (fault, bytes.len() / 2),
            Some(SimFault::Device | SimFault::NoRoom) => (fault, 0),
        };
        state.inodes[self.inode].bytes.extend_from_slice(&bytes[..len]);
        fault.map_or(Ok(()), |fault| Err(error(fault)))
    }

    fn sync(&mut self) -> io::Result<()> {
        let fault = self.disk.call().err();
        let mut state = self.disk.state();
        let inode = &mut state.inodes[self.inode];
        let dirty = inode.clean_len..inode.bytes.len();
        inode.clean_len = inode.bytes.len();
        if let Some(fault) = fault {
            inode.lost.push(dirty);
            return Err(error(fault));
        }
        inode.durable = inode.bytes.clone();
        for lost in &inode.lost {
            let end = lost.end.min(inode.durable.len());
            inode.durable[lost.start.min(end)..end].fill(0);
        }
        Ok(())
    }

    fn cut(&mut self, len_bytes: u64) -> io::Result<()> {
        self.disk.io_call()?;
        let mut state = self.disk.state();
        let inode = &mut state.inodes[self.inode];
        let len = usize::try_from(len_bytes).unwrap();
        inode.bytes.truncate(len);
        inode.clean_len = inode.clean_len.min(len);
        inode.lost.retain(|lost| lost.start < len);
        Ok(())
    }
}
