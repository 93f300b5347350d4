//! Sample events: what `emit --generate` sends, and what tests count on. Deterministic: the same seed and index
//! give the same bytes.

use std::fmt::Write;

use super::rejection::RejectionCode;

/// What the record at an index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleKind {
    /// A valid event of its own.
    Valid,
    /// The same event as an earlier record's, spelled another way.
    Duplicate {
        /// The earlier record's index.
        of: u64,
    },
    /// No event; becomes a dead letter with this code.
    Invalid(RejectionCode),
}

/// A plan of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplePlan {
    /// Distinguishes runs: events of other seeds are other events.
    pub seed: u64,
    /// The time of the first event, in microseconds since the Unix epoch; each one after is a millisecond later.
    pub start_unix_micros: i64,
    /// How many of a million records are invalid.
    pub invalid_ppm: u64,
    /// How many of a million records are duplicates.
    pub duplicate_ppm: u64,
}

/// How a plan's records will be accounted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SampleTotals {
    /// Events.
    pub events: u64,
    /// Upstream duplicates.
    pub duplicates: u64,
    /// Dead letters.
    pub dead_letters: u64,
}

/// The kinds of invalid samples, each with the code that it gets.
const INVALID: &[RejectionCode] = &[
    RejectionCode::InvalidJson,
    RejectionCode::MissingField,
    RejectionCode::InvalidUuid,
    RejectionCode::NulCharacter,
    RejectionCode::LoneSurrogate,
    RejectionCode::InvalidTimestamp,
    RejectionCode::WrongType,
    RejectionCode::OutOfRange,
    RejectionCode::InvalidStatus,
    RejectionCode::InvalidUtf8,
    RejectionCode::Tombstone,
    RejectionCode::EmptyPayload,
];

/// How far back a duplicate's original lies at most.
const DUPLICATE_WINDOW: u64 = 5_000;

/// A mixed 64-bit number (splitmix64, Steele, Lea and Flood 2014).
const fn mixed(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl SamplePlan {
    const fn random(&self, index: u64, purpose: u64) -> u64 {
        mixed(mixed(self.seed ^ purpose.wrapping_mul(0xd1b5_4a32_d192_ed03)).wrapping_add(index))
    }

    /// What the record at `index` is.
    #[must_use]
    pub fn kind(&self, index: u64) -> SampleKind {
        let dice = self.random(index, 1) % 1_000_000;
        if dice < self.invalid_ppm {
            let choice = usize::try_from(self.random(index, 2)).unwrap_or_default() % INVALID.len();
            return SampleKind::Invalid(INVALID.get(choice).copied().unwrap_or(RejectionCode::InvalidJson));
        }
        if dice < self.invalid_ppm + self.duplicate_ppm {
            // The nearest valid record at or before a random distance; none: it is valid itself.
            let from = index.checked_sub(1 + self.random(index, 3) % DUPLICATE_WINDOW.min(index.max(1)));
            let earlier =
                from.and_then(|from| (from.saturating_sub(64)..=from).rev().find(|i| self.is_valid(*i)));
            if let Some(of) = earlier {
                return SampleKind::Duplicate { of };
            }
        }
        SampleKind::Valid
    }

    fn is_valid(&self, index: u64) -> bool {
        self.random(index, 1) % 1_000_000 >= self.invalid_ppm + self.duplicate_ppm
    }

    /// How the first `record_count` records will be accounted for.
    #[must_use]
    pub fn totals(&self, record_count: u64) -> SampleTotals {
        let mut totals = SampleTotals::default();
        for index in 0..record_count {
            match self.kind(index) {
                SampleKind::Valid => totals.events += 1,
                SampleKind::Duplicate { .. } => totals.duplicates += 1,
                SampleKind::Invalid(_) => totals.dead_letters += 1,
            }
        }
        totals
    }

    /// Writes the payload of the record at `index` into `payload`; `false`: it is a tombstone.
    pub fn write(&self, index: u64, payload: &mut Vec<u8>) -> bool {
        payload.clear();
        match self.kind(index) {
            SampleKind::Valid => self.write_event(index, None, payload),
            SampleKind::Duplicate { of } => self.write_event(of, Some(RejectionCode::TooLarge), payload),
            SampleKind::Invalid(RejectionCode::Tombstone) => return false,
            SampleKind::Invalid(RejectionCode::EmptyPayload) => {}
            SampleKind::Invalid(code) => self.write_event(index, Some(code), payload),
        }
        true
    }

    /// The event of `index`; with a fault in it, or, for the code that no sample gets, spelled another way.
    fn write_event(&self, index: u64, twist: Option<RejectionCode>, payload: &mut Vec<u8>) {
        let random = self.random(index, 4);
        let micros = self.start_unix_micros + i64::try_from(index).unwrap_or_default() * 1000;
        let is = |code| twist == Some(code);
        let is_respelled = is(RejectionCode::TooLarge);
        let mut text = String::with_capacity(800);
        let audit_id = self.audit_id(index, micros);
        let time =
            if is(RejectionCode::InvalidTimestamp) { "yesterday".to_owned() } else { rfc_3339(micros) };
        let status = match random % 20 {
            _ if is(RejectionCode::InvalidStatus) => "Done",
            0 => "Failure",
            1 => "Pending",
            _ => "Success",
        };
        let duration = match twist {
            Some(RejectionCode::WrongType) => "\"1.7\"".to_owned(),
            Some(RejectionCode::OutOfRange) => "3e9".to_owned(),
            _ if is_respelled => format!("{}.0", random % 900),
            _ => (random % 900).to_string(),
        };
        let args = match twist {
            Some(RejectionCode::NulCharacter) => "what\\u0000is next",
            Some(RejectionCode::LoneSurrogate) => "what \\ud800 is next",
            _ => "what's next for the quarterly review of access rights",
        };
        let actor = format!("user-{:03}", random % 400);
        let id_text = if is(RejectionCode::InvalidUuid) { "not-a-uuid" } else { audit_id.as_str() };
        let head = format!("\"audit_id\":\"{id_text}\",");
        let first = if is(RejectionCode::MissingField) { "" } else { head.as_str() };
        let [address, octet] = [random >> 8 & 255, random >> 16 & 255];
        // Writing to a String can't fail.
        let written = write!(
            text,
            "{{{first}\"correlation_id\":\"{}\",\"timestamp\":\"{time}\",\"operation\":\"ritual.query\",\
             \"command\":\"query\",\"args\":\"{args} {index}\",\"actor\":\"{actor}\",\"status\":\"{status}\",\
             \"duration_ms\":{duration},\"result_signature\":\"200\",\"client_app\":\"ritual-cli\",\
             \"caller_ip_address\":\"10.1.{address}.{octet}\",\"federated_source\":\"local\",\
             \"query_intent\":\"wish_queue\",\"bypass_llm\":{},\"trust_score\":0.{:02},\
             \"purview_compatible\":true,\"schema_version\":\"2.0\",\"tenant_id\":\"spel-local-forge\",{}}}",
            self.correlation_id(index),
            random & 1 == 1,
            random % 100,
            if is_respelled {
                "\"metadata\":{\"tags\":[\"quarterly\",\"review\"],\"shard\":7.0,\"region\":\"eu-central\"}"
            } else {
                "\"metadata\":{\"region\":\"eu-central\",\"shard\":7,\"tags\":[\"quarterly\",\"review\"]}"
            },
        );
        debug_assert!(written.is_ok());
        payload.extend_from_slice(text.as_bytes());
        match twist {
            Some(RejectionCode::InvalidJson) => payload.truncate(payload.len() / 2),
            Some(RejectionCode::InvalidUtf8) => {
                if let Some(byte) = payload.iter_mut().rev().nth(4) {
                    *byte = 0xff;
                }
            }
            _ => {}
        }
    }

    /// A time-ordered id (UUID version 7, RFC 9562): milliseconds, then what the seed and index give.
    fn audit_id(&self, index: u64, micros: i64) -> String {
        let millis = u128::try_from(micros / 1000).unwrap_or_default() & 0xffff_ffff_ffff;
        let random = u128::from(self.random(index, 5));
        let value =
            millis << 80 | 0x7 << 76 | (random >> 52) << 64 | 0x2 << 62 | (random & 0x3fff_ffff_ffff_ffff);
        uuid::Uuid::from_u128(value).hyphenated().to_string()
    }

    /// The correlation id of the record at `index`: four neighbours share one.
    #[must_use]
    pub fn correlation_id(&self, index: u64) -> String {
        let (high, low) = (self.random(index / 4, 6), self.random(index / 4, 7));
        let value = u128::from(high) << 64 | u128::from(low);
        uuid::Builder::from_u128(value)
            .with_version(uuid::Version::Random)
            .with_variant(uuid::Variant::RFC4122)
            .into_uuid()
            .to_string()
    }
}

/// The time as RFC 3339 with microseconds; "out of range" beyond what chrono knows.
fn rfc_3339(micros: i64) -> String {
    chrono::DateTime::from_timestamp_micros(micros).map_or_else(
        || "out of range".into(),
        |time| time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::model::decode::{AssumeUtc, DecodeRules, decode};

    const PLAN: SamplePlan = SamplePlan {
        seed: 7,
        start_unix_micros: 1_780_000_000_000_000,
        invalid_ppm: 30_000,
        duplicate_ppm: 20_000,
    };

    #[test]
    fn every_sample_is_what_its_plan_says() {
        let rules =
            DecodeRules { tenant_id: "t".into(), assume_utc: AssumeUtc::No, payload_max_len_bytes: 1 << 20 };
        let (mut payload, mut original, mut ids) = (vec![], vec![], HashSet::new());
        for index in 0..20_000 {
            let value = PLAN.write(index, &mut payload).then_some(payload.as_slice());
            match (PLAN.kind(index), decode(value, &rules)) {
                (SampleKind::Valid, Ok(event)) => assert!(ids.insert((event.audit_id, event.timestamp))),
                (SampleKind::Duplicate { of }, Ok(event)) => {
                    assert!(of < index && PLAN.write(of, &mut original));
                    let kept = decode(Some(&original), &rules).unwrap();
                    assert_eq!((event.audit_id, event.timestamp), (kept.audit_id, kept.timestamp));
                    assert_eq!(event.duration_ms, kept.duration_ms);
                    assert_ne!(payload, original);
                }
                (SampleKind::Invalid(code), Err(rejection)) => assert_eq!(rejection.code, code),
                (kind, outcome) => panic!("{index}: {kind:?} {outcome:?}"),
            }
        }
        let totals = PLAN.totals(20_000);
        assert_eq!(totals.events, u64::try_from(ids.len()).unwrap());
        assert!(totals.dead_letters > 400 && totals.duplicates > 200, "{totals:?}");
        assert_eq!(totals.events + totals.duplicates + totals.dead_letters, 20_000);
    }
}
