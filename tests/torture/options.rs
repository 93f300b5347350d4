//! What a run is asked for.

use std::time::Duration;

use anyhow::{Context, bail};

use crate::fault::Fault;
use crate::servers::Ports;

/// Which faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selection {
    faults: Vec<Fault>,
    name: String,
}

impl Selection {
    /// What fits into a few minutes: each kind but those that need time or machinery of their own.
    const SHORT: &'static [Fault] = &[
        Fault::Kill,
        Fault::Stop,
        Fault::CrashPoint,
        Fault::Storm,
        Fault::DatabaseRestart,
        Fault::DatabaseOutage,
        Fault::BitFlip,
        Fault::Failover,
        Fault::BrokerKill,
        Fault::OnlyCopy,
        Fault::Zombie,
        Fault::CutDatabase,
        Fault::CutBroker,
        Fault::ResetDatabase,
        Fault::HalfOpenDatabase,
        Fault::SwallowCommit,
        Fault::SwallowEndTxn,
    ];

    /// `all`, `short`, or names separated by commas.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let faults = match text {
            "all" => Fault::ALL.to_vec(),
            "short" => Self::SHORT.to_vec(),
            "none" => Vec::new(),
            names => names
                .split(',')
                .map(|name| Fault::by_name(name).with_context(|| format!("no fault is named '{name}'")))
                .collect::<anyhow::Result<_>>()?,
        };
        Ok(Self { faults, name: text.to_owned() })
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    pub(crate) fn faults(&self) -> &[Fault] {
        &self.faults
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// A run.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) minutes: f64,
    pub(crate) seed: u64,
    pub(crate) selection: Selection,
    pub(crate) records_per_second: u64,
    /// A switch that takes out what keeps the promise, to see that the rig notices.
    pub(crate) mutant: Option<String>,
    /// How long everything may take to come to rest when the faults are over.
    pub(crate) quiet_patience: Duration,
    pub(crate) ports: Ports,
    /// Data and logs; relative to the crate.
    pub(crate) dir: String,
}

impl Options {
    /// From `--name value` pairs.
    pub(crate) fn parse(args: &[String]) -> anyhow::Result<Self> {
        let port = |name: &str, default: u16| {
            std::env::var(name).map_or(Ok(default), |text| text.parse().context(format!("{name}={text}")))
        };
        let mut options = Self {
            minutes: 2.0,
            seed: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs(),
            selection: Selection::parse("all")?,
            records_per_second: 3_000,
            mutant: None,
            quiet_patience: Duration::from_secs(600),
            dir: std::env::var("TORTURE_DIR").unwrap_or_else(|_| "target/stack-torture".to_owned()),
            ports: Ports {
                kafka: port("TORTURE_KAFKA_PORT", 27_092)?,
                postgres: port("TORTURE_PG_PORT", 25_532)?,
            },
        };
        for pair in args.chunks(2) {
            let [name, value] = pair else { bail!("{pair:?} has no value") };
            // As make passes what was not given.
            if value.is_empty() {
                continue;
            }
            match name.as_str() {
                "--minutes" => options.minutes = value.parse().context("--minutes")?,
                "--seed" => options.seed = value.parse().context("--seed")?,
                "--faults" => options.selection = Selection::parse(value)?,
                "--records-per-second" => {
                    options.records_per_second = value.parse().context("--records-per-second")?;
                }
                "--quiet-seconds" => {
                    options.quiet_patience = Duration::from_secs(value.parse().context("--quiet-seconds")?);
                }
                "--mutant" => options.mutant = Some(value.clone()),
                _ => bail!("no option '{name}'"),
            }
        }
        Ok(options)
    }

    /// What repeats the run.
    pub(crate) fn command(&self) -> String {
        let Self { minutes, seed, selection, .. } = self;
        format!("make torture MINUTES={minutes} SEED={seed} FAULTS={}", selection.name())
    }
}
