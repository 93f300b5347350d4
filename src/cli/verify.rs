//! `verify`: the account, proven from PostgreSQL and Kafka. Changes nothing.

mod letters;
mod projections;
mod records;
mod shown;
mod spool;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use indicatif::ProgressBar;
use serde_json::json;

use self::letters::Letters;
use self::projections::Projections;
use self::records::{Comparing, Records, Stored};
use self::spool::SpoolView;
use super::ExitStatus;
use crate::config::KafkaProperties;
use crate::model::decode::DecodeRules;
use crate::model::position::{
    Offset, OffsetRange, Partition, StreamId, StreamPartition, TopicPartition, is_import,
};
use crate::outlet::{OutletSettings, Topics};
use crate::source::Lookup;
use crate::store::{
    Account, AccountScope, Finding, FindingCode, PartitionAccount, SessionPurpose, StoreError, StoreSettings,
};

/// What to verify.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct VerifyArgs {
    /// Write one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
    /// Verify only this consumer group
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Verify only this topic
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// Do not compare positions, records and dead letters with Kafka
    #[arg(long)]
    pub no_kafka: bool,
    /// Compare about so many records with their rows, spread over all partitions, and not every one that Kafka still has
    #[arg(long, value_name = "COUNT", conflicts_with = "no_kafka")]
    pub sample: Option<u64>,
}

/// Kafka's watermarks of a stream's partition, or why there are none to compare with.
type Watermarks = Result<(Offset, Offset), Unseen>;

/// Why a stream's partition can't be compared with Kafka.
#[derive(Debug)]
pub(super) struct Unseen {
    why: String,
    /// The cluster that has said that it has nothing of the stream: if it is the stream's own, there is nothing to
    /// compare.
    gone_from: Option<String>,
}

/// What Kafka said.
#[derive(Debug)]
enum KafkaAnswer {
    /// It was not asked.
    NotAsked,
    /// It did not answer, and why.
    Silent(String),
    /// By partition; each that has a position is there.
    Watermarks(HashMap<StreamPartition, Watermarks>),
}

/// The account and what it proves.
#[derive(Debug)]
struct Report {
    account: Account,
    /// The id of each stream's cluster.
    clusters: HashMap<StreamId, String>,
    kafka: KafkaAnswer,
    records: Records,
    letters: Letters,
    spool: SpoolView,
    projections: Projections,
    /// By the partition's place in the account.
    findings: Vec<(usize, Finding)>,
}

/// What the account is compared with.
#[derive(Debug, Clone, Copy)]
pub struct Edges<'a> {
    /// How to reach Kafka.
    pub kafka_properties: &'a KafkaProperties,
    /// How records are decoded.
    pub rules: &'a DecodeRules,
    /// `SPOOL_DIR`, unless there is none.
    pub spool_dir: Option<&'a Path>,
    /// `LOG_DIR`.
    pub log_dir: &'a Path,
}

/// Verifies the account and writes it to `out`. [`ExitStatus::Findings`] when it does not hold,
/// [`ExitStatus::Unreachable`] when PostgreSQL can't tell or has nothing in scope, or when it holds and something that was
/// to be compared could not be.
///
/// # Errors
/// What `out` reports, and a worker thread that died.
pub async fn run(
    args: &VerifyArgs,
    store: &StoreSettings,
    edges: Edges<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let progress = super::spinner("counting rows");
    let outcome = report(args, store, edges, &progress).await;
    progress.finish_and_clear();
    let report = match outcome? {
        Ok(report) => report,
        Err(error) => return could_not_verify(args, (error.class(), &error.to_string()), out),
    };
    // A misspelt name must not pass for an account that holds.
    let is_narrowed = args.group.is_some() || args.topic.is_some();
    if is_narrowed && report.account.partitions.is_empty() {
        return could_not_verify(args, ("nothing_there", "no position and no row is in that scope"), out);
    }
    if args.json {
        writeln!(out, "{:#}", report.to_json())?;
    } else {
        report.write_tables(out)?;
    }
    Ok(match report.verdict() {
        Some(true) => ExitStatus::Success,
        Some(false) => ExitStatus::Findings,
        None => ExitStatus::Unreachable,
    })
}

fn could_not_verify(
    args: &VerifyArgs,
    (class, text): (&str, &str),
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    if args.json {
        writeln!(out, "{:#}", json!({"ok": null, "error": {"class": class, "text": text}}))?;
    } else {
        writeln!(out, "could not verify: {text}")?;
    }
    Ok(ExitStatus::Unreachable)
}

async fn report(
    args: &VerifyArgs,
    store: &StoreSettings,
    edges: Edges<'_>,
    progress: &ProgressBar,
) -> anyhow::Result<Result<Report, StoreError>> {
    let scope = AccountScope { group: args.group.clone(), topic: args.topic.clone() };
    let (account, clusters) = match read_account(store, &scope).await {
        Ok(read) => read,
        Err(error) => return Ok(Err(error)),
    };
    // After the snapshot, so that Kafka's ends can only be further on than the positions, and outside of the
    // transaction, so that a silent broker holds nothing up in the database.
    let kafka = if args.no_kafka {
        KafkaAnswer::NotAsked
    } else {
        let (properties, sources) = (edges.kafka_properties.clone(), sources_of(&account));
        tokio::task::spawn_blocking(move || ask_kafka(&properties, &sources)).await?
    };
    let records = match compare_records(args, store, edges, (&account, &kafka), progress).await? {
        Ok(records) => records,
        Err(error) => return Ok(Err(error)),
    };
    let letters = if matches!(kafka, KafkaAnswer::Watermarks(_)) {
        let outlet = OutletSettings::new(edges.kafka_properties.clone(), &store.group);
        match Letters::compare(&account, store, &outlet).await? {
            Ok(letters) => letters,
            Err(error) => return Ok(Err(error)),
        }
    } else {
        Letters::default()
    };
    let spool = match SpoolView::compare(edges.spool_dir, &account, store).await {
        Ok(spool) => spool,
        Err(error) => return Ok(Err(error)),
    };
    let mut report = Report::new((account, clusters), kafka, (records, letters, spool));
    // Day files are of all groups and topics.
    if args.group.is_none() && args.topic.is_none() {
        match Projections::compare(store, edges.log_dir).await {
            Ok(projections) => report.projections = projections,
            Err(error) => return Ok(Err(error)),
        }
    }
    // A daemon may have read on before Kafka deleted what was still ahead in the snapshot: look again.
    if report.findings.iter().any(|(_, finding)| finding.code == FindingCode::RecordsDeleted) {
        match read_positions(store).await {
            Ok(now) => report.forget_outrun(&now),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(report))
}

/// Compares what Kafka still has below the positions.
async fn compare_records(
    args: &VerifyArgs,
    store: &StoreSettings,
    edges: Edges<'_>,
    (account, kafka): (&Account, &KafkaAnswer),
    progress: &ProgressBar,
) -> anyhow::Result<Result<Records, StoreError>> {
    let (KafkaAnswer::Watermarks(answers), false) = (kafka, args.sample == Some(0)) else {
        return Ok(Ok(Records::default()));
    };
    let topics: BTreeSet<String> =
        account.partitions.iter().map(|partition| partition.topic.clone()).collect();
    let outlet = OutletSettings::new(edges.kafka_properties.clone(), &store.group);
    let compacted = tokio::task::spawn_blocking(move || {
        let asked = Topics::new(&outlet);
        let is_compacted = |topic: &String| asked.as_ref().ok()?.is_compacted(topic).ok()?;
        topics.into_iter().map(|topic| (is_compacted(&topic) != Some(false), topic)).collect::<Vec<_>>()
    });
    let compacted: HashSet<String> = compacted
        .await?
        .into_iter()
        .filter_map(|(is_compacted, topic)| is_compacted.then_some(topic))
        .collect();
    let stored = account.partitions.iter().filter_map(|partition| {
        let (low, end) = answers.get(&partition.key)?.as_ref().ok().copied()?;
        let position = partition.position.as_ref()?;
        let start = low.max(Offset::new(position.first)?);
        let range = OffsetRange::new(start, end.min(Offset::new(position.next)?))?;
        Some(Stored {
            key: partition.key,
            source: Arc::new(TopicPartition {
                topic: partition.topic.as_str().into(),
                partition: partition.key.partition,
            }),
            range,
            is_thinned: partition.stored.dropped > 0,
            is_compacted: compacted.contains(&partition.topic),
        })
    });
    let how = Comparing {
        store,
        kafka_properties: edges.kafka_properties,
        rules: edges.rules,
        sample: args.sample,
    };
    Records::compare(stored.collect(), how, progress).await
}

/// The account, and the id of each stream's cluster.
async fn read_account(
    store: &StoreSettings,
    scope: &AccountScope,
) -> Result<(Account, HashMap<StreamId, String>), StoreError> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let account = session.account(scope).await?;
    let streams = session.streams().await?;
    session.close().await;
    let clusters = streams.into_iter().map(|stream| (stream.stream, stream.cluster_id));
    Ok((account, clusters.collect()))
}

async fn read_positions(store: &StoreSettings) -> Result<HashMap<StreamPartition, Offset>, StoreError> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let rows = session.offset_rows().await?;
    session.close().await;
    Ok(rows.into_iter().map(|row| (row.key, row.next)).collect())
}

/// The partitions with a position of streams that are in use and have a topic, by topic.
fn sources_of(account: &Account) -> BTreeMap<String, HashSet<StreamPartition>> {
    let mut sources: BTreeMap<String, HashSet<StreamPartition>> = BTreeMap::new();
    for partition in &account.partitions {
        if partition.position.is_some() && !partition.is_retired && !is_import(&partition.topic) {
            sources.entry(partition.topic.clone()).or_default().insert(partition.key);
        }
    }
    sources
}

fn ask_kafka(
    properties: &KafkaProperties,
    sources: &BTreeMap<String, HashSet<StreamPartition>>,
) -> KafkaAnswer {
    let asked = Lookup::new(properties).and_then(|lookup| Ok((lookup.topics()?, lookup)));
    let mut lookup = match asked {
        Ok((_, lookup)) => lookup,
        Err(error) => return KafkaAnswer::Silent(error.to_string()),
    };
    KafkaAnswer::Watermarks(watermarks(&mut lookup, sources))
}

/// The watermarks of `sources` where Kafka still has the same stream: those of a topic that was created again
/// say nothing of positions in the old one. Blocking.
pub(super) fn watermarks(
    lookup: &mut Lookup,
    sources: &BTreeMap<String, HashSet<StreamPartition>>,
) -> HashMap<StreamPartition, Watermarks> {
    let mut answers = HashMap::new();
    for (topic, keys) in sources {
        let partitions: HashSet<Partition> = keys.iter().map(|key| key.partition).collect();
        let partitions: Vec<Partition> = partitions.into_iter().collect();
        let described = lookup.describe_partitions(topic, &partitions);
        let is_missing = described.values().any(Result::is_err) && lookup.is_missing(topic);
        let gone_from = lookup.cluster_id().filter(|_| is_missing).map(str::to_owned);
        for key in keys {
            let answer = match described.get(&key.partition) {
                Some(Ok(found)) if StreamId::of(&found.cluster_id, topic, found.topic_id) == key.stream => {
                    Ok((found.low, found.high))
                }
                Some(Ok(found)) => {
                    let why = "kafka has another topic under this name; see `offsets adopt`".to_owned();
                    Err(Unseen { why, gone_from: Some(found.cluster_id.to_string()) })
                }
                Some(Err(why)) => Err(Unseen { why: why.clone(), gone_from: gone_from.clone() }),
                None => Err(Unseen { why: "kafka said nothing of it".to_owned(), gone_from: None }),
            };
            answers.insert(*key, answer);
        }
    }
    answers
}

impl Report {
    fn new(
        (account, clusters): (Account, HashMap<StreamId, String>),
        kafka: KafkaAnswer,
        (records, letters, spool): (Records, Letters, SpoolView),
    ) -> Self {
        let projections = Projections::default();
        let findings = Vec::new();
        let mut report = Self { account, clusters, kafka, records, letters, spool, projections, findings };
        let mut findings = Vec::new();
        for (index, partition) in report.account.partitions.iter().enumerate() {
            findings.extend(partition.findings().into_iter().map(|finding| (index, finding)));
            if let Some((low, end)) = report.watermarks(partition) {
                let in_kafka = partition.findings_in_kafka(low, end);
                findings.extend(in_kafka.into_iter().map(|finding| (index, finding)));
            }
            let of_others = report.letters.findings.iter().chain(&report.spool.findings).cloned();
            let of_others = of_others.chain(report.records.findings());
            let of_others = of_others.filter(|(key, _)| *key == partition.key);
            findings.extend(of_others.map(|(_, finding)| (index, finding)));
        }
        report.findings = findings;
        report
    }

    /// Whether the account holds; `None` when nothing speaks against it, and not all was compared that was to be.
    fn verdict(&self) -> Option<bool> {
        if !self.findings.is_empty() || !self.projections.is_ok() {
            return Some(false);
        }
        self.not_compared().is_empty().then_some(true)
    }

    /// What was to be compared and could not be, and why.
    fn not_compared(&self) -> Vec<String> {
        let silence = match &self.kafka {
            KafkaAnswer::Silent(reason) if !sources_of(&self.account).is_empty() => {
                Some(format!("positions, records and dead letters: {reason}"))
            }
            KafkaAnswer::Silent(_) | KafkaAnswer::NotAsked | KafkaAnswer::Watermarks(_) => None,
        };
        let unseen = self.account.partitions.iter().filter_map(|partition| {
            let KafkaAnswer::Watermarks(answers) = &self.kafka else { return None };
            let unseen = answers.get(&partition.key)?.as_ref().err()?;
            let own = self.clusters.get(&partition.key.stream);
            let is_gone = unseen.gone_from.is_some() && unseen.gone_from.as_ref() == own;
            let why = || format!("{}/{}: {}", partition.topic, partition.key.partition, unseen.why);
            (!is_gone).then(why)
        });
        let noted = self.records.notes.iter().cloned().chain(self.letters.notes()).chain(self.spool.note());
        silence.into_iter().chain(unseen).chain(noted).chain(self.projections.not_compared()).collect()
    }

    /// Takes back that records were deleted unread where the position has moved since.
    fn forget_outrun(&mut self, now: &HashMap<StreamPartition, Offset>) {
        let (account, kafka) = (&self.account, &self.kafka);
        self.findings.retain(|(index, finding)| {
            let partition = account.partitions.get(*index);
            let outrun = partition.and_then(|partition| {
                let KafkaAnswer::Watermarks(answers) = kafka else { return None };
                let (low, _) = answers.get(&partition.key)?.as_ref().ok()?;
                Some(now.get(&partition.key)? >= low)
            });
            finding.code != FindingCode::RecordsDeleted || outrun != Some(true)
        });
    }

    fn watermarks(&self, partition: &PartitionAccount) -> Option<(Offset, Offset)> {
        let KafkaAnswer::Watermarks(answers) = &self.kafka else { return None };
        partition.position?;
        answers.get(&partition.key)?.as_ref().ok().copied()
    }

    /// Why a partition was not compared with Kafka, when the others were.
    fn note(&self, partition: &PartitionAccount) -> Option<&str> {
        if is_import(&partition.topic) {
            return Some("an import has no topic in kafka");
        }
        let KafkaAnswer::Watermarks(answers) = &self.kafka else { return None };
        answers.get(&partition.key)?.as_ref().err().map(|unseen| unseen.why.as_str())
    }

    /// How far the position is from Kafka's end, in offsets.
    fn lag(&self, partition: &PartitionAccount) -> Option<i64> {
        let (_, end) = self.watermarks(partition)?;
        Some(end.as_i64().saturating_sub(partition.position?.next).max(0))
    }
}
