//! Records of an import on their way into a batch.
//!
//! A record may tell an event that is stored already, in a form that lacks some of it. So before a batch is built the
//! events of its ids are looked up, and a record that agrees with the stored event takes that event's own content: the
//! commit then finds the same content and counts a duplicate. What contradicts a stored event, or has its id at another
//! time within a day, becomes a dead letter. What is stored between the look-up and the commit is found by the commit if
//! it has the same time: it then either starts again with another look-up (the direct path) or, in the moment between
//! that and the merge, takes a poorer form for a conflict: a dead letter more, never a row more and none less.
//!
//! A record that repeats an event of its own batch is compared with that one in the same way.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::model::batch::{Batch, BatchBuilder, BatchLimits, DeadLetter, Decoded};
use crate::model::decode::{DecodeRules, decode, identify};
use crate::model::event::Timestamp;
use crate::model::federated::FederatedSources;
use crate::model::legacy::{CONFLICT_SPAN_MICROS, Legacy, LegacyRecord, Relation, read_line, read_row};
use crate::model::position::{Offset, TopicPartition};
use crate::model::projection::{LineFormat, Projection, ProjectionRules};
use crate::model::record::{AssignmentId, Chunk, Record};
use crate::model::rejection::{Rejection, RejectionCode};
use crate::pipeline::decode_record;
use crate::store::{Claim, Session, StoreError};

/// The one assignment of an import.
const ASSIGNMENT: AssignmentId = AssignmentId(1);

/// What is known of a record before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is no event.
    NoEvent,
    /// It is none that is stored.
    New(Uuid, Timestamp),
    /// It tells an event that is stored, or comes before it in its batch.
    Known,
    /// It says something else than the event of its id and of this time.
    Conflict(Timestamp),
}

/// A record, read.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) record: LegacyRecord,
    pub(super) standing: Standing,
    /// The id and time, when it is an event.
    event: Option<(Uuid, Timestamp)>,
    legacy: Legacy<'static>,
    /// The event that it tells, as a producer would write it.
    known: Option<Vec<u8>>,
}

impl Candidate {
    pub(super) fn read(record: LegacyRecord, is_row: bool, rules: &DecodeRules) -> Self {
        // What was cut can't be read; why it is no event is said in `fate`.
        let value = if is_cut(&record) { &[] } else { record.value.as_slice() };
        let legacy = if is_row { read_row(value) } else { read_line(value) }.into_owned();
        let event = decode(Some(&legacy.payload), rules).ok().map(|event| (event.audit_id, event.timestamp));
        let standing = event.map_or(Standing::NoEvent, |(audit_id, time)| Standing::New(audit_id, time));
        Self { record, standing, event, legacy, known: None }
    }

    /// What is decoded and stored.
    fn payload(&self) -> &[u8] {
        self.known.as_deref().unwrap_or(&self.legacy.payload)
    }

    /// Compares it with an event of its id; one that it tells wins over one that it contradicts. Returns how many
    /// bytes it keeps of that event.
    fn compare(&mut self, (time, payload): (Timestamp, &[u8]), rules: &DecodeRules) -> usize {
        let Some((_, own_time)) = self.event else { return 0 };
        let apart_micros = own_time.as_unix_micros().abs_diff(time.as_unix_micros());
        // Decided before anything is decoded.
        let is_apart = apart_micros > CONFLICT_SPAN_MICROS.unsigned_abs();
        if self.standing == Standing::Known || is_apart {
            return 0;
        }
        let told = decode(Some(&self.legacy.payload), rules);
        let (Ok(told), Ok(event)) = (told, decode(Some(payload), rules)) else { return 0 };
        match self.legacy.relation(&told, &event, &rules.tenant_id) {
            Relation::Same => {
                self.standing = Standing::Known;
                self.known = Some(payload.to_vec());
                return payload.len();
            }
            Relation::Conflict => self.standing = Standing::Conflict(time),
            Relation::Apart => {}
        }
        0
    }

    /// Why it is a dead letter, where its payload alone does not say so.
    fn rejection(&self, rules: &DecodeRules) -> Option<Rejection> {
        if is_cut(&self.record) {
            let (len, kept, max) =
                (self.record.len_bytes, self.record.value.len(), rules.payload_max_len_bytes);
            let detail =
                format!("{len} bytes, at most {max}; the first {kept} are kept, the source has the rest");
            return Some(Rejection::new(RejectionCode::TooLarge, detail));
        }
        let Standing::Conflict(time) = self.standing else { return None };
        let detail = match self.event {
            Some((_, own_time)) if own_time != time => {
                format!("the event of this audit_id is stored with the time {time}, and this has {own_time}")
            }
            _ => format!("the event of this audit_id and time ({time}) says something else"),
        };
        Some(Rejection::new(RejectionCode::AuditIdConflict, detail))
    }
}

/// Whether some of the record is not kept, as it is longer than an event may be.
const fn is_cut(record: &LegacyRecord) -> bool {
    record.len_bytes > record.value.len()
}

/// Records that go into one batch.
#[derive(Debug)]
pub(super) struct Candidates {
    limits: BatchLimits,
    records: Vec<Candidate>,
    len_bytes: usize,
}

impl Candidates {
    pub(super) const fn new(limits: BatchLimits) -> Self {
        Self { limits, records: Vec::new(), len_bytes: 0 }
    }

    /// Whether one more may join those here: they then have at most that one's bytes more than the limit.
    pub(super) const fn has_room(&self) -> bool {
        self.records.len() < self.limits.record_count && self.len_bytes < self.limits.len_bytes
    }

    pub(super) fn push(&mut self, candidate: Candidate) {
        self.len_bytes += candidate.legacy.payload.len() + candidate.record.value.len();
        self.records.push(candidate);
    }

    pub(super) fn take(&mut self) -> Vec<Candidate> {
        self.len_bytes = 0;
        std::mem::take(&mut self.records)
    }
}

/// Notes which of `candidates` tell an event that is stored, or one that comes before them: of all, or, where those
/// events together have more than `known_max_len_bytes` bytes, of the first so many that they have not. Returns how many.
///
/// # Errors
/// See [`StoreError`].
pub(super) async fn look_up(
    session: &mut Session,
    candidates: &mut [Candidate],
    known_max_len_bytes: usize,
    rules: &DecodeRules,
) -> Result<usize, StoreError> {
    let mut count = candidates.len();
    loop {
        let piece = candidates.get_mut(..count).unwrap_or_default();
        // One alone keeps one event at most.
        let max_len_bytes = if count > 1 { known_max_len_bytes } else { usize::MAX };
        let mut room = Room { len_bytes: max_len_bytes, is_over: false };
        compare_with_stored(session, piece, &mut room, rules).await?;
        compare_with_each_other(piece, &mut room, rules);
        if !room.is_over {
            return Ok(count);
        }
        count /= 2;
    }
}

/// How many bytes of events that are known may still be kept.
struct Room {
    len_bytes: usize,
    /// Whether there were more: not all was compared then.
    is_over: bool,
}

impl Room {
    fn take(&mut self, len_bytes: usize) {
        self.is_over |= len_bytes > self.len_bytes;
        self.len_bytes = self.len_bytes.saturating_sub(len_bytes);
    }
}

/// Compares `candidates` with the stored events of their ids about their times, as far as there is room.
async fn compare_with_stored(
    session: &mut Session,
    candidates: &mut [Candidate],
    room: &mut Room,
    rules: &DecodeRules,
) -> Result<(), StoreError> {
    let mut by_id: HashMap<Uuid, Vec<usize>> = HashMap::new();
    let (mut first, mut last) = (Timestamp::MAX, Timestamp::MIN);
    for (index, candidate) in candidates.iter_mut().enumerate() {
        let Some((audit_id, time)) = candidate.event else { continue };
        (candidate.known, candidate.standing) = (None, Standing::New(audit_id, time));
        by_id.entry(audit_id).or_default().push(index);
        (first, last) = (first.min(time), last.max(time));
    }
    if by_id.is_empty() {
        return Ok(());
    }
    let moved = |time: Timestamp, micros: i64, end: Timestamp| {
        time.as_unix_micros().checked_add(micros).and_then(Timestamp::from_unix_micros).unwrap_or(end)
    };
    let range = (
        moved(first, -CONFLICT_SPAN_MICROS, Timestamp::MIN),
        moved(last, CONFLICT_SPAN_MICROS, Timestamp::MAX),
    );
    let ids: Vec<Uuid> = by_id.keys().copied().collect();
    let projection = ProjectionRules::default();
    let mut line = String::new();
    session
        .for_each_stored(&ids, range, |row| {
            line.clear();
            Projection::Events.write_line(row, &projection, LineFormat::JsonLines, &mut line);
            for index in by_id.get(&row.audit_id).into_iter().flatten() {
                if let Some(candidate) = candidates.get_mut(*index).filter(|_| !room.is_over) {
                    room.take(candidate.compare((row.timestamp, line.as_bytes()), rules));
                }
            }
        })
        .await
}

/// Compares each of `candidates` with the new ones before it, as far as there is room.
fn compare_with_each_other(candidates: &mut [Candidate], room: &mut Room, rules: &DecodeRules) {
    let mut new: HashMap<Uuid, Vec<usize>> = HashMap::new();
    for index in 0..candidates.len() {
        let (before, rest) = candidates.split_at_mut(index);
        let Some(candidate) = rest.first_mut() else { return };
        let Some((audit_id, _)) = candidate.event else { continue };
        let earlier = new.entry(audit_id).or_default();
        for known in earlier.iter().filter_map(|index| before.get(*index)) {
            if let Some((_, time)) = known.event.filter(|_| !room.is_over) {
                room.take(candidate.compare((time, &known.legacy.payload), rules));
            }
        }
        if matches!(candidate.standing, Standing::New(..)) {
            earlier.push(index);
        }
    }
}

/// The batch of `candidates`, from `start` on; `absent_after` numbers behind the last hold no record.
///
/// # Errors
/// When they do not follow each other.
pub(super) fn build(
    candidates: &[Candidate],
    (claim, source): (Claim, &Arc<TopicPartition>),
    (start, absent_after): (Offset, u64),
    (rules, sources): (&DecodeRules, &FederatedSources),
) -> Result<Batch, StoreError> {
    let chunk = Arc::new(chunk(candidates, source, (start, absent_after))?);
    let limits = BatchLimits { record_count: usize::MAX, len_bytes: usize::MAX };
    let mut builder = BatchBuilder::new(limits);
    let mut rest = candidates.iter();
    let pushed = builder.push(&chunk, claim.key, claim.epoch, |record, rows| {
        let candidate = rest.next();
        match candidate.and_then(|candidate| Some((candidate, candidate.rejection(rules)?))) {
            Some((candidate, rejection)) => Decoded::DeadLetter(letter(candidate, rejection)),
            None => {
                let payload = candidate.map(Candidate::payload).unwrap_or_default();
                decode_record((Some(payload), record.offset), (claim.key, rules, sources), rows)
            }
        }
    });
    pushed.map_err(|gap| StoreError::Broken(format!("a batch of an import is not continuous: {gap:?}")))?;
    Ok(builder.take())
}

fn letter(candidate: &Candidate, rejection: Rejection) -> DeadLetter {
    // A cut record has no payload: what is kept of it may still show its ids.
    let payload = if is_cut(&candidate.record) { &candidate.record.value } else { candidate.payload() };
    let identity = identify(payload);
    DeadLetter {
        rejection,
        sqlstate: None,
        audit_id: identity.audit_id,
        correlation_id: identity.correlation_id,
    }
}

/// The records as they came, so that a dead letter keeps the line or row itself.
fn chunk(
    candidates: &[Candidate],
    source: &Arc<TopicPartition>,
    (start, absent_after): (Offset, u64),
) -> Result<Chunk, StoreError> {
    let mut arena = Vec::new();
    let mut records = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let value_start = arena.len();
        arena.extend_from_slice(&candidate.record.value);
        records.push(Record {
            offset: candidate.record.offset,
            absent_before: candidate.record.absent_before,
            timestamp_ms: None,
            key: None,
            value: Some(value_start..arena.len()),
            headers: Vec::new(),
        });
    }
    let behind = records.last().map_or(start, |record| record.offset.next());
    let end = i64::try_from(absent_after).ok().and_then(|count| behind.as_i64().checked_add(count));
    let end = end.and_then(Offset::new);
    let end = end.ok_or_else(|| StoreError::Broken("an import has more numbers than there are".into()))?;
    Ok(Chunk {
        assignment: ASSIGNMENT,
        source: Arc::clone(source),
        start,
        end,
        absent_after,
        records,
        polled: None,
        arena,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::AssumeUtc;

    fn rules() -> DecodeRules {
        DecodeRules { tenant_id: "t".into(), assume_utc: AssumeUtc::No, payload_max_len_bytes: 1 << 10 }
    }

    /// An event of that id, time and command.
    fn candidate(id: u8, time: &str, command: &str) -> Candidate {
        let value = format!(
            r#"{{"audit_id":"5b1f0c7e-51d6-4a53-9f0d-0000000000{id:02x}","correlation_id":"a3c0f6c2-7a44-4c62-8d9f-4f0f6f0f9c11","timestamp":"{time}","operation":"o","command":"{command}","actor":"a","status":"Success"}}"#
        );
        let (value, offset) = (value.into_bytes(), Offset::new(1).unwrap());
        let record = LegacyRecord { offset, absent_before: 0, len_bytes: value.len(), value };
        Candidate::read(record, false, &rules())
    }

    /// What becomes of events of (id, time, command) that are in one batch, nothing being stored.
    #[track_caller]
    fn check(events: &[(u8, &str, &str)], expect: &str) {
        let mut candidates: Vec<Candidate> =
            events.iter().map(|(id, time, command)| candidate(*id, time, command)).collect();
        compare_with_each_other(&mut candidates, &mut Room { len_bytes: 10_000, is_over: false }, &rules());
        let found: String = candidates
            .iter()
            .map(|candidate| match candidate.standing {
                Standing::NoEvent => '-',
                Standing::New(..) => 'n',
                Standing::Known => 'k',
                Standing::Conflict(_) => 'c',
            })
            .collect();
        assert_eq!(found, expect, "{events:?}");
    }

    #[test]
    fn repeated_ids_share_a_batch() {
        let (one, other) = ("2026-02-17T09:30:00Z", "2026-02-17T09:30:01Z");
        check(&[(1, one, "a"), (2, one, "a"), (1, one, "a"), (1, one, "b")], "nnkc");
        check(&[(1, one, "a"), (1, other, "a"), (1, one, "a")], "nck");
        let later = "2026-02-19T09:30:00Z";
        check(&[(1, one, "a"), (1, later, "a"), (1, later, "a"), (1, one, "a"), (1, "-", "a")], "nnkk-");
        check(&[(1, "2026-02-17T09:30:00.1234567Z", "a"), (1, "2026-02-17T09:30:00.123457Z", "a")], "nk");
    }

    #[test]
    fn known_events_are_bounded_by_bytes() {
        let again = || candidate(1, "2026-02-17T09:30:00Z", "a");
        let mut candidates = [again(), again(), again()];
        let len_bytes = candidates[0].payload().len();
        for (room_len_bytes, is_over) in [(2 * len_bytes, false), (2 * len_bytes - 1, true)] {
            candidates.iter_mut().for_each(|candidate| *candidate = again());
            let mut room = Room { len_bytes: room_len_bytes, is_over: false };
            compare_with_each_other(&mut candidates, &mut room, &rules());
            assert_eq!(room.is_over, is_over, "{room_len_bytes}");
        }
    }

    #[test]
    fn a_batch_has_no_more_bytes_than_its_limit_and_one_record() {
        let limits = BatchLimits { record_count: 1_000, len_bytes: 4_000 };
        let mut open = Candidates::new(limits);
        let len_bytes = 2 * candidate(1, "2026-02-17T09:30:00Z", "c").record.value.len();
        let mut count = 0;
        while open.has_room() {
            open.push(candidate(1, "2026-02-17T09:30:00Z", "c"));
            count += 1;
        }
        assert_eq!(count, limits.len_bytes.div_ceil(len_bytes));
        assert!(open.take().len() == count && open.has_room());
    }
}
