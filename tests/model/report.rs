//! What the explorations saw: to the screen, and to `target/reports/model.json` under names that stay.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::graph::{Finding, Seen};

/// By kind and name; written whole at each entry, as tests run side by side.
static ENTRIES: Mutex<BTreeMap<(&str, String), Value>> = Mutex::new(BTreeMap::new());

/// Whether the large bounds are explored.
pub fn is_full() -> bool {
    std::env::var("TEST_SCALE").is_ok_and(|scale| scale == "full")
}

/// An exploration that must find nothing.
pub fn run(name: &str, faults: u8, seen: &Seen) {
    println!(
        "{name}: {} states, {} of them unique, {} goals, depth {}, {faults} faults, {:.1} s: {}",
        seen.state_count,
        seen.unique_count,
        seen.goal_count,
        seen.depth,
        seen.elapsed.as_secs_f64(),
        seen.finding.as_ref().map_or("no violation, no stuck state", |finding| finding.property),
    );
    let entry = json!({
        "states": seen.state_count, "unique_states": seen.unique_count, "goal_states": seen.goal_count,
        "depth": seen.depth, "faults": faults, "seconds": seconds(seen),
        "violations": usize::from(seen.finding.is_some()),
        "occurrences": seen.notes.iter().collect::<BTreeMap<_, _>>(),
    });
    write("runs", name, entry);
}

/// A mutant, which must be found.
pub fn found(name: &str, seen: &Seen) {
    let property = seen.finding.as_ref().map(|finding| finding.property);
    println!("mutant {name}: {}", property.unwrap_or("SURVIVED"));
    seen.finding.iter().for_each(tell);
    let entry = json!({
        "killed": property.is_some(), "property": property, "states": seen.state_count,
        "path_length": seen.finding.as_ref().map(|finding| finding.path.len()), "seconds": seconds(seen),
    });
    write("mutants", name, entry);
}

/// The way to a state that must not be, for people.
pub fn tell(finding: &Finding) {
    for (number, step) in (1..).zip(&finding.path) {
        println!("    {number:2}. {step}");
    }
}

fn seconds(seen: &Seen) -> f64 {
    (seen.elapsed.as_secs_f64() * 1000.0).round() / 1000.0
}

fn write(kind: &'static str, name: &str, entry: Value) {
    let mut entries = ENTRIES.lock().unwrap_or_else(PoisonError::into_inner);
    entries.insert((kind, name.to_owned()), entry);
    let of_kind = |wanted: &str| -> BTreeMap<&str, &Value> {
        let own = entries.iter().filter(|((kind, _), _)| *kind == wanted);
        own.map(|((_, name), entry)| (name.as_str(), entry)).collect()
    };
    let runs = of_kind("runs");
    let numbers = |key: &'static str| runs.values().filter_map(move |run| run.get(key)?.as_u64());
    let report = json!({
        "scale": if is_full() { "full" } else { "small" },
        "states": numbers("states").sum::<u64>(),
        "unique_states": numbers("unique_states").sum::<u64>(),
        "depth": numbers("depth").max(),
        "faults": numbers("faults").max(),
        "seconds": runs.values().filter_map(|run| run.get("seconds")?.as_f64()).sum::<f64>(),
        "violations": numbers("violations").sum::<u64>(),
        "runs": runs, "mutants": of_kind("mutants"),
    });
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/reports");
    std::fs::create_dir_all(&directory).expect("a directory for reports");
    std::fs::write(directory.join("model.json"), format!("{report:#}\n")).expect("a report");
}
