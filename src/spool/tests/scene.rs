//! What the tests share: a spool on a simulated disk, and what comes out of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::sim::SimDisk;
use crate::model::record::{AssignmentId, Chunk};
use crate::model::spool::EncodedChunk;
use crate::model::spool::tests::{Plain, key, plain};
use crate::spool::{Drain, Next, Quarantined, Recovery, Spool, SpoolError, SpoolLimits};

/// A chunk with bytes instead of ranges.
pub(super) type PlainChunk = (String, i64, i64, u64, Vec<Plain>);

pub(super) const LIMITS: SpoolLimits = SpoolLimits {
    segment_len_bytes: 1 << 20,
    max_len_bytes: 1 << 30,
    min_free_len_bytes: 0,
    keep: Duration::from_secs(10),
};

pub(super) fn root() -> PathBuf {
    PathBuf::from("/spool")
}

pub(super) fn segment_path(number: u64) -> PathBuf {
    root().join(format!("segment-{number:016}.jsonl"))
}

pub(super) fn open(disk: &SimDisk, limits: SpoolLimits) -> Result<(Spool<SimDisk>, Recovery), SpoolError> {
    Spool::open(Path::new("/spool"), limits, Uuid::from_u128(1), disk.clone())
}

/// Chunks with the keys that they are appended under.
pub(super) fn keyed(chunks: &[Chunk]) -> Vec<EncodedChunk> {
    chunks.iter().map(|chunk| EncodedChunk::new(key(chunk.source.partition.0), chunk).unwrap()).collect()
}

/// What a drain finds, from the oldest batch on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Drained {
    pub(super) chunks: Vec<PlainChunk>,
    pub(super) quarantined: Vec<Quarantined>,
}

pub(super) fn drain(spool: &mut Spool<SimDisk>) -> Result<Drained, SpoolError> {
    let mut drained = Drained::default();
    let mut progress = Drain::default();
    loop {
        match spool.next(&mut progress)? {
            Next::Batch(batch) => drained.chunks.push(plain(&batch.into_chunk(AssignmentId(1)))),
            Next::Quarantined(quarantined) => drained.quarantined.push(*quarantined),
            Next::End => return Ok(drained),
        }
    }
}
