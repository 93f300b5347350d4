//! The servers of a run: a broker with two listeners, one of them behind the proxy, and a PostgreSQL with a replica that
//! streams through the proxy.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::proxy::{Ending, Link, Wire};

/// Ports of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    /// The broker; then its controller, its listener for the proxy, and the proxy.
    pub(crate) kafka: u16,
    /// The two nodes of PostgreSQL, the proxy for the replica, and one for each daemon.
    pub(crate) postgres: u16,
}

/// The daemon whose spool is on a small disk of its own, where the disk is to become full.
pub(crate) const SMALL_DISK: usize = 2;
const SMALL_DISK_LEN_BYTES: u64 = 3 << 20;

/// How long a replica may take to follow after it was made or let go.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(60);

/// Since when how many of the servers are down, and for how long some of them were.
#[derive(Debug, Default)]
pub(crate) struct Downtime(Mutex<(u32, Option<Instant>, Duration)>);

impl Downtime {
    fn lock(&self) -> MutexGuard<'_, (u32, Option<Instant>, Duration)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) {
        let mut state = self.lock();
        state.0 += 1;
        state.1.get_or_insert_with(Instant::now);
    }

    fn end(&self) {
        let mut state = self.lock();
        state.0 = state.0.saturating_sub(1);
        if state.0 == 0
            && let Some(since) = state.1.take()
        {
            state.2 += since.elapsed();
        }
    }

    /// How long at least one server was down.
    pub(crate) fn total(&self) -> Duration {
        let state = self.lock();
        state.2 + state.1.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// The servers.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) dir: PathBuf,
    pub(crate) ports: Ports,
    /// Which node is the primary.
    primary: Mutex<usize>,
    /// The ways of the daemons to PostgreSQL, one each.
    pub(crate) database_links: Vec<Link>,
    pub(crate) broker_link: Link,
    replica_link: Link,
    pub(crate) downtime: Downtime,
}

/// What a failover did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Failover {
    /// By how many offsets the positions went back.
    pub(crate) lost_count: i64,
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Servers {
    /// Starts everything afresh; nothing of an earlier run is left.
    pub(crate) fn start(dir: &Path, ports: Ports, daemon_count: usize) -> anyhow::Result<Self> {
        let link = |wire, port, target| {
            Link::new(wire, port, target).with_context(|| format!("listen on port {port}"))
        };
        let database_links = (0..u16::try_from(daemon_count)?)
            .map(|index| link(Wire::Postgres, ports.postgres + 3 + index, ports.postgres))
            .collect::<anyhow::Result<Vec<Link>>>()?;
        let servers = Self {
            dir: dir.to_owned(),
            ports,
            primary: Mutex::new(0),
            database_links,
            broker_link: link(Wire::Kafka, ports.kafka + 3, ports.kafka + 2)?,
            replica_link: link(Wire::Postgres, ports.postgres + 2, ports.postgres)?,
            downtime: Downtime::default(),
        };
        servers.stack(&["install", "tests"])?;
        servers.stop();
        servers.unmount();
        if dir.try_exists()? {
            std::fs::remove_dir_all(dir)?;
        }
        std::fs::create_dir_all(dir)?;
        std::fs::copy(env!("CARGO_BIN_EXE_audit-consumer"), servers.binary())?;
        servers.stack(&["start", "kafka"])?;
        servers.node(&["make"], 0, &[&ports.postgres.to_string()])?;
        servers.make_replica(1)?;
        Ok(servers)
    }

    /// The program under test: a copy, so that a build during the run changes nothing.
    pub(crate) fn binary(&self) -> PathBuf {
        self.dir.join("audit-consumer")
    }

    /// Stops everything; the data stay.
    pub(crate) fn stop(&self) {
        for index in [0, 1] {
            drop(self.node(&["stop"], index, &["immediate"]));
        }
        drop(self.stack(&["stop", "kafka"]));
    }

    /// Puts the spool of [`SMALL_DISK`] on a disk of its own; fails unless we are root.
    pub(crate) fn mount_small_disk(&self) -> anyhow::Result<()> {
        let spool = self.small_disk();
        std::fs::create_dir_all(&spool)?;
        let size = format!("size={SMALL_DISK_LEN_BYTES},mode=0700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(spool)).map(drop)
    }

    /// Takes that disk away, if it is there.
    pub(crate) fn unmount(&self) {
        drop(Command::new("umount").arg(self.small_disk()).stderr(Stdio::null()).status());
    }

    fn small_disk(&self) -> PathBuf {
        self.dir.join(format!("daemon-{SMALL_DISK}/spool"))
    }

    /// The broker, past the proxy.
    pub(crate) fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.kafka)
    }

    /// The broker, for daemons.
    pub(crate) fn proxied_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.kafka + 3)
    }

    /// The database for a daemon, through its proxy.
    pub(crate) fn proxied_url(&self, daemon: usize) -> String {
        let port = usize::from(self.ports.postgres) + 3 + daemon;
        format!(
            "postgresql://audit:audit@127.0.0.1:{port}/forge?sslmode=disable&options=-c%20torture.daemon%3D{daemon}"
        )
    }

    /// The database for the role of the daemons, past the proxy.
    pub(crate) fn url(&self) -> String {
        format!("postgresql://audit:audit@127.0.0.1:{}/forge?sslmode=disable", self.port(*self.lock()))
    }

    fn port(&self, node: usize) -> u16 {
        self.ports.postgres + u16::try_from(node).unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.primary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `deploy/local/stack`, with the run's directory and ports.
    pub(crate) fn stack(&self, args: &[&str]) -> anyhow::Result<String> {
        let Ports { kafka, postgres } = self.ports;
        let (inner, outer) = (kafka + 2, kafka + 3);
        let properties = [
            format!(
                "listeners=PLAINTEXT://127.0.0.1:{kafka},PROXIED://127.0.0.1:{inner},CONTROLLER://127.0.0.1:{}",
                kafka + 1
            ),
            format!("advertised.listeners=PLAINTEXT://127.0.0.1:{kafka},PROXIED://127.0.0.1:{outer}"),
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT"
                .into(),
            "inter.broker.listener.name=PLAINTEXT".into(),
        ];
        let mut command = Command::new(root().join("deploy/local/stack"));
        command.args(args).env("STACK_DIR", &self.dir).env("KAFKA_PORT", kafka.to_string());
        command.env("KAFKA_CONTROLLER_PORT", (kafka + 1).to_string()).env("PG_PORT", postgres.to_string());
        run(command.env("KAFKA_EXTRA", properties.join(" ")))
    }

    fn node(&self, command: &[&str], node: usize, args: &[&str]) -> anyhow::Result<String> {
        let data = self.dir.join(format!("node-{node}/data"));
        run(Command::new(root().join("tests/torture/postgres")).args(command).arg(data).args(args))
    }

    /// Makes `node` a replica of the other one, and waits until it follows.
    fn make_replica(&self, node: usize) -> anyhow::Result<()> {
        let primary = self.port(1 - node);
        self.replica_link.lead_to(primary);
        self.replica_link.sever(false);
        let ports = [self.port(node), primary, self.ports.postgres + 2].map(|port| port.to_string());
        self.node(&["replica"], node, &[&ports[0], &ports[1], &ports[2]])?;
        self.wait_until_followed(1 - node)
    }

    fn wait_until_followed(&self, primary: usize) -> anyhow::Result<()> {
        let follows = "SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming'";
        let deadline = Instant::now() + FOLLOW_PATIENCE;
        while self.ask(primary, "postgres", follows).is_ok_and(|answer| answer != "t") {
            if Instant::now() > deadline {
                bail!("the replica does not follow within {FOLLOW_PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn ask(&self, node: usize, database: &str, sql: &str) -> anyhow::Result<String> {
        let url = format!(
            "postgresql://postgres:postgres@127.0.0.1:{}/{database}?connect_timeout=5",
            self.port(node)
        );
        run(Command::new("psql").args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", sql]))
    }

    /// Runs SQL as the superuser on the primary.
    pub(crate) fn sql(&self, sql: &str) -> anyhow::Result<String> {
        let node = *self.lock();
        self.ask(node, "forge", sql)
    }

    /// Lets the database note commits of those who do not own a position.
    pub(crate) fn watch(&self) -> anyhow::Result<()> {
        self.sql(include_str!("watch.sql")).map(drop)
    }

    /// A psql that copies out what `query` gives.
    pub(crate) fn copy_out(&self, query: &str) -> Command {
        let node = *self.lock();
        let url = format!("postgresql://postgres:postgres@127.0.0.1:{}/forge", self.port(node));
        let mut command = Command::new("psql");
        command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c"]);
        command.arg(format!("COPY ({query}) TO STDOUT"));
        command
    }

    /// PostgreSQL crashes and comes back after `away`; `meanwhile` runs while it is away.
    pub(crate) fn restart_database(
        &self,
        mode: &str,
        away: Duration,
        meanwhile: impl FnOnce(),
    ) -> anyhow::Result<()> {
        let node = self.lock();
        self.downtime.begin();
        self.node(&["stop"], *node, &[mode])?;
        let down_at = Instant::now();
        meanwhile();
        std::thread::sleep(away.saturating_sub(down_at.elapsed()));
        self.node(&["start"], *node, &[&self.port(*node).to_string()])?;
        self.downtime.end();
        Ok(())
    }

    /// The replica hears nothing for `lag`, then the primary crashes, and the replica takes over. The old primary becomes
    /// its replica.
    pub(crate) fn fail_over(&self, lag: Duration) -> anyhow::Result<Failover> {
        let positions = "SELECT coalesce(sum(next_offset), 0) FROM audit_events.consumer_offsets";
        let mut primary = self.lock();
        let (old, new) = (*primary, 1 - *primary);
        self.replica_link.sever(true);
        std::thread::sleep(lag);
        let before: i64 = self.ask(old, "forge", positions)?.parse()?;
        self.downtime.begin();
        self.node(&["stop"], old, &["immediate"])?;
        self.node(&["promote"], new, &[])?;
        let after: i64 = self.ask(new, "forge", positions)?.parse()?;
        for link in &self.database_links {
            link.lead_to(self.port(new));
            // Nobody is left on the old one.
            link.end(Ending::Cut, |_| true);
        }
        *primary = new;
        self.downtime.end();
        // pg_rewind compares the time lines that the checkpoints name.
        self.ask(new, "postgres", "CHECKPOINT")?;
        self.make_replica(old)?;
        Ok(Failover { lost_count: before - after })
    }

    /// The broker ends, by SIGKILL when `is_crash`, and comes back.
    pub(crate) fn restart_broker(&self, is_crash: bool) -> anyhow::Result<()> {
        self.downtime.begin();
        let mode = if is_crash { "immediate" } else { "" };
        self.stack(&["restart", "kafka", mode])?;
        self.downtime.end();
        Ok(())
    }
}
