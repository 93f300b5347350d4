//! An event: a record that was decoded and found valid, ready to be stored as it is.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use uuid::Uuid;

/// A moment in microseconds since 1970-01-01T00:00:00Z, within the years 0001 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 0001-01-01T00:00:00Z.
    pub const MIN: Self = Self(-62_135_596_800_000_000);
    /// 9999-12-31T23:59:59.999999Z.
    pub const MAX: Self = Self(253_402_300_799_999_999);

    /// The moment `micros` microseconds after the epoch, or `None` outside the years 0001 to 9999.
    #[must_use]
    pub const fn from_unix_micros(micros: i64) -> Option<Self> {
        if micros < Self::MIN.0 || micros > Self::MAX.0 { None } else { Some(Self(micros)) }
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn as_unix_micros(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with six digits of a second: `2026-01-31T12:00:00.123456Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// A day in UTC, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcDay(i64);

impl UtcDay {
    const LEN_MICROS: i64 = 86_400_000_000;

    /// The day of `time`.
    #[must_use]
    pub const fn of(time: Timestamp) -> Self {
        Self(time.0.div_euclid(Self::LEN_MICROS))
    }

    /// The day after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The day's first moment in microseconds since the Unix epoch.
    #[must_use]
    pub const fn start_unix_micros(self) -> i64 {
        self.0 * Self::LEN_MICROS
    }
}

/// How the audited operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It succeeded.
    Success,
    /// It failed.
    Failure,
    /// It has not ended yet.
    Pending,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::Success, Self::Failure, Self::Pending];

    /// The status of that word, in this case.
    #[must_use]
    pub fn read(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// The word as it is received and stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "Success",
            Self::Failure => "Failure",
            Self::Pending => "Pending",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A trust score from 0 to 1, exact: `unscaled * 10^-scale`. As received, so `0.80` keeps its scale of 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TrustScore {
    unscaled: u64,
    scale: u8,
}

impl TrustScore {
    /// The default of the event schema: 0.80.
    pub const DEFAULT: Self = Self { unscaled: 80, scale: 2 };
    /// The most digits after the point that are kept; a score with more is rejected, not rounded.
    pub const MAX_SCALE: u8 = 16;

    /// The score `unscaled * 10^-scale`, or `None` when it is above 1 or has more than
    /// [`Self::MAX_SCALE`] digits after the point.
    #[must_use]
    pub const fn new(unscaled: u64, scale: u8) -> Option<Self> {
        if scale > Self::MAX_SCALE {
            return None;
        }
        let (mut one, mut digits) = (1u64, 0);
        while digits < scale {
            one *= 10;
            digits += 1;
        }
        if unscaled <= one { Some(Self { unscaled, scale }) } else { None }
    }

    /// In percent, cut to a whole number: 0 to 100.
    #[must_use]
    pub fn percent(self) -> u8 {
        let mut percent = u128::from(self.unscaled) * 100;
        for _ in 0..self.scale {
            percent /= 10;
        }
        u8::try_from(percent).unwrap_or(100)
    }

    /// The digits as one whole number.
    #[must_use]
    pub const fn unscaled(self) -> u64 {
        self.unscaled
    }

    /// How many of the digits stand after the point.
    #[must_use]
    pub const fn scale(self) -> u8 {
        self.scale
    }
}

/// A valid event. Texts borrow from the record's payload where they need no unescaping; none holds U+0000.
#[derive(Debug, Clone, PartialEq)]
pub struct Event<'a> {
    /// Identifies the event together with [`Self::timestamp`].
    pub audit_id: Uuid,
    /// What ties the events of one request together.
    pub correlation_id: Uuid,
    /// When the operation happened.
    pub timestamp: Timestamp,
    /// What was done, such as `ritual.query`. At most [`NAME_MAX_LEN_BYTES`].
    pub operation: Cow<'a, str>,
    /// The command, such as `query`.
    pub command: Cow<'a, str>,
    /// The command's arguments.
    pub args: Option<Cow<'a, str>>,
    /// Who did it. At most [`NAME_MAX_LEN_BYTES`], as it stands in a btree index.
    pub actor: Cow<'a, str>,
    /// How it ended.
    pub status: Status,
    /// How long it took, in milliseconds; from 0 to 2,147,483,647.
    pub duration_ms: Option<i32>,
    /// The result's signature, by default `200`.
    pub result_signature: Cow<'a, str>,
    /// The client program, by default `ritual-cli`.
    pub client_app: Cow<'a, str>,
    /// The caller's address, by default 127.0.0.1.
    pub caller_ip_address: IpAddr,
    /// The federated source asked, by default `local`.
    pub federated_source: Cow<'a, str>,
    /// What the query was taken to mean.
    pub query_intent: Option<Cow<'a, str>>,
    /// Whether the language model was bypassed, by default not.
    pub bypass_llm: bool,
    /// The trust score, by default 0.80.
    pub trust_score: TrustScore,
    /// Whether the event goes to the Purview log, by default it does.
    pub purview_compatible: bool,
    /// A JSON object as text, by default `{}`; checked so that `jsonb` takes it unchanged by value.
    pub metadata: Cow<'a, str>,
    /// The event schema's version, by default `2.0`.
    pub schema_version: Cow<'a, str>,
    /// The tenant, by default the configured one.
    pub tenant_id: Cow<'a, str>,
    /// A JSON object as text of the top-level fields that the schema doesn't know, and of the time's full
    /// text (key `timestamp`) when it was finer than a microsecond; checked like [`Self::metadata`].
    pub extra: Option<String>,
}

/// The limit of names that stand in indexes (actor, operation), in bytes: a btree entry must stay under
/// 2,704 bytes (PostgreSQL, "index row size exceeds btree version 4 maximum").
pub const NAME_MAX_LEN_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_in_percent_is_cut() {
        let percent = |unscaled, scale| TrustScore::new(unscaled, scale).unwrap().percent();
        assert_eq!((percent(0, 0), percent(1, 0), percent(80, 2), percent(5, 1)), (0, 100, 80, 50));
        assert_eq!(
            (percent(999, 3), percent(1_999_999_999, 10), percent(10_000_000_000_000_000, 16)),
            (99, 19, 100)
        );
    }
}
