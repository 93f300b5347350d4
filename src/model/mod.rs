//! The pure core: positions, decoding, events, batches, dead letters, spool lines, lines for
//! others, which trace a record belongs to, what the predecessor left, how long events are kept, retry policy.
//!
//! Promises: every function is total and depends on its arguments alone. Never here: tokio, rdkafka, sqlx,
//! the file system, the environment, a clock, randomness, tracing (`tests/architecture.rs` keeps this).

pub mod backoff;
pub mod base64;
pub mod batch;
pub mod belief;
pub mod breaker;
pub mod collisions;
pub mod dead_letter;
pub mod decode;
pub mod event;
pub mod federated;
pub mod forecast;
mod json;
pub mod legacy;
pub mod position;
pub mod projection;
pub mod recent;
pub mod record;
pub mod rejection;
pub mod retention;
pub mod sample;
pub mod secret;
pub mod spool;
mod timestamp;
pub mod trace;
