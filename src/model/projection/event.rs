//! Events as producers write them, and trust lines.
//!
//! An event line that is sent to the source topic again is the same event: a duplicate. So unknown fields, which
//! the row has in `extra`, stand beside the others again, and a time finer than a microsecond has its full text.
//! The record's coordinates are not in it. An `extra` that decoding never makes (a row inserted by hand) stands
//! whole under `extra`.

use super::EventRow;
use super::jsonb::{for_each_member, is_object};
use super::line::Line;
use crate::model::decode::AssumeUtc;
use crate::model::timestamp::{self, Precision};

/// The columns of a trust line in their order.
pub(super) const TRUST_COLUMNS: &[&str] = &[
    "timestamp",
    "audit_id",
    "correlation_id",
    "operation",
    "status",
    "trust_score",
    "actor",
    "command",
    "args",
];

/// The columns of an event line in their order.
pub(super) const COLUMNS: &[&str] = &[
    "audit_id",
    "correlation_id",
    "timestamp",
    "operation",
    "command",
    "args",
    "actor",
    "status",
    "duration_ms",
    "result_signature",
    "client_app",
    "caller_ip_address",
    "federated_source",
    "query_intent",
    "bypass_llm",
    "trust_score",
    "purview_compatible",
    "metadata",
    "schema_version",
    "tenant_id",
    "extra",
];

pub(super) fn write_trust(row: &EventRow<'_>, line: &mut Line<'_>) {
    line.text("timestamp", &row.timestamp.text());
    line.id("audit_id", row.audit_id);
    line.id("correlation_id", row.correlation_id);
    line.text("operation", row.operation);
    line.text("status", row.status.as_str());
    line.numeral("trust_score", row.trust_score);
    line.text("actor", row.actor);
    line.text("command", row.command);
    line.optional_text("args", row.args);
}

pub(super) fn write(row: &EventRow<'_>, line: &mut Line<'_>) {
    let extra = row.extra.map_or(Extra::None, |extra| Extra::read(extra, row));
    line.id("audit_id", row.audit_id);
    line.id("correlation_id", row.correlation_id);
    match &extra {
        Extra::Fields { time: Some(time), .. } => line.text("timestamp", time),
        _ => line.text("timestamp", &row.timestamp.text()),
    }
    line.text("operation", row.operation);
    line.text("command", row.command);
    line.optional_text("args", row.args);
    line.text("actor", row.actor);
    line.text("status", row.status.as_str());
    match row.duration_ms {
        Some(duration_ms) => line.number("duration_ms", duration_ms),
        None => line.null("duration_ms"),
    }
    line.text("result_signature", row.result_signature);
    line.text("client_app", row.client_app);
    line.text("caller_ip_address", row.caller_ip_address);
    line.text("federated_source", row.federated_source);
    line.optional_text("query_intent", row.query_intent);
    line.truth("bypass_llm", row.bypass_llm);
    line.numeral("trust_score", row.trust_score);
    line.truth("purview_compatible", row.purview_compatible);
    line.json("metadata", row.metadata);
    line.text("schema_version", row.schema_version);
    line.text("tenant_id", row.tenant_id);
    match extra {
        Extra::None => line.absent("extra"),
        // Nothing but the full text of the time.
        Extra::Fields { object, .. } if object == "{}" => line.absent("extra"),
        Extra::Fields { object, .. } => line.spread("extra", &object, |_key| None),
        Extra::Strange(json) => line.json("extra", json),
    }
}

/// What `extra` holds.
enum Extra<'a> {
    /// Nothing.
    None,
    /// Unknown fields, as an object, and the full text of a time that was cut.
    Fields { object: String, time: Option<String> },
    /// What decoding never makes.
    Strange(&'a str),
}

impl<'a> Extra<'a> {
    fn read(extra: &'a str, row: &EventRow<'_>) -> Self {
        if !is_object(extra) {
            return Self::Strange(extra);
        }
        let (mut time, mut is_strange) = (None, false);
        let object = Line::object(|fields| {
            for_each_member(extra, |key, value| match full_time(key, value, row) {
                Some(full) => time = Some(full),
                None => {
                    is_strange |= COLUMNS.contains(&key) && key != "extra";
                    fields.json(key, value);
                }
            });
        });
        if is_strange { Self::Strange(extra) } else { Self::Fields { object, time } }
    }
}

/// The full text of the row's time, if this member of `extra` is it. A time that was taken as UTC gets its zone.
fn full_time(key: &str, value: &str, row: &EventRow<'_>) -> Option<String> {
    if key != "timestamp" {
        return None;
    }
    let text = value.strip_prefix('"')?.strip_suffix('"')?;
    let reading = timestamp::parse(text, AssumeUtc::Yes).ok()?;
    let is_full = reading.precision == Precision::Cut && reading.timestamp == row.timestamp;
    let zone = if timestamp::parse(text, AssumeUtc::No).is_ok() { "" } else { "Z" };
    is_full.then(|| format!("{text}{zone}"))
}
