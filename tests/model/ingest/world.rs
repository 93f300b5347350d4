//! What may happen when: the guards of all steps, and what the world does.

use audit_consumer::model::spool::ranges;

use super::state::{Disk, Fault, INSTANCES, Instance, Slot, State, Work, offset};
use super::{Action, At, Ingest, Mutant};
use crate::graph::Notes;

impl Ingest {
    /// What our code may do.
    pub(super) fn work_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for instance in 0..INSTANCES {
            let own = &state.instances[instance];
            if own.late.iter().any(|part| part.end > 0) {
                actions.extend([Action::LateCommit(instance), Action::LateRollback(instance)]);
            }
            if state.is_database_up {
                self.operator_actions(state, instance, actions);
            }
            if !own.is_up {
                continue;
            }
            for partition in 0..self.partitions {
                self.partition_actions(state, At { instance, partition }, actions);
            }
            if own.is_spooling {
                if state.is_database_up {
                    actions.push(Action::EndSpooling(instance));
                }
            } else if !state.is_database_up {
                actions.push(Action::BeginSpooling(instance));
            } else {
                self.lane_actions(state, instance, actions);
                let told = |partition: usize| self.told(state, instance, partition);
                if (0..self.partitions)
                    .any(|partition| state.database.published[instance][partition] != told(partition))
                {
                    actions.push(Action::Publish(instance));
                }
            }
        }
    }

    /// An operator fills gaps from the disk of an instance that is stopped for it, or is gone.
    fn operator_actions(&self, state: &State, instance: usize, actions: &mut Vec<Action>) {
        let own = &state.instances[instance];
        for partition in 0..self.partitions {
            let here = own.disk.held[partition].offsets().or(own.disk.aside[partition]);
            if !here.and(state.database.rows[partition].gaps).is_empty() && !own.is_spooling {
                actions.push(Action::FillGap(At { instance, partition }));
            }
        }
    }

    fn lane_actions(&self, state: &State, instance: usize, actions: &mut Vec<Action>) {
        let own = &state.instances[instance];
        let has_records = |partition: &usize| {
            let slot = &own.slots[*partition];
            slot.has_lane() && slot.commit_end() > slot.position
        };
        let ready = (0..self.partitions).filter(has_records).fold(0u8, |all, partition| all | 1 << partition);
        // Without the timer only a batch brings a lane to a session, and a new session to a look.
        let has_timer = !self.is(Mutant::NoVerifyTimer);
        if own.slots.iter().any(Slot::has_lane) && (has_timer || (own.must_look && ready != 0)) {
            actions.push(Action::Look(instance));
        }
        if own.must_look {
            return;
        }
        for partitions in (1..=ready).filter(|chosen| chosen & !ready == 0) {
            actions.push(Action::Commit(instance, partitions));
            if state.may(Fault::UnknownCommit) && own.late.iter().all(|part| part.end == 0) {
                actions.push(Action::CommitUnanswered(instance, partitions));
            }
        }
    }

    fn partition_actions(&self, state: &State, at: At, actions: &mut Vec<Action>) {
        let At { instance, partition } = at;
        let own = &state.instances[instance];
        let slot = &own.slots[partition];
        if slot.work != Work::NotOurs && usize::from(state.kafka.owner[partition]) != instance {
            actions.push(Action::Learn(at));
        }
        if slot.has_lane()
            && usize::from(state.kafka.owner[partition]) == instance
            && state.may_spool()
            && state.kafka.mirror[partition] != Some(slot.position)
        {
            actions.push(Action::Mirror(at));
        }
        let is_connected = state.is_database_up && !own.is_spooling;
        match slot.work {
            Work::Held if own.is_spooling => actions.push(Action::PlaceInSpool(at)),
            Work::Held if is_connected => {
                actions.push(Action::Claim(at));
                if self.is_gap_overdue(state, At { instance, partition }) {
                    actions.push(Action::DeclareGap(at));
                }
            }
            Work::Live if slot.read_to < self.records => actions.push(Action::Read(at)),
            Work::Spooling => {
                for records in [1, 2].into_iter().filter(|count| slot.read_to + count <= self.records) {
                    if !own.disk.held[partition].is_full() {
                        actions.push(Action::Append(at, records));
                    }
                }
            }
            Work::Draining => match self.next_fed(state, At { instance, partition }) {
                Some(_) => actions.push(Action::Feed(at)),
                None if is_connected && slot.position == slot.read_to => {
                    actions.push(Action::EndDrain(at));
                }
                None => {}
            },
            Work::NotOurs | Work::Held | Work::Live => {}
        }
        if is_connected {
            self.holding_actions(state, at, actions);
        }
    }

    /// What a pass over the spool does while PostgreSQL is there.
    fn holding_actions(&self, state: &State, at: At, actions: &mut Vec<Action>) {
        let At { instance, partition } = at;
        let own = &state.instances[instance];
        let position = state.database.rows[partition].position;
        let held = &own.disk.held[partition];
        let is_aside = self.not_aside(state, At { instance, partition }).is_empty();
        if !is_aside {
            actions.push(Action::SetAside(at));
        }
        if (is_aside || self.is(Mutant::NothingSetAside)) && held.iter().any(|(_, end)| end <= position) {
            actions.push(Action::Trim(at));
        }
        if own.slots[partition].work == Work::NotOurs
            && ranges::holds(&held.ranges(), offset(position))
            && state.kafka.low[partition] > position
        {
            actions.push(Action::StoreStray(at));
        }
        if !self.is(Mutant::StrayNotHeldAgain)
            && own.slots[partition].work == Work::NotOurs
            && own.disk.drained[partition].iter().any(|(_, end)| end > position)
            && state.kafka.low[partition] > position
        {
            actions.push(Action::RestoreStray(at));
        }
    }

    /// Whether deleted records were waited for long enough: `GAP_WAIT` is an hour, and an instance that lives and
    /// reaches PostgreSQL looks for drained segments at once, and tells what it holds every 10 s.
    fn is_gap_overdue(&self, state: &State, At { instance, partition }: At) -> bool {
        let position = state.database.rows[partition].position;
        let own = &state.instances[instance];
        let has_drained = own.disk.drained[partition].iter().any(|(_, end)| end > position);
        let have_told = state.instances.iter().enumerate().all(|(index, other)| {
            let held = self.told(state, index, partition);
            !other.is_up || (!other.is_spooling && state.database.published[index][partition] == held)
        });
        have_told && !has_drained && self.deleted_to(state, At { instance, partition }).is_some()
    }

    /// What the world may do.
    pub(super) fn world_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.is_database_up {
            actions.push(Action::DatabaseReturns);
        }
        if state.may(Fault::Failover) {
            actions.push(Action::FailOver);
            if state.standby != state.database && state.is_database_up {
                actions.push(Action::Replicate);
            }
        }
        if state.may(Fault::Outage) && state.is_database_up {
            actions.push(Action::DatabaseFails);
        }
        for (instance, own) in state.instances.iter().enumerate() {
            if !own.is_up {
                actions.push(Action::Restart(instance));
            }
            if own.is_up && state.may(Fault::Crash) {
                actions.push(Action::Crash(instance));
            }
            if own.disk != Disk::default() && state.may(Fault::DiskLoss) {
                actions.push(Action::LoseDisk(instance));
            }
        }
        for partition in 0..self.partitions {
            let owner = usize::from(state.kafka.owner[partition]);
            let other_is_up = state.instances[1 - owner].is_up;
            if !state.instances[owner].is_up && other_is_up {
                actions.push(Action::FailAway(partition));
            }
            if state.may(Fault::Rebalance) && state.instances[owner].is_up && other_is_up {
                actions.push(Action::Rebalance(partition));
            }
            if state.may(Fault::Retention) {
                let lows = state.kafka.low[partition] + 1..=self.records;
                actions.extend(lows.map(|low| Action::Retention(partition, low)));
            }
        }
    }

    pub(super) fn happen(&self, next: &mut State, action: Action, notes: &mut Notes) -> Option<()> {
        match action {
            Action::Replicate => next.standby = next.database,
            Action::DatabaseReturns => next.is_database_up = true,
            Action::DatabaseFails => {
                next.is_database_up = false;
                next.instances.iter_mut().for_each(lose_session);
            }
            Action::FailOver => {
                let back = (0..self.partitions)
                    .any(|own| next.standby.rows[own].position < next.database.rows[own].position);
                if back {
                    notes.note("a failover took a position back");
                }
                next.database = next.standby;
                next.is_database_up = true;
                next.had_failover = true;
                next.instances.iter_mut().for_each(lose_session);
            }
            Action::Crash(instance) => crash(&mut next.instances[instance]),
            Action::LoseDisk(instance) => {
                crash(&mut next.instances[instance]);
                next.instances[instance].disk = Disk::default();
            }
            Action::Restart(instance) => {
                next.instances[instance].is_up = true;
                self.assign(next, instance);
            }
            Action::FailAway(partition) | Action::Rebalance(partition) => {
                next.kafka.owner[partition] = 1 - next.kafka.owner[partition];
                self.assign(next, usize::from(next.kafka.owner[partition]));
            }
            Action::Retention(partition, low) => next.kafka.low[partition] = low,
            _ => return None,
        }
        Some(())
    }

    /// What the group has assigned to `instance` is offered to it.
    fn assign(&self, next: &mut State, instance: usize) {
        for partition in 0..self.partitions {
            let slot = &mut next.instances[instance].slots[partition];
            if usize::from(next.kafka.owner[partition]) == instance && slot.work == Work::NotOurs {
                *slot = Slot::held();
            }
        }
    }
}

/// The connection is gone, and what was under way on it.
fn lose_session(instance: &mut Instance) {
    instance.late = Default::default();
    instance.must_look = instance.slots.iter().any(Slot::has_lane);
}

/// The process is gone; its disk stays, and what it sent last may still be done by the server.
fn crash(instance: &mut Instance) {
    *instance = Instance { disk: instance.disk, late: instance.late, ..Instance::default() };
}
