//! Why a broker's certificate is not accepted: librdkafka and OpenSSL have the same words for every cause, so it is
//! looked at once more, by rustls, which tells.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// How long each step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// What is wrong with the certificate that `broker` (`host:port`) shows, seen by who trusts the authorities in
/// `ca_file` alone; `None` when nothing is wrong, or it can't be found out. Blocks for some seconds at most.
pub(super) fn certificate_fault(broker: &str, ca_file: &Path) -> Option<String> {
    let (host, _port) = broker.rsplit_once(':')?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).ok()? {
        roots.add(certificate.ok()?).ok()?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).ok()?;
    let mut connection = ClientConnection::new(Arc::new(config), name).ok()?;
    let mut socket = broker
        .to_socket_addrs()
        .ok()?
        .find_map(|address| TcpStream::connect_timeout(&address, STEP_TIMEOUT).ok())?;
    socket.set_read_timeout(Some(STEP_TIMEOUT)).ok()?;
    socket.set_write_timeout(Some(STEP_TIMEOUT)).ok()?;
    let words = connection.complete_io(&mut socket).err()?.to_string();
    let fault = if words.contains("UnknownIssuer") {
        format!("no authority in KAFKA_SSL_CA_FILE={} has signed it", ca_file.display())
    } else if words.contains("certificate expired") {
        "it has expired, or the clock here is wrong: renew it".to_owned()
    } else if words.contains("not valid yet") {
        "it is not valid yet, or the clock here is wrong".to_owned()
    } else if words.contains("not valid for name") {
        format!("it is not for {host}, the host name in KAFKA_BROKERS or the broker's advertised.listeners")
    } else {
        return None;
    };
    Some(format!("the broker's certificate at {broker} is not accepted: {fault} ({words})"))
}
