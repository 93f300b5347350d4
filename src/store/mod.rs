//! The edge to PostgreSQL: claims, the commit, the operator's actions on positions.
//!
//! # Why a record can't be stored twice or lost
//!
//! The position row in `consumer_offsets` is the only authority on what was stored. A batch says
//! `start -> end` for each of its partitions. [`Session::commit`] opens one transaction, in it moves each
//! position from `start` to `end` only where it stands at `start` under the batch's epoch, stores the rows,
//! and commits. So:
//!
//! 1. A batch that is applied twice (a retry after a COMMIT whose answer never came, a zombie, two owners)
//!    finds the position moved: nothing of it is stored a second time.
//! 2. A batch that skips records finds the position behind its start: nothing of it is stored.
//! 3. The row lock that the compare-and-set takes is held to the end of the transaction, so a claim, which
//!    updates the same row, waits for a commit in flight or ends its session, and then sees its outcome.
//! 4. The table itself checks `first_offset + events + duplicates + dead_letters + absent = next_offset`, the
//!    row count is the server's own, and a record's coordinates are unique: a bug of ours can't hide.
//!
//! Never here: Kafka, files, retries (the caller's), a connection used after an error.

mod actions;
mod claim;
mod commit;
mod compare;
mod contract;
pub mod copy;
mod dead_letters;
mod error;
mod export;
mod gaps;
mod import;
mod legacy;
mod letter_actions;
mod merge;
mod migrate;
mod partitions;
mod projections;
mod retention;
mod rights;
mod session;
mod sources;
mod spool_ranges;
mod tls;
mod trust;
mod verify;

pub use actions::{OffsetRow, StreamRow};
pub use claim::{Claim, ClaimAnswer, ClaimRequest, ClaimedPosition, StreamIdentity};
pub use commit::{CommitOutcome, CommitPath, CommittedPart, StalePart};
pub use compare::{Fate, Mismatch, StoredLetter, StoredRange};
pub use contract::{Answer, Store, StoreSession};
pub use dead_letters::{Backlog, LETTER_MAX_COUNT, Relayed, WaitingStream};
pub use error::StoreError;
pub use export::EventFilter;
pub use gaps::{GapAnswer, GapDeclaration};
pub use import::{IMPORT_GROUP, ImportSource, TableError};
pub use legacy::{AdoptedSchema, ForeignObject, SchemaAdoption};
pub use letter_actions::{
    LetterCount, LetterFilter, LetterPage, LetterState, LetterStatus, OpenRedrive, PartitionScope,
};
pub use migrate::migrate;
pub use projections::{
    Adoption, FileRecord, PageEnd, ProjectionFile, ProjectionInstance, ProjectionLag, ProjectionLines,
    ProjectionWork, Recorded, Segment, SegmentScope, Taken, WorkOrigin, Writer, WriterState,
};
pub use retention::{Dropping, Expiry, RetentionAction, Survey, TimePartition};
pub use rights::ExcessRights;
pub use session::{Session, SessionPurpose, StoreSettings};
pub use sources::{NewSource, SourceRow};
pub use spool_ranges::{SpoolHolder, Telling};
pub use trust::{ActorTrust, TRUST_ACTOR_MAX_COUNT, TRUST_HISTORY_DAY_COUNT, TrustFilter, TrustReport};
pub use verify::{
    Account, AccountScope, FateCounts, Finding, FindingCode, PartitionAccount, PositionAccount, RepeatedIds,
    RowAccount,
};
