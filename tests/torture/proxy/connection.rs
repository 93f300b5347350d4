//! One connection through the proxy: a thread for each direction.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Ending, Shared, Wire};

/// How often a thread that reads looks what became of its connection.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long the server has for what was asked before its answer is lost with the connection.
const SWALLOW_LASTS: Duration = Duration::from_millis(400);
const PIECE_LEN_BYTES: usize = 64 * 1024;
/// A simple query `COMMIT` (PostgreSQL, "Frontend/Backend Protocol"), as our commits send it.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
/// The API keys of `OffsetCommit` and `Heartbeat` (Kafka, "Protocol"): by their answers a member learns that it is none.
const OF_MEMBERS: [u16; 2] = [8, 12];
/// The API key of `EndTxn` (Kafka, "Protocol").
const END_TXN: u16 = 26;
/// The first version of `EndTxn` with flexible fields.
const END_TXN_FLEXIBLE: u16 = 3;

const OPEN: u8 = 0;
const CUT: u8 = 1;
const RESET: u8 = 2;

#[derive(Debug)]
pub(super) struct Connection {
    client: TcpStream,
    server: TcpStream,
    fate: AtomicU8,
    /// Nothing passes.
    is_silent: AtomicBool,
    /// Nothing passes to the client.
    is_muted: AtomicBool,
    /// Held while a frame is written to the client.
    writing: Mutex<()>,
}

impl Connection {
    pub(super) fn new(client: TcpStream, server: TcpStream) -> io::Result<Self> {
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LOOK_INTERVAL))?;
        }
        Ok(Self {
            client,
            server,
            fate: AtomicU8::new(OPEN),
            is_silent: AtomicBool::new(false),
            is_muted: AtomicBool::new(false),
            writing: Mutex::new(()),
        })
    }

    pub(super) fn is_over(&self) -> bool {
        self.fate.load(Ordering::SeqCst) != OPEN
    }

    pub(super) fn end(self: &Arc<Self>, ending: Ending) {
        match ending {
            Ending::Cut => self.close(CUT),
            Ending::Reset => self.close(RESET),
            Ending::HalfOpen(lasts) => {
                self.is_silent.store(true, Ordering::SeqCst);
                let this = Arc::clone(self);
                std::thread::spawn(move || {
                    std::thread::sleep(lasts);
                    this.close(RESET);
                });
            }
        }
    }

    /// A reset is sent when the last thread lets go of the sockets.
    fn close(&self, fate: u8) {
        if self.fate.compare_exchange(OPEN, fate, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return;
        }
        for stream in [&self.client, &self.server] {
            if fate == RESET {
                let lingers = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
                debug_assert!(lingers.is_ok(), "{lingers:?}");
            } else {
                drop(stream.shutdown(Shutdown::Both));
            }
        }
    }

    /// Starts both directions.
    pub(super) fn run(self: Arc<Self>, shared: &Arc<Shared>) -> io::Result<()> {
        for is_to_server in [true, false] {
            let (this, shared) = (Arc::clone(&self), Arc::clone(shared));
            std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
                // Whatever ends one direction ends both.
                drop(this.pump(&shared, is_to_server));
                this.close(CUT);
                shared.lock().retain(|other| !Arc::ptr_eq(other, &this));
            })?;
        }
        Ok(())
    }

    fn pump(&self, shared: &Shared, is_to_server: bool) -> io::Result<()> {
        let mut piece = vec![0; PIECE_LEN_BYTES];
        loop {
            let len = match shared.wire {
                Wire::Postgres => self.read_some(shared, is_to_server, &mut piece)?,
                Wire::Kafka => self.read_frame(shared, is_to_server, &mut piece)?,
            };
            let Some(bytes) = piece.get(..len).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
            let delay_ms = shared.delay_ms.load(Ordering::SeqCst);
            if delay_ms > 0 {
                std::thread::sleep(Duration::from_millis(delay_ms));
            }
            if is_to_server {
                self.pass_to_server(shared, bytes)?;
            } else if !self.is_muted.load(Ordering::SeqCst) {
                let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
                (&self.client).write_all(bytes)?;
            }
            if piece.len() > 16 * PIECE_LEN_BYTES {
                piece = vec![0; PIECE_LEN_BYTES];
            }
        }
    }

    fn pass_to_server(&self, shared: &Shared, bytes: &[u8]) -> io::Result<()> {
        let is_of_member =
            shared.wire == Wire::Kafka && api_key(bytes).is_some_and(|key| OF_MEMBERS.contains(&key));
        if is_of_member && shared.is_deaf.load(Ordering::SeqCst) {
            return Ok(());
        }
        let is_last_step = match shared.wire {
            Wire::Postgres => bytes.windows(COMMIT.len()).any(|part| part == COMMIT),
            Wire::Kafka => api_key(bytes) == Some(END_TXN),
        };
        if is_last_step && Shared::take(&shared.swallow_count, &shared.swallowed_count) {
            self.is_muted.store(true, Ordering::SeqCst);
            (&self.server).write_all(bytes)?;
            std::thread::sleep(SWALLOW_LASTS);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let is_lie = is_last_step && shared.wire == Wire::Kafka;
        if is_lie && Shared::take(&shared.lie_count, &shared.lied_count) {
            let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            return (&self.client).write_all(&success_of_end_txn(bytes));
        }
        (&self.server).write_all(bytes)
    }

    /// Reads what is there; 0: the end.
    fn read_some(&self, shared: &Shared, is_to_server: bool, piece: &mut [u8]) -> io::Result<usize> {
        let mut from = if is_to_server { &self.client } else { &self.server };
        loop {
            if self.is_over() {
                return Ok(0);
            }
            if self.is_silent.load(Ordering::SeqCst) || shared.is_severed.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK_INTERVAL);
                continue;
            }
            match from.read(piece) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                outcome => return outcome,
            }
        }
    }

    fn read_all(&self, shared: &Shared, is_to_server: bool, mut part: &mut [u8]) -> io::Result<bool> {
        while !part.is_empty() {
            let len = self.read_some(shared, is_to_server, part)?;
            if len == 0 {
                return Ok(false);
            }
            part = part.get_mut(len..).unwrap_or_default();
        }
        Ok(true)
    }

    /// Reads a request or an answer of Kafka with its length before it.
    fn read_frame(&self, shared: &Shared, is_to_server: bool, piece: &mut Vec<u8>) -> io::Result<usize> {
        let mut head = [0; 4];
        if !self.read_all(shared, is_to_server, &mut head)? {
            return Ok(0);
        }
        let len = usize::try_from(u32::from_be_bytes(head)).unwrap_or(0);
        if piece.len() < len + 4 {
            piece.resize(len + 4, 0);
        }
        let (first, rest) = piece.split_at_mut(4);
        first.copy_from_slice(&head);
        let body = rest.get_mut(..len).unwrap_or_default();
        Ok(if self.read_all(shared, is_to_server, body)? { len + 4 } else { 0 })
    }
}

fn number(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*frame.get(at..at + 2)?.first_chunk()?))
}

fn api_key(frame: &[u8]) -> Option<u16> {
    number(frame, 4)
}

/// What a broker answers when a transaction has ended well: no throttling, no error.
fn success_of_end_txn(request: &[u8]) -> Vec<u8> {
    let is_flexible = number(request, 6).is_some_and(|version| version >= END_TXN_FLEXIBLE);
    let correlation = request.get(8..12).unwrap_or_default();
    let tags: &[u8] = if is_flexible { &[0] } else { &[] };
    let body = [correlation, tags, &[0; 4], &[0; 2], tags].concat();
    [&u32::try_from(body.len()).unwrap_or(0).to_be_bytes(), body.as_slice()].concat()
}
