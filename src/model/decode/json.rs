//! A strict scanner for JSON (RFC 8259): one pass, no value tree, and nothing accepted that `jsonb` would refuse
//! or alter.
//!
//! Beyond the grammar it refuses, at any depth: a key that stands twice in an object (`jsonb` keeps the last one
//! silently), U+0000 and half surrogate pairs in texts (`jsonb` refuses them), numbers that grow beyond
//! [`NUMBER_MAX_DIGIT_COUNT`] digits when written out (`jsonb` stores them written out), and nesting deeper than
//! [`DEPTH_MAX`].

use std::borrow::Cow;

/// The deepest nesting, the outermost object counted. PostgreSQL has no limit but its stack.
pub(super) const DEPTH_MAX: usize = 64;
/// How many digits a number may have before, and behind, the point when written out; covers every double.
pub(super) const NUMBER_MAX_DIGIT_COUNT: i64 = 400;
/// Objects with more keys are checked for duplicates by sorting.
const FEW_KEYS_COUNT: usize = 12;

/// A value as it stands in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(RawText<'a>),
    Object(&'a str),
    Array(&'a str),
}

impl<'a> Value<'a> {
    /// The JSON type's name.
    pub(super) const fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::Object(_) => "an object",
            Self::Array(_) => "an array",
        }
    }
}

/// A string's text between its quotes, escapes as they stand; valid, so that unescaping can't fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawText<'a> {
    /// Between the quotes.
    pub(super) raw: &'a str,
    has_escape: bool,
}

impl<'a> RawText<'a> {
    /// The string's value; borrowed where there is no escape.
    pub(super) fn unescaped(&self) -> Cow<'a, str> {
        if self.has_escape { Cow::Owned(unescape(self.raw)) } else { Cow::Borrowed(self.raw) }
    }
}

/// What the scanner stumbled over first, in document order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not JSON: what was expected, at this byte.
    Syntax(&'static str, usize),
    /// Deeper than [`DEPTH_MAX`], at this byte.
    TooDeep(usize),
    /// A key that stands twice.
    DuplicateKey(String),
    /// U+0000 in a text, at this byte.
    Nul(usize),
    /// Half a surrogate pair, at this byte.
    LoneSurrogate(usize),
    /// A number of too many digits.
    LongNumber(String),
}

/// A member of the outermost object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'a> {
    pub(super) key: RawText<'a>,
    pub(super) value: Value<'a>,
    /// The value's text.
    pub(super) raw_value: &'a str,
}

/// A scanner over one document.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    keys: Vec<Cow<'a, str>>,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0, keys: Vec::new() }
    }

    /// Scans the document, which must be one object, and calls `each` for its members in order. `Ok(Some(_))`:
    /// it is JSON, but this and no object.
    pub(super) fn object(mut self, mut each: impl FnMut(Member<'a>)) -> Result<Option<Value<'a>>, Fault> {
        self.skip_space();
        if self.peek() != Some(b'{') {
            let value = self.value(1)?;
            return self.end().map(|()| Some(value));
        }
        self.at += 1;
        self.members(1, &mut each)?;
        self.end().map(|()| None)
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.skip_space();
        if self.at == self.text.len() {
            Ok(())
        } else {
            Err(Fault::Syntax("the end of the document", self.at))
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn slice(&self, start: usize, end: usize) -> &'a str {
        // Both ends lie on ASCII bytes, so the slice is always there.
        self.text.get(start..end).unwrap_or_default()
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, Fault> {
        let start = self.at;
        match self.peek() {
            Some(b'"') => self.string().map(Value::Text),
            Some(b'{') => {
                self.deeper(depth)?;
                self.members(depth + 1, &mut |_member| {})?;
                Ok(Value::Object(self.slice(start, self.at)))
            }
            Some(b'[') => {
                self.deeper(depth)?;
                self.items(depth + 1)?;
                Ok(Value::Array(self.slice(start, self.at)))
            }
            Some(b'-' | b'0'..=b'9') => self.number().map(Value::Number),
            Some(b't') => self.word("true").map(|()| Value::Bool(true)),
            Some(b'f') => self.word("false").map(|()| Value::Bool(false)),
            Some(b'n') => self.word("null").map(|()| Value::Null),
            _ => Err(Fault::Syntax("a value", self.at)),
        }
    }

    fn deeper(&mut self, depth: usize) -> Result<(), Fault> {
        if depth >= DEPTH_MAX {
            return Err(Fault::TooDeep(self.at));
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, word: &'static str) -> Result<(), Fault> {
        let end = self.at + word.len();
        if self.text.as_bytes().get(self.at..end) == Some(word.as_bytes()) {
            self.at = end;
            Ok(())
        } else {
            Err(Fault::Syntax("a value", self.at))
        }
    }

    /// An object's members and closing brace; the opening one is behind us.
    fn members(&mut self, depth: usize, each: &mut impl FnMut(Member<'a>)) -> Result<(), Fault> {
        let first_key = self.keys.len();
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return Err(Fault::Syntax("a key", self.at));
            }
            let key = self.string()?;
            self.add_key(first_key, key)?;
            self.skip_space();
            if self.peek() != Some(b':') {
                return Err(Fault::Syntax("a colon", self.at));
            }
            self.at += 1;
            self.skip_space();
            let start = self.at;
            // `each` is called for this object's own members alone.
            let value = self.value(depth)?;
            each(Member { key, value, raw_value: self.slice(start, self.at) });
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return self.close_keys(first_key);
                }
                _ => return Err(Fault::Syntax("a comma or a closing brace", self.at)),
            }
        }
    }

    fn items(&mut self, depth: usize) -> Result<(), Fault> {
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.skip_space();
            self.value(depth)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(Fault::Syntax("a comma or a closing bracket", self.at)),
            }
        }
    }

    /// Notes a key of the object whose keys begin at `first_key`.
    fn add_key(&mut self, first_key: usize, key: RawText<'a>) -> Result<(), Fault> {
        let key = key.unescaped();
        let own = self.keys.get(first_key..).unwrap_or_default();
        if own.len() < FEW_KEYS_COUNT && own.contains(&key) {
            return Err(Fault::DuplicateKey(key.into_owned()));
        }
        self.keys.push(key);
        Ok(())
    }

    /// Checks the keys that were too many to compare one by one, and forgets the object's keys.
    fn close_keys(&mut self, first_key: usize) -> Result<(), Fault> {
        let own = self.keys.get_mut(first_key..).unwrap_or_default();
        if own.len() > FEW_KEYS_COUNT {
            own.sort_unstable();
            let twice = own.windows(2).find_map(|pair| match pair {
                [one, two] if one == two => Some(one.clone().into_owned()),
                _ => None,
            });
            if let Some(key) = twice {
                return Err(Fault::DuplicateKey(key));
            }
        }
        self.keys.truncate(first_key);
        Ok(())
    }

    fn string(&mut self) -> Result<RawText<'a>, Fault> {
        self.at += 1;
        let start = self.at;
        let mut has_escape = false;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let raw = self.slice(start, self.at);
                    self.at += 1;
                    return Ok(RawText { raw, has_escape });
                }
                Some(b'\\') => {
                    has_escape = true;
                    self.escape()?;
                }
                Some(0) => return Err(Fault::Nul(self.at)),
                Some(1..=0x1f) => return Err(Fault::Syntax("no control character in a string", self.at)),
                Some(_) => self.at += 1,
                None => return Err(Fault::Syntax("a closing quote", self.at)),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        let at = self.at;
        match self.text.as_bytes().get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => {
                let unit = self.code_unit(at)?;
                match unit {
                    0 => return Err(Fault::Nul(at)),
                    0xd800..=0xdbff => {
                        let is_pair = self.text.as_bytes().get(at + 6..at + 8) == Some(b"\\u");
                        let low = if is_pair { self.code_unit(at + 6)? } else { 0 };
                        if !(0xdc00..=0xdfff).contains(&low) {
                            return Err(Fault::LoneSurrogate(at));
                        }
                        self.at += 12;
                    }
                    0xdc00..=0xdfff => return Err(Fault::LoneSurrogate(at)),
                    _ => self.at += 6,
                }
            }
            _ => return Err(Fault::Syntax("an escape", at)),
        }
        Ok(())
    }

    /// The four hex digits of the `\u` at `at`.
    fn code_unit(&self, at: usize) -> Result<u32, Fault> {
        let digits = self.text.as_bytes().get(at + 2..at + 6).unwrap_or_default();
        hex(digits).filter(|_| digits.len() == 4).ok_or(Fault::Syntax("four hex digits", at + 2))
    }

    fn number(&mut self) -> Result<&'a str, Fault> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = self.slice(start, self.at);
        if text.len() > 20 || text.contains(['e', 'E']) {
            check_written_out(text)?;
        }
        Ok(text)
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(Fault::Syntax("a digit", start)) } else { Ok(()) }
    }
}

/// The parts of a number's text: whether negative, digits before and behind the point, exponent (saturated).
pub(super) fn number_parts(text: &str) -> (bool, &str, &str, i64) {
    let (is_negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, exponent.strip_prefix('+').unwrap_or(exponent)),
    };
    let magnitude = digits.bytes().fold(0i64, |sum, digit| {
        sum.saturating_mul(10).saturating_add(i64::from(digit.wrapping_sub(b'0'))).min(i64::from(u32::MAX))
    });
    (is_negative, whole, fraction, sign * magnitude)
}

fn check_written_out(text: &str) -> Result<(), Fault> {
    let (_, whole, fraction, exponent) = number_parts(text);
    let count = |digits: &str| i64::try_from(digits.len()).unwrap_or(i64::MAX / 2);
    let (before, behind) = (count(whole) + exponent, count(fraction) - exponent);
    if before > NUMBER_MAX_DIGIT_COUNT || behind > NUMBER_MAX_DIGIT_COUNT {
        return Err(Fault::LongNumber(text.chars().take(40).collect()));
    }
    Ok(())
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |sum, digit| Some(sum << 4 | char::from(*digit).to_digit(16)?))
}

/// Replaces the escapes of a string that was scanned and found valid.
fn unescape(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((plain, escape)) = rest.split_once('\\') {
        out.push_str(plain);
        let unit = |from: usize| escape.as_bytes().get(from..from + 4).and_then(hex).unwrap_or(0xfffd);
        let (symbol, len) = match escape.as_bytes().first() {
            Some(b'b') => ('\u{8}', 1),
            Some(b'f') => ('\u{c}', 1),
            Some(b'n') => ('\n', 1),
            Some(b'r') => ('\r', 1),
            Some(b't') => ('\t', 1),
            Some(b'u') => match unit(1) {
                high @ 0xd800..=0xdbff => {
                    let code = 0x1_0000 + ((high - 0xd800) << 10) + (unit(7).wrapping_sub(0xdc00) & 0x3ff);
                    (char::from_u32(code).unwrap_or('\u{fffd}'), 11)
                }
                code => (char::from_u32(code).unwrap_or('\u{fffd}'), 5),
            },
            Some(other) => (char::from(*other), 1),
            None => break,
        };
        out.push(symbol);
        rest = escape.get(len..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}
