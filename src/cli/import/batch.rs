//! Records of an import on their way into a batch.
//!
//! A record may tell an event that is stored already, in a form that lacks some of it. So before a batch is built the
//! events of its ids are looked up, and a record that agrees with the stored event takes that event's own content: the
//! commit then finds the same content and counts a duplicate. What does not agree goes as it is, and is found to be a
//! conflict. The look-up decides nothing: what is stored between it and the commit is found by the commit, which then
//! either starts again with another look-up (the direct path) or, in the moment between that and the merge, takes a poorer
//! form for a conflict: a dead letter more, never a row more and none less.
//!
//! A batch holds no id twice, so that a record which repeats an event of this import finds it stored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use uuid::Uuid;

use crate::model::batch::{Batch, BatchBuilder, BatchLimits};
use crate::model::decode::{DecodeRules, decode};
use crate::model::event::Timestamp;
use crate::model::federated::FederatedSources;
use crate::model::legacy::{Legacy, LegacyRecord, read_line, read_row};
use crate::model::position::{Offset, TopicPartition};
use crate::model::projection::{LineFormat, Projection, ProjectionRules};
use crate::model::record::{AssignmentId, Chunk, Record};
use crate::pipeline::decode_record;
use crate::store::{Claim, Session, StoreError};

/// The one assignment of an import.
const ASSIGNMENT: AssignmentId = AssignmentId(1);

/// What is known of a record before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is no event.
    NoEvent,
    /// No event of its id and time is stored.
    New(Uuid, Timestamp),
    /// It tells a stored event.
    Stored,
    /// It says something else than the stored event.
    Conflict,
}

/// A record, read.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) record: LegacyRecord,
    pub(super) standing: Standing,
    /// The id and time, when it is an event.
    event: Option<(Uuid, Timestamp)>,
    legacy: Legacy<'static>,
    /// The stored event that it tells, as a producer would write it.
    stored: Option<Vec<u8>>,
}

impl Candidate {
    pub(super) fn read(record: LegacyRecord, is_row: bool, rules: &DecodeRules) -> Self {
        let legacy = if is_row { read_row(&record.value) } else { read_line(&record.value) }.into_owned();
        let event = decode(Some(&legacy.payload), rules).ok().map(|event| (event.audit_id, event.timestamp));
        let standing = event.map_or(Standing::NoEvent, |(audit_id, time)| Standing::New(audit_id, time));
        Self { record, standing, event, legacy, stored: None }
    }

    /// What is decoded and stored.
    fn payload(&self) -> &[u8] {
        self.stored.as_deref().unwrap_or(&self.legacy.payload)
    }

    /// Compares it with a stored event of its id; one that agrees wins over one that does not.
    fn compare(&mut self, (time, stored): &(Timestamp, Vec<u8>), rules: &DecodeRules) {
        let Some((_, own_time)) = self.event else { return };
        if self.standing == Standing::Stored || !Legacy::is_time_of(own_time, *time) {
            return;
        }
        let told = decode(Some(&self.legacy.payload), rules);
        let (Ok(told), Ok(event)) = (told, decode(Some(stored), rules)) else { return };
        if self.legacy.agrees(&told, &event, &rules.tenant_id) {
            self.standing = Standing::Stored;
            self.stored = Some(stored.clone());
        } else {
            self.standing = Standing::Conflict;
        }
    }
}

/// Records that go into one batch.
#[derive(Debug)]
pub(super) struct Candidates {
    limits: BatchLimits,
    records: Vec<Candidate>,
    ids: HashSet<Uuid>,
    len_bytes: usize,
}

impl Candidates {
    pub(super) fn new(limits: BatchLimits) -> Self {
        Self { limits, records: Vec::new(), ids: HashSet::new(), len_bytes: 0 }
    }

    /// Whether `candidate` may join those here.
    pub(super) fn has_room_for(&self, candidate: &Candidate) -> bool {
        let is_repeated = candidate.event.is_some_and(|(audit_id, _)| self.ids.contains(&audit_id));
        !is_repeated
            && self.records.len() < self.limits.record_count
            && self.len_bytes < self.limits.len_bytes
    }

    pub(super) fn push(&mut self, candidate: Candidate) {
        self.ids.extend(candidate.event.map(|(audit_id, _)| audit_id));
        self.len_bytes += candidate.legacy.payload.len() + candidate.record.value.len();
        self.records.push(candidate);
    }

    pub(super) fn take(&mut self) -> Vec<Candidate> {
        self.ids.clear();
        self.len_bytes = 0;
        std::mem::take(&mut self.records)
    }
}

/// Looks the events of `candidates` up, and notes which of them are stored.
///
/// # Errors
/// See [`StoreError`].
pub(super) async fn look_up(
    session: &mut Session,
    candidates: &mut [Candidate],
    rules: &DecodeRules,
) -> Result<(), StoreError> {
    let events: Vec<(Uuid, Timestamp)> = candidates.iter().filter_map(|candidate| candidate.event).collect();
    let (first, last) =
        (events.iter().map(|(_, time)| time).min(), events.iter().map(|(_, time)| time).max());
    let (Some(first), Some(last)) = (first, last) else { return Ok(()) };
    // One microsecond more at each end, as far as there is time.
    let moved = |time: Timestamp, micros: i64| {
        time.as_unix_micros().checked_add(micros).and_then(Timestamp::from_unix_micros).unwrap_or(time)
    };
    let range = (moved(*first, -1), moved(*last, 1));
    let ids: Vec<Uuid> = events.iter().map(|(audit_id, _)| *audit_id).collect();
    let mut stored: HashMap<Uuid, Vec<(Timestamp, Vec<u8>)>> = HashMap::new();
    let projection = ProjectionRules::default();
    session
        .for_each_stored(&ids, range, |row| {
            let mut line = String::new();
            Projection::Events.write_line(row, &projection, LineFormat::JsonLines, &mut line);
            stored.entry(row.audit_id).or_default().push((row.timestamp, line.into_bytes()));
        })
        .await?;
    for candidate in candidates {
        let found = candidate.event.and_then(|(audit_id, _)| stored.get(&audit_id));
        candidate.stored = None;
        if let Some((audit_id, time)) = candidate.event {
            candidate.standing = Standing::New(audit_id, time);
        }
        found.into_iter().flatten().for_each(|event| candidate.compare(event, rules));
    }
    Ok(())
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
    let mut payloads = candidates.iter().map(Candidate::payload);
    let pushed = builder.push(&chunk, claim.key, claim.epoch, |record, rows| {
        let payload = payloads.next().unwrap_or_default();
        decode_record((Some(payload), record.offset), (claim.key, rules, sources), rows)
    });
    pushed.map_err(|gap| StoreError::Broken(format!("a batch of an import is not continuous: {gap:?}")))?;
    Ok(builder.take())
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
    Ok(Chunk { assignment: ASSIGNMENT, source: Arc::clone(source), start, end, absent_after, records, arena })
}
