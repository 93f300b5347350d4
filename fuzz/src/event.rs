//! Decoding: what is accepted says what `serde_json` and `chrono` read in the same bytes, and can be stored, shown and
//! decoded again; what is refused is refused for the reason that the text gives.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use audit_consumer::model::decode::{AssumeUtc, DecodeRules, decode, identify};
use audit_consumer::model::event::{Event, NAME_MAX_LEN_BYTES, Status, TrustScore};
use audit_consumer::model::position::{Offset, Partition, StreamId, StreamPartition};
use audit_consumer::model::projection::{EventRow, LineFormat, Projection, ProjectionRules};
use audit_consumer::model::rejection::{DETAIL_MAX_LEN_BYTES, Rejection, RejectionCode};
use audit_consumer::store::copy::{encode_event, ids_of};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

/// The deepest nesting that is decoded.
const LEVEL_MAX: u32 = 64;
/// Longer than any line that a fuzzer's payload becomes.
const LINE_MAX_LEN_BYTES: usize = 1 << 26;
const TENANT: &str = "default";

/// Checks everything that holds for a record's value.
pub fn check(payload: &[u8]) {
    let strict = rules(AssumeUtc::No, 1 << 20);
    let lenient = rules(AssumeUtc::Yes, 1 << 20);
    let decoded = decode(Some(payload), &strict);
    assert_eq!(decoded, decode(Some(payload), &strict), "the same bytes are decoded the same");
    match (&decoded, decode(Some(payload), &lenient)) {
        (Ok(event), lenient) => assert_eq!(Ok(event), lenient.as_ref(), "a zone is taken as it stands"),
        (Err(_), Ok(event)) => {
            assert_eq!(code(&decoded), Some(RejectionCode::InvalidTimestamp), "only the zone was missing");
            check_event(payload, &event, AssumeUtc::Yes);
        }
        (Err(rejection), Err(other)) => {
            let is_of_the_time = rejection.code == RejectionCode::InvalidTimestamp;
            assert!(is_of_the_time || *rejection == other, "{rejection}, and {other} without a zone");
        }
    }
    match &decoded {
        Ok(event) => check_event(payload, event, AssumeUtc::No),
        Err(rejection) => check_rejection(payload, rejection),
    }
    if let Some(len_bytes) = payload.len().checked_sub(1) {
        let too_short = rules(AssumeUtc::No, len_bytes);
        assert_eq!(code(&decode(Some(payload), &too_short)), Some(RejectionCode::TooLarge));
    }
}

fn rules(assume_utc: AssumeUtc, payload_max_len_bytes: usize) -> DecodeRules {
    DecodeRules { tenant_id: TENANT.to_owned(), assume_utc, payload_max_len_bytes }
}

fn code(decoded: &Result<Event<'_>, Rejection>) -> Option<RejectionCode> {
    decoded.as_ref().err().map(|rejection| rejection.code)
}

// --- what is refused ----------------------------------------------------------------------------------------------

fn check_rejection(payload: &[u8], rejection: &Rejection) {
    let detail = rejection.detail();
    assert!(
        !detail.is_empty() && detail.len() <= DETAIL_MAX_LEN_BYTES && !detail.contains('\0'),
        "{detail:?}"
    );
    // The others need a record without a value, or PostgreSQL.
    let of_decoding =
        [RejectionCode::Tombstone, RejectionCode::AuditIdConflict, RejectionCode::RefusedByDatabase];
    assert!(!of_decoding.contains(&rejection.code), "{rejection}");
    let of_text = [
        RejectionCode::EmptyPayload,
        RejectionCode::InvalidUtf8,
        RejectionCode::InvalidJson,
        RejectionCode::NotAnObject,
        RejectionCode::NulCharacter,
        RejectionCode::LoneSurrogate,
        RejectionCode::DuplicateKey,
    ];
    match verdict(payload) {
        Verdict::Refused(code) => assert_eq!(rejection.code, code, "{rejection}"),
        Verdict::ForTheFields => {
            assert!(!of_text.contains(&rejection.code), "{rejection}, of a text without it")
        }
        Verdict::Unknown => {}
    }
}

/// What is to be said before any field is looked at, found another way.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Refused(RejectionCode),
    ForTheFields,
    /// `serde_json` can't read it as values, such as a number beyond a double, which `numeric` holds.
    Unknown,
}

fn verdict(payload: &[u8]) -> Verdict {
    if payload.is_empty() {
        return Verdict::Refused(RejectionCode::EmptyPayload);
    }
    let Ok(text) = std::str::from_utf8(payload) else { return Verdict::Refused(RejectionCode::InvalidUtf8) };
    if serde_json::from_str::<IgnoredAny>(text).is_err() || level(text) > LEVEL_MAX {
        return Verdict::Refused(RejectionCode::InvalidJson);
    }
    if !text.trim_ascii_start().starts_with('{') {
        return Verdict::Refused(RejectionCode::NotAnObject);
    }
    match serde_json::from_str::<Content>(text) {
        Ok(Content { has_nul: true, .. }) => Verdict::Refused(RejectionCode::NulCharacter),
        Ok(Content { repeats_key: true, .. }) => Verdict::Refused(RejectionCode::DuplicateKey),
        Ok(_) => Verdict::ForTheFields,
        // Where it stopped a U+0000 may follow, which comes first.
        Err(error) if error.to_string().contains("hex escape") && !text.contains("\\u0000") => {
            Verdict::Refused(RejectionCode::LoneSurrogate)
        }
        Err(_) => Verdict::Unknown,
    }
}

/// How deep well formed JSON nests.
fn level(json: &str) -> u32 {
    let (mut level, mut level_max, mut is_inside, mut is_escaped) = (0u32, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_inside = !is_inside,
            b'{' | b'[' if !is_inside => level += 1,
            b'}' | b']' if !is_inside => level -= 1,
            _ => {}
        }
        level_max = level_max.max(level);
    }
    level_max
}

/// What is in JSON that `jsonb` does not keep.
#[derive(Debug, Default)]
struct Content {
    has_nul: bool,
    repeats_key: bool,
}

impl Content {
    fn add(&mut self, other: &Self) {
        self.has_nul |= other.has_nul;
        self.repeats_key |= other.repeats_key;
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Content, E> {
        Ok(Content::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Content, E> {
        Ok(Content::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Content, E> {
        Ok(Content::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Content, E> {
        Ok(Content::default())
    }

    fn visit_str<E>(self, text: &str) -> Result<Content, E> {
        Ok(Content { has_nul: text.contains('\0'), repeats_key: false })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut content = Content::default();
        while let Some(item) = items.next_element::<Content>()? {
            content.add(&item);
        }
        Ok(content)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Content, A::Error> {
        let (mut content, mut keys) = (Content::default(), HashSet::new());
        while let Some((key, value)) = members.next_entry::<String, Content>()? {
            content.add(&value);
            content.has_nul |= key.contains('\0');
            content.repeats_key |= !keys.insert(key);
        }
        Ok(content)
    }
}

// --- what is accepted ---------------------------------------------------------------------------------------------

fn check_event(payload: &[u8], event: &Event<'_>, assume_utc: AssumeUtc) {
    assert!(!matches!(verdict(payload), Verdict::Refused(_)), "{:?}, and it is accepted", verdict(payload));
    let identity = identify(payload);
    assert_eq!(
        (identity.audit_id, identity.correlation_id),
        (Some(event.audit_id), Some(event.correlation_id))
    );
    for name in [&event.operation, &event.actor] {
        assert!(!name.is_empty() && name.len() <= NAME_MAX_LEN_BYTES, "{name:?}");
    }
    assert!(texts(event).iter().all(|text| !text.contains('\0')), "{event:?}");
    assert!(is_object(&event.metadata) && event.extra.as_deref().is_none_or(is_object), "{event:?}");
    check_tuple(event);
    // It refuses numbers beyond a double, which `numeric` holds.
    let Ok(whole) = serde_json::from_slice::<Value>(payload) else { return };
    check_fields(&whole, event);
    check_time(&whole, event, assume_utc);
    check_lines(event, assume_utc);
}

fn texts<'a>(event: &'a Event<'_>) -> [&'a str; 10] {
    let Event { operation, command, actor, result_signature, client_app, federated_source, .. } = event;
    let Event { args, query_intent, schema_version, tenant_id, .. } = event;
    let optional = [args.as_deref(), query_intent.as_deref()].map(Option::unwrap_or_default);
    let [args, query_intent] = optional;
    [
        operation,
        command,
        args,
        actor,
        result_signature,
        client_app,
        federated_source,
        query_intent,
        schema_version,
        tenant_id,
    ]
}

fn is_object(json: &str) -> bool {
    json.starts_with('{') && serde_json::from_str::<IgnoredAny>(json).is_ok()
}

/// Field by field, by value, with the defaults of the event schema.
fn check_fields(whole: &Value, event: &Event<'_>) {
    let given = |name: &str| whole.get(name).filter(|value| !value.is_null());
    let text = |name: &str| given(name).map(|value| value.as_str().unwrap());
    let expect = [
        text("operation").unwrap(),
        text("command").unwrap(),
        text("args").unwrap_or_default(),
        text("actor").unwrap(),
        text("result_signature").unwrap_or("200"),
        text("client_app").unwrap_or("ritual-cli"),
        text("federated_source").unwrap_or("local"),
        text("query_intent").unwrap_or_default(),
        text("schema_version").unwrap_or("2.0"),
        text("tenant_id").unwrap_or(TENANT),
    ];
    assert_eq!(texts(event), expect);
    assert_eq!(
        (event.args.is_some(), event.query_intent.is_some()),
        (text("args").is_some(), text("query_intent").is_some())
    );
    for (name, id) in [("audit_id", event.audit_id), ("correlation_id", event.correlation_id)] {
        assert_eq!(text(name).map(|text| text.parse::<Uuid>().unwrap()), Some(id));
    }
    assert_eq!(text("status").and_then(Status::read), Some(event.status));
    let truth = |name: &str, default| given(name).map_or(default, |value| value.as_bool().unwrap());
    assert_eq!(
        (event.bypass_llm, event.purview_compatible),
        (truth("bypass_llm", false), truth("purview_compatible", true))
    );
    let address =
        text("caller_ip_address").map_or(IpAddr::from([127, 0, 0, 1]), |text| text.parse().unwrap());
    assert_eq!(event.caller_ip_address, address);
    match (event.duration_ms, given("duration_ms")) {
        (None, None) => {}
        // Whole numbers below 2^31, so a double has them exactly but for what a long fraction rounds away.
        (Some(duration), Some(given)) => {
            assert!((f64::from(duration) - given.as_f64().unwrap()).abs() < 0.5, "{given}")
        }
        (duration, given) => panic!("{duration:?} of {given:?}"),
    }
    let score: f64 = decimal(event.trust_score).parse().unwrap();
    let given_score = given("trust_score").map_or(0.8, |value| value.as_f64().unwrap());
    assert!((score - given_score).abs() < 1e-9 && (0.0..=1.0).contains(&score), "{score} of {given_score}");
    let metadata: Value = serde_json::from_str(&event.metadata).unwrap();
    assert_eq!(&metadata, given("metadata").unwrap_or(&serde_json::json!({})));
    check_extra(whole, event);
}

/// `extra` holds all that no column has, and of the fields only the time, when it was cut.
fn check_extra(whole: &Value, event: &Event<'_>) {
    let mut unknown = whole.as_object().unwrap().clone();
    let columns = Projection::Events.columns();
    let is_column = |name: &str| name != "extra" && columns.contains(&name);
    unknown.retain(|name, _| !is_column(name));
    let mut extra = match event.extra.as_deref() {
        None => serde_json::Map::new(),
        Some(extra) => serde_json::from_str(extra).unwrap(),
    };
    if let Some(time) = extra.remove("timestamp") {
        assert_eq!(Some(&time), whole.get("timestamp"));
    }
    assert_eq!(extra, unknown);
}

/// The time is chrono's, cut to microseconds, and kept whole in `extra` when that lost something.
fn check_time(whole: &Value, event: &Event<'_>, assume_utc: AssumeUtc) {
    let text = whole.get("timestamp").and_then(Value::as_str).unwrap();
    let with_zone = match assume_utc {
        AssumeUtc::No => text.to_owned(),
        AssumeUtc::Yes => format!("{text}Z"),
    };
    let time = chrono::DateTime::parse_from_rfc3339(&with_zone);
    let time = time.unwrap_or_else(|error| panic!("{with_zone:?} is no time to chrono: {error}"));
    assert_eq!(time.timestamp_micros(), event.timestamp.as_unix_micros(), "{with_zone:?}");
    let digits = text.split_once('.').map_or("", |(_, fraction)| fraction);
    let digits = digits.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let is_cut = digits.bytes().skip(6).any(|digit| digit != b'0');
    assert_eq!(is_cut, event.extra.as_deref().is_some_and(|extra| member(extra, "timestamp")), "{text:?}");
}

fn member(object: &str, key: &str) -> bool {
    serde_json::from_str::<Value>(object).unwrap().get(key).is_some()
}

/// The score as PostgreSQL prints `numeric`.
fn decimal(score: TrustScore) -> String {
    let scale = usize::from(score.scale());
    let digits = format!("{:0width$}", score.unscaled(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
}

// --- what becomes of it -------------------------------------------------------------------------------------------

/// The tuple for COPY is well formed, and its texts are the event's.
fn check_tuple(event: &Event<'_>) {
    let key = StreamPartition { stream: StreamId(Uuid::nil()), partition: Partition(7) };
    let mut tuple = Vec::new();
    encode_event(&mut tuple, event, None, (key, Offset::new(42).unwrap()));
    assert_eq!(ids_of(&tuple), Some((event.audit_id, event.correlation_id)));
    let (count, mut rest) = tuple.split_first_chunk::<2>().unwrap();
    let mut fields = Vec::new();
    while let Some((len_bytes, behind)) = rest.split_first_chunk::<4>() {
        let len_bytes = i32::from_be_bytes(*len_bytes);
        let (field, behind) = behind.split_at(usize::try_from(len_bytes).unwrap_or(0));
        fields.push((len_bytes >= 0).then_some(field));
        rest = behind;
    }
    assert_eq!((rest, usize::from(u16::from_be_bytes(*count))), (&[][..], fields.len()));
    let names: Vec<&str> = audit_consumer::store::copy::EVENT_COLUMNS.split(',').map(str::trim).collect();
    assert_eq!(names.len(), fields.len());
    let field = |name: &str| fields[names.iter().position(|found| *found == name).unwrap()];
    for (name, text) in [
        ("operation", Some(&*event.operation)),
        ("command", Some(&*event.command)),
        ("args", event.args.as_deref()),
        ("actor", Some(&*event.actor)),
        ("status", Some(event.status.as_str())),
        ("tenant_id", Some(&*event.tenant_id)),
        ("query_intent", event.query_intent.as_deref()),
    ] {
        assert_eq!(field(name), text.map(str::as_bytes), "{name}");
    }
    let jsonb = |json: &str| [b"\x01", json.as_bytes()].concat();
    assert_eq!(field("metadata"), Some(&*jsonb(&event.metadata)));
    assert_eq!(field("extra").map(<[u8]>::to_vec), event.extra.as_deref().map(jsonb));
    assert_eq!(
        field("duration_ms"),
        event.duration_ms.map(i32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice)
    );
    assert_eq!(numeric(field("trust_score").unwrap()), exact(event.trust_score));
}

/// A binary `numeric` that is not negative, in units of `10^-16`, and its scale.
fn numeric(field: &[u8]) -> (u128, i16) {
    let words: Vec<i16> = field.chunks(2).map(|pair| i16::from_be_bytes(pair.try_into().unwrap())).collect();
    let [count, weight, sign, scale, ref digits @ ..] = words[..] else { panic!("{field:?}") };
    assert_eq!((usize::try_from(count), sign), (Ok(digits.len()), 0));
    let mut value = 0;
    for (place, digit) in (-4..=i32::from(weight)).rev().zip(digits) {
        value += u128::try_from(*digit).unwrap() * 10u128.pow(u32::try_from(16 + 4 * place).unwrap());
    }
    (value, scale)
}

fn exact(score: TrustScore) -> (u128, i16) {
    (u128::from(score.unscaled()) * 10u128.pow(16 - u32::from(score.scale())), score.scale().into())
}

/// Lines of the stored event are one JSON object each; the event line is the event again, and gives itself again.
fn check_lines(event: &Event<'_>, assume_utc: AssumeUtc) {
    let line = check_line(event, Projection::Events);
    for projection in [Projection::Purview, Projection::Trust, Projection::O365] {
        check_line(event, projection);
    }
    let rules = rules(assume_utc, LINE_MAX_LEN_BYTES);
    let again = decode(Some(line.as_bytes()), &rules);
    let again = again.unwrap_or_else(|rejection| panic!("{rejection}: {line}"));
    let differing = Event { metadata: again.metadata.clone(), extra: again.extra.clone(), ..event.clone() };
    assert_eq!(again, differing, "{line}");
    assert_eq!(check_line(&again, Projection::Events), line);
}

/// The text of a `jsonb`: of equal keys the last, in an order of its own, and every digit of a number.
fn jsonb(json: &str) -> String {
    type Raw = Box<RawValue>;
    let text = |text: &str| serde_json::to_string(text).unwrap();
    let json = json.trim();
    if let Ok(object) = serde_json::from_str::<BTreeMap<String, Raw>>(json) {
        let entries = object.iter().map(|(key, value)| format!("{}:{}", text(key), jsonb(value.get())));
        return format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    }
    if let Ok(list) = serde_json::from_str::<Vec<Raw>>(json) {
        let items = list.iter().map(|value| jsonb(value.get()));
        return format!("[{}]", items.collect::<Vec<_>>().join(","));
    }
    serde_json::from_str::<String>(json).map_or_else(|_no_text| json.to_owned(), |string| text(&string))
}

fn check_line(event: &Event<'_>, projection: Projection) -> String {
    let (score, address) = (decimal(event.trust_score), event.caller_ip_address.to_string());
    let (metadata, extra) = (jsonb(&event.metadata), event.extra.as_deref().map(jsonb));
    let row = EventRow {
        audit_id: event.audit_id,
        correlation_id: event.correlation_id,
        timestamp: event.timestamp,
        operation: &event.operation,
        command: &event.command,
        args: event.args.as_deref(),
        actor: &event.actor,
        status: event.status,
        duration_ms: event.duration_ms,
        result_signature: &event.result_signature,
        client_app: &event.client_app,
        caller_ip_address: &address,
        federated_source: &event.federated_source,
        query_intent: event.query_intent.as_deref(),
        bypass_llm: event.bypass_llm,
        trust_score: &score,
        purview_compatible: event.purview_compatible,
        metadata: &metadata,
        schema_version: &event.schema_version,
        tenant_id: &event.tenant_id,
        extra: extra.as_deref(),
    };
    let mut line = String::new();
    projection.write_line(&row, &ProjectionRules::default(), LineFormat::JsonLines, &mut line);
    assert!(line.ends_with("}\n") && line.matches('\n').count() == 1, "{line}");
    let content: Content = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert!(!content.has_nul && !content.repeats_key, "{line}");
    line
}
