//! The rules of single fields. Every rejection names its field, and shows at most 60 bytes of its value.

use std::borrow::Cow;
use std::net::IpAddr;

use uuid::Uuid;

use super::number::{self, NumberFault};
use super::{AssumeUtc, excerpt};
use crate::model::event::{NAME_MAX_LEN_BYTES, Status, TrustScore};
use crate::model::json::{Number, Value};
use crate::model::rejection::{Rejection, RejectionCode};
use crate::model::timestamp::{self, Reading, TimestampFault};

/// An UUID in one of the two forms that producers write: hyphenated or 32 digits, in any letter case. `uuid`
/// also reads the braced and the URN form, which are longer.
pub(super) fn parse_uuid(text: &str) -> Option<Uuid> {
    match text.len() {
        32 | 36 => Uuid::try_parse(text).ok(),
        _ => None,
    }
}

/// A field of the event schema, and its value in a payload.
pub(super) struct Field<'a> {
    name: &'static str,
    value: Option<Value<'a>>,
}

impl<'a> Field<'a> {
    /// The field before it was seen.
    pub(super) const fn absent(name: &'static str) -> Self {
        Self { name, value: None }
    }

    /// Whether the payload named it, be it as null.
    pub(super) const fn is_named(&self) -> bool {
        self.value.is_some()
    }

    /// Takes the value that the payload gives it.
    pub(super) const fn set(&mut self, value: Value<'a>) {
        self.value = Some(value);
    }

    /// Its text, if any.
    pub(super) fn text(&self) -> Result<Option<Cow<'a, str>>, Rejection> {
        match self.value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.unescape())),
            Some(other) => Err(self.wrong_type("a string", &other)),
        }
    }

    /// Its text, which may be empty.
    pub(super) fn required_text(&self) -> Result<Cow<'a, str>, Rejection> {
        self.text()?.ok_or_else(|| self.reject(RejectionCode::MissingField, "required"))
    }

    /// Its text as a name that stands in an index: not empty, at most [`NAME_MAX_LEN_BYTES`].
    pub(super) fn name(&self) -> Result<Cow<'a, str>, Rejection> {
        let text = self.required_text()?;
        if text.is_empty() {
            return Err(self.reject(RejectionCode::MissingField, "required, and empty"));
        }
        if text.len() > NAME_MAX_LEN_BYTES {
            let detail = format!("{} bytes, at most {NAME_MAX_LEN_BYTES}", text.len());
            return Err(self.reject(RejectionCode::TooLarge, &detail));
        }
        Ok(text)
    }

    /// Its UUID.
    pub(super) fn uuid(&self) -> Result<Uuid, Rejection> {
        let text = self.required_text()?;
        parse_uuid(&text).ok_or_else(|| self.reject_text(RejectionCode::InvalidUuid, "an UUID", &text))
    }

    /// Its time, with the text that said so.
    pub(super) fn time(&self, assume_utc: AssumeUtc) -> Result<(Reading, Cow<'a, str>), Rejection> {
        let text = self.required_text()?;
        match timestamp::parse(&text, assume_utc) {
            Ok(reading) => Ok((reading, text)),
            Err(TimestampFault::Invalid) => {
                Err(self.reject_text(RejectionCode::InvalidTimestamp, "an RFC 3339 time with a zone", &text))
            }
            Err(TimestampFault::OutOfRange) => {
                Err(self.reject_text(RejectionCode::OutOfRange, "a year from 0001 to 9999 in UTC", &text))
            }
        }
    }

    /// Its status, spelt exactly so.
    pub(super) fn status(&self) -> Result<Status, Rejection> {
        let text = self.required_text()?;
        Status::read(&text).ok_or_else(|| {
            self.reject_text(RejectionCode::InvalidStatus, "Success, Failure or Pending", &text)
        })
    }

    /// Its IP address, if any, without a mask or a zone.
    pub(super) fn ip(&self) -> Result<Option<IpAddr>, Rejection> {
        let Some(text) = self.text()? else { return Ok(None) };
        match text.parse() {
            Ok(ip) => Ok(Some(ip)),
            Err(_) => Err(self.reject_text(RejectionCode::InvalidIp, "an IP address", &text)),
        }
    }

    /// Its boolean, if any.
    pub(super) fn flag(&self) -> Result<Option<bool>, Rejection> {
        match self.value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong_type("a boolean", &other)),
        }
    }

    /// Its duration, if any, in milliseconds.
    pub(super) fn duration_ms(&self) -> Result<Option<i32>, Rejection> {
        let Some(number) = self.number()? else { return Ok(None) };
        match number::duration_ms(number) {
            Ok(duration_ms) => Ok(Some(duration_ms)),
            Err(NumberFault::NotWhole) => {
                Err(self.reject(RejectionCode::InvalidInteger, "expected a whole number"))
            }
            Err(NumberFault::OutOfRange) => {
                Err(self.reject(RejectionCode::OutOfRange, "expected 0 to 2147483647"))
            }
        }
    }

    /// Its trust score, if any.
    pub(super) fn trust_score(&self) -> Result<Option<TrustScore>, Rejection> {
        let Some(number) = self.number()? else { return Ok(None) };
        let score = number::trust_score(number).ok();
        let detail = "expected 0 to 1 with at most 16 digits after the point";
        score.map(Some).ok_or_else(|| self.reject(RejectionCode::OutOfRange, detail))
    }

    /// Its object as JSON text, if any. Only metadata is one.
    pub(super) fn object(&self) -> Result<Option<&'a str>, Rejection> {
        match self.value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(raw)) => Ok(Some(raw)),
            Some(other) => {
                let detail = format!("expected an object, found {}", other.kind());
                Err(self.reject(RejectionCode::InvalidMetadata, &detail))
            }
        }
    }

    fn number(&self) -> Result<Option<Number<'a>>, Rejection> {
        match self.value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) => Ok(Some(number)),
            Some(other) => Err(self.wrong_type("a number", &other)),
        }
    }

    fn wrong_type(&self, expected: &str, found: &Value<'_>) -> Rejection {
        self.reject(RejectionCode::WrongType, &format!("expected {expected}, found {}", found.kind()))
    }

    fn reject_text(&self, code: RejectionCode, expected: &str, found: &str) -> Rejection {
        self.reject(code, &format!("expected {expected}, found {}", excerpt(found)))
    }

    fn reject(&self, code: RejectionCode, detail: &str) -> Rejection {
        Rejection::new(code, format!("{}: {detail}", self.name))
    }
}
