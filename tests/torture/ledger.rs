//! What the broker acknowledged: which record stands at which offset. Eight bytes a record.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a record is, and so what must become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// An event of its own.
    Unique,
    /// An event of its own, with text of many scripts.
    Unicode,
    /// The same event as an earlier record's.
    Duplicate,
    /// No event.
    Poison,
    /// No event: U+0000 in a text.
    Nul,
    /// No event: no value.
    Tombstone,
    /// No event: longer than `MAX_EVENT_BYTES`.
    Oversize,
    /// In a transaction that was aborted: must not be anywhere.
    Aborted,
    /// An event in a transaction whose end nobody knows: may be there.
    UnsureEvent,
    /// No event, in such a transaction.
    UnsurePoison,
    /// In a topic of which records were deleted: is there, or in a declared gap.
    Deleted,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Unique,
        Self::Unicode,
        Self::Duplicate,
        Self::Poison,
        Self::Nul,
        Self::Tombstone,
        Self::Oversize,
        Self::Aborted,
        Self::UnsureEvent,
        Self::UnsurePoison,
        Self::Deleted,
    ];

    /// Its name in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Unique => "unique",
            Self::Unicode => "unicode",
            Self::Duplicate => "duplicate",
            Self::Poison => "poison",
            Self::Nul => "nul",
            Self::Tombstone => "tombstone",
            Self::Oversize => "oversize",
            Self::Aborted => "aborted",
            Self::UnsureEvent => "unsure_event",
            Self::UnsurePoison => "unsure_poison",
            Self::Deleted => "deleted",
        }
    }

    /// Whether it is an event, of its own or again.
    pub(crate) const fn is_event(self) -> bool {
        matches!(self, Self::Unique | Self::Unicode | Self::Duplicate | Self::UnsureEvent | Self::Deleted)
    }

    /// Whether it becomes a dead letter, if it is there.
    pub(crate) const fn is_letter(self) -> bool {
        matches!(self, Self::Poison | Self::Nul | Self::Tombstone | Self::Oversize | Self::UnsurePoison)
    }

    /// Whether it must be there.
    pub(crate) const fn is_certain(self) -> bool {
        !matches!(self, Self::Aborted | Self::UnsureEvent | Self::UnsurePoison | Self::Deleted)
    }

    /// The same record in a transaction whose end is not known.
    pub(crate) const fn unsure(self) -> Self {
        if self.is_letter() { Self::UnsurePoison } else { Self::UnsureEvent }
    }
}

/// A record: its kind, and the index of its event in the plan (of a duplicate: that of the event it repeats).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) index: u64,
}

const INDEX_BITS: u32 = 48;

impl Entry {
    /// As one number; never 0.
    pub(crate) fn pack(self) -> u64 {
        let place = Kind::ALL.iter().position(|kind| *kind == self.kind).unwrap_or(0);
        u64::try_from(place + 1).unwrap_or(0) << INDEX_BITS | self.index
    }

    pub(crate) fn unpack(packed: u64) -> Option<Self> {
        let place = usize::try_from(packed >> INDEX_BITS).ok()?.checked_sub(1)?;
        Some(Self { kind: *Kind::ALL.get(place)?, index: packed & ((1 << INDEX_BITS) - 1) })
    }
}

/// The records of one topic, by partition and offset.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    partitions: Mutex<Vec<Vec<u64>>>,
    /// What was sent and never acknowledged: it may stand at an offset that is not in the ledger.
    failed: Mutex<HashSet<u64>>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u64>>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a record stands there; returns what stood there before, which can't be.
    pub(crate) fn acknowledge(&self, partition: i32, offset: i64, entry: Entry) -> Option<Entry> {
        let (Ok(partition), Ok(offset)) = (usize::try_from(partition), usize::try_from(offset)) else {
            return None;
        };
        let mut partitions = self.lock();
        if partitions.len() <= partition {
            partitions.resize_with(partition + 1, Vec::new);
        }
        let offsets = partitions.get_mut(partition)?;
        if offsets.len() <= offset {
            offsets.resize(offset + 1, 0);
        }
        let slot = offsets.get_mut(offset)?;
        let before = Entry::unpack(*slot);
        *slot = entry.pack();
        before
    }

    /// The records of a partition before `end` may be missing from now on.
    pub(crate) fn mark_deleted(&self, partition: usize, end: usize) {
        let mut partitions = self.lock();
        let offsets = partitions.get_mut(partition).into_iter().flatten();
        for packed in offsets.take(end) {
            if let Some(entry) = Entry::unpack(*packed) {
                *packed = Entry { kind: Kind::Deleted, ..entry }.pack();
            }
        }
    }

    pub(crate) fn fail(&self, entry: Entry) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(entry.pack());
    }

    /// What was never acknowledged.
    pub(crate) fn failed(&self) -> HashSet<u64> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many records of each kind, in the order of [`Kind::ALL`].
    pub(crate) fn counts(&self) -> [u64; Kind::ALL.len()] {
        let mut counts = [0; Kind::ALL.len()];
        self.each(|_, _, entry| {
            for (kind, count) in Kind::ALL.iter().zip(counts.iter_mut()) {
                *count += u64::from(*kind == entry.kind);
            }
        });
        counts
    }

    /// Calls `visit` with partition, offset and record of each, in order.
    pub(crate) fn each(&self, mut visit: impl FnMut(usize, usize, Entry)) {
        for (partition, offsets) in self.lock().iter().enumerate() {
            for (offset, packed) in offsets.iter().enumerate() {
                if let Some(entry) = Entry::unpack(*packed) {
                    visit(partition, offset, entry);
                }
            }
        }
    }

    /// The length of each partition, as far as the ledger knows.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.lock().iter().map(Vec::len).collect()
    }

    pub(crate) fn entry(&self, partition: usize, offset: usize) -> Option<Entry> {
        Entry::unpack(*self.lock().get(partition)?.get(offset)?)
    }
}
