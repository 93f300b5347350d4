//! Runs of the daemon and of `psql \copy`, and what each has used.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection};
use tokio::runtime::Runtime;

use crate::bed::{Bed, COLUMNS, Usage};

/// Where a measured daemon is asked.
pub(crate) const HTTP: &str = "127.0.0.1:18080";
/// The database that the daemon stores into, and the one that `\copy` does.
pub(crate) const DATABASE: &str = "bench_daemon";
pub(crate) const COPY_DATABASE: &str = "bench_copy";
/// How long a daemon may go without progress.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What one run took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    /// CPU for each event, in microseconds: of the client (daemon or psql), the broker and PostgreSQL.
    pub(crate) client_us: f64,
    pub(crate) broker_us: f64,
    pub(crate) database_us: f64,
    pub(crate) wal_bytes: f64,
    /// Peak resident memory of the daemon; 0 for psql.
    pub(crate) peak_mib: f64,
    /// The least position of a partition out of the greatest, when half was stored; 0 for psql.
    pub(crate) evenness: f64,
    /// Day files, when they have caught up: events a second from the last commit on.
    pub(crate) catch_up_per_second: f64,
}

impl Figures {
    pub(crate) fn new(count: u64, seconds: f64, used: Usage) -> Self {
        let each = |sum: u64| sum as f64 / count as f64;
        Self {
            per_second: count as f64 / seconds,
            client_us: each(used.client_us),
            broker_us: each(used.broker_us),
            database_us: each(used.database_us),
            wal_bytes: each(used.wal_bytes),
            ..Self::default()
        }
    }
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            self.child.wait().map_or_else(|error| println!("the daemon stays: {error}"), drop);
        }
    }
}

impl Daemon {
    /// Starts a daemon over `topic`, in a group of its own, that stores into [`DATABASE`].
    pub(crate) fn start(bed: &Bed, topic: &str, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let log = bed.dir.join("daemon.log");
        let child = Command::new(&bed.binary)
            .arg("run")
            .env("DATABASE_URL", bed.url(DATABASE))
            .env("KAFKA_BROKERS", &bed.brokers)
            .env("KAFKA_TOPICS", topic)
            .env("KAFKA_GROUP_ID", topic)
            .env("HTTP_ADDRESS", HTTP)
            .env("LOG_DIR", bed.dir.join("logs"))
            .envs([("SPOOL_DIR", "off"), ("PURVIEW_LOG", "off"), ("TRUST_LOG", "off")])
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("start {}", bed.binary.display()))?;
        Ok(Self { child, log })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn peak_mib(&self) -> anyhow::Result<f64> {
        self.memory_mib("VmHWM:")
    }

    pub(crate) fn resident_mib(&self) -> anyhow::Result<f64> {
        self.memory_mib("VmRSS:")
    }

    fn memory_mib(&self, name: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        Ok(kib.with_context(|| format!("no {name}"))?.parse::<f64>()? / 1024.0)
    }

    /// Fails when the daemon has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the daemon has ended ({status}); its log: {}", self.log.display());
        }
        Ok(())
    }

    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the daemon failed ({status}); its log: {}", self.log.display());
        }
        Ok(())
    }

    /// The answer to `GET path`; `None` while nobody answers.
    pub(crate) fn get(path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(HTTP).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    /// The sum of a metric over its labels; 0 while nobody answers.
    pub(crate) fn metric(name: &str) -> f64 {
        let text = Self::get("/metrics").unwrap_or_default();
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '{']))?;
            rest.rsplit_once(' ')?.1.parse::<f64>().ok()
        });
        values.sum()
    }
}

/// A connection to PostgreSQL that looks at the positions.
pub(crate) struct Watch {
    runtime: Runtime,
    connection: PgConnection,
}

impl Watch {
    pub(crate) fn open(url: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connection = runtime.block_on(PgConnection::connect(url))?;
        Ok(Self { runtime, connection })
    }

    /// How many records are accounted for, and how many seconds ago the first claim was.
    pub(crate) fn stored(&mut self) -> anyhow::Result<(u64, f64)> {
        let query = "SELECT coalesce(sum(events + duplicates + dead_letters), 0)::bigint, \
                     coalesce(extract(epoch FROM clock_timestamp() - min(claimed_at)), 0)::float8 \
                     FROM audit_events.consumer_offsets";
        let asked = sqlx::query_as::<_, (i64, f64)>(query).fetch_one(&mut self.connection);
        let (count, seconds) = self.runtime.block_on(asked)?;
        Ok((u64::try_from(count)?, seconds))
    }

    /// Counts the states of the sessions that work in `database`: what they wait for, or that they run.
    pub(crate) fn note_waits(
        &mut self,
        database: &str,
        seen: &mut BTreeMap<String, u64>,
    ) -> anyhow::Result<()> {
        let query = "SELECT CASE state WHEN 'idle' THEN 'no transaction' ELSE coalesce(wait_event, 'runs') END \
                     FROM pg_stat_activity WHERE datname = $1 AND query ~ 'COPY|BEGIN|COMMIT'";
        let asked = sqlx::query_scalar::<_, String>(query).bind(database).fetch_all(&mut self.connection);
        for state in self.runtime.block_on(asked)? {
            *seen.entry(state).or_default() += 1;
        }
        Ok(())
    }

    /// The least position out of the greatest.
    pub(crate) fn evenness(&mut self) -> anyhow::Result<f64> {
        let query = "SELECT min(next_offset)::float8 / max(next_offset) FROM audit_events.consumer_offsets";
        let asked = sqlx::query_scalar::<_, f64>(query).fetch_one(&mut self.connection);
        Ok(self.runtime.block_on(asked)?)
    }

    /// Notes each position that has moved since it was noted last.
    pub(crate) fn note(&mut self, seen: &mut BTreeMap<i32, Vec<(Instant, i64)>>) -> anyhow::Result<()> {
        let query = "SELECT partition, next_offset FROM audit_events.consumer_offsets";
        let asked = sqlx::query_as::<_, (i32, i64)>(query).fetch_all(&mut self.connection);
        let positions = self.runtime.block_on(asked)?;
        let now = Instant::now();
        for (partition, position) in positions {
            let noted = seen.entry(partition).or_default();
            if noted.last().is_none_or(|(_, last)| *last < position) {
                noted.push((now, position));
            }
        }
        Ok(())
    }
}

/// Looks until `count` says that `wanted` are there; `None`: it can't tell now. A daemon that ends, or makes no
/// progress for long, is an error.
pub(crate) fn wait_for(
    daemon: &mut Daemon,
    wanted: u64,
    mut count: impl FnMut(&Daemon) -> anyhow::Result<u64>,
) -> anyhow::Result<()> {
    let (mut last, mut moved_at) = (0, Instant::now());
    loop {
        let found = count(daemon)?;
        if found >= wanted {
            return Ok(());
        }
        daemon.check()?;
        if found != last {
            (last, moved_at) = (found, Instant::now());
        } else if moved_at.elapsed() > PATIENCE {
            bail!(
                "{found} of {wanted} after {PATIENCE:?} without progress; the daemon's log: {}",
                daemon.log.display()
            );
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Stores all of `topic` into an empty table; time counts from the first claim.
pub(crate) fn through(
    bed: &Bed,
    topic: &str,
    record_count: u64,
    settings: &[(&str, &str)],
) -> anyhow::Result<Figures> {
    bed.fresh_database(DATABASE)?;
    through_with(bed, topic, record_count, settings, |_| Ok(()))
}

/// The same into the table as it is; `besides` is called at each look.
pub(crate) fn through_with(
    bed: &Bed,
    topic: &str,
    record_count: u64,
    settings: &[(&str, &str)],
    mut besides: impl FnMut(&Daemon) -> anyhow::Result<()>,
) -> anyhow::Result<Figures> {
    forget_group(bed, topic)?;
    let before = bed.usage()?;
    let mut watch = Watch::open(&bed.admin_url(DATABASE))?;
    let mut daemon = Daemon::start(bed, topic, settings)?;
    let (mut seconds, mut evenness) = (0.0, None);
    wait_for(&mut daemon, record_count, |daemon| {
        besides(daemon)?;
        let (count, elapsed) = watch.stored()?;
        seconds = elapsed;
        if evenness.is_none() && count >= record_count / 2 {
            evenness = Some(watch.evenness()?);
        }
        Ok(count)
    })?;
    let (stored_at, peak_mib) = (Instant::now(), daemon.peak_mib()?);
    let writes_day_files = settings.iter().any(|(name, value)| *name == "PURVIEW_LOG" && *value != "off");
    let catch_up_per_second =
        if writes_day_files { catch_up(&mut daemon, record_count, stored_at)? } else { 0.0 };
    let epochs = bed
        .psql(DATABASE, "SELECT string_agg(DISTINCT epoch::text, ',') FROM audit_events.consumer_offsets")?;
    if epochs != "1" {
        bail!(
            "partitions were claimed again during the run (epochs {epochs}): its figure would be of no use"
        );
    }
    daemon.stop()?;
    let used = bed.usage()?.since(before);
    let evenness = evenness.unwrap_or_default();
    Ok(Figures { peak_mib, evenness, catch_up_per_second, ..Figures::new(record_count, seconds, used) })
}

/// Waits until the day files have every event: how many a second from the last commit on.
fn catch_up(daemon: &mut Daemon, record_count: u64, stored_at: Instant) -> anyhow::Result<f64> {
    let lines = |_: &Daemon| Ok(Daemon::metric("audit_consumer_projection_lines_total") as u64);
    let left = 2 * record_count - lines(daemon)?;
    // Purview's and trust's.
    wait_for(daemon, 2 * record_count, lines)?;
    Ok(left as f64 / 2.0 / stored_at.elapsed().as_secs_f64())
}

/// Kafka's mirror of the positions of the group that has the topic's name.
fn forget_group(bed: &Bed, group: &str) -> anyhow::Result<()> {
    // A group that there is not yet is no error; one that has members still is one of the daemon's start.
    bed.runtime.block_on(async {
        bed.admin()?
            .delete_groups(&[group], &rdkafka::admin::AdminOptions::new())
            .await
            .map(drop)
            .context("delete group")
    })
}

/// Writes the rows that the daemon stored last to `parts` files, as `\copy` reads them.
pub(crate) fn export_rows(bed: &Bed, parts: &[PathBuf]) -> anyhow::Result<()> {
    for (index, part) in parts.iter().enumerate() {
        let query = format!(
            "\\copy (SELECT {COLUMNS} FROM (SELECT *, ntile({}) OVER (ORDER BY audit_id) AS part \
             FROM audit_events.events) AS rows WHERE part = {} ORDER BY audit_id) TO '{}'",
            parts.len(),
            index + 1,
            part.display()
        );
        bed.psql(DATABASE, &query)?;
    }
    Ok(())
}

/// The yardstick: each of `files` by a session of its own, in one transaction, all at once.
pub(crate) fn by_copy(bed: &Bed, files: &[PathBuf], row_count: u64) -> anyhow::Result<Figures> {
    bed.fresh_database(COPY_DATABASE)?;
    let before = bed.usage()?;
    let started_at = Instant::now();
    let copies: Vec<Child> = files.iter().map(|file| spawn_copy(bed, file)).collect::<anyhow::Result<_>>()?;
    for mut copy in copies {
        if !copy.wait()?.success() {
            bail!("psql \\copy failed");
        }
    }
    let seconds = started_at.elapsed().as_secs_f64();
    let used = bed.usage()?.since(before);
    let found: u64 = bed.psql(COPY_DATABASE, "SELECT count(*) FROM audit_events.events")?.parse()?;
    if found != row_count {
        bail!("psql \\copy stored {found} rows of {row_count}");
    }
    Ok(Figures::new(row_count, seconds, used))
}

fn spawn_copy(bed: &Bed, file: &Path) -> anyhow::Result<Child> {
    let copy = format!("\\copy audit_events.events ({COLUMNS}) FROM '{}'", file.display());
    Ok(Command::new("psql").args(["-Xq", "-1", "-d", &bed.url(COPY_DATABASE), "-c", &copy]).spawn()?)
}
