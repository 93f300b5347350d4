use super::*;

/// A partition in which `[10, 20)` was read: 6 events, 1 duplicate, 2 dead letters, 1 absent offset.
fn sound() -> PartitionAccount {
    let counts = FateCounts { events: 6, duplicates: 1, dead_letters: 2 };
    PartitionAccount {
        group: "g".into(),
        topic: "t".into(),
        key: StreamPartition { stream: StreamId(Uuid::from_u128(1)), partition: Partition(0) },
        is_retired: false,
        position: Some(PositionAccount { first: 10, next: 20, counters: counts, absent: 1 }),
        stored: RowAccount {
            rows: counts,
            dropped: 0,
            distinct_offsets: 9,
            bounds: Some((10, 19)),
            first_repeated: None,
        },
        gaps: 0,
    }
}

#[track_caller]
fn check(break_it: impl FnOnce(&mut PartitionAccount, &mut PositionAccount), expected: &[&str]) {
    let mut account = sound();
    let mut position = account.position.take().unwrap();
    break_it(&mut account, &mut position);
    account.position = Some(position);
    let codes: Vec<&str> = account.findings().iter().map(|finding| finding.code.as_str()).collect();
    assert_eq!(codes, expected);
}

#[test]
fn an_account_that_holds_has_no_finding() {
    check(|_, _| {}, &[]);
}

#[test]
fn a_lost_row_is_a_hole() {
    check(
        |account, _| {
            account.stored.rows.events = 5;
            account.stored.distinct_offsets = 8;
        },
        &["events_differ", "hole"],
    );
    check(
        |account, _| {
            account.stored.rows.duplicates = 0;
            account.stored.distinct_offsets = 8;
        },
        &["duplicates_differ", "hole"],
    );
    check(
        |account, _| {
            account.stored.rows.dead_letters = 0;
            account.stored.distinct_offsets = 7;
        },
        &["dead_letters_differ", "hole"],
    );
}

#[test]
fn a_lost_record_that_was_counted_nowhere_unbalances_the_position() {
    check(|_, position| position.next = 21, &["account_unbalanced", "hole"]);
    check(|_, position| position.absent = 0, &["account_unbalanced", "hole"]);
}

#[test]
fn an_offset_that_stands_twice_hides_no_hole() {
    check(
        |account, _| {
            account.stored.distinct_offsets = 8;
            account.stored.first_repeated = Some(12);
        },
        &["overlap", "hole"],
    );
}

#[test]
fn rows_outside_of_what_was_read_are_beyond_the_position() {
    check(|account, _| account.stored.bounds = Some((10, 20)), &["beyond_position"]);
    check(|account, _| account.stored.bounds = Some((9, 19)), &["beyond_position"]);
}

#[test]
fn rows_without_a_position_are_orphans() {
    let account = PartitionAccount { position: None, ..sound() };
    let findings = account.findings();
    assert_eq!(findings.len(), 1);
    assert_eq!((findings[0].code, &*findings[0].found), (FindingCode::OrphanRows, "9"));
}

#[test]
fn kafka_may_hold_more_but_neither_less_nor_later() {
    let at = |n| Offset::new(n).unwrap();
    let codes = |low, end| -> Vec<FindingCode> {
        sound().findings_in_kafka(at(low), at(end)).iter().map(|finding| finding.code).collect()
    };
    assert_eq!(codes(0, 20), []);
    assert_eq!(codes(20, 500), []);
    assert_eq!(codes(21, 500), [FindingCode::RecordsDeleted]);
    assert_eq!(codes(0, 19), [FindingCode::BeyondEnd]);
}
