//! JSON numbers to whole numbers and trust scores: exact, never through a float, in time linear in the digits.

use crate::model::event::TrustScore;
use crate::model::json::{Number, NumberParts};

/// Why a number is not the one asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NumberFault {
    /// It is not whole by value.
    NotWhole,
    /// It lies outside its range, or has more digits after the point than are kept.
    OutOfRange,
}

/// The number as a whole number of milliseconds from 0 to 2,147,483,647. Whole is what is whole by value:
/// `58`, `58.0` and `5.8e1` are one number.
///
/// # Errors
/// [`NumberFault::NotWhole`] before [`NumberFault::OutOfRange`].
pub(super) fn duration_ms(number: Number<'_>) -> Result<i32, NumberFault> {
    let number = number.parts();
    // The value is `unscaled * 10^zeros`; `unscaled` ends in no zero. `None`: beyond a u64.
    let mut unscaled = Some(0u64);
    let mut zeros = 0i64;
    for digit in digits(&number) {
        if digit == 0 {
            zeros = zeros.saturating_add(1);
        } else {
            unscaled = shifted(unscaled, zeros.saturating_add(1)).and_then(|value| value.checked_add(digit));
            zeros = 0;
        }
    }
    if unscaled == Some(0) {
        return Ok(0);
    }
    let zeros = zeros.saturating_add(number.exponent).saturating_sub(number.fraction_len());
    if zeros < 0 {
        return Err(NumberFault::NotWhole);
    }
    let value = shifted(unscaled, zeros).and_then(|value| i32::try_from(value).ok());
    value.filter(|_| !number.negative).ok_or(NumberFault::OutOfRange)
}

/// The number as a trust score from 0 to 1, with the digits after the point that it was written with.
///
/// # Errors
/// [`NumberFault::OutOfRange`] only.
pub(super) fn trust_score(number: Number<'_>) -> Result<TrustScore, NumberFault> {
    let number = number.parts();
    let unscaled = digits(&number).try_fold(0, |value, digit| shifted(Some(value), 1)?.checked_add(digit));
    let scale = number.fraction_len().saturating_sub(number.exponent);
    let unscaled = if scale < 0 { shifted(unscaled, scale.saturating_neg()) } else { unscaled };
    let scale = u8::try_from(scale.max(0)).ok();
    let score = unscaled.zip(scale).and_then(|(unscaled, scale)| TrustScore::new(unscaled, scale));
    score.filter(|score| !number.negative || score.unscaled() == 0).ok_or(NumberFault::OutOfRange)
}

/// The digits before and after the point, as one sequence.
fn digits(number: &NumberParts<'_>) -> impl Iterator<Item = u64> {
    let ascii = number.whole.bytes().chain(number.fraction.bytes());
    ascii.map(|byte| u64::from(byte.saturating_sub(b'0')))
}

/// `value * 10^zeros`, or `None` beyond a u64. Zero stays zero, whatever the exponent.
fn shifted(value: Option<u64>, zeros: i64) -> Option<u64> {
    match value {
        Some(0) => Some(0),
        Some(value) => value.checked_mul(10u64.checked_pow(u32::try_from(zeros).ok()?)?),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::json::{Scanner, Value};

    #[track_caller]
    fn number(text: &str) -> Number<'_> {
        match Scanner::new(text).whole() {
            Ok(Value::Number(number)) => number,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[track_caller]
    fn check_duration(text: &str, expect: Result<i32, NumberFault>) {
        assert_eq!(duration_ms(number(text)), expect, "{text}");
    }

    #[track_caller]
    fn check_score(text: &str, expect: Option<(u64, u8)>) {
        let score = trust_score(number(text)).ok().map(|score| (score.unscaled(), score.scale()));
        assert_eq!(score, expect, "{text}");
    }

    #[test]
    fn durations_are_whole_by_value() {
        for (text, value) in [
            ("0", 0),
            ("-0", 0),
            ("-0.0e5", 0),
            ("0e999999999999", 0),
            ("58", 58),
            ("58.0", 58),
            ("5.8e1", 58),
            ("580e-1", 58),
            ("1e2", 100),
            ("1E+2", 100),
            ("2147483647", i32::MAX),
            ("2147483647.000", i32::MAX),
            ("2147483647000e-3", i32::MAX),
            ("0.000000000000000000000000000001e30", 1),
        ] {
            check_duration(text, Ok(value));
        }
        for text in ["1.7", "0.5", "-1.5", "1e-1", "1e-999999999999", "99999999999999999999999.5"] {
            check_duration(text, Err(NumberFault::NotWhole));
        }
        for text in
            ["2147483648", "3e9", "-1", "-1e0", "1e999999999", "1e99999999999999999999", "9e18", "1e20"]
        {
            check_duration(text, Err(NumberFault::OutOfRange));
        }
    }

    #[test]
    fn scores_keep_their_digits() {
        for (text, unscaled, scale) in [
            ("0", 0, 0),
            ("-0.0", 0, 1),
            ("1", 1, 0),
            ("1.0", 10, 1),
            ("0.8", 8, 1),
            ("0.80", 80, 2),
            ("8e-1", 8, 1),
            ("0.08e1", 8, 1),
            ("10e-1", 10, 1),
            ("0e5", 0, 0),
            ("0.1234567890123456", 1_234_567_890_123_456, 16),
            ("1.0000000000000000", 10_000_000_000_000_000, 16),
        ] {
            check_score(text, Some((unscaled, scale)));
        }
        for text in [
            "1.0000000000000001",
            "1.01",
            "2",
            "-0.1",
            "1e1",
            "80",
            "0.12345678901234567",
            "0.80000000000000000",
            "1e-17",
            "1e999999999",
            "1e-999999999",
            "18446744073709551616",
        ] {
            check_score(text, None);
        }
    }

    proptest! {
        #[test]
        fn numbers_agree_with_integer_arithmetic(
            negative: bool, whole in 0u32..=9999, fraction in "[0-9]{0,5}", exponent in -6i32..=9,
        ) {
            let point = if fraction.is_empty() { "" } else { "." };
            let sign = if negative { "-" } else { "" };
            let text = format!("{sign}{whole}{point}{fraction}e{exponent}");
            let number = number(&text);
            // In units of 10^-11: every number made here is whole in them.
            let one = 10i128.pow(11);
            let places = u32::try_from(11 - i32::try_from(fraction.len()).unwrap() + exponent).unwrap();
            let digits: i128 = format!("{sign}{whole}{fraction}").parse().unwrap();
            let units = digits * 10i128.pow(places);
            let expect = if units % one != 0 {
                Err(NumberFault::NotWhole)
            } else if (0..=i128::from(i32::MAX)).contains(&(units / one)) {
                Ok(i32::try_from(units / one).unwrap())
            } else {
                Err(NumberFault::OutOfRange)
            };
            prop_assert_eq!(duration_ms(number), expect);
            let score = trust_score(number).ok().map(|score| {
                i128::from(score.unscaled()) * 10i128.pow(11 - u32::from(score.scale()))
            });
            prop_assert_eq!(score, (0..=one).contains(&units).then_some(units));
        }
    }
}
