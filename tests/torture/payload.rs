//! What the records of the rig are: those of a sample plan, some with text of many scripts, and some too long.

use audit_consumer::model::rejection::RejectionCode;
use audit_consumer::model::sample::{SampleKind, SamplePlan};

use crate::ledger::{Entry, Kind};

/// The longest payload that the daemons are told to take; a longer one is a dead letter.
pub(crate) const MAX_EVENT_LEN_BYTES: usize = 8 * 1024;
/// Fifteen minutes before midnight of a day; an event is a millisecond, so a long run goes over several hours.
const START_UNIX_MICROS: i64 = 1_793_059_200_000_000 - 900_000_000;
/// What each event has in it, and what some have instead.
const PLAIN: &[u8] = b"for the quarterly review of access rights";
const SCRIPTS: &str = "für 審査 проверка مراجعة 🔎 e\u{301} \u{200d} ﷽ \u{10ffff} 𝕬";
/// One of so many events has such text, and one of so many records is too long.
const SCRIPTS_EVERY: u64 = 16;
const OVERSIZE_EVERY: u64 = 499;

/// The records of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payloads {
    plan: SamplePlan,
}

impl Payloads {
    pub(crate) const fn new(seed: u64) -> Self {
        Self {
            plan: SamplePlan {
                seed,
                start_unix_micros: START_UNIX_MICROS,
                invalid_ppm: 20_000,
                duplicate_ppm: 20_000,
            },
        }
    }

    /// The index of the event with this id, if it can be one of the run.
    pub(crate) fn index_of(audit_id: &str) -> Option<u64> {
        // Time-ordered: 48 bits of milliseconds come first.
        let digits: String = audit_id.chars().filter(|char| *char != '-').take(12).collect();
        let millis = i64::from_str_radix(&digits, 16).ok()?;
        u64::try_from(millis - START_UNIX_MICROS / 1000).ok()
    }

    /// Whether the record at `index` is an event of its own.
    pub(crate) fn is_event(&self, index: u64) -> bool {
        index % OVERSIZE_EVERY != OVERSIZE_EVERY - 1 && self.plan.kind(index) == SampleKind::Valid
    }

    /// Writes the record at `index` into `payload` and says what it is; `false`: it has no value.
    pub(crate) fn write(&self, index: u64, payload: &mut Vec<u8>) -> (Entry, bool) {
        if index % OVERSIZE_EVERY == OVERSIZE_EVERY - 1 {
            // No other record repeats it: it is no event.
            payload.clear();
            payload.extend_from_slice(b"{\"args\":\"");
            payload.resize(MAX_EVENT_LEN_BYTES + 100, b'x');
            payload.extend_from_slice(b"\"}");
            return (Entry { kind: Kind::Oversize, index }, true);
        }
        let has_value = self.plan.write(index, payload);
        let entry = match self.plan.kind(index) {
            SampleKind::Valid => Entry { kind: Kind::Unique, index },
            SampleKind::Duplicate { of } => Entry { kind: Kind::Duplicate, index: of },
            SampleKind::Invalid(RejectionCode::NulCharacter) => Entry { kind: Kind::Nul, index },
            SampleKind::Invalid(RejectionCode::Tombstone) => Entry { kind: Kind::Tombstone, index },
            SampleKind::Invalid(_) => Entry { kind: Kind::Poison, index },
        };
        // By the event and not by the record, so that a duplicate says the same.
        let has_scripts = entry.kind.is_event() && entry.index % SCRIPTS_EVERY == 0;
        let place =
            has_scripts.then(|| payload.windows(PLAIN.len()).position(|part| part == PLAIN)).flatten();
        match (place, entry.kind) {
            (Some(place), kind) => {
                payload.splice(place..place + PLAIN.len(), SCRIPTS.bytes());
                let kind = if kind == Kind::Unique { Kind::Unicode } else { kind };
                (Entry { kind, ..entry }, has_value)
            }
            (None, _) => (entry, has_value),
        }
    }
}
