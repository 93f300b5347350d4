//! One piece of a lane's work with PostgreSQL, done in a task of its own so that the lane goes on decoding.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::failpoint;
use crate::model::batch::Batch;
use crate::model::position::StreamPartition;
use crate::observe::Clock;
use crate::store::{
    Claim, ClaimedPosition, CommitOutcome, CommitPath, SessionPurpose, Store, StoreError, StoreSession,
};

/// What PostgreSQL holds for each key.
pub(super) type Positions = Vec<(StreamPartition, ClaimedPosition)>;

/// What a lane asks for.
#[derive(Debug)]
pub(super) struct Work<S: Store> {
    /// The session to use; without one another is opened.
    pub(super) session: Option<S::Session>,
    /// The claims to look up before anything else, and with a new session to write it into.
    pub(super) claims: Vec<Claim>,
    /// Write the session into the rows of `claims`, which were not all recorded under it.
    pub(super) must_adopt: bool,
    /// The batch to commit, and by which path.
    pub(super) batch: Option<(Batch, CommitPath)>,
}

/// What became of it.
#[derive(Debug)]
pub(super) struct WorkDone<S: Store> {
    /// The session, if it may be used again.
    pub(super) session: Option<S::Session>,
    /// The claims that were looked up and what PostgreSQL holds for them; `None`: nothing was looked up.
    pub(super) seen: Option<(Vec<Claim>, Positions)>,
    /// Whether the session was written into the rows of those claims.
    pub(super) has_adopted: bool,
    /// When the commit was begun; `None`: it was not tried, and an error before it says nothing of the batch.
    pub(super) began_at: Option<Instant>,
    /// The batch, and what became of it; without an outcome it was not tried, as a claim was lost or moved.
    pub(super) batch: Option<(Batch, CommitPath)>,
    /// How the commit ended, if it was tried.
    pub(super) outcome: Result<Option<CommitOutcome>, StoreError>,
    /// Events that went to the default time partition.
    pub(super) default_count: u64,
}

impl<S: Store> Work<S> {
    /// Does the work within `deadline`; a dropped future leaves the outcome unknown, as an error does.
    pub(super) async fn run(self, store: S, deadline: Duration) -> WorkDone<S> {
        let Self { session, claims, must_adopt, batch } = self;
        let mut done = WorkDone {
            session: None,
            seen: None,
            has_adopted: false,
            began_at: None,
            batch,
            outcome: Ok(None),
            default_count: 0,
        };
        let tried = timeout(deadline, done.attempt(&store, session, claims, must_adopt)).await;
        done.outcome = match tried {
            Ok(outcome) => outcome,
            Err(_elapsed) => {
                done.session = None;
                Err(StoreError::no_answer("commit"))
            }
        };
        done
    }
}

impl<S: Store> WorkDone<S> {
    async fn attempt(
        &mut self,
        store: &S,
        session: Option<S::Session>,
        claims: Vec<Claim>,
        must_adopt: bool,
    ) -> Result<Option<CommitOutcome>, StoreError> {
        let (mut session, is_new) = match session {
            Some(session) => (session, false),
            None => (store.connect(SessionPurpose::Lane).await?, true),
        };
        if !claims.is_empty() {
            let positions = if is_new || must_adopt {
                let positions = session.adopt_claims(store.group(), &claims).await?;
                self.has_adopted = true;
                positions
            } else {
                session.positions(store.group(), &claims).await?
            };
            self.seen = Some((claims, positions));
        }
        let agrees = self.batch.as_ref().is_some_and(|(batch, _)| self.agrees_with(batch));
        let outcome = match &self.batch {
            Some((batch, path)) if agrees => {
                self.default_count = session.ensure_partitions(batch).await?;
                self.began_at = Some(Clock::default().monotonic());
                Some(session.commit(store.group(), batch, *path).await?)
            }
            _ => None,
        };
        self.session = Some(session);
        Ok(outcome)
    }

    /// Whether what was seen lets `batch` be committed; a hint, the compare-and-set decides.
    fn agrees_with(&self, batch: &Batch) -> bool {
        let Some((_, positions)) = &self.seen else { return true };
        batch.parts().iter().all(|part| {
            let is_there = |next| next == part.start || failpoint::is_on("mutant_no_cas");
            positions
                .iter()
                .any(|(key, seen)| *key == part.key && seen.epoch == part.epoch && is_there(seen.next))
        })
    }
}
