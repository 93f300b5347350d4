//! The servers under measurement: what they are asked, and what they have used.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The columns that `\copy` moves, without those that PostgreSQL fills.
pub(crate) const COLUMNS: &str = "audit_id, correlation_id, timestamp, operation, command, args, actor, status, \
    duration_ms, result_signature, client_app, caller_ip_address, federated_source, query_intent, bypass_llm, \
    trust_score, purview_compatible, metadata, schema_version, tenant_id, extra, stream_id, source_partition, \
    source_offset";

/// Microseconds in one tick of /proc's clocks (`CLK_TCK` is 100 on every Linux that we know).
const TICK_MICROS: u64 = 10_000;

/// What was used since the machine, or the server, was started.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// CPU of the broker, in microseconds.
    pub(crate) broker_us: u64,
    /// CPU of PostgreSQL with all its processes.
    pub(crate) database_us: u64,
    /// CPU of our children that were waited for: the daemon, psql.
    pub(crate) client_us: u64,
    /// WAL, in bytes.
    pub(crate) wal_bytes: u64,
}

impl Usage {
    pub(crate) const fn since(self, earlier: Self) -> Self {
        Self {
            broker_us: self.broker_us.saturating_sub(earlier.broker_us),
            database_us: self.database_us.saturating_sub(earlier.database_us),
            client_us: self.client_us.saturating_sub(earlier.client_us),
            wal_bytes: self.wal_bytes.saturating_sub(earlier.wal_bytes),
        }
    }
}

/// A running stack, and a place for files.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) brokers: String,
    /// Names of this run's topics and groups begin with it.
    pub(crate) run: String,
    pub(crate) dir: PathBuf,
    pub(crate) runtime: Runtime,
    pub(crate) binary: PathBuf,
    stack_dir: PathBuf,
    server_url: String,
    admin_server_url: String,
}

fn setting(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| {
        format!("{name} is not set; run `make bench`, or eval \"$(deploy/local/stack env)\" first")
    })
}

impl Bed {
    pub(crate) fn from_env() -> anyhow::Result<Self> {
        let server_of =
            |url: String| url.rsplit_once('/').map_or(url.clone(), |(server, _)| server.to_owned());
        let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
        let binary = Path::new(&target).join("release/audit-consumer");
        if !binary.try_exists()? {
            bail!("{} is not there; cargo build --release", binary.display());
        }
        let dir = PathBuf::from("target/bench");
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            brokers: setting("KAFKA_BROKERS")?,
            run: format!("bench.{}", std::process::id()),
            dir: dir.canonicalize()?,
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?,
            binary,
            stack_dir: setting("STACK_DIR")?.into(),
            server_url: server_of(setting("DATABASE_URL")?),
            admin_server_url: server_of(setting("STACK_ADMIN_URL")?),
        })
    }

    /// What the figures were measured on.
    pub(crate) fn machine(&self) -> anyhow::Result<Value> {
        let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let postgres = self.psql("postgres", "SHOW server_version")?;
        Ok(json!({
            "cpu": model.map_or("unknown", |(_, name)| name),
            "cores": std::thread::available_parallelism()?.get(),
            "postgresql": postgres,
        }))
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("{}/{database}", self.server_url)
    }

    pub(crate) fn admin_url(&self, database: &str) -> String {
        format!("{}/{database}", self.admin_server_url)
    }

    /// Runs SQL as the superuser; returns what psql prints, unaligned.
    pub(crate) fn psql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let output = Command::new("psql")
            .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &self.admin_url(database), "-c", sql])
            .output()
            .context("run psql")?;
        if !output.status.success() {
            bail!("{sql}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// An empty database with our schema, behind a checkpoint: no case pays for the writes of the one before.
    pub(crate) fn fresh_database(&self, name: &str) -> anyhow::Result<()> {
        self.psql("postgres", &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))?;
        self.psql("postgres", &format!("CREATE DATABASE {name} OWNER audit"))?;
        let migrated = Command::new(&self.binary)
            .arg("migrate")
            .env("DATABASE_URL", self.url(name))
            .stdout(Stdio::null())
            .status()?;
        if !migrated.success() {
            bail!("audit-consumer migrate failed on {name}");
        }
        self.psql("postgres", "CHECKPOINT").map(drop)
    }

    /// Runs `deploy/local/stack`.
    pub(crate) fn stack(&self, args: &[&str]) -> anyhow::Result<()> {
        let status = Command::new("deploy/local/stack")
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if !status.success() {
            bail!("deploy/local/stack {}: {status}", args.join(" "));
        }
        Ok(())
    }

    /// What has been used until now. PostgreSQL must run.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let wal = self.psql("postgres", "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")?;
        Ok(Usage {
            broker_us: self.broker_micros()?,
            database_us: self.database_micros()?,
            client_us: cpu_micros(std::process::id())?.waited_for,
            wal_bytes: wal.parse()?,
        })
    }

    /// The CPU that has been used until now, with that of a daemon that runs; PostgreSQL counts as nothing while it is
    /// away.
    pub(crate) fn cpu(&self, daemon: u32) -> anyhow::Result<Usage> {
        Ok(Usage {
            broker_us: self.broker_micros()?,
            database_us: self.database_micros().unwrap_or_default(),
            client_us: cpu_micros(daemon)?.own,
            wal_bytes: 0,
        })
    }

    fn broker_micros(&self) -> anyhow::Result<u64> {
        let pid = std::fs::read_to_string(self.stack_dir.join("kafka/pid"))?.trim().parse()?;
        Ok(cpu_micros(pid)?.own)
    }

    /// The CPU of the postmaster, its processes and those that have ended.
    fn database_micros(&self) -> anyhow::Result<u64> {
        let version = std::env::var("PG_VERSION").unwrap_or_else(|_| "15".into());
        let file = self.stack_dir.join(format!("postgres-{version}/data/postmaster.pid"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let postmaster: u32 = text.lines().next().unwrap_or_default().parse()?;
        let own = cpu_micros(postmaster)?;
        let mut sum = own.own + own.waited_for;
        for entry in std::fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
            // A process that has ended meanwhile is the postmaster's to count.
            if let Ok(child) = cpu_micros(pid)
                && child.parent == postmaster
            {
                sum += child.own;
            }
        }
        Ok(sum)
    }

    pub(crate) fn admin(&self) -> anyhow::Result<AdminClient<DefaultClientContext>> {
        Ok(ClientConfig::new().set("bootstrap.servers", &self.brokers).create()?)
    }

    pub(crate) fn create_topic(&self, name: &str, partition_count: i32) -> anyhow::Result<()> {
        let topic = NewTopic::new(name, partition_count, TopicReplication::Fixed(1));
        let created = self.runtime.block_on(async {
            self.admin()?.create_topics([&topic], &AdminOptions::new()).await.context("create topic")
        })?;
        match created.first() {
            Some(Err((_, code))) if *code != RDKafkaErrorCode::TopicAlreadyExists => {
                bail!("topic {name}: {code}")
            }
            _ => Ok(()),
        }
    }

    /// Deletes topics; one that is not there is no error.
    pub(crate) fn delete_topics(&self, names: &[&str]) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            self.admin()?.delete_topics(names, &AdminOptions::new()).await.map(drop).context("delete topics")
        })
    }
}

/// A process's CPU, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    parent: u32,
    pub(crate) own: u64,
    waited_for: u64,
}

/// Reads /proc/PID/stat, whose fields are counted from behind the name, which may hold blanks (proc(5)).
pub(crate) fn cpu_micros(pid: u32) -> anyhow::Result<Cpu> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, behind) = text.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = behind.split_whitespace().collect();
    let ticks =
        |index: usize| -> anyhow::Result<u64> { Ok(fields.get(index).context("a short stat")?.parse()?) };
    Ok(Cpu {
        parent: u32::try_from(ticks(1)?)?,
        own: (ticks(11)? + ticks(12)?) * TICK_MICROS,
        waited_for: (ticks(13)? + ticks(14)?) * TICK_MICROS,
    })
}
