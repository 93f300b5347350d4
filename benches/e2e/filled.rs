//! A table that has many rows already: spread over twelve months with the load in the last, or all in one partition.

use anyhow::bail;
use serde_json::{Map, Value};

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
    let mut report = Map::new();
    for ids in [Ids::Ordered, Ids::Random] {
        let ids_name = if ids == Ids::Ordered { "v7" } else { "v4" };
        let shape = Shape { ids, ..Shape::of(600) };
        with_topic(bed, &format!("filled.{ids_name}"), (shape, record_count), |topic| {
            for (spread, name) in [(Spread::Year, "12 months"), (Spread::Month, "1 month")] {
                let mut rounds = Rounds::default();
                // The filled one once, as to fill takes minutes, and between two empty ones.
                let before = through(bed, topic, record_count, &[])?;
                let filled = after_fill(bed, (topic, record_count), (spread, shape), options.filled_rows)?;
                for empty in [before, through(bed, topic, record_count, &[])?] {
                    rounds.add("empty", empty);
                    rounds.add("filled", filled);
                }
                let title = format!(
                    "{record_count} records into a table with {} rows: {name}, {ids_name}",
                    options.filled_rows
                );
                report.insert(
                    format!("{name}, {ids_name}").replace([',', ' '], "_"),
                    rounds.report(&title, &["empty"]),
                );
            }
            Ok(())
        })?;
    }
    Ok(Value::Object(report))
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
    // By as many sessions as the yardstick has at most.
    let halves = [(1, row_count / 2), (row_count / 2 + 1, row_count)].map(|(first, last)| {
        format!(
            "INSERT INTO audit_events.events (audit_id, correlation_id, timestamp, operation, command, args, actor, \
             status, duration_ms, query_intent, metadata, stream_id, source_partition, source_offset) \
             SELECT {id}, gen_random_uuid(), at, 'ritual.query', 'query', repeat(md5(i::text), 5), \
             'user-' || i % 400, 'Success', i % 900, 'wish_queue', '{{\"region\": \"eu\", \"shard\": 7}}', \
             '018f0000-0000-7000-8000-000000000000', i % 12, i \
             FROM generate_series({first}, {last}) AS i, \
             LATERAL (SELECT to_timestamp({last_second} - {seconds}::float8 * ({row_count} - i) / {row_count}) AS at) AS t"
        )
    });
    std::thread::scope(|scope| {
        let inserts = halves.each_ref().map(|half| scope.spawn(move || bed.psql(DATABASE, half)));
        inserts.into_iter().try_for_each(|insert| match insert.join() {
            Ok(outcome) => outcome.map(drop),
            Err(_panic) => bail!("the thread of an INSERT died"),
        })
    })
}

fn seconds_into_month(bed: &Bed) -> anyhow::Result<i64> {
    let query = "SELECT extract(epoch FROM now() - date_trunc('month', now(), 'UTC'))::bigint - 60";
    Ok(bed.psql(DATABASE, query)?.parse()?)
}
