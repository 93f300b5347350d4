//! Payload bytes to a valid event, or a rejection with a stable code. Pure and total: no input panics.

use super::event::Event;
use super::rejection::Rejection;

/// What decoding depends on beside the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeRules {
    /// The tenant of events that name none.
    pub tenant_id: String,
    /// Take a time without a zone as UTC instead of rejecting it.
    pub assume_utc: AssumeUtc,
    /// The longest payload, in bytes.
    pub payload_max_len_bytes: usize,
}

/// Whether a time without a zone is taken as UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssumeUtc {
    /// It is.
    Yes,
    /// It is rejected.
    No,
}

/// Decodes the value of a record (`None`: a tombstone).
///
/// # Errors
/// The rejection of the first thing found wrong.
pub fn decode<'a>(payload: Option<&'a [u8]>, rules: &'a DecodeRules) -> Result<Event<'a>, Rejection> {
    let _ = (payload, rules);
    Err(Rejection::new(super::rejection::RejectionCode::Tombstone, "stub"))
}

/// What could be read of an event that was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// The audit id.
    pub audit_id: Option<uuid::Uuid>,
    /// The correlation id.
    pub correlation_id: Option<uuid::Uuid>,
}

/// Reads what identifies a rejected payload, as far as that is possible.
#[must_use]
pub fn identify(_payload: &[u8]) -> Identity {
    Identity::default()
}
