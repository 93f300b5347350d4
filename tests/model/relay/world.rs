//! What may happen when, and what the world does.

use super::{Action, Mutant, RELAYS, Relay, Relaying, State, Step, make_visible, reset};
use crate::graph::Notes;
use crate::ingest::state::Offsets;

impl Relaying {
    /// `init_transactions`: every earlier transaction is ended, and its producer fenced.
    pub(super) fn begin(&self, next: &mut State, relay: usize) {
        if !self.is(Mutant::NothingFenced) {
            next.open = Default::default();
            next.relays[1 - relay].is_fenced = true;
        }
        next.open[relay] = None;
        let own = &mut next.relays[relay];
        let known = own.known.filter(|_| self.is(Mutant::PositionBeforeInit));
        *own = Relay { step: Step::Begun, known, ..Relay::default() };
    }

    pub(super) fn relay_actions(&self, state: &State, actions: &mut Vec<Action>) {
        // Positions are read when they are stable, and a scan waits for open transactions to end.
        let is_stable = state.open.iter().all(Option::is_none);
        for (relay, own) in state.relays.iter().enumerate() {
            let leads = state.lock.map(usize::from) == Some(relay);
            if own.step != Step::Following && !leads {
                actions.push(Action::Notice(relay));
            }
            match own.step {
                Step::Following if state.lock.is_none() => actions.push(Action::Lead(relay)),
                Step::Leading => {
                    if self.is(Mutant::PositionBeforeInit) && own.known.is_none() && is_stable {
                        actions.push(Action::ReadPosition(relay));
                    } else {
                        actions.push(Action::Begin(relay));
                    }
                }
                Step::Begun => actions.push(Action::ReadRows(relay)),
                Step::RowsRead if is_stable => actions.push(Action::ReadPosition(relay)),
                Step::PositionKnown if own.rows.is_empty() => actions.push(Action::Begin(relay)),
                Step::PositionKnown if is_stable => actions.push(Action::LookUp(relay)),
                Step::LookedUp => actions.push(Action::Send(relay)),
                Step::Sent => {
                    actions.push(Action::Commit(relay));
                    if state.left > 0 && state.open[relay].is_some() {
                        actions.push(Action::CommitUnanswered(relay));
                    }
                }
                Step::Committed if is_stable => actions.push(Action::ReadBack(relay)),
                Step::Proved => actions.push(Action::Mark(relay)),
                _ => {}
            }
        }
    }

    pub(super) fn world_actions(&self, state: &State, actions: &mut Vec<Action>) {
        // Records come in order; after a failover another one of a pair may be the dead letter.
        for letter in (0..self.letters).filter(|letter| !state.table.rows.has(*letter)) {
            if state.had_failover || Offsets::of(0, letter).without(state.table.rows).is_empty() {
                actions.push(Action::Store(letter));
            }
        }
        for relay in 0..RELAYS {
            let Some(open) = state.open[relay] else { continue };
            if open.is_ending {
                actions.push(Action::LateCommit(relay));
            }
            let is_awaited = state.relays[relay].step == Step::Sent;
            if !is_awaited {
                actions.push(Action::BrokerAborts(relay));
            } else if state.left > 0 {
                actions.push(Action::Stall(relay));
            }
            let may_tear = is_awaited && state.relays[relay].has_committed;
            if may_tear && state.left > 0 && !open.letters.is_empty() {
                actions.push(Action::Tear(relay));
            }
        }
        if state.left == 0 {
            return;
        }
        if state.standby != state.table {
            actions.extend([Action::Replicate, Action::FailOver]);
        }
        for (relay, _) in state.relays.iter().enumerate().filter(|(_, own)| own.step != Step::Following) {
            actions.push(Action::Crash(relay));
        }
        if state.lock.is_some() {
            actions.push(Action::LoseLock);
        }
        if state.position.is_some() {
            actions.push(Action::LosePosition);
        }
    }

    pub(super) fn happen(&self, next: &mut State, action: Action, notes: &mut Notes) {
        match action {
            Action::Store(letter) => next.table.rows = next.table.rows.or(Offsets::of(letter, letter + 1)),
            Action::Lead(relay) => {
                next.lock = u8::try_from(relay).ok();
                reset(&mut next.relays[relay]);
            }
            Action::Notice(relay) => next.relays[relay] = Relay::default(),
            Action::CommitUnanswered(relay) => {
                let own = &mut next.relays[relay];
                if self.is(Mutant::MarkByBelief) {
                    own.step = Step::Proved;
                } else {
                    reset(own);
                }
                if let Some(open) = next.open[relay].as_mut() {
                    open.is_ending = true;
                }
            }
            Action::LateCommit(relay) => {
                notes.note("a commit without an answer was done");
                self.end(next, relay);
            }
            Action::BrokerAborts(relay) => next.open[relay] = None,
            Action::Stall(relay) => {
                // The broker's limit of a transaction has passed: it is aborted, and its producer fenced.
                next.open[relay] = None;
                next.relays[relay].is_fenced = true;
            }
            Action::Tear(relay) => {
                if let Some(open) = next.open[relay].as_mut() {
                    let letters = std::mem::take(&mut open.letters);
                    make_visible(next, letters);
                }
            }
            Action::Replicate => next.standby = next.table,
            Action::FailOver => {
                if !next.table.marked.without(next.standby.marked).is_empty() {
                    notes.note("a failover took marks back");
                }
                next.table = next.standby;
                next.lock = None;
                next.had_failover = true;
            }
            Action::Crash(relay) => {
                next.relays[relay] = Relay::default();
                next.lock = next.lock.filter(|lock| usize::from(*lock) != relay);
            }
            Action::LoseLock => next.lock = None,
            Action::LosePosition => next.position = None,
            _ => {}
        }
    }
}
