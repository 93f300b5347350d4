//! `healthcheck`: asks `/livez` of the daemon on this machine. For images that have no curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::ExitStatus;
use crate::config::Config;

const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn run(config: &Config) -> anyhow::Result<ExitStatus> {
    let http = &config.process.http;
    let mut address = http.probe_address.unwrap_or(http.address);
    if address.ip().is_unspecified() {
        let loopback =
            if address.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
        address = SocketAddr::new(loopback, address.port());
    }
    let answer = tokio::time::timeout(TIMEOUT, ask(address))
        .await
        .with_context(|| format!("no answer from {address}"))?;
    let answer = answer.with_context(|| format!("ask {address}; is the daemon running?"))?;
    if answer.starts_with("HTTP/1.1 200") {
        Ok(ExitStatus::Success)
    } else {
        bail!("not alive: {}", answer.lines().next().unwrap_or_default())
    }
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer).await?;
    Ok(answer)
}
