//! Times by RFC 3339.

use crate::model::decode::AssumeUtc;
use crate::model::event::Timestamp;

/// A time that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// Cut to microseconds.
    pub(super) timestamp: Timestamp,
    /// Digits behind the microsecond were cut that are not zero.
    pub(super) is_cut: bool,
}

/// Why a text is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeFault {
    /// Not RFC 3339, or no such day or hour.
    Syntax,
    /// No zone.
    NoZone,
    /// Outside of the years 0001 to 9999 in UTC.
    OutOfRange,
}

/// Reads `YYYY-MM-DDThh:mm:ss[.f…](Z|±hh:mm)`; the `T` may be a `t` or one space (RFC 3339, section 5.6), the
/// `Z` a `z`. A leap second (`:60`) is no time here, as PostgreSQL can't store it.
pub(super) fn parse(text: &str, assume_utc: AssumeUtc) -> Result<Moment, TimeFault> {
    let mut reader = Reader { bytes: text.as_bytes() };
    let read = |reader: &mut Reader<'_>| -> Option<(i64, i64, i64, bool)> {
        let year = reader.number(4)?;
        reader.one(b"-")?;
        let month = reader.number(2)?;
        reader.one(b"-")?;
        let day = reader.number(2)?;
        reader.one(b"Tt ")?;
        let hour = reader.number(2)?;
        reader.one(b":")?;
        let minute = reader.number(2)?;
        reader.one(b":")?;
        let second = reader.number(2)?;
        let (micros, is_cut) = reader.fraction()?;
        let is_legal = (1..=12).contains(&month)
            && (1..=days_in_month(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        let seconds = hour * 3600 + minute * 60 + second;
        is_legal.then_some((days_from_epoch(year, month, day), seconds, micros, is_cut))
    };
    let (days, seconds, micros, is_cut) = read(&mut reader).ok_or(TimeFault::Syntax)?;
    let offset_seconds = match reader.bytes {
        [b'Z' | b'z'] => 0,
        [] if assume_utc == AssumeUtc::Yes => 0,
        [] => return Err(TimeFault::NoZone),
        _ => reader.offset().ok_or(TimeFault::Syntax)?,
    };
    let unix_micros = (days * 86_400 + seconds - offset_seconds) * 1_000_000 + micros;
    let timestamp = Timestamp::from_unix_micros(unix_micros).ok_or(TimeFault::OutOfRange)?;
    Ok(Moment { timestamp, is_cut })
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    /// Exactly `len` digits.
    fn number(&mut self, len: usize) -> Option<i64> {
        let (digits, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        digits
            .iter()
            .try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0')))
    }

    /// One of `accepted`.
    fn one(&mut self, accepted: &[u8]) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        accepted.contains(first).then_some(*first)
    }

    /// Microseconds, and whether more than zeros were cut.
    fn fraction(&mut self) -> Option<(i64, bool)> {
        let Some(rest) = self.bytes.strip_prefix(b".") else { return Some((0, false)) };
        let len = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = rest.split_at_checked(len).filter(|_| len > 0)?;
        self.bytes = rest;
        let micros = (0..6)
            .fold(0, |sum, index| sum * 10 + digits.get(index).map_or(0, |digit| i64::from(digit - b'0')));
        Some((micros, digits.iter().skip(6).any(|digit| *digit != b'0')))
    }

    /// `±hh:mm` to the end, in seconds.
    fn offset(&mut self) -> Option<i64> {
        let sign = if self.one(b"+-")? == b'-' { -1 } else { 1 };
        let hour = self.number(2)?;
        self.one(b":")?;
        let minute = self.number(2)?;
        (hour < 24 && minute < 60 && self.bytes.is_empty()).then_some(sign * (hour * 3600 + minute * 60))
    }
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar. Counts years from March, so that the leap day is a
/// year's last; an era is 400 years of 146,097 days.
const fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let march_year = if month <= 2 { year - 1 } else { year };
    let era = march_year.div_euclid(400);
    let year_of_era = march_year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}
