//! The spool on disks that fail, forget, fill up and lie.

mod damage;
mod failure;
mod local;
mod room;
mod scene;
#[path = "../../tests/simulation/disk.rs"]
#[allow(dead_code, reason = "the simulation uses the rest")]
mod sim;

use super::disk as disk_api;
