//! Payload bytes to a valid event, or a rejection with a stable code. Pure and total: no input panics.
//!
//! Nothing is altered silently, and whatever PostgreSQL would refuse is rejected here. Of several faults the
//! first in this order is named: no value, empty, too long, not UTF-8; then the first in document order of what
//! the scanner ([`json`]) refuses; then the fields in the order of [`FIELDS`].

mod json;
mod timestamp;

use std::borrow::Cow;
use std::net::IpAddr;

use uuid::Uuid;

use self::json::{Fault, Member, RawText, Scanner, Value, number_parts};
use self::timestamp::TimeFault;
use super::event::{Event, NAME_MAX_LEN_BYTES, Status, TrustScore};
use super::rejection::{Rejection, RejectionCode};

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

/// The fields of the event schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    AuditId,
    CorrelationId,
    Timestamp,
    Operation,
    Command,
    Actor,
    Status,
    Args,
    DurationMs,
    ResultSignature,
    ClientApp,
    CallerIpAddress,
    FederatedSource,
    QueryIntent,
    BypassLlm,
    TrustScore,
    PurviewCompatible,
    Metadata,
    SchemaVersion,
    TenantId,
}

/// Names, in the order in which fields are checked. [`Field`] has the same order.
const FIELDS: [(&str, Field); 20] = [
    ("audit_id", Field::AuditId),
    ("correlation_id", Field::CorrelationId),
    ("timestamp", Field::Timestamp),
    ("operation", Field::Operation),
    ("command", Field::Command),
    ("actor", Field::Actor),
    ("status", Field::Status),
    ("args", Field::Args),
    ("duration_ms", Field::DurationMs),
    ("result_signature", Field::ResultSignature),
    ("client_app", Field::ClientApp),
    ("caller_ip_address", Field::CallerIpAddress),
    ("federated_source", Field::FederatedSource),
    ("query_intent", Field::QueryIntent),
    ("bypass_llm", Field::BypassLlm),
    ("trust_score", Field::TrustScore),
    ("purview_compatible", Field::PurviewCompatible),
    ("metadata", Field::Metadata),
    ("schema_version", Field::SchemaVersion),
    ("tenant_id", Field::TenantId),
];

/// Decodes the value of a record (`None`: a tombstone).
///
/// # Errors
/// The rejection of the first thing found wrong, in the order that the module's text gives.
pub fn decode<'a>(payload: Option<&'a [u8]>, rules: &'a DecodeRules) -> Result<Event<'a>, Rejection> {
    let payload =
        payload.ok_or_else(|| Rejection::new(RejectionCode::Tombstone, "the record has no value"))?;
    if payload.is_empty() {
        return Err(Rejection::new(RejectionCode::EmptyPayload, "the value has no bytes"));
    }
    let limit = rules.payload_max_len_bytes;
    if payload.len() > limit {
        let detail = format!("{} bytes, more than MAX_EVENT_BYTES={limit}", payload.len());
        return Err(Rejection::new(RejectionCode::TooLarge, detail));
    }
    let text = std::str::from_utf8(payload).map_err(|error| {
        Rejection::new(RejectionCode::InvalidUtf8, format!("not UTF-8 after byte {}", error.valid_up_to()))
    })?;
    let (fields, unknown) = scan(text)?;
    fields.event(unknown, rules)
}

/// What could be read of an event that was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// The audit id.
    pub audit_id: Option<Uuid>,
    /// The correlation id.
    pub correlation_id: Option<Uuid>,
}

/// Reads what identifies a rejected payload, as far as that is possible: all up to the first fault.
#[must_use]
pub fn identify(payload: &[u8]) -> Identity {
    let valid = match std::str::from_utf8(payload) {
        Ok(text) => text,
        Err(error) => payload
            .get(..error.valid_up_to())
            .and_then(|valid| std::str::from_utf8(valid).ok())
            .unwrap_or_default(),
    };
    let mut identity = Identity::default();
    let scanned = Scanner::new(valid).object(|member| {
        let slot = match &*member.key.unescaped() {
            "audit_id" => &mut identity.audit_id,
            "correlation_id" => &mut identity.correlation_id,
            _ => return,
        };
        if let Value::Text(text) = member.value {
            *slot = parse_uuid(&text.unescaped());
        }
    });
    // A fault only means that there is no more to read.
    drop(scanned);
    identity
}

/// The known fields, each in the place of its [`Field`].
struct Fields<'a>([Option<Value<'a>>; FIELDS.len()]);

fn scan(text: &str) -> Result<(Fields<'_>, Vec<Member<'_>>), Rejection> {
    let mut fields = Fields([None; FIELDS.len()]);
    let mut unknown = Vec::new();
    let mut next = 0;
    let scanned = Scanner::new(text).object(|member| {
        let key = member.key.unescaped();
        // Producers write fields in one order, so the one after the last is tried first.
        let guess = FIELDS.get(next).filter(|(name, _)| *name == key).map(|_| next);
        let index = guess.or_else(|| FIELDS.iter().position(|(name, _)| *name == key));
        match index.and_then(|index| fields.0.get_mut(index)) {
            Some(slot) => {
                *slot = Some(member.value);
                next = index.map_or(0, |index| index + 1);
            }
            None => unknown.push(member),
        }
    });
    match scanned {
        Ok(None) => Ok((fields, unknown)),
        Ok(Some(other)) => {
            Err(Rejection::new(RejectionCode::NotAnObject, format!("the document is {}", other.type_name())))
        }
        Err(fault) => Err(fault_rejection(&fault)),
    }
}

fn fault_rejection(fault: &Fault) -> Rejection {
    let (code, detail) = match fault {
        Fault::Syntax(expected, at) => {
            (RejectionCode::InvalidJson, format!("expected {expected} at byte {at}"))
        }
        Fault::TooDeep(at) => {
            (RejectionCode::InvalidJson, format!("nested deeper than {} at byte {at}", json::DEPTH_MAX))
        }
        Fault::DuplicateKey(key) => {
            (RejectionCode::DuplicateKey, format!("the key {} stands twice", excerpt(key)))
        }
        Fault::Nul(at) => (RejectionCode::NulCharacter, format!("U+0000 at byte {at}")),
        Fault::LoneSurrogate(at) => {
            (RejectionCode::LoneSurrogate, format!("half a surrogate pair at byte {at}"))
        }
        Fault::LongNumber(text) => {
            let limit = json::NUMBER_MAX_DIGIT_COUNT;
            (
                RejectionCode::OutOfRange,
                format!("{text} has more than {limit} digits before or behind the point"),
            )
        }
    };
    Rejection::new(code, detail)
}

impl<'a> Fields<'a> {
    fn event(&self, unknown: Vec<Member<'a>>, rules: &'a DecodeRules) -> Result<Event<'a>, Rejection> {
        let audit_id = self.uuid(Field::AuditId)?;
        let correlation_id = self.uuid(Field::CorrelationId)?;
        let time_text = self.required(Field::Timestamp)?;
        let time = time_text.unescaped();
        let moment =
            timestamp::parse(&time, rules.assume_utc).map_err(|fault| time_rejection(fault, &time))?;
        let operation = self.name(Field::Operation)?;
        let command = self.required(Field::Command)?.unescaped();
        let actor = self.name(Field::Actor)?;
        let status = self.status()?;
        let args = self.text(Field::Args)?;
        let duration_ms = self.duration_ms()?;
        let or = |text: Option<Cow<'a, str>>, default: &'a str| text.unwrap_or(Cow::Borrowed(default));
        Ok(Event {
            audit_id,
            correlation_id,
            timestamp: moment.timestamp,
            operation,
            command,
            args,
            actor,
            status,
            duration_ms,
            result_signature: or(self.text(Field::ResultSignature)?, "200"),
            client_app: or(self.text(Field::ClientApp)?, "ritual-cli"),
            caller_ip_address: self.ip_address()?,
            federated_source: or(self.text(Field::FederatedSource)?, "local"),
            query_intent: self.text(Field::QueryIntent)?,
            bypass_llm: self.flag(Field::BypassLlm)?.unwrap_or(false),
            trust_score: self.trust_score()?,
            purview_compatible: self.flag(Field::PurviewCompatible)?.unwrap_or(true),
            metadata: self.metadata()?,
            schema_version: or(self.text(Field::SchemaVersion)?, "2.0"),
            tenant_id: or(self.text(Field::TenantId)?, &rules.tenant_id),
            extra: extra(&unknown, moment.is_cut.then_some(time_text)),
        })
    }

    /// The field's value; null counts as absent.
    fn given(&self, field: Field) -> Option<Value<'a>> {
        let index = FIELDS.iter().position(|(_, candidate)| *candidate == field)?;
        self.0.get(index).copied().flatten().filter(|value| *value != Value::Null)
    }

    fn raw_text(&self, field: Field) -> Result<Option<RawText<'a>>, Rejection> {
        match self.given(field) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(field, "a string", &other)),
        }
    }

    fn text(&self, field: Field) -> Result<Option<Cow<'a, str>>, Rejection> {
        Ok(self.raw_text(field)?.map(|text| text.unescaped()))
    }

    fn required(&self, field: Field) -> Result<RawText<'a>, Rejection> {
        self.raw_text(field)?.ok_or_else(|| missing(field, "is missing"))
    }

    /// A required text that stands in an index: not empty, and not too long for it.
    fn name(&self, field: Field) -> Result<Cow<'a, str>, Rejection> {
        let name = self.required(field)?.unescaped();
        if name.is_empty() {
            return Err(missing(field, "is empty"));
        }
        if name.len() > NAME_MAX_LEN_BYTES {
            let detail =
                format!("{} has {} bytes, more than {NAME_MAX_LEN_BYTES}", name_of(field), name.len());
            return Err(Rejection::new(RejectionCode::TooLarge, detail));
        }
        Ok(name)
    }

    fn uuid(&self, field: Field) -> Result<Uuid, Rejection> {
        let text = self.required(field)?.unescaped();
        parse_uuid(&text).ok_or_else(|| {
            Rejection::new(RejectionCode::InvalidUuid, format!("{} is {}", name_of(field), excerpt(&text)))
        })
    }

    fn status(&self) -> Result<Status, Rejection> {
        let text = self.required(Field::Status)?.unescaped();
        [Status::Success, Status::Failure, Status::Pending]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| {
                let detail = format!("status is {}, not Success, Failure or Pending", excerpt(&text));
                Rejection::new(RejectionCode::InvalidStatus, detail)
            })
    }

    fn flag(&self, field: Field) -> Result<Option<bool>, Rejection> {
        match self.given(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(field, "a boolean", &other)),
        }
    }

    fn number(&self, field: Field) -> Result<Option<&'a str>, Rejection> {
        match self.given(field) {
            None => Ok(None),
            Some(Value::Number(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(field, "a number", &other)),
        }
    }

    /// A whole number by value: `58`, `58.0` and `5.8e1` are the same.
    fn duration_ms(&self) -> Result<Option<i32>, Rejection> {
        let Some(text) = self.number(Field::DurationMs)? else { return Ok(None) };
        let out_of_range = || {
            let detail = format!("duration_ms is {}, not from 0 to {}", excerpt(text), i32::MAX);
            Rejection::new(RejectionCode::OutOfRange, detail)
        };
        let decimal = Decimal::parse(text).ok_or_else(out_of_range)?.reduced();
        if decimal.scale > 0 {
            let detail = format!("duration_ms is {}, no whole number", excerpt(text));
            return Err(Rejection::new(RejectionCode::InvalidInteger, detail));
        }
        let value = decimal.at_scale(0).and_then(|unscaled| i32::try_from(unscaled).ok());
        value.filter(|value| !decimal.is_negative || *value == 0).map(Some).ok_or_else(out_of_range)
    }

    fn trust_score(&self) -> Result<TrustScore, Rejection> {
        let Some(text) = self.number(Field::TrustScore)? else { return Ok(TrustScore::DEFAULT) };
        let score = || {
            let given = Decimal::parse(text)?;
            // As many digits as were given, unless they are zeros that do not fit.
            let fits = (0..=i64::from(TrustScore::MAX_SCALE)).contains(&given.scale);
            let decimal = if fits { given } else { given.reduced() };
            let scale = u8::try_from(decimal.scale.max(0)).ok()?;
            let unscaled = decimal.at_scale(i64::from(scale))?;
            TrustScore::new(unscaled, scale).filter(|_| !decimal.is_negative || unscaled == 0)
        };
        score().ok_or_else(|| {
            let digits = TrustScore::MAX_SCALE;
            let detail =
                format!("trust_score is {}, not from 0 to 1 with {digits} digits at most", excerpt(text));
            Rejection::new(RejectionCode::OutOfRange, detail)
        })
    }

    fn ip_address(&self) -> Result<IpAddr, Rejection> {
        let Some(text) = self.text(Field::CallerIpAddress)? else { return Ok(IpAddr::from([127, 0, 0, 1])) };
        text.parse().map_err(|_error| {
            Rejection::new(RejectionCode::InvalidIp, format!("caller_ip_address is {}", excerpt(&text)))
        })
    }

    fn metadata(&self) -> Result<Cow<'a, str>, Rejection> {
        match self.given(Field::Metadata) {
            None => Ok(Cow::Borrowed("{}")),
            Some(Value::Object(text)) => Ok(Cow::Borrowed(text)),
            Some(other) => {
                let detail = format!("metadata is {}, not an object", other.type_name());
                Err(Rejection::new(RejectionCode::InvalidMetadata, detail))
            }
        }
    }
}

/// The JSON object of what the schema doesn't know, and of the time's full text where it was cut.
fn extra(unknown: &[Member<'_>], time: Option<RawText<'_>>) -> Option<String> {
    if unknown.is_empty() && time.is_none() {
        return None;
    }
    let time = time.map(|text| ("timestamp", format!("\"{}\"", text.raw)));
    let members = unknown.iter().map(|member| (member.key.raw, member.raw_value));
    let mut object = String::from("{");
    for (key, value) in members.chain(time.as_ref().map(|(key, value)| (*key, value.as_str()))) {
        if object.len() > 1 {
            object.push(',');
        }
        object.push('"');
        object.push_str(key);
        object.push_str("\":");
        object.push_str(value);
    }
    object.push('}');
    Some(object)
}

/// A number as `unscaled * 10^-scale`.
#[derive(Debug, Clone, Copy)]
struct Decimal {
    is_negative: bool,
    unscaled: u64,
    scale: i64,
}

impl Decimal {
    /// Reads a JSON number; `None` when it has more significant digits than 64 bits hold.
    fn parse(text: &str) -> Option<Self> {
        let (is_negative, whole, fraction, exponent) = number_parts(text);
        let digits = whole.bytes().chain(fraction.bytes());
        let kept = fraction.len() - fraction.bytes().rev().take_while(|digit| *digit == b'0').count();
        // Trailing zeros behind the point count as digits only where they fit.
        let add = |sum: Option<u64>, digit: u8| sum?.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
        let full = digits.clone().fold(Some(0), add);
        let (unscaled, fraction_len) = match full {
            Some(unscaled) => (unscaled, fraction.len()),
            None => (digits.take(whole.len() + kept).fold(Some(0), add)?, kept),
        };
        Some(Self { is_negative, unscaled, scale: i64::try_from(fraction_len).ok()? - exponent })
    }

    /// The same number with as few digits as possible.
    const fn reduced(mut self) -> Self {
        if self.unscaled == 0 {
            self.scale = 0;
        }
        while self.unscaled != 0 && self.unscaled.is_multiple_of(10) {
            self.unscaled /= 10;
            self.scale -= 1;
        }
        self
    }

    /// The number times `10^scale`, where that is whole and fits.
    fn at_scale(self, scale: i64) -> Option<u64> {
        let more = u32::try_from(scale - self.scale).ok()?;
        if self.unscaled == 0 { Some(0) } else { self.unscaled.checked_mul(10u64.checked_pow(more)?) }
    }
}

/// Hyphenated or simple form, in any letter case.
fn parse_uuid(text: &str) -> Option<Uuid> {
    matches!(text.len(), 32 | 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

fn time_rejection(fault: TimeFault, text: &str) -> Rejection {
    let text = excerpt(text);
    match fault {
        TimeFault::Syntax => {
            Rejection::new(RejectionCode::InvalidTimestamp, format!("timestamp is {text}, not RFC 3339"))
        }
        TimeFault::NoZone => {
            Rejection::new(RejectionCode::InvalidTimestamp, format!("timestamp is {text}, without a zone"))
        }
        TimeFault::OutOfRange => Rejection::new(
            RejectionCode::OutOfRange,
            format!("timestamp is {text}, not in the years 0001 to 9999"),
        ),
    }
}

fn name_of(field: Field) -> &'static str {
    FIELDS.iter().find(|(_, candidate)| *candidate == field).map_or("?", |(name, _)| name)
}

fn missing(field: Field, what: &str) -> Rejection {
    Rejection::new(RejectionCode::MissingField, format!("{} {what}", name_of(field)))
}

fn wrong_type(field: Field, expected: &str, found: &Value<'_>) -> Rejection {
    let detail = format!("{} is {}, not {expected}", name_of(field), found.type_name());
    Rejection::new(RejectionCode::WrongType, detail)
}

/// At most 60 characters of a text, in quotes.
fn excerpt(text: &str) -> String {
    let mut characters = text.chars();
    let start: String = characters.by_ref().take(60).collect();
    if characters.next().is_some() { format!("{start:?}…") } else { format!("{start:?}") }
}

#[cfg(test)]
mod tests;
