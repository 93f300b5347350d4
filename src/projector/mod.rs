//! The projector: every committed event as a line of a day file, in one file of one instance, once.
//!
//! # The protocol
//!
//! PostgreSQL says who writes what. For each sink (Purview, trust) and partition there is one *cursor*, shared by all
//! instances. One round of an instance:
//!
//! 1. *Look.* Read positions, then the rows between cursor and position. What is below a position that was read is
//!    committed and never changes, so what is rendered now is rendered again tomorrow.
//! 2. *Intend.* In one transaction: move the cursors by compare-and-set from where they were read; record for each file
//!    where the new lines start and end, the ranges they come from, in order, and the rules by which they were rendered
//!    (a *segment*); and confirm the intent before this one. Nothing was written yet.
//! 3. *Write.* Put the lines at their places, sync the files. A place that is not at the file's end is compared first:
//!    what is right stays, what is missing is added, what differs goes to `<file>.orphan` ([`crate::outlet::day_files`]).
//! 4. *Confirm*, with the next intent, or alone when there is nothing to do.
//!
//! So an offset is intended once, by whoever moved the cursor over it, and belongs to that instance's files for ever.
//! An instance has one intent that is not confirmed at most, and finishes it before anything else, by rendering its
//! segments again from the rows under the rules that were recorded; whatever was written of it is found by comparing. A
//! file is the sum of its segments, so one that somebody cut or removed is written again, byte for byte.
//!
//! Only one process writes for an instance: its directory has a lock, and the row of the instance names the process
//! (`run_id`), which every intent and confirmation compares.
//!
//! # Interleavings that were thought through
//!
//! - We die before the intent: nothing happened. After it, before or within the write, before or after the sync, before
//!   the confirmation: the next process of the instance finds the intent open, compares, and adds what is missing.
//! - We are stopped after the intent, and our session and partitions are gone when we go on: the range is ours all the
//!   same, the new owner began behind it. We write it, and confirm on a new session.
//! - The COMMIT of an intent succeeds and its answer is lost: we drop the session and what we rendered, and read from
//!   PostgreSQL what we have intended.
//! - Two instances look at the same rows (a partition moves, or was left behind): one moves the cursor, the other's
//!   transaction is rolled back whole, and it looks again.
//! - A partition that nobody owns (a retired stream, a hold, an instance that ended): after a while any instance takes
//!   what is left of it, by the same compare-and-set.
//! - A failover loses confirmations: the intent is open again, all of it is found in place. It loses intents: the cursors
//!   are back with them, and our next intent is refused (the number differs), so we read everything anew. The file is
//!   longer than recorded then; the rows come again in most cases, and lines that are the same stay where they are. What
//!   is still beyond the recorded length [`TAIL_PATIENCE`] after that was found is orphaned, at the end of a round that
//!   leaves nothing to write: one that found nothing, or, under steady traffic, one while Kafka has no backlog, as the
//!   rows of the tail may be in that. It loses commits: their intents came after them, and are lost too. A reader saw
//!   lines then that PostgreSQL has lost, and may see a file that became shorter; only synchronous replication prevents
//!   that.
//! - The instance's directory is copied, and two processes run on the copies: the one that begins later takes over the
//!   row, the other finds another `run_id` and stops writing, with an error. (After a failover the row may name *our*
//!   predecessor: that is no other process.)
//! - `projections adopt`: the open intent is taken away, its segments are deleted, its ranges are pending for anybody,
//!   and `run_id` is empty. An instance that returns all the same finds its files longer than recorded, as above, or files
//!   of which nothing is recorded any more.
//! - A file was put away, long after its last line: late events of its day begin the day's next file. Looked at after the
//!   lines are rendered and before they are intended, when they would go behind what is gone.
//! - A gap was declared: its offsets are passed over and belong to no segment. When it is filled, they are pending.
//! - The disk is full, read only or broken: the intent stays open, is tried again, and ingestion goes on. After an error
//!   the lines are written again even where they are found, as the sync of them may have failed.
//! - Clocks play no part: the day is that of the event's own time, and waiting is by the monotonic clock.
//!
//! Ingestion never waits for the projector: they share only tables, in which the projector locks no row of ingestion's.
//! While records are behind in Kafka it stands back, for [`ProjectorSettings::lag_max`] at most, and works no more than
//! half of the time after that.

mod draft;
mod home;
mod lines;
mod restore;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use self::writer::SinkWriter;
use crate::model::projection::{DaySink, ProjectionRules};
use crate::observe::board::Board;
use crate::observe::{Clock, Metrics};
use crate::store::StoreSettings;

pub use home::{Home, HomeError};
pub use lines::SegmentLines;

/// How often a sink that is caught up looks for rows; a file gets lines no more often than that then.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How much one intent takes: rows, bytes of lines beyond the last of them, files.
const ROW_MAX_COUNT: i64 = 10_000;
const LINES_MAX_LEN_BYTES: usize = 8 << 20;
/// How many offsets of a partition one intent passes at most: where few events have a line, reading on for enough rows would
/// exceed the statement timeout, again and again.
const OFFSET_MAX_COUNT: u64 = 100_000;
/// The least number of rows that each partition gets in one intent.
const ROW_SHARE_COUNT: i64 = 500;
/// Beyond the longest lag: how long a partition has stored nothing before another instance than its owner writes its
/// lines.
const LEFT_MARGIN: Duration = Duration::from_secs(15);
/// After another instance took what was left behind, so long at least, and up to twice as long, only what is our own is
/// looked for: whoever came first goes on with it.
const OUTRUN_WAIT: Duration = Duration::from_secs(3);
/// How long bytes beyond a file's recorded length are left alone; then they go when all is written.
const TAIL_PATIENCE: Duration = Duration::from_secs(60);
/// A file that got its last line longer ago is not missed when it is gone: somebody put it away.
const FILE_AGE_MAX: Duration = Duration::from_secs(7 * 86_400);
/// After so many intents for one file their records become one.
const MERGE_COUNT: i64 = 512;
/// How long one question to PostgreSQL may take beyond its statement timeout.
const STORE_TIMEOUT: Duration = Duration::from_secs(70);
/// The first and the longest wait after an error.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(20);
/// How often a directory that can't be used is tried again.
const HOME_INTERVAL: Duration = Duration::from_secs(10);

/// How the projector works.
#[derive(Debug, Clone)]
pub struct ProjectorSettings {
    /// PostgreSQL.
    pub store: StoreSettings,
    /// `LOG_DIR`.
    pub log_dir: PathBuf,
    /// Which files are written.
    pub sinks: Vec<DaySink>,
    /// How lines look from now on.
    pub rules: ProjectionRules,
    /// The length at which a day's next file begins; 0: never.
    pub file_max_len_bytes: u64,
    /// How long lines may wait for a backlog.
    pub lag_max: Duration,
}

/// The projector.
#[derive(Debug)]
pub struct Projector {
    settings: Arc<ProjectorSettings>,
    board: Board,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Projector {
    /// A projector that does nothing yet.
    #[must_use]
    pub fn new(settings: ProjectorSettings, board: Board, (metrics, clock): (Arc<Metrics>, Clock)) -> Self {
        Self { settings: Arc::new(settings), board, metrics, clock }
    }

    /// Works until `stop` says so; then writes what is committed, confirms it, and ends. Without a `home` it is opened
    /// here, as soon as that can be done.
    pub async fn run(self, home: Option<Home>, mut stop: watch::Receiver<bool>) {
        if self.settings.sinks.is_empty() {
            return;
        }
        let Some(home) = self.wait_for_home(home, &mut stop).await else { return };
        let mut writers = JoinSet::new();
        for sink in &self.settings.sinks {
            let out = (self.board.clone(), Arc::clone(&self.metrics), self.clock.clone());
            let writer = SinkWriter::new(*sink, Arc::clone(&self.settings), &home, out);
            writers.spawn(writer.run(stop.clone()));
        }
        while let Some(ended) = writers.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the writer of day files died; ingestion goes on, restart the process");
            }
        }
    }

    async fn wait_for_home(&self, home: Option<Home>, stop: &mut watch::Receiver<bool>) -> Option<Home> {
        let mut is_said = false;
        let mut home = home;
        loop {
            if home.is_some() {
                return home;
            }
            let root = self.settings.log_dir.clone();
            let opened = tokio::task::spawn_blocking(move || Home::open(&root)).await;
            match opened {
                Ok(Ok(opened)) => home = Some(opened),
                Ok(Err(error)) => {
                    if !is_said {
                        tracing::warn!(%error, "day files can't be written; ingestion goes on, and they catch up");
                    }
                    is_said = true;
                    for sink in &self.settings.sinks {
                        self.metrics.projections.failed(*sink, error.class());
                        let mut board = self.board.lock();
                        board.projections.entry(sink.as_str()).or_default().trouble = Some(error.to_string());
                    }
                }
                Err(error) => tracing::error!(%error, "opening LOG_DIR died"),
            }
            if home.is_none() {
                tokio::select! {
                    biased;
                    _ = stop.wait_for(|stop| *stop) => return None,
                    () = tokio::time::sleep(HOME_INTERVAL) => {}
                }
            }
        }
    }
}
