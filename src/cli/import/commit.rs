//! Storing an import's batches, one after the other, whatever PostgreSQL does meanwhile.
//!
//! There is no second protocol: [`Session::commit`] moves the position from where a batch starts to where it ends, or
//! stores nothing. After an error the session is dropped, and what became of the commit is read from the position on the
//! next one: what lies before it is stored and forgotten, the rest is tried again. A position that is neither where the
//! records go on nor where they were means that another import of the source, or a failover, moved it: the import ends,
//! and the same command goes on from the position.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::time::sleep;

use super::batch::{Candidate, Standing, build, look_up};
use super::{ImportSettings, in_time};
use crate::failpoint;
use crate::model::backoff::RetryPolicy;
use crate::model::batch::{Batch, DeadLetter};
use crate::model::position::{Offset, TopicPartition};
use crate::model::rejection::{Rejection, RejectionCode};
use crate::observe::Clock;
use crate::store::{
    Claim, CommitOutcome, CommitPath, CommittedPart, Session, SessionPurpose, StoreError, StreamIdentity,
};

/// The first and the longest wait between tries while PostgreSQL is away, …
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// … and how long it may be away before the import gives up.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(120);

/// An import under its claim.
pub(super) struct Importer {
    settings: ImportSettings,
    claim: Claim,
    source: Arc<TopicPartition>,
    /// What PostgreSQL holds, as far as we know.
    position: Offset,
    session: Option<Session>,
    retry: RetryPolicy,
    /// Since when PostgreSQL has been away.
    away_since: Option<Instant>,
}

/// How the next try differs from the first.
struct Attempt {
    path: CommitPath,
    /// The most records.
    record_count: usize,
    /// The record that PostgreSQL refused when it stood alone; refused again, it becomes a dead letter.
    refused: Option<Offset>,
    /// How it was refused the second time.
    letter: Option<DeadLetter>,
}

impl Importer {
    pub(super) fn new(
        settings: &ImportSettings,
        stream: &StreamIdentity,
        claim: Claim,
        position: Offset,
    ) -> Self {
        let source = TopicPartition { topic: Arc::clone(&stream.topic), partition: claim.key.partition };
        Self {
            settings: settings.clone(),
            claim,
            source: Arc::new(source),
            position,
            session: None,
            retry: RetryPolicy::new(RETRY_FIRST, RETRY_MOST),
            away_since: None,
        }
    }

    /// Gives the claim back; returns the position.
    pub(super) async fn release(mut self) -> anyhow::Result<Offset> {
        let deadline = self.settings.work_deadline;
        in_time(deadline, "release", async {
            let mut session = self.session().await?;
            session.release(&self.settings.store.group, &[self.claim]).await?;
            session.close().await;
            Ok(self.position)
        })
        .await
        .map_err(anyhow::Error::from)
    }

    /// Stores `candidates`, which begin at the position, and passes the numbers behind them that hold no record.
    pub(super) async fn store(
        &mut self,
        mut candidates: Vec<Candidate>,
        absent_after: u64,
    ) -> anyhow::Result<()> {
        let end = self.end_of(&candidates, absent_after)?;
        let mut attempt = Attempt::new();
        while self.position < end {
            candidates.retain(|candidate| candidate.record.offset >= self.position);
            let count = candidates.len().min(attempt.record_count);
            let is_all = count == candidates.len();
            let piece = candidates.get_mut(..count).unwrap_or_default();
            let absent_after = if is_all { absent_after } else { 0 };
            let deadline = self.settings.work_deadline;
            // An outcome that is not heard of in time is unknown: the next session reads the position.
            match in_time(deadline, "commit", self.attempt(piece, absent_after, &mut attempt)).await {
                Ok(()) => attempt.succeeded(count),
                Err(error) => self.failed(error, &mut attempt, count).await?,
            }
        }
        Ok(())
    }

    /// The position behind `candidates`.
    fn end_of(&self, candidates: &[Candidate], absent_after: u64) -> anyhow::Result<Offset> {
        let behind = candidates.last().map_or(self.position, |candidate| candidate.record.offset.next());
        let end = behind.as_i64().checked_add(i64::try_from(absent_after)?).and_then(Offset::new);
        end.context("find the end of a batch")
    }

    /// Tries once to store `piece`, or as many of its first records as the memory for stored events allows. After an
    /// error, and when the future is dropped, the session is gone.
    async fn attempt(
        &mut self,
        piece: &mut [Candidate],
        absent_after: u64,
        attempt: &mut Attempt,
    ) -> Result<(), StoreError> {
        let start = self.position;
        let mut session = self.session().await?;
        if self.position != start {
            // The commit that was not heard of had succeeded.
            self.session = Some(session);
            return Ok(());
        }
        let ImportSettings { rules, limits, .. } = &self.settings;
        let count = look_up(&mut session, piece, limits.len_bytes, rules).await?;
        let absent_after = if count == piece.len() { absent_after } else { 0 };
        let piece = piece.get(..count).unwrap_or_default();
        if piece.iter().any(|candidate| candidate.standing == Standing::Known) {
            attempt.path = CommitPath::Merge;
        }
        let place = (self.claim, &self.source);
        let sources = session.federated_sources().await?;
        let mut batch = build(piece, place, (start, absent_after), (rules, &sources))?;
        if let Some(letter) = &attempt.letter {
            batch = batch.with_only_record_dead(letter.clone());
        }
        failpoint::at("import_before_commit");
        let parts = self.commit(&mut session, &batch, attempt.path).await?;
        failpoint::at("import_after_commit");
        self.session = Some(session);
        for part in &parts {
            self.position = part.end;
        }
        self.retry.reset();
        self.away_since = None;
        Ok(())
    }

    async fn commit(
        &self,
        session: &mut Session,
        batch: &Batch,
        path: CommitPath,
    ) -> Result<Vec<CommittedPart>, StoreError> {
        session.ensure_partitions(batch).await?;
        match session.commit(&self.settings.store.group, batch, path).await? {
            CommitOutcome::Committed { parts, .. } => Ok(parts),
            CommitOutcome::Stale(_) => Err(self.moved()),
        }
    }

    /// The session, or a new one that stands in the position's row; the position is then PostgreSQL's.
    async fn session(&mut self) -> Result<Session, StoreError> {
        if let Some(session) = self.session.take() {
            return Ok(session);
        }
        let mut session = self.settings.store.connect(SessionPurpose::Operator).await?;
        let held = session.adopt_claims(&self.settings.store.group, &[self.claim]).await?;
        let Some((_, held)) = held.first() else { return Err(self.moved()) };
        if held.next < self.position {
            return Err(self.moved());
        }
        self.position = held.next;
        Ok(session)
    }

    fn moved(&self) -> StoreError {
        StoreError::Broken(format!(
            "another import of {} took it over, or postgresql lost commits; nothing is stored twice, and the same \
             command goes on from where it is",
            self.source.topic
        ))
    }

    /// Decides what the next try is, or gives up.
    async fn failed(
        &mut self,
        error: StoreError,
        attempt: &mut Attempt,
        count: usize,
    ) -> Result<(), StoreError> {
        self.session = None;
        match &error {
            StoreError::Refused { sqlstate, .. }
                if sqlstate == "23505" && attempt.path == CommitPath::Direct =>
            {
                attempt.path = CommitPath::Merge;
                Ok(())
            }
            StoreError::Refused { .. } | StoreError::StatementTimeout(_) if count > 1 => {
                attempt.record_count = count / 2;
                Ok(())
            }
            StoreError::Refused { sqlstate, .. } if attempt.letter.is_none() => {
                if attempt.refused == Some(self.position) {
                    attempt.letter = Some(DeadLetter {
                        rejection: Rejection::new(RejectionCode::RefusedByDatabase, error.to_string()),
                        sqlstate: Some(sqlstate.clone()),
                        audit_id: None,
                        correlation_id: None,
                    });
                }
                attempt.refused = Some(self.position);
                Ok(())
            }
            StoreError::Unavailable { .. }
            | StoreError::Contended { .. }
            | StoreError::StatementTimeout(_) => {
                let now = Clock::default().monotonic();
                let since = *self.away_since.get_or_insert(now);
                if now.saturating_duration_since(since) > OUTAGE_PATIENCE {
                    return Err(error);
                }
                if matches!(&error, StoreError::Contended { .. }) {
                    attempt.path = CommitPath::Merge;
                }
                sleep(self.retry.next_wait()).await;
                Ok(())
            }
            _ => Err(error),
        }
    }
}

impl Attempt {
    const fn new() -> Self {
        Self { path: CommitPath::Direct, record_count: usize::MAX, refused: None, letter: None }
    }

    /// Some records are stored: the next piece may be larger again.
    fn succeeded(&mut self, count: usize) {
        self.record_count = self.record_count.max(count.saturating_mul(2));
        self.letter = None;
    }
}
