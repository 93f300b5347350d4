//! What must hold: at each step of importance, and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use audit_consumer::model::position::{OffsetRange, StreamPartition};
use audit_consumer::model::rejection::RejectionCode;
use audit_consumer::spool::Spool;

use crate::database::{Database, Fate, Row};
use crate::disk::{Crash, SimDisk};
use crate::fleet::{instance, spool_limits, spool_path};
use crate::kafka::{Kafka, Record, RecordKind, at, key};
use crate::world::{Process, World, lock};

/// How long a process must have been well for what it holds to be known to all.
const PUBLISHED_AFTER: Duration = Duration::from_secs(45);

/// The offsets that a disk has copies of, by partition: in segments, and in drained ones.
fn copies(world: &World, index: u8, disk: &SimDisk) -> Vec<BTreeSet<i64>> {
    let mut found = vec![BTreeSet::new(); world.plan.partition_count];
    let image = disk.image();
    image.crash(Crash::Everything);
    let opened = Spool::open(&spool_path(index), spool_limits(&world.plan), instance(index), image);
    let Ok((mut spool, _)) = opened else { return found };
    for partition in 0..world.plan.partition_count {
        // What can't be read is no copy.
        drop(spool.restore(key(partition), at(0)));
    }
    for held in spool.held() {
        let offsets = &mut found[held.key.partition.0 as usize];
        held.ranges.iter().for_each(|range| offsets.extend(range.start().as_i64()..range.end().as_i64()));
    }
    found
}

/// What the spool has acknowledged is still there after the power went.
pub(crate) fn acknowledged_is_there(world: &World, index: u8) {
    let (disk, acknowledged) = {
        let machines = lock(&world.machines);
        let machine = &machines[usize::from(index)];
        if machine.has_failed || machine.acknowledged.iter().all(BTreeSet::is_empty) {
            return;
        }
        (machine.disk.clone(), machine.acknowledged.clone())
    };
    let found = copies(world, index, &disk);
    for (partition, (acknowledged, found)) in acknowledged.iter().zip(&found).enumerate() {
        let lost: Vec<&i64> = acknowledged.difference(found).collect();
        if !lost.is_empty() {
            let detail = format!("process {index}, partition {partition}: {lost:?}");
            world.violate("what the spool has acknowledged survives a power loss", detail);
        }
    }
    world.note(crate::trace::Who(index), "acknowledged_checked", &[]);
}

/// A gap covers only what Kafka has deleted, and what no spool holds that PostgreSQL could know of.
pub(crate) fn gap_is_right(world: &World, declarer: &Arc<Process>, partition: usize, range: OffsetRange) {
    let (start, end) = (range.start().as_i64(), range.end().as_i64());
    let low = lock(&world.kafka).logs[partition].low;
    if end > low {
        world.violate("a gap covers only what kafka has deleted", format!("{partition}: {range}, low {low}"));
    }
    for index in 0..world.plan.process_count {
        let machines = lock(&world.machines);
        let machine = &machines[index];
        let is_known = machine.well_since.is_some_and(|since| since.elapsed() >= PUBLISHED_AFTER);
        let is_own = usize::from(declarer.index) == index;
        let is_told =
            lock(&world.database).tables.spool_ranges.get(&instance(index as u8)).is_some_and(|told| {
                told.iter().any(|(of, held)| *of == key(partition) && ranges_overlap(*held, range))
            });
        if machine.has_failed || !(is_own || is_known || is_told) {
            continue;
        }
        // What was acknowledged once is kept for longer than any run lasts.
        let held: Vec<&i64> = machine.acknowledged[partition].range(start..end).collect();
        if !held.is_empty() {
            let detail = format!("partition {partition}, {range}: process {index} holds {held:?}");
            drop(machines);
            world.violate("no gap is declared over what a spool holds", detail);
            return;
        }
    }
}

/// Who tells all that it holds leaves nothing out that PostgreSQL lacks.
pub(crate) fn all_is_told(world: &World, teller: &Process, told: &[(StreamPartition, OffsetRange)]) {
    let untold = {
        let (machines, database) = (lock(&world.machines), lock(&world.database));
        let machine = &machines[usize::from(teller.index)];
        let rows = database.tables.rows.iter().enumerate().filter(|_| !machine.has_failed);
        let mut untold = rows.filter_map(|(partition, row)| {
            let is_told = |offset: i64| {
                let of_partition = told.iter().filter(|(of, _)| *of == key(partition));
                of_partition
                    .into_iter()
                    .any(|(_, range)| range.start() <= at(offset) && at(offset) < range.end())
            };
            let mut lacked = machine.acknowledged[partition].range(row.as_ref()?.next..);
            lacked.find(|offset| !is_told(**offset)).map(|offset| (partition, *offset))
        });
        untold.next()
    };
    if let Some((partition, offset)) = untold {
        let detail = format!("process {}, partition {partition}: {offset}, told {told:?}", teller.index);
        world.violate("who tells all that it holds leaves nothing out", detail);
    }
}

fn ranges_overlap(one: OffsetRange, other: OffsetRange) -> bool {
    one.start() < other.end() && other.start() < one.end()
}

/// Whether every position stands at the end of its log.
pub(crate) fn is_stored(world: &World) -> bool {
    let (kafka, database) = (lock(&world.kafka), lock(&world.database));
    let mut rows = database.tables.rows.iter().zip(&kafka.logs);
    rows.all(|(row, log)| row.as_ref().is_some_and(|row| row.next == log.end()))
}

/// What is wrong with the account, at the end.
pub(crate) fn account(world: &World) -> Vec<String> {
    let (kafka, database) = (lock(&world.kafka), lock(&world.database));
    let mut wrong = Vec::new();
    for (partition, row) in database.tables.rows.iter().enumerate() {
        let Some(row) = row else {
            wrong.push(format!("partition {partition} has no position"));
            continue;
        };
        partition_account(partition, row, (&kafka, &database), &mut wrong);
    }
    events(&kafka, &database, &mut wrong);
    wrong
}

fn partition_account(
    partition: usize,
    row: &Row,
    (kafka, database): (&Kafka, &Database),
    wrong: &mut Vec<String>,
) {
    let log = &kafka.logs[partition];
    let fates = &database.tables.fates[partition];
    let mut counts = [0; 4];
    if row.next != log.end() {
        wrong.push(format!("partition {partition} stands at {} of {}", row.next, log.end()));
    }
    for offset in row.first..row.next {
        let is_gap = database
            .tables
            .gaps
            .iter()
            .any(|gap| gap.partition == partition && (gap.start..gap.end).contains(&offset));
        match (log.record(offset), fates.get(&offset)) {
            (_, None) if is_gap => counts[3] += 1,
            (None, None) => counts[3] += 1,
            (Some(record), Some(fate)) if !is_gap && is_right(record, *fate) => {
                counts[match fate {
                    Fate::Event => 0,
                    Fate::Duplicate => 1,
                    Fate::Letter(_) => 2,
                }] += 1;
            }
            (record, fate) => {
                let kind = record.map(|record| record.kind);
                wrong.push(format!("{partition}:{offset} is {kind:?} and {fate:?}, in a gap: {is_gap}"));
            }
        }
    }
    if let Some((offset, _)) = fates.iter().find(|(offset, _)| !(row.first..row.next).contains(offset)) {
        wrong.push(format!("{partition}:{offset} is stored beyond the position"));
    }
    if counts != row.counts {
        wrong.push(format!("partition {partition} counts {:?}, and holds {counts:?}", row.counts));
    }
}

fn is_right(record: &Record, fate: Fate) -> bool {
    let is = |code| fate == Fate::Letter(code);
    match record.kind {
        RecordKind::Valid | RecordKind::Conflict => {
            matches!(fate, Fate::Event | Fate::Duplicate) || is(RejectionCode::AuditIdConflict)
        }
        RecordKind::Poison => is(RejectionCode::InvalidJson),
        RecordKind::Refused => is(RejectionCode::RefusedByDatabase),
    }
}

/// Of each identity one record is the event; what has the same content is a duplicate, and what has not a conflict.
fn events(kafka: &Kafka, database: &Database, wrong: &mut Vec<String>) {
    let mut seen: BTreeMap<usize, Vec<(&Record, Fate)>> = BTreeMap::new();
    for (log, fates) in kafka.logs.iter().zip(&database.tables.fates) {
        for (offset, fate) in fates {
            if let Some(record) = log.record(*offset) {
                seen.entry(record.identity).or_default().push((record, *fate));
            }
        }
    }
    for (identity, records) in seen {
        let events: Vec<&Record> =
            records.iter().filter(|(_, fate)| *fate == Fate::Event).map(|(record, _)| *record).collect();
        let [event] = events.as_slice() else {
            let is_letter =
                |fate: Fate| matches!(fate, Fate::Letter(code) if code != RejectionCode::AuditIdConflict);
            if !events.is_empty() || !records.iter().all(|(_, fate)| is_letter(*fate)) {
                wrong.push(format!("identity {identity} has {} events", events.len()));
            }
            continue;
        };
        for (record, fate) in &records {
            let is_same = record.payload == event.payload;
            if (*fate == Fate::Duplicate && !is_same) || (matches!(fate, Fate::Letter(_)) && is_same) {
                wrong.push(format!("identity {identity}: {fate:?}, and its content is the same: {is_same}"));
            }
        }
    }
}
