//! What must hold for any input of what reads bytes or texts of others. Each `check` panics where it does not.
//!
//! The fuzz targets call them with what a fuzzer finds, and `tests/fuzz_corpus.rs` with each input of `fuzz/corpus`.

pub mod config;
pub mod event;
pub mod spool_line;
pub mod spool_segment;
