//! What an instance does with PostgreSQL there: claim, read, commit, look, give up.

use audit_consumer::model::belief::{Belief, Verdict};
use audit_consumer::model::spool::mode::ModeEvent;
use audit_consumer::model::spool::ranges;

use super::state::{Batches, Offsets, PARTITIONS, Row, Sent, Slot, State, Work, Wrong, epoch, offset, plain};
use super::{At, Ingest, Mutant, may_follow};
use crate::graph::Notes;

impl Ingest {
    /// The claim, and what `answered` makes of its answer.
    pub(super) fn claim(&self, next: &mut State, At { instance, partition }: At) -> Option<()> {
        let held = next.instances[instance].disk.held[partition].ranges();
        let row = &mut next.database.rows[partition];
        let position = row.position;
        let low = next.kafka.low[partition];
        let first = ranges::first(&held).map_or(low, |first| plain(first).min(low));
        if position >= first {
            row.epoch += 1;
            row.owner = u8::try_from(instance).expect("an index") + 1;
        }
        let claimed = row.epoch;
        next.instances[instance].last_known[partition] = Some(position);
        if self.deleted_to(next, At { instance, partition }).is_some() {
            return self.restore(next, At { instance, partition }, position);
        }
        let drains = ranges::holds(&held, offset(position)) && !self.is(Mutant::LiveBeforeDrain);
        let work = if drains { Work::Draining } else { Work::Live };
        next.instances[instance].slots[partition] =
            Slot { work, epoch: claimed, position, read_to: position, ..Slot::default() };
        Some(())
    }

    /// `outage/holdings.rs: restore`: drained batches behind the position are held again, and all that were drained
    /// after the oldest of those.
    pub(super) fn restore(
        &self,
        next: &mut State,
        At { instance, partition }: At,
        position: u8,
    ) -> Option<()> {
        let own = &mut next.instances[instance];
        let drained = own.disk.drained[partition];
        let Some(oldest) = drained.iter().position(|(_, end)| end > position) else { return Some(()) };
        let mut held = Batches::default();
        let (back, front) = (drained.iter().skip(oldest), own.disk.held[partition]);
        for (start, end) in back.chain(front.iter()) {
            if held.is_full() {
                // The bound of the model, not of the code.
                return None;
            }
            held.push(start, end);
        }
        let mut left = Batches::default();
        drained.iter().take(oldest).for_each(|(start, end)| left.push(start, end));
        (own.disk.held[partition], own.disk.drained[partition]) = (held, left);
        Some(())
    }

    /// The next record of Kafka; deleted: Kafka says that the position is out of range, and all is claimed again.
    pub(super) fn read(&self, next: &mut State, At { instance, partition }: At) -> Option<()> {
        let low = next.kafka.low[partition];
        let slot = &mut next.instances[instance].slots[partition];
        if slot.read_to < low {
            if !self.is(Mutant::GapSkipped) {
                *slot = Slot::held();
                return Some(());
            }
            let passed = Offsets::of(slot.read_to, low);
            slot.absent = slot.absent.or(passed);
            slot.read_to = low;
            return Some(());
        }
        slot.read_to += 1;
        Some(())
    }

    /// What would be sent of a partition.
    pub(super) fn part(slot: &Slot) -> Sent {
        Sent { epoch: slot.epoch, start: slot.position, end: slot.commit_end(), absent: slot.absent }
    }

    pub(super) fn chosen(partitions: u8) -> impl Iterator<Item = usize> {
        (0..PARTITIONS).filter(move |partition| partitions & (1 << partition) != 0)
    }

    /// A commit that PostgreSQL answers.
    pub(super) fn commit(
        &self,
        next: &mut State,
        instance: usize,
        partitions: u8,
        notes: &mut Notes,
    ) -> Option<()> {
        let slots = next.instances[instance].slots;
        let rows = next.database.rows;
        let stale: Vec<usize> = Self::chosen(partitions)
            .filter(|partition| !self.is_taken(&rows[*partition], &Self::part(&slots[*partition])))
            .collect();
        if !stale.is_empty() {
            notes.note("a stale commit was refused");
            for partition in stale {
                if rows[partition].position == slots[partition].position {
                    notes.note("a zombie was refused by its epoch");
                }
                self.obey(next, At { instance, partition }, notes);
            }
            return Some(());
        }
        // A record that PostgreSQL refuses: the batch is halved until it stands alone.
        let slot = &slots[0];
        let (start, end) = (slot.position, slot.commit_end());
        if partitions & 1 != 0 && (start..end).contains(&self.poison) && end - start > 1 {
            notes.note("a batch was halved until its poison stood alone");
            next.instances[instance].slots[0].batch_end = start + (end - start) / 2;
            return Some(());
        }
        for partition in Self::chosen(partitions) {
            let part = Self::part(&slots[partition]);
            self.store(next, partition, part, u8::try_from(instance).expect("an index") + 1, notes);
            moved(&mut next.instances[instance].slots[partition], part.end);
        }
        Some(())
    }

    /// A commit whose answer never comes.
    pub(super) fn send(&self, next: &mut State, instance: usize, partitions: u8) -> Option<()> {
        let own = &mut next.instances[instance];
        for partition in Self::chosen(partitions) {
            let slot = &mut own.slots[partition];
            let (start, end) = (slot.position, slot.commit_end());
            if partition == 0 && (start..end).contains(&self.poison) && end - start > 1 {
                return None;
            }
            slot.batch_end = end;
            own.late[partition] = Self::part(slot);
        }
        own.must_look = true;
        Some(())
    }

    /// The server does after all what nobody waits for any more.
    pub(super) fn late_commit(&self, next: &mut State, instance: usize, notes: &mut Notes) -> Option<()> {
        let late = std::mem::take(&mut next.instances[instance].late);
        let rows = next.database.rows;
        let parts = late.iter().enumerate().filter(|(_, part)| part.end > 0);
        if parts.clone().all(|(partition, part)| self.is_taken(&rows[partition], part)) {
            for (partition, part) in parts {
                self.store(next, partition, *part, u8::try_from(instance).expect("an index") + 1, notes);
            }
        }
        Some(())
    }

    /// The positions are read, on a new session or as the timer says, and compared with what the lane believes.
    pub(super) fn look(&self, next: &mut State, instance: usize, notes: &mut Notes) -> Option<()> {
        next.instances[instance].must_look = false;
        for partition in 0..self.partitions {
            if next.instances[instance].slots[partition].has_lane() {
                self.obey(next, At { instance, partition }, notes);
            }
        }
        Some(())
    }

    /// PostgreSQL is right.
    fn obey(&self, next: &mut State, At { instance, partition }: At, notes: &mut Notes) {
        let Row { epoch: found_epoch, position: found, .. } = next.database.rows[partition];
        let slot = &mut next.instances[instance].slots[partition];
        let batch_end = (slot.commit_end() > slot.position).then(|| offset(slot.commit_end()));
        let belief = Belief { epoch: epoch(slot.epoch), position: offset(slot.position), batch_end };
        match belief.against(Some((epoch(found_epoch), offset(found)))) {
            Verdict::Holds => {}
            Verdict::StoredBefore(end) => {
                notes.note("a commit without an answer was found stored");
                moved(slot, plain(end));
            }
            Verdict::Moved => {
                notes.note("a position that moved was obeyed");
                *slot = Slot::held();
            }
            Verdict::ClaimedElsewhere => *slot = Slot::held(),
        }
    }

    /// Revoked, or lost: what is under way is abandoned. (What finishes it does so before this.)
    pub(super) fn learn(&self, next: &mut State, At { instance, partition }: At) -> Option<()> {
        let own = &mut next.instances[instance];
        own.slots[partition] = Slot::default();
        own.last_known[partition] = None;
        Some(())
    }

    /// What of the spool comes next goes to the lane, without what lies before the position.
    pub(super) fn feed(
        &self,
        next: &mut State,
        At { instance, partition }: At,
        notes: &mut Notes,
    ) -> Option<()> {
        let (start, end) = self.next_fed(next, At { instance, partition })?;
        let slot = &mut next.instances[instance].slots[partition];
        if start < slot.read_to {
            notes.note("a spooled batch was trimmed");
        }
        if start > slot.read_to {
            slot.absent = slot.absent.or(Offsets::of(slot.read_to, start));
        }
        slot.read_to = end;
        Some(())
    }

    /// `pipeline/drainer.rs: pass`: the bounds of the next batch, as it stands in the spool.
    pub(super) fn next_fed(&self, state: &State, At { instance, partition }: At) -> Option<(u8, u8)> {
        let own = &state.instances[instance];
        let at = own.slots[partition].read_to;
        let skips = self.is(Mutant::HoleSkipped);
        own.disk.held[partition].iter().find(|(start, end)| *end > at && (*start <= at || skips))
    }

    /// All is fed and committed: released, to be claimed for Kafka.
    pub(super) fn end_drain(&self, next: &mut State, At { instance, partition }: At) -> Option<()> {
        let slot = &mut next.instances[instance].slots[partition];
        if !may_follow(slot.work, Work::Live, &[ModeEvent::Drained]) {
            next.wrong = Some(Wrong::ModeSkipped);
        }
        *slot = Slot::held();
        Some(())
    }
}

/// PostgreSQL holds `position` now.
fn moved(slot: &mut Slot, position: u8) {
    slot.position = position;
    slot.read_to = slot.read_to.max(position);
    slot.batch_end = 0;
    slot.absent = slot.absent.without(Offsets::of(0, position));
}
