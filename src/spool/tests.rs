//! The spool on disks that fail, forget, fill up and lie.

mod damage;
mod failure;
mod local;
mod room;
mod scene;
mod sim;
