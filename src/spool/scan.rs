//! Reading a segment's file from its start to its end, whatever is in it, one batch in memory at a time.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read};

use crate::model::spool::walk::{Depth, Fault, Found, Step, Walk};
use crate::model::spool::{BatchLine, BatchNumber, Closing, Header, SegmentNumber, SpooledBatch};

use super::disk::DiskFile;

/// How much of a file is read at once.
pub(super) const READ_LEN_BYTES: usize = 64 << 10;
/// How many damages of one segment are told apart; more are counted.
const DAMAGE_COUNT_MAX: usize = 1_000;

/// Something wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// In which line, from 1.
    pub line_number: u64,
    /// Where the line begins, in bytes from the start of the file.
    pub at: u64,
    /// What.
    pub fault: Fault,
}

/// A batch that stands in its place with no damage before it.
#[derive(Debug, Clone)]
pub(super) struct BatchAt {
    pub(super) line: BatchLine,
    /// The segment up to the batch's end.
    pub(super) closing: Closing,
}

/// What a segment's file holds.
#[derive(Debug)]
pub(super) struct SegmentScan {
    pub(super) number: SegmentNumber,
    pub(super) len_bytes: u64,
    pub(super) header: Option<Header>,
    /// The segment up to its header's end.
    pub(super) start: Closing,
    /// The batches before the first damage.
    pub(super) batches: Vec<BatchAt>,
    /// The first damages.
    pub(super) damages: Vec<Damage>,
    pub(super) damage_count: u64,
    /// The batches behind the first damage.
    pub(super) behind: Vec<Found>,
    /// Whether a footer was seen, right or wrong.
    pub(super) footer: FooterSeen,
}

/// Batches of which nothing is left, not even a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownBatches {
    /// So many.
    Exactly(u64),
    /// So many, and perhaps others behind them.
    AtLeast(u64),
}

/// What was seen of a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FooterSeen {
    None,
    Right,
    Wrong,
}

impl SegmentScan {
    /// Reads all of `file`.
    ///
    /// # Errors
    /// What the system says about reading.
    pub(super) fn read(number: SegmentNumber, file: impl DiskFile, depth: Depth) -> io::Result<Self> {
        Self::read_each(number, file, depth, |_batch| ())
    }

    /// The same, and hands over each batch that stands in its place; with [`Depth::Records`] only.
    pub(super) fn read_each(
        number: SegmentNumber,
        file: impl DiskFile,
        depth: Depth,
        mut each: impl FnMut(SpooledBatch),
    ) -> io::Result<Self> {
        let mut walk = Walk::new(number, depth);
        let mut scan = Self {
            number,
            len_bytes: 0,
            header: None,
            start: walk.closing(),
            batches: Vec::new(),
            damages: Vec::new(),
            damage_count: 0,
            behind: Vec::new(),
            footer: FooterSeen::None,
        };
        let mut lines = Lines::new(file);
        while let Some(line) = lines.next()? {
            let step = walk.step(line.bytes);
            scan.note(step, &line, &walk);
            if let Some(batch) = walk.take_batch() {
                each(batch);
            }
        }
        scan.len_bytes = lines.at;
        Ok(scan)
    }

    fn note(&mut self, step: Step, line: &LineAt<'_>, walk: &Walk) {
        match step {
            Step::Header(header) => {
                self.header = Some(header);
                self.start = walk.closing();
            }
            Step::Record => {}
            Step::Batch(batch) if self.damage_count > 0 => self.behind.push(Found::Whole(batch)),
            Step::Batch(batch) => self.batches.push(BatchAt { line: batch, closing: walk.closing() }),
            Step::Footer(_) => self.footer = FooterSeen::Right,
            Step::Damage { fault, batch } => {
                if fault == Fault::Footer {
                    self.footer = FooterSeen::Wrong;
                }
                self.damage_count += 1;
                if self.damages.len() < DAMAGE_COUNT_MAX {
                    self.damages.push(Damage { line_number: line.number, at: line.at, fault });
                }
                self.behind.extend(batch);
            }
        }
    }

    /// The segment up to its last batch before any damage.
    pub(super) fn end(&self) -> Closing {
        self.batches.last().map_or(self.start, |batch| batch.closing)
    }

    /// The number that the first batch behind [`Self::end`] should have.
    pub(super) fn next_batch(&self) -> Option<BatchNumber> {
        let after = self.batches.last().map(|batch| batch.line.number.next());
        after.or_else(|| self.header.map(|header| header.next_batch))
    }

    /// How many batches must have been there of which nothing is left, by the numbers: the first one was due as
    /// `from` unless the header says otherwise, the last one before `until` unless that is not known.
    pub(super) fn unknown(&self, from: Option<BatchNumber>, until: Option<BatchNumber>) -> UnknownBatches {
        let seen: BTreeSet<u64> = self.found_lines().map(|line| line.number.0).collect();
        let from = self.header.map(|header| header.next_batch).or(from).map(|number| number.0);
        let from = from.or_else(|| seen.first().copied());
        let end = until.map(|number| number.0).or_else(|| Some(seen.last()?.saturating_add(1)));
        let (Some(from), Some(end)) = (from, end) else { return UnknownBatches::AtLeast(0) };
        let seen_count = u64::try_from(seen.range(from..end.max(from)).count()).unwrap_or(u64::MAX);
        let unknown_count = end.saturating_sub(from).saturating_sub(seen_count);
        if until.is_some() {
            UnknownBatches::Exactly(unknown_count)
        } else {
            UnknownBatches::AtLeast(unknown_count)
        }
    }

    /// The batch lines of all batches, whole or not.
    pub(super) fn found_lines(&self) -> impl Iterator<Item = &BatchLine> {
        self.batches.iter().map(|batch| &batch.line).chain(self.behind.iter().map(Found::line))
    }

    /// The batch lines of the batches that are whole, from byte `at` of the prefix without damage on.
    pub(super) fn whole_lines(&self, at: u64) -> impl Iterator<Item = &BatchLine> {
        let before = self.batches.iter().filter(move |batch| batch.closing.len_bytes > at);
        let behind = self.behind.iter().filter_map(|found| match found {
            Found::Whole(line) => Some(line),
            Found::Broken(_) => None,
        });
        before.map(|batch| &batch.line).chain(behind)
    }

    /// The batch lines of the batches whose records are damaged.
    pub(super) fn broken_lines(&self) -> impl Iterator<Item = &BatchLine> {
        self.behind.iter().filter_map(|found| match found {
            Found::Broken(line) => Some(line),
            Found::Whole(_) => None,
        })
    }

    /// Whether what is behind [`Self::end`] can be an append that was never finished: no footer follows it,
    /// and all batches in it belong to the append that was due there or was under way.
    pub(super) fn has_torn_tail(&self) -> bool {
        let Some(next) = self.next_batch() else { return false };
        let is_of_last_append = |found: &Found| found.line().append <= next && found.line().number >= next;
        self.footer == FooterSeen::None && self.behind.iter().all(is_of_last_append)
    }
}

/// A line and where it is.
#[derive(Debug)]
pub(super) struct LineAt<'a> {
    /// From 1.
    pub(super) number: u64,
    /// In bytes from the start of the file.
    pub(super) at: u64,
    /// With its line feed, unless the file ends without one.
    pub(super) bytes: &'a [u8],
}

/// The lines of a file.
#[derive(Debug)]
pub(super) struct Lines<F> {
    reader: BufReader<F>,
    line: Vec<u8>,
    is_used: bool,
    /// Where the next line begins.
    pub(super) at: u64,
    number: u64,
}

impl<F: Read> Lines<F> {
    pub(super) fn new(file: F) -> Self {
        let reader = BufReader::with_capacity(READ_LEN_BYTES, file);
        Self { reader, line: Vec::new(), is_used: false, at: 0, number: 0 }
    }

    /// The next line; `None` at the end of the file. After an error the same line can be asked for again.
    pub(super) fn next(&mut self) -> io::Result<Option<LineAt<'_>>> {
        if std::mem::take(&mut self.is_used) {
            self.line.clear();
        }
        self.reader.read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(None);
        }
        self.is_used = true;
        let at = self.at;
        self.at += u64::try_from(self.line.len()).unwrap_or(u64::MAX);
        self.number += 1;
        Ok(Some(LineAt { number: self.number, at, bytes: &self.line }))
    }
}
