//! A real Prometheus scrapes a run with an outage, a drain, dead letters and a rebalance: what dashboards and rules ask
//! for is there.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::account::PLAN;
use crate::scene::{Daemon, Stack, wait_for};
use crate::spooling::{check_drained, scene, wait_until};

/// Rates that `[$__rate_interval]` and the rules ask for need so much of a run: four scrapes.
const SCRAPE_SECONDS: u64 = 1;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Debian's Prometheus over some daemons.
struct Prometheus {
    child: Child,
    port: u16,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        assert!(ended.is_ok() || std::thread::panicking(), "{ended:?}");
    }
}

impl Prometheus {
    fn start(folder: &Path, daemons: &[u16]) -> Self {
        if folder.try_exists().unwrap() {
            std::fs::remove_dir_all(folder).unwrap();
        }
        std::fs::create_dir_all(folder).unwrap();
        let targets: Vec<String> = daemons.iter().map(|port| format!("'127.0.0.1:{port}'")).collect();
        let config = format!(
            "global: {{scrape_interval: {SCRAPE_SECONDS}s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs: [{{job_name: audit-consumer, static_configs: [{{targets: [{}]}}]}}]\n",
            root().join("deploy/prometheus/rules.yaml").display(),
            targets.join(", ")
        );
        std::fs::write(folder.join("prometheus.yaml"), config).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("start prometheus: {error}; install Debian's package of that name, as .ci/run does")
            });
        let prometheus = Self { child, port };
        wait_for("prometheus", Duration::from_secs(30), || prometheus.get("/-/ready").is_some());
        prometheus
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        (head.starts_with("HTTP/1.0 200") || head.contains(" 400 ")).then(|| body.to_owned())
    }

    /// What it answers to an expression: how many series, or why it can't be read.
    fn series_count(&self, expression: &str) -> Result<usize, String> {
        let mut query = String::new();
        for byte in expression.bytes() {
            write!(query, "%{byte:02x}").unwrap();
        }
        let answer = self.get(&format!("/api/v1/query?query={query}")).ok_or("no answer")?;
        let answer: Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
        match answer["data"]["result"].as_array() {
            Some(result) => Ok(result.len()),
            None => Err(answer["error"].to_string()),
        }
    }
}

/// Every expression of the dashboards, with what it belongs to; variables stand for everything.
fn dashboard_expressions() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let folder = root().join("deploy/grafana/dashboards");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        collect(&json, name, &mut found);
    }
    found
}

fn collect(value: &Value, of: &str, found: &mut Vec<(String, String)>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, of, found)),
        Value::Object(map) => {
            let title = map.get("title").or(map.get("name")).and_then(Value::as_str);
            let of = title.map_or(of.to_owned(), |title| format!("{of}: {title}"));
            if let Some(expression) = map.get("expr").and_then(Value::as_str).filter(|text| !text.is_empty())
            {
                let text = expression
                    .replace("$job", ".+")
                    .replace("$instance", ".+")
                    .replace("$__rate_interval", "10s")
                    .replace("$__interval", "10s")
                    .replace("$__range", "5m");
                assert!(!text.contains('$'), "{of}: a variable that this test does not know: {text}");
                found.push((of.clone(), text));
            }
            map.values().for_each(|value| collect(value, &of, found));
        }
        _ => {}
    }
}

/// The expressions of the rules.
fn rule_expressions(prometheus: &Prometheus) -> Vec<(String, String, bool)> {
    let answer: Value = serde_json::from_str(&prometheus.get("/api/v1/rules").unwrap()).unwrap();
    let groups = answer["data"]["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    rules
        .map(|rule| {
            assert_eq!(rule["health"], "ok", "{rule:#}");
            let text = |key: &str| rule[key].as_str().unwrap().to_owned();
            (text("name"), text("query"), rule["type"] == "recording")
        })
        .collect()
}

/// The names of ours in an expression.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("audit_consumer_")).map(str::to_owned).collect()
}

fn check_by_promtool(daemon: &Daemon) {
    let (code, text) = daemon.get("/metrics").unwrap();
    assert_eq!(code, 200);
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("start promtool: {error}; install Debian's package prometheus, as .ci/run does")
        });
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    // It prints what it would have otherwise, and succeeds all the same.
    let said = String::from_utf8(said).unwrap();
    let about_us: Vec<&str> = said.lines().filter(|line| line.starts_with("audit_consumer_")).collect();
    assert!(output.status.success() && about_us.is_empty(), "{said}");
}

#[test]
fn what_dashboards_and_rules_ask_for_is_there() {
    let stack = Stack::private();
    let (scene, dir) = scene(&stack, "prometheus", 6);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prometheus");
    let homes = ["a", "b"].map(|name| folder.join("logs").join(name));
    if folder.join("logs").try_exists().unwrap() {
        std::fs::remove_dir_all(folder.join("logs")).unwrap();
    }
    let scene = scene.set("PURVIEW_LOG", "on").set("TRUST_LOG", "on").set("PROJECT_LAG_MAX_MS", "0");
    let mut first = scene.daemon_with(&[("LOG_DIR", homes[0].to_str().unwrap())]);
    let prometheus = Prometheus::start(&folder.join("server"), &[first.port()]);
    let mut produced = 0;
    let mut produce = |count: u64| {
        scene.produce(&PLAN, produced, produced + count);
        produced += count;
        produced
    };
    scene.wait_until_read(produce(5_000), Duration::from_secs(60));
    stack.run(&["stop", "postgres", "immediate"]);
    produce(5_000);
    wait_until(&first, "spooling", 6);
    std::thread::sleep(Duration::from_secs(4 * SCRAPE_SECONDS));
    stack.run(&["start", "postgres"]);
    wait_until(&first, "live", 6);
    check_drained(&scene, &first, &dir);
    let second = scene.daemon_with(&[
        ("LOG_DIR", homes[1].to_str().unwrap()),
        ("SPOOL_DIR", homes[1].join("spool").to_str().unwrap()),
    ]);
    wait_for("two share", Duration::from_secs(40), || second.partition_count() == 3);
    second.kill();
    wait_for("one is left", Duration::from_secs(60), || first.partition_count() == 6);
    scene.wait_until_read(produce(5_000), Duration::from_secs(60));
    std::thread::sleep(Duration::from_secs(4 * SCRAPE_SECONDS));

    let mut missing = Vec::new();
    let expressions = dashboard_expressions();
    assert!(expressions.len() > 60, "only {} expressions", expressions.len());
    for (of, expression) in &expressions {
        match prometheus.series_count(expression) {
            Ok(0) if !has_shown(&prometheus, expression) => {
                missing.push(format!("{of}: nothing for {expression}"));
            }
            Ok(_) => {}
            Err(why) => missing.push(format!("{of}: {why}: {expression}")),
        }
    }
    let rules = rule_expressions(&prometheus);
    assert!(rules.len() > 25, "only {} rules", rules.len());
    for (name, expression, is_recording) in &rules {
        if *is_recording && prometheus.series_count(name) == Ok(0) {
            missing.push(format!("rule {name} has recorded nothing"));
        }
        // An alert that does not fire has no series; what it looks at has.
        for metric in metrics_in(expression) {
            let count = prometheus.series_count(&metric);
            if count.as_ref().is_ok_and(|count| *count > 0) || may_be_absent(&metric) {
                continue;
            }
            missing.push(format!("rule {name} asks for {metric}, which is {count:?}"));
        }
    }
    assert!(missing.is_empty(), "{} of them:\n{}", missing.len(), missing.join("\n"));
    check_by_promtool(&first);
    assert!(first.terminate(Duration::from_secs(20)).0.success());
    scene.verify();
}

/// Whether an expression that gives nothing now did so at some time of the run, as of a drain; or would, if something
/// were to be foreseen. Alerts are none: what they ask for is looked at by itself.
fn has_shown(prometheus: &Prometheus, expression: &str) -> bool {
    let over_time = format!("count_over_time(({expression})[10m:1s])");
    let unforeseen = expression.replace("< +Inf", "== +Inf");
    let gives = |expression: &str| prometheus.series_count(expression).is_ok_and(|count| count > 0);
    expression.starts_with("ALERTS{")
        || metrics_in(expression).iter().all(|metric| may_be_absent(metric))
        || gives(&over_time)
        || (unforeseen != expression && gives(&unforeseen))
}

/// Counters whose label values are only known when something happens, and nothing of the kind happened.
fn may_be_absent(metric: &str) -> bool {
    [
        "audit_consumer_relay_failures_total",
        "audit_consumer_projection_failures_total",
        "audit_consumer_partitions_held",
    ]
    .contains(&metric)
}
