//! What holds for any input, with `serde_json` as the second opinion.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// JSON that is well formed, with texts and numbers of every kind that PostgreSQL stores.
fn storable_json() -> impl Strategy<Value = serde_json::Value> {
    let text = "[^\\x00]{0,12}";
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        any::<u64>().prop_map(|value| json!(value)),
        any::<f64>().prop_map(|value| json!(value)),
        text.prop_map(|value| json!(value)),
    ];
    leaf.prop_recursive(6, 48, 12, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|values| json!(values)),
            prop::collection::btree_map(text, inner, 0..14).prop_map(|members| json!(members)),
        ]
    })
}

/// Text made of the pieces that JSON is made of.
fn near_json() -> impl Strategy<Value = String> {
    let pieces = vec![
        "{", "}", "[", "]", ",", ":", "\"", "\\", "\\\"", "\\u", "\\u0041", "\\u0000", "\\ud83d", "\\ude00",
        "a", "\"a\":", "\"b\":1,", "true", "false", "null", "0", "1", "-", "+", ".", "e", "E5", " ", "\n",
        "\t", "é", "\u{0}", "\u{7f}", "\u{1f}", "{\"a\":[", "]}", "{}", "[]", "\"x\"", "1.5e3",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..24).prop_map(|pieces| pieces.concat())
}

/// A valid event after some changes to its bytes.
fn damaged_event() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), 0usize..4, 0usize..40, any::<u8>());
    prop::collection::vec(change, 0..5).prop_map(|changes| {
        let mut payload = object(FULL).into_bytes();
        for (index, kind, len, byte) in changes {
            let at = index.index(payload.len());
            let end = payload.len().min(at + len);
            match kind {
                0 => payload[at] = byte,
                1 => payload.insert(at, byte),
                2 => drop(payload.drain(at..end)),
                _ => payload.extend_from_within(at..end),
            }
            if payload.is_empty() {
                payload.push(b'{');
            }
        }
        payload
    })
}

/// The scanner and `serde_json` agree on whether it is JSON, and on its value when it can be stored.
#[track_caller]
fn check_against_serde_json(text: &str) {
    let mut scanner = Scanner::new(text);
    let ours = scanner.whole();
    // Skipping checks the grammar alone: numbers of any size and lone surrogates pass.
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    assert_eq!(ours.is_ok(), is_json, "{ours:?}: {text}");
    let Ok(value) = ours else { return };
    let fault = scanner.into_fault().map(|fault| fault.kind);
    let theirs = serde_json::from_str::<serde_json::Value>(text).ok();
    assert!(fault.is_some() || theirs.is_some() || text.contains(['e', 'E']), "{text}");
    if let (None, Value::Text(text), Some(theirs)) = (fault, value, theirs) {
        assert_eq!(theirs, json!(text.unescape()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn decoding_is_total_on_any_bytes(payload: Vec<u8>) {
        prop_assert!(decode(Some(&payload), &rules()).is_err());
        prop_assert_eq!(identify(&payload), Identity::default());
    }

    #[test]
    fn decoding_is_total_on_damaged_events(payload in damaged_event()) {
        let rules = rules();
        if let Ok(event) = decode(Some(&payload), &rules) {
            let whole: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            let metadata: serde_json::Value = serde_json::from_str(&event.metadata).unwrap();
            prop_assert!(metadata.is_object());
            prop_assert_eq!(whole.get("actor").unwrap(), &json!(event.actor));
            prop_assert_eq!(identify(&payload).audit_id, Some(event.audit_id));
        }
        if let Ok(text) = std::str::from_utf8(&payload) {
            check_against_serde_json(text);
        }
    }

    #[test]
    fn the_grammar_is_that_of_serde_json(text in near_json()) {
        check_against_serde_json(&text);
        prop_assert!(decode(Some(text.as_bytes()), &rules()).is_err());
        prop_assert_eq!(identify(text.as_bytes()), Identity::default());
    }

    #[test]
    fn strings_are_those_of_serde_json(text in "\"([ -\\[\\]-~é😀]|\\\\[\"\\\\/bfnrtux]|\\\\u[0-9a-fD]{4}|\\\\ud83d\\\\ude00){0,12}\"") {
        check_against_serde_json(&text);
    }

    #[test]
    fn json_comes_back_as_it_went_in(value in storable_json(), text in "[^\\x00]{1,200}") {
        let actor = json!(text).to_string();
        let payload = with("actor", &format!("{actor},\"metadata\":{{\"a\":{value}}},\"extra\":{value:#}"));
        let rules = rules();
        let event = decode(Some(payload.as_bytes()), &rules);
        prop_assert!(event.is_ok(), "{event:?}");
        let event = event.unwrap();
        let whole: serde_json::Value = serde_json::from_str(&payload).unwrap();
        let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        prop_assert_eq!(&*event.actor, &text);
        prop_assert_eq!(parsed(&event.metadata), whole.get("metadata").unwrap().clone());
        prop_assert_eq!(parsed(event.extra.as_deref().unwrap()), json!({ "extra": whole.get("extra").unwrap() }));
    }

    #[test]
    fn a_repeated_key_is_always_found(keys in prop::collection::vec("[ab\\\\]{0,3}", 0..16), escape: bool) {
        let spelt = |key: &String| {
            let key = json!(key).to_string();
            if escape { key.replace('a', "\\u0061") } else { key }
        };
        let members: Vec<_> = keys.iter().enumerate().map(|(at, key)| {
            format!("{}:{at}", if at % 2 == 0 { spelt(key) } else { json!(key).to_string() })
        }).collect();
        let mut distinct = keys.clone();
        distinct.sort();
        distinct.dedup();
        let expect = (distinct.len() < keys.len()).then_some(Code::DuplicateKey);
        prop_assert_eq!(code(with("metadata", &format!("{{{}}}", members.join(","))).as_bytes()), expect);
        let unknown = members.iter().fold("0".to_owned(), |all, member| format!("{all},{member}"));
        prop_assert_eq!(code(with("other", &unknown).as_bytes()), expect);
    }
}
