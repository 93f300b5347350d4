//! Tables of cases, a `check` for each; what holds for any input is in `properties`.

mod properties;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::*;
use crate::model::event::{NAME_MAX_LEN_BYTES, Status, Timestamp};
use crate::model::rejection::RejectionCode as Code;

const PAYLOAD_MAX_LEN_BYTES: usize = 4 << 20;

/// A valid event with every field, as (key, value).
const FULL: [(&str, &str); 20] = [
    ("audit_id", r#""0190163d-8694-739b-aea5-966c26f8ad91""#),
    ("timestamp", r#""2026-11-24T10:00:00.123456Z""#),
    ("correlation_id", r#""6F9619FF-8B86-D011-B42D-00CF4FC964FF""#),
    ("operation", r#""ritual.query""#),
    ("command", r#""query""#),
    ("args", r#""--limit 10""#),
    ("actor", r#""alice""#),
    ("status", r#""Success""#),
    ("duration_ms", "58"),
    ("result_signature", r#""201""#),
    ("client_app", r#""portal""#),
    ("caller_ip_address", r#""2001:db8::1""#),
    ("federated_source", r#""crm""#),
    ("query_intent", r#""count customers""#),
    ("bypass_llm", "true"),
    ("trust_score", "0.950"),
    ("purview_compatible", "false"),
    ("metadata", r#"{"rows": [1, 2.50, null], "note": "caf\u00e9"}"#),
    ("schema_version", r#""2.1""#),
    ("tenant_id", r#""contoso""#),
];

const REQUIRED: [&str; 7] =
    ["audit_id", "correlation_id", "timestamp", "operation", "command", "actor", "status"];

fn rules() -> DecodeRules {
    DecodeRules {
        tenant_id: "default-tenant".to_owned(),
        assume_utc: AssumeUtc::No,
        payload_max_len_bytes: PAYLOAD_MAX_LEN_BYTES,
    }
}

fn object<'m>(members: impl IntoIterator<Item = (&'m str, &'m str)>) -> String {
    let members: Vec<_> = members.into_iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
    format!("{{{}}}", members.join(","))
}

/// The required fields alone, with `key` replaced or added.
fn with(key: &str, value: &str) -> String {
    let required = FULL.into_iter().filter(|(name, _)| REQUIRED.contains(name) && *name != key);
    object(required.chain([(key, value)]))
}

fn code(payload: &[u8]) -> Option<Code> {
    decode(Some(payload), &rules()).err().map(|rejection| rejection.code)
}

#[track_caller]
fn check(payload: impl AsRef<[u8]>, expect: Code) {
    let payload = payload.as_ref();
    let rejection = decode(Some(payload), &rules()).unwrap_err();
    let shown = String::from_utf8_lossy(payload);
    assert_eq!(rejection.code, expect, "{rejection}: {shown:.200}");
    assert!(rejection.detail().len() <= 200, "{rejection}");
}

/// The required fields alone, with `key` replaced or added, are rejected so.
#[track_caller]
fn check_field(key: &str, value: &str, expect: Code) {
    let payload = with(key, value);
    check(&payload, expect);
    let rejection = decode(Some(payload.as_bytes()), &rules()).unwrap_err();
    assert!(rejection.detail().starts_with(key), "{rejection}");
}

#[track_caller]
fn accept<T>(payload: &str, look: impl FnOnce(&Event<'_>) -> T) -> T {
    look(
        &decode(Some(payload.as_bytes()), &rules())
            .unwrap_or_else(|rejection| panic!("{rejection}: {payload}")),
    )
}

#[test]
fn a_full_event_is_decoded_as_it_is() {
    accept(&object(FULL), |event| {
        assert_eq!(event.audit_id.to_string(), "0190163d-8694-739b-aea5-966c26f8ad91");
        assert_eq!(event.correlation_id.to_string(), "6f9619ff-8b86-d011-b42d-00cf4fc964ff");
        assert_eq!(event.timestamp, Timestamp::from_unix_micros(1_795_514_400_123_456).unwrap());
        assert_eq!((&*event.operation, &*event.command, &*event.actor), ("ritual.query", "query", "alice"));
        assert_eq!(event.args.as_deref(), Some("--limit 10"));
        assert_eq!((event.status, event.duration_ms), (Status::Success, Some(58)));
        assert_eq!((&*event.result_signature, &*event.client_app), ("201", "portal"));
        assert_eq!(event.caller_ip_address.to_string(), "2001:db8::1");
        assert_eq!((&*event.federated_source, &*event.tenant_id), ("crm", "contoso"));
        assert_eq!(event.query_intent.as_deref(), Some("count customers"));
        assert_eq!((event.bypass_llm, event.purview_compatible), (true, false));
        assert_eq!((event.trust_score.unscaled(), event.trust_score.scale()), (950, 3));
        assert_eq!(event.metadata, r#"{"rows": [1, 2.50, null], "note": "caf\u00e9"}"#);
        assert_eq!((&*event.schema_version, &event.extra), ("2.1", &None));
    });
}

#[test]
fn absent_and_null_fields_take_their_defaults() {
    let absent = object(FULL.into_iter().filter(|(key, _)| REQUIRED.contains(key)));
    let null = object(FULL.map(|(key, value)| (key, if REQUIRED.contains(&key) { value } else { "null" })));
    for payload in [absent, null] {
        accept(&payload, |event| {
            assert_eq!((&event.args, &event.query_intent, event.duration_ms), (&None, &None, None));
            assert_eq!((&*event.result_signature, &*event.client_app), ("200", "ritual-cli"));
            assert_eq!(event.caller_ip_address.to_string(), "127.0.0.1");
            assert_eq!((&*event.federated_source, &*event.tenant_id), ("local", "default-tenant"));
            assert_eq!((event.bypass_llm, event.purview_compatible), (false, true));
            assert_eq!(event.trust_score, TrustScore::DEFAULT);
            assert_eq!((&*event.metadata, &*event.schema_version, &event.extra), ("{}", "2.0", &None));
        });
    }
}

#[test]
fn texts_are_borrowed_unless_they_have_escapes() {
    let payload = object(FULL);
    let rules = rules();
    let event = decode(Some(payload.as_bytes()), &rules).unwrap();
    for text in [&event.operation, &event.command, &event.actor, &event.metadata, &event.tenant_id] {
        assert!(matches!(text, Cow::Borrowed(_)), "{text}");
    }
    accept(&with("actor", r#""\u0061\n\"\\\/\b\f\r\t\ud83d\ude00 é""#), |event| {
        assert_eq!(event.actor, "a\n\"\\/\u{8}\u{c}\r\t😀 é");
    });
}

#[test]
fn payloads_without_an_object_are_rejected() {
    assert_eq!(decode(None, &rules()).unwrap_err().code, Code::Tombstone);
    check("", Code::EmptyPayload);
    check(vec![b' '; PAYLOAD_MAX_LEN_BYTES + 1], Code::TooLarge);
    check(b"{\"a\":\"\xff\"}", Code::InvalidUtf8);
    check(b"{\"a\":\"\xed\xa0\x80\"}", Code::InvalidUtf8);
    for text in ["[]", "[{}]", "1", "-0.5e+3", "\"text\"", "null", " true ", "[\"\\u0000\"]"] {
        check(text, Code::NotAnObject);
    }
}

#[test]
fn texts_that_are_not_json_are_rejected() {
    let valid = object(FULL);
    for text in [
        " ",
        "{",
        "}",
        "{]",
        "[",
        "nul",
        "nulll",
        "True",
        "NaN",
        "Infinity",
        "-Infinity",
        "'a'",
        "{,}",
        "{a:1}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":1 \"b\":2}",
        "{\"a\":1}}",
        "[1,]",
        "[1 2]",
        "[,1]",
        "01",
        "-",
        "+1",
        ".5",
        "1.",
        "1e",
        "1e+",
        "0x10",
        "1_000",
        "\"",
        "\"\\",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\u+123\"",
        "\"\t\"",
        "\"\u{0}\"",
        "\"a\nb\"",
        "// c\n{}",
        "{} // c",
        "{}\u{0}",
        "\u{a0}{}",
        "{}{}",
        "yesterday",
    ] {
        check(text, Code::InvalidJson);
    }
    check(format!("\u{feff}{valid}"), Code::InvalidJson);
    check(format!("{valid} x"), Code::InvalidJson);
    for cut in 1..valid.len() {
        check(valid.get(..cut).unwrap(), Code::InvalidJson);
    }
}

#[test]
fn control_characters_quotes_and_backslashes_are_seen_at_every_place_of_a_string() {
    let filling = "é0123456789abcdefé😀ghij";
    for (at, _) in filling.char_indices() {
        let (before, after) = filling.split_at(at);
        for control in '\0'..' ' {
            check(with("args", &format!("\"{before}{control}{after}\"")), Code::InvalidJson);
        }
        check(with("args", &format!("\"{before}\"{after}\"")), Code::InvalidJson);
        check(with("args", &format!("\"{before}\\x{after}\"")), Code::InvalidJson);
        for plain in ['\u{7f}', '\u{80}', ' ', '!', '#', '[', ']'] {
            let text = format!("{before}{plain}{after}");
            accept(&with("args", &format!("\"{text}\"")), |event| assert_eq!(event.args, Some(text.into())));
        }
    }
}

#[test]
fn whitespace_is_json_whitespace() {
    let spaced = object(FULL).replace("\":", "\" \t\r\n: \n").replace(",\"", " , \r\n\t\"");
    accept(&format!(" \n{spaced}\t\r\n "), |event| assert_eq!(event.actor, "alice"));
}

#[test]
fn nesting_is_read_down_to_64_levels() {
    let nested =
        |levels: usize| with("metadata", &format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels)));
    accept(&nested(62), |event| assert_eq!(event.metadata.len(), 130));
    check(nested(63), Code::InvalidJson);
    for open in ["[", "{\"a\":", "[{\"a\":["] {
        check(open.repeat(200_000), Code::InvalidJson);
        check(format!("{{\"x\":{}", open.repeat(200_000)), Code::InvalidJson);
    }
}

#[test]
fn required_fields_are_required() {
    for key in REQUIRED {
        check_field(key, "null", Code::MissingField);
        check(object(FULL.into_iter().filter(|(name, _)| *name != key)), Code::MissingField);
    }
    check("{}", Code::MissingField);
    check_field("operation", "\"\"", Code::MissingField);
    check_field("actor", "\"\"", Code::MissingField);
    accept(&with("command", "\"\""), |event| assert_eq!(event.command, ""));
}

#[test]
fn fields_of_another_type_are_rejected() {
    for (key, value) in FULL {
        let others = ["1", "\"1.7\"", "true", "[]", "{}"];
        let own = |other: &str| match key {
            "duration_ms" | "trust_score" => other == "1",
            "bypass_llm" | "purview_compatible" => other == "true",
            "metadata" => other == "{}",
            _ => other.starts_with('"'),
        };
        for other in others.into_iter().filter(|other| !own(other)) {
            check_field(key, other, if key == "metadata" { Code::InvalidMetadata } else { Code::WrongType });
        }
        assert!(code(with(key, value).as_bytes()).is_none(), "{key}");
    }
}

#[test]
fn wrong_values_have_the_code_of_their_field() {
    let simple_id = "\"0190163d8694739baea5966c26f8ad91\"";
    accept(&with("audit_id", simple_id), |event| assert_eq!(event.audit_id.get_version_num(), 7));
    for id in [
        "\"\"",
        "\"{0190163d-8694-739b-aea5-966c26f8ad91}\"",
        "\"{0190163d8694739baea5966c26f8ad91}\"",
        "\"urn:uuid:0190163d-8694-739b-aea5-966c26f8ad91\"",
        "\"0190163d-8694-739b-aea5-966c26f8ad9\"",
        "\"0190163d-8694-739b-aea5-966c26f8ad9g\"",
        "\"0190163d86-94739b-aea5-966c26f8ad91-\"",
        "\" 0190163d8694739baea5966c26f8ad9\"",
    ] {
        check_field("audit_id", id, Code::InvalidUuid);
        check_field("correlation_id", id, Code::InvalidUuid);
    }
    for status in ["\"success\"", "\"SUCCESS\"", "\"Success \"", "\"\"", "\"Failed\""] {
        check_field("status", status, Code::InvalidStatus);
    }
    for ip in ["\"\"", "\"10.0.0.0/8\"", "\"fe80::1%eth0\"", "\"localhost\"", "\"10.1\"", "\"127.0.0.01\""] {
        check_field("caller_ip_address", ip, Code::InvalidIp);
    }
    check_field("timestamp", "\"yesterday\"", Code::InvalidTimestamp);
    check_field("timestamp", "\"2026-11-24T10:00:00\"", Code::InvalidTimestamp);
    check_field("timestamp", "\"0000-01-01T00:00:00Z\"", Code::OutOfRange);
    check_field("duration_ms", "1.7", Code::InvalidInteger);
    check_field("duration_ms", "3e9", Code::OutOfRange);
    check_field("duration_ms", "-1", Code::OutOfRange);
    check_field("trust_score", "1.01", Code::OutOfRange);
    check_field("trust_score", "0.00000000000000001", Code::OutOfRange);
}

#[test]
fn names_that_would_not_fit_an_index_are_too_large() {
    for key in ["actor", "operation"] {
        accept(&with(key, &format!("\"{}\"", "é".repeat(NAME_MAX_LEN_BYTES / 2))), |_| ());
        check_field(key, &format!("\"{}\"", "a".repeat(NAME_MAX_LEN_BYTES + 1)), Code::TooLarge);
    }
}

#[test]
fn texts_that_postgresql_can_not_store_are_rejected_wherever_they_are() {
    for (text, expect) in [
        (r"a\u0000b", Code::NulCharacter),
        (r"\ud83d", Code::LoneSurrogate),
        (r"\ude00", Code::LoneSurrogate),
        (r"\ud83dx\ude00", Code::LoneSurrogate),
        (r"\ud83d\n", Code::LoneSurrogate),
        (r"\ud83d\ud83d\ude00", Code::LoneSurrogate),
        (r"\uDE00\uD83D", Code::LoneSurrogate),
    ] {
        check(with("args", &format!("\"{text}\"")), expect);
        check(with(text, "1"), expect);
        check(with("unknown", &format!("[{{\"{text}\":1}}]")), expect);
        check(with("metadata", &format!("{{\"a\":[\"{text}\"]}}")), expect);
    }
    accept(&with("metadata", r#"{"\ud83d\ude00":"\\u0000 \uffff"}"#), |_| ());
}

#[test]
fn a_key_named_twice_is_rejected_at_any_depth_and_in_any_spelling() {
    for members in [
        r#""a":1,"a":1"#,
        r#""a":1,"b":2,"\u0061":3"#,
        r#""":1,"":2"#,
        r#""a\/":1,"a/":null"#,
        r#""1":1,"2":1,"3":1,"4":1,"5":1,"6":1,"7":1,"8":1,"9":1,"\u0035":1"#,
    ] {
        check(with("metadata", &format!("{{{members}}}")), Code::DuplicateKey);
        check(with("x", &format!("[[{{\"y\":{{{members}}}}}]]")), Code::DuplicateKey);
        check(with("x", &format!("1,{members}")), Code::DuplicateKey);
    }
    check(with("actor", r#""a","actor":"b""#), Code::DuplicateKey);
    check(with("actor", r#""a","\u0061ctor":"a""#), Code::DuplicateKey);
    check(with("args", r#"null,"args":null"#), Code::DuplicateKey);
    accept(&with("metadata", r#"{"a":{"a":{"a":1}},"A":[{"a":1},{"a":2}]}"#), |_| ());
    accept(&with("a", r#"{"a":1,"b":{"actor":2}}"#), |_| ());
}

#[test]
fn numbers_that_would_be_written_out_endlessly_are_out_of_range() {
    let digits = |count: usize| "9".repeat(count);
    for number in [
        "1e400".to_owned(),
        "1e-401".to_owned(),
        "1e999999999".to_owned(),
        "-1E-999999999".to_owned(),
        "0e-99999".to_owned(),
        format!("1e{}", digits(50_000)),
        digits(401),
        format!("0.{}", digits(401)),
    ] {
        for key in ["x", "duration_ms", "trust_score"] {
            check(with(key, &number), Code::OutOfRange);
        }
        check(with("metadata", &format!("{{\"a\":[{number}]}}")), Code::OutOfRange);
    }
    let numbers = format!(
        "[-0, -0.0, 1e399, 1e-400, {}, 0.{}, {:e}, {:e}]",
        digits(400),
        digits(400),
        f64::MAX,
        f64::from_bits(1)
    );
    accept(&with("metadata", &format!("{{\"a\":{numbers}}}")), |_| ());
}

#[test]
fn unknown_fields_are_kept_as_they_are() {
    let payload = with("z", r#"null, "caf\u00e9" : {"b": [1.0,  2]} ,"a":"\n""#);
    let extra = accept(&payload, |event| event.extra.clone()).unwrap();
    assert_eq!(extra, r#"{"z":null,"caf\u00e9":{"b": [1.0,  2]},"a":"\n"}"#);
}

#[test]
fn a_time_finer_than_a_microsecond_is_kept_in_extra() {
    let fine = r#""2026-11-24t10:00:00.1234567+01:00""#;
    accept(&with("timestamp", fine), |event| {
        assert_eq!(event.timestamp.as_unix_micros(), 1_795_510_800_123_456);
        assert_eq!(event.extra.as_deref(), Some(&*format!("{{\"timestamp\":{fine}}}")));
    });
    accept(&with("timestamp", &format!("{fine},\"x\":1")), |event| {
        assert_eq!(event.extra.as_deref(), Some(&*format!("{{\"x\":1,\"timestamp\":{fine}}}")));
    });
    accept(&with("timestamp", r#""2026-11-24T10:00:00.1234560Z""#), |event| assert_eq!(event.extra, None));
}

#[test]
fn a_time_without_a_zone_is_utc_only_when_the_rules_say_so() {
    let payload = with("timestamp", r#""1970-01-01 00:00:01""#);
    let rules = DecodeRules { assume_utc: AssumeUtc::Yes, ..rules() };
    let event = decode(Some(payload.as_bytes()), &rules).unwrap();
    assert_eq!(event.timestamp.as_unix_micros(), 1_000_000);
}

#[test]
fn of_several_rejections_the_first_of_the_table_wins() {
    let faults = [
        (r#""n1":"\u0000""#, Code::NulCharacter),
        (r#""n2":"\ud800""#, Code::LoneSurrogate),
        (r#""n3":{"a":1,"a":1}"#, Code::DuplicateKey),
        (r#""n4":1e999"#, Code::OutOfRange),
        (r#""audit_id":1"#, Code::WrongType),
        (r#""correlation_id":"x""#, Code::InvalidUuid),
        (r#""timestamp":"x""#, Code::InvalidTimestamp),
        (r#""operation":null"#, Code::MissingField),
    ];
    for start in 0..faults.len() {
        let mut members: Vec<_> = faults.iter().skip(start).map(|(member, _)| *member).collect();
        let expect = faults[start].1;
        for _ in 0..members.len() {
            members.rotate_left(1);
            let valid = FULL.into_iter().filter(|(key, _)| !members.join(",").contains(key));
            let valid = object(valid);
            check(format!("{{{},{}", members.join(","), valid.get(1..).unwrap()), expect);
            check(format!("{},{}}}", valid.get(..valid.len() - 1).unwrap(), members.join(",")), expect);
            check(format!("{{{},", members.join(",")), Code::InvalidJson);
        }
    }
}

#[test]
fn details_show_little_of_the_content() {
    let secret = "x".repeat(10_000);
    let payload = with("status", &format!("\"{secret}\""));
    let rejection = decode(Some(payload.as_bytes()), &rules()).unwrap_err();
    assert_eq!(
        rejection.detail(),
        format!("status: expected Success, Failure or Pending, found '{}'...", "x".repeat(60))
    );
    let rejection = decode(Some(with("duration_ms", "\"1.7\"").as_bytes()), &rules()).unwrap_err();
    assert_eq!(rejection.detail(), "duration_ms: expected a number, found a string");
}

#[test]
fn ids_are_found_in_rejected_payloads() {
    let audit_id = Uuid::try_parse("0190163d-8694-739b-aea5-966c26f8ad91").ok();
    let correlation_id = Uuid::try_parse("6f9619ff-8b86-d011-b42d-00cf4fc964ff").ok();
    let both = Identity { audit_id, correlation_id };
    let valid = object(FULL);
    assert_eq!(identify(valid.as_bytes()), both);
    assert_eq!(identify(format!("\u{feff}{valid}").as_bytes()), both);
    assert_eq!(identify(valid.get(..180).unwrap().as_bytes()), both);
    assert_eq!(identify(valid.get(..90).unwrap().as_bytes()), Identity { audit_id, correlation_id: None });
    assert_eq!(identify(&[b"{\"a\":\"\xff\",", valid.get(1..).unwrap().as_bytes()].concat()), both);
    assert_eq!(identify(with("audit_id", "7").as_bytes()), Identity { audit_id: None, correlation_id });
    for nothing in ["", "[", "{", "null", "{}", "{\"metadata\":{\"audit_id\":\"x\"}}", "\u{0}"] {
        assert_eq!(identify(nothing.as_bytes()), Identity::default(), "{nothing}");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "it measures time itself, not a state")]
fn a_megabyte_takes_no_more_than_its_share_of_time() {
    let mut many_keys = String::from("{");
    for key in 0..80_000 {
        write!(many_keys, "\"k{key}\":1,").unwrap();
    }
    many_keys.push_str("\"end\":0}");
    let payloads = [
        with("args", &format!("\"{}\"", "a".repeat(1 << 20))),
        with("args", &format!("\"{}\"", "\\n".repeat(1 << 19))),
        with("metadata", &many_keys),
        with("x", &format!("0,{}", many_keys.get(1..many_keys.len() - 1).unwrap())),
        with("metadata", &format!("{{\"a\":[{}0]}}", "{\"a\":1},".repeat(100_000))),
        with("timestamp", &format!("\"2026-11-24T10:00:00.{}Z\"", "1".repeat(1 << 20))),
    ];
    for payload in payloads {
        let start = Instant::now();
        accept(&payload, |_| ());
        assert!(identify(payload.as_bytes()).audit_id.is_some());
        assert!(start.elapsed() < Duration::from_secs(2), "{payload:.60}");
    }
}
