//! `dlq`: look at dead letters, send them back to their source topic, give them up, close a breaker.

mod redrive;

use std::io::Write;

use clap::builder::NonEmptyStringValueParser;
use serde_json::{Value, json};

use super::ExitStatus;
use super::table::{Table, with_thousands};
use crate::model::base64;
use crate::model::dead_letter::{DeadLetterId, DeadLetterRow, headers_to_json};
use crate::model::position::Partition;
use crate::outlet::OutletSettings;
use crate::store::{
    LETTER_MAX_COUNT, LetterCount, LetterFilter, LetterPage, LetterStatus, PartitionScope, Session,
    SessionPurpose, StoreError, StoreSettings,
};

/// What to do with dead letters.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum DlqCommand {
    /// Count them by topic, reason and state
    List(ListArgs),
    /// Show one: where it came from, why it is dead, its payload, what was done to it
    Show(ShowArgs),
    /// Send them back to their source topic, each once, counting the attempts; at most 5
    ///
    /// What is rejected again meanwhile waits for the next redrive.
    Redrive(ActArgs),
    /// Give them up: recorded, nothing is deleted
    Discard(ActArgs),
    /// Go on with partitions that a breaker stopped
    Resume(ResumeArgs),
}

/// Which dead letters.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FilterArgs {
    /// Only of this source topic
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// Only with this reason code
    #[arg(long, value_name = "CODE")]
    pub reason: Option<String>,
    /// Only stored at or after this time, such as 2026-11-24T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<String>,
}

/// How to list.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ListArgs {
    /// Which
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Write one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Which to show.
#[derive(Debug, Clone, clap::Args)]
pub struct ShowArgs {
    /// Its number (dead_letter_id), or the value of its header dlq.id
    #[arg(value_name = "ID")]
    pub id: String,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write the payload's bytes and nothing else
    #[arg(long, conflicts_with = "json")]
    pub payload: bool,
}

/// Which dead letters to redrive or discard, and who does it why; recorded in dead_letter_actions.
#[derive(Debug, Clone, clap::Args)]
pub struct ActArgs {
    /// Which
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Only these: numbers, or values of dlq.id, separated by commas
    #[arg(long, value_name = "ID,..", value_delimiter = ',')]
    pub ids: Vec<String>,
    /// All of them; needed when nothing else narrows the choice
    #[arg(long)]
    pub all: bool,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run", value_parser = NonEmptyStringValueParser::new())]
    pub why: Option<String>,
    /// Who, for the record
    #[arg(long, env = "USER", default_value = "unknown", value_name = "NAME")]
    pub actor: String,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Where to go on.
#[derive(Debug, Clone, clap::Args)]
pub struct ResumeArgs {
    /// Only this topic
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// Only this partition
    #[arg(long, value_name = "NUMBER")]
    pub partition: Option<i32>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub why: String,
    /// Who, for the record
    #[arg(long, env = "USER", default_value = "unknown", value_name = "NAME")]
    pub actor: String,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Lines and tables for people.
    Text,
    /// One JSON object, and nothing else.
    Json,
}

impl From<bool> for Form {
    /// By the flag `--json`.
    fn from(is_json: bool) -> Self {
        if is_json { Self::Json } else { Self::Text }
    }
}

/// A time by RFC 3339, as it was given.
fn time(text: &str) -> Result<String, String> {
    match chrono::DateTime::parse_from_rfc3339(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; a time is written 2026-11-24T08:00:00Z")),
    }
}

impl From<&FilterArgs> for LetterFilter {
    fn from(args: &FilterArgs) -> Self {
        Self {
            topic: args.topic.clone(),
            reason: args.reason.clone(),
            since: args.since.clone(),
            row_ids: None,
        }
    }
}

/// Runs `command` for the group of `store` and writes what was done to `out`. [`ExitStatus::Refused`] when there is
/// nothing to do, or not all could be done; [`ExitStatus::Unreachable`] when PostgreSQL or Kafka can't tell.
///
/// # Errors
/// What PostgreSQL or `out` report, and a worker thread that died.
pub async fn run(
    command: &DlqCommand,
    store: &StoreSettings,
    outlet: &OutletSettings,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    match command {
        DlqCommand::List(args) => list(args, store, out).await,
        DlqCommand::Show(args) => show(args, store, out).await,
        DlqCommand::Redrive(args) => redrive::run(args, store, outlet, out).await,
        DlqCommand::Discard(args) => discard(args, store, out).await,
        DlqCommand::Resume(args) => resume(args, store, out).await,
    }
}

async fn list(args: &ListArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let counts = session.count_letters(&store.group, &LetterFilter::from(&args.filter)).await?;
    session.close().await;
    if args.json {
        let rows: Vec<Value> = counts.iter().map(count_json).collect();
        let total: i64 = counts.iter().map(|count| count.count).sum();
        writeln!(out, "{:#}", json!({"group": &*store.group, "dead_letters": rows, "total": total}))?;
    } else {
        count_table(&counts).write_to(out)?;
        let total: i64 = counts.iter().map(|count| count.count).sum();
        writeln!(out, "\n{} dead letters of group {}", with_thousands(total), store.group)?;
    }
    Ok(ExitStatus::Success)
}

fn count_json(count: &LetterCount) -> Value {
    json!({
        "topic": count.topic, "reason": count.reason, "state": count.state.as_str(), "count": count.count,
        "oldest_age_seconds": count.age_seconds.0, "newest_age_seconds": count.age_seconds.1,
    })
}

fn count_table(counts: &[LetterCount]) -> Table {
    let mut table = Table::new(&["topic", "reason", "state", "count", "oldest", "newest"]);
    for count in counts {
        table.push(vec![
            count.topic.as_str().into(),
            count.reason.as_str().into(),
            count.state.as_str().into(),
            count.count.into(),
            age(count.age_seconds.0).as_str().into(),
            age(count.age_seconds.1).as_str().into(),
        ]);
    }
    table
}

/// An age in its two largest units.
fn age(seconds: f64) -> String {
    let seconds = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

async fn show(args: &ShowArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let Some(id) = letter_id(&args.id) else {
        let reason = format!("{} is no number and no <stream id>:<partition>:<offset>", args.id);
        return refuse(out, args.json.into(), &reason);
    };
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let found = session.letter(id).await?;
    session.close().await;
    let Some(letter) = found else {
        return refuse(out, args.json.into(), &format!("there is no dead letter {}", args.id));
    };
    if args.payload {
        out.write_all(letter.row.value.as_deref().unwrap_or_default())?;
    } else if args.json {
        writeln!(out, "{:#}", letter_json(&letter))?;
    } else {
        write_letter(&letter, out)?;
    }
    Ok(ExitStatus::Success)
}

fn letter_id(text: &str) -> Option<Result<DeadLetterId, i64>> {
    match text.trim().parse::<i64>() {
        Ok(row_id) => Some(Err(row_id)),
        Err(_no_number) => text.trim().parse().ok().map(Ok),
    }
}

/// Bytes as text where they are, else as base64.
fn bytes_json(bytes: Option<&[u8]>) -> (Value, Value) {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => (Value::Null, Value::Null),
        Some((_, Ok(text))) => (text.into(), Value::Null),
        Some((bytes, Err(_not_text))) => (Value::Null, base64::encode(bytes).into()),
    }
}

fn letter_json(letter: &LetterStatus) -> Value {
    let row = &letter.row;
    let (payload, payload_base64) = bytes_json(row.value.as_deref());
    let (key, key_base64) = bytes_json(row.key.as_deref());
    json!({
        "dead_letter_id": row.row_id, "dlq_id": row.id.to_string(), "topic": row.topic,
        "partition": row.id.key.partition.0, "offset": row.id.offset.as_i64(), "group": row.group,
        "reason": row.reason, "detail": row.detail, "sqlstate": row.sqlstate, "attempt": row.attempt(),
        "correlation_id": row.correlation_id.map(|id| id.to_string()), "created_at": row.created_at,
        "record_timestamp_ms": row.timestamp_ms, "state": letter.state.as_str(),
        "relayed": letter.relayed.map(|relayed| json!({
            "partition": relayed.partition.0, "offset": relayed.offset.as_i64(),
        })),
        "headers": headers_to_json(row.headers.iter().map(|(key, value)| (&**key, value.as_deref()))),
        "key": key, "key_base64": key_base64, "payload": payload, "payload_base64": payload_base64,
        "actions": letter.actions,
    })
}

fn write_letter(letter: &LetterStatus, out: &mut dyn Write) -> anyhow::Result<()> {
    let row = &letter.row;
    let relayed = letter.relayed.map_or_else(String::new, |relayed| {
        format!(", in {}.dlq/{} at {}", row.topic, relayed.partition, relayed.offset)
    });
    let lines = [
        ("dead letter", format!("{} ({})", row.row_id, row.id)),
        ("from", format!("{}/{} at {}, group {}", row.topic, row.id.key.partition, row.id.offset, row.group)),
        ("stored", row.created_at.clone()),
        ("state", format!("{}{relayed}", letter.state.as_str())),
        ("attempt", row.attempt().to_string()),
        ("reason", row.reason.clone()),
        ("detail", row.detail.clone()),
        ("sqlstate", row.sqlstate.clone().unwrap_or_default()),
        ("correlation id", row.correlation_id.map(|id| id.to_string()).unwrap_or_default()),
        ("key", row.key.as_deref().map_or_else(|| "none".into(), for_people)),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(out, "{name:<15} {value}")?;
    }
    for (key, value) in &row.headers {
        let value = value.as_deref().map_or_else(|| "null".into(), for_people);
        writeln!(out, "{:<15} {} = {value}", "header", for_people(key))?;
    }
    for action in &letter.actions {
        let text = |name: &str| action.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        writeln!(
            out,
            "{:<15} {} by {} at {}: {}",
            "action",
            text("action"),
            text("actor"),
            text("at"),
            text("reason")
        )?;
    }
    match &row.value {
        None => writeln!(out, "no payload (a tombstone)")?,
        Some(value) => writeln!(out, "payload, {} bytes:\n{}", value.len(), for_people(value))?,
    }
    Ok(())
}

/// Text as it is but for control characters, which could change what a terminal shows; other bytes as base64.
fn for_people(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text
            .chars()
            .map(|c| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
            .collect(),
        Err(_not_text) => format!("base64 {}", base64::encode(bytes)),
    }
}

/// The choice of `args`, or why there is none.
async fn chosen(args: &ActArgs, session: &mut Session) -> Result<Result<LetterFilter, String>, StoreError> {
    let mut filter = LetterFilter::from(&args.filter);
    let is_narrowed = filter != LetterFilter::default() || !args.ids.is_empty();
    if is_narrowed == args.all {
        let text = if args.all {
            "--all and a narrower choice exclude each other"
        } else {
            "choose by --topic, --reason, --since or --ids, or say --all"
        };
        return Ok(Err(text.into()));
    }
    if args.ids.is_empty() {
        return Ok(Ok(filter));
    }
    let mut row_ids = Vec::with_capacity(args.ids.len());
    for text in &args.ids {
        let Some(id) = letter_id(text) else {
            return Ok(Err(format!("{text} is no number and no <stream id>:<partition>:<offset>")));
        };
        match session.letter(id).await? {
            Some(letter) => row_ids.push(letter.row.row_id),
            None => return Ok(Err(format!("there is no dead letter {text}"))),
        }
    }
    filter.row_ids = Some(row_ids);
    Ok(Ok(filter))
}

/// A session that holds the lock of redrives and discards, and the choice of `args`; or why not.
async fn begin(
    args: &ActArgs,
    store: &StoreSettings,
) -> Result<Result<(Session, LetterFilter), String>, StoreError> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let filter = match chosen(args, &mut session).await? {
        Ok(filter) => filter,
        Err(reason) => return Ok(Err(reason)),
    };
    if !session.lock_letters().await? {
        return Ok(Err("another redrive or discard is under way in this database".into()));
    }
    Ok(Ok((session, filter)))
}

async fn discard(args: &ActArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let (mut session, filter) = match begin(args, store).await? {
        Ok(begun) => begun,
        Err(reason) => return refuse(out, args.json.into(), &reason),
    };
    // What is rejected from now on was not there to be chosen.
    let newest = session.newest_open_letter(&store.group, &filter).await?;
    let mut page = LetterPage { after: 0, last: newest, max_count: LETTER_MAX_COUNT };
    let mut count = 0;
    loop {
        let rows: Vec<DeadLetterRow> = session.open_letters(&store.group, &filter, page).await?;
        let Some(last) = rows.last() else { break };
        page.after = last.row_id;
        count += i64::try_from(rows.len())?;
        if !args.dry_run {
            let ids: Vec<DeadLetterId> = rows.iter().map(|row| row.id).collect();
            let who = (args.actor.as_str(), args.why.as_deref().unwrap_or_default());
            session.record_letter_action(("discarded", None), &ids, who, &json!({})).await?;
        }
    }
    session.close().await;
    let (is_done, word) = (!args.dry_run, if args.dry_run { "would be discarded" } else { "discarded" });
    if args.json {
        writeln!(out, "{:#}", json!({"discarded": if is_done { count } else { 0 }, "chosen": count}))?;
    } else {
        writeln!(out, "{} dead letters {word}", with_thousands(count))?;
    }
    Ok(if count > 0 { ExitStatus::Success } else { ExitStatus::Refused })
}

async fn resume(args: &ResumeArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let scope = PartitionScope { topic: args.topic.clone(), partition: args.partition.map(Partition) };
    let resumed = session.resume(&store.group, &scope, (&args.actor, &args.why)).await?;
    session.close().await;
    let refused = resumed.is_empty().then_some("no breaker of that choice is open");
    if args.json {
        let partitions: Vec<Value> = resumed
            .iter()
            .map(|(topic, partition)| json!({"topic": topic, "partition": partition.0}))
            .collect();
        writeln!(out, "{:#}", json!({"resumed": partitions, "refused": refused}))?;
    } else if let Some(reason) = refused {
        return refuse(out, Form::Text, reason);
    } else {
        for (topic, partition) in &resumed {
            writeln!(
                out,
                "{topic}/{partition} goes on within seconds, with an empty window, where a process still holds it"
            )?;
        }
    }
    Ok(if resumed.is_empty() { ExitStatus::Refused } else { ExitStatus::Success })
}

fn refuse(out: &mut dyn Write, form: Form, reason: &str) -> anyhow::Result<ExitStatus> {
    match form {
        Form::Text => writeln!(out, "nothing was done: {reason}")?,
        Form::Json => writeln!(out, "{:#}", json!({"refused": reason}))?,
    }
    Ok(ExitStatus::Refused)
}
