//! Stands between the daemons and a server, and can delay, cut, reset, half-open, and swallow the one answer that
//! matters: that of COMMIT or of `EndTxn`. It can also lie: answer `EndTxn` and pass nothing on; and keep a member of a group
//! from hearing that it is none any more.

mod connection;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::connection::Connection;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Postgres,
    Kafka,
}

/// How connections end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Both sides are told.
    Cut,
    /// By RST.
    Reset,
    /// Nothing passes any more, and only after this the sides are told.
    HalfOpen(Duration),
}

/// One way to a server, on a port of its own. Its threads end with the process.
#[derive(Debug, Clone)]
pub(crate) struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    wire: Wire,
    target_port: AtomicUsize,
    /// New connections are closed at once, and nothing passes on the others.
    is_severed: AtomicBool,
    delay_ms: AtomicU64,
    /// How many answers are still to be swallowed, and were.
    swallow_count: AtomicUsize,
    swallowed_count: AtomicU64,
    lie_count: AtomicUsize,
    lied_count: AtomicU64,
    /// No heartbeat and no commit of a member of a group passes.
    is_deaf: AtomicBool,
    connections: Mutex<Vec<Arc<Connection>>>,
}

impl Link {
    /// Listens on `port` of 127.0.0.1, for the server on `target_port`.
    pub(crate) fn new(wire: Wire, port: u16, target_port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port)))?;
        let link = Self(Arc::new(Shared {
            wire,
            target_port: AtomicUsize::new(usize::from(target_port)),
            is_severed: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            swallow_count: AtomicUsize::new(0),
            swallowed_count: AtomicU64::new(0),
            lie_count: AtomicUsize::new(0),
            lied_count: AtomicU64::new(0),
            is_deaf: AtomicBool::new(false),
            connections: Mutex::new(Vec::new()),
        }));
        let shared = Arc::clone(&link.0);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                match client.and_then(|client| shared.connect(client)) {
                    Ok(()) => {}
                    // The server is away: the client is told by the end of its connection.
                    Err(_) => continue,
                }
            }
        });
        Ok(link)
    }

    /// New connections go to the server on this port.
    pub(crate) fn lead_to(&self, port: u16) {
        self.0.target_port.store(usize::from(port), Ordering::SeqCst);
    }

    /// Lets nothing pass, or everything again; what came meanwhile is lost with its connection.
    pub(crate) fn sever(&self, is_severed: bool) {
        self.0.is_severed.store(is_severed, Ordering::SeqCst);
        if !is_severed {
            self.end(Ending::Cut, |_| true);
        }
    }

    /// How long each piece waits from now on.
    pub(crate) fn delay(&self, delay: Duration) {
        self.0.delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(0), Ordering::SeqCst);
    }

    /// Ends the connections that `choose` picks by their place; returns how many.
    pub(crate) fn end(&self, ending: Ending, mut choose: impl FnMut(usize) -> bool) -> usize {
        let connections = self.0.lock().clone();
        let chosen: Vec<_> =
            connections.into_iter().enumerate().filter(|(index, _)| choose(*index)).collect();
        for (_, connection) in &chosen {
            connection.end(ending);
        }
        chosen.len()
    }

    /// The answer of the next COMMIT or `EndTxn` is swallowed, or none is.
    pub(crate) fn swallow(&self, is_armed: bool) {
        self.0.swallow_count.store(usize::from(is_armed), Ordering::SeqCst);
    }

    /// How many answers were swallowed.
    pub(crate) fn swallowed_count(&self) -> u64 {
        self.0.swallowed_count.load(Ordering::SeqCst)
    }

    /// Each `EndTxn` is answered and not passed on from now on, or no more.
    pub(crate) fn lie(&self, is_lying: bool) {
        self.0.lie_count.store(if is_lying { usize::MAX } else { 0 }, Ordering::SeqCst);
    }

    /// How often it was.
    pub(crate) fn lied_count(&self) -> u64 {
        self.0.lied_count.load(Ordering::SeqCst)
    }

    /// Lets nothing pass by whose answer a member would learn that it is none, or all again; a connection that lost one
    /// would wait for its answer, so all are ended then.
    pub(crate) fn deafen(&self, is_deaf: bool) {
        self.0.is_deaf.store(is_deaf, Ordering::SeqCst);
        if !is_deaf {
            self.end(Ending::Cut, |_| true);
        }
    }

    /// Nothing is armed and nothing delayed any more.
    pub(crate) fn calm(&self) {
        self.0.swallow_count.store(0, Ordering::SeqCst);
        self.0.lie_count.store(0, Ordering::SeqCst);
        self.delay(Duration::ZERO);
        self.0.is_deaf.store(false, Ordering::SeqCst);
        self.0.is_severed.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        if self.is_severed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let port = u16::try_from(self.target_port.load(Ordering::SeqCst)).unwrap_or(0);
        let server = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        let connection = Arc::new(Connection::new(client, server)?);
        let mut connections = self.lock();
        connections.retain(|connection| !connection.is_over());
        connections.push(Arc::clone(&connection));
        drop(connections);
        connection.run(self)
    }

    /// Takes one of what is armed.
    fn take(armed: &AtomicUsize, fired: &AtomicU64) -> bool {
        let is_taken =
            armed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok();
        if is_taken {
            fired.fetch_add(1, Ordering::SeqCst);
        }
        is_taken
    }
}
