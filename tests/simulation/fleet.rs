//! The processes: started, killed, stopped, frozen. Each is one whole pipeline over a spool on its machine's disk.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use audit_consumer::model::batch::BatchLimits;
use audit_consumer::model::breaker::BreakerRule;
use audit_consumer::model::decode::{AssumeUtc, DecodeRules};
use audit_consumer::observe::board::Board;
use audit_consumer::observe::{Clock, Metrics, Traces};
use audit_consumer::pipeline::{Pipeline, PipelineError, PipelineSettings, SpoolSettings};
use audit_consumer::spool::{Spool, SpoolLimits};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use uuid::Uuid;

use crate::disk::Crash;
use crate::machine::MachineDisk;
use crate::oracle;
use crate::plan::{Mutant, Plan};
use crate::source::SimSource;
use crate::store::SimStore;
use crate::world::{Process, World, lock};

/// How long an orchestrator waits before it starts a process again that did not start.
const START_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long stopping may take, and what it may take beyond that.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(20);
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(15);
/// Longer than any run.
const KEEP: Duration = Duration::from_secs(86_400);

/// A process that runs.
struct Running {
    process: Arc<Process>,
    pipeline: JoinHandle<Result<(), PipelineError>>,
    source: Arc<Mutex<Option<AbortHandle>>>,
    stop: watch::Sender<bool>,
    board: Board,
}

/// A process's place.
#[derive(Default)]
struct Place {
    running: Option<Running>,
    life: u32,
    /// When it starts again; `None`: it runs, or somebody is at it.
    start_at: Option<Instant>,
    thaw_at: Option<Instant>,
}

pub(crate) struct Fleet {
    world: Arc<World>,
    metrics: Arc<Metrics>,
    places: Vec<Place>,
    clock: Clock,
}

pub(crate) fn spool_path(index: u8) -> PathBuf {
    PathBuf::from(format!("/spool-{index}"))
}

pub(crate) const fn instance(index: u8) -> Uuid {
    Uuid::from_u128(0x1000 + index as u128)
}

pub(crate) fn spool_limits(plan: &Plan) -> SpoolLimits {
    SpoolLimits {
        segment_len_bytes: plan.segment_len_bytes,
        max_len_bytes: 1 << 30,
        min_free_len_bytes: 0,
        keep: if plan.is_mutant(Mutant::DrainedNotKept) { Duration::ZERO } else { KEEP },
    }
}

impl Fleet {
    pub(crate) fn new(world: &Arc<World>, metrics: &Arc<Metrics>) -> Self {
        let mut places: Vec<Place> = Vec::new();
        for index in 0..world.plan.process_count {
            let after = Duration::from_millis(if index == 0 { 0 } else { world.below(5000) });
            places.push(Place { start_at: Some(Instant::now() + after), ..Place::default() });
        }
        // 2026-01-31T12:00:00Z.
        let clock = Clock::simulated(UNIX_EPOCH + Duration::from_secs(1_769_860_800));
        Self { world: Arc::clone(world), metrics: Arc::clone(metrics), places, clock }
    }

    /// When something is due.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        self.places.iter().flat_map(|place| place.start_at.into_iter().chain(place.thaw_at)).min()
    }

    /// Does what is due.
    pub(crate) fn step(&mut self) {
        let now = Instant::now();
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            if place.thaw_at.is_some_and(|at| at <= now) {
                self.thaw(index as u8);
            }
            if self.places[index].start_at.is_some_and(|at| at <= now) {
                self.start(index as u8);
            }
        }
    }

    /// Whether every process runs, and none stands still.
    pub(crate) fn is_whole(&self) -> bool {
        self.places
            .iter()
            .all(|place| place.running.as_ref().is_some_and(|running| running.process.is_well()))
    }

    /// Whether no spool holds anything, as the processes know it.
    pub(crate) fn spools_are_empty(&self) -> bool {
        let boards =
            self.places.iter().filter_map(|place| place.running.as_ref()).map(|running| &running.board);
        boards.into_iter().all(|board| board.lock().spool.stats.segment_count == 0)
    }

    /// Looks whether a process has ended by itself.
    pub(crate) fn check(&self) {
        for running in self.places.iter().filter_map(|place| place.running.as_ref()) {
            if running.pipeline.is_finished() {
                let detail = format!("process {} has ended", running.process.index);
                self.world.violate("no process ends by itself", detail);
            }
        }
    }

    /// What the processes say of themselves, for people.
    pub(crate) fn say(&self) {
        for running in self.places.iter().filter_map(|place| place.running.as_ref()) {
            let board = running.board.lock();
            let text = format!("{:?} {:?} {:?} {:?}", board.owned, board.held, board.database, board.spool);
            let who = running.process.who();
            lock(&self.world.trace).line(self.world.elapsed(), format_args!("{who} board {text}"));
        }
    }

    fn settings(&self, process: &Arc<Process>, source: Arc<SimSource>) -> PipelineSettings<SimStore> {
        let plan = &self.world.plan;
        PipelineSettings {
            store: SimStore {
                world: Arc::clone(&self.world),
                process: Arc::clone(process),
                group: "group".into(),
                instance: instance(process.index),
            },
            source,
            rules: DecodeRules {
                tenant_id: "t".into(),
                assume_utc: AssumeUtc::No,
                payload_max_len_bytes: 1 << 20,
            },
            limits: BatchLimits { record_count: plan.batch_record_count, len_bytes: 1 << 20 },
            linger: plan.linger,
            lane_count: plan.lane_count,
            verify_interval: Duration::from_secs(15),
            claim_timeout: Duration::from_secs(10),
            statement_timeout: plan.statement_timeout,
            shutdown_deadline: SHUTDOWN_DEADLINE,
            gap_wait: plan.gap_wait,
            breaker: BreakerRule { share_percent: 100, window_count: 1000 },
        }
    }

    fn start(&mut self, index: u8) {
        let place = &mut self.places[usize::from(index)];
        place.start_at = None;
        place.life += 1;
        let process = Arc::new(Process::new(index, place.life));
        let spool = match self.open_spool(&process) {
            Ok(spool) => spool,
            Err(error) => {
                process.is_alive.store(false, Ordering::Relaxed);
                self.world.note_with(process.who(), "start_failed", &[], format_args!("{error}"));
                self.places[usize::from(index)].start_at = Some(Instant::now() + START_AGAIN_AFTER);
                return;
            }
        };
        let task = Arc::default();
        let source = Arc::new(SimSource {
            world: Arc::clone(&self.world),
            process: Arc::clone(&process),
            wants_mirror: Arc::default(),
            task: Arc::clone(&task),
        });
        let (stop, stopped) = watch::channel(false);
        let board = Board::default();
        let pipeline = Pipeline::start(
            self.settings(&process, source),
            board.clone(),
            (Arc::clone(&self.metrics), self.clock.clone(), Traces::default()),
            stopped,
            spool,
        );
        let pipeline = pipeline.expect("the simulated source starts");
        self.world.note(process.who(), "started", &[i64::from(process.life)]);
        lock(&self.world.machines)[usize::from(index)].well_since = Some(Instant::now());
        let pipeline = tokio::spawn(pipeline.run());
        let running = Running { process, pipeline, source: task, stop, board };
        self.places[usize::from(index)].running = Some(running);
    }

    fn open_spool(&self, process: &Arc<Process>) -> Result<Option<SpoolSettings<MachineDisk>>, String> {
        let (world, index) = (&self.world, process.index);
        if !world.plan.has_spool[usize::from(index)] {
            return Ok(None);
        }
        let disk = MachineDisk {
            world: Arc::clone(world),
            process: Arc::clone(process),
            disk: lock(&world.machines)[usize::from(index)].disk.clone(),
        };
        let opened = Spool::open(&spool_path(index), spool_limits(&world.plan), instance(index), disk);
        let (spool, recovery) = opened.map_err(|error| error.to_string())?;
        for (name, count) in [
            ("tail_cut", recovery.cuts.len()),
            ("segment_quarantined", recovery.quarantined.len()),
            ("segment_missing", recovery.missing.len()),
        ] {
            if count > 0 {
                world.note_with(process.who(), name, &[count as i64], format_args!("{recovery:?}"));
            }
        }
        Ok(Some(SpoolSettings { spool, after: world.plan.spool_after }))
    }

    /// The process dies at once, and its machine goes on, or loses its power.
    pub(crate) async fn kill(&mut self, index: u8, crash: Crash, start_after: Duration) {
        let place = &mut self.places[usize::from(index)];
        let Some(Running { process, pipeline, source, .. }) = place.running.take() else { return };
        place.thaw_at = None;
        process.is_alive.store(false, Ordering::Relaxed);
        lock(&self.world.machines)[usize::from(index)].well_since = None;
        pipeline.abort();
        if let Some(source) = lock(&source).take() {
            source.abort();
        }
        self.buried(process).await;
        let disk = lock(&self.world.machines)[usize::from(index)].disk.clone();
        disk.crash(crash);
        if crash != Crash::Everything {
            oracle::acknowledged_is_there(&self.world, index);
        }
        self.places[usize::from(index)].start_at = Some(Instant::now() + start_after);
    }

    /// Waits until nothing of a dead process is left.
    async fn buried(&self, process: Arc<Process>) {
        for _ in 0..1000 {
            if Arc::strong_count(&process) == 1 {
                return;
            }
            tokio::task::yield_now().await;
        }
        self.world.violate("a process that ends leaves no task behind", format!("{process:?}"));
    }

    pub(crate) async fn terminate(&mut self, index: u8, start_after: Duration) {
        let place = &mut self.places[usize::from(index)];
        self.world.note(crate::trace::Who(index), "terminated", &[]);
        place.thaw_at = None;
        let Some(Running { process, mut pipeline, source, stop, .. }) = place.running.take() else { return };
        process.thaw();
        stop.send_replace(true);
        let patience = SHUTDOWN_DEADLINE + SHUTDOWN_MARGIN;
        match tokio::time::timeout(patience, &mut pipeline).await {
            Ok(Ok(Ok(()))) => {}
            Ok(outcome) => {
                self.world.violate("a process that is told to stop stops well", format!("{outcome:?}"));
            }
            Err(_elapsed) => {
                let detail = format!("process {index}: not within {patience:?}");
                self.world.violate("a process that is told to stop stops in time", detail);
            }
        }
        process.is_alive.store(false, Ordering::Relaxed);
        lock(&self.world.machines)[usize::from(index)].well_since = None;
        pipeline.abort();
        if let Some(source) = lock(&source).take() {
            source.abort();
        }
        drop(pipeline);
        self.buried(process).await;
        self.places[usize::from(index)].start_at = Some(Instant::now() + start_after);
    }

    pub(crate) fn freeze(&mut self, index: u8, lasts: Duration) {
        let place = &mut self.places[usize::from(index)];
        if let Some(running) = &place.running {
            running.process.freeze();
            lock(&self.world.machines)[usize::from(index)].well_since = None;
            place.thaw_at = Some(Instant::now() + lasts);
        }
    }

    pub(crate) fn thaw(&mut self, index: u8) {
        let place = &mut self.places[usize::from(index)];
        place.thaw_at = None;
        if let Some(running) = &place.running {
            running.process.thaw();
            lock(&self.world.machines)[usize::from(index)].well_since = Some(Instant::now());
            self.world.note(running.process.who(), "thawed", &[]);
        }
    }
}
