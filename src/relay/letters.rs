//! Kafka's side of the relay: finds what is in a dead letter topic already, sends the rest, and proves that it is
//! there. Blocking.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use super::plan::{self, Positions, Rebuild};
use crate::failpoint;
use crate::model::dead_letter::{DeadLetterId, DeadLetterRow, LetterFormat, LetterName, OutgoingRecord};
use crate::model::position::{Offset, Partition};
use crate::outlet::{
    Extent, OutletError, OutletSettings, Placement, Position, Producer, Purpose, Reader, Scanned, Topic,
    Topics,
};
use crate::store::{Relayed, WaitingStream};

/// How many records at the end of each partition are looked through before the whole topic is.
const TAIL_COUNT: i64 = 5_000;
/// The smallest record size that is tried on a topic that refuses larger ones.
const LEARNED_MIN_LEN_BYTES: usize = 1_024;

/// What topics turned out not to take, by name.
pub(super) type Refusals = HashMap<String, Refused>;

/// What a topic turned out not to take.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Refused {
    /// Records larger than this, whatever the topic says.
    record_max_len_bytes: Option<usize>,
    /// The records' own timestamps.
    timestamps: bool,
}

/// A source topic, and its dead letter topic.
#[derive(Debug, Clone)]
struct Route {
    letters: Topic,
    /// How many partitions the source has now; 0 when it is gone. Only those can be keys of a position.
    source_partition_count: i32,
}

/// A producer that is in charge, and what is known since it began.
#[derive(Debug)]
struct Charge {
    producer: Producer,
    /// The topics whose limits it was made for.
    routes: HashSet<String>,
    /// By source topic. True as long as the producer is not fenced: nobody else can move them.
    positions: HashMap<String, Positions>,
    /// Other groups whose producers were fenced since.
    fenced: HashSet<String>,
}

/// Which step is under way, and how many were before it: a client of Kafka may never return from one.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<Mutex<(&'static str, u64)>>);

impl Progress {
    fn begin(&self, step: &'static str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (step, state.1 + 1);
    }

    /// The step, and its number.
    pub(super) fn step(&self) -> (&'static str, u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What sends the letters. After an error it is to be dropped, but for [what it has learnt](Self::into_refusals).
#[derive(Debug)]
pub(super) struct Letters {
    settings: OutletSettings,
    format: LetterFormat,
    topics: Topics,
    reader: Reader,
    routes: BTreeMap<String, Route>,
    refused: Refusals,
    charge: Option<Charge>,
    progress: Progress,
}

impl Letters {
    /// Connects to nothing yet, and blocks all the same: librdkafka waits for the threads of a new client, for up to a
    /// minute.
    pub(super) fn new(
        settings: &OutletSettings,
        format: LetterFormat,
        refused: Refusals,
        progress: Progress,
    ) -> Result<Self, OutletError> {
        progress.begin("make the clients");
        failpoint::at("relay_in_clients");
        Ok(Self {
            settings: settings.clone(),
            format,
            topics: Topics::new(settings)?,
            reader: Reader::new(settings)?,
            routes: BTreeMap::new(),
            refused,
            charge: None,
            progress,
        })
    }

    /// What topics refuse; the clients, and what was known of topics and positions, are dropped.
    pub(super) fn into_refusals(self) -> Refusals {
        self.refused
    }

    /// To be asked while another thread works.
    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Whether a producer is held.
    pub(super) const fn is_in_charge(&self) -> bool {
        self.charge.is_some()
    }

    /// Fences every other relay of the group, unless that was done. Returns whether it was done now: then what waits, and
    /// whose it is, must be read again, as another relay may have sent it, or the stream may have changed hands.
    pub(super) fn begin(&mut self, stream: &WaitingStream) -> Result<bool, OutletError> {
        // The topic is made before the producer exists, which is made for its limits.
        self.route(&stream.topic)?;
        if self.charge.as_ref().is_some_and(|charge| charge.routes.contains(&stream.topic)) {
            return Ok(false);
        }
        self.charge = None;
        let topics: Vec<Topic> = self
            .routes
            .values()
            .map(|route| Topic { record_max_len_bytes: self.limit(&route.letters), ..route.letters.clone() })
            .collect();
        self.progress.begin("begin as the transactional producer");
        let producer = Producer::start(&self.settings, Purpose::Relay, &topics)?;
        let transactional_id = self.settings.transactional_id(Purpose::Relay);
        tracing::info!(transactional_id, "relaying dead letters");
        self.charge = Some(Charge {
            producer,
            routes: self.routes.keys().cloned().collect(),
            positions: HashMap::new(),
            fenced: HashSet::new(),
        });
        Ok(true)
    }

    /// Brings `rows` of `stream` into its dead letter topic, each once; to be called after [`Self::begin`]. What it
    /// returns is there.
    pub(super) fn relay(
        &mut self,
        stream: &WaitingStream,
        rows: &[DeadLetterRow],
    ) -> Result<Vec<Relayed>, OutletError> {
        let route = self.route(&stream.topic)?;
        let Some(mut charge) = self.charge.take() else {
            return Err(OutletError::Doubt {
                step: "send the records",
                reason: "no producer has begun".into(),
            });
        };
        let relayed = self.relay_with(&mut charge, stream, &route, rows);
        match &relayed {
            Ok(_) => self.charge = Some(charge),
            Err(OutletError::TooLarge { .. }) => {
                let limit = (self.limit(&route.letters) / 2).max(LEARNED_MIN_LEN_BYTES);
                self.learn(&route, |refused| refused.record_max_len_bytes = Some(limit));
            }
            Err(OutletError::TimestampRefused { .. }) => {
                self.learn(&route, |refused| refused.timestamps = true);
            }
            Err(_) => {}
        }
        relayed
    }

    /// The largest record that a topic takes, as far as is known.
    fn limit(&self, topic: &Topic) -> usize {
        let learned = self.refused.get(&topic.name).and_then(|refused| refused.record_max_len_bytes);
        topic.record_max_len_bytes.min(learned.unwrap_or(usize::MAX))
    }

    fn learn(&mut self, route: &Route, change: impl FnOnce(&mut Refused)) {
        let topic = &route.letters.name;
        let refused = self.refused.entry(topic.clone()).or_default();
        change(refused);
        tracing::warn!(
            topic,
            ?refused,
            "the dead letter topic refused a record; the next ones are made to fit"
        );
    }

    fn route(&mut self, source_topic: &str) -> Result<Route, OutletError> {
        if let Some(route) = self.routes.get(source_topic) {
            return Ok(route.clone());
        }
        self.progress.begin("look the topics up");
        let letters = self.topics.letter_topic(source_topic)?;
        let source_partition_count = self.topics.partition_count(source_topic)?.unwrap_or(0);
        let route = Route { letters, source_partition_count };
        self.routes.insert(source_topic.to_owned(), route.clone());
        Ok(route)
    }

    fn relay_with(
        &self,
        charge: &mut Charge,
        stream: &WaitingStream,
        route: &Route,
        rows: &[DeadLetterRow],
    ) -> Result<Vec<Relayed>, OutletError> {
        let ids: Vec<DeadLetterId> = rows.iter().map(|row| row.id).collect();
        self.learn_positions(charge, stream, route, rows)?;
        let positions = charge.positions.entry(stream.topic.clone()).or_default();
        let unsure: HashSet<DeadLetterId> = plan::unsure(&ids, positions).into_iter().collect();
        let unsure = rows.iter().filter(|row| unsure.contains(&row.id)).map(DeadLetterRow::name).collect();
        let mut relayed = self.find(&route.letters, &unsure)?;
        let found: HashSet<DeadLetterId> = relayed.iter().map(|relayed| relayed.id).collect();
        let missing: Vec<&DeadLetterRow> = rows.iter().filter(|row| !found.contains(&row.id)).collect();
        if missing.is_empty() {
            return Ok(relayed);
        }
        let sent: Vec<DeadLetterId> = missing.iter().map(|row| row.id).collect();
        let next = plan::advanced((stream.stream, stream.handover), positions, &sent, Uuid::new_v4());
        let can_be_key = |partition: &Partition| partition.0 < route.source_partition_count;
        let committed: Positions = next.clone().into_iter().filter(|(key, _)| can_be_key(key)).collect();
        let records = self.records(&route.letters, &missing)?;
        self.progress.begin("send the records");
        let placements =
            charge.producer.transact(&route.letters.name, &records, (&stream.topic, &committed))?;
        let names = missing.iter().map(|row| row.name()).collect();
        self.prove(charge, (stream, &committed), route, &names)?;
        charge.positions.entry(stream.topic.clone()).or_default().extend(next);
        let place = |(id, placement): (DeadLetterId, Placement)| Relayed {
            id,
            partition: placement.partition,
            offset: placement.offset,
        };
        relayed.extend(sent.into_iter().zip(placements).map(place));
        Ok(relayed)
    }

    /// Learns the positions of the partitions of `rows` that are not known yet: the committed ones, or, where there is
    /// none of this stream since it last changed hands, those that the letters in the topic tell. A committed one counts for
    /// no less than what the topic's end tells: the transaction that failed last may have left letters and no position, as
    /// a delayed copy of the commit before it can end it early (KIP-890; librdkafka speaks the older protocol).
    fn learn_positions(
        &self,
        charge: &mut Charge,
        stream: &WaitingStream,
        route: &Route,
        rows: &[DeadLetterRow],
    ) -> Result<(), OutletError> {
        let is_of_now =
            |position: &Position| position.stream == stream.stream && position.handover == stream.handover;
        let known = charge.positions.entry(stream.topic.clone()).or_default();
        known.retain(|_, position| is_of_now(position));
        let partitions: HashSet<Partition> = rows.iter().map(|row| row.id.key.partition).collect();
        let unknown: Vec<Partition> =
            partitions.into_iter().filter(|partition| !known.contains_key(partition)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let keys: Vec<Partition> =
            unknown.iter().copied().filter(|key| key.0 < route.source_partition_count).collect();
        self.progress.begin("read the relay's position");
        let mut committed = charge.producer.positions(&stream.topic, &keys)?;
        committed.retain(|_, position| is_of_now(position));
        let is_gone = unknown.iter().any(|partition| !committed.contains_key(partition));
        // A relay of a group that had the stream before may still be sending it: each group has a transactional.id.
        for group in stream.former_groups.iter().filter(|group| is_gone && **group != self.settings.group) {
            if charge.fenced.insert(group.clone()) {
                self.progress.begin("fence the former group's producer");
                drop(Producer::start(&self.settings.for_group(group), Purpose::Relay, &[])?);
            }
        }
        let group = stream.former_groups.is_empty().then_some(self.settings.group.as_str());
        let mut rebuild = Rebuild::new((stream.stream, stream.handover), group, &unknown);
        self.scan(&route.letters, (!is_gone).then_some(TAIL_COUNT), |scanned| {
            scanned.letter.iter().for_each(|letter| rebuild.see(letter));
        })?;
        let told = rebuild.finish();
        let is_behind = |(partition, told): (&Partition, &Position)| {
            committed.get(partition).map_or(Offset::default(), |position| position.next) < told.next
        };
        if told.iter().any(is_behind) {
            let topic = &stream.topic;
            tracing::warn!(
                topic,
                ?unknown,
                "the relay's position was gone or behind, and is what the letters in the topic tell"
            );
        }
        known.extend(plan::later(committed, told));
        Ok(())
    }

    /// Which of `wanted` are in the topic, and where: looked for at the end of it first.
    fn find(&self, topic: &Topic, wanted: &HashSet<LetterName>) -> Result<Vec<Relayed>, OutletError> {
        let mut found: BTreeMap<DeadLetterId, Relayed> = BTreeMap::new();
        for tail_count in [Some(TAIL_COUNT), None] {
            if found.len() == wanted.len() {
                break;
            }
            let is_whole = self.scan(topic, tail_count, |scanned| {
                if let Some(LetterName { id, .. }) = scanned.letter.filter(|letter| wanted.contains(letter)) {
                    let Placement { partition, offset } = scanned.placement;
                    found.entry(id).or_insert(Relayed { id, partition, offset });
                }
            })?;
            if is_whole {
                break;
            }
        }
        Ok(found.into_values().collect())
    }

    /// Reads the last `tail_count` records of each partition, or all. Returns whether that was all.
    fn scan(
        &self,
        topic: &Topic,
        tail_count: Option<i64>,
        mut each: impl FnMut(Scanned),
    ) -> Result<bool, OutletError> {
        const STEP: &str = "read the dead letter topic";
        self.progress.begin(STEP);
        // Asked again: an operator may have added some since, and another relay sent to them.
        let count = self.topics.partition_count(&topic.name)?.unwrap_or(topic.partition_count);
        let extents = self.reader.extents(&topic.name, count)?;
        let start = |extent: &Extent| {
            let tail = tail_count.and_then(|count| Offset::new(extent.high.as_i64() - count));
            tail.map_or(extent.low, |start| start.max(extent.low))
        };
        let starts: Vec<Offset> = extents.iter().map(start).collect();
        self.reader.scan(&topic.name, &starts, |scanned| {
            self.progress.begin(STEP);
            each(scanned);
        })?;
        Ok(extents.iter().zip(&starts).all(|(extent, start)| extent.low == *start))
    }

    fn records(
        &self,
        topic: &Topic,
        rows: &[&DeadLetterRow],
    ) -> Result<Vec<(Partition, OutgoingRecord)>, OutletError> {
        let refused = self.refused.get(&topic.name).copied().unwrap_or_default();
        let limit = self.limit(topic);
        rows.iter()
            .map(|row| {
                let mut record = row.letter(self.format, limit).ok_or_else(|| OutletError::Doubt {
                    step: "make the records",
                    reason: format!(
                        "{} takes {limit} bytes a record, too few for a dead letter without its value; raise its max.message.bytes",
                        topic.name
                    ),
                })?;
                record.timestamp_ms = record.timestamp_ms.filter(|_| !refused.timestamps);
                Ok((Partition(row.id.key.partition.0.rem_euclid(topic.partition_count)), record))
            })
            .collect()
    }

    /// Reads back that the transaction was committed: by its name in the position, or, where the source topic is gone
    /// and has none, by the letters themselves.
    fn prove(
        &self,
        charge: &Charge,
        (stream, committed): (&WaitingStream, &Positions),
        route: &Route,
        sent: &HashSet<LetterName>,
    ) -> Result<(), OutletError> {
        const STEP: &str = "read the transaction back";
        self.progress.begin(STEP);
        failpoint::at("relay_before_read_back");
        if failpoint::is_on("mutant_no_read_back") {
            return Ok(());
        }
        if committed.is_empty() {
            let found = self.find(&route.letters, sent)?;
            return if found.len() == sent.len() {
                Ok(())
            } else {
                let reason = format!("{} of {} letters are there", found.len(), sent.len());
                Err(OutletError::Doubt { step: STEP, reason })
            };
        }
        let keys: Vec<Partition> = committed.keys().copied().collect();
        let found = charge.producer.positions(&stream.topic, &keys)?;
        if found == *committed {
            Ok(())
        } else {
            Err(OutletError::Doubt { step: STEP, reason: "the committed position is not ours".into() })
        }
    }
}
