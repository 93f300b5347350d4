//! One segment of twenty records, damaged in every way that is thought of: what was acknowledged comes back as
//! it was, or is reported; nothing is invented; start-up ends.

use std::collections::{BTreeMap, BTreeSet};

use super::scene::{Drained, LIMITS, PlainChunk, drain, keyed, open, root, segment_path};
use super::sim::SimDisk;
use crate::model::position::StreamPartition;
use crate::model::record::Chunk;
use crate::model::spool::tests::{at, key, plain, small_chunk};
use crate::spool::{PartitionRanges, QuarantinedWhen, Recovery, Spool, SpoolLimits, UnknownBatches};

/// Where the damaged segment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// It is the newest one and was being written.
    OpenAndLast,
    /// It is the newest one, and full.
    SealedAndLast,
    /// Others stand before and behind it.
    Between,
    /// It was given up: it has no footer, and its successor says where it ended.
    GivenUp,
}

/// A directory with a segment of twenty records.
struct Scene {
    stands: Stands,
    /// All files, as they were written.
    files: BTreeMap<std::path::PathBuf, Vec<u8>>,
    target: std::path::PathBuf,
    chunks: Vec<(PlainChunk, StreamPartition)>,
}

fn target_chunks() -> Vec<Vec<Chunk>> {
    // Four appends, two of them of two batches: ten records of each of two partitions.
    vec![
        vec![small_chunk(0, 10, 4)],
        vec![small_chunk(0, 14, 3), small_chunk(1, 10, 4)],
        vec![small_chunk(1, 14, 4)],
        vec![small_chunk(1, 18, 2), small_chunk(0, 17, 3)],
    ]
}

impl Scene {
    fn new(stands: Stands) -> Self {
        let disk = SimDisk::default();
        let sealing = SpoolLimits { segment_len_bytes: 0, ..LIMITS };
        let mut chunks = Vec::new();
        let mut note = |chunk: &Chunk| chunks.push((plain(chunk), key(chunk.source.partition.0)));
        let mut number = 1;
        if matches!(stands, Stands::Between | Stands::GivenUp) {
            let before = [small_chunk(0, 0, 10), small_chunk(1, 0, 10)];
            let (mut spool, _) = open(&disk, LIMITS).unwrap();
            spool.append(&keyed(&before), 1).unwrap();
            before.iter().for_each(&mut note);
            number = 2;
        }
        let (mut spool, _) = open(&disk, LIMITS).unwrap();
        for append in target_chunks() {
            spool.append(&keyed(&append), 2).unwrap();
            append.iter().for_each(&mut note);
        }
        if stands == Stands::SealedAndLast {
            drop(spool);
            (spool, _) = open(&disk, LIMITS).unwrap();
        }
        if stands == Stands::Between {
            drop(spool);
            (spool, _) = open(&disk, sealing).unwrap();
        }
        if stands == Stands::GivenUp {
            spool.give_up_active();
        }
        if matches!(stands, Stands::Between | Stands::GivenUp) {
            let behind = [small_chunk(0, 20, 2), small_chunk(1, 20, 2)];
            spool.append(&keyed(&behind), 3).unwrap();
            behind.iter().for_each(&mut note);
        }
        drop(spool);
        let files = disk.paths().into_iter().map(|path| (path.clone(), disk.bytes(&path))).collect();
        Self { stands, files, target: segment_path(number), chunks }
    }

    fn bytes(&self) -> &[u8] {
        &self.files[&self.target]
    }

    /// Starts with `bytes` in place of the segment, and looks at what becomes of everything.
    #[track_caller]
    fn check(&self, bytes: &[u8], what: impl Fn() -> String) {
        let (disk, mut spool, recovery, drained) = self.start(bytes, &what);

        // It goes on, and what is appended now is found by the next start with all that was found by this one.
        let more = small_chunk(0, 100, 1);
        spool.append(&keyed(std::slice::from_ref(&more)), 4).unwrap();
        drop(spool);
        let (mut spool, again) = open(&disk, LIMITS).unwrap();
        let mut expected = drained.chunks;
        expected.push(plain(&more));
        assert_eq!(
            drain(&mut spool).unwrap(),
            Drained { chunks: expected, quarantined: vec![] },
            "{}",
            what()
        );
        assert!(again.quarantined.iter().all(|found| found.when == QuarantinedWhen::Earlier), "{}", what());
        assert_eq!(again.cuts, [], "{}", what());
        let reported = |recovery: &Recovery| recovery.cuts.len() + recovery.quarantined.len();
        assert_eq!(reported(&again), reported(&recovery), "{}", what());
    }

    #[track_caller]
    fn start(
        &self,
        bytes: &[u8],
        what: &impl Fn() -> String,
    ) -> (SimDisk, Spool<SimDisk>, Recovery, Drained) {
        let disk = SimDisk::default();
        for (path, original) in &self.files {
            disk.put(path, if *path == self.target { bytes } else { original });
        }
        let (mut spool, recovery) = open(&disk, LIMITS).unwrap();
        let drained = drain(&mut spool).unwrap();
        self.account(&recovery, &drained, what);
        let is_quiet = recovery.cuts.is_empty() && recovery.quarantined.is_empty();
        // What is missing at the end without a trace: the footer alone, or of the newest segment anything.
        let is_all_there = drained.chunks.len() == self.chunks.len();
        let is_unseen = self.bytes().starts_with(bytes) && (is_all_there || self.is_newest());
        assert!(!is_quiet || is_unseen, "damage is not reported: {}", what());
        (disk, spool, recovery, drained)
    }

    fn is_newest(&self) -> bool {
        matches!(self.stands, Stands::OpenAndLast | Stands::SealedAndLast)
    }

    fn account(&self, recovery: &Recovery, drained: &Drained, what: &impl Fn() -> String) {
        assert_eq!(drained.quarantined, [], "damage was overlooked at the start: {}", what());
        let originals: Vec<&PlainChunk> = self.chunks.iter().map(|(chunk, _)| chunk).collect();
        let places: Vec<Option<usize>> =
            drained.chunks.iter().map(|chunk| originals.iter().position(|other| *other == chunk)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "invented or moved: {}", what());
        let found: BTreeSet<Option<usize>> = places.iter().copied().collect();
        assert_eq!(found.len(), places.len(), "doubled: {}", what());
        let lost = self.chunks.iter().enumerate().filter(|(index, _)| !found.contains(&Some(*index)));
        let unknown = recovery.quarantined.iter().any(|found| found.unknown != UnknownBatches::Exactly(0));
        for (_, (chunk, key)) in lost {
            let reports =
                recovery.quarantined.iter().flat_map(|found| found.whole.iter().chain(&found.broken));
            let reports =
                reports.chain(recovery.cuts.iter().flat_map(|cut| cut.whole.iter().chain(&cut.broken)));
            let is_named = reports.into_iter().any(|ranges| names(ranges, *key, chunk));
            // In the newest segment a batch that vanished is behind the tail, so it is read again.
            let tail = recovery.tails.iter().find(|tail| tail.key == *key);
            let is_behind_tail = self.is_newest() && tail.is_none_or(|tail| tail.position <= at(chunk.1));
            assert!(is_named || unknown || is_behind_tail, "{chunk:?} is lost silently: {}", what());
        }
    }
}

fn names(ranges: &PartitionRanges, key: StreamPartition, chunk: &PlainChunk) -> bool {
    ranges.key == key
        && ranges.ranges.iter().any(|range| range.start() <= at(chunk.1) && at(chunk.2) <= range.end())
}

/// Runs `check` for the segment in each of its places.
#[track_caller]
fn everywhere(check: impl Fn(&Scene) + Sync) {
    let stands = [Stands::OpenAndLast, Stands::SealedAndLast, Stands::Between, Stands::GivenUp];
    std::thread::scope(|scope| {
        for stands in stands {
            let check = &check;
            scope.spawn(move || check(&Scene::new(stands)));
        }
    });
}

#[test]
fn a_segment_without_damage_comes_back_whole() {
    everywhere(|scene| {
        scene.check(scene.bytes(), String::new);
        let disk = SimDisk::default();
        scene.files.iter().for_each(|(path, bytes)| disk.put(path, bytes));
        let (mut spool, recovery) = open(&disk, LIMITS).unwrap();
        assert_eq!(drain(&mut spool).unwrap().chunks.len(), scene.chunks.len());
        let quiet = Recovery { held: spool.held(), tails: spool.tails(), ..Recovery::default() };
        assert_eq!(recovery, quiet);
        assert!(recovery.tails.iter().all(|tail| tail.position == at(20) || tail.position == at(22)));
        let records = std::str::from_utf8(scene.bytes()).unwrap().matches(r#""kind":"record""#).count();
        assert_eq!(records, 20);
    });
}

#[test]
fn a_segment_that_is_cut_anywhere_is_accounted_for() {
    everywhere(|scene| {
        for len in 0..scene.bytes().len() {
            scene.check(&scene.bytes()[..len], || format!("{:?} cut at {len}", scene.stands));
        }
    });
}

#[test]
fn a_segment_with_any_bit_flipped_is_accounted_for() {
    everywhere(|scene| {
        let mut bytes = scene.bytes().to_vec();
        for index in 0..bytes.len() {
            for bit in 0..8 {
                let what = || format!("{:?} byte {index} bit {bit}", scene.stands);
                bytes[index] ^= 1 << bit;
                // What follows the first start does not depend on which bit it was.
                if bit == index % 8 {
                    scene.check(&bytes, what);
                } else {
                    scene.start(&bytes, &what);
                }
                bytes[index] ^= 1 << bit;
            }
        }
    });
}

#[test]
fn a_segment_with_lines_or_batches_dropped_doubled_or_swapped_is_accounted_for() {
    everywhere(|scene| {
        let lines: Vec<&[u8]> = scene.bytes().split_inclusive(|byte| *byte == b'\n').collect();
        rearrange(scene, &lines);
        let ends_batch = |line: &&&[u8]| line.starts_with(br#"{"kind":"batch""#) || **line == lines[0];
        let mut batches: Vec<&[u8]> = Vec::new();
        let (mut start, mut at) = (0, 0);
        for line in &lines {
            at += line.len();
            if ends_batch(&line) || at == scene.bytes().len() {
                batches.push(&scene.bytes()[start..at]);
                start = at;
            }
        }
        assert!(batches.len() >= 7 && batches.concat() == scene.bytes());
        rearrange(scene, &batches);
    });
}

#[track_caller]
fn rearrange(scene: &Scene, pieces: &[&[u8]]) {
    let stands = scene.stands;
    for index in 0..pieces.len() {
        let mut dropped = pieces.to_vec();
        dropped.remove(index);
        scene.check(&dropped.concat(), || format!("{stands:?} without {index} of {}", pieces.len()));
        for other in 0..pieces.len() {
            let mut doubled = pieces.to_vec();
            doubled.insert(other, pieces[index]);
            scene.check(&doubled.concat(), || format!("{stands:?} {index} again at {other}"));
            let mut swapped = pieces.to_vec();
            swapped.swap(index, other);
            scene.check(&swapped.concat(), || format!("{stands:?} {index} and {other} swapped"));
        }
    }
}

#[test]
fn a_segment_with_zeroed_blocks_is_accounted_for() {
    everywhere(|scene| {
        for block_len in [1, 16, 64, 512, 4096] {
            for start in (0..scene.bytes().len()).step_by(if block_len == 1 { 1 } else { block_len / 4 }) {
                let mut bytes = scene.bytes().to_vec();
                let end = bytes.len().min(start + block_len);
                bytes[start..end].fill(0);
                scene.check(&bytes, || format!("{:?} {start}..{end} zero", scene.stands));
            }
        }
    });
}

#[test]
fn what_stands_behind_the_batches_that_a_footer_proves_is_cut_off_and_costs_nothing() {
    let scene = Scene::new(Stands::SealedAndLast);
    let footer_at = scene.bytes().trim_ascii_end().iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    let (batches, footer) = scene.bytes().split_at(footer_at);
    for junk in [b"{\"kind\":\"record\",\"half\":", &b"\n"[..], b"half\nand a line\n", scene.bytes()] {
        let bytes = [scene.bytes(), junk].concat();
        let what = || format!("{} bytes behind the footer", junk.len());
        scene.check(&bytes, what);
        let (_, _, recovery, drained) = scene.start(&bytes, &what);
        assert_eq!(drained.chunks.len(), scene.chunks.len());
        assert_eq!((recovery.cuts.len(), recovery.quarantined.len()), (1, 0));
    }
    for junk in [&b"\n"[..], b"half\nand a line\n"] {
        let bytes = [batches, junk, footer].concat();
        let what = || format!("{} bytes before the footer", junk.len());
        scene.check(&bytes, what);
        let (_, _, recovery, drained) = scene.start(&bytes, &what);
        assert_eq!(drained.chunks.len(), scene.chunks.len());
        assert_eq!((recovery.cuts.len(), recovery.quarantined.len()), (1, 0));
    }
}

#[test]
fn a_segment_that_is_gone_is_missed() {
    let scene = Scene::new(Stands::Between);
    let disk = SimDisk::default();
    for (path, bytes) in scene.files.iter().filter(|(path, _)| **path != scene.target) {
        disk.put(path, bytes);
    }
    let (_, recovery) = open(&disk, LIMITS).unwrap();
    let [missing] = recovery.missing.as_slice() else { panic!("{:?}", recovery.missing) };
    assert_eq!((missing.segment.0, missing.named_by.0), (2, 3));
    assert_eq!(missing.batches, UnknownBatches::Exactly(6));
}

#[test]
fn files_that_are_none_of_ours_are_named_and_left_alone() {
    let disk = SimDisk::default();
    let stranger = root().join("notes.txt");
    disk.put(&stranger, b"remember");
    disk.put(&root().join("quarantine/segment-0000000000000001.jsonl.new"), b"half");
    let (_, recovery) = open(&disk, LIMITS).unwrap();
    assert_eq!(recovery.strangers, ["notes.txt"]);
    assert_eq!(disk.paths(), [stranger]);
}

#[test]
fn damage_that_comes_after_the_start_is_found_by_the_drain() {
    let scene = Scene::new(Stands::Between);
    for index in (0..scene.bytes().len()).step_by(7) {
        let disk = SimDisk::default();
        scene.files.iter().for_each(|(path, bytes)| disk.put(path, bytes));
        let (mut spool, _) = open(&disk, LIMITS).unwrap();
        let mut bytes = disk.bytes(&scene.target);
        bytes[index] ^= 4;
        disk.put(&scene.target, &bytes);
        let drained = drain(&mut spool).unwrap();
        let is_in_footer =
            index >= scene.bytes().len() - scene.bytes().rsplit(|b| *b == b'\n').nth(1).unwrap().len() - 1;
        if is_in_footer {
            continue;
        }
        let [quarantined] = drained.quarantined.as_slice() else { panic!("{index}") };
        let named: u64 = quarantined
            .whole
            .iter()
            .chain(&quarantined.broken)
            .flat_map(|ranges| &ranges.ranges)
            .map(|range| range.span())
            .sum();
        assert_eq!(named, 20, "{index}: {quarantined:?}");
        let (_, recovery) = open_after(&disk, spool);
        assert_eq!(recovery.quarantined.len(), 1);
        assert_eq!(recovery.missing, []);
    }
}

fn open_after(disk: &SimDisk, spool: Spool<SimDisk>) -> (Spool<SimDisk>, Recovery) {
    drop(spool);
    open(disk, LIMITS).unwrap()
}
