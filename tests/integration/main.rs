//! The promise, on a real Kafka and a real PostgreSQL. Each test has a topic, a group and a database of its own;
//! tests that stop a server have a stack of their own.
//!
//! `TEST_SCALE=full` runs the counts that the issue names; otherwise the same tests run smaller.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::string_slice,
    reason = "a test that can't go on must stop loudly; tests measure real time"
)]

mod account;
mod broker;
mod browser;
mod crash;
mod damage;
mod door;
mod examples;
mod export;
mod legacy;
mod letters;
mod operator;
mod outage;
mod page;
mod projections;
mod prometheus;
mod proxy;
mod rebalance;
mod records;
mod redrive;
mod registry;
mod relay;
mod retention;
mod rights;
mod scene;
mod schema;
mod security;
mod spooling;
mod strays;
mod streams;
mod traces;
mod verify;
