//! The poll thread.

mod troubles;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::assignments::Assignments;
use super::context::Context;
use super::gate::{GATE_COUNT, Gate};
use super::slots::{Appended, Slot};
use super::{LaneQueues, SourceCommand, SourceEvent, SourceSettings};
use crate::kafka::{self, Link, Refusal};
use crate::model::position::{Offset, TopicPartition};
use crate::model::record::{AssignmentId, Chunk};
use crate::native::{self, TopicId};
use crate::observe::Clock;

/// How many commands wait for the thread at most.
const COMMAND_QUEUE_COUNT: usize = 1024;
/// How long one poll waits when there is nothing to read.
const POLL_WAIT: Duration = Duration::from_millis(20);
/// How many records are taken before other work is looked at.
const BURST_COUNT: usize = 256;
/// How long a full lane holds the thread up before its partitions are paused. Pausing throws away what
/// librdkafka has fetched, so a short stall is waited out.
const STALL_BEFORE_PAUSE: Duration = Duration::from_millis(500);
/// How long the thread sleeps between looks at a full lane.
const STALL_SLEEP: Duration = Duration::from_millis(1);
/// How long a topic's id may stay untold before its partitions are given up.
const UNCONFIRMED_PATIENCE: Duration = Duration::from_secs(10);
/// How soon a topic that is unknown to the brokers is complained of again.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How long a partition of which there is more may stand still after an error, before it is read again.
const SUSPECT_PATIENCE: Duration = Duration::from_secs(5);
/// How often ends and idle positions are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The running poll thread.
#[derive(Debug)]
pub struct SourceHandle {
    commands: mpsc::Sender<SourceCommand>,
}

impl SourceHandle {
    /// A handle on whoever takes the commands, and drops their receiver as the last thing it does.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<SourceCommand>) {
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE_COUNT);
        (Self { commands }, receiver)
    }

    /// Sends a command; `false` when the thread has ended or its queue is full.
    #[must_use]
    pub fn send(&self, command: SourceCommand) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// Whether the thread has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.commands.is_closed()
    }
}

/// Starts the poll thread.
///
/// # Errors
/// librdkafka's word when it refuses the properties or the subscription, or the system's when no thread can be
/// had.
pub(super) fn start(
    settings: &SourceSettings,
    lanes: LaneQueues,
    events: mpsc::Sender<SourceEvent>,
    clock: Clock,
) -> Result<SourceHandle, KafkaError> {
    let config = kafka::client_config(&settings.properties)?;
    let assignments = Arc::new(Mutex::new(Assignments::new(settings, events.clone(), clock.clone())));
    let consumer: BaseConsumer<Context> = config.create_with_context(Context {
        assignments: Arc::clone(&assignments),
        link: Link::new(&settings.properties),
    })?;
    consumer.context().link.refresh(consumer.client());
    let names: Vec<&str> = settings.subscription.iter().map(String::as_str).collect();
    consumer.subscribe(&names)?;
    let (handle, commands) = SourceHandle::new();
    let started_at = clock.monotonic();
    let mut poller = Poller {
        consumer,
        assignments,
        pending: lanes.iter().map(|_| Pending::default()).collect(),
        lanes,
        gate: Gate::new(),
        events,
        commands,
        looked_at: started_at,
        is_away_said: false,
        unconfirmed: HashMap::new(),
        said: Vec::new(),
        refusal: None,
        clock,
    };
    std::thread::Builder::new()
        .name("kafka-poll".into())
        .spawn(move || poller.run())
        .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
    Ok(handle)
}

/// Chunks that passed the gate and found their lane full.
#[derive(Debug, Default)]
struct Pending {
    chunks: VecDeque<Arc<Chunk>>,
    /// Since when the lane is full.
    since: Option<Instant>,
    /// The generation of the assignments for which the lane's partitions were paused.
    paused_generation: Option<u64>,
}

impl Pending {
    /// Sends what the lane has room for.
    fn send_to(&mut self, lane: &mpsc::Sender<Arc<Chunk>>) {
        while let Some(chunk) = self.chunks.pop_front() {
            match lane.try_send(chunk) {
                Ok(()) => {}
                Err(TrySendError::Full(chunk)) => {
                    self.chunks.push_front(chunk);
                    return;
                }
                // The lane has ended, so the process is stopping.
                Err(TrySendError::Closed(_)) => {}
            }
        }
    }
}

struct Poller {
    /// Dropped first: with it we leave the group.
    consumer: BaseConsumer<Context>,
    assignments: Arc<Mutex<Assignments>>,
    lanes: LaneQueues,
    pending: Vec<Pending>,
    gate: Gate<Chunk>,
    events: mpsc::Sender<SourceEvent>,
    commands: mpsc::Receiver<SourceCommand>,
    looked_at: Instant,
    /// Whether it was said that no broker answers, and none has since.
    is_away_said: bool,
    /// Topics of which the brokers told no id when they were asked last, and since when.
    unconfirmed: HashMap<Arc<str>, Instant>,
    /// Errors that were logged within the last minute, and when.
    said: Vec<(RDKafkaErrorCode, Instant)>,
    /// Why brokers keep us out, as it was logged last, and when.
    refusal: Option<(Refusal, Instant)>,
    clock: Clock,
}

impl Poller {
    fn run(&mut self) {
        loop {
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    SourceCommand::Drop(assignment) => {
                        self.state().drop_assignment(&self.consumer, assignment)
                    }
                    SourceCommand::Mirror(positions) => self.mirror(&positions),
                    // Dropping the consumer, as the thread ends, leaves the group; the revocation comes out of
                    // the polls that librdkafka's binding does meanwhile.
                    SourceCommand::Close(positions) => return self.mirror(&positions),
                }
            }
            if self.look() {
                return;
            }
            self.state().offer_held(&self.consumer);
            self.pass_gate();
            if self.deliver() {
                self.read_burst();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, Assignments> {
        self.assignments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the pipeline something it can do without when its queue is full.
    fn tell(&self, event: SourceEvent) {
        if self.events.try_send(event).is_err() {
            tracing::debug!("the pipeline's event queue is full or closed");
        }
    }

    /// Takes what librdkafka has fetched, up to a burst; waits only when there was nothing at all.
    fn read_burst(&mut self) {
        for taken in 0..BURST_COUNT {
            match self.consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => self.append(&message),
                Some(Err(error)) => self.consumer_error(&error),
                None => {
                    self.close_chunks();
                    let wait = if self.gate.is_busy() { STALL_SLEEP } else { POLL_WAIT };
                    if taken == 0 {
                        match self.consumer.poll(wait) {
                            Some(Ok(message)) => self.append(&message),
                            Some(Err(error)) => self.consumer_error(&error),
                            None => {}
                        }
                    }
                    return;
                }
            }
        }
    }

    fn append(&self, message: &BorrowedMessage<'_>) {
        // The guard must not outlive this function: rebalances lock it inside poll.
        let mut state = self.state();
        let Some(slot) = state.slot_of(message) else { return };
        match slot.append(message) {
            Appended::Open => {}
            Appended::Full => {
                if let Some(chunk) = slot.take() {
                    state.closed.push(chunk);
                }
            }
            Appended::Old => {
                tracing::debug!(partition = %slot.source, "a record before the position was dropped")
            }
            Appended::Suspect => {
                let assignment = slot.assignment;
                state.reread(&self.consumer, assignment);
            }
        }
    }

    /// Sends every open chunk to the gate.
    fn close_chunks(&mut self) {
        let mut state = self.assignments.lock().unwrap_or_else(PoisonError::into_inner);
        let open: Vec<Chunk> = state.slots.iter_mut().filter_map(Slot::take).collect();
        state.closed.extend(open);
        for chunk in state.closed.drain(..) {
            self.gate.push(chunk);
        }
    }

    /// Lets chunks through the gate whose topics are still those that were claimed.
    fn pass_gate(&mut self) {
        let now = self.clock.monotonic();
        let mut state = self.assignments.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in state.closed.drain(..) {
            self.gate.push(chunk);
        }
        state.end_finished(|assignment| self.gate.holds(|chunk| chunk.assignment == assignment));
        let topics = state.topics();
        let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
        self.gate.ask(&self.consumer, &names, now);
        let wait = if self.gate.len() >= GATE_COUNT { STALL_SLEEP } else { Duration::ZERO };
        let (ids, passing) = match self.gate.answer(wait) {
            Some(Ok(answer)) => answer,
            Some(Err(reason)) => {
                tracing::debug!(reason, "topic ids can't be checked now; records wait");
                return;
            }
            None => return,
        };
        let ids: HashMap<String, TopicId> = ids.into_iter().collect();
        let changed = state.assignments_where(|slot| {
            ids.get(&*slot.source.topic).is_some_and(|id| *id != TopicId::Is(slot.topic_id))
        });
        for assignment in changed {
            state.drop_assignment(&self.consumer, assignment);
        }
        self.gate.retain(|chunk| state.slot_mut(chunk.assignment).is_some());
        drop_unconfirmed(&mut state, &self.consumer, &mut self.unconfirmed, &ids, now);
        while let Some(chunk) = self.gate.pass(&passing, |chunk| ids.contains_key(&*chunk.source.topic)) {
            let Some(slot) = state.slot_mut(chunk.assignment) else { continue };
            slot.handed_to = chunk.end;
            if let Some(pending) = self.pending.get_mut(slot.lane_index) {
                pending.chunks.push_back(Arc::new(chunk));
            }
        }
    }

    /// Hands chunks to their lanes. Returns whether reading may go on.
    ///
    /// A full lane, or a full gate, which is every lane's, first holds the thread up for a moment; then the
    /// lane's partitions are paused and polling goes on.
    fn deliver(&mut self) -> bool {
        let now = self.clock.monotonic();
        let is_gate_full = self.gate.len() >= GATE_COUNT;
        let generation = self.state().generation;
        let mut is_stalled = false;
        for index in 0..self.pending.len() {
            let Some((pending, lane)) = self.pending.get_mut(index).zip(self.lanes.get(index)) else {
                continue;
            };
            pending.send_to(lane);
            if pending.chunks.is_empty() && !is_gate_full {
                pending.since = None;
                if pending.paused_generation.take().is_some() {
                    self.pause_lane(index, Pause::Resume);
                }
                continue;
            }
            let since = *pending.since.get_or_insert(now);
            if now.saturating_duration_since(since) < STALL_BEFORE_PAUSE {
                is_stalled = true;
            } else if pending.paused_generation != Some(generation) {
                // Partitions that were assigned since then are paused too.
                pending.paused_generation = Some(generation);
                self.pause_lane(index, Pause::Pause);
            }
        }
        if is_stalled {
            std::thread::sleep(STALL_SLEEP);
        }
        !is_stalled
    }

    /// Pauses or resumes the partitions of a lane.
    fn pause_lane(&self, lane_index: usize, pause: Pause) {
        let state = self.state();
        let mut list = TopicPartitionList::new();
        for slot in state.slots.iter().filter(|slot| slot.lane_index == lane_index) {
            list.add_partition(&slot.source.topic, slot.source.partition.0);
        }
        drop(state);
        let outcome = match pause {
            Pause::Pause => self.consumer.pause(&list),
            Pause::Resume => self.consumer.resume(&list),
        };
        match outcome {
            Ok(()) => tracing::debug!(lane_index, ?pause, "lane back-pressure"),
            Err(error) => tracing::warn!(%error, lane_index, ?pause, "librdkafka refused"),
        }
    }

    /// Looks, twice a second, at what moves without records: ends, and positions over control records. Returns
    /// whether the consumer failed for good.
    fn look(&mut self) -> bool {
        let now = self.clock.monotonic();
        if now.saturating_duration_since(self.looked_at) < LOOK_INTERVAL {
            return false;
        }
        self.looked_at = now;
        let link = &self.consumer.context().link;
        link.refresh(self.consumer.client());
        let is_connected = link.is_connected();
        if is_connected && std::mem::take(&mut self.is_away_said) {
            tracing::info!("a broker of kafka answers again");
        }
        self.say_refusal();
        if let Some((code, reason)) = self.consumer.client().fatal_error() {
            self.tell(SourceEvent::Failed(format!("{code}: {reason}")));
            return true;
        }
        let mut state = self.assignments.lock().unwrap_or_else(PoisonError::into_inner);
        let mut suspects = self.standing_still(&mut state, now, is_connected);
        if let Ok(positions) = self.consumer.position() {
            for element in positions.elements() {
                let KafkaOffset::Offset(position) = element.offset() else { continue };
                let found = state.slots.iter_mut().find(|slot| {
                    slot.source.partition.0 == element.partition() && *slot.source.topic == *element.topic()
                });
                if let Some((slot, position)) = found.zip(Offset::new(position)) {
                    if slot.is_suspect && slot.next < position {
                        // A control record behind damaged ones moves the position too: read again instead.
                        suspects.push(slot.assignment);
                        continue;
                    }
                    let open = slot.take();
                    slot.advance(position);
                    let advanced = slot.take();
                    state.closed.extend(open.into_iter().chain(advanced));
                }
            }
        }
        for assignment in suspects {
            state.reread(&self.consumer, assignment);
        }
        let ends: Vec<(AssignmentId, Option<Offset>, Offset)> = state
            .slots
            .iter()
            .filter_map(|slot| {
                let (topic, partition) = (&slot.source.topic, slot.source.partition.0);
                let (low, end) = native::cached_watermarks(&self.consumer, topic, partition)?;
                Some((slot.assignment, Offset::new(low), Offset::new(end)?))
            })
            .collect();
        let paused_count = state.slots.iter().filter(|slot| self.is_paused(slot.lane_index)).count();
        drop(state);
        self.tell(SourceEvent::Looked { ends, paused_count, is_connected });
        false
    }

    fn is_paused(&self, lane_index: usize) -> bool {
        self.pending.get(lane_index).is_some_and(|lane| lane.paused_generation.is_some())
    }

    /// The assignments that got nothing for a while after an error, although there is more.
    fn standing_still(&self, state: &mut Assignments, now: Instant, is_connected: bool) -> Vec<AssignmentId> {
        let mut standing = Vec::new();
        for slot in &mut state.slots {
            let has_more = || self.end_of(slot).and_then(Offset::new).is_some_and(|end| end > slot.next);
            let stands = slot.is_suspect && is_connected && !self.is_paused(slot.lane_index) && has_more();
            let since = stands.then(|| slot.stands_since.unwrap_or(now));
            if since.is_some_and(|since| now.saturating_duration_since(since) >= SUSPECT_PATIENCE) {
                standing.push(slot.assignment);
            }
            slot.stands_since = since;
        }
        standing
    }

    /// The end of the slot's partition by Kafka's last answer, as librdkafka has it; negative: it told none.
    fn end_of(&self, slot: &Slot) -> Option<i64> {
        let told = native::cached_watermarks(&self.consumer, &slot.source.topic, slot.source.partition.0);
        told.map(|(_, end)| end)
    }

    fn mirror(&self, positions: &[(Arc<TopicPartition>, Offset)]) {
        let mut list = TopicPartitionList::new();
        for (source, offset) in positions {
            let added = list.add_partition_offset(
                &source.topic,
                source.partition.0,
                KafkaOffset::Offset(offset.as_i64()),
            );
            if let Err(error) = added {
                tracing::debug!(%error, partition = %source, "position can't be mirrored");
            }
        }
        if list.count() > 0
            && let Err(error) = self.consumer.commit(&list, CommitMode::Async)
        {
            tracing::debug!(%error, "the mirror of the positions was not sent to kafka");
        }
    }
}

/// A topic of which the broker tells no id (a right that was taken away, say) holds only itself up; after a while
/// its assignments are given up, and the next offer says what is wrong.
fn drop_unconfirmed(
    state: &mut Assignments,
    consumer: &BaseConsumer<Context>,
    unconfirmed: &mut HashMap<Arc<str>, Instant>,
    ids: &HashMap<String, TopicId>,
    now: Instant,
) {
    unconfirmed.retain(|topic, _| !ids.contains_key(&**topic));
    for topic in state.topics().into_iter().filter(|topic| !ids.contains_key(&**topic)) {
        let since = *unconfirmed.entry(Arc::clone(&topic)).or_insert(now);
        if now.saturating_duration_since(since) < UNCONFIRMED_PATIENCE {
            continue;
        }
        unconfirmed.remove(&topic);
        tracing::warn!(
            topic = &*topic,
            "the brokers do not tell the topic's id; its partitions are given up"
        );
        for assignment in state.assignments_where(|slot| slot.source.topic == topic) {
            state.drop_assignment(consumer, assignment);
        }
    }
}

/// Which way back-pressure goes.
#[derive(Debug, Clone, Copy)]
enum Pause {
    Pause,
    Resume,
}
