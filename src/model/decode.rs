//! Payload bytes to a valid event, or a rejection with a stable code. Pure and total: no input panics.
//!
//! What is accepted is what PostgreSQL takes as `text`, `numeric`, `timestamptz`, `inet`, `uuid` and `jsonb`
//! and gives back with the same value. Nothing is repaired, rounded or dropped: what the columns can't hold
//! goes to `extra`, or the record is rejected.
//!
//! A record has one rejection: the first of this list, whatever the order of its keys.
//!
//! | order | codes |
//! | --- | --- |
//! | the payload | `tombstone`, `empty_payload`, `too_large`, `invalid_utf8` |
//! | the text | `invalid_json`, `not_an_object` |
//! | anywhere in the text | `nul_character`, `lone_surrogate`, `duplicate_key`, `out_of_range` (a number that needs more than 400 digits) |
//! | field by field, as [`Event`] lists them | `missing_field`, then `wrong_type` or `invalid_metadata`, then the field's own |
//!
//! A field's own codes: an id `invalid_uuid`; the time `invalid_timestamp`, `out_of_range`; operation and actor
//! `missing_field` when empty, then `too_large`; the status `invalid_status`; the duration `invalid_integer`,
//! `out_of_range`; the address `invalid_ip`; the trust score `out_of_range`.
//!
//! A null stands for an absent field. A raw U+0000 in a string is `invalid_json`, as any control character.

mod field;
mod number;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

use uuid::Uuid;

use self::field::Field;
use super::event::{Event, TrustScore};
use super::json::{Fault, FaultKind, Malformed, Member, Place, Scanner, Value, excerpt};
use super::rejection::{Rejection, RejectionCode};
use super::timestamp::{Precision, Reading};

/// What decoding depends on beside the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeRules {
    /// The tenant of events that name none.
    pub tenant_id: String,
    /// Take a time without a zone as UTC instead of rejecting it.
    pub assume_utc: AssumeUtc,
    /// The longest payload, in bytes.
    pub payload_max_len_bytes: usize,
}

/// Whether a time without a zone is taken as UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssumeUtc {
    /// It is.
    Yes,
    /// It is rejected.
    No,
}

/// Decodes the value of a record (`None`: a tombstone).
///
/// # Errors
/// The rejection that comes first in the order of the module's table.
pub fn decode<'a>(payload: Option<&'a [u8]>, rules: &'a DecodeRules) -> Result<Event<'a>, Rejection> {
    let text = payload_text(payload, rules)?;
    let mut fields = Fields::new();
    fields.read(text)?;
    fields.event(rules)
}

/// The ids that a rejected payload still shows, for its dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// The first `audit_id` of the outermost object.
    pub audit_id: Option<Uuid>,
    /// The first `correlation_id` of the outermost object.
    pub correlation_id: Option<Uuid>,
}

/// Looks for the ids in a payload that [`decode`] rejected: up to where it stops being JSON, past a byte order
/// mark and past bytes that are not UTF-8. Best effort, total, in the time that one scan takes.
#[must_use]
pub fn identify(payload: &[u8]) -> Identity {
    let text = String::from_utf8_lossy(payload);
    let mut scanner = Scanner::new(text.trim_start_matches('\u{feff}'));
    let mut identity = Identity::default();
    if scanner.open().is_err() {
        return identity;
    }
    let mut place = Place::First;
    while let Ok(Some(Member { key, value, .. })) = scanner.member(&mut place) {
        let found = match key.unescape().as_ref() {
            "audit_id" => &mut identity.audit_id,
            "correlation_id" => &mut identity.correlation_id,
            _ => continue,
        };
        if let (None, Value::Text(text)) = (&found, value) {
            *found = field::parse_uuid(&text.unescape());
        }
    }
    identity
}

/// The payload as text, when its length and encoding allow.
fn payload_text<'a>(payload: Option<&'a [u8]>, rules: &DecodeRules) -> Result<&'a str, Rejection> {
    let Some(payload) = payload else {
        return Err(Rejection::new(RejectionCode::Tombstone, "the record has no value"));
    };
    if payload.is_empty() {
        return Err(Rejection::new(RejectionCode::EmptyPayload, "the record's value has no bytes"));
    }
    if payload.len() > rules.payload_max_len_bytes {
        let (len, max) = (payload.len(), rules.payload_max_len_bytes);
        return Err(Rejection::new(RejectionCode::TooLarge, format!("{len} bytes, at most {max}")));
    }
    std::str::from_utf8(payload).map_err(|error| {
        Rejection::new(RejectionCode::InvalidUtf8, format!("not UTF-8 from byte {}", error.valid_up_to()))
    })
}

macro_rules! fields {
    ($($name:ident,)*) => {
        /// The top level of a payload: the values of the fields that the event schema knows, and the others.
        struct Fields<'a> { $($name: Field<'a>,)* extra: Extra }

        impl<'a> Fields<'a> {
            const fn new() -> Self {
                Self { $($name: Field::absent(stringify!($name)),)* extra: Extra(String::new()) }
            }

            /// The field of that name, if the event schema knows it.
            fn named(&mut self, name: &str) -> Option<&mut Field<'a>> {
                $(if name == stringify!($name) { return Some(&mut self.$name); })*
                None
            }
        }
    };
}

fields! {
    audit_id,
    correlation_id,
    timestamp,
    operation,
    command,
    args,
    actor,
    status,
    duration_ms,
    result_signature,
    client_app,
    caller_ip_address,
    federated_source,
    query_intent,
    bypass_llm,
    trust_score,
    purview_compatible,
    metadata,
    schema_version,
    tenant_id,
}

impl<'a> Fields<'a> {
    /// Reads the whole text.
    fn read(&mut self, text: &'a str) -> Result<(), Rejection> {
        let mut scanner = Scanner::new(text);
        if !scanner.is_at_object() {
            let found = scanner.whole().map_err(|malformed| invalid_json(&malformed))?.kind();
            return Err(Rejection::new(RejectionCode::NotAnObject, format!("found {found}")));
        }
        self.read_members(&mut scanner).map_err(|malformed| invalid_json(&malformed))?;
        scanner.into_fault().map_or(Ok(()), |fault| Err(unstorable(fault)))
    }

    fn read_members(&mut self, scanner: &mut Scanner<'a>) -> Result<(), Malformed> {
        scanner.open()?;
        let mut place = Place::First;
        while let Some(member) = scanner.member(&mut place)? {
            let key = member.key.unescape();
            match self.named(&key) {
                None => {
                    self.extra.push(member.key.raw(), member.raw);
                    scanner.keep_key(key);
                }
                Some(field) if field.is_named() => scanner.note_repeated(&key),
                Some(field) => field.set(member.value),
            }
        }
        scanner.close()
    }

    /// The event, field by field in the order of rejections.
    fn event(self, rules: &'a DecodeRules) -> Result<Event<'a>, Rejection> {
        let audit_id = self.audit_id.uuid()?;
        let correlation_id = self.correlation_id.uuid()?;
        let (Reading { timestamp, precision }, time_text) = self.timestamp.time(rules.assume_utc)?;
        let mut extra = self.extra;
        if precision == Precision::Cut {
            // Digits, colons and the like: the text needs no escapes.
            extra.push("timestamp", &format!("\"{time_text}\""));
        }
        Ok(Event {
            audit_id,
            correlation_id,
            timestamp,
            operation: self.operation.name()?,
            command: self.command.required_text()?,
            args: self.args.text()?,
            actor: self.actor.name()?,
            status: self.status.status()?,
            duration_ms: self.duration_ms.duration_ms()?,
            result_signature: self.result_signature.text()?.unwrap_or(Cow::Borrowed("200")),
            client_app: self.client_app.text()?.unwrap_or(Cow::Borrowed("ritual-cli")),
            caller_ip_address: self.caller_ip_address.ip()?.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            federated_source: self.federated_source.text()?.unwrap_or(Cow::Borrowed("local")),
            query_intent: self.query_intent.text()?,
            bypass_llm: self.bypass_llm.flag()?.unwrap_or(false),
            trust_score: self.trust_score.trust_score()?.unwrap_or(TrustScore::DEFAULT),
            purview_compatible: self.purview_compatible.flag()?.unwrap_or(true),
            metadata: self.metadata.object()?.map_or(Cow::Borrowed("{}"), Cow::Borrowed),
            schema_version: self.schema_version.text()?.unwrap_or(Cow::Borrowed("2.0")),
            tenant_id: self.tenant_id.text()?.unwrap_or(Cow::Borrowed(&rules.tenant_id)),
            extra: extra.into_object(),
        })
    }
}

/// The members of `extra`, as JSON text without the closing brace.
struct Extra(String);

impl Extra {
    /// Adds a member: its key as it stands between quotes, its value as JSON.
    fn push(&mut self, key: &str, value: &str) {
        self.0.push_str(if self.0.is_empty() { "{\"" } else { ",\"" });
        self.0.push_str(key);
        self.0.push_str("\":");
        self.0.push_str(value);
    }

    fn into_object(self) -> Option<String> {
        let mut object = self.0;
        if object.is_empty() {
            return None;
        }
        object.push('}');
        Some(object)
    }
}

fn invalid_json(malformed: &Malformed) -> Rejection {
    Rejection::new(RejectionCode::InvalidJson, malformed.to_string())
}

fn unstorable(fault: Fault) -> Rejection {
    let code = match fault.kind {
        FaultKind::NulCharacter => RejectionCode::NulCharacter,
        FaultKind::LoneSurrogate => RejectionCode::LoneSurrogate,
        FaultKind::DuplicateKey => RejectionCode::DuplicateKey,
        FaultKind::NumberTooLong => RejectionCode::OutOfRange,
    };
    Rejection::new(code, fault.detail)
}
