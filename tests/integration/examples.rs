//! What users start from: `examples/`, each run as it stands.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

use crate::scene::{Scene, wait_for};

/// A port where nobody listens.
const NO_BROKER: &str = "127.0.0.1:1";
/// How long a signal is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Names that a caller may have exported, and a script of bash uses.
const COMMON_NAMES: &str = "actor operation correlation_id source_name tenant topic pending timeout_ms only_pending \
    child signal waiting_signals was_interrupted started_us ended_us code line args argv status REPLY say event keep \
    ARGS_MAX_BYTES DURATION_MAX_MS RETRY_SECONDS LOCK_SECONDS LINE_START LINE_END UTF8 SIGNALS PS4 LINES OLDPWD";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// `purview_handler.sh`, with its directory of pending events.
struct Handler {
    dir: tempfile::TempDir,
    topic: String,
    brokers: String,
    consumer: PathBuf,
}

impl Handler {
    /// It sends to the scene's topic.
    fn new(scene: &Scene) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            topic: scene.topic.clone(),
            brokers: scene.setting("KAFKA_BROKERS").to_owned(),
            consumer: env!("CARGO_BIN_EXE_audit-consumer").into(),
        }
    }

    /// In place of `audit-consumer emit` it has a script that appends to the file sent.TOPIC, a line for each call to
    /// the file calls, and fails while the file away is there.
    fn with_sink() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let consumer = dir.path().join("sink");
        let script = r#"#!/bin/bash
cd "${0%/*}" || exit
echo >>calls
while [[ -e hold ]]; do sleep 0.02; done
[[ ! -e away ]] && cat >>"sent.$3""#;
        std::fs::write(&consumer, script).unwrap();
        std::fs::set_permissions(&consumer, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, topic: "one".into(), brokers: NO_BROKER.into(), consumer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of what is pending for our topic.
    fn pending(&self, name: &str) -> PathBuf {
        self.dir.path().join("pending").join(&self.topic).join(name)
    }

    /// The lines that wait for our topic.
    fn waiting(&self) -> Vec<String> {
        let Ok(files) = std::fs::read_dir(self.pending("")) else { return Vec::new() };
        let files = files
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "jsonl"));
        files.flat_map(|path| lines(&path)).collect()
    }

    fn command(&self, brokers: &str, args: &[&OsStr]) -> Command {
        let mut command = Command::new(example("purview_handler.sh"));
        command
            .current_dir(self.dir.path())
            .env("AUDIT_CONSUMER", &self.consumer)
            .env("AUDIT_PENDING", self.path("pending"))
            .env("AUDIT_ACTOR", "alice \"a\" é")
            .env("EMIT_TOPIC", &self.topic)
            .env("KAFKA_BROKERS", brokers)
            .args(args);
        command
    }

    /// Runs a command by it.
    fn run(&self, args: &[&OsStr]) -> Output {
        let args = [&[OsStr::new("--")], args].concat();
        self.command(&self.brokers, &args).output().unwrap()
    }

    /// Runs `true` with an argument while Kafka is away.
    fn run_without_kafka(&self, argument: &str) -> Child {
        let args = ["--timeout-ms", "500", "--", "bash", "-c", "echo out; echo err >&2; exit 3", argument];
        let mut command = self.command(NO_BROKER, &args.map(OsStr::new));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Starts a script of bash by it, in a process group of its own, with a stdin that stays open, and returns the lines
    /// that the script writes behind its first one, `ready`.
    fn start_bash(&self, script: &str) -> (Child, Receiver<String>) {
        let mut command = self.command(&self.brokers, &["--", "bash", "-c", script].map(OsStr::new));
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, receiver) = channel();
        std::thread::spawn(move || stdout.lines().try_for_each(|line| sender.send(line.unwrap())));
        assert_eq!(receiver.recv_timeout(PATIENCE).as_deref(), Ok("ready"));
        (child, receiver)
    }

    fn send_pending(&self) -> Output {
        self.command(&self.brokers, &[OsStr::new("--send-pending")]).output().unwrap()
    }
}

/// The lines of a file; none when it is not there.
fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Stores what was sent, and returns the stored column for each event, in the order of offsets.
fn stored(scene: &Scene, count: u64, column: &str) -> Vec<Value> {
    let daemon = scene.daemon();
    scene.wait_until_read(count, Duration::from_secs(40));
    drop(daemon);
    let rows =
        scene.sql(&format!("SELECT to_jsonb({column}) FROM audit_events.events AS e ORDER BY source_offset"));
    rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect()
}

#[test]
fn an_event_holds_exactly_the_arguments_whatever_they_hold() {
    let scene = Scene::new("handler", 1);
    let handler = Handler::new(&scene);
    let controls: String = (1..=31u8).chain([127]).map(char::from).collect();
    let texts = [
        r#"'single' "double" `id` \ \\ \n \u0041 \""#,
        "$(touch pwned) ${HOME} $((1+1)) !! ~ * ? [a] {b,c} & && | ; < > #",
        "line\nline\r\n\n",
        "",
        "  spaces  ",
        "%s %d %n",
        r#"{"audit_id":"x"},"schema_version":"2.0"}"#,
        "é 中文 🦀 \u{202e}rtl \u{2028} e\u{301} \u{fffd} \u{10fffd}",
        "--",
        "-n",
        &controls,
    ];
    let script = r#"cat; printf '%s\0' "$@"; echo "its stderr" >&2; exit 7"#;
    let args: Vec<&OsStr> = ["bash", "-c", script, "name"].into_iter().chain(texts).map(OsStr::new).collect();
    let args_after: Vec<&OsStr> = [OsStr::new("--")].into_iter().chain(args.iter().copied()).collect();
    let mut command = handler.command(&handler.brokers, &args_after);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"its stdin \xff\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let mut expect = b"its stdin \xff\n".to_vec();
    texts.iter().for_each(|text| expect.extend([text.as_bytes(), b"\0"].concat()));
    assert_eq!(output.stdout, expect);
    assert_eq!(output.stderr, b"its stderr\n");
    assert!(!handler.dir.path().join("pwned").exists(), "an argument was run");

    // Bytes that are no UTF-8: shown, and kept exactly.
    let raw = OsStr::from_bytes(b"a\xff\xc3(\xed\xa0\x80\xf4\x90\x80\x80 \xc3\xa9 \\xff");
    assert!(handler.run(&[OsStr::new("true"), raw]).status.success());
    assert_eq!(handler.waiting(), [""; 0]);

    let rows = stored(&scene, 2, "e");
    let argv: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
    assert_eq!(rows[0]["metadata"]["argv"], Value::from(argv.clone()));
    assert_eq!(rows[0]["args"], argv[1..].join(" "));
    let facts =
        ["command", "status", "result_signature", "actor", "operation", "federated_source", "source_flag"];
    let found: Vec<&Value> = facts.iter().map(|fact| &rows[0][fact]).collect();
    let expect = ["bash", "Failure", "7", "alice \"a\" é", "command.run", "local"].map(Value::from);
    assert_eq!(found, expect.iter().chain([&Value::Null]).collect::<Vec<_>>());
    assert!(rows[0]["duration_ms"].is_u64(), "{}", rows[0]);
    assert_eq!(rows[1]["args"], r"a\xff\xc3(\xed\xa0\x80\xf4\x90\x80\x80 é \xff");
    let exact = BASE64_STANDARD.decode(rows[1]["metadata"]["argv_base64"].as_str().unwrap()).unwrap();
    assert_eq!(exact, [b"true\0", raw.as_bytes(), b"\0"].concat());
    assert_eq!((&rows[1]["status"], &rows[1]["result_signature"]), (&"Success".into(), &"0".into()));
}

#[test]
fn while_kafka_is_away_events_wait_in_a_file_and_are_stored_once() {
    let scene = Scene::new("fallback", 1);
    let handler = Handler::new(&scene);
    // Two at once; then one that does not try, as a try has just failed.
    for child in [handler.run_without_kafka("first"), handler.run_without_kafka("second")] {
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), output.stdout, output.stderr),
            (Some(3), b"out\n".into(), b"err\n".into())
        );
    }
    assert!(handler.run(&["true", "third"].map(OsStr::new)).status.success());
    let waiting = handler.waiting();
    assert_eq!(waiting.len(), 3, "{waiting:?}");
    let error = lines(&handler.pending("error")).join(" ");
    assert!(error.contains("0 of"), "{error}");

    // A crash cut a line, and the next one is whole all the same.
    let cut = waiting[0][..waiting[0].len() / 2].to_owned();
    let mut file = std::fs::OpenOptions::new().append(true).open(handler.pending("new.jsonl")).unwrap();
    file.write_all(cut.as_bytes()).unwrap();
    assert!(handler.run(&["true", "fourth"].map(OsStr::new)).status.success());

    let sent = handler.send_pending();
    assert!(sent.status.success(), "{sent:?}");
    assert!(String::from_utf8_lossy(&sent.stderr).contains("cut lines were not sent"), "{sent:?}");
    assert_eq!(lines(&handler.pending("damaged")), [cut]);
    assert_eq!(handler.waiting(), [""; 0]);
    assert!(handler.send_pending().status.success(), "nothing waits");

    // Killed after the sending and before the removal: the same lines once more.
    std::fs::write(handler.pending("1234567890123456.jsonl"), waiting.join("\n") + "\n").unwrap();
    assert!(handler.send_pending().status.success());
    let args = stored(&scene, 7, "metadata -> 'argv' ->> -1");
    let mut args: Vec<&str> = args.iter().map(|arg| arg.as_str().unwrap()).collect();
    args.sort_unstable();
    assert_eq!(args, ["first", "fourth", "second", "third"]);
    let account = scene.verify();
    assert_eq!(
        (account.total("events"), account.total("duplicates"), account.total("dead_letters")),
        (4, 3, 0)
    );
}

#[test]
fn a_command_under_the_handler_has_its_signals() {
    let scene = Scene::new("signals", 1);
    let handler = Handler::new(&scene);
    let ask = ["grep", "SigIgn", "/proc/self/status"];
    let own = Command::new(ask[0]).args(&ask[1..]).output().unwrap();
    assert_eq!(handler.run(&ask.map(OsStr::new)).stdout, own.stdout);

    let script = r#"for name in HUP INT TERM ALRM XCPU; do trap "echo $name" $name; done
        trap 'exit 5' USR1; echo ready; for ((i = 0; i < 1500; i++)); do sleep 0.02; done"#;
    let (mut child, heard) = handler.start_bash(script);
    let pid = Pid::from_child(&child);
    let signals = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("TERM", Signal::TERM),
        ("ALRM", Signal::ALARM),
        ("XCPU", Signal::XCPU),
    ];
    for (name, signal) in signals {
        kill_process(pid, signal).unwrap();
        assert_eq!(heard.recv_timeout(PATIENCE).as_deref(), Ok(name));
    }
    kill_process(pid, Signal::USR1).unwrap();
    assert_eq!((heard.recv_timeout(PATIENCE).ok(), child.wait().unwrap().code()), (None, Some(5)));
    assert_eq!(handler.run(&["bash", "-c", "kill -KILL $$"].map(OsStr::new)).status.code(), Some(137));
    assert_eq!(handler.run(&["no-such-command"].map(OsStr::new)).status.code(), Some(127));
    assert_eq!(stored(&scene, 4, "result_signature"), ["0", "5", "137", "127"].map(Value::from));
}

#[test]
fn a_signal_to_the_group_reaches_the_command_once() {
    let handler = Handler::with_sink();
    // In `read` bash answers at once, so that a second one does not meet the first.
    let script = r#"for name in HUP INT TERM; do trap "echo $name" $name; done
        trap 'exit 5' USR1; echo ready; while ((SECONDS < 40)); do read -r -t 9; done"#;
    for (name, signal) in [("HUP", Signal::HUP), ("INT", Signal::INT), ("TERM", Signal::TERM)] {
        let (mut child, heard) = handler.start_bash(script);
        let pid = Pid::from_child(&child);
        // The handler's watcher has been started, and is to have the time to be ready.
        std::thread::sleep(Duration::from_secs(1));
        kill_process_group(pid, signal).unwrap();
        assert_eq!(heard.recv_timeout(PATIENCE).as_deref(), Ok(name));
        // Longer than the handler takes to pass one on.
        std::thread::sleep(Duration::from_secs(1));
        kill_process(pid, Signal::USR1).unwrap();
        assert_eq!((heard.recv_timeout(PATIENCE).ok(), child.wait().unwrap().code()), (None, Some(5)));
    }
    assert_eq!((lines(&handler.path("sent.one")).len(), handler.waiting().len()), (3, 0));
}

#[test]
fn a_signal_to_the_group_after_the_command_stops_no_sending() {
    let handler = Handler::with_sink();
    std::fs::write(handler.path("hold"), "").unwrap();
    let mut command = handler.command(NO_BROKER, &["--", "true"].map(OsStr::new));
    let mut child = command.process_group(0).spawn().unwrap();
    wait_for("the sending", Duration::from_secs(20), || handler.path("calls").exists());
    kill_process_group(Pid::from_child(&child), Signal::TERM).unwrap();
    std::fs::remove_file(handler.path("hold")).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!((lines(&handler.path("sent.one")).len(), handler.waiting().len()), (1, 0));
}

#[test]
fn a_command_under_the_handler_has_its_environment() {
    let handler = Handler::with_sink();
    let mut under = handler.command(NO_BROKER, &["--", "env", "-0"].map(OsStr::new));
    under.envs(COMMON_NAMES.split_whitespace().map(|name| (name, "its own")));
    // A function in place of a tool of ours, a file that bash would run, what bash itself would set, no name.
    let function = ("BASH_FUNC_grep%%", "() { echo   shadowed; }");
    std::fs::write(handler.path("rc"), "echo was run; export topic=theirs").unwrap();
    under.env("BASH_ENV", handler.path("rc"));
    under.envs([
        function,
        ("SHLVL", "7"),
        ("PWD", "/elsewhere"),
        ("IFS", "a"),
        ("COLUMNS", "x"),
        ("no-name", "y"),
    ]);
    let mut alone = Command::new("env");
    alone.arg("-0").current_dir(handler.dir.path());
    alone.envs(under.get_envs().map(|(name, value)| (name, value.unwrap())));
    let [alone, under] = [alone, under].map(|mut command| {
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let entries: BTreeSet<String> = text.split_terminator('\0').map(str::to_owned).collect();
        entries.into_iter().filter(|entry| !entry.starts_with("_=")).collect::<Vec<_>>()
    });
    assert_eq!(under, alone);
    assert_eq!((lines(&handler.path("sent.one")).len(), handler.waiting().len()), (1, 0));

    let mut bare = Command::new(example("purview_handler.sh"));
    bare.env_clear().args([
        "--pending",
        handler.path("pending").to_str().unwrap(),
        "--",
        "/usr/bin/env",
        "-0",
    ]);
    let output = bare.output().unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(0), Vec::new()));
}

#[test]
fn what_waits_goes_to_its_own_topic_two_files_at_a_time() {
    let handler = Handler::with_sink();
    std::fs::write(handler.path("away"), "").unwrap();
    assert!(handler.run(&["true"].map(OsStr::new)).status.success());
    let two = ["--topic", ".two", "--", "true"].map(OsStr::new);
    assert!(handler.command(NO_BROKER, &two).status().unwrap().success());
    assert_eq!((lines(&handler.path("calls")).len(), handler.waiting().len()), (2, 1));
    assert_eq!(handler.send_pending().status.code(), Some(1), "nothing was sent");

    // Beside that one: two lines in an older file, three in a younger one, and so many that they become a file.
    let line = handler.waiting().concat() + "\n";
    let many = 262_144 / line.len() + 1;
    for (name, count) in [("1.jsonl", 2), ("9999999999999999.jsonl", 3), ("new.jsonl", many)] {
        std::fs::write(handler.pending(name), line.repeat(count)).unwrap();
    }
    std::fs::remove_file(handler.path("away")).unwrap();
    std::fs::remove_file(handler.path("calls")).unwrap();
    std::fs::remove_file(handler.pending("error")).unwrap();
    assert!(handler.run(&["true"].map(OsStr::new)).status.success());
    let sent = |topic: &str| lines(&handler.path(&format!("sent.{topic}"))).len();
    assert_eq!((lines(&handler.path("calls")).len(), sent("one"), handler.waiting().len()), (2, 3, many + 4));
    assert_eq!((lines(&handler.pending("new.jsonl")).len(), sent(".two")), (1, 0));
    assert!(handler.send_pending().status.success());
    assert_eq!((sent("one"), sent(".two"), handler.waiting().len()), (many + 7, 1, 0));
    let output =
        handler.command(NO_BROKER, &["--topic", "a/b", "--", "true"].map(OsStr::new)).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn neither_a_crash_nor_a_clock_that_was_set_back_holds_up_events() {
    let handler = Handler::with_sink();
    std::fs::create_dir_all(handler.pending("")).unwrap();
    // What ext4 may leave of a line, and a time in 2286.
    std::fs::write(handler.pending("new.jsonl"), "{\"audit_id\":\"\0\0\0").unwrap();
    std::fs::write(handler.pending("error"), "9999999999\nno broker\n").unwrap();
    let output = handler.run(&["true"].map(OsStr::new));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cut lines were not sent"), "{output:?}");
    assert_eq!(lines(&handler.pending("damaged")), ["{\"audit_id\":\"\0\0\0"]);
    assert_eq!((lines(&handler.path("sent.one")).len(), handler.waiting().len()), (1, 0));
}

#[test]
fn the_examples_in_rust_and_python_emit_an_event() {
    let scene = Scene::new("emitters", 1);
    let settings = [("KAFKA_BROKERS", scene.setting("KAFKA_BROKERS")), ("EMIT_TOPIC", &scene.topic)];
    let words = ["ritual.query", "query \"all\"", "alice"];
    // Beside our own binary; `cargo test` makes it, unless only this test target is asked for.
    let binary =
        Path::new(env!("CARGO_BIN_EXE_audit-consumer")).with_file_name("examples").join("emit_event");
    let advice = "make it first: cargo build --profile ci --all-features --example emit_event";
    assert!(binary.exists(), "{} is missing; {advice}", binary.display());
    let output = Command::new(&binary).args(words).envs(settings).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}[0]@0\n", scene.topic));
    let refused = Command::new(&binary).args(words).env("KAFKA_BROKERS", NO_BROKER).output().unwrap();
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("send it again"));

    // Python: its syntax and its usage always; the sending where confluent-kafka is installed.
    let python = |args: &[&str]| Command::new("python3").args(args).envs(settings).output().unwrap();
    let file = example("emit_event.py");
    let file = file.to_str().unwrap();
    let usage = python(&[file]);
    assert!(
        !usage.status.success() && String::from_utf8_lossy(&usage.stderr).starts_with("usage"),
        "{usage:?}"
    );
    let mut count = 1;
    if python(&["-c", "import confluent_kafka"]).status.success() {
        let output = python(&[&[file], &words[..]].concat());
        assert!(output.status.success(), "{output:?}");
        count += 1;
    } else {
        eprintln!("confluent-kafka is not installed: emit_event.py was read, and not run");
    }
    let events = stored(&scene, count, "jsonb_build_array(operation, command, actor, status)");
    assert_eq!(u64::try_from(events.len()).unwrap(), count);
    for event in events {
        assert_eq!(event, serde_json::json!(["ritual.query", "query \"all\"", "alice", "Success"]));
    }
}
