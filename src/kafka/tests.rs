//! A client that has lost all its brokers, against a broker that says what a real one says for a moment while it starts.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{ASK_INTERVAL, LOST_AFTER, Link, client_config};
use crate::config::{KafkaLogin, KafkaProperties};
use crate::native;
use crate::observe::Clock;

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers `ApiVersions` (version 0) and `Metadata` (version 1: of the topic `t`, which has no leader); with `is_starting`, of a
/// cluster without a broker.
fn serve(mut stream: TcpStream, port: u16, is_starting: &AtomicBool) -> io::Result<()> {
    loop {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let mut request = vec![0; usize::try_from(u32::from_be_bytes(len)).unwrap()];
        stream.read_exact(&mut request)?;
        let (api, version) = ([request[0], request[1]], request[3]);
        let mut answer = request[4..8].to_vec();
        match api {
            // UNSUPPORTED_VERSION, unless it is 0; what there is: Metadata 0 to 1, ApiVersions 0.
            [0, 18] => {
                answer.extend([0, if version == 0 { 0 } else { 35 }]);
                answer.extend([0, 0, 0, 2, 0, 3, 0, 0, 0, 1, 0, 18, 0, 0, 0, 0]);
            }
            [0, 3] if is_starting.load(Ordering::Relaxed) => answer.extend([0, 0, 0, 0, 255, 255, 255, 255]),
            // One broker: id 1, its host, port, no rack; the controller is 1.
            [0, 3] => {
                answer.extend([0, 0, 0, 1, 0, 0, 0, 1, 0, 9]);
                answer.extend(b"127.0.0.1");
                answer.extend(u32::from(port).to_be_bytes());
                answer.extend([255, 255, 0, 0, 0, 1]);
            }
            _ => return Ok(()),
        }
        if api == [0, 3] {
            // One topic: LEADER_NOT_AVAILABLE, `t`, not internal, no partition.
            answer.extend([0, 0, 0, 1, 0, 5, 0, 1, b't', 0, 0, 0, 0, 0]);
        }
        stream.write_all(&u32::try_from(answer.len()).unwrap().to_be_bytes())?;
        stream.write_all(&answer)?;
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let started_at = Clock::default().monotonic();
    while !condition() {
        assert!(Clock::default().monotonic() - started_at < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_client_that_has_lost_all_brokers_is_given_them_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let is_starting = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_starting);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let seen = Arc::clone(&seen);
            // It ends with the connection.
            std::thread::spawn(move || drop(serve(stream.unwrap(), port, &seen)));
        }
    });
    let given = [("bootstrap.servers".to_owned(), format!("127.0.0.1:{port}"))];
    let properties = KafkaProperties { given: given.into(), login: KafkaLogin::default() };
    let link = Link::new(&properties);
    let client: BaseConsumer<Link> = client_config(&properties).unwrap().create_with_context(link).unwrap();
    let (client, link) = (client.client(), client.context());
    let ask = || client.fetch_metadata(Some("t"), Duration::from_secs(1));
    wait_for("the broker is known", || ask().is_ok_and(|metadata| metadata.brokers().len() == 1));
    wait_for("the broker that was told is connected", || native::has_broker(client));
    is_starting.store(true, Ordering::Relaxed);
    wait_for("all brokers are lost", || {
        drop(ask());
        !native::has_broker(client)
    });
    is_starting.store(false, Ordering::Relaxed);
    // When this fails, librdkafka finds back by itself, and what is tested here can go.
    for _ in 0..3 {
        assert!(ask().is_err());
    }
    let begin = Clock::default().monotonic();
    let mut asked = Duration::ZERO;
    while asked < LOST_AFTER {
        link.keep_brokers(client, begin + asked);
        assert!(!native::has_broker(client), "not before its time");
        asked += ASK_INTERVAL;
    }
    link.keep_brokers(client, begin + asked);
    wait_for("a broker answers again", || ask().is_ok());
}
