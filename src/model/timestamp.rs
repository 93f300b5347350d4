//! RFC 3339 times to microseconds and back. Own arithmetic: tested against chrono, several times as fast.

use std::ops::Deref;

use super::decode::AssumeUtc;
use super::event::Timestamp;

/// A time that was read, and whether anything of it was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    /// The moment, cut (never rounded) to microseconds.
    pub(super) timestamp: Timestamp,
    /// Whether the text was finer than that.
    pub(super) precision: Precision,
}

/// Whether a time fits microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    /// It does; nothing was lost.
    Exact,
    /// Digits other than 0 were cut off.
    Cut,
}

/// Why a text is not a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimestampFault {
    /// Not RFC 3339, no such day or hour, a leap second, or no zone.
    Invalid,
    /// In UTC it lies outside the years 0001 to 9999.
    OutOfRange,
}

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// A time as its text, `2026-01-31T12:00:00.123456Z`.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimestampText([u8; 27]);

impl Deref for TimestampText {
    type Target = str;

    fn deref(&self) -> &str {
        debug_assert!(self.0.is_ascii(), "digits and signs only");
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Timestamp {
    /// The moment of an RFC 3339 time with its zone, cut to microseconds, or the first of a day in UTC written
    /// `YYYY-MM-DD`; `None` for other texts and outside the years 0001 to 9999.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let reading = match text.len() {
            10 => parse(&format!("{text}T00:00:00Z"), AssumeUtc::No),
            _ => parse(text, AssumeUtc::No),
        };
        reading.ok().map(|reading| reading.timestamp)
    }

    /// RFC 3339 in UTC with six digits of a second: `2026-01-31T12:00:00.123456Z`.
    pub(super) fn text(self) -> TimestampText {
        let seconds = self.as_unix_micros().div_euclid(MICROS_PER_SECOND);
        let second_of_day = seconds.rem_euclid(SECONDS_PER_DAY);
        let (year, month, day) = civil_day(seconds.div_euclid(SECONDS_PER_DAY));
        let [y1, y2, y3, y4] = digits(year);
        let ([mo1, mo2], [d1, d2]) = (digits(month), digits(day));
        let [h1, h2] = digits(second_of_day / 3_600);
        let ([mi1, mi2], [s1, s2]) = (digits(second_of_day / 60 % 60), digits(second_of_day % 60));
        let [f1, f2, f3, f4, f5, f6] = digits(self.as_unix_micros().rem_euclid(MICROS_PER_SECOND));
        TimestampText([
            y1, y2, y3, y4, b'-', mo1, mo2, b'-', d1, d2, b'T', h1, h2, b':', mi1, mi2, b':', s1, s2, b'.',
            f1, f2, f3, f4, f5, f6, b'Z',
        ])
    }
}

/// The last `N` decimal digits of a number that is not negative.
fn digits<const N: usize>(number: i64) -> [u8; N] {
    let (mut digits, mut rest) = ([b'0'; N], number);
    for digit in digits.iter_mut().rev() {
        *digit += u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
    }
    digits
}

/// Reads a time by RFC 3339, section 5.6: `T`, `t` or one space between day and hour, `Z`, `z` or `+hh:mm` as
/// the zone, any number of digits in the fraction. Stricter than the RFC in one way: second 60 is refused, as
/// PostgreSQL would store it as second 0 of the next minute.
///
/// # Errors
/// [`TimestampFault::Invalid`] before [`TimestampFault::OutOfRange`].
pub(super) fn parse(text: &str, assume_utc: AssumeUtc) -> Result<Reading, TimestampFault> {
    let (seconds, rest) = day_and_time(text.as_bytes()).ok_or(TimestampFault::Invalid)?;
    let (micros, precision, zone) = fraction(rest).ok_or(TimestampFault::Invalid)?;
    let offset_seconds = zone_seconds(zone, assume_utc).ok_or(TimestampFault::Invalid)?;
    // Years 0 to 9999 in microseconds are far from the ends of an i64.
    let utc_micros = (seconds - offset_seconds) * MICROS_PER_SECOND + micros;
    let timestamp = Timestamp::from_unix_micros(utc_micros).ok_or(TimestampFault::OutOfRange)?;
    Ok(Reading { timestamp, precision })
}

/// `YYYY-MM-DDThh:mm:ss` as seconds since 1970 in its own zone, and what follows it.
fn day_and_time(text: &[u8]) -> Option<(i64, &[u8])> {
    let (head, rest) = text.split_first_chunk::<19>()?;
    let &[y1, y2, y3, y4, b'-', mo1, mo2, b'-', d1, d2, between, h1, h2, b':', mi1, mi2, b':', s1, s2] = head
    else {
        return None;
    };
    let (year, month, day) = (two(y1, y2)? * 100 + two(y3, y4)?, two(mo1, mo2)?, two(d1, d2)?);
    let (hour, minute, second) = (two(h1, h2)?, two(mi1, mi2)?, two(s1, s2)?);
    let is_day = (1..=12).contains(&month) && (1..=days_of_month(year, month)).contains(&day);
    let is_time = matches!(between, b'T' | b't' | b' ') && hour <= 23 && minute <= 59 && second <= 59;
    let seconds = days_since_1970(year, month, day) * SECONDS_PER_DAY + hour * 3_600 + minute * 60 + second;
    (is_day && is_time).then_some((seconds, rest))
}

/// `.digits`, if any, in microseconds, and what follows it.
fn fraction(text: &[u8]) -> Option<(i64, Precision, &[u8])> {
    let Some(text) = text.strip_prefix(b".") else { return Some((0, Precision::Exact, text)) };
    let digits_len = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, zone) = text.split_at_checked(digits_len)?;
    let (kept, lost) = digits.split_at_checked(6).unwrap_or((digits, &[]));
    let mut micros = 0;
    for place in 0..6 {
        micros = micros * 10 + kept.get(place).map_or(Some(0), |byte| digit(*byte))?;
    }
    let is_exact = lost.iter().all(|byte| *byte == b'0');
    let precision = if is_exact { Precision::Exact } else { Precision::Cut };
    (digits_len > 0).then_some((micros, precision, zone))
}

/// How many seconds the zone is ahead of UTC.
fn zone_seconds(zone: &[u8], assume_utc: AssumeUtc) -> Option<i64> {
    match *zone {
        [b'Z' | b'z'] => Some(0),
        [] => match assume_utc {
            AssumeUtc::Yes => Some(0),
            AssumeUtc::No => None,
        },
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (two(h1, h2)?, two(m1, m2)?);
            let seconds = hours * 3_600 + minutes * 60;
            let is_zone = hours <= 23 && minutes <= 59;
            is_zone.then_some(if sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

fn two(tens: u8, ones: u8) -> Option<i64> {
    Some(digit(tens)? * 10 + digit(ones)?)
}

fn digit(byte: u8) -> Option<i64> {
    byte.is_ascii_digit().then(|| i64::from(byte - b'0'))
}

/// The days of a month of the proleptic Gregorian calendar.
const fn days_of_month(year: i64, month: i64) -> i64 {
    let is_leap_year = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if is_leap_year => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01, negative before it: `days_from_civil` of Howard Hinnant's "chrono-Compatible
/// Low-Level Date Algorithms", which counts years from March, in eras of 400 years.
const fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year_from_march = if month <= 2 { year - 1 } else { year };
    let month_from_march = if month <= 2 { month + 9 } else { month - 3 };
    let era = year_from_march.div_euclid(400);
    let year_of_era = year_from_march.rem_euclid(400);
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The year, month and day that is `days` after 1970-01-01: `civil_from_days` of the same page.
const fn civil_day(days: i64) -> (i64, i64, i64) {
    let (era, day_of_era) = ((days + 719_468).div_euclid(146_097), (days + 719_468).rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year_from_march = year_of_era + era * 400;
    (if month <= 2 { year_from_march + 1 } else { year_from_march }, month, day)
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Datelike, FixedOffset, SecondsFormat, Timelike};
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Result<i64, TimestampFault>) {
        assert_eq!(
            parse(text, AssumeUtc::No).map(|reading| reading.timestamp.as_unix_micros()),
            expect,
            "{text}"
        );
    }

    #[test]
    fn times_are_read_by_rfc_3339() {
        for (text, micros) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01t00:00:00z", 0),
            ("1970-01-01 00:00:00+00:00", 0),
            ("1970-01-01T00:00:00-00:00", 0),
            ("1970-01-01T00:00:00.000001Z", 1),
            ("1969-12-31T23:59:59.9999999Z", -1),
            ("1970-01-01T00:00:00.1Z", 100_000),
            ("1970-01-01T23:59:00+23:59", 0),
            ("2024-02-29T12:00:00+02:00", 1_709_200_800_000_000),
            ("2000-02-29T00:00:00Z", 951_782_400_000_000),
            ("0001-01-01T00:00:00Z", Timestamp::MIN.as_unix_micros()),
            ("0000-12-31T23:00:00-01:00", Timestamp::MIN.as_unix_micros()),
            ("9999-12-31T23:59:59.9999999Z", Timestamp::MAX.as_unix_micros()),
        ] {
            check(text, Ok(micros));
        }
    }

    #[test]
    fn times_outside_the_years_1_to_9999_in_utc_are_out_of_range() {
        for text in ["0000-12-31T23:59:59Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"] {
            check(text, Err(TimestampFault::OutOfRange));
        }
    }

    #[test]
    fn other_texts_are_invalid() {
        for text in [
            "",
            "yesterday",
            "now",
            "infinity",
            "2024-01-01",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00Z",
            "2024-01-01T00:00:60Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:60:00Z",
            "2023-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2024-04-31T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-01-00T00:00:00Z",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00,5Z",
            "2024-01-01T00:00:00+24:00",
            "2024-01-01T00:00:00+00:60",
            "2024-01-01T00:00:00+0000",
            "2024-01-01T00:00:00+00",
            "2024-01-01T00:00:00Z ",
            " 2024-01-01T00:00:00Z",
            "2024-01-01  00:00:00Z",
            "2024-01-01_00:00:00Z",
            "+2024-01-01T00:00:00Z",
            "-024-01-01T00:00:00Z",
            "12024-01-01T00:00:00Z",
            "2024-01-01T00:00:00 UTC",
            "2024-01-01T00:00:00\u{2212}01:00",
            "1704067200",
            "٢٠٢٤-01-01T00:00:00Z",
        ] {
            check(text, Err(TimestampFault::Invalid));
        }
    }

    #[test]
    fn a_time_without_a_zone_is_utc_only_when_told_so() {
        let text = "1970-01-01T00:00:01.5";
        assert_eq!(parse(text, AssumeUtc::No), Err(TimestampFault::Invalid));
        assert_eq!(parse(text, AssumeUtc::Yes).unwrap().timestamp.as_unix_micros(), 1_500_000);
    }

    #[test]
    fn a_day_is_its_first_moment_and_a_time_prints_as_it_is_read() {
        let print = |text| Timestamp::from_text(text).map(|time| time.to_string());
        assert_eq!(print("2024-02-29").as_deref(), Some("2024-02-29T00:00:00.000000Z"));
        assert_eq!(print("0001-01-01T00:00:00.5Z").as_deref(), Some("0001-01-01T00:00:00.500000Z"));
        assert_eq!(print("9999-12-31T23:59:59.999999+00:00").as_deref(), Some("9999-12-31T23:59:59.999999Z"));
        for text in ["", "yesterday", "2024-02-30", "2024-02-29T00:00:00", "24-02-29"] {
            assert_eq!(print(text), None, "{text}");
        }
    }

    #[test]
    fn every_day_of_eight_hundred_years_is_written_as_chrono_writes_it() {
        for day in -146_097..146_097 {
            let time = Timestamp::from_unix_micros(day * 86_400_000_000 - 1).unwrap();
            let chrono = DateTime::from_timestamp_micros(time.as_unix_micros()).unwrap();
            assert_eq!(&*time.text(), chrono.to_rfc3339_opts(SecondsFormat::Micros, true));
        }
        assert_eq!(&*Timestamp::MIN.text(), "0001-01-01T00:00:00.000000Z");
        assert_eq!(&*Timestamp::MAX.text(), "9999-12-31T23:59:59.999999Z");
    }

    #[test]
    fn only_digits_other_than_zero_are_a_loss() {
        let precision = |text| parse(text, AssumeUtc::No).unwrap().precision;
        assert_eq!(precision("2024-01-01T00:00:00.123456Z"), Precision::Exact);
        assert_eq!(precision("2024-01-01T00:00:00.123456000000000Z"), Precision::Exact);
        assert_eq!(precision("2024-01-01T00:00:00.1234560000000001Z"), Precision::Cut);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn what_chrono_writes_is_read_back(
            micros in Timestamp::MIN.as_unix_micros()..=Timestamp::MAX.as_unix_micros(),
            offset_minutes in -1439i32..=1439,
        ) {
            let zone = FixedOffset::east_opt(offset_minutes * 60).unwrap();
            let text = DateTime::from_timestamp_micros(micros).unwrap().with_timezone(&zone)
                .to_rfc3339_opts(SecondsFormat::AutoSi, true);
            // Near the ends the local year may have another number of digits or be negative.
            prop_assume!(text.as_bytes().get(4) == Some(&b'-'));
            let reading = parse(&text, AssumeUtc::No).unwrap();
            prop_assert_eq!(reading.timestamp.as_unix_micros(), micros);
            prop_assert_eq!(reading.precision, Precision::Exact);
        }

        #[test]
        fn a_time_is_written_as_chrono_writes_it(
            micros in Timestamp::MIN.as_unix_micros()..=Timestamp::MAX.as_unix_micros(),
        ) {
            let text = DateTime::from_timestamp_micros(micros).unwrap().to_rfc3339_opts(SecondsFormat::Micros, true);
            prop_assert_eq!(Timestamp::from_unix_micros(micros).unwrap().to_string(), text);
        }

        #[test]
        fn chrono_reads_the_same(
            text in "[0-9]{2}([0-9]{2})-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,9})?(Z|z|[+-][0-2][0-9]:[0-6][0-9])",
        ) {
            let ours = parse(&text, AssumeUtc::No);
            let theirs = DateTime::parse_from_rfc3339(&text).ok()
                .filter(|time| time.nanosecond() < 1_000_000_000 && !text.contains(":60"));
            match theirs {
                Some(time) if (1..=9999).contains(&time.to_utc().year()) => {
                    prop_assert_eq!(ours.unwrap().timestamp.as_unix_micros(), time.timestamp_micros());
                }
                Some(_) => prop_assert_eq!(ours, Err(TimestampFault::OutOfRange)),
                None => prop_assert_eq!(ours, Err(TimestampFault::Invalid)),
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let ours = parse(&text, AssumeUtc::Yes);
            prop_assert!(ours.is_err() || text.is_ascii());
        }
    }
}
