//! The pipeline's way to the simulated PostgreSQL: questions that travel, and may be lost on either way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use audit_consumer::model::batch::Batch;
use audit_consumer::model::federated::FederatedSources;
use audit_consumer::model::position::{Epoch, OffsetRange, StreamPartition};
use audit_consumer::store::{
    Answer, Claim, ClaimAnswer, ClaimRequest, ClaimedPosition, CommitOutcome, CommitPath, GapAnswer,
    GapDeclaration, SessionPurpose, Store, StoreError, StoreSession, Telling,
};
use uuid::Uuid;

use crate::claims;
use crate::database::{ServerMode, broken, contended, misconfigured, timed_out, unavailable};
use crate::kafka::at;
use crate::oracle;
use crate::transaction::{Commit, Transaction, life};
use crate::world::{Process, World, lock};

/// How long opening a session may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(crate) struct SimStore {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
    pub(crate) group: Arc<str>,
    pub(crate) instance: Uuid,
}

#[derive(Debug)]
pub(crate) struct SimSession {
    pub(crate) store: SimStore,
    pub(crate) id: u64,
    purpose: SessionPurpose,
}

/// Whether a question changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Read,
    Write,
}

impl SimStore {
    /// A question travels to the server. `session`: in which one it is asked.
    pub(crate) async fn ask(&self, session: Option<u64>, wish: Wish) -> Result<(), StoreError> {
        let world = &self.world;
        self.process.gate().await;
        let (first, last) = if world.fails(|rates| rates.slow) { (200, 8000) } else { (0, 3) };
        world.pause(first, last).await;
        let who = self.process.who();
        let (mode, is_open) = {
            let database = lock(&world.database);
            (database.mode, session.is_none_or(|session| database.sessions.contains_key(&session)))
        };
        match mode {
            ServerMode::Refusing => return Err(unavailable("io")),
            ServerMode::Silent => std::future::pending().await,
            ServerMode::Misconfigured => return Err(misconfigured("42501")),
            ServerMode::ReadOnly if wish == Wish::Write => return Err(unavailable("25006")),
            ServerMode::Up | ServerMode::ReadOnly => {}
        }
        if !is_open {
            return Err(unavailable("57P01"));
        }
        if world.fails(|rates| rates.lost_question) {
            world.note(who, "lost_question", &[]);
            return Err(unavailable("io"));
        }
        if world.fails(|rates| rates.silence) {
            world.note(who, "silence", &[]);
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// An answer travels back.
    pub(crate) async fn answer(&self) -> Result<(), StoreError> {
        self.world.pause(0, 2).await;
        if self.world.fails(|rates| rates.lost_answer) {
            self.world.note(self.process.who(), "lost_answer", &[]);
            return Err(unavailable("io"));
        }
        self.process.gate().await;
        Ok(())
    }

    async fn open(&self, purpose: SessionPurpose) -> Result<SimSession, StoreError> {
        self.ask(None, Wish::Read).await?;
        let id = lock(&self.world.database).open(self.process.index);
        let session = SimSession { store: self.clone(), id, purpose };
        self.answer().await?;
        Ok(session)
    }
}

impl Store for SimStore {
    type Session = SimSession;

    fn group(&self) -> &Arc<str> {
        &self.group
    }

    fn instance(&self) -> Uuid {
        self.instance
    }

    fn statement_timeout(&self) -> Duration {
        self.world.plan.statement_timeout
    }

    fn place(&self) -> Option<(String, u16, String)> {
        None
    }

    async fn connect(&self, purpose: SessionPurpose) -> Result<SimSession, StoreError> {
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, self.open(purpose)).await;
        opened.unwrap_or_else(|_elapsed| Err(StoreError::no_answer("connect")))
    }

    fn claim(&self, session: &mut SimSession, requests: &[ClaimRequest]) -> impl Answer<Vec<ClaimAnswer>> {
        claims::claim(session, requests)
    }
}

impl Drop for SimSession {
    /// The connection is closed; a transaction that was left in it ends when the server notices.
    fn drop(&mut self) {
        let mut database = lock(&self.store.world.database);
        let is_busy = database.locks.values().any(|holder| *holder == self.id);
        if !is_busy {
            database.end(self.id);
        }
    }
}

impl SimSession {
    pub(crate) async fn ask(&self, wish: Wish) -> Result<(), StoreError> {
        self.store.ask(Some(self.id), wish).await
    }

    pub(crate) async fn answer(&self) -> Result<(), StoreError> {
        self.store.answer().await
    }

    /// What PostgreSQL may say of any batch.
    fn refuse(&self, batch: &Batch) -> Result<(), StoreError> {
        let (world, who) = (&self.store.world, self.store.process.who());
        if world.fails(|rates| rates.contended) {
            world.note(who, "contended", &[]);
            return Err(contended(if world.chance(500) { "40P01" } else { "40001" }));
        }
        if world.fails(|rates| rates.timeout) {
            world.note(who, "statement_timeout", &[batch.entries().len() as i64]);
            return Err(timed_out());
        }
        Ok(())
    }

    /// The look at positions that a commit begins with; `None`: the batch may be stored.
    async fn compare(
        &self,
        transaction: &Transaction,
        batch: &Batch,
    ) -> Result<Option<CommitOutcome>, StoreError> {
        let world = &self.store.world;
        for part in batch.parts() {
            transaction.lock(part.key.partition.0 as usize).await?;
        }
        let stale = lock(&world.database).stale(batch, world.plan.mutant);
        if stale.is_empty() {
            return Ok(None);
        }
        let is_zombie = stale.iter().any(|stale| {
            let part = batch.parts().iter().find(|part| part.key == stale.key);
            part.is_some_and(|part| stale.current.is_some_and(|(epoch, _)| epoch > part.epoch))
        });
        world.note(self.store.process.who(), if is_zombie { "refused_by_epoch" } else { "stale" }, &[]);
        Ok(Some(CommitOutcome::Stale(stale)))
    }

    async fn commit_batch(&self, batch: &Batch, path: CommitPath) -> Result<CommitOutcome, StoreError> {
        let (world, who) = (&self.store.world, self.store.process.who());
        if batch.is_empty() {
            return Ok(CommitOutcome::Committed { path, parts: Vec::new() });
        }
        if let Some(part) = batch.parts().iter().find(|part| !part.is_balanced()) {
            world.violate("a batch adds up", format!("{part:?}"));
            return Err(broken("a batch does not add up"));
        }
        self.ask(Wish::Write).await?;
        let mut transaction = Transaction::begin(world, self.id);
        if let Some(stale) = self.compare(&transaction, batch).await? {
            transaction.end();
            self.answer().await?;
            return Ok(stale);
        }
        self.answer().await?;
        // COPY.
        self.ask(Wish::Write).await?;
        transaction.check()?;
        let sorted = {
            let (kafka, database) = (lock(&world.kafka), lock(&world.database));
            database.sort(&kafka, batch, path)
        };
        if let Err(error) = self.refuse(batch).and(sorted.map(drop)) {
            let name = if batch.entries().len() > 1 { "batch_refused" } else { "record_refused" };
            world.note(who, name, &[batch.entries().len() as i64]);
            if let StoreError::Broken(text) = &error {
                world.violate("no record is stored twice, or other than it was read", text.clone());
            }
            transaction.end();
            self.answer().await?;
            return Err(error);
        }
        let by = (self.purpose == SessionPurpose::Lane).then(|| life(&self.store.process));
        transaction.send(Commit { batch: batch.clone(), path, by });
        if world.fails(|rates| rates.torn_commit) {
            world.note(who, "torn_commit", &[]);
            drop(transaction);
            if world.chance(300) {
                std::future::pending::<()>().await;
            }
            return Err(unavailable("io"));
        }
        self.ask(Wish::Write).await?;
        let outcome = transaction.arrive();
        self.answer().await?;
        outcome
    }
}

impl StoreSession for SimSession {
    async fn close(self) {}

    async fn federated_sources(&mut self) -> Result<FederatedSources, StoreError> {
        self.ask(Wish::Read).await?;
        self.answer().await?;
        Ok([("local".to_owned(), true)].into_iter().collect())
    }

    async fn positions(
        &mut self,
        _group: &str,
        claims: &[Claim],
    ) -> Result<Vec<(StreamPartition, ClaimedPosition)>, StoreError> {
        self.ask(Wish::Read).await?;
        let found = {
            let database = lock(&self.store.world.database);
            let position = |claim: &Claim| {
                let row = database.tables.rows[claim.key.partition.0 as usize].as_ref()?;
                Some((claim.key, ClaimedPosition { epoch: Epoch(row.epoch), next: at(row.next) }))
            };
            claims.iter().filter_map(position).collect()
        };
        self.answer().await?;
        Ok(found)
    }

    fn adopt_claims(
        &mut self,
        _group: &str,
        claims: &[Claim],
    ) -> impl Answer<Vec<(StreamPartition, ClaimedPosition)>> {
        claims::adopt(self, claims)
    }

    fn release(&mut self, _group: &str, claims: &[Claim]) -> impl Answer<()> {
        claims::release(self, claims)
    }

    async fn ensure_partitions(&mut self, _batch: &Batch) -> Result<u64, StoreError> {
        Ok(0)
    }

    async fn ensure_partitions_ahead(&mut self) -> Result<(), StoreError> {
        self.ask(Wish::Write).await?;
        self.answer().await
    }

    async fn commit(
        &mut self,
        _group: &str,
        batch: &Batch,
        path: CommitPath,
    ) -> Result<CommitOutcome, StoreError> {
        self.commit_batch(batch, path).await
    }

    async fn fill_gap(
        &mut self,
        _group: &str,
        _batch: &Batch,
        _by: (&str, &str),
    ) -> Result<CommitOutcome, StoreError> {
        Err(broken("an operator's, and not simulated"))
    }

    fn declare_gap(&mut self, _group: &str, gap: &GapDeclaration<'_>) -> impl Answer<GapAnswer> {
        claims::declare_gap(self, gap.key, gap.low)
    }

    async fn open_gaps(
        &mut self,
        keys: &BTreeSet<StreamPartition>,
    ) -> Result<Vec<(StreamPartition, OffsetRange)>, StoreError> {
        self.ask(Wish::Read).await?;
        let gaps = {
            let database = lock(&self.store.world.database);
            let gaps = database.tables.gaps.iter().filter_map(|gap| {
                let key = keys.iter().find(|key| key.partition.0 as usize == gap.partition)?;
                Some((*key, OffsetRange::new(at(gap.start), at(gap.end))?))
            });
            gaps.collect()
        };
        self.answer().await?;
        Ok(gaps)
    }

    async fn publish_spool_ranges(
        &mut self,
        instance: Uuid,
        ranges: &[(StreamPartition, OffsetRange)],
        telling: Telling,
    ) -> Result<(), StoreError> {
        self.ask(Wish::Write).await?;
        if telling == Telling::All {
            oracle::all_is_told(&self.store.world, &self.store.process, ranges);
        }
        lock(&self.store.world.database).tables.tell(instance, ranges, telling);
        self.answer().await
    }

    async fn record_breaker(
        &mut self,
        _group: &str,
        _key: StreamPartition,
        _opening: (Uuid, &str),
    ) -> Result<(), StoreError> {
        Ok(())
    }

    async fn is_breaker_open(&mut self, _group: &str, _key: StreamPartition) -> Result<bool, StoreError> {
        Ok(false)
    }
}
