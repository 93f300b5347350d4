//! A backlog, beside `psql \copy`: by size of records and lanes, and by size of batches.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Options;
use crate::bed::Bed;
use crate::daemon::{by_copy, export_rows, through};
use crate::load::{Shape, with_topic};
use crate::plot::{Line, draw};
use crate::rounds::Rounds;

const LENS: [usize; 3] = [250, 600, 2_000];
const LANES: [&str; 3] = ["1", "2", "4"];
const ONE_COPY: &str = "copy, 1 session";
const SIZES: [u32; 6] = [1_000, 2_500, 5_000, 10_000, 20_000, 50_000];
const PLOT: &str = "target/reports/batches.svg";
const TWO_COPIES: &str = "copy, 2 sessions";

/// The files that `\copy` reads; gone when dropped.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) whole: Vec<PathBuf>,
    pub(crate) halves: Vec<PathBuf>,
}

impl Rows {
    /// The rows that the daemon stored last.
    pub(crate) fn export(bed: &Bed) -> anyhow::Result<Self> {
        let file = |name: &str| bed.dir.join(name);
        let rows = Self { whole: vec![file("rows")], halves: vec![file("rows-1"), file("rows-2")] };
        export_rows(bed, &rows.whole)?;
        export_rows(bed, &rows.halves)?;
        Ok(rows)
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        for file in self.whole.iter().chain(&self.halves) {
            if let Err(error) = std::fs::remove_file(file) {
                println!("{} stays: {error}", file.display());
            }
        }
    }
}

/// By size and lanes.
pub(crate) fn measure(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let mut report = json!({});
    for len in LENS {
        // As many bytes of the longest as of the others.
        let record_count = if len == 2_000 { options.records / 2 } else { options.records };
        println!("{record_count} records of {len} bytes");
        let load = (Shape::of(len), record_count);
        let rounds = with_topic(bed, &format!("backlog.{len}"), load, |topic| {
            let mut rounds = Rounds::default();
            let mut rows = None;
            for _ in 0..options.rounds {
                for lanes in LANES {
                    let figures = through(bed, topic, record_count, &[("LANES", lanes)])?;
                    rounds.add(&format!("{lanes} lanes"), figures);
                    if rows.is_none() {
                        rows = Some(Rows::export(bed)?);
                    }
                }
                if let Some(rows) = &rows {
                    rounds.add(ONE_COPY, by_copy(bed, &rows.whole, record_count)?);
                    rounds.add(TWO_COPIES, by_copy(bed, &rows.halves, record_count)?);
                }
            }
            Ok(rounds)
        })?;
        let title = format!("{record_count} records of {len} bytes, medians of {} rounds", options.rounds);
        report[format!("{len}_bytes")] = rounds.report(&title, &[ONE_COPY, TWO_COPIES]);
    }
    Ok(report)
}

/// By size of batches and lanes; docs/batches.svg is [`PLOT`].
pub(crate) fn measure_batches(bed: &Bed, options: &Options) -> anyhow::Result<Value> {
    let record_count = options.records / 4;
    let case = |size: u32, lanes: &str| format!("{size} by {lanes}");
    let rounds = with_topic(bed, "batches", (Shape::of(600), record_count), |topic| {
        let mut rounds = Rounds::default();
        for _ in 0..options.rounds {
            for size in SIZES {
                for lanes in LANES {
                    let text = size.to_string();
                    let settings = [
                        ("LANES", lanes),
                        ("BATCH_MAX_EVENTS", text.as_str()),
                        ("BATCH_MAX_BYTES", "256MiB"),
                    ];
                    rounds.add(&case(size, lanes), through(bed, topic, record_count, &settings)?);
                }
            }
        }
        Ok(rounds)
    })?;
    let line = |lanes: &&str| -> Line {
        let points =
            SIZES.iter().filter_map(|size| Some((f64::from(*size), rounds.rate(&case(*size, lanes))?)));
        (format!("{lanes} lanes"), points.collect())
    };
    let lines: Vec<Line> = LANES.iter().map(line).collect();
    std::fs::create_dir_all("target/reports")?;
    draw(Path::new(PLOT), &lines)?;
    println!("plot: {PLOT}");
    Ok(rounds.report(&format!("{record_count} records of 600 bytes: records in a batch by lanes"), &[]))
}
