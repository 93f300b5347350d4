//! How long decoding takes, in nanoseconds per event: the best and the median of many rounds.
//!
//! Run: `cargo bench --bench decode` (add `--profile ci` for the profile of the tests, whose overflow checks
//! and assertions cost some of it).
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock itself")]
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::hint::black_box;
use std::time::Instant;

use audit_consumer::model::decode::{AssumeUtc, DecodeRules, decode};
use audit_consumer::model::federated::FederatedSources;

const ROUND_COUNT: usize = 200;
const EVENTS_PER_ROUND: u32 = 2_000;
/// How many sources the registry has.
const SOURCE_COUNT: u32 = 100;

/// What a producer sends: every common field, a small metadata object, no escapes. 600 bytes.
const TYPICAL: &str = r#"{"audit_id":"0190163d-8694-739b-aea5-966c26f8ad91","correlation_id":"6f9619ff-8b86-d011-b42d-00cf4fc964ff","timestamp":"2026-11-24T10:00:00.123456Z","operation":"ritual.query","command":"query","args":"--source crm --limit 10","actor":"alice.smith","status":"Success","duration_ms":58,"result_signature":"200","client_app":"ritual-cli","caller_ip_address":"10.20.30.40","federated_source":"crm","query_intent":"count customers","bypass_llm":false,"trust_score":0.95,"purview_compatible":true,"metadata":{"rows":1204,"cache":"miss","source_version":"7.3"},"schema_version":"2.0","tenant_id":"contoso"}"#;

/// The same with escapes, unknown fields and a larger metadata object.
const RICH: &str = r#"{"audit_id":"0190163d-8694-739b-aea5-966c26f8ad91","correlation_id":"6f9619ff-8b86-d011-b42d-00cf4fc964ff","timestamp":"2026-11-24T10:00:00.123456789+01:00","operation":"ritual.query","command":"query \"all\"","args":"a\tb\u00e9","actor":"alice.smith","status":"Failure","duration_ms":5.8e1,"caller_ip_address":"2001:db8::1","trust_score":0.8,"metadata":{"rows":[1,2,3,4.5e3],"plan":{"steps":[{"name":"scan","cost":12.5},{"name":"sort","cost":99.0}],"text":"line\nline"},"k1":1,"k2":2,"k3":3,"k4":4,"k5":5,"k6":6,"k7":7,"k8":8},"region":"eu-west","build":{"commit":"0a1b2c","dirty":false}}"#;

fn main() {
    let rules = DecodeRules {
        tenant_id: "default".to_owned(),
        assume_utc: AssumeUtc::No,
        payload_max_len_bytes: 1 << 20,
    };
    let names = (0..SOURCE_COUNT).map(|number| (format!("source-{number}"), true));
    let sources: FederatedSources = names.chain([("crm".to_owned(), true)]).collect();
    let cases = [
        ("typical", TYPICAL, None),
        ("rich", RICH, None),
        ("typical and its source", TYPICAL, Some(&sources)),
    ];
    for (name, payload, sources) in cases {
        let mut nanos: Vec<u128> = (0..ROUND_COUNT).map(|_| round_nanos(payload, &rules, sources)).collect();
        nanos.sort_unstable();
        let best = nanos.first().copied().unwrap_or_default();
        let median = nanos.get(ROUND_COUNT / 2).copied().unwrap_or_default();
        println!("{name}: {} bytes, best {best} ns, median {median} ns an event", payload.len());
    }
}

/// The nanoseconds an event of one round, with the look-up of its source in the registry, if there is one.
fn round_nanos(payload: &str, rules: &DecodeRules, sources: Option<&FederatedSources>) -> u128 {
    let start = Instant::now();
    for _ in 0..EVENTS_PER_ROUND {
        let event = decode(black_box(Some(payload.as_bytes())), black_box(rules));
        if let (Some(sources), Ok(event)) = (sources, &event) {
            assert_eq!(black_box(sources).flag(black_box(&event.federated_source)), None, "it is registered");
        }
        assert!(black_box(event).is_ok(), "the payload is valid");
    }
    start.elapsed().as_nanos() / u128::from(EVENTS_PER_ROUND)
}
