//! JSON as PostgreSQL prints `jsonb`, taken apart without reading its values, at any depth and without recursion.
//! It is well formed and names no key twice; keys are escaped only where they must be. Other text gives some text
//! and never a panic.

use crate::model::json::plain_len_bytes;

/// The bytes outside of strings, with their places; of a string the two quotes.
const fn structure(json: &str) -> Structure<'_> {
    Structure { json: json.as_bytes(), at: 0, is_inside: false }
}

struct Structure<'a> {
    json: &'a [u8],
    at: usize,
    /// Whether `at` is behind a string's opening quote.
    is_inside: bool,
}

impl Iterator for Structure<'_> {
    type Item = (usize, u8);

    #[inline]
    fn next(&mut self) -> Option<(usize, u8)> {
        if self.is_inside {
            self.skip_string();
        }
        let (at, byte) = (self.at, *self.json.get(self.at)?);
        self.at += 1;
        self.is_inside = byte == b'"' && !self.is_inside;
        Some((at, byte))
    }
}

impl Structure<'_> {
    /// Passes what stands before the closing quote.
    fn skip_string(&mut self) {
        loop {
            self.at += plain_len_bytes(self.json.get(self.at..).unwrap_or_default());
            match self.json.get(self.at) {
                Some(b'"') | None => return,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
            }
        }
    }
}

/// What stands from `start` to `end`: both are places of ASCII characters, so the default is never taken.
fn between(json: &str, start: usize, end: usize) -> &str {
    json.get(start..end).unwrap_or_default()
}

/// Whether it is an object.
pub(super) fn is_object(json: &str) -> bool {
    json.trim_start().starts_with('{')
}

/// Calls `visit` for each member of an object: its key as it stands between its quotes, and its value.
pub(super) fn for_each_member<'a>(object: &'a str, mut visit: impl FnMut(&'a str, &'a str)) {
    let (mut depth, mut start, mut key) = (0_usize, 0, None);
    for (at, byte) in structure(object) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth == 1 {
                    start = at + 1;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b':' if depth == 1 => {
                let quoted = between(object, start, at).trim_ascii();
                key = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                start = at + 1;
            }
            _ => {}
        }
        let is_last = depth == 0 && byte == b'}';
        let is_end_of_member = is_last || (depth == 1 && byte == b',');
        if is_end_of_member {
            if let Some(key) = key.take() {
                visit(key, between(object, start, at).trim_ascii());
            }
            start = at + 1;
        }
    }
}

/// Appends `json` without the white space between its parts.
pub(super) fn push_compact(json: &str, out: &mut String) {
    let mut start = 0;
    for (at, byte) in structure(json) {
        if byte.is_ascii_whitespace() {
            out.push_str(between(json, start, at));
            start = at + 1;
        }
    }
    out.push_str(between(json, start, json.len()));
}

/// Appends `text` as it stands between the quotes of a JSON string: escaped where it must be and nowhere else, as
/// `jsonb` does.
pub(super) fn push_escaped(text: &str, out: &mut String) {
    let mut rest = text;
    loop {
        let plain_len_bytes = plain_len_bytes(rest.as_bytes());
        let (plain, behind) = rest.split_at_checked(plain_len_bytes).unwrap_or((rest, ""));
        out.push_str(plain);
        let Some(byte) = behind.bytes().next() else { return };
        push_escape(byte, out);
        rest = behind.get(1..).unwrap_or_default();
    }
}

/// Appends the escape of a quote, a backslash or a byte below U+0020.
fn push_escape(byte: u8, out: &mut String) {
    let short = match byte {
        b'"' => "\\\"",
        b'\\' => "\\\\",
        0x08 => "\\b",
        0x0c => "\\f",
        b'\n' => "\\n",
        b'\r' => "\\r",
        b'\t' => "\\t",
        _ => {
            out.push_str("\\u00");
            for digit in [byte >> 4, byte & 15] {
                out.extend(char::from_digit(u32::from(digit), 16));
            }
            return;
        }
    };
    out.push_str(short);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(object: &str, expect: &[(&str, &str)]) {
        let mut found = Vec::new();
        for_each_member(object, |key, value| found.push((key, value)));
        assert_eq!(found, expect, "{object}");
    }

    #[test]
    fn an_object_is_taken_apart_at_its_first_level_only() {
        check("{}", &[]);
        check(r#"{"a": 1}"#, &[("a", "1")]);
        check(
            r#"{"": {"b": [1, {"c": ":,{"}]}, "d\"}": "e:,\\", "f": []}"#,
            &[("", r#"{"b": [1, {"c": ":,{"}]}"#), (r#"d\"}"#, r#""e:,\\""#), ("f", "[]")],
        );
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        check(&format!("{{\"deep\": {deep}, \"b\": 2}}"), &[("deep", &deep), ("b", "2")]);
    }

    #[test]
    fn only_the_space_between_parts_goes() {
        let mut out = String::new();
        push_compact(r#"{"a b": [1, "c , \" d", 2.50], "e": {"f": null}}"#, &mut out);
        assert_eq!(out, r#"{"a b":[1,"c , \" d",2.50],"e":{"f":null}}"#);
    }

    proptest! {
        #[test]
        fn strings_are_escaped_as_serde_json_does(text in "\\PC{0,20}|[\\x00-\\x7f]{0,20}") {
            let mut out = String::new();
            push_escaped(&text, &mut out);
            prop_assert_eq!(format!("\"{out}\""), serde_json::to_string(&text).unwrap());
        }

        #[test]
        fn no_string_is_taken_for_structure(text in "[\\[\\]{}\":,\\\\ aä1]{0,20}", number in 0..1_000) {
            let quoted = serde_json::to_string(&text).unwrap();
            let object = format!("{{{quoted}: [{quoted}, {number}], \"last\": {quoted}}}");
            let mut members = Vec::new();
            for_each_member(&object, |key, value| members.push((key, value)));
            let list = format!("[{quoted}, {number}]");
            let key = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap();
            prop_assert_eq!(members, [(key, list.as_str()), ("last", quoted.as_str())]);
            let mut out = String::new();
            push_compact(&object, &mut out);
            prop_assert_eq!(out, format!("{{{quoted}:[{quoted},{number}],\"last\":{quoted}}}"));
        }

        #[test]
        fn no_text_panics(text in "[\\[\\]{}\":,\\\\ aä1]{0,40}") {
            for_each_member(&text, |_, _| {});
            push_compact(&text, &mut String::new());
        }
    }
}
