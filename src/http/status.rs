//! `/status`: the board as JSON, with what the status page needs beyond it. Fields are added, never renamed.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::Http;
use crate::model::position::Offset;
use crate::model::rejection::RejectionCode;
use crate::observe::board::{
    BoardState, DatabaseState, OwnedPartition, ProjectionState, RelayRole, RelayState, SpoolState,
};
use crate::observe::{RecentLine, RecentLines, STEP, Step};

/// What is promised.
const GUARANTEE: &str = "every record of the source topics is in PostgreSQL exactly once: as an event, a counted \
    duplicate or a dead letter";

impl Http {
    /// All of `/status`.
    pub(super) fn status_json(&self) -> Value {
        let now = self.clock.monotonic();
        let mut status = board_json(&self.board.lock(), now);
        let more = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "instance": self.about.instance.to_string(),
            "group": self.about.group,
            "uptime_seconds": now.saturating_duration_since(self.started_at).as_secs(),
            "time_ms": self.clock.unix_ms(),
            "history": history_json(&self.history.steps()),
            "last_errors": last_errors_json(&self.about.recent),
        });
        if let (Value::Object(status), Value::Object(more)) = (&mut status, more) {
            status.extend(more);
        }
        status
    }
}

/// Columns of the same length, oldest step first.
fn history_json(steps: &[Step]) -> Value {
    let tenths = |value: f64| (value * 10.0).round() / 10.0;
    json!({
        "step_seconds": STEP.as_secs(),
        "ended_at_ms": steps.iter().map(|step| step.ended_at_ms).collect::<Vec<_>>(),
        "stored_per_second": steps.iter().map(|step| tenths(step.stored_per_second)).collect::<Vec<_>>(),
        "spooled_per_second": steps.iter().map(|step| tenths(step.spooled_per_second)).collect::<Vec<_>>(),
        "p99_ms": steps.iter().map(|step| step.p99_ms).collect::<Vec<_>>(),
        "mode": steps.iter().map(|step| step.mode).collect::<Vec<_>>(),
    })
}

/// Newest first.
fn last_errors_json(recent: &RecentLines) -> Value {
    let lines = recent.newest_first();
    let line_json = |line: &RecentLine| {
        json!({
            "time": line.at(),
            "level": line.level.as_str().to_lowercase(),
            "text": line.text,
            "count": line.count,
        })
    };
    lines.iter().map(line_json).collect()
}

fn board_json(board: &BoardState, now: Instant) -> Value {
    let readiness = Http::readiness(board);
    let seconds_since = |at: Instant| now.saturating_duration_since(at).as_secs();
    let modes = board.mode_counts();
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
        "mode": modes.word(),
        "modes": {
            "live": modes.live,
            "spooling": modes.spooling,
            "draining": modes.draining,
            "held": modes.held,
        },
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
        "dead_letters_by_reason": rejections_json(&board.rejections),
        "spool": spool_json(&board.spool),
        "relay": relay_json(&board.relay, now),
        "projections": projections_json(&board.projections, now),
        "latency_ms": {
            "p50": board.latencies.percentile_ms(50),
            "p99": board.latencies.percentile_ms(99),
        },
    })
}

fn rejections_json(counts: &BTreeMap<RejectionCode, u64>) -> Value {
    counts.iter().map(|(code, count)| (code.as_str().to_owned(), json!(count))).collect()
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
        "full_in_seconds": spool.full_in_seconds,
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
