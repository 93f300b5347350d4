//! `offsets`: the positions, and the two things that an operator may do to them. There is no rewind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;
use std::io::Write;

use anyhow::Context;
use clap::builder::NonEmptyStringValueParser;
use serde_json::json;
use uuid::Uuid;

use super::ExitStatus;
use super::table::{Cell, Table, with_thousands};
use super::verify::watermarks;
use crate::config::KafkaProperties;
use crate::model::position::{Offset, Partition, StreamPartition, is_import};
use crate::source::{Lookup, LookupError};
use crate::store::{
    GapAnswer, GapDeclaration, OffsetRow, Session, SessionPurpose, SpoolHolder, StoreError, StoreSettings,
    StreamIdentity, StreamRow,
};

/// What to do with positions.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum OffsetsCommand {
    /// Show the streams and positions of every group, with Kafka's ends
    List(ListArgs),
    /// Go on with a topic that was created again, or take a topic over from another group
    Adopt(AdoptArgs),
    /// Give up the records that Kafka deleted before they were read
    DeclareGap(DeclareGapArgs),
}

/// How to list.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ListArgs {
    /// Write one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Who does it and why; recorded with the action.
#[derive(Debug, Clone, clap::Args)]
pub struct ActionArgs {
    /// Why, for the record
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub reason: String,
    /// Who, for the record
    #[arg(long, env = "USER", default_value = "unknown", value_name = "NAME")]
    pub actor: String,
}

impl ActionArgs {
    /// Who, and why.
    #[must_use]
    pub fn who_and_why(&self) -> (&str, &str) {
        (&self.actor, &self.reason)
    }
}

/// What to adopt.
#[derive(Debug, Clone, clap::Args)]
pub struct AdoptArgs {
    /// The topic
    #[arg(long, value_name = "TOPIC")]
    pub topic: String,
    /// Take the topic's streams and positions over from this group
    #[arg(long, value_name = "GROUP")]
    pub from_group: Option<String>,
    /// Who and why
    #[command(flatten)]
    pub action: ActionArgs,
}

/// Where to declare a gap.
#[derive(Debug, Clone, clap::Args)]
pub struct DeclareGapArgs {
    /// The topic
    #[arg(long, value_name = "TOPIC")]
    pub topic: String,
    /// The partition
    #[arg(long, value_name = "NUMBER")]
    pub partition: i32,
    /// Do it; without this, what would be done is only shown
    #[arg(long)]
    pub yes: bool,
    /// Who and why
    #[command(flatten)]
    pub action: ActionArgs,
}

/// What a command needs.
#[derive(Debug, Clone, Copy)]
struct Edges<'a> {
    store: &'a StoreSettings,
    kafka_properties: &'a KafkaProperties,
}

/// Runs `command` for the group of `store` and writes what was done to `out`. [`ExitStatus::Refused`] when
/// there is nothing to do, [`ExitStatus::Unreachable`] when PostgreSQL or Kafka can't tell.
///
/// # Errors
/// What `out` reports, and a worker thread that died.
pub async fn run(
    command: &OffsetsCommand,
    store: &StoreSettings,
    kafka_properties: &KafkaProperties,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let edges = Edges { store, kafka_properties };
    let outcome = match command {
        OffsetsCommand::List(args) => list(args, edges, out).await,
        OffsetsCommand::Adopt(args) => match &args.from_group {
            Some(from_group) => adopt_from_group(args, from_group, edges, out).await,
            None => adopt(args, edges, out).await,
        },
        OffsetsCommand::DeclareGap(args) => declare_gap(args, edges, out).await,
    };
    match outcome {
        Err(error) if error.is::<StoreError>() || error.is::<LookupError>() => {
            writeln!(out, "not done, as far as is known: {error}")?;
            Ok(ExitStatus::Unreachable)
        }
        other => other,
    }
}

async fn list(args: &ListArgs, edges: Edges<'_>, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut session = edges.store.connect(SessionPurpose::Operator).await?;
    let (streams, offsets) = (session.streams().await?, session.offset_rows().await?);
    session.close().await;
    let mut sources: BTreeMap<String, HashSet<StreamPartition>> = BTreeMap::new();
    for row in offsets.iter().filter(|row| !row.is_retired && !is_import(&row.topic)) {
        sources.entry(row.topic.clone()).or_default().insert(row.key);
    }
    let asked = edges
        .ask(move |lookup| {
            lookup.topics()?;
            Ok(watermarks(lookup, &sources))
        })
        .await?;
    let (answers, silence) = match asked {
        Ok(answers) => (answers, None),
        Err(error) => (HashMap::new(), Some(error.to_string())),
    };
    let ends: HashMap<StreamPartition, (Offset, Offset)> =
        answers.into_iter().filter_map(|(key, answer)| Some((key, answer.ok()?))).collect();
    if args.json {
        let answer = json!({
            "streams": streams.iter().map(stream_json).collect::<Vec<_>>(),
            "offsets": offsets.iter().map(|row| offset_json(row, &ends)).collect::<Vec<_>>(),
            "kafka": {"reachable": silence.is_none(), "reason": silence},
        });
        writeln!(out, "{answer:#}")?;
        return Ok(ExitStatus::Success);
    }
    stream_table(&streams).write_to(out)?;
    writeln!(out)?;
    offset_table(&offsets, &ends).write_to(out)?;
    if let Some(reason) = silence {
        writeln!(out, "\nwithout kafka's ends: {reason}")?;
    }
    Ok(ExitStatus::Success)
}

async fn adopt(args: &AdoptArgs, edges: Edges<'_>, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let topic = args.topic.clone();
    let to = edges.ask(move |lookup| identity(lookup, &topic)).await??;
    let group = &*edges.store.group;
    let mut session = edges.store.connect(SessionPurpose::Operator).await?;
    let streams = session.streams().await?;
    if let Err(reason) = adoptable(&streams, &to, group) {
        session.close().await;
        return refuse(out, reason);
    }
    let actor = (&*args.action.actor, &*args.action.reason);
    let retired_count = session.adopt_stream(group, &to, actor).await?;
    session.close().await;
    writeln!(
        out,
        "adopted {} as stream {} of cluster {} for group {group}; {retired_count} earlier streams are retired",
        args.topic,
        to.id(),
        to.cluster_id
    )?;
    writeln!(
        out,
        "next: a running daemon is offered the partitions again within seconds and starts where a group \
         without a position does; the rows of the retired streams stay as they are"
    )?;
    Ok(ExitStatus::Success)
}

/// Whether `to` differs from what `group` reads under that topic's name; else why there is nothing to adopt.
fn adoptable(streams: &[StreamRow], to: &StreamIdentity, group: &str) -> Result<(), String> {
    let topic = &*to.topic;
    if let Some(known) = streams.iter().find(|row| row.stream == to.id()) {
        if known.group != group {
            return Err(format!(
                "{topic} belongs to group {0}; `offsets adopt --topic {topic} --from-group {0}` takes it over",
                known.group
            ));
        }
        if !known.is_retired {
            return Err(format!("nothing to adopt: group {group} reads {topic} as stream {}", known.stream));
        }
    } else if !streams.iter().any(|row| row.topic == topic && row.group == group) {
        return Err(format!(
            "nothing to adopt: {topic} is new to group {group}, a daemon starts it by itself"
        ));
    }
    Ok(())
}

async fn adopt_from_group(
    args: &AdoptArgs,
    from_group: &str,
    edges: Edges<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let (topic, group) = (&*args.topic, &*edges.store.group);
    if from_group == group {
        return refuse(out, format!("nothing to adopt: {group} is the group of this configuration itself"));
    }
    let mut session = edges.store.connect(SessionPurpose::Operator).await?;
    let streams = session.streams().await?;
    if !streams.iter().any(|row| row.topic == topic && row.group == from_group) {
        session.close().await;
        return refuse(out, format!("nothing to adopt: group {from_group} has no stream of {topic}"));
    }
    if let Some(own) = streams.iter().find(|row| row.topic == topic && row.group == group && !row.is_retired)
    {
        session.close().await;
        return refuse(out, format!("group {group} reads {topic} already, as stream {}", own.stream));
    }
    let actor = (&*args.action.actor, &*args.action.reason);
    let moved_count = session.adopt_from_group(group, (topic, from_group), actor).await?;
    session.close().await;
    writeln!(out, "group {group} has taken over {moved_count} streams of {topic} from group {from_group}")?;
    // Only to tell what comes next: the hand-over itself is done.
    let asked_topic = args.topic.clone();
    let next = match edges.ask(move |lookup| identity(lookup, &asked_topic)).await? {
        Ok(now) if streams.iter().any(|row| row.stream == now.id() && !row.is_retired) => {
            "a daemon of this group goes on at the same positions".into()
        }
        Ok(_) => format!("kafka has another topic under this name by now: `offsets adopt --topic {topic}`"),
        Err(error) => format!("start a daemon of this group; kafka was not asked ({error})"),
    };
    writeln!(out, "next: stop the daemons of {from_group}, their commits are refused from now on; {next}")?;
    Ok(ExitStatus::Success)
}

async fn declare_gap(
    args: &DeclareGapArgs,
    edges: Edges<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let (topic, partition) = (args.topic.clone(), Partition(args.partition));
    let (stream, low) = edges
        .ask(move |lookup| Ok((identity(lookup, &topic)?, lookup.watermarks(&topic, partition)?.0)))
        .await??;
    let key = StreamPartition { stream: stream.id(), partition };
    let (group, name) = (&*edges.store.group, format!("{}/{partition}", args.topic));
    let mut session = edges.store.connect(SessionPurpose::Operator).await?;
    let position = position_of(&mut session, group, key).await?;
    let refusal = match position {
        None => {
            Some(format!("group {group} has no position in {name} as kafka has it now; see `offsets list`"))
        }
        Some(position) if position >= low => Some(format!(
            "no gap in {name}: the position {position} is not below the first offset {low} that kafka has"
        )),
        Some(position) if !args.yes => Some(format!(
            "would declare [{position}, {low}) of {name} lost to group {group}; say it again with --yes to do it"
        )),
        Some(_) => None,
    };
    if let Some(reason) = refusal {
        session.close().await;
        return refuse(out, reason);
    }
    let (actor, reason) = (&*args.action.actor, &*args.action.reason);
    let gap = GapDeclaration { key, low, actor, reason, own: Uuid::nil() };
    let declared = session.declare_gap(group, &gap).await?;
    session.close().await;
    let range = match declared {
        GapAnswer::Declared(range) => range,
        GapAnswer::NotBelow => {
            return refuse(
                out,
                format!("no gap in {name}: the position has moved to {low} or beyond meanwhile"),
            );
        }
        GapAnswer::Held(SpoolHolder { instance, start }) => {
            return refuse(
                out,
                format!(
                    "instance {instance} holds records of {name} from {start} on in its spool; start it, or `spool drain \
                     --dir` on its disk. If that is gone for good: DELETE FROM audit_events.spool_ranges WHERE \
                     instance_id = '{instance}'"
                ),
            );
        }
    };
    let span = i64::try_from(range.span()).context("measure the gap")?;
    writeln!(out, "declared {range} of {name} lost to group {group}: {} offsets", with_thousands(span))?;
    writeln!(
        out,
        "next: a running daemon is offered the partition again within seconds and goes on at {}; `verify` \
         shows the gap apart from then on",
        range.end()
    )?;
    Ok(ExitStatus::Success)
}

async fn position_of(
    session: &mut Session,
    group: &str,
    key: StreamPartition,
) -> Result<Option<Offset>, StoreError> {
    let rows = session.offset_rows().await?;
    Ok(rows.iter().find(|row| row.group == group && row.key == key).map(|row| row.next))
}

impl Edges<'_> {
    /// Asks Kafka on a thread where waiting is allowed.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Lookup) -> Result<T, LookupError> + Send + 'static,
    ) -> anyhow::Result<Result<T, LookupError>> {
        let properties = self.kafka_properties.clone();
        tokio::task::spawn_blocking(move || {
            Lookup::new(&properties).and_then(|mut lookup| question(&mut lookup))
        })
        .await
        .context("ask kafka")
    }
}

fn identity(lookup: &mut Lookup, topic: &str) -> Result<StreamIdentity, LookupError> {
    let (cluster_id, topic_id) = lookup.describe(topic)?;
    Ok(StreamIdentity { cluster_id, topic: topic.into(), topic_id })
}

fn refuse(out: &mut dyn Write, reason: impl Display) -> anyhow::Result<ExitStatus> {
    writeln!(out, "nothing was done: {reason}")?;
    Ok(ExitStatus::Refused)
}

fn stream_json(row: &StreamRow) -> serde_json::Value {
    json!({
        "stream_id": row.stream.to_string(), "topic": row.topic, "topic_id": row.topic_id.to_string(),
        "cluster_id": row.cluster_id, "group": row.group, "retired": row.is_retired,
    })
}

fn offset_json(row: &OffsetRow, ends: &HashMap<StreamPartition, (Offset, Offset)>) -> serde_json::Value {
    let end = ends.get(&row.key);
    json!({
        "group": row.group, "topic": row.topic, "stream_id": row.key.stream.to_string(),
        "partition": row.key.partition.0, "retired": row.is_retired, "epoch": row.epoch,
        "first_offset": row.first.as_i64(), "next_offset": row.next.as_i64(), "events": row.event_count,
        "duplicates": row.duplicate_count, "dead_letters": row.dead_letter_count, "absent": row.absent_count,
        "owner": row.owner.map(|owner| owner.to_string()),
        "kafka_low": end.map(|(low, _)| low.as_i64()), "kafka_end": end.map(|(_, end)| end.as_i64()),
        "lag": lag(row, ends),
    })
}

/// How far the position is from Kafka's end, in offsets.
fn lag(row: &OffsetRow, ends: &HashMap<StreamPartition, (Offset, Offset)>) -> Option<i64> {
    let (_, end) = ends.get(&row.key)?;
    Some(end.as_i64().saturating_sub(row.next.as_i64()).max(0))
}

fn stream_table(streams: &[StreamRow]) -> Table {
    let mut table = Table::new(&["topic", "group", "stream", "cluster", "topic id", "state"]);
    for row in streams {
        table.push(vec![
            row.topic.as_str().into(),
            row.group.as_str().into(),
            row.stream.to_string().as_str().into(),
            row.cluster_id.as_str().into(),
            row.topic_id.to_string().as_str().into(),
            Cell::from(if row.is_retired { "retired" } else { "in use" }),
        ]);
    }
    table
}

fn offset_table(offsets: &[OffsetRow], ends: &HashMap<StreamPartition, (Offset, Offset)>) -> Table {
    let mut table = Table::new(&[
        "topic",
        "partition",
        "group",
        "epoch",
        "first",
        "next",
        "events",
        "duplicates",
        "dead letters",
        "absent",
        "kafka low",
        "kafka end",
        "lag",
        "owner",
    ]);
    for row in offsets {
        let end = ends.get(&row.key);
        let topic = if row.is_retired { format!("{} (retired)", row.topic) } else { row.topic.clone() };
        table.push(vec![
            topic.as_str().into(),
            i64::from(row.key.partition.0).into(),
            row.group.as_str().into(),
            row.epoch.into(),
            row.first.as_i64().into(),
            row.next.as_i64().into(),
            row.event_count.into(),
            row.duplicate_count.into(),
            row.dead_letter_count.into(),
            row.absent_count.into(),
            end.map(|(low, _)| low.as_i64()).into(),
            end.map(|(_, end)| end.as_i64()).into(),
            lag(row, ends).into(),
            row.owner.map_or(Cell::Unknown, |owner| Cell::Text(owner.to_string())),
        ]);
    }
    table
}
