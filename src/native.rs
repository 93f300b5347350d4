//! What rdkafka's safe interface does not give: a topic's id, the end of a partition as last fetched, headers whose
//! keys are any bytes (the safe accessor panics on one that is not UTF-8), to read and to send, another password or
//! token, or brokers, for a client that lives, the errors of a client whose queue nobody polls, and an end that nobody
//! waits for; and, of what sqlx's does not give, its sockets.
//!
//! The one module with `unsafe` code. Each block names what librdkafka (rdkafka.h, 2.12) promises for it.
#![expect(unsafe_code, reason = "what rdkafka and sqlx do not wrap; see the module's text")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::io;
use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, OwnedHeaders};
use uuid::Uuid;

/// What is known of a topic's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TopicId {
    /// The topic exists under this id.
    Is(Uuid),
    /// The broker says that there is no such topic.
    Missing,
}

/// A request for topic ids that is under way; waits on a queue of its own.
#[derive(Debug)]
pub(crate) struct TopicIdRequest {
    queue: *mut rd::rd_kafka_queue_t,
}

// SAFETY: a librdkafka queue may be used from any thread ("Thread-safe": rdkafka.h, introduction).
unsafe impl Send for TopicIdRequest {}

impl Drop for TopicIdRequest {
    fn drop(&mut self) {
        // SAFETY: the queue was made by rd_kafka_queue_new and is destroyed once; an answer that comes later is
        // dropped with it.
        unsafe { rd::rd_kafka_queue_destroy(self.queue) }
    }
}

impl TopicIdRequest {
    /// Asks the cluster for the ids of `topics`; does not wait. `None` when a name holds a NUL.
    pub(crate) fn send<C: ConsumerContext>(
        consumer: &BaseConsumer<C>,
        topics: &[&str],
        timeout: Duration,
    ) -> Option<Self> {
        let client = consumer.client().native_ptr();
        let names: Vec<CString> =
            topics.iter().map(|topic| CString::new(*topic).ok()).collect::<Option<_>>()?;
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `client` lives as long as the consumer; names are copied by of_topic_names; collection and
        // options are used by DescribeTopics before it returns and are destroyed here, once; a null error
        // string buffer of length 0 is allowed.
        unsafe {
            let collection =
                rd::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            let options = rd::rd_kafka_AdminOptions_new(
                client,
                rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            );
            rd::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, ptr::null_mut(), 0);
            let queue = rd::rd_kafka_queue_new(client);
            rd::rd_kafka_DescribeTopics(client, collection, options, queue);
            rd::rd_kafka_AdminOptions_destroy(options);
            rd::rd_kafka_TopicCollection_destroy(collection);
            Some(Self { queue })
        }
    }

    /// The answer, if it comes within `wait`: the ids by topic name, or librdkafka's words for why not. A topic
    /// about which the broker could say nothing certain is left out.
    pub(crate) fn poll(&self, wait: Duration) -> Option<Result<Vec<(String, TopicId)>, String>> {
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue lives; a non-null event is ours until it is destroyed at the end of this block, and
        // all that is read from it is copied before.
        unsafe {
            let event = rd::rd_kafka_queue_poll(self.queue, wait_ms);
            if event.is_null() {
                return None;
            }
            let answer = Self::read(event);
            rd::rd_kafka_event_destroy(event);
            answer
        }
    }

    /// # Safety
    /// `event` is a live event.
    unsafe fn read(event: *mut rd::rd_kafka_event_t) -> Option<Result<Vec<(String, TopicId)>, String>> {
        // SAFETY: `event` lives; results, descriptions, names and ids belong to it and are copied out here.
        unsafe {
            let code = rd::rd_kafka_event_error(event);
            if code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Some(Err(text(rd::rd_kafka_event_error_string(event))));
            }
            let result = rd::rd_kafka_event_DescribeTopics_result(event);
            if result.is_null() {
                return None;
            }
            let mut count = 0;
            let descriptions = rd::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            let mut ids = Vec::with_capacity(count);
            for index in 0..count {
                let description = *descriptions.add(index);
                let name = text(rd::rd_kafka_TopicDescription_name(description));
                match rd::rd_kafka_error_code(rd::rd_kafka_TopicDescription_error(description)) {
                    rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {
                        let id = rd::rd_kafka_TopicDescription_topic_id(description);
                        let high = rd::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned();
                        let low = rd::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned();
                        ids.push((name, TopicId::Is(Uuid::from_u64_pair(high, low))));
                    }
                    rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                    | rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID => {
                        ids.push((name, TopicId::Missing));
                    }
                    _ => {}
                }
            }
            Some(Ok(ids))
        }
    }
}

/// A client that is destroyed on a thread of its own, for which nobody waits: to destroy one joins its threads, and
/// librdkafka may never end that when brokers have come and gone (its issues 3954, 4131 and 4519).
#[derive(Debug)]
pub(crate) struct LetGo<T: Send + 'static> {
    client: ManuallyDrop<T>,
    /// Called on that thread before.
    first: fn(),
}

impl<T: Send + 'static> LetGo<T> {
    pub(crate) const fn new(client: T, first: fn()) -> Self {
        Self { client: ManuallyDrop::new(client), first }
    }
}

impl<T: Send + 'static> Deref for LetGo<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.client
    }
}

impl<T: Send + 'static> Drop for LetGo<T> {
    fn drop(&mut self) {
        // SAFETY: taken here only, once; nobody sees the field afterwards.
        let client = unsafe { ManuallyDrop::take(&mut self.client) };
        let first = self.first;
        LET_GO_COUNT.fetch_add(1, Ordering::SeqCst);
        let thread = std::thread::Builder::new().name("kafka-drop".into()).spawn(move || {
            first();
            drop(client);
            LET_GO_COUNT.fetch_sub(1, Ordering::SeqCst);
        });
        if let Err(error) = thread {
            LET_GO_COUNT.fetch_sub(1, Ordering::SeqCst);
            tracing::debug!(%error, "no thread to destroy a client of kafka on; it was destroyed here");
        }
    }
}

/// How many clients are being destroyed.
static LET_GO_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Waits until all clients that were let go are destroyed, for `patience` at most: a process should not end while their
/// threads use what its end takes away (OpenSSL's state).
pub(crate) fn wait_for_let_go(patience: Duration) {
    const PAUSE: Duration = Duration::from_millis(5);
    let mut waited = Duration::ZERO;
    while LET_GO_COUNT.load(Ordering::SeqCst) > 0 && waited < patience {
        std::thread::sleep(PAUSE);
        waited += PAUSE;
    }
}

/// Copies a C string; empty for a null pointer.
///
/// # Safety
/// `pointer` is null or points to a NUL-terminated string.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: not null, and terminated as the caller promises.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// The first offset of a partition and the position after its last one, as the last fetch has seen them; asks nobody.
/// Negative as librdkafka has them: -1001 before the first fetch, -1 where the last one was answered by an error.
pub(crate) fn cached_watermarks<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> Option<(i64, i64)> {
    let topic = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client lives as long as the consumer, the name is terminated, both numbers are ours.
    let code = unsafe {
        rd::rd_kafka_get_watermark_offsets(
            consumer.client().native_ptr(),
            topic.as_ptr(),
            partition,
            &raw mut low,
            &raw mut high,
        )
    };
    (code == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then_some((low, high))
}

/// Calls `each` with the key and the value of each header of `message`, in order.
pub(crate) fn for_each_header(message: &BorrowedMessage<'_>, mut each: impl FnMut(&[u8], Option<&[u8]>)) {
    let mut headers = ptr::null_mut();
    // SAFETY: the message lives; the headers belong to it. NOENT (no headers) leaves the pointer alone.
    let code = unsafe { rd::rd_kafka_message_headers(message.ptr(), &raw mut headers) };
    if code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
        return;
    }
    for index in 0.. {
        let (mut name, mut value, mut len_bytes) = (ptr::null(), ptr::null::<c_void>(), 0);
        // SAFETY: the headers live as long as the message; a past-the-end index answers NOENT; name is a
        // terminated string and value points to `len_bytes` bytes or is null.
        let more = unsafe {
            let code = rd::rd_kafka_header_get_all(
                headers,
                index,
                &raw mut name,
                &raw mut value,
                &raw mut len_bytes,
            );
            if code == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && !name.is_null() {
                let key = CStr::from_ptr(name).to_bytes();
                let value =
                    (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), len_bytes));
                each(key, value);
                true
            } else {
                false
            }
        };
        if !more {
            return;
        }
    }
}

/// Adds a header to `headers`.
pub(crate) fn add_header(headers: OwnedHeaders, key: &[u8], value: Option<&[u8]>) -> OwnedHeaders {
    let borrowed: *const BorrowedHeaders = headers.as_borrowed();
    let (data, len_bytes) = match value {
        Some(value) => (value.as_ptr().cast::<c_void>(), value.len().cast_signed()),
        None => (ptr::null(), 0),
    };
    // SAFETY: `as_borrowed` is the librdkafka pointer of `headers`, which we own and which lives; librdkafka copies
    // name and value, whose lengths are given. An empty value has a dangling pointer that is not read.
    unsafe {
        rd::rd_kafka_header_add(
            borrowed.cast_mut().cast::<rd::rd_kafka_headers_t>(),
            key.as_ptr().cast::<c_char>(),
            key.len().cast_signed(),
            data,
            len_bytes,
        );
    }
    headers
}

/// Ends the process at once, without what is registered for its end: OpenSSL would free there what threads of librdkafka
/// use that are still closing their connections, and the process would die of a damaged heap.
pub(crate) fn end(code: u8) -> ! {
    // SAFETY: takes a number and does not return; nothing of ours is left to be done.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Keeps what was freed from staying with us: two heaps, whatever the count of threads, and a buffer of 4 MiB or more, as
/// a whole fetch takes, goes back to the system at once. glibc by itself raises that limit, and what may stay free at a
/// heap's end, with the longest that was freed, and keeps the room of several fetches. To be called before there is a second
/// thread.
pub(crate) fn bound_heap() {
    #[cfg(target_env = "gnu")]
    for (option, value) in [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, 4 << 20)] {
        // SAFETY: takes two numbers. When it refuses we need more memory, as we would without it.
        unsafe { libc::mallopt(option, value) };
    }
}

/// Sets `TCP_NODELAY` on this process's connections to `port` of any host. sqlx 0.9 leaves it unset, and then the end of
/// a short COPY waits until its rows are acknowledged, which the receiver may put off for 40 ms (RFC 1122, 4.2.3.2).
///
/// # Errors
/// The system's word when it does not list the process's files (`/proc`, which Linux has).
pub(crate) fn send_at_once(port: u16) -> io::Result<()> {
    for file in std::fs::read_dir("/proc/self/fd")? {
        let path = file?.path();
        // Nothing else is opened twice: closing a second descriptor would end locks that the first one holds.
        let is_socket = std::fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let Some(number) = number.filter(|_| is_socket) else { continue };
        // SAFETY: the descriptor is borrowed for fcntl(F_DUPFD_CLOEXEC) alone, which fails with EBADF when it was closed
        // since it was listed; number is not -1, as it was listed.
        let copied = unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned();
        let Ok(stream) = copied.map(TcpStream::from) else { continue };
        // Of a socket that is not TCP, or not connected, the address is an error.
        if stream.peer_addr().is_ok_and(|peer| peer.port() == port) {
            stream.set_nodelay(true)?;
        }
    }
    Ok(())
}

/// Gives `client` another password for PLAIN and SCRAM, for its next connections; those that are open stay so.
///
/// # Errors
/// librdkafka's words.
pub(crate) fn set_password<C: ClientContext>(
    client: &Client<C>,
    username: &str,
    password: &str,
) -> Result<(), String> {
    let (username, password) = (c_text(username)?, c_text(password)?);
    // SAFETY: the client lives; both texts are terminated and copied ("sets or resets .. username and password").
    // A non-null answer is an error of ours to destroy, once, after its text was copied.
    unsafe {
        let error =
            rd::rd_kafka_sasl_set_credentials(client.native_ptr(), username.as_ptr(), password.as_ptr());
        if error.is_null() {
            return Ok(());
        }
        let words = text(rd::rd_kafka_error_string(error));
        rd::rd_kafka_error_destroy(error);
        Err(words)
    }
}

/// Gives `client` a token for OAUTHBEARER, with whom it is for and when it expires, in milliseconds since 1970.
///
/// # Errors
/// librdkafka's words, such as for one that has expired.
pub(crate) fn set_token<C: ClientContext>(
    client: &Client<C>,
    token: &str,
    (principal, expires_at_ms): (&str, i64),
) -> Result<(), String> {
    let (token, principal) = (c_text(token)?, c_text(principal)?);
    let mut words: [c_char; 512] = [0; 512];
    // SAFETY: the client lives; the texts are terminated and copied; there are no extensions; the buffer for words is
    // ours, its length is given, and librdkafka terminates what it writes there.
    unsafe {
        let code = rd::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            token.as_ptr(),
            expires_at_ms,
            principal.as_ptr(),
            ptr::null_mut(),
            0,
            words.as_mut_ptr(),
            words.len(),
        );
        if code == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(())
        } else {
            Err(text(words.as_ptr()))
        }
    }
}

/// Whether the client has a connection to any broker now. Asks that one for metadata, and does not wait.
pub(crate) fn has_broker<C: ClientContext>(client: &Client<C>) -> bool {
    let mut metadata = ptr::null();
    // SAFETY: the client lives; no topic may be null; metadata that was given is ours to destroy, once.
    unsafe {
        let code = rd::rd_kafka_metadata(client.native_ptr(), 0, ptr::null_mut(), &raw mut metadata, 0);
        if !metadata.is_null() {
            rd::rd_kafka_metadata_destroy(metadata);
        }
        code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TRANSPORT
    }
}

/// Gives the client `brokers`, separated by commas, to start from, as `bootstrap.servers` did. Those that it knows already
/// stay as they are.
pub(crate) fn add_brokers<C: ClientContext>(client: &Client<C>, brokers: &str) {
    let Ok(brokers) = c_text(brokers) else { return };
    // SAFETY: the client lives; the text is terminated and copied.
    unsafe {
        rd::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr());
    }
}

/// Takes what waits in the main queue of a client that nobody polls, and returns the errors in it: code and words.
/// Everything else there is thrown away.
pub(crate) fn queued_errors<C: ClientContext>(client: &Client<C>) -> Vec<(RDKafkaErrorCode, String)> {
    /// A queue that is filled while we read must not hold us.
    const EVENT_MAX_COUNT: usize = 1_000;
    let mut errors = Vec::new();
    // SAFETY: the client lives; get_main gives a reference that is ours to destroy, once; a non-null event is ours
    // until it is destroyed, and all that is read from it is copied before.
    unsafe {
        let queue = rd::rd_kafka_queue_get_main(client.native_ptr());
        for _ in 0..EVENT_MAX_COUNT {
            let event = rd::rd_kafka_queue_poll(queue, 0);
            if event.is_null() {
                break;
            }
            if rd::rd_kafka_event_type(event) == rd::RD_KAFKA_EVENT_ERROR {
                let code = RDKafkaErrorCode::from(rd::rd_kafka_event_error(event));
                errors.push((code, text(rd::rd_kafka_event_error_string(event))));
            }
            rd::rd_kafka_event_destroy(event);
        }
        rd::rd_kafka_queue_destroy(queue);
    }
    errors
}

fn c_text(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_nul| "a NUL byte in a setting of kafka".to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn only_connections_to_the_port_send_at_once() {
        let connected = || {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let address = listener.local_addr().unwrap();
            (TcpStream::connect(address).unwrap(), listener, address.port())
        };
        let (ours, _ours_listener, port) = connected();
        let (other, _other_listener, _) = connected();
        send_at_once(port).unwrap();
        assert!(ours.nodelay().unwrap());
        assert!(!other.nodelay().unwrap());
    }
}
