//! What the spool holds, as the loop knows it: where PostgreSQL is, which batches may go, and what others are told.

use std::time::Instant;

use super::UNREADABLE_HOLD;
use crate::failpoint;
use crate::model::position::{Offset, OffsetRange, StreamPartition};
use crate::model::spool::mode::Mode;
use crate::model::spool::ranges;
use crate::observe::board::OwnedPartition;
use crate::pipeline::spooler::{SharedSpool, with_spool};
use crate::pipeline::{Pipeline, RELEASE_TIMEOUT};
use crate::spool::disk::Disk;
use crate::spool::{PartitionRanges, joined};
use crate::store::{SessionPurpose, Store, StoreError, StoreSession, Telling};

impl<S: Store, D: Disk> Pipeline<S, D> {
    /// Brings what is known of the spool up to date, before offers are placed.
    pub(in crate::pipeline) async fn refresh_held(&mut self) {
        let Some(outage) = &mut self.outage else { return };
        let seen = with_spool(&outage.spool, |spool| (spool.held(), spool.drained(), spool.stats())).await;
        let Some((held, drained, stats)) = seen else { return };
        outage.held = held.into_iter().map(|ranges| (ranges.key, ranges)).collect();
        outage.drained = drained;
        self.board.lock().spool.stats = stats;
    }

    /// The ranges that the spool holds of a partition.
    pub(super) fn spooled(&self, key: StreamPartition) -> &[OffsetRange] {
        let held = self.outage.as_ref().and_then(|outage| outage.held.get(&key));
        held.map_or(&[], |held| held.ranges.as_slice())
    }

    /// The first offset that the spool holds behind `position`.
    pub(in crate::pipeline) fn first_spooled_after(
        &self,
        key: StreamPartition,
        position: Offset,
    ) -> Option<Offset> {
        ranges::first_after(self.spooled(key), position)
    }

    /// Notes where PostgreSQL is with partitions that were claimed: from there they are spooled if it goes away, and if a
    /// failover has taken it back, the spool holds what lies behind again.
    pub(in crate::pipeline) async fn note_positions(&mut self, positions: Vec<(StreamPartition, Offset)>) {
        let Some(outage) = &mut self.outage else { return };
        outage.last_known.extend(positions.iter().copied());
        let noted = with_spool(&outage.spool, move |spool| {
            positions.into_iter().for_each(|(key, position)| spool.note_position(key, position));
        });
        if noted.await.is_none() {
            tracing::debug!("the spool was not told the positions");
        }
        self.refresh_held().await;
    }

    /// Forgets the positions of partitions that went to somebody else.
    pub(in crate::pipeline) fn forget_positions(&mut self, ended: &[OwnedPartition]) {
        if let Some(outage) = &mut self.outage {
            ended.iter().for_each(|owned| {
                outage.last_known.remove(&owned.key);
            });
        }
    }

    /// Keeps the positions of what ended here and stays ours, should PostgreSQL be away before they are claimed again.
    pub(in crate::pipeline) fn keep_positions(&mut self, ended: &[OwnedPartition]) {
        if let Some(outage) = &mut self.outage {
            let stored = ended.iter().filter(|owned| owned.mode != Mode::Spooling);
            outage.last_known.extend(stored.map(|owned| (owned.key, owned.position)));
        }
    }

    /// The first offset that can be had: Kafka's, or the spool's when that reaches further back.
    pub(in crate::pipeline) fn low_with_spool(&self, key: StreamPartition, low: Offset) -> Offset {
        ranges::first(self.spooled(key)).map_or(low, |first| low.min(first))
    }

    /// Holds again what was drained behind `position`, which PostgreSQL has lost and Kafka has no more. Whether there is
    /// such.
    pub(in crate::pipeline) async fn restore(&mut self, key: StreamPartition, position: Offset) -> bool {
        let Some(outage) = &self.outage else { return false };
        let is_restored = restore(&outage.spool, key, position).await;
        if is_restored.is_none()
            && let Some(outage) = &mut self.outage
        {
            // It may be there all the same, so it is not to be declared a gap.
            outage.unreadable_until = Some(self.clock.monotonic() + UNREADABLE_HOLD);
        }
        self.refresh_held().await;
        is_restored.unwrap_or(false)
    }

    /// Looks into one drained segment of an earlier process, of which nobody knows yet what it keeps.
    pub(super) async fn look_into_drained(&mut self, now: Instant) {
        let Some(outage) = &mut self.outage else { return };
        if outage.look_into_at.is_none_or(|at| now < at) {
            return;
        }
        match with_spool(&outage.spool, |spool| spool.look_into_drained()).await {
            Some(Ok(true)) | None => {}
            Some(Ok(false)) => outage.look_into_at = None,
            Some(Err(error)) => {
                tracing::warn!(%error, "a drained segment of the spool was not looked into; it is tried again");
                outage.look_into_at = Some(now + UNREADABLE_HOLD);
            }
        }
    }

    /// Whether the spool's disk failed a moment ago.
    pub(in crate::pipeline) fn is_spool_unreadable(&self) -> bool {
        let now = self.clock.monotonic();
        self.outage.as_ref().and_then(|outage| outage.unreadable_until).is_some_and(|until| until > now)
    }

    /// Whether the spool holds the record at `position`, and can be read.
    pub(in crate::pipeline) fn is_spooled(&self, key: StreamPartition, position: Offset) -> bool {
        !self.is_spool_unreadable() && ranges::holds(self.spooled(key), position)
    }

    /// The loop's session, or a new one, if PostgreSQL answers soon.
    pub(super) async fn take_session(&mut self) -> Option<S::Session> {
        if let Some(session) = self.session.take() {
            return Some(session);
        }
        self.connected_at = self.clock.monotonic();
        let connected = self.settings.store.connect(SessionPurpose::Claim);
        tokio::time::timeout(RELEASE_TIMEOUT, connected).await.ok()?.ok()
    }

    pub(super) async fn mark_drained(&mut self, positions: Vec<(StreamPartition, Offset)>) {
        let Some(outage) = &self.outage else { return };
        let now_ms = self.clock.unix_ms();
        let marked = with_spool(&outage.spool, move |spool| {
            for (key, position) in positions {
                spool.mark_drained(key, position, now_ms)?;
            }
            spool.prune(now_ms)
        });
        if let Some(Err(error)) = marked.await {
            tracing::warn!(%error, "drained segments of the spool were not moved; it is tried again");
        }
        self.refresh_held().await;
    }

    /// Writes to `spool_ranges` what the spool holds, and what it keeps of drained records that PostgreSQL lacks, when that
    /// has changed.
    pub(in crate::pipeline) async fn publish_ranges(&mut self, telling: Telling) {
        let Some(outage) = &self.outage else { return };
        let told: Vec<PartitionRanges> = outage.held.values().chain(&outage.lacking).cloned().collect();
        let ranges = joined(&told);
        if outage.published.as_ref() == Some(&ranges) {
            return;
        }
        // Another session may be another PostgreSQL, which lacks more.
        let telling = match telling {
            _ if failpoint::is_on("mutant_untold") => Telling::All,
            Telling::All if self.session.is_some() => Telling::All,
            Telling::All | Telling::More => Telling::More,
        };
        let Some(mut session) = self.take_session().await else { return };
        let instance = self.settings.store.instance();
        let asked =
            tokio::time::timeout(RELEASE_TIMEOUT, session.publish_spool_ranges(instance, &ranges, telling))
                .await;
        match asked.unwrap_or_else(|_elapsed| Err(StoreError::no_answer("publish spool ranges"))) {
            Ok(()) => {
                self.session = Some(session);
                if let Some(outage) = &mut self.outage {
                    outage.published = Some(ranges);
                }
            }
            Err(error) => tracing::debug!(%error, "the spool's ranges were not published now"),
        }
    }
}

/// Has the spool hold again what was drained of `key` behind `position`. Whether there is such; `None`: the disk does not
/// tell.
pub(super) async fn restore<D: Disk>(
    spool: &SharedSpool<D>,
    key: StreamPartition,
    position: Offset,
) -> Option<bool> {
    match with_spool(spool, move |spool| spool.restore(key, position)).await {
        Some(Ok(true)) => {
            tracing::warn!(partition = %key, %position, "postgresql has lost what was drained; the spool holds it again");
            Some(true)
        }
        Some(Ok(false)) => Some(false),
        Some(Err(error)) => {
            tracing::warn!(partition = %key, %error, "drained segments of the spool were not held again; it is tried again");
            None
        }
        None => None,
    }
}
