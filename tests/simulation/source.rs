//! The poll thread in memory: it keeps to what `audit_consumer::source` promises, over the simulated Kafka.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit_consumer::model::position::TopicPartition;
use audit_consumer::model::record::{AssignmentId, Chunk, Record};
use audit_consumer::observe::Clock;
use audit_consumer::source::{
    Description, HandedOn, LaneQueues, OFFER_INTERVAL, Offer, Placement, Presence, Presences, Source,
    SourceCommand, SourceEvent, SourceHandle,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::kafka::{CLUSTER, Log, at, source, stream, topic_id};
use crate::world::{Process, World, lock};

/// How often ends are told.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How often a full lane is looked at.
const PENDING_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct SimSource {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
    pub(crate) wants_mirror: Arc<AtomicBool>,
    /// The task, to be ended with the process.
    pub(crate) task: Arc<Mutex<Option<AbortHandle>>>,
}

impl Source for SimSource {
    fn start(
        &self,
        lanes: LaneQueues,
        events: mpsc::Sender<SourceEvent>,
        _clock: Clock,
    ) -> Result<SourceHandle, String> {
        let (handle, commands) = SourceHandle::new();
        let poller = Poller {
            world: Arc::clone(&self.world),
            process: Arc::clone(&self.process),
            wants_mirror: Arc::clone(&self.wants_mirror),
            pending: lanes.iter().map(|_| VecDeque::new()).collect(),
            lanes,
            events,
            slots: BTreeMap::new(),
            held: BTreeMap::new(),
            handed_on: BTreeMap::new(),
            looked_at: Instant::now(),
        };
        lock(&self.world.kafka).join(self.process.index, Instant::now());
        self.world.rebalance();
        *lock(&self.task) = Some(tokio::spawn(poller.run(commands)).abort_handle());
        Ok(handle)
    }

    fn wants_mirror(&self) -> &AtomicBool {
        &self.wants_mirror
    }

    fn look_up(&self, partitions: BTreeSet<TopicPartition>) -> Presences {
        let (world, process) = (Arc::clone(&self.world), Arc::clone(&self.process));
        Box::pin(async move {
            process.gate().await;
            world.pause(1, 50).await;
            let kafka = lock(&world.kafka);
            if !kafka.is_reachable[usize::from(process.index)] {
                return BTreeMap::new();
            }
            let there = |partition: TopicPartition| {
                let low = at(kafka.logs[partition.partition.0 as usize].low);
                (partition, Presence::There { stream: stream(), low })
            };
            partitions.into_iter().map(there).collect()
        })
    }
}

impl World {
    /// Partitions move between the members that there are.
    pub(crate) fn rebalance(&self) {
        lock(&self.kafka).rebalance(&mut lock(&self.rng));
        self.kafka_changed.notify_waiters();
    }
}

#[derive(Debug)]
struct Slot {
    assignment: AssignmentId,
    lane_index: usize,
    next: i64,
}

struct Poller {
    world: Arc<World>,
    process: Arc<Process>,
    wants_mirror: Arc<AtomicBool>,
    lanes: LaneQueues,
    /// Chunks that found their lane full.
    pending: Vec<VecDeque<Arc<Chunk>>>,
    events: mpsc::Sender<SourceEvent>,
    slots: BTreeMap<usize, Slot>,
    held: BTreeMap<usize, Instant>,
    /// What was handed on under assignments that ended here.
    handed_on: BTreeMap<usize, HandedOn>,
    looked_at: Instant,
}

/// The loop is gone.
struct Gone;

impl Poller {
    async fn run(mut self, mut commands: mpsc::Receiver<SourceCommand>) {
        let (world, process) = (Arc::clone(&self.world), Arc::clone(&self.process));
        loop {
            process.gate().await;
            let changed = world.kafka_changed.notified();
            while let Ok(command) = commands.try_recv() {
                if let SourceCommand::Close(positions) = command {
                    self.mirror(&positions);
                    self.leave().await;
                    return;
                }
                self.obey(command);
            }
            if self.step().await.is_err() {
                return;
            }
            let wake_at = self.wake_at();
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(SourceCommand::Close(positions)) => {
                        self.mirror(&positions);
                        self.leave().await;
                        return;
                    }
                    Some(command) => self.obey(command),
                    None => return,
                },
                () = changed => {}
                () = sleep_until(wake_at) => {}
            }
        }
    }

    async fn step(&mut self) -> Result<(), Gone> {
        if self.is_reachable() {
            self.give_back().await?;
            self.take().await?;
        }
        self.offer().await?;
        self.deliver();
        if self.is_reachable() && self.pending.iter().all(VecDeque::is_empty) {
            self.read();
            self.deliver();
        }
        if self.looked_at.elapsed() >= LOOK_INTERVAL {
            self.look();
        }
        Ok(())
    }

    fn is_reachable(&self) -> bool {
        lock(&self.world.kafka).is_reachable[usize::from(self.process.index)]
    }

    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let mut at = self.looked_at + LOOK_INTERVAL;
        at = self.held.values().fold(at, |at, due| at.min(*due));
        if self.pending.iter().any(|pending| !pending.is_empty()) {
            at = at.min(now + PENDING_INTERVAL);
        } else if self.is_reachable() {
            let kafka = lock(&self.world.kafka);
            if self.slots.iter().any(|(partition, slot)| slot.next < kafka.logs[*partition].end()) {
                let ms = lock(&self.world.rng).between(1, 8);
                at = at.min(now + Duration::from_millis(ms));
            }
        }
        at
    }

    fn tell(&self, event: SourceEvent) {
        if self.events.try_send(event).is_err() {
            self.world.note(self.process.who(), "events_full", &[]);
        }
    }

    fn obey(&mut self, command: SourceCommand) {
        match command {
            SourceCommand::Drop(assignment) => {
                let found = self.slots.iter().find(|(_, slot)| slot.assignment == assignment);
                if let Some(partition) = found.map(|(partition, _)| *partition) {
                    self.end(partition);
                }
            }
            SourceCommand::Mirror(positions) | SourceCommand::Close(positions) => self.mirror(&positions),
        }
    }

    /// Reads a partition no more, and offers it again.
    fn end(&mut self, partition: usize) {
        let Some(slot) = self.slots.remove(&partition) else { return };
        self.held.insert(partition, Instant::now());
        let handed_on = HandedOn { assignment: slot.assignment, to: at(slot.next) };
        self.handed_on.insert(partition, handed_on);
    }

    fn mirror(&self, positions: &[(Arc<TopicPartition>, audit_consumer::model::position::Offset)]) {
        let mut kafka = lock(&self.world.kafka);
        if !kafka.is_reachable[usize::from(self.process.index)] {
            return;
        }
        for (source, position) in positions {
            let partition = source.partition.0 as usize;
            // The broker refuses a member that was given up.
            if kafka.owners[partition] == Some(self.process.index) {
                kafka.mirror[partition] = Some(position.as_i64());
            }
        }
    }

    /// Gives back what Kafka takes, or has taken.
    async fn give_back(&mut self) -> Result<(), Gone> {
        let me = self.process.index;
        let is_expelled = lock(&self.world.kafka).members.get(&me).is_none_or(|member| member.is_expelled);
        if is_expelled {
            let all: BTreeSet<usize> = self.slots.keys().chain(self.held.keys()).copied().collect();
            self.world.note(self.process.who(), "partitions_lost", &[all.len() as i64]);
            self.revoke(all, true).await?;
            lock(&self.world.kafka).join(me, Instant::now());
            self.world.rebalance();
            return Ok(());
        }
        let given = lock(&self.world.kafka).to_give_back(me);
        if !given.is_empty() {
            self.world.note(self.process.who(), "revoked", &[given.len() as i64]);
            self.revoke(given.clone(), false).await?;
            let mut kafka = lock(&self.world.kafka);
            for partition in given {
                if kafka.owners[partition] == Some(me) {
                    kafka.owners[partition] = None;
                }
            }
            drop(kafka);
            self.world.kafka_changed.notify_waiters();
        }
        Ok(())
    }

    async fn revoke(&mut self, gone: BTreeSet<usize>, is_lost: bool) -> Result<(), Gone> {
        if gone.is_empty() {
            return Ok(());
        }
        self.held.retain(|partition, _| !gone.contains(partition));
        self.handed_on.retain(|partition, _| !gone.contains(partition));
        let slots = gone.iter().filter_map(|partition| self.slots.remove(partition));
        let assignments = slots.map(|slot| slot.assignment).collect();
        let partitions = gone.iter().map(|partition| source(*partition)).collect();
        let (reply, answer) = oneshot::channel();
        let event = SourceEvent::Revoked { assignments, partitions, is_lost, reply };
        self.events.send(event).await.map_err(|_closed| Gone)?;
        answer.await.map_err(|_dropped| Gone)?;
        self.process.gate().await;
        Ok(())
    }

    /// Takes what is free and meant for us.
    async fn take(&mut self) -> Result<(), Gone> {
        let taken = {
            let mut kafka = lock(&self.world.kafka);
            let taken = kafka.to_take(self.process.index);
            taken.iter().for_each(|partition| kafka.owners[*partition] = Some(self.process.index));
            taken
        };
        if !taken.is_empty() {
            self.world.note(self.process.who(), "assigned", &[taken.len() as i64]);
            self.held.extend(taken.into_iter().map(|partition| (partition, Instant::now())));
            self.events.send(SourceEvent::Assigned).await.map_err(|_closed| Gone)?;
        }
        Ok(())
    }

    async fn offer(&mut self) -> Result<(), Gone> {
        let now = Instant::now();
        let due: Vec<usize> =
            self.held.iter().filter(|(_, at)| **at <= now).map(|(partition, _)| *partition).collect();
        if due.is_empty() {
            return Ok(());
        }
        self.world.pause(0, 10).await;
        let offers: Vec<Offer> = due.iter().map(|partition| self.describe(*partition)).collect();
        let (reply, answer) = oneshot::channel();
        let event = SourceEvent::Offered { offers: offers.clone(), reply };
        self.events.send(event).await.map_err(|_closed| Gone)?;
        let placements = answer.await.map_err(|_dropped| Gone)?;
        self.process.gate().await;
        for ((partition, offer), placement) in due.into_iter().zip(offers).zip(placements) {
            match placement {
                Placement::Start { assignment, lane_index, position } if offer.description.is_ok() => {
                    self.held.remove(&partition);
                    self.handed_on.remove(&partition);
                    let next = position.as_i64();
                    let numbers = [partition as i64, assignment.0 as i64, next];
                    self.world.note(self.process.who(), "reading", &numbers);
                    self.slots.insert(partition, Slot { assignment, lane_index, next });
                }
                Placement::Start { .. } | Placement::Hold => {
                    self.held.insert(partition, Instant::now() + OFFER_INTERVAL);
                }
            }
        }
        Ok(())
    }

    fn describe(&self, partition: usize) -> Offer {
        let is_undescribed = self.world.fails(|rates| rates.undescribed);
        let kafka = lock(&self.world.kafka);
        let log = &kafka.logs[partition];
        let is_silent = is_undescribed || !kafka.is_reachable[usize::from(self.process.index)];
        let description = Description {
            cluster_id: CLUSTER.into(),
            topic_id: topic_id(),
            low: at(log.low),
            high: at(log.end()),
            initial: at(log.low),
            mirror: kafka.mirror[partition].filter(|_| self.wants_mirror.load(Ordering::Relaxed)).map(at),
        };
        let description = if is_silent { Err("no broker answers".to_owned()) } else { Ok(description) };
        Offer { source: source(partition), description, handed_on: self.handed_on.get(&partition).copied() }
    }

    /// Reads a chunk of each partition, or finds that Kafka has deleted what comes next.
    fn read(&mut self) {
        let mut is_out_of_range = false;
        for (partition, slot) in &mut self.slots {
            let kafka = lock(&self.world.kafka);
            let log = &kafka.logs[*partition];
            if slot.next < log.low {
                is_out_of_range = true;
                break;
            }
            let most = lock(&self.world.rng).between(1, 9) as i64;
            let Some(chunk) = chunk(log, *partition, slot, most) else { continue };
            slot.next = chunk.end.as_i64();
            self.pending[slot.lane_index].push_back(Arc::new(chunk));
        }
        if is_out_of_range {
            self.world.note(self.process.who(), "out_of_range", &[]);
            let all: Vec<usize> = self.slots.keys().copied().collect();
            all.into_iter().for_each(|partition| self.end(partition));
        }
    }

    fn deliver(&mut self) {
        for (pending, lane) in self.pending.iter_mut().zip(&self.lanes) {
            while let Some(chunk) = pending.pop_front() {
                match lane.try_send(chunk) {
                    Ok(()) | Err(TrySendError::Closed(_)) => {}
                    Err(TrySendError::Full(chunk)) => {
                        self.world.note(self.process.who(), "lane_full", &[]);
                        pending.push_front(chunk);
                        break;
                    }
                }
            }
        }
    }

    fn look(&mut self) {
        self.looked_at = Instant::now();
        let is_connected = self.is_reachable();
        let kafka = lock(&self.world.kafka);
        let ends = self.slots.iter().filter(|_| is_connected).map(|(partition, slot)| {
            let log = &kafka.logs[*partition];
            (slot.assignment, Some(at(log.low)), at(log.end()))
        });
        let event = SourceEvent::Looked { ends: ends.collect(), paused_count: 0, is_connected };
        drop(kafka);
        self.tell(event);
    }

    /// Leaves the group, in good order.
    async fn leave(&mut self) {
        let all: BTreeSet<usize> = self.slots.keys().chain(self.held.keys()).copied().collect();
        if self.revoke(all, false).await.is_err() {
            self.world.note(self.process.who(), "left_without_answer", &[]);
        }
        lock(&self.world.kafka).leave(self.process.index);
        self.world.rebalance();
    }
}

/// At most `most` records from the slot's position on, with the offsets between them that hold none.
fn chunk(log: &Log, partition: usize, slot: &Slot, most: i64) -> Option<Chunk> {
    let end = log.end().min(slot.next + most);
    if end <= slot.next {
        return None;
    }
    let (mut records, mut arena, mut absent) = (Vec::new(), Vec::new(), 0);
    for offset in slot.next..end {
        let Some(record) = log.record(offset) else {
            absent += 1;
            continue;
        };
        let start = arena.len();
        arena.extend_from_slice(&record.payload);
        records.push(Record {
            offset: at(offset),
            absent_before: std::mem::take(&mut absent),
            timestamp_ms: Some(offset),
            key: None,
            value: Some(start..arena.len()),
            headers: Vec::new(),
        });
    }
    Some(Chunk {
        assignment: slot.assignment,
        source: source(partition),
        start: at(slot.next),
        end: at(end),
        absent_after: absent,
        records,
        polled: None,
        arena,
    })
}
