//! From Kafka to PostgreSQL: claims, commits, the spool and its drain, gaps, in two instances that may both believe
//! that a partition is theirs. Not timed: whatever a timer does may happen at any moment, but where a comment says
//! that one wait is longer than another.
//!
//! One step is atomic where the code is: a transaction of PostgreSQL, an append with its sync, one message to the loop.
//! A COMMIT without an answer is none: the server may do it at any later moment, or never.

mod database;
mod lane;
mod outage;
pub mod state;
mod world;

use audit_consumer::model::spool::mode::{Mode, ModeEvent};
use stateright::{Model, Property};

use self::state::{
    Database, FAULTS, Fault, INSTANCES, Instance, Kafka, PARTITIONS, Slot, State, Work, Wrong,
};
use crate::graph::{Notes, Protocol};

/// Switches one guard of the protocol off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A commit moves the position to the batch's end wherever it stands.
    NoCompareAndSet,
    /// A commit does not look at the epoch.
    NoEpoch,
    /// Records that Kafka has deleted are passed over as absent.
    GapSkipped,
    /// Holes before what the spool holds are passed over as absent.
    HoleSkipped,
    /// Idle partitions are never verified.
    NoVerifyTimer,
    /// A partition is read from Kafka while the spool holds its position.
    LiveBeforeDrain,
    /// A gap is declared whatever other instances' spools hold.
    GapIgnoresSpools,
    /// Batches over a gap are dropped without being set aside.
    NothingSetAside,
    /// What was drained is not kept.
    NothingKept,
    /// What was drained and taken back is not told in `spool_ranges`.
    DrainedNotTold,
    /// It is held again by the partition's owner only.
    StrayNotHeldAgain,
}

impl Mutant {
    pub const ALL: [Self; 11] = [
        Self::NoCompareAndSet,
        Self::NoEpoch,
        Self::GapSkipped,
        Self::HoleSkipped,
        Self::NoVerifyTimer,
        Self::LiveBeforeDrain,
        Self::GapIgnoresSpools,
        Self::NothingSetAside,
        Self::NothingKept,
        Self::DrainedNotTold,
        Self::StrayNotHeldAgain,
    ];
}

/// What is explored.
#[derive(Debug, Clone)]
pub struct Ingest {
    pub partitions: usize,
    /// How many records each partition has.
    pub records: u8,
    /// The offset, in partition 0, that PostgreSQL refuses as an event.
    pub poison: u8,
    /// How many faults in all, and of each kind, in the order of [`Fault`].
    pub faults: u8,
    pub faults_of: [u8; FAULTS],
    pub mutant: Option<Mutant>,
}

/// An instance and a partition.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct At {
    instance: usize,
    partition: usize,
}

impl std::fmt::Debug for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} partition {}", ["A", "B"][self.instance], self.partition)
    }
}

/// A step; what it stands for in the code tells [`code_of`]. Numbers alone are an instance, or where they stand beside
/// one: partitions as bits, records, an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Claim(At),
    DeclareGap(At),
    Read(At),
    Commit(usize, u8),
    CommitUnanswered(usize, u8),
    LateCommit(usize),
    LateRollback(usize),
    Look(usize),
    Learn(At),
    Mirror(At),
    BeginSpooling(usize),
    PlaceInSpool(At),
    Append(At, u8),
    EndSpooling(usize),
    Feed(At),
    EndDrain(At),
    Publish(usize),
    SetAside(At),
    Trim(At),
    StoreStray(At),
    RestoreStray(At),
    FillGap(At),
    Replicate,
    DatabaseReturns,
    Restart(usize),
    FailAway(usize),
    DatabaseFails,
    FailOver,
    Crash(usize),
    LoseDisk(usize),
    Rebalance(usize),
    Retention(usize, u8),
}

impl Action {
    const fn fault(self) -> Option<Fault> {
        match self {
            Self::Crash { .. } => Some(Fault::Crash),
            Self::LoseDisk { .. } => Some(Fault::DiskLoss),
            Self::DatabaseFails => Some(Fault::Outage),
            Self::FailOver => Some(Fault::Failover),
            Self::Rebalance { .. } => Some(Fault::Rebalance),
            Self::CommitUnanswered { .. } => Some(Fault::UnknownCommit),
            Self::Retention { .. } => Some(Fault::Retention),
            _ => None,
        }
    }
}

impl Ingest {
    /// `faults` faults of any kind over one partition.
    pub const fn any(records: u8, faults: u8) -> Self {
        Self { partitions: 1, records, poison: 1, faults, faults_of: [faults; FAULTS], mutant: None }
    }

    pub const fn with(mut self, mutant: Mutant) -> Self {
        self.mutant = Some(mutant);
        self
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

/// The mode of `work`, to check that modes change as `model/spool/mode.rs` says.
const fn mode_of(work: Work) -> Option<Mode> {
    match work {
        Work::Live => Some(Mode::Live),
        Work::Spooling => Some(Mode::Spooling),
        Work::Draining => Some(Mode::Draining),
        Work::NotOurs | Work::Held => None,
    }
}

/// Whether a partition may go from `from` to `to` by one of `events`.
fn may_follow(from: Work, to: Work, events: &[ModeEvent]) -> bool {
    match (mode_of(from), mode_of(to)) {
        (Some(from), Some(to)) => from == to || events.iter().any(|event| from.after(*event) == to),
        _ => true,
    }
}

impl Model for Ingest {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut instances = [Instance { is_up: true, ..Instance::default() }; INSTANCES];
        let mut kafka = Kafka::default();
        for partition in 0..self.partitions {
            let owner = partition % INSTANCES;
            // All of one instance when there are two: its lane has both in one batch.
            let owner = if self.partitions > 1 { 0 } else { owner };
            kafka.owner[partition] = u8::try_from(owner).expect("an index");
            instances[owner].slots[partition] = Slot::held();
        }
        let state = State {
            database: Database::default(),
            standby: Database::default(),
            is_database_up: true,
            kafka,
            instances,
            left: self.faults,
            left_of: self.faults_of,
            had_failover: false,
            wrong: None,
        };
        vec![self.canonical(state)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.wrong.is_some() {
            return;
        }
        self.work_actions(state, actions);
        self.world_actions(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.step(state, &action, &mut Notes::default()).map(|next| self.canonical(next))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no event is stored twice", |_, own: &State| own.is_not(Wrong::StoredTwice)),
            Property::always("nothing is lost below the position", |_, own: &State| {
                own.is_not(Wrong::LostBelowPosition)
            }),
            Property::always("a zombie stores nothing", |_, own: &State| own.is_not(Wrong::StoredByZombie)),
            Property::always("no gap is declared over what is held", |_, own: &State| {
                own.is_not(Wrong::GapOverHeld)
            }),
            Property::always("we never drop the last copy", |_, own: &State| {
                own.is_not(Wrong::LastCopyDropped)
            }),
            Property::always("modes change as their table says", |_, own: &State| {
                own.is_not(Wrong::ModeSkipped)
            }),
        ]
    }
}

impl Protocol for Ingest {
    fn step(&self, state: &State, action: &Action, notes: &mut Notes) -> Option<State> {
        let mut next = *state;
        if let Some(fault) = action.fault() {
            next.left -= 1;
            next.left_of[fault as usize] -= 1;
        }
        self.apply(&mut next, *action, notes)?;
        if next == *state {
            return None;
        }
        if action.fault().is_none() && self.has_dropped(state, &next) {
            next.wrong = Some(Wrong::LastCopyDropped);
        }
        Some(next)
    }

    fn canonical(&self, state: State) -> State {
        state.canonical(self.partitions)
    }

    fn is_fault(&self, action: &Action) -> bool {
        action.fault().is_some()
    }

    /// All is read and stored, but for what was lost everywhere before it could be.
    fn is_goal(&self, state: &State) -> bool {
        state.wrong.is_none()
            && state.is_database_up
            && (0..self.partitions).all(|partition| {
                let row = state.database.rows[partition];
                row.position == self.records
                    && row.gaps.and(self.outside(state, partition)).is_empty()
                    && state.instances.iter().all(|own| own.late[partition].end == 0)
            })
    }

    fn code_of(&self, action: &Action) -> &'static str {
        code_of(action)
    }

    fn expected_notes(&self) -> &'static [&'static str] {
        &[
            "a stale commit was refused",
            "a zombie was refused by its epoch",
            "a commit without an answer was found stored",
            "a failover took a position back",
            "a position that moved was obeyed",
            "a batch was halved until its poison stood alone",
            "a dead letter was stored",
            "a spooled batch was trimmed",
            "a stray was stored",
            "a stray was held again",
            "a gap was declared",
            "a gap was kept back by another's spool",
            "a batch over a gap was set aside",
            "a gap was filled",
        ]
    }
}

impl Ingest {
    fn apply(&self, next: &mut State, action: Action, notes: &mut Notes) -> Option<()> {
        match action {
            Action::Claim(at) => self.claim(next, at),
            Action::DeclareGap(at) => self.declare_gap(next, at, notes),
            Action::Read(at) => self.read(next, at),
            Action::Commit(instance, partitions) => self.commit(next, instance, partitions, notes),
            Action::CommitUnanswered(instance, partitions) => self.send(next, instance, partitions),
            Action::LateCommit(instance) => self.late_commit(next, instance, notes),
            Action::LateRollback(instance) => {
                next.instances[instance].late = Default::default();
                Some(())
            }
            Action::Look(instance) => self.look(next, instance, notes),
            Action::Learn(at) => self.learn(next, at),
            Action::BeginSpooling(instance) => self.begin_spooling(next, instance),
            Action::PlaceInSpool(at) => self.place_in_spool(next, at),
            Action::Append(at, records) => self.append(next, at, records),
            Action::EndSpooling(instance) => self.end_spooling(next, instance),
            Action::Mirror(at) => {
                let slot = &next.instances[at.instance].slots[at.partition];
                next.kafka.mirror[at.partition] = Some(slot.position);
                Some(())
            }
            Action::Feed(at) => self.feed(next, at, notes),
            Action::EndDrain(at) => self.end_drain(next, at),
            Action::Publish(instance) => self.publish(next, instance),
            Action::SetAside(at) => self.set_aside(next, at, notes),
            Action::Trim(at) => self.trim(next, at),
            Action::StoreStray(at) => self.store_stray(next, at, notes),
            Action::RestoreStray(at) => {
                let position = next.database.rows[at.partition].position;
                notes.note("a stray was held again");
                self.restore(next, at, position)
            }
            Action::FillGap(at) => self.fill_gap(next, at, notes),
            _ => self.happen(next, action, notes),
        }
    }
}

fn code_of(action: &Action) -> &'static str {
    match action {
        Action::Claim(..) => "pipeline/claims.rs: place, answered, adopt; store/claim.rs: claim_one",
        Action::DeclareGap(..) => "pipeline/claims.rs: declare_overdue_gap; store/gaps.rs: declare_gap",
        Action::Read(..) => "source/poller.rs; pipeline/lane.rs: take",
        Action::Commit(..) => "pipeline/lane.rs: start_work, settle; store/commit.rs: commit",
        Action::CommitUnanswered(..) => "pipeline/work.rs: run (no answer); lane/troubles.rs: failed",
        Action::LateCommit(..) | Action::LateRollback(..) => "PostgreSQL, on a session that we closed",
        Action::Look(..) => "store/claim.rs: adopt_claims, positions; lane/beliefs.rs: compare",
        Action::Learn(..) => "pipeline/mod.rs: obey (Revoked)",
        Action::BeginSpooling(..) => "pipeline/outage.rs: begin_spooling",
        Action::PlaceInSpool(..) => "pipeline/outage.rs: spool_from; model/spool/ranges.rs: spool_start",
        Action::Append(..) => "pipeline/spooler.rs: take, begin_append",
        Action::EndSpooling(..) => "pipeline/outage.rs: probe, end_spooling",
        Action::Mirror(..) => "pipeline/mod.rs: mirror",
        Action::Feed(..) => "pipeline/drainer.rs: pass, feed; model/record.rs: Chunk::from",
        Action::EndDrain(..) => "pipeline/outage.rs: is_draining",
        Action::Publish(..) => "outage/holdings.rs: publish_ranges",
        Action::SetAside(..) => "pipeline/strays.rs: set_aside",
        Action::Trim(..) => "outage/sorting.rs: drained_positions; spool/drain.rs: mark_drained",
        Action::StoreStray(..) => "outage/sorting.rs: start_strays; pipeline/strays.rs: pass",
        Action::RestoreStray(..) => "outage/sorting.rs: StrayWork::run; spool/restore.rs: restore",
        Action::FillGap(..) => "cli/spool/drain.rs: fill_gaps; store/gaps.rs: fill_gap",
        Action::Restart(..) => "app.rs; spool/recover.rs",
        Action::Replicate | Action::DatabaseReturns | Action::DatabaseFails | Action::FailOver => {
            "PostgreSQL"
        }
        Action::FailAway(..) | Action::Rebalance(..) | Action::Retention(..) => "Kafka",
        Action::Crash(..) | Action::LoseDisk(..) => "the machine",
    }
}

const _: () = assert!(PARTITIONS == 2 && INSTANCES == 2);
