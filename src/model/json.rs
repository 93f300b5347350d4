//! A strict scanner of JSON text (RFC 8259): one pass, no tree, texts borrowed.
//!
//! Two kinds of trouble are kept apart. *Malformed* text is not JSON, or nests deeper than [`LEVEL_MAX`]: the
//! scan ends there, as what follows can't be read. A *fault* is JSON that `jsonb` would refuse, or would give
//! back as something else: it is noted, and the scan goes on, so that malformed text is always found first.
//! Of several faults the least [`FaultKind`] wins, and of several of one kind the first in the text.
//!
//! The top level is read member by member ([`Scanner::open`], [`Scanner::member`], [`Scanner::close`]);
//! everything below it is checked and handed over as raw text. Time is linear in the text but for the search
//! for repeated keys, which sorts (`n log n`); recursion ends at [`LEVEL_MAX`]. It allocates for keys of
//! nested objects (one vector for all), for escaped keys, and for faults.
//!
//! `inline(always)` stands where small results are handed over in memory otherwise and each costs a failed
//! store forwarding: an event of 600 bytes took 1,580 ns without it and takes 920 ns with it (`benches/parts.rs`,
//! release).

mod escape;
mod value;

use std::borrow::Cow;
use std::fmt;

use self::escape::unicode_escape;
use self::value::NUMBER_SHORT_MAX_LEN_BYTES;
pub(super) use self::value::{NUMBER_DIGITS_MAX, Number, NumberParts, Text, Value};

/// The deepest nesting that is read; the outermost value is level 1. PostgreSQL stops at its
/// `max_stack_depth` (thousands of levels) and `serde_json` at 128, so both read what is accepted here.
pub(super) const LEVEL_MAX: u32 = 64;

/// Up to this many keys of an object are compared pair by pair; more are sorted.
const PAIRWISE_KEYS_MAX: usize = 8;

/// The most bytes of a repeated key or a text that a detail shows.
const EXCERPT_MAX_LEN_BYTES: usize = 60;

/// The beginning of a text from a record, as details show it: at most 60 bytes, whole characters.
pub(super) fn excerpt(text: &str) -> String {
    match text.get(..text.floor_char_boundary(EXCERPT_MAX_LEN_BYTES)) {
        Some(start) if start.len() < text.len() => format!("'{start}'..."),
        _ => format!("'{text}'"),
    }
}

/// A key and its value in the outermost object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member<'a> {
    /// The key.
    pub(super) key: Text<'a>,
    /// The value.
    pub(super) value: Value<'a>,
    /// The value as it stands in the text.
    pub(super) raw: &'a str,
}

/// Where in an object the scan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// After the opening brace.
    First,
    /// After a member.
    Later,
}

/// Why a text is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed {
    expected: &'static str,
    at: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} at byte {}", self.expected, self.at)
    }
}

/// What `jsonb` would refuse or change in well formed JSON; the first of these wins over the later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FaultKind {
    /// A text holds U+0000, which can only be written `\u0000`.
    NulCharacter,
    /// A text holds an escaped half of a surrogate pair.
    LoneSurrogate,
    /// An object names a key twice, in whatever spelling.
    DuplicateKey,
    /// A number needs more than [`NUMBER_DIGITS_MAX`] digits on one side of its point.
    NumberTooLong,
}

/// A fault, with its place or its key for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Which one.
    pub(super) kind: FaultKind,
    /// Where, or which key; bounded.
    pub(super) detail: String,
}

/// Reads a text from its start to its end.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    /// The keys of the objects that are open, the outermost first.
    keys: Vec<Cow<'a, str>>,
    fault: Option<Fault>,
}

impl<'a> Scanner<'a> {
    /// A scanner at the start of `text`.
    pub(super) const fn new(text: &'a str) -> Self {
        Self { text, at: 0, keys: Vec::new(), fault: None }
    }

    /// Whether an object begins here.
    pub(super) fn is_at_object(&mut self) -> bool {
        self.skip_whitespace();
        self.peek() == Some(b'{')
    }

    /// Reads a whole text of any type.
    ///
    /// # Errors
    /// The text is not JSON.
    pub(super) fn whole(&mut self) -> Result<Value<'a>, Malformed> {
        let value = self.value(0)?;
        self.close()?;
        Ok(value)
    }

    /// Enters the outermost object.
    ///
    /// # Errors
    /// No object begins here.
    pub(super) fn open(&mut self) -> Result<(), Malformed> {
        if self.is_at_object() {
            self.at += 1;
            return Ok(());
        }
        Err(self.malformed("an object"))
    }

    /// The next member of the outermost object; `None` after its closing brace.
    ///
    /// # Errors
    /// The text is not JSON.
    #[inline(always)]
    pub(super) fn member(&mut self, place: &mut Place) -> Result<Option<Member<'a>>, Malformed> {
        let Some(key) = self.key(place)? else { return Ok(None) };
        self.skip_whitespace();
        let start = self.at;
        let value = self.value(1)?;
        Ok(Some(Member { key, value, raw: self.since(start) }))
    }

    /// Keeps a key of the outermost object, to be compared with the others so kept.
    pub(super) fn keep_key(&mut self, key: Cow<'a, str>) {
        self.keys.push(key);
    }

    /// Compares the keys kept, and makes sure that nothing but whitespace is left.
    ///
    /// # Errors
    /// Something is left.
    pub(super) fn close(&mut self) -> Result<(), Malformed> {
        self.close_keys(0);
        self.skip_whitespace();
        if self.at < self.text.len() { Err(self.malformed("the end of the text")) } else { Ok(()) }
    }

    /// Notes that a key of the outermost object came again.
    pub(super) fn note_repeated(&mut self, key: &str) {
        self.note(FaultKind::DuplicateKey, || format!("key {}", excerpt(key)));
    }

    /// The fault that wins, if any was found.
    pub(super) fn into_fault(self) -> Option<Fault> {
        self.fault
    }

    #[inline(always)]
    fn value(&mut self, level: u32) -> Result<Value<'a>, Malformed> {
        self.skip_whitespace();
        let start = self.at;
        match self.peek() {
            Some(b'"') => Ok(Value::Text(self.string()?)),
            Some(b'-' | b'0'..=b'9') => Ok(Value::Number(self.number()?)),
            Some(b'{') => {
                self.object(level)?;
                Ok(Value::Object(self.since(start)))
            }
            Some(b'[') => {
                self.array(level)?;
                Ok(Value::Array)
            }
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            _ => Err(self.malformed("a value")),
        }
    }

    fn object(&mut self, level: u32) -> Result<(), Malformed> {
        self.enter(level)?;
        let keys_start = self.keys.len();
        let mut place = Place::First;
        while let Some(key) = self.key(&mut place)? {
            self.keys.push(key.unescape());
            self.value(level + 1)?;
        }
        self.close_keys(keys_start);
        Ok(())
    }

    fn array(&mut self, level: u32) -> Result<(), Malformed> {
        self.enter(level)?;
        self.skip_whitespace();
        if self.eat(b']') {
            return Ok(());
        }
        loop {
            self.value(level + 1)?;
            self.skip_whitespace();
            if self.eat(b']') {
                return Ok(());
            }
            if !self.eat(b',') {
                return Err(self.malformed("',' or ']'"));
            }
        }
    }

    /// Passes the opening bracket, `level` levels down.
    fn enter(&mut self, level: u32) -> Result<(), Malformed> {
        if level >= LEVEL_MAX {
            return Err(self.malformed("no more than 64 levels of nesting"));
        }
        self.at += 1;
        Ok(())
    }

    /// The next key with its colon; `None` after the closing brace.
    #[inline(always)]
    fn key(&mut self, place: &mut Place) -> Result<Option<Text<'a>>, Malformed> {
        self.skip_whitespace();
        if self.eat(b'}') {
            return Ok(None);
        }
        if *place == Place::Later {
            if !self.eat(b',') {
                return Err(self.malformed("',' or '}'"));
            }
            self.skip_whitespace();
        }
        *place = Place::Later;
        if self.peek() != Some(b'"') {
            return Err(self.malformed("a key"));
        }
        let key = self.string()?;
        self.skip_whitespace();
        if self.eat(b':') { Ok(Some(key)) } else { Err(self.malformed("':'")) }
    }

    /// Compares the keys from `start` on, and forgets them.
    fn close_keys(&mut self, start: usize) {
        let repeated = self.keys.get_mut(start..).and_then(repeated_key).map(ToOwned::to_owned);
        self.keys.truncate(start);
        if let Some(key) = repeated {
            self.note_repeated(&key);
        }
    }

    #[inline(always)]
    fn string(&mut self) -> Result<Text<'a>, Malformed> {
        self.at += 1;
        let start = self.at;
        self.skip_plain();
        if self.peek() == Some(b'"') {
            let raw = self.since(start);
            self.at += 1;
            return Ok(Text::Plain(raw));
        }
        self.string_with_escapes(start)
    }

    /// The rest of a string whose first character to look at is no quote.
    #[cold]
    fn string_with_escapes(&mut self, start: usize) -> Result<Text<'a>, Malformed> {
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.escape()?,
                Some(_) => return Err(self.malformed("control characters to be escaped")),
                None => return Err(self.malformed("the end of a string")),
            }
            self.skip_plain();
        }
        let raw = self.since(start);
        self.at += 1;
        Ok(Text::Escaped(raw))
    }

    /// Passes what needs no look: everything but quotes, backslashes and control characters.
    #[inline(always)]
    fn skip_plain(&mut self) {
        self.at += plain_len_bytes(self.rest());
    }

    fn escape(&mut self) -> Result<(), Malformed> {
        let escape = self.rest();
        match escape.get(1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => {
                let Some(escape) = unicode_escape(escape) else {
                    return Err(self.malformed("four hexadecimal digits"));
                };
                let at = self.at;
                match escape.character {
                    Some('\0') => self.note(FaultKind::NulCharacter, || format!("U+0000 at byte {at}")),
                    Some(_) => {}
                    None => {
                        self.note(FaultKind::LoneSurrogate, || format!("half a surrogate pair at byte {at}"));
                    }
                }
                self.at += escape.len_bytes;
            }
            _ => return Err(self.malformed("an escape")),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Number<'a>, Malformed> {
        let start = self.at;
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        let has_exponent = self.eat(b'e') || self.eat(b'E');
        if has_exponent {
            let _has_sign = self.eat(b'-') || self.eat(b'+');
            self.digits()?;
        }
        let raw = self.since(start);
        let number = Number(raw);
        let may_be_too_long = has_exponent || raw.len() > NUMBER_SHORT_MAX_LEN_BYTES;
        if may_be_too_long && !number.is_storable() {
            self.note(FaultKind::NumberTooLong, || {
                format!("the number at byte {start} needs more than {NUMBER_DIGITS_MAX} digits")
            });
        }
        Ok(number)
    }

    fn digits(&mut self) -> Result<(), Malformed> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(self.malformed("a digit")) } else { Ok(()) }
    }

    fn literal(&mut self, word: &'static str, value: Value<'a>) -> Result<Value<'a>, Malformed> {
        if !self.rest().starts_with(word.as_bytes()) {
            return Err(self.malformed("a value"));
        }
        self.at += word.len();
        Ok(value)
    }

    #[inline]
    fn skip_whitespace(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    #[inline]
    fn eat(&mut self, byte: u8) -> bool {
        if self.peek() != Some(byte) {
            return false;
        }
        self.at += 1;
        true
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline]
    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    /// The text from `start` to here. Both stand at ASCII characters or the end, so the default is never taken.
    #[inline]
    fn since(&self, start: usize) -> &'a str {
        debug_assert!(self.text.get(start..self.at).is_some(), "a span splits a character");
        self.text.get(start..self.at).unwrap_or_default()
    }

    const fn malformed(&self, expected: &'static str) -> Malformed {
        Malformed { expected, at: self.at }
    }

    #[cold]
    fn note(&mut self, kind: FaultKind, detail: impl FnOnce() -> String) {
        if self.fault.as_ref().is_none_or(|noted| kind < noted.kind) {
            self.fault = Some(Fault { kind, detail: detail() });
        }
    }
}

/// A key that `keys` hold twice; the least when they were sorted.
fn repeated_key<'k>(keys: &'k mut [Cow<'_, str>]) -> Option<&'k str> {
    if keys.len() > PAIRWISE_KEYS_MAX {
        keys.sort_unstable();
        return keys.array_windows().find(|[key, next]| key == next).map(|[key, _]| key.as_ref());
    }
    let mut others = &*keys;
    while let Some((key, rest)) = others.split_first() {
        if rest.contains(key) {
            return Some(key);
        }
        others = rest;
    }
    None
}

/// How many bytes stand before the first quote, backslash or byte below U+0020. Eight are looked at at once.
#[inline(always)]
pub(super) fn plain_len_bytes(text: &[u8]) -> usize {
    let (words, tail) = text.as_chunks::<8>();
    let mut at = 0;
    for word in words {
        let special = special_bytes(u64::from_le_bytes(*word));
        if special != 0 {
            return at + usize::try_from(special.trailing_zeros() / 8).unwrap_or_default();
        }
        at += 8;
    }
    let is_plain = |byte: &u8| !matches!(byte, b'"' | b'\\' | ..b' ');
    at + tail.iter().position(|byte| !is_plain(byte)).unwrap_or(tail.len())
}

/// The high bit of each byte that is a quote, a backslash or below U+0020. Exact up to the lowest such byte;
/// above it a borrow may mark others ("Bit Twiddling Hacks", `haszero` and `hasless`).
pub(super) const fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = ONES << 7;
    let quotes = word ^ (ONES * 0x22);
    let backslashes = word ^ (ONES * 0x5c);
    let is_quote = quotes.wrapping_sub(ONES) & !quotes;
    let is_backslash = backslashes.wrapping_sub(ONES) & !backslashes;
    let is_control = word.wrapping_sub(ONES * 0x20) & !word;
    (is_quote | is_backslash | is_control) & HIGHS
}
