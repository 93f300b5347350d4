//! Builds the daemon from its configuration, starts it, and stops it on SIGTERM or SIGINT.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use uuid::Uuid;

use crate::config::{Config, HttpConfig, SpoolConfig};
use crate::http::{About, Http, Listeners, MainListener, TlsFiles, TlsListener};
use crate::model::batch::BatchLimits;
use crate::model::decode::{AssumeUtc, DecodeRules};
use crate::observe::board::Board;
use crate::observe::{Clock, Metrics, PartitionLabel, RecentLines, Traces};
use crate::outlet::OutletSettings;
use crate::pipeline::{Pipeline, PipelineSettings, SpoolSettings};
use crate::projector::{Home, HomeError, Projector, ProjectorSettings};
use crate::relay::{Relay, RelaySettings};
use crate::source::{OffsetReset, SourceSettings};
use crate::spool::disk::LocalDisk;
use crate::spool::{self, QuarantinedWhen, Spool, SpoolLimits};
use crate::store::{ExcessRights, SessionPurpose, StoreError, StoreSettings};

/// How long the last lines of day files may take when the process ends.
const PROJECTOR_PATIENCE: Duration = Duration::from_secs(2);

/// How long PostgreSQL may take to tell of our role's rights; the start waits for it where they are required to be few.
const RIGHTS_TIMEOUT: Duration = Duration::from_secs(5);

/// When PostgreSQL is asked again about our role's rights, while it can't be.
const RIGHTS_RETRY: Duration = Duration::from_secs(30);

/// PostgreSQL as `config` says, under an instance id of this process.
#[must_use]
pub fn store_settings(config: &Config) -> StoreSettings {
    let timeouts = (config.database.statement_timeout, config.database.lock_timeout);
    let mut store =
        StoreSettings::new(config.database.target.clone(), &config.kafka.group, Uuid::new_v4(), timeouts);
    store.requires_least_privilege = config.database.requires_least_privilege;
    store
}

async fn excess_rights(store: &StoreSettings) -> Result<Option<ExcessRights>, StoreError> {
    let mut session = store.connect(SessionPurpose::Operator).await?;
    let asked = tokio::time::timeout(RIGHTS_TIMEOUT, session.excess_rights()).await;
    let excess = asked.map_err(|_elapsed| StoreError::no_answer("look at rights"))??;
    session.close().await;
    Ok(excess)
}

/// Refuses to start as a role that may change what is append only, where least privilege is required; otherwise warns,
/// as soon as PostgreSQL can be asked. While it is away nothing is refused here: each session is, when it is opened.
async fn look_at_rights(store: &StoreSettings) -> Result<(), ExcessRights> {
    if store.requires_least_privilege {
        return match excess_rights(store).await {
            Ok(Some(excess)) => Err(excess),
            Ok(None) | Err(_) => Ok(()),
        };
    }
    let store = store.clone();
    drop(tokio::spawn(async move {
        loop {
            match excess_rights(&store).await {
                Ok(Some(excess)) => {
                    tracing::warn!(%excess, "this role has more rights than it needs; REQUIRE_LEAST_PRIVILEGE=true refuses it");
                    return;
                }
                Ok(None) => return,
                // Told by those who have work there.
                Err(_) => tokio::time::sleep(RIGHTS_RETRY).await,
            }
        }
    }));
    Ok(())
}

/// Kafka for dead letters, as `config` says.
#[must_use]
pub fn outlet_settings(config: &Config) -> OutletSettings {
    OutletSettings::new(config.kafka.connection_properties(), &config.kafka.group)
}

/// How events are decoded, as `config` says.
#[must_use]
pub fn decode_rules(config: &Config) -> DecodeRules {
    DecodeRules {
        tenant_id: config.event.tenant_id.clone(),
        assume_utc: if config.event.assume_utc { AssumeUtc::Yes } else { AssumeUtc::No },
        payload_max_len_bytes: config.event.payload_max_len_bytes,
    }
}

/// When a batch closes, as `config` says.
#[must_use]
pub const fn batch_limits(config: &Config) -> BatchLimits {
    BatchLimits { record_count: config.batch.record_count, len_bytes: config.batch.len_bytes }
}

/// What the spool may take, as `config` says; where it is off: nothing.
#[must_use]
pub fn spool_limits(config: Option<&SpoolConfig>) -> SpoolLimits {
    let len_bytes = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
    SpoolLimits {
        segment_len_bytes: config
            .map_or(spool::SEGMENT_LEN_BYTES, |config| len_bytes(config.segment_len_bytes)),
        max_len_bytes: config.map_or(0, |config| len_bytes(config.max_len_bytes)),
        min_free_len_bytes: config.map_or(0, |config| len_bytes(config.min_free_len_bytes)),
        keep: config.map_or(Duration::MAX, |config| config.keep),
    }
}

fn pipeline_settings(config: &Config, store: StoreSettings) -> PipelineSettings {
    PipelineSettings {
        store,
        source: Arc::new(SourceSettings {
            properties: config.kafka.consumer_properties(),
            subscription: config.kafka.topics.subscription(),
            reset: if config.kafka.starts_at_end { OffsetReset::Latest } else { OffsetReset::Earliest },
            wants_mirror: Arc::default(),
        }),
        rules: decode_rules(config),
        limits: batch_limits(config),
        linger: config.batch.linger,
        lane_count: config.batch.lane_count,
        verify_interval: config.database.verify_interval,
        claim_timeout: config.database.claim_timeout,
        statement_timeout: config.database.statement_timeout,
        shutdown_deadline: config.process.shutdown_deadline,
        gap_wait: config.database.gap_wait,
        breaker: config.letters.breaker,
    }
}

/// Opens the spool, if there is to be one, and says what was found in it.
fn open_spool(config: &SpoolConfig, instance: Uuid) -> anyhow::Result<Spool> {
    let limits = spool_limits(Some(config));
    let (spool, recovery) = Spool::open(&config.dir, limits, instance, LocalDisk).with_context(|| {
        format!(
            "open the spool; make SPOOL_DIR={} a directory that this process alone may write to, name another, or \
             set SPOOL_DIR=off",
            config.dir.display()
        )
    })?;
    for cut in &recovery.cuts {
        tracing::warn!(segment = cut.segment.0, at = cut.at, len_bytes = cut.len_bytes, file = ?cut.file, damage = ?cut.damage, "what stands behind the last whole batch of a segment of the spool is cut off");
    }
    for quarantined in &recovery.quarantined {
        if quarantined.when == QuarantinedWhen::SetAside {
            tracing::warn!(file = %quarantined.file.display(), "records that were set aside are in the spool; `spool drain --fill-gap --reason WHY` stores those of a gap that is open");
            continue;
        }
        tracing::error!(
            ?quarantined,
            "a file of the spool is in quarantine; what it held is read from kafka, and where kafka has deleted it \
             `spool drain --fill-gap --reason WHY` stores what is whole"
        );
    }
    for missing in &recovery.missing {
        tracing::error!(?missing, "a segment of the spool is missing; what it held is read from kafka");
    }
    let stats = spool.stats();
    if stats.record_count > 0 {
        tracing::info!(
            record_count = stats.record_count,
            segment_count = stats.segment_count,
            "the spool holds records"
        );
    }
    Ok(spool)
}

/// Takes `LOG_DIR` for day files; `None`: they are off, or it can't be used now, which does not stop ingestion.
fn open_home(config: &Config) -> anyhow::Result<Option<Home>> {
    if config.day_files.sinks.is_empty() {
        return Ok(None);
    }
    match Home::open(&config.process.log_dir) {
        Ok(home) => Ok(Some(home)),
        Err(error @ HomeError::Held { .. }) => Err(error.into()),
        // The projector says it, and tries again.
        Err(HomeError::Foreign { .. } | HomeError::Failed { .. }) => Ok(None),
    }
}

/// The projector at work, which ends after everything else.
struct ProjectorTask {
    task: tokio::task::JoinHandle<()>,
    end: watch::Sender<bool>,
}

impl ProjectorTask {
    fn start(
        config: &Config,
        store: StoreSettings,
        home: Option<Home>,
        (board, metrics, clock): (Board, Arc<Metrics>, Clock),
    ) -> Self {
        let settings = ProjectorSettings {
            store,
            log_dir: config.process.log_dir.clone(),
            sinks: config.day_files.sinks.clone(),
            rules: config.projection.clone(),
            file_max_len_bytes: u64::try_from(config.day_files.max_len_bytes).unwrap_or(u64::MAX),
            lag_max: config.day_files.lag_max,
        };
        let (end, ends) = watch::channel(false);
        let projector = Projector::new(settings, board, (metrics, clock));
        Self { task: tokio::spawn(projector.run(home, ends)), end }
    }

    /// What was committed last goes to the day files, if there is time; the rest is left to the next start.
    async fn end(mut self) {
        self.end.send_replace(true);
        if tokio::time::timeout(PROJECTOR_PATIENCE, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// The spool that `config` asks for, open, under an instance id that goes to `store`.
fn start_spool(
    config: &Config,
    store: &mut StoreSettings,
    board: &Board,
) -> anyhow::Result<Option<SpoolSettings>> {
    let Some(settings) = &config.spool else { return Ok(None) };
    store.instance = spool::instance_of(&settings.dir).with_context(|| {
        format!(
            "use SPOOL_DIR={}; make it writable, name another, or set SPOOL_DIR=off",
            settings.dir.display()
        )
    })?;
    let spool = open_spool(settings, store.instance)?;
    // Now under its lock: two first starts at once may both have written an id.
    if spool::instance_of(&settings.dir)? != store.instance {
        anyhow::bail!(
            "another process began in SPOOL_DIR={} at the same time; start again",
            settings.dir.display()
        );
    }
    let mut board = board.lock();
    board.spool.is_on = true;
    board.spool.stats = spool.stats();
    board.spool.max_len_bytes = u64::try_from(settings.max_len_bytes).unwrap_or(u64::MAX);
    Ok(Some(SpoolSettings { spool, after: settings.after }))
}

/// Opens the ports of the HTTP side.
async fn listen(config: &HttpConfig) -> anyhow::Result<Listeners> {
    let bind = async |variable: &str, address: SocketAddr| {
        TcpListener::bind(address).await.with_context(|| {
            format!("listen on {variable}={address}; choose another address or stop what uses it")
        })
    };
    let main = bind("HTTP_ADDRESS", config.address).await?;
    let main = match config.tls.clone() {
        Some((certificate, key)) => {
            MainListener::Tls(TlsListener::start(main, TlsFiles { certificate, key })?)
        }
        None => MainListener::Plain(main),
    };
    let probes = match config.probe_address {
        Some(address) => Some(bind("HTTP_PROBE_ADDRESS", address).await?),
        None => None,
    };
    Ok(Listeners { main, probes })
}

/// Runs the daemon until it is told to stop; `recent` is what its status page shows of the log.
///
/// # Errors
/// When it can't start (an address in use, settings that librdkafka refuses) or Kafka's consumer fails for good.
pub async fn run(config: &Config, recent: RecentLines) -> anyhow::Result<()> {
    let clock = Clock::default();
    let board = Board::default();
    let label = if config.process.has_partition_label { PartitionLabel::On } else { PartitionLabel::Off };
    let metrics = Arc::new(Metrics::new(label).context("make the metrics")?);
    let traces = Traces::from_environment(metrics.spans.clone()).unwrap_or_else(|error| {
        tracing::warn!(%error, "going on without traces");
        Traces::default()
    });
    let (stop, stopped) = watch::channel(false);
    let address = config.process.http.address;
    let listeners = listen(&config.process.http).await?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    // A file that may not grow (RLIMIT_FSIZE) is an error of the write, which the spool knows, and not our end.
    let _file_size = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).context("listen for SIGXFSZ")?;
    let mut store = store_settings(config);
    look_at_rights(&store).await.context("start; REQUIRE_LEAST_PRIVILEGE=true")?;
    // Before the spool, whose directory is inside by default.
    let home = open_home(config)?;
    let spool = start_spool(config, &mut store, &board)?;
    let token = config.process.http.token.clone();
    let about = About { instance: store.instance, group: config.kafka.group.clone(), recent, token };
    let relay = RelaySettings {
        store: store.clone(),
        outlet: outlet_settings(config),
        format: config.letters.format,
    };
    let settings = pipeline_settings(config, store.clone());
    let pipeline = Pipeline::start(
        settings,
        board.clone(),
        (Arc::clone(&metrics), clock.clone(), traces.clone()),
        stopped.clone(),
        spool,
    )?;
    let out = (Arc::clone(&metrics), clock.clone(), traces.clone());
    let relay = Relay::new(relay, board.clone(), out);
    let mut relay = tokio::spawn(relay.run(stopped.clone()));
    let projector =
        ProjectorTask::start(config, store, home, (board.clone(), Arc::clone(&metrics), clock.clone()));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), group = config.kafka.group, %address, "started");
    let http = tokio::spawn(Http::new(board, (metrics, clock), about).serve(listeners, stopped));
    let pipeline = pipeline.run();
    tokio::pin!(pipeline);
    let outcome = tokio::select! {
        outcome = &mut pipeline => outcome,
        _ = &mut relay => {
            tracing::error!("the relay ended; the process must be started again");
            let stopped = stop_and_wait(&stop, pipeline).await;
            tokio::task::block_in_place(|| traces.shutdown());
            stopped?;
            anyhow::bail!("the relay ended");
        }
        _ = terminate.recv() => stop_and_wait(&stop, pipeline).await,
        _ = interrupt.recv() => stop_and_wait(&stop, pipeline).await,
    };
    // Whether the pipeline ended by itself or was told to, the HTTP side stops now.
    stop.send_replace(true);
    http.abort();
    // What it has under way is left to the next leader.
    relay.abort();
    projector.end().await;
    tokio::task::block_in_place(|| traces.shutdown());
    Ok(outcome?)
}

async fn stop_and_wait<F: Future>(stop: &watch::Sender<bool>, pipeline: F) -> F::Output {
    stop.send_replace(true);
    pipeline.await
}
