//! What the daemons of a run are told: everything happens soon.

use std::path::PathBuf;

use crate::fault::Fault;
use crate::fleet::{Home, NO_JUMP};
use crate::options::Options;
use crate::payload::MAX_EVENT_LEN_BYTES;
use crate::power;
use crate::servers::{SMALL_DISK, Servers};
use crate::side::{AGAIN_TOPIC, DELETED_TOPIC, SPOOLED_TOPIC};
use crate::{GROUP, TOPIC};

/// The first HTTP port of the daemons, after those of PostgreSQL.
const HTTP_PORT_OFFSET: u16 = 10;

/// The name of a daemon's consumer, by which the group's member is found.
pub(crate) fn client_id(index: usize) -> String {
    format!("torture-{index}")
}

/// Directory, port and settings of a daemon.
pub(crate) fn home(servers: &Servers, index: usize, options: &Options) -> anyhow::Result<Home> {
    let dir = servers.dir.join(format!("daemon-{index}"));
    std::fs::create_dir_all(&dir)?;
    let http_port = servers.ports.postgres + HTTP_PORT_OFFSET + u16::try_from(index)?;
    let mut settings = vec![
        ("DATABASE_URL", servers.proxied_url(index)),
        ("KAFKA_BROKERS", servers.proxied_brokers()),
        ("KAFKA_TOPICS", [TOPIC, DELETED_TOPIC, SPOOLED_TOPIC, AGAIN_TOPIC].join(",")),
        ("KAFKA_GROUP_ID", GROUP.to_owned()),
        ("KAFKA_SESSION_TIMEOUT_MS", "4000".to_owned()),
        (
            "KAFKA_PROPERTIES",
            format!("topic.metadata.refresh.interval.ms=5000,client.id={}", client_id(index)),
        ),
        ("HTTP_ADDRESS", format!("127.0.0.1:{http_port}")),
        ("LOG_DIR", dir.display().to_string()),
        ("MAX_EVENT_BYTES", MAX_EVENT_LEN_BYTES.to_string()),
        ("SPOOL_AFTER_MS", "500".to_owned()),
        ("SPOOL_MIN_FREE_BYTES", "1MiB".to_owned()),
        ("SPOOL_SEGMENT_BYTES", "1MiB".to_owned()),
        ("PROJECT_LAG_MAX_MS", "3000".to_owned()),
        ("VERIFY_INTERVAL_MS", "2000".to_owned()),
        ("GAP_WAIT_MS", "20000".to_owned()),
        ("CLAIM_TIMEOUT_MS", "5000".to_owned()),
        ("LOCK_TIMEOUT_MS", "5000".to_owned()),
        ("STATEMENT_TIMEOUT_MS", "20000".to_owned()),
    ];
    // One of them is a static member: its restarts are no rebalance.
    if index == 0 {
        settings.push(("KAFKA_INSTANCE_ID", "torture-0".to_owned()));
    }
    if let Some(mutant) = &options.mutant {
        settings.push(("FAILPOINTS", format!("{mutant}=return")));
    }
    if index == SMALL_DISK && options.selection.has(Fault::DiskFull) {
        servers.mount_small_disk()?;
        settings.push(("SPOOL_MIN_FREE_BYTES", "1KiB".to_owned()));
    }
    // One clock stays right.
    let clock = if index > 0 && options.selection.has(Fault::ClockJump) { faketime() } else { None };
    let clock = clock.map(|library| (library, dir.join("clock")));
    let mut libraries = vec![power::build(&servers.dir)?];
    settings.push(("TORTURE_SYNCED", power::note_of(&dir).display().to_string()));
    if let Some((library, file)) = &clock {
        std::fs::write(file, NO_JUMP)?;
        libraries.push(library.clone());
        settings.extend([
            ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]);
    }
    let libraries: Vec<String> = libraries.iter().map(|path| path.display().to_string()).collect();
    settings.push(("LD_PRELOAD", libraries.join(":")));
    let clock = clock.map(|(_, file)| file);
    let settings = settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Ok(Home { dir, binary: servers.binary(), http_port, settings, clock })
}

/// The library that changes what a process takes for the time.
fn faketime() -> Option<PathBuf> {
    let dirs = std::fs::read_dir("/usr/lib").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    dirs.map(|dir| dir.join("faketime/libfaketimeMT.so.1")).find(|path| path.try_exists().unwrap_or(false))
}
