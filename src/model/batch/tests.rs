//! Batches add up, whatever is split off or dropped.

use proptest::prelude::*;

use super::*;
use crate::model::event::Timestamp;
use crate::model::position::{Partition, StreamId, TopicPartition};
use crate::model::rejection::RejectionCode;

fn at(offset: u64) -> Offset {
    Offset::new(i64::try_from(offset).unwrap()).unwrap()
}

fn key(partition: i32) -> StreamPartition {
    StreamPartition { stream: StreamId(Uuid::from_u128(1)), partition: Partition(partition) }
}

/// A chunk of `partition` from `start`: one record after each of `gaps`, then `tail` absent offsets.
fn chunk(partition: i32, start: u64, gaps: &[u64], tail: u64) -> Arc<Chunk> {
    let mut next = start;
    let records: Vec<Record> = gaps
        .iter()
        .map(|&gap| {
            let offset = at(next + gap);
            next += gap + 1;
            Record { offset, absent_before: gap, timestamp_ms: None, key: None, value: None, headers: vec![] }
        })
        .collect();
    Arc::new(Chunk {
        polled: None,
        assignment: AssignmentId(1),
        source: Arc::new(TopicPartition { topic: "t".into(), partition: Partition(partition) }),
        start: at(start),
        end: at(next + tail),
        absent_after: tail,
        records,
        arena: vec![],
    })
}

fn letter() -> DeadLetter {
    let rejection = Rejection::new(RejectionCode::InvalidJson, "");
    DeadLetter { rejection, sqlstate: None, audit_id: None, correlation_id: None }
}

fn noted(is_repeated: bool) -> Noted {
    Noted { flag: None, trust_percent: 80, is_repeated }
}

/// Every third record is a dead letter, of the others every fifth came before; a row is the record's offset in 8 bytes.
fn decode(record: &Record, rows: &mut Vec<u8>) -> Decoded {
    if record.offset.as_i64() % 3 == 0 {
        return Decoded::DeadLetter(letter());
    }
    rows.extend_from_slice(&record.offset.as_i64().to_be_bytes());
    Decoded::Event(Timestamp::MIN, noted(record.offset.as_i64() % 5 == 0))
}

fn build(chunks: &[Arc<Chunk>]) -> Batch {
    let mut builder = BatchBuilder::new(BatchLimits { record_count: 1000, len_bytes: 1 << 20 });
    for chunk in chunks {
        builder.push(chunk, key(chunk.source.partition.0), Epoch(1), decode).unwrap();
    }
    builder.take()
}

fn rows(batch: &Batch) -> Vec<u8> {
    batch.event_rows(Rows::All).flatten().copied().collect()
}

#[track_caller]
fn check(batch: &Batch) {
    let len_bytes = |rows| batch.event_rows(rows).map(<[u8]>::len).sum::<usize>();
    for rows in [Rows::All, Rows::Repeated(false), Rows::Repeated(true)] {
        assert_eq!(u64::try_from(len_bytes(rows) / 8).unwrap(), batch.row_count(rows), "{rows:?}");
    }
    assert_eq!(len_bytes(Rows::Repeated(false)) + len_bytes(Rows::Repeated(true)), len_bytes(Rows::All));
    for part in batch.parts() {
        assert!(part.is_balanced(), "{part:?}");
    }
    assert!(batch.parts().is_sorted_by_key(|part| part.key));
    assert_eq!(u64::try_from(rows(batch).len()).unwrap(), batch.event_count() * 8);
}

#[test]
fn a_batch_in_the_room_of_another_holds_nothing_of_it() {
    let mut builder = BatchBuilder::new(BatchLimits { record_count: 100, len_bytes: 1 << 20 });
    builder.push(&chunk(0, 5, &[0, 0], 0), key(0), Epoch(1), decode).unwrap();
    let (first, second) = (builder.take(), chunk(0, 7, &[0], 0));
    builder.push(&second, key(0), Epoch(1), decode).unwrap();
    // One that somebody still has is left alone.
    builder.reuse(first.clone());
    assert_eq!(first.entries().len(), 2);
    builder.reuse(first);
    let second = builder.take();
    builder.push(&chunk(1, 8, &[0], 0), key(1), Epoch(1), decode).unwrap();
    let third = builder.take();
    for (batch, offset) in [(second, 7), (third, 8)] {
        check(&batch);
        assert_eq!(batch.entries().iter().map(|entry| entry.offset).collect::<Vec<_>>(), [at(offset)]);
        assert_eq!(rows(&batch), offset.to_be_bytes());
    }
}

#[test]
fn a_chunk_that_does_not_continue_the_batch_is_refused() {
    let mut builder = BatchBuilder::new(BatchLimits { record_count: 10, len_bytes: 10 });
    builder.push(&chunk(0, 5, &[0, 0], 0), key(0), Epoch(1), decode).unwrap();
    let refused = builder.push(&chunk(0, 8, &[0], 0), key(0), Epoch(1), decode);
    assert_eq!(refused, Err(Discontinuity { expected: at(7), found: at(8) }));
    assert_eq!(builder.take().parts()[0].end, at(7));
}

#[test]
fn a_full_builder_that_loses_its_partitions_is_empty_and_not_full() {
    let mut builder = BatchBuilder::new(BatchLimits { record_count: 100, len_bytes: 16 });
    builder.push(&chunk(0, 1, &[0, 0, 0], 0), key(0), Epoch(1), decode).unwrap();
    assert!(builder.is_full());
    builder.remove(|_| true);
    assert!(builder.is_empty() && !builder.is_full());
    builder.push(&chunk(1, 1, &[0], 0), key(1), Epoch(1), decode).unwrap();
    check(&builder.take());
}

#[test]
fn a_batch_of_absent_offsets_alone_moves_the_position() {
    let batch = build(&[chunk(0, 5, &[], 4)]);
    check(&batch);
    assert_eq!(
        (batch.parts()[0].start, batch.parts()[0].end, batch.parts()[0].absent_count),
        (at(5), at(9), 4)
    );
}

#[test]
fn the_only_record_can_become_a_dead_letter() {
    let batch = build(&[chunk(0, 4, &[0], 2)]).with_only_record_dead(letter());
    check(&batch);
    assert_eq!((batch.event_count(), batch.dead_letter_count()), (0, 1));
}

proptest! {
    #[test]
    fn halves_and_remainders_account_for_every_offset(
        chunks in prop::collection::vec((0i32..4, prop::collection::vec(0u64..3, 0..6), 0u64..3), 1..8),
        dropped in 0i32..4,
    ) {
        let mut next = [0u64; 4];
        let chunks: Vec<_> = chunks
            .into_iter()
            .map(|(partition, gaps, tail)| {
                let slot = &mut next[usize::try_from(partition).unwrap()];
                let chunk = chunk(partition, *slot, &gaps, tail);
                *slot = u64::try_from(chunk.end.as_i64()).unwrap();
                chunk
            })
            .collect();
        let whole = build(&chunks);
        check(&whole);

        let rest = whole.clone().without(|part| part.key == key(dropped));
        check(&rest);
        prop_assert!(rest.parts().iter().all(|part| part.key != key(dropped)));

        let (ends, bytes) = (whole.parts().to_vec(), rows(&whole));
        let mut queue = vec![whole];
        let (mut leaves, mut joined) = (vec![], vec![]);
        while let Some(batch) = queue.pop() {
            check(&batch);
            match batch.clone().split() {
                Some((first, second)) => queue.extend([second, first]),
                None => {
                    joined.extend(rows(&batch));
                    leaves.extend(batch.parts().to_vec());
                }
            }
        }
        prop_assert_eq!(joined, bytes);
        for part in ends.iter().filter(|part| part.start != part.end) {
            let mut position = part.start;
            for leaf in leaves.iter().filter(|leaf| leaf.key == part.key) {
                prop_assert_eq!(leaf.start, position);
                position = leaf.end;
            }
            prop_assert_eq!(position, part.end);
        }
    }
}
