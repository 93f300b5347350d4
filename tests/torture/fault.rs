//! What can go wrong on purpose: names, and how often of each kind.

use std::collections::BTreeMap;

use crate::options::Selection;
use crate::random::Random;

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident = $name:literal, $lane:ident, $weight:literal;)*) => {
        /// A kind of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Fault { $($(#[$doc])* $fault,)* }

        impl Fault {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$fault,)*];

            /// The name in reports and options: stable.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$fault => $name,)* }
            }

            pub(crate) const fn lane(self) -> Lane {
                match self { $(Self::$fault => Lane::$lane,)* }
            }

            /// How many cards of it are in a deck.
            const fn weight(self) -> usize {
                match self { $(Self::$fault => $weight,)* }
            }
        }
    };
}

faults! {
    /// SIGKILL.
    Kill = "kill", Process, 6;
    /// SIGSTOP, for shorter or longer than Kafka waits for a member; then SIGCONT.
    Stop = "stop", Process, 2;
    /// The process kills itself at a named place.
    CrashPoint = "crash_point", Process, 4;
    /// Daemons end by SIGTERM and come back, one after the other.
    Storm = "rebalance_storm", Process, 1;
    /// A daemon is stopped until its partitions have another owner, and goes on while all others are stopped.
    Zombie = "zombie", Process, 1;
    /// The wall clock of a daemon's machine jumps by hours.
    ClockJump = "clock_jump", Process, 1;
    /// PostgreSQL crashes and comes back at once.
    DatabaseRestart = "database_restart", Database, 5;
    /// PostgreSQL is away for so long that the daemons spool, and one of them dies meanwhile.
    DatabaseOutage = "database_outage", Database, 2;
    /// A bit of a spool file changes during an outage, while its daemon is down.
    BitFlip = "bit_flip", Database, 1;
    /// A spool file ends in half a line, likewise.
    TornTail = "torn_tail", Database, 1;
    /// The disk of a spool is full during an outage.
    DiskFull = "disk_full", Database, 1;
    /// Records that only a spool has, whose machine then loses its power.
    OnlyCopy = "only_copy", Database, 1;
    /// The primary dies, and a replica takes over that lags behind.
    Failover = "failover", Database, 2;
    /// The broker ends in order and comes back.
    BrokerRestart = "broker_restart", Broker, 1;
    /// The broker is killed and comes back.
    BrokerKill = "broker_kill", Broker, 1;
    /// The topic gets more partitions.
    Growth = "partition_growth", Broker, 1;
    /// Records are deleted before anybody reads them.
    DeleteRecords = "deleted_records", Broker, 1;
    /// A topic is deleted and created again.
    Recreate = "topic_recreation", Broker, 1;
    /// Connections of a daemon to PostgreSQL end.
    CutDatabase = "cut_database", Network, 1;
    /// Connections to Kafka end.
    CutBroker = "cut_broker", Network, 1;
    /// ... by a reset.
    ResetDatabase = "reset_database", Network, 1;
    /// ... by a reset.
    ResetBroker = "reset_broker", Network, 1;
    /// Nothing comes through any more, and nobody is told.
    HalfOpenDatabase = "half_open_database", Network, 1;
    /// Nothing comes through any more, and nobody is told.
    HalfOpenBroker = "half_open_broker", Network, 1;
    /// Everything takes longer.
    DelayDatabase = "delay_database", Network, 1;
    /// Everything takes longer.
    DelayBroker = "delay_broker", Network, 1;
    /// PostgreSQL commits, and the answer does not arrive.
    SwallowCommit = "swallow_commit", Network, 1;
    /// Kafka ends a transaction, and the answer does not arrive.
    SwallowEndTxn = "swallow_end_txn", Network, 1;
    /// The relay is told that its transaction was committed, and it was not.
    LieEndTxn = "lie_end_txn", Network, 1;
}

/// Faults of one lane come one after the other; the lanes go side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Process,
    Database,
    Broker,
    Network,
}

impl Lane {
    pub(crate) const ALL: [Self; 4] = [Self::Process, Self::Database, Self::Broker, Self::Network];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Database => "database",
            Self::Broker => "broker",
            Self::Network => "network",
        }
    }

    /// How long its next fault waits at most, in a long run.
    pub(crate) const fn pause_most_ms(self) -> u64 {
        match self {
            Self::Process => 5_000,
            Self::Database => 24_000,
            Self::Broker => 90_000,
            Self::Network => 13_000,
        }
    }
}

impl Fault {
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|fault| fault.name() == name)
    }
}

/// The faults of a lane in the order of chance: in each round each kind comes as often as its weight says, and every
/// kind has come once before any comes again.
#[derive(Debug)]
pub(crate) struct Deck {
    faults: Vec<Fault>,
    cards: Vec<Fault>,
    random: Random,
}

impl Deck {
    /// `None`: no fault of this lane is chosen.
    pub(crate) fn new(lane: Lane, selection: &Selection, random: Random) -> Option<Self> {
        let faults: Vec<Fault> = Fault::ALL
            .iter()
            .copied()
            .filter(|fault| fault.lane() == lane && selection.has(*fault))
            .collect();
        (!faults.is_empty()).then_some(Self { faults, cards: Vec::new(), random })
    }

    /// Keeps only what has not happened yet; false: everything has.
    pub(crate) fn only_missing(&mut self, fired: &BTreeMap<Fault, u64>) -> bool {
        self.faults.retain(|fault| !fired.contains_key(fault));
        self.cards.retain(|fault| !fired.contains_key(fault));
        !self.faults.is_empty()
    }

    pub(crate) const fn kind_count(&self) -> usize {
        self.faults.len()
    }

    pub(crate) fn next(&mut self) -> Option<Fault> {
        if self.cards.is_empty() {
            // Drawn from the end.
            let again = self.faults.iter().flat_map(|fault| std::iter::repeat_n(*fault, fault.weight() - 1));
            let mut again: Vec<Fault> = again.collect();
            let mut first = self.faults.clone();
            self.random.shuffle(&mut again);
            self.random.shuffle(&mut first);
            again.extend(first);
            self.cards = again;
        }
        self.cards.pop()
    }
}
