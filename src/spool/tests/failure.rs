//! The n-th call to the disk fails, for every n and every way to fail, and then the machine crashes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::scene::{Drained, LIMITS, PlainChunk, drain, keyed, open, segment_path};
use super::sim::{Crash, Plan, SimDisk, SimFault};
use crate::model::position::OffsetRange;
use crate::model::record::Chunk;
use crate::model::spool::tests::{at, key, plain, small_chunk};
use crate::spool::{Recovery, Spool, SpoolLimits};

/// Two appends fill a segment, so that every run closes segments, drains some and prunes one.
const SMALL: SpoolLimits = SpoolLimits { segment_len_bytes: 1_500, ..LIMITS };
const APPEND_COUNT: i64 = 8;
/// More often than this nothing is tried again.
const TRY_COUNT: usize = 3;

/// What the caller of a spool knows at the end of a run.
#[derive(Debug, Default)]
struct Known {
    submitted: BTreeSet<PlainChunk>,
    held: BTreeSet<PlainChunk>,
    /// Up to here PostgreSQL has the records of partition 0 and 1.
    drained: i64,
}

fn append_chunks(index: i64) -> Vec<Chunk> {
    vec![small_chunk(0, index * 3, 3), small_chunk(1, index * 2, 2)]
}

/// Opens, appends, drains the first half, prunes, and ends; each call is tried again when it fails.
fn run(disk: &SimDisk) -> Known {
    let mut known = Known::default();
    let Some((mut spool, _)) = (0..TRY_COUNT).find_map(|_| open(disk, SMALL).ok()) else { return known };
    for index in 0..APPEND_COUNT {
        let chunks = append_chunks(index);
        let plains: Vec<PlainChunk> = chunks.iter().map(plain).collect();
        known.submitted.extend(plains.iter().cloned());
        if (0..TRY_COUNT).any(|_| spool.append(&keyed(&chunks), index).is_ok()) {
            known.held.extend(plains);
        }
        if index == APPEND_COUNT / 2 {
            known.drained = index - 1;
            try_to_drain(&mut spool, known.drained);
        }
    }
    known
}

fn try_to_drain(spool: &mut Spool<SimDisk>, index: i64) {
    for now_ms in [100, 200, 100_000] {
        for (partition, step) in [(0, 3), (1, 2)] {
            // A segment that was not moved now is moved by the next call.
            if spool.mark_drained(key(partition), at(index * step), now_ms).is_err() {
                continue;
            }
        }
        if spool.prune(now_ms + 20_000).is_err() {
            continue;
        }
    }
}

/// What is held and not drained must come back; what comes back must have been submitted, in order.
#[track_caller]
fn check(known: &Known, recovery: &Recovery, drained: &Drained) {
    assert!(recovery.quarantined.iter().all(|found| found.whole.is_empty() && found.broken.is_empty()));
    assert_eq!((recovery.missing.as_slice(), drained.quarantined.as_slice()), ([].as_slice(), [].as_slice()));
    let found: BTreeSet<PlainChunk> = drained.chunks.iter().cloned().collect();
    for chunk in &known.held {
        let step = if chunk.0.ends_with("/0") { 3 } else { 2 };
        assert!(found.contains(chunk) || chunk.2 <= known.drained * step, "{chunk:?} is lost");
    }
    assert!(found.is_subset(&known.submitted), "invented");
    for topic in ["audit.events/0", "audit.events/1"] {
        let starts: Vec<i64> =
            drained.chunks.iter().filter(|chunk| chunk.0 == topic).map(|chunk| chunk.1).collect();
        assert!(starts.is_sorted(), "{topic}: {starts:?}");
    }
}

/// Starts again after the crash, twice, checks what comes back, and that the spool goes on.
#[track_caller]
fn start_again(disk: &SimDisk, known: &Known) {
    let mut before = None;
    for start in 0..3 {
        let (mut spool, recovery) = open(disk, SMALL).unwrap();
        let drained = drain(&mut spool).unwrap();
        check(known, &recovery, &drained);
        if start > 0 {
            assert_eq!(recovery.cuts, []);
            assert_eq!(Some(&drained), before.as_ref());
        }
        before = Some(drained);
        drop(spool);
        disk.crash(Crash::Nothing);
    }
    let (mut spool, _) = open(disk, SMALL).unwrap();
    let last = [small_chunk(5, 0, 1)];
    spool.append(&keyed(&last), 9).unwrap();
    drop(spool);
    let (mut spool, _) = open(disk, SMALL).unwrap();
    assert_eq!(drain(&mut spool).unwrap().chunks.last(), Some(&plain(&last[0])));
}

fn call_count() -> u64 {
    let disk = SimDisk::default();
    disk.fail(None);
    let known = run(&disk);
    assert_eq!(known.held, known.submitted);
    let is_in =
        |path: &PathBuf, directory: &str| path.parent().is_some_and(|parent| parent.ends_with(directory));
    let count = |directory| disk.paths().iter().filter(|path| is_in(path, directory)).count();
    assert!(count("spool") >= 3 && count("drained") == 1, "{:?}", disk.paths());
    disk.call_count()
}

#[test]
fn a_call_that_fails_loses_nothing_whichever_it_is() {
    let call_count = call_count();
    assert!(call_count > 50, "{call_count}");
    for fault in [SimFault::Device, SimFault::NoRoom, SimFault::ShortWrite] {
        for crash in [Crash::Nothing, Crash::Everything, Crash::Torn] {
            for is_lasting in [false, true] {
                for first in 1..=call_count {
                    let disk = SimDisk::default();
                    disk.fail(Some(Plan { first, is_lasting, fault }));
                    let known = run(&disk);
                    disk.fail(None);
                    disk.crash(crash);
                    start_again(&disk, &known);
                }
            }
        }
    }
}

#[test]
fn a_call_that_fails_at_start_loses_nothing_whichever_it_is() {
    for before in [Crash::Nothing, Crash::Torn, Crash::Everything] {
        for fault in [SimFault::Device, SimFault::NoRoom, SimFault::ShortWrite] {
            for first in 1.. {
                let (disk, known) = interrupted(before);
                disk.fail(Some(Plan { first, is_lasting: false, fault }));
                let opened = open(&disk, SMALL).is_ok();
                let is_behind_the_end = disk.call_count() < first;
                disk.fail(None);
                if is_behind_the_end {
                    assert!(opened && first > 10);
                    break;
                }
                disk.crash(Crash::Nothing);
                start_again(&disk, &known);
            }
        }
    }
}

/// A disk whose process died within an append: it was written, and neither synced nor cut off.
fn interrupted(crash: Crash) -> (SimDisk, Known) {
    let disk = SimDisk::default();
    let (mut spool, _) = open(&disk, SMALL).unwrap();
    let mut known = Known::default();
    for index in 0..4 {
        let chunks = append_chunks(index);
        known.submitted.extend(chunks.iter().map(plain));
        if index == 3 {
            // Asks for the free space, writes, syncs: the sync fails, and everything after it.
            disk.fail(Some(Plan { first: 3, is_lasting: true, fault: SimFault::Device }));
        }
        if spool.append(&keyed(&chunks), index).is_ok() {
            known.held.extend(chunks.iter().map(plain));
        }
    }
    assert_eq!(known.held.len(), 6);
    disk.fail(None);
    disk.crash(crash);
    (disk, known)
}

#[test]
fn bytes_that_only_memory_has_are_on_the_disk_once_they_are_held() {
    // 1. A sync fails, and so does the cut. 2. The process dies; its bytes are still in memory. 3. The next one
    // reads them whole and holds them. 4. The machine crashes. Linux would have called a sync of them done.
    let (disk, known) = interrupted(Crash::Everything);
    // What the lost range of the file is must survive the death of the process.
    let (mut spool, recovery) = open(&disk, SMALL).unwrap();
    let held = drain(&mut spool).unwrap();
    assert!(held.chunks.len() >= known.held.len());
    drop((spool, recovery));
    disk.crash(Crash::Nothing);
    let (mut spool, _) = open(&disk, SMALL).unwrap();
    assert_eq!(drain(&mut spool).unwrap(), held);
}

#[test]
fn what_is_appended_below_an_old_position_is_not_taken_for_drained() {
    // 1. Partition 0 is drained up to 100. 2. A failover loses commits, and records from 50 on are read again.
    // 3. PostgreSQL goes away, and they are spooled, before anybody could say that the position went back.
    let disk = SimDisk::default();
    let (mut spool, _) = open(&disk, LIMITS).unwrap();
    spool.append(&keyed(&[small_chunk(0, 90, 10)]), 1).unwrap();
    spool.mark_drained(key(0), at(100), 1).unwrap();
    let again = small_chunk(0, 50, 10);
    spool.append(&keyed(std::slice::from_ref(&again)), 2).unwrap();
    spool.mark_drained(key(1), at(5), 3).unwrap();
    assert_eq!(spool.tails()[0].position, at(60));
    assert_eq!(drain(&mut spool).unwrap().chunks, [plain(&again)]);
}

/// Found by the simulation: the rest was taken for damage, and what PostgreSQL had lost was not held again.
#[test]
fn what_an_append_left_behind_the_end_keeps_nothing_from_being_held_again() {
    let disk = SimDisk::default();
    let limits = SpoolLimits { segment_len_bytes: 0, ..LIMITS };
    let (mut spool, _) = open(&disk, limits).unwrap();
    for start in [0, 5] {
        spool.append(&keyed(&[small_chunk(0, start, 5)]), 1).unwrap();
    }
    // Of the footer half is written, and can't be cut off.
    disk.fail(Some(Plan { first: 1, is_lasting: true, fault: SimFault::ShortWrite }));
    spool.seal_active();
    disk.fail(None);
    spool.append(&keyed(&[small_chunk(0, 10, 5)]), 1).unwrap();
    spool.mark_drained(key(0), at(15), 2).unwrap();
    assert!(spool.restore(key(0), at(0)).unwrap());
    assert_eq!(spool.held()[0].ranges, [OffsetRange::new(at(0), at(15)).unwrap()]);
    assert_eq!(drain(&mut spool).unwrap().chunks.len(), 3);
    // Also when it is the newest of an earlier process, and nobody names its end.
    let disk = SimDisk::default();
    let (mut spool, _) = open(&disk, limits).unwrap();
    spool.append(&keyed(&[small_chunk(0, 0, 5)]), 1).unwrap();
    disk.fail(Some(Plan { first: 1, is_lasting: true, fault: SimFault::ShortWrite }));
    spool.seal_active();
    disk.fail(None);
    spool.mark_drained(key(0), at(5), 2).unwrap();
    drop(spool);
    let (mut spool, _) = open(&disk, limits).unwrap();
    assert!(spool.restore(key(0), at(0)).unwrap());
    assert_eq!(drain(&mut spool).unwrap().chunks.len(), 1);
}

#[test]
fn a_leftover_without_a_header_does_not_hide_the_successor() {
    // 1. An append is written and its sync fails; the cut fails too. 2. The next segment fails to begin, and stays
    // as an empty file. 3. The one after it begins, and its header says where the first one ended.
    let disk = SimDisk::default();
    let (mut spool, _) = open(&disk, LIMITS).unwrap();
    spool.append(&keyed(&append_chunks(0)), 1).unwrap();
    let held = disk.bytes(&segment_path(1));
    spool.append(&keyed(&append_chunks(1)), 1).unwrap();
    let with_unacknowledged = disk.bytes(&segment_path(1));
    drop(spool);
    disk.put(&segment_path(1), &held);
    disk.put(&segment_path(2), b"");
    let (mut spool, _) = open(&disk, LIMITS).unwrap();
    spool.append(&keyed(&append_chunks(1)), 1).unwrap();
    drop(spool);
    disk.put(&segment_path(1), &with_unacknowledged);
    disk.put(&segment_path(2), b"");
    let (mut spool, recovery) = open(&disk, LIMITS).unwrap();
    assert_eq!((recovery.cuts.len(), recovery.quarantined.len(), recovery.missing.len()), (1, 0, 0));
    let chunks: Vec<_> = append_chunks(0).iter().chain(&append_chunks(1)).map(plain).collect();
    assert_eq!(drain(&mut spool).unwrap().chunks, chunks);
}
