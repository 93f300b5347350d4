//! A full disk pauses, and loses nothing; drained segments make room first.

use super::scene::{LIMITS, PlainChunk, drain, keyed, open, segment_path};
use super::sim::SimDisk;
use crate::model::spool::tests::{at, key, plain, small_chunk};
use crate::spool::{Shortage, Spool, SpoolError, SpoolLimits};

/// Appends until the spool takes no more; what it took, and why it stopped.
fn fill(spool: &mut Spool<SimDisk>, from: i64) -> (Vec<PlainChunk>, SpoolError) {
    let mut held = Vec::new();
    for index in from..from + 10_000 {
        let chunk = small_chunk(0, index * 5, 5);
        match spool.append(&keyed(std::slice::from_ref(&chunk)), index) {
            Ok(()) => held.push(plain(&chunk)),
            Err(error) => return (held, error),
        }
    }
    panic!("never full");
}

#[test]
fn a_full_disk_loses_nothing_and_takes_more_when_there_is_room() {
    // Each capacity stops the append at another byte.
    for capacity in 3_000..4_200 {
        let disk = SimDisk::default();
        disk.set_capacity(Some(capacity));
        let limits = SpoolLimits { segment_len_bytes: 2_000, ..LIMITS };
        let (mut spool, _) = open(&disk, limits).unwrap();
        let (mut held, error) = fill(&mut spool, 0);
        assert!(matches!(error, SpoolError::Full(_)), "{error}");
        assert!(!held.is_empty());
        for _ in 0..3 {
            let (more, error) = fill(&mut spool, 1_000);
            assert!(more.is_empty() && matches!(error, SpoolError::Full(_)), "{error}");
        }
        assert_eq!(drain(&mut spool).unwrap().chunks, held);

        disk.set_capacity(Some(capacity + 2_000));
        let next = small_chunk(0, i64::try_from(held.len()).unwrap() * 5, 5);
        spool.append(&keyed(std::slice::from_ref(&next)), 1).unwrap();
        held.push(plain(&next));
        assert_eq!(drain(&mut spool).unwrap().chunks, held);
        drop(spool);
        let (mut spool, recovery) = open(&disk, limits).unwrap();
        assert_eq!((recovery.cuts.len(), recovery.quarantined.len(), recovery.missing.len()), (0, 0, 0));
        assert_eq!(drain(&mut spool).unwrap().chunks, held);
    }
}

#[test]
fn a_process_starts_on_a_disk_without_any_room() {
    let disk = SimDisk::default();
    disk.set_capacity(Some(3_000));
    let (mut spool, _) = open(&disk, LIMITS).unwrap();
    let (held, _) = fill(&mut spool, 0);
    drop(spool);
    disk.set_capacity(Some(0));
    for _ in 0..3 {
        let (mut spool, recovery) = open(&disk, LIMITS).unwrap();
        assert_eq!((recovery.cuts.len(), recovery.quarantined.len()), (0, 0));
        assert_eq!(drain(&mut spool).unwrap().chunks, held);
        assert!(fill(&mut spool, 0).0.is_empty());
    }
}

#[test]
fn a_torn_tail_stays_where_it_is_until_there_is_room_to_keep_it() {
    let disk = SimDisk::default();
    let (mut spool, _) = open(&disk, LIMITS).unwrap();
    let (first, torn) = (small_chunk(0, 0, 5), small_chunk(0, 5, 5));
    spool.append(&keyed(std::slice::from_ref(&first)), 1).unwrap();
    let held_len = disk.bytes(&segment_path(1)).len();
    spool.append(&keyed(std::slice::from_ref(&torn)), 1).unwrap();
    drop(spool);
    let bytes = disk.bytes(&segment_path(1));
    disk.put(&segment_path(1), &bytes[..bytes.len() - 10]);
    disk.set_capacity(Some(0));
    for _ in 0..2 {
        let (mut spool, recovery) = open(&disk, LIMITS).unwrap();
        let [cut] = recovery.cuts.as_slice() else { panic!("{:?}", recovery.cuts) };
        assert_eq!((cut.at, &cut.file), (u64::try_from(held_len).unwrap(), &None));
        assert_eq!(recovery.tails[0].position, at(5));
        assert_eq!(drain(&mut spool).unwrap().chunks, [plain(&first)]);
    }
    disk.set_capacity(None);
    let (mut spool, recovery) = open(&disk, LIMITS).unwrap();
    let kept = recovery.cuts[0].file.clone().unwrap();
    assert_eq!(disk.bytes(&kept), bytes[held_len..bytes.len() - 10]);
    spool.append(&keyed(std::slice::from_ref(&torn)), 1).unwrap();
    assert_eq!(drain(&mut spool).unwrap().chunks, [plain(&first), plain(&torn)]);
}

#[test]
fn the_limit_holds_for_all_files_together() {
    let disk = SimDisk::default();
    let limits = SpoolLimits { max_len_bytes: 20_000, segment_len_bytes: 3_000, ..LIMITS };
    let (mut spool, _) = open(&disk, limits).unwrap();
    let (_, error) = fill(&mut spool, 0);
    assert!(matches!(error, SpoolError::Full(Shortage::Limit { .. })), "{error}");
    assert_eq!(spool.stats().total_len_bytes, disk_len(&disk));
    assert!(disk_len(&disk) <= 20_000);
    assert!(disk_len(&disk) > 18_000);
}

#[test]
fn the_floor_holds_for_the_disk() {
    let disk = SimDisk::default();
    disk.set_capacity(Some(10_000));
    let limits = SpoolLimits { min_free_len_bytes: 4_000, ..LIMITS };
    let (mut spool, _) = open(&disk, limits).unwrap();
    let (held, error) = fill(&mut spool, 0);
    assert!(matches!(error, SpoolError::Full(Shortage::Floor { .. })), "{error}");
    assert!(disk_len(&disk) <= 6_000 && held.len() > 3);
}

#[test]
fn drained_segments_make_room_oldest_first() {
    let disk = SimDisk::default();
    let limits = SpoolLimits { max_len_bytes: 20_000, segment_len_bytes: 3_000, ..LIMITS };
    let (mut spool, _) = open(&disk, limits).unwrap();
    let (held, _) = fill(&mut spool, 0);
    let end = i64::try_from(held.len()).unwrap() * 5;
    spool.mark_drained(key(0), at(end), 7).unwrap();
    assert_eq!((spool.stats().record_count, spool.held(), spool.tails()), (0, vec![], vec![]));
    let before = disk.paths();
    let chunk = small_chunk(0, end, 5);
    spool.append(&keyed(std::slice::from_ref(&chunk)), 8).unwrap();
    assert!(!disk.paths().contains(&before[0]) || before[0] == super::scene::root().join("LOCK"));
    let (more, _) = fill(&mut spool, 1_000);
    assert!(more.len() + 3 > held.len(), "{} of {}", more.len(), held.len());
    assert!(disk_len(&disk) <= 20_000);
    assert_eq!(drain(&mut spool).unwrap().chunks.len(), more.len() + 1);
}

#[test]
fn drained_segments_are_kept_for_their_time() {
    let disk = SimDisk::default();
    let limits = SpoolLimits { segment_len_bytes: 0, ..LIMITS };
    let (mut spool, _) = open(&disk, limits).unwrap();
    for index in 0..4 {
        spool.append(&keyed(&[small_chunk(0, index, 1)]), 0).unwrap();
    }
    spool.mark_drained(key(0), at(2), 1_000).unwrap();
    spool.mark_drained(key(0), at(3), 5_000).unwrap();
    let drained = |disk: &SimDisk| {
        let in_drained = |path: &std::path::PathBuf| path.parent().unwrap().ends_with("drained");
        let paths = disk.paths().into_iter().filter(in_drained);
        paths.map(|path| disk.bytes(&path).len().min(1)).collect::<Vec<_>>()
    };
    assert_eq!(drained(&disk), [1, 1, 1]);
    spool.prune(10_999).unwrap();
    assert_eq!(drained(&disk), [1, 1, 1]);
    spool.prune(11_000).unwrap();
    assert_eq!(drained(&disk), [1]);
    // The newest one leaves its name, so that the segment behind it does not miss it.
    spool.prune(15_000).unwrap();
    assert_eq!(drained(&disk), [0]);
    drop(spool);
    let (mut spool, recovery) = open(&disk, limits).unwrap();
    assert_eq!(recovery.missing, []);
    assert_eq!(drain(&mut spool).unwrap().chunks.len(), 1);
    spool.mark_drained(key(0), at(4), 16_000).unwrap();
    spool.prune(16_000).unwrap();
    assert_eq!(drained(&disk), [1]);
}

fn disk_len(disk: &SimDisk) -> u64 {
    u64::try_from(disk.paths().iter().map(|path| disk.bytes(path).len()).sum::<usize>()).unwrap()
}
