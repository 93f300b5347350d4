//! A client without brokers, and one broker that answers no more than it needs to be found.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{ASK_INTERVAL, LOST_AFTER, Link, client_config};
use crate::config::{Config, KafkaLogin, KafkaProperties, Settings};
use crate::native;
use crate::observe::Clock;

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers `ApiVersions` (version 0) and `Metadata` (version 1: of the topic `t`, which has no leader).
fn serve(mut stream: TcpStream, port: u16) -> io::Result<()> {
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
            // One broker: id 1, its host, port, no rack; the controller is 1.
            [0, 3] => {
                answer.extend([0, 0, 0, 1, 0, 0, 0, 1, 0, 9]);
                answer.extend(b"127.0.0.1");
                answer.extend(u32::from(port).to_be_bytes());
                answer.extend([255, 255, 0, 0, 0, 1]);
                // One topic: LEADER_NOT_AVAILABLE, `t`, not internal, no partition.
                answer.extend([0, 0, 0, 1, 0, 5, 0, 1, b't', 0, 0, 0, 0, 0]);
            }
            _ => return Ok(()),
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
fn a_client_without_brokers_is_given_those_of_the_settings() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // It ends with the connection.
            std::thread::spawn(move || drop(serve(stream.unwrap(), port)));
        }
    });
    // As librdkafka is when it has forgotten those that it was given: there is no other way to make it so.
    let properties = KafkaProperties { given: vec![], login: KafkaLogin::default() };
    let given = vec![("bootstrap.servers".to_owned(), format!("127.0.0.1:{port}"))];
    let link = Link::new(&KafkaProperties { given, login: KafkaLogin::default() });
    let client: BaseConsumer<Link> = client_config(&properties).unwrap().create_with_context(link).unwrap();
    let (client, link) = (client.client(), client.context());
    let ask = || client.fetch_metadata(Some("t"), Duration::from_secs(1));
    let begin = Clock::default().monotonic();
    let mut asked = Duration::ZERO;
    while asked < LOST_AFTER {
        link.keep_brokers(client, begin + asked);
        assert!(ask().is_err(), "not before its time");
        asked += ASK_INTERVAL;
    }
    link.keep_brokers(client, begin + asked);
    wait_for("a broker answers", || ask().is_ok_and(|metadata| metadata.brokers().len() == 1));
    wait_for("it is connected", || native::has_broker(client));
}

#[test]
fn limits_of_the_settings_make_a_client_beside_ours() {
    for limits in [
        "",
        "receive.message.max.bytes=4194816",
        "receive.message.max.bytes=16777216",
        "message.max.bytes=20000000",
        "fetch.max.bytes=1000000",
        "queued.max.messages.kbytes=64",
        "max.partition.fetch.bytes=65536",
        "fetch.message.max.bytes=65536",
    ] {
        let settings = Settings { kafka_properties: Some(limits.to_owned()), ..Settings::default() };
        let properties = Config::resolve(&settings).unwrap().kafka.consumer_properties();
        let client = client_config(&properties).unwrap();
        assert!(client.create::<BaseConsumer>().is_ok(), "{limits}");
        if limits.starts_with("fetch.message") {
            assert_eq!(client.get("max.partition.fetch.bytes"), None, "the same by another name");
        }
    }
}
