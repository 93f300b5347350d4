//! Where the daemon's CPU goes: a flame graph of a backlog, by Linux perf (Debian: linux-perf) and inferno
//! (`cargo install inferno --version 0.12.8`). Not part of a run of all sections: perf slows down what it watches.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::Options;
use crate::bed::Bed;
use crate::daemon::{DATABASE, through_with};
use crate::load::{Shape, with_topic};

const GRAPH: &str = "target/reports/flame.svg";
/// Samples a second; not a divisor of anything that ticks.
const FREQUENCY: &str = "499";

pub(crate) fn measure(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let record_count = options.records / 4;
    let data = bed.dir.join("perf.data");
    let mut perf: Option<Child> = None;
    with_topic(bed, "flame", (Shape::of(600), record_count), |topic| {
        bed.fresh_database(DATABASE)?;
        through_with(bed, topic, record_count, &[], |daemon| {
            if perf.is_none() {
                let command = ["record", "-q", "-F", FREQUENCY, "--call-graph", "dwarf,16384", "-o"];
                let id = daemon.id().to_string();
                let started = Command::new("perf").args(command).arg(&data).args(["-p", &id]).spawn();
                perf = Some(started.context("run perf; Debian's package is linux-perf")?);
            }
            Ok(())
        })
    })?;
    if let Some(mut perf) = perf {
        // It ends with the daemon.
        perf.wait()?;
    }
    draw(&data)?;
    std::fs::remove_file(&data)?;
    println!("flame graph: {GRAPH}");
    Ok(json!({"records": record_count, "file": GRAPH}))
}

fn draw(data: &Path) -> anyhow::Result<()> {
    let piped = |mut command: Command| command.stdout(Stdio::piped()).spawn();
    let mut script = Command::new("perf");
    script.args(["script", "--no-inline", "-i"]).arg(data).stderr(Stdio::null());
    let mut script = piped(script)?;
    let mut collapse = Command::new("inferno-collapse-perf");
    collapse.stdin(script.stdout.take().context("no output of perf")?);
    let mut collapse = piped(collapse).context("run inferno-collapse-perf; cargo install inferno")?;
    let graph = Command::new("inferno-flamegraph")
        .args(["--title", "audit-consumer under a backlog, by thread", "--minwidth", "0.2"])
        .stdin(collapse.stdout.take().context("no output of inferno-collapse-perf")?)
        .stdout(File::create(GRAPH)?)
        .status()?;
    ensure!(
        script.wait()?.success() && collapse.wait()?.success() && graph.success(),
        "no flame graph was drawn"
    );
    Ok(())
}
