//! Claims: who may move a position.
//!
//! A claim bumps the position row's `epoch`, so a commit of an earlier owner is refused. The rows are locked
//! in (stream, partition) order. A claim waits for a commit in flight; after [`BLOCKED_AFTER`] it ends the
//! sessions of ours that block it, and it always ends the session of an earlier owner that did not release:
//! a process that was stopped in the middle of a COPY can't hold the new owner up.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use uuid::Uuid;

use super::commit::offset_of;
use super::error::StoreError;
use super::session::{APPLICATION_NAME_PREFIX, Session, SessionPurpose, StoreSettings};
use crate::failpoint;
use crate::model::position::{Epoch, Offset, Partition, StreamId, StreamPartition};

/// How long a claim waits for a lock before it ends the sessions of ours that hold it.
const BLOCKED_AFTER: Duration = Duration::from_secs(1);

/// What a stream is: one incarnation of one topic on one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamIdentity {
    /// The Kafka cluster's id.
    pub cluster_id: Arc<str>,
    /// The topic's name.
    pub topic: Arc<str>,
    /// The topic's id; a topic that was created again has another one.
    pub topic_id: Uuid,
}

impl StreamIdentity {
    /// The stream's id.
    #[must_use]
    pub fn id(&self) -> StreamId {
        StreamId::of(&self.cluster_id, &self.topic, self.topic_id)
    }
}

/// A partition to claim, with what Kafka says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRequest {
    /// The partition's stream.
    pub stream: StreamIdentity,
    /// The partition.
    pub partition: Partition,
    /// The first offset that Kafka still has.
    pub low: Offset,
    /// The position after the last offset that Kafka has.
    pub high: Offset,
    /// Where to start when the group has no position yet.
    pub initial: Offset,
}

impl ClaimRequest {
    /// The key of the position.
    #[must_use]
    pub fn key(&self) -> StreamPartition {
        StreamPartition { stream: self.stream.id(), partition: self.partition }
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimAnswer {
    /// It is ours: read from this position, commit under this epoch.
    Granted(ClaimedPosition),
    /// The database knows this topic as another stream: it was created again, or this is another cluster.
    /// `offsets adopt` goes on.
    Recreated {
        /// The stream that the database knows.
        known: StreamId,
    },
    /// The stream belongs to another group. `offsets adopt --from-group` goes on.
    ForeignGroup {
        /// Which one.
        group: String,
    },
    /// Kafka has deleted the records from our position up to `low`. A gap must be declared.
    RecordsDeleted {
        /// Our position.
        position: Offset,
        /// The first offset that Kafka still has.
        low: Offset,
    },
    /// Our position is behind the end of the partition: Kafka has lost records that we have stored.
    BeyondEnd {
        /// Our position.
        position: Offset,
        /// The end.
        high: Offset,
    },
}

/// A position under our claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimedPosition {
    /// The claim's epoch.
    pub epoch: Epoch,
    /// The next offset to read.
    pub next: Offset,
}

/// A claim that is held, to be released or verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Which position.
    pub key: StreamPartition,
    /// Under which epoch.
    pub epoch: Epoch,
}

impl StoreSettings {
    /// Claims partitions in one transaction on `session`: all that can be granted, or on an error none.
    ///
    /// Not cancel safe: when the future is dropped, the session must be dropped too.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn claim(
        &self,
        session: &mut Session,
        requests: &[ClaimRequest],
    ) -> Result<Vec<ClaimAnswer>, StoreError> {
        let pid = session.pid;
        let claim = self.claim_in_transaction(session, requests);
        tokio::pin!(claim);
        loop {
            tokio::select! {
                biased;
                outcome = &mut claim => return outcome,
                () = tokio::time::sleep(BLOCKED_AFTER) => self.end_blockers(pid).await,
            }
        }
    }

    async fn claim_in_transaction(
        &self,
        session: &mut Session,
        requests: &[ClaimRequest],
    ) -> Result<Vec<ClaimAnswer>, StoreError> {
        sqlx::query("BEGIN").execute(&mut session.connection).await?;
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&index| requests.get(index).map(ClaimRequest::key));
        let mut answers: Vec<Option<ClaimAnswer>> = vec![None; requests.len()];
        for index in order {
            if let Some((request, slot)) = requests.get(index).zip(answers.get_mut(index)) {
                *slot = Some(self.claim_one(session, request).await?);
            }
        }
        failpoint::at("claim_before_commit");
        sqlx::query("COMMIT").execute(&mut session.connection).await?;
        failpoint::at("claim_after_commit");
        Ok(answers.into_iter().flatten().collect())
    }

    async fn claim_one(
        &self,
        session: &mut Session,
        request: &ClaimRequest,
    ) -> Result<ClaimAnswer, StoreError> {
        if let Some(refusal) = self.register_stream(session, &request.stream).await? {
            return Ok(refusal);
        }
        let key = request.key();
        let connection = &mut session.connection;
        sqlx::query(
            "INSERT INTO audit_events.consumer_offsets (group_id, stream_id, partition, first_offset, next_offset) \
             SELECT $1, $2, $3, start_offset, start_offset \
               FROM (SELECT CASE WHEN EXISTS (SELECT FROM audit_events.streams \
                                               WHERE topic = $4 AND group_id = $1 AND retired_at IS NOT NULL) \
                                   OR EXISTS (SELECT FROM audit_events.consumer_offsets \
                                               WHERE group_id = $1 AND stream_id = $2 AND claimed_at < now()) \
                                 THEN $5::bigint ELSE $6::bigint END AS start_offset) AS s \
             ON CONFLICT (group_id, stream_id, partition) DO NOTHING",
        )
        .bind(&*self.group)
        .bind(key.stream.0)
        .bind(key.partition.0)
        .bind(&*request.stream.topic)
        // Whatever the reset is, only a new group may start at the end: not a stream that was adopted in the place of
        // another, and not a partition that comes later to a stream which the group reads.
        .bind(request.low.as_i64())
        .bind(request.initial.as_i64())
        .execute(&mut *connection)
        .await?;
        // Without a lock first: while Kafka has deleted what comes next, another instance may be storing it from its spool,
        // and a claim that waited for that would end it.
        let position = self.position(session, key, "").await?;
        if position < request.low {
            return Ok(ClaimAnswer::RecordsDeleted { position, low: request.low });
        }
        self.end_earlier_owner(session, key).await?;
        let position = self.position(session, key, "FOR UPDATE").await?;
        if position < request.low {
            return Ok(ClaimAnswer::RecordsDeleted { position, low: request.low });
        }
        if position > request.high {
            return Ok(ClaimAnswer::BeyondEnd { position, high: request.high });
        }
        let row = sqlx::query(
            "UPDATE audit_events.consumer_offsets \
                SET epoch = epoch + $5, owner_instance = $4, owner_pid = NULL, owner_backend_start = NULL, \
                    claimed_at = now(), released_at = NULL \
              WHERE group_id = $1 AND stream_id = $2 AND partition = $3 RETURNING epoch, next_offset",
        )
        .bind(&*self.group)
        .bind(key.stream.0)
        .bind(key.partition.0)
        .bind(self.instance)
        .bind(i64::from(!failpoint::is_on("mutant_no_epoch")))
        .fetch_one(&mut session.connection)
        .await?;
        let next = offset_of(&row, "next_offset")?;
        Ok(ClaimAnswer::Granted(ClaimedPosition { epoch: Epoch(row.try_get("epoch")?), next }))
    }

    /// The position of `key`; `lock`: a locking clause, or nothing.
    async fn position(
        &self,
        session: &mut Session,
        key: StreamPartition,
        lock: &'static str,
    ) -> Result<Offset, StoreError> {
        let query = format!(
            "SELECT next_offset FROM audit_events.consumer_offsets \
              WHERE group_id = $1 AND stream_id = $2 AND partition = $3 {lock}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(&*self.group)
            .bind(key.stream.0)
            .bind(key.partition.0)
            .fetch_one(&mut session.connection)
            .await?;
        offset_of(&row, "next_offset")
    }

    /// Makes the stream known, unless it belongs to another group or the group knows the topic as another
    /// stream. The topic's name is locked, so that of two incarnations only one can be first.
    async fn register_stream(
        &self,
        session: &mut Session,
        stream: &StreamIdentity,
    ) -> Result<Option<ClaimAnswer>, StoreError> {
        let connection = &mut session.connection;
        let id = stream.id();
        let known = "SELECT stream_id, group_id, retired_at IS NOT NULL AS is_retired FROM audit_events.streams \
              WHERE stream_id = $1 OR (topic = $2 AND group_id = $3 AND retired_at IS NULL) \
              ORDER BY stream_id = $1 DESC, created_at DESC";
        let select = || sqlx::query(known).bind(id.0).bind(&*stream.topic).bind(&*self.group);
        let mut rows = select().fetch_all(&mut *connection).await?;
        if rows.is_empty() {
            sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('audit-consumer stream ' || $1, 0))")
                .bind(&*stream.topic)
                .execute(&mut *connection)
                .await?;
            sqlx::query(
                "INSERT INTO audit_events.streams (stream_id, cluster_id, topic, topic_id, group_id) \
                 SELECT $1, $2, $3, $4, $5 WHERE NOT EXISTS (SELECT FROM audit_events.streams \
                     WHERE topic = $3 AND group_id = $5 AND retired_at IS NULL) \
                 ON CONFLICT (stream_id) DO NOTHING",
            )
            .bind(id.0)
            .bind(&*stream.cluster_id)
            .bind(&*stream.topic)
            .bind(stream.topic_id)
            .bind(&*self.group)
            .execute(&mut *connection)
            .await?;
            rows = select().fetch_all(&mut *connection).await?;
        }
        for row in &rows {
            let known = StreamId(row.try_get("stream_id")?);
            let group: String = row.try_get("group_id")?;
            if known == id && *group != *self.group {
                return Ok(Some(ClaimAnswer::ForeignGroup { group }));
            }
            if known != id || row.try_get("is_retired")? {
                return Ok(Some(ClaimAnswer::Recreated { known }));
            }
        }
        if rows.is_empty() {
            return Err(StoreError::Broken(format!("the stream of {} can't be registered", stream.topic)));
        }
        Ok(None)
    }

    /// Ends the session of an owner that did not release. Never one of this process's own.
    async fn end_earlier_owner(&self, session: &mut Session, key: StreamPartition) -> Result<(), StoreError> {
        sqlx::query(
            "SELECT pg_terminate_backend(a.pid) \
               FROM audit_events.consumer_offsets AS o \
               JOIN pg_stat_activity AS a ON a.pid = o.owner_pid AND a.backend_start = o.owner_backend_start \
              WHERE o.group_id = $1 AND o.stream_id = $2 AND o.partition = $3 AND o.released_at IS NULL \
                AND o.owner_instance IS DISTINCT FROM $4 AND a.usename = current_user",
        )
        .bind(&*self.group)
        .bind(key.stream.0)
        .bind(key.partition.0)
        .bind(self.instance)
        .execute(&mut session.connection)
        .await?;
        Ok(())
    }

    /// Ends the sessions of ours that block the session `pid`. What goes wrong is logged only: the claim
    /// itself runs into its own time-out then.
    async fn end_blockers(&self, pid: i32) {
        let ended = async {
            let mut session = self.connect(SessionPurpose::Operator).await?;
            let rows = sqlx::query(
                "SELECT a.pid, pg_terminate_backend(a.pid) \
                   FROM unnest(pg_blocking_pids($1)) AS blocker (pid) JOIN pg_stat_activity AS a USING (pid) \
                  WHERE a.usename = current_user AND a.application_name LIKE $2 || '/%'",
            )
            .bind(pid)
            .bind(APPLICATION_NAME_PREFIX)
            .fetch_all(&mut session.connection)
            .await?;
            session.close().await;
            Ok::<usize, StoreError>(rows.len())
        };
        match ended.await {
            Ok(0) => {}
            Ok(ended_count) => tracing::warn!(ended_count, "ended sessions of ours that blocked a claim"),
            Err(error) => tracing::warn!(%error, "sessions that block a claim can't be ended"),
        }
    }
}

impl Session {
    /// Releases claims: a later owner then ends no session. Claims that were lost meanwhile are left alone.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn release(&mut self, group: &str, claims: &[Claim]) -> Result<(), StoreError> {
        let (streams, partitions, epochs) = columns(claims);
        failpoint::at("release_before");
        sqlx::query(
            "UPDATE audit_events.consumer_offsets AS o \
                SET released_at = now(), owner_pid = NULL, owner_backend_start = NULL \
               FROM (SELECT c.* FROM audit_events.consumer_offsets AS c \
                       JOIN unnest($2::uuid[], $3::integer[], $4::bigint[]) AS w (stream_id, partition, epoch) \
                      USING (stream_id, partition, epoch) \
                      WHERE c.group_id = $1 ORDER BY c.stream_id, c.partition FOR UPDATE OF c) AS mine \
              WHERE o.group_id = $1 AND (o.stream_id, o.partition, o.epoch) \
                    = (mine.stream_id, mine.partition, mine.epoch)",
        )
        .bind(group)
        .bind(streams)
        .bind(partitions)
        .bind(epochs)
        .execute(&mut self.connection)
        .await?;
        failpoint::at("release_after");
        Ok(())
    }

    /// Writes this session into the rows of `claims`, so that a later owner can end it, and returns the epoch
    /// and position of each row that is still ours, in no order. A claim that is not among them was lost.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn adopt_claims(
        &mut self,
        group: &str,
        claims: &[Claim],
    ) -> Result<Vec<(StreamPartition, ClaimedPosition)>, StoreError> {
        let (streams, partitions, epochs) = columns(claims);
        let rows = sqlx::query(
            "UPDATE audit_events.consumer_offsets AS o \
                SET owner_pid = pg_backend_pid(), \
                    owner_backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()) \
               FROM (SELECT c.* FROM audit_events.consumer_offsets AS c \
                       JOIN unnest($2::uuid[], $3::integer[], $4::bigint[]) AS w (stream_id, partition, epoch) \
                      USING (stream_id, partition, epoch) \
                      WHERE c.group_id = $1 ORDER BY c.stream_id, c.partition FOR UPDATE OF c) AS mine \
              WHERE o.group_id = $1 AND (o.stream_id, o.partition, o.epoch) \
                    = (mine.stream_id, mine.partition, mine.epoch) \
             RETURNING o.stream_id, o.partition, o.epoch, o.next_offset",
        )
        .bind(group)
        .bind(streams)
        .bind(partitions)
        .bind(epochs)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(claimed_position).collect()
    }

    /// Reads the epoch and position of each of `keys`, in no order; a key without a row is left out.
    ///
    /// # Errors
    /// See [`StoreError`]; the session must then be dropped.
    pub async fn positions(
        &mut self,
        group: &str,
        claims: &[Claim],
    ) -> Result<Vec<(StreamPartition, ClaimedPosition)>, StoreError> {
        let (streams, partitions, _) = columns(claims);
        let rows = sqlx::query(
            "SELECT stream_id, partition, epoch, next_offset FROM audit_events.consumer_offsets \
               JOIN unnest($2::uuid[], $3::integer[]) AS w (stream_id, partition) USING (stream_id, partition) \
              WHERE group_id = $1",
        )
        .bind(group)
        .bind(streams)
        .bind(partitions)
        .fetch_all(&mut self.connection)
        .await?;
        rows.iter().map(claimed_position).collect()
    }
}

fn columns(claims: &[Claim]) -> (Vec<Uuid>, Vec<i32>, Vec<i64>) {
    let streams = claims.iter().map(|claim| claim.key.stream.0).collect();
    let partitions = claims.iter().map(|claim| claim.key.partition.0).collect();
    (streams, partitions, claims.iter().map(|claim| claim.epoch.0).collect())
}

fn claimed_position(row: &sqlx::postgres::PgRow) -> Result<(StreamPartition, ClaimedPosition), StoreError> {
    let key = StreamPartition {
        stream: StreamId(row.try_get("stream_id")?),
        partition: Partition(row.try_get("partition")?),
    };
    let next = offset_of(row, "next_offset")?;
    Ok((key, ClaimedPosition { epoch: Epoch(row.try_get("epoch")?), next }))
}
