//! The relay: brings every row of `dead_letters` into its dead letter topic exactly once, for a reader of
//! `read_committed`.
//!
//! # Why a dead letter can't be there twice, or be marked and not there
//!
//! The rows are an outbox: the commit that moves the position stores them. One relay of a group works at a time (it
//! holds an advisory lock of PostgreSQL); that two do is possible, as a session may end unnoticed, so nothing relies on
//! it. What is relied on:
//!
//! 1. *Fence.* `init_transactions` ends every earlier transaction of our `transactional.id` and fences its producer.
//! 2. *Then read.* Only now the rows, whose stream it is, and the committed position are read: no other producer can
//!    move it without fencing us.
//! 3. *Send.* Rows at or beyond the position are surely not in the topic. Rows below it may be (we died before we
//!    marked them; a failover brought them back): they are looked for by `dlq.id`, after the fence, and sent only if
//!    they are not there. The same Kafka transaction commits the new position, with a name of this transaction in it.
//! 4. *Read back.* Only when the committed position has that name the rows are marked. An error, or silence, leaves
//!    the outcome unknown: the producer is dropped and we begin at 1, and then 3 finds what was committed.
//!
//! A position that lags behind its letters (a torn transaction) is found by the letters at the topic's end. One
//! that is gone (Kafka forgets those of a group that nobody joins), or is of another incarnation of the
//! topic, or from before the stream was handed from one group to another, is rebuilt from the letters in the topic; and
//! after a hand-over the former group's producers are fenced first.
//!
//! # Interleavings that were thought through
//!
//! - We die after the rows are read, after the send, after the offsets: the next leader's `init_transactions` aborts
//!   the transaction; nothing was seen of it.
//! - We die after the commit and before the rows are marked: the next leader finds them below the position, and in
//!   the topic, and marks them.
//! - We are stopped (SIGSTOP) within a transaction: readers wait until the broker aborts it ([`crate::outlet`] says
//!   when). Another leader takes over when our session is silent for three minutes, or dies. When we go on we are fenced.
//! - We are stopped after the commit, another leader marks the rows, we mark them again: only rows without a mark are
//!   marked.
//! - Another group's transaction on the same dead letter topic hides what is committed behind it: looking letters up
//!   waits for it to end.
//! - librdkafka never returns from a call, or a client can't be destroyed: the call, and its clients, are given up, which
//!   is the same as if we had died there; should it go on later its producer is fenced, and what it committed before that
//!   is found. Nobody waits for a client's destruction.
//! - PostgreSQL fails over and loses marks, or rows that were relayed come back: they are below the position, and found.
//!
//! Ingestion never waits for the relay: they share only the table, and the machine. While there is a backlog the relay
//! takes a tenth of the time.

mod letters;
pub mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::letters::{Letters, Progress, Refusals};
use crate::failpoint;
use crate::model::backoff::RetryPolicy;
use crate::model::dead_letter::{LetterFormat, TOPIC_SUFFIX};
use crate::model::position::StreamId;
use crate::observe::board::{Board, RelayRole, RelayState, RelayTrouble};
use crate::observe::{Clock, Metrics, Traces};
use crate::outlet::{LetterSpans, OutletError, OutletSettings};
use crate::store::{Session, SessionPurpose, StoreError, StoreSettings, WaitingStream};

/// How often a leader looks for rows.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often the others try to lead, and how often PostgreSQL is tried while it is away.
const LEAD_INTERVAL: Duration = Duration::from_secs(2);
/// How often the backlog is counted, so that it is shown, and PostgreSQL hears of us, while Kafka is waited for, too.
const BACKLOG_INTERVAL: Duration = Duration::from_secs(10);
/// A producer that has nothing to send for so long is dropped.
const IDLE_LIMIT: Duration = Duration::from_secs(300);
/// The first and the longest wait after an error of one stream.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(20);
/// While there is a backlog a transaction is followed by a pause of so many times its own length, within a limit.
const BACKLOG_PAUSE: u32 = 9;
const BACKLOG_PAUSE_MOST: Duration = Duration::from_secs(10);
/// How many transactions of one stream go before another stream's turn.
const TURN_COUNT: usize = 100;
/// A step of Kafka's that has not ended by then is shown as trouble, and later given up with its clients. Only to read a
/// topic whose transactions are open takes as long.
const SILENT_AFTER: Duration = Duration::from_secs(60);
const HUNG_AFTER: Duration = Duration::from_secs(300);
/// The same for a test (`relay_impatient`).
const HUNG_SOON: Duration = Duration::from_secs(5);
/// How long one question of ours to PostgreSQL may take beyond its statement timeout.
const STORE_TIMEOUT: Duration = Duration::from_secs(70);

/// How the relay works.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// PostgreSQL.
    pub store: StoreSettings,
    /// Kafka.
    pub outlet: OutletSettings,
    /// How the records look.
    pub format: LetterFormat,
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Outlet(#[from] OutletError),
    /// A row that can't be sent, of whatever kind: its stream waits, the others go on.
    #[error("read the dead letters: {0}")]
    Row(#[source] StoreError),
    #[error("the relay's thread died: {0}")]
    Died(String),
}

impl RelayError {
    const fn class(&self) -> &'static str {
        match self {
            Self::Store(_) => "database",
            Self::Row(_) => "row",
            Self::Outlet(error) => error.class(),
            Self::Died(_) => "died",
        }
    }
}

#[derive(Debug)]
struct Wait {
    retry: RetryPolicy,
    until: Instant,
}

/// The relay's state.
#[derive(Debug)]
pub struct Relay {
    settings: RelaySettings,
    board: Board,
    metrics: Arc<Metrics>,
    clock: Clock,
    spans: LetterSpans,
    /// Holds the lock while it lives.
    session: Option<Session>,
    letters: Option<Letters>,
    refused: Refusals,
    waits: HashMap<StreamId, Wait>,
    sent_at: Instant,
    backlog_at: Instant,
}

impl Relay {
    /// A relay that does nothing yet.
    #[must_use]
    pub fn new(
        settings: RelaySettings,
        board: Board,
        (metrics, clock, traces): (Arc<Metrics>, Clock, Traces),
    ) -> Self {
        let now = clock.monotonic();
        let spans = LetterSpans { traces, clock: clock.clone() };
        Self {
            settings,
            board,
            metrics,
            clock,
            spans,
            session: None,
            letters: None,
            refused: Refusals::new(),
            waits: HashMap::new(),
            sent_at: now,
            backlog_at: now,
        }
    }

    /// Works until `stop` says so. What is under way is then left to the next leader.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let pause = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                pause = self.turn() => pause,
            };
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        if let Some(session) = self.session.take() {
            session.close().await;
        }
    }

    /// Leads if it can, and sends what waits. Returns how long to pause.
    async fn turn(&mut self) -> Duration {
        match answered(self.lead()).await {
            Ok(true) => {}
            Ok(false) => {
                self.letters = None;
                self.show(|state| *state = RelayState { role: RelayRole::Follower, ..RelayState::default() });
                return LEAD_INTERVAL;
            }
            Err(error) => {
                // PostgreSQL's own state is told by the lanes.
                tracing::debug!(%error, "the relay has no session");
                self.lose_session();
                return LEAD_INTERVAL;
            }
        }
        match self.send_waiting().await {
            Ok(()) => LOOK_INTERVAL,
            Err(error) => {
                tracing::warn!(%error, "the relay's session was lost");
                self.metrics.relay_failed(error.class());
                self.lose_session();
                LEAD_INTERVAL
            }
        }
    }

    fn lose_session(&mut self) {
        self.session = None;
        // The lock is gone with it: somebody else may lead now.
        self.letters = None;
        self.show(|state| state.role = RelayRole::Follower);
    }

    /// Whether the lock is ours. Not cancelled but by its time limit: a session that is dropped is closed.
    async fn lead(&mut self) -> Result<bool, StoreError> {
        if self.session.is_some() {
            return Ok(true);
        }
        let mut session = self.settings.store.connect(SessionPurpose::Relay).await?;
        if !session.lead_relay(&self.settings.store.group).await? {
            session.close().await;
            return Ok(false);
        }
        self.session = Some(session);
        self.show(|state| state.role = RelayRole::Leader);
        self.backlog_at = self.clock.monotonic();
        Ok(true)
    }

    /// Sends what waits, stream by stream. An error is PostgreSQL's; one of Kafka's is noted, and only its stream waits.
    async fn send_waiting(&mut self) -> Result<(), RelayError> {
        let group = Arc::clone(&self.settings.store.group);
        let streams = answered(self.session()?.waiting_streams(&group)).await?;
        let now = self.clock.monotonic();
        let waits = |stream: &StreamId| streams.iter().any(|waiting| waiting.stream == *stream);
        self.waits.retain(|stream, _| waits(stream));
        for stream in &streams {
            if self.waits.get(&stream.stream).is_some_and(|wait| wait.until > now) {
                continue;
            }
            match self.send_stream(stream).await {
                Ok(()) => {
                    self.waits.remove(&stream.stream);
                }
                Err(RelayError::Store(error)) => return Err(error.into()),
                Err(error) => self.failed(stream, &error),
            }
        }
        if self.waits.is_empty() {
            self.show(|state| state.trouble = None);
        }
        self.count_backlog(&group).await?;
        let is_idle = self.clock.monotonic().saturating_duration_since(self.sent_at) >= IDLE_LIMIT;
        if is_idle && self.letters.as_ref().is_some_and(Letters::is_in_charge) {
            self.letters = None;
        }
        Ok(())
    }

    async fn count_backlog(&mut self, group: &str) -> Result<(), StoreError> {
        let now = self.clock.monotonic();
        if now < self.backlog_at {
            return Ok(());
        }
        let Some(session) = &mut self.session else { return Ok(()) };
        let backlog = answered(session.relay_backlog(group)).await;
        self.backlog_at = self.clock.monotonic() + BACKLOG_INTERVAL;
        let backlog = match backlog {
            // It is only for people.
            Err(StoreError::StatementTimeout(_) | StoreError::Contended { .. }) => return Ok(()),
            backlog => backlog?,
        };
        self.show(|state| {
            state.waiting_count = backlog.count;
            state.oldest_age_seconds = backlog.oldest_age_seconds;
        });
        Ok(())
    }

    fn session(&mut self) -> Result<&mut Session, StoreError> {
        self.session.as_mut().ok_or_else(|| StoreError::no_answer("relay"))
    }

    async fn send_stream(&mut self, stream: &WaitingStream) -> Result<(), RelayError> {
        let group = Arc::clone(&self.settings.store.group);
        for _ in 0..TURN_COUNT {
            // Without the lock somebody else may be at work: it is not to be fenced for nothing.
            self.session()?;
            self.count_backlog(&group).await?;
            let started_at = self.clock.monotonic();
            let begun = stream.clone();
            if self.with_letters(move |letters| letters.begin(&begun)).await? {
                // Every other relay is fenced only now: what it sent, or gave away, before that shows here.
                let now = answered(self.session()?.waiting_streams(&group)).await?;
                if !now.contains(stream) {
                    break;
                }
            }
            let rows = match answered(self.session()?.waiting_letters(stream.stream)).await {
                Err(error @ (StoreError::Broken(_) | StoreError::Refused { .. })) => {
                    return Err(RelayError::Row(error));
                }
                rows => rows?,
            };
            failpoint::at("relay_after_read");
            if rows.is_empty() {
                break;
            }
            let (sent, traced) = (stream.clone(), self.spans.letters(rows.iter()));
            let relayed = self.with_letters(move |letters| letters.relay(&sent, &rows)).await;
            let topic = format!("{}{TOPIC_SUFFIX}", stream.topic);
            let error = relayed.as_ref().err().map(|error| (error.class(), error.to_string()));
            self.spans.ended(traced, &topic, error);
            let relayed = relayed?;
            failpoint::at("relay_before_mark");
            let marked_count = answered(self.session()?.mark_relayed(stream.stream, &relayed)).await?;
            failpoint::at("relay_after_mark");
            self.sent_at = self.clock.monotonic();
            let elapsed = self.sent_at.saturating_duration_since(started_at);
            self.metrics.relayed(marked_count, elapsed);
            tracing::debug!(
                topic = stream.topic,
                count = relayed.len(),
                marked_count,
                "dead letters relayed"
            );
            self.stand_back(elapsed).await;
        }
        Ok(())
    }

    /// Leaves the processors to what stores records while many of them wait.
    async fn stand_back(&self, elapsed: Duration) {
        let until = self.clock.monotonic() + elapsed.saturating_mul(BACKLOG_PAUSE).min(BACKLOG_PAUSE_MOST);
        loop {
            let left = until.saturating_duration_since(self.clock.monotonic());
            if left.is_zero() || !self.board.lock().has_backlog() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_INTERVAL)).await;
        }
    }

    /// Does `work` with Kafka on a thread where waiting is allowed, and counts the backlog meanwhile: a leader that is
    /// silent loses the lock. One that never returns is given up: should it go on later, its producer is fenced, and what
    /// it sent is found.
    async fn with_letters<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Letters) -> Result<T, OutletError> + Send + 'static,
    ) -> Result<T, RelayError> {
        let kept = self.letters.take();
        let progress = kept.as_ref().map_or_else(Progress::default, Letters::progress);
        let (outlet, format) = (self.settings.outlet.clone(), self.settings.format);
        let (refused, theirs) = (self.refused.clone(), progress.clone());
        let mut task = tokio::task::spawn_blocking(move || {
            let made = kept.map_or_else(|| Letters::new(&outlet, format, refused, theirs), Ok);
            let mut letters = match made {
                Ok(letters) => letters,
                Err(error) => return (None, Err(error)),
            };
            let outcome = work(&mut letters);
            (Some(letters), outcome)
        });
        let (mut step, mut since) = (progress.step(), self.clock.monotonic());
        let (letters, outcome) = loop {
            tokio::select! {
                done = &mut task => break done.map_err(|error| RelayError::Died(error.to_string()))?,
                () = tokio::time::sleep(BACKLOG_INTERVAL) => self.look_after(&progress, (&mut step, &mut since)).await?,
            }
        };
        match outcome {
            Ok(done) => {
                self.letters = letters;
                Ok(done)
            }
            // Nothing else of it is the truth, and new clients may do better.
            Err(error) => {
                if let Some(letters) = letters {
                    self.refused = letters.into_refusals();
                }
                Err(error.into())
            }
        }
    }

    /// Counts the backlog while a thread works, and looks whether it gets on.
    async fn look_after(
        &mut self,
        progress: &Progress,
        (step, since): (&mut (&'static str, u64), &mut Instant),
    ) -> Result<(), RelayError> {
        let group = Arc::clone(&self.settings.store.group);
        if let Err(error) = self.count_backlog(&group).await {
            tracing::debug!(%error, "the relay's session is gone");
            self.session = None;
            self.show(|state| state.role = RelayRole::Follower);
        }
        let (now, latest) = (self.clock.monotonic(), progress.step());
        if latest != *step {
            (*step, *since) = (latest, now);
        }
        let (name, silence) = (step.0, now.saturating_duration_since(*since));
        let hung_after = if failpoint::is_on("relay_impatient") { HUNG_SOON } else { HUNG_AFTER };
        if silence >= hung_after {
            let reason =
                format!("kafka's client does not return; a new one is made ({} s)", silence.as_secs());
            return Err(OutletError::Doubt { step: name, reason }.into());
        }
        if silence >= SILENT_AFTER {
            self.trouble(format!("{name}: kafka's client has not answered for {} s", silence.as_secs()));
        }
        Ok(())
    }

    fn failed(&mut self, stream: &WaitingStream, error: &RelayError) {
        self.metrics.relay_failed(error.class());
        let now = self.clock.monotonic();
        let wait = self.waits.entry(stream.stream).or_insert_with(|| {
            tracing::warn!(topic = stream.topic, %error, "dead letters wait; ingestion goes on");
            Wait { retry: RetryPolicy::new(RETRY_FIRST, RETRY_MOST), until: now }
        });
        wait.until = now + wait.retry.next_wait();
        self.trouble(format!("{}: {error}", stream.topic));
    }

    fn trouble(&self, text: String) {
        let now = self.clock.monotonic();
        self.show(|state| {
            let since = state.trouble.as_ref().map_or(now, |trouble| trouble.since);
            state.trouble = Some(RelayTrouble { text, since });
        });
    }

    fn show(&self, change: impl FnOnce(&mut RelayState)) {
        change(&mut self.board.lock().relay);
    }
}

/// What PostgreSQL answers in time.
async fn answered<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let in_time = tokio::time::timeout(STORE_TIMEOUT, asked).await;
    in_time.unwrap_or_else(|_elapsed| Err(StoreError::no_answer("relay")))
}
