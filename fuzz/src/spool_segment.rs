//! A segment of the spool, made from what the fuzzer says and then damaged as it says: what is reported as whole was
//! written, byte for byte and in its order; nothing before the damage is lost; the end that the walk names is that of
//! a whole line with nothing wrong before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use audit_consumer::model::position::{Offset, Partition, StreamId, StreamPartition, TopicPartition};
use audit_consumer::model::record::{AssignmentId, Chunk, Record};
use audit_consumer::model::spool::walk::{Depth, Found, Step, Walk};
use audit_consumer::model::spool::{
    BatchLine, BatchNumber, BatchStamp, Checksum, Closing, EncodedChunk, Footer, Header, SegmentNumber,
    encode_footer, encode_header,
};
use uuid::Uuid;

const SEGMENT: SegmentNumber = SegmentNumber(2);
const CHUNK_COUNT_MAX: usize = 6;
const RECORD_COUNT_MAX: usize = 5;
const DAMAGE_COUNT_MAX: usize = 4;

/// Checks the segment that `bytes` describe, whole, cut and damaged.
pub fn check(bytes: &[u8]) {
    let mut choices = Unstructured::new(bytes);
    let Ok(written) = Written::new(&mut choices) else { return };
    written.check_whole();
    let cut = choices.int_in_range(0..=written.bytes.len()).unwrap_or(0);
    written.check_cut(cut);
    // What is left says how it is damaged, and follows it as it is.
    let damaged = damaged(&written.bytes, &mut choices).unwrap_or_default();
    written.check_damaged(&damaged);
    written.check_damaged(&[written.bytes.as_slice(), choices.take_rest()].concat());
    written.check_damaged(bytes);
}

// --- what is written ----------------------------------------------------------------------------------------------

/// A record as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainRecord {
    /// Its offset.
    pub offset: i64,
    /// How many offsets before it are absent.
    pub absent_before: u64,
    /// Its time.
    pub timestamp_ms: Option<i64>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// Everything that a chunk says, with bytes instead of ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    /// Topic and partition.
    pub source: String,
    /// Where it starts.
    pub start: i64,
    /// Where it ends.
    pub end: i64,
    /// How many offsets are absent at its end.
    pub absent_after: u64,
    /// Its records.
    pub records: Vec<PlainRecord>,
}

/// What `chunk` says.
pub fn plain(chunk: &Chunk) -> Plain {
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let records = chunk.records.iter().map(|record| PlainRecord {
        offset: record.offset.as_i64(),
        absent_before: record.absent_before,
        timestamp_ms: record.timestamp_ms,
        key: owned(chunk.key(record)),
        value: owned(chunk.value(record)),
        headers: chunk.headers(record).map(|(key, value)| (key.to_vec(), owned(value))).collect(),
    });
    let (start, end) = (chunk.start.as_i64(), chunk.end.as_i64());
    let source = chunk.source.to_string();
    Plain { source, start, end, absent_after: chunk.absent_after, records: records.collect() }
}

/// A segment that was written whole.
struct Written {
    bytes: Vec<u8>,
    header: Header,
    /// By number: the batch line, the chunk, and where the batch ends.
    batches: BTreeMap<BatchNumber, (BatchLine, Plain, usize)>,
    footer: Option<Footer>,
}

impl Written {
    fn new(choices: &mut Unstructured<'_>) -> Result<Self> {
        let header = header(choices)?;
        let mut bytes = Vec::new();
        encode_header(&mut bytes, &header);
        let (mut number, mut append, mut batches) = (header.next_batch, header.next_batch, BTreeMap::new());
        let mut record_count = 0;
        for _ in 0..choices.int_in_range(0..=CHUNK_COUNT_MAX)? {
            let chunk = chunk(choices)?;
            let key =
                StreamPartition { stream: StreamId(Uuid::from_u128(7)), partition: chunk.source.partition };
            append = if choices.ratio(1, 3)? { append } else { number };
            let encoded = EncodedChunk::new(key, &chunk).expect("its records add up to its range");
            let line = encoded.append_to(&mut bytes, BatchStamp { number, append, created_at_ms: 5 });
            record_count += line.record_count;
            batches.insert(number, (line, plain(&chunk), bytes.len()));
            number = number.next();
        }
        let mut footer = None;
        if choices.ratio(1, 2)? {
            let len_bytes = u64::try_from(bytes.len()).unwrap();
            let closing = Closing { segment: SEGMENT, len_bytes, checksum: Checksum::of(&bytes) };
            let batch_count = u64::try_from(batches.len()).unwrap();
            let found = Footer { closing, batch_count, record_count };
            encode_footer(&mut bytes, &found);
            footer = Some(found);
        }
        Ok(Self { bytes, header, batches, footer })
    }
}

fn header(choices: &mut Unstructured<'_>) -> Result<Header> {
    let previous = Option::<(u64, u32)>::arbitrary(choices)?.map(|(len_bytes, checksum)| Closing {
        segment: SegmentNumber(1),
        len_bytes,
        checksum: Checksum(checksum),
    });
    let next_batch = BatchNumber(u64::from(u16::arbitrary(choices)?) + 1);
    let created_at_ms = i64::arbitrary(choices)?;
    Ok(Header { segment: SEGMENT, instance: Uuid::from_u128(9), created_at_ms, next_batch, previous })
}

fn chunk(choices: &mut Unstructured<'_>) -> Result<Chunk> {
    let start = i64::from(u32::arbitrary(choices)?);
    let (mut records, mut arena, mut next) = (Vec::new(), Vec::new(), start);
    for _ in 0..choices.int_in_range(0..=RECORD_COUNT_MAX)? {
        let absent_before = u8::arbitrary(choices)? / 64;
        let offset = next + i64::from(absent_before);
        next = offset + 1;
        let mut add = |bytes: &[u8]| {
            let start = arena.len();
            arena.extend_from_slice(bytes);
            start..arena.len()
        };
        records.push(Record {
            offset: Offset::new(offset).unwrap(),
            absent_before: absent_before.into(),
            timestamp_ms: Option::arbitrary(choices)?,
            key: Option::<&[u8]>::arbitrary(choices)?.map(&mut add),
            value: Option::<&[u8]>::arbitrary(choices)?.map(&mut add),
            headers: {
                let mut headers = Vec::new();
                for _ in 0..choices.int_in_range(0..=2)? {
                    let key = add(<&[u8]>::arbitrary(choices)?);
                    headers.push((key, Option::<&[u8]>::arbitrary(choices)?.map(&mut add)));
                }
                headers
            },
        });
    }
    let absent_after = u8::arbitrary(choices)? / 64;
    let partition = Partition(choices.int_in_range(0..=2)?);
    let topic = *choices.choose(&["audit.events", "t", "ü \"\\\n"])?;
    Ok(Chunk {
        assignment: AssignmentId(1),
        source: Arc::new(TopicPartition { topic: topic.into(), partition }),
        start: Offset::new(start).unwrap(),
        end: Offset::new(next + i64::from(absent_after)).unwrap(),
        absent_after: absent_after.into(),
        records,
        polled: None,
        arena,
    })
}

// --- how it is damaged --------------------------------------------------------------------------------------------

fn damaged(whole: &[u8], choices: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut bytes = whole.to_vec();
    for _ in 0..choices.int_in_range(1..=DAMAGE_COUNT_MAX)? {
        let at = choices.int_in_range(0..=bytes.len())?;
        let end = bytes.len().min(at + choices.int_in_range(0..=300)?);
        match choices.int_in_range(0..=7)? {
            0 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 0x20),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let inserted = <&[u8]>::arbitrary(choices)?;
                bytes.splice(at..at, inserted.iter().copied());
            }
            4 => {
                // A page that was never written.
                bytes.get_mut(at..end).into_iter().for_each(|page| page.fill(0));
            }
            kind => {
                let mut lines: Vec<Vec<u8>> =
                    bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
                let Some(last) = lines.len().checked_sub(1) else { continue };
                let (one, other) = (choices.int_in_range(0..=last)?, choices.int_in_range(0..=last)?);
                match kind {
                    5 => lines.swap(one, other),
                    6 => lines.insert(other, lines[one].clone()),
                    _ => drop(lines.remove(one)),
                }
                bytes = lines.concat();
            }
        }
    }
    Ok(bytes)
}

// --- what must hold -----------------------------------------------------------------------------------------------

/// What a walk said.
struct Walked {
    steps: Vec<Step>,
    /// The chunks of the batches, by number.
    chunks: Vec<(BatchNumber, Plain)>,
    closing: Closing,
}

fn walk(bytes: &[u8], depth: Depth) -> Walked {
    let mut walk = Walk::new(SEGMENT, depth);
    let (mut steps, mut chunks, mut at, mut is_damaged) = (Vec::new(), Vec::new(), 0, false);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let before = walk.closing();
        let step = walk.step(line);
        at += line.len();
        is_damaged |= matches!(step, Step::Damage { .. });
        let closing = walk.closing();
        let moves = matches!(step, Step::Header(_) | Step::Batch(_)) && !is_damaged;
        let end = if moves { u64::try_from(at).unwrap() } else { before.len_bytes };
        assert_eq!(closing.len_bytes, end, "{step:?}");
        assert_eq!(closing.checksum, Checksum::of(&bytes[..usize::try_from(end).unwrap()]));
        if let Some(batch) = walk.take_batch() {
            assert!(matches!(&step, Step::Batch(line) if *line == batch.line), "{step:?}");
            chunks.push((batch.line.number, plain(&batch.into_chunk(AssignmentId(1)))));
        }
        steps.push(step);
    }
    Walked { steps, chunks, closing: walk.closing() }
}

impl Written {
    fn check_whole(&self) {
        let walked = self.check_damaged(&self.bytes);
        assert!(walked.steps.iter().all(|step| !matches!(step, Step::Damage { .. })), "{:?}", walked.steps);
        assert_eq!(walked.chunks.len(), self.batches.len());
        assert_eq!(walked.steps.first(), Some(&Step::Header(self.header)));
        let footer = walked.steps.last().filter(|step| matches!(step, Step::Footer(_)));
        assert_eq!(footer, self.footer.map(Step::Footer).as_ref());
    }

    /// A crash in the middle of an append: all before it is there, and only the line that it tore is wrong.
    fn check_cut(&self, at: usize) {
        let walked = self.check_damaged(&self.bytes[..at]);
        let is_whole_line = at == 0 || self.bytes.get(at - 1) == Some(&b'\n');
        let damaged = walked.steps.iter().position(|step| matches!(step, Step::Damage { .. }));
        assert_eq!(
            damaged,
            (!is_whole_line).then(|| walked.steps.len() - 1),
            "cut at {at}: {:?}",
            walked.steps
        );
    }

    /// Whatever was done to the segment.
    fn check_damaged(&self, bytes: &[u8]) -> Walked {
        let (walked, shallow) = (walk(bytes, Depth::Records), walk(bytes, Depth::Checksums));
        assert_eq!(walked.closing, shallow.closing);
        assert_eq!(held(&walked.steps), held(&shallow.steps), "both depths find the same batches");
        assert!(shallow.chunks.is_empty());
        // Each chunk is one that was written, and their numbers rise.
        assert_eq!(walked.chunks.len(), held(&walked.steps).len());
        assert!(walked.chunks.windows(2).all(|pair| pair[0].0 < pair[1].0), "{:?}", walked.steps);
        for (number, chunk) in &walked.chunks {
            assert_eq!(self.batches.get(number).map(|(_, written, _)| written), Some(chunk));
        }
        for step in &walked.steps {
            match step {
                Step::Batch(line) => self.check_written(line),
                Step::Damage { batch: Some(Found::Whole(line) | Found::Broken(line)), .. } => {
                    self.check_written(line)
                }
                Step::Header(header) => assert_eq!(header, &self.header),
                Step::Footer(footer) => assert_eq!(Some(footer), self.footer.as_ref()),
                Step::Record | Step::Damage { batch: None, .. } => {}
            }
        }
        self.check_prefix(bytes, &walked);
        walked
    }

    /// A batch line that is told was written, whether what it covers is there or not.
    fn check_written(&self, line: &BatchLine) {
        assert_eq!(self.batches.get(&line.number).map(|(written, ..)| written), Some(line));
    }

    /// The batches before the first byte that is another one are all there, first and in their order.
    fn check_prefix(&self, bytes: &[u8], walked: &Walked) {
        let same = self.bytes.iter().zip(bytes).take_while(|(written, found)| written == found).count();
        let before: Vec<_> = self.batches.iter().filter(|(_, (_, _, end))| *end <= same).collect();
        let found = walked.chunks.get(..before.len()).unwrap_or_default();
        let is_same = before
            .iter()
            .map(|(number, (_, chunk, _))| (**number, chunk))
            .eq(found.iter().map(|(n, c)| (*n, c)));
        assert!(is_same, "before byte {same} stand {} batches: {:?}", before.len(), walked.steps);
        let end = before.last().map_or(0, |(_, (_, _, end))| *end);
        assert!(usize::try_from(walked.closing.len_bytes).unwrap() >= end);
        // Nothing behind the damage moves the end.
        let first =
            bytes[same..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |len| same + len + 1);
        assert!(usize::try_from(walked.closing.len_bytes).unwrap() <= first);
    }
}

/// The batches that stand in their place.
fn held(steps: &[Step]) -> Vec<&BatchLine> {
    steps.iter().filter_map(|step| if let Step::Batch(line) = step { Some(line) } else { None }).collect()
}
