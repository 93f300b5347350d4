//! JSON values as the scanner hands them over.

use std::borrow::Cow;

use super::escape::unescape;

/// The most digits that a number may have before its point, and after it, when it is written without an
/// exponent. `jsonb` holds a number as `numeric`, exact and written out: `1e100000` would come back as 100,001
/// digits. Every finite IEEE 754 double in its shortest form needs at most 309 before and 341 after.
pub(in crate::model) const NUMBER_DIGITS_MAX: i64 = 400;

/// Up to this length a number without an exponent can't have more digits than [`NUMBER_DIGITS_MAX`].
pub(super) const NUMBER_SHORT_MAX_LEN_BYTES: usize = 400;

/// Where exponents are clamped: far beyond every limit on numbers, and far from overflow.
const EXPONENT_MAX: i64 = 1_000_000_000;

/// A JSON value: scalars parsed, the others as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Value<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number<'a>),
    /// A string.
    Text(Text<'a>),
    /// An object, with its braces.
    Object(&'a str),
    /// An array.
    Array,
}

impl Value<'_> {
    /// What kind of value it is, for details.
    pub(in crate::model) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::Object(_) => "an object",
            Self::Array => "an array",
        }
    }
}

/// A JSON string, without its quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Text<'a> {
    /// The text as it is.
    Plain(&'a str),
    /// The text with escapes, all of them well formed.
    Escaped(&'a str),
}

impl<'a> Text<'a> {
    /// The text as it stands between its quotes.
    pub(in crate::model) const fn raw(self) -> &'a str {
        match self {
            Self::Plain(raw) | Self::Escaped(raw) => raw,
        }
    }

    /// The text meant. Half a surrogate pair becomes U+FFFD (such text is a fault, and never an event's).
    #[inline]
    pub(in crate::model) fn unescape(self) -> Cow<'a, str> {
        match self {
            Self::Plain(raw) => Cow::Borrowed(raw),
            Self::Escaped(raw) => Cow::Owned(unescape(raw)),
        }
    }
}

/// A JSON number as it stands in the text. Never a float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) struct Number<'a>(pub(super) &'a str);

/// The parts of a number: `[-]whole[.fraction]e(exponent)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) struct NumberParts<'a> {
    /// Whether it begins with a minus (so does `-0`).
    pub(in crate::model) negative: bool,
    /// The digits before the point: at least one, and no leading zero but `0` itself.
    pub(in crate::model) whole: &'a str,
    /// The digits after the point, or nothing.
    pub(in crate::model) fraction: &'a str,
    /// The exponent, 0 by default, clamped to a thousand millions both ways.
    pub(in crate::model) exponent: i64,
}

impl<'a> Number<'a> {
    /// Takes the number apart.
    pub(in crate::model) fn parts(self) -> NumberParts<'a> {
        let (digits, exponent) = self.0.split_once(['e', 'E']).unwrap_or((self.0, "0"));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        // A scanned exponent fails to parse only when it overflows.
        let overflow = if exponent.starts_with('-') { -EXPONENT_MAX } else { EXPONENT_MAX };
        NumberParts {
            negative: whole.starts_with('-'),
            whole: whole.strip_prefix('-').unwrap_or(whole),
            fraction,
            exponent: exponent.parse().unwrap_or(overflow).clamp(-EXPONENT_MAX, EXPONENT_MAX),
        }
    }

    /// Whether the number, written without an exponent, keeps to [`NUMBER_DIGITS_MAX`].
    pub(super) fn is_storable(self) -> bool {
        let parts = self.parts();
        let whole_len = i64::try_from(parts.whole.len()).unwrap_or(i64::MAX);
        whole_len.saturating_add(parts.exponent) <= NUMBER_DIGITS_MAX
            && parts.fraction_len().saturating_sub(parts.exponent) <= NUMBER_DIGITS_MAX
    }
}

impl NumberParts<'_> {
    /// How many digits the fraction has.
    pub(in crate::model) fn fraction_len(&self) -> i64 {
        i64::try_from(self.fraction.len()).unwrap_or(i64::MAX)
    }
}
