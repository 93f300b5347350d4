//! Breakers: a partition whose records are mostly dead letters stops until an operator says `dlq resume`, the process
//! starts again, or Kafka gives the partition to another process (which counts anew).
//!
//! An open breaker is recorded in `offset_actions`, and what is recorded there last decides: so `dlq resume` needs no
//! way to the process but PostgreSQL. Until it is recorded it stays open.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Pipeline, RELEASE_TIMEOUT};
use crate::model::breaker::Opened;
use crate::model::position::{StreamPartition, TopicPartition};
use crate::observe::board::HoldCode;
use crate::source::Offer;
use crate::spool::disk::Disk;
use crate::store::{SessionPurpose, Store, StoreError, StoreSession};

/// How long after a question without an answer the next one is asked.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A breaker that is open.
#[derive(Debug)]
pub(super) struct OpenBreaker {
    key: StreamPartition,
    /// Names this opening, so that it is recorded once whatever becomes of an answer.
    opening: Uuid,
    reason: String,
    is_recorded: bool,
}

impl<S: Store, D: Disk> Pipeline<S, D> {
    /// A lane says that the breaker of a partition opened.
    pub(super) fn breaker_opened(
        &mut self,
        source: &Arc<TopicPartition>,
        key: StreamPartition,
        opened: Opened,
    ) {
        let reason = format!(
            "{} of the latest {} records are dead letters, more than DLQ_BREAKER_SHARE={} percent",
            opened.dead_letter_count, opened.record_count, self.settings.breaker.share_percent
        );
        self.metrics.breaker_opened();
        let detail = format!(
            "{reason}; see `audit-consumer dlq list`, mend what produces them, then: audit-consumer dlq resume \
             --topic {} --partition {} --why WHY",
            source.topic, source.partition
        );
        self.hold(source, HoldCode::BreakerOpen, detail);
        self.breakers.insert(
            Arc::clone(source),
            OpenBreaker { key, opening: Uuid::new_v4(), reason, is_recorded: false },
        );
    }

    /// Whether the partition must go on waiting for an operator.
    pub(super) async fn is_breaker_open(&mut self, offer: &Offer) -> bool {
        let Some(breaker) = self.breakers.get(&offer.source) else { return false };
        // The poll thread waits: one question without an answer stands for those of all partitions.
        if self.clock.monotonic() < self.ask_breakers_at {
            return true;
        }
        let (key, opening, reason) = (breaker.key, breaker.opening, breaker.reason.clone());
        let is_recorded = breaker.is_recorded;
        let store = self.settings.store.clone();
        let kept = self.session.take();
        if kept.is_none() {
            self.connected_at = self.clock.monotonic();
        }
        let asked = async {
            let mut session = match kept {
                Some(session) => session,
                None => store.connect(SessionPurpose::Claim).await?,
            };
            if !is_recorded {
                session.record_breaker(store.group(), key, (opening, &reason)).await?;
            }
            let is_open = session.is_breaker_open(store.group(), key).await?;
            Ok((session, is_open))
        };
        let answer = tokio::time::timeout(RELEASE_TIMEOUT, asked).await;
        match answer.unwrap_or_else(|_elapsed| Err(StoreError::no_answer("breaker"))) {
            Ok((session, is_open)) => {
                self.session = Some(session);
                if let Some(breaker) = self.breakers.get_mut(&offer.source) {
                    breaker.is_recorded = true;
                }
                if !is_open {
                    self.breakers.remove(&offer.source);
                    tracing::info!(partition = %offer.source, "the breaker was closed by an operator");
                }
                let is_known = self.board.lock().held.contains_key(&offer.source);
                if is_open && !is_known {
                    self.hold(&offer.source, HoldCode::BreakerOpen, reason);
                }
                is_open
            }
            Err(error) => {
                tracing::warn!(%error, partition = %offer.source, "the breaker can't be looked up now");
                self.ask_breakers_at = self.clock.monotonic() + ASK_AGAIN_AFTER;
                true
            }
        }
    }
}
