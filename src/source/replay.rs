//! Reads records again that Kafka still has, for whoever compares them; no group is joined, nothing is committed.
//!
//! Blocking: an async caller reads from `spawn_blocking`. Never here: positions that anything is stored by.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::TopicPartitionList;
use uuid::Uuid;

use super::LookupError;
use super::slots::{Appended, Slot};
use crate::config::KafkaProperties;
use crate::kafka::{self, Link};
use crate::model::position::{Offset, OffsetRange, TopicPartition};
use crate::model::record::{AssignmentId, Chunk};
use crate::observe::Clock;

/// How long one poll waits.
const POLL: Duration = Duration::from_millis(200);
/// How long nothing may come.
const SILENCE_PATIENCE: Duration = Duration::from_secs(30);

/// Reads ranges of partitions.
pub struct Replay {
    consumer: BaseConsumer<Link>,
    clock: Clock,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").finish_non_exhaustive()
    }
}

impl Replay {
    /// A reader with `properties` as the daemon uses them: `read_committed`. Connects to nothing yet.
    ///
    /// # Errors
    /// [`LookupError::Misconfigured`].
    pub fn new(properties: &KafkaProperties) -> Result<Self, LookupError> {
        let mut config = kafka::client_config(properties).map_err(LookupError::Misconfigured)?;
        // Where Kafka has deleted the beginning meanwhile, what it still has is read.
        config.set("auto.offset.reset", "earliest").set("enable.partition.eof", "true");
        // A group must be named to assign partitions; it is never joined, and nothing is committed to it.
        config.set("group.id", "audit-consumer.replay").set("enable.auto.commit", "false");
        config.set("isolation.level", "read_committed");
        let made = config.create_with_context(Link::new(properties));
        let consumer: BaseConsumer<Link> = made.map_err(LookupError::Misconfigured)?;
        consumer.context().refresh(consumer.client());
        Ok(Self { consumer, clock: Clock::default() })
    }

    /// Reads `range` of `source` and gives `each` its chunks, in order, until that says no. Together they cover the
    /// range, or, where `each` said no, its beginning. Where Kafka has deleted the beginning, the first record has those
    /// offsets as absent before it. Blocks while records come, and 30 s without one.
    ///
    /// # Errors
    /// [`LookupError::Unavailable`]; [`LookupError::Undescribed`] when nothing came.
    pub fn read(
        &self,
        source: &Arc<TopicPartition>,
        range: OffsetRange,
        each: &mut impl FnMut(Chunk) -> bool,
    ) -> Result<(), LookupError> {
        let mut list = TopicPartitionList::new();
        let start = rdkafka::Offset::Offset(range.start().as_i64());
        list.add_partition_offset(&source.topic, source.partition.0, start)
            .map_err(LookupError::Unavailable)?;
        self.consumer.context().refresh(self.consumer.client());
        self.consumer.assign(&list).map_err(LookupError::Unavailable)?;
        let outcome = self.read_assigned(source, range, each);
        self.consumer.unassign().map_err(LookupError::Unavailable)?;
        outcome
    }

    fn read_assigned(
        &self,
        source: &Arc<TopicPartition>,
        range: OffsetRange,
        each: &mut impl FnMut(Chunk) -> bool,
    ) -> Result<(), LookupError> {
        let names = (AssignmentId(0), 0);
        let mut slot = Slot::new(Arc::clone(source), names, Uuid::nil(), (range.start(), self.clock.clone()));
        let mut heard_at = self.clock.monotonic();
        while slot.next < range.end() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    heard_at = self.clock.monotonic();
                    if message.offset() >= range.end().as_i64() {
                        break;
                    }
                    if slot.append(&message) == Appended::Full
                        && slot.take().is_some_and(|chunk| !each(chunk))
                    {
                        return Ok(());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) if is_passing(&error) => {}
                Some(Err(error)) => return Err(LookupError::Unavailable(error)),
                // The rest of the range may be control records, over which only the position moves.
                None if self.position(source) >= Some(range.end()) => break,
                None => {}
            }
            if self.clock.monotonic().saturating_duration_since(heard_at) >= SILENCE_PATIENCE {
                let reason = format!("no record of partition {} in 30 s", source.partition);
                return Err(LookupError::Undescribed { topic: source.topic.to_string(), reason });
            }
        }
        slot.advance(range.end());
        if let Some(chunk) = slot.take() {
            each(chunk);
        }
        Ok(())
    }

    fn position(&self, source: &TopicPartition) -> Option<Offset> {
        let positions = self.consumer.position().ok()?;
        match positions.find_partition(&source.topic, source.partition.0)?.offset() {
            rdkafka::Offset::Offset(offset) => Offset::new(offset),
            _ => None,
        }
    }
}

/// Whether librdkafka goes on by itself after this error. It asks for the group's coordinator, which it does not need
/// here: nobody has to have a right to that group.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::GroupAuthorizationFailed
        )
    )
}
