//! Makes a member leave a group, as an operator can (`RemoveMembersFromConsumerGroup`); librdkafka has no call for it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

const TIMEOUT: Duration = Duration::from_secs(5);
/// The API key of `LeaveGroup`, and the last version without flexible fields (Kafka, "Protocol").
const LEAVE_GROUP: i16 = 13;
const VERSION: i16 = 3;
const CORRELATION: i32 = 1;
/// An answer is some 100 bytes long.
const ANSWER_MAX_LEN_BYTES: usize = 64 * 1024;

/// The id of the member with this `client.id`.
pub(crate) fn member(brokers: &str, group: &str, client_id: &str) -> anyhow::Result<Option<String>> {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    // While the broker is away.
    let Ok(list) = consumer.client().fetch_group_list(Some(group), TIMEOUT) else { return Ok(None) };
    let members = list.groups().iter().flat_map(|group| group.members());
    Ok(members.filter(|member| member.client_id() == client_id).map(|member| member.id().to_owned()).next())
}

/// Takes the member out of the group; its process is not told.
pub(crate) fn leave(brokers: &str, group: &str, member: &str) -> anyhow::Result<()> {
    let mut broker = TcpStream::connect(brokers)?;
    broker.set_read_timeout(Some(TIMEOUT))?;
    broker.write_all(&request(group, member)?)?;
    let mut len = [0; 4];
    broker.read_exact(&mut len)?;
    let len = usize::try_from(u32::from_be_bytes(len))?;
    if len > ANSWER_MAX_LEN_BYTES {
        bail!("an answer to LeaveGroup of {len} bytes");
    }
    let mut answer = vec![0; len];
    broker.read_exact(&mut answer)?;
    // Correlation and throttling, then the error; the error of the one member is last.
    let codes = [answer.get(8..10), answer.last_chunk::<2>().map(<[u8; 2]>::as_slice)];
    if codes != [Some([0; 2].as_slice()); 2] {
        bail!("LeaveGroup of {member}: {answer:?}");
    }
    Ok(())
}

fn request(group: &str, member: &str) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    body.extend(LEAVE_GROUP.to_be_bytes());
    body.extend(VERSION.to_be_bytes());
    body.extend(CORRELATION.to_be_bytes());
    push_text(&mut body, "torture")?;
    push_text(&mut body, group)?;
    // One member, without a group.instance.id.
    body.extend(1i32.to_be_bytes());
    push_text(&mut body, member)?;
    body.extend((-1i16).to_be_bytes());
    let len = i32::try_from(body.len()).context("too long a name")?;
    Ok([&len.to_be_bytes(), body.as_slice()].concat())
}

fn push_text(body: &mut Vec<u8>, text: &str) -> anyhow::Result<()> {
    body.extend(i16::try_from(text.len())?.to_be_bytes());
    body.extend(text.as_bytes());
    Ok(())
}
