//! The HTTP side: metrics, probes, status and the status page. Reads the board, decides nothing.
//!
//! `/` and `/status` ask for a token where there is one; the others are open, and may have a port of their own. See
//! [`door`].
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | the status page: one file that asks `/status` every 2 s |
//! | `/metrics` | Prometheus text format 0.0.4 |
//! | `/livez` | 200 while the poll thread turns; never depends on PostgreSQL |
//! | `/readyz` | 200 while records are stored or an outage is waited out; 503 before Kafka has answered, while an operator must act, and while stopping |
//! | `/healthz` | the same as `/livez` |
//! | `/status` | JSON: guarantee, partitions with epochs, positions and lags, holds, database, spool, relay, day files, totals, latencies; mode, the last 15 minutes, dead letters by reason, the last warnings and errors, and who answers |

mod door;
mod page;
mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use uuid::Uuid;

pub use self::door::{TlsFiles, TlsListener};
use self::page::Page;
use crate::config::SecretFile;
use crate::model::spool::mode::Mode;
use crate::observe::board::{Board, BoardState, DatabaseState, OwnedPartition, Phase};
use crate::observe::{Clock, History, LagSample, Metrics, RecentLines};

/// How long the poll thread may be silent before the process counts as dead: longer than a rebalance callback
/// in which Kafka and PostgreSQL both run into their time-outs.
const POLL_PATIENCE: Duration = Duration::from_secs(60);

/// Who answers.
#[derive(Debug, Clone)]
pub struct About {
    /// The process, as PostgreSQL knows it.
    pub instance: Uuid,
    /// The consumer group.
    pub group: String,
    /// The last warnings and errors of its log.
    pub recent: RecentLines,
    /// The token that `/` and `/status` ask for.
    pub token: Option<SecretFile>,
}

/// Where the HTTP side listens.
#[derive(Debug)]
pub struct Listeners {
    /// For everything.
    pub main: MainListener,
    /// For metrics and probes, without TLS and token.
    pub probes: Option<TcpListener>,
}

/// With TLS, or without.
#[derive(Debug)]
pub enum MainListener {
    /// In plain text.
    Plain(TcpListener),
    /// After a handshake.
    Tls(TlsListener),
}

async fn serve_one<L>(listener: L, router: Router, mut stop: watch::Receiver<bool>) -> std::io::Result<()>
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    let stopped = async move {
        if stop.wait_for(|stop| *stop).await.is_err() {
            tracing::debug!("whoever stops the http server is gone; stopping");
        }
    };
    axum::serve(listener, router).with_graceful_shutdown(stopped).into_future().await
}

/// What the handlers read.
#[derive(Debug, Clone)]
pub struct Http {
    board: Board,
    metrics: Arc<Metrics>,
    clock: Clock,
    started_at: Instant,
    about: Arc<About>,
    history: History,
    page: Arc<Page>,
}

/// Whether the process does its work, and what an operator should know.
struct Readiness {
    is_ready: bool,
    notes: Vec<String>,
}

impl Http {
    /// Handlers over the board and the metrics, in the name of `about`.
    #[must_use]
    pub fn new(board: Board, (metrics, clock): (Arc<Metrics>, Clock), about: About) -> Self {
        let (started_at, about, page) = (clock.monotonic(), Arc::new(about), Arc::new(Page::new()));
        Self { board, metrics, clock, started_at, about, history: History::default(), page }
    }

    /// Serves `listeners` until `stop` says so; meanwhile the history of the status page is recorded.
    ///
    /// # Errors
    /// The listeners'.
    pub async fn serve(self, listeners: Listeners, stop: watch::Receiver<bool>) -> std::io::Result<()> {
        let recording = self.history.clone().record(self.board.clone(), self.clock.clone());
        let open = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(live))
            .route("/healthz", get(live))
            .route("/readyz", get(ready));
        let all = open.clone().route("/", get(page)).route("/status", get(status)).with_state(self.clone());
        let Listeners { main, probes } = listeners;
        let served = async {
            match main {
                MainListener::Plain(listener) => serve_one(listener, all, stop.clone()).await,
                MainListener::Tls(listener) => serve_one(listener, all, stop.clone()).await,
            }
        };
        let probed = async {
            match probes {
                Some(listener) => serve_one(listener, open.with_state(self), stop.clone()).await,
                None => Ok(()),
            }
        };
        tokio::select! {
            served = async { tokio::try_join!(served, probed) } => served.map(|_both| ()),
            never = recording => match never {},
        }
    }

    fn is_live(&self) -> bool {
        let now = self.clock.monotonic();
        let is_young = now.saturating_duration_since(self.started_at) <= POLL_PATIENCE;
        is_young || self.board.lock().is_polling(now, POLL_PATIENCE)
    }

    /// Brings the gauges up to date; counters are counted where things happen.
    fn refresh_metrics(&self) {
        let mut board = self.board.lock();
        let oldest_ms = board.owned.values_mut().filter_map(OwnedPartition::oldest_uncommitted_ms).min();
        let oldest_ms = oldest_ms.into_iter().chain(board.spool.stats.oldest_created_at_ms).min();
        let age_ms = oldest_ms.map_or(0, |at| self.clock.unix_ms().saturating_sub(at));
        self.metrics.set_oldest_uncommitted(Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)));
        let readiness = Self::readiness(&board);
        let is_database_up = board.database == DatabaseState::Up;
        let state = match board.phase {
            Phase::Starting => "starting",
            Phase::Stopping => "stopping",
            Phase::Running if !readiness.is_ready => "halted",
            Phase::Running if !readiness.notes.is_empty() => "degraded",
            Phase::Running => "running",
        };
        let owned: Vec<LagSample> = board
            .owned
            .values()
            .map(|owned| LagSample {
                topic: owned.source.topic.to_string(),
                partition: owned.source.partition.0,
                position: owned.position.as_i64(),
                lag_records: owned.lag(),
                kafka_lag_records: owned.kafka_lag(),
                mode: owned.mode,
            })
            .collect();
        self.metrics.set_relay(&board.relay);
        self.metrics.spool.set(&board.spool, self.clock.unix_ms());
        self.metrics.set_retention_loss(board.retention_loss_in_seconds);
        self.metrics.projections.set(&board.projections, self.clock.monotonic());
        self.metrics.set_state(state);
        self.metrics.set_up(is_database_up, board.is_kafka_reachable == Some(true));
        let held = board.held.values().map(|hold| hold.code.as_str());
        self.metrics.partitions.set(&owned, held, board.paused_count);
    }

    fn readiness(board: &BoardState) -> Readiness {
        let mut readiness = Readiness { is_ready: true, notes: Vec::new() };
        match board.phase {
            Phase::Running => {}
            Phase::Starting => {
                readiness.is_ready = false;
                readiness.notes.push("starting: kafka has not answered yet".into());
            }
            Phase::Stopping => {
                readiness.is_ready = false;
                readiness.notes.push("stopping".into());
            }
        }
        if board.is_kafka_reachable == Some(false) && board.phase == Phase::Running {
            readiness.notes.push("degraded: no broker of kafka answers, records wait there".into());
        }
        match &board.database {
            DatabaseState::Down { error, .. } => {
                let is_spooling = board.owned.values().any(|owned| owned.mode == Mode::Spooling);
                let what = if is_spooling { "records go to the spool" } else { "records wait" };
                readiness
                    .notes
                    .push(format!("degraded: postgresql is away, {what} and nothing is lost: {error}"));
            }
            DatabaseState::Misconfigured { error } => {
                readiness.is_ready = false;
                readiness.notes.push(format!("halted: postgresql refuses us: {error}"));
            }
            DatabaseState::Unknown | DatabaseState::Up => {}
        }
        if let Some(trouble) = &board.spool.trouble {
            readiness
                .notes
                .push(format!("degraded: the spool takes nothing, partitions are paused: {trouble}"));
        }
        if let Some(trouble) = &board.relay.trouble {
            let text = &trouble.text;
            readiness
                .notes
                .push(format!("degraded: dead letters wait in postgresql, nothing is lost: {text}"));
        }
        for (sink, state) in &board.projections {
            if let Some(trouble) = &state.trouble {
                readiness
                    .notes
                    .push(format!("degraded: {sink} day files wait, records are stored: {trouble}"));
            }
        }
        for (source, hold) in &board.held {
            readiness.is_ready &= !hold.code.needs_operator();
            readiness.notes.push(format!("{source} {}: {}", hold.code.as_str(), hold.detail));
        }
        readiness
    }
}

async fn metrics(State(http): State<Http>) -> Response {
    http.refresh_metrics();
    match http.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn live(State(http): State<Http>) -> Response {
    if http.is_live() {
        "alive\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the poll thread is silent\n").into_response()
    }
}

async fn ready(State(http): State<Http>) -> Response {
    let readiness = Http::readiness(&http.board.lock());
    let code = if readiness.is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = String::from(if readiness.is_ready { "ready\n" } else { "not ready\n" });
    for note in readiness.notes {
        body.push_str(&note);
        body.push('\n');
    }
    (code, body).into_response()
}

async fn page(State(http): State<Http>, headers: HeaderMap) -> Response {
    door::turn_away(http.about.token.as_ref(), &headers).unwrap_or_else(|| http.page.answer())
}

async fn status(State(http): State<Http>, headers: HeaderMap) -> Response {
    if let Some(refusal) = door::turn_away(http.about.token.as_ref(), &headers) {
        return refusal;
    }
    let body = http.status_json().to_string();
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], body).into_response()
}
