//! `verify`: the account, proven from PostgreSQL and Kafka. Changes nothing.

mod letters;
mod projections;
mod spool;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use self::letters::Letters;
use self::projections::Projections;
use self::spool::SpoolView;
use super::ExitStatus;
use super::table::{Cell, Table, with_thousands};
use crate::config::KafkaProperties;
use crate::model::position::{Offset, Partition, StreamId, StreamPartition, is_import};
use crate::outlet::OutletSettings;
use crate::source::Lookup;
use crate::store::{
    Account, AccountScope, FateCounts, Finding, FindingCode, PartitionAccount, SessionPurpose, StoreError,
    StoreSettings,
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
    /// Do not compare positions and dead letters with Kafka
    #[arg(long)]
    pub no_kafka: bool,
}

/// Kafka's watermarks of a stream's partition, or why there are none to compare with.
type Watermarks = Result<(Offset, Offset), String>;

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
    kafka: KafkaAnswer,
    letters: Letters,
    spool: SpoolView,
    projections: Projections,
    /// By the partition's place in the account.
    findings: Vec<(usize, Finding)>,
}

/// What the account is compared with: Kafka by its properties, `SPOOL_DIR` unless there is none, `LOG_DIR`.
pub type Edges<'a> = (&'a KafkaProperties, Option<&'a Path>, &'a Path);

/// Verifies the account and writes it to `out`. [`ExitStatus::Findings`] when it does not hold,
/// [`ExitStatus::Unreachable`] when PostgreSQL can't tell or has nothing in scope; Kafka's silence is only noted.
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
    let outcome = report(args, store, edges).await;
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
    Ok(if report.is_ok() { ExitStatus::Success } else { ExitStatus::Findings })
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
    (kafka_properties, spool_dir, log_dir): Edges<'_>,
) -> anyhow::Result<Result<Report, StoreError>> {
    let scope = AccountScope { group: args.group.clone(), topic: args.topic.clone() };
    let account = match read_account(store, &scope).await {
        Ok(account) => account,
        Err(error) => return Ok(Err(error)),
    };
    // After the snapshot, so that Kafka's ends can only be further on than the positions, and outside of the
    // transaction, so that a silent broker holds nothing up in the database.
    let kafka = if args.no_kafka {
        KafkaAnswer::NotAsked
    } else {
        let (properties, sources) = (kafka_properties.clone(), sources_of(&account));
        tokio::task::spawn_blocking(move || ask_kafka(&properties, &sources)).await?
    };
    let letters = if args.no_kafka || matches!(kafka, KafkaAnswer::Silent(_)) {
        Letters::default()
    } else {
        let outlet = OutletSettings::new(kafka_properties.clone(), &store.group);
        match Letters::compare(&account, store, &outlet).await? {
            Ok(letters) => letters,
            Err(error) => return Ok(Err(error)),
        }
    };
    let spool = match SpoolView::compare(spool_dir, &account, store).await {
        Ok(spool) => spool,
        Err(error) => return Ok(Err(error)),
    };
    let mut report = Report::new(account, kafka, (letters, spool));
    // Day files are of all groups and topics.
    if args.group.is_none() && args.topic.is_none() {
        match Projections::compare(store, log_dir).await {
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

async fn read_account(store: &StoreSettings, scope: &AccountScope) -> Result<Account, StoreError> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let account = session.account(scope).await?;
    session.close().await;
    Ok(account)
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
        for key in keys {
            let answer = match described.get(&key.partition) {
                Some(Ok(found)) if StreamId::of(&found.cluster_id, topic, found.topic_id) == key.stream => {
                    Ok((found.low, found.high))
                }
                Some(Ok(_)) => Err("kafka has another topic under this name; see `offsets adopt`".into()),
                Some(Err(reason)) => Err(reason.clone()),
                None => Err("kafka said nothing of it".into()),
            };
            answers.insert(*key, answer);
        }
    }
    answers
}

impl Report {
    fn new(account: Account, kafka: KafkaAnswer, (letters, spool): (Letters, SpoolView)) -> Self {
        let projections = Projections::default();
        let mut report = Self { account, kafka, letters, spool, projections, findings: Vec::new() };
        let mut findings = Vec::new();
        for (index, partition) in report.account.partitions.iter().enumerate() {
            findings.extend(partition.findings().into_iter().map(|finding| (index, finding)));
            if let Some((low, end)) = report.watermarks(partition) {
                let in_kafka = partition.findings_in_kafka(low, end);
                findings.extend(in_kafka.into_iter().map(|finding| (index, finding)));
            }
            let of_others = report.letters.findings.iter().chain(&report.spool.findings);
            let of_others = of_others.filter(|(key, _)| *key == partition.key);
            findings.extend(of_others.map(|(_, finding)| (index, finding.clone())));
        }
        report.findings = findings;
        report
    }

    fn is_ok(&self) -> bool {
        self.findings.is_empty() && self.projections.is_ok()
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
        answers.get(&partition.key)?.as_ref().err().map(String::as_str)
    }

    /// How far the position is from Kafka's end, in offsets.
    fn lag(&self, partition: &PartitionAccount) -> Option<i64> {
        let (_, end) = self.watermarks(partition)?;
        Some(end.as_i64().saturating_sub(partition.position?.next).max(0))
    }

    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for partition in &self.account.partitions {
            if let Some(position) = &partition.position {
                totals.positions += 1;
                totals.produced += position.produced();
                totals.absent += position.absent;
            }
            totals.stored.events += partition.stored.rows.events;
            totals.stored.duplicates += partition.stored.rows.duplicates;
            totals.stored.dead_letters += partition.stored.rows.dead_letters;
            totals.gaps += partition.gaps;
            totals.dropped += partition.stored.dropped;
            if let Some(lag) = self.lag(partition) {
                totals.lag = Some(totals.lag.unwrap_or(0) + lag);
            }
        }
        totals
    }

    fn to_json(&self) -> Value {
        let totals = self.totals();
        let findings: Vec<Value> = self
            .findings
            .iter()
            .filter_map(|(index, finding)| Some((self.account.partitions.get(*index)?, finding)))
            .map(|(partition, finding)| {
                json!({
                    "code": finding.code.as_str(), "group": partition.group, "topic": partition.topic,
                    "stream_id": partition.key.stream.to_string(), "partition": partition.key.partition.0,
                    "expected": finding.expected, "found": finding.found, "text": finding.text,
                })
            })
            .collect();
        let repeated = &self.account.repeated_ids;
        let examples: Vec<Value> = repeated
            .examples
            .iter()
            .map(|(id, count)| json!({"audit_id": id.to_string(), "timestamps": count}))
            .collect();
        let (is_reachable, reason) = match &self.kafka {
            KafkaAnswer::NotAsked => (None, None),
            KafkaAnswer::Silent(reason) => (Some(false), Some(reason)),
            KafkaAnswer::Watermarks(_) => (Some(true), None),
        };
        json!({
            "ok": self.is_ok(),
            "totals": {
                "positions": totals.positions, "produced": totals.produced, "events": totals.stored.events,
                "duplicates": totals.stored.duplicates, "dead_letters": totals.stored.dead_letters,
                "dead_letters_by_reason": self.account.dead_letters_by_reason,
                "absent": totals.absent, "gaps": totals.gaps, "dropped": totals.dropped, "lag": totals.lag,
            },
            "letters": self.letters.to_json(), "spool": self.spool.to_json(),
            "projections": self.projections.to_json(),
            "kafka": {"reachable": is_reachable, "reason": reason},
            "partitions": self.account.partitions.iter().map(|p| self.partition_json(p)).collect::<Vec<_>>(),
            "findings": findings,
            "audit_ids_under_several_times": {"count": repeated.count, "examples": examples},
        })
    }

    fn partition_json(&self, partition: &PartitionAccount) -> Value {
        let counts = |counts: &FateCounts| json!({"events": counts.events, "duplicates": counts.duplicates, "dead_letters": counts.dead_letters});
        let (position, stored) = (partition.position.as_ref(), &partition.stored);
        let watermarks = self.watermarks(partition);
        json!({
            "group": partition.group, "topic": partition.topic, "stream_id": partition.key.stream.to_string(),
            "partition": partition.key.partition.0, "retired": partition.is_retired,
            "first_offset": position.map(|p| p.first), "next_offset": position.map(|p| p.next),
            "counters": position.map(|p| counts(&p.counters)), "absent": position.map(|p| p.absent),
            "rows": counts(&stored.rows), "dropped": stored.dropped, "distinct_offsets": stored.distinct_offsets,
            "lowest_offset": stored.bounds.map(|(low, _)| low),
            "highest_offset": stored.bounds.map(|(_, high)| high),
            "gaps": partition.gaps,
            "kafka_low": watermarks.map(|(low, _)| low.as_i64()),
            "kafka_end": watermarks.map(|(_, end)| end.as_i64()),
            "lag": self.lag(partition), "kafka_note": self.note(partition),
        })
    }

    fn write_tables(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        self.partition_table().write_to(out)?;
        let totals = self.totals();
        writeln!(out)?;
        writeln!(
            out,
            "{} offsets read = {} events + {} duplicates + {} dead letters + {} absent{}",
            with_thousands(totals.produced),
            with_thousands(totals.stored.events),
            with_thousands(totals.stored.duplicates),
            with_thousands(totals.stored.dead_letters),
            with_thousands(totals.absent),
            if self.findings.is_empty() { "" } else { " does not hold, see below" },
        )?;
        if totals.gaps > 0 {
            writeln!(out, "of the absent, {} were declared as gaps", with_thousands(totals.gaps))?;
        }
        if totals.dropped > 0 {
            writeln!(out, "of the events, {} were dropped by retention", with_thousands(totals.dropped))?;
        }
        for (reason, count) in &self.account.dead_letters_by_reason {
            writeln!(out, "dead letters, {reason}: {}", with_thousands(*count))?;
        }
        let repeated = &self.account.repeated_ids;
        if repeated.count > 0 {
            writeln!(out, "audit ids under several timestamps: {}", with_thousands(repeated.count))?;
            for (id, count) in &repeated.examples {
                writeln!(out, "  {id} under {count}")?;
            }
        }
        match &self.kafka {
            KafkaAnswer::NotAsked => writeln!(out, "kafka was not asked")?,
            KafkaAnswer::Silent(reason) => writeln!(out, "not compared with kafka: {reason}")?,
            KafkaAnswer::Watermarks(_) => {
                let lag = totals.lag.map_or_else(|| "unknown".into(), with_thousands);
                writeln!(out, "lag to kafka's end, in offsets: {lag}")?;
            }
        }
        for line in self.letters.lines().into_iter().chain(self.spool.lines()) {
            writeln!(out, "{line}")?;
        }
        self.projections.write_to(out)?;
        self.write_notes_and_findings(out)
    }

    fn write_notes_and_findings(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let imports = self.account.partitions.iter().filter(|partition| is_import(&partition.topic)).count();
        if imports > 0 {
            writeln!(out, "imports, which have no topic in kafka to be compared with: {imports}")?;
        }
        for partition in self.account.partitions.iter().filter(|partition| !is_import(&partition.topic)) {
            if let Some(note) = self.note(partition) {
                writeln!(out, "not compared with kafka: {}: {note}", name_of(partition))?;
            }
        }
        writeln!(out)?;
        if self.findings.is_empty() {
            writeln!(out, "the account holds")?;
            return Ok(());
        }
        writeln!(out, "the account does not hold: {} findings", self.findings.len())?;
        let mut table = Table::new(&["finding", "partition", "expected", "found", "meaning"]);
        for (index, finding) in &self.findings {
            let name = self.account.partitions.get(*index).map(name_of).unwrap_or_default();
            table.push(vec![
                finding.code.as_str().into(),
                name.as_str().into(),
                finding.expected.as_str().into(),
                finding.found.as_str().into(),
                finding.text.as_str().into(),
            ]);
        }
        table.write_to(out)?;
        Ok(())
    }

    fn partition_table(&self) -> Table {
        let mut table = Table::new(&[
            "group",
            "topic",
            "partition",
            "first",
            "next",
            "events",
            "duplicates",
            "dead letters",
            "absent",
            "gaps",
            "kafka end",
            "lag",
            "account",
        ]);
        let broken: HashSet<usize> = self.findings.iter().map(|(index, _)| *index).collect();
        for (index, partition) in self.account.partitions.iter().enumerate() {
            let position = partition.position.as_ref();
            let rows = &partition.stored.rows;
            table.push(vec![
                partition.group.as_str().into(),
                topic_of(partition).as_str().into(),
                i64::from(partition.key.partition.0).into(),
                position.map(|p| p.first).into(),
                position.map(|p| p.next).into(),
                rows.events.into(),
                rows.duplicates.into(),
                rows.dead_letters.into(),
                position.map(|p| p.absent).into(),
                partition.gaps.into(),
                self.watermarks(partition).map(|(_, end)| end.as_i64()).into(),
                self.lag(partition).into(),
                Cell::from(if broken.contains(&index) { "BROKEN" } else { "holds" }),
            ]);
        }
        table
    }
}

/// Sums over the partitions of a report; events, duplicates and dead letters as the tables have them, or had.
#[derive(Debug, Default)]
struct Totals {
    positions: i64,
    produced: i64,
    stored: FateCounts,
    absent: i64,
    gaps: i64,
    dropped: i64,
    lag: Option<i64>,
}

fn topic_of(partition: &PartitionAccount) -> String {
    match (&*partition.topic, partition.is_retired) {
        ("", _) => format!("unknown stream {}", partition.key.stream),
        (topic, true) => format!("{topic} (retired)"),
        (topic, false) => topic.into(),
    }
}

fn name_of(partition: &PartitionAccount) -> String {
    format!("{}/{}", topic_of(partition), partition.key.partition)
}
