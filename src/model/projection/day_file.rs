//! Day files by name, and the rules of their lines as they are recorded.
//!
//! `audit_20260131.jsonl` and `trust_20260131.jsonl`: the day is that of the events' own time in UTC. A file that is
//! closed by its length is followed by `audit_20260131.1.jsonl` and so on.

use std::fmt;

use serde_json::{Value, json};

use super::{IdentityForm, Projection, ProjectionRules};
use crate::model::event::{Timestamp, UtcDay};

/// The version of the lines of day files. A change of a renderer that changes bytes is another version: what was
/// recorded under an older one can't be rendered again then.
const LINE_VERSION: u64 = 1;

/// A kind of day files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DaySink {
    /// Purview logs, in the folder `purview`.
    Purview,
    /// Trust logs, in the folder `trust`.
    Trust,
}

impl DaySink {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Purview, Self::Trust];

    /// The name in the database, in metrics and of the folder.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Purview => "purview",
            Self::Trust => "trust",
        }
    }

    /// The sink of that name.
    #[must_use]
    pub fn read(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sink| sink.as_str() == name)
    }

    /// What its lines are.
    #[must_use]
    pub const fn projection(self) -> Projection {
        match self {
            Self::Purview => Projection::Purview,
            Self::Trust => Projection::Trust,
        }
    }

    const fn stem(self) -> &'static str {
        match self {
            Self::Purview => "audit",
            Self::Trust => "trust",
        }
    }
}

impl fmt::Display for DaySink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A day file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DayFile {
    /// Of which kind.
    pub sink: DaySink,
    /// Of which day.
    pub day: UtcDay,
    /// Which of the day's files, from 0.
    pub roll: u32,
}

impl DayFile {
    /// Reads a name as [`fmt::Display`] writes it.
    #[must_use]
    pub fn read(sink: DaySink, name: &str) -> Option<Self> {
        let stem = name.strip_prefix(sink.stem())?.strip_prefix('_')?.strip_suffix(".jsonl")?;
        let (digits, roll) = stem.split_once('.').map_or((stem, "0"), |(day, roll)| (day, roll));
        let (year, rest) = digits.split_at_checked(4)?;
        let (month, day) = rest.split_at_checked(2)?;
        let file = Self {
            sink,
            day: UtcDay::of(Timestamp::from_text(&format!("{year}-{month}-{day}"))?),
            roll: roll.parse().ok()?,
        };
        (file.to_string() == name).then_some(file)
    }

    /// The day's next file.
    #[must_use]
    pub const fn next_roll(self) -> Self {
        Self { roll: self.roll.saturating_add(1), ..self }
    }
}

impl fmt::Display for DayFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = Timestamp::from_unix_micros(self.day.start_unix_micros()).unwrap_or(Timestamp::MIN);
        let text = start.to_string();
        let day: String = text.chars().take(10).filter(char::is_ascii_digit).collect();
        match self.roll {
            0 => write!(f, "{}_{day}.jsonl", self.sink.stem()),
            roll => write!(f, "{}_{day}.{roll}.jsonl", self.sink.stem()),
        }
    }
}

impl ProjectionRules {
    /// The rules as JSON, for the record.
    #[must_use]
    pub fn to_record(&self) -> Value {
        let identity = match self.identity {
            IdentityForm::Array => "array",
            IdentityForm::Object => "object",
        };
        json!({
            "version": LINE_VERSION, "resource_id": self.resource_id, "category": self.category,
            "identity": identity, "domain": self.domain,
        })
    }

    /// The rules that were recorded; `None`: by a program whose lines differ from ours.
    #[must_use]
    pub fn from_record(record: &Value) -> Option<Self> {
        let text = |name: &str| record.get(name)?.as_str().map(str::to_owned);
        if record.get("version")?.as_u64()? != LINE_VERSION {
            return None;
        }
        Some(Self {
            resource_id: text("resource_id")?,
            category: text("category")?,
            identity: match record.get("identity")?.as_str()? {
                "array" => IdentityForm::Array,
                "object" => IdentityForm::Object,
                _ => return None,
            },
            domain: text("domain")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_none_of_ours() {
        for (time, roll, name) in [
            ("2026-01-31T23:59:59.999999Z", 0, "20260131"),
            ("2026-02-01", 0, "20260201"),
            ("1969-12-31T23:59:59Z", 2, "19691231.2"),
            ("0001-01-01", 0, "00010101"),
            ("9999-12-31", 11, "99991231.11"),
        ] {
            for sink in DaySink::ALL {
                let file = DayFile { sink, day: UtcDay::of(Timestamp::from_text(time).unwrap()), roll };
                assert_eq!(file.to_string(), format!("{}_{name}.jsonl", sink.stem()));
                assert_eq!(DayFile::read(sink, &file.to_string()), Some(file));
            }
        }
        for name in [
            "audit_20260131.jsonl.orphan",
            "audit_20260131.0.jsonl",
            "audit_20260231.jsonl",
            "audit_2026013.jsonl",
            "audit_+0260131.jsonl",
            "trust_20260131.jsonl",
            "audit_20260131.x.jsonl",
            "audit_20260131é.jsonl",
        ] {
            assert_eq!(DayFile::read(DaySink::Purview, name), None, "{name}");
        }
    }

    #[test]
    fn rules_come_back_from_the_record_and_those_of_other_versions_do_not() {
        for identity in [IdentityForm::Array, IdentityForm::Object] {
            let rules =
                ProjectionRules { identity, domain: "a.example".into(), ..ProjectionRules::default() };
            assert_eq!(ProjectionRules::from_record(&rules.to_record()), Some(rules));
        }
        let mut record = ProjectionRules::default().to_record();
        record["version"] = json!(2);
        assert_eq!(ProjectionRules::from_record(&record), None);
        assert_eq!(ProjectionRules::from_record(&json!({"version": 1})), None);
    }
}
