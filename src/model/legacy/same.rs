//! Whether a row or line tells an event that is stored: first by the time, then by what it tells.
//!
//! # The same time
//!
//! A time finer than a microsecond is cut by us, with its text kept, and was rounded by the predecessor's table. So
//! a time may stand as either, and two are the same when they have one of the two readings in common.
//!
//! An id that is stored at another time within [`CONFLICT_SPAN_MICROS`] is taken for the same event, told otherwise: a
//! conflict, which keeps the line and stores no second event. Further apart they are two events, as from Kafka.

use serde_json::Value as Json;

use super::{IMPORT_MARK, Legacy, LegacyForm, ROW_SCALE, TENANT_DEFAULT};
use crate::model::event::{Event, Timestamp, TrustScore};

/// How far apart two times of one audit id may be for a conflict: 24 hours.
pub const CONFLICT_SPAN_MICROS: i64 = 86_400_000_000;

/// The key of `extra` under which decoding keeps the text of a time that was cut.
const TIME_KEY: &str = "timestamp";

/// How a row or line stands to a stored event of its audit id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// It tells that event: a duplicate.
    Same,
    /// It says something else, or has another time within [`CONFLICT_SPAN_MICROS`].
    Conflict,
    /// It is another event.
    Apart,
}

impl Legacy<'_> {
    /// How it stands to `stored`, an event of its id; `told` is what its payload decodes to, and `own_tenant` the
    /// tenant of events that name none.
    #[must_use]
    pub fn relation(&self, told: &Event<'_>, stored: &Event<'_>, own_tenant: &str) -> Relation {
        if is_same_time(told, stored) && self.agrees(told, stored, own_tenant) {
            return Relation::Same;
        }
        let apart_micros = told.timestamp.as_unix_micros().abs_diff(stored.timestamp.as_unix_micros());
        match apart_micros <= CONFLICT_SPAN_MICROS.unsigned_abs() {
            true => Relation::Conflict,
            false => Relation::Apart,
        }
    }

    /// Whether everything that this row or line tells is so in `stored`. Id and time are not compared.
    fn agrees(&self, told: &Event<'_>, stored: &Event<'_>, own_tenant: &str) -> bool {
        let is_told = |field: &str| !self.assumed.contains(&field);
        let same = |field: &str, is_same: bool| !is_told(field) || is_same;
        let is_default_tenant = told.tenant_id == TENANT_DEFAULT && stored.tenant_id == own_tenant;
        told.correlation_id == stored.correlation_id
            && told.operation == stored.operation
            && told.command == stored.command
            && told.actor == stored.actor
            && told.status == stored.status
            && same("args", told.args == stored.args)
            && same("duration_ms", told.duration_ms == stored.duration_ms)
            && same("result_signature", told.result_signature == stored.result_signature)
            && same("client_app", told.client_app == stored.client_app)
            && same("caller_ip_address", told.caller_ip_address == stored.caller_ip_address)
            && same("federated_source", told.federated_source == stored.federated_source)
            && same("query_intent", told.query_intent == stored.query_intent)
            && same("bypass_llm", told.bypass_llm == stored.bypass_llm)
            && same("trust_score", is_same_score(told.trust_score, stored.trust_score))
            && same("purview_compatible", told.purview_compatible == stored.purview_compatible)
            && same("metadata", is_same_object(&told.metadata, &stored.metadata, IMPORT_MARK))
            && same("schema_version", told.schema_version == stored.schema_version)
            && same("tenant_id", told.tenant_id == stored.tenant_id || is_default_tenant)
            && (self.form != LegacyForm::Event
                || is_same_object(
                    told.extra.as_deref().unwrap_or("{}"),
                    stored.extra.as_deref().unwrap_or("{}"),
                    TIME_KEY,
                ))
    }
}

/// Whether the times of two events may be one: cut or rounded to a microsecond, they have a reading in common.
fn is_same_time(one: &Event<'_>, other: &Event<'_>) -> bool {
    let (ones, others) = (readings(one), readings(other));
    ones.iter().any(|time| others.contains(time))
}

/// The event's time, cut and rounded to a microsecond.
fn readings(event: &Event<'_>) -> [Timestamp; 2] {
    let cut = event.timestamp;
    let up = cut.as_unix_micros().checked_add(1).and_then(Timestamp::from_unix_micros);
    let rounded = if is_rounded_up(event) { up.unwrap_or(cut) } else { cut };
    [cut, rounded]
}

/// Whether the event's time, where it is finer than a microsecond, lies in the upper half of one.
fn is_rounded_up(event: &Event<'_>) -> bool {
    let Some(extra) = event.extra.as_deref() else { return false };
    // Where it can't be read the time counts as cut: then the line is a conflict at worst, and kept as a dead letter.
    let extra: Option<Json> = serde_json::from_str(extra).ok();
    let text = extra.as_ref().and_then(|extra| extra.get(TIME_KEY)?.as_str());
    let seventh = text.and_then(|text| text.split_once('.')?.1.as_bytes().get(6));
    seventh.is_some_and(|digit| (b'5'..=b'9').contains(digit))
}

/// Whether two scores may be of one event: one that has no more digits than the table keeps may have been rounded.
fn is_same_score(one: TrustScore, other: TrustScore) -> bool {
    match one.scale().min(other.scale()) {
        ..=ROW_SCALE => rounded(one) == rounded(other),
        _ => value(one) == value(other),
    }
}

/// The score's value in units of `10^-16`.
fn value(score: TrustScore) -> u128 {
    let zeros = u32::from(TrustScore::MAX_SCALE.saturating_sub(score.scale()));
    u128::from(score.unscaled()) * 10u128.pow(zeros)
}

/// The score's value as the table keeps it, half away from zero as `numeric` rounds.
fn rounded(score: TrustScore) -> u128 {
    let unit = 10u128.pow(u32::from(TrustScore::MAX_SCALE - ROW_SCALE));
    (value(score) + unit / 2) / unit * unit
}

/// Whether two objects are the same by value, but for what stands under `ignored`; texts that hold numbers beyond a
/// double are the same by text.
pub(super) fn is_same_object(one: &str, other: &str, ignored: &str) -> bool {
    let without = |text: &str| {
        let mut json: Json = serde_json::from_str(text).ok()?;
        if let Some(object) = json.as_object_mut() {
            object.remove(ignored);
        }
        Some(json)
    };
    match (without(one), without(other)) {
        (Some(one), Some(other)) => is_same_value(&one, &other),
        _ => one.trim() == other.trim(),
    }
}

/// Recursion ends where that of decoding does, which both texts have passed.
fn is_same_value(one: &Json, other: &Json) -> bool {
    match (one, other) {
        (Json::Number(one), Json::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Json::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same_value(one, other))
        }
        (Json::Object(one), Json::Object(other)) => {
            let is_there = |(key, value): (&String, &Json)| {
                other.get(key).is_some_and(|found| is_same_value(value, found))
            };
            one.len() == other.len() && one.iter().all(is_there)
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::{AssumeUtc, DecodeRules, decode};

    /// How a line of the time `told` stands to an event that is stored at `stored`.
    #[track_caller]
    fn check(stored: &str, told: &str, expect: Relation) {
        let rules =
            DecodeRules { tenant_id: "t".into(), assume_utc: AssumeUtc::No, payload_max_len_bytes: 1 << 20 };
        let payload = |time: &str| {
            format!(
                r#"{{"audit_id":"5b1f0c7e-51d6-4a53-9f0d-0d8f3c1f2a10","correlation_id":"a3c0f6c2-7a44-4c62-8d9f-4f0f6f0f9c11","timestamp":"{time}","operation":"o","command":"c","actor":"a","status":"Success"}}"#
            )
        };
        for (stored, told) in [(stored, told), (told, stored)] {
            let (stored, told) = (payload(stored), payload(told));
            let legacy = super::super::read_line(told.as_bytes());
            let events = [&legacy.payload, stored.as_bytes()].map(|text| decode(Some(text), &rules).unwrap());
            let [told_event, stored_event] = events;
            assert_eq!(legacy.relation(&told_event, &stored_event, "t"), expect, "{stored} {told}");
        }
    }

    #[test]
    fn a_time_is_the_same_when_cut_or_rounded_it_is() {
        let at = |fraction: &str| format!("2026-02-17T09:30:00.{fraction}Z");
        for (stored, told, expect) in [
            ("123456", "123456", Relation::Same),
            ("123456", "123456000", Relation::Same),
            ("123457", "1234567", Relation::Same), // the table's rounding
            ("123456", "1234567", Relation::Same), // our cut
            ("123457", "1234565", Relation::Same), // a half may go either way
            ("1234561", "1234567", Relation::Same),
            ("1234567", "1234567", Relation::Same),
            ("123457", "1234564", Relation::Conflict),
            ("123457", "123456", Relation::Conflict), // nobody rounded
            ("123455", "1234561", Relation::Conflict),
            ("999999", "000000", Relation::Conflict),
        ] {
            check(&at(stored), &at(told), expect);
        }
        check("2026-02-17T09:30:00.9999999Z", "2026-02-17T09:30:01Z", Relation::Same);
    }

    #[test]
    fn another_time_within_a_day_is_a_conflict() {
        check("2026-02-17T09:30:00Z", "2026-02-18T09:30:00Z", Relation::Conflict);
        check("2026-02-17T09:30:00Z", "2026-02-18T09:30:00.000001Z", Relation::Apart);
        check("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.9999999Z", Relation::Apart);
    }

    #[test]
    fn scores_round_as_numeric_does() {
        let score = |unscaled, scale| TrustScore::new(unscaled, scale).unwrap();
        for (stored, told) in
            [((875, 3), 88), ((874, 3), 87), ((8_749_999, 7), 87), ((9_951, 4), 100), ((8, 1), 80)]
        {
            assert_eq!(rounded(score(stored.0, stored.1)), value(score(told, 2)), "{stored:?}");
        }
    }
}
