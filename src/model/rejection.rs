//! Why a record is not an event: a stable code, and a bounded detail for people.

use std::fmt;

/// The longest detail kept with a rejection, in bytes.
pub const DETAIL_MAX_LEN_BYTES: usize = 500;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// The stable code of a rejection, as it stands in `dead_letters.reason`, metrics and headers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RejectionCode { $($(#[$doc])* $name,)* }

        impl RejectionCode {
            /// Every code, in the order of this list.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code as text: lower case, stable for ever.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }
        }
    };
}

codes! {
    /// The record has no value (a tombstone of a compacted topic).
    Tombstone = "tombstone",
    /// The value has no bytes.
    EmptyPayload = "empty_payload",
    /// The value or a field is longer than its limit.
    TooLarge = "too_large",
    /// The value is not UTF-8.
    InvalidUtf8 = "invalid_utf8",
    /// The value is not JSON by RFC 8259, or nests too deep.
    InvalidJson = "invalid_json",
    /// The JSON is not an object.
    NotAnObject = "not_an_object",
    /// An object, at any depth, names a key twice.
    DuplicateKey = "duplicate_key",
    /// A text holds U+0000, which PostgreSQL can't store.
    NulCharacter = "nul_character",
    /// A text holds half of a UTF-16 surrogate pair.
    LoneSurrogate = "lone_surrogate",
    /// A required field is absent or null.
    MissingField = "missing_field",
    /// A field has another JSON type than its own.
    WrongType = "wrong_type",
    /// A field that must hold an UUID doesn't.
    InvalidUuid = "invalid_uuid",
    /// The time is not RFC 3339 with a zone.
    InvalidTimestamp = "invalid_timestamp",
    /// The status is not Success, Failure or Pending.
    InvalidStatus = "invalid_status",
    /// A number that must be whole is not.
    InvalidInteger = "invalid_integer",
    /// The caller's address is not an IP address.
    InvalidIp = "invalid_ip",
    /// The metadata is not a JSON object.
    InvalidMetadata = "invalid_metadata",
    /// A number lies outside its range.
    OutOfRange = "out_of_range",
    /// Another event with the same audit id and time, and other content, is stored already.
    AuditIdConflict = "audit_id_conflict",
    /// PostgreSQL refused the row for a reason that decoding doesn't know; the SQLSTATE is kept.
    RefusedByDatabase = "refused_by_database",
}

impl fmt::Display for RejectionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A record that can't be an event. Not an error: the record becomes a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The stable code.
    pub code: RejectionCode,
    detail: Box<str>,
}

impl Rejection {
    /// A rejection; the detail is cut at [`DETAIL_MAX_LEN_BYTES`] on a character boundary, and U+0000 in it
    /// becomes U+FFFD, so that PostgreSQL can store it.
    #[must_use]
    pub fn new(code: RejectionCode, detail: impl Into<String>) -> Self {
        let mut detail: String = detail.into();
        if detail.contains('\0') {
            detail = detail.replace('\0', "\u{fffd}");
        }
        detail.truncate(detail.floor_char_boundary(DETAIL_MAX_LEN_BYTES));
        Self { code, detail: detail.into_boxed_str() }
    }

    /// What was wrong, for people: at most [`DETAIL_MAX_LEN_BYTES`] bytes.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_cut_on_a_character_boundary_and_holds_no_nul() {
        let rejection = Rejection::new(RejectionCode::InvalidJson, format!("\0{}", "é".repeat(400)));
        assert!(rejection.detail().len() <= DETAIL_MAX_LEN_BYTES);
        assert!(rejection.detail().starts_with('\u{fffd}'));
    }

    #[test]
    fn codes_are_distinct() {
        let mut codes: Vec<_> = RejectionCode::ALL.iter().map(|code| code.as_str()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), RejectionCode::ALL.len());
    }
}
