//! `migrate`: the schema of this version. A schema of that name that is not ours is never touched without being told so.

use std::io::Write;

use super::table::{Cell, Table, with_thousands};
use super::{ExitStatus, complain};
use crate::failpoint;
use crate::store::{self, AdoptedSchema, ForeignObject, SchemaAdoption, SessionPurpose, StoreSettings};

/// How to migrate.
#[derive(Debug, Clone, clap::Args)]
pub struct MigrateArgs {
    /// Rename a schema audit_events that is not ours, such as the predecessor's, and go on; nothing is dropped
    #[arg(long)]
    pub adopt_legacy: bool,
}

/// Migrates, and writes what was done to `out`. [`ExitStatus::Refused`] when a foreign schema is in the way, or
/// can't be renamed; nothing is changed then.
///
/// # Errors
/// What PostgreSQL or `out` report.
pub async fn run(
    args: &MigrateArgs,
    store: &StoreSettings,
    partition_interval: &'static str,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    if args.adopt_legacy {
        match session.adopt_legacy().await? {
            SchemaAdoption::Renamed(adopted) => tell(&adopted, out)?,
            SchemaAdoption::Nothing => {
                writeln!(out, "nothing to adopt: no schema audit_events of another program is in the way")?
            }
            SchemaAdoption::Refused(reason) => {
                session.close().await;
                complain(&format!("nothing was done: {reason}"));
                return Ok(ExitStatus::Refused);
            }
        }
        failpoint::at("migrate_adopted");
    } else {
        let foreign = session.foreign_objects().await?;
        if !foreign.is_empty() {
            session.close().await;
            complain(&format!(
                "nothing was done: the schema audit_events is not this program's ({}); `audit-consumer migrate \
                 --adopt-legacy` renames it to audit_events_legacy, with all that is in it, and goes on; \
                 docs/MIGRATION.md tells the whole way",
                in_the_way(&foreign)
            ));
            return Ok(ExitStatus::Refused);
        }
    }
    let missing = store::migrate(&mut session, partition_interval).await?;
    session.close().await;
    writeln!(out, "the schema audit_events is up to date; time partitions are made by {partition_interval}")?;
    if !missing.is_empty() {
        let commands: Vec<String> =
            missing.iter().map(|role| format!("CREATE ROLE {role} NOLOGIN")).collect();
        writeln!(
            out,
            "WARNING: this role may not create roles, and some are missing; as one that may: {}; then migrate again, \
             which grants them what they need",
            commands.join("; ")
        )?;
    }
    Ok(ExitStatus::Success)
}

/// What stands under names of ours.
fn in_the_way(foreign: &[ForeignObject]) -> String {
    let taken = foreign.iter().filter(|object| object.is_in_the_way);
    taken.map(|object| format!("{} audit_events.{}", object.kind, object.name)).collect::<Vec<_>>().join(", ")
}

fn tell(adopted: &AdoptedSchema, out: &mut dyn Write) -> anyhow::Result<()> {
    let name = adopted.name;
    writeln!(out, "the schema audit_events is now {name}; nothing in it was changed:")?;
    let mut table = Table::new(&["what", "name now", "rows, about"]);
    for object in &adopted.objects {
        let name = match object.kind.as_str() {
            "function" => object.name.replacen("audit_events.", &format!("{name}."), 1),
            _ => format!("{name}.{}", object.name),
        };
        table.push(vec![object.kind.as_str().into(), name.as_str().into(), Cell::from(object.row_estimate)]);
    }
    table.write_to(out)?;
    if let Some(events) = adopted.objects.iter().find(|object| object.name == "events") {
        let rows = events
            .row_estimate
            .map_or_else(String::new, |rows| format!(" (about {} rows)", with_thousands(rows)));
        writeln!(
            out,
            "next: `audit-consumer import --table {name}.events`{rows}, when Kafka's records are stored"
        )?;
    }
    writeln!(out)?;
    Ok(())
}
