//! Rows and lines as the predecessor wrote them, and what they become.

use proptest::prelude::*;

use super::same::is_same_object;
use super::*;
use crate::model::decode::{AssumeUtc, DecodeRules, decode};
use crate::model::event::Event;
use crate::model::projection::{EventRow, LineFormat, Projection, ProjectionRules};
use crate::model::rejection::RejectionCode as Code;
use crate::model::sample::SamplePlan;

/// An event of the predecessor's topic, as its handler built it.
const EVENT: &str = r#"{"audit_id":"5b1f0c7e-51d6-4a53-9f0d-0d8f3c1f2a10","correlation_id":"a3c0f6c2-7a44-4c62-8d9f-4f0f6f0f9c11","timestamp":"2026-02-17T09:30:00.123Z","operation":"ritual.query","command":"query","args":"what's \"next\"","actor":"alice@corp","status":"Success","duration_ms":58,"result_signature":"200","client_app":"ritual-cli","caller_ip_address":"10.1.2.3","federated_source":"kafka","query_intent":"wish_queue","bypass_llm":true,"trust_score":0.876,"purview_compatible":true,"metadata":{"region":"eu","n":1.50},"schema_version":"2.0","tenant_id":"spel-local-forge"}"#;

/// The line that the predecessor's daemon wrote of it.
const PURVIEW: &str = r#"{"time": "2026-02-17T09:30:00.123Z", "operationName": "ritual.query", "category": "FederatedQuery", "correlationId": "a3c0f6c2-7a44-4c62-8d9f-4f0f6f0f9c11", "resultType": "Success", "resultSignature": "200", "durationMs": 58, "callerIpAddress": "10.1.2.3", "identity": {"claim": [{"typ": "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn", "val": "alice@corp@local"}]}, "properties": {"resource": "query", "command": "query", "args": "what's \"next\"", "clientApp": "ritual-cli", "schemaVersion": "2.0", "auditId": "5b1f0c7e-51d6-4a53-9f0d-0d8f3c1f2a10", "tenantId": "spel-local-forge", "federatedSource": "kafka", "bypassLLM": true, "queryIntent": "wish_queue", "trustScore": 0.876}}"#;

const TRUST: &str = r#"{"timestamp": "2026-02-17T09:30:00.123Z", "audit_id": "5b1f0c7e-51d6-4a53-9f0d-0d8f3c1f2a10", "correlation_id": "a3c0f6c2-7a44-4c62-8d9f-4f0f6f0f9c11", "operation": "ritual.query", "status": "Success", "trust_score": 0.876, "actor": "alice@corp", "command": "query", "args": "what's \"next\""}"#;

/// Its row as `to_jsonb` prints it: two digits of the score, keys in another order.
const ROW: &str = r#"{"args": "what's \"next\"", "actor": "alice@corp", "status": "Success", "command": "query", "audit_id": "5b1f0c7e-51d6-4a53-9f0d-0d8f3c1f2a10", "metadata": {"n": 1.5, "region": "eu"}, "operation": "ritual.query", "tenant_id": "spel-local-forge", "timestamp": "2026-02-17T09:30:00.123+00:00", "bypass_llm": true, "client_app": "ritual-cli", "duration_ms": 58, "trust_score": 0.88, "query_intent": "wish_queue", "correlation_id": "a3c0f6c2-7a44-4c62-8d9f-4f0f6f0f9c11", "schema_version": "2.0", "federated_source": "kafka", "result_signature": "200", "caller_ip_address": "10.1.2.3", "purview_compatible": true}"#;

fn rules() -> DecodeRules {
    DecodeRules { tenant_id: "acme".into(), assume_utc: AssumeUtc::No, payload_max_len_bytes: 1 << 20 }
}

fn read(text: &str) -> Legacy<'_> {
    if text == ROW { read_row(text.as_bytes()) } else { read_line(text.as_bytes()) }
}

#[track_caller]
fn agrees(told: &Legacy<'_>, stored: &[u8]) -> bool {
    let rules = rules();
    let event = decode(Some(&told.payload), &rules).unwrap();
    let stored = decode(Some(stored), &rules).unwrap();
    told.relation(&event, &stored, &rules.tenant_id) == Relation::Same
}

#[track_caller]
fn check(text: &str, form: LegacyForm, metadata: &str) {
    let legacy = read(text);
    assert_eq!(legacy.form, form);
    let rules = rules();
    let event = decode(Some(&legacy.payload), &rules).unwrap();
    assert_eq!(event.metadata, metadata);
    assert!(agrees(&legacy, EVENT.as_bytes()), "{form:?}: {}", String::from_utf8_lossy(&legacy.payload));
}

#[test]
fn every_form_of_an_event_is_that_event() {
    check(EVENT, LegacyForm::Event, r#"{"region":"eu","n":1.50}"#);
    check(ROW, LegacyForm::Row, r#"{"n": 1.5, "region": "eu"}"#);
    let mark = |from: &str, assumed: &str| {
        format!(r#"{{"{IMPORT_MARK}":{{"assumed":[{assumed}],"from":"{from}"}}}}"#)
    };
    check(PURVIEW, LegacyForm::Purview, &mark("purview", r#""purview_compatible","metadata""#));
    let assumed = r#""duration_ms","result_signature","client_app","caller_ip_address","federated_source","query_intent","bypass_llm","purview_compatible","metadata","schema_version","tenant_id""#;
    check(TRUST, LegacyForm::Trust, &mark("trust", assumed));
}

#[test]
fn a_purview_line_gives_every_field_that_it_has() {
    let rules = rules();
    let legacy = read(PURVIEW);
    let (event, whole) =
        (decode(Some(&legacy.payload), &rules).unwrap(), decode(Some(EVENT.as_bytes()), &rules).unwrap());
    assert_eq!(Event { metadata: whole.metadata.clone(), ..event }, whole);
}

#[test]
fn forms_of_one_event_agree_with_each_other_where_nothing_is_lost() {
    // What is stored, and what comes after it.
    for (stored, later, expect) in [
        (ROW, PURVIEW, true), // the third digit of the score is lost with the row
        (ROW, TRUST, true),
        (PURVIEW, TRUST, true),
        (PURVIEW, PURVIEW, true),
        (TRUST, TRUST, true),
        (TRUST, PURVIEW, false), // it tells more than what was stored: that must not be lost
        (PURVIEW, EVENT, false), // the same, metadata
        (EVENT, ROW, true),
    ] {
        let stored = read(stored);
        let later = read(later);
        assert_eq!(agrees(&later, &stored.payload), expect, "{:?} after {:?}", later.form, stored.form);
    }
}

#[test]
fn what_a_form_tells_otherwise_is_a_conflict() {
    for (text, from, to) in [
        (PURVIEW, r#""durationMs": 58"#, r#""durationMs": 59"#),
        (PURVIEW, r#""val": "alice@corp@local""#, r#""val": "bob@local""#),
        (PURVIEW, r#""clientApp": "ritual-cli""#, r#""clientApp": "portal""#),
        (PURVIEW, r#""args": "what's"#, r#""args": "what is"#),
        (PURVIEW, "0.876", "0.877"),
        (PURVIEW, r#""tenantId": "spel-local-forge""#, r#""tenantId": "contoso""#),
        (TRUST, r#""Success""#, r#""Failure""#),
        (TRUST, r#""actor": "alice@corp""#, r#""actor": "alice""#),
        (EVENT, r#""n":1.50"#, r#""n":1.51"#),
        (EVENT, r#"{"audit_id""#, r#"{"other":1,"audit_id""#),
    ] {
        let other = text.replacen(from, to, 1);
        assert_ne!(other, text, "{from}");
        assert!(!agrees(&read(&other), EVENT.as_bytes()), "{to}");
    }
    let row = ROW.replace("0.88", "0.87");
    assert!(!agrees(&read_row(row.as_bytes()), EVENT.as_bytes()));
}

#[test]
fn the_predecessors_default_tenant_may_stand_for_ours() {
    let stored = EVENT.replace(r#","tenant_id":"spel-local-forge""#, "");
    assert!(agrees(&read(ROW), stored.as_bytes()));
    let stored = EVENT.replace("spel-local-forge", "contoso");
    assert!(!agrees(&read(ROW), stored.as_bytes()));
}

#[test]
fn what_can_not_be_an_event_is_named_by_decoding() {
    let code = |text: &str| decode(Some(&read_line(text.as_bytes()).payload), &rules()).err().map(|r| r.code);
    for (text, expect) in [
        ("", Some(Code::EmptyPayload)),
        ("{\"time\": ", Some(Code::InvalidJson)),
        ("[1]", Some(Code::NotAnObject)),
        ("{}", Some(Code::MissingField)),
        (PURVIEW.get(..PURVIEW.len() / 2).unwrap(), Some(Code::InvalidJson)),
        (&PURVIEW.replace("5b1f0c7e", "zzzz"), Some(Code::InvalidUuid)),
        (&PURVIEW.replace("\"Success\"", "\"OK\""), Some(Code::InvalidStatus)),
        (&PURVIEW.replace("58", "58.5"), Some(Code::InvalidInteger)),
        (&PURVIEW.replace("alice@corp@local", "None@local"), Some(Code::MissingField)),
        (&PURVIEW.replace("ritual-cli", "a\\ud800"), Some(Code::LoneSurrogate)),
        (&PURVIEW.replace("ritual-cli", "a\\u0000"), Some(Code::NulCharacter)),
        (&PURVIEW.replace("\"category\"", "\"time\""), Some(Code::DuplicateKey)),
        (&TRUST.replace("0.876", "null").replace("\"alice@corp\"", "null"), Some(Code::MissingField)),
        (PURVIEW, None),
    ] {
        assert_eq!(code(text), expect, "{text}");
    }
    let rejected = read_row(br#"{"metadata": "text"}"#);
    assert!(decode(Some(&rejected.payload), &rules()).is_err());
}

#[test]
fn a_table_with_fewer_columns_says_what_was_assumed() {
    let row = ROW.replace(r#""query_intent": "wish_queue", "#, "");
    let legacy = read_row(row.as_bytes());
    let rules = rules();
    let event = decode(Some(&legacy.payload), &rules).unwrap();
    let metadata: Json = serde_json::from_str(&event.metadata).unwrap();
    assert_eq!(metadata[IMPORT_MARK], serde_json::json!({"from": "row", "assumed": ["query_intent"]}));
    assert_eq!(metadata["region"], "eu");
    assert!(agrees(&legacy, EVENT.as_bytes()));
    // A column of the operator's own is kept.
    let row = ROW.replacen('{', r#"{"ticket": "T-1", "#, 1);
    assert_eq!(
        decode(Some(&read_row(row.as_bytes()).payload), &rules).unwrap().extra.unwrap(),
        r#"{"ticket":"T-1"}"#
    );
}

#[test]
fn a_null_that_gets_a_default_says_so() {
    let rules = rules();
    let marked = |legacy: &Legacy<'_>| {
        let event = decode(Some(&legacy.payload), &rules).unwrap();
        let metadata: Json = serde_json::from_str(&event.metadata).unwrap();
        metadata[IMPORT_MARK].clone()
    };
    let null = |text: &str, from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        changed
    };
    let mut row = ROW.to_owned();
    for (from, to) in [
        (r#""caller_ip_address": "10.1.2.3""#, r#""caller_ip_address": null"#),
        (r#""trust_score": 0.88"#, r#""trust_score": null"#),
        // These have no default: nothing is filled in.
        (r#""query_intent": "wish_queue""#, r#""query_intent": null"#),
        (r#""duration_ms": 58"#, r#""duration_ms": null"#),
    ] {
        row = null(&row, from, to);
    }
    let legacy = read_row(row.as_bytes());
    let expect = serde_json::json!({"from": "row", "assumed": ["caller_ip_address", "trust_score"]});
    assert_eq!(marked(&legacy), expect);
    // What the row does not say contradicts nothing; what it does say still does.
    assert!(!agrees(&legacy, EVENT.as_bytes()), "a duration that is null is none");
    let row = null(ROW, r#""caller_ip_address": "10.1.2.3""#, r#""caller_ip_address": null"#);
    assert!(agrees(&read_row(row.as_bytes()), EVENT.as_bytes()));

    let purview = null(PURVIEW, r#""clientApp": "ritual-cli""#, r#""clientApp": null"#);
    let expect =
        serde_json::json!({"from": "purview", "assumed": ["client_app", "purview_compatible", "metadata"]});
    assert_eq!(marked(&read_line(purview.as_bytes())), expect);
    let purview = null(PURVIEW, r#""bypassLLM": true, "#, "");
    let expect =
        serde_json::json!({"from": "purview", "assumed": ["bypass_llm", "purview_compatible", "metadata"]});
    assert_eq!(marked(&read_line(purview.as_bytes())), expect);
    let trust = null(TRUST, "0.876", "null");
    let assumed = marked(&read_line(trust.as_bytes()))["assumed"].to_string();
    assert!(assumed.contains("trust_score"), "{assumed}");
}

#[test]
fn a_mark_that_was_there_already_is_kept_in_ours() {
    let row = ROW.replacen(r#""metadata": {"#, &format!(r#""metadata": {{"{IMPORT_MARK}": [1.50], "#), 1);
    let row = row.replacen(r#""client_app": "ritual-cli""#, r#""client_app": null"#, 1);
    let rules = rules();
    let legacy = read_row(row.as_bytes());
    let event = decode(Some(&legacy.payload), &rules).unwrap();
    let mark = format!(r#""{IMPORT_MARK}":{{"before":[1.50],"assumed":["client_app"],"from":"row"}}"#);
    assert!(event.metadata.contains(&mark), "{}", event.metadata);
}

/// A stored row of a sample event, as PostgreSQL would print it.
fn as_row<'a>(event: &'a Event<'_>, texts: &'a (String, String)) -> EventRow<'a> {
    EventRow {
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
        caller_ip_address: &texts.0,
        federated_source: &event.federated_source,
        query_intent: event.query_intent.as_deref(),
        bypass_llm: event.bypass_llm,
        trust_score: &texts.1,
        purview_compatible: true,
        metadata: &event.metadata,
        schema_version: &event.schema_version,
        tenant_id: &event.tenant_id,
        extra: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Our own Purview lines lose nothing but unknown fields, whatever the keys of metadata are.
    #[test]
    fn a_purview_line_of_ours_is_turned_back(index in 0u64..100_000, key in "(metadata\\.){0,2}(resource|auditId|a\"b|region)", n: i32) {
        let plan = SamplePlan { seed: 7, start_unix_micros: 1_771_000_000_000_000, invalid_ppm: 0, duplicate_ppm: 0 };
        let mut payload = Vec::new();
        plan.write(index, &mut payload);
        let rules = rules();
        let event = decode(Some(&payload), &rules).unwrap();
        let metadata = serde_json::json!({ key: n, "other": [n, {"x": null}] }).to_string();
        let scale = usize::from(event.trust_score.scale());
        let digits = format!("{:0>width$}", event.trust_score.unscaled(), width = scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        let texts = (event.caller_ip_address.to_string(), if scale == 0 { whole.to_owned() } else { format!("{whole}.{fraction}") });
        let event = Event { metadata: metadata.into(), extra: None, purview_compatible: true, ..event };
        let mut line = String::new();
        Projection::Purview.write_line(&as_row(&event, &texts), &ProjectionRules::default(), LineFormat::JsonLines, &mut line);
        let legacy = read_line(line.trim_end().as_bytes());
        prop_assert_eq!(legacy.form, LegacyForm::Purview);
        let back = decode(Some(&legacy.payload), &rules).unwrap();
        prop_assert!(is_same_object(&back.metadata, &event.metadata, IMPORT_MARK), "{} {}", back.metadata, event.metadata);
        prop_assert_eq!(Event { metadata: event.metadata.clone(), ..back }, event.clone());
    }

    #[test]
    fn nothing_panics(bytes: Vec<u8>, at in 0..PURVIEW.len(), byte: u8) {
        drop(read_line(&bytes));
        drop(read_row(&bytes));
        for text in [PURVIEW, TRUST, ROW, EVENT] {
            let mut torn = text.as_bytes().to_vec();
            let at = at % torn.len();
            torn[at] = byte;
            for legacy in [read_line(&torn), read_row(&torn)] {
                drop(decode(Some(&legacy.payload), &rules()));
            }
        }
    }
}
