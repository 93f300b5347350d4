//! Feeds what the spool holds to the lanes, oldest first, as if it came from Kafka: decoding, the commit and all that
//! may go wrong with it are the lanes' as ever, and the compare-and-set decides.
//!
//! A batch before the position is left out; one that begins before it is trimmed; one that begins behind it waits for
//! what lies between. The spool is read from its beginning again and again until a whole pass had nothing for a
//! partition: what it still lacks is read from Kafka, and the spool's batches go when the position has passed them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::spooler::{SharedSpool, with_spool};
use crate::failpoint;
use crate::model::position::{Offset, StreamPartition};
use crate::model::record::{AssignmentId, Chunk};
use crate::observe::Metrics;
use crate::spool::disk::Disk;
use crate::spool::{Drain, Next, SpoolError};

/// How long to wait before a spool that can't be read is tried again, and how often.
const RETRY_WAIT: std::time::Duration = std::time::Duration::from_secs(1);
const FAILURE_MAX_COUNT: u32 = 5;

/// What the loop tells the drainer.
#[derive(Debug)]
pub(super) enum DrainerControl {
    /// Feed a partition to a lane, from this position on.
    Feed { key: StreamPartition, assignment: AssignmentId, lane: mpsc::Sender<Arc<Chunk>>, position: Offset },
    /// Feed it no more.
    Stop { assignment: AssignmentId },
}

/// What the drainer tells the loop: all that the spool has for this assignment was fed, up to here.
#[derive(Debug)]
pub(super) struct Fed {
    pub(super) assignment: AssignmentId,
    pub(super) to: Offset,
    /// The spool could not be read any further.
    pub(super) is_unreadable: bool,
}

#[derive(Debug)]
struct Target {
    assignment: AssignmentId,
    lane: mpsc::Sender<Arc<Chunk>>,
    next: Offset,
}

pub(super) struct Drainer<D: Disk> {
    spool: SharedSpool<D>,
    control: mpsc::UnboundedReceiver<DrainerControl>,
    fed: mpsc::UnboundedSender<Fed>,
    metrics: Arc<Metrics>,
    targets: BTreeMap<StreamPartition, Target>,
}

/// How a pass over the spool ended.
enum Pass {
    /// Nothing more for now.
    End,
    /// The disk fails again and again.
    Unreadable,
    /// The loop hung up.
    Over,
}

impl<D: Disk> Drainer<D> {
    pub(super) fn new(
        spool: SharedSpool<D>,
        control: mpsc::UnboundedReceiver<DrainerControl>,
        fed: mpsc::UnboundedSender<Fed>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { spool, control, fed, metrics, targets: BTreeMap::new() }
    }

    /// Works until the loop hangs up.
    pub(super) async fn run(mut self) {
        loop {
            if self.targets.is_empty() {
                match self.control.recv().await {
                    Some(control) => self.obey(control),
                    None => return,
                }
            }
            while let Ok(control) = self.control.try_recv() {
                self.obey(control);
            }
            let before: Vec<(StreamPartition, AssignmentId, Offset)> =
                self.targets.iter().map(|(key, target)| (*key, target.assignment, target.next)).collect();
            let pass = self.pass().await;
            if matches!(pass, Pass::Over) {
                return;
            }
            // Those that were there from the beginning, and for which the whole spool had nothing, are done; the others
            // came meanwhile, or what they need stands before something that was passed too early.
            for (key, assignment, next) in before {
                let is_same = |target: &Target| target.assignment == assignment && target.next == next;
                let is_unreadable = matches!(pass, Pass::Unreadable);
                if self.targets.get(&key).is_some_and(|target| is_same(target) || is_unreadable) {
                    self.finish(key, is_unreadable);
                }
            }
        }
    }

    fn obey(&mut self, control: DrainerControl) {
        match control {
            DrainerControl::Feed { key, assignment, lane, position } => {
                self.targets.insert(key, Target { assignment, lane, next: position });
            }
            DrainerControl::Stop { assignment } => {
                self.targets.retain(|_, target| target.assignment != assignment);
            }
        }
    }

    fn finish(&mut self, key: StreamPartition, is_unreadable: bool) {
        let Some(target) = self.targets.remove(&key) else { return };
        let fed = Fed { assignment: target.assignment, to: target.next, is_unreadable };
        // Unbounded, and bounded by one for each assignment.
        if self.fed.send(fed).is_err() {
            tracing::debug!("nobody waits for the end of a drain");
        }
    }

    /// Reads the spool from its oldest batch to its end.
    async fn pass(&mut self) -> Pass {
        let (mut cursor, mut failure_count) = (Drain::default(), 0);
        while !self.targets.is_empty() {
            while let Ok(control) = self.control.try_recv() {
                self.obey(control);
            }
            match self.next(cursor).await {
                Some((Ok(Next::End), _)) => return Pass::End,
                Some((Ok(Next::Batch(batch)), read)) => {
                    cursor = read;
                    let (key, range) = (batch.line.key, batch.line.range);
                    let Some(target) = self.targets.get(&key) else { continue };
                    if range.end() <= target.next {
                        continue;
                    }
                    // Something is missing before it, which an earlier or a later pass may bring; or else Kafka.
                    if range.start() > target.next {
                        continue;
                    }
                    let chunk = batch.into_chunk(target.assignment).from(target.next);
                    if matches!(self.feed(key, chunk).await, Pass::Over) {
                        return Pass::Over;
                    }
                }
                Some((Ok(Next::Quarantined(what)), read)) => {
                    cursor = read;
                    self.metrics.spool.quarantined();
                    tracing::error!(
                        ?what,
                        "a segment of the spool is damaged; what it held is read from kafka"
                    );
                }
                Some((Err(error), read)) => {
                    cursor = read;
                    failure_count += 1;
                    tracing::error!(%error, failure_count, "the spool can't be read");
                    if failure_count >= FAILURE_MAX_COUNT {
                        return Pass::Unreadable;
                    }
                    tokio::time::sleep(RETRY_WAIT).await;
                }
                None => return Pass::Unreadable,
            }
        }
        Pass::End
    }

    async fn next(&self, mut cursor: Drain<D::File>) -> Option<(Result<Next, SpoolError>, Drain<D::File>)> {
        with_spool(&self.spool, move |spool| {
            let next = spool.next(&mut cursor);
            (next, cursor)
        })
        .await
    }

    /// Hands a chunk to its lane, unless the partition is stopped meanwhile.
    async fn feed(&mut self, key: StreamPartition, chunk: Chunk) -> Pass {
        let (assignment, end) = (chunk.assignment, chunk.end);
        let record_count = u64::try_from(chunk.records.len()).unwrap_or(u64::MAX);
        let chunk = Arc::new(chunk);
        loop {
            let Some(target) = self.targets.get(&key).filter(|target| target.assignment == assignment) else {
                return Pass::End;
            };
            let lane = target.lane.clone();
            tokio::select! {
                biased;
                control = self.control.recv() => match control {
                    Some(control) => self.obey(control),
                    None => return Pass::Over,
                },
                permit = lane.reserve() => {
                    if let Ok(permit) = permit {
                        permit.send(chunk);
                        failpoint::at("drain_fed");
                        self.metrics.spool.drained(record_count);
                        if let Some(target) = self.targets.get_mut(&key) {
                            target.next = end;
                        }
                    }
                    return Pass::End;
                }
            }
        }
    }
}
