//! What the spool holds, as the loop knows it: where PostgreSQL is, which batches may go, and what others are told.

use std::sync::Arc;
use std::time::Instant;

use super::TRIM_INTERVAL;
use crate::model::position::{Epoch, Offset, OffsetRange, StreamPartition};
use crate::observe::board::{DatabaseState, OwnedPartition};
use crate::pipeline::spooler::with_spool;
use crate::pipeline::{Pipeline, RELEASE_TIMEOUT};
use crate::spool::PartitionRanges;
use crate::store::{Claim, Session, SessionPurpose, StoreError};

impl Pipeline {
    /// Brings what is known of the spool up to date, before offers are placed.
    pub(in crate::pipeline) async fn refresh_held(&mut self) {
        let Some(outage) = &mut self.outage else { return };
        let seen = with_spool(&outage.spool, |spool| (spool.held(), spool.stats())).await;
        let Some((held, stats)) = seen else { return };
        outage.held = held.into_iter().map(|ranges| (ranges.key, ranges)).collect();
        self.board.lock().spool.stats = stats;
    }

    /// The offset behind what the spool holds from `position` on without a hole; `position` when it holds nothing there.
    pub(super) fn end_of_spooled(&self, key: StreamPartition, mut position: Offset) -> Offset {
        let held = self.outage.as_ref().and_then(|outage| outage.held.get(&key));
        let mut ranges = held.map(|held| held.ranges.clone()).unwrap_or_default();
        ranges.sort_by_key(OffsetRange::start);
        for range in ranges {
            if range.start() <= position && position < range.end() {
                position = range.end();
            }
        }
        position
    }

    /// The first offset that the spool holds behind `position`.
    pub(in crate::pipeline) fn first_spooled_after(
        &self,
        key: StreamPartition,
        position: Offset,
    ) -> Option<Offset> {
        let held = self.outage.as_ref().and_then(|outage| outage.held.get(&key))?;
        held.ranges.iter().map(OffsetRange::start).filter(|start| *start > position).min()
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

    /// The first offset that can be had: Kafka's, or the spool's when that reaches further back.
    pub(in crate::pipeline) fn low_with_spool(&self, key: StreamPartition, low: Offset) -> Offset {
        let held = self.outage.as_ref().and_then(|outage| outage.held.get(&key));
        let first = held.and_then(|held| held.ranges.iter().map(OffsetRange::start).min());
        first.map_or(low, |first| low.min(first))
    }

    /// Whether the spool's disk failed a moment ago.
    pub(in crate::pipeline) fn is_spool_unreadable(&self) -> bool {
        let now = self.clock.monotonic();
        self.outage.as_ref().and_then(|outage| outage.unreadable_until).is_some_and(|until| until > now)
    }

    /// Whether the spool holds the record at `position`, and can be read.
    pub(in crate::pipeline) fn is_spooled(&self, key: StreamPartition, position: Offset) -> bool {
        if self.is_spool_unreadable() {
            return false;
        }
        let held = self.outage.as_ref().and_then(|outage| outage.held.get(&key));
        held.is_some_and(|held| {
            held.ranges.iter().any(|range| range.start() <= position && position < range.end())
        })
    }

    /// Tells the spool how far PostgreSQL is: what lies before that need not be held.
    pub(super) async fn trim(&mut self, now: Instant) {
        let Some(outage) = &mut self.outage else { return };
        if now < outage.trim_at {
            return;
        }
        outage.trim_at = now + TRIM_INTERVAL;
        self.refresh_held().await;
        if matches!(self.board.lock().database, DatabaseState::Down { .. }) {
            return;
        }
        let Some(outage) = &self.outage else { return };
        let held = ranges_of(&outage.held.values().cloned().collect::<Vec<_>>());
        let mut positions: Vec<(StreamPartition, Offset)> = Vec::new();
        if !held.is_empty()
            && let Some(mut session) = self.take_session().await
        {
            let claims: Vec<Claim> =
                held.iter().map(|(key, _)| Claim { key: *key, epoch: Epoch(0) }).collect();
            let group = Arc::clone(&self.settings.store.group);
            let asked = async {
                let found = session.positions(&group, &claims).await?;
                Ok::<_, StoreError>((found, session.gaps_over(&held).await?))
            };
            match tokio::time::timeout(RELEASE_TIMEOUT, asked).await {
                Ok(Ok((found, gaps))) => {
                    self.session = Some(session);
                    positions.extend(found.into_iter().map(|(key, position)| (key, position.next)));
                    // Records that were declared lost and are here after all are evidence: they are not let go.
                    positions.retain(|(key, _)| !gaps.contains(key));
                    self.say_gaps(&gaps);
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "positions of the spool's partitions can't be read now")
                }
                Err(_elapsed) => tracing::debug!("positions of the spool's partitions were not read in time"),
            }
        }
        self.mark_drained(positions).await;
        self.publish_ranges().await;
    }

    /// Says once of each partition that its spool holds what was declared a gap.
    fn say_gaps(&mut self, gaps: &[StreamPartition]) {
        let Some(outage) = &mut self.outage else { return };
        for key in gaps {
            if outage.gaps_said.insert(*key) {
                tracing::error!(partition = %key, "the spool holds records that were declared a gap; they are kept in SPOOL_DIR (`spool list`)");
            }
        }
    }

    /// The loop's session, or a new one, if PostgreSQL answers soon.
    async fn take_session(&mut self) -> Option<Session> {
        if let Some(session) = self.session.take() {
            return Some(session);
        }
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

    /// Writes what the spool holds to `spool_ranges`, when that has changed.
    pub(in crate::pipeline) async fn publish_ranges(&mut self) {
        let Some(outage) = &self.outage else { return };
        let held: Vec<PartitionRanges> = outage.held.values().cloned().collect();
        let ranges = ranges_of(&held);
        if outage.published.as_ref() == Some(&ranges) {
            return;
        }
        let Some(mut session) = self.take_session().await else { return };
        let instance = self.settings.store.instance;
        let asked =
            tokio::time::timeout(RELEASE_TIMEOUT, session.publish_spool_ranges(instance, &ranges)).await;
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

/// The ranges by partition and start; those that overlap or touch are one.
pub(super) fn ranges_of(held: &[PartitionRanges]) -> Vec<(StreamPartition, OffsetRange)> {
    let mut ranges: Vec<(StreamPartition, OffsetRange)> =
        held.iter().flat_map(|held| held.ranges.iter().map(|range| (held.key, *range))).collect();
    ranges.sort_by_key(|(key, range)| (*key, range.start()));
    let mut joined: Vec<(StreamPartition, OffsetRange)> = Vec::with_capacity(ranges.len());
    for (key, range) in ranges {
        match joined.last_mut() {
            Some((last_key, last)) if *last_key == key && range.start() <= last.end() => {
                *last = OffsetRange::new(last.start(), last.end().max(range.end())).unwrap_or(*last);
            }
            _ => joined.push((key, range)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::position::{Partition, StreamId};

    #[test]
    fn ranges_that_overlap_are_published_once() {
        let at = |offset| Offset::new(offset).unwrap();
        let range = |(start, end)| OffsetRange::new(at(start), at(end)).unwrap();
        let held = |partition, ranges: &[(i64, i64)]| PartitionRanges {
            key: StreamPartition { stream: StreamId(uuid::Uuid::nil()), partition: Partition(partition) },
            topic: "t".into(),
            ranges: ranges.iter().copied().map(range).collect(),
        };
        let joined =
            ranges_of(&[held(1, &[(100, 200), (100, 300), (400, 500)]), held(0, &[(300, 400), (0, 300)])]);
        let plain: Vec<(i32, i64, i64)> = joined
            .iter()
            .map(|(key, range)| (key.partition.0, range.start().as_i64(), range.end().as_i64()))
            .collect();
        assert_eq!(plain, [(0, 0, 400), (1, 100, 300), (1, 400, 500)]);
    }
}
