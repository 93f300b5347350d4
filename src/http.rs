//! The HTTP side: metrics, probes and status. Reads the board, decides nothing.
//!
//! | path | answer |
//! | --- | --- |
//! | `/metrics` | Prometheus text format 0.0.4 |
//! | `/livez` | 200 while the poll thread turns; never depends on PostgreSQL |
//! | `/readyz` | 200 while records are stored or an outage is waited out; 503 before Kafka has answered, while an operator must act, and while stopping |
//! | `/healthz` | the same as `/livez` |
//! | `/status` | JSON: guarantee, partitions with epochs, positions and lags, holds, database, spool, relay, day files, totals |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::model::position::Offset;
use crate::model::spool::mode::Mode;
use crate::observe::board::{
    Board, BoardState, DatabaseState, OwnedPartition, Phase, ProjectionState, RelayRole, RelayState,
    SpoolState,
};
use crate::observe::{Clock, LagSample, Metrics};

/// How long the poll thread may be silent before the process counts as dead: longer than a rebalance callback
/// in which Kafka and PostgreSQL both run into their time-outs.
const POLL_PATIENCE: Duration = Duration::from_secs(60);

/// What `/status` says is promised.
const GUARANTEE: &str = "every record of the source topics is in PostgreSQL exactly once: as an event, a counted \
    duplicate or a dead letter";

/// What the handlers read.
#[derive(Debug, Clone)]
pub struct Http {
    board: Board,
    metrics: Arc<Metrics>,
    clock: Clock,
    started_at: Instant,
}

/// Whether the process does its work, and what an operator should know.
struct Readiness {
    is_ready: bool,
    notes: Vec<String>,
}

impl Http {
    /// Handlers over the board and the metrics.
    #[must_use]
    pub fn new(board: Board, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let started_at = clock.monotonic();
        Self { board, metrics, clock, started_at }
    }

    /// Serves `listener` until `stop` says so.
    ///
    /// # Errors
    /// The listener's.
    pub async fn serve(self, listener: TcpListener, mut stop: watch::Receiver<bool>) -> std::io::Result<()> {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(live))
            .route("/healthz", get(live))
            .route("/readyz", get(ready))
            .route("/status", get(status))
            .with_state(self);
        let stopped = async move {
            if stop.wait_for(|stop| *stop).await.is_err() {
                tracing::debug!("whoever stops the http server is gone; stopping");
            }
        };
        axum::serve(listener, router).with_graceful_shutdown(stopped).await
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

async fn status(State(http): State<Http>) -> Response {
    let now = http.clock.monotonic();
    let body = status_json(&http.board.lock(), now).to_string();
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn status_json(board: &BoardState, now: Instant) -> Value {
    let readiness = Http::readiness(board);
    let seconds_since = |at: Instant| now.saturating_duration_since(at).as_secs();
    let held: Vec<Value> = board
        .held
        .iter()
        .map(|(source, hold)| {
            json!({
                "topic": &*source.topic,
                "partition": source.partition.0,
                "code": hold.code.as_str(),
                "detail": hold.detail,
                "needs_operator": hold.code.needs_operator(),
                "seconds": seconds_since(hold.since),
            })
        })
        .collect();
    let database = match &board.database {
        DatabaseState::Unknown => json!({"state": "unknown"}),
        DatabaseState::Up => json!({"state": "up"}),
        DatabaseState::Down { error, since } => {
            json!({"state": "down", "error": error, "seconds": seconds_since(*since)})
        }
        DatabaseState::Misconfigured { error } => json!({"state": "misconfigured", "error": error}),
    };
    json!({
        "guarantee": GUARANTEE,
        "ready": readiness.is_ready,
        "notes": readiness.notes,
        "phase": format!("{:?}", board.phase).to_lowercase(),
        "database": database,
        "kafka_reachable": board.is_kafka_reachable,
        "partitions": board.owned.values().map(partition_json).collect::<Vec<_>>(),
        "held": held,
        "totals": {
            "events": board.totals.events,
            "duplicates": board.totals.duplicates,
            "dead_letters": board.totals.dead_letters,
        },
        "spool": spool_json(&board.spool),
        "relay": relay_json(&board.relay, now),
        "projections": projections_json(&board.projections, now),
        "latency_ms": {
            "p50": board.latencies.percentile_ms(50),
            "p99": board.latencies.percentile_ms(99),
        },
    })
}

fn partition_json(owned: &OwnedPartition) -> Value {
    json!({
        "topic": &*owned.source.topic,
        "partition": owned.source.partition.0,
        "stream_id": owned.key.stream.to_string(),
        "epoch": owned.epoch.0,
        "lane": owned.lane_index,
        "mode": owned.mode.as_str(),
        "position": owned.position.as_i64(),
        "spooled_to": owned.spooled_to.map(Offset::as_i64),
        "end": owned.end.map(Offset::as_i64),
        "lag_records": owned.lag(),
    })
}

fn spool_json(spool: &SpoolState) -> Value {
    json!({
        "on": spool.is_on,
        "records": spool.stats.record_count,
        "segments": spool.stats.segment_count,
        "bytes": spool.stats.total_len_bytes,
        "max_bytes": spool.max_len_bytes,
        "quarantined_files": spool.stats.quarantined_file_count,
        "trouble": spool.trouble,
    })
}

fn projections_json(states: &BTreeMap<&'static str, ProjectionState>, now: Instant) -> Value {
    let state_json = |state: &ProjectionState| {
        json!({
            "lag_records": state.waiting_count,
            "lag_seconds": state.lag(now).as_secs(),
            "trouble": state.trouble,
        })
    };
    states.iter().map(|(sink, state)| ((*sink).to_owned(), state_json(state))).collect()
}

fn relay_json(relay: &RelayState, now: Instant) -> Value {
    let trouble = relay.trouble.as_ref().map(|trouble| {
        let seconds = now.saturating_duration_since(trouble.since).as_secs();
        json!({"text": trouble.text, "seconds": seconds})
    });
    json!({
        "role": match relay.role {
            RelayRole::Leader => "leader",
            RelayRole::Follower => "follower",
        },
        "waiting": relay.waiting_count,
        "oldest_age_seconds": relay.oldest_age_seconds,
        "trouble": trouble,
    })
}
