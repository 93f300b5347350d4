//! Decoding is total, and what it accepts is JSON whose values serde_json reads as the same.
#![no_main]

use audit_consumer::model::decode::{AssumeUtc, DecodeRules, decode, identify};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|payload: &[u8]| {
    let rules = DecodeRules {
        tenant_id: "default".to_owned(),
        assume_utc: if payload.len() % 2 == 0 { AssumeUtc::Yes } else { AssumeUtc::No },
        payload_max_len_bytes: 1 << 20,
    };
    let identity = identify(payload);
    let Ok(event) = decode(Some(payload), &rules) else { return };
    assert_eq!(identity.audit_id, Some(event.audit_id));
    assert_eq!(identity.correlation_id, Some(event.correlation_id));
    assert!(event.extra.as_deref().is_none_or(is_json_object));
    assert!(is_json_object(&event.metadata));
    assert!(![&event.operation, &event.command, &event.actor].into_iter().any(|text| text.contains('\0')));
    // serde_json refuses numbers beyond an f64, which numeric holds.
    let Ok(whole) = serde_json::from_slice::<Value>(payload) else { return };
    assert_eq!(whole.get("operation").and_then(Value::as_str), Some(&*event.operation));
    assert_eq!(whole.get("command").and_then(Value::as_str), Some(&*event.command));
    assert_eq!(whole.get("actor").and_then(Value::as_str), Some(&*event.actor));
});

/// Whether it is an object; numbers beyond an f64 pass.
fn is_json_object(text: &str) -> bool {
    text.starts_with('{') && serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
}
