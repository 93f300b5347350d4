//! The properties that `make fuzz` tries, on each input of `fuzz/corpus`: seeds, and what a fuzzer once found.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a property that does not hold panics"
)]
#![expect(clippy::indexing_slicing, reason = "out of bounds is a finding")]

#[expect(unreachable_pub, reason = "it is a library for the fuzz targets")]
#[path = "../fuzz/src/lib.rs"]
mod properties;

use std::path::Path;

/// Fewer inputs than this are no corpus.
const INPUT_COUNT_MIN: usize = 10;

#[track_caller]
fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in &paths {
        let input = std::fs::read(path).unwrap();
        let outcome = std::panic::catch_unwind(|| check(&input));
        assert!(outcome.is_ok(), "see above; the input is {}", path.display());
    }
    assert!(paths.len() >= INPUT_COUNT_MIN, "only {} inputs in {}", paths.len(), corpus.display());
}

#[test]
fn what_decoding_promises_holds_for_every_event_of_the_corpus() {
    replay("event", properties::event::check);
}

#[test]
fn what_the_spool_promises_holds_for_every_line_of_the_corpus() {
    replay("spool_line", properties::spool_line::check);
}

#[test]
fn what_the_spool_promises_holds_for_every_segment_of_the_corpus() {
    replay("spool_segment", properties::spool_segment::check);
}

#[test]
fn what_settings_promise_holds_for_every_entry_of_the_corpus() {
    replay("config", properties::config::check);
}
