//! Day files on a disk that fails, forgets and fills up.

mod sim;

use self::sim::{Crash, SimDisk};
use super::{DayFileError, DayFiles, OPEN_MAX_COUNT};

const NAME: &str = "audit_20260131.jsonl";
const PATH: &str = "/logs/purview/audit_20260131.jsonl";
const ORPHANS: &str = "/logs/purview/audit_20260131.jsonl.orphan";

fn files(disk: &SimDisk) -> DayFiles<SimDisk> {
    DayFiles::new("/logs/purview".into(), disk.clone())
}

/// What the projector does for one intent.
fn write(files: &mut DayFiles<SimDisk>, at: u64, bytes: &str) -> Result<u64, DayFileError> {
    let orphaned = files.put(NAME, at, bytes.as_bytes())?;
    files.sync(NAME)?;
    Ok(orphaned)
}

fn text(disk: &SimDisk, path: &str) -> String {
    disk.bytes(path).map(|bytes| String::from_utf8(bytes).unwrap()).unwrap_or_default()
}

/// A disk that holds `content`, durably.
fn disk_with(content: &str) -> SimDisk {
    let disk = SimDisk::default();
    write(&mut files(&disk), 0, "x\n").unwrap();
    disk.tamper(PATH, Some(content.as_bytes()));
    disk
}

#[track_caller]
fn check_put(found: &str, at: u64, bytes: &str, expect: &str, orphans: &str) {
    let disk = disk_with(found);
    let orphaned = write(&mut files(&disk), at, bytes).unwrap();
    assert_eq!(text(&disk, PATH), expect);
    assert_eq!(text(&disk, ORPHANS), orphans);
    assert_eq!(orphaned, u64::try_from(orphans.len()).unwrap());
    disk.crash(Crash::Nothing);
    assert_eq!((text(&disk, PATH), text(&disk, ORPHANS)), (expect.to_owned(), orphans.to_owned()));
}

#[test]
fn what_is_right_stays_what_is_missing_is_added_what_differs_is_orphaned() {
    check_put("", 0, "one\ntwo\n", "one\ntwo\n", "");
    check_put("one\n", 4, "two\n", "one\ntwo\n", "");
    // Torn in a line.
    check_put("one\ntw", 4, "two\nthree\n", "one\ntwo\nthree\n", "");
    check_put("one\ntwo\n", 4, "two\nthree\n", "one\ntwo\nthree\n", "");
    // Longer and right: for a later intent.
    check_put("one\ntwo\nthree\n", 4, "two\n", "one\ntwo\nthree\n", "");
    // Zeros after a loss of power.
    check_put("one\nt\0\0\0\0\0", 4, "two\nthree\n", "one\ntwo\nthree\n", "t\0\0\0\0\0");
    // From the first line that differs, not from the byte.
    check_put("one\ntwo\nthirty\nfour\n", 4, "two\nthree\n", "one\ntwo\nthree\n", "thirty\nfour\n");
    let long = "0123456789\n".repeat(20_000);
    check_put(&format!("{long}x\n"), 0, &format!("{long}y\n"), &format!("{long}y\n"), "x\n");
}

#[test]
fn a_file_that_is_short_is_not_written_behind_a_hole() {
    let disk = disk_with("one\n");
    let short = |outcome| matches!(outcome, Err(DayFileError::Short { len_bytes, expected_len_bytes: 8, .. }) if len_bytes < 8);
    let mut day_files = files(&disk);
    assert!(short(write(&mut day_files, 8, "three\n")));
    disk.tamper(PATH, None);
    assert!(short(write(&mut day_files, 8, "three\n")));
    assert_eq!(disk.bytes(PATH), None, "it is not made for nothing");
    for (at, bytes) in [(0, "one\n"), (4, "two\n"), (8, "three\n")] {
        write(&mut day_files, at, bytes).unwrap();
    }
    assert_eq!(text(&disk, PATH), "one\ntwo\nthree\n");
}

#[test]
fn a_file_that_lost_its_name_is_not_written_to() {
    let disk = SimDisk::default();
    let mut day_files = files(&disk);
    write(&mut day_files, 0, "one\n").unwrap();
    disk.tamper(PATH, None);
    write(&mut day_files, 0, "one\n").unwrap();
    assert_eq!(text(&disk, PATH), "one\n");
}

#[test]
fn a_tail_is_cut_to_the_orphans_and_nothing_is_lost() {
    let disk = disk_with("one\ntwo\nthree\n");
    let mut day_files = files(&disk);
    assert_eq!(day_files.cut(NAME, 8).unwrap(), 6);
    assert_eq!(day_files.cut(NAME, 8).unwrap(), 0);
    assert_eq!(day_files.cut(NAME, 4).unwrap(), 4);
    assert_eq!((text(&disk, PATH), text(&disk, ORPHANS)), ("one\n".into(), "three\ntwo\n".into()));
}

#[test]
fn few_files_are_open_at_once() {
    let disk = SimDisk::default();
    let mut day_files = files(&disk);
    for round in 0..3 {
        for index in 0..100 {
            let name = format!("audit_2026{index:04}.jsonl");
            day_files.put(&name, round * 2, b"x\n").unwrap();
            day_files.sync(&name).unwrap();
        }
    }
    assert!(disk.open_max_count() <= OPEN_MAX_COUNT, "{}", disk.open_max_count());
    assert_eq!(text(&disk, "/logs/purview/audit_20260099.jsonl"), "x\nx\nx\n");
}

/// Intents one after the other, each tried until it succeeds; the process dies after the try that failed if `dies`.
fn run_to_the_end(disk: &SimDisk, crash: Option<Crash>) -> u64 {
    let intents = ["one\ntwo\n", "three\n", "four\nfive\nsix\n", "seven\n"];
    let (mut at, mut failure_count, mut day_files) = (0, 0, files(disk));
    for bytes in intents {
        while let Err(error) = write(&mut day_files, at, bytes) {
            assert!(matches!(error, DayFileError::Failed { .. }), "{error}");
            failure_count += 1;
            if let Some(crash) = crash {
                disk.crash(crash);
                day_files = files(disk);
            }
            assert!(failure_count < 50);
            // The disk is well again.
            disk.fail(None);
        }
        at += u64::try_from(bytes.len()).unwrap();
    }
    failure_count
}

#[test]
fn any_call_may_fail_and_any_crash_follow_and_the_file_is_the_same_and_durable() {
    let expect = "one\ntwo\nthree\nfour\nfive\nsix\nseven\n";
    let counted = SimDisk::default();
    assert_eq!(run_to_the_end(&counted, None), 0);
    let call_count = counted.call_count();
    assert!(call_count > 20);
    let mut failure_count = 0;
    for lasts in [false, true] {
        for crash in [None, Some(Crash::Everything), Some(Crash::Nothing), Some(Crash::Torn)] {
            for call in 1..=call_count {
                let disk = SimDisk::default();
                disk.fail(Some((call, lasts)));
                failure_count += run_to_the_end(&disk, crash);
                assert_eq!(text(&disk, PATH), expect, "call {call}, {crash:?}");
                disk.crash(Crash::Nothing);
                assert_eq!(text(&disk, PATH), expect, "call {call}, {crash:?}: not durable");
            }
        }
    }
    assert!(failure_count >= call_count * 8);
}

#[test]
fn a_full_disk_takes_the_rest_when_there_is_room() {
    for capacity in 0..13 {
        let disk = SimDisk::default();
        disk.set_capacity(Some(capacity));
        let mut day_files = files(&disk);
        let error = write(&mut day_files, 0, "one\ntwo\nthree\n").unwrap_err();
        assert_eq!(error.class(), "full");
        assert!(error.to_string().contains(PATH), "{error}");
        disk.set_capacity(None);
        write(&mut day_files, 0, "one\ntwo\nthree\n").unwrap();
        assert_eq!((text(&disk, PATH), text(&disk, ORPHANS)), ("one\ntwo\nthree\n".into(), String::new()));
    }
}
