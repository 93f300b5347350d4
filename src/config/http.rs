//! Where the HTTP side listens, and whom it lets in.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Settings;
use super::parse::{Reader, is_unset};
use super::secret::SecretFile;

/// The HTTP side.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// `HTTP_ADDRESS`.
    pub address: SocketAddr,
    /// `HTTP_TLS_CERTIFICATE_FILE` and `HTTP_TLS_KEY_FILE`.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// `HTTP_TOKEN_FILE`.
    pub token: Option<SecretFile>,
    /// `HTTP_PROBE_ADDRESS`: metrics and probes in plain text, on a port of their own.
    pub probe_address: Option<SocketAddr>,
}

pub(super) fn read(settings: &Settings, reader: &mut Reader) -> HttpConfig {
    let address = reader.address("HTTP_ADDRESS", &settings.http_address, "0.0.0.0:8080");
    let certificate = reader.file("HTTP_TLS_CERTIFICATE_FILE", &settings.http_tls_certificate_file);
    let key = reader.file("HTTP_TLS_KEY_FILE", &settings.http_tls_key_file);
    let token = reader.secret_file("HTTP_TOKEN_FILE", &settings.http_token_file).map(|(file, _)| file);
    let probe = &settings.http_probe_address;
    let probe_address = if is_unset(probe) {
        reader.show("HTTP_PROBE_ADDRESS", String::new(), true);
        None
    } else {
        Some(reader.address("HTTP_PROBE_ADDRESS", probe, ""))
    };
    let shown = |path: &PathBuf| path.display().to_string();
    let tls = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            if probe_address.is_none() {
                let accepted = "set HTTP_PROBE_ADDRESS, too (such as 127.0.0.1:8081): healthcheck and probes ask there, in plain text";
                reader.wrong("HTTP_TLS_CERTIFICATE_FILE", &shown(&certificate), accepted);
            }
            Some((certificate, key))
        }
        (Some(path), None) => {
            let accepted = "goes together with HTTP_TLS_KEY_FILE: set both or none";
            reader.wrong("HTTP_TLS_CERTIFICATE_FILE", &shown(&path), accepted);
            None
        }
        (None, Some(path)) => {
            let accepted = "goes together with HTTP_TLS_CERTIFICATE_FILE: set both or none";
            reader.wrong("HTTP_TLS_KEY_FILE", &shown(&path), accepted);
            None
        }
        (None, None) => None,
    };
    if probe_address == Some(address) {
        reader.wrong("HTTP_PROBE_ADDRESS", &address.to_string(), "another port than HTTP_ADDRESS");
    }
    HttpConfig { address, tls, token, probe_address }
}
