//! How long events are kept, and whose must stay.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// How long events are kept after their time: `90d`, `52w`, `18mo`, `7y`; of the calendar, as PostgreSQL counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    count: u16,
    unit: KeepUnit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeepUnit {
    Day,
    Week,
    Month,
    Year,
}

/// Why a text says no time to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("how long is a number from 1 to 1000 and d, w, mo or y, such as 7y or 90d")]
pub struct KeepError;

impl Keep {
    /// As an interval of PostgreSQL, such as `7 years`.
    #[must_use]
    pub fn interval(self) -> String {
        let unit = match self.unit {
            KeepUnit::Day => "days",
            KeepUnit::Week => "weeks",
            KeepUnit::Month => "months",
            KeepUnit::Year => "years",
        };
        format!("{} {unit}", self.count)
    }
}

impl FromStr for Keep {
    type Err = KeepError;

    fn from_str(text: &str) -> Result<Self, KeepError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (count, unit) = text.split_at_checked(digits).ok_or(KeepError)?;
        let unit = match unit {
            "d" => KeepUnit::Day,
            "w" => KeepUnit::Week,
            "mo" => KeepUnit::Month,
            "y" => KeepUnit::Year,
            _ => return Err(KeepError),
        };
        match count.parse() {
            Ok(count @ 1..=1_000) => Ok(Self { count, unit }),
            _ => Err(KeepError),
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            KeepUnit::Day => "d",
            KeepUnit::Week => "w",
            KeepUnit::Month => "mo",
            KeepUnit::Year => "y",
        };
        write!(f, "{}{unit}", self.count)
    }
}

/// What a legal hold goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HoldKind {
    /// The tenant, exactly.
    Tenant,
    /// The actor, exactly.
    Actor,
    /// The correlation id.
    CorrelationId,
}

impl HoldKind {
    /// Its name, in PostgreSQL too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Actor => "actor",
            Self::CorrelationId => "correlation_id",
        }
    }
}

/// Whose events must stay, written `tenant=acme`, `actor=jane` or `correlation_id=<uuid>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LegalHold {
    kind: HoldKind,
    value: String,
}

/// Why a text names no legal hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LegalHoldError {
    /// No known kind.
    #[error("a legal hold is tenant=NAME, actor=NAME or correlation_id=UUID")]
    Form,
    /// Nothing behind the sign.
    #[error("a legal hold names somebody behind the sign =")]
    Empty,
    /// No UUID.
    #[error("a correlation id is a UUID")]
    CorrelationId,
}

impl LegalHold {
    /// What it goes by.
    #[must_use]
    pub const fn kind(&self) -> HoldKind {
        self.kind
    }

    /// Whose; a correlation id in lower case with hyphens.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl FromStr for LegalHold {
    type Err = LegalHoldError;

    fn from_str(text: &str) -> Result<Self, LegalHoldError> {
        let (kind, value) = text.split_once('=').ok_or(LegalHoldError::Form)?;
        let kind = match kind {
            "tenant" => HoldKind::Tenant,
            "actor" => HoldKind::Actor,
            "correlation_id" | "correlation-id" => HoldKind::CorrelationId,
            _ => return Err(LegalHoldError::Form),
        };
        let value = match kind {
            HoldKind::CorrelationId => {
                let id = Uuid::try_parse(value).map_err(|_no_uuid| LegalHoldError::CorrelationId)?;
                id.hyphenated().to_string()
            }
            HoldKind::Tenant | HoldKind::Actor if value.is_empty() => return Err(LegalHoldError::Empty),
            HoldKind::Tenant | HoldKind::Actor => value.to_owned(),
        };
        Ok(Self { kind, value })
    }
}

impl fmt::Display for LegalHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind.as_str(), self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::{Keep, LegalHold};

    #[test]
    fn how_long_is_a_number_and_a_unit() {
        for (text, interval) in [
            ("7y", Some("7 years")),
            ("18mo", Some("18 months")),
            ("52w", Some("52 weeks")),
            ("90d", Some("90 days")),
            ("1000y", Some("1000 years")),
            ("0d", None),
            ("1001d", None),
            ("7", None),
            ("y", None),
            ("", None),
            ("7m", None),
            ("-7y", None),
            ("7 y", None),
            ("7yé", None),
        ] {
            let keep: Option<Keep> = text.parse().ok();
            assert_eq!(keep.map(Keep::interval).as_deref(), interval, "{text}");
            assert!(keep.is_none_or(|keep| keep.to_string() == text));
        }
    }

    #[test]
    fn a_legal_hold_names_a_kind_and_whose() {
        for (text, expect) in [
            ("tenant=acme", Ok("tenant=acme")),
            ("actor=a=b", Ok("actor=a=b")),
            (
                "correlation-id=0E37DF36-F698-11E6-8DD4-CB9CED3DF976",
                Ok("correlation_id=0e37df36-f698-11e6-8dd4-cb9ced3df976"),
            ),
            ("tenant=", Err("a legal hold names somebody behind the sign =")),
            ("correlation_id=7", Err("a correlation id is a UUID")),
            ("Tenant=acme", Err("a legal hold is tenant=NAME, actor=NAME or correlation_id=UUID")),
            ("acme", Err("a legal hold is tenant=NAME, actor=NAME or correlation_id=UUID")),
        ] {
            let hold = text.parse::<LegalHold>().map(|hold| hold.to_string());
            assert_eq!(
                hold.map_err(|error| error.to_string()),
                expect.map(str::to_owned).map_err(str::to_owned)
            );
        }
    }
}
