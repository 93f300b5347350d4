//! librdkafka's callbacks: rebalances are answered by the poll thread's own state.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use super::assignments::Assignments;
use crate::kafka::Link;

/// The consumer's context. Its state is locked by the poll thread alone: callbacks run inside its polls.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) assignments: Arc<Mutex<Assignments>>,
    pub(super) link: Link,
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        self.link.log(level, fac, log_message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Errors also come out of poll, where they are handled; this is librdkafka's wording of them.
        self.link.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.link.generate_oauth_token(config)
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let mut assignments = self.assignments.lock().unwrap_or_else(PoisonError::into_inner);
        match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => assignments.assign(consumer, list),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                assignments.revoke(consumer, list, consumer.assignment_lost());
            }
            other => {
                let code = RDKafkaErrorCode::from(other);
                tracing::error!(%code, "rebalance failed; giving up every partition");
                assignments.revoke(consumer, list, true);
            }
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        // The mirror is for lag tools alone and the next one says more; nothing depends on it.
        if let Err(error) = result {
            tracing::debug!(%error, "the mirror of the positions was not committed to kafka");
        }
    }
}
