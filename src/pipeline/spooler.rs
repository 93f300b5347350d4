//! Appends records to the spool while PostgreSQL is away: what the lanes are for commits.
//!
//! A partition that spools has an assignment as any other, but no claim: nothing of it is decoded or committed.
//! Appended is what is on the disk. While one append is on its way there, the chunks of the next one are taken and encoded.
//! While the disk is full, or fails, the records wait here, the queue behind them fills, and the poll thread pauses the
//! partitions and polls on: nothing is dropped.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::lane::{GiveUp, LaneReport};
use super::spans::BatchSpans;
use crate::model::position::{Offset, StreamPartition, TopicPartition};
use crate::model::record::{AssignmentId, Chunk};
use crate::model::spool::{EncodedChunk, SpoolStats};
use crate::observe::Metrics;
use crate::observe::board::Board;
use crate::observe::spans::TracedRecord;
use crate::spool::disk::{Disk, LocalDisk};
use crate::spool::{Spool, SpoolError};

/// How many chunks, and bytes of them, go into one append and its sync.
const APPEND_CHUNK_COUNT: usize = 64;
const APPEND_LEN_BYTES: u64 = 8 << 20;
/// How long to wait before an append that failed is tried again.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// The spool, shared by the spooler, the drainer and the loop. Its lock is taken on threads where waiting is allowed.
pub type SharedSpool<D = LocalDisk> = Arc<Mutex<Spool<D>>>;

/// Does `work` with the spool, on a thread where waiting is allowed if its disk is slow; `None` when that thread died.
pub(super) async fn with_spool<T: Send + 'static, D: Disk>(
    spool: &SharedSpool<D>,
    work: impl FnOnce(&mut Spool<D>) -> T + Send + 'static,
) -> Option<T> {
    if !D::IS_SLOW {
        return Some(work(&mut spool.lock().unwrap_or_else(PoisonError::into_inner)));
    }
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

/// A chunk that is not known to be on the disk.
#[derive(Clone)]
struct Pending {
    assignment: AssignmentId,
    chunk: EncodedChunk,
    source: Arc<TopicPartition>,
    /// Its records whose traces are kept.
    kept: Vec<TracedRecord>,
}

/// What became of an append, and how the spool stands after it; `None` when its thread died.
type Append = Pin<Box<dyn Future<Output = Option<(Result<(), SpoolError>, SpoolStats)>> + Send>>;

pub(super) struct Spooler<D: Disk> {
    spool: SharedSpool<D>,
    chunks: mpsc::Receiver<Arc<Chunk>>,
    control: mpsc::Receiver<SpoolerControl>,
    reports: mpsc::UnboundedSender<LaneReport>,
    board: Board,
    metrics: Arc<Metrics>,
    spans: BatchSpans,
    /// Where each partition goes on, with what is pending.
    adopted: HashMap<AssignmentId, (StreamPartition, Offset)>,
    pending: Vec<Pending>,
    /// What is on its way to the disk, and came before what is pending.
    appending: Arc<Vec<Pending>>,
    append: Option<Append>,
    append_began_at: Instant,
}

impl<D: Disk> Spooler<D> {
    pub(super) fn new(
        spool: SharedSpool<D>,
        (chunks, control): (mpsc::Receiver<Arc<Chunk>>, mpsc::Receiver<SpoolerControl>),
        reports: mpsc::UnboundedSender<LaneReport>,
        (board, metrics, spans): (Board, Arc<Metrics>, BatchSpans),
    ) -> Self {
        let (adopted, pending) = (HashMap::new(), Vec::new());
        let (appending, append, append_began_at) = (Arc::default(), None, spans.clock.monotonic());
        Self {
            spool,
            chunks,
            control,
            reports,
            board,
            metrics,
            spans,
            adopted,
            pending,
            appending,
            append,
            append_began_at,
        }
    }

    /// Works until the loop hangs up.
    pub(super) async fn run(mut self) {
        let mut is_failing = false;
        loop {
            if !is_failing {
                self.begin_append();
            }
            tokio::select! {
                biased;
                control = self.control.recv() => match control {
                    Some(control) => is_failing |= !self.obey(control).await,
                    None => break,
                },
                appended = ended(&mut self.append) => is_failing = !self.note(appended),
                () = tokio::time::sleep(RETRY_WAIT), if is_failing => is_failing = false,
                chunk = self.chunks.recv(), if !is_failing && self.has_room() => match chunk {
                    Some(chunk) => is_failing |= !self.take(&chunk).await,
                    None => break,
                },
            }
        }
        if self.settle().await {
            self.begin_append();
            self.settle().await;
        }
    }

    /// Returns `false` when what was being appended must be tried again.
    async fn obey(&mut self, control: SpoolerControl) -> bool {
        match control {
            SpoolerControl::Adopt { assignment, key, position } => {
                self.adopted.insert(assignment, (key, position));
                true
            }
            SpoolerControl::Abandon { assignments, reply } => {
                // What is appended behind this answer could be read from Kafka once more, by whoever asks for the tails.
                let is_well = self.settle().await;
                self.adopted.retain(|assignment, _| !assignments.contains(assignment));
                self.pending.retain(|pending| !assignments.contains(&pending.assignment));
                if self.pending.is_empty() {
                    self.board.lock().spool.trouble = None;
                }
                if reply.send(()).is_err() {
                    tracing::debug!("nobody waits for the partitions that spool no more");
                }
                is_well
            }
        }
    }

    fn has_room(&self) -> bool {
        let len_bytes: u64 = self.pending.iter().map(|pending| pending.chunk.len_bytes()).sum();
        self.pending.len() < APPEND_CHUNK_COUNT && len_bytes < APPEND_LEN_BYTES
    }

    /// Returns `false` when what was being appended must be tried again.
    async fn take(&mut self, chunk: &Chunk) -> bool {
        let assignment = chunk.assignment;
        // Records of an assignment that ended are dropped here.
        let Some((key, next)) = self.adopted.get_mut(&assignment) else { return true };
        if *next != chunk.start {
            tracing::error!(partition = %chunk.source, expected = %next, found = %chunk.start, "records are missing between poll and spool");
            return self.give_up(assignment).await;
        }
        *next = chunk.end;
        match EncodedChunk::new(*key, chunk) {
            Ok(encoded) => {
                let (source, kept) = (Arc::clone(&chunk.source), self.spans.kept_of(chunk));
                self.pending.push(Pending { assignment, chunk: encoded, source, kept });
                true
            }
            Err(contradiction) => {
                tracing::error!(%contradiction, "a chunk contradicts itself; its partition is read again");
                self.give_up(assignment).await
            }
        }
    }

    /// Begins to append what is pending, unless an append is under way.
    fn begin_append(&mut self) {
        if self.append.is_some() || self.pending.is_empty() {
            return;
        }
        self.appending = Arc::new(std::mem::take(&mut self.pending));
        self.append_began_at = self.spans.clock.monotonic();
        let (chunks, now_ms, spool) =
            (Arc::clone(&self.appending), self.spans.clock.unix_ms(), Arc::clone(&self.spool));
        self.append = Some(Box::pin(async move {
            with_spool(&spool, move |spool| {
                let outcome = spool.append(chunks.iter().map(|pending| &pending.chunk), now_ms);
                (outcome, spool.stats())
            })
            .await
        }));
    }

    /// Waits for the append that is under way. Returns `false` when it must be tried again.
    async fn settle(&mut self) -> bool {
        if self.append.is_none() {
            return true;
        }
        let appended = ended(&mut self.append).await;
        self.note(appended)
    }

    /// Notes what became of an append. Returns `false` when it must be tried again.
    fn note(&mut self, appended: Option<(Result<(), SpoolError>, SpoolStats)>) -> bool {
        let appending = std::mem::take(&mut self.appending);
        self.trace(&appending, appended.as_ref().map(|(outcome, _)| outcome));
        let mut board = self.board.lock();
        if let Some((_, stats)) = &appended {
            board.spool.stats = *stats;
        }
        let error = match appended {
            Some((Ok(()), _)) => {
                board.spool.trouble = None;
                for Pending { assignment, chunk, .. } in appending.iter() {
                    if let Some(owned) = board.owned.get_mut(assignment) {
                        owned.spooled_to = Some(chunk.range().end());
                    }
                }
                let record_count = appending.iter().map(|pending| pending.chunk.record_count()).sum();
                self.metrics.spool.appended(record_count);
                board.spooled_count += record_count;
                return true;
            }
            Some((Err(error), _)) => error.to_string(),
            None => "a thread of the spool died".to_owned(),
        };
        if board.spool.trouble.is_none() {
            tracing::error!(error, "the spool takes nothing; partitions are paused and nothing is lost");
        }
        board.spool.trouble = Some(error);
        // The thread has dropped its own by now.
        let later = std::mem::take(&mut self.pending);
        self.pending = Arc::try_unwrap(appending).unwrap_or_else(|shared| shared.to_vec());
        self.pending.extend(later);
        false
    }

    fn trace(&self, appended: &[Pending], outcome: Option<&Result<(), SpoolError>>) {
        let began_at = self.append_began_at;
        let elapsed = self.spans.clock.monotonic().saturating_duration_since(began_at);
        let error = match outcome {
            Some(outcome) => outcome.as_ref().err().map(ToString::to_string),
            None => Some("a thread of the spool died".to_owned()),
        };
        let sources: Vec<&Arc<TopicPartition>> = appended.iter().map(|pending| &pending.source).collect();
        let count = appended.iter().map(|pending| pending.chunk.record_count()).sum::<u64>();
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let kept = appended.iter().flat_map(|pending| pending.kept.iter().cloned());
        self.spans.spooled((&sources, count), kept, (elapsed, error.as_deref()));
    }

    /// Returns `false` when what was being appended must be tried again.
    async fn give_up(&mut self, assignment: AssignmentId) -> bool {
        let is_well = self.settle().await;
        self.adopted.remove(&assignment);
        self.pending.retain(|pending| pending.assignment != assignment);
        // Unbounded, and bounded by one report for each assignment.
        if self.reports.send(LaneReport { assignment, why: GiveUp::Discontinuity }).is_err() {
            tracing::debug!("the supervisor is gone");
        }
        is_well
    }
}

/// What became of an append; never, while there is none.
async fn ended(append: &mut Option<Append>) -> Option<(Result<(), SpoolError>, SpoolStats)> {
    let Some(under_way) = append else { return std::future::pending().await };
    let outcome = under_way.await;
    *append = None;
    outcome
}
