//! A table that has many rows already: spread over twelve months with the load in the last, or all in one partition.

use serde_json::Value;

use crate::Options;
use crate::bed::Bed;
use crate::daemon::{DATABASE, Figures, through, through_with};
use crate::load::{Ids, Shape, with_topic};
use crate::rounds::Rounds;

/// Where the rows are that were there before.
#[derive(Debug, Clone, Copy)]
enum Spread {
    Year,
    Month,
}

pub(crate) fn measure(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let record_count = options.records / 2;
    let mut rounds = Rounds::default();
    for ids in [Ids::Ordered, Ids::Random] {
        let (name, of) = if ids == Ids::Ordered { ("v7", "empty, v7") } else { ("v4", "empty, v4") };
        let shape = Shape { ids, ..Shape::of(600) };
        with_topic(bed, &format!("filled.{name}"), (shape, record_count), |topic| {
            for _ in 0..options.rounds {
                rounds.add(of, through(bed, topic, record_count, &[])?);
            }
            for spread in [Spread::Year, Spread::Month] {
                let case = format!(
                    "{}, {name}",
                    if matches!(spread, Spread::Year) { "12 months" } else { "1 month" }
                );
                // Once: to fill takes minutes.
                rounds.add(
                    &case,
                    after_fill(bed, (topic, record_count), (spread, shape), options.filled_rows)?,
                );
            }
            Ok(())
        })?;
    }
    let title = format!("{record_count} records of 600 bytes into a table with {} rows", options.filled_rows);
    Ok(rounds.report(&title, &["empty, v7", "empty, v4"]))
}

fn after_fill(
    bed: &Bed,
    (topic, record_count): (&str, u64),
    (spread, shape): (Spread, Shape),
    row_count: u64,
) -> anyhow::Result<Figures> {
    bed.fresh_database(DATABASE)?;
    fill(bed, (spread, shape), row_count)?;
    bed.psql(DATABASE, "VACUUM ANALYZE audit_events.events")?;
    bed.psql(DATABASE, "CHECKPOINT")?;
    through_with(bed, topic, record_count, &[], |_| Ok(()))
}

/// Inserts rows that are like those of the load, and earlier than them.
fn fill(bed: &Bed, (spread, shape): (Spread, Shape), row_count: u64) -> anyhow::Result<()> {
    let last_second = shape.start_unix_micros / 1_000_000 - 1;
    let seconds = match spread {
        Spread::Year => 360 * 86_400,
        // The load must come into the same partition: what of the month is over, at most.
        Spread::Month => seconds_into_month(bed)?,
    };
    for month in 0..13 {
        let at = last_second - month * 30 * 86_400;
        if month * 30 * 86_400 <= seconds {
            bed.psql(DATABASE, &format!("SELECT audit_events.ensure_partition(to_timestamp({at}))"))?;
        }
    }
    let id = match shape.ids {
        Ids::Random => "gen_random_uuid()".to_owned(),
        // Version 7: 48 bits of milliseconds, then random ones.
        Ids::Ordered => "(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || \
                         substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid"
            .to_owned(),
    };
    bed.psql(
        DATABASE,
        &format!(
            "INSERT INTO audit_events.events (audit_id, correlation_id, timestamp, operation, command, args, actor, \
             status, duration_ms, query_intent, metadata, stream_id, source_partition, source_offset) \
             SELECT {id}, gen_random_uuid(), at, 'ritual.query', 'query', repeat(md5(i::text), 5), \
             'user-' || i % 400, 'Success', i % 900, 'wish_queue', '{{\"region\": \"eu\", \"shard\": 7}}', \
             '018f0000-0000-7000-8000-000000000000', i % 12, i \
             FROM generate_series(1, {row_count}) AS i, \
             LATERAL (SELECT to_timestamp({last_second} - {seconds}::float8 * ({row_count} - i) / {row_count}) AS at) AS t"
        ),
    )
    .map(drop)
}

fn seconds_into_month(bed: &Bed) -> anyhow::Result<i64> {
    let query = "SELECT extract(epoch FROM now() - date_trunc('month', now(), 'UTC'))::bigint - 60";
    Ok(bed.psql(DATABASE, query)?.parse()?)
}
