//! PostgreSQL's side: the compare-and-set, and what a commit stores.

use audit_consumer::model::spool::ranges;

use super::state::{Offsets, Row, Sent, State, Wrong, offset, plain};
use super::{At, Ingest, Mutant};
use crate::graph::Notes;

impl Ingest {
    /// `store/commit.rs: begin`: whether a part of a batch may move its position.
    pub(super) fn is_taken(&self, row: &Row, part: &Sent) -> bool {
        let is_epoch = row.epoch == part.epoch || self.is(Mutant::NoEpoch);
        let is_start = row.position == part.start || self.is(Mutant::NoCompareAndSet);
        is_epoch && is_start
    }

    /// Moves the position and stores the records of a part that was taken; `by` is the instance + 1.
    pub(super) fn store(&self, next: &mut State, partition: usize, part: Sent, by: u8, notes: &mut Notes) {
        let row = &mut next.database.rows[partition];
        // After a failover that lost a claim two owners may have one epoch; the position alone decides then.
        if row.owner != by && !next.had_failover {
            next.wrong = Some(Wrong::StoredByZombie);
        }
        let records = Offsets::of(part.start, part.end).without(part.absent);
        if records.has(self.poison) && partition == 0 {
            notes.note("a dead letter was stored");
        }
        self.advance(next, partition, records, part.end);
    }

    /// Stores `records` and sets the position.
    pub(super) fn advance(&self, next: &mut State, partition: usize, records: Offsets, end: u8) {
        let row = &mut next.database.rows[partition];
        if !row.stored.and(records).is_empty() {
            next.wrong = Some(Wrong::StoredTwice);
        }
        row.stored = row.stored.or(records);
        row.position = end;
        if !Offsets::of(0, end).without(row.stored.or(row.gaps)).is_empty() {
            next.wrong = Some(Wrong::LostBelowPosition);
        }
    }

    /// What Kafka and the disks have of a partition.
    pub(super) fn outside(&self, state: &State, partition: usize) -> Offsets {
        let of_kafka = Offsets::of(state.kafka.low[partition], self.records);
        state.instances.iter().fold(of_kafka, |all, instance| {
            let disk = &instance.disk;
            let kept = disk.aside[partition].or(disk.drained[partition].offsets());
            all.or(disk.held[partition].offsets()).or(kept)
        })
    }

    /// Whether a step of ours dropped a record that is nowhere else; what an asynchronous failover may lose does not
    /// count as somewhere.
    pub(super) fn has_dropped(&self, before: &State, after: &State) -> bool {
        (0..self.partitions).any(|partition| {
            let all = |state: &State| {
                let drained = state
                    .instances
                    .iter()
                    .fold(Offsets::default(), |all, own| all.or(own.disk.drained[partition].offsets()));
                let stored = state.database.rows[partition].stored;
                let replicated = stored.and(state.standby.rows[partition].stored);
                self.outside(state, partition).or(drained).or(replicated)
            };
            !all(before).without(all(after)).is_empty()
        })
    }

    /// Kafka's first offset, and that from which `answered` would declare a gap; `None`: the position can be read.
    pub(super) fn deleted_to(&self, state: &State, At { instance, partition }: At) -> Option<u8> {
        let held = state.instances[instance].disk.held[partition].ranges();
        let (low, position) = (state.kafka.low[partition], state.database.rows[partition].position);
        let first = ranges::first(&held).map(plain);
        let low_with_spool = first.map_or(low, |first| first.min(low));
        if position < low_with_spool {
            return Some(low_with_spool);
        }
        if position < low && !ranges::holds(&held, offset(position)) {
            let after = ranges::first_after(&held, offset(position)).map(plain);
            return Some(after.map_or(low, |after| after.min(low)));
        }
        None
    }

    /// `pipeline/claims.rs: declare_overdue_gap`, `store/gaps.rs: declare_gap`.
    pub(super) fn declare_gap(
        &self,
        next: &mut State,
        At { instance, partition }: At,
        notes: &mut Notes,
    ) -> Option<()> {
        let low = self.deleted_to(next, At { instance, partition })?;
        let position = next.database.rows[partition].position;
        let mut range = Offsets::of(position, low);
        for other in (0..next.instances.len()).filter(|other| *other != instance) {
            let told = next.database.published[other][partition].and(range);
            if let Some(first) = told.first().filter(|_| !self.is(Mutant::GapIgnoresSpools)) {
                notes.note("a gap was kept back by another's spool");
                range = Offsets::of(position, first);
            }
        }
        let end = position + u8::try_from(range.0.count_ones()).expect("a few");
        if end == position {
            return None;
        }
        notes.note("a gap was declared");
        if !range.and(self.protected(next, At { instance, partition })).is_empty() {
            next.wrong = Some(Wrong::GapOverHeld);
        }
        let row = &mut next.database.rows[partition];
        row.gaps = row.gaps.or(range);
        row.position = end;
        row.epoch += 1;
        Some(())
    }

    /// What must not be declared a gap: what Kafka has, what the declaring instance holds, what PostgreSQL was told
    /// that others hold, and what any keeps of what it drained.
    fn protected(&self, state: &State, At { instance, partition }: At) -> Offsets {
        let mut all = Offsets::of(state.kafka.low[partition], self.records);
        for (index, other) in state.instances.iter().enumerate() {
            let held = other.disk.held[partition].offsets();
            let told = state.database.published[index][partition];
            all = all.or(if index == instance { held } else { held.and(told) });
            all = all.or(other.disk.drained[partition].offsets());
        }
        all
    }

    /// `spool drain --fill-gap`: what a disk has of open gaps is stored.
    pub(super) fn fill_gap(
        &self,
        next: &mut State,
        At { instance, partition }: At,
        notes: &mut Notes,
    ) -> Option<()> {
        let disk = &next.instances[instance].disk;
        let here = disk.held[partition].offsets().or(disk.aside[partition]);
        let row = &mut next.database.rows[partition];
        let records = here.and(row.gaps);
        notes.note("a gap was filled");
        if !row.stored.and(records).is_empty() {
            next.wrong = Some(Wrong::StoredTwice);
        }
        row.stored = row.stored.or(records);
        row.gaps = row.gaps.without(records);
        Some(())
    }
}
