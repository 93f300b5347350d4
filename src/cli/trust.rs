//! `trust`: how far actors are trusted, and how that was on the last days.

use std::io::Write;

use serde_json::{Value, json};

use super::ExitStatus;
use super::table::{Table, with_thousands};
use crate::model::event::Timestamp;
use crate::store::{
    ActorTrust, SessionPurpose, StoreSettings, TRUST_HISTORY_DAY_COUNT, TrustFilter, TrustReport,
};

/// Whose trust to show.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TrustArgs {
    /// Only of this actor
    #[arg(long, value_name = "NAME")]
    pub actor: Option<String>,
    /// Only from events at or after this time, such as 2026-01-31 or 2026-01-31T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = super::export::time)]
    pub since: Option<Timestamp>,
    /// Write one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// The bars of a history, by eighths of a score: the first up to 0.125, the last from 0.875 on.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// A day without events.
const NO_BAR: char = '·';

/// Writes the trust of the actors that `args` choose, those with the least average score first.
///
/// # Errors
/// What PostgreSQL or `out` report.
pub async fn run(args: &TrustArgs, store: &StoreSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let report = session.trust(&TrustFilter { actor: args.actor.clone(), since: args.since }).await?;
    session.close().await;
    if args.json {
        let actors: Vec<Value> = report.actors.iter().map(actor_json).collect();
        let answer = json!({
            "since": args.since.map(|since| since.to_string()), "history_days": TRUST_HISTORY_DAY_COUNT,
            "actor_count": report.actor_count, "actors": actors,
        });
        writeln!(out, "{answer:#}")?;
        return Ok(ExitStatus::Success);
    }
    table(&report).write_to(out)?;
    let shown_count = i64::try_from(report.actors.len())?;
    let of = if shown_count < report.actor_count { "the least trusted of " } else { "" };
    writeln!(
        out,
        "\n{of}{} actors; the bars are the average scores of the last {TRUST_HISTORY_DAY_COUNT} days (UTC), today \
         the last, {NO_BAR} without events",
        with_thousands(report.actor_count)
    )?;
    Ok(ExitStatus::Success)
}

fn actor_json(actor: &ActorTrust) -> Value {
    json!({
        "actor": actor.actor, "operations": actor.operation_count, "successes": actor.success_count,
        "failures": actor.failure_count, "bypasses": actor.bypass_count, "average_trust_score": actor.average,
        "least_trust_score": actor.least, "last_activity": actor.last_activity, "history": actor.history,
    })
}

fn table(report: &TrustReport) -> Table {
    let mut table = Table::new(&[
        "actor",
        "average",
        "least",
        "operations",
        "succeeded",
        "failed",
        "llm bypassed",
        "last activity",
        "history",
    ]);
    for actor in &report.actors {
        table.push(vec![
            actor.actor.as_str().into(),
            format!("{:.3}", actor.average).as_str().into(),
            format!("{:.3}", actor.least).as_str().into(),
            actor.operation_count.into(),
            actor.success_count.into(),
            actor.failure_count.into(),
            actor.bypass_count.into(),
            actor.last_activity.as_str().into(),
            bars(&actor.history).as_str().into(),
        ]);
    }
    table
}

fn bars(history: &[Option<f64>]) -> String {
    history.iter().map(|average| average.map_or(NO_BAR, bar)).collect()
}

fn bar(average: f64) -> char {
    let (mut found, mut least) = (NO_BAR, 0.0);
    for bar in BARS {
        if average >= least {
            found = bar;
        }
        least += 0.125;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_an_eighth_of_a_score() {
        let history = [0.0, 0.124, 0.125, 0.5, 0.874, 0.875, 1.0].map(Some);
        assert_eq!(bars(&history), "▁▁▂▅▇██");
        assert_eq!(bars(&[None, Some(0.3), None]), "·▃·");
    }
}
