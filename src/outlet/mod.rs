//! What leaves: for Kafka, dead letters to `<topic>.dlq` and redriven records to their source topic, and reading them
//! back; for log shippers, day files ([`day_files`], which tells its own promises).
//!
//! Promises: records are sent in Kafka transactions only, by a producer that fences every earlier one of the same
//! `transactional.id` before anything is read that it will rely on. What [`Producer::transact`] returned was
//! committed; when it fails the producer must be dropped, and the outcome may be
//! unknown.
//!
//! Never here: PostgreSQL, retries, and a decision on what to send.
//!
//! Everything blocks: an async caller calls from `spawn_blocking`.

pub mod day_files;
mod producer;
mod reader;
mod spans;
mod topics;

use rdkafka::ClientConfig;
use rdkafka::error::{IsError, KafkaError, RDKafkaErrorCode};

use crate::config::KafkaProperties;
use crate::kafka::{self, Link};

pub use producer::{Placement, Position, Producer};
pub use reader::{Extent, Reader, Scanned};
pub use spans::{LetterSpans, TracedLetters};
pub use topics::{Topic, Topics};

/// How to reach Kafka, and under which names.
#[derive(Debug, Clone)]
pub struct OutletSettings {
    properties: KafkaProperties,
    /// The consumer group whose dead letters these are.
    pub group: String,
}

/// What a transactional producer sends; it has one `transactional.id` for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Dead letters: `<group>.dlq`.
    Relay,
    /// Records back to their source topic: `<group>.dlq.redrive`.
    Redrive,
}

impl OutletSettings {
    /// Settings with the `properties` of any client (brokers, security) for the dead letters of `group`.
    #[must_use]
    pub fn new(properties: KafkaProperties, group: &str) -> Self {
        Self { properties, group: group.to_owned() }
    }

    /// The same for another group, to fence its producers.
    #[must_use]
    pub fn for_group(&self, group: &str) -> Self {
        Self { properties: self.properties.clone(), group: group.to_owned() }
    }

    /// The group in which the relay's position is kept; nobody joins it.
    #[must_use]
    pub fn position_group(&self) -> String {
        format!("{}.dlq", self.group)
    }

    /// The `transactional.id` for a purpose.
    #[must_use]
    pub fn transactional_id(&self, purpose: Purpose) -> String {
        match purpose {
            Purpose::Relay => format!("{}.dlq", self.group),
            Purpose::Redrive => format!("{}.dlq.redrive", self.group),
        }
    }

    fn client(&self, step: &'static str) -> Result<ClientConfig, OutletError> {
        let mut config =
            kafka::client_config(&self.properties).map_err(|error| OutletError::of(step, error))?;
        // A missing topic must be seen, not made by the broker with its defaults. (librdkafka's producers, and so its
        // admin clients, ask for that otherwise.)
        config.set("allow.auto.create.topics", "false");
        Ok(config)
    }

    fn link(&self) -> Link {
        Link::new(&self.properties)
    }
}

/// What may go wrong with Kafka here, by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum OutletError {
    /// No broker answered in time, or one failed: drop the producer, start over later.
    #[error("{step}: kafka is unavailable: {source}")]
    Unavailable {
        /// What was under way.
        step: &'static str,
        /// What was reported.
        #[source]
        source: KafkaError,
    },
    /// Another producer with our `transactional.id` has begun: drop ours, start over.
    #[error(
        "{step}: fenced: another producer with the same transactional.id has begun, or the broker has ended a transaction that took too long"
    )]
    Fenced {
        /// What was under way.
        step: &'static str,
    },
    /// A right or a topic is missing: an operator must act; try again later.
    #[error("{step}: {advice}: {source}")]
    Refused {
        /// What was under way.
        step: &'static str,
        /// What to do.
        advice: String,
        /// What was reported.
        #[source]
        source: KafkaError,
    },
    /// The broker found records larger than it allows: send smaller ones. The transaction was aborted.
    #[error("{topic} takes no record as large as one that was sent")]
    TooLarge {
        /// The topic.
        topic: String,
    },
    /// The broker does not take the records' own timestamps. The transaction was aborted.
    #[error("{topic} does not take a record's own timestamp")]
    TimestampRefused {
        /// The topic.
        topic: String,
    },
    /// What Kafka says contradicts what it said before: start over.
    #[error("{step}: {reason}")]
    Doubt {
        /// What was under way.
        step: &'static str,
        /// What is odd.
        reason: String,
    },
}

/// What the relay must be allowed to do.
const RIGHTS: &str = "grant CREATE, DESCRIBE, DESCRIBE_CONFIGS, READ and WRITE on the dead letter topic, READ (to redrive \
    WRITE too) on its source topic, WRITE on the transactional ids <group>.dlq and <group>.dlq.redrive, READ on the \
    group <group>.dlq";

impl OutletError {
    fn of(step: &'static str, source: KafkaError) -> Self {
        if matches!(source, KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_)) {
            return Self::Refused { step, advice: "mend the settings of kafka".into(), source };
        }
        let code = match &source {
            KafkaError::Transaction(error) => Some(error.code()),
            other => other.rdkafka_error_code(),
        };
        match code {
            Some(
                RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::ProducerFenced
                | RDKafkaErrorCode::InvalidProducerEpoch,
            ) => Self::Fenced { step },
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
            ) => Self::Refused { step, advice: RIGHTS.into(), source },
            _ => Self::Unavailable { step, source },
        }
    }

    /// The same, or, where the client knows that brokers keep it out, that.
    fn because_of(self, link: &Link) -> Self {
        match (self, link.take_refusal()) {
            (Self::Unavailable { step, source }, Some(refusal)) => {
                Self::Refused { step, advice: link.explain(refusal), source }
            }
            (other, _) => other,
        }
    }

    /// Whether `source` says that there is no such topic or partition.
    fn is_missing(source: &KafkaError) -> bool {
        matches!(
            source.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownPartition
            )
        )
    }

    /// The variant's name, for metrics.
    #[must_use]
    pub const fn class(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Fenced { .. } => "fenced",
            Self::Refused { .. } => "refused",
            Self::TooLarge { .. } => "too_large",
            Self::TimestampRefused { .. } => "timestamp_refused",
            Self::Doubt { .. } => "doubt",
        }
    }
}

/// Whether a librdkafka answer is an error.
fn is_error(code: rdkafka::types::RDKafkaRespErr) -> bool {
    code.is_error()
}
