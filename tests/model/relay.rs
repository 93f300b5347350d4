//! From PostgreSQL to the dead letter topic: two relays of a group, of which each may believe that it leads, one
//! source partition. What to send is decided by the functions of `relay/plan.rs` themselves.
//!
//! A transaction is open with letters and position in it, or committed as a whole; who begins ends it. A commit
//! without an answer is done by the broker before the next relay begins, or never. A tear is KIP-890's anomaly.

mod world;

use std::collections::HashMap;

use audit_consumer::model::dead_letter::{DeadLetterId, LetterName};
use audit_consumer::model::position::{Partition, StreamId, StreamPartition};
use audit_consumer::outlet::Position;
use audit_consumer::relay::plan::{self, Positions, Rebuild};
use stateright::{Model, Property};
use uuid::Uuid;

use crate::graph::{Notes, Protocol};
use crate::ingest::state::{Offsets, offset, plain};

/// How many letters there are at most, and relays.
const LETTERS: usize = 4;
const RELAYS: usize = 2;
const KEY: StreamPartition = StreamPartition { stream: StreamId(Uuid::nil()), partition: Partition(0) };

/// Switches one guard of the protocol off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The position is read before earlier producers are fenced.
    PositionBeforeInit,
    /// Rows are marked though the commit was not answered.
    MarkByBelief,
    /// Rows below the position are taken for sent.
    BelowIsSent,
    /// Rows below the position are sent again.
    NothingLookedUp,
    /// Each relay has a `transactional.id` of its own.
    NothingFenced,
    /// A committed position is believed, whatever letters stand behind it.
    PositionBelieved,
}

impl Mutant {
    pub const ALL: [Self; 6] = [
        Self::PositionBeforeInit,
        Self::MarkByBelief,
        Self::BelowIsSent,
        Self::NothingLookedUp,
        Self::NothingFenced,
        Self::PositionBelieved,
    ];
}

#[derive(Debug, Clone)]
pub struct Relaying {
    pub letters: u8,
    pub faults: u8,
    pub mutant: Option<Mutant>,
}

/// How far a relay is with a round.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Step {
    #[default]
    Following,
    Leading,
    /// In charge: earlier producers are fenced.
    Begun,
    RowsRead,
    PositionKnown,
    LookedUp,
    Sent,
    Committed,
    Proved,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Relay {
    pub step: Step,
    pub is_fenced: bool,
    /// Whether it has committed a transaction since it began: only then one may be torn.
    pub has_committed: bool,
    pub known: Option<u8>,
    pub rows: Offsets,
    pub found: Offsets,
    pub sent: Offsets,
}

/// The rows of `dead_letters`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Table {
    pub rows: Offsets,
    pub marked: Offsets,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Open {
    pub owner: u8,
    pub letters: Offsets,
    pub next: u8,
    /// Whether its commit is on its way, and nobody waits for the answer.
    pub is_ending: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct State {
    pub table: Table,
    pub standby: Table,
    /// How often each letter is there for a reader of `read_committed`.
    pub topic: [u8; LETTERS],
    /// The committed position, and whose latest transaction it names.
    pub position: Option<(u8, Option<u8>)>,
    pub open: [Option<Open>; RELAYS],
    pub lock: Option<u8>,
    pub relays: [Relay; RELAYS],
    pub left: u8,
    pub had_failover: bool,
    pub is_marked_wrongly: bool,
}

/// A step; a number is a relay, or a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Store(u8),
    Lead(usize),
    Notice(usize),
    Begin(usize),
    ReadRows(usize),
    ReadPosition(usize),
    LookUp(usize),
    Send(usize),
    Commit(usize),
    CommitUnanswered(usize),
    LateCommit(usize),
    BrokerAborts(usize),
    ReadBack(usize),
    Mark(usize),
    Replicate,
    FailOver,
    Crash(usize),
    LoseLock,
    LosePosition,
    Tear(usize),
    Stall(usize),
}

fn id(letter: u8) -> DeadLetterId {
    DeadLetterId { key: KEY, offset: offset(letter) }
}

fn ids(letters: Offsets) -> Vec<DeadLetterId> {
    (0..8).filter(|letter| letters.has(*letter)).map(id).collect()
}

fn letters(ids: &[DeadLetterId]) -> Offsets {
    ids.iter().fold(Offsets::default(), |all, id| {
        let letter = plain(id.offset);
        all.or(Offsets::of(letter, letter + 1))
    })
}

fn positions(next: u8) -> Positions {
    let position = Position { stream: KEY.stream, next: offset(next), transaction: Uuid::nil(), handover: 0 };
    HashMap::from([(KEY.partition, position)])
}

fn next_of(positions: &Positions) -> u8 {
    positions.get(&KEY.partition).map_or(0, |position| plain(position.next))
}

impl State {
    pub fn visible(&self) -> Offsets {
        let all: Vec<DeadLetterId> =
            (0u8..).zip(self.topic).filter(|(_, count)| *count > 0).map(|(letter, _)| id(letter)).collect();
        letters(&all)
    }

    fn swapped(mut self) -> Self {
        let swap = |relay: &mut u8| *relay = 1 - *relay;
        self.relays.swap(0, 1);
        self.open.swap(0, 1);
        self.open.iter_mut().flatten().for_each(|open| swap(&mut open.owner));
        self.lock.iter_mut().for_each(swap);
        if let Some((_, Some(name))) = &mut self.position {
            swap(name);
        }
        self
    }
}

impl Relaying {
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The position, or what the letters in the topic tell where it is gone or behind: `relay/letters.rs:
    /// learn_positions`.
    fn position(&self, state: &State, notes: &mut Notes) -> u8 {
        let committed = state.position.map(|(next, _)| next);
        if let Some(next) = committed.filter(|_| self.is(Mutant::PositionBelieved)) {
            return next;
        }
        let mut rebuild = Rebuild::new((KEY.stream, 0), Some("g"), &[KEY.partition]);
        for id in ids(state.visible()) {
            rebuild.see(&LetterName { id, group: "g".into() });
        }
        let told = rebuild.finish();
        if next_of(&told) > 0 && committed.is_none() {
            notes.note("a lost position was rebuilt from the letters");
        }
        if committed.is_some_and(|next| next < next_of(&told)) {
            notes.note("a position was behind its letters");
        }
        next_of(&plan::later(committed.map(positions).unwrap_or_default(), told))
    }

    /// `relay/letters.rs: relay_with`: what of the rows is in the topic already.
    fn look_up(&self, next: &mut State, relay: usize, notes: &mut Notes) {
        let visible = next.visible();
        let own = &mut next.relays[relay];
        let unsure = letters(&plan::unsure(&ids(own.rows), &positions(own.known.unwrap_or(0))));
        own.found = match self.mutant {
            Some(Mutant::BelowIsSent) => unsure,
            Some(Mutant::NothingLookedUp) => Offsets::default(),
            _ => unsure.and(visible),
        };
        if !own.found.is_empty() {
            notes.note("a letter was found in the topic by its id");
        }
        if !unsure.without(own.found).is_empty() {
            notes.note("a letter below the position was not there, and is sent");
        }
        own.sent = own.rows.without(own.found);
        own.step = if own.sent.is_empty() { Step::Proved } else { Step::LookedUp };
    }

    fn send(&self, next: &mut State, relay: usize, notes: &mut Notes) {
        let own = &mut next.relays[relay];
        if own.is_fenced {
            notes.note("a relay was fenced");
            return reset(own);
        }
        let sent = ids(own.sent);
        let after = plan::advanced((KEY.stream, 0), &positions(own.known.unwrap_or(0)), &sent, Uuid::nil());
        own.step = Step::Sent;
        next.open[relay] = Some(Open {
            owner: u8::try_from(relay).expect("an index"),
            letters: own.sent,
            next: next_of(&after),
            is_ending: false,
        });
        let name = u8::try_from(relay).ok();
        if let Some((_, named)) = &mut next.position
            && *named == name
        {
            // That was an earlier transaction of ours.
            *named = None;
        }
    }

    fn commit(&self, next: &mut State, relay: usize, notes: &mut Notes) {
        let own = &mut next.relays[relay];
        if own.is_fenced || next.open[relay].is_none() {
            notes.note("a relay was fenced");
            return reset(own);
        }
        own.step = Step::Committed;
        own.has_committed = true;
        self.end(next, relay);
    }

    /// The broker commits what is open.
    pub fn end(&self, next: &mut State, relay: usize) {
        if let Some(open) = next.open[relay].take() {
            make_visible(next, open.letters);
            next.position = Some((open.next, Some(open.owner)));
        }
    }

    fn read_back(&self, next: &mut State, relay: usize, notes: &mut Notes) {
        let own = &mut next.relays[relay];
        let ours =
            plan::advanced((KEY.stream, 0), &positions(own.known.unwrap_or(0)), &ids(own.sent), Uuid::nil());
        let expected = (next_of(&ours), u8::try_from(relay).ok());
        if next.position == Some(expected) {
            own.known = Some(expected.0);
            own.step = Step::Proved;
        } else {
            notes.note("a transaction was not proved by reading it back");
            reset(own);
        }
    }

    fn mark(&self, next: &mut State, relay: usize) {
        let visible = next.visible();
        let own = &mut next.relays[relay];
        let marked = own.found.or(own.sent).and(next.table.rows);
        next.is_marked_wrongly |= !marked.without(next.table.marked).without(visible).is_empty();
        next.table.marked = next.table.marked.or(marked);
        (own.rows, own.found, own.sent) = Default::default();
        own.step = Step::Begun;
    }
}

/// Drops the producer and begins again; `Letters::reset`.
pub fn reset(relay: &mut Relay) {
    *relay = Relay { step: Step::Leading, ..Relay::default() };
}

pub fn make_visible(next: &mut State, letters: Offsets) {
    for (letter, count) in (0u8..).zip(&mut next.topic) {
        *count += u8::from(letters.has(letter));
    }
}

impl Model for Relaying {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            table: Table::default(),
            standby: Table::default(),
            topic: [0; LETTERS],
            position: None,
            open: [None; RELAYS],
            lock: None,
            relays: [Relay::default(); RELAYS],
            left: self.faults,
            had_failover: false,
            is_marked_wrongly: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let is_over = state.is_marked_wrongly || state.topic.iter().any(|count| *count > 1);
        if !is_over {
            self.relay_actions(state, actions);
            self.world_actions(state, actions);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.step(state, &action, &mut Notes::default()).map(|next| self.canonical(next))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a letter is in the topic at most once", |_, state: &State| {
                state.topic.iter().all(|count| *count <= 1)
            }),
            Property::always("a row is marked only if its letter is there", |_, state: &State| {
                !state.is_marked_wrongly
            }),
        ]
    }
}

impl Protocol for Relaying {
    fn step(&self, state: &State, action: &Action, notes: &mut Notes) -> Option<State> {
        let mut next = *state;
        match *action {
            Action::Begin(relay) => self.begin(&mut next, relay),
            Action::ReadRows(relay) => {
                let rows = next.table.rows.without(next.table.marked);
                if !rows.is_empty() {
                    (next.relays[relay].rows, next.relays[relay].step) = (rows, Step::RowsRead);
                }
            }
            Action::ReadPosition(relay) => {
                let position = next.relays[relay].known.unwrap_or_else(|| self.position(state, notes));
                (next.relays[relay].known, next.relays[relay].step) = (Some(position), Step::PositionKnown);
            }
            Action::LookUp(relay) => self.look_up(&mut next, relay, notes),
            Action::Send(relay) => self.send(&mut next, relay, notes),
            Action::Commit(relay) => self.commit(&mut next, relay, notes),
            Action::ReadBack(relay) => self.read_back(&mut next, relay, notes),
            Action::Mark(relay) => self.mark(&mut next, relay),
            _ => self.happen(&mut next, *action, notes),
        }
        if self.is_fault(action) {
            next.left -= 1;
        }
        (next != *state).then_some(next)
    }

    fn canonical(&self, mut state: State) -> State {
        if state.left == 0 {
            state.standby = state.table;
        }
        let swapped = state.swapped();
        if swapped < state { swapped } else { state }
    }

    fn is_fault(&self, action: &Action) -> bool {
        matches!(
            action,
            Action::CommitUnanswered(_)
                | Action::FailOver
                | Action::Crash(_)
                | Action::LoseLock
                | Action::LosePosition
                | Action::Tear(_)
                | Action::Stall(_)
        )
    }

    fn is_goal(&self, state: &State) -> bool {
        let all = Offsets::of(0, self.letters);
        state.table == Table { rows: all, marked: all } && state.visible() == all
    }

    fn code_of(&self, action: &Action) -> &'static str {
        match action {
            Action::Store(_) => "store/commit.rs: copy_dead_letters",
            Action::Lead(_) => "relay/mod.rs: lead; store/dead_letters.rs: lead_relay",
            Action::Notice(_) => "relay/mod.rs: lose_session",
            Action::Begin(_) => "relay/letters.rs: begin; outlet/producer.rs: start",
            Action::ReadRows(_) => "store/dead_letters.rs: waiting_letters",
            Action::ReadPosition(_) => "relay/letters.rs: learn_positions; relay/plan.rs: Rebuild",
            Action::LookUp(_) => "relay/letters.rs: relay_with, find; relay/plan.rs: unsure",
            Action::Send(_) => "outlet/producer.rs: send; relay/plan.rs: advanced",
            Action::Commit(_) | Action::CommitUnanswered(_) => "outlet/producer.rs: transact",
            Action::ReadBack(_) => "relay/letters.rs: prove",
            Action::Mark(_) => "store/dead_letters.rs: mark_relayed",
            Action::LateCommit(_) | Action::BrokerAborts(_) => "Kafka's transaction coordinator",
            Action::LosePosition | Action::Tear(_) | Action::Stall(_) => "Kafka",
            Action::Replicate | Action::FailOver | Action::LoseLock => "PostgreSQL",
            Action::Crash(_) => "the machine",
        }
    }

    fn expected_notes(&self) -> &'static [&'static str] {
        &[
            "a relay was fenced",
            "a letter was found in the topic by its id",
            "a letter below the position was not there, and is sent",
            "a lost position was rebuilt from the letters",
            "a position was behind its letters",
            "a transaction was not proved by reading it back",
            "a commit without an answer was done",
            "a failover took marks back",
        ]
    }
}
