//! Every code, every edge; and that no input panics.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::model::event::Timestamp;

fn rules() -> DecodeRules {
    DecodeRules { tenant_id: "tenant".into(), assume_utc: AssumeUtc::No, payload_max_len_bytes: 512 << 10 }
}

fn valid() -> Json {
    json!({
        "audit_id": "0190aabb-ccdd-7eef-8123-456789abcdef",
        "correlation_id": "6F9619FF-8B86-D011-B42D-00CF4FC964FF",
        "timestamp": "2026-02-17T00:00:00Z",
        "operation": "ritual.query", "command": "query", "actor": "peter", "status": "Success",
    })
}

/// The valid event with `field` set to the JSON text `value`.
fn with(field: &str, value: &str) -> String {
    let mut event = valid();
    event.as_object_mut().unwrap().remove(field);
    let text = event.to_string();
    format!("{{\"{field}\":{value},{}", text.strip_prefix('{').unwrap())
}

#[track_caller]
fn check(payload: &[u8], expect: RejectionCode) {
    let rules = rules();
    match decode(Some(payload), &rules) {
        Err(rejection) => assert_eq!(rejection.code, expect, "{rejection}"),
        Ok(event) => panic!("accepted: {event:?}"),
    }
}

#[track_caller]
fn accept(payload: &str, see: impl FnOnce(Event<'_>)) {
    see(decode(Some(payload.as_bytes()), &rules()).unwrap());
}

#[test]
fn a_record_without_an_event_is_rejected_with_its_code() {
    assert_eq!(decode(None, &rules()).unwrap_err().code, RejectionCode::Tombstone);
    check(b"", RejectionCode::EmptyPayload);
    check(&vec![b' '; (512 << 10) + 1], RejectionCode::TooLarge);
    check(b"{\"a\":\"\xff\"}", RejectionCode::InvalidUtf8);
    for text in ["[]", "7", "\"text\"", "null", "true"] {
        check(text.as_bytes(), RejectionCode::NotAnObject);
    }
    for text in [
        "{",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{'a':1}",
        "{\"a\":01}",
        "{\"a\":1.}",
        "{\"a\":+1}",
        "{\"a\":NaN}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\u{1}\"}",
        "{} {}",
        "\u{feff}{}",
        "{\"a\":tru}",
        "{\"a\":\"\\u12\"}",
        "nul",
    ] {
        check(text.as_bytes(), RejectionCode::InvalidJson);
    }
}

#[test]
fn every_field_is_rejected_with_its_code() {
    for (name, field) in &FIELDS[..7] {
        let mut event = valid();
        event.as_object_mut().unwrap().remove(*name);
        check(event.to_string().as_bytes(), RejectionCode::MissingField);
        check(with(name, "null").as_bytes(), RejectionCode::MissingField);
        check(with(name, "7").as_bytes(), RejectionCode::WrongType);
        assert_eq!(name_of(*field), *name);
    }
    for (field, value, code) in [
        ("audit_id", "\"x\"", RejectionCode::InvalidUuid),
        ("audit_id", "\"{0190aabb-ccdd-7eef-8123-456789abcdef}\"", RejectionCode::InvalidUuid),
        ("correlation_id", "\"\"", RejectionCode::InvalidUuid),
        ("operation", "\"\"", RejectionCode::MissingField),
        ("status", "\"success\"", RejectionCode::InvalidStatus),
        ("duration_ms", "\"1.7\"", RejectionCode::WrongType),
        ("duration_ms", "\"abc\"", RejectionCode::WrongType),
        ("duration_ms", "1.7", RejectionCode::InvalidInteger),
        ("duration_ms", "3e9", RejectionCode::OutOfRange),
        ("duration_ms", "-1", RejectionCode::OutOfRange),
        ("duration_ms", "2147483648", RejectionCode::OutOfRange),
        ("duration_ms", "1e999999999999999999999", RejectionCode::OutOfRange),
        ("duration_ms", "1e-999999999999999999999", RejectionCode::OutOfRange),
        ("duration_ms", "1e-3", RejectionCode::InvalidInteger),
        ("trust_score", "1.01", RejectionCode::OutOfRange),
        ("trust_score", "-0.1", RejectionCode::OutOfRange),
        ("trust_score", "0.12345678901234567", RejectionCode::OutOfRange),
        ("trust_score", "\"0.8\"", RejectionCode::WrongType),
        ("bypass_llm", "\"true\"", RejectionCode::WrongType),
        ("bypass_llm", "1", RejectionCode::WrongType),
        ("result_signature", "200", RejectionCode::WrongType),
        ("caller_ip_address", "\"10.0.0.1/8\"", RejectionCode::InvalidIp),
        ("caller_ip_address", "\"localhost\"", RejectionCode::InvalidIp),
        ("metadata", "[]", RejectionCode::InvalidMetadata),
        ("metadata", "\"{}\"", RejectionCode::InvalidMetadata),
        ("metadata", "{\"a\":{\"b\":1,\"b\":2}}", RejectionCode::DuplicateKey),
        ("metadata", "{\"a\":1e500}", RejectionCode::OutOfRange),
        ("metadata", "{\"a\":1e-500}", RejectionCode::OutOfRange),
        ("args", "\"a\\u0000b\"", RejectionCode::NulCharacter),
        ("metadata", "{\"a\\u0000\":1}", RejectionCode::NulCharacter),
        ("metadata", "{\"a\":[\"\\ud800\"]}", RejectionCode::LoneSurrogate),
        ("args", "\"\\udc00\\ud800\"", RejectionCode::LoneSurrogate),
        ("args", "\"\\ud800\\ud800\"", RejectionCode::LoneSurrogate),
        ("args", "\"\\ud83d \"", RejectionCode::LoneSurrogate),
    ] {
        check(with(field, value).as_bytes(), code);
    }
    check(with("args", "\"raw\u{0}nul\"").as_bytes(), RejectionCode::NulCharacter);
    check(with("actor", &format!("\"{}\"", "x".repeat(1025))).as_bytes(), RejectionCode::TooLarge);
    check(with("tenant_id", "\"a\",\"tenant_id\":\"b\"").as_bytes(), RejectionCode::DuplicateKey);
    check(with("tenant_id", "\"a\",\"tenant\\u005fid\":\"b\"").as_bytes(), RejectionCode::DuplicateKey);
    let many: String = (0..40).map(|n| format!("\"k{n}\":1,")).collect();
    check(with("metadata", &format!("{{{many}\"k7\":2}}")).as_bytes(), RejectionCode::DuplicateKey);
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    check(with("unknown", &deep).as_bytes(), RejectionCode::InvalidJson);
}

#[test]
fn times_are_read_by_rfc_3339_and_nothing_else() {
    for text in [
        "yesterday",
        "",
        "2026-02-17",
        "2026-02-17T00:00Z",
        "2026-02-30T00:00:00Z",
        "2025-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-02-17T24:00:00Z",
        "2026-02-17T00:00:60Z",
        "2026-02-17T00:00:00",
        "2026-02-17T00:00:00.Z",
        "2026-02-17T00:00:00+0100",
        "2026-02-17T00:00:00+24:00",
        "2026-02-17T00:00:00Z ",
        "2026-02-17T00:00:00 Z",
        "+2026-02-17T00:00:00Z",
        "1771286400",
        "2026-02-17T00:00:00,5Z",
    ] {
        check(with("timestamp", &format!("\"{text}\"")).as_bytes(), RejectionCode::InvalidTimestamp);
    }
    for text in ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "0000-06-01T00:00:00Z"] {
        check(with("timestamp", &format!("\"{text}\"")).as_bytes(), RejectionCode::OutOfRange);
    }
    for (text, micros, extra) in [
        ("1970-01-01T00:00:00Z", 0, None),
        ("1970-01-01t00:00:00.5z", 500_000, None),
        ("1970-01-01 01:00:00.000001+01:00", 1, None),
        ("1969-12-31T23:59:59.999999Z", -1, None),
        ("1970-01-01T00:00:00.123456000Z", 123_456, None),
        ("1970-01-01T00:00:00.1234567Z", 123_456, Some("{\"timestamp\":\"1970-01-01T00:00:00.1234567Z\"}")),
        ("9999-12-31T23:59:59.999999Z", Timestamp::MAX.as_unix_micros(), None),
        ("0001-01-01T00:00:00Z", Timestamp::MIN.as_unix_micros(), None),
    ] {
        accept(&with("timestamp", &format!("\"{text}\"")), |event| {
            assert_eq!(event.timestamp.as_unix_micros(), micros, "{text}");
            assert_eq!(event.extra.as_deref(), extra);
        });
    }
    let assuming = DecodeRules { assume_utc: AssumeUtc::Yes, ..rules() };
    let naive = with("timestamp", "\"1970-01-01T00:00:00.5\"");
    assert_eq!(decode(Some(naive.as_bytes()), &assuming).unwrap().timestamp.as_unix_micros(), 500_000);
}

#[test]
fn what_is_not_given_gets_the_schemas_default() {
    accept(&valid().to_string(), |event| {
        assert_eq!(
            (&*event.result_signature, &*event.client_app, &*event.federated_source),
            ("200", "ritual-cli", "local")
        );
        assert_eq!((&*event.tenant_id, &*event.schema_version, &*event.metadata), ("tenant", "2.0", "{}"));
        assert_eq!(
            (event.args, event.query_intent, event.duration_ms, event.extra),
            (None, None, None, None)
        );
        assert_eq!((event.bypass_llm, event.purview_compatible), (false, true));
        assert_eq!(event.trust_score, TrustScore::DEFAULT);
        assert_eq!(event.caller_ip_address, IpAddr::from([127, 0, 0, 1]));
    });
}

#[test]
fn numbers_are_exact_whatever_their_spelling() {
    for (text, expect) in
        [("58", 58), ("58.0", 58), ("5.8e1", 58), ("5800e-2", 58), ("-0", 0), ("2147483647", i32::MAX)]
    {
        accept(&with("duration_ms", text), |event| assert_eq!(event.duration_ms, Some(expect), "{text}"));
    }
    for (text, unscaled, scale) in [
        ("0.80", 80, 2),
        ("0.8", 8, 1),
        ("1", 1, 0),
        ("1.0", 10, 1),
        ("8e-1", 8, 1),
        ("0", 0, 0),
        ("-0.0", 0, 1),
        ("0.10000000000000000000", 1, 1),
        ("1.00000000000000000000000000", 1, 0),
    ] {
        accept(&with("trust_score", text), |event| {
            assert_eq!(
                (event.trust_score.unscaled(), event.trust_score.scale()),
                (unscaled, scale),
                "{text}"
            );
        });
    }
}

#[test]
fn unknown_fields_are_kept_as_they_came() {
    let text = with("zzz", "{\"a\":[1, 2.50],\"b\":null},\"q\\u0022\":\"\\ud83d\\ude00\"");
    accept(&text, |event| {
        let extra: Json = serde_json::from_str(&event.extra.unwrap()).unwrap();
        assert_eq!(extra, json!({"zzz": {"a": [1, 2.5], "b": null}, "q\"": "😀"}));
    });
}

#[test]
fn a_rejected_event_is_identified_as_far_as_it_can_be_read() {
    let text = with("status", "\"bad\"");
    let identity = identify(text.as_bytes());
    assert_eq!(
        identity.audit_id.map(|id| id.to_string()).as_deref(),
        Some("0190aabb-ccdd-7eef-8123-456789abcdef")
    );
    assert!(identity.correlation_id.is_some());
    assert_eq!(identify(b"\xff"), Identity::default());
    let broken = br#"{"correlation_id":"6F9619FF-8B86-D011-B42D-00CF4FC964FF","x":"#;
    assert!(identify(broken).correlation_id.is_some());
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<i32>().prop_map(|n| Json::from(f64::from(n) / 8.0)),
        "[^\\x00]{0,12}".prop_map(Json::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
            prop::collection::btree_map("[^\\x00]{0,6}", inner, 0..20).prop_map(Json::from_iter),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_panic(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let _outcome = decode(Some(&payload), &rules());
        let _identity = identify(&payload);
    }

    #[test]
    fn no_damaged_event_panics(at in 0usize..250, byte in any::<u8>(), cut in 0usize..300) {
        let mut payload = with("metadata", "{\"a\":{\"b\":[1.5e3,\"\\ud83d\\ude00\"]}}").into_bytes();
        if let Some(slot) = payload.get_mut(at) { *slot = byte; }
        let _outcome = decode(Some(&payload), &rules());
        payload.truncate(cut);
        let _outcome = decode(Some(&payload), &rules());
        let _identity = identify(&payload);
    }

    #[test]
    fn metadata_and_unknown_fields_come_back_by_value(metadata in prop::collection::btree_map("[^\\x00]{0,6}", any_json(), 0..20), other in any_json()) {
        let metadata = Json::from_iter(metadata);
        let text = with("metadata", &format!("{metadata},\"unknown\":{other}"));
        let rules = rules();
        let event = decode(Some(text.as_bytes()), &rules).unwrap();
        prop_assert_eq!(serde_json::from_str::<Json>(&event.metadata).unwrap(), metadata);
        let extra: Json = serde_json::from_str(&event.extra.unwrap()).unwrap();
        prop_assert_eq!(&extra["unknown"], &other);
    }

    #[test]
    fn texts_come_back_by_value(args in "[^\\x00]{0,40}", actor in "[^\\x00]{1,40}") {
        let text = with("args", &format!("{},\"client_app\":{}", Json::from(args.clone()), Json::from(actor.clone())));
        let rules = rules();
        let event = decode(Some(text.as_bytes()), &rules).unwrap();
        prop_assert_eq!(event.args.as_deref(), Some(args.as_str()));
        prop_assert_eq!(&*event.client_app, actor.as_str());
    }

    #[test]
    fn what_we_take_for_json_serde_json_does_too(text in "[\\[\\]{}:,\"\\\\0-9a-fu.eE+ tnr-]{0,24}") {
        let ours = Scanner::new(&text).object(|_member| {});
        let theirs = serde_json::from_str::<Json>(&text);
        prop_assert!(ours.is_err() || theirs.is_ok(), "{} {:?}", text, theirs);
        prop_assert!(theirs.is_err() || !matches!(ours, Err(Fault::Syntax(..))), "{} {:?}", text, ours);
    }

    #[test]
    fn times_agree_with_chrono(seconds in -62_135_596_800i64..253_402_300_799, nanos in 0u32..1_000_000_000, offset in -1439i32..1440) {
        let zone = chrono::FixedOffset::east_opt(offset * 60).unwrap();
        let utc = chrono::DateTime::from_timestamp(seconds, nanos).unwrap();
        let text = utc.with_timezone(&zone).to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
        prop_assume!(text.len() < 40 && text.as_bytes()[0].is_ascii_digit());
        let moment = timestamp::parse(&text, AssumeUtc::No).unwrap();
        prop_assert_eq!(moment.timestamp.as_unix_micros(), utc.timestamp_micros());
        prop_assert_eq!(moment.is_cut, nanos % 1000 != 0);
    }
}
