//! `retention`: which time partitions of events are older than what is kept, and dropping them. Whole partitions, never
//! rows; nothing that a legal hold names, and nothing that day files still lack.

use std::io::Write;

use serde_json::{Value, json};

use super::ExitStatus;
use super::offsets::ActionArgs;
use super::table::{Cell, Table, with_thousands};
use crate::model::projection::DaySink;
use crate::model::retention::{Keep, LegalHold};
use crate::store::{
    Dropping, Expiry, RetentionAction, Session, SessionPurpose, StoreError, StoreSettings, Survey,
    TimePartition,
};

/// What to do about old events.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum RetentionCommand {
    /// Show each time partition: kept, held, or what `apply` would drop; changes nothing
    Plan(PlanArgs),
    /// Drop the time partitions that are older than what is kept; as the owner of the schema
    Apply(ApplyArgs),
    /// Keep the events of a tenant, an actor or a correlation id, however old they are
    Hold(HoldArgs),
    /// Lift a hold
    Release(HoldArgs),
    /// Show what is held now, and all that was ever held, released or dropped
    List(ListArgs),
}

/// What is kept.
#[derive(Debug, Clone, clap::Args)]
pub struct PlanArgs {
    /// How long after its time an event is kept: 90d, 52w, 18mo, 7y
    #[arg(long, value_name = "TIME")]
    pub keep: Keep,
    /// Keep partitions with such events too, beyond the recorded holds: tenant=NAME, actor=NAME, correlation_id=UUID
    #[arg(long = "legal-hold", value_name = "KIND=VALUE")]
    pub legal_holds: Vec<LegalHold>,
    /// Do not wait for the day files of this sink (purview, trust), as nobody writes them any more
    #[arg(long, value_name = "SINK", value_parser = sink)]
    pub ignore_sink: Vec<DaySink>,
    /// Write one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// What to drop, who does it and why; recorded in `retention_actions`.
#[derive(Debug, Clone, clap::Args)]
pub struct ApplyArgs {
    /// What is kept
    #[command(flatten)]
    pub plan: PlanArgs,
    /// Who and why
    #[command(flatten)]
    pub action: ActionArgs,
}

/// Whose events to hold or to release, who does it and why.
#[derive(Debug, Clone, clap::Args)]
pub struct HoldArgs {
    /// Whose: tenant=NAME, actor=NAME or correlation_id=UUID
    #[arg(value_name = "KIND=VALUE")]
    pub hold: LegalHold,
    /// Who and why
    #[command(flatten)]
    pub action: ActionArgs,
}

/// How to list.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ListArgs {
    /// Write one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

impl PlanArgs {
    fn expiry(&self) -> Expiry<'_> {
        Expiry { keep: self.keep, holds: &self.legal_holds, ignored: &self.ignore_sink }
    }
}

fn sink(text: &str) -> Result<DaySink, &'static str> {
    DaySink::read(text).ok_or("a sink is purview or trust")
}

/// What is, or was done, with a time partition.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// Not old enough.
    Kept,
    /// Old enough, and something keeps it.
    Blocked(Survey),
    /// `apply` would drop it.
    Droppable(Survey),
    /// It is gone.
    Dropped(Survey),
    /// `events` was in use.
    Busy,
    /// Somebody else dropped it.
    Gone,
}

#[derive(Debug)]
struct Report {
    partitions: Vec<(TimePartition, Fate)>,
    /// Events of the default partition that are older than what is kept.
    default_count: i64,
}

/// Runs `command` and writes what it found or did to `out`. [`ExitStatus::Refused`] when something that is old enough was
/// not dropped for another reason than a legal hold, or there is nothing to hold or release;
/// [`ExitStatus::Unreachable`] when PostgreSQL can't tell.
///
/// # Errors
/// What PostgreSQL refuses, and what `out` reports.
pub async fn run(
    command: &RetentionCommand,
    store: &StoreSettings,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let outcome = match command {
        RetentionCommand::Plan(args) => plan(args, store, out).await,
        RetentionCommand::Apply(args) => apply(args, store, out).await,
        RetentionCommand::Hold(args) => hold(args, store, out).await,
        RetentionCommand::Release(args) => release(args, store, out).await,
        RetentionCommand::List(args) => list(args, store, out).await,
    };
    match outcome {
        Err(error) if matches!(error.downcast_ref(), Some(StoreError::Unavailable { .. })) => {
            writeln!(out, "not done, as far as is known: {error}; look at it again with `retention plan`")?;
            Ok(ExitStatus::Unreachable)
        }
        other => other,
    }
}

async fn plan(args: &PlanArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let progress = super::spinner("counting events");
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let (found, default_count) = session.time_partitions(args.keep).await?;
    let mut report = Report { partitions: Vec::new(), default_count };
    for partition in found {
        progress.set_message(format!("counting events of {}", partition.name));
        let fate = fate_of(&mut session, &partition, args.expiry()).await?;
        report.partitions.push((partition, fate));
    }
    session.close().await;
    progress.finish_and_clear();
    report.write_to(args, out)?;
    Ok(ExitStatus::Success)
}

async fn fate_of(
    session: &mut Session,
    partition: &TimePartition,
    expiry: Expiry<'_>,
) -> Result<Fate, StoreError> {
    if !partition.is_expired {
        return Ok(Fate::Kept);
    }
    let survey = session.survey(partition, expiry).await?;
    Ok(if survey.is_free() { Fate::Droppable(survey) } else { Fate::Blocked(survey) })
}

async fn apply(args: &ApplyArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let progress = super::spinner("looking");
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let (found, default_count) = session.time_partitions(args.plan.keep).await?;
    let mut report = Report { partitions: Vec::new(), default_count };
    let mut failure = None;
    for partition in found {
        if !partition.is_expired {
            report.partitions.push((partition, Fate::Kept));
            continue;
        }
        progress.set_message(format!("counting and dropping {}", partition.name));
        let dropped = session.drop_partition(&partition, args.plan.expiry(), args.action.who_and_why()).await;
        let fate = match dropped {
            Ok(Dropping::Dropped(survey)) => Fate::Dropped(survey),
            Ok(Dropping::Kept(survey)) => Fate::Blocked(survey),
            Ok(Dropping::Busy) => Fate::Busy,
            Ok(Dropping::Gone) => Fate::Gone,
            // What was dropped before stays so, and is told.
            Err(error) => {
                failure = Some(error);
                break;
            }
        };
        report.partitions.push((partition, fate));
    }
    progress.finish_and_clear();
    report.write_to(&args.plan, out)?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    session.close().await;
    Ok(if report.is_done() { ExitStatus::Success } else { ExitStatus::Refused })
}

async fn hold(args: &HoldArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let is_new = session.hold(&args.hold, args.action.who_and_why()).await?;
    session.close().await;
    if is_new {
        writeln!(out, "held: {}; no time partition with such an event is dropped", args.hold)?;
        return Ok(ExitStatus::Success);
    }
    writeln!(out, "nothing was done: {} is held already", args.hold)?;
    Ok(ExitStatus::Refused)
}

async fn release(args: &HoldArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let was_held = session.release_hold(&args.hold, args.action.who_and_why()).await?;
    session.close().await;
    if was_held {
        writeln!(out, "released: {}", args.hold)?;
        return Ok(ExitStatus::Success);
    }
    writeln!(out, "nothing was done: {} is not held; `retention list` shows what is", args.hold)?;
    Ok(ExitStatus::Refused)
}

async fn list(args: &ListArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let (holds, actions) = (session.legal_holds().await?, session.retention_actions().await?);
    session.close().await;
    if args.json {
        let all = |rows: &[RetentionAction]| rows.iter().map(action_json).collect::<Vec<_>>();
        writeln!(out, "{:#}", json!({"legal_holds": all(&holds), "actions": all(&actions)}))?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(&["legal hold", "since", "by", "reason"]);
    for hold in &holds {
        table.push(vec![
            hold.subject.as_str().into(),
            hold.at.as_str().into(),
            hold.actor.as_str().into(),
            hold.reason.as_str().into(),
        ]);
    }
    table.write_to(out)?;
    writeln!(out)?;
    let mut table = Table::new(&["at", "action", "what", "events", "by", "login", "reason"]);
    for action in &actions {
        table.push(vec![
            action.at.as_str().into(),
            action.action.as_str().into(),
            action.subject.as_str().into(),
            action.event_count.into(),
            action.actor.as_str().into(),
            action.login.as_str().into(),
            action.reason.as_str().into(),
        ]);
    }
    table.write_to(out)?;
    Ok(ExitStatus::Success)
}

fn action_json(action: &RetentionAction) -> Value {
    json!({
        "at": action.at, "action": action.action, "subject": action.subject, "events": action.event_count,
        "actor": action.actor, "login": action.login, "reason": action.reason,
    })
}

impl Fate {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Blocked(survey) if !survey.held.is_empty() => "held",
            Self::Blocked(_) => "unprojected",
            Self::Droppable(_) => "droppable",
            Self::Dropped(_) => "dropped",
            Self::Busy => "busy",
            Self::Gone => "gone",
        }
    }

    const fn survey(&self) -> Option<&Survey> {
        match self {
            Self::Blocked(survey) | Self::Droppable(survey) | Self::Dropped(survey) => Some(survey),
            Self::Kept | Self::Busy | Self::Gone => None,
        }
    }

    /// Why it is so, where that is not told by its name.
    fn reasons(&self) -> Vec<String> {
        match self {
            Self::Blocked(survey) => {
                let held = survey
                    .held
                    .iter()
                    .map(|(hold, count)| format!("legal hold {hold}: {} events", with_thousands(*count)));
                let unprojected = survey.unprojected.iter().map(|(sink, count)| {
                    format!("{} events have no line in the day files of {sink} yet", with_thousands(*count))
                });
                held.chain(unprojected).collect()
            }
            Self::Busy => vec![
                "events was in use by a long query or export, or another apply runs; try again".to_owned(),
            ],
            Self::Gone => vec!["somebody else dropped or changed it".to_owned()],
            Self::Kept | Self::Droppable(_) | Self::Dropped(_) => Vec::new(),
        }
    }
}

impl Report {
    /// Whether all that may be dropped is.
    fn is_done(&self) -> bool {
        self.partitions.iter().all(|(_, fate)| match fate {
            Fate::Kept | Fate::Dropped(_) | Fate::Gone => true,
            Fate::Blocked(survey) => survey.unprojected.is_empty(),
            Fate::Droppable(_) | Fate::Busy => false,
        })
    }

    fn write_to(&self, args: &PlanArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        if args.json {
            writeln!(out, "{:#}", self.to_json(args.keep))?;
            return Ok(());
        }
        let mut table = Table::new(&["time partition", "from", "to", "events", "bytes", "state", "why"]);
        for (partition, fate) in &self.partitions {
            table.push(vec![
                partition.name.as_str().into(),
                partition.lower.as_str().into(),
                partition.upper.as_str().into(),
                fate.survey().map(|survey| survey.event_count).into(),
                partition.len_bytes.into(),
                fate.as_str().into(),
                Cell::from(fate.reasons().join("; ").as_str()),
            ]);
        }
        table.write_to(out)?;
        writeln!(out)?;
        for word in ["dropped", "droppable", "held", "unprojected", "busy"] {
            let of_word: Vec<&(TimePartition, Fate)> =
                self.partitions.iter().filter(|(_, fate)| fate.as_str() == word).collect();
            if !of_word.is_empty() {
                let events =
                    of_word.iter().filter_map(|(_, fate)| fate.survey()).map(|survey| survey.event_count);
                let count = i64::try_from(of_word.len()).unwrap_or(i64::MAX);
                let events = with_thousands(events.fold(0, i64::saturating_add));
                writeln!(out, "{word}: {} time partitions, {events} events", with_thousands(count))?;
            }
        }
        if self.default_count > 0 {
            writeln!(
                out,
                "events_default, which is never dropped, has {} events older than {}",
                with_thousands(self.default_count),
                args.keep
            )?;
        }
        Ok(())
    }

    fn to_json(&self, keep: Keep) -> Value {
        let partitions = self.partitions.iter().map(|(partition, fate)| {
            json!({
                "name": partition.name, "from": partition.lower, "to": partition.upper,
                "bytes": partition.len_bytes, "state": fate.as_str(),
                "events": fate.survey().map(|survey| survey.event_count), "reasons": fate.reasons(),
            })
        });
        json!({
            "keep": keep.to_string(), "partitions": partitions.collect::<Vec<_>>(),
            "expired_in_default": self.default_count,
        })
    }
}
