//! Reads topics that transactions were written to, as a `read_committed` reader sees them: which dead letters are
//! there, and which redrives.
//!
//! A transaction of anybody that is under way hides what was committed behind it. So before a topic counts as read,
//! its end for a `read_committed` reader must have reached what its end was at the start for anyone.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::TopicPartitionList;
use uuid::Uuid;

use super::{OutletError, OutletSettings, Placement};
use crate::kafka::{self, Link};
use crate::model::dead_letter::{DeadLetterId, GROUP_HEADER, ID_HEADER, LetterName, REDRIVE_HEADER};
use crate::model::position::{Offset, Partition};
use crate::native::{self, LetGo};
use crate::observe::Clock;

/// How long a question may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a transaction of somebody may hide what is behind it: longer than the broker lets ours live.
const HIDDEN_PATIENCE: Duration = Duration::from_secs(60);
/// How long no record may come.
const SILENCE_PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(500);

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Where it is.
    pub placement: Placement,
    /// Which dead letter it is (`dlq.id` and `dlq.group`).
    pub letter: Option<LetterName>,
    /// Which redrive it came by (`dlq.redrive`).
    pub redrive: Option<Uuid>,
}

/// What a partition of a topic holds: the first offset that is there, and its end for anyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The low watermark.
    pub low: Offset,
    /// The high watermark.
    pub high: Offset,
}

/// A reader that commits nothing and joins no group.
pub struct Reader {
    committed: LetGo<BaseConsumer<Link>>,
    uncommitted: LetGo<BaseConsumer<Link>>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`OutletError::Unavailable`] when librdkafka refuses the properties.
    pub fn new(settings: &OutletSettings) -> Result<Self, OutletError> {
        let consumer = |isolation_level: &str| {
            const STEP: &str = "make the reader";
            let mut config = settings.client(STEP)?;
            // A group must be named to assign partitions; nothing is committed to it.
            config.set("group.id", settings.position_group()).set("enable.auto.commit", "false");
            config.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
            config.set("isolation.level", isolation_level).set("check.crcs", "true");
            let made: Result<BaseConsumer<Link>, KafkaError> = config.create_with_context(settings.link());
            let consumer = made.map_err(|error| OutletError::of(STEP, error))?;
            consumer.context().refresh(consumer.client());
            Ok(kafka::let_go(consumer))
        };
        Ok(Self { committed: consumer("read_committed")?, uncommitted: consumer("read_uncommitted")? })
    }

    /// What the partitions 0 to `partition_count` of `topic` hold now. Blocks for 5 s a partition at most.
    ///
    /// # Errors
    /// [`OutletError::Unavailable`].
    pub fn extents(&self, topic: &str, partition_count: i32) -> Result<Vec<Extent>, OutletError> {
        (0..partition_count).map(|partition| watermarks(&self.uncommitted, topic, partition)).collect()
    }

    /// Reads each partition of `topic` from its place in `starts` (the first partition's first) up to its present
    /// end, and calls `each` for every record. Blocks while records come, and while a transaction hides some, for a
    /// minute at most.
    ///
    /// # Errors
    /// [`OutletError::Unavailable`]; [`OutletError::Doubt`] when a transaction does not end.
    pub fn scan(
        &self,
        topic: &str,
        starts: &[Offset],
        mut each: impl FnMut(Scanned),
    ) -> Result<(), OutletError> {
        let mut list = TopicPartitionList::new();
        let mut unread = HashMap::new();
        for (partition, start) in (0..).zip(starts) {
            let end = watermarks(&self.uncommitted, topic, partition)?.high;
            if end <= *start {
                continue;
            }
            self.wait_until_visible(topic, partition, end)?;
            list.add_partition_offset(topic, partition, rdkafka::Offset::Offset(start.as_i64()))
                .map_err(|error| OutletError::of("read the topic", error))?;
            unread.insert(partition, end);
        }
        if unread.is_empty() {
            return Ok(());
        }
        self.committed.assign(&list).map_err(|error| OutletError::of("read the topic", error))?;
        let outcome = self.read_all(topic, unread, &mut each);
        self.committed.unassign().map_err(|error| OutletError::of("read the topic", error))?;
        outcome
    }

    fn wait_until_visible(&self, topic: &str, partition: i32, end: Offset) -> Result<(), OutletError> {
        let mut waited = Duration::ZERO;
        while watermarks(&self.committed, topic, partition)?.high < end {
            if waited >= HIDDEN_PATIENCE {
                return Err(OutletError::Doubt {
                    step: "read the topic",
                    reason: format!(
                        "a transaction in {topic}/{partition} does not end; is its producer stopped?"
                    ),
                });
            }
            std::thread::sleep(PAUSE);
            waited += PAUSE;
        }
        Ok(())
    }

    fn read_all(
        &self,
        topic: &str,
        mut unread: HashMap<i32, Offset>,
        each: &mut impl FnMut(Scanned),
    ) -> Result<(), OutletError> {
        const STEP: &str = "read the topic";
        let clock = Clock::default();
        let mut heard_at = clock.monotonic();
        while !unread.is_empty() {
            match self.committed.poll(POLL) {
                None => {}
                // An end that lies before the one at the start is a broker's that lags behind: it goes on later.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    let position = self.position(topic, partition);
                    unread.retain(|other, end| *other != partition || position < Some(*end));
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(code) if is_passing(code) => {}
                    _ => return Err(OutletError::of(STEP, error)),
                },
                Some(Ok(message)) => {
                    heard_at = clock.monotonic();
                    let partition = message.partition();
                    let Some(offset) = Offset::new(message.offset()) else { continue };
                    let end = unread.get(&partition).copied();
                    if end.is_some_and(|end| offset < end) {
                        each(read(&message, Placement { partition: Partition(partition), offset }));
                    }
                    if end.is_some_and(|end| offset.next() >= end) {
                        unread.remove(&partition);
                    }
                }
            }
            if clock.monotonic().saturating_duration_since(heard_at) >= SILENCE_PATIENCE {
                let reason = format!("no record of {topic} in {} s", SILENCE_PATIENCE.as_secs());
                return Err(OutletError::Doubt { step: STEP, reason });
            }
        }
        Ok(())
    }

    /// The offset behind what was read of a partition, control records too.
    fn position(&self, topic: &str, partition: i32) -> Option<Offset> {
        let positions = self.committed.position().ok()?;
        match positions.find_partition(topic, partition)?.offset() {
            rdkafka::Offset::Offset(offset) => Offset::new(offset),
            _ => None,
        }
    }
}

fn read(message: &BorrowedMessage<'_>, placement: Placement) -> Scanned {
    let (mut id, mut group, mut redrive): (Option<DeadLetterId>, _, _) = (None, None, None);
    native::for_each_header(message, |key, value| {
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        if key == ID_HEADER.as_bytes() {
            id = text.and_then(|text| text.parse().ok());
        } else if key == GROUP_HEADER.as_bytes() {
            group = text.map(str::to_owned);
        } else if key == REDRIVE_HEADER.as_bytes() {
            redrive = text.and_then(|text| text.parse().ok());
        }
    });
    let letter = id.zip(group).map(|(id, group)| LetterName { id, group });
    Scanned { placement, letter, redrive }
}

/// Whether librdkafka goes on by itself after this error.
fn is_passing(code: rdkafka::error::RDKafkaErrorCode) -> bool {
    use rdkafka::error::RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::NotLeaderForPartition
    )
}

fn watermarks(consumer: &BaseConsumer<Link>, topic: &str, partition: i32) -> Result<Extent, OutletError> {
    const STEP: &str = "look the topic's ends up";
    consumer.context().refresh(consumer.client());
    let (low, high) = consumer.fetch_watermarks(topic, partition, TIMEOUT).map_err(|error| {
        // Nothing is assigned while ends are looked up: no record waits in the queue.
        consumer.context().catch_up(consumer.client());
        OutletError::of(STEP, error).because_of(consumer.context())
    })?;
    let extent = Offset::new(low).zip(Offset::new(high)).map(|(low, high)| Extent { low, high });
    extent.ok_or_else(|| OutletError::Doubt {
        step: STEP,
        reason: format!("negative watermarks of {topic}/{partition}"),
    })
}
