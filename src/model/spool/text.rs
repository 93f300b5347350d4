//! JSON strings as the spool has them: quote, backslash and what lies below U+0020 are escaped, which RFC 8259, section
//! 7, requires, and nothing else is.
//!
//! Eight bytes are looked at at a time, as the values of records are mostly JSON, with a quote every few bytes.

use crate::model::json::special_bytes;

/// Appends `text`, escaped.
pub(super) fn escape(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    out.reserve(rest.len() + rest.len() / 4);
    while let Some((byte, after)) = copy_plain(out, rest) {
        rest = after;
        match byte {
            b'"' => out.extend_from_slice(br#"\""#),
            b'\\' => out.extend_from_slice(br"\\"),
            b'\n' => out.extend_from_slice(br"\n"),
            b'\r' => out.extend_from_slice(br"\r"),
            b'\t' => out.extend_from_slice(br"\t"),
            other => out.extend_from_slice(format!("\\u{other:04x}").as_bytes()),
        }
    }
}

/// Appends what an escaped `text`, whose opening quote is behind us, stands for. Returns what follows its closing quote;
/// `None` when it is not what [`escape`] writes.
pub(super) fn unescape<'a>(out: &mut Vec<u8>, text: &'a [u8]) -> Option<&'a [u8]> {
    let mut rest = text;
    loop {
        let (byte, after) = copy_plain(out, rest)?;
        if byte == b'"' {
            return Some(after);
        }
        let (escaped, after) = after.split_first().filter(|_| byte == b'\\')?;
        rest = after;
        match escaped {
            b'"' | b'\\' => out.push(*escaped),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let (value, after) = control(rest)?;
                out.push(value);
                rest = after;
            }
            _ => return None,
        }
    }
}

/// The byte below 0x20 that four hexadecimal digits name, and what follows them.
fn control(text: &[u8]) -> Option<(u8, &[u8])> {
    let (&[b'0', b'0', high @ (b'0' | b'1'), low], after) = text.split_first_chunk::<4>()? else {
        return None;
    };
    let low = char::from(low).to_digit(16).and_then(|low| u8::try_from(low).ok())?;
    Some(((high - b'0') << 4 | low, after))
}

/// Appends `text` up to its first quote, backslash or byte below 0x20. Returns that one and what follows it; `None` when
/// there is none.
fn copy_plain<'a>(out: &mut Vec<u8>, text: &'a [u8]) -> Option<(u8, &'a [u8])> {
    let mut rest = text;
    while let Some((block, after)) = rest.split_first_chunk::<8>() {
        let specials = special_bytes(u64::from_le_bytes(*block));
        // All eight, and then back: cheaper than to copy some.
        out.extend_from_slice(block);
        if specials != 0 {
            let plain_count = usize::try_from(specials.trailing_zeros() / 8).unwrap_or(0);
            out.truncate(out.len() - block.len() + plain_count);
            return first_of(rest.get(plain_count..)?);
        }
        rest = after;
    }
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | ..b' ');
    let plain_count = rest.iter().position(is_special).unwrap_or(rest.len());
    let (plain, behind) = rest.split_at_checked(plain_count)?;
    out.extend_from_slice(plain);
    first_of(behind)
}

fn first_of(bytes: &[u8]) -> Option<(u8, &[u8])> {
    bytes.split_first().map(|(first, rest)| (*first, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = Vec::new();
        escape(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_character_is_escaped_as_serde_json_does_at_any_place() {
        let special = (0..0x120u32).filter_map(char::from_u32).chain(['\u{2028}', '🦀']);
        for character in special {
            for before in 0..9 {
                let text = format!("{}{character}{character}ÿ\"", "a".repeat(before));
                let mut expected = serde_json::to_string(&text).unwrap();
                // It has short forms for these two.
                expected = expected.replace("\\b", "\\u0008").replace("\\f", "\\u000c");
                let line = format!("\"{}\"", escaped(&text));
                assert_eq!(line, expected);
                let mut out = b"before".to_vec();
                assert_eq!(unescape(&mut out, &[&line.as_bytes()[1..], b",x"].concat()), Some(&b",x"[..]));
                assert_eq!(out, [b"before", text.as_bytes()].concat());
            }
        }
    }

    #[test]
    fn what_escape_does_not_write_is_not_read() {
        for text in
            ["", "abc", "12345678", r"\", r"\b", r"\/x", r#"\u0020""#, r"\u00", r#"\u+00f""#, "\n\"", "\0"]
        {
            let mut out = Vec::new();
            assert_eq!(unescape(&mut out, text.as_bytes()), None, "{text:?}");
        }
    }
}
