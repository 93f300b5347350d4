//! What is to become of what the spool holds, looked at every [`TRIM_INTERVAL`] while PostgreSQL is there:
//!
//! | of a partition | what becomes of it |
//! | --- | --- |
//! | that a lane drains, or will | the lane's; dropped behind the position |
//! | whose position has passed it | dropped: its segments move to `drained/` |
//! | that overlaps a declared gap | set aside first, whatever the position says: it was taken for lost |
//! | of others, that Kafka still has | waits; its owner reads it from Kafka, and the position passes it |
//! | of others, that Kafka has no more | stored from here, see [`crate::pipeline::strays`] |
//! | drained, of others, behind a position that a failover took back | told in `spool_ranges`; held again where Kafka has it no more, then the same |
//! | of a stream without a position in this database | kept: a claim, or an operator, makes its position |
//!
//! A topic that was created again changes nothing for the old stream's records: they have its position.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::holdings::restore;
use super::{Outage, TRIM_INTERVAL};
use crate::model::position::{Epoch, Offset, OffsetRange, Partition, StreamPartition, TopicPartition};
use crate::model::spool::ranges;
use crate::observe::Metrics;
use crate::observe::board::{DatabaseState, HoldCode};
use crate::pipeline::spooler::SharedSpool;
use crate::pipeline::strays::{PassReport, Sorting, Strays, overlap};
use crate::pipeline::task::Task;
use crate::pipeline::{Pipeline, RELEASE_TIMEOUT};
use crate::source::{Presence, Source};
use crate::spool::disk::Disk;
use crate::spool::{PartitionRanges, joined};
use crate::store::{Claim, Store, StoreError, StoreSession, Telling};

/// A partition of which Kafka may have no more what the spool has.
#[derive(Debug, Clone)]
struct Candidate {
    key: StreamPartition,
    topic: Arc<str>,
    position: Offset,
    /// It was drained before, and PostgreSQL has lost it.
    is_drained: bool,
}

/// What PostgreSQL says of the partitions that the spool holds something of.
#[derive(Debug, Default)]
struct Seen {
    positions: BTreeMap<StreamPartition, Offset>,
    /// Open gaps over what is held.
    gaps: BTreeMap<StreamPartition, Vec<OffsetRange>>,
}

impl<S: Store, D: Disk> Pipeline<S, D> {
    /// Tells the spool how far PostgreSQL is: what lies before that need not be held. What nobody else brings to
    /// PostgreSQL is brought there.
    pub(super) async fn trim(&mut self, now: Instant) {
        let Some(outage) = &mut self.outage else { return };
        if now < outage.trim_at {
            return;
        }
        outage.trim_at = now + TRIM_INTERVAL;
        // A failover may have lost it.
        outage.published = None;
        outage.end_of_strays().await;
        self.refresh_held().await;
        if matches!(self.board.lock().database, DatabaseState::Down { .. }) {
            return;
        }
        let Some(outage) = &self.outage else { return };
        let held: Vec<PartitionRanges> = outage.held.values().cloned().collect();
        let keys: BTreeSet<StreamPartition> =
            held.iter().chain(&outage.drained).map(|ranges| ranges.key).collect();
        let is_all_known = outage.look_into_at.is_none();
        let seen = if keys.is_empty() { Some(Seen::default()) } else { self.look_up(&held, &keys).await };
        // What is not known to be in PostgreSQL stays told.
        let telling = if is_all_known && seen.is_some() { Telling::All } else { Telling::More };
        let mut drained = Vec::new();
        if let Some(seen) = seen {
            self.say_gaps(&seen);
            self.note_lacking(&seen);
            drained = self.drained_positions(&seen);
            self.start_strays(&held, seen, now);
        }
        self.mark_drained(drained).await;
        self.publish_ranges(telling).await;
    }

    async fn look_up(&mut self, held: &[PartitionRanges], keys: &BTreeSet<StreamPartition>) -> Option<Seen> {
        let mut session = self.take_session().await?;
        let group = Arc::clone(self.settings.store.group());
        match tokio::time::timeout(RELEASE_TIMEOUT, seen(&mut session, &group, (held, keys))).await {
            Ok(Ok(seen)) => {
                self.session = Some(session);
                return Some(seen);
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "positions of the spool's partitions can't be read now");
            }
            Err(_elapsed) => tracing::debug!("positions of the spool's partitions were not read in time"),
        }
        None
    }

    /// Says once of each gap that the spool holds records of it, and of each partition that has no position.
    fn say_gaps(&mut self, seen: &Seen) {
        let Some(outage) = &mut self.outage else { return };
        for (key, gap) in seen.gaps.iter().flat_map(|(key, gaps)| gaps.iter().map(|gap| (*key, *gap))) {
            if outage.gaps_said.insert((key, gap)) {
                tracing::error!(partition = %key, %gap, "the spool holds records that were declared a gap; stop this process and store them: `spool drain --fill-gap --reason WHY`");
            }
        }
        for held in outage.held.values().filter(|held| !seen.positions.contains_key(&held.key)) {
            if outage.unknown_said.insert(held.key) {
                tracing::warn!(partition = %held.key, topic = %held.topic, "the spool holds records of a stream without a position in this database; they are kept");
            }
        }
    }

    /// Notes what was drained and lies behind the position all the same: a failover has taken it back.
    fn note_lacking(&mut self, seen: &Seen) {
        let Some(outage) = &mut self.outage else { return };
        outage.lacking.clone_from(&outage.drained);
        for drained in &mut outage.lacking {
            let position = seen.positions.get(&drained.key);
            drained.ranges.retain(|range| position.is_some_and(|position| range.end() > *position));
        }
    }

    /// Up to where batches may be dropped: not before those over a gap are set aside.
    fn drained_positions(&self, seen: &Seen) -> Vec<(StreamPartition, Offset)> {
        let Some(outage) = &self.outage else { return Vec::new() };
        let positions = seen.positions.iter().map(|(key, position)| (*key, *position));
        positions
            .filter(|(key, _)| seen.gaps.get(key).is_none_or(|gaps| outage.is_aside(key, gaps)))
            .collect()
    }

    /// Starts passes over the spool for what no lane drains, if there is such and none is under way.
    fn start_strays(&mut self, held: &[PartitionRanges], seen: Seen, now: Instant) {
        let lanes = self.with_lanes();
        let Some(outage) = &mut self.outage else { return };
        if outage.strays.is_some() {
            return;
        }
        let gaps: BTreeMap<_, _> =
            seen.gaps.into_iter().filter(|(key, gaps)| !outage.is_aside(key, gaps)).collect();
        // What is ours is not known yet for a moment.
        let is_stray = |ranges: &&PartitionRanges| now >= outage.strays_from && !lanes.contains(&ranges.key);
        let candidate = |ranges: &PartitionRanges, is_drained| {
            let (key, topic) = (ranges.key, Arc::clone(&ranges.topic));
            let position = seen.positions.get(&key).copied()?;
            ranges::holds(&ranges.ranges, position).then_some(Candidate { key, topic, position, is_drained })
        };
        let mut candidates: Vec<Candidate> =
            held.iter().filter(is_stray).filter_map(|ranges| candidate(ranges, false)).collect();
        let again = outage.lacking.iter().filter(is_stray).filter_map(|ranges| candidate(ranges, true));
        candidates.extend(again);
        if gaps.is_empty() && candidates.is_empty() {
            return;
        }
        let settings = (Arc::new(self.settings.rules.clone()), self.settings.limits);
        let work = StrayWork {
            spool: Arc::clone(&outage.spool),
            strays: Strays::new(
                Arc::clone(&outage.spool),
                self.settings.store.clone(),
                settings,
                self.traces.clone(),
            ),
            gaps,
            candidates,
            source: Arc::clone(&self.settings.source),
            metrics: Arc::clone(&self.metrics),
        };
        outage.strays = Some(Task::spawn(work.run()));
    }

    /// The partitions that are a lane's, or will be once their hold is over.
    fn with_lanes(&self) -> HashSet<StreamPartition> {
        let board = self.board.lock();
        let mut lanes: HashSet<StreamPartition> = board.owned.values().map(|owned| owned.key).collect();
        let Some(outage) = &self.outage else { return lanes };
        // A topic that was created again is assigned under the same name; the old stream has no lane.
        let is_ours = |topic: &Arc<str>, partition: Partition| {
            board.held.iter().any(|(source, hold)| {
                source.topic == *topic
                    && source.partition == partition
                    && hold.code != HoldCode::TopicRecreated
            })
        };
        let known = outage.held.values().chain(&outage.drained);
        lanes.extend(known.filter(|known| is_ours(&known.topic, known.key.partition)).map(|known| known.key));
        lanes
    }
}

impl<D: Disk> Outage<D> {
    /// Whether the batches over these gaps are set aside.
    fn is_aside(&self, key: &StreamPartition, gaps: &[OffsetRange]) -> bool {
        self.aside.get(key).is_some_and(|done| gaps.iter().all(|gap| done.contains(gap)))
    }

    /// Takes the result of passes over strays, if they have ended.
    async fn end_of_strays(&mut self) {
        if let Some(task) = self.strays.take_if(|task| task.is_finished())
            && let Ok(aside) = task.await
        {
            self.aside.extend(aside);
        }
    }
}

/// What one task does with strays.
struct StrayWork<S: Store, D: Disk> {
    spool: SharedSpool<D>,
    strays: Strays<S, D>,
    gaps: BTreeMap<StreamPartition, Vec<OffsetRange>>,
    candidates: Vec<Candidate>,
    source: Arc<dyn Source>,
    metrics: Arc<Metrics>,
}

impl<S: Store, D: Disk> StrayWork<S, D> {
    /// Sets aside, then stores what Kafka has no more. Returns the gaps whose batches are set aside.
    async fn run(mut self) -> BTreeMap<StreamPartition, Vec<OffsetRange>> {
        let mut aside = BTreeMap::new();
        if !self.gaps.is_empty() {
            let sorting = Sorting { gaps: self.gaps.clone(), ..Sorting::default() };
            if let Some(report) = self.pass(&sorting).await {
                aside = sorting.gaps;
                aside.retain(|key, _| !report.not_aside.contains_key(key));
            }
        }
        if !self.candidates.is_empty() {
            let store = unreadable(&*self.source, &self.candidates).await;
            let sorting = Sorting { store, ..Sorting::default() };
            for lost in self.candidates.iter().filter(|candidate| candidate.is_drained) {
                if sorting.store.contains(&lost.key) {
                    restore(&self.spool, lost.key, lost.position).await;
                }
            }
            if !sorting.is_empty() {
                self.pass(&sorting).await;
            }
        }
        self.strays.close().await;
        aside
    }

    async fn pass(&mut self, sorting: &Sorting) -> Option<PassReport> {
        match self.strays.pass(sorting, |_record_count| ()).await {
            Ok(report) => {
                self.metrics.spool.set_aside(report.aside_count);
                report.quarantined.iter().for_each(|_| self.metrics.spool.quarantined());
                for (key, counts) in &report.counts {
                    self.metrics.spool.drained(counts.events + counts.duplicates + counts.dead_letters);
                    self.metrics.events_committed("spool", counts.events);
                    self.metrics.counted(counts.duplicates, counts.dead_letters, 0);
                    tracing::info!(partition = %key, ?counts, "stored from the spool, as kafka has it no more");
                }
                for (key, hole) in &report.holes {
                    tracing::warn!(partition = %key, %hole, "records are missing before what the spool holds");
                }
                Some(report)
            }
            Err(error) => {
                tracing::warn!(%error, "what the spool holds of others was not stored now; it is tried again");
                None
            }
        }
    }
}

/// The positions of `keys`, and the open gaps over what is held.
async fn seen(
    session: &mut impl StoreSession,
    group: &str,
    (held, keys): (&[PartitionRanges], &BTreeSet<StreamPartition>),
) -> Result<Seen, StoreError> {
    let claims: Vec<Claim> = keys.iter().map(|key| Claim { key: *key, epoch: Epoch(0) }).collect();
    let found = session.positions(group, &claims).await?;
    let mut seen = Seen::default();
    seen.positions.extend(found.into_iter().map(|(key, position)| (key, position.next)));
    let ranges = joined(held);
    for (key, gap) in session.open_gaps(keys).await? {
        if ranges.iter().any(|(other, range)| *other == key && overlap(*range, gap)) {
            seen.gaps.entry(key).or_default().push(gap);
        }
    }
    Ok(seen)
}

/// The candidates that nobody can read from Kafka any more: deleted there, or the topic is another one, or none. While
/// Kafka does not answer, none. A hint only: the commit decides.
async fn unreadable(source: &dyn Source, candidates: &[Candidate]) -> BTreeSet<StreamPartition> {
    let of = |candidate: &Candidate| TopicPartition {
        topic: Arc::clone(&candidate.topic),
        partition: candidate.key.partition,
    };
    let found = source.look_up(candidates.iter().map(of).collect()).await;
    let is_gone = |candidate: &&Candidate| match found.get(&of(candidate)) {
        Some(Presence::Missing) => true,
        Some(Presence::There { stream, low }) => *stream != candidate.key.stream || *low > candidate.position,
        None => false,
    };
    candidates.iter().filter(is_gone).map(|candidate| candidate.key).collect()
}
