//! The edge from Kafka: one OS thread owns the consumer and does every poll, assign, pause and commit.
//!
//! # What it promises
//!
//! - A record is handed on only under an assignment that the pipeline has granted, from the position that
//!   PostgreSQL gave for it: inside the rebalance callback each partition is described (topic id, watermarks),
//!   the pipeline claims it, and its position is written into the list before librdkafka's one `assign`. A
//!   partition without a granted position is not assigned at all, so librdkafka can never pick an offset of
//!   its own; it is described and offered again every [`OFFER_INTERVAL`].
//! - Chunks cover a partition's offsets without a hole: each offset is a record or counted as absent. A gap
//!   right after a consumer error is not taken for absent: the partition is read again.
//! - What was read before an assignment is ended here (a gap after an error, a position that Kafka has no more) still
//!   goes to its lane or the spooler, and the next offer says how far: Kafka may not have it a second time.
//! - A chunk leaves only after the topic's id was seen unchanged *after* the chunk was read (the gate). Ids
//!   never come back, so its records are of the stream that was claimed, although librdkafka goes on silently
//!   at the same offset when a topic is deleted and created again (`rdkafka_topic.c`, "an offset reset must
//!   be triggered").
//! - While a lane is full its partitions are paused and polling goes on, so `max.poll.interval.ms` never runs
//!   out while PostgreSQL stalls.
//!
//! Never here: PostgreSQL, decoding, offsets stored by librdkafka itself.

mod assignments;
mod context;
mod describe;
mod gate;
mod lookup;
mod poller;
mod presence;
mod replay;
mod slots;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::config::KafkaProperties;
use crate::model::position::{Offset, TopicPartition};
use crate::model::record::{AssignmentId, Chunk};
use crate::observe::Clock;

pub use lookup::{Lookup, LookupError};
pub use poller::SourceHandle;
pub use presence::{Presence, Presences};
pub use replay::Replay;

/// How often a partition that was not granted is offered again.
pub const OFFER_INTERVAL: Duration = Duration::from_secs(2);
/// How many chunks wait for a lane at most. A chunk holds about 128 KiB of records at most.
pub const LANE_QUEUE_COUNT: usize = 32;
/// How many events wait for the pipeline at most.
pub const EVENT_QUEUE_COUNT: usize = 64;

/// Kafka, as the pipeline needs it; the simulation has another one.
pub trait Source: Debug + Send + Sync {
    /// Begins to offer partitions, and to read those that are placed; ends when it is told to [`SourceCommand::Close`],
    /// or with the pipeline.
    ///
    /// # Errors
    /// librdkafka's word when it refuses the properties or the subscription, or the system's when no thread can be had.
    fn start(
        &self,
        lanes: LaneQueues,
        events: mpsc::Sender<SourceEvent>,
        clock: Clock,
    ) -> Result<SourceHandle, String>;

    /// Whether offers are to name the group's offset in Kafka.
    fn wants_mirror(&self) -> &AtomicBool;

    /// Asks what Kafka has of partitions, whoever reads them.
    fn look_up(&self, partitions: BTreeSet<TopicPartition>) -> Presences;
}

impl Source for SourceSettings {
    fn start(
        &self,
        lanes: LaneQueues,
        events: mpsc::Sender<SourceEvent>,
        clock: Clock,
    ) -> Result<SourceHandle, String> {
        poller::start(self, lanes, events, clock).map_err(|error| error.to_string())
    }

    fn wants_mirror(&self) -> &AtomicBool {
        &self.wants_mirror
    }

    fn look_up(&self, partitions: BTreeSet<TopicPartition>) -> Presences {
        Box::pin(presence::look_up(self.properties.clone(), partitions))
    }
}

/// How to consume.
#[derive(Debug, Clone)]
pub struct SourceSettings {
    /// What the consumer is made with.
    pub properties: KafkaProperties,
    /// What to subscribe to: topic names, or one `^regex`.
    pub subscription: Vec<String>,
    /// Where a group without a position starts.
    pub reset: OffsetReset,
    /// Whether offers are to name the group's offset in Kafka.
    pub wants_mirror: Arc<AtomicBool>,
}

/// Where a group without a position starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetReset {
    /// At the first record that Kafka has.
    Earliest,
    /// After the last one.
    Latest,
}

/// What Kafka says of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The cluster's id.
    pub cluster_id: Arc<str>,
    /// The topic's id.
    pub topic_id: Uuid,
    /// The first offset that Kafka has.
    pub low: Offset,
    /// The position after the last one.
    pub high: Offset,
    /// Where a group without a position starts.
    pub initial: Offset,
    /// The group's offset in Kafka: where PostgreSQL was, or before that. Only asked for while PostgreSQL is away.
    pub mirror: Option<Offset>,
}

/// A partition that Kafka has assigned to us, offered to the pipeline.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Which one.
    pub source: Arc<TopicPartition>,
    /// What Kafka says of it, or why that can't be known now.
    pub description: Result<Description, String>,
    /// What the poll thread handed on under an assignment that it has ended by itself.
    pub handed_on: Option<HandedOn>,
}

/// How far a lane was given records under an assignment that the poll thread has ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandedOn {
    /// The assignment.
    pub assignment: AssignmentId,
    /// The position behind the last chunk.
    pub to: Offset,
}

/// The pipeline's answer to an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Read from this position under this assignment, for this lane.
    Start {
        /// The assignment's name.
        assignment: AssignmentId,
        /// Which lane gets the records.
        lane_index: usize,
        /// The next offset to read.
        position: Offset,
    },
    /// Do not read; offer it again later.
    Hold,
}

/// What the source tells the pipeline.
#[derive(Debug)]
pub enum SourceEvent {
    /// Kafka gave us partitions, which are offered next.
    Assigned,
    /// Partitions are offered. The poll thread waits for the answer: one placement for each, in order.
    Offered {
        /// The partitions.
        offers: Vec<Offer>,
        /// Where the answer goes.
        reply: oneshot::Sender<Vec<Placement>>,
    },
    /// Partitions go away. The poll thread waits for the answer, which says that nothing of them is under way.
    Revoked {
        /// The assignments that end here; a partition that was held has none.
        assignments: Vec<AssignmentId>,
        /// The partitions that end, held ones too.
        partitions: Vec<Arc<TopicPartition>>,
        /// Kafka has given them to somebody else already: abandon at once.
        is_lost: bool,
        /// Where the answer goes.
        reply: oneshot::Sender<()>,
    },
    /// What the consumer knows, about twice a second.
    Looked {
        /// The first offsets, where known, and the ends of partitions as last fetched.
        ends: Vec<(AssignmentId, Option<Offset>, Offset)>,
        /// How many partitions are paused.
        paused_count: usize,
        /// Whether there is a connection to a broker, or was one some seconds ago.
        is_connected: bool,
    },
    /// The consumer can't go on; the process must stop.
    Failed(String),
}

/// What the pipeline tells the source.
#[derive(Debug)]
pub enum SourceCommand {
    /// Stop reading under this assignment, and offer the partition again.
    Drop(AssignmentId),
    /// Commit these positions to Kafka's group, as a mirror for lag tools.
    Mirror(Vec<(Arc<TopicPartition>, Offset)>),
    /// Commit the last mirror, leave the group and end the thread.
    Close(Vec<(Arc<TopicPartition>, Offset)>),
}

/// Where chunks go: one queue a lane.
pub type LaneQueues = Vec<mpsc::Sender<Arc<Chunk>>>;
