//! Kafka in memory: the log of one topic, and a group whose partitions move one by one (cooperative).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use audit_consumer::model::position::{Offset, Partition, StreamId, StreamPartition, TopicPartition};
use tokio::time::{Duration, Instant};
use uuid::Uuid;

use crate::rng::Rng;

pub(crate) const TOPIC: &str = "audit";
pub(crate) const CLUSTER: &str = "cluster";
const TOPIC_ID: Uuid = Uuid::from_u128(0x7090);
/// How long a member may be silent.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// What an offset of the log holds.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) kind: RecordKind,
    /// Which event; the same for a duplicate and its original.
    pub(crate) identity: usize,
    pub(crate) payload: Arc<[u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// A valid event, or the same once more.
    Valid,
    /// An event with the id and time of another, and other content.
    Conflict,
    /// Not JSON.
    Poison,
    /// An event that only PostgreSQL refuses.
    Refused,
}

/// A partition's log. Offsets without a record were compacted, or are control records.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) entries: Vec<Option<Record>>,
    pub(crate) low: i64,
}

impl Log {
    pub(crate) fn end(&self) -> i64 {
        self.entries.len() as i64
    }

    pub(crate) fn record(&self, offset: i64) -> Option<&Record> {
        self.entries.get(offset as usize)?.as_ref()
    }
}

#[derive(Debug)]
pub(crate) struct Member {
    last_seen: Instant,
    /// It was given up; it has to be told.
    pub(crate) is_expelled: bool,
}

#[derive(Debug)]
pub(crate) struct Kafka {
    pub(crate) logs: Vec<Log>,
    /// The group's committed offsets.
    pub(crate) mirror: Vec<Option<i64>>,
    /// Which processes reach the brokers.
    pub(crate) is_reachable: Vec<bool>,
    pub(crate) members: BTreeMap<u8, Member>,
    pub(crate) owners: Vec<Option<u8>>,
    pub(crate) targets: Vec<Option<u8>>,
    next_identity: usize,
    /// Where the original of a duplicate may be found.
    originals: Vec<Record>,
}

impl Kafka {
    pub(crate) fn new(partition_count: usize, process_count: usize) -> Self {
        Self {
            logs: (0..partition_count).map(|_| Log::default()).collect(),
            mirror: vec![None; partition_count],
            is_reachable: vec![true; process_count],
            members: BTreeMap::new(),
            owners: vec![None; partition_count],
            targets: vec![None; partition_count],
            next_identity: 0,
            originals: Vec::new(),
        }
    }

    /// Appends one offset.
    pub(crate) fn produce(&mut self, partition: usize, rng: &mut Rng) {
        let dice = rng.below(100);
        let entry = match dice {
            0..4 => None,
            4..12 if !self.originals.is_empty() => {
                let original = &self.originals[rng.below(self.originals.len() as u64) as usize];
                Some(original.clone())
            }
            12..15 if !self.originals.is_empty() => {
                let original = &self.originals[rng.below(self.originals.len() as u64) as usize];
                let payload = payload(original.identity, "other");
                Some(Record { kind: RecordKind::Conflict, identity: original.identity, payload })
            }
            15..19 => Some(self.fresh(RecordKind::Poison)),
            19..22 => Some(self.fresh(RecordKind::Refused)),
            _ => {
                let record = self.fresh(RecordKind::Valid);
                self.originals.push(record.clone());
                Some(record)
            }
        };
        self.logs[partition].entries.push(entry);
    }

    fn fresh(&mut self, kind: RecordKind) -> Record {
        let identity = self.next_identity;
        self.next_identity += 1;
        let payload = match kind {
            RecordKind::Poison => Arc::from(format!("poison {identity}").into_bytes()),
            RecordKind::Valid | RecordKind::Conflict | RecordKind::Refused => payload(identity, "one"),
        };
        Record { kind, identity, payload }
    }

    /// A new member: whatever it had before is free.
    pub(crate) fn join(&mut self, process: u8, now: Instant) {
        self.leave(process);
        self.members.insert(process, Member { last_seen: now, is_expelled: false });
    }

    /// The member has left, or is given up: whatever it had is free.
    pub(crate) fn leave(&mut self, process: u8) {
        self.members.remove(&process);
        self.owners.iter_mut().filter(|owner| **owner == Some(process)).for_each(|owner| *owner = None);
    }

    /// Notes who lives; gives up who was silent for too long. Returns whether anybody was.
    pub(crate) fn heartbeats(&mut self, living: &[u8], now: Instant) -> bool {
        let mut has_changed = false;
        for (process, member) in &mut self.members {
            if living.contains(process) && self.is_reachable[usize::from(*process)] {
                member.last_seen = now;
            } else if now.duration_since(member.last_seen) >= SESSION_TIMEOUT && !member.is_expelled {
                member.is_expelled = true;
                has_changed = true;
                for owner in self.owners.iter_mut().filter(|owner| **owner == Some(*process)) {
                    *owner = None;
                }
            }
        }
        has_changed
    }

    /// Gives each partition to some member.
    pub(crate) fn rebalance(&mut self, rng: &mut Rng) {
        let members: Vec<u8> = self
            .members
            .iter()
            .filter(|(_, member)| !member.is_expelled)
            .map(|(process, _)| *process)
            .collect();
        let shift = rng.below(8) as usize;
        for (index, target) in self.targets.iter_mut().enumerate() {
            *target = (!members.is_empty()).then(|| members[(index + shift) % members.len()]);
        }
    }

    /// What `process` has to give back.
    pub(crate) fn to_give_back(&self, process: u8) -> BTreeSet<usize> {
        let is_mine =
            |index: &usize| self.owners[*index] == Some(process) && self.targets[*index] != Some(process);
        (0..self.owners.len()).filter(is_mine).collect()
    }

    /// What is free and meant for `process`.
    pub(crate) fn to_take(&self, process: u8) -> BTreeSet<usize> {
        let is_mine = |index: &usize| self.owners[*index].is_none() && self.targets[*index] == Some(process);
        (0..self.owners.len()).filter(is_mine).collect()
    }
}

pub(crate) fn stream() -> StreamId {
    StreamId::of(CLUSTER, TOPIC, TOPIC_ID)
}

pub(crate) const fn topic_id() -> Uuid {
    TOPIC_ID
}

pub(crate) fn key(partition: usize) -> StreamPartition {
    StreamPartition { stream: stream(), partition: Partition(partition as i32) }
}

pub(crate) fn source(partition: usize) -> Arc<TopicPartition> {
    Arc::new(TopicPartition { topic: TOPIC.into(), partition: Partition(partition as i32) })
}

pub(crate) fn at(offset: i64) -> Offset {
    Offset::new(offset).expect("an offset of the log")
}

/// The id of the event with that identity.
pub(crate) fn audit_id(identity: usize) -> Uuid {
    Uuid::from_u128((0xe0e0 << 64) | identity as u128)
}

fn payload(identity: usize, command: &str) -> Arc<[u8]> {
    let mut text = String::with_capacity(512);
    write!(
        text,
        "{{\"audit_id\":\"{}\",\"correlation_id\":\"{}\",\"timestamp\":\"2026-01-31T12:00:00Z\",\
         \"operation\":\"o\",\"command\":\"{command}\",\"actor\":\"a\",\"status\":\"Success\",\
         \"result_signature\":\"200\",\"client_app\":\"c\",\"federated_source\":\"local\",\
         \"bypass_llm\":false,\"trust_score\":0.5,\"purview_compatible\":true,\"metadata\":{{}},\
         \"caller_ip_address\":\"10.0.0.1\",\"schema_version\":\"2.0\",\"tenant_id\":\"t\"}}",
        audit_id(identity),
        audit_id(identity)
    )
    .expect("write to a string");
    Arc::from(text.into_bytes())
}
