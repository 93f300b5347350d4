//! What the consumer reports instead of records: what is said of it, and what is read again.

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{Poller, SAY_AGAIN_AFTER};

/// The end in an answer that is an error (`HighWatermark` of a Fetch response); librdkafka has -1001 where there was no answer.
const NO_END: i64 = -1;

impl Poller {
    /// What the consumer reports instead of a record.
    pub(super) fn consumer_error(&mut self, error: &KafkaError) {
        self.say_refusal();
        let KafkaError::MessageConsumption(code) = error else {
            if !matches!(error, KafkaError::PartitionEOF(_)) {
                tracing::warn!(%error, "the kafka consumer reported an error");
            }
            return;
        };
        match code {
            RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::Resolve => {
                if *code == RDKafkaErrorCode::AllBrokersDown {
                    self.consumer.context().link.doubt_connections();
                    if !std::mem::replace(&mut self.is_away_said, true) && !self.has_said_refusal() {
                        tracing::warn!(%code, "no broker answers; librdkafka goes on trying");
                    }
                }
            }
            // Said as a refusal, or seen by what follows.
            RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::SSL
            | RDKafkaErrorCode::OperationTimedOut => {}
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
                if self.is_news(*code) {
                    tracing::warn!(%code, "a position is outside of what kafka has; every partition is looked at again");
                }
                self.look_at_all();
            }
            RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition => {
                if self.is_news(*code) {
                    tracing::warn!(%code, "a topic or partition is unknown to the broker; checking topic ids");
                }
                self.gate.hurry();
            }
            RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::GroupAuthorizationFailed => {
                tracing::error!(%code, "kafka refuses us the right to read; grant READ on the topic and the group");
            }
            _ => {
                if self.is_news(*code) {
                    tracing::warn!(%code, "the kafka consumer reported an error; gaps right after it are read again");
                }
                self.state().slots.iter_mut().for_each(|slot| slot.is_suspect = true);
            }
        }
    }

    /// Says why brokers keep us out, or why we can't log in: once, and again every minute. librdkafka goes on trying.
    pub(super) fn say_refusal(&mut self) {
        let link = &self.consumer.context().link;
        let Some(refusal) = link.take_refusal() else { return };
        let now = self.clock.monotonic();
        let is_repeated = self.refusal.as_ref().is_some_and(|(said, at)| {
            *said == refusal && now.saturating_duration_since(*at) < SAY_AGAIN_AFTER
        });
        if !is_repeated {
            self.refusal = Some((refusal.clone(), now));
            let why = link.explain(refusal);
            tracing::error!(why, "connections to kafka fail until this is mended; we go on trying");
        }
    }

    /// Whether the reason why no broker answers was said a moment ago.
    fn has_said_refusal(&self) -> bool {
        let now = self.clock.monotonic();
        let said = self.refusal.as_ref();
        said.is_some_and(|(_, at)| now.saturating_duration_since(*at) < SAY_AGAIN_AFTER)
    }

    /// Whether `code` was not logged within the last minute.
    fn is_news(&mut self, code: RDKafkaErrorCode) -> bool {
        let now = self.clock.monotonic();
        self.said.retain(|(_, at)| now.saturating_duration_since(*at) < SAY_AGAIN_AFTER);
        let is_repeated = self.said.iter().any(|(said, _)| *said == code);
        if !is_repeated {
            self.said.push((code, now));
        }
        !is_repeated
    }

    /// Gives every assignment up, so that each is described, claimed and read again from its position: the error names
    /// no partition, and librdkafka reads that one no more. Behind damaged records it goes on anywhere (its
    /// `rd_kafka_msgset_reader_v2` skips to the wrong place), so that the position is not outside of anything. Which
    /// one that is shows by its end: with this error Kafka tells none.
    fn look_at_all(&self) {
        let mut state = self.state();
        for assignment in state.assignments_where(|_| true) {
            let slot = state.slots.iter().find(|slot| slot.assignment == assignment);
            if slot.is_some_and(|slot| slot.is_suspect && self.end_of(slot) == Some(NO_END)) {
                state.reread(&self.consumer, assignment);
            } else {
                state.finish_assignment(&self.consumer, assignment);
            }
        }
    }
}
