//! What contradicts the promise.

use std::fmt;

/// What is wrong, as a stable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingCode {
    /// The position row does not add up.
    AccountUnbalanced,
    /// The events counter is not the number of rows.
    EventsDiffer,
    /// The duplicates counter is not the number of rows.
    DuplicatesDiffer,
    /// The dead letters counter is not the number of rows.
    DeadLettersDiffer,
    /// An offset stands more than once.
    Overlap,
    /// A row stands outside of `[first, next)`.
    BeyondPosition,
    /// Rows without a position.
    OrphanRows,
    /// Offsets below the position are neither in a table nor counted as absent.
    Hole,
    /// The position is behind Kafka's end.
    BeyondEnd,
    /// Kafka has deleted records that were not read.
    RecordsDeleted,
    /// A dead letter is marked as relayed and is not in its topic.
    LetterMissing,
    /// A dead letter is in its topic more than once.
    LetterTwice,
    /// A dead letter topic holds a letter without a row.
    LetterUnknown,
    /// A spool holds records that were declared a gap.
    GapIsSpooled,
    /// A record that Kafka has is in no table.
    RecordMissing,
    /// A row stands where Kafka has no record.
    RowWithoutRecord,
    /// An event's row is not what its record says.
    EventAltered,
    /// A dead letter's row is not its record.
    DeadLetterAltered,
}

impl FindingCode {
    /// The code.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccountUnbalanced => "account_unbalanced",
            Self::EventsDiffer => "events_differ",
            Self::DuplicatesDiffer => "duplicates_differ",
            Self::DeadLettersDiffer => "dead_letters_differ",
            Self::Overlap => "overlap",
            Self::BeyondPosition => "beyond_position",
            Self::OrphanRows => "orphan_rows",
            Self::Hole => "hole",
            Self::BeyondEnd => "beyond_end",
            Self::RecordsDeleted => "records_deleted",
            Self::LetterMissing => "letter_missing",
            Self::LetterTwice => "letter_twice",
            Self::LetterUnknown => "letter_unknown",
            Self::GapIsSpooled => "gap_is_spooled",
            Self::RecordMissing => "record_missing",
            Self::RowWithoutRecord => "row_without_record",
            Self::EventAltered => "event_altered",
            Self::DeadLetterAltered => "dead_letter_altered",
        }
    }
}

impl fmt::Display for FindingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that contradicts the promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub code: FindingCode,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// The same for people.
    pub text: String,
}

impl Finding {
    /// A finding.
    #[must_use]
    pub fn new(
        code: FindingCode,
        (expected, found): (impl fmt::Display, impl fmt::Display),
        text: impl Into<String>,
    ) -> Self {
        Self { code, expected: expected.to_string(), found: found.to_string(), text: text.into() }
    }
}
