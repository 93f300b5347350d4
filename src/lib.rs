//! `audit-consumer`: exactly-once transactional stream processing of compliance audit events, from Kafka to
//! PostgreSQL.
//!
//! The promise: every record of the source topics is in PostgreSQL exactly once, as an event, a counted
//! duplicate or a dead letter, and nothing that was accepted is lost when the process, the broker, the
//! database or the network fails at any moment. ARCHITECTURE.md tells how it is kept; start reading at
//! [`pipeline`].
//!
//! A module imports only from rows above its own (`tests/architecture.rs` keeps this):
//!
//! | row | modules |
//! | --- | --- |
//! | 0 | [`model`] |
//! | 1 | [`config`], `failpoint`, `native`, [`observe`] |
//! | 2 | `kafka` |
//! | 3 | [`outlet`], [`source`], [`spool`], [`store`] |
//! | 4 | [`pipeline`], [`projector`], [`relay`] |
//! | 5 | [`http`] |
//! | 6 | [`app`] |
//! | 7 | [`cli`] |

pub mod app;
pub mod cli;
pub mod config;
mod failpoint;
pub mod http;
mod kafka;
pub mod model;
mod native;
pub mod observe;
pub mod outlet;
pub mod pipeline;
pub mod projector;
pub mod relay;
pub mod source;
pub mod spool;
pub mod store;
