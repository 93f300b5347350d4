//! `projections`: day files as PostgreSQL knows them, and what to do about an instance that never returns.

use std::io::Write;

use clap::builder::NonEmptyStringValueParser;
use serde_json::{Value, json};
use uuid::Uuid;

use super::ExitStatus;
use super::table::{Cell, Table, with_thousands};
use crate::model::projection::DaySink;
use crate::store::{
    Adoption, ProjectionFile, ProjectionInstance, ProjectionLag, SessionPurpose, StoreError, StoreSettings,
};

/// What to do with day files.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum ProjectionsCommand {
    /// Show instances, cursors, lag, and every file with its recorded length
    List(ListArgs),
    /// Hand what an instance intended to write, and did not confirm, to the instances that run; for one that never returns
    Adopt(AdoptArgs),
}

/// How to list.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ListArgs {
    /// Write one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Whose intent to adopt, who does it, and why; recorded in projection_actions.
#[derive(Debug, Clone, clap::Args)]
pub struct AdoptArgs {
    /// The instance's id, as `projections list` shows it
    #[arg(value_name = "INSTANCE")]
    pub instance: Uuid,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub reason: String,
    /// Who, for the record
    #[arg(long, env = "USER", default_value = "unknown", value_name = "NAME")]
    pub actor: String,
}

/// Runs `command` and writes what it found or did to `out`. [`ExitStatus::Refused`] when there is nothing to do,
/// [`ExitStatus::Unreachable`] when PostgreSQL can't tell.
///
/// # Errors
/// What `out` reports.
pub async fn run(
    command: &ProjectionsCommand,
    store: &StoreSettings,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let outcome = match command {
        ProjectionsCommand::List(args) => list(args, store, out).await,
        ProjectionsCommand::Adopt(args) => adopt(args, store, out).await,
    };
    match outcome {
        Err(error) if error.is::<StoreError>() => {
            writeln!(out, "not done, as far as is known: {error}")?;
            Ok(ExitStatus::Unreachable)
        }
        other => other,
    }
}

async fn list(args: &ListArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let instances = session.projection_instances().await?;
    let lags = session.projection_lags().await?;
    let files = session.projection_files(None).await?;
    session.close().await;
    if args.json {
        let answer = json!({
            "instances": instances.iter().map(instance_json).collect::<Vec<_>>(),
            "cursors": lags.iter().map(lag_json).collect::<Vec<_>>(),
            "files": files.iter().map(file_json).collect::<Vec<_>>(),
        });
        writeln!(out, "{answer:#}")?;
        return Ok(ExitStatus::Success);
    }
    instance_table(&instances).write_to(out)?;
    writeln!(out)?;
    lag_table(&lags).write_to(out)?;
    writeln!(out)?;
    file_table(&files).write_to(out)?;
    Ok(ExitStatus::Success)
}

const fn state_of(instance: &ProjectionInstance) -> &'static str {
    match (instance.is_alive, instance.intended == instance.confirmed) {
        (true, _) => "runs",
        (false, true) => "away",
        (false, false) => "away, has an open intent",
    }
}

/// Offsets between cursor and position; a cursor that is not there yet begins at the first offset.
fn lag_of(lag: &ProjectionLag) -> Option<i64> {
    Some(lag.position.saturating_sub(lag.cursor?))
}

fn instance_table(instances: &[ProjectionInstance]) -> Table {
    let mut table = Table::new(&["sink", "instance", "state", "intents", "confirmed", "last intent"]);
    for instance in instances {
        table.push(vec![
            instance.sink.as_str().into(),
            instance.instance.to_string().as_str().into(),
            state_of(instance).into(),
            instance.intended.into(),
            instance.confirmed.into(),
            instance.intended_at.as_deref().unwrap_or("never").into(),
        ]);
    }
    table
}

fn lag_table(lags: &[ProjectionLag]) -> Table {
    let mut table = Table::new(&["sink", "topic", "partition", "cursor", "position", "lag"]);
    for lag in lags {
        table.push(vec![
            lag.sink.as_str().into(),
            lag.topic.as_str().into(),
            i64::from(lag.partition).into(),
            lag.cursor.into(),
            lag.position.into(),
            lag_of(lag).into(),
        ]);
    }
    table
}

fn number(value: u64) -> Cell {
    Cell::Number(i64::try_from(value).unwrap_or(i64::MAX))
}

fn file_table(files: &[ProjectionFile]) -> Table {
    let mut table = Table::new(&["sink", "instance", "file", "bytes", "confirmed", "lines", "last line"]);
    for file in files {
        table.push(vec![
            file.sink.as_str().into(),
            file.instance.to_string().as_str().into(),
            file.name.as_str().into(),
            number(file.len_bytes),
            number(file.confirmed_len_bytes),
            number(file.line_count),
            file.recorded_at.as_str().into(),
        ]);
    }
    table
}

fn instance_json(instance: &ProjectionInstance) -> Value {
    json!({
        "sink": instance.sink.as_str(), "instance": instance.instance.to_string(),
        "running": instance.is_alive, "intended": instance.intended, "confirmed": instance.confirmed,
        "intended_at": instance.intended_at,
    })
}

fn lag_json(lag: &ProjectionLag) -> Value {
    json!({
        "sink": lag.sink.as_str(), "topic": lag.topic, "partition": lag.partition, "cursor": lag.cursor,
        "position": lag.position, "lag": lag_of(lag),
    })
}

fn file_json(file: &ProjectionFile) -> Value {
    json!({
        "sink": file.sink.as_str(), "instance": file.instance.to_string(), "file": file.name,
        "bytes": file.len_bytes, "confirmed_bytes": file.confirmed_len_bytes, "lines": file.line_count,
        "recorded_at": file.recorded_at,
    })
}

async fn adopt(args: &AdoptArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let (mut range_count, mut is_known) = (0, false);
    for sink in DaySink::ALL {
        let mut session = store.connect(SessionPurpose::Operator).await?;
        let adoption = session.adopt_projection((sink, args.instance), (&args.actor, &args.reason)).await?;
        session.close().await;
        match adoption {
            Adoption::Done { range_count: count } => {
                let count_text = with_thousands(i64::try_from(count).unwrap_or(i64::MAX));
                writeln!(out, "{sink}: {count_text} ranges are pending for the instances that run")?;
                range_count += count;
                is_known = true;
            }
            Adoption::Nothing => {
                writeln!(out, "{sink}: nothing to adopt, all that it intended is confirmed")?;
                is_known = true;
            }
            Adoption::Unknown => {}
            Adoption::Alive => {
                writeln!(out, "{sink}: the instance runs: it has a session to PostgreSQL; stop it first")?;
                return Ok(ExitStatus::Refused);
            }
        }
    }
    if !is_known {
        writeln!(out, "there is no instance {}; see `projections list`", args.instance)?;
    }
    if range_count > 0 {
        writeln!(
            out,
            "next: their lines appear in the files of a running instance within seconds; ship nothing more from the \
             files of {}",
            args.instance
        )?;
    }
    Ok(if range_count > 0 { ExitStatus::Success } else { ExitStatus::Refused })
}
