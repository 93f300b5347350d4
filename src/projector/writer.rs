//! One sink of one instance: looks, intends, writes, confirms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use uuid::Uuid;

use super::draft::{Draft, KnownFile, KnownFiles, Put};
use super::home::Home;
use super::{
    FILE_AGE_MAX, LEFT_MARGIN, LOOK_INTERVAL, MERGE_COUNT, OFFSET_MAX_COUNT, OUTRUN_WAIT, ProjectorSettings,
    RETRY_FIRST, RETRY_MOST, ROW_MAX_COUNT, ROW_SHARE_COUNT, STORE_TIMEOUT,
};
use crate::failpoint;
use crate::model::backoff::RetryPolicy;
use crate::model::position::{OffsetRange, StreamPartition};
use crate::model::projection::{DayFile, DaySink};
use crate::observe::board::Board;
use crate::observe::{Clock, Metrics};
use crate::outlet::day_files::disk::LocalDisk;
use crate::outlet::day_files::{DayFileError, DayFiles};
use crate::store::{
    PageEnd, ProjectionWork, Recorded, Segment, Session, SessionPurpose, StoreError, Taken, WorkOrigin,
    Writer,
};

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] DayFileError),
    /// What is recorded of a file can't be rendered again.
    #[error("{file}: {why}; put the file back as it was, or see the rows")]
    Unrenderable { file: String, why: String },
    /// Another process writes for this instance.
    #[error(
        "another process ({run}) writes day files for instance {instance}: its LOG_DIR is a copy of ours, or ours of \
         its; stop one of the two, and remove INSTANCE and the day files from its directory"
    )]
    Stolen { run: Uuid, instance: Uuid },
    #[error("a thread that wrote day files died: {0}")]
    Died(String),
}

impl Fault {
    const fn is_of_database(&self) -> bool {
        matches!(self, Self::Store(_))
    }

    fn class(&self) -> &'static str {
        match self {
            Self::Store(_) => "database",
            Self::File(error) => error.class(),
            Self::Unrenderable { .. } => "unrenderable",
            Self::Stolen { .. } => "stolen",
            Self::Died(_) => "died",
        }
    }
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// All that was there is written.
    CaughtUp,
    /// There is more.
    More,
    /// Records are behind in Kafka: they go first.
    StoodBack,
}

/// What PostgreSQL knows of us, as far as we know.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) intended: i64,
    pub(super) is_confirmed: bool,
    /// What is intended and may not be in its files.
    pub(super) open: Vec<Segment>,
    pub(super) files: KnownFiles,
    /// Files that were found longer than recorded, and when.
    pub(super) longer: Vec<(DayFile, Instant)>,
    /// Files that were found missing or cut.
    pub(super) short: Vec<DayFile>,
}

#[derive(Debug)]
pub(super) struct SinkWriter {
    pub(super) writer: Writer,
    pub(super) settings: Arc<ProjectorSettings>,
    board: Board,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
    folder: std::path::PathBuf,
    session: Option<Session>,
    /// The process that wrote before us, if any; unknown before we began.
    former_run: Option<Option<Uuid>>,
    pub(super) known: Option<Known>,
    /// Away while a thread works with them.
    files: Option<DayFiles>,
    caught_up_at: Instant,
    /// Until then what others left behind is not looked for.
    outrun_until: Instant,
    round_count: usize,
    retry: RetryPolicy,
}

impl SinkWriter {
    pub(super) fn new(
        sink: DaySink,
        settings: Arc<ProjectorSettings>,
        home: &Home,
        (board, metrics, clock): (Board, Arc<Metrics>, Clock),
    ) -> Self {
        let caught_up_at = clock.monotonic();
        metrics.projections.begin(sink);
        Self {
            writer: Writer { sink, instance: home.instance(), run: Uuid::new_v4() },
            settings,
            board,
            metrics,
            clock,
            folder: home.root().join(sink.as_str()),
            session: None,
            former_run: None,
            known: None,
            files: None,
            caught_up_at,
            outrun_until: caught_up_at,
            round_count: 0,
            retry: RetryPolicy::new(RETRY_FIRST, RETRY_MOST),
        }
    }

    /// Works until `stop` says so, then writes what is committed.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let is_stopping = *stop.borrow();
            let started_at = self.clock.monotonic();
            let pause = match self.round(is_stopping).await {
                Ok(Round::More) if self.has_backlog() && !is_stopping => {
                    self.well();
                    // No more than half of the time.
                    self.clock.monotonic().saturating_duration_since(started_at)
                }
                Ok(Round::More) => {
                    self.well();
                    Duration::ZERO
                }
                Ok(Round::CaughtUp | Round::StoodBack) if is_stopping => break,
                Ok(Round::CaughtUp) => {
                    self.well();
                    LOOK_INTERVAL
                }
                Ok(Round::StoodBack) => LOOK_INTERVAL,
                Err(fault) => {
                    let pause = self.failed(&fault);
                    if is_stopping || matches!(fault, Fault::Stolen { .. }) {
                        break;
                    }
                    pause
                }
            };
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop), if !is_stopping => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        if self.known.as_ref().is_some_and(|known| known.open.is_empty())
            && let Err(error) = self.confirm().await
        {
            tracing::debug!(sink = %self.writer.sink, %error, "the last intent is confirmed at the next start");
        }
        if let Some(session) = self.session.take() {
            session.close().await;
        }
    }

    /// One round: what is open is finished, then the next is intended and written. Never cancelled.
    async fn round(&mut self, is_stopping: bool) -> Result<Round, Fault> {
        if !is_stopping && self.stands_back() {
            let mut board = self.board.lock();
            board.projections.entry(self.writer.sink.as_str()).or_default().behind_since =
                Some(self.caught_up_at);
            return Ok(Round::StoodBack);
        }
        self.learn().await?;
        self.finish_open().await?;
        let owned: Vec<StreamPartition> = self.board.lock().owned.values().map(|owned| owned.key).collect();
        let looks_for_left = self.clock.monotonic() >= self.outrun_until;
        let left_after = looks_for_left.then_some(self.settings.lag_max + LEFT_MARGIN);
        let sink = self.writer.sink;
        let settings = Arc::clone(&self.settings);
        let asked = self.session()?.projection_work((sink, &settings.store.group), &owned, left_after);
        let work = answered(asked).await?;
        self.show_lag(&work);
        if work.is_empty() {
            self.confirm().await?;
            self.merge_segments().await?;
            self.orphan_tails().await?;
            self.caught_up_at = self.clock.monotonic();
            return Ok(Round::CaughtUp);
        }
        let (has_more, taken, segments, puts) = self.draft(work).await?;
        if self.notice_archived(&puts).await? {
            return Ok(Round::More);
        }
        match self.intend(&taken, segments).await? {
            Recorded::Done => {}
            Recorded::Outrun => {
                self.metrics.projections.outrun(self.writer.sink);
                let spread = OUTRUN_WAIT.mul_f64(f64::from(self.writer.run.as_bytes()[0]) / 256.0);
                self.outrun_until = self.clock.monotonic() + OUTRUN_WAIT + spread;
                return Ok(Round::More);
            }
            Recorded::NotOurs(run) => return self.lost(run),
        }
        self.write(puts).await?;
        self.merge_segments().await?;
        if has_more {
            return Ok(Round::More);
        }
        self.show_lag(&[]);
        self.caught_up_at = self.clock.monotonic();
        // Under steady traffic every look finds something. What is behind in Kafka may be what a failover took back:
        // its lines may come again just where they stand.
        if !self.has_backlog() {
            self.orphan_tails().await?;
        }
        Ok(Round::CaughtUp)
    }

    fn has_backlog(&self) -> bool {
        self.board.lock().has_backlog()
    }

    fn stands_back(&self) -> bool {
        let waited = self.clock.monotonic().saturating_duration_since(self.caught_up_at);
        waited < self.settings.lag_max && self.has_backlog()
    }

    pub(super) fn session(&mut self) -> Result<&mut Session, StoreError> {
        self.session.as_mut().ok_or_else(|| StoreError::no_answer("projector"))
    }

    /// Opens a session and reads what PostgreSQL knows of us, where that is not known.
    async fn learn(&mut self) -> Result<(), Fault> {
        if self.session.is_none() {
            self.session = Some(self.settings.store.connect(SessionPurpose::Projector).await?);
        }
        if self.known.is_some() {
            return Ok(());
        }
        let writer = self.writer;
        let after = self.former_run;
        let begun = answered(self.session()?.begin_projection(writer, after)).await?;
        let state = begun.map_err(|run| Fault::Stolen { run, instance: writer.instance })?;
        if self.former_run.is_none() || state.former_run != Some(writer.run) {
            self.former_run = Some(state.former_run);
        }
        let now = self.clock.monotonic();
        let mut known = Known {
            intended: state.intended,
            is_confirmed: state.open.is_empty(),
            open: state.open,
            ..Known::default()
        };
        for (name, record) in &state.files {
            let Some(file) = DayFile::read(writer.sink, name) else {
                let why = "it is recorded under a name that is none of ours".to_owned();
                return Err(Fault::Unrenderable { file: name.clone(), why });
            };
            let age = Duration::try_from_secs_f64(record.age_seconds.max(0.0)).unwrap_or(FILE_AGE_MAX);
            let missed_until = now + FILE_AGE_MAX.saturating_sub(age);
            known.files.insert(file, KnownFile::of(record, missed_until));
        }
        self.known = Some(known);
        let looked = self.compare_lengths(now).await;
        if looked.is_err() {
            self.known = None;
        }
        looked
    }

    /// Renders what `work` says, up to the limits; whether there is more.
    async fn draft(
        &mut self,
        mut work: Vec<ProjectionWork>,
    ) -> Result<(bool, Vec<Taken>, Vec<Segment>, Vec<Put>), Fault> {
        let (settings, sink) = (Arc::clone(&self.settings), self.writer.sink);
        // Each partition comes first in its turn.
        let count = work.len().max(1);
        work.rotate_left(self.round_count % count);
        self.round_count = self.round_count.wrapping_add(1);
        let Self { session: Some(session), known: Some(known), .. } = &mut *self else {
            return Err(StoreError::no_answer("projector").into());
        };
        let rules = (&settings.rules, settings.file_max_len_bytes);
        let mut draft = Draft::new(sink, rules, &known.files);
        let share = (ROW_MAX_COUNT / i64::try_from(count).unwrap_or(i64::MAX)).max(ROW_SHARE_COUNT);
        let mut has_more = false;
        for work in work {
            if draft.is_full() {
                has_more = true;
                break;
            }
            let end = if work.origin == WorkOrigin::Gap {
                work.range.end()
            } else {
                let page = work.range.first(OFFSET_MAX_COUNT);
                let rows = session.projection_rows(sink, (work.key, page, None), share, |offset, row| {
                    draft.take(offset, row)
                });
                match answered(rows).await? {
                    PageEnd::Range => page.end(),
                    PageEnd::Before(offset) => offset.min(page.end()),
                }
            };
            has_more |= end < work.range.end();
            let cut = OffsetRange::new(work.range.start(), end).unwrap_or(work.range);
            let left = OffsetRange::new(end, work.range.end()).filter(|left| !left.is_empty());
            draft.end_range(Taken { work: ProjectionWork { range: cut, ..work }, left });
        }
        let (taken, segments, puts) = draft.finish();
        Ok((has_more, taken, segments, puts))
    }

    async fn intend(&mut self, taken: &[Taken], segments: Vec<Segment>) -> Result<Recorded, Fault> {
        let writer = self.writer;
        let Some(known) = &self.known else { return Err(StoreError::no_answer("projector").into()) };
        let number = known.intended + 1;
        failpoint::at("project_before_intent");
        let recorded = answered(self.session()?.intend(writer, number, (taken, &segments))).await?;
        failpoint::at("project_after_intent");
        let now = self.clock.monotonic();
        if recorded == Recorded::Done
            && let Some(known) = &mut self.known
        {
            known.is_confirmed = segments.is_empty();
            if !segments.is_empty() {
                known.intended = number;
            }
            for segment in &segments {
                let Some(file) = DayFile::read(writer.sink, &segment.file_name) else { continue };
                let small_count = known.files.get(&file).map_or(0, |known| known.small_count) + 1;
                let (len_bytes, missed_until) = (segment.end_len_bytes, now + FILE_AGE_MAX);
                let is_archived = false;
                known.files.insert(file, KnownFile { len_bytes, small_count, missed_until, is_archived });
            }
            known.open = segments;
        }
        Ok(recorded)
    }

    /// Writes what was intended.
    async fn write(&mut self, puts: Vec<Put>) -> Result<(), Fault> {
        let line_count: u64 = puts.iter().map(|put| put.line_count).sum();
        let written = self
            .with_files(move |files| {
                let mut orphaned_len_bytes = 0;
                for put in &puts {
                    orphaned_len_bytes += files.put(&put.name, put.at, &put.bytes)?;
                }
                failpoint::at("project_after_write");
                puts.iter().try_for_each(|put| files.sync(&put.name))?;
                failpoint::at("project_after_sync");
                Ok(orphaned_len_bytes)
            })
            .await;
        match written {
            Ok(orphaned_len_bytes) => {
                self.metrics.projections.orphaned(self.writer.sink, orphaned_len_bytes);
                self.metrics.projections.wrote(self.writer.sink, line_count);
                if let Some(known) = &mut self.known {
                    known.open.clear();
                }
                Ok(())
            }
            // Somebody cut the file or removed it.
            Err(Fault::File(DayFileError::Short { .. })) => self.finish_open().await,
            Err(fault) => Err(fault),
        }
    }

    /// Confirms the latest intent, if that is not done.
    async fn confirm(&mut self) -> Result<(), Fault> {
        let writer = self.writer;
        let Some(known) = self.known.as_ref().filter(|known| !known.is_confirmed) else { return Ok(()) };
        let number = known.intended;
        failpoint::at("project_before_confirm");
        let recorded = answered(self.session()?.confirm(writer, number)).await?;
        failpoint::at("project_after_confirm");
        match recorded {
            Recorded::NotOurs(run) => self.lost(run).map(|_round| ()),
            Recorded::Done | Recorded::Outrun => {
                if let Some(known) = &mut self.known {
                    known.is_confirmed = true;
                }
                Ok(())
            }
        }
    }

    /// PostgreSQL does not know us as we thought: after a failover, or `projections adopt`, it is read anew.
    fn lost(&mut self, run: Option<Uuid>) -> Result<Round, Fault> {
        self.known = None;
        match run {
            Some(run) if run != self.writer.run && self.former_run != Some(Some(run)) => {
                Err(Fault::Stolen { run, instance: self.writer.instance })
            }
            _ => {
                tracing::warn!(sink = %self.writer.sink, "what is recorded of day files has changed; reading it again");
                Ok(Round::More)
            }
        }
    }

    /// Files with many small records get large ones, of what is confirmed.
    async fn merge_segments(&mut self) -> Result<(), Fault> {
        let writer = self.writer;
        let Some(known) = &self.known else { return Ok(()) };
        let (number, open_count) =
            if known.is_confirmed { (known.intended, 0) } else { (known.intended - 1, 1) };
        let many = known.files.iter().find(|(_, known)| known.small_count >= MERGE_COUNT);
        let Some(file) = many.map(|(file, _)| *file) else { return Ok(()) };
        answered(self.session()?.merge_segments(writer, &file.to_string(), number)).await?;
        if let Some(known) = self.known.as_mut().and_then(|known| known.files.get_mut(&file)) {
            known.small_count = open_count;
        }
        Ok(())
    }

    /// Does `work` with the files on a thread where waiting is allowed. Never cancelled: two threads at once could undo
    /// each other's work.
    pub(super) async fn with_files<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut DayFiles) -> Result<T, DayFileError> + Send + 'static,
    ) -> Result<T, Fault> {
        let mut files = self.files.take().unwrap_or_else(|| DayFiles::new(self.folder.clone(), LocalDisk));
        let task = tokio::task::spawn_blocking(move || {
            let outcome = work(&mut files);
            (files, outcome)
        });
        let (files, outcome) = task.await.map_err(|error| Fault::Died(error.to_string()))?;
        self.files = Some(files);
        Ok(outcome?)
    }

    fn show_lag(&self, work: &[ProjectionWork]) {
        let waiting_count: u64 = work.iter().map(|work| work.range.span()).sum();
        let mut board = self.board.lock();
        let state = board.projections.entry(self.writer.sink.as_str()).or_default();
        state.waiting_count = waiting_count;
        state.behind_since = (waiting_count > 0).then_some(self.caught_up_at);
    }

    fn well(&mut self) {
        self.retry = RetryPolicy::new(RETRY_FIRST, RETRY_MOST);
        let mut board = self.board.lock();
        let state = board.projections.entry(self.writer.sink.as_str()).or_default();
        if state.trouble.take().is_some() {
            tracing::info!(sink = %self.writer.sink, "day files are written again");
        }
    }

    /// Notes what went wrong; returns how long to wait. A lost session is PostgreSQL's affair, which the lanes tell.
    fn failed(&mut self, fault: &Fault) -> Duration {
        self.metrics.projections.failed(self.writer.sink, fault.class());
        if fault.is_of_database() {
            tracing::debug!(sink = %self.writer.sink, error = %fault, "day files wait for postgresql");
            self.session = None;
            self.known = None;
        }
        let mut board = self.board.lock();
        let state = board.projections.entry(self.writer.sink.as_str()).or_default();
        if state.trouble.is_none() && !fault.is_of_database() {
            tracing::warn!(sink = %self.writer.sink, error = %fault, "day files wait; ingestion goes on");
        }
        state.trouble = Some(fault.to_string());
        self.retry.next_wait()
    }
}

/// What PostgreSQL answers in time.
pub(super) async fn answered<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let in_time = tokio::time::timeout(STORE_TIMEOUT, asked).await;
    in_time.unwrap_or_else(|_elapsed| Err(StoreError::no_answer("projector")))
}
