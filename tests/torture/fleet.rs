//! The daemons: started, watched, killed, and started again as an orchestrator would.

use std::fs::{File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::daemon_http;
use crate::random::Random;

/// How long an orchestrator takes to start what died.
const RESTART_AFTER: Duration = Duration::from_millis(500);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long a daemon may take to end by SIGTERM, with some reserve over `SHUTDOWN_DEADLINE_MS`.
const END_PATIENCE: Duration = Duration::from_secs(25);
/// How much of a log is shown.
const TAIL_LINE_COUNT: usize = 25;
/// ... and how much of what is about relaying, which these modules do.
const RELAY_LINE_COUNT: usize = 8;
const OF_RELAY: [&str; 2] = [" audit_consumer::relay", " audit_consumer::outlet"];
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// How long a daemon may take until SIGTERM is more than the end of a process.
const LISTENS_AFTER: Duration = Duration::from_secs(3);
/// What a clock's file says while the clock is right.
pub(crate) const NO_JUMP: &str = "+0";

/// Why a daemon may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// It may not.
    None,
    /// We killed it.
    Killed,
    /// We asked it to end, then.
    Asked(Instant),
}

/// A crash point, and at which hit the process dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CrashPoint {
    pub(crate) name: &'static str,
    pub(crate) hit: u64,
    /// A process that ends otherwise leaves it to the next one.
    pub(crate) stays: bool,
}

/// What happened to a daemon that should not.
#[derive(Debug, Clone)]
pub(crate) struct Unexpected {
    pub(crate) daemon: usize,
    pub(crate) status: String,
    pub(crate) log_tail: String,
}

#[derive(Debug)]
struct Daemon {
    child: Option<Child>,
    leave: Leave,
    /// By SIGSTOP.
    is_stopped: bool,
    /// Whether it is started again.
    is_wanted: bool,
    start_at: Instant,
    began_at: Instant,
    /// What the process that runs is armed with.
    armed: Option<CrashPoint>,
    /// ... and the next one.
    next_armed: Option<CrashPoint>,
}

/// Where a daemon is and what it is told.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) dir: PathBuf,
    pub(crate) binary: PathBuf,
    pub(crate) http_port: u16,
    pub(crate) settings: Vec<(String, String)>,
    /// The file that says how far its wall clock is off, unless nobody can change that.
    pub(crate) clock: Option<PathBuf>,
}

/// All daemons of a run.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) homes: Vec<Home>,
    daemons: Vec<Mutex<Daemon>>,
    unexpected: Mutex<Vec<Unexpected>>,
    crashed: Mutex<Vec<&'static str>>,
    /// How often a static member ended as Kafka had given it up.
    pub(crate) fenced_count: AtomicU64,
    is_over: AtomicBool,
}

impl Fleet {
    /// Starts one daemon for each home, and watches them until [`Fleet::end`].
    pub(crate) fn start(homes: Vec<Home>) -> Arc<Self> {
        let daemons = homes
            .iter()
            .map(|_| {
                Mutex::new(Daemon {
                    child: None,
                    leave: Leave::None,
                    is_stopped: false,
                    is_wanted: true,
                    start_at: Instant::now(),
                    began_at: Instant::now(),
                    armed: None,
                    next_armed: None,
                })
            })
            .collect();
        let fleet = Arc::new(Self {
            homes,
            daemons,
            unexpected: Mutex::default(),
            crashed: Mutex::default(),
            fenced_count: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let watched = Arc::clone(&fleet);
        // The daemons end with this thread, and so with the rig.
        std::thread::spawn(move || {
            while !watched.is_over.load(Ordering::SeqCst) {
                (0..watched.homes.len()).for_each(|index| watched.tend(index));
                std::thread::sleep(LOOK_INTERVAL);
            }
        });
        fleet
    }

    pub(crate) const fn count(&self) -> usize {
        self.homes.len()
    }

    fn lock(&self, index: usize) -> MutexGuard<'_, Daemon> {
        self.daemons[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tend(&self, index: usize) {
        let mut daemon = self.lock(index);
        match daemon.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => {
                let is_late = matches!(daemon.leave, Leave::Asked(since) if since.elapsed() > END_PATIENCE);
                if is_late && !daemon.is_stopped {
                    self.report(index, format!("does not end within {END_PATIENCE:?} of SIGTERM"));
                    signal(&daemon, Signal::KILL);
                    daemon.leave = Leave::Killed;
                }
            }
            Some(ended) => self.note_end(index, &mut daemon, ended.unwrap()),
            None if daemon.is_wanted && Instant::now() >= daemon.start_at => self.spawn(index, &mut daemon),
            None => {}
        }
    }

    fn note_end(&self, index: usize, daemon: &mut Daemon, status: Option<ExitStatus>) {
        let is_killed = status.is_some_and(|status| status.signal() == Some(SIGKILL));
        let is_terminated = status.is_some_and(|status| status.signal() == Some(SIGTERM));
        let is_done = status.is_some_and(|status| status.success());
        let mut armed = daemon.armed.take();
        match (daemon.leave, &armed) {
            (Leave::Killed, _) if is_killed => {}
            (_, Some(point)) if is_killed => {
                self.crashed.lock().unwrap_or_else(PoisonError::into_inner).push(point.name);
                armed = None;
            }
            // Killed or not, before it had ended.
            (Leave::Asked(_), _) if is_done || is_killed => {}
            // It had not come so far as to listen.
            (Leave::Asked(at), _) if is_terminated && at < daemon.began_at + LISTENS_AFTER => {}
            // A static member that Kafka gave up joins anew, and what it still has under way under its old name is refused:
            // librdkafka takes that for another process in its place, and the daemon ends.
            _ if self.is_fenced(index) => drop(self.fenced_count.fetch_add(1, Ordering::SeqCst)),
            _ => self.report(index, format!("{status:?}")),
        }
        if daemon.next_armed.is_none() {
            daemon.next_armed = armed.filter(|point| point.stays);
        }
        daemon.child = None;
        daemon.leave = Leave::None;
        daemon.is_stopped = false;
        daemon.start_at = Instant::now() + RESTART_AFTER;
    }

    fn is_fenced(&self, index: usize) -> bool {
        let is_static = self.homes[index].settings.iter().any(|(key, _)| key == "KAFKA_INSTANCE_ID");
        is_static && self.log_tail(index).lines().last().is_some_and(|line| line.contains("FencedInstanceId"))
    }

    fn report(&self, index: usize, status: String) {
        let log_tail = self.log_tail(index);
        eprintln!("torture: daemon {index} ended without being asked to: {status}\n{log_tail}");
        let unexpected = Unexpected { daemon: index, status, log_tail };
        self.unexpected.lock().unwrap_or_else(PoisonError::into_inner).push(unexpected);
    }

    fn spawn(&self, index: usize, daemon: &mut Daemon) {
        let home = &self.homes[index];
        let log = OpenOptions::new().create(true).append(true).open(home.dir.join("log")).unwrap();
        let null: File = OpenOptions::new().write(true).open("/dev/null").unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "bash", "-c", "exec \"$0\" run"]);
        command.arg(&home.binary).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(home.settings.iter().map(|(key, value)| (key, value)));
        daemon.armed = daemon.next_armed.take();
        let points =
            home.settings.iter().find(|(key, _)| key == "FAILPOINTS").map(|(_, value)| value.clone());
        let armed = daemon.armed.as_ref().map(|CrashPoint { name, hit, .. }| match hit.saturating_sub(1) {
            0 => format!("{name}=return"),
            before => format!("{name}={before}*off->return"),
        });
        let points: Vec<String> = points.into_iter().chain(armed).collect();
        command.env("FAILPOINTS", points.join(";"));
        let child = command.stdin(Stdio::null()).stdout(null).stderr(log).spawn().unwrap();
        daemon.child = Some(child);
        daemon.leave = Leave::None;
        daemon.began_at = Instant::now();
    }

    /// Ends a daemon like a crash; false: it does not run.
    pub(crate) fn kill(&self, index: usize) -> bool {
        let mut daemon = self.lock(index);
        if daemon.leave == Leave::None {
            daemon.leave = Leave::Killed;
        }
        signal(&daemon, Signal::KILL)
    }

    /// The wall clock of a daemon jumps by hours, and after some seconds back; false: none of them can.
    pub(crate) fn jump(&self, random: &mut Random) -> anyhow::Result<bool> {
        let clocks: Vec<&PathBuf> = self.homes.iter().filter_map(|home| home.clock.as_ref()).collect();
        let Some(clock) = clocks.get(random.index(clocks.len())) else { return Ok(false) };
        let sign = if random.percent(50) { '+' } else { '-' };
        std::fs::write(clock, format!("{sign}{}h", random.within(1..49)))?;
        std::thread::sleep(random.millis(2_000..8_000));
        std::fs::write(clock, NO_JUMP)?;
        Ok(true)
    }

    /// Asks a daemon to end, by SIGTERM.
    pub(crate) fn terminate(&self, index: usize) -> bool {
        let mut daemon = self.lock(index);
        if daemon.leave != Leave::None {
            return false;
        }
        daemon.leave = Leave::Asked(Instant::now());
        signal(&daemon, Signal::TERM)
    }

    /// Stops or continues a daemon. One that was asked to end has as long as ever from when it goes on.
    pub(crate) fn signal(&self, index: usize, which: Signal) -> bool {
        let mut daemon = self.lock(index);
        let is_done = signal(&daemon, which);
        daemon.is_stopped = is_done && which == Signal::STOP;
        if let (Leave::Asked(at), Signal::CONT) = (&mut daemon.leave, which) {
            *at = Instant::now();
        }
        is_done
    }

    /// The same of all of them.
    pub(crate) fn signal_all(&self, which: Signal) {
        for index in 0..self.count() {
            self.signal(index, which);
        }
    }

    /// The next process of this daemon dies at a crash point.
    pub(crate) fn arm(&self, index: usize, point: CrashPoint) {
        self.lock(index).next_armed = Some(point);
    }

    /// Whether a daemon's process is armed, or its next one.
    pub(crate) fn is_armed(&self, index: usize) -> bool {
        let daemon = self.lock(index);
        daemon.armed.is_some() || daemon.next_armed.is_some()
    }

    /// Whether a daemon stays armed until it dies at its crash point.
    pub(crate) fn stays_armed(&self, index: usize) -> bool {
        let daemon = self.lock(index);
        [&daemon.armed, &daemon.next_armed].into_iter().flatten().any(|point| point.stays)
    }

    /// Whether a daemon is started again when it has ended.
    pub(crate) fn want(&self, index: usize, is_wanted: bool) {
        self.lock(index).is_wanted = is_wanted;
    }

    pub(crate) fn is_running(&self, index: usize) -> bool {
        self.lock(index).child.is_some()
    }

    /// No process is armed any more: those that are, are killed.
    pub(crate) fn disarm(&self) {
        for index in 0..self.count() {
            let is_armed = {
                let mut daemon = self.lock(index);
                daemon.next_armed = None;
                if let Some(point) = &mut daemon.armed {
                    point.stays = false;
                }
                daemon.armed.is_some()
            };
            self.signal(index, Signal::CONT);
            if is_armed {
                self.kill(index);
            }
        }
    }

    /// Names of the crash points at which a daemon died, once for each time.
    pub(crate) fn crashed(&self) -> Vec<&'static str> {
        self.crashed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn unexpected(&self) -> Vec<Unexpected> {
        self.unexpected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `/status` of a daemon.
    pub(crate) fn status(&self, index: usize) -> Option<Value> {
        serde_json::from_str(&daemon_http::get(self.homes[index].http_port, "/status")?).ok()
    }

    /// What a daemon logged last of relaying.
    pub(crate) fn last_of_relay(&self, index: usize) -> String {
        let log = std::fs::read(self.homes[index].dir.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> =
            log.lines().filter(|line| OF_RELAY.iter().any(|module| line.contains(module))).collect();
        lines[lines.len().saturating_sub(RELAY_LINE_COUNT)..].join("\n")
    }

    pub(crate) fn log_tail(&self, index: usize) -> String {
        let bytes = std::fs::read(self.homes[index].dir.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(64 * 1024)..]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINE_COUNT)..].join("\n")
    }

    /// Ends all daemons by SIGTERM and waits until they have.
    pub(crate) fn end(&self) {
        for index in 0..self.count() {
            self.want(index, false);
            self.terminate(index);
        }
        while (0..self.count()).any(|index| self.is_running(index)) {
            std::thread::sleep(LOOK_INTERVAL);
        }
        self.is_over.store(true, Ordering::SeqCst);
    }
}

fn signal(daemon: &Daemon, which: Signal) -> bool {
    daemon.child.as_ref().is_some_and(|child| kill_process(Pid::from_child(child), which).is_ok())
}
