//! `check`: the configuration in effect, the connections tried, and what is guaranteed.

use std::io::Write;

use sqlx::Row;

use super::table::Table;
use super::{ExitStatus, advice};
use crate::app;
use crate::config::{Config, TopicSelection};
use crate::source::{Lookup, LookupError};
use crate::store::{ExcessRights, SessionPurpose, StoreError};

/// The oldest PostgreSQL that is supported, as `server_version_num` counts.
const POSTGRES_MIN_VERSION: i32 = 150_000;

pub(super) async fn run(config: &Config, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut table = Table::new(&["setting", "value", ""]);
    for setting in config.shown() {
        let origin = if setting.is_default { "default" } else { "" };
        table.push(vec![setting.variable.into(), setting.value.as_str().into(), origin.into()]);
    }
    table.write_to(out)?;
    writeln!(out)?;
    let mut voids = Vec::new();
    let mut excess = None;
    match check_database(config).await {
        Ok((lines, found)) => {
            lines.iter().try_for_each(|line| writeln!(out, "postgresql  {line}"))?;
            excess = found;
        }
        Err(error) => {
            let advice = advice(&error).map_or_else(String::new, |advice| format!("; {advice}"));
            writeln!(out, "postgresql  FAILED: {error}{advice}")?;
            voids.push("PostgreSQL can't be used as configured");
        }
    }
    match tokio::task::block_in_place(|| check_kafka(config)) {
        Ok(lines) => lines.iter().try_for_each(|line| writeln!(out, "kafka       {line}"))?,
        Err(why) => {
            writeln!(out, "kafka       FAILED: {why}")?;
            voids.push("Kafka can't be used as configured");
        }
    }
    writeln!(out)?;
    let is_refused = config.database.requires_least_privilege && excess.is_some();
    if let Some(excess) = excess {
        writeln!(out, "append only: void, as {excess}")?;
        if is_refused {
            writeln!(out, "REQUIRE_LEAST_PRIVILEGE=true: `run` refuses this role")?;
        }
    }
    if voids.is_empty() {
        writeln!(
            out,
            "guarantee: every record of the source topics is stored exactly once: as an event, a counted"
        )?;
        writeln!(
            out,
            "duplicate or a dead letter. Void if Kafka deletes records before they are read (retention), or if"
        )?;
        writeln!(out, "somebody changes the tables of schema audit_events by hand.")?;
        return Ok(if is_refused { ExitStatus::Misused } else { ExitStatus::Success });
    }
    for void in voids {
        writeln!(out, "guarantee: none, as {void}")?;
    }
    Ok(ExitStatus::Unreachable)
}

async fn check_database(config: &Config) -> Result<(Vec<String>, Option<ExcessRights>), StoreError> {
    let store = app::store_settings(config);
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let connection = session.connection();
    let row = sqlx::query(
        "SELECT current_user::text AS role, current_database()::text AS name, current_setting('server_version') AS version, \
                current_setting('server_version_num')::integer AS number, current_setting('fsync') AS fsync, \
                current_setting('synchronous_commit') AS synchronous_commit",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (role, name, version): (String, String, String) =
        (row.try_get("role")?, row.try_get("name")?, row.try_get("version")?);
    let mut lines = vec![format!("connected as {role} to {name}, version {version}")];
    if row.try_get::<i32, _>("number")? < POSTGRES_MIN_VERSION {
        lines.push("WARNING: PostgreSQL before 15 is not supported".into());
    }
    for setting in ["fsync", "synchronous_commit"] {
        if row.try_get::<String, _>(setting)? == "off" {
            lines.push(format!("WARNING: {setting} is off: a crash of PostgreSQL may lose what was committed; records are then read again"));
        }
    }
    let rows = sqlx::query("SELECT count(*) AS partitions FROM audit_events.partition_ranges")
        .fetch_one(&mut *connection)
        .await?;
    lines.push(format!(
        "schema audit_events is there, events has {} partitions",
        rows.try_get::<i64, _>("partitions")?
    ));
    let excess = session.excess_rights().await?;
    if let Some(excess) = &excess {
        lines.push(format!("WARNING: the role {} {}", excess.role, excess.excess));
    }
    session.close().await;
    Ok((lines, excess))
}

fn check_kafka(config: &Config) -> Result<Vec<String>, String> {
    // With all that `run` takes, as librdkafka alone knows what it refuses.
    let lookup = Lookup::new(&config.kafka.consumer_properties()).map_err(|error| error.to_string())?;
    let topics = lookup.topics().map_err(|error| match error {
        LookupError::Unavailable(_) => format!("{error}; check KAFKA_BROKERS and KAFKA_SECURITY_PROTOCOL"),
        other => other.to_string(),
    })?;
    let mut lines = vec![format!("connected, the cluster has {} topics", topics.len())];
    match &config.kafka.topics {
        TopicSelection::Regex(regex) => {
            lines.push(format!("topics that match {regex}, but never one that ends in .dlq"))
        }
        TopicSelection::Names(names) => {
            for name in names {
                lines.push(match topics.iter().find(|(topic, _)| topic == name) {
                    Some((_, count)) => format!("topic {name} has {count} partitions"),
                    None => {
                        format!("WARNING: topic {name} does not exist; it is consumed as soon as it does")
                    }
                });
            }
        }
    }
    Ok(lines)
}
