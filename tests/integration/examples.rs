//! What users start from: `examples/`, each run as it stands.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::scene::Scene;

/// A port where nobody listens.
const NO_BROKER: &str = "127.0.0.1:1";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// `purview_handler.sh`, with its file of pending events.
struct Handler<'a> {
    scene: &'a Scene,
    dir: tempfile::TempDir,
}

impl<'a> Handler<'a> {
    fn new(scene: &'a Scene) -> Self {
        Self { scene, dir: tempfile::tempdir().unwrap() }
    }

    fn pending(&self) -> PathBuf {
        self.dir.path().join("state/pending.jsonl")
    }

    /// The lines of that file, or of one beside it.
    fn lines(&self, ending: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join(format!("state/pending.jsonl{ending}")))
            .unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn command(&self, brokers: &str, args: &[&OsStr]) -> Command {
        let mut command = Command::new(example("purview_handler.sh"));
        command
            .current_dir(self.dir.path())
            .env("AUDIT_CONSUMER", env!("CARGO_BIN_EXE_audit-consumer"))
            .env("AUDIT_PENDING", self.pending())
            .env("AUDIT_ACTOR", "alice \"a\" é")
            .env("EMIT_TOPIC", &self.scene.topic)
            .env("KAFKA_BROKERS", brokers)
            .args(args);
        command
    }

    /// Runs a command by it, with the scene's Kafka.
    fn run(&self, args: &[&OsStr]) -> Output {
        let args = [&[OsStr::new("--")], args].concat();
        self.command(self.scene.setting("KAFKA_BROKERS"), &args).output().unwrap()
    }

    /// Runs `true` with an argument while Kafka is away.
    fn run_without_kafka(&self, argument: &str) -> std::process::Child {
        let args = ["--timeout-ms", "500", "--", "bash", "-c", "echo out; echo err >&2; exit 3", argument];
        let mut command = self.command(NO_BROKER, &args.map(OsStr::new));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn send_pending(&self) -> Output {
        self.command(self.scene.setting("KAFKA_BROKERS"), &[OsStr::new("--send-pending")]).output().unwrap()
    }
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
    let mut command = handler.command(scene.setting("KAFKA_BROKERS"), &args_after);
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
    assert_eq!(handler.lines(""), [""; 0]);

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
    let waiting = [handler.lines(".sending"), handler.lines("")].concat();
    assert_eq!(waiting.len(), 3, "{waiting:?}");
    assert!(handler.lines(".error").join(" ").contains("0 of"), "{:?}", handler.lines(".error"));

    // A crash cut a line, and the next one is whole all the same.
    let cut = waiting[0][..waiting[0].len() / 2].to_owned();
    let mut file = std::fs::OpenOptions::new().append(true).open(handler.pending()).unwrap();
    file.write_all(cut.as_bytes()).unwrap();
    assert!(handler.run(&["true", "fourth"].map(OsStr::new)).status.success());

    let sent = handler.send_pending();
    assert!(sent.status.success(), "{sent:?}");
    assert!(String::from_utf8_lossy(&sent.stderr).contains("cut lines were not sent"), "{sent:?}");
    assert_eq!(handler.lines(".damaged"), [cut]);
    assert_eq!([handler.lines(".sending"), handler.lines("")].concat(), [""; 0]);
    assert!(handler.send_pending().status.success(), "nothing waits");

    // Killed after the sending and before the removal: the same lines once more.
    std::fs::write(handler.dir.path().join("state/pending.jsonl.sending"), waiting.join("\n") + "\n")
        .unwrap();
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

    let script = r#"trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.02; done"#;
    let args = ["--", "bash", "-c", script].map(OsStr::new);
    let mut command = handler.command(scene.setting("KAFKA_BROKERS"), &args);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((child.wait().unwrap().code(), rest.as_str()), (Some(5), "term\n"));
    assert_eq!(handler.run(&["bash", "-c", "kill -KILL $$"].map(OsStr::new)).status.code(), Some(137));
    assert_eq!(handler.run(&["no-such-command"].map(OsStr::new)).status.code(), Some(127));
    assert_eq!(stored(&scene, 4, "result_signature"), ["0", "5", "137", "127"].map(Value::from));
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
