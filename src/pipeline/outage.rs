//! What becomes of partitions while PostgreSQL is away for long, and after.
//!
//! ```text
//!            away for SPOOL_AFTER             PostgreSQL answers             all fed and committed
//!   Live ───────────────────────► Spooling ──────────────────► Draining ─────────────────────────► Live
//!   (a lane, under a claim)       (the spooler, no claim)      (a lane, under a claim, fed
//!                                                               from the spool, not from Kafka)
//! ```
//!
//! Each arrow ends one assignment and begins another, by way of the poll thread's next offer, so every position is
//! looked up anew. Where a partition begins to spool: at the position that was last known here, or the group's offset in Kafka, which
//! never leads, and behind what the spool holds from there on; else behind the newest batch that the spool holds; else
//! nowhere: it is held.
//!
//! The claim that follows an outage tells PostgreSQL's position, and that decides: what the spool holds from there on
//! is drained first; what it lacks is read from Kafka, and the spool's batches are dropped when the position has passed
//! them. Before anything is claimed, the ranges that the spool holds are written to `spool_ranges`, so that nobody
//! declares a gap over them; that write is also how we learn that PostgreSQL is back and takes writes.

mod holdings;
mod sorting;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::drainer::{Drainer, DrainerControl, Fed};
use super::lane::LaneControl;
use super::spans::BatchSpans;
use super::spooler::{SharedSpool, Spooler, SpoolerControl, with_spool};
use super::task::Task;
use super::{CONTROL_QUEUE_COUNT, Pipeline, REVOKE_PATIENCE};
use crate::model::position::{Epoch, Offset, OffsetRange, StreamPartition, TopicPartition};
use crate::model::record::{AssignmentId, Chunk};
use crate::model::spool::mode::Mode;
use crate::model::spool::ranges;
use crate::observe::board::{DatabaseState, Hold, HoldCode, OwnedPartition};
use crate::source::{Offer, Placement};
use crate::spool::disk::{Disk, LocalDisk};
use crate::spool::{PartitionRanges, joined};
use crate::store::{
    Claim, ClaimRequest, ClaimedPosition, SessionPurpose, Store, StoreError, StoreSession, Telling,
};

/// How long asking whether PostgreSQL is back may take, and how long to wait before it is asked again.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// The longest wait between such questions, when PostgreSQL was back for less than [`RETURN_LASTS`].
const PROBE_WAIT_MOST: Duration = Duration::from_secs(60);
const RETURN_LASTS: Duration = Duration::from_secs(60);
/// How long a spool whose disk fails is left alone.
const UNREADABLE_HOLD: Duration = Duration::from_secs(300);
/// How long after a start, or the end of an outage, Kafka has to tell which partitions are ours.
const STRAYS_AFTER: Duration = Duration::from_secs(15);
/// How often drained segments are pruned, and positions of partitions that others own are looked up.
const TRIM_INTERVAL: Duration = Duration::from_secs(10);

/// A partition that is fed from the spool.
#[derive(Debug)]
struct Draining {
    assignment: AssignmentId,
    /// All that the spool has was fed, up to here.
    fed_to: Option<Offset>,
}

/// The loop's side of the spool.
#[derive(Debug)]
pub(super) struct Outage<D: Disk = LocalDisk> {
    spool: SharedSpool<D>,
    after: Duration,
    spooler: mpsc::Sender<SpoolerControl>,
    /// The spooler's place behind the lanes, for the poll thread.
    spooler_index: usize,
    drainer: mpsc::UnboundedSender<DrainerControl>,
    fed: mpsc::UnboundedReceiver<Fed>,
    lane_queues: Vec<mpsc::Sender<Arc<Chunk>>>,
    is_spooling: bool,
    probe: Option<Task<Result<(), StoreError>>>,
    probe_at: Instant,
    trim_at: Instant,
    /// Positions that PostgreSQL held when it went away.
    last_known: HashMap<StreamPartition, Offset>,
    draining: BTreeMap<Arc<TopicPartition>, Draining>,
    /// What the spool holds.
    held: BTreeMap<StreamPartition, PartitionRanges>,
    /// What the spool keeps of what was drained, and what of that PostgreSQL lacked when it was looked up last.
    drained: Vec<PartitionRanges>,
    lacking: Vec<PartitionRanges>,
    /// From when on drained segments of an earlier process are looked into; `None` when all were.
    look_into_at: Option<Instant>,
    /// Passes over what no lane drains, which tell the gaps whose batches they have set aside.
    strays: Option<Task<BTreeMap<StreamPartition, Vec<OffsetRange>>>>,
    /// From when on what no lane has counts as somebody else's.
    strays_from: Instant,
    /// Gaps whose batches are set aside.
    aside: HashMap<StreamPartition, Vec<OffsetRange>>,
    /// Gaps of which it was said that the spool holds records of them, and partitions that have no position.
    gaps_said: HashSet<(StreamPartition, OffsetRange)>,
    unknown_said: HashSet<StreamPartition>,
    /// Until when the spool's disk counts as unreadable: what Kafka has is read from there.
    unreadable_until: Option<Instant>,
    /// When PostgreSQL came back last, and how long to wait before it is asked again: longer when that did not last.
    returned_at: Option<Instant>,
    probe_wait: Duration,
    /// What `spool_ranges` says of it.
    published: Option<Vec<(StreamPartition, OffsetRange)>>,
}

impl<S: Store, D: Disk> Pipeline<S, D> {
    /// Starts the spooler and the drainer over an open spool.
    pub(super) fn start_outage(
        &mut self,
        spool: SharedSpool<D>,
        after: Duration,
        (chunks, lane_queues): (mpsc::Receiver<Arc<Chunk>>, Vec<mpsc::Sender<Arc<Chunk>>>),
        (reports, spans): (mpsc::UnboundedSender<super::lane::LaneReport>, BatchSpans),
    ) {
        let (spooler, spooler_control) = mpsc::channel(CONTROL_QUEUE_COUNT);
        // Unbounded, and bounded by two for each assignment.
        let (drainer, drainer_control) = mpsc::unbounded_channel();
        let (fed_tx, fed) = mpsc::unbounded_channel();
        let out = (self.board.clone(), Arc::clone(&self.metrics), spans);
        let task = Spooler::new(Arc::clone(&spool), (chunks, spooler_control), reports, out);
        self.lane_tasks.spawn(task.run());
        let task = Drainer::new(Arc::clone(&spool), drainer_control, fed_tx, Arc::clone(&self.metrics));
        self.lane_tasks.spawn(task.run());
        let now = self.clock.monotonic();
        self.outage = Some(Outage {
            spool,
            after,
            spooler,
            spooler_index: self.lanes.len(),
            drainer,
            fed,
            lane_queues,
            is_spooling: false,
            probe: None,
            probe_at: now,
            trim_at: now,
            last_known: HashMap::new(),
            draining: BTreeMap::new(),
            held: BTreeMap::new(),
            drained: Vec::new(),
            lacking: Vec::new(),
            look_into_at: Some(now),
            strays: None,
            strays_from: now + STRAYS_AFTER,
            aside: HashMap::new(),
            gaps_said: HashSet::new(),
            unknown_said: HashSet::new(),
            unreadable_until: None,
            returned_at: None,
            probe_wait: PROBE_INTERVAL,
            published: None,
        });
    }

    /// Whether records go to the spool.
    pub(super) fn is_spooling(&self) -> bool {
        self.outage.as_ref().is_some_and(|outage| outage.is_spooling)
    }

    /// Looks whether an outage has lasted, or has ended, and how far drains are.
    pub(super) async fn tick_outage(&mut self) {
        let now = self.clock.monotonic();
        let Some(outage) = &mut self.outage else { return };
        while let Ok(fed) = outage.fed.try_recv() {
            if fed.is_unreadable {
                outage.unreadable_until = Some(now + UNREADABLE_HOLD);
            }
            if let Some(draining) = outage.draining.values_mut().find(|own| own.assignment == fed.assignment)
            {
                draining.fed_to = Some(fed.to);
            }
        }
        if outage.is_spooling {
            self.probe(now).await;
            return;
        }
        let after = outage.after;
        let has_lasted = match &self.board.lock().database {
            DatabaseState::Down { since, .. } => now.saturating_duration_since(*since) >= after,
            DatabaseState::Unknown | DatabaseState::Up | DatabaseState::Misconfigured { .. } => false,
        };
        if has_lasted {
            self.begin_spooling().await;
        } else {
            self.look_into_drained(now).await;
            self.trim(now).await;
        }
    }

    /// Every partition leaves its lane; the next offers send them to the spool.
    async fn begin_spooling(&mut self) {
        let assignments: Vec<AssignmentId> = self.board.lock().owned.keys().copied().collect();
        let ended = self.take_back(&assignments, Duration::ZERO).await;
        let Some(outage) = &mut self.outage else { return };
        tracing::warn!(partition_count = ended.len(), "postgresql stays away; records go to the spool");
        outage.is_spooling = true;
        let now = self.clock.monotonic();
        let lasted = outage.returned_at.is_none_or(|at| now.saturating_duration_since(at) >= RETURN_LASTS);
        outage.probe_wait =
            if lasted { PROBE_INTERVAL } else { (outage.probe_wait * 2).min(PROBE_WAIT_MOST) };
        outage.probe_at = now + outage.probe_wait;
        self.settings.source.wants_mirror().store(true, Ordering::Relaxed);
        for owned in ended {
            outage.last_known.insert(owned.key, owned.position);
        }
        outage.draining.clear();
        // What is appended from now on was not looked at.
        outage.aside.clear();
        outage.strays = None;
        self.session = None;
        self.drops.extend(assignments);
        self.send_drops();
    }

    /// Asks whether PostgreSQL takes writes again.
    async fn probe(&mut self, now: Instant) {
        let Some(outage) = &mut self.outage else { return };
        match outage.probe.take() {
            Some(probe) if !probe.is_finished() => outage.probe = Some(probe),
            Some(probe) => {
                let answer = probe.await.unwrap_or_else(|_died| Err(StoreError::no_answer("probe")));
                outage.probe_at = now + outage.probe_wait;
                match answer {
                    Ok(()) => self.end_spooling().await,
                    Err(error) => {
                        let mut board = self.board.lock();
                        if let DatabaseState::Down { error: text, .. } = &mut board.database {
                            *text = error.to_string();
                        }
                    }
                }
            }
            None if now >= outage.probe_at => {
                let (store, spool) = (self.settings.store.clone(), Arc::clone(&outage.spool));
                outage.probe = Some(Task::spawn(async move {
                    let ranges = with_spool(&spool, |spool| joined(&spool.held())).await.unwrap_or_default();
                    let published = async {
                        let mut session = store.connect(SessionPurpose::Claim).await?;
                        session.publish_spool_ranges(store.instance(), &ranges, Telling::More).await?;
                        session.close().await;
                        Ok(())
                    };
                    let in_time = tokio::time::timeout(PROBE_TIMEOUT, published).await;
                    in_time.unwrap_or_else(|_elapsed| Err(StoreError::no_answer("probe")))
                }));
            }
            None => {}
        }
    }

    /// Every partition leaves the spooler; the next offers claim them, and drain what the spool holds.
    async fn end_spooling(&mut self) {
        let assignments: Vec<AssignmentId> = self.board.lock().owned.keys().copied().collect();
        let ended = self.take_back(&assignments, Duration::ZERO).await;
        let Some(outage) = &mut self.outage else { return };
        outage.is_spooling = false;
        let now = self.clock.monotonic();
        outage.returned_at = Some(now);
        outage.strays_from = now + STRAYS_AFTER;
        outage.published = None;
        self.settings.source.wants_mirror().store(false, Ordering::Relaxed);
        {
            let mut board = self.board.lock();
            board.database = DatabaseState::Up;
            board.spool.trouble = None;
        }
        tracing::info!(partition_count = ended.len(), "postgresql is back; the spool is drained");
        self.drops.extend(assignments);
        self.send_drops();
    }

    /// Takes assignments from whoever has them: lanes finish or abandon what is under way, the spooler and the drainer
    /// forget them. Returns what was owned.
    pub(super) async fn take_back(
        &mut self,
        assignments: &[AssignmentId],
        patience: Duration,
    ) -> Vec<OwnedPartition> {
        let mut answers = Vec::new();
        for lane in &self.lanes {
            let (reply, answer) = oneshot::channel();
            let control = LaneControl::Abandon { assignments: assignments.to_vec(), patience, reply };
            if lane.send(control).await.is_ok() {
                answers.push(answer);
            }
        }
        if let Some(outage) = &mut self.outage {
            let (reply, answer) = oneshot::channel();
            let control = SpoolerControl::Abandon { assignments: assignments.to_vec(), reply };
            if outage.spooler.send(control).await.is_ok() {
                answers.push(answer);
            }
            let is_gone = |draining: &Draining| assignments.contains(&draining.assignment);
            for draining in outage.draining.values().filter(|draining| is_gone(draining)) {
                let stop = DrainerControl::Stop { assignment: draining.assignment };
                if outage.drainer.send(stop).is_err() {
                    tracing::debug!("the drainer is gone");
                }
            }
            outage.draining.retain(|_, draining| !is_gone(draining));
        }
        for answer in answers {
            if answer.await.is_err() {
                tracing::debug!("a lane ended while it gave partitions up");
            }
        }
        let mut board = self.board.lock();
        assignments.iter().for_each(|assignment| {
            self.mirrored.remove(assignment);
            self.outstanding.remove(assignment);
        });
        assignments.iter().filter_map(|assignment| board.owned.remove(assignment)).collect()
    }

    /// The assignments of partitions that are drained, which the poll thread does not know.
    pub(super) fn draining_of(&self, partitions: &[Arc<TopicPartition>]) -> Vec<AssignmentId> {
        let Some(outage) = &self.outage else { return Vec::new() };
        let of_them = outage.draining.iter().filter(|(source, _)| partitions.contains(source));
        of_them.map(|(_, draining)| draining.assignment).collect()
    }

    /// Places offers while PostgreSQL is away.
    pub(super) async fn place_in_spool(&mut self, offers: &[Offer]) -> Vec<Placement> {
        let now = self.clock.monotonic();
        self.refresh_held().await;
        let Some(outage) = &self.outage else { return vec![Placement::Hold; offers.len()] };
        let Some(tails) = with_spool(&outage.spool, |spool| spool.tails()).await else {
            return vec![Placement::Hold; offers.len()];
        };
        let tails: HashMap<StreamPartition, Offset> =
            tails.into_iter().map(|tail| (tail.key, tail.position)).collect();
        let mut placements = Vec::with_capacity(offers.len());
        for offer in offers {
            // What stands still for an operator does so in an outage, too.
            let stands_still = self.breakers.contains_key(&offer.source)
                || self.board.lock().held.get(&offer.source).is_some_and(|hold| {
                    matches!(hold.code, HoldCode::TopicRecreated | HoldCode::ForeignGroup)
                });
            if stands_still {
                placements.push(Placement::Hold);
                continue;
            }
            placements.push(match self.request(offer, now) {
                Ok(request) => self.spool_from(offer, &request, &tails).await,
                Err((code, detail)) => {
                    self.hold(&offer.source, code, detail);
                    Placement::Hold
                }
            });
        }
        placements
    }

    async fn spool_from(
        &mut self,
        offer: &Offer,
        request: &ClaimRequest,
        tails: &HashMap<StreamPartition, Offset>,
    ) -> Placement {
        let key = request.key();
        let Some(outage) = &self.outage else { return Placement::Hold };
        let last_known = outage.last_known.get(&key).copied();
        let mirror = offer.description.as_ref().ok().and_then(|description| description.mirror);
        let position = ranges::spool_start((last_known, mirror), tails.get(&key).copied(), self.spooled(key));
        let Some(position) = position.filter(|position| *position <= request.high) else {
            let detail = "postgresql is away, and neither the spool nor kafka tells a position to go on from; it is not guessed";
            self.hold(&offer.source, HoldCode::DatabaseUnavailable, detail.into());
            return Placement::Hold;
        };
        // What Kafka has deleted meanwhile is not passed over: PostgreSQL's position will show it.
        let start = position.max(request.low);
        let assignment = AssignmentId(self.next_assignment);
        self.next_assignment += 1;
        let lane_index = outage.spooler_index;
        let control = SpoolerControl::Adopt { assignment, key, position: start };
        if outage.spooler.send(control).await.is_err() {
            tracing::error!("the spooler has ended; partitions are held");
            return Placement::Hold;
        }
        tracing::info!(partition = %offer.source, position = %start, "spooling");
        let mut board = self.board.lock();
        board.held.remove(&offer.source);
        board.owned.insert(
            assignment,
            OwnedPartition {
                source: Arc::clone(&offer.source),
                key,
                epoch: Epoch(0),
                lane_index,
                position: last_known.or(mirror).unwrap_or(start).min(start),
                end: None,
                low: None,
                mode: Mode::Spooling,
                spooled_to: Some(start),
                uncommitted: VecDeque::new(),
            },
        );
        Placement::Start { assignment, lane_index, position: start }
    }

    /// Drains a partition that was claimed at `position`: its lane is fed from the spool, and Kafka waits.
    pub(super) async fn drain(
        &mut self,
        source: &Arc<TopicPartition>,
        claim: Claim,
        position: ClaimedPosition,
    ) -> Placement {
        let Some((assignment, lane_index)) =
            self.adopt_into_lane(source, claim, position, Mode::Draining).await
        else {
            return Placement::Hold;
        };
        let now = self.clock.monotonic();
        let Some(outage) = &mut self.outage else { return Placement::Hold };
        let Some(lane) = outage.lane_queues.get(lane_index).cloned() else { return Placement::Hold };
        let feed = DrainerControl::Feed { key: claim.key, assignment, lane, position: position.next };
        if outage.drainer.send(feed).is_err() {
            tracing::error!("the drainer has ended; the partition is held");
        }
        outage.draining.insert(Arc::clone(source), Draining { assignment, fed_to: None });
        tracing::info!(partition = %source, position = %position.next, "draining the spool");
        let detail = "what the spool holds of it goes to postgresql first".to_owned();
        let hold = Hold { code: HoldCode::Draining, detail, since: now };
        self.board.lock().held.insert(Arc::clone(source), hold);
        Placement::Hold
    }

    /// Whether a partition is still drained; one that is not any more is released, to be claimed for Kafka.
    pub(super) async fn is_draining(&mut self, source: &Arc<TopicPartition>) -> bool {
        let Some(outage) = &mut self.outage else { return false };
        let Some(draining) = outage.draining.get(source) else { return false };
        let (assignment, fed_to) = (draining.assignment, draining.fed_to);
        let position = self.board.lock().owned.get(&assignment).map(|owned| owned.position);
        let Some(position) = position else {
            // The lane gave it up.
            outage.draining.remove(source);
            if outage.drainer.send(DrainerControl::Stop { assignment }).is_err() {
                tracing::debug!("the drainer is gone");
            }
            return false;
        };
        if fed_to.is_none_or(|fed_to| position < fed_to) {
            return true;
        }
        tracing::info!(partition = %source, %position, "the spool is drained");
        // Nothing of it is outstanding, but its neighbours may be in the work under way.
        self.end(&[assignment], REVOKE_PATIENCE).await;
        // The next tick drops what is drained, unless something of it must be set aside before.
        if let Some(outage) = &mut self.outage {
            outage.trim_at = self.clock.monotonic();
        }
        false
    }
}
