//! The state: small, hashable, and one form for all that behave the same.

use audit_consumer::model::position::{Epoch, Offset, OffsetRange};

/// How many partitions and instances there are at most.
pub const PARTITIONS: usize = 2;
pub const INSTANCES: usize = 2;
/// How many batches a spool takes of one partition before it is full.
const BATCHES: usize = 4;

/// A set of offsets below 8.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Offsets(pub u8);

impl Offsets {
    pub const fn of(start: u8, end: u8) -> Self {
        if start >= end { Self(0) } else { Self((((1u16 << end) - 1) & !((1u16 << start) - 1)) as u8) }
    }

    pub const fn has(self, offset: u8) -> bool {
        self.0 & (1 << offset) != 0
    }

    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The first of them.
    pub const fn first(self) -> Option<u8> {
        if self.0 == 0 { None } else { Some(self.0.trailing_zeros() as u8) }
    }
}

impl std::fmt::Debug for Offsets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: Vec<String> = (0..8).filter(|offset| self.has(*offset)).map(|own| own.to_string()).collect();
        write!(f, "{{{}}}", all.join(","))
    }
}

pub fn offset(of: u8) -> Offset {
    Offset::new(i64::from(of)).expect("no offset is negative")
}

pub fn plain(of: Offset) -> u8 {
    u8::try_from(of.as_i64()).expect("a small offset")
}

pub fn epoch(of: u8) -> Epoch {
    Epoch(i64::from(of))
}

/// A position's row, and what is stored of its partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Row {
    pub epoch: u8,
    pub position: u8,
    /// `owner_instance` + 1.
    pub owner: u8,
    /// In `events` or `dead_letters`.
    pub stored: Offsets,
    /// In open rows of `offset_gaps`.
    pub gaps: Offsets,
}

/// PostgreSQL, or its standby.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Database {
    pub rows: [Row; PARTITIONS],
    /// `spool_ranges`, by instance.
    pub published: [[Offsets; PARTITIONS]; INSTANCES],
}

/// Batches of one partition on a disk, in the order in which they were written: their bounds, or twice 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Batches([(u8, u8); BATCHES]);

impl Batches {
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u8, u8)> + '_ {
        self.0.iter().copied().filter(|(start, end)| start < end)
    }

    pub fn is_full(&self) -> bool {
        self.iter().count() == BATCHES
    }

    pub fn push(&mut self, start: u8, end: u8) {
        let place = self.0.iter_mut().find(|place| **place == (0, 0)).expect("the spool is not full");
        *place = (start, end);
    }

    /// Leaves what `keep` says, in order.
    pub fn retain(&mut self, keep: impl Fn(u8, u8) -> bool) {
        let old = std::mem::take(self);
        old.iter().filter(|(start, end)| keep(*start, *end)).for_each(|(start, end)| self.push(start, end));
    }

    pub fn offsets(&self) -> Offsets {
        self.iter().fold(Offsets::default(), |all, (start, end)| all.or(Offsets::of(start, end)))
    }

    /// As the spool tells them.
    pub fn ranges(&self) -> Vec<OffsetRange> {
        self.iter().filter_map(|(start, end)| OffsetRange::new(offset(start), offset(end))).collect()
    }

    pub fn tail(&self) -> Option<u8> {
        self.iter().next_back().map(|(_, end)| end)
    }
}

/// The directory of one instance's spool, by partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Disk {
    pub held: [Batches; PARTITIONS],
    pub drained: [Batches; PARTITIONS],
    /// Copies in `quarantine/` of batches over a declared gap.
    pub aside: [Offsets; PARTITIONS],
}

/// What an instance does with a partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Work {
    /// Kafka has not assigned it to us, as far as we know.
    #[default]
    NotOurs,
    /// Assigned, not read, offered again and again.
    Held,
    Live,
    Spooling,
    Draining,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Slot {
    pub work: Work,
    pub epoch: u8,
    /// What PostgreSQL holds, as far as we know.
    pub position: u8,
    /// Read from Kafka, or fed from the spool, up to here.
    pub read_to: u8,
    /// Where the batch ends that is tried again, or a half of one that was split; 0: none.
    pub batch_end: u8,
    /// What a mutant passed over and counts as absent.
    pub absent: Offsets,
}

impl Slot {
    pub const fn held() -> Self {
        Self { work: Work::Held, epoch: 0, position: 0, read_to: 0, batch_end: 0, absent: Offsets(0) }
    }

    pub const fn has_lane(&self) -> bool {
        matches!(self.work, Work::Live | Work::Draining)
    }

    /// The end of what is committed next; the position when there is nothing.
    pub const fn commit_end(&self) -> u8 {
        if self.batch_end > 0 { self.batch_end } else { self.read_to }
    }
}

/// A part of a batch that was sent; nothing when its end is 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Sent {
    pub epoch: u8,
    pub start: u8,
    pub end: u8,
    pub absent: Offsets,
}

/// One process and its disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Instance {
    pub is_up: bool,
    pub is_spooling: bool,
    /// The lane has no session: positions are read before the next commit.
    pub must_look: bool,
    pub slots: [Slot; PARTITIONS],
    pub last_known: [Option<u8>; PARTITIONS],
    /// A batch whose COMMIT was sent and never answered: the server may still do it, or not.
    pub late: [Sent; PARTITIONS],
    pub disk: Disk,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Kafka {
    /// The first offset that is there.
    pub low: [u8; PARTITIONS],
    /// To whom the group has assigned each partition.
    pub owner: [u8; PARTITIONS],
    /// The group's committed offset.
    pub mirror: [Option<u8>; PARTITIONS],
}

/// What must never be; nothing happens after it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Wrong {
    StoredTwice,
    LostBelowPosition,
    StoredByZombie,
    GapOverHeld,
    LastCopyDropped,
    ModeSkipped,
}

/// The kinds of faults, as indices of what is left of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Crash,
    DiskLoss,
    Outage,
    Failover,
    Rebalance,
    UnknownCommit,
    Retention,
}

pub const FAULTS: usize = 7;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct State {
    pub database: Database,
    /// What an asynchronous failover leaves.
    pub standby: Database,
    pub is_database_up: bool,
    pub kafka: Kafka,
    pub instances: [Instance; INSTANCES],
    /// How many faults are left in all, and of each kind.
    pub left: u8,
    pub left_of: [u8; FAULTS],
    pub had_failover: bool,
    pub wrong: Option<Wrong>,
}

impl State {
    pub fn is_not(&self, wrong: Wrong) -> bool {
        self.wrong != Some(wrong)
    }

    /// Whether records may still go to a spool.
    pub fn may_spool(&self) -> bool {
        let is_spooling = self.instances.iter().any(|instance| instance.is_spooling);
        self.may(Fault::Outage) || !self.is_database_up || is_spooling
    }

    pub fn may(&self, fault: Fault) -> bool {
        self.left_of[fault as usize] > 0
    }

    /// One form for all states that behave the same; see each step.
    pub fn canonical(mut self, partitions: usize) -> Self {
        for left in &mut self.left_of {
            *left = (*left).min(self.left);
        }
        if !self.may(Fault::Failover) {
            // Nobody will ever look at it.
            self.standby = self.database;
        }
        for partition in 0..partitions {
            self.forget_useless(partition);
            self.compress_epochs(partition);
        }
        if !self.may(Fault::Retention) && self.kafka.low == [0; PARTITIONS] {
            // No gap will ever be declared.
            (self.database.published, self.standby.published) = Default::default();
        }
        let swapped = self.swapped();
        if swapped < self { swapped } else { self }
    }

    fn forget_useless(&mut self, partition: usize) {
        let may_spool = self.may_spool();
        let standby_position = self.standby.rows[partition].position;
        for instance in &mut self.instances {
            // No failover takes the position back before them any more: `SPOOL_KEEP` is longer than a standby lags.
            instance.disk.drained[partition].retain(|_, end| end > standby_position);
            if !may_spool {
                instance.last_known[partition] = None;
            }
        }
        if !may_spool {
            self.kafka.mirror[partition] = None;
        }
    }

    /// Epochs are compared, and the next one is one more; so only their distances matter, and none beyond 2: claims can
    /// be repeated, so what needs three more can be had with two.
    fn compress_epochs(&mut self, partition: usize) {
        let mut used: Vec<u8> = Vec::with_capacity(8);
        self.each_epoch(partition, |epoch| used.push(*epoch));
        used.sort_unstable();
        used.dedup();
        let (mut renamed, mut last) = (Vec::with_capacity(used.len()), None);
        for epoch in used {
            let new = last.map_or(1, |(old, new): (u8, u8)| new + (epoch - old).min(2));
            renamed.push((epoch, new));
            last = Some((epoch, new));
        }
        self.each_epoch(partition, |epoch| {
            if let Some((_, new)) = renamed.iter().find(|(old, _)| old == epoch) {
                *epoch = *new;
            }
        });
    }

    fn each_epoch(&mut self, partition: usize, mut each: impl FnMut(&mut u8)) {
        each(&mut self.database.rows[partition].epoch);
        each(&mut self.standby.rows[partition].epoch);
        for instance in &mut self.instances {
            if instance.slots[partition].has_lane() {
                each(&mut instance.slots[partition].epoch);
            }
            if instance.late[partition].end > 0 {
                each(&mut instance.late[partition].epoch);
            }
        }
    }

    /// The same with the instances' names exchanged.
    fn swapped(mut self) -> Self {
        self.instances.swap(0, 1);
        for database in [&mut self.database, &mut self.standby] {
            database.published.swap(0, 1);
            for row in &mut database.rows {
                row.owner = [0, 2, 1][usize::from(row.owner)];
            }
        }
        for owner in &mut self.kafka.owner {
            *owner = 1 - *owner;
        }
        self
    }
}
