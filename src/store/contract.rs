//! What the pipeline needs of PostgreSQL, as traits: the simulation (`tests/simulation`) has a second one, in memory.
//!
//! What a method means, its errors and what it leaves behind when it is dropped stand at the method of the same name of
//! [`StoreSettings`] and [`Session`]; the second one keeps to that.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::error::StoreError;
use super::session::{Session, SessionPurpose, StoreSettings};
use super::spool_ranges::Telling;
use super::{
    Claim, ClaimAnswer, ClaimRequest, ClaimedPosition, CommitOutcome, CommitPath, GapAnswer, GapDeclaration,
};
use crate::model::batch::Batch;
use crate::model::federated::FederatedSources;
use crate::model::position::{OffsetRange, StreamPartition};

/// What PostgreSQL will answer, wherever it is waited for.
pub trait Answer<T>: Future<Output = Result<T, StoreError>> + Send {}

impl<T, F: Future<Output = Result<T, StoreError>> + Send> Answer<T> for F {}

/// How to reach PostgreSQL, and who we are there.
pub trait Store: Debug + Clone + Send + Sync + 'static {
    /// An open session.
    type Session: StoreSession;

    /// The consumer group: the first part of the key of a position.
    fn group(&self) -> &Arc<str>;

    /// This process, in claims.
    fn instance(&self) -> Uuid;

    /// See [`StoreSettings::statement_timeout`].
    fn statement_timeout(&self) -> Duration;

    /// See [`StoreSettings::place`].
    fn place(&self) -> Option<(String, u16, String)>;

    /// See [`StoreSettings::connect`].
    fn connect(&self, purpose: SessionPurpose) -> impl Answer<Self::Session>;

    /// See [`StoreSettings::claim`].
    fn claim(&self, session: &mut Self::Session, requests: &[ClaimRequest]) -> impl Answer<Vec<ClaimAnswer>>;
}

/// One dedicated connection. After an error it is dropped.
pub trait StoreSession: Debug + Send + Sync + 'static {
    /// See [`Session::close`].
    fn close(self) -> impl Future<Output = ()> + Send;

    /// See [`Session::federated_sources`].
    fn federated_sources(&mut self) -> impl Answer<FederatedSources>;

    /// See [`Session::positions`].
    fn positions(
        &mut self,
        group: &str,
        claims: &[Claim],
    ) -> impl Answer<Vec<(StreamPartition, ClaimedPosition)>>;

    /// See [`Session::adopt_claims`].
    fn adopt_claims(
        &mut self,
        group: &str,
        claims: &[Claim],
    ) -> impl Answer<Vec<(StreamPartition, ClaimedPosition)>>;

    /// See [`Session::release`].
    fn release(&mut self, group: &str, claims: &[Claim]) -> impl Answer<()>;

    /// See [`Session::ensure_partitions`].
    fn ensure_partitions(&mut self, batch: &Batch) -> impl Answer<u64>;

    /// See [`Session::ensure_partitions_ahead`].
    fn ensure_partitions_ahead(&mut self) -> impl Answer<()>;

    /// See [`Session::commit`].
    fn commit(&mut self, group: &str, batch: &Batch, path: CommitPath) -> impl Answer<CommitOutcome>;

    /// See [`Session::fill_gap`].
    fn fill_gap(&mut self, group: &str, batch: &Batch, by: (&str, &str)) -> impl Answer<CommitOutcome>;

    /// See [`Session::declare_gap`].
    fn declare_gap(&mut self, group: &str, gap: &GapDeclaration<'_>) -> impl Answer<GapAnswer>;

    /// See [`Session::open_gaps`].
    fn open_gaps(
        &mut self,
        keys: &BTreeSet<StreamPartition>,
    ) -> impl Answer<Vec<(StreamPartition, OffsetRange)>>;

    /// See [`Session::publish_spool_ranges`].
    fn publish_spool_ranges(
        &mut self,
        instance: Uuid,
        ranges: &[(StreamPartition, OffsetRange)],
        telling: Telling,
    ) -> impl Answer<()>;

    /// See [`Session::record_breaker`].
    fn record_breaker(&mut self, group: &str, key: StreamPartition, opening: (Uuid, &str))
    -> impl Answer<()>;

    /// See [`Session::is_breaker_open`].
    fn is_breaker_open(&mut self, group: &str, key: StreamPartition) -> impl Answer<bool>;
}

impl Store for StoreSettings {
    type Session = Session;

    fn group(&self) -> &Arc<str> {
        &self.group
    }

    fn instance(&self) -> Uuid {
        self.instance
    }

    fn statement_timeout(&self) -> Duration {
        Self::statement_timeout(self)
    }

    fn place(&self) -> Option<(String, u16, String)> {
        Self::place(self)
    }

    fn connect(&self, purpose: SessionPurpose) -> impl Answer<Session> {
        Self::connect(self, purpose)
    }

    fn claim(&self, session: &mut Session, requests: &[ClaimRequest]) -> impl Answer<Vec<ClaimAnswer>> {
        Self::claim(self, session, requests)
    }
}

impl StoreSession for Session {
    fn close(self) -> impl Future<Output = ()> + Send {
        Self::close(self)
    }

    fn federated_sources(&mut self) -> impl Answer<FederatedSources> {
        Self::federated_sources(self)
    }

    fn positions(
        &mut self,
        group: &str,
        claims: &[Claim],
    ) -> impl Answer<Vec<(StreamPartition, ClaimedPosition)>> {
        Self::positions(self, group, claims)
    }

    fn adopt_claims(
        &mut self,
        group: &str,
        claims: &[Claim],
    ) -> impl Answer<Vec<(StreamPartition, ClaimedPosition)>> {
        Self::adopt_claims(self, group, claims)
    }

    fn release(&mut self, group: &str, claims: &[Claim]) -> impl Answer<()> {
        Self::release(self, group, claims)
    }

    fn ensure_partitions(&mut self, batch: &Batch) -> impl Answer<u64> {
        Self::ensure_partitions(self, batch)
    }

    fn ensure_partitions_ahead(&mut self) -> impl Answer<()> {
        Self::ensure_partitions_ahead(self)
    }

    fn commit(&mut self, group: &str, batch: &Batch, path: CommitPath) -> impl Answer<CommitOutcome> {
        Self::commit(self, group, batch, path)
    }

    fn fill_gap(&mut self, group: &str, batch: &Batch, by: (&str, &str)) -> impl Answer<CommitOutcome> {
        Self::fill_gap(self, group, batch, by)
    }

    fn declare_gap(&mut self, group: &str, gap: &GapDeclaration<'_>) -> impl Answer<GapAnswer> {
        Self::declare_gap(self, group, gap)
    }

    fn open_gaps(
        &mut self,
        keys: &BTreeSet<StreamPartition>,
    ) -> impl Answer<Vec<(StreamPartition, OffsetRange)>> {
        Self::open_gaps(self, keys)
    }

    fn publish_spool_ranges(
        &mut self,
        instance: Uuid,
        ranges: &[(StreamPartition, OffsetRange)],
        telling: Telling,
    ) -> impl Answer<()> {
        Self::publish_spool_ranges(self, instance, ranges, telling)
    }

    fn record_breaker(
        &mut self,
        group: &str,
        key: StreamPartition,
        opening: (Uuid, &str),
    ) -> impl Answer<()> {
        Self::record_breaker(self, group, key, opening)
    }

    fn is_breaker_open(&mut self, group: &str, key: StreamPartition) -> impl Answer<bool> {
        Self::is_breaker_open(self, group, key)
    }
}
