//! A transaction of the simulated PostgreSQL: it holds locks until it ends, whatever becomes of who began it.

use std::sync::Arc;
use std::time::Duration;

use audit_consumer::model::batch::Batch;
use audit_consumer::store::{CommitOutcome, CommitPath, StoreError};
use tokio::time::timeout;

use crate::database::{contended, unavailable};
use crate::plan::Mutant;
use crate::world::{Process, World, lock};

/// What is committed.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) batch: Batch,
    pub(crate) path: CommitPath,
    /// The oracle's: who commits, if by a claim.
    pub(crate) by: Option<(u8, u32)>,
}

/// What becomes of a transaction that nobody waits for any more.
#[derive(Debug)]
enum Left {
    /// It is rolled back.
    Open,
    /// COMMIT was sent: it is done, or not.
    Sent(Box<Commit>),
    /// It has ended.
    Ended,
}

#[derive(Debug)]
pub(crate) struct Transaction {
    world: Arc<World>,
    session: u64,
    left: Left,
}

impl Transaction {
    pub(crate) fn begin(world: &Arc<World>, session: u64) -> Self {
        Self { world: Arc::clone(world), session, left: Left::Open }
    }

    /// Waits for the lock of a position, in the order of partitions.
    pub(crate) async fn lock(&self, partition: usize) -> Result<(), StoreError> {
        let world = &self.world;
        let locked = async {
            loop {
                let changed = world.database_changed.notified();
                {
                    let mut database = lock(&world.database);
                    if !database.sessions.contains_key(&self.session) {
                        return Err(unavailable("57P01"));
                    }
                    match database.locks.get(&partition) {
                        Some(holder) if *holder != self.session => {
                            database.waiting.insert(self.session, partition);
                        }
                        _ => {
                            database.locks.insert(partition, self.session);
                            database.waiting.remove(&self.session);
                            return Ok(());
                        }
                    }
                }
                changed.await;
            }
        };
        timeout(world.plan.lock_timeout, locked).await.unwrap_or_else(|_elapsed| Err(contended("55P03")))
    }

    /// Whether the session, and so the transaction, still is.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if lock(&self.world.database).sessions.contains_key(&self.session) {
            Ok(())
        } else {
            Err(unavailable("57P01"))
        }
    }

    /// Rolls back, or has committed: the locks are free.
    pub(crate) fn end(mut self) {
        self.left = Left::Ended;
        unlock(&self.world, self.session);
    }

    /// COMMIT is on its way.
    pub(crate) fn send(&mut self, commit: Commit) {
        self.left = Left::Sent(Box::new(commit));
    }

    /// COMMIT has arrived.
    pub(crate) fn arrive(mut self) -> Result<CommitOutcome, StoreError> {
        let Left::Sent(commit) = std::mem::replace(&mut self.left, Left::Ended) else {
            return Err(unavailable("57P01"));
        };
        self.check()?;
        let outcome = done(&self.world, &commit);
        unlock(&self.world, self.session);
        outcome
    }
}

/// Does what COMMIT says, and looks whether it may.
fn done(world: &World, commit: &Commit) -> Result<CommitOutcome, StoreError> {
    let Commit { batch, path, by } = commit;
    let parts = {
        let kafka = lock(&world.kafka);
        let mut database = lock(&world.database);
        for part in batch.parts() {
            let partition = part.key.partition.0 as usize;
            let owner = database.granted[partition];
            if by.is_some() && owner != *by && !database.has_failed_over {
                let detail = format!("{by:?} commits to partition {partition}, which {owner:?} has claimed");
                world.violate("a zombie stores nothing", detail);
            }
        }
        database.store(&kafka, batch, *path)
    };
    let numbers: Vec<i64> =
        batch.parts().iter().flat_map(|part| [part.start.as_i64(), part.end.as_i64()]).collect();
    let name = if by.is_some() { "committed" } else { "stored_by_stray" };
    world.note(crate::trace::Who::WORLD, name, &numbers);
    match parts {
        Ok(parts) => Ok(CommitOutcome::Committed { path: *path, parts }),
        Err(error) => {
            if let StoreError::Broken(text) = &error {
                world.violate("no record is stored twice, or other than it was read", text.clone());
            }
            Err(error)
        }
    }
}

fn unlock(world: &World, session: u64) {
    lock(&world.database).unlock(session);
    world.database_changed.notify_waiters();
}

impl Drop for Transaction {
    /// The connection is gone. The server notices sooner or later; a COMMIT that it has, it may do.
    fn drop(&mut self) {
        let left = std::mem::replace(&mut self.left, Left::Ended);
        if matches!(left, Left::Ended) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (world, session) = (Arc::clone(&self.world), self.session);
        let is_done = matches!(left, Left::Sent(_)) && world.chance(600);
        let after = if world.chance(500) { 0 } else { world.between(1, 20_000) };
        runtime.spawn(async move {
            if after > 0 {
                tokio::time::sleep(Duration::from_millis(after)).await;
            }
            if !lock(&world.database).sessions.contains_key(&session) {
                return;
            }
            if let (Left::Sent(commit), true) = (left, is_done) {
                let outcome = done(&world, &commit);
                let name = if outcome.is_ok() { "commit_done_unheard" } else { "commit_refused_unheard" };
                world.note(crate::trace::Who::WORLD, name, &[after as i64]);
            } else {
                world.note(crate::trace::Who::WORLD, "transaction_left", &[after as i64]);
            }
            lock(&world.database).end(session);
            world.database_changed.notify_waiters();
        });
    }
}

/// Whether `process` may be taken at its word that it is the owner: the mutant lets a claim leave the epoch.
pub(crate) fn epoch_step(world: &World) -> i64 {
    i64::from(!world.plan.is_mutant(Mutant::NoEpoch))
}

pub(crate) const fn life(process: &Process) -> (u8, u32) {
    (process.index, process.life)
}
