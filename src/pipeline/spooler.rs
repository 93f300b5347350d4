//! Appends records to the spool while PostgreSQL is away: what the lanes are for commits.
//!
//! A partition that spools has an assignment as any other, but no claim: nothing of it is decoded or committed.
//! Appended is what is on the disk. While the disk is full, or fails, the records wait here, the queue behind them
//! fills, and the poll thread pauses the partitions and polls on: nothing is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::lane::{GiveUp, LaneReport};
use crate::model::position::{Offset, StreamPartition};
use crate::model::record::{AssignmentId, Chunk};
use crate::observe::board::Board;
use crate::observe::{Clock, Metrics};
use crate::spool::{Spool, SpoolError};

/// How many chunks, and bytes of them, go into one append and its sync.
const APPEND_CHUNK_COUNT: usize = 64;
const APPEND_LEN_BYTES: usize = 8 << 20;
/// How long to wait before an append that failed is tried again.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// The spool, shared by the spooler, the drainer and the loop. Its lock is taken on threads where waiting is allowed.
pub type SharedSpool = Arc<Mutex<Spool>>;

/// Does `work` with the spool on a thread where waiting is allowed; `None` when that thread died.
pub(super) async fn with_spool<T: Send + 'static>(
    spool: &SharedSpool,
    work: impl FnOnce(&mut Spool) -> T + Send + 'static,
) -> Option<T> {
    let spool = Arc::clone(spool);
    let task =
        tokio::task::spawn_blocking(move || work(&mut spool.lock().unwrap_or_else(PoisonError::into_inner)));
    task.await.inspect_err(|error| tracing::error!(%error, "a thread of the spool died")).ok()
}

/// What the loop tells the spooler.
#[derive(Debug)]
pub(super) enum SpoolerControl {
    /// A partition's records go to the spool from this position on.
    Adopt { assignment: AssignmentId, key: StreamPartition, position: Offset },
    /// Partitions go away: what is not appended is dropped; then answer.
    Abandon { assignments: Vec<AssignmentId>, reply: oneshot::Sender<()> },
}

pub(super) struct Spooler {
    spool: SharedSpool,
    chunks: mpsc::Receiver<Arc<Chunk>>,
    control: mpsc::Receiver<SpoolerControl>,
    reports: mpsc::UnboundedSender<LaneReport>,
    board: Board,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// Where each partition goes on, with what is pending.
    adopted: HashMap<AssignmentId, (StreamPartition, Offset)>,
    pending: Vec<Arc<Chunk>>,
}

impl Spooler {
    pub(super) fn new(
        spool: SharedSpool,
        (chunks, control): (mpsc::Receiver<Arc<Chunk>>, mpsc::Receiver<SpoolerControl>),
        reports: mpsc::UnboundedSender<LaneReport>,
        (board, metrics, clock): (Board, Arc<Metrics>, Clock),
    ) -> Self {
        let (adopted, pending) = (HashMap::new(), Vec::new());
        Self { spool, chunks, control, reports, board, metrics, clock, adopted, pending }
    }

    /// Works until the loop hangs up.
    pub(super) async fn run(mut self) {
        let mut is_failing = false;
        loop {
            tokio::select! {
                biased;
                control = self.control.recv() => match control {
                    Some(control) => self.obey(control),
                    None => return,
                },
                () = tokio::time::sleep(RETRY_WAIT), if is_failing => is_failing = !self.append().await,
                chunk = self.chunks.recv(), if !is_failing => match chunk {
                    Some(chunk) => {
                        self.take(chunk);
                        while self.has_room() && let Ok(chunk) = self.chunks.try_recv() {
                            self.take(chunk);
                        }
                        is_failing = !self.append().await;
                    }
                    None => return,
                },
            }
        }
    }

    fn obey(&mut self, control: SpoolerControl) {
        match control {
            SpoolerControl::Adopt { assignment, key, position } => {
                self.adopted.insert(assignment, (key, position));
            }
            SpoolerControl::Abandon { assignments, reply } => {
                self.adopted.retain(|assignment, _| !assignments.contains(assignment));
                self.pending.retain(|chunk| !assignments.contains(&chunk.assignment));
                if reply.send(()).is_err() {
                    tracing::debug!("nobody waits for the partitions that spool no more");
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        let len_bytes: usize = self.pending.iter().map(|chunk| chunk.arena.len()).sum();
        self.pending.len() < APPEND_CHUNK_COUNT && len_bytes < APPEND_LEN_BYTES
    }

    fn take(&mut self, chunk: Arc<Chunk>) {
        // Records of an assignment that ended are dropped here.
        let Some((_, next)) = self.adopted.get_mut(&chunk.assignment) else { return };
        if *next == chunk.start {
            *next = chunk.end;
            self.pending.push(chunk);
        } else {
            tracing::error!(partition = %chunk.source, expected = %next, found = %chunk.start, "records are missing between poll and spool");
            self.give_up(chunk.assignment, GiveUp::Discontinuity);
        }
    }

    /// Appends what is pending; `false`: it must be tried again.
    async fn append(&mut self) -> bool {
        let pending: Vec<(StreamPartition, Arc<Chunk>)> = self
            .pending
            .iter()
            .filter_map(|chunk| Some((self.adopted.get(&chunk.assignment)?.0, Arc::clone(chunk))))
            .collect();
        if pending.is_empty() {
            self.pending.clear();
            self.board.lock().spool.trouble = None;
            return true;
        }
        let now_ms = self.clock.unix_ms();
        let appended = with_spool(&self.spool, move |spool| {
            let chunks: Vec<(StreamPartition, &Chunk)> =
                pending.iter().map(|(key, chunk)| (*key, chunk.as_ref())).collect();
            let outcome = spool.append(&chunks, now_ms);
            (outcome, spool.stats())
        })
        .await;
        let Some((outcome, stats)) = appended else { return false };
        let mut board = self.board.lock();
        board.spool.stats = stats;
        match outcome {
            Ok(()) => {
                board.spool.trouble = None;
                let mut record_count = 0;
                for chunk in self.pending.drain(..) {
                    record_count += chunk.records.len();
                    if let Some(owned) = board.owned.get_mut(&chunk.assignment) {
                        owned.spooled_to = Some(chunk.end);
                    }
                }
                self.metrics.spool.appended(u64::try_from(record_count).unwrap_or(u64::MAX));
                true
            }
            Err(SpoolError::Broken(contradiction)) => {
                drop(board);
                tracing::error!(%contradiction, "a chunk contradicts itself; its partition is read again");
                let assignments: Vec<AssignmentId> = self.adopted.keys().copied().collect();
                assignments
                    .into_iter()
                    .for_each(|assignment| self.give_up(assignment, GiveUp::Discontinuity));
                true
            }
            Err(error) => {
                if board.spool.trouble.is_none() {
                    tracing::error!(%error, "the spool takes nothing; partitions are paused and nothing is lost");
                }
                board.spool.trouble = Some(error.to_string());
                false
            }
        }
    }

    fn give_up(&mut self, assignment: AssignmentId, why: GiveUp) {
        self.adopted.remove(&assignment);
        self.pending.retain(|chunk| chunk.assignment != assignment);
        // Unbounded, and bounded by one report for each assignment.
        if self.reports.send(LaneReport { assignment, why }).is_err() {
            tracing::debug!("the supervisor is gone");
        }
    }
}
