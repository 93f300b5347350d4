//! What a lane does about errors of PostgreSQL; the table stands in ARCHITECTURE.md.

use std::time::{Duration, Instant};

use super::{GiveUp, Lane};
use crate::model::batch::{Batch, DeadLetter};
use crate::model::position::StreamPartition;
use crate::model::rejection::{Rejection, RejectionCode};
use crate::observe::board::DatabaseState;
use crate::store::{CommitPath, Store, StoreError};

/// The SQLSTATE `deadlock_detected`.
const DEADLOCK: &str = "40P01";
/// How often a lane looks again after an error that an operator must mend.
const MISCONFIGURED_WAIT: Duration = Duration::from_secs(5);
/// The same after an error that our table does not know.
const UNKNOWN_WAIT: Duration = Duration::from_secs(30);

impl<S: Store> Lane<S> {
    pub(super) fn failed(&mut self, error: StoreError, batch: Option<(Batch, CommitPath)>) {
        let now = self.settings.clock.monotonic();
        match error {
            StoreError::Unavailable { .. } => self.wait_for_database(&error, now),
            StoreError::Contended { ref sqlstate, .. } => {
                if sqlstate == DEADLOCK {
                    // Two lanes copied the same events at once; the merge path takes them in one order.
                    self.collisions.refused();
                }
                self.retry_at = Some(now + self.retry.next_wait());
                tracing::warn!(lane = self.index, %error, "postgresql is contended; the batch is tried again");
            }
            StoreError::StatementTimeout(_) => match batch {
                Some((batch, _)) if batch.entries().len() > 1 => self.split_front(batch),
                _ => self.wait_for_database(&error, now),
            },
            StoreError::Refused { ref sqlstate, .. } => match batch {
                Some((_, CommitPath::Direct)) if sqlstate == "23505" => self.collisions.refused(),
                Some((batch, _)) => self.refused(batch, sqlstate, &error),
                None => self.hold_for_operator(&error, now + UNKNOWN_WAIT),
            },
            StoreError::Misconfigured { .. } => self.hold_for_operator(&error, now + MISCONFIGURED_WAIT),
            StoreError::Unknown { .. } => self.hold_for_operator(&error, now + UNKNOWN_WAIT),
            StoreError::Broken(reason) => self.broken(batch, &reason),
        }
    }

    fn wait_for_database(&mut self, error: &StoreError, now: Instant) {
        let retry_at = now + self.retry.next_wait();
        self.retry_at = Some(retry_at);
        // Without a batch too: an idle lane must learn soon that PostgreSQL is back.
        self.verify_at = retry_at;
        if !matches!(self.board.lock().database, DatabaseState::Down { .. }) {
            tracing::warn!(lane = self.index, %error, "postgresql is away; records wait and nothing is lost");
        }
        self.database_is(DatabaseState::Down { error: error.to_string(), since: now });
    }

    fn hold_for_operator(&mut self, error: &StoreError, until: Instant) {
        self.retry_at = Some(until);
        let state = DatabaseState::Misconfigured { error: error.to_string() };
        if self.board.lock().database != state {
            tracing::error!(lane = self.index, %error, "postgresql refuses us; nothing is stored until this is mended");
        }
        self.database_is(state);
    }

    pub(super) fn database_is(&self, state: DatabaseState) {
        let mut board = self.board.lock();
        match (&board.database, &state) {
            (DatabaseState::Down { since, .. }, DatabaseState::Down { error, .. }) => {
                board.database = DatabaseState::Down { error: error.clone(), since: *since };
            }
            (DatabaseState::Down { .. } | DatabaseState::Misconfigured { .. }, DatabaseState::Up) => {
                tracing::info!(lane = self.index, "postgresql is back");
                board.database = state;
            }
            _ => board.database = state,
        }
    }

    /// PostgreSQL refuses something in the batch: halve it until the bad record stands alone.
    fn refused(&mut self, batch: Batch, sqlstate: &str, error: &StoreError) {
        if batch.entries().len() > 1 {
            self.split_front(batch);
            return;
        }
        if batch.event_count() == 0 {
            self.broken(Some((batch, CommitPath::Merge)), &format!("a dead letter was refused: {error}"));
            return;
        }
        // Once more before it is final: a time partition that was attached meanwhile refuses an open COPY (23514).
        let place = batch.entries().first().and_then(|entry| Some((batch.part_of(entry)?.key, entry.offset)));
        if self.refused_before != place {
            self.refused_before = place;
            return;
        }
        self.take_front(&batch);
        let letter = DeadLetter {
            rejection: Rejection::new(RejectionCode::RefusedByDatabase, error.to_string()),
            sqlstate: Some(sqlstate.to_owned()),
            audit_id: None,
            correlation_id: None,
        };
        self.queue.push_front(batch.with_only_record_dead(letter));
    }

    fn split_front(&mut self, batch: Batch) {
        self.take_front(&batch);
        match batch.clone().split() {
            Some((first, second)) => {
                self.queue.push_front(second);
                self.queue.push_front(first);
            }
            None => self.queue.push_front(batch),
        }
    }

    /// The account is broken: find in which partition, and give only that one up.
    fn broken(&mut self, batch: Option<(Batch, CommitPath)>, reason: &str) {
        let Some((batch, _)) = batch else {
            tracing::error!(lane = self.index, reason, "the account is broken");
            return;
        };
        self.take_front(&batch);
        if let [only] = batch.parts() {
            tracing::error!(lane = self.index, partition = %only.key, reason, "the account is broken; the partition stops");
            self.give_up(only.assignment, GiveUp::Broken(reason.to_owned()));
            return;
        }
        let keys: Vec<StreamPartition> = batch.parts().iter().map(|part| part.key).collect();
        for key in keys.into_iter().rev() {
            self.queue.push_front(batch.clone().without(|part| part.key != key));
        }
    }
}
