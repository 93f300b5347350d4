//! Explores a model whole, breadth first, and keeps its graph: so that a state from which the goal can't be reached
//! once faults stop is found, which `eventually` of stateright can't do (it misses cycles).
//!
//! What is kept of a state is its fingerprint, its parent and its edges without faults, some 60 bytes; whole states
//! only while they wait. Fingerprints are of 64 bits: that two of five million states share one has odds of 1 to a
//! million.

use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

use stateright::{Expectation, Model, Property};

/// What happens on a step beside the next state: counted by name.
#[derive(Debug, Default)]
pub struct Notes(pub Vec<&'static str>);

impl Notes {
    pub fn note(&mut self, what: &'static str) {
        self.0.push(what);
    }
}

/// A model of one of our protocols. [`Model::next_state`] is the canonical form of [`Protocol::step`].
pub trait Protocol: Model<State: Clone + Eq + Hash + Debug, Action: Clone + Debug + PartialEq> {
    /// The state after `action`, as it is; `None`: nothing changes.
    fn step(&self, state: &Self::State, action: &Self::Action, notes: &mut Notes) -> Option<Self::State>;
    /// One state for all that behave the same.
    fn canonical(&self, state: Self::State) -> Self::State;
    /// Whether the world does this, and may stop doing it.
    fn is_fault(&self, action: &Self::Action) -> bool;
    /// What all of it is for.
    fn is_goal(&self, state: &Self::State) -> bool;
    /// The code that `action` stands for.
    fn code_of(&self, action: &Self::Action) -> &'static str;
    /// What a step must show at least once; else the model explores less than it says.
    fn expected_notes(&self) -> &'static [&'static str];
}

/// A way to a state that must not be.
#[derive(Debug)]
pub struct Finding {
    /// Which property does not hold.
    pub property: &'static str,
    /// The shortest way there, one line a step.
    pub path: Vec<String>,
    /// The state at its end.
    pub state: String,
}

/// The name of what the graph itself finds.
pub const STUCK: &str = "from every state the goal can be reached once faults stop";

/// What an exploration saw.
#[derive(Debug)]
pub struct Seen {
    pub state_count: u64,
    pub unique_count: usize,
    pub depth: u32,
    pub goal_count: usize,
    pub elapsed: Duration,
    pub notes: HashMap<&'static str, u64>,
    pub finding: Option<Finding>,
    /// Whether all was explored: not when a finding or a limit ended it.
    pub is_whole: bool,
}

#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("fingerprints are written whole")
    }

    fn write_u64(&mut self, fingerprint: u64) {
        self.0 = fingerprint;
    }
}

fn fingerprint(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

struct Graph<'a, M: Protocol> {
    model: &'a M,
    properties: Vec<Property<M>>,
    ids: HashMap<u64, u32, BuildHasherDefault<AsItIs>>,
    /// By id: the parent (of an initial state itself) and the fingerprint.
    parents: Vec<(u32, u64)>,
    is_goal: Vec<bool>,
    /// Edges without a fault, from and to.
    edges: Vec<(u32, u32)>,
    waiting: VecDeque<(u32, u32, M::State)>,
    seen: Seen,
}

/// Explores `model`, to the first finding or the end; more than `limit` states are an error of the test.
pub fn explore<M: Protocol>(model: &M, limit: usize) -> Seen {
    let started_at = Instant::now();
    let mut graph = Graph {
        model,
        properties: model.properties(),
        ids: HashMap::default(),
        parents: Vec::new(),
        is_goal: Vec::new(),
        edges: Vec::new(),
        waiting: VecDeque::new(),
        seen: Seen {
            state_count: 0,
            unique_count: 0,
            depth: 0,
            goal_count: 0,
            elapsed: Duration::ZERO,
            notes: HashMap::new(),
            finding: None,
            is_whole: false,
        },
    };
    graph.walk(limit);
    if graph.seen.is_whole {
        graph.look_for_stuck();
    }
    let mut seen = graph.seen;
    seen.unique_count = graph.parents.len();
    seen.elapsed = started_at.elapsed();
    seen
}

impl<M: Protocol> Graph<'_, M> {
    fn walk(&mut self, limit: usize) {
        for state in self.model.init_states() {
            self.add(None, 1, state);
        }
        let (mut actions, mut notes) = (Vec::new(), Notes::default());
        while let Some((id, depth, state)) = self.waiting.pop_front() {
            self.seen.depth = depth;
            actions.clear();
            self.model.actions(&state, &mut actions);
            for action in &actions {
                notes.0.clear();
                let next = self.model.step(&state, action, &mut notes);
                for note in &notes.0 {
                    *self.seen.notes.entry(note).or_default() += 1;
                }
                let Some(next) = next.map(|next| self.model.canonical(next)) else { continue };
                let to = self.add(Some(id), depth + 1, next);
                if !self.model.is_fault(action) && to != id {
                    self.edges.push((id, to));
                }
                if self.seen.finding.is_some() {
                    return;
                }
            }
            if self.parents.len() > limit {
                return;
            }
        }
        self.seen.is_whole = true;
    }

    fn add(&mut self, parent: Option<u32>, depth: u32, state: M::State) -> u32 {
        self.seen.state_count += 1;
        let print = fingerprint(&state);
        let next_id = u32::try_from(self.parents.len()).expect("four billion states");
        match self.ids.entry(print) {
            Entry::Occupied(known) => return *known.get(),
            Entry::Vacant(place) => place.insert(next_id),
        };
        self.parents.push((parent.unwrap_or(next_id), print));
        let is_goal = self.model.is_goal(&state);
        self.is_goal.push(is_goal);
        self.seen.goal_count += usize::from(is_goal);
        let broken = self
            .properties
            .iter()
            .find(|own| own.expectation == Expectation::Always && !(own.condition)(self.model, &state));
        if let Some(property) = broken.map(|own| own.name) {
            self.seen.finding = Some(self.finding(property, next_id));
        }
        self.waiting.push_back((next_id, depth, state));
        next_id
    }

    /// Goes back from the goals over edges without faults; whoever is not met is stuck.
    fn look_for_stuck(&mut self) {
        let count = self.parents.len();
        // The edges by their targets: where those of each begin, and their sources.
        let mut begin = vec![0u32; count + 1];
        for (_, to) in &self.edges {
            begin[*to as usize + 1] += 1;
        }
        for index in 0..count {
            begin[index + 1] += begin[index];
        }
        let (mut sources, mut next) = (vec![0u32; self.edges.len()], begin.clone());
        for (from, to) in std::mem::take(&mut self.edges) {
            sources[next[to as usize] as usize] = from;
            next[to as usize] += 1;
        }
        let mut is_met = self.is_goal.clone();
        let mut stack: Vec<usize> = (0..count).filter(|id| is_met[*id]).collect();
        while let Some(id) = stack.pop() {
            for source in &sources[begin[id] as usize..begin[id + 1] as usize] {
                if !std::mem::replace(&mut is_met[*source as usize], true) {
                    stack.push(*source as usize);
                }
            }
        }
        if let Some(stuck) = is_met.iter().position(|is_met| !is_met) {
            let stuck = u32::try_from(stuck).expect("an id");
            self.seen.finding = Some(self.finding(STUCK, stuck));
        }
    }

    /// The shortest way to a state, told with states as they are, not in canonical form: so that an instance keeps
    /// its name on the way.
    fn finding(&self, property: &'static str, mut id: u32) -> Finding {
        let mut prints = vec![self.parents[id as usize].1];
        while self.parents[id as usize].0 != id {
            id = self.parents[id as usize].0;
            prints.push(self.parents[id as usize].1);
        }
        prints.reverse();
        let print_of = |state: &M::State| fingerprint(&self.model.canonical(state.clone()));
        let mut state = self
            .model
            .init_states()
            .into_iter()
            .find(|state| print_of(state) == prints[0])
            .expect("a way begins at the beginning");
        let mut path = Vec::new();
        for print in &prints[1..] {
            let mut actions = Vec::new();
            self.model.actions(&state, &mut actions);
            let (action, next) = actions
                .into_iter()
                .find_map(|action| {
                    let next = self.model.step(&state, &action, &mut Notes::default())?;
                    (print_of(&next) == *print).then_some((action, next))
                })
                .expect("each state follows its parent, in whatever form");
            let fault = if self.model.is_fault(&action) { "FAULT " } else { "" };
            path.push(format!("{fault}{action:?}  [{}]", self.model.code_of(&action)));
            state = next;
        }
        Finding { property, path, state: format!("{state:?}") }
    }
}
