//! What a lane believes of positions, against what PostgreSQL says: PostgreSQL is right.

use super::{GiveUp, Lane};
use crate::failpoint;
use crate::model::batch::Batch;
use crate::model::belief::{Belief, Verdict};
use crate::model::position::{Epoch, Offset, StreamPartition};
use crate::model::record::AssignmentId;
use crate::store::{Claim, ClaimedPosition, StalePart, Store};

impl<S: Store> Lane<S> {
    /// Notes that PostgreSQL holds `position`.
    pub(super) fn moved(&mut self, key: StreamPartition, epoch: Epoch, position: Offset) {
        let claim = Claim { key, epoch };
        for (assignment, partition) in self.owned.iter_mut().filter(|(_, partition)| partition.claim == claim)
        {
            partition.position = position;
            if let Some(owned) = self.board.lock().owned.get_mut(assignment) {
                owned.position = position;
            }
        }
    }

    /// The commit was refused in some partitions: those are dealt with, the others stay in the queue.
    pub(super) fn stale(&mut self, batch: &Batch, stale: &[StalePart]) {
        for part in batch.parts() {
            let Some(found) = stale.iter().find(|stale| stale.key == part.key) else { continue };
            let belief = Belief { epoch: part.epoch, position: part.start, batch_end: Some(part.end) };
            match belief.against(found.current) {
                Verdict::StoredBefore(end) => self.was_stored_before(part.key, part.epoch, end),
                // That it stands at the batch's start is not stale.
                Verdict::Moved | Verdict::Holds => self.give_up(part.assignment, GiveUp::PositionMoved),
                Verdict::ClaimedElsewhere => self.give_up(part.assignment, GiveUp::ClaimedElsewhere),
            }
        }
    }

    /// A commit whose answer never came had succeeded.
    pub(super) fn was_stored_before(&mut self, key: StreamPartition, epoch: Epoch, end: Offset) {
        self.moved(key, epoch, end);
        self.facts.found_committed();
        if let Some(front) = self.queue.pop_front() {
            let rest = front.without(|part| part.key == key && part.epoch == epoch && part.end == end);
            if !rest.is_empty() {
                self.queue.push_front(rest);
            }
        }
    }

    /// Whether chunks were taken that are neither stored nor in a batch any more. No way to this is known; a net.
    pub(super) fn has_lost_track(&self, assignment: AssignmentId) -> bool {
        let is_ahead = self.owned.get(&assignment).is_some_and(|own| own.read_to > own.position);
        let is_queued =
            self.queue.iter().any(|batch| batch.parts().iter().any(|part| part.assignment == assignment));
        is_ahead && !is_queued && !self.builder.contains(assignment)
    }

    /// Compares what PostgreSQL holds with what we believe; PostgreSQL is right.
    pub(super) fn compare(&mut self, asked: &[Claim], positions: &[(StreamPartition, ClaimedPosition)]) {
        let mine: Vec<(AssignmentId, Claim, Offset)> = self
            .owned
            .iter()
            .filter(|(_, partition)| asked.contains(&partition.claim))
            .map(|(assignment, partition)| (*assignment, partition.claim, partition.position))
            .collect();
        for (assignment, claim, believed) in mine {
            let found = positions.iter().find(|(key, _)| *key == claim.key).map(|(_, position)| *position);
            let batch_end = self.queue.front().and_then(|batch| {
                let part =
                    batch.parts().iter().find(|part| part.key == claim.key && part.epoch == claim.epoch)?;
                (part.start == believed).then_some(part.end)
            });
            let belief = Belief { epoch: claim.epoch, position: believed, batch_end };
            match belief.against(found.map(|found| (found.epoch, found.next))) {
                Verdict::Holds => {
                    if self.has_lost_track(assignment) {
                        self.give_up(assignment, GiveUp::Discontinuity);
                    }
                }
                // The mutant compares no positions at all, or this would find what it does.
                Verdict::StoredBefore(_) | Verdict::Moved if failpoint::is_on("mutant_no_cas") => {}
                Verdict::StoredBefore(end) => self.was_stored_before(claim.key, claim.epoch, end),
                Verdict::Moved => self.give_up(assignment, GiveUp::PositionMoved),
                Verdict::ClaimedElsewhere => self.give_up(assignment, GiveUp::ClaimedElsewhere),
            }
        }
    }
}
