//! The predecessor's way, on the same table: for each event one INSERT, one COMMIT, and a line in each of two files that
//! are opened for it. What it does not do is left out: decoding is not, but costs it little.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::Options;
use crate::bed::{Bed, COLUMNS};
use crate::daemon::{COPY_DATABASE, DATABASE, Figures, through};
use crate::load::{Shape, with_topic};
use crate::rounds::Rounds;

/// How many events are stored one by one.
const ROW_COUNT: u64 = 5_000;

pub(crate) fn measure(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let record_count = options.records / 2;
    let rounds = with_topic(bed, "rowwise", (Shape::of(600), record_count), |topic| {
        let mut rounds = Rounds::default();
        for _ in 0..options.rounds {
            rounds.add("audit-consumer", through(bed, topic, record_count, &[])?);
            rounds.add("row by row", row_by_row(bed)?);
        }
        Ok(rounds)
    })?;
    Ok(rounds.report("the predecessor's way", &["row by row"]))
}

/// Stores the first rows that the daemon has stored once more, one by one, into an empty table.
fn row_by_row(bed: &Bed) -> anyhow::Result<Figures> {
    bed.fresh_database(COPY_DATABASE)?;
    let values: Vec<String> =
        COLUMNS.split(", ").map(|name| format!("quote_nullable({name}::text)")).collect();
    let query = format!(
        "SELECT 'INSERT INTO audit_events.events ({COLUMNS}) VALUES (' || concat_ws(', ', {}) || ')' \
         FROM audit_events.events ORDER BY audit_id LIMIT {ROW_COUNT}",
        values.join(", ")
    );
    let statements = bed.psql(DATABASE, &query)?;
    let before = bed.usage()?;
    let started_at = Instant::now();
    bed.runtime.block_on(async {
        let mut connection = PgConnection::connect(&bed.url(COPY_DATABASE)).await?;
        for statement in statements.lines() {
            sqlx::raw_sql("BEGIN").execute(&mut connection).await?;
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
            sqlx::raw_sql("COMMIT").execute(&mut connection).await?;
            for name in ["purview.jsonl", "trust.jsonl"] {
                add_line(&bed.dir.join(name), statement)?;
            }
        }
        anyhow::Ok(())
    })?;
    let seconds = started_at.elapsed().as_secs_f64();
    for name in ["purview.jsonl", "trust.jsonl"] {
        std::fs::remove_file(bed.dir.join(name))?;
    }
    Ok(Figures::new(ROW_COUNT, seconds, bed.usage()?.since(before)))
}

fn add_line(file: &Path, line: &str) -> anyhow::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .with_context(|| file.display().to_string())?;
    Ok(writeln!(file, "{line}")?)
}
