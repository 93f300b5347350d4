//! Base64 by RFC 4648, section 4, with padding: what `decode(.., 'base64')` of PostgreSQL reads.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The text of `bytes`.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for index in 0..4 {
            let sextet = usize::try_from(word >> (18 - 6 * index) & 63).unwrap_or_default();
            let symbol = ALPHABET.get(sextet).copied().unwrap_or(b'=');
            out.push(if index <= group.len() { char::from(symbol) } else { '=' });
        }
    }
    out
}

/// The bytes of `text`, or `None` when [`encode`] gives that text for no bytes.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (groups, rest) = text.as_bytes().as_chunks::<4>();
    if !rest.is_empty() {
        return None;
    }
    for group in groups {
        let [first, second, third, fourth] = *group;
        let [c, d] = [third, fourth].map(|symbol| if symbol == b'=' { Some(0) } else { sextet(symbol) });
        let word = sextet(first)? << 18 | sextet(second)? << 12 | c? << 6 | d?;
        let [_, bytes @ ..] = word.to_be_bytes();
        let len = if third == b'=' { 1 } else { 3 - usize::from(fourth == b'=') };
        out.extend_from_slice(bytes.get(..len)?);
    }
    // Padding before the end, and bits behind the last byte, are what `encode` never writes.
    (encode(&out) == text).then_some(out)
}

fn sextet(symbol: u8) -> Option<u32> {
    let value = match symbol {
        b'A'..=b'Z' => symbol - b'A',
        b'a'..=b'z' => symbol - b'a' + 26,
        b'0'..=b'9' => symbol - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648_hold() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in vectors {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).unwrap(), bytes.as_bytes());
        }
    }

    #[test]
    fn what_is_never_written_is_not_read() {
        for text in ["Zg", "Zg=", "Zh==", "Zm9=", "Z===", "====", "Zg==Zg==", "Zm9v\n", "Zm-v"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn all_bytes_come_back(bytes: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
    }
}
