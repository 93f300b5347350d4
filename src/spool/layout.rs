//! The names of files in the spool's directory.

use std::path::{Path, PathBuf};

use crate::model::spool::{BatchNumber, SegmentNumber};

const QUARANTINE: &str = "quarantine";
const DRAINED: &str = "drained";
const LOCK: &str = "LOCK";
const INSTANCE: &str = "INSTANCE";
/// The end of the name of a file that is being written, and takes another's place when it is whole.
pub(super) const UNFINISHED_SUFFIX: &str = ".new";

/// What a name of ours says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// A segment.
    Segment(SegmentNumber),
    /// A segment that was drained at that time, in milliseconds since the Unix epoch.
    Drained(SegmentNumber, i64),
    /// What was cut off a segment.
    Tail(SegmentNumber),
    /// A batch that was set aside.
    Batch(SegmentNumber),
}

impl Name {
    /// The segment that is meant.
    pub(super) const fn segment(self) -> SegmentNumber {
        match self {
            Self::Segment(number) | Self::Drained(number, _) | Self::Tail(number) | Self::Batch(number) => {
                number
            }
        }
    }

    /// Reads a file's name; `None` when it is none of ours.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_prefix("segment-")?.strip_suffix(".jsonl")?;
        let (number, rest) = stem.split_once('-').map_or((stem, None), |(number, rest)| (number, Some(rest)));
        let is_number = number.len() >= 16 && number.bytes().all(|byte| byte.is_ascii_digit());
        let number = SegmentNumber(is_number.then(|| number.parse().ok())??);
        match rest.map(|rest| rest.split_once('-')) {
            None => Some(Self::Segment(number)),
            Some(Some(("drained", at))) => Some(Self::Drained(number, at.parse().ok()?)),
            Some(Some(("tail", at))) => at.parse().ok().map(|_at: u64| Self::Tail(number)),
            Some(Some(("batch", batch))) => batch.parse().ok().map(|_batch: u64| Self::Batch(number)),
            Some(_) => None,
        }
    }
}

/// The paths of one spool directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join(LOCK)
    }

    pub(super) fn instance(&self) -> PathBuf {
        self.root.join(INSTANCE)
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join(QUARANTINE)
    }

    pub(super) fn drained(&self) -> PathBuf {
        self.root.join(DRAINED)
    }

    pub(super) fn segment(&self, number: SegmentNumber) -> PathBuf {
        self.root.join(segment_name(number))
    }

    pub(super) fn segment_in_quarantine(&self, number: SegmentNumber) -> PathBuf {
        self.quarantine().join(segment_name(number))
    }

    pub(super) fn tail(&self, number: SegmentNumber, at: u64) -> PathBuf {
        self.quarantine().join(format!("segment-{:016}-tail-{at}.jsonl", number.0))
    }

    pub(super) fn batch(&self, number: SegmentNumber, batch: BatchNumber) -> PathBuf {
        self.quarantine().join(format!("segment-{:016}-batch-{batch}.jsonl", number.0))
    }

    pub(super) fn drained_segment(&self, number: SegmentNumber, at_ms: i64) -> PathBuf {
        self.drained().join(format!("segment-{:016}-drained-{at_ms}.jsonl", number.0))
    }

    /// Where the file is written that will take the place of `path`.
    pub(super) fn unfinished(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(UNFINISHED_SUFFIX);
        name.into()
    }

    /// Whether a name in the root is that of a file which is ours and no segment.
    pub(super) fn is_lock(name: &str) -> bool {
        name == LOCK || name == INSTANCE
    }
}

fn segment_name(number: SegmentNumber) -> String {
    format!("segment-{:016}.jsonl", number.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let layout = Layout::new(Path::new("/spool"));
        let number = SegmentNumber(7);
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name(layout.segment(number)), "segment-0000000000000007.jsonl");
        let check = |path, expected| assert_eq!(Name::parse(&name(path)), Some(expected));
        check(layout.segment(number), Name::Segment(number));
        check(layout.segment(SegmentNumber(u64::MAX)), Name::Segment(SegmentNumber(u64::MAX)));
        check(layout.drained_segment(number, 12), Name::Drained(number, 12));
        check(layout.tail(number, 12), Name::Tail(number));
        check(layout.batch(number, BatchNumber(12)), Name::Batch(number));
    }

    #[test]
    fn other_names_are_none_of_ours() {
        for name in [
            "LOCK",
            "segment-1.jsonl",
            "segment-0000000000000001.json",
            "segment-+000000000000001.jsonl",
            "segment-0000000000000001-copy.jsonl",
            "segment-0000000000000001-copy-1.jsonl",
            "segment-0000000000000001.jsonl.new",
        ] {
            assert_eq!(Name::parse(name), None, "{name}");
        }
    }
}
