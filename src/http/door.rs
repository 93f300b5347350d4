//! Who comes in: TLS, and the token that `/` and `/status` ask for.
//!
//! Files are read when they are needed, certificate and key for each connection and the token for each question, so they
//! are exchanged without a restart. A certificate that can't be read later on leaves the one before in use.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::SecretFile;

/// How long a handshake may take, and how many are under way at most.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_MAX_COUNT: usize = 64;
/// How long to wait when no connection can be accepted (too many files are open).
const ACCEPT_WAIT: Duration = Duration::from_secs(1);

/// Certificate and key of the HTTP side, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// `HTTP_TLS_CERTIFICATE_FILE`: the certificate, and those that lead to its authority behind it.
    pub certificate: PathBuf,
    /// `HTTP_TLS_KEY_FILE`.
    pub key: PathBuf,
}

/// The files are no certificate with its key.
#[derive(Debug, thiserror::Error)]
#[error("{variable}={path}: {reason}", path = .path.display())]
pub(super) struct TlsFilesError {
    variable: &'static str,
    path: PathBuf,
    reason: String,
}

impl TlsFiles {
    fn read(&self) -> Result<Arc<ServerConfig>, TlsFilesError> {
        let wrong =
            |variable, path: &PathBuf, reason: String| TlsFilesError { variable, path: path.clone(), reason };
        let of_certificate = |reason| wrong("HTTP_TLS_CERTIFICATE_FILE", &self.certificate, reason);
        let of_key = |reason| wrong("HTTP_TLS_KEY_FILE", &self.key, reason);
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(|error| of_certificate(format!("can't be read as PEM: {error}")))?;
        if certificates.is_empty() {
            return Err(of_certificate("holds no certificate in PEM".into()));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| of_key(format!("can't be read as a key in PEM: {error}")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| of_key(error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(|error| of_key(format!("does not go with the certificate: {error}")))?;
        Ok(Arc::new(config))
    }
}

/// Connections after their handshakes. Each handshake is a task of its own: a slow one keeps nobody waiting.
#[derive(Debug)]
pub struct TlsListener {
    address: SocketAddr,
    accepted: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    /// TLS over `listener`, until this is dropped.
    ///
    /// # Errors
    /// The listener's, and [`TlsFilesError`] as an error of kind `InvalidInput`.
    pub fn start(listener: TcpListener, files: TlsFiles) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let config = files.read().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let (sender, accepted) = mpsc::channel(HANDSHAKE_MAX_COUNT);
        tokio::spawn(accept(listener, (files, config), sender));
        Ok(Self { address, accepted })
    }
}

async fn accept(
    listener: TcpListener,
    (files, mut config): (TlsFiles, Arc<ServerConfig>),
    accepted: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKE_MAX_COUNT));
    let mut is_stale = false;
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        let connection = tokio::select! {
            () = accepted.closed() => return,
            connection = listener.accept() => connection,
        };
        let Ok((stream, peer)) = connection else {
            tokio::time::sleep(ACCEPT_WAIT).await;
            continue;
        };
        match files.read() {
            Ok(read) => (config, is_stale) = (read, false),
            Err(error) => {
                if !is_stale {
                    tracing::warn!(%error, "the certificate of the http side stays the one that was read before");
                }
                is_stale = true;
            }
        }
        let (acceptor, accepted) = (TlsAcceptor::from(Arc::clone(&config)), accepted.clone());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
            match handshake {
                Ok(Ok(stream)) => drop(accepted.send((stream, peer)).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no tls handshake"),
                Err(_elapsed) => tracing::debug!(%peer, "no tls handshake in time"),
            }
            drop(slot);
        });
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

/// Answers who does not bring the token; `None`: come in. It is brought as `Authorization: Bearer TOKEN`, or, by a
/// browser that asks its user, as the password of `Basic`, whatever the name is.
pub(super) fn turn_away(token: Option<&SecretFile>, headers: &HeaderMap) -> Option<Response> {
    let token = match token?.read() {
        Ok(token) => token,
        Err(error) => {
            tracing::error!(%error, "nobody is let in to the status");
            return Some((StatusCode::SERVICE_UNAVAILABLE, "the token can't be read here\n").into_response());
        }
    };
    let brought = headers.get(header::AUTHORIZATION).and_then(brought_by);
    // Compared by their hashes: how long it takes tells nothing of the token.
    let is_right =
        brought.is_some_and(|brought| Sha256::digest(&brought) == Sha256::digest(token.reveal().as_bytes()));
    (!is_right).then(|| {
        let ways = [
            (header::WWW_AUTHENTICATE, "Bearer"),
            (header::WWW_AUTHENTICATE, "Basic realm=\"audit-consumer\""),
        ];
        let headers = axum::response::AppendHeaders(ways);
        (StatusCode::UNAUTHORIZED, headers, "the token of HTTP_TOKEN_FILE is asked for\n").into_response()
    })
}

fn brought_by(value: &header::HeaderValue) -> Option<Vec<u8>> {
    let (scheme, brought) = value.to_str().ok()?.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(brought.trim().as_bytes().to_vec()),
        "basic" => {
            let pair = STANDARD.decode(brought.trim()).ok()?;
            let colon = pair.iter().position(|byte| *byte == b':')?;
            Some(pair.get(colon + 1..)?.to_vec())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_brought_as_bearer_or_as_the_password_of_basic() {
        let brought = |text: &str| brought_by(&header::HeaderValue::from_str(text).unwrap());
        assert_eq!(brought("Bearer a b"), Some(b"a b".to_vec()));
        assert_eq!(brought("bearer  t "), Some(b"t".to_vec()));
        assert_eq!(brought(&format!("Basic {}", STANDARD.encode("me:t:t"))), Some(b"t:t".to_vec()));
        for wrong in ["", "Bearer", "Digest t", "Basic t!", &format!("Basic {}", STANDARD.encode("t"))] {
            assert_eq!(brought(wrong), None, "{wrong}");
        }
    }
}
