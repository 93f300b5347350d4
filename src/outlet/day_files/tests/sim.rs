//! A disk in memory that fails the n-th call, and forgets on a crash what was not synced.
//!
//! A sync that fails loses the bytes for good and says so once: bytes that are not written again are zeros on the disk
//! after later syncs of the same file, as on Linux. What is read is what is in memory, until a crash.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::outlet::day_files::disk::{Disk, DiskFile};

#[derive(Debug, Default, Clone)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    inodes: Vec<Inode>,
    call_count: u64,
    /// The call that fails, and whether those after it fail too.
    failing: Option<(u64, bool)>,
    capacity: Option<usize>,
    /// Files open at once, and the most of them there were.
    open_count: usize,
    open_max_count: usize,
}

/// What a crash leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// Everything, as only the process died.
    Everything,
    /// Nothing.
    Nothing,
    /// All lengths; every third byte that was not synced is zero.
    Torn,
}

#[derive(Debug, Clone, Default)]
pub(super) struct SimDisk(Rc<RefCell<State>>);

#[derive(Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.0.borrow_mut().open_count -= 1;
    }
}

impl SimDisk {
    pub(super) fn fail(&self, call: Option<(u64, bool)>) {
        let mut state = self.0.borrow_mut();
        (state.failing, state.call_count) = (call, 0);
    }

    pub(super) fn call_count(&self) -> u64 {
        self.0.borrow().call_count
    }

    pub(super) fn set_capacity(&self, capacity: Option<usize>) {
        self.0.borrow_mut().capacity = capacity;
    }

    pub(super) fn open_max_count(&self) -> usize {
        self.0.borrow().open_max_count
    }

    pub(super) fn crash(&self, crash: Crash) {
        let mut state = self.0.borrow_mut();
        if crash == Crash::Everything {
            return;
        }
        if crash == Crash::Nothing {
            state.names = state.durable_names.clone();
        }
        for inode in &mut state.inodes {
            match crash {
                Crash::Everything | Crash::Nothing => inode.bytes = inode.durable.clone(),
                Crash::Torn => {
                    for (index, byte) in inode.bytes.iter_mut().enumerate() {
                        let is_lost = inode.dirty.contains(&index) || index >= inode.durable.len();
                        if is_lost && index % 3 == 0 {
                            *byte = 0;
                        }
                    }
                }
            }
            inode.durable = inode.bytes.clone();
            inode.dirty.clear();
        }
        state.durable_names = state.names.clone();
    }

    pub(super) fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.0.borrow();
        state.names.get(Path::new(path)).map(|inode| state.inodes[*inode].bytes.clone())
    }

    /// Changes a file behind everybody's back, durably; `None` removes it.
    pub(super) fn tamper(&self, path: &str, bytes: Option<&[u8]>) {
        let mut state = self.0.borrow_mut();
        let State { names, durable_names, inodes, .. } = &mut *state;
        match bytes {
            None => {
                names.remove(Path::new(path));
                durable_names.remove(Path::new(path));
            }
            Some(bytes) => {
                let inode = *names.get(Path::new(path)).unwrap();
                inodes[inode] =
                    Inode { bytes: bytes.to_vec(), durable: bytes.to_vec(), dirty: BTreeSet::new() };
            }
        }
    }

    fn call(&self) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.call_count += 1;
        match state.failing {
            Some((first, lasts)) if state.call_count == first || (lasts && state.call_count > first) => {
                Err(io::Error::from_raw_os_error(5))
            }
            _ => Ok(()),
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        self.call()
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        self.call()?;
        let mut state = self.0.borrow_mut();
        let State { names, inodes, .. } = &mut *state;
        let inode = *names.entry(path.to_owned()).or_insert_with(|| {
            inodes.push(Inode::default());
            inodes.len() - 1
        });
        state.open_count += 1;
        state.open_max_count = state.open_max_count.max(state.open_count);
        drop(state);
        Ok(SimFile { disk: self.clone(), inode })
    }

    fn len_bytes(&self, path: &Path) -> io::Result<Option<u64>> {
        self.call()?;
        Ok(self.bytes(path.to_str().unwrap()).map(|bytes| u64::try_from(bytes.len()).unwrap()))
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        self.call()?;
        let state = self.0.borrow();
        let names = state.names.keys().filter(|name| name.parent() == Some(path));
        Ok(names.map(|name| name.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        let mut state = self.0.borrow_mut();
        let State { names, durable_names, .. } = &mut *state;
        let inside = names.iter().filter(|(name, _)| name.parent() == Some(path));
        durable_names.extend(inside.map(|(name, inode)| (name.clone(), *inode)));
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.disk.call()?;
        Ok(u64::try_from(self.disk.0.borrow().inodes[self.inode].bytes.len()).unwrap())
    }

    fn read_at(&self, room: &mut [u8], at: u64) -> io::Result<usize> {
        self.disk.call()?;
        let state = self.disk.0.borrow();
        let bytes = &state.inodes[self.inode].bytes;
        let left = &bytes[usize::try_from(at).unwrap().min(bytes.len())..];
        // Short reads, as a file system may.
        let len = left.len().min(room.len()).min(7);
        room[..len].copy_from_slice(&left[..len]);
        Ok(len)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let outcome = self.disk.call();
        let mut state = self.disk.0.borrow_mut();
        let capacity = state.capacity;
        let inode = &mut state.inodes[self.inode];
        let at = usize::try_from(at).unwrap();
        // An error leaves half of it.
        let mut len = if outcome.is_err() { bytes.len() / 2 } else { bytes.len() };
        let mut outcome = outcome;
        if let Some(capacity) = capacity.filter(|capacity| at + len > *capacity) {
            len = capacity.saturating_sub(at);
            outcome = Err(io::Error::from_raw_os_error(28));
        }
        let end = at + len;
        if inode.bytes.len() < end {
            inode.bytes.resize(end, 0);
        }
        inode.bytes[at..end].copy_from_slice(&bytes[..len]);
        inode.dirty.extend(at..end);
        outcome
    }

    fn sync(&mut self) -> io::Result<()> {
        let outcome = self.disk.call();
        let mut state = self.disk.0.borrow_mut();
        let inode = &mut state.inodes[self.inode];
        let dirty = std::mem::take(&mut inode.dirty);
        inode.durable.resize(inode.bytes.len(), 0);
        for index in dirty.into_iter().filter(|index| *index < inode.bytes.len()) {
            // A failed sync takes bytes for clean that it has not written.
            inode.durable[index] = if outcome.is_ok() { inode.bytes[index] } else { 0 };
        }
        outcome
    }

    fn cut(&mut self, len_bytes: u64) -> io::Result<()> {
        self.disk.call()?;
        let mut state = self.disk.0.borrow_mut();
        let inode = &mut state.inodes[self.inode];
        inode.bytes.truncate(usize::try_from(len_bytes).unwrap());
        Ok(())
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        self.disk.call()?;
        Ok(self.disk.0.borrow().names.get(path) == Some(&self.inode))
    }
}
