//! Claims, releases and gaps, as `src/store/claim.rs` and `src/store/gaps.rs` have them.

use std::time::Duration;

use audit_consumer::model::position::{Epoch, Offset, OffsetRange, StreamPartition};
use audit_consumer::store::{
    Claim, ClaimAnswer, ClaimRequest, ClaimedPosition, GapAnswer, SpoolHolder, StoreError,
};

use crate::database::{Database, Gap, Row};
use crate::kafka::{at, key};
use crate::oracle;
use crate::plan::Mutant;
use crate::store::{SimSession, Wish};
use crate::transaction::{Transaction, epoch_step, life};
use crate::world::lock;

/// How long a claim waits for a lock before it ends the sessions that hold it.
const BLOCKED_AFTER: Duration = Duration::from_secs(1);

fn index(key: StreamPartition) -> usize {
    key.partition.0 as usize
}

pub(crate) async fn claim(
    session: &mut SimSession,
    requests: &[ClaimRequest],
) -> Result<Vec<ClaimAnswer>, StoreError> {
    let claim = claim_all(session, requests);
    tokio::pin!(claim);
    loop {
        tokio::select! {
            biased;
            outcome = &mut claim => return outcome,
            () = tokio::time::sleep(BLOCKED_AFTER) => end_blockers(session).await,
        }
    }
}

async fn end_blockers(session: &SimSession) {
    let world = &session.store.world;
    if session.store.ask(None, Wish::Read).await.is_err() {
        return;
    }
    let blocker = {
        let database = lock(&world.database);
        database.waiting.get(&session.id).and_then(|partition| database.locks.get(partition)).copied()
    };
    if let Some(blocker) = blocker {
        world.note(session.store.process.who(), "ended_blocker", &[]);
        lock(&world.database).end(blocker);
        world.database_changed.notify_waiters();
    }
}

async fn claim_all(session: &SimSession, requests: &[ClaimRequest]) -> Result<Vec<ClaimAnswer>, StoreError> {
    let world = &session.store.world;
    session.ask(Wish::Write).await?;
    let transaction = Transaction::begin(world, session.id);
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&index| requests[index].key());
    let mut answers: Vec<Option<ClaimAnswer>> = vec![None; requests.len()];
    for request in order {
        answers[request] = Some(claim_one(session, &transaction, &requests[request]).await?);
    }
    session.answer().await?;
    // COMMIT.
    session.ask(Wish::Write).await?;
    transaction.check()?;
    let mut answers: Vec<ClaimAnswer> = answers.into_iter().flatten().collect();
    for (request, answer) in requests.iter().zip(&mut answers) {
        grant(session, request, answer);
    }
    transaction.end();
    session.answer().await?;
    Ok(answers)
}

/// What the answer will be, if the transaction is committed; its epoch is told by [`grant`].
async fn claim_one(
    session: &SimSession,
    transaction: &Transaction,
    request: &ClaimRequest,
) -> Result<ClaimAnswer, StoreError> {
    let (world, partition) = (&session.store.world, index(request.key()));
    let position = |database: &Database| {
        database.tables.rows[partition].as_ref().map_or(request.initial, |row| at(row.next))
    };
    let is_passed_over = world.plan.is_mutant(Mutant::GapSkipped);
    let early = position(&lock(&world.database));
    if early < request.low && !is_passed_over {
        return Ok(ClaimAnswer::RecordsDeleted { position: early, low: request.low });
    }
    end_earlier_owner(session, partition);
    transaction.lock(partition).await?;
    let next = position(&lock(&world.database));
    if next < request.low && !is_passed_over {
        return Ok(ClaimAnswer::RecordsDeleted { position: next, low: request.low });
    }
    if next > request.high {
        return Ok(ClaimAnswer::BeyondEnd { position: next, high: request.high });
    }
    Ok(ClaimAnswer::Granted(ClaimedPosition { epoch: Epoch(0), next: next.max(request.low) }))
}

fn end_earlier_owner(session: &SimSession, partition: usize) {
    let world = &session.store.world;
    let mut database = lock(&world.database);
    let owner = database.tables.rows[partition].as_ref().and_then(|row| {
        let is_other = !row.is_released && row.owner.is_some_and(|owner| owner != session.store.instance);
        row.owner_session.filter(|_| is_other)
    });
    if let Some(owner) = owner.filter(|owner| database.sessions.contains_key(owner)) {
        database.end(owner);
        drop(database);
        world.note(session.store.process.who(), "ended_earlier_owner", &[]);
        world.database_changed.notify_waiters();
    }
}

/// The effect of one claim.
fn grant(session: &SimSession, request: &ClaimRequest, answer: &mut ClaimAnswer) {
    let (world, partition) = (&session.store.world, index(request.key()));
    let mut database = lock(&world.database);
    let initial = request.initial.as_i64();
    let row = database.tables.rows[partition].get_or_insert(Row {
        first: initial,
        next: initial,
        epoch: 0,
        counts: [0; 4],
        owner: None,
        owner_session: None,
        is_released: true,
    });
    let ClaimAnswer::Granted(granted) = answer else { return };
    row.epoch += epoch_step(world);
    row.next = row.next.max(if world.plan.is_mutant(Mutant::GapSkipped) { request.low.as_i64() } else { 0 });
    row.owner = Some(session.store.instance);
    (row.owner_session, row.is_released) = (None, false);
    granted.epoch = Epoch(row.epoch);
    let numbers = [partition as i64, row.epoch, row.next];
    database.granted[partition] = Some(life(&session.store.process));
    database.remember();
    drop(database);
    world.note(session.store.process.who(), "granted", &numbers);
}

pub(crate) async fn adopt(
    session: &mut SimSession,
    claims: &[Claim],
) -> Result<Vec<(StreamPartition, ClaimedPosition)>, StoreError> {
    let world = &session.store.world;
    session.ask(Wish::Write).await?;
    let transaction = Transaction::begin(world, session.id);
    let mut found = Vec::new();
    for claim in mine(session, claims) {
        transaction.lock(index(claim.key)).await?;
        let mut database = lock(&world.database);
        let row = database.tables.rows[index(claim.key)].as_mut();
        if let Some(row) = row.filter(|row| row.epoch == claim.epoch.0) {
            row.owner_session = Some(session.id);
            found.push((claim.key, ClaimedPosition { epoch: claim.epoch, next: at(row.next) }));
        }
    }
    transaction.check()?;
    transaction.end();
    session.answer().await?;
    Ok(found)
}

/// Those of `claims` whose epoch stands, in the order of their locks.
fn mine(session: &SimSession, claims: &[Claim]) -> Vec<Claim> {
    let database = lock(&session.store.world.database);
    let is_mine = |claim: &&Claim| {
        database.tables.rows[index(claim.key)].as_ref().is_some_and(|row| row.epoch == claim.epoch.0)
    };
    let mut mine: Vec<Claim> = claims.iter().filter(is_mine).copied().collect();
    mine.sort_by_key(|claim| claim.key);
    mine
}

pub(crate) async fn release(session: &mut SimSession, claims: &[Claim]) -> Result<(), StoreError> {
    let world = &session.store.world;
    session.ask(Wish::Write).await?;
    let transaction = Transaction::begin(world, session.id);
    for claim in mine(session, claims) {
        transaction.lock(index(claim.key)).await?;
        let mut database = lock(&world.database);
        let row = database.tables.rows[index(claim.key)].as_mut();
        if let Some(row) = row.filter(|row| row.epoch == claim.epoch.0) {
            (row.is_released, row.owner_session) = (true, None);
        }
    }
    transaction.check()?;
    transaction.end();
    session.answer().await
}

pub(crate) async fn declare_gap(
    session: &mut SimSession,
    key: StreamPartition,
    low: Offset,
) -> Result<GapAnswer, StoreError> {
    let world = &session.store.world;
    let partition = index(key);
    session.ask(Wish::Write).await?;
    let transaction = Transaction::begin(world, session.id);
    transaction.lock(partition).await?;
    session.answer().await?;
    session.ask(Wish::Write).await?;
    transaction.check()?;
    let answer = gap_answer(session, partition, low)?;
    if let GapAnswer::Declared(range) = answer {
        oracle::gap_is_right(world, &session.store.process, partition, range);
        let mut database = lock(&world.database);
        let (start, end) = (range.start().as_i64(), range.end().as_i64());
        if let Some(row) = database.tables.rows[partition].as_mut() {
            row.counts[3] += end - row.next;
            row.next = end;
            row.epoch += 1;
        }
        database.tables.gaps.push(Gap { partition, start, end });
        database.granted[partition] = None;
        database.remember();
        drop(database);
        world.note(session.store.process.who(), "gap_declared", &[partition as i64, start, end]);
    }
    transaction.end();
    session.answer().await?;
    Ok(answer)
}

fn gap_answer(session: &SimSession, partition: usize, low: Offset) -> Result<GapAnswer, StoreError> {
    let world = &session.store.world;
    let database = lock(&world.database);
    let Some(row) = &database.tables.rows[partition] else { return Ok(GapAnswer::NotBelow) };
    let range = OffsetRange::new(at(row.next), low).filter(|range| !range.is_empty());
    let Some(range) = range else { return Ok(GapAnswer::NotBelow) };
    if world.plan.is_mutant(Mutant::GapOverSpools) {
        return Ok(GapAnswer::Declared(range));
    }
    let key = key(partition);
    let others =
        database.tables.spool_ranges.iter().filter(|(instance, _)| **instance != session.store.instance);
    let overlapping = others.flat_map(|(instance, ranges)| {
        let of_key = ranges.iter().filter(|(other, held)| {
            *other == key && held.start() < range.end() && range.start() < held.end()
        });
        of_key.map(|(_, held)| (held.start(), *instance))
    });
    let Some((start, instance)) = overlapping.min() else { return Ok(GapAnswer::Declared(range)) };
    match OffsetRange::new(range.start(), start) {
        Some(before) if !before.is_empty() => Ok(GapAnswer::Declared(before)),
        Some(_) | None => Ok(GapAnswer::Held(SpoolHolder { instance, start })),
    }
}
