//! A topic, a group and a database for one test, daemons over them, and the oracle: `audit-consumer verify`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use audit_consumer::model::sample::{SamplePlan, SampleTotals};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Whether the counts of the issue are asked for.
pub(crate) fn is_full() -> bool {
    std::env::var("TEST_SCALE").is_ok_and(|scale| scale == "full")
}

/// One of two numbers, by scale.
pub(crate) fn scaled(small: u64, full: u64) -> u64 {
    if is_full() { full } else { small }
}

/// A running Kafka and PostgreSQL.
#[derive(Debug, Clone)]
pub(crate) struct Stack {
    env: BTreeMap<String, String>,
}

fn stack_script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/stack")
}

impl Stack {
    /// The stack that every test shares; started if it is not up.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Stack> = OnceLock::new();
        SHARED.get_or_init(|| Self::up(&BTreeMap::new()))
    }

    /// A stack for tests that stop servers: they hold it alone, one after the other.
    pub(crate) fn private() -> std::sync::MutexGuard<'static, Self> {
        static PRIVATE: OnceLock<Mutex<Stack>> = OnceLock::new();
        let stack = PRIVATE.get_or_init(|| {
            let shared = &Self::shared().env;
            let port = |name: &str| (shared[name].parse::<u16>().unwrap() + 300).to_string();
            let mut env = BTreeMap::new();
            env.insert("STACK_DIR".to_owned(), format!("{}-private", shared["STACK_DIR"]));
            for name in ["KAFKA_PORT", "KAFKA_CONTROLLER_PORT", "PG_PORT"] {
                env.insert(name.to_owned(), port(name));
            }
            // What takes days on other brokers takes a minute on this one, and rights can be taken away.
            let properties = [
                "offsets.retention.minutes=1",
                "offsets.retention.check.interval.ms=5000",
                "transactional.id.expiration.ms=20000",
                "transaction.remove.expired.transaction.cleanup.interval.ms=5000",
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "allow.everyone.if.no.acl.found=true",
                // Kafka's default: a topic that somebody asks for by name is made.
                "auto.create.topics.enable=true",
            ];
            env.insert("KAFKA_EXTRA".to_owned(), properties.join(" "));
            env.insert("STACK_SECURE".to_owned(), "1".to_owned());
            Mutex::new(Self::up(&env))
        });
        let guard = stack.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        guard.run(&["up"]);
        guard
    }

    fn up(overrides: &BTreeMap<String, String>) -> Self {
        let mut stack = Self { env: overrides.clone() };
        stack.run(&["up"]);
        for line in stack.run(&["env"]).lines() {
            for pair in line.trim_start_matches("export ").split(' ') {
                let (name, value) = pair.split_once('=').unwrap();
                stack.env.insert(name.to_owned(), value.to_owned());
            }
        }
        stack
    }

    /// Runs a command of `deploy/local/stack`.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let output = Command::new(stack_script()).args(args).envs(&self.env).output().unwrap();
        assert!(output.status.success(), "stack {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn brokers(&self) -> &str {
        &self.env["KAFKA_BROKERS"]
    }

    /// A setting of `deploy/local/stack env`.
    pub(crate) fn setting(&self, name: &str) -> &str {
        &self.env[name]
    }

    /// The URL of `database` for the superuser.
    pub(crate) fn admin_url(&self, database: &str) -> String {
        let (server, _) = self.env["STACK_ADMIN_URL"].rsplit_once('/').unwrap();
        format!("{server}/{database}")
    }

    /// Runs SQL as the superuser in `database` and returns what psql prints, unaligned.
    pub(crate) fn psql(&self, database: &str, sql: &str) -> String {
        let url = self.admin_url(database);
        let output = Command::new("psql")
            .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", sql])
            .output()
            .unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// Waits until `condition` holds; panics with `what` after `patience`.
#[track_caller]
pub(crate) fn wait_for(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < patience, "waited {patience:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    started.elapsed()
}

static NEXT_NAME: AtomicU64 = AtomicU64::new(0);

/// A topic, a group and a migrated database.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) stack: Stack,
    pub(crate) name: String,
    pub(crate) topic: String,
    env: BTreeMap<String, String>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stack.psql("postgres", &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        }
    }
}

impl Scene {
    /// On the shared stack.
    pub(crate) fn new(name: &str, partition_count: i32) -> Self {
        Self::on(Stack::shared(), name, partition_count)
    }

    /// On a stack.
    pub(crate) fn on(stack: &Stack, name: &str, partition_count: i32) -> Self {
        let number = NEXT_NAME.fetch_add(1, Ordering::Relaxed);
        let name = format!("t_{name}_{}_{number}", std::process::id());
        stack.psql("postgres", &format!("CREATE DATABASE {name} OWNER audit"));
        let url = stack.env["DATABASE_URL"].replace("/forge", &format!("/{name}"));
        let topic = name.replace('_', ".");
        let env = BTreeMap::from(
            [
                ("DATABASE_URL", url.as_str()),
                ("KAFKA_BROKERS", stack.brokers()),
                ("KAFKA_TOPICS", topic.as_str()),
                ("KAFKA_GROUP_ID", name.as_str()),
                ("KAFKA_SESSION_TIMEOUT_MS", "6000"),
                // Tests that need it set a directory.
                ("SPOOL_DIR", "off"),
                ("PURVIEW_LOG", "off"),
                ("TRUST_LOG", "off"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        let scene = Self { stack: stack.clone(), name, topic, env };
        scene.create_topic(partition_count, &[]);
        let migrated = scene.command(&["migrate"]);
        assert!(migrated.status.success(), "{migrated:?}");
        scene
    }

    /// The scene with a setting changed.
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn setting(&self, name: &str) -> &str {
        &self.env[name]
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", self.stack.brokers()).create().unwrap()
    }

    pub(crate) fn create_topic(&self, partition_count: i32, config: &[(&str, &str)]) {
        self.create_topic_named(&self.topic, partition_count, config);
    }

    pub(crate) fn create_topic_named(&self, name: &str, partition_count: i32, config: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partition_count, TopicReplication::Fixed(1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        // A broker that nobody asked for some minutes may take its time for the first answer.
        let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(15)));
        wait_for("topic created", Duration::from_secs(120), || {
            match block_on(self.admin().create_topics([&topic], &options)) {
                Ok(created) => match &created[0] {
                    Ok(_) => true,
                    // By a question whose answer did not come in time.
                    Err((_, code)) => *code == rdkafka::types::RDKafkaErrorCode::TopicAlreadyExists,
                },
                Err(_) => false,
            }
        });
    }

    pub(crate) fn delete_topic(&self) {
        let deleted = block_on(self.admin().delete_topics(&[&self.topic], &AdminOptions::new())).unwrap();
        assert!(deleted[0].is_ok(), "{deleted:?}");
    }

    /// Forgets the committed offsets of a group, as Kafka does after `offsets.retention.minutes`.
    pub(crate) fn delete_group(&self, group: &str) {
        let deleted = block_on(self.admin().delete_groups(&[group], &AdminOptions::new())).unwrap();
        assert!(deleted[0].is_ok(), "{deleted:?}");
    }

    /// The names of the topics.
    pub(crate) fn topics(&self) -> Vec<String> {
        let metadata = self.admin().inner().fetch_metadata(None, Duration::from_secs(10)).unwrap();
        metadata.topics().iter().map(|topic| topic.name().to_owned()).collect()
    }

    /// How many partitions a topic has.
    pub(crate) fn partition_count_of(&self, topic: &str) -> usize {
        let metadata = self.admin().inner().fetch_metadata(None, Duration::from_secs(10)).unwrap();
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        found.map_or(0, |found| found.partitions().len())
    }

    /// Deletes the records of a partition before `offset`; -1: all.
    pub(crate) fn delete_records(&self, partition: i32, offset: i64) {
        let mut list = rdkafka::TopicPartitionList::new();
        let offset = if offset < 0 { rdkafka::Offset::End } else { rdkafka::Offset::Offset(offset) };
        list.add_partition_offset(&self.topic, partition, offset).unwrap();
        block_on(self.admin().delete_records(&list, &AdminOptions::new())).unwrap();
    }

    /// The sum of the group's offsets in Kafka.
    pub(crate) fn mirrored_count(&self) -> i64 {
        use rdkafka::consumer::Consumer;
        let consumer: rdkafka::consumer::BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.stack.brokers())
            .set("group.id", &self.name)
            .create()
            .unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        for partition in 0..self.partition_count_of(&self.topic) {
            list.add_partition(&self.topic, i32::try_from(partition).unwrap());
        }
        let committed = consumer.committed_offsets(list, Duration::from_secs(10)).unwrap();
        committed.elements().iter().map(|element| element.offset().to_raw().unwrap_or(0).max(0)).sum()
    }

    pub(crate) fn producer(&self, extra: &[(&str, &str)]) -> ThreadedProducer<DefaultProducerContext> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.stack.brokers())
            .set("acks", "all")
            .set("enable.idempotence", "true");
        config.set("message.max.bytes", "8000000").set("message.timeout.ms", "50000");
        for (key, value) in extra {
            config.set(*key, *value);
        }
        config.create().unwrap()
    }

    /// Sends the records of `plan` from `start` to `end`, spread over the partitions.
    pub(crate) fn produce(&self, plan: &SamplePlan, start: u64, end: u64) {
        let producer = self.producer(&[]);
        let mut payload = Vec::new();
        for index in start..end {
            let has_value = plan.write(index, &mut payload);
            let key = index.to_string();
            send(&producer, &self.topic, Some(&key), has_value.then_some(payload.as_slice()), None);
        }
        producer.flush(Duration::from_secs(120)).unwrap();
    }

    /// Sends payloads to partition 0.
    pub(crate) fn send_all(&self, payloads: &[Option<Vec<u8>>]) {
        let producer = self.producer(&[]);
        for payload in payloads {
            send(&producer, &self.topic, None, payload.as_deref(), Some(0));
        }
        producer.flush(Duration::from_secs(60)).unwrap();
    }

    fn binary(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_audit-consumer"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(&self.env);
        command
    }

    /// Runs a command of the binary to its end.
    pub(crate) fn command(&self, args: &[&str]) -> Output {
        self.command_with(args, &[])
    }

    /// Runs a command with further settings.
    pub(crate) fn command_with(&self, args: &[&str], settings: &[(&str, &str)]) -> Output {
        self.binary().args(args).envs(settings.iter().copied()).output().unwrap()
    }

    /// Runs a command with this on its standard input; it must succeed. Returns what it printed, errors too.
    #[track_caller]
    pub(crate) fn fed(&self, args: &[&str], input: &str) -> String {
        let pipes = (Stdio::piped(), Stdio::piped(), Stdio::piped());
        let mut child =
            self.binary().args(args).stdin(pipes.0).stdout(pipes.1).stderr(pipes.2).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{args:?}: {text:?}");
        text.concat()
    }

    /// Runs a command that must succeed; returns what it printed.
    #[track_caller]
    pub(crate) fn done(&self, args: &[&str]) -> String {
        let output = self.command(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// The oracle's report; panics when the account does not hold.
    #[track_caller]
    pub(crate) fn verify(&self) -> Account {
        let output = self.command(&["verify", "--json"]);
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        assert!(output.status.success(), "{report:#}");
        Account(report)
    }

    /// Rows of one SQL query in the scene's database.
    pub(crate) fn sql(&self, query: &str) -> String {
        self.stack.psql(&self.name, query)
    }

    pub(crate) fn number(&self, query: &str) -> u64 {
        self.sql(query).parse().unwrap()
    }

    /// Starts a daemon.
    pub(crate) fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    /// Starts a daemon with further settings.
    pub(crate) fn daemon_with(&self, settings: &[(&str, &str)]) -> Daemon {
        self.start(self.binary(), settings)
    }

    /// Starts a daemon from a shell in which `limit` was run before.
    pub(crate) fn daemon_limited(&self, limit: &str) -> Daemon {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{limit} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_audit-consumer")]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(&self.env);
        self.start(command, &[])
    }

    fn start(&self, mut command: Command, settings: &[(&str, &str)]) -> Daemon {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let number = NEXT_NAME.fetch_add(1, Ordering::Relaxed);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("logs");
        std::fs::create_dir_all(&dir).unwrap();
        let log = dir.join(format!("{}-{number}.log", self.name));
        command.arg("run").env("HTTP_ADDRESS", format!("127.0.0.1:{port}")).envs(settings.iter().copied());
        let file = File::create(&log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Daemon { child, port, log }
    }

    /// Waits until PostgreSQL holds every record that Kafka has, by the oracle.
    #[track_caller]
    pub(crate) fn wait_until_read(&self, record_count: u64, patience: Duration) -> Duration {
        let query =
            "SELECT coalesce(sum(events + duplicates + dead_letters), 0) FROM audit_events.consumer_offsets";
        wait_for(&format!("{record_count} records stored"), patience, || self.number(query) >= record_count)
    }
}

pub(crate) fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    key: Option<&str>,
    payload: Option<&[u8]>,
    partition: Option<i32>,
) {
    loop {
        let mut record: BaseRecord<'_, str, [u8]> = BaseRecord::to(topic);
        record.key = key;
        record.payload = payload;
        record.partition = partition;
        match producer.send(record) {
            Ok(()) => return,
            Err((error, _))
                if error.rdkafka_error_code() == Some(rdkafka::types::RDKafkaErrorCode::QueueFull) =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err((error, _)) => panic!("{error}"),
        }
    }
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// What `verify --json` reported.
#[derive(Debug)]
pub(crate) struct Account(pub(crate) Value);

impl Account {
    pub(crate) fn total(&self, name: &str) -> u64 {
        self.0["totals"][name].as_u64().unwrap_or_else(|| panic!("no total {name} in {:#}", self.0["totals"]))
    }

    /// Asserts that the totals are those of a plan.
    #[track_caller]
    pub(crate) fn check(&self, expect: SampleTotals) {
        let found = SampleTotals {
            events: self.total("events"),
            duplicates: self.total("duplicates"),
            dead_letters: self.total("dead_letters"),
        };
        assert_eq!(found, expect);
    }
}

/// A daemon under test; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::KILL);
            let ended = self.child.wait();
            assert!(ended.is_ok() || std::thread::panicking(), "{ended:?}");
        }
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.log.display(), self.log_text());
        }
    }
}

impl Daemon {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends it like a crash.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Ends it by SIGTERM; returns its exit status and how long it took.
    #[track_caller]
    pub(crate) fn terminate(&mut self, patience: Duration) -> (ExitStatus, Duration) {
        self.signal(Signal::TERM);
        let started_at = Instant::now();
        (self.wait_for_end(patience), started_at.elapsed())
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub(crate) fn wait_for_end(&mut self, patience: Duration) -> ExitStatus {
        let mut status = None;
        wait_for("the daemon's end", patience, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Where it is asked, on 127.0.0.1.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The status code and body of a GET; `None` while nobody listens.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        self.get_with(path, "")
    }

    /// The value of a counter, by its name with its labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics").unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(name)).unwrap_or_default().trim();
        value.parse().unwrap_or_else(|error| panic!("{name}{value}: {error}"))
    }

    /// A GET with further header lines.
    pub(crate) fn get_with(&self, path: &str, headers: &str) -> Option<(u16, String)> {
        Self::ask(([127, 0, 0, 1], self.port).into(), path, headers)
    }

    /// The same of another port.
    pub(crate) fn get_at(address: SocketAddr, path: &str) -> Option<(u16, String)> {
        Self::ask(address, path, "")
    }

    fn ask(address: SocketAddr, path: &str, headers: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n")
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let code = answer.split(' ').nth(1)?.parse().ok()?;
        Some((code, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    pub(crate) fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.get("/status")?.1).ok()
    }

    /// How many partitions it reads.
    pub(crate) fn partition_count(&self) -> usize {
        self.status().and_then(|status| status["partitions"].as_array().map(Vec::len)).unwrap_or(0)
    }

    /// The codes of the partitions that it holds.
    pub(crate) fn holds(&self) -> Vec<String> {
        let status = self.status().unwrap_or_default();
        let held = status["held"].as_array().cloned().unwrap_or_default();
        held.iter().filter_map(|hold| hold["code"].as_str().map(str::to_owned)).collect()
    }

    #[track_caller]
    pub(crate) fn wait_for_hold(&self, code: &str) {
        wait_for(&format!("hold {code}"), Duration::from_secs(30), || {
            self.holds().iter().any(|held| held == code)
        });
    }

    #[track_caller]
    pub(crate) fn wait_until_reading(&self, partition_count: usize) {
        wait_for("partitions assigned", Duration::from_secs(40), || {
            self.partition_count() == partition_count
        });
    }
}
