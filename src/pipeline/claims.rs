//! Claims: what is offered becomes ours, or is held with a reason.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use uuid::Uuid;

use super::lane::LaneControl;
use super::{Pipeline, RETOLD_AFTER, REVOKE_PATIENCE, told_to_stop};
use crate::failpoint;
use crate::model::federated::FederatedSources;
use crate::model::position::{Offset, TopicPartition};
use crate::model::record::AssignmentId;
use crate::model::spool::mode::Mode;
use crate::observe::board::{DatabaseState, Hold, HoldCode, OwnedPartition};
use crate::source::{HandedOn, Offer, Placement};
use crate::spool::disk::Disk;
use crate::store::{
    Claim, ClaimAnswer, ClaimRequest, ClaimedPosition, GapAnswer, GapDeclaration, SessionPurpose, Store,
    StoreError, StoreSession, StreamIdentity, Telling,
};

/// How long a position must have been beyond the end before that is taken for final.
const BEYOND_END_CONFIRMED_AFTER: Duration = Duration::from_secs(10);
/// How long what was read before the poll thread ended an assignment may get no further while PostgreSQL answers.
const OUTSTANDING_PATIENCE: Duration = Duration::from_secs(60);

impl<S: Store, D: Disk> Pipeline<S, D> {
    /// Places what is offered; one placement for each offer, in order.
    pub(super) async fn place(&mut self, offers: Vec<Offer>) -> Vec<Placement> {
        let is_due: Vec<bool> = offers.iter().map(|offer| !self.is_outstanding(offer)).collect();
        let due: Vec<Offer> =
            offers.into_iter().zip(&is_due).filter_map(|(offer, is_due)| is_due.then_some(offer)).collect();
        self.end_unread(&due).await;
        let placed = if self.is_spooling() {
            self.place_in_spool(&due).await
        } else {
            self.place_in_lanes(&due).await
        };
        let mut placed = placed.into_iter();
        let placements = is_due.into_iter().map(|is_due| if is_due { placed.next() } else { None });
        placements.map(|placement| placement.unwrap_or(Placement::Hold)).collect()
    }

    /// Whether records of an assignment that the poll thread has ended are still on their way to PostgreSQL, or to the
    /// spool: Kafka may not have them a second time. While PostgreSQL is away nothing could be claimed anyway.
    fn is_outstanding(&mut self, offer: &Offer) -> bool {
        let Some(HandedOn { assignment, to }) = offer.handed_on else { return false };
        let now = self.clock.monotonic();
        let board = self.board.lock();
        let owned = board.owned.get(&assignment);
        let Some(kept) = owned.map(|owned| owned.spooled_to.unwrap_or(owned.position)) else { return false };
        let (known, since) = self.outstanding.entry(assignment).or_insert((kept, now));
        if *known != kept || board.database != DatabaseState::Up {
            (*known, *since) = (kept, now);
        }
        kept < to && now.saturating_duration_since(*since) < OUTSTANDING_PATIENCE
    }

    /// Claims what is offered.
    async fn place_in_lanes(&mut self, offers: &[Offer]) -> Vec<Placement> {
        self.refresh_held().await;
        // Before anything is claimed, so that nobody declares a gap over it.
        self.publish_ranges(Telling::More).await;
        let now = self.clock.monotonic();
        let mut placements = vec![Placement::Hold; offers.len()];
        let (mut indices, mut requests) = (Vec::new(), Vec::new());
        for (index, offer) in offers.iter().enumerate() {
            if self.is_breaker_open(offer).await || self.is_draining(&offer.source).await {
                continue;
            }
            match self.request(offer, now) {
                Ok(mut request) => {
                    request.low = self.low_with_spool(request.key(), request.low);
                    request.initial =
                        request.initial.min(self.low_with_spool(request.key(), request.initial));
                    indices.push(index);
                    requests.push(request);
                }
                Err((code, detail)) => self.hold(&offer.source, code, detail),
            }
        }
        if requests.is_empty() {
            return placements;
        }
        let answers = match self.claim(&requests).await {
            Ok(answers) => answers,
            Err(error) => {
                let code = match error {
                    StoreError::Misconfigured { .. } | StoreError::Unknown { .. } => {
                        HoldCode::DatabaseMisconfigured
                    }
                    StoreError::Broken(_) => HoldCode::AccountBroken,
                    StoreError::Unavailable { .. }
                    | StoreError::Contended { .. }
                    | StoreError::StatementTimeout(_)
                    | StoreError::Refused { .. } => HoldCode::DatabaseUnavailable,
                };
                self.claim_failed(&error, code);
                indices.iter().filter_map(|index| offers.get(*index)).for_each(|offer| {
                    self.hold(&offer.source, code, error.to_string());
                });
                return placements;
            }
        };
        let positions = requests.iter().zip(&answers).filter_map(|(request, answer)| match answer {
            ClaimAnswer::Granted(ClaimedPosition { next: position, .. })
            | ClaimAnswer::RecordsDeleted { position, .. } => Some((request.key(), *position)),
            ClaimAnswer::Recreated { .. }
            | ClaimAnswer::ForeignGroup { .. }
            | ClaimAnswer::BeyondEnd { .. } => None,
        });
        self.note_positions(positions.collect()).await;
        for ((index, request), answer) in indices.into_iter().zip(&requests).zip(answers) {
            let Some((offer, slot)) = offers.get(index).zip(placements.get_mut(index)) else { continue };
            *slot = self.answered(offer, request, answer).await;
        }
        placements
    }

    /// Ends assignments of what is offered: the poll thread has ended them by itself (another topic has the name now,
    /// or records are to be read again), or has never begun. What is drained stays, as it never knew of that.
    async fn end_unread(&mut self, offers: &[Offer]) {
        let offered: HashSet<&Arc<TopicPartition>> = offers.iter().map(|offer| &offer.source).collect();
        let unread =
            self.owned_where(|owned| owned.mode != Mode::Draining && offered.contains(&owned.source));
        if !unread.is_empty() {
            let ended = self.end(&unread, REVOKE_PATIENCE).await;
            self.keep_positions(&ended);
        }
    }

    /// The assignments of the partitions that are owned and match.
    pub(super) fn owned_where(&self, matches: impl Fn(&OwnedPartition) -> bool) -> Vec<AssignmentId> {
        let board = self.board.lock();
        let matching = board.owned.iter().filter(|(_, owned)| matches(owned));
        matching.map(|(assignment, _)| *assignment).collect()
    }

    pub(super) fn request(&self, offer: &Offer, now: Instant) -> Result<ClaimRequest, (HoldCode, String)> {
        // These do not go away by themselves: what was lost or broken must be looked at first. (An end that was
        // told before another owner's last commit is behind the position for a moment only.)
        let stays = |hold: &&Hold| match hold.code {
            HoldCode::AccountBroken => true,
            HoldCode::PositionBeyondEnd => {
                now.saturating_duration_since(hold.since) >= BEYOND_END_CONFIRMED_AFTER
            }
            _ => false,
        };
        if let Some(hold) = self.board.lock().held.get(&offer.source).filter(stays) {
            return Err((hold.code, hold.detail.clone()));
        }
        let description =
            offer.description.as_ref().map_err(|why| (HoldCode::KafkaUnavailable, why.clone()))?;
        if self.claim_not_before.get(&offer.source).is_some_and(|at| *at > now) {
            return Err((
                HoldCode::ClaimedElsewhere,
                "another process claimed it; waiting for kafka's word".into(),
            ));
        }
        Ok(ClaimRequest {
            stream: StreamIdentity {
                cluster_id: Arc::clone(&description.cluster_id),
                topic: Arc::clone(&offer.source.topic),
                topic_id: description.topic_id,
            },
            partition: offer.source.partition,
            low: description.low,
            high: description.high,
            initial: description.initial,
        })
    }

    /// Claims on the loop's own session, within the claim time-out.
    async fn claim(&mut self, requests: &[ClaimRequest]) -> Result<Vec<ClaimAnswer>, StoreError> {
        let store = self.settings.store.clone();
        let (mut kept, sources) = (self.session.take(), &self.sources);
        let (mut connected_at, clock) = (self.connected_at, self.clock.clone());
        let claimed = async {
            // A session that has gone stale while idle is found out here, and replaced once.
            if let Some(session) = &mut kept
                && let Ok(answers) = claim_on(&store, session, requests, sources).await
            {
                return Ok(answers);
            }
            connected_at = clock.monotonic();
            let session = kept.insert(store.connect(SessionPurpose::Claim).await?);
            claim_on(&store, session, requests, sources).await
        };
        let mut stop = self.is_stopping.clone();
        let outcome = tokio::select! {
            biased;
            outcome = claimed => outcome,
            () = tokio::time::sleep(self.settings.claim_timeout) => Err(StoreError::no_answer("claim")),
            _ = told_to_stop(&mut stop) => Err(StoreError::no_answer("claim before stopping")),
        };
        self.connected_at = connected_at;
        if outcome.is_ok() {
            self.session = kept;
            self.database_up();
        }
        outcome
    }

    async fn answered(&mut self, offer: &Offer, request: &ClaimRequest, answer: ClaimAnswer) -> Placement {
        let (source, group) = (&offer.source, Arc::clone(self.settings.store.group()));
        let low = offer.description.as_ref().map_or(request.low, |description| description.low);
        // The spool may reach further back than Kafka, and lack what comes next all the same.
        let answer = match answer {
            ClaimAnswer::Granted(ClaimedPosition { next, .. })
                if next < low && !self.is_spooled(request.key(), next) =>
            {
                // What the spool holds behind the hole is not lost.
                let held = self.first_spooled_after(request.key(), next);
                ClaimAnswer::RecordsDeleted { position: next, low: held.map_or(low, |held| held.min(low)) }
            }
            other => other,
        };
        let (code, detail) = match answer {
            ClaimAnswer::Granted(position) => return self.adopt(source, request, position).await,
            ClaimAnswer::Recreated { known } => (
                HoldCode::TopicRecreated,
                format!(
                    "topic {} on this cluster is not the stream {known} that group {group} stores; if it was \
                     created again on purpose: audit-consumer offsets adopt --topic {} --reason WHY",
                    source.topic, source.topic
                ),
            ),
            ClaimAnswer::ForeignGroup { group: owner } => (
                HoldCode::ForeignGroup,
                format!(
                    "topic {} is stored by group {owner} in this database; to go on as group {group}: audit-consumer \
                     offsets adopt --topic {} --from-group {owner} --reason WHY",
                    source.topic, source.topic
                ),
            ),
            ClaimAnswer::BeyondEnd { position, high } => (
                HoldCode::PositionBeyondEnd,
                format!(
                    "position {position} is beyond the end {high}: kafka has lost records that are stored here"
                ),
            ),
            ClaimAnswer::RecordsDeleted { position, .. } if self.restore(request.key(), position).await => {
                (HoldCode::Draining, "what was drained before goes to postgresql once more".to_owned())
            }
            ClaimAnswer::RecordsDeleted { position, low } => {
                let holder = self.declare_overdue_gap(source, request, low).await;
                let next = match holder {
                    Some(instance) => format!(
                        "the spool of instance {instance} holds them: start it, or `spool drain --dir` on its disk; if that is \
                         gone for good: DELETE FROM audit_events.spool_ranges WHERE instance_id = '{instance}'"
                    ),
                    None => format!(
                        "when nothing else holds them: audit-consumer offsets declare-gap --topic {} --partition {} --reason \
                         WHY --yes",
                        source.topic, source.partition
                    ),
                };
                let detail = format!("kafka has deleted the records from {position} to {low}; {next}");
                (HoldCode::RecordsDeleted, detail)
            }
        };
        self.hold(source, code, detail);
        Placement::Hold
    }

    async fn adopt(
        &mut self,
        source: &Arc<TopicPartition>,
        request: &ClaimRequest,
        position: ClaimedPosition,
    ) -> Placement {
        let claim = Claim { key: request.key(), epoch: position.epoch };
        if self.is_spooled(claim.key, position.next) && !failpoint::is_on("mutant_live_before_drain") {
            return self.drain(source, claim, position).await;
        }
        match self.adopt_into_lane(source, claim, position, Mode::Live).await {
            Some((assignment, lane_index)) => {
                Placement::Start { assignment, lane_index, position: position.next }
            }
            None => Placement::Hold,
        }
    }

    /// Gives a claimed partition to a lane, under a new assignment.
    pub(super) async fn adopt_into_lane(
        &mut self,
        source: &Arc<TopicPartition>,
        claim: Claim,
        position: ClaimedPosition,
        mode: Mode,
    ) -> Option<(AssignmentId, usize)> {
        let assignment = AssignmentId(self.next_assignment);
        self.next_assignment += 1;
        let lane_index = self.least_loaded_lane();
        let lane = self.lanes.get(lane_index)?;
        if lane.send(LaneControl::Adopt { assignment, claim, position: position.next }).await.is_err() {
            tracing::error!(lane_index, "a lane has ended; its partitions are held");
            return None;
        }
        self.metrics.claimed("granted");
        tracing::info!(partition = %source, position = %position.next, epoch = position.epoch.0, lane_index, "claimed");
        let mut board = self.board.lock();
        board.held.remove(source);
        board.owned.insert(
            assignment,
            OwnedPartition {
                source: Arc::clone(source),
                key: claim.key,
                epoch: claim.epoch,
                lane_index,
                position: position.next,
                end: None,
                low: None,
                mode,
                spooled_to: None,
                uncommitted: VecDeque::new(),
            },
        );
        Some((assignment, lane_index))
    }

    fn least_loaded_lane(&self) -> usize {
        let board = self.board.lock();
        let load = |index: usize| board.owned.values().filter(|owned| owned.lane_index == index).count();
        (0..self.lanes.len()).min_by_key(|index| load(*index)).unwrap_or(0)
    }

    /// Declares the gap once it was waited for long enough. Returns the instance whose spool forbids it.
    async fn declare_overdue_gap(
        &mut self,
        source: &Arc<TopicPartition>,
        request: &ClaimRequest,
        low: Offset,
    ) -> Option<Uuid> {
        let now = self.clock.monotonic();
        let is_overdue = self.board.lock().held.get(source).is_some_and(|hold| {
            hold.code == HoldCode::RecordsDeleted
                && now.saturating_duration_since(hold.since) >= self.settings.gap_wait
        });
        let connected_for = now.saturating_duration_since(self.connected_at);
        let may_be_untold = connected_for < RETOLD_AFTER.min(self.settings.gap_wait);
        if !is_overdue || may_be_untold || self.is_spool_unreadable() {
            return None;
        }
        let mut session = self.session.take()?;
        let gap = GapDeclaration {
            key: request.key(),
            low,
            actor: "audit-consumer",
            reason: "the records were deleted from kafka and GAP_WAIT_MS has passed",
            own: self.settings.store.instance(),
        };
        let declared = session.declare_gap(self.settings.store.group(), &gap);
        let in_time = tokio::time::timeout(self.settings.claim_timeout, declared).await;
        match in_time.unwrap_or_else(|_elapsed| Err(StoreError::no_answer("declare gap"))) {
            Ok(answer) => {
                self.session = Some(session);
                match answer {
                    GapAnswer::Declared(range) => {
                        self.metrics.gap_declared();
                        tracing::error!(partition = %source, %range, "a gap was declared: these records are lost to us");
                    }
                    GapAnswer::NotBelow => {}
                    GapAnswer::Held(holder) => return Some(holder.instance),
                }
            }
            Err(error) => tracing::warn!(%error, partition = %source, "the gap can't be declared now"),
        }
        None
    }

    /// Notes why a partition is not read; says so once. That Kafka is away ends no wait for a gap, and makes no other
    /// stream of a topic.
    pub(super) fn hold(&self, source: &Arc<TopicPartition>, code: HoldCode, detail: String) {
        self.metrics.claimed(code.as_str());
        let mut board = self.board.lock();
        let known = board.held.get(source);
        let lasts = |hold: &Hold| {
            matches!(hold.code, HoldCode::RecordsDeleted | HoldCode::TopicRecreated | HoldCode::ForeignGroup)
        };
        if code == HoldCode::KafkaUnavailable && known.is_some_and(lasts) {
            return;
        }
        let known = known.filter(|hold| hold.code == code);
        let since = known.map_or_else(|| self.clock.monotonic(), |hold| hold.since);
        if known.is_none() {
            if code.needs_operator() {
                tracing::error!(partition = %source, code = code.as_str(), detail, "the partition is halted");
            } else {
                tracing::warn!(partition = %source, code = code.as_str(), detail, "the partition is held");
            }
        }
        board.held.insert(Arc::clone(source), Hold { code, detail, since });
    }

    fn claim_failed(&self, error: &StoreError, code: HoldCode) {
        let mut board = self.board.lock();
        board.database = match (&board.database, code) {
            (_, HoldCode::DatabaseMisconfigured) => DatabaseState::Misconfigured { error: error.to_string() },
            (DatabaseState::Down { since, .. }, _) => {
                DatabaseState::Down { error: error.to_string(), since: *since }
            }
            _ => DatabaseState::Down { error: error.to_string(), since: self.clock.monotonic() },
        };
    }

    fn database_up(&self) {
        self.board.lock().database = DatabaseState::Up;
    }
}

/// Reads the registry of sources, then claims: so a lane knows it before it gets a record.
async fn claim_on<S: Store>(
    store: &S,
    session: &mut S::Session,
    requests: &[ClaimRequest],
    sources: &watch::Sender<Arc<FederatedSources>>,
) -> Result<Vec<ClaimAnswer>, StoreError> {
    match session.federated_sources().await {
        Ok(read) => drop(sources.send_replace(Arc::new(read))),
        Err(error) if sources.borrow().is_empty() => return Err(error),
        Err(error) => tracing::debug!(%error, "the registry of sources can't be read before a claim"),
    }
    store.claim(session, requests).await
}
