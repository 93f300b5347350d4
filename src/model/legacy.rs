//! What the predecessor kept, read as events: the rows of its table and the lines of its files.
//!
//! The predecessor (a Python daemon, and a shell wrapper beside it) wrote each event up to three times: as a row of
//! `core.audit_events`, as a line of `purview/audit_YYYYMMDD.jsonl` and as a line of `trust/trust_YYYYMMDD.jsonl`.
//! While its database was away only the lines were written. None of them is the event as it came:
//!
//! | form | what it lacks |
//! | --- | --- |
//! | a row | unknown top-level fields; digits of `trust_score` behind the second; time behind the microsecond, rounded |
//! | a Purview line | `metadata`, `purview_compatible`, unknown top-level fields |
//! | a Purview line of ours (`export purview`, known by `resourceId`) | unknown top-level fields |
//! | a trust line | all but nine fields |
//! | an event, as the wrapper wrote it to the Purview file when all else failed (over many lines) | nothing |
//!
//! [`read_row`] and [`read_line`] turn them into a payload as producers write it, for [`super::decode`]. A field that a
//! form lacks is *assumed*: it gets the event schema's default, and is named in the event's metadata under
//! [`IMPORT_MARK`], with the form: an auditor sees what was written down and what was filled in. A NULL in a row, or a
//! `null` in a line, lacks its field too where the schema has a default; where it has none, the field stays null.
//!
//! # The same event, told twice
//!
//! A row and a line of one event differ in what they lack, and from the record in Kafka, so comparing them whole would
//! take each for a conflict. [`Legacy::relation`] compares what the line tells, field by field and by value, with the
//! stored event: they agree, and it is a duplicate; or the line says something else, and it is a conflict, which keeps
//! the line. What a line adds to an event that was stored from a poorer form is a conflict too, so that it is not lost.
//!
//! Numbers in metadata are compared as IEEE 754 doubles, as the predecessor's JSON reader made them such; trust scores by
//! two digits where one of the two has no more, as the table rounded them.

mod lines;
mod same;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde_json::Value as Json;

pub use self::lines::{LINES_MAX_LEN_BYTES, LegacyRecord, Line, LineRecords};
pub use self::same::{CONFLICT_SPAN_MICROS, Relation};
use super::json::{Malformed, Member, Place, Scanner, Value};
use super::projection::{METADATA_PREFIX, PROPERTY_NAMES, is_taken};

/// The key of metadata that says from which form an event was imported, and which of its fields were assumed.
pub const IMPORT_MARK: &str = "audit-consumer.imported";

/// The tenant that the predecessor wrote for events that named none.
const TENANT_DEFAULT: &str = "spel-local-forge";
/// The actor that the predecessor's Purview lines show for events that named none: Python's word for nothing.
const NOBODY: &str = "None";
/// How many digits of a trust score the table keeps.
const ROW_SCALE: u8 = 2;

/// The fields of the event schema.
const FIELDS: [&str; 20] = [
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
];

/// Those of them that are null when an event does not tell them: they have no default.
const NULLABLE: [&str; 3] = ["args", "duration_ms", "query_intent"];

/// The fields of a trust line.
const TRUST_FIELDS: [&str; 9] = [
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

/// In what form something was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyForm {
    /// A row of the table.
    Row,
    /// A Purview line.
    Purview,
    /// A trust line.
    Trust,
    /// An event as producers write it, or what is none of the others.
    Event,
}

impl LegacyForm {
    /// The form's name, as metadata has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Purview => "purview",
            Self::Trust => "trust",
            Self::Event => "event",
        }
    }
}

/// A row or line, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Legacy<'a> {
    /// Its form.
    pub form: LegacyForm,
    /// The event as producers write it. What can't be an event stands here as it came, so that decoding names why.
    pub payload: Cow<'a, [u8]>,
    /// The fields that the form does not tell.
    assumed: Vec<&'static str>,
}

impl<'a> Legacy<'a> {
    fn as_it_came(bytes: &'a [u8]) -> Self {
        Self { form: LegacyForm::Event, payload: Cow::Borrowed(bytes), assumed: Vec::new() }
    }

    /// The same with bytes of its own.
    #[must_use]
    pub fn into_owned(self) -> Legacy<'static> {
        Legacy { form: self.form, payload: Cow::Owned(self.payload.into_owned()), assumed: self.assumed }
    }
}

/// Reads a row of the predecessor's table, as `to_jsonb` prints it: its columns are named like the event's fields, and
/// other columns become unknown fields.
#[must_use]
pub fn read_row(row: &[u8]) -> Legacy<'_> {
    let Some(members) = members_of(row) else { return Legacy::as_it_came(row) };
    let assumed = assumed(members.iter().map(|member| (&*member.name, member.value)));
    if assumed.is_empty() {
        return Legacy { form: LegacyForm::Row, ..Legacy::as_it_came(row) };
    }
    let metadata = members.iter().find(|member| member.name == "metadata");
    let others = members.iter().filter(|member| member.name != "metadata");
    let mut payload = Object::default();
    others.for_each(|member| payload.push(member.key, member.raw));
    match metadata.map(|member| member.value) {
        // What is no object is left for decoding to reject.
        Some(Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::Array) => {
            return Legacy::as_it_came(row);
        }
        Some(Value::Object(raw)) => payload.push("metadata", &with_mark(raw, LegacyForm::Row, &assumed)),
        Some(Value::Null) | None => payload.push("metadata", &with_mark("{}", LegacyForm::Row, &assumed)),
    }
    Legacy { form: LegacyForm::Row, payload: payload.into_payload(), assumed }
}

/// Reads a line of the predecessor's files; by what it holds, whichever file it stands in.
#[must_use]
pub fn read_line(line: &[u8]) -> Legacy<'_> {
    let Some(members) = members_of(line) else { return Legacy::as_it_came(line) };
    let find = |name: &str| members.iter().find(|member| member.name == name);
    let properties = find("operationName").and(find("properties")).map(|member| member.value);
    if let Some(Value::Object(properties)) = properties {
        return purview(&members, properties).unwrap_or_else(|_malformed| Legacy::as_it_came(line));
    }
    let is_trust = members.len() == TRUST_FIELDS.len()
        && TRUST_FIELDS.iter().all(|field| members.iter().any(|member| member.name == *field));
    if is_trust { trust(&members) } else { Legacy::as_it_came(line) }
}

fn trust<'a>(members: &[Named<'_>]) -> Legacy<'a> {
    let assumed = assumed(members.iter().map(|member| (&*member.name, member.value)));
    let mut payload = Object::default();
    members.iter().for_each(|member| payload.push(member.key, member.raw));
    payload.push("metadata", &with_mark("{}", LegacyForm::Trust, &assumed));
    Legacy { form: LegacyForm::Trust, payload: payload.into_payload(), assumed }
}

/// The fields that `told` leaves to be filled in: those that it does not name, and nulls where there is a default.
fn assumed<'a>(told: impl Iterator<Item = (&'a str, Value<'a>)> + Clone) -> Vec<&'static str> {
    let is_assumed = |field: &&str| match told.clone().find(|(name, _)| name == field) {
        Some((_, value)) => matches!(value, Value::Null) && !NULLABLE.contains(field),
        None => true,
    };
    FIELDS.into_iter().filter(is_assumed).collect()
}

/// Where a key of a Purview line stands in an event; `None`: it is no field's.
fn field_of(key: &str) -> Option<&'static str> {
    Some(match key {
        "time" => "timestamp",
        "operationName" => "operation",
        "correlationId" => "correlation_id",
        "resultType" => "status",
        "resultSignature" => "result_signature",
        "durationMs" => "duration_ms",
        "callerIpAddress" => "caller_ip_address",
        _ => return None,
    })
}

/// The same of its properties.
fn field_of_property(key: &str) -> Option<&'static str> {
    Some(match key {
        "command" => "command",
        "args" => "args",
        "clientApp" => "client_app",
        "schemaVersion" => "schema_version",
        "auditId" => "audit_id",
        "tenantId" => "tenant_id",
        "federatedSource" => "federated_source",
        "bypassLLM" => "bypass_llm",
        "queryIntent" => "query_intent",
        "trustScore" => "trust_score",
        _ => return None,
    })
}

/// Turns a Purview line back. `resource` repeats the command; category, level and resource id are the writer's
/// settings, or follow from the status: they are not the event's. An unknown key is an unknown field.
fn purview<'a>(members: &[Named<'_>], properties: &str) -> Result<Legacy<'a>, Malformed> {
    let properties = scan(properties)?;
    let is_ours = members.iter().any(|member| member.name == "resourceId");
    let (mut payload, mut told) = (Object::default(), Vec::new());
    for member in members {
        match (&*member.name, field_of(&member.name)) {
            (_, Some(field)) => {
                payload.push(field, member.raw);
                told.push((field, member.value));
            }
            ("identity", _) => {
                payload.push("actor", &actor(member.raw));
                told.push(("actor", member.value));
            }
            ("properties" | "category" | "level" | "resourceId" | "tenantId" | "operationVersion", _) => {}
            _ => payload.push(member.key, member.raw),
        }
    }
    let command = properties.iter().find(|member| member.name == "command").map(|member| member.raw);
    let mut metadata = Object::default();
    for member in &properties {
        match (&*member.name, field_of_property(&member.name)) {
            (_, Some(field)) => {
                payload.push(field, member.raw);
                told.push((field, member.value));
            }
            ("resource", _) if Some(member.raw) == command => {}
            (name, _) if PROPERTY_NAMES.contains(&name) => payload.push(member.key, member.raw),
            (name, _) => match name.strip_prefix(METADATA_PREFIX).filter(|_| is_taken(name)) {
                Some(bare) => metadata.push(&escaped(bare), member.raw),
                None => metadata.push(member.key, member.raw),
            },
        }
    }
    if !metadata.0.is_empty() {
        told.push(("metadata", Value::Object("{}")));
    }
    // What we leave out of a line of ours is not filled in: it was so.
    let assumed = if is_ours { Vec::new() } else { assumed(told.iter().copied()) };
    let metadata = metadata.into_text();
    let metadata =
        if assumed.is_empty() { metadata } else { with_mark(&metadata, LegacyForm::Purview, &assumed) };
    payload.push("metadata", &metadata);
    Ok(Legacy { form: LegacyForm::Purview, payload: payload.into_payload(), assumed })
}

/// The actor in an `identity`, as JSON: the claim's value without what stands behind its last `@`.
fn actor(identity: &str) -> String {
    let claim = serde_json::from_str::<Json>(identity).ok().and_then(|mut identity| {
        let claim = identity.get_mut("claim")?.take();
        match claim {
            Json::Array(entries) => entries.first()?.get("val")?.as_str().map(str::to_owned),
            Json::Object(entries) => entries.values().next()?.as_str().map(str::to_owned),
            _ => None,
        }
    });
    let name = claim.as_deref().map(|user| user.rsplit_once('@').map_or(user, |(name, _domain)| name));
    match name {
        Some(name) if name != NOBODY => Json::from(name).to_string(),
        _ => "null".to_owned(),
    }
}

/// `metadata` with our mark. What stood under the mark's key is kept in it, as `before`.
fn with_mark(metadata: &str, form: LegacyForm, assumed: &[&str]) -> String {
    let Ok(members) = scan(metadata) else { return metadata.to_owned() };
    let (mut object, mut mark) = (Object::default(), Object::default());
    for member in &members {
        match &*member.name {
            IMPORT_MARK => mark.push("before", member.raw),
            _ => object.push(member.key, member.raw),
        }
    }
    mark.push("assumed", &serde_json::json!(assumed).to_string());
    mark.push("from", &serde_json::json!(form.as_str()).to_string());
    object.push(IMPORT_MARK, &mark.into_text());
    object.into_text()
}

/// A member of an object.
#[derive(Debug)]
struct Named<'a> {
    name: Cow<'a, str>,
    /// The name as it stands between its quotes.
    key: &'a str,
    value: Value<'a>,
    raw: &'a str,
}

/// The members of an object, or `None` when it is no object or decoding would find a fault in it.
fn members_of(bytes: &[u8]) -> Option<Vec<Named<'_>>> {
    scan(std::str::from_utf8(bytes).ok()?).ok()
}

fn scan(text: &str) -> Result<Vec<Named<'_>>, Malformed> {
    let mut scanner = Scanner::new(text);
    let (mut members, mut place) = (Vec::new(), Place::First);
    scanner.open()?;
    while let Some(Member { key, value, raw }) = scanner.member(&mut place)? {
        members.push(Named { name: key.unescape(), key: key.raw(), value, raw });
    }
    scanner.close()?;
    Ok(members)
}

fn escaped(text: &str) -> String {
    let quoted = Json::from(text).to_string();
    quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_default().to_owned()
}

/// An object that is being written: its members, each with a comma before it but the first.
#[derive(Debug, Default)]
struct Object(String);

impl Object {
    /// Adds a member: its key as it stands between quotes, its value as JSON.
    fn push(&mut self, key: &str, raw: &str) {
        let comma = if self.0.is_empty() { "" } else { "," };
        self.0.extend([comma, "\"", key, "\":", raw]);
    }

    fn into_text(self) -> String {
        format!("{{{}}}", self.0)
    }

    fn into_payload<'a>(self) -> Cow<'a, [u8]> {
        Cow::Owned(self.into_text().into_bytes())
    }
}
