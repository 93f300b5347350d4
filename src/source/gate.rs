//! The gate: a chunk passes once its topic's id was seen unchanged after the chunk was read.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, ConsumerContext};

use crate::native::{TopicId, TopicIdRequest};

/// How long the cluster may take to say the ids.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The ids are asked for at most this often while chunks wait …
const BUSY_INTERVAL: Duration = Duration::from_millis(10);
/// … and this often while none does.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How many chunks wait at the gate at most, before reading stops. The question waits its turn behind the fetches of the
/// same connection, some 40 ms while there is a backlog: so this many chunks (of 128 KiB) pass in that time at most.
pub(super) const GATE_COUNT: usize = 64;

/// Counts what came to the gate; a chunk with a ticket below an answer's has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ticket(u64);

/// The gate, over things that wait.
#[derive(Debug)]
pub(super) struct Gate<T> {
    waiting: VecDeque<(Ticket, T)>,
    next_ticket: u64,
    request: Option<(TopicIdRequest, Ticket)>,
    asked_at: Option<Instant>,
    is_urgent: bool,
}

impl<T> Gate<T> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new(), next_ticket: 0, request: None, asked_at: None, is_urgent: false }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether an answer is awaited, or should be asked for as something waits.
    pub(super) fn is_busy(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Puts `item` behind those that wait.
    pub(super) fn push(&mut self, item: T) {
        self.waiting.push_back((Ticket(self.next_ticket), item));
        self.next_ticket += 1;
    }

    /// Whether something waits of which `is_meant` holds.
    pub(super) fn holds(&self, is_meant: impl Fn(&T) -> bool) -> bool {
        self.waiting.iter().any(|(_, item)| is_meant(item))
    }

    /// Drops what waits, where `keep` says no.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.waiting.retain(|(_, item)| keep(item));
    }

    /// Asks for the ids at the next turn, whatever the interval: something looked wrong.
    pub(super) fn hurry(&mut self) {
        self.is_urgent = true;
    }

    /// Asks for the ids of `topics` where it is time to.
    pub(super) fn ask<C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        topics: &[&str],
        now: Instant,
    ) {
        let interval = if self.waiting.is_empty() { IDLE_INTERVAL } else { BUSY_INTERVAL };
        let is_early = self.asked_at.is_some_and(|at| now.saturating_duration_since(at) < interval);
        if topics.is_empty() || self.request.is_some() || (is_early && !self.is_urgent) {
            return;
        }
        self.is_urgent = false;
        self.asked_at = Some(now);
        // Asked now, so the answer speaks for all that was read before.
        let covers = Ticket(self.next_ticket);
        self.request =
            TopicIdRequest::send(consumer, topics, REQUEST_TIMEOUT).map(|request| (request, covers));
    }

    /// The answer to the question under way, if it is there: the ids, and what they let pass once the caller
    /// has dropped, by [`Self::retain`], what they do not confirm.
    pub(super) fn answer(&mut self, wait: Duration) -> Option<Result<Answer, String>> {
        let (request, covers) = self.request.as_ref()?;
        let answer = request.poll(wait)?;
        let passing = Passing(*covers);
        self.request = None;
        Some(answer.map(|ids| (ids, passing)))
    }

    /// Takes the next item that `passing` lets through and `is_confirmed` agrees to. Items of one partition are
    /// confirmed together, so they keep their order.
    pub(super) fn pass(&mut self, passing: &Passing, is_confirmed: impl Fn(&T) -> bool) -> Option<T> {
        let index =
            self.waiting.iter().position(|(ticket, item)| *ticket < passing.0 && is_confirmed(item))?;
        self.waiting.remove(index).map(|(_, item)| item)
    }
}

/// The ids that the cluster told, by topic, and what they let pass.
pub(super) type Answer = (Vec<(String, TopicId)>, Passing);

/// What an answer lets pass.
#[derive(Debug)]
pub(super) struct Passing(Ticket);
