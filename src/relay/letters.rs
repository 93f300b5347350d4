//! Kafka's side of the relay: finds what is in a dead letter topic already, sends the rest, and proves that it is
//! there. Blocking.

use std::collections::{BTreeMap, HashMap, HashSet};

use uuid::Uuid;

use super::plan::{self, Positions};
use crate::failpoint;
use crate::model::dead_letter::{DeadLetterId, DeadLetterRow, LetterFormat, LetterName, OutgoingRecord};
use crate::model::position::{Offset, Partition};
use crate::outlet::{
    Extent, OutletError, OutletSettings, Placement, Producer, Purpose, Reader, Scanned, Topic, Topics,
};
use crate::store::{Relayed, WaitingStream};

/// How many records at the end of each partition are looked through before the whole topic is.
const TAIL_COUNT: i64 = 5_000;
/// The smallest record size that is tried on a topic that refuses larger ones.
const LEARNED_MIN_LEN_BYTES: usize = 1_024;

/// What a topic turned out not to take.
#[derive(Debug, Clone, Copy, Default)]
struct Refused {
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
}

/// What sends the letters. After an error but for what it learns from it, it is to be [reset](Self::reset).
#[derive(Debug)]
pub(super) struct Letters {
    settings: OutletSettings,
    format: LetterFormat,
    topics: Topics,
    reader: Reader,
    routes: BTreeMap<String, Route>,
    refused: HashMap<String, Refused>,
    charge: Option<Charge>,
}

impl Letters {
    /// Connects to nothing yet.
    pub(super) fn new(settings: &OutletSettings, format: LetterFormat) -> Result<Self, OutletError> {
        Ok(Self {
            settings: settings.clone(),
            format,
            topics: Topics::new(settings)?,
            reader: Reader::new(settings)?,
            routes: BTreeMap::new(),
            refused: HashMap::new(),
            charge: None,
        })
    }

    /// Drops the producer and what was known of topics and positions. What topics refuse is kept.
    pub(super) fn reset(&mut self) {
        self.charge = None;
        self.routes.clear();
    }

    /// Whether a producer is held.
    pub(super) const fn is_in_charge(&self) -> bool {
        self.charge.is_some()
    }

    /// Brings `rows` of `stream` into its dead letter topic, each once. What it returns is there.
    ///
    /// The order matters: the topic is made before the producer exists; the producer has fenced every other one before
    /// the position is read; whoever sends after that fences us, and our transaction fails.
    pub(super) fn relay(
        &mut self,
        stream: &WaitingStream,
        rows: &[DeadLetterRow],
    ) -> Result<Vec<Relayed>, OutletError> {
        let route = self.route(&stream.topic)?;
        let mut charge = self.take_charge(&stream.topic)?;
        let relayed = self.relay_with(&mut charge, stream, &route, rows);
        match &relayed {
            Ok(_) => self.charge = Some(charge),
            Err(OutletError::TooLarge { .. }) => self.learn(&route, |refused, limit| {
                let limit = refused.record_max_len_bytes.unwrap_or(limit);
                refused.record_max_len_bytes = Some((limit / 2).max(LEARNED_MIN_LEN_BYTES));
            }),
            Err(OutletError::TimestampRefused { .. }) => {
                self.learn(&route, |refused, _limit| refused.timestamps = true);
            }
            Err(_) => {}
        }
        relayed
    }

    fn learn(&mut self, route: &Route, change: impl FnOnce(&mut Refused, usize)) {
        let topic = &route.letters.name;
        let refused = self.refused.entry(topic.clone()).or_default();
        change(refused, route.letters.record_max_len_bytes);
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
        let letters = self.topics.letter_topic(source_topic)?;
        let source_partition_count = self.topics.partition_count(source_topic)?.unwrap_or(0);
        let route = Route { letters, source_partition_count };
        self.routes.insert(source_topic.to_owned(), route.clone());
        Ok(route)
    }

    /// The producer in charge; a new one when there is none, or it was made before this topic was known.
    fn take_charge(&mut self, source_topic: &str) -> Result<Charge, OutletError> {
        if let Some(charge) = self.charge.take()
            && charge.routes.contains(source_topic)
        {
            return Ok(charge);
        }
        let topics: Vec<Topic> = self.routes.values().map(|route| route.letters.clone()).collect();
        let producer = Producer::start(&self.settings, Purpose::Relay, &topics)?;
        tracing::info!(
            transactional_id = self.settings.transactional_id(Purpose::Relay),
            "relaying dead letters"
        );
        Ok(Charge { producer, routes: self.routes.keys().cloned().collect(), positions: HashMap::new() })
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
        let next = plan::advanced(stream.stream, positions, &sent, Uuid::new_v4());
        let can_be_key = |partition: &Partition| partition.0 < route.source_partition_count;
        let committed: Positions = next.clone().into_iter().filter(|(key, _)| can_be_key(key)).collect();
        let records = self.records(&route.letters, &missing)?;
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

    /// Learns the positions of the partitions of `ids` that are not known yet: the committed ones, or, where there is
    /// none of this stream, those that the letters in the topic tell.
    fn learn_positions(
        &self,
        charge: &mut Charge,
        stream: &WaitingStream,
        route: &Route,
        rows: &[DeadLetterRow],
    ) -> Result<(), OutletError> {
        let known = charge.positions.entry(stream.topic.clone()).or_default();
        // Those of another incarnation of the topic say nothing of this one.
        known.retain(|_, position| position.stream == stream.stream);
        let partitions: HashSet<Partition> = rows.iter().map(|row| row.id.key.partition).collect();
        let mut unknown: Vec<Partition> =
            partitions.into_iter().filter(|partition| !known.contains_key(partition)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let keys: Vec<Partition> =
            unknown.iter().copied().filter(|key| key.0 < route.source_partition_count).collect();
        let committed = charge.producer.positions(&stream.topic, &keys)?;
        known.extend(committed.into_iter().filter(|(_, position)| position.stream == stream.stream));
        unknown.retain(|partition| !known.contains_key(partition));
        if unknown.is_empty() {
            return Ok(());
        }
        let mut found = Vec::new();
        self.scan(&route.letters, None, |scanned| found.extend(scanned.letter))?;
        for partition in unknown {
            let is_handed_over =
                |row: &DeadLetterRow| row.id.key.partition == partition && row.group != self.settings.group;
            let group = (!rows.iter().any(is_handed_over)).then_some(self.settings.group.as_str());
            let position = plan::rebuilt((stream.stream, partition), group, found.iter());
            if position.next > Offset::default() {
                tracing::warn!(topic = stream.topic, %partition, next = %position.next, "the relay's position was gone, and is rebuilt from the letters");
            }
            known.insert(partition, position);
        }
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
        each: impl FnMut(Scanned),
    ) -> Result<bool, OutletError> {
        let extents = self.reader.extents(&topic.name, topic.partition_count)?;
        let start = |extent: &Extent| {
            let tail = tail_count.and_then(|count| Offset::new(extent.high.as_i64() - count));
            tail.map_or(extent.low, |start| start.max(extent.low))
        };
        let starts: Vec<Offset> = extents.iter().map(start).collect();
        self.reader.scan(&topic.name, &starts, each)?;
        Ok(extents.iter().zip(&starts).all(|(extent, start)| extent.low == *start))
    }

    fn records(
        &self,
        topic: &Topic,
        rows: &[&DeadLetterRow],
    ) -> Result<Vec<(Partition, OutgoingRecord)>, OutletError> {
        let refused = self.refused.get(&topic.name).copied().unwrap_or_default();
        let limit = topic.record_max_len_bytes.min(refused.record_max_len_bytes.unwrap_or(usize::MAX));
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
        failpoint::at("relay_before_read_back");
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
