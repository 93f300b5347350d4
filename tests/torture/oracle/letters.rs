//! The dead letter topic, as readers of both isolation levels see it.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::Findings;
use super::rows::Rows;

const PATIENCE: Duration = Duration::from_secs(300);

/// How many letters there are.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LetterCounts {
    pub(crate) wanted: u64,
    pub(crate) committed: u64,
    /// What aborted transactions left.
    pub(crate) aborted: u64,
}

/// Each dead letter of the tables once for a `read_committed` reader, and nothing else.
pub(crate) fn check(
    brokers: &str,
    (topic, rows): (&str, &Rows),
    findings: &mut Findings,
) -> anyhow::Result<LetterCounts> {
    let committed = read(brokers, topic, "read_committed")?;
    let everything = read(brokers, topic, "read_uncommitted")?;
    let mut counts: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    committed.iter().for_each(|(_, name)| *counts.entry(*name).or_default() += 1);
    let wanted: HashSet<(usize, usize)> = rows.letters.iter().copied().collect();
    for name in &wanted {
        if !counts.contains_key(name) {
            findings.add("letter_missing", || format!("{name:?} is not in {topic}"));
        }
    }
    for (name, count) in &counts {
        if *count > 1 {
            findings.add("letter_twice", || format!("{name:?} is in {topic} {count} times"));
        }
        if !wanted.contains(name) {
            findings.add("letter_unwanted", || format!("{name:?} is in {topic}, and no dead letter"));
        }
    }
    let places: HashSet<(i32, i64)> = everything.iter().map(|(place, _)| *place).collect();
    for (place, name) in &committed {
        if !places.contains(place) {
            findings.add("letter_of_one_level", || format!("{name:?} is missing for read_uncommitted"));
        }
    }
    Ok(LetterCounts {
        wanted: u64::try_from(wanted.len())?,
        committed: u64::try_from(committed.len())?,
        aborted: u64::try_from(everything.len().saturating_sub(committed.len()))?,
    })
}

type Letter = ((i32, i64), (usize, usize));

/// Place and name (source partition and offset) of each letter.
fn read(brokers: &str, topic: &str, isolation_level: &str) -> anyhow::Result<Vec<Letter>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "torture-oracle")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation_level)
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(20))?;
    let partitions = metadata.topics().first().context("no dead letter topic")?.partitions();
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let (mut letters, mut ended) = (Vec::new(), HashSet::new());
    let deadline = Instant::now() + PATIENCE;
    while ended.len() < partitions.len() {
        if Instant::now() > deadline {
            bail!("{topic} has no end");
        }
        match consumer.poll(Duration::from_secs(1)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
            // librdkafka goes on trying.
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure,
            ))) => {}
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(message)) => {
                let name = name_of(&message)?;
                letters.push(((message.partition(), message.offset()), name));
            }
        }
    }
    Ok(letters)
}

fn name_of(message: &impl Message) -> anyhow::Result<(usize, usize)> {
    let headers = message.headers().context("a letter without headers")?;
    let id = headers.iter().filter(|header| header.key == "dlq.id").last().and_then(|header| header.value);
    let id = std::str::from_utf8(id.context("a letter without dlq.id")?)?;
    let mut parts = id.rsplit(':');
    let offset = parts.next().context("dlq.id")?.parse()?;
    Ok((parts.next().context("dlq.id")?.parse()?, offset))
}
