//! A dead letter as a Kafka record: what `<topic>.dlq` holds, and what goes back to the source topic.
//!
//! The record is the original one (key, value, timestamp, headers in their order), with these headers behind the
//! original ones. A reader takes the last header of a name (`Headers.lastHeader` of Kafka's Java client), so an
//! original header of the same name does not hide ours. All values are UTF-8 text; numbers are decimal.
//!
//! | header | value |
//! | --- | --- |
//! | `dlq.id` | `<stream id>:<partition>:<offset>` of the source record: the same for ever, the key of its row |
//! | `dlq.topic`, `dlq.partition`, `dlq.offset` | where the record came from |
//! | `dlq.timestamp` | its own time in milliseconds since the Unix epoch; absent when it had none |
//! | `dlq.group` | the consumer group that rejected it |
//! | `dlq.reason` | a stable code, see [`super::rejection::RejectionCode`] |
//! | `dlq.detail` | for people, at most 500 bytes |
//! | `dlq.sqlstate` | PostgreSQL's code, when it was PostgreSQL that refused the record |
//! | `dlq.attempt` | 1; one more each time the record was redriven and rejected again |
//! | `dlq.version` | the version of this table: 1 |
//! | `correlation_id` | the event's, when it could be read |
//! | `traceparent` | W3C Trace Context: the record's trace; not again where the original headers name it, absent when neither they nor a correlation id tell it |
//!
//! A record that would be larger than its topic allows is cut, in this order until it fits: the value; the
//! original headers; the key; the detail. Then it has further headers:
//!
//! | header | value |
//! | --- | --- |
//! | `dlq.truncated` | what was cut: `value`, or `value,headers`, `value,headers,key`, `value,headers,key,detail` |
//! | `dlq.value.sha256` | SHA-256 of the whole value, lower-case hexadecimal |
//! | `dlq.value.length` | length of the whole value in bytes |
//! | `dlq.pointer` | where the whole record is: `audit_events.dead_letters/<dead_letter_id>` |

use std::fmt;
use std::str::FromStr;

use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::base64;
use super::position::{Offset, Partition, StreamId, StreamPartition};
use super::trace::{SpanId, TRACEPARENT, TraceContext, traceparent};

/// What a dead letter topic's name adds to its source topic's.
pub const TOPIC_SUFFIX: &str = ".dlq";
/// How often a record may be a dead letter before it is not redriven any more.
pub const ATTEMPT_MAX: u32 = 5;
/// The version of the header table.
const VERSION: &str = "1";
/// Header that names the dead letter.
pub const ID_HEADER: &str = "dlq.id";
/// Header that names the group that rejected the record.
pub const GROUP_HEADER: &str = "dlq.group";
const ATTEMPT_HEADER: &str = "dlq.attempt";
/// Headers that a redrive adds to the original ones; taken away again before the next redrive.
const REDRIVE_HEADERS: &[&str] =
    &[ATTEMPT_HEADER, REDRIVEN_FROM_HEADER, REDRIVE_HEADER, FIRST_TIMESTAMP_HEADER];
const FIRST_TIMESTAMP_HEADER: &str = "dlq.first-timestamp";
const REDRIVEN_FROM_HEADER: &str = "dlq.redriven-from";
/// Header that names the redrive (one Kafka transaction) that a record of the source topic came by.
pub const REDRIVE_HEADER: &str = "dlq.redrive";

/// What a record adds to its batch at most, beside keys, values and headers: the batch's header (61 bytes, KIP-98)
/// and the record's own varints (36), rounded up.
const RECORD_OVERHEAD_BYTES: usize = 128;
/// What a header adds: two varints of at most 5 bytes.
const HEADER_OVERHEAD_BYTES: usize = 10;

/// The name of a dead letter, the same for ever: the coordinates of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadLetterId {
    /// The stream's partition.
    pub key: StreamPartition,
    /// The record's offset.
    pub offset: Offset,
}

impl DeadLetterId {
    /// The span of sending it, which its `traceparent` names: the same for ever, as all of a letter is.
    #[must_use]
    pub fn span(&self) -> Option<SpanId> {
        let name = format!("{}:{}", self.key.partition, self.offset);
        let hash = Uuid::new_v5(&self.key.stream.0, name.as_bytes()).into_bytes();
        SpanId::new(*hash.first_chunk()?)
    }
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key, self.offset)
    }
}

/// A dead letter as its topic has it. Several groups may read one topic, each into a database of its own, and share the
/// dead letter topic: so a letter is its group's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LetterName {
    /// The coordinates of the record.
    pub id: DeadLetterId,
    /// The group that rejected it.
    pub group: String,
}

/// A text that names no dead letter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not <stream id>:<partition>:<offset>")]
pub struct NoDeadLetterId;

impl FromStr for DeadLetterId {
    type Err = NoDeadLetterId;

    fn from_str(text: &str) -> Result<Self, NoDeadLetterId> {
        let mut parts = text.splitn(3, ':');
        let stream = parts.next().and_then(|part| part.parse::<Uuid>().ok()).ok_or(NoDeadLetterId)?;
        let partition = parts.next().and_then(|part| part.parse().ok()).ok_or(NoDeadLetterId)?;
        let offset =
            parts.next().and_then(|part| part.parse().ok()).and_then(Offset::new).ok_or(NoDeadLetterId)?;
        let key = StreamPartition { stream: StreamId(stream), partition: Partition(partition) };
        Ok(Self { key, offset })
    }
}

/// A header: key and value bytes.
pub type RecordHeader = (Vec<u8>, Option<Vec<u8>>);

/// A row of `dead_letters`, as far as its record needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterRow {
    /// `dead_letter_id`.
    pub row_id: i64,
    /// The coordinates.
    pub id: DeadLetterId,
    /// The group that rejected the record.
    pub group: String,
    /// The source topic.
    pub topic: String,
    /// The stable code.
    pub reason: String,
    /// For people.
    pub detail: String,
    /// PostgreSQL's code.
    pub sqlstate: Option<String>,
    /// The record's own time in milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
    /// The original key.
    pub key: Option<Vec<u8>>,
    /// The original value.
    pub value: Option<Vec<u8>>,
    /// The original headers, in their order.
    pub headers: Vec<RecordHeader>,
    /// The event's correlation id.
    pub correlation_id: Option<Uuid>,
    /// When the row was stored, RFC 3339.
    pub created_at: String,
}

/// A record to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingRecord {
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// The headers, in their order.
    pub headers: Vec<RecordHeader>,
    /// The timestamp in milliseconds since the Unix epoch; `None`: the time of sending.
    pub timestamp_ms: Option<i64>,
}

impl OutgoingRecord {
    /// The most bytes that a batch with this record alone takes, uncompressed: what `max.message.bytes` limits.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let headers = self
            .headers
            .iter()
            .map(|(key, value)| HEADER_OVERHEAD_BYTES + key.len() + value.as_ref().map_or(0, Vec::len));
        RECORD_OVERHEAD_BYTES
            + self.key.as_ref().map_or(0, Vec::len)
            + self.value.as_ref().map_or(0, Vec::len)
            + headers.sum::<usize>()
    }
}

/// How the value of a dead letter looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterFormat {
    /// The original bytes.
    Raw,
    /// The predecessor's JSON object: `original_topic`, `original_event` (the payload as JSON where it is JSON, else
    /// as text, else `null` with `original_event_base64`), `error`, `timestamp` (when it was rejected).
    Envelope,
}

impl DeadLetterRow {
    /// Its name in the dead letter topic.
    #[must_use]
    pub fn name(&self) -> LetterName {
        LetterName { id: self.id, group: self.group.clone() }
    }

    /// Its place in its trace, when that can be told.
    #[must_use]
    pub fn trace_context(&self) -> Option<TraceContext> {
        let headers = self.headers.iter().map(|(key, value)| (key.as_slice(), value.as_deref()));
        TraceContext::of(headers, self.correlation_id)
    }

    /// The header that names its trace, unless that stands in the original headers and these are kept.
    fn traceparent(&self, keeps_headers: bool) -> Option<String> {
        let context = self.trace_context()?;
        match context.parent {
            Some(_) if keeps_headers => None,
            Some(parent) => Some(traceparent(context.trace, parent.span, parent.is_sampled)),
            None => Some(traceparent(context.trace, self.id.span()?, true)),
        }
    }

    /// How often this record was a dead letter, this time included: from the header that a redrive gave it.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        let last = self.headers.iter().rev().find(|(key, _)| key == ATTEMPT_HEADER.as_bytes());
        let before = last
            .and_then(|(_, value)| std::str::from_utf8(value.as_deref()?).ok()?.parse::<u32>().ok())
            .unwrap_or(0);
        before.saturating_add(1)
    }

    /// The record for the dead letter topic, cut to `max_len_bytes`. `None` when not even the shortest form fits.
    #[must_use]
    pub fn letter(&self, format: LetterFormat, max_len_bytes: usize) -> Option<OutgoingRecord> {
        let whole = self.assemble(format, Cut::Nothing);
        if whole.len_bytes() <= max_len_bytes {
            return Some(whole);
        }
        [Cut::Value, Cut::Headers, Cut::Key, Cut::Detail].into_iter().find_map(|cut| {
            let mut short = self.assemble(format, cut);
            let room = max_len_bytes.checked_sub(short.len_bytes())?;
            // As much of the value as there is room for, where it is the original bytes.
            if let (LetterFormat::Raw, Some(value)) = (format, &self.value) {
                short.value = value.get(..room.min(value.len())).map(<[u8]>::to_vec);
            }
            Some(short)
        })
    }

    /// The record for the source topic: as it was, with the attempt, where it comes from and by which redrive. Its own
    /// time is that of the sending, as a topic may delete or refuse what is old; the first one stands in a header.
    #[must_use]
    pub fn redriven(&self, redrive: Uuid) -> OutgoingRecord {
        let is_ours = |key: &[u8]| REDRIVE_HEADERS.iter().any(|name| name.as_bytes() == key);
        let mut headers: Vec<RecordHeader> =
            self.headers.iter().filter(|(key, _)| !is_ours(key)).cloned().collect();
        let is_first_time = |(key, _): &&RecordHeader| key == FIRST_TIMESTAMP_HEADER.as_bytes();
        let first_time = self.headers.iter().find(is_first_time).cloned();
        headers.extend(first_time.or_else(|| self.timestamp_ms.map(|ms| header(FIRST_TIMESTAMP_HEADER, ms))));
        headers.push(header(ATTEMPT_HEADER, self.attempt()));
        headers.push(header(REDRIVEN_FROM_HEADER, self.id));
        headers.push(header(REDRIVE_HEADER, redrive));
        OutgoingRecord { key: self.key.clone(), value: self.value.clone(), headers, timestamp_ms: None }
    }

    fn assemble(&self, format: LetterFormat, cut: Cut) -> OutgoingRecord {
        let mut headers = if cut < Cut::Headers { self.headers.clone() } else { Vec::new() };
        let (partition, offset) = (self.id.key.partition, self.id.offset);
        headers.push(header(ID_HEADER, self.id));
        headers.push(header("dlq.topic", &self.topic));
        headers.push(header("dlq.partition", partition));
        headers.push(header("dlq.offset", offset));
        headers.extend(self.timestamp_ms.map(|timestamp_ms| header("dlq.timestamp", timestamp_ms)));
        headers.push(header(GROUP_HEADER, &self.group));
        headers.push(header("dlq.reason", &self.reason));
        headers.push(header("dlq.detail", if cut < Cut::Detail { &self.detail } else { "" }));
        headers.extend(self.sqlstate.as_ref().map(|sqlstate| header("dlq.sqlstate", sqlstate)));
        headers.push(header(ATTEMPT_HEADER, self.attempt()));
        headers.push(header("dlq.version", VERSION));
        headers.extend(self.correlation_id.map(|id| header("correlation_id", id)));
        headers.extend(self.traceparent(cut < Cut::Headers).map(|value| header(TRACEPARENT, value)));
        if let Some(what) = cut.what() {
            headers.push(header("dlq.truncated", what));
            if let Some(value) = &self.value {
                headers.push(header("dlq.value.sha256", Hexadecimal(&Sha256::digest(value))));
                headers.push(header("dlq.value.length", value.len()));
            }
            headers.push(header("dlq.pointer", format_args!("audit_events.dead_letters/{}", self.row_id)));
        }
        let value = match (format, cut) {
            (LetterFormat::Raw, Cut::Nothing) => self.value.clone(),
            (LetterFormat::Raw, _) => self.value.as_ref().map(|_| Vec::new()),
            (LetterFormat::Envelope, _) => Some(self.envelope(cut).into_bytes()),
        };
        let key = self.key.clone().filter(|_| cut < Cut::Key);
        OutgoingRecord { key, value, headers, timestamp_ms: self.timestamp_ms }
    }

    fn envelope(&self, cut: Cut) -> String {
        let value = self.value.as_deref().filter(|_| cut == Cut::Nothing);
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        let event = match text {
            // As it stands: not a digit is changed.
            Some(text) if serde_json::from_str::<&RawValue>(text).is_ok() => text.to_owned(),
            Some(text) => json!(text).to_string(),
            None => "null".to_owned(),
        };
        let topic = json!(self.topic);
        let detail = if cut < Cut::Detail { &self.detail } else { "" };
        let error = json!(format!("{}: {detail}", self.reason));
        let timestamp = json!(self.created_at);
        let bytes = match (value, text) {
            (Some(value), None) => format!(r#","original_event_base64":"{}""#, base64::encode(value)),
            _ => String::new(),
        };
        format!(
            r#"{{"original_topic":{topic},"original_event":{event}{bytes},"error":{error},"timestamp":{timestamp}}}"#
        )
    }
}

/// What is left out of a record that is too large; each takes the ones before it with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cut {
    Nothing,
    Value,
    Headers,
    Key,
    Detail,
}

impl Cut {
    const fn what(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Value => Some("value"),
            Self::Headers => Some("value,headers"),
            Self::Key => Some("value,headers,key"),
            Self::Detail => Some("value,headers,key,detail"),
        }
    }
}

fn header(key: &str, value: impl fmt::Display) -> RecordHeader {
    (key.as_bytes().to_vec(), Some(value.to_string().into_bytes()))
}

struct Hexadecimal<'a>(&'a [u8]);

impl fmt::Display for Hexadecimal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a header of `dead_letters.headers` can look like that this does not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a header as dead_letters.headers holds it: {0}")]
pub struct NoHeader(String);

/// The headers as a JSON array of `{"key": text, "value": base64 or null}`, in order. A key that is not UTF-8,
/// or holds U+0000, is given as `key_base64` instead, so that nothing is altered.
pub fn headers_to_json<'a>(headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> serde_json::Value {
    let entries = headers.map(|(key, value)| {
        let value = value.map(base64::encode);
        match std::str::from_utf8(key) {
            Ok(key) if !key.contains('\0') => json!({"key": key, "value": value}),
            _ => json!({"key_base64": base64::encode(key), "value": value}),
        }
    });
    serde_json::Value::Array(entries.collect())
}

/// The headers that [`headers_to_json`] wrote.
///
/// # Errors
/// [`NoHeader`] names the first entry that it did not write.
pub fn headers_from_json(json: &serde_json::Value) -> Result<Vec<RecordHeader>, NoHeader> {
    let read = |entry: &serde_json::Value| {
        let key = match (entry.get("key"), entry.get("key_base64")) {
            (Some(key), None) => key.as_str()?.as_bytes().to_vec(),
            (None, Some(key)) => base64::decode(key.as_str()?)?,
            _ => return None,
        };
        let value = match entry.get("value")? {
            serde_json::Value::Null => None,
            value => Some(base64::decode(value.as_str()?)?),
        };
        Some((key, value))
    };
    let entries = json.as_array().ok_or_else(|| NoHeader(json.to_string()))?;
    entries.iter().map(|entry| read(entry).ok_or_else(|| NoHeader(entry.to_string()))).collect()
}

#[cfg(test)]
mod tests;
