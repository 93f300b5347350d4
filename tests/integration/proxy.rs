//! Stands between a command and PostgreSQL: counts connections, and can fall silent in one of them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A proxy; its threads end with the test's process.
pub(crate) struct Proxy {
    /// The database's URL through the proxy.
    pub(crate) url: String,
    connection_count: Arc<AtomicUsize>,
}

impl Proxy {
    /// A proxy to the database at `url`. Where a client first sends `silent_at`, that connection passes nothing on from
    /// there, and is closed after `silence`.
    pub(crate) fn new(url: &str, silent_at: Option<&'static str>, silence: Duration) -> Self {
        let (head, rest) = url.rsplit_once('@').unwrap();
        let (server, database) = rest.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{head}@{}/{database}", listener.local_addr().unwrap());
        let connection_count = Arc::new(AtomicUsize::new(0));
        let (count, server, is_used) =
            (Arc::clone(&connection_count), server.to_owned(), AtomicBool::new(false));
        std::thread::spawn(move || {
            let is_used = Arc::new(is_used);
            for client in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                let (from_server, to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let is_used = Arc::clone(&is_used);
                std::thread::spawn(move || pass(from_server, to_client, |_| false, Duration::ZERO));
                std::thread::spawn(move || {
                    let is_last = |bytes: &[u8]| {
                        silent_at.is_some_and(|text| {
                            bytes.windows(text.len()).any(|part| part == text.as_bytes())
                                && !is_used.swap(true, Ordering::SeqCst)
                        })
                    };
                    pass(client, server, is_last, silence);
                });
            }
        });
        Self { url, connection_count }
    }

    /// How many connections there were.
    pub(crate) fn connection_count(&self) -> usize {
        self.connection_count.load(Ordering::SeqCst)
    }
}

/// Passes bytes on until the end, or until `is_last`; then nothing for `silence`, and closes both.
fn pass(mut from: TcpStream, mut to: TcpStream, is_last: impl Fn(&[u8]) -> bool, silence: Duration) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if is_last(&buffer[..len]) {
            std::thread::sleep(silence);
            break;
        }
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        drop(stream.shutdown(Shutdown::Both));
    }
}
