//! The command line. Exit codes: 0 done; 1 done and something differs, or the work failed; 2 wrong usage or
//! configuration; 3 what had to be asked did not answer, so that nothing is known, or not all.

mod check;
#[expect(clippy::doc_markdown, reason = "its comments are help texts for a terminal, not Markdown")]
pub mod dlq;
mod emit;
#[expect(clippy::doc_markdown, reason = "its comments are help texts for a terminal, not Markdown")]
pub mod export;
mod healthcheck;
#[expect(clippy::doc_markdown, reason = "its comments are help texts for a terminal, not Markdown")]
pub mod import;
#[expect(clippy::doc_markdown, reason = "its comments are help texts for a terminal, not Markdown")]
pub mod migrate;
pub mod offsets;
#[expect(clippy::doc_markdown, reason = "its comments are help texts for a terminal, not Markdown")]
pub mod projections;
#[expect(clippy::doc_markdown, reason = "its comments are help texts for a terminal, not Markdown")]
pub mod retention;
#[expect(clippy::doc_markdown, reason = "its comments are help texts for a terminal, not Markdown")]
pub mod sources;
#[expect(clippy::doc_markdown, reason = "its comments are help texts for a terminal, not Markdown")]
pub mod spool;
pub mod table;
pub mod trust;
pub mod verify;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::config::{Config, LogFormat, Settings};
use crate::native;
use crate::observe::{RecentLines, SpanCounter, Traces};
use crate::store::{ExcessRights, StoreError};
use crate::{app, observe};

/// How long the process waits at its end for clients of Kafka to be destroyed.
const LET_GO_PATIENCE: Duration = Duration::from_secs(2);

/// Exactly-once stream processor for compliance audit events, from Kafka to PostgreSQL.
///
/// Every record of the source topics is stored in PostgreSQL exactly once: as an event, a counted duplicate or a
/// dead letter. Settings are environment variables or flags; `audit-consumer check` shows what is in effect.
#[derive(Debug, Parser)]
#[command(name = "audit-consumer", version, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 done; 1 something differs, or the work failed; 2 wrong usage or configuration; \
    3 PostgreSQL or Kafka did not answer, so that nothing is known, or not all."
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Consume, until SIGTERM or SIGINT (the default).
    Run,
    /// Bring the database's schema to this version and make the time partitions ahead.
    Migrate(migrate::MigrateArgs),
    /// Take over what the predecessor left: its table, its Purview and trust files.
    Import(import::ImportArgs),
    /// Show the configuration in effect, try the connections, and say what is guaranteed.
    Check,
    /// Send events to Kafka: from standard input, or generated for load.
    Emit(emit::EmitArgs),
    /// Ask the running daemon whether it is alive (for container health checks).
    Healthcheck,
    /// Look at positions, adopt a topic that was created again, declare a gap.
    #[command(subcommand)]
    Offsets(offsets::OffsetsCommand),
    /// Look at dead letters, send them back, give them up, close a breaker.
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Look at the spool, the records that wait on this disk for PostgreSQL; bring them there.
    #[command(subcommand)]
    Spool(spool::SpoolCommand),
    /// Look at day files (Purview and trust logs), adopt what an instance left that never returns.
    #[command(subcommand)]
    Projections(projections::ProjectionsCommand),
    /// Write events as lines for others: Purview logs, trust logs, events, Office 365 records.
    Export(Box<export::ExportArgs>),
    /// Show how far actors are trusted, and how that was on the last days.
    Trust(trust::TrustArgs),
    /// Look at the registry of federated sources, add to it, enable and disable.
    #[command(subcommand)]
    Sources(sources::SourcesCommand),
    /// Look at the time partitions of events, drop those that are older than what is kept; legal holds.
    #[command(subcommand)]
    Retention(retention::RetentionCommand),
    /// Prove the account: counters against rows, holes and overlaps, positions against Kafka.
    Verify(verify::VerifyArgs),
}

/// How a command ended, for the exit code. What the parser refuses, and a wrong configuration, is 2 as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done, and all is well: 0.
    Success,
    /// `verify` has findings: 1.
    Findings,
    /// Nothing was done, or not all, for a reason that was written out: 1.
    Refused,
    /// The command line contradicts itself: 2.
    Misused,
    /// PostgreSQL or Kafka did not answer, so nothing is known, or not all: 3.
    Unreachable,
}

impl ExitStatus {
    const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Findings | Self::Refused => 1,
            Self::Misused => 2,
            Self::Unreachable => 3,
        }
    }
}

/// Reads the arguments, does what they say.
pub fn main() -> ExitCode {
    native::bound_heap();
    crate::failpoint::set_up();
    let arguments = Arguments::parse();
    let config = match Config::resolve(&arguments.settings) {
        Ok(config) => config,
        Err(errors) => {
            for error in errors.0 {
                complain(&format!("configuration: {error}"));
            }
            return ExitCode::from(2);
        }
    };
    let command = arguments.command.unwrap_or(Command::Run);
    let is_daemon = matches!(command, Command::Run);
    // What breaks there is a connection, not our output.
    let has_output = !matches!(command, Command::Run | Command::Healthcheck);
    let level = if is_daemon { config.process.log_level } else { tracing::Level::ERROR };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("start the runtime: {error}"));
            return ExitCode::from(1);
        }
    };
    let as_json = config.process.log_format == LogFormat::Json;
    let recent = observe::install(level, as_json).unwrap_or_else(|error| {
        complain(&error.to_string());
        RecentLines::default()
    });
    let outcome = runtime.block_on(execute(command, &config, recent));
    // Threads that still wait for Kafka or PostgreSQL must not hold the process.
    runtime.shutdown_background();
    native::wait_for_let_go(LET_GO_PATIENCE);
    let code = match outcome {
        Ok(status) => status.code(),
        Err(error) if has_output && is_broken_pipe(&error) => ExitStatus::Success.code(),
        Err(error) => {
            complain(&describe(&error));
            exit_code(&error)
        }
    };
    // If that is gone there is nobody to tell.
    drop(std::io::stdout().flush());
    native::end(code)
}

async fn execute(command: Command, config: &Config, recent: RecentLines) -> anyhow::Result<ExitStatus> {
    let mut out = std::io::stdout();
    match command {
        Command::Run => app::run(config, recent).await.map(|()| ExitStatus::Success),
        Command::Migrate(args) => {
            let interval = config.database.partition_interval;
            migrate::run(&args, &app::store_settings(config), interval, &mut out).await
        }
        Command::Import(args) => {
            let settings = import::ImportSettings {
                store: app::store_settings(config),
                rules: app::decode_rules(config),
                limits: app::batch_limits(config),
                work_deadline: config.database.statement_timeout + import::WORK_MARGIN,
            };
            import::run(&args, &settings, &mut out).await
        }
        Command::Check => check::run(config, &mut out).await,
        Command::Emit(args) => tokio::task::block_in_place(|| emit::run(&args, config, &mut out)),
        Command::Healthcheck => healthcheck::run(config).await,
        Command::Offsets(command) => {
            let store = app::store_settings(config);
            offsets::run(&command, &store, &config.kafka.connection_properties(), &mut out).await
        }
        Command::Dlq(command) => {
            let store = app::store_settings(config);
            dlq::run(&command, &store, &app::outlet_settings(config), &mut out).await
        }
        Command::Spool(command) => spool::run(&command, config, &mut out).await,
        Command::Export(args) => {
            let store = app::store_settings(config);
            export::run(&args, &store, &config.projection, &mut out).await
        }
        Command::Projections(command) => {
            projections::run(&command, &app::store_settings(config), &mut out).await
        }
        Command::Trust(args) => trust::run(&args, &app::store_settings(config), &mut out).await,
        Command::Sources(command) => sources::run(&command, &app::store_settings(config), &mut out).await,
        Command::Retention(command) => retention::run(&command, &app::store_settings(config), &mut out).await,
        Command::Verify(args) => {
            let store = app::store_settings(config);
            let kafka = config.kafka.connection_properties();
            let spool_dir = config.spool.as_ref().map(|spool| spool.dir.as_path());
            let rules = app::decode_rules(config);
            let edges = verify::Edges {
                kafka_properties: &kafka,
                rules: &rules,
                spool_dir,
                log_dir: &config.process.log_dir,
            };
            verify::run(&args, &store, edges, &mut out).await
        }
    }
}

/// A sign of life for people while something long goes on; only where standard error is a terminal.
fn spinner(message: &'static str) -> indicatif::ProgressBar {
    let progress = indicatif::ProgressBar::new_spinner().with_message(message);
    progress.enable_steady_tick(Duration::from_millis(200));
    progress
}

/// Where a command's spans go, as the environment says; to be shut down at its end.
fn traces() -> Traces {
    let traces = SpanCounter::of_command().map_err(anyhow::Error::from);
    let traces = traces.and_then(|counter| Ok(Traces::from_environment(counter)?));
    traces.unwrap_or_else(|error| {
        complain(&format!("{error}; going on without traces"));
        Traces::default()
    })
}

/// One line on standard error; if that is gone there is nobody to tell.
fn complain(line: &str) {
    let mut stderr = std::io::stderr();
    drop(writeln!(stderr, "audit-consumer: {line}"));
}

/// The error with its causes, each said once, and what to do next where we know it.
fn describe(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(&cause);
        }
    }
    let advice = error.downcast_ref::<StoreError>().and_then(advice);
    advice.map_or(line.clone(), |advice| format!("{line}; {advice}"))
}

/// What to do about an error of PostgreSQL.
fn advice(error: &StoreError) -> Option<&'static str> {
    Some(match error.sqlstate()? {
        "28P01" | "28000" => {
            "check user and password in DATABASE_URL or DATABASE_URL_FILE, and the certificate in PGSSLCERT where it asks for one"
        }
        "3D000" => "create the database, or name another one in DATABASE_URL",
        "42P01" | "42703" | "3F000" | "42883" => "run `audit-consumer migrate`",
        "42501" => {
            "grant the role what it needs: audit_writer to run, audit_admin for what operators do (to migrate, and to drop \
             time partitions: the owner); README, Setting up, has them all"
        }
        "io" => "check that PostgreSQL runs where DATABASE_URL says",
        _ => return None,
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<ExcessRights>() {
        return ExitStatus::Misused.code();
    }
    match error.downcast_ref::<StoreError>() {
        Some(StoreError::Unavailable { .. } | StoreError::Contended { .. }) => ExitStatus::Unreachable.code(),
        _ => ExitStatus::Refused.code(),
    }
}

/// Whether who reads our output has gone, which is his right. PostgreSQL's connection may break the same way; then
/// nothing is known of what the command did.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_broken = |cause: &(dyn std::error::Error + 'static)| {
        let error = cause.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    };
    // A transparent wrapper leaves only the inner one in the chain.
    let is_of_postgresql =
        |cause: &(dyn std::error::Error + 'static)| cause.is::<StoreError>() || cause.is::<sqlx::Error>();
    error.chain().any(is_broken) && !error.chain().any(is_of_postgresql)
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;
    use crate::pipeline::StrayError;

    #[test]
    fn only_a_closed_output_ends_a_command_as_if_all_were_well() {
        let broken = || Error::from(ErrorKind::BrokenPipe);
        let lost = || StoreError::from(sqlx::Error::Io(broken()));
        let cases: [(anyhow::Error, bool); 7] = [
            (broken().into(), true),
            (anyhow::Error::from(broken()).context("write lines"), true),
            (Error::from(ErrorKind::TimedOut).into(), false),
            (lost().into(), false),
            (anyhow::Error::from(lost()).context("commit"), false),
            (StrayError::from(lost()).into(), false),
            (sqlx::Error::Io(broken()).into(), false),
        ];
        for (error, expect) in cases {
            assert_eq!(is_broken_pipe(&error), expect, "{error:#}");
        }
        assert_eq!(exit_code(&lost().into()), ExitStatus::Unreachable.code());
    }
}
