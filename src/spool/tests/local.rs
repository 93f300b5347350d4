//! The spool on a real file system.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::scene::{LIMITS, keyed};
use crate::model::record::AssignmentId;
use crate::model::spool::encode_shown_record;
use crate::model::spool::tests::{at, key, plain, small_chunk};
use crate::spool::disk::LocalDisk;
use crate::spool::{
    Drain, FindingKind, Inspection, Next, PartitionRanges, QuarantinedWhen, Recovery, SegmentFile,
    SegmentPlace, Spool, SpoolError, SpoolLimits, instance_of,
};

fn open(directory: &Path, limits: SpoolLimits) -> Result<(Spool, Recovery), SpoolError> {
    Spool::open(directory, limits, Uuid::from_u128(1), LocalDisk)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_spool_survives_its_process_and_is_drained() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("a/spool");
    let limits = SpoolLimits { segment_len_bytes: 2_000, ..LIMITS };
    let chunks: Vec<_> = (0..10).map(|index| small_chunk(0, index * 5, 5)).collect();
    let (mut spool, recovery) = open(&root, limits).unwrap();
    assert_eq!(recovery, Recovery::default());
    for chunk in &chunks {
        spool.append(&keyed(std::slice::from_ref(chunk)), 1).unwrap();
    }
    drop(spool);
    let (mut spool, recovery) = open(&root, limits).unwrap();
    assert_eq!(recovery.tails[0].position, at(50));
    assert_eq!(spool.stats().record_count, 50);
    let mut progress = Drain::default();
    for chunk in &chunks {
        let Next::Batch(batch) = spool.next(&mut progress).unwrap() else { panic!() };
        let end = batch.line.range.end();
        assert_eq!(plain(&batch.into_chunk(AssignmentId(1))), plain(chunk));
        spool.mark_drained(key(0), end, 5).unwrap();
    }
    assert!(matches!(spool.next(&mut progress).unwrap(), Next::End));
    assert_eq!(spool.stats().segment_count, 0);
    // A drain at its end goes on with what is appended later.
    spool.append(&keyed(&[small_chunk(0, 50, 1)]), 6).unwrap();
    assert!(matches!(spool.next(&mut progress).unwrap(), Next::Batch(_)));
    spool.append(&keyed(&[small_chunk(0, 51, 1)]), 6).unwrap();
    assert!(matches!(spool.next(&mut progress).unwrap(), Next::Batch(_)));
    assert!(matches!(spool.next(&mut progress).unwrap(), Next::End));
}

#[test]
fn a_second_process_is_refused_and_told_who_has_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = open(directory.path(), LIMITS).unwrap();
    let refused = open(directory.path(), LIMITS).unwrap_err();
    let expected =
        format!("spool directory {} is in use by process {}", directory.path().display(), std::process::id());
    assert_eq!(refused.to_string(), expected);
    drop(first);
    open(directory.path(), LIMITS).unwrap();
}

#[test]
fn only_the_owner_may_read_what_is_spooled() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("spool");
    let (mut spool, _) = open(&root, LIMITS).unwrap();
    spool.append(&keyed(&[small_chunk(0, 0, 1)]), 1).unwrap();
    for path in [root.clone(), root.join("drained"), root.join("quarantine")] {
        assert_eq!(mode(&path), 0o700, "{}", path.display());
    }
    for path in [root.join("LOCK"), root.join("segment-0000000000000001.jsonl")] {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_spool_is_read_along_while_it_is_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let limits = SpoolLimits { segment_len_bytes: 1_000, ..LIMITS };
    let (mut spool, _) = open(directory.path(), limits).unwrap();
    let inspection = Inspection::new(directory.path(), LocalDisk);
    assert_eq!(inspection.files().unwrap(), []);
    for index in 0..5 {
        spool.append(&keyed(&[small_chunk(0, index * 5, 5)]), 1).unwrap();
    }
    let files = inspection.files().unwrap();
    assert!(files.len() > 1 && files.iter().all(|file| file.place == SegmentPlace::Held));
    let mut shown = Vec::new();
    for file in &files {
        assert_eq!(inspection.verify(file).unwrap(), []);
        inspection
            .read(file, |batch| {
                let key = batch.line.key;
                let chunk = batch.into_chunk(AssignmentId(1));
                chunk.records.iter().for_each(|record| encode_shown_record(&mut shown, key, &chunk, record));
            })
            .unwrap();
    }
    assert_eq!(shown.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count(), 25);
    let summary = inspection.summary(&files[0]).unwrap();
    assert!(summary.is_sealed && summary.ranges[0].ranges[0].start() == at(0));
    assert!(!inspection.summary(files.last().unwrap()).unwrap().is_sealed);
}

#[test]
fn a_batch_that_is_set_aside_is_kept_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(directory.path(), LIMITS).unwrap();
    spool.append(&keyed(&[small_chunk(0, 0, 3), small_chunk(1, 0, 3)]), 1).unwrap();
    let mut progress = Drain::default();
    let Next::Batch(batch) = spool.next(&mut progress).unwrap() else { panic!() };
    let (line, chunk) = (batch.line.clone(), batch.into_chunk(AssignmentId(1)));
    let aside = spool.set_aside(&progress, (&line, &chunk)).unwrap().unwrap();
    let stats = spool.stats();
    assert_eq!(spool.set_aside(&progress, (&line, &chunk)).unwrap(), None, "it is there");
    assert_eq!(spool.stats().total_len_bytes, stats.total_len_bytes);
    spool.mark_drained(key(0), at(3), 1).unwrap();
    let Next::Batch(other) = spool.next(&mut progress).unwrap() else { panic!() };
    assert_eq!(other.line.key, key(1));
    let segment = fs::read_to_string(directory.path().join("segment-0000000000000001.jsonl")).unwrap();
    let written: String = segment.split_inclusive('\n').skip(1).take(4).collect();
    let copy = fs::read_to_string(&aside).unwrap();
    assert!(copy.contains(&written), "{copy}");
    let inspection = Inspection::new(directory.path(), LocalDisk);
    let file = inspection.files().unwrap().into_iter().find(|file| file.path == aside).unwrap();
    assert_eq!(inspection.verify(&file).unwrap(), []);
    assert!(inspection.summary(&file).unwrap().is_sealed);
    drop(spool);
    let (_, recovery) = open(directory.path(), LIMITS).unwrap();
    assert_eq!(recovery.quarantined[0].file, aside);
    assert_eq!(recovery.quarantined[0].when, QuarantinedWhen::SetAside);
    assert_eq!(recovery.quarantined[0].whole[0].ranges[0].end(), at(3));
}

#[test]
fn drained_segments_are_held_again_from_the_oldest_that_is_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let limits = SpoolLimits { segment_len_bytes: 0, ..LIMITS };
    let (mut spool, _) = open(directory.path(), limits).unwrap();
    for index in 0..4 {
        // The third segment is of another partition.
        let partition = i32::from(index == 2);
        spool.append(&keyed(&[small_chunk(partition, index * 5, 5)]), 1).unwrap();
    }
    let all = [(key(0), at(20)), (key(1), at(15))];
    all.iter().for_each(|(key, position)| spool.mark_drained(*key, *position, 1).unwrap());
    assert_eq!(spool.held(), []);
    assert!(!spool.restore(key(0), at(20)).unwrap(), "nothing lies behind");
    assert!(spool.restore(key(0), at(7)).unwrap());
    let starts = |spool: &mut Spool| {
        let (mut drain, mut starts) = (Drain::default(), Vec::new());
        while let Next::Batch(batch) = spool.next(&mut drain).unwrap() {
            starts.push(batch.line.range.start().as_i64());
        }
        starts
    };
    // Not the first one, and of the other partition nothing that PostgreSQL has.
    assert_eq!(starts(&mut spool), [5, 15]);
    assert_eq!(spool.tails()[0].position, at(20));
    spool.append(&keyed(&[small_chunk(0, 20, 5)]), 1).unwrap();
    drop(spool);
    let (mut spool, recovery) = open(directory.path(), limits).unwrap();
    assert_eq!((recovery.missing, recovery.quarantined), (vec![], vec![]));
    assert_eq!(starts(&mut spool), [5, 10, 15, 20]);
    spool.mark_drained(key(0), at(25), 2).unwrap();
    spool.mark_drained(key(1), at(15), 2).unwrap();
    assert_eq!(spool.held(), []);
}

#[test]
fn what_can_be_held_again_is_told_after_a_restart_too_and_damage_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let limits = SpoolLimits { segment_len_bytes: 0, ..LIMITS };
    let (mut spool, _) = open(directory.path(), limits).unwrap();
    for index in 0..4 {
        spool.append(&keyed(&[small_chunk(0, index * 5, 5)]), 1).unwrap();
    }
    spool.mark_drained(key(0), at(20), 1).unwrap();
    let told = |spool: &Spool| -> Vec<(i64, i64)> {
        let drained = spool.drained();
        let ranges = drained.iter().flat_map(|drained| &drained.ranges);
        ranges.map(|range| (range.start().as_i64(), range.end().as_i64())).collect()
    };
    assert_eq!(told(&spool), [(0, 20)]);
    // Twice over, as often as a failover takes it back.
    for _ in 0..2 {
        assert!(spool.restore(key(0), at(12)).unwrap());
        assert_eq!(told(&spool), [(0, 10)]);
        assert_eq!(spool.held()[0].ranges[0].end(), at(20));
        spool.mark_drained(key(0), at(20), 1).unwrap();
        assert_eq!(told(&spool), [(0, 20)]);
    }
    drop(spool);
    let (mut spool, _) = open(directory.path(), limits).unwrap();
    assert_eq!(told(&spool), []);
    assert!(spool.look_into_drained().unwrap());
    assert_eq!(told(&spool), [(15, 20)], "one at a time, the newest first");
    let second = directory.path().join("drained/segment-0000000000000002-drained-1.jsonl");
    let mut bytes = fs::read(&second).unwrap();
    // Not behind its last batch, where nothing is held.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&second, bytes).unwrap();
    while spool.look_into_drained().unwrap() {}
    // What is damaged is set aside, and takes nothing older with it.
    assert_eq!(told(&spool), [(0, 5), (10, 20)]);
    assert_eq!(spool.stats().quarantined_file_count, 1);
    assert!(spool.restore(key(0), at(0)).unwrap());
    let ranges = |spool: &Spool| -> Vec<(i64, i64)> {
        spool.held()[0].ranges.iter().map(|range| (range.start().as_i64(), range.end().as_i64())).collect()
    };
    assert_eq!(ranges(&spool), [(0, 5), (10, 20)]);
    assert!(!spool.restore(key(0), at(0)).unwrap(), "all of it is held again");
    drop(spool);
    let (spool, recovery) = open(directory.path(), limits).unwrap();
    assert_eq!((ranges(&spool), recovery.missing), (vec![(0, 5), (10, 20)], vec![]));
}

#[test]
fn what_a_failover_took_back_is_not_pruned_and_makes_no_room() {
    let directory = tempfile::tempdir().unwrap();
    let limits = SpoolLimits { segment_len_bytes: 0, keep: Duration::from_millis(1), ..LIMITS };
    let (mut spool, _) = open(directory.path(), limits).unwrap();
    for index in 0..3 {
        spool.append(&keyed(&[small_chunk(0, index * 5, 5)]), 1).unwrap();
    }
    let room_len_bytes = spool.stats().room_len_bytes;
    spool.mark_drained(key(0), at(15), 1).unwrap();
    assert!(spool.stats().room_len_bytes > room_len_bytes);
    spool.mark_drained(key(0), at(5), 1).unwrap();
    spool.prune(1_000).unwrap();
    let told = |spool: &Spool| -> Vec<(i64, i64)> {
        let drained = spool.drained();
        let ranges = drained.iter().flat_map(|drained| &drained.ranges);
        ranges.map(|range| (range.start().as_i64(), range.end().as_i64())).collect()
    };
    assert_eq!(told(&spool), [(5, 15)], "the first one is PostgreSQL's");
    spool.mark_drained(key(0), at(15), 1).unwrap();
    spool.prune(1_000).unwrap();
    assert_eq!(told(&spool), []);
}

/// Its segment stays for another partition, so it is in none that was moved; found by the simulation.
#[test]
fn what_is_drained_in_a_segment_that_stays_is_told_and_held_again() {
    let directory = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(directory.path(), LIMITS).unwrap();
    spool.append(&keyed(&[small_chunk(0, 5, 5), small_chunk(1, 0, 5)]), 1).unwrap();
    assert!(spool.drained().is_empty());
    spool.mark_drained(key(0), at(10), 2).unwrap();
    let keys = |ranges: Vec<PartitionRanges>| ranges.iter().map(|ranges| ranges.key).collect::<Vec<_>>();
    assert_eq!((keys(spool.held()), keys(spool.drained())), (vec![key(1)], vec![key(0)]));
    spool.restore(key(0), at(5)).unwrap();
    assert_eq!((keys(spool.held()), keys(spool.drained())), (vec![key(0), key(1)], vec![]));
}

#[test]
fn a_segment_that_is_taken_away_is_missed_when_reading_along() {
    let directory = tempfile::tempdir().unwrap();
    let limits = SpoolLimits { segment_len_bytes: 0, ..LIMITS };
    let (mut spool, _) = open(directory.path(), limits).unwrap();
    for index in 0..3 {
        spool.append(&keyed(&[small_chunk(0, index, 1)]), 1).unwrap();
    }
    let inspection = Inspection::new(directory.path(), LocalDisk);
    assert_eq!(inspection.missing().unwrap(), []);
    fs::remove_file(directory.path().join("segment-0000000000000002.jsonl")).unwrap();
    let missing = inspection.missing().unwrap();
    assert_eq!((missing.len(), missing[0].segment.0, missing[0].named_by.0), (1, 2, 3));
}

/// It was an error that the file was not where it had been listed.
#[test]
fn a_segment_that_is_moved_while_reading_along_is_read_once_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let limits = SpoolLimits { segment_len_bytes: 0, ..LIMITS };
    let (mut spool, _) = open(directory.path(), limits).unwrap();
    for index in 0..3 {
        spool.append(&keyed(&[small_chunk(0, index * 5, 5)]), 1).unwrap();
    }
    let inspection = Inspection::new(directory.path(), LocalDisk);
    let check = |files: Vec<SegmentFile>, expect: &[(u64, SegmentPlace)]| {
        let read = inspection.read_each(files, |file| inspection.summary(file)).unwrap();
        assert!(read.iter().all(|(_, summary)| summary.record_count == 5));
        let places: Vec<_> = read.iter().map(|(file, _)| (file.number.0, file.place)).collect();
        assert_eq!(places, expect);
    };
    let before = inspection.files().unwrap();
    spool.mark_drained(key(0), at(10), 1).unwrap();
    let after = inspection.files().unwrap();
    // A listing that was under way has what was moved in both places.
    let both: Vec<SegmentFile> = before.into_iter().chain(after.iter().cloned()).collect();
    check(both, &[(1, SegmentPlace::Drained), (2, SegmentPlace::Drained), (3, SegmentPlace::Held)]);
    // A failover takes it back.
    assert!(spool.restore(key(0), at(5)).unwrap());
    check(after.clone(), &[(3, SegmentPlace::Held), (1, SegmentPlace::Drained), (2, SegmentPlace::Held)]);
    fs::remove_file(directory.path().join("drained/segment-0000000000000001-drained-1.jsonl")).unwrap();
    check(after, &[(3, SegmentPlace::Held), (2, SegmentPlace::Held)]);
}

#[test]
fn a_directory_is_a_spool_from_its_first_start_on() {
    let directory = tempfile::tempdir().unwrap();
    let is_spool = |path: &Path| Inspection::new(path, LocalDisk).was_opened().unwrap();
    let root = directory.path().join("spool");
    assert!(!is_spool(&root), "it is not there");
    // A directory of day files has these two as well.
    instance_of(&root).unwrap();
    fs::write(root.join("LOCK"), "process 1").unwrap();
    assert!(!is_spool(&root));
    drop(open(&root, LIMITS).unwrap());
    assert!(is_spool(&root), "nothing was ever appended");
    // A copy that leaves empty folders out.
    let copy = directory.path().join("copy");
    let segment = copy.join("segment-0000000000000001.jsonl");
    fs::create_dir(&copy).unwrap();
    fs::write(&segment, "").unwrap();
    assert!(is_spool(&copy));
    assert!(!is_spool(&segment), "it is a file");
}

#[test]
fn damage_is_found_with_file_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let limits = SpoolLimits { segment_len_bytes: 0, ..LIMITS };
    let (mut spool, _) = open(directory.path(), limits).unwrap();
    for index in 0..2 {
        spool.append(&keyed(&[small_chunk(0, index * 5, 5)]), 1).unwrap();
    }
    let inspection = Inspection::new(directory.path(), LocalDisk);
    let files = inspection.files().unwrap();
    for (file, kind) in files.iter().zip([FindingKind::Damage, FindingKind::Unfinished]) {
        let mut bytes = fs::read(&file.path).unwrap();
        let third_line = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0 + 1;
        bytes[third_line + 30] ^= 1;
        fs::write(&file.path, bytes).unwrap();
        let findings = inspection.verify(file).unwrap();
        let first = &findings[0];
        assert_eq!((first.kind, &first.path), (kind, &file.path));
        assert_eq!(first.damage.line_number, 3);
        assert_eq!(first.damage.at, u64::try_from(third_line).unwrap());
        assert!(first.damage.fault.to_string().starts_with("the line's checksum is "));
    }
}
