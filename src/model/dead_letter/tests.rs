use proptest::prelude::*;

use super::*;

fn row() -> DeadLetterRow {
    let stream = StreamId(Uuid::from_u128(0x1e61_a423_b898_53e4_ad22_0d2d_4663_06d8));
    DeadLetterRow {
        row_id: 17,
        id: DeadLetterId {
            key: StreamPartition { stream, partition: Partition(3) },
            offset: Offset::new(42).unwrap(),
        },
        group: "audit-consumer".into(),
        topic: "forge.audit.query.executed".into(),
        reason: "invalid_json".into(),
        detail: "expected value at line 1 column 1".into(),
        sqlstate: None,
        timestamp_ms: Some(1_700_000_000_123),
        key: Some(b"key".to_vec()),
        value: Some(b"{not json".to_vec()),
        headers: vec![(b"traceparent".to_vec(), Some(b"00-aa-bb-01".to_vec())), (vec![0xff], None)],
        correlation_id: None,
        created_at: "2026-11-24T00:00:00Z".into(),
    }
}

fn texts(record: &OutgoingRecord) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let read = |(key, value): &RecordHeader| (text(key), value.as_deref().map_or("null".into(), text));
    record.headers.iter().map(read).collect()
}

#[track_caller]
fn check_headers(record: &OutgoingRecord, expect: &[(&str, &str)]) {
    let found = texts(record);
    let found: Vec<(&str, &str)> = found.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(found, expect);
}

const ID: &str = "1e61a423-b898-53e4-ad22-0d2d466306d8:3:42";

#[test]
fn a_letter_is_the_record_with_our_headers_behind_its_own() {
    let letter = row().letter(LetterFormat::Raw, 1000).unwrap();
    assert_eq!((letter.key, letter.value), (row().key, row().value));
    assert_eq!(letter.timestamp_ms, row().timestamp_ms);
    let letter =
        DeadLetterRow { sqlstate: Some("22P05".into()), correlation_id: Some(Uuid::from_u128(5)), ..row() };
    check_headers(
        &letter.letter(LetterFormat::Raw, 1000).unwrap(),
        &[
            ("traceparent", "00-aa-bb-01"),
            ("\u{fffd}", "null"),
            ("dlq.id", ID),
            ("dlq.topic", "forge.audit.query.executed"),
            ("dlq.partition", "3"),
            ("dlq.offset", "42"),
            ("dlq.timestamp", "1700000000123"),
            ("dlq.group", "audit-consumer"),
            ("dlq.reason", "invalid_json"),
            ("dlq.detail", "expected value at line 1 column 1"),
            ("dlq.sqlstate", "22P05"),
            ("dlq.attempt", "1"),
            ("dlq.version", "1"),
            ("correlation_id", "00000000-0000-0000-0000-000000000005"),
            // The one in front can't be read.
            ("traceparent", "00-00000000000000000000000000000005-1cfd865cc0ee5659-01"),
        ],
    );
}

#[test]
fn a_letter_names_its_records_trace_once() {
    const NAMED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let traces = |row: &DeadLetterRow, max_len_bytes| {
        let texts = texts(&row.letter(LetterFormat::Raw, max_len_bytes).unwrap());
        texts.into_iter().filter(|(key, _)| key == "traceparent").map(|(_, value)| value).collect::<Vec<_>>()
    };
    let padding = (b"padding".to_vec(), Some(vec![b'x'; 2000]));
    let headers = vec![(b"traceparent".to_vec(), Some(NAMED.as_bytes().to_vec())), padding];
    let named = DeadLetterRow { headers, correlation_id: Some(Uuid::from_u128(5)), ..row() };
    assert_eq!(traces(&named, 10_000), [NAMED]);
    // Its headers don't fit any more.
    assert_eq!(traces(&named, 1_500), [NAMED]);
    let unknown = DeadLetterRow { headers: Vec::new(), ..row() };
    assert_eq!(traces(&unknown, 10_000), Vec::<String>::new());
    let known = DeadLetterRow { correlation_id: Some(Uuid::from_u128(5)), ..unknown };
    let own = traces(&known, 10_000);
    assert!(own[0].starts_with("00-00000000000000000000000000000005-") && own[0].ends_with("-01"), "{own:?}");
    assert_eq!(own, traces(&known, 10_000));
    let mut next = known;
    next.id.offset = next.id.offset.next();
    assert_ne!(own, traces(&next, 10_000));
}

#[test]
fn a_letter_that_is_too_large_is_cut_and_says_so() {
    let large = DeadLetterRow { value: Some(vec![b'x'; 5000]), ..row() };
    let whole_len_bytes = large.letter(LetterFormat::Raw, usize::MAX).unwrap().len_bytes();
    assert_eq!(large.letter(LetterFormat::Raw, whole_len_bytes).unwrap().value, large.value);
    let cut = large.letter(LetterFormat::Raw, whole_len_bytes - 1).unwrap();
    assert_eq!(cut.len_bytes(), whole_len_bytes - 1, "all the room is used");
    let texts = texts(&cut);
    let text = |name: &str| texts.iter().rev().find(|(key, _)| key == name).unwrap().1.clone();
    assert_eq!(text("dlq.truncated"), "value");
    assert_eq!(text("dlq.value.length"), "5000");
    // printf 'x%.0s' {1..5000} | sha256sum
    assert_eq!(text("dlq.value.sha256"), Hexadecimal(&Sha256::digest(vec![b'x'; 5000])).to_string(),);
    assert_eq!(text("dlq.value.sha256").len(), 64);
    assert_eq!(text("dlq.pointer"), "audit_events.dead_letters/17");
    assert_eq!(text("dlq.id"), ID);
}

#[test]
fn what_does_not_fit_goes_in_a_fixed_order() {
    let large = DeadLetterRow {
        key: Some(vec![b'k'; 3000]),
        headers: vec![(b"h".to_vec(), Some(vec![b'h'; 3000]))],
        detail: "d".repeat(500),
        ..row()
    };
    let cut_at = |max_len_bytes| {
        let letter = large.letter(LetterFormat::Raw, max_len_bytes)?;
        assert!(letter.len_bytes() <= max_len_bytes);
        let texts = texts(&letter);
        let cut = texts.iter().find(|(key, _)| key == "dlq.truncated").map(|(_, value)| value.clone());
        Some(cut.unwrap_or_default())
    };
    assert_eq!(cut_at(10_000).as_deref(), Some(""));
    assert_eq!(cut_at(7_100).as_deref(), Some(""));
    assert_eq!(cut_at(5_000).as_deref(), Some("value,headers"));
    assert_eq!(cut_at(2_000).as_deref(), Some("value,headers,key"));
    assert_eq!(cut_at(1_000).as_deref(), Some("value,headers,key,detail"));
    assert_eq!(cut_at(300), None);
}

#[test]
fn an_envelope_is_the_predecessors() {
    let envelope = |value: Option<&[u8]>| {
        let row = DeadLetterRow { value: value.map(<[u8]>::to_vec), ..row() };
        String::from_utf8(row.letter(LetterFormat::Envelope, 5000).unwrap().value.unwrap()).unwrap()
    };
    let around = |event: &str| {
        format!(
            "{{\"original_topic\":\"forge.audit.query.executed\",\"original_event\":{event},\
             \"error\":\"invalid_json: expected value at line 1 column 1\",\"timestamp\":\"2026-11-24T00:00:00Z\"}}"
        )
    };
    assert_eq!(envelope(Some(b"{\"a\": 1.50}")), around("{\"a\": 1.50}"));
    assert_eq!(envelope(Some(b"{not \"json")), around("\"{not \\\"json\""));
    assert_eq!(envelope(Some(b"\xff")), around("null,\"original_event_base64\":\"/w==\""));
    assert_eq!(envelope(None), around("null"));
    let large = DeadLetterRow { value: Some(vec![b'x'; 5000]), ..row() };
    let cut = large.letter(LetterFormat::Envelope, 1500).unwrap();
    assert_eq!(String::from_utf8(cut.value.unwrap()).unwrap(), around("null"));
}

#[test]
fn a_redriven_record_counts_its_attempts() {
    let first = row();
    assert_eq!(first.attempt(), 1);
    let again = first.redriven(Uuid::from_u128(9));
    check_headers(
        &again,
        &[
            ("traceparent", "00-aa-bb-01"),
            ("\u{fffd}", "null"),
            ("dlq.first-timestamp", "1700000000123"),
            ("dlq.attempt", "1"),
            ("dlq.redriven-from", ID),
            ("dlq.redrive", "00000000-0000-0000-0000-000000000009"),
        ],
    );
    let second = DeadLetterRow { headers: again.headers, ..row() };
    assert_eq!(second.attempt(), 2);
    let third = DeadLetterRow { headers: second.redriven(Uuid::nil()).headers, ..row() };
    assert_eq!(third.attempt(), 3);
    assert_eq!(third.headers.len(), second.headers.len(), "the redrive's headers do not pile up");
    assert_eq!(again.timestamp_ms, None);
    let odd = DeadLetterRow { headers: vec![(b"dlq.attempt".to_vec(), Some(b"many".to_vec()))], ..row() };
    assert_eq!(odd.attempt(), 1);
}

#[test]
fn an_id_is_read_as_it_is_written() {
    assert_eq!(row().id.to_string(), ID);
    assert_eq!(ID.parse(), Ok(row().id));
    for wrong in
        ["", "17", "1e61a423-b898-53e4-ad22-0d2d466306d8:3", &format!("{ID}:1"), &ID.replace(":42", ":-1")]
    {
        assert_eq!(wrong.parse::<DeadLetterId>(), Err(NoDeadLetterId), "{wrong}");
    }
}

#[test]
fn a_header_that_we_did_not_write_is_named() {
    for wrong in [r#"{}"#, r#"[{}]"#, r#"[{"key":1,"value":null}]"#, r#"[{"key":"k","value":"%"}]"#] {
        let json = serde_json::from_str(wrong).unwrap();
        assert!(headers_from_json(&json).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn headers_come_back_as_they_were(headers: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        let json = headers_to_json(headers.iter().map(|(key, value)| (&**key, value.as_deref())));
        prop_assert_eq!(headers_from_json(&json).unwrap(), headers);
    }

    #[test]
    fn a_letter_never_exceeds_its_limit(value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..3000)), max_len_bytes in 0usize..4000) {
        let row = DeadLetterRow { value, ..row() };
        for format in [LetterFormat::Raw, LetterFormat::Envelope] {
            if let Some(letter) = row.letter(format, max_len_bytes) {
                prop_assert!(letter.len_bytes() <= max_len_bytes);
                prop_assert_eq!(letter.value.is_some(), row.value.is_some() || format == LetterFormat::Envelope);
            }
        }
    }
}
