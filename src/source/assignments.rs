//! Which partitions Kafka has assigned to us, and which of them are read.
//!
//! Kafka's assignment and librdkafka's are not the same here: a partition that Kafka gives us is *held* until
//! the pipeline grants a position, and only then assigned in librdkafka, at that position.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::bindings::rd_kafka_topic_t;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};

use super::context::Context;
use super::describe::Describer;
use super::slots::Slot;
use super::{HandedOn, OFFER_INTERVAL, Offer, Placement, SourceEvent, SourceSettings};
use crate::model::position::{Offset, Partition, TopicPartition};
use crate::model::record::{AssignmentId, Chunk};
use crate::observe::Clock;

/// How often a gap that followed an error is read again before the partition is held for longer.
const REREAD_MAX_COUNT: u8 = 3;
/// How long a partition is held whose records can't be read.
const UNREADABLE_HOLD: Duration = Duration::from_secs(30);

/// A partition that is ours in Kafka and not read.
#[derive(Debug)]
struct Held {
    source: Arc<TopicPartition>,
    offer_at: Instant,
    /// Why it is held, when the source itself knows, and until when.
    trouble: Option<(String, Instant)>,
    /// What was read of it before it was held.
    handed_on: Option<HandedOn>,
}

impl Held {
    const fn new(source: Arc<TopicPartition>, offer_at: Instant) -> Self {
        Self { source, offer_at, trouble: None, handed_on: None }
    }

    /// What `slot` read, whose last chunk has left.
    fn after(slot: Slot, now: Instant) -> Self {
        let handed_on = HandedOn { assignment: slot.assignment, to: slot.handed_to };
        Self { handed_on: Some(handed_on), ..Self::new(slot.source, now) }
    }
}

/// The state that the poll thread and the rebalance callback share; both run on the poll thread.
#[derive(Debug)]
pub(super) struct Assignments {
    pub(super) slots: Vec<Slot>,
    /// Those that are read no more, and whose last chunks are on their way through the gate.
    ending: Vec<Slot>,
    /// Chunks on their way to the gate.
    pub(super) closed: Vec<Chunk>,
    /// Counts the changes of `slots`.
    pub(super) generation: u64,
    held: Vec<Held>,
    slot_by_topic: HashMap<(usize, i32), usize>,
    /// How often a gap was read again, and where it begins.
    rereads: HashMap<Arc<TopicPartition>, (Offset, u8)>,
    describer: Describer,
    wants_mirror: Arc<AtomicBool>,
    events: mpsc::Sender<SourceEvent>,
    clock: Clock,
}

impl Assignments {
    pub(super) fn new(settings: &SourceSettings, events: mpsc::Sender<SourceEvent>, clock: Clock) -> Self {
        Self {
            slots: Vec::new(),
            ending: Vec::new(),
            closed: Vec::new(),
            generation: 0,
            held: Vec::new(),
            slot_by_topic: HashMap::new(),
            rereads: HashMap::new(),
            describer: Describer::new(settings.reset),
            wants_mirror: Arc::clone(&settings.wants_mirror),
            events,
            clock,
        }
    }

    /// Kafka gives us the partitions of `list`: offers them, and assigns those that are granted.
    pub(super) fn assign(&mut self, consumer: &BaseConsumer<Context>, list: &TopicPartitionList) {
        let offer_at = self.clock.monotonic();
        for source in sources(list) {
            self.held.retain(|held| held.source != source);
            if source.topic.ends_with(".dlq") {
                tracing::info!(
                    topic = &*source.topic,
                    "a dead letter topic matches the regex and is not consumed"
                );
                continue;
            }
            self.held.push(Held::new(source, offer_at));
        }
        if list.count() > 0 && self.events.blocking_send(SourceEvent::Assigned).is_err() {
            tracing::debug!("the pipeline is gone");
        }
        let granted = self.offer(consumer);
        // An empty list too: librdkafka waits for the call.
        self.incremental_assign(consumer, &granted);
    }

    /// Offers the held partitions that are due, and assigns those that are granted.
    pub(super) fn offer_held(&mut self, consumer: &BaseConsumer<Context>) {
        let now = self.clock.monotonic();
        if self.held.iter().any(|held| held.offer_at <= now) {
            let granted = self.offer(consumer);
            if granted.count() > 0 {
                self.incremental_assign(consumer, &granted);
            }
        }
    }

    /// Offers what is due; returns what librdkafka must assign.
    fn offer(&mut self, consumer: &BaseConsumer<Context>) -> TopicPartitionList {
        let now = self.clock.monotonic();
        let (due, later): (Vec<Held>, Vec<Held>) =
            std::mem::take(&mut self.held).into_iter().partition(|held| held.offer_at <= now);
        self.held = later;
        let mut granted = TopicPartitionList::new();
        if due.is_empty() {
            return granted;
        }
        let asked = due.iter().filter(|held| held.trouble.is_none());
        let sources: Vec<Arc<TopicPartition>> = asked.map(|held| Arc::clone(&held.source)).collect();
        let mut descriptions = self.describer.describe(consumer, &sources);
        if self.wants_mirror.load(Ordering::Relaxed) {
            Describer::add_mirrors(consumer, &mut descriptions);
        }
        let offers: Vec<Offer> = due
            .iter()
            .map(|held| Offer {
                source: Arc::clone(&held.source),
                description: match &held.trouble {
                    Some((trouble, _)) => Err(trouble.clone()),
                    None => descriptions.remove(&held.source).unwrap_or_else(|| Err("not described".into())),
                },
                handed_on: held.handed_on,
            })
            .collect();
        let (reply, answer) = oneshot::channel();
        let asked = self.events.blocking_send(SourceEvent::Offered { offers: offers.clone(), reply });
        let placements = asked.ok().and_then(|()| answer.blocking_recv().ok()).unwrap_or_default();
        let answered_at = self.clock.monotonic();
        for (index, (held, offer)) in due.into_iter().zip(offers).enumerate() {
            let placement = placements.get(index).copied().unwrap_or(Placement::Hold);
            self.place((held, offer), placement, answered_at, &mut granted);
        }
        granted
    }

    fn place(
        &mut self,
        (held, offer): (Held, Offer),
        placement: Placement,
        now: Instant,
        granted: &mut TopicPartitionList,
    ) {
        let Offer { source, description, handed_on } = offer;
        let (Placement::Start { assignment, lane_index, position }, Ok(description)) =
            (placement, description)
        else {
            let trouble = held.trouble.filter(|(_, until)| now < *until);
            self.held.push(Held { source, offer_at: now + OFFER_INTERVAL, trouble, handed_on });
            return;
        };
        let offset = KafkaOffset::Offset(position.as_i64());
        match granted.add_partition_offset(&source.topic, source.partition.0, offset) {
            Ok(()) => {
                // Nothing that could be read stands behind it, so nothing was in vain.
                if position >= description.high {
                    self.rereads.remove(&source);
                }
                self.slots_changed();
                self.slots.push(Slot::new(
                    source,
                    (assignment, lane_index),
                    description.topic_id,
                    (position, self.clock.clone()),
                ));
            }
            Err(error) => {
                tracing::error!(%error, partition = %source, "the position can't be given to librdkafka");
                self.held.push(Held::new(source, now + OFFER_INTERVAL));
            }
        }
    }

    /// Kafka takes the partitions of `list` from us.
    pub(super) fn revoke(
        &mut self,
        consumer: &BaseConsumer<Context>,
        list: &TopicPartitionList,
        is_lost: bool,
    ) {
        let partitions = sources(list);
        self.held.retain(|held| !partitions.contains(&held.source));
        self.ending.retain(|slot| !partitions.contains(&slot.source));
        self.rereads.retain(|source, _| !partitions.contains(source));
        let (gone, kept): (Vec<Slot>, Vec<Slot>) =
            std::mem::take(&mut self.slots).into_iter().partition(|slot| partitions.contains(&slot.source));
        self.slots = kept;
        self.slots_changed();
        let assignments = gone.iter().map(|slot| slot.assignment).collect();
        let (reply, answer) = oneshot::channel();
        let event = SourceEvent::Revoked { assignments, partitions, is_lost, reply };
        if self.events.blocking_send(event).is_err() || answer.blocking_recv().is_err() {
            tracing::debug!("the pipeline is gone; partitions are given up without it");
        }
        incremental(consumer.incremental_unassign(&list_of(&gone)), "unassign");
    }

    /// Stops reading under `assignment` and offers its partition again at once; what waits at the gate is dropped. An
    /// assignment that ended already is none.
    pub(super) fn drop_assignment(&mut self, consumer: &BaseConsumer<Context>, assignment: AssignmentId) {
        self.finish_assignment(consumer, assignment);
        let Some(index) = self.ending.iter().position(|slot| slot.assignment == assignment) else { return };
        let slot = self.ending.swap_remove(index);
        self.closed.retain(|chunk| chunk.assignment != assignment);
        self.held.push(Held::after(slot, self.clock.monotonic()));
    }

    /// Stops reading under `assignment`, and offers its partition again when what was read of it has passed the gate.
    pub(super) fn finish_assignment(&mut self, consumer: &BaseConsumer<Context>, assignment: AssignmentId) {
        let Some(index) = self.slots.iter().position(|slot| slot.assignment == assignment) else { return };
        let mut slot = self.slots.swap_remove(index);
        self.slots_changed();
        incremental(consumer.incremental_unassign(&list_of(std::slice::from_ref(&slot))), "unassign");
        self.closed.extend(slot.take());
        self.ending.push(slot);
    }

    /// Offers the partitions again of which nothing is on its way any more. One that was read again in vain waits for
    /// its turn: others are to get on meanwhile.
    pub(super) fn end_finished(&mut self, is_under_way: impl Fn(AssignmentId) -> bool) {
        let (ending, ended): (Vec<Slot>, Vec<Slot>) =
            std::mem::take(&mut self.ending).into_iter().partition(|slot| is_under_way(slot.assignment));
        self.ending = ending;
        let now = self.clock.monotonic();
        for slot in ended {
            let rereads = self.rereads.get(&slot.source).filter(|(gap_from, _)| *gap_from == slot.next);
            let count = rereads.map_or(0, |(_, count)| *count);
            let mut held = Held::after(slot, now);
            if count > 1 {
                held.offer_at = now + OFFER_INTERVAL;
            }
            if let Some((gap_from, _)) = rereads.filter(|_| count > REREAD_MAX_COUNT) {
                held.trouble = Some((unreadable(*gap_from), now + UNREADABLE_HOLD));
            }
            self.held.push(held);
        }
    }

    /// A gap followed an error in this assignment, or nothing at all: read again from the position, or, when that was
    /// tried often, hold the partition for a while and say why.
    pub(super) fn reread(&mut self, consumer: &BaseConsumer<Context>, assignment: AssignmentId) {
        let Some(slot) = self.slots.iter().find(|slot| slot.assignment == assignment) else { return };
        let (source, position) = (Arc::clone(&slot.source), slot.next);
        tracing::warn!(partition = %source, %position, "nothing sound follows an error of the consumer; reading again");
        let (gap_from, count) = self.rereads.entry(source).or_insert((position, 0));
        if *gap_from != position {
            (*gap_from, *count) = (position, 0);
        }
        *count = count.saturating_add(1);
        self.finish_assignment(consumer, assignment);
    }

    fn slots_changed(&mut self) {
        self.slot_by_topic.clear();
        self.generation += 1;
    }

    /// Assigns what was granted, and resumes it: librdkafka keeps a pause over an assignment. What it refuses to
    /// assign is offered again.
    fn incremental_assign(&mut self, consumer: &BaseConsumer<Context>, granted: &TopicPartitionList) {
        if let Err(error) = consumer.incremental_assign(granted) {
            tracing::error!(%error, "librdkafka refused to assign partitions; they are offered again");
            let refused = sources(granted);
            self.slots.retain(|slot| !refused.contains(&slot.source));
            self.slots_changed();
            let offer_at = self.clock.monotonic() + OFFER_INTERVAL;
            self.held.extend(refused.into_iter().map(|source| Held::new(source, offer_at)));
        } else if granted.count() > 0 {
            incremental(consumer.resume(granted), "resume");
        }
    }

    /// The slot that `message` belongs to.
    pub(super) fn slot_of(&mut self, message: &BorrowedMessage<'_>) -> Option<&mut Slot> {
        let topic: *mut rd_kafka_topic_t = message.topic_ptr();
        let key = (topic.addr(), message.partition());
        let index = match self.slot_by_topic.get(&key) {
            Some(index) => *index,
            None => {
                let name = message.topic();
                let index = self.slots.iter().position(|slot| {
                    slot.source.partition.0 == message.partition() && *slot.source.topic == *name
                })?;
                self.slot_by_topic.insert(key, index);
                index
            }
        };
        self.slots.get_mut(index)
    }

    /// The slot of `assignment`, until its last chunk has passed the gate.
    pub(super) fn slot_mut(&mut self, assignment: AssignmentId) -> Option<&mut Slot> {
        self.slots.iter_mut().chain(&mut self.ending).find(|slot| slot.assignment == assignment)
    }

    /// The assignments whose chunks may wait at the gate, where `matches`.
    pub(super) fn assignments_where(&self, matches: impl Fn(&Slot) -> bool) -> Vec<AssignmentId> {
        let matching = self.slots.iter().chain(&self.ending).filter(|slot| matches(slot));
        matching.map(|slot| slot.assignment).collect()
    }

    /// The topics whose chunks may wait at the gate, each once.
    pub(super) fn topics(&self) -> Vec<Arc<str>> {
        let slots = self.slots.iter().chain(&self.ending);
        let mut topics: Vec<Arc<str>> = slots.map(|slot| Arc::clone(&slot.source.topic)).collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }
}

fn unreadable(gap_from: Offset) -> String {
    format!(
        "the records behind position {gap_from} can't be read from kafka: they are damaged there; where no replica has them \
         whole, `kafka-delete-records` up to behind them makes them a gap, which is held, and can be declared"
    )
}

fn sources(list: &TopicPartitionList) -> Vec<Arc<TopicPartition>> {
    list.elements()
        .iter()
        .map(|element| {
            Arc::new(TopicPartition {
                topic: element.topic().into(),
                partition: Partition(element.partition()),
            })
        })
        .collect()
}

/// The partitions of `slots` as librdkafka's list.
pub(super) fn list_of(slots: &[Slot]) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for slot in slots {
        list.add_partition(&slot.source.topic, slot.source.partition.0);
    }
    list
}

fn incremental(result: rdkafka::error::KafkaResult<()>, action: &'static str) {
    if let Err(error) = result {
        // The partitions are then not read; the group's next rebalance gives them again.
        tracing::error!(%error, action, "librdkafka refused to change the assignment");
    }
}
