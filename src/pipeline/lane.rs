//! A lane: decodes its partitions' chunks into batches and commits them, one at a time and in order.
//!
//! While one batch is being committed (in a task of its own) the next one is built. A batch that PostgreSQL
//! did not take stays at the front of the queue until it is stored, is stale, or its partitions are taken
//! away. What the lane believes of a position is checked against PostgreSQL by every commit, after every new
//! session and, for idle partitions, every `VERIFY_INTERVAL_MS`; where they differ PostgreSQL is right and the
//! partition is given up, to be claimed and read again from there.

mod beliefs;
mod troubles;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinError;

use super::facts::LaneFacts;
use super::storer::decode_record;
use super::task::Task;
use super::work::{Work, WorkDone};
use crate::model::backoff::RetryPolicy;
use crate::model::batch::{Batch, BatchBuilder, BatchLimits, Decoded, Noted, Rows};
use crate::model::breaker::{Breaker, BreakerRule, Opened};
use crate::model::collisions::Collisions;
use crate::model::decode::DecodeRules;
use crate::model::federated::FederatedSources;
use crate::model::position::{Offset, StreamPartition};
use crate::model::recent::RecentIds;
use crate::model::record::{AssignmentId, Chunk};
use crate::observe::Clock;
use crate::observe::board::{Board, DatabaseState};
use crate::store::copy::ids_of;
use crate::store::{Claim, CommitOutcome, CommitPath, CommittedPart, Store};

/// The first and the longest wait between tries while PostgreSQL is away.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// A record was polled this long ago at most, whatever the wall clock says.
const POLLED_AGO_MOST: Duration = Duration::from_secs(10);

/// What every lane is told.
#[derive(Debug, Clone)]
pub(super) struct LaneSettings<S: Store> {
    pub(super) store: S,
    pub(super) rules: Arc<DecodeRules>,
    /// The registry as it was read last; always before a partition is adopted.
    pub(super) sources: watch::Receiver<Arc<FederatedSources>>,
    pub(super) limits: BatchLimits,
    pub(super) linger: Duration,
    pub(super) breaker: BreakerRule,
    pub(super) verify_interval: Duration,
    pub(super) work_deadline: Duration,
    pub(super) clock: Clock,
}

/// What the supervisor tells a lane.
#[derive(Debug)]
pub(super) enum LaneControl {
    /// A partition is ours under this claim, from this position.
    Adopt { assignment: AssignmentId, claim: Claim, position: Offset },
    /// Partitions go away: finish what is under way within `patience`, or abandon it, then answer.
    Abandon { assignments: Vec<AssignmentId>, patience: Duration, reply: oneshot::Sender<()> },
}

/// Why a lane gives a partition up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GiveUp {
    /// Another process claimed it.
    ClaimedElsewhere,
    /// PostgreSQL's position is not ours (a failover that lost commits moves it back).
    PositionMoved,
    /// A chunk did not continue the one before.
    Discontinuity,
    /// The account is broken: the partition must stop.
    Broken(String),
    /// Too many of its records are dead letters: the partition must stop.
    BreakerOpened(Opened),
}

/// A partition that a lane has given up.
#[derive(Debug)]
pub(super) struct LaneReport {
    pub(super) assignment: AssignmentId,
    pub(super) why: GiveUp,
}

#[derive(Debug)]
struct LanePartition {
    claim: Claim,
    /// What PostgreSQL holds, as far as we know.
    position: Offset,
    /// The position behind the last chunk that was taken.
    read_to: Offset,
    /// Whether our present session stands in the position's row.
    is_recorded: bool,
    breaker: Breaker,
}

#[derive(Debug)]
struct Leaving {
    assignments: Vec<AssignmentId>,
    deadline: Instant,
    reply: oneshot::Sender<()>,
}

/// Work under way: the assignments that it concerns, and when it began.
type UnderWay<S> = (Task<WorkDone<S>>, Vec<AssignmentId>, Instant);

pub(super) struct Lane<S: Store> {
    index: usize,
    settings: LaneSettings<S>,
    chunks: mpsc::Receiver<Arc<Chunk>>,
    control: mpsc::Receiver<LaneControl>,
    reports: mpsc::UnboundedSender<LaneReport>,
    board: Board,
    facts: LaneFacts,
    owned: BTreeMap<AssignmentId, LanePartition>,
    builder: BatchBuilder,
    recent: RecentIds,
    /// When the first record of the open batch was polled.
    waiting_since: Option<Instant>,
    /// Batches to commit, in order: one, or the parts that it was split into.
    queue: VecDeque<Batch>,
    session: Option<S::Session>,
    work: Option<UnderWay<S>>,
    retry: RetryPolicy,
    retry_at: Option<Instant>,
    collisions: Collisions,
    /// The record that PostgreSQL refused when it stood alone; refused again, it becomes a dead letter.
    refused_before: Option<(StreamPartition, Offset)>,
    verify_at: Instant,
    leaving: Option<Leaving>,
}

impl<S: Store> Lane<S> {
    pub(super) fn new(
        index: usize,
        settings: LaneSettings<S>,
        (chunks, control): (mpsc::Receiver<Arc<Chunk>>, mpsc::Receiver<LaneControl>),
        reports: mpsc::UnboundedSender<LaneReport>,
        (board, facts): (Board, LaneFacts),
    ) -> Self {
        let verify_at = settings.clock.monotonic() + settings.verify_interval;
        let (high, low) = settings.store.instance().as_u64_pair();
        let seed = (high ^ low).wrapping_add(u64::try_from(index).unwrap_or_default());
        Self {
            index,
            builder: BatchBuilder::new(settings.limits),
            recent: RecentIds::default(),
            settings,
            chunks,
            control,
            reports,
            board,
            facts,
            owned: BTreeMap::new(),
            waiting_since: None,
            queue: VecDeque::new(),
            session: None,
            work: None,
            retry: RetryPolicy::new(RETRY_FIRST, RETRY_MOST).spread_by(seed),
            retry_at: None,
            collisions: Collisions::default(),
            refused_before: None,
            verify_at,
            leaving: None,
        }
    }

    /// Works until the supervisor hangs up.
    pub(super) async fn run(mut self) {
        loop {
            self.start_work();
            let now = self.settings.clock.monotonic();
            let wake_at = self.wake_at(now);
            let can_take = !self.builder.is_full();
            tokio::select! {
                biased;
                control = self.control.recv() => match control {
                    Some(control) => self.obey(control),
                    None => return,
                },
                done = joined(&mut self.work) => self.finish(done),
                chunk = self.chunks.recv(), if can_take => match chunk {
                    Some(chunk) => self.take(&chunk),
                    None => return,
                },
                () = tokio::time::sleep_until(wake_at.into()) => self.wake(),
            }
        }
    }

    /// When something is due that no message announces.
    fn wake_at(&self, now: Instant) -> Instant {
        let mut at = self.verify_at.max(now);
        if self.work.is_some() || self.owned.is_empty() {
            at = now + self.settings.verify_interval;
        } else if let Some(retry_at) = self.retry_at {
            at = retry_at;
        } else if let Some(waiting_since) = self.waiting_since {
            at = at.min(waiting_since + self.settings.linger);
        }
        self.leaving.as_ref().map_or(at, |leaving| at.min(leaving.deadline))
    }

    fn wake(&mut self) {
        let now = self.settings.clock.monotonic();
        self.retry_at = self.retry_at.filter(|at| *at > now);
        if self.leaving.as_ref().is_some_and(|leaving| leaving.deadline <= now) {
            self.abandon_work();
            self.leave();
        }
    }

    fn obey(&mut self, control: LaneControl) {
        match control {
            LaneControl::Adopt { assignment, claim, position } => {
                let breaker = Breaker::new(self.settings.breaker);
                let partition =
                    LanePartition { claim, position, read_to: position, is_recorded: false, breaker };
                self.owned.insert(assignment, partition);
            }
            LaneControl::Abandon { assignments, patience, reply } => {
                let deadline = self.settings.clock.monotonic() + patience;
                self.builder.remove(|part| assignments.contains(&part.assignment));
                if self.builder.is_empty() {
                    self.waiting_since = None;
                }
                self.leaving = Some(Leaving { assignments, deadline, reply });
                if !self.is_leaving_under_way() {
                    self.leave();
                }
            }
        }
    }

    /// Whether the work under way concerns a partition that goes away.
    fn is_leaving_under_way(&self) -> bool {
        match (&self.work, &self.leaving) {
            (Some((_, assignments, _)), Some(leaving)) => {
                assignments.iter().any(|assignment| leaving.assignments.contains(assignment))
            }
            _ => false,
        }
    }

    fn leave(&mut self) {
        let Some(Leaving { assignments, reply, .. }) = self.leaving.take() else { return };
        for assignment in assignments {
            self.forget(assignment);
        }
        if reply.send(()).is_err() {
            tracing::debug!(lane = self.index, "nobody waits for the partitions that were given up");
        }
    }

    /// Stops the work under way; what became of it at PostgreSQL is unknown, and the session is gone with it. So is
    /// its batch: of the partitions in it those that stay are given up, to be claimed and read again.
    fn abandon_work(&mut self) {
        let Some((task, assignments, _)) = self.work.take() else { return };
        drop(task);
        self.lose_session();
        tracing::warn!(lane = self.index, "a commit under way was abandoned");
        let leaving = self.leaving.as_ref().map_or_else(Vec::new, |leaving| leaving.assignments.clone());
        for assignment in assignments.into_iter().filter(|assignment| !leaving.contains(assignment)) {
            if self.owned.contains_key(&assignment) {
                self.give_up(assignment, GiveUp::PositionMoved);
            }
        }
    }

    /// Takes `batch` off the queue's front, where it stands unless its partitions were given up meanwhile.
    fn take_front(&mut self, batch: &Batch) {
        let is_same = |front: &Batch| {
            front.parts().iter().any(|part| {
                batch.parts().iter().any(|own| own.assignment == part.assignment && own.start == part.start)
            })
        };
        if self.queue.front().is_some_and(is_same) {
            self.queue.pop_front();
        }
    }

    fn lose_session(&mut self) {
        self.session = None;
        self.owned.values_mut().for_each(|partition| partition.is_recorded = false);
    }

    /// Drops all that is known of an assignment.
    fn forget(&mut self, assignment: AssignmentId) {
        self.owned.remove(&assignment);
        self.recent.clear();
        self.builder.remove(|part| part.assignment == assignment);
        if self.builder.is_empty() {
            self.waiting_since = None;
        }
        let batches = std::mem::take(&mut self.queue);
        let left = batches.into_iter().map(|batch| batch.without(|part| part.assignment == assignment));
        self.queue = left.filter(|batch| !batch.is_empty()).collect();
    }

    fn give_up(&mut self, assignment: AssignmentId, why: GiveUp) {
        self.forget(assignment);
        self.facts.gave_up(&why);
        // Unbounded, and bounded by one report for each assignment.
        if self.reports.send(LaneReport { assignment, why }).is_err() {
            tracing::debug!(lane = self.index, "the supervisor is gone");
        }
    }

    /// Decodes a chunk into the open batch.
    fn take(&mut self, chunk: &Arc<Chunk>) {
        // Records of an assignment that ended are dropped here.
        let Some(partition) = self.owned.get_mut(&chunk.assignment) else { return };
        let (key, epoch) = (partition.claim.key, partition.claim.epoch);
        let is_next = partition.read_to == chunk.start;
        let rules = Arc::clone(&self.settings.rules);
        let sources = Arc::clone(&self.settings.sources.borrow());
        let started_at = self.settings.clock.monotonic();
        let pushed = is_next.then(|| {
            let recent = &mut self.recent;
            self.builder.push(chunk, key, epoch, |record, rows| {
                let start = rows.len();
                let decoded =
                    decode_record((chunk.value(record), record.offset), (key, &rules, &sources), rows);
                match decoded {
                    Decoded::Event(time, noted) => {
                        let id = rows.get(start..).and_then(ids_of).map(|(audit_id, _)| audit_id);
                        let is_repeated = id.is_some_and(|id| recent.note(id));
                        Decoded::Event(time, Noted { is_repeated, ..noted })
                    }
                    letter @ Decoded::DeadLetter(_) => letter,
                }
            })
        });
        match pushed {
            Some(Ok(())) => {
                partition.read_to = chunk.end;
                let polled_at = chunk.polled.map_or(Duration::ZERO, |polled| {
                    let ago_ms = self.settings.clock.unix_ms().saturating_sub(polled.from_ms);
                    Duration::from_millis(u64::try_from(ago_ms).unwrap_or_default()).min(POLLED_AGO_MOST)
                });
                let polled_at = started_at.checked_sub(polled_at).unwrap_or(started_at);
                let since = self.waiting_since.map_or(polled_at, |since| since.min(polled_at));
                self.waiting_since = Some(since);
                self.facts.took(chunk, self.settings.clock.monotonic().saturating_duration_since(started_at));
            }
            Some(Err(_)) | None => {
                tracing::error!(
                    partition = %chunk.source, expected = %partition.read_to, found = %chunk.start,
                    "records are missing between poll and batch; the partition is read again from its position"
                );
                self.give_up(chunk.assignment, GiveUp::Discontinuity);
            }
        }
    }

    /// Starts the next piece of work, if there is one and nothing is under way.
    fn start_work(&mut self) {
        let now = self.settings.clock.monotonic();
        if self.work.is_some() || self.retry_at.is_some_and(|at| at > now) || self.owned.is_empty() {
            return;
        }
        // What was handed over already comes along.
        let is_ripe = self.chunks.is_empty()
            && self
                .waiting_since
                .is_some_and(|since| now.saturating_duration_since(since) >= self.settings.linger);
        if self.queue.is_empty() && (self.builder.is_full() || is_ripe) {
            self.queue.push_back(self.builder.take());
            self.waiting_since = None;
        }
        let must_verify = self.verify_at <= now;
        if self.queue.is_empty() && !must_verify {
            return;
        }
        let must_adopt = self.owned.values().any(|partition| !partition.is_recorded);
        let claims = if must_verify || must_adopt || self.session.is_none() {
            self.verify_at = now + self.settings.verify_interval;
            self.owned.values().map(|partition| partition.claim).collect()
        } else {
            Vec::new()
        };
        let batch = self.queue.pop_front().map(|batch| (batch, CommitPath::after(&self.collisions)));
        let assignments = match &batch {
            Some((batch, _)) => batch.parts().iter().map(|part| part.assignment).collect(),
            None => self.owned.keys().copied().collect(),
        };
        let work = Work { session: self.session.take(), claims, must_adopt, batch };
        let task = Task::spawn(work.run(self.settings.store.clone(), self.settings.work_deadline));
        self.work = Some((task, assignments, now));
    }

    fn finish(&mut self, done: Result<WorkDone<S>, JoinError>) {
        let Some((_, _, started_at)) = self.work.take() else { return };
        let elapsed = self.settings.clock.monotonic().saturating_duration_since(started_at);
        match done {
            Ok(done) => self.settle(done, elapsed),
            Err(error) => {
                // A panic in the task: a bug. Its batch is gone, so its partitions are read again.
                tracing::error!(lane = self.index, %error, "a commit task died");
                self.lose_session();
                let assignments: Vec<AssignmentId> = self.owned.keys().copied().collect();
                assignments
                    .into_iter()
                    .for_each(|assignment| self.give_up(assignment, GiveUp::Discontinuity));
            }
        }
        if self.leaving.is_some() {
            self.leave();
        }
    }

    fn settle(&mut self, done: WorkDone<S>, elapsed: Duration) {
        let WorkDone { session, seen, has_adopted, began_at, batch, outcome, default_count } = done;
        self.session = session;
        self.facts.worked(batch.is_some(), &outcome, (elapsed, default_count));
        let trace = began_at.and_then(|began_at| {
            let lasted = self.settings.clock.monotonic().saturating_duration_since(began_at);
            self.facts.traced(batch.as_ref()?, &outcome, lasted)
        });
        let is_over = seen.is_none() && matches!(outcome, Ok(Some(CommitOutcome::Committed { .. })));
        if let Some((batch, _)) = batch.as_ref().filter(|(batch, _)| !is_over && !batch.is_empty()) {
            // Back to the front; what follows takes it away if it was stored or is stale.
            self.queue.push_front(batch.clone());
        }
        if let Some((asked, positions)) = seen {
            self.compare(&asked, &positions);
            let recorded = self.owned.values_mut().filter(|own| has_adopted && asked.contains(&own.claim));
            recorded.for_each(|own| own.is_recorded = true);
        }
        match outcome {
            Ok(outcome) => {
                self.database_is(DatabaseState::Up);
                self.retry.reset();
                match (outcome, batch) {
                    (Some(CommitOutcome::Committed { path, parts }), Some((batch, _))) => {
                        self.take_front(&batch);
                        self.committed(&batch, &parts, path);
                        self.builder.reuse(batch);
                    }
                    (Some(CommitOutcome::Stale(stale)), Some((batch, _))) => self.stale(&batch, &stale),
                    _ => {}
                }
            }
            Err(error) => {
                self.lose_session();
                let _in = trace.map(|trace| tracing::error_span!("commit", trace_id = %trace).entered());
                // What went wrong before the commit says nothing of the batch.
                self.failed(error, batch.filter(|_| began_at.is_some()));
            }
        }
    }

    fn committed(&mut self, batch: &Batch, parts: &[CommittedPart], path: CommitPath) {
        let stored_count = parts.iter().map(|part| part.event_count).sum();
        let met_count = batch.event_count().saturating_sub(stored_count);
        self.collisions.committed(met_count, batch.row_count(Rows::Repeated(true)));
        for part in batch.parts() {
            self.moved(part.key, part.epoch, part.end);
        }
        self.facts.committed(batch, parts, path, self.settings.clock.unix_ms());
        self.count_for_breakers(batch, parts);
    }

    fn count_for_breakers(&mut self, batch: &Batch, parts: &[CommittedPart]) {
        for part in parts {
            let assignment = batch.parts().iter().find(|own| own.key == part.key).map(|own| own.assignment);
            let Some((assignment, own)) =
                assignment.and_then(|assignment| Some((assignment, self.owned.get_mut(&assignment)?)))
            else {
                continue;
            };
            let record_count = part.event_count + part.duplicate_count + part.dead_letter_count;
            if let Some(opened) = own.breaker.count(record_count, part.dead_letter_count) {
                self.give_up(assignment, GiveUp::BreakerOpened(opened));
            }
        }
    }
}

/// The end of the work under way; never, while there is none.
async fn joined<S: Store>(work: &mut Option<UnderWay<S>>) -> Result<WorkDone<S>, JoinError> {
    match work {
        Some((task, ..)) => task.await,
        None => std::future::pending().await,
    }
}
