//! A reader of day files as log shippers are: follows each file by name from its start (`tail -F`).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{SINKS, check_equal, exported, files};
use crate::scene::Scene;

#[derive(Debug, Default)]
struct Followed {
    inode: u64,
    at: u64,
    rest: Vec<u8>,
}

/// What a reader saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    lines: BTreeMap<&'static str, Vec<String>>,
    /// Files that became shorter, or others, under it.
    pub(crate) broken: Vec<String>,
    followed: BTreeMap<PathBuf, Followed>,
}

impl Seen {
    fn look(&mut self, homes: &[PathBuf]) {
        for (sink, _) in SINKS {
            for path in files(homes, sink) {
                self.read(sink, path);
            }
        }
    }

    fn read(&mut self, sink: &'static str, path: PathBuf) {
        let Ok(file) = File::open(&path) else { return };
        let metadata = file.metadata().unwrap();
        let followed = self.followed.entry(path.clone()).or_default();
        let is_other = followed.inode != 0 && followed.inode != metadata.ino();
        if is_other || metadata.len() < followed.at {
            self.broken.push(format!("{} of {} bytes at {}", path.display(), metadata.len(), followed.at));
            *followed = Followed::default();
        }
        followed.inode = metadata.ino();
        let mut piece = vec![0; 1 << 16];
        loop {
            let len = file.read_at(&mut piece, followed.at).unwrap();
            if len == 0 {
                break;
            }
            followed.at += u64::try_from(len).unwrap();
            followed.rest.extend_from_slice(&piece[..len]);
        }
        while let Some(end) = followed.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = followed.rest.drain(..=end).collect();
            let line = String::from_utf8(line[..end].to_vec()).unwrap();
            self.lines.entry(sink).or_default().push(line);
        }
    }

    /// Asserts that every line of every row was seen once, nothing else, and no file became shorter.
    #[track_caller]
    pub(crate) fn check_seen_once(mut self, scene: &Scene) {
        assert_eq!(self.broken, Vec::<String>::new());
        for (sink, _) in SINKS {
            let mut seen = self.lines.remove(sink).unwrap_or_default();
            seen.sort();
            check_equal(&seen, &exported(scene, sink), &format!("a reader of {sink}"));
        }
        assert!(self.followed.values().all(|followed| followed.rest.is_empty()), "a line has no end");
    }
}

/// A reader at work.
#[derive(Debug)]
pub(crate) struct Follower {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
    homes: Vec<PathBuf>,
}

impl Follower {
    pub(crate) fn start(homes: &[PathBuf]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, followed) = (Arc::clone(&stop), homes.to_vec());
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !stopped.load(Ordering::Relaxed) {
                seen.look(&followed);
                std::thread::sleep(Duration::from_millis(3));
            }
            seen
        });
        Self { stop, thread, homes: homes.to_vec() }
    }

    /// What it saw, to the ends of the files.
    pub(crate) fn finish(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = self.thread.join().unwrap();
        seen.look(&self.homes);
        seen
    }
}
