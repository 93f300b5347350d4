//! One seed, from the plan to the verdict.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use audit_consumer::observe::{Metrics, PartitionLabel};
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::fleet::Fleet;
use crate::nemesis::Nemesis;
use crate::plan::{Mutant, Plan};
use crate::trace::{Trace, Violation};
use crate::world::{World, lock};

thread_local! {
    /// Metrics decide nothing, and take long to make.
    static METRICS: Arc<Metrics> = Arc::new(Metrics::new(PartitionLabel::Off).expect("metrics"));
}

/// What became of a seed.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    pub(crate) hash: u64,
    pub(crate) step_count: u64,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) record_count: u64,
    pub(crate) simulated: Duration,
    pub(crate) lines: Vec<String>,
}

/// Whether what happens is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recording {
    On,
    Off,
}

pub(crate) fn run(seed: u64, mutant: Option<Mutant>, recording: Recording) -> Outcome {
    let plan = Plan::new(seed, mutant);
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| run_plan(plan, recording)));
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let violation = Violation { property: "nothing panics", detail: text.unwrap_or_default() };
        Outcome {
            violation: Some(violation),
            hash: 0,
            step_count: 0,
            counts: BTreeMap::new(),
            record_count: 0,
            simulated: Duration::ZERO,
            lines: Vec::new(),
        }
    })
}

fn run_plan(plan: Plan, recording: Recording) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("runtime");
    let metrics = METRICS.with(Arc::clone);
    let world = runtime.block_on(async {
        let lines = (recording == Recording::On).then(|| vec![format!("{plan:#?}")]);
        let world = Arc::new(World::new(plan, Trace { lines, ..Trace::default() }));
        let log = (recording == Recording::On).then(|| {
            let layer = Log(Arc::clone(&world));
            tracing::subscriber::set_default(tracing_subscriber::registry().with(layer))
        });
        let fleet = Fleet::new(&world, &metrics);
        Nemesis::new(&world, fleet).run().await;
        drop(log);
        world
    });
    let simulated = runtime.block_on(async { world.elapsed() });
    drop(runtime);
    let kafka = lock(&world.kafka);
    let record_count = kafka.logs.iter().map(|log| log.entries.iter().flatten().count() as u64).sum();
    drop(kafka);
    let trace = std::mem::take(&mut *lock(&world.trace));
    Outcome {
        violation: trace.violation,
        hash: trace.hash,
        step_count: trace.step_count,
        counts: trace.counts,
        record_count,
        simulated,
        lines: trace.lines.unwrap_or_default(),
    }
}

/// Takes what the program logs.
struct Log(Arc<World>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let level = event.metadata().level();
        lock(&self.0.trace).line(self.0.elapsed(), format_args!("      {level} {}", fields.0));
    }
}

struct Fields(String);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let name = field.name();
        let written =
            if name == "message" { write!(self.0, "{value:?}") } else { write!(self.0, " {name}={value:?}") };
        debug_assert!(written.is_ok());
    }
}
