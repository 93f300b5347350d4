//! Escapes in JSON strings (RFC 8259, section 7).

/// One `\u` escape, or two that make a surrogate pair.
pub(super) struct UnicodeEscape {
    /// The character; `None` for half a pair.
    pub(super) character: Option<char>,
    /// The length of what was read, in bytes.
    pub(super) len_bytes: usize,
}

/// Reads the `\u` escape at the start of `escape`; `None` when four hexadecimal digits don't follow.
pub(super) fn unicode_escape(escape: &[u8]) -> Option<UnicodeEscape> {
    let first = utf16_unit(escape, 2)?;
    if let Some(character) = char::from_u32(u32::from(first)) {
        return Some(UnicodeEscape { character: Some(character), len_bytes: 6 });
    }
    let second = if escape.get(6..8) == Some(br"\u") { utf16_unit(escape, 8) } else { None };
    match char::decode_utf16([first, second.unwrap_or_default()]).next() {
        Some(Ok(character)) => Some(UnicodeEscape { character: Some(character), len_bytes: 12 }),
        _ => Some(UnicodeEscape { character: None, len_bytes: 6 }),
    }
}

/// The four hexadecimal digits at `start`.
fn utf16_unit(escape: &[u8], start: usize) -> Option<u16> {
    let digits = escape.get(start..)?.first_chunk::<4>()?;
    let unit = digits.iter().try_fold(0, |unit, digit| Some(unit * 16 + char::from(*digit).to_digit(16)?))?;
    u16::try_from(unit).ok()
}

/// Replaces the escapes of a scanned text.
pub(super) fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        let (plain, escape) = rest.split_at_checked(at).unwrap_or_default();
        let (character, len_bytes) = escaped_character(escape.as_bytes());
        text.push_str(plain);
        text.push(character);
        rest = escape.get(len_bytes..).unwrap_or_default();
    }
    text.push_str(rest);
    text
}

/// The character meant by the escape at the start of `escape`, and the escape's length.
fn escaped_character(escape: &[u8]) -> (char, usize) {
    let character = match escape.get(1) {
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => {
            return unicode_escape(escape).map_or((char::REPLACEMENT_CHARACTER, 2), |escape| {
                (escape.character.unwrap_or(char::REPLACEMENT_CHARACTER), escape.len_bytes)
            });
        }
        Some(other) => char::from(*other),
        None => char::REPLACEMENT_CHARACTER,
    };
    (character, 2)
}
