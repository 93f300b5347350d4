//! The spool: when it takes over, and what becomes of what it holds.

use audit_consumer::model::spool::mode::ModeEvent;
use audit_consumer::model::spool::ranges;

use super::state::{Offsets, PARTITIONS, Slot, State, Work, Wrong, offset, plain};
use super::{At, Ingest, Mutant, may_follow};
use crate::graph::Notes;

impl Ingest {
    /// Every partition leaves its lane, whatever becomes of a commit under way.
    pub(super) fn begin_spooling(&self, next: &mut State, instance: usize) -> Option<()> {
        let own = &mut next.instances[instance];
        own.is_spooling = true;
        for (slot, last_known) in own.slots.iter_mut().zip(&mut own.last_known) {
            if slot.has_lane() {
                if !may_follow(slot.work, Work::Spooling, &[ModeEvent::OutageLasted]) {
                    next.wrong = Some(Wrong::ModeSkipped);
                }
                *last_known = Some(slot.position);
                *slot = Slot::held();
            }
        }
        Some(())
    }

    /// Where to begin: see `model/spool/ranges.rs`.
    pub(super) fn place_in_spool(&self, next: &mut State, At { instance, partition }: At) -> Option<()> {
        let own = &mut next.instances[instance];
        let held = &own.disk.held[partition];
        let known = (own.last_known[partition].map(offset), next.kafka.mirror[partition].map(offset));
        let start = ranges::spool_start(known, held.tail().map(offset), &held.ranges());
        let start = plain(start?).max(next.kafka.low[partition]);
        own.slots[partition] = Slot { work: Work::Spooling, read_to: start, ..Slot::default() };
        Some(())
    }

    /// One append: in the spool once it is synced.
    pub(super) fn append(&self, next: &mut State, At { instance, partition }: At, records: u8) -> Option<()> {
        let own = &mut next.instances[instance];
        let slot = &mut own.slots[partition];
        if slot.read_to < next.kafka.low[partition] {
            *slot = Slot::held();
            return Some(());
        }
        own.disk.held[partition].push(slot.read_to, slot.read_to + records);
        slot.read_to += records;
        Some(())
    }

    /// The ranges are written, which tells that PostgreSQL is back; then every partition is offered again.
    pub(super) fn end_spooling(&self, next: &mut State, instance: usize) -> Option<()> {
        self.publish(next, instance)?;
        let own = &mut next.instances[instance];
        own.is_spooling = false;
        for slot in &mut own.slots {
            if slot.work == Work::Spooling {
                if !may_follow(slot.work, Work::Draining, &[ModeEvent::OutageEnded]) {
                    next.wrong = Some(Wrong::ModeSkipped);
                }
                *slot = Slot::held();
            }
        }
        Some(())
    }

    pub(super) fn publish(&self, next: &mut State, instance: usize) -> Option<()> {
        for partition in 0..PARTITIONS {
            next.database.published[instance][partition] = self.told(next, instance, partition);
        }
        Some(())
    }

    /// What an instance writes to `spool_ranges`: what is held, and what was drained and PostgreSQL lacks.
    pub(super) fn told(&self, state: &State, instance: usize, partition: usize) -> Offsets {
        let disk = &state.instances[instance].disk;
        let mut told = disk.held[partition].offsets();
        let position = state.database.rows[partition].position;
        for (start, end) in disk.drained[partition].iter().filter(|(_, end)| *end > position) {
            if !self.is(Mutant::DrainedNotTold) {
                told = told.or(Offsets::of(start, end));
            }
        }
        told
    }

    pub(super) fn set_aside(
        &self,
        next: &mut State,
        At { instance, partition }: At,
        notes: &mut Notes,
    ) -> Option<()> {
        let left = self.not_aside(next, At { instance, partition });
        let aside = &mut next.instances[instance].disk.aside[partition];
        *aside = aside.or(left);
        notes.note("a batch over a gap was set aside");
        Some(())
    }

    /// What is held of open gaps and is not copied to quarantine.
    pub(super) fn not_aside(&self, state: &State, At { instance, partition }: At) -> Offsets {
        let disk = &state.instances[instance].disk;
        let gaps = state.database.rows[partition].gaps;
        disk.held[partition].offsets().and(gaps).without(disk.aside[partition])
    }

    /// Batches before the position move to `drained/`.
    pub(super) fn trim(&self, next: &mut State, At { instance, partition }: At) -> Option<()> {
        let position = next.database.rows[partition].position;
        let disk = &mut next.instances[instance].disk;
        for (start, end) in disk.held[partition].iter().filter(|(_, end)| *end <= position) {
            if self.is(Mutant::NothingKept) || self.is(Mutant::NothingSetAside) {
                continue;
            }
            if disk.drained[partition].is_full() {
                // The bound of the model, not of the code.
                return None;
            }
            disk.drained[partition].push(start, end);
        }
        disk.held[partition].retain(|_, end| end > position);
        Some(())
    }

    /// What nobody reads here and nobody can read from Kafka is stored from the position on, under the epoch that the
    /// row has; nothing is claimed. The commit compares the position, and is tried again under a newer epoch
    /// (`pipeline/storer.rs: Round::stale`), so reading the position and storing are one step here.
    pub(super) fn store_stray(
        &self,
        next: &mut State,
        At { instance, partition }: At,
        notes: &mut Notes,
    ) -> Option<()> {
        let position = next.database.rows[partition].position;
        let held = next.instances[instance].disk.held[partition].ranges();
        let end = plain(ranges::end_from(&held, offset(position)));
        notes.note("a stray was stored");
        self.advance(next, partition, Offsets::of(position, end), end);
        Some(())
    }
}
