//! Lines against their schemas, and the rules that hold for any row.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::Value;
use serde_json::value::RawValue;

use super::purview::{PROPERTY_NAMES, is_taken};
use super::*;
use crate::model::decode::{AssumeUtc, DecodeRules, decode};
use crate::model::rejection::RejectionCode;
use crate::model::sample::{SampleKind, SamplePlan};

const ROW: EventRow<'_> = EventRow {
    audit_id: Uuid::from_u128(0x5b1f_0c7e_51d6_4a53_9f0d_0d8f_3c1f_2a10),
    correlation_id: Uuid::from_u128(0xa3c0_f6c2_7a44_4c62_8d9f_4f0f_6f0f_9c11),
    timestamp: match Timestamp::from_unix_micros(1_769_860_800_123_456) {
        Some(time) => time,
        None => Timestamp::MIN,
    },
    operation: "ritual.query",
    command: "query",
    args: Some("--limit \"10\""),
    actor: "alice",
    status: Status::Success,
    duration_ms: Some(58),
    result_signature: "200",
    client_app: "ritual-cli",
    caller_ip_address: "127.0.0.1",
    federated_source: "local",
    query_intent: None,
    bypass_llm: false,
    trust_score: "0.80",
    purview_compatible: true,
    metadata: r#"{"region": "eu", "resource": 1.50, "metadata.resource": [2, "a b"]}"#,
    schema_version: "2.0",
    tenant_id: "spel-local-forge",
    extra: None,
};

fn line(projection: Projection, row: &EventRow<'_>) -> String {
    let mut out = String::new();
    projection.write_line(row, &ProjectionRules::default(), LineFormat::JsonLines, &mut out);
    out
}

fn csv(projection: Projection, row: &EventRow<'_>) -> String {
    let mut out = String::new();
    projection.write_line(row, &ProjectionRules::default(), LineFormat::Csv, &mut out);
    out
}

#[track_caller]
fn check(projection: Projection, row: &EventRow<'_>, expect: &str) {
    assert_eq!(line(projection, row), format!("{expect}\n"));
}

/// The validator of a projection's schema, formats asserted.
fn validator(projection: Projection) -> jsonschema::Validator {
    let text = match projection {
        Projection::Purview => include_str!("../../../deploy/schemas/purview-log.schema.json"),
        Projection::Trust => include_str!("../../../deploy/schemas/trust-log.schema.json"),
        Projection::Events => include_str!("../../../deploy/schemas/event.schema.json"),
        Projection::O365 => include_str!("../../../deploy/schemas/o365.schema.json"),
    };
    let schema: Value = serde_json::from_str(text).unwrap();
    assert!(jsonschema::draft202012::meta::is_valid(&schema));
    jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap()
}

#[track_caller]
fn check_schema(validator: &jsonschema::Validator, text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}\n{text}");
}

/// The keys and values of an object as they stand in its text.
fn members(text: &str) -> Vec<(String, &str)> {
    let map: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap();
    map.into_iter().map(|(key, value)| (key, value.get())).collect()
}

#[test]
fn a_row_gives_these_lines() {
    check(
        Projection::Purview,
        &ROW,
        concat!(
            r#"{"time":"2026-01-31T12:00:00.123456Z","resourceId":"/tenants/spel-local-forge/providers/audit-consumer","#,
            r#""tenantId":"spel-local-forge","operationName":"ritual.query","operationVersion":"2.0","#,
            r#""category":"FederatedQuery","resultType":"Success","resultSignature":"200","durationMs":58,"#,
            r#""callerIpAddress":"127.0.0.1","correlationId":"a3c0f6c2-7a44-4c62-8d9f-4f0f6f0f9c11","#,
            r#""level":"Informational","identity":{"claim":[{"typ":"http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn","#,
            r#""val":"alice@local"}]},"properties":{"resource":"query","command":"query","args":"--limit \"10\"","#,
            r#""clientApp":"ritual-cli","schemaVersion":"2.0","auditId":"5b1f0c7e-51d6-4a53-9f0d-0d8f3c1f2a10","#,
            r#""tenantId":"spel-local-forge","federatedSource":"local","bypassLLM":false,"queryIntent":null,"#,
            r#""trustScore":0.80,"region":"eu","metadata.resource":1.50,"metadata.metadata.resource":[2,"a b"]}}"#,
        ),
    );
    check(
        Projection::Trust,
        &ROW,
        concat!(
            r#"{"timestamp":"2026-01-31T12:00:00.123456Z","audit_id":"5b1f0c7e-51d6-4a53-9f0d-0d8f3c1f2a10","#,
            r#""correlation_id":"a3c0f6c2-7a44-4c62-8d9f-4f0f6f0f9c11","operation":"ritual.query","status":"Success","#,
            r#""trust_score":0.80,"actor":"alice","command":"query","args":"--limit \"10\""}"#,
        ),
    );
    check(
        Projection::Events,
        &EventRow { extra: Some(r#"{"extra": 1.0, "x": {"y": []}}"#), ..ROW },
        concat!(
            r#"{"audit_id":"5b1f0c7e-51d6-4a53-9f0d-0d8f3c1f2a10","correlation_id":"a3c0f6c2-7a44-4c62-8d9f-4f0f6f0f9c11","#,
            r#""timestamp":"2026-01-31T12:00:00.123456Z","operation":"ritual.query","command":"query","#,
            r#""args":"--limit \"10\"","actor":"alice","status":"Success","duration_ms":58,"result_signature":"200","#,
            r#""client_app":"ritual-cli","caller_ip_address":"127.0.0.1","federated_source":"local","query_intent":null,"#,
            r#""bypass_llm":false,"trust_score":0.80,"purview_compatible":true,"#,
            r#""metadata":{"region":"eu","resource":1.50,"metadata.resource":[2,"a b"]},"schema_version":"2.0","#,
            r#""tenant_id":"spel-local-forge","extra":1.0,"x":{"y":[]}}"#,
        ),
    );
    check(
        Projection::O365,
        &EventRow { status: Status::Pending, duration_ms: None, ..ROW },
        concat!(
            r#"{"Id":"5b1f0c7e-51d6-4a53-9f0d-0d8f3c1f2a10","RecordType":0,"CreationTime":"2026-01-31T12:00:00","#,
            r#""Operation":"ritual.query","OrganizationId":"spel-local-forge","UserType":0,"UserKey":"alice","#,
            r#""Workload":"FederatedQuery","ObjectId":"query","UserId":"alice@local","ClientIP":"127.0.0.1","#,
            r#""Scope":"onprem","CorrelationId":"a3c0f6c2-7a44-4c62-8d9f-4f0f6f0f9c11","#,
            r#""Timestamp":"2026-01-31T12:00:00.123456Z","Status":"Pending","ResultSignature":"200","Command":"query","#,
            r#""Args":"--limit \"10\"","DurationMs":null,"ClientApp":"ritual-cli","FederatedSource":"local","#,
            r#""QueryIntent":null,"BypassLLM":false,"TrustScore":0.80,"SchemaVersion":"2.0","#,
            r#""Metadata":{"region":"eu","resource":1.50,"metadata.resource":[2,"a b"]},"Extra":null}"#,
        ),
    );
}

#[test]
fn settings_change_what_they_name_and_nothing_else() {
    let rules = ProjectionRules {
        resource_id: "/a/<tenant>/b".into(),
        category: "Audit".into(),
        identity: IdentityForm::Object,
        domain: "example.com".into(),
    };
    let mut out = String::new();
    Projection::Purview.write_line(&ROW, &rules, LineFormat::JsonLines, &mut out);
    check_schema(&validator(Projection::Purview), &out);
    for part in [
        r#""resourceId":"/a/spel-local-forge/b""#,
        r#""category":"Audit""#,
        r#""identity":{"claim":{"http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn":"alice@example.com"}}"#,
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
}

#[test]
fn numbers_are_copied_digit_by_digit() {
    let long = "1".repeat(400);
    let metadata = format!(r#"{{"a": {long}.50, "b": -0.000, "c": [1e400]}}"#);
    let row = EventRow { trust_score: "0.1234567890123456", metadata: &metadata, ..ROW };
    for projection in [Projection::Purview, Projection::Events, Projection::O365] {
        let text = line(projection, &row);
        for number in [format!("{long}.50"), "-0.000".into(), "[1e400]".into(), "0.1234567890123456".into()] {
            assert!(text.contains(&number), "{number}: {text}");
        }
    }
}

#[test]
fn a_cell_holds_whatever_a_text_does() {
    let row = EventRow { args: Some("a,\"b\"\r\nc"), query_intent: Some(""), actor: "=1+1", ..ROW };
    let text = csv(Projection::Events, &row);
    assert!(text.contains(",query,\"a,\"\"b\"\"\r\nc\",=1+1,Success,"), "{text}");
    assert!(text.contains("local,\"\",false,0.80,true,\"{\"\"region\"\":\"\"eu\"\","), "{text}");
    assert!(csv(Projection::Trust, &EventRow { args: None, ..ROW }).ends_with(",query,\n"));
    let mut head = String::new();
    Projection::Trust.write_head(LineFormat::Csv, &mut head);
    Projection::Trust.write_head(LineFormat::JsonLines, &mut head);
    assert_eq!(head, "timestamp,audit_id,correlation_id,operation,status,trust_score,actor,command,args\n");
}

#[test]
fn keys_stand_in_the_order_of_the_columns() {
    for projection in Projection::ALL {
        let mut keys = Vec::new();
        jsonb::for_each_member(line(projection, &ROW).trim(), |key, _| keys.push(key.to_owned()));
        let optional = ["extra", "ResultStatus", "durationMs"];
        let columns: Vec<&str> = projection.columns().to_vec();
        let expect: Vec<&str> =
            columns.iter().copied().filter(|column| keys.iter().any(|key| key == column)).collect();
        assert_eq!(keys, expect, "{projection:?}");
        assert!(columns.iter().all(|column| expect.contains(column) || optional.contains(column)));
        assert_eq!(csv(projection, &ROW).matches('\n').count(), 1);
    }
}

#[test]
fn what_decoding_never_makes_of_extra_stands_whole() {
    let with = |extra| line(Projection::Events, &EventRow { extra: Some(extra), ..ROW });
    let strange = with(r#"{"actor": "mallory", "x": 1}"#);
    assert!(strange.ends_with("\"extra\":{\"actor\":\"mallory\",\"x\":1}}\n"), "{strange}");
    assert!(with("[1, 2]").ends_with("\"extra\":[1,2]}\n"));
    // Another moment than the row's.
    let odd = with(r#"{"timestamp": "2020-01-01T00:00:00.1234567Z"}"#);
    assert!(odd.contains(r#""extra":{"timestamp""#) && odd.contains("2026-01-31T12:00:00.123456Z"), "{odd}");
    let full = with(r#"{"timestamp": "2026-01-31T13:00:00.12345678+01:00"}"#);
    assert!(full.contains(r#""timestamp":"2026-01-31T13:00:00.12345678+01:00","#), "{full}");
    let bare = with(r#"{"timestamp": "2026-01-31T12:00:00.12345678"}"#);
    assert!(bare.contains(r#""timestamp":"2026-01-31T12:00:00.12345678Z","#), "{bare}");
    let whole = line(Projection::Purview, &EventRow { metadata: "[1, \"a\"]", ..ROW });
    assert!(whole.ends_with("\"metadata\":[1,\"a\"]}}\n"), "{whole}");
}

#[test]
fn schemas_refuse_what_they_should() {
    let broken = [
        (Projection::Purview, "Informational", "Warning"),
        (Projection::Purview, "Success", "Failure"),
        (Projection::Purview, "\"durationMs\":58", "\"durationMs\":-1"),
        (Projection::Purview, "127.0.0.1", "127.0.0.1/32"),
        (Projection::Purview, "\"bypassLLM\":false,", ""),
        (Projection::Trust, ".123456Z", "Z"),
        (Projection::Trust, "0.80", "1.80"),
        (Projection::Events, "2026-01-31", "2026-02-31"),
        (Projection::Events, "Success", "success"),
        (Projection::O365, "\"ResultStatus\":\"Succeeded\",", ""),
        (Projection::O365, "5b1f0c7e", "5B1F0C7E"),
    ];
    for (projection, from, to) in broken {
        let good = line(projection, &ROW);
        let bad: Value = serde_json::from_str(&good.replacen(from, to, 1)).unwrap();
        check_schema(&validator(projection), &good);
        assert!(!validator(projection).is_valid(&bad), "{from} to {to}");
    }
}

#[test]
fn events_of_the_examples_are_valid_by_their_schema() {
    let validator = validator(Projection::Events);
    for text in include_str!("../../../examples/events.jsonl").lines() {
        check_schema(&validator, text);
    }
}

#[test]
fn the_schema_of_events_and_decoding_agree_on_samples() {
    let validator = validator(Projection::Events);
    let plan = SamplePlan { seed: 3, start_unix_micros: 0, invalid_ppm: 500_000, duplicate_ppm: 100_000 };
    let (mut payload, mut refused) = (Vec::new(), BTreeSet::new());
    for index in 0..2_000 {
        let has_value = plan.write(index, &mut payload);
        let Ok(value) = serde_json::from_slice::<Value>(&payload) else { continue };
        match plan.kind(index) {
            SampleKind::Valid | SampleKind::Duplicate { .. } => {
                assert!(validator.is_valid(&value), "{value}")
            }
            // What the schema says in words only.
            SampleKind::Invalid(RejectionCode::NulCharacter | RejectionCode::LoneSurrogate) => {}
            SampleKind::Invalid(code) if has_value => {
                assert!(!validator.is_valid(&value), "{code:?} {value}");
                refused.insert(code.as_str());
            }
            SampleKind::Invalid(_) => {}
        }
    }
    assert_eq!(refused.len(), 6, "{refused:?}");
}

/// A JSON value as PostgreSQL prints it, one level or two deep.
fn jsonb_value() -> impl Strategy<Value = String> {
    let text = "\\PC{0,12}|[\\x01-\\x7f]{0,8}".prop_map(|text| serde_json::to_string(&text).unwrap());
    let scalar = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|flag| flag.to_string()),
        "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,12})?",
        text,
    ];
    let list = vec(scalar.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", ")));
    prop_oneof![4 => scalar, 1 => list]
}

/// An object as PostgreSQL prints it; some of its keys are ours, behind prefixes or not.
fn jsonb_object() -> impl Strategy<Value = String> {
    let ours = (0..3_usize, 0..PROPERTY_NAMES.len())
        .prop_map(|(depth, index)| format!("{}{}", "metadata.".repeat(depth), PROPERTY_NAMES[index]));
    let key = prop_oneof![2 => "\\PC{0,8}", 2 => ours, 1 => "(metadata\\.){0,3}[a-z]{0,3}"];
    btree_map(key, jsonb_value(), 0..10).prop_map(|members| {
        let members: Vec<String> = members
            .iter()
            .map(|(key, value)| format!("{}: {value}", serde_json::to_string(key).unwrap()))
            .collect();
        format!("{{{}}}", members.join(", "))
    })
}

/// The parts of a random row that borrow.
#[derive(Debug)]
struct Texts {
    names: (String, String),
    free: Vec<String>,
    ip: String,
    trust_score: String,
    metadata: String,
    extra: Option<String>,
}

fn texts() -> impl Strategy<Value = Texts> {
    let free = "\\PC{0,16}|[\\x01-\\x7f]{0,16}";
    let ip = prop_oneof![
        any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|ip| ip.to_string())
    ];
    let extra = proptest::option::of("[a-w]{1,6}".prop_map(|key| format!("{{\"x{key}\": [1, 2.0]}}")));
    ("\\PC{1,16}", "\\PC{1,16}", vec(free, 8), ip, "0\\.[0-9]{1,16}|0|1|1\\.0{1,5}", jsonb_object(), extra)
        .prop_map(|(operation, actor, free, ip, trust_score, metadata, extra)| Texts {
            names: (operation, actor),
            free,
            ip,
            trust_score,
            metadata,
            extra,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn any_event_gives_valid_lines_and_reads_back_as_itself(
        texts in texts(),
        (audit_id, correlation_id) in (any::<u128>(), any::<u128>()),
        micros in Timestamp::MIN.as_unix_micros()..=Timestamp::MAX.as_unix_micros(),
        duration_ms in proptest::option::of(0..=i32::MAX),
        (status, flags) in (0..3_usize, any::<(bool, bool, bool, bool)>()),
    ) {
        let row = EventRow {
            audit_id: Uuid::from_u128(audit_id),
            correlation_id: Uuid::from_u128(correlation_id),
            timestamp: Timestamp::from_unix_micros(micros).unwrap(),
            operation: &texts.names.0,
            command: &texts.free[0],
            args: flags.0.then_some(texts.free[1].as_str()),
            actor: &texts.names.1,
            status: Status::ALL[status],
            duration_ms,
            result_signature: &texts.free[2],
            client_app: &texts.free[3],
            caller_ip_address: &texts.ip,
            federated_source: &texts.free[4],
            query_intent: flags.1.then_some(texts.free[5].as_str()),
            bypass_llm: flags.2,
            trust_score: &texts.trust_score,
            purview_compatible: flags.3,
            metadata: &texts.metadata,
            schema_version: &texts.free[6],
            tenant_id: &texts.free[7],
            extra: texts.extra.as_deref(),
        };
        thread_local! {
            static VALIDATORS: Vec<jsonschema::Validator> = Projection::ALL.map(validator).into();
        }
        VALIDATORS.with(|validators| {
            for (projection, validator) in Projection::ALL.into_iter().zip(validators) {
                check_schema(validator, &line(projection, &row));
            }
        });

        // No key of metadata is lost, and each is found again by its rule.
        let purview = line(Projection::Purview, &row);
        let outer: BTreeMap<String, &RawValue> = serde_json::from_str(&purview).unwrap();
        let properties = members(outer["properties"].get());
        let metadata = members(&texts.metadata);
        prop_assert_eq!(properties.len(), PROPERTY_NAMES.len() + metadata.len());
        for (key, value) in metadata {
            let name = if is_taken(&key) { format!("metadata.{key}") } else { key };
            let mut compact = String::new();
            jsonb::push_compact(value, &mut compact);
            prop_assert!(properties.contains(&(name, compact.as_str())));
        }

        // An event line is the event.
        let rules = DecodeRules {
            tenant_id: "another".into(),
            assume_utc: AssumeUtc::No,
            payload_max_len_bytes: 1 << 20,
        };
        let text = line(Projection::Events, &row);
        let event = decode(Some(text.trim_end().as_bytes()), &rules).unwrap();
        prop_assert_eq!(
            (event.audit_id, event.correlation_id, event.timestamp, event.status, event.duration_ms),
            (row.audit_id, row.correlation_id, row.timestamp, row.status, row.duration_ms)
        );
        prop_assert_eq!(
            (&*event.operation, &*event.command, event.args.as_deref(), &*event.actor, &*event.tenant_id),
            (row.operation, row.command, row.args, row.actor, row.tenant_id)
        );
        prop_assert_eq!(members(&event.metadata).len(), members(row.metadata).len());
        prop_assert_eq!(event.extra.is_some(), row.extra.is_some());
    }
}
