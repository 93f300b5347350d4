//! The board: what the process is doing, for the mirror, the metrics and the status page.
//!
//! Lanes and the supervisor write it, others read it; nothing is decided by it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::latency::Latencies;
use crate::model::position::{Epoch, Offset, StreamPartition, TopicPartition};
use crate::model::record::AssignmentId;
use crate::model::rejection::RejectionCode;
use crate::model::spool::SpoolStats;
use crate::model::spool::mode::Mode;

/// A partition that we own and read.
#[derive(Debug, Clone)]
pub struct OwnedPartition {
    /// Which one.
    pub source: Arc<TopicPartition>,
    /// The key of its position.
    pub key: StreamPartition,
    /// The claim's epoch.
    pub epoch: Epoch,
    /// Which lane commits it.
    pub lane_index: usize,
    /// The position that PostgreSQL holds.
    pub position: Offset,
    /// The end of the partition as last fetched.
    pub end: Option<Offset>,
    /// The first offset that Kafka has, as last fetched.
    pub low: Option<Offset>,
    /// Where its records go.
    pub mode: Mode,
    /// The position behind what the spool holds, while it spools.
    pub spooled_to: Option<Offset>,
    /// The chunks that a lane took and that may not be committed: the position behind each, and the time of its first
    /// record in milliseconds since the Unix epoch.
    pub uncommitted: VecDeque<(Offset, i64)>,
}

impl OwnedPartition {
    /// How many offsets lie between the position and the end; none before the first fetch.
    #[must_use]
    pub fn lag(&self) -> Option<u64> {
        Some(self.position.distance_to(self.end?).unwrap_or(0))
    }

    /// How many offsets are neither stored nor spooled; none before the first fetch.
    #[must_use]
    pub fn kafka_lag(&self) -> Option<u64> {
        let read_to = self.spooled_to.map_or(self.position, |spooled_to| spooled_to.max(self.position));
        Some(read_to.distance_to(self.end?).unwrap_or(0))
    }

    /// A lane took a chunk that ends here, whose first record has this time.
    pub fn took(&mut self, end: Offset, oldest_ms: Option<i64>) {
        self.forget_committed();
        self.uncommitted.extend(oldest_ms.map(|oldest_ms| (end, oldest_ms)));
    }

    /// The time of the oldest record that was taken and is not committed, in milliseconds since the Unix epoch.
    pub fn oldest_uncommitted_ms(&mut self) -> Option<i64> {
        self.forget_committed();
        self.uncommitted.front().map(|(_, oldest_ms)| *oldest_ms)
    }

    fn forget_committed(&mut self) {
        while self.uncommitted.front().is_some_and(|(end, _)| *end <= self.position) {
            self.uncommitted.pop_front();
        }
    }
}

/// Why a partition that Kafka has assigned to us is not read. Codes are stable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// A stable code.
    pub code: HoldCode,
    /// For people: what, and what to do next.
    pub detail: String,
    /// Since when, on the monotonic clock.
    pub since: Instant,
}

/// The codes of holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HoldCode {
    /// Kafka can't describe the partition now.
    KafkaUnavailable,
    /// PostgreSQL does not answer.
    DatabaseUnavailable,
    /// PostgreSQL is not set up for us.
    DatabaseMisconfigured,
    /// Another process claimed the partition; we wait before we claim it again.
    ClaimedElsewhere,
    /// The topic was created again, or this is another cluster.
    TopicRecreated,
    /// Another group owns the stream in this database.
    ForeignGroup,
    /// Kafka has deleted records beyond our position.
    RecordsDeleted,
    /// Kafka has lost records that we have stored.
    PositionBeyondEnd,
    /// What PostgreSQL holds contradicts the promise.
    AccountBroken,
    /// Too many of the partition's records are dead letters.
    BreakerOpen,
    /// What the spool holds of the partition goes to PostgreSQL first.
    Draining,
}

impl HoldCode {
    /// The code as text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KafkaUnavailable => "kafka_unavailable",
            Self::DatabaseUnavailable => "database_unavailable",
            Self::DatabaseMisconfigured => "database_misconfigured",
            Self::ClaimedElsewhere => "claimed_elsewhere",
            Self::TopicRecreated => "topic_recreated",
            Self::ForeignGroup => "foreign_group",
            Self::RecordsDeleted => "records_deleted",
            Self::PositionBeyondEnd => "position_beyond_end",
            Self::AccountBroken => "account_broken",
            Self::BreakerOpen => "breaker_open",
            Self::Draining => "draining",
        }
    }

    /// Whether it stays until an operator acts.
    #[must_use]
    pub const fn needs_operator(self) -> bool {
        match self {
            Self::KafkaUnavailable | Self::DatabaseUnavailable | Self::ClaimedElsewhere | Self::Draining => {
                false
            }
            Self::DatabaseMisconfigured
            | Self::TopicRecreated
            | Self::ForeignGroup
            | Self::RecordsDeleted
            | Self::PositionBeyondEnd
            | Self::AccountBroken
            | Self::BreakerOpen => true,
        }
    }
}

/// What we know of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DatabaseState {
    /// Nothing was asked yet.
    #[default]
    Unknown,
    /// The last thing asked was answered.
    Up,
    /// It is away, or contended: we go on trying.
    Down {
        /// What it said.
        error: String,
        /// Since when, on the monotonic clock.
        since: Instant,
    },
    /// An operator must act.
    Misconfigured {
        /// What it said.
        error: String,
    },
}

/// Where the process stands between start and stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Kafka has not answered yet.
    #[default]
    Starting,
    /// It works.
    Running,
    /// It is going down.
    Stopping,
}

/// What was stored by this process since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Events.
    pub events: u64,
    /// Upstream duplicates.
    pub duplicates: u64,
    /// Dead letters.
    pub dead_letters: u64,
}

impl Totals {
    /// All records.
    #[must_use]
    pub const fn record_count(self) -> u64 {
        self.events + self.duplicates + self.dead_letters
    }
}

/// Whether this process relays dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RelayRole {
    /// Another process of the group does, or PostgreSQL is away.
    #[default]
    Follower,
    /// It does.
    Leader,
}

/// Why dead letters wait, beyond their turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayTrouble {
    /// For people: what, where, and what to do next.
    pub text: String,
    /// Since when, on the monotonic clock.
    pub since: Instant,
}

/// What the relay does. Only the leader knows of a backlog.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RelayState {
    /// Whether it works here.
    pub role: RelayRole,
    /// Dead letters that are not in their topic yet, as last counted.
    pub waiting_count: u64,
    /// How long ago the oldest of them was stored.
    pub oldest_age_seconds: f64,
    /// Why they wait.
    pub trouble: Option<RelayTrouble>,
}

/// What the spool holds, and how it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SpoolState {
    /// Whether there is one.
    pub is_on: bool,
    /// Its numbers, as of its last change.
    pub stats: SpoolStats,
    /// How much it may hold.
    pub max_len_bytes: u64,
    /// Why it takes nothing.
    pub trouble: Option<String>,
    /// When it will be full, at the rate of the last minute.
    pub full_in_seconds: Option<f64>,
}

/// Where the day files of a sink stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProjectionState {
    /// Offsets that are committed and not written yet, as last seen here.
    pub waiting_count: u64,
    /// Since when there are any, on the monotonic clock.
    pub behind_since: Option<Instant>,
    /// Why they wait, beyond their turn.
    pub trouble: Option<String>,
}

impl ProjectionState {
    /// How long ago all was written; zero while it is.
    #[must_use]
    pub fn lag(&self, now: Instant) -> Duration {
        self.behind_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// A partition that is so many offsets behind Kafka's end has a backlog.
const BACKLOG_COUNT: u64 = 5_000;

/// The board's content.
#[derive(Debug, Default)]
pub struct BoardState {
    /// Between start and stop.
    pub phase: Phase,
    /// What is read.
    pub owned: BTreeMap<AssignmentId, OwnedPartition>,
    /// What is held.
    pub held: BTreeMap<Arc<TopicPartition>, Hold>,
    /// PostgreSQL.
    pub database: DatabaseState,
    /// Whether the brokers answer; `None` before the first answer.
    pub is_kafka_reachable: Option<bool>,
    /// Partitions that are not read now, as their lane or the spool is full.
    pub paused_count: usize,
    /// When the poll thread last spoke.
    pub polled_at: Option<Instant>,
    /// What was stored.
    pub totals: Totals,
    /// Dead letters among it, by reason; reasons that came up.
    pub rejections: BTreeMap<RejectionCode, u64>,
    /// Records that went to the spool since the start.
    pub spooled_count: u64,
    /// Dead letters on their way to Kafka.
    pub relay: RelayState,
    /// Records on the local disk.
    pub spool: SpoolState,
    /// Day files, by the name of the sink; those that are on.
    pub projections: BTreeMap<&'static str, ProjectionState>,
    /// From a record's own time to its commit.
    pub latencies: Latencies,
    /// When Kafka deletes a record that is neither in PostgreSQL nor in the spool, at the present rate.
    pub retention_loss_in_seconds: Option<f64>,
}

/// How many partitions are in each mode; those that are held count apart, but `draining` ones as what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModeCounts {
    /// Their records go to PostgreSQL.
    pub live: usize,
    /// Their records go to the spool.
    pub spooling: usize,
    /// What the spool holds of them goes to PostgreSQL.
    pub draining: usize,
    /// They are not read.
    pub held: usize,
}

impl ModeCounts {
    /// The mode of the process: the one that all partitions are in, or `mixed`, or `idle` where there are none.
    #[must_use]
    pub fn word(self) -> &'static str {
        let counts = [
            ("live", self.live),
            ("spooling", self.spooling),
            ("draining", self.draining),
            ("held", self.held),
        ];
        let mut present = counts.iter().filter(|(_, count)| *count > 0);
        match (present.next(), present.next()) {
            (None, _) => "idle",
            (Some((word, _)), None) => word,
            (Some(_), Some(_)) => "mixed",
        }
    }
}

impl BoardState {
    /// Whether many records wait in Kafka: what can wait itself lets them go first.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.owned.values().any(|owned| owned.lag().is_some_and(|lag| lag >= BACKLOG_COUNT))
    }

    /// How many partitions are in each mode.
    #[must_use]
    pub fn mode_counts(&self) -> ModeCounts {
        let mut counts = ModeCounts::default();
        for owned in self.owned.values() {
            match owned.mode {
                Mode::Live => counts.live += 1,
                Mode::Spooling => counts.spooling += 1,
                Mode::Draining => counts.draining += 1,
            }
        }
        for hold in self.held.values() {
            match hold.code {
                HoldCode::Draining => counts.draining += 1,
                _ => counts.held += 1,
            }
        }
        counts
    }

    /// Whether the poll thread has spoken within `patience`.
    #[must_use]
    pub fn is_polling(&self, now: Instant, patience: Duration) -> bool {
        self.polled_at.is_some_and(|at| now.saturating_duration_since(at) <= patience)
    }
}

/// A handle to the board.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<BoardState>>);

impl Board {
    /// The content, locked; never held across an await.
    pub fn lock(&self) -> MutexGuard<'_, BoardState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::position::{Partition, StreamId};
    use crate::observe::Clock;

    fn at(offset: i64) -> Offset {
        Offset::new(offset).unwrap()
    }

    /// At 10 of 100.
    fn owned() -> OwnedPartition {
        let partition = Partition(0);
        OwnedPartition {
            source: Arc::new(TopicPartition { topic: "t".into(), partition }),
            key: StreamPartition { stream: StreamId(uuid::Uuid::nil()), partition },
            epoch: Epoch(1),
            lane_index: 0,
            position: at(10),
            end: Some(at(100)),
            low: None,
            mode: Mode::Live,
            spooled_to: None,
            uncommitted: VecDeque::new(),
        }
    }

    #[test]
    fn one_partition_that_is_far_behind_is_a_backlog() {
        let mut state = BoardState::default();
        assert!(!state.has_backlog());
        state.owned.insert(AssignmentId(1), owned());
        let count = i64::try_from(BACKLOG_COUNT).unwrap();
        let behind = |count| OwnedPartition { end: Some(at(10 + count)), ..owned() };
        state.owned.insert(AssignmentId(2), behind(count - 1));
        assert!(!state.has_backlog());
        state.owned.insert(AssignmentId(2), behind(count));
        assert!(state.has_backlog());
        state.owned.insert(AssignmentId(2), OwnedPartition { end: None, ..owned() });
        assert!(!state.has_backlog(), "what is not known is none");
    }

    #[test]
    fn the_oldest_record_that_is_not_committed_is_told_until_it_is() {
        let mut owned = owned();
        assert_eq!(owned.oldest_uncommitted_ms(), None);
        owned.took(at(20), Some(1_000));
        owned.took(at(25), None);
        owned.took(at(30), Some(2_000));
        assert_eq!(owned.oldest_uncommitted_ms(), Some(1_000));
        owned.position = at(19);
        assert_eq!(owned.oldest_uncommitted_ms(), Some(1_000));
        owned.position = at(20);
        assert_eq!(
            (owned.oldest_uncommitted_ms(), owned.lag(), owned.kafka_lag()),
            (Some(2_000), Some(80), Some(80))
        );
        (owned.position, owned.spooled_to) = (at(30), Some(at(70)));
        assert_eq!(
            (owned.oldest_uncommitted_ms(), owned.lag(), owned.kafka_lag()),
            (None, Some(70), Some(30))
        );
    }

    #[test]
    fn the_mode_of_the_process_is_that_of_all_its_partitions() {
        let check = |live, spooling, draining, held, word| {
            assert_eq!(ModeCounts { live, spooling, draining, held }.word(), word);
        };
        check(0, 0, 0, 0, "idle");
        check(3, 0, 0, 0, "live");
        check(0, 3, 0, 0, "spooling");
        check(0, 0, 3, 0, "draining");
        check(0, 0, 0, 3, "held");
        check(1, 0, 2, 0, "mixed");
        check(0, 1, 0, 1, "mixed");
    }

    #[test]
    fn a_partition_that_waits_for_its_spool_counts_as_draining() {
        let mut board = BoardState::default();
        for (partition, code) in [HoldCode::Draining, HoldCode::TopicRecreated].into_iter().enumerate() {
            let partition = Partition(i32::try_from(partition).unwrap());
            let source = Arc::new(TopicPartition { topic: "t".into(), partition });
            let since = Clock::default().monotonic();
            board.held.insert(source, Hold { code, detail: String::new(), since });
        }
        assert_eq!(board.mode_counts(), ModeCounts { draining: 1, held: 1, ..ModeCounts::default() });
    }
}
