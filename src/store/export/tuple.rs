//! A tuple of binary COPY as an event: what `copy.rs` writes, read. The format is told there.

use uuid::Uuid;

use super::{NO_STATUS, NO_TIME, broken, event_time};
use crate::model::event::Status;
use crate::model::projection::EventRow;
use crate::store::copy::{HEADER, TRAILER};
use crate::store::error::StoreError;

/// How many columns [`super::EVENT_ROW_COLUMNS`] names.
const COLUMN_COUNT: [u8; 2] = 21_u16.to_be_bytes();
/// The length of a field that is null.
const NULL: [u8; 4] = (-1_i32).to_be_bytes();

/// The tuples of one message of a COPY, without the header before the first and the trailer behind the last one.
pub(super) struct Tuples<'a>(&'a [u8]);

impl<'a> Tuples<'a> {
    /// The tuples of a message, whichever of the COPY it is. A header can't be a tuple: it starts with a letter.
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self(message.strip_prefix(HEADER).unwrap_or(message))
    }

    /// The next tuple as an event, by the columns of [`super::EVENT_ROW_COLUMNS`]; `None` at the end.
    ///
    /// # Errors
    /// [`StoreError::Broken`] for a tuple that no event can be.
    pub(super) fn next(&mut self) -> Result<Option<EventRow<'a>>, StoreError> {
        if self.0.is_empty() || self.0 == TRAILER {
            return Ok(None);
        }
        let start = self.0;
        let row = self.event().map_err(|what| match start.get(6..).and_then(|id| id.first_chunk()) {
            Some(id) => broken(Uuid::from_bytes(*id), &what),
            None => StoreError::Broken(format!("a row of COPY has {what}")),
        })?;
        Ok(Some(row))
    }

    fn event(&mut self) -> Result<EventRow<'a>, String> {
        self.0 = self.0.strip_prefix(&COLUMN_COUNT).ok_or("another number of columns")?;
        Ok(EventRow {
            audit_id: Uuid::from_bytes(self.fixed("audit_id")?),
            correlation_id: Uuid::from_bytes(self.fixed("correlation_id")?),
            timestamp: event_time(i64::from_be_bytes(self.fixed("timestamp")?)).ok_or(NO_TIME)?,
            operation: self.text("operation")?,
            command: self.text("command")?,
            args: self.optional_text("args")?,
            actor: self.text("actor")?,
            status: Status::read(self.text("status")?).ok_or(NO_STATUS)?,
            duration_ms: self.optional_fixed("duration_ms")?.map(i32::from_be_bytes),
            result_signature: self.text("result_signature")?,
            client_app: self.text("client_app")?,
            caller_ip_address: self.text("caller_ip_address")?,
            federated_source: self.text("federated_source")?,
            query_intent: self.optional_text("query_intent")?,
            bypass_llm: self.truth("bypass_llm")?,
            trust_score: self.text("trust_score")?,
            purview_compatible: self.truth("purview_compatible")?,
            metadata: self.text("metadata")?,
            schema_version: self.text("schema_version")?,
            tenant_id: self.text("tenant_id")?,
            extra: self.optional_text("extra")?,
        })
    }

    /// The next field's bytes; `None`: null.
    fn field(&mut self, name: &str) -> Result<Option<&'a [u8]>, String> {
        let torn = || format!("its {name} cut short");
        let (len_bytes, rest) = self.0.split_first_chunk().ok_or_else(torn)?;
        self.0 = rest;
        if *len_bytes == NULL {
            return Ok(None);
        }
        let len_bytes = usize::try_from(u32::from_be_bytes(*len_bytes)).map_err(|_too_long| torn())?;
        let (field, rest) = rest.split_at_checked(len_bytes).ok_or_else(torn)?;
        self.0 = rest;
        Ok(Some(field))
    }

    fn optional_text(&mut self, name: &str) -> Result<Option<&'a str>, String> {
        let Some(field) = self.field(name)? else { return Ok(None) };
        str::from_utf8(field).map(Some).map_err(|error| format!("no text as its {name}: {error}"))
    }

    fn text(&mut self, name: &str) -> Result<&'a str, String> {
        self.optional_text(name)?.ok_or_else(|| format!("no {name}"))
    }

    fn optional_fixed<const LEN_BYTES: usize>(
        &mut self,
        name: &str,
    ) -> Result<Option<[u8; LEN_BYTES]>, String> {
        let Some(field) = self.field(name)? else { return Ok(None) };
        field.try_into().map(Some).map_err(|_other_length| format!("{} bytes as its {name}", field.len()))
    }

    fn fixed<const LEN_BYTES: usize>(&mut self, name: &str) -> Result<[u8; LEN_BYTES], String> {
        self.optional_fixed(name)?.ok_or_else(|| format!("no {name}"))
    }

    fn truth(&mut self, name: &str) -> Result<bool, String> {
        Ok(self.fixed(name)? != [0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::Timestamp;

    /// The fields of an event of 2000-01-01T00:00:00.000001Z, all optional ones null.
    fn fields() -> Vec<Option<Vec<u8>>> {
        let text = |text: &str| Some(text.as_bytes().to_vec());
        vec![
            Some(vec![1; 16]),
            Some(vec![2; 16]),
            Some(1_i64.to_be_bytes().to_vec()),
            text("operation"),
            text("command"),
            None,
            text("ünï"),
            text("Failure"),
            None,
            text("200"),
            text(""),
            text("::1"),
            text("local"),
            None,
            Some(vec![0]),
            text("0.80"),
            Some(vec![1]),
            text("{}"),
            text("2.0"),
            text("tenant"),
            None,
        ]
    }

    fn tuple(fields: &[Option<Vec<u8>>]) -> Vec<u8> {
        let mut tuple = u16::try_from(fields.len()).unwrap().to_be_bytes().to_vec();
        for field in fields {
            let len_bytes = field.as_ref().map_or(-1, |field| i32::try_from(field.len()).unwrap());
            tuple.extend(len_bytes.to_be_bytes());
            tuple.extend(field.iter().flatten());
        }
        tuple
    }

    /// `change` of a tuple that is well formed gives this error.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Vec<Option<Vec<u8>>>), expect: &str) {
        let mut changed = fields();
        change(&mut changed);
        let message = tuple(&changed);
        let error = Tuples::of(&message).next().unwrap_err();
        assert!(matches!(&error, StoreError::Broken(what) if what == expect), "{error}");
    }

    #[test]
    fn fields_are_read_in_their_order_and_header_and_trailer_are_no_rows() {
        let mut full = fields();
        full[5] = Some(b"args".to_vec());
        full[8] = Some((-7_i32).to_be_bytes().to_vec());
        full[13] = Some(b"intent".to_vec());
        full[20] = Some(b"[]".to_vec());
        let message = [HEADER, &tuple(&fields()), &tuple(&full), TRAILER].concat();
        let mut tuples = Tuples::of(&message);
        let expect = EventRow {
            audit_id: Uuid::from_bytes([1; 16]),
            correlation_id: Uuid::from_bytes([2; 16]),
            timestamp: Timestamp::from_text("2000-01-01T00:00:00.000001Z").unwrap(),
            operation: "operation",
            command: "command",
            args: None,
            actor: "ünï",
            status: Status::Failure,
            duration_ms: None,
            result_signature: "200",
            client_app: "",
            caller_ip_address: "::1",
            federated_source: "local",
            query_intent: None,
            bypass_llm: false,
            trust_score: "0.80",
            purview_compatible: true,
            metadata: "{}",
            schema_version: "2.0",
            tenant_id: "tenant",
            extra: None,
        };
        assert_eq!(tuples.next().unwrap(), Some(expect));
        let full = EventRow {
            args: Some("args"),
            duration_ms: Some(-7),
            query_intent: Some("intent"),
            extra: Some("[]"),
            ..expect
        };
        assert_eq!(tuples.next().unwrap(), Some(full));
        assert_eq!(tuples.next().unwrap(), None);
        for message in [&[HEADER, TRAILER].concat()[..], HEADER, TRAILER, b""] {
            assert_eq!(Tuples::of(message).next().unwrap(), None);
        }
    }

    #[test]
    fn a_tuple_that_no_event_can_be_is_an_error_that_names_the_event() {
        const EVENT: &str = "the event 01010101-0101-0101-0101-010101010101 in the table has";
        check(
            |fields| fields[2] = Some(i64::MAX.to_be_bytes().to_vec()),
            &format!("{EVENT} a time outside of the years 0001 to 9999"),
        );
        check(|fields| fields[7] = Some(b"success".to_vec()), &format!("{EVENT} an unknown status"));
        check(|fields| fields[3] = None, &format!("{EVENT} no operation"));
        check(|fields| fields[8] = Some(vec![0; 8]), &format!("{EVENT} 8 bytes as its duration_ms"));
        check(|fields| fields[14] = None, &format!("{EVENT} no bypass_llm"));
        check(
            |fields| fields[6] = Some(vec![0xff]),
            &format!("{EVENT} no text as its actor: invalid utf-8 sequence of 1 bytes from index 0"),
        );
        check(|fields| fields.truncate(20), &format!("{EVENT} another number of columns"));
    }

    #[test]
    fn a_tuple_that_is_cut_anywhere_is_an_error() {
        let message = tuple(&fields());
        for len_bytes in 1..message.len() {
            assert!(Tuples::of(&message[..len_bytes]).next().is_err(), "{len_bytes}");
        }
    }
}
