//! The pipeline: from what Kafka assigns to what PostgreSQL holds. Start reading here.
//!
//! One loop, [`Pipeline::run`], owns who reads what. The poll thread ([`crate::source`]) offers partitions and
//! takes them away; the loop claims them in PostgreSQL, gives each to a lane, and releases them. The lanes
//! ([`lane`]) get records from the poll thread directly, commit them, and report what they give up.
//!
//! # The life of an assignment
//!
//! 1. *Offered*: Kafka has assigned the partition; the poll thread waits in the rebalance callback (or asks
//!    again for a partition that is held). We claim it: epoch and position come from PostgreSQL.
//! 2. *Adopted*: the lane knows claim and position **before** the poll thread gets the position, so the first
//!    record always finds its lane ready.
//! 3. *Read*: records carry the assignment's name; a lane drops those whose name it does not know.
//! 4. *Ended*: by Kafka (revoked: the lane finishes or abandons, then the claim is released, then the poll
//!    thread answers Kafka) or by us (stale, moved, broken: the lane forgets it first, then the poll thread
//!    drops it and offers the partition again, which leads to 1). Nothing else moves a position, and there is
//!    no seek.
//!
//! # Interleavings that were thought through
//!
//! - We are stopped (SIGSTOP) between the compare-and-set and COMMIT, and another process claims: its claim
//!   waits for our row lock, ends our session after 1 s (at once if our session stands in the row), bumps the
//!   epoch. When we go on, the connection is dead; the retry is refused by the epoch.
//! - We are stopped between the claim and the first record: the other claim's epoch is higher, our first
//!   commit is refused, and we claim again only after [`RECLAIM_AFTER`], when Kafka has told us what is ours.
//! - COMMIT succeeds and its answer is lost: the lane keeps the batch, looks the position up on a new session,
//!   finds it at the batch's end, and drops the batch.
//! - The process dies anywhere: what was not committed is read again from the position; what was is not.

mod breakers;
mod claims;
mod drainer;
mod facts;
mod forecasts;
mod lane;
mod outage;
mod registry;
mod spans;
mod spooler;
mod storer;
mod strays;
mod task;
mod work;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::breakers::OpenBreaker;
use self::facts::LaneFacts;
use self::forecasts::Forecasts;
use self::lane::{GiveUp, Lane, LaneControl, LaneReport, LaneSettings};
use self::outage::Outage;
use self::spans::BatchSpans;
pub use self::spooler::SharedSpool;
pub use self::storer::{StoredCounts, decode_record};
pub use self::strays::{PassReport, Sorting, StrayError, Strays, overlap};
use crate::model::batch::BatchLimits;
use crate::model::breaker::BreakerRule;
use crate::model::decode::DecodeRules;
use crate::model::federated::FederatedSources;
use crate::model::position::{Offset, TopicPartition};
use crate::model::record::{AssignmentId, Chunk};
use crate::model::spool::mode::Mode;
use crate::observe::board::{Board, HoldCode, OwnedPartition, Phase};
use crate::observe::{Clock, Metrics, Traces};
use crate::source::{
    EVENT_QUEUE_COUNT, LANE_QUEUE_COUNT, Placement, Source, SourceCommand, SourceEvent, SourceHandle,
};
use crate::spool::Spool;
use crate::spool::disk::{Disk, LocalDisk};
use crate::store::{Claim, SessionPurpose, Store, StoreError, StoreSession, StoreSettings};

/// How long we wait before we claim a partition again that another process claimed: longer than Kafka's
/// heartbeat interval (3 s at most), by which a process that lost its partitions learns of it.
pub const RECLAIM_AFTER: Duration = Duration::from_secs(4);
/// How long a batch under way may take when its partition is revoked.
const REVOKE_PATIENCE: Duration = Duration::from_secs(5);
/// How long releasing claims may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often positions are mirrored to Kafka and the time partitions ahead are looked after.
const MIRROR_INTERVAL: Duration = Duration::from_secs(1);
const PARTITIONS_INTERVAL: Duration = Duration::from_secs(3600);
/// How many messages wait for a lane at most.
const CONTROL_QUEUE_COUNT: usize = 64;
/// How long a session of the loop must last before a gap is declared on it, or as long as gaps are waited for: a failover takes back what spools have told,
/// and each process tells it again within this time (an outage's longest wait between questions, and a look).
const RETOLD_AFTER: Duration = Duration::from_secs(90);
/// What a batch may take beside its statements before its outcome counts as unknown.
const WORK_MARGIN: Duration = Duration::from_secs(15);

/// How the pipeline works.
#[derive(Debug, Clone)]
pub struct PipelineSettings<S: Store = StoreSettings> {
    /// PostgreSQL.
    pub store: S,
    /// Kafka.
    pub source: Arc<dyn Source>,
    /// Decoding.
    pub rules: DecodeRules,
    /// When a batch closes by size …
    pub limits: BatchLimits,
    /// … or by age.
    pub linger: Duration,
    /// How many lanes.
    pub lane_count: usize,
    /// How often idle partitions are verified.
    pub verify_interval: Duration,
    /// How long a claim may take.
    pub claim_timeout: Duration,
    /// How long a statement may take.
    pub statement_timeout: Duration,
    /// How long stopping may take.
    pub shutdown_deadline: Duration,
    /// How long deleted records are waited for before a gap is declared.
    pub gap_wait: Duration,
    /// When a partition stops for its dead letters.
    pub breaker: BreakerRule,
}

/// A spool, and when it takes over.
#[derive(Debug)]
pub struct SpoolSettings<D: Disk = LocalDisk> {
    /// The open spool.
    pub spool: Spool<D>,
    /// How long PostgreSQL must have been away.
    pub after: Duration,
}

/// Why the pipeline did not start, or ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The consumer can't be made.
    #[error("make the kafka consumer: {0}")]
    Source(String),
    /// The consumer failed for good, or a part of the pipeline died: the process must be started again.
    #[error("the pipeline ended: {0}")]
    Ended(String),
}

/// The loop's state.
#[derive(Debug)]
pub struct Pipeline<S: Store = StoreSettings, D: Disk = LocalDisk> {
    settings: PipelineSettings<S>,
    board: Board,
    metrics: Arc<Metrics>,
    clock: Clock,
    traces: Traces,
    source: SourceHandle,
    events: mpsc::Receiver<SourceEvent>,
    lanes: Vec<mpsc::Sender<LaneControl>>,
    /// The lanes' tasks, and the one that reads the registry. None ends while the loop works; if one does, records
    /// would pile up unseen.
    lane_tasks: JoinSet<()>,
    /// Whether we were told to stop; looked at where the loop waits for long.
    is_stopping: watch::Receiver<bool>,
    reports: mpsc::UnboundedReceiver<LaneReport>,
    session: Option<S::Session>,
    /// When the loop's session was opened last.
    connected_at: Instant,
    /// What the lanes know of the registry of sources.
    sources: watch::Sender<Arc<FederatedSources>>,
    next_assignment: u64,
    claim_not_before: HashMap<Arc<TopicPartition>, Instant>,
    /// How far what the poll thread has ended is kept, and since when that has not changed while PostgreSQL answered.
    outstanding: HashMap<AssignmentId, (Offset, Instant)>,
    breakers: HashMap<Arc<TopicPartition>, OpenBreaker>,
    /// When PostgreSQL may be asked about them again.
    ask_breakers_at: Instant,
    /// The spool; without one records wait in Kafka.
    outage: Option<Outage<D>>,
    mirrored: BTreeMap<AssignmentId, Offset>,
    forecasts: Forecasts,
    /// Assignments that the poll thread must still be told to drop.
    drops: Vec<AssignmentId>,
    partitions_at: Instant,
}

impl<S: Store, D: Disk> Pipeline<S, D> {
    /// Starts the lanes and the poll thread, and what the spool needs when there is one; `stop` tells [`Self::run`] to
    /// end.
    ///
    /// # Errors
    /// [`PipelineError::Source`] when librdkafka refuses the settings.
    pub fn start(
        settings: PipelineSettings<S>,
        board: Board,
        (metrics, clock, traces): (Arc<Metrics>, Clock, Traces),
        stop: watch::Receiver<bool>,
        spool: Option<SpoolSettings<D>>,
    ) -> Result<Self, PipelineError> {
        let (events_tx, events) = mpsc::channel(EVENT_QUEUE_COUNT);
        let (reports_tx, reports) = mpsc::unbounded_channel();
        let (sources, known_sources) = watch::channel(Arc::default());
        let lane_settings = LaneSettings {
            store: settings.store.clone(),
            rules: Arc::new(settings.rules.clone()),
            sources: known_sources,
            limits: settings.limits,
            linger: settings.linger,
            verify_interval: settings.verify_interval,
            breaker: settings.breaker,
            work_deadline: settings.statement_timeout + WORK_MARGIN,
            clock: clock.clone(),
        };
        let spans = BatchSpans::new(&settings.store, traces.clone(), clock.clone());
        let (mut queues, mut lanes, mut lane_tasks) = (Vec::new(), Vec::new(), JoinSet::new());
        for index in 0..settings.lane_count.max(1) {
            let (chunks_tx, chunks) = mpsc::channel::<Arc<Chunk>>(LANE_QUEUE_COUNT);
            let (control_tx, control) = mpsc::channel(CONTROL_QUEUE_COUNT);
            queues.push(chunks_tx);
            lanes.push(control_tx);
            let facts = LaneFacts::new(Arc::clone(&metrics), board.clone(), spans.clone());
            let out = (board.clone(), facts);
            let lane = Lane::new(index, lane_settings.clone(), (chunks, control), reports_tx.clone(), out);
            lane_tasks.spawn(lane.run());
        }
        lane_tasks.spawn(registry::refresh(settings.store.clone(), sources.clone()));
        let lane_queues = queues.clone();
        let spool = spool.map(|spool| {
            let (chunks_tx, chunks) = mpsc::channel::<Arc<Chunk>>(LANE_QUEUE_COUNT);
            queues.push(chunks_tx);
            (spool, chunks)
        });
        let source =
            settings.source.start(queues, events_tx, clock.clone()).map_err(PipelineError::Source)?;
        let partitions_at = clock.monotonic();
        let mut pipeline = Self {
            settings,
            board,
            metrics,
            clock,
            traces,
            source,
            events,
            lanes,
            lane_tasks,
            is_stopping: stop,
            reports,
            session: None,
            connected_at: partitions_at,
            sources,
            next_assignment: 1,
            claim_not_before: HashMap::new(),
            outstanding: HashMap::new(),
            breakers: HashMap::new(),
            ask_breakers_at: partitions_at,
            outage: None,
            mirrored: BTreeMap::new(),
            forecasts: Forecasts::default(),
            drops: Vec::new(),
            partitions_at,
        };
        if let Some((SpoolSettings { spool, after }, chunks)) = spool {
            let spool = Arc::new(std::sync::Mutex::new(spool));
            pipeline.start_outage(spool, after, (chunks, lane_queues), (reports_tx, spans));
        }
        Ok(pipeline)
    }

    /// Works until it is told to stop, then stops in good order.
    ///
    /// # Errors
    /// [`PipelineError::Ended`] when the consumer failed for good or a lane died; what was claimed is released.
    pub async fn run(mut self) -> Result<(), PipelineError> {
        let mut stop = self.is_stopping.clone();
        let mut tick = tokio::time::interval(MIRROR_INTERVAL);
        let failure = loop {
            tokio::select! {
                biased;
                is_told = told_to_stop(&mut stop) => {
                    if !is_told {
                        tracing::warn!("whoever stops the pipeline is gone; stopping");
                    }
                    break None;
                }
                event = self.events.recv() => match event {
                    Some(SourceEvent::Failed(reason)) => break Some(reason),
                    Some(event) => self.obey(event).await,
                    None => break Some("the poll thread ended".to_owned()),
                },
                _ = self.lane_tasks.join_next() => break Some("a lane ended".to_owned()),
                report = self.reports.recv() => if let Some(report) = report { self.gave_up(report) },
                _ = tick.tick() => self.tick().await,
            }
        };
        self.stop().await;
        failure.map_or(Ok(()), |reason| Err(PipelineError::Ended(reason)))
    }

    async fn obey(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Offered { offers, reply } => {
                let placements = self.place(offers).await;
                if reply.send(placements).is_err() {
                    tracing::debug!("the poll thread did not wait for its placements");
                }
            }
            SourceEvent::Revoked { assignments, partitions, is_lost, reply } => {
                self.metrics.rebalanced(if is_lost { "lost" } else { "revoke" });
                let patience = if is_lost { Duration::ZERO } else { REVOKE_PATIENCE };
                let mut ending: BTreeSet<AssignmentId> = assignments.into_iter().collect();
                // The poll thread has ended some by itself, and does not know of what is drained.
                ending.extend(self.owned_where(|owned| partitions.contains(&owned.source)));
                ending.extend(self.draining_of(&partitions));
                let ending: Vec<AssignmentId> = ending.into_iter().collect();
                self.board.lock().held.retain(|source, _| !partitions.contains(source));
                self.breakers.retain(|source, _| !partitions.contains(source));
                let ended = self.end(&ending, patience).await;
                self.forget_positions(&ended);
                tracing::info!(
                    partition_count = partitions.len(),
                    read_count = ended.len(),
                    is_lost,
                    "partitions revoked"
                );
                if reply.send(()).is_err() {
                    tracing::debug!("the poll thread did not wait for the revocation");
                }
            }
            SourceEvent::Assigned => self.metrics.rebalanced("assign"),
            SourceEvent::Looked { ends, paused_count, is_connected } => {
                let mut board = self.board.lock();
                board.paused_count = paused_count;
                board.polled_at = Some(self.clock.monotonic());
                board.is_kafka_reachable = Some(is_connected);
                if board.phase == Phase::Starting && is_connected {
                    board.phase = Phase::Running;
                }
                for (assignment, low, end) in ends {
                    if let Some(owned) = board.owned.get_mut(&assignment) {
                        (owned.low, owned.end) = (low, Some(end));
                    }
                }
            }
            SourceEvent::Failed(reason) => tracing::error!(reason, "the kafka consumer failed for good"),
        }
    }

    /// A lane gave a partition up by itself: the poll thread must read it again from its position.
    fn gave_up(&mut self, report: LaneReport) {
        let LaneReport { assignment, why } = report;
        self.mirrored.remove(&assignment);
        self.outstanding.remove(&assignment);
        let Some(owned) = self.board.lock().owned.remove(&assignment) else { return };
        let source = owned.source;
        if !matches!(why, GiveUp::BreakerOpened(_)) {
            tracing::warn!(partition = %source, why = ?why, position = %owned.position, "the partition was given up");
        }
        match why {
            GiveUp::ClaimedElsewhere => {
                self.claim_not_before.insert(Arc::clone(&source), self.clock.monotonic() + RECLAIM_AFTER);
            }
            GiveUp::Broken(reason) => self.hold(&source, HoldCode::AccountBroken, reason),
            GiveUp::BreakerOpened(opened) => self.breaker_opened(&source, owned.key, opened),
            GiveUp::PositionMoved | GiveUp::Discontinuity => {}
        }
        self.drops.push(assignment);
        self.send_drops();
    }

    fn send_drops(&mut self) {
        let source = &self.source;
        self.drops.retain(|assignment| !source.send(SourceCommand::Drop(*assignment)));
    }

    /// Ends assignments: lanes finish or abandon, then the claims are released. Returns where they ended.
    async fn end(&mut self, assignments: &[AssignmentId], patience: Duration) -> Vec<OwnedPartition> {
        let ended = self.take_back(assignments, patience).await;
        let claims: Vec<Claim> = ended
            .iter()
            .filter(|owned| owned.mode != Mode::Spooling)
            .map(|owned| Claim { key: owned.key, epoch: owned.epoch })
            .collect();
        if !claims.is_empty() {
            self.release(&claims).await;
        }
        ended
    }

    /// Releases claims, if PostgreSQL answers in time; a later owner ends our session otherwise.
    async fn release(&mut self, claims: &[Claim]) {
        let store = self.settings.store.clone();
        let kept = self.session.take();
        if kept.is_none() {
            self.connected_at = self.clock.monotonic();
        }
        let released = async {
            let mut session = match kept {
                Some(session) => session,
                None => store.connect(SessionPurpose::Claim).await?,
            };
            session.release(store.group(), claims).await?;
            Ok::<S::Session, StoreError>(session)
        };
        match tokio::time::timeout(RELEASE_TIMEOUT, released).await {
            Ok(Ok(session)) => self.session = Some(session),
            Ok(Err(error)) => {
                tracing::warn!(%error, "claims were not released; the next owner takes them anyway")
            }
            Err(_elapsed) => {
                tracing::warn!("claims were not released in time; the next owner takes them anyway")
            }
        }
    }

    async fn tick(&mut self) {
        self.send_drops();
        self.tick_outage().await;
        self.forecasts.update(&self.board, self.clock.unix_ms());
        let moved = self.mirror();
        if !moved.is_empty() && !self.source.send(SourceCommand::Mirror(moved)) {
            tracing::debug!("the poll thread is busy; the mirror waits");
            self.mirrored.clear();
        }
        let now = self.clock.monotonic();
        if now >= self.partitions_at
            && let Some(mut session) = self.session.take()
        {
            self.partitions_at = now + PARTITIONS_INTERVAL;
            match tokio::time::timeout(RELEASE_TIMEOUT, session.ensure_partitions_ahead()).await {
                Ok(Ok(())) => self.session = Some(session),
                Ok(Err(error)) => tracing::warn!(%error, "time partitions ahead were not made"),
                Err(_elapsed) => tracing::warn!("time partitions ahead were not made in time"),
            }
        }
    }

    /// The positions that Kafka's group does not mirror yet.
    fn mirror(&mut self) -> Vec<(Arc<TopicPartition>, Offset)> {
        let board = self.board.lock();
        let mut moved = Vec::new();
        // What is spooled is not stored.
        for (assignment, owned) in board.owned.iter().filter(|(_, owned)| owned.mode != Mode::Spooling) {
            if self.mirrored.insert(*assignment, owned.position) != Some(owned.position) {
                moved.push((Arc::clone(&owned.source), owned.position));
            }
        }
        moved
    }

    /// Stops in good order: batches under way finish or are abandoned, claims are released, the group is left.
    async fn stop(&mut self) {
        self.board.lock().phase = Phase::Stopping;
        let deadline = self.clock.monotonic() + self.settings.shutdown_deadline;
        let assignments: Vec<AssignmentId> = self.board.lock().owned.keys().copied().collect();
        tracing::info!(partition_count = assignments.len(), "stopping");
        let ended = self.end(&assignments, REVOKE_PATIENCE.min(self.settings.shutdown_deadline / 2)).await;
        let stored = ended.into_iter().filter(|owned| owned.mode != Mode::Spooling);
        let positions = stored.map(|owned| (owned.source, owned.position)).collect();
        if !self.source.send(SourceCommand::Close(positions)) {
            tracing::warn!("the poll thread can't be told to stop");
            return;
        }
        while !self.source.is_finished() && self.clock.monotonic() < deadline {
            let wait = tokio::time::timeout(Duration::from_millis(20), self.events.recv()).await;
            match wait {
                Ok(Some(SourceEvent::Offered { offers, reply })) => {
                    if reply.send(vec![Placement::Hold; offers.len()]).is_err() {
                        tracing::debug!("the poll thread did not wait for its placements");
                    }
                }
                Ok(Some(SourceEvent::Revoked { reply, .. })) => {
                    if reply.send(()).is_err() {
                        tracing::debug!("the poll thread did not wait for the revocation");
                    }
                }
                Ok(Some(SourceEvent::Assigned | SourceEvent::Looked { .. } | SourceEvent::Failed(_)))
                | Err(_) => {}
                Ok(None) => break,
            }
        }
        if let Some(session) = self.session.take() {
            session.close().await;
        }
        tracing::info!("stopped");
    }
}

/// Waits until we are told to stop; `false`: whoever would tell us is gone.
async fn told_to_stop(stop: &mut watch::Receiver<bool>) -> bool {
    stop.wait_for(|stop| *stop).await.is_ok()
}
