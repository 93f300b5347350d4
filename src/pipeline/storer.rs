//! Stores batches outside of the lanes, one after the other: what the spool holds of partitions that nobody reads here.
//!
//! There is no claim: a batch carries the epoch that was read with the position, so an owner who claims meanwhile makes
//! it stale; while the position has not moved it is committed again under the new epoch. Errors that concern one
//! partition are noted, and the others go on; the rest is the caller's: it reads the positions again, and they tell what
//! was stored.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::WORK_MARGIN;
use super::spans::BatchSpans;
use crate::model::batch::{Batch, DeadLetter, Decoded, Noted};
use crate::model::collisions::Collisions;
use crate::model::decode::{DecodeRules, decode, identify};
use crate::model::federated::FederatedSources;
use crate::model::position::{Epoch, Offset, StreamPartition};
use crate::model::rejection::{Rejection, RejectionCode};
use crate::observe::{Clock, Traces};
use crate::store::copy::encode_event;
use crate::store::{
    Claim, CommitOutcome, CommitPath, CommittedPart, SessionPurpose, StalePart, Store, StoreError,
    StoreSession,
};

/// The SQLSTATE `unique_violation`: by the direct path some event is stored already.
const UNIQUE_VIOLATION: &str = "23505";
/// How often a batch is tried again as somebody has claimed a partition of it meanwhile.
const CLAIM_MAX_COUNT: u32 = 20;

/// Makes an event's row of the record at `offset`, or a dead letter.
pub fn decode_record(
    (value, offset): (Option<&[u8]>, Offset),
    (key, rules, sources): (StreamPartition, &DecodeRules, &FederatedSources),
    rows: &mut Vec<u8>,
) -> Decoded {
    match decode(value, rules) {
        Ok(event) => {
            let flag = sources.flag(&event.federated_source);
            encode_event(rows, &event, flag, (key, offset));
            let noted = Noted { flag, trust_percent: event.trust_score.percent(), is_repeated: false };
            Decoded::Event(event.timestamp, noted)
        }
        Err(rejection) => {
            let identity = value.map(identify).unwrap_or_default();
            Decoded::DeadLetter(DeadLetter {
                rejection,
                sqlstate: None,
                audit_id: identity.audit_id,
                correlation_id: identity.correlation_id,
            })
        }
    }
}

/// What a batch is to do to its positions.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose<'a> {
    /// Move them from its start to its end.
    Advance,
    /// Nothing: it fills a declared gap, in the name of this actor and for this reason.
    FillGap(&'a str, &'a str),
}

/// What was stored of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoredCounts {
    /// Events.
    pub events: u64,
    /// Upstream duplicates.
    pub duplicates: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Offsets without a record.
    pub absent: u64,
}

impl StoredCounts {
    /// Adds `other`.
    pub const fn add(&mut self, other: Self) {
        self.events += other.events;
        self.duplicates += other.duplicates;
        self.dead_letters += other.dead_letters;
        self.absent += other.absent;
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// What was stored, by partition.
    pub(super) counts: BTreeMap<StreamPartition, StoredCounts>,
    /// Partitions in which it was stale: nothing more of them was stored from there on.
    pub(super) stale: BTreeSet<StreamPartition>,
    /// Partitions of which PostgreSQL took no more, and why.
    pub(super) failed: BTreeMap<StreamPartition, String>,
}

/// One batch on its way, in as many pieces as it takes.
#[derive(Debug, Default)]
struct Round {
    queue: VecDeque<Batch>,
    stored: Stored,
    /// The record that PostgreSQL refused when it stood alone; refused again, it becomes a dead letter.
    refused_before: Option<(StreamPartition, Offset)>,
    claim_count: u32,
}

impl Round {
    /// The next piece, without partitions that are over.
    fn next(&mut self) -> Option<Batch> {
        let Stored { stale, failed, .. } = &self.stored;
        std::iter::from_fn(|| self.queue.pop_front())
            .map(|batch| batch.without(|part| stale.contains(&part.key) || failed.contains_key(&part.key)))
            .find(|batch| !batch.is_empty())
    }

    fn committed(&mut self, parts: &[CommittedPart]) {
        for part in parts {
            self.stored.counts.entry(part.key).or_default().add(StoredCounts {
                events: part.event_count,
                duplicates: part.duplicate_count,
                dead_letters: part.dead_letter_count,
                absent: part.absent_count,
            });
        }
    }

    /// What is left of a partition goes on under its new epoch, unless its position has moved.
    fn stale(&mut self, part: StalePart) {
        self.claim_count += 1;
        let front = self.queue.front();
        let own = front.and_then(|batch| batch.parts().iter().find(|own| own.key == part.key));
        let start = own.map(|own| own.start);
        match part.current {
            Some((epoch, next)) if Some(next) == start && self.claim_count <= CLAIM_MAX_COUNT => {
                tracing::debug!(partition = %part.key, epoch = epoch.0, "claimed meanwhile, and not moved");
                for batch in &mut self.queue {
                    *batch = std::mem::take(batch).under(part.key, epoch);
                }
            }
            _ => {
                self.stored.stale.insert(part.key);
            }
        }
    }

    /// PostgreSQL did not take a piece: it is halved, or the partition, or the whole, ends here.
    fn failed(&mut self, error: StoreError, batch: Batch) -> Result<(), StoreError> {
        let is_refused = matches!(error, StoreError::Refused { .. });
        let is_alone = batch.entries().len() == 1;
        let place = batch.entries().first().and_then(|entry| Some((batch.part_of(entry)?.key, entry.offset)));
        match error {
            StoreError::Refused { .. } | StoreError::StatementTimeout(_) if batch.entries().len() > 1 => {
                if let Some((first, second)) = batch.split() {
                    self.queue.push_front(second);
                    self.queue.push_front(first);
                }
            }
            // A time partition that was attached meanwhile refuses an open COPY (23514): once more.
            _ if is_refused && is_alone && batch.event_count() == 1 && self.refused_before != place => {
                self.refused_before = place;
                self.queue.push_front(batch);
            }
            StoreError::Refused { ref sqlstate, .. } if is_alone && batch.event_count() == 1 => {
                let letter = DeadLetter {
                    rejection: Rejection::new(RejectionCode::RefusedByDatabase, error.to_string()),
                    sqlstate: Some(sqlstate.clone()),
                    audit_id: None,
                    correlation_id: None,
                };
                self.queue.push_front(batch.with_only_record_dead(letter));
            }
            StoreError::Broken(_) | StoreError::Refused { .. } | StoreError::StatementTimeout(_) => {
                if let [only] = batch.parts() {
                    self.stored.failed.insert(only.key, error.to_string());
                } else {
                    for key in batch.parts().iter().map(|part| part.key).rev() {
                        self.queue.push_front(batch.clone().without(|part| part.key != key));
                    }
                }
            }
            _ => return Err(error),
        }
        Ok(())
    }
}

/// Stores batches on a session of its own.
#[derive(Debug)]
pub(super) struct Storer<S: Store> {
    pub(super) store: S,
    pub(super) rules: Arc<DecodeRules>,
    /// As they were read last.
    pub(super) sources: Arc<FederatedSources>,
    /// How long one commit may take before its outcome counts as unknown.
    deadline: Duration,
    spans: BatchSpans,
    session: Option<S::Session>,
    collisions: Collisions,
}

impl<S: Store> Storer<S> {
    pub(super) fn new(store: S, rules: Arc<DecodeRules>, traces: Traces) -> Self {
        let deadline = store.statement_timeout() + WORK_MARGIN;
        let spans = BatchSpans::new(&store, traces, Clock::default());
        let (sources, collisions) = (Arc::default(), Collisions::default());
        Self { store, rules, sources, deadline, spans, session: None, collisions }
    }

    async fn session(&mut self) -> Result<&mut S::Session, StoreError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.store.connect(SessionPurpose::Operator).await?,
        };
        Ok(self.session.insert(session))
    }

    pub(super) async fn close(mut self) {
        if let Some(session) = self.session.take() {
            session.close().await;
        }
    }

    /// Stores `batch`, in halves where PostgreSQL refuses something in it; a record that it refuses alone, twice, becomes
    /// a dead letter.
    ///
    /// # Errors
    /// What halving does not help against. What was stored until then is stored.
    pub(super) async fn store(&mut self, batch: Batch, purpose: Purpose<'_>) -> Result<Stored, StoreError> {
        let mut round = Round { queue: VecDeque::from([batch]), ..Round::default() };
        while let Some(batch) = round.next() {
            let path = CommitPath::after(&self.collisions);
            let started_at = self.spans.clock.monotonic();
            let outcome = self.commit((&batch, path), purpose).await;
            let elapsed = self.spans.clock.monotonic().saturating_duration_since(started_at);
            self.spans.committed((&batch, path), outcome.as_ref(), elapsed);
            match outcome {
                Ok(CommitOutcome::Committed { parts, .. }) => {
                    let stored_count = parts.iter().map(|part| part.event_count).sum();
                    self.collisions.committed(batch.event_count().saturating_sub(stored_count), 0);
                    round.committed(&parts);
                }
                Ok(CommitOutcome::Stale(parts)) => {
                    round.queue.push_front(batch);
                    parts.into_iter().for_each(|part| round.stale(part));
                }
                Err(error) => {
                    self.session = None;
                    if matches!(&error, StoreError::Refused { sqlstate, .. } if sqlstate == UNIQUE_VIOLATION)
                        && path == CommitPath::Direct
                    {
                        self.collisions.refused();
                        round.queue.push_front(batch);
                    } else {
                        round.failed(error, batch)?;
                    }
                }
            }
        }
        Ok(round.stored)
    }

    /// Commits, within the deadline. After an error the session is to be lost.
    async fn commit(
        &mut self,
        (batch, path): (&Batch, CommitPath),
        purpose: Purpose<'_>,
    ) -> Result<CommitOutcome, StoreError> {
        let (group, deadline) = (Arc::clone(self.store.group()), self.deadline);
        let committed = async {
            let session = self.session().await?;
            session.ensure_partitions(batch).await?;
            match purpose {
                Purpose::Advance => session.commit(&group, batch, path).await,
                Purpose::FillGap(actor, reason) => session.fill_gap(&group, batch, (actor, reason)).await,
            }
        };
        let in_time = tokio::time::timeout(deadline, committed).await;
        in_time.unwrap_or_else(|_elapsed| Err(StoreError::no_answer("commit")))
    }

    /// Reads the registry of federated sources.
    pub(super) async fn read_sources(&mut self) -> Result<(), StoreError> {
        let deadline = self.deadline;
        let asked = async { self.session().await?.federated_sources().await };
        let in_time = tokio::time::timeout(deadline, asked).await;
        let found = in_time.unwrap_or_else(|_elapsed| Err(StoreError::no_answer("sources")));
        if found.is_err() {
            self.session = None;
        }
        self.sources = Arc::new(found?);
        Ok(())
    }

    /// Epoch and position of each of `keys` that has one.
    pub(super) async fn positions(
        &mut self,
        keys: &BTreeSet<StreamPartition>,
    ) -> Result<BTreeMap<StreamPartition, (Epoch, Offset)>, StoreError> {
        if keys.is_empty() {
            return Ok(BTreeMap::new());
        }
        let claims: Vec<Claim> = keys.iter().map(|key| Claim { key: *key, epoch: Epoch(0) }).collect();
        let (group, deadline) = (Arc::clone(self.store.group()), self.deadline);
        let asked = async { self.session().await?.positions(&group, &claims).await };
        let in_time = tokio::time::timeout(deadline, asked).await;
        let found = in_time.unwrap_or_else(|_elapsed| Err(StoreError::no_answer("positions")));
        if found.is_err() {
            self.session = None;
        }
        Ok(found?.into_iter().map(|(key, position)| (key, (position.epoch, position.next))).collect())
    }
}
