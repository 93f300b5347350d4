//! `sources`: the registry of federated sources. It names where credentials live and holds none.

use std::io::Write;

use clap::builder::NonEmptyStringValueParser;
use serde_json::{Value, json};

use super::ExitStatus;
use super::table::{Cell, Table};
use crate::model::secret::{suspicion_in_json, suspicion_in_text};
use crate::store::{NewSource, SessionPurpose, SourceRow, StoreError, StoreSettings};

/// What to do with the registry.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum SourcesCommand {
    /// List the sources
    List(ListArgs),
    /// Show one
    Show(ShowArgs),
    /// Add one; what looks like a secret is refused
    Add(AddArgs),
    /// Allow that a source is asked
    Enable(ChangeArgs),
    /// Forbid that a source is asked; its row stays
    Disable(ChangeArgs),
}

/// How to list.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ListArgs {
    /// Write one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Which to show.
#[derive(Debug, Clone, clap::Args)]
pub struct ShowArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What to add.
#[derive(Debug, Clone, clap::Args)]
pub struct AddArgs {
    /// Its name; no other source has it
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// What kind of source it is, such as oauth or native
    #[arg(long = "type", value_name = "TYPE", value_parser = NonEmptyStringValueParser::new())]
    pub source_type: String,
    /// How its handler logs in, such as oauth2 or none
    #[arg(long = "auth", value_name = "TYPE", default_value = "none", value_parser = NonEmptyStringValueParser::new())]
    pub auth_type: String,
    /// Where its handler is: a path or a URL without credentials
    #[arg(long = "handler", value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    pub handler_path: String,
    /// Further facts as a JSON object; say where a secret lives by a key such as secret_ref or token_env
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub metadata: String,
    /// Add it disabled
    #[arg(long)]
    pub disabled: bool,
    /// Who, for the record
    #[arg(long, env = "USER", default_value = "unknown", value_name = "NAME")]
    pub actor: String,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Which to enable or disable.
#[derive(Debug, Clone, clap::Args)]
pub struct ChangeArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Who, for the record
    #[arg(long, env = "USER", default_value = "unknown", value_name = "NAME")]
    pub actor: String,
    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs `command` and writes what was done to `out`. [`ExitStatus::Refused`] for a source that is not there, or is
/// there already, or that seems to hold a secret.
///
/// # Errors
/// What PostgreSQL or `out` report.
pub async fn run(
    command: &SourcesCommand,
    store: &StoreSettings,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    match command {
        SourcesCommand::List(args) => list(args, store, out).await,
        SourcesCommand::Show(args) => show(args, store, out).await,
        SourcesCommand::Add(args) => add(args, store, out).await,
        SourcesCommand::Enable(args) => change(args, true, store, out).await,
        SourcesCommand::Disable(args) => change(args, false, store, out).await,
    }
}

async fn list(args: &ListArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let sources = session.sources().await?;
    session.close().await;
    if args.json {
        let sources: Vec<Value> = sources.iter().map(source_json).collect();
        writeln!(out, "{:#}", json!({ "sources": sources }))?;
        return Ok(ExitStatus::Success);
    }
    let mut table =
        Table::new(&["source", "type", "auth", "handler", "state", "audited", "purview", "changed by"]);
    let word = |is_so: bool| Cell::from(if is_so { "yes" } else { "no" });
    for source in &sources {
        table.push(vec![
            source.name.as_str().into(),
            source.source_type.as_str().into(),
            source.auth_type.as_str().into(),
            source.handler_path.as_str().into(),
            state(source).into(),
            word(source.is_audited),
            word(source.is_purview_compatible),
            source.changed_by.as_str().into(),
        ]);
    }
    table.write_to(out)?;
    Ok(ExitStatus::Success)
}

async fn show(args: &ShowArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let source = session.source(&args.name).await?;
    session.close().await;
    match source {
        Some(source) => write_source(&source, args.json, out),
        None => refuse(out, &format!("there is no source {}", args.name)),
    }
}

async fn add(args: &AddArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let metadata: Value = match serde_json::from_str(&args.metadata) {
        Ok(metadata @ Value::Object(_)) => metadata,
        _ => return refuse(out, "--metadata is no JSON object"),
    };
    let texts = [&args.name, &args.source_type, &args.auth_type, &args.handler_path];
    let in_text = texts.into_iter().find_map(|text| suspicion_in_text(text));
    if let Some(suspicion) = in_text.or_else(|| suspicion_in_json(&metadata)) {
        let advice =
            "the registry holds no secrets; say where it lives, such as by a key secret_ref or token_env";
        return refuse(out, &format!("{suspicion}: {advice}"));
    }
    let source = NewSource {
        name: &args.name,
        source_type: &args.source_type,
        auth_type: &args.auth_type,
        handler_path: &args.handler_path,
        metadata: &metadata,
        is_enabled: !args.disabled,
    };
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let added = match session.add_source(&source, &args.actor).await {
        Err(error @ StoreError::Refused { .. }) => return refuse(out, &error.to_string()),
        added => added?,
    };
    session.close().await;
    match added {
        Some(source) => write_source(&source, args.json, out),
        None => refuse(out, &format!("there is a source {} already", args.name)),
    }
}

async fn change(
    args: &ChangeArgs,
    is_enabled: bool,
    store: &StoreSettings,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let source = session.enable_source(&args.name, is_enabled, &args.actor).await?;
    session.close().await;
    match source {
        Some(source) => write_source(&source, args.json, out),
        None => refuse(out, &format!("there is no source {}", args.name)),
    }
}

const fn state(source: &SourceRow) -> &'static str {
    if source.is_enabled { "enabled" } else { "disabled" }
}

fn source_json(source: &SourceRow) -> Value {
    json!({
        "source_id": source.id.to_string(), "name": source.name, "type": source.source_type,
        "auth": source.auth_type, "handler": source.handler_path, "enabled": source.is_enabled,
        "audited": source.is_audited, "purview_compatible": source.is_purview_compatible,
        "metadata": source.metadata, "created_at": source.created_at, "changed_at": source.changed_at,
        "changed_by": source.changed_by,
    })
}

fn write_source(source: &SourceRow, as_json: bool, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    if as_json {
        writeln!(out, "{:#}", source_json(source))?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(&["fact", "value"]);
    for (name, value) in [
        ("source", source.name.clone()),
        ("type", source.source_type.clone()),
        ("auth", source.auth_type.clone()),
        ("handler", source.handler_path.clone()),
        ("state", state(source).to_owned()),
        ("audited", source.is_audited.to_string()),
        ("purview compatible", source.is_purview_compatible.to_string()),
        ("metadata", source.metadata.to_string()),
        ("added", source.created_at.clone()),
        ("changed", format!("{} by {}", source.changed_at, source.changed_by)),
    ] {
        table.push(vec![name.into(), value.as_str().into()]);
    }
    table.write_to(out)?;
    Ok(ExitStatus::Success)
}

fn refuse(out: &mut dyn Write, reason: &str) -> anyhow::Result<ExitStatus> {
    writeln!(out, "nothing was done: {reason}")?;
    Ok(ExitStatus::Refused)
}
