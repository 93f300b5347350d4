//! What all clients of Kafka share: they are made with what the settings say, they log in with what the files hold
//! now, and when a broker refuses them they know why.
//!
//! librdkafka keeps the password and the token that it was given. A [`Link`] reads the files again whenever its client
//! is about to be used, and gives it what has changed; librdkafka then logs in with that from its next connection on.
//! So a password is changed at the broker and in the file, in either order, without a restart.
//!
//! librdkafka (2.12) drops brokers that others do not name any more, those of `bootstrap.servers` too, and was seen with
//! none at all after the only broker of a cluster had started anew. It then has nobody to ask, and never comes back. So a
//! [`Link`] also gives a client that has had no broker for [`LOST_AFTER`] those of the settings again.
//!
//! Never here: topics, groups, records.

mod probe;
mod refusal;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, KafkaResult};

use crate::config::{KafkaLogin, KafkaProperties, Secret, SecretFile, SecretFileError, TokenClaims};
use crate::failpoint;
use crate::native::{self, LetGo};
use crate::observe::Clock;

pub(crate) use refusal::Refusal;

/// How often a client that is in use is asked whether it still has a broker, and how long it must have had none.
const ASK_INTERVAL: Duration = Duration::from_secs(10);
const LOST_AFTER: Duration = Duration::from_secs(30);

/// librdkafka's configuration for a client that is made now.
///
/// # Errors
/// [`KafkaError::ClientCreation`] when a file with a secret can't be read.
pub(crate) fn client_config(properties: &KafkaProperties) -> KafkaResult<ClientConfig> {
    let mut config = ClientConfig::new();
    for (name, value) in &properties.given {
        config.set(name, value);
    }
    let login = &properties.login;
    let files = [("sasl.password", &login.password_file), ("ssl.key.password", &login.key_password_file)];
    for (name, file) in files {
        if let Some(file) = file {
            let secret = file.read().map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
            config.set(name, secret.reveal());
        }
    }
    Ok(config)
}

/// A client for whose destruction nobody waits.
pub(crate) const fn let_go<T: Send + 'static>(client: T) -> LetGo<T> {
    LetGo::new(client, || failpoint::at("client_drop"))
}

/// How one client logs in, and why it was refused, if it was. The context of clients that need no other.
#[derive(Debug)]
pub(crate) struct Link {
    brokers: String,
    login: KafkaLogin,
    ca_file: Option<PathBuf>,
    state: Mutex<LinkState>,
}

#[derive(Debug, Default)]
struct LinkState {
    /// The password or the token that librdkafka has.
    given: Option<Secret>,
    /// Why brokers, or our own files, keep us out.
    refusal: Option<Refusal>,
    /// Whether the client had a connection to a broker when it was asked last, when that was, and since when it has
    /// none.
    is_connected: bool,
    asked_at: Option<Instant>,
    lost_since: Option<Instant>,
}

impl Link {
    pub(crate) fn new(properties: &KafkaProperties) -> Self {
        let given = |wanted: &str| {
            let found = properties.given.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.clone())
        };
        Self {
            brokers: given("bootstrap.servers").unwrap_or_default(),
            login: properties.login.clone(),
            ca_file: given("ssl.ca.location").map(PathBuf::from),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `client` the password or the token that the file holds now, if it has another one, and brokers, if it has
    /// lost all. To be called before a new client is used, and then before each use: cheap, reads a small file at most.
    pub(crate) fn refresh<C: ClientContext>(&self, client: &Client<C>) {
        self.keep_brokers(client, Clock::default().monotonic());
        let outcome = match (&self.login.password_file, &self.login.token_file) {
            (Some(file), _) => file.read().map_err(|error| error.to_string()).and_then(|password| {
                let username = self.login.username.as_deref().unwrap_or_default();
                self.replace(password, |password| native::set_password(client, username, password))
            }),
            (None, Some(file)) => self.replace_token(client, file).map_err(|error| error.to_string()),
            (None, None) => Ok(()),
        };
        if let Err(why) = outcome {
            self.refused(Refusal { why, unverified: None });
        }
    }

    fn keep_brokers<C: ClientContext>(&self, client: &Client<C>, now: Instant) {
        let is_due = |at: Instant| now.saturating_duration_since(at) >= ASK_INTERVAL;
        let mut state = self.state();
        if state.is_connected && !state.asked_at.is_none_or(is_due) {
            return;
        }
        state.asked_at = Some(now);
        drop(state);
        let is_lost = !native::has_broker(client);
        let mut state = self.state();
        state.is_connected = !is_lost;
        let lost_since = is_lost.then(|| state.lost_since.unwrap_or(now));
        let is_overdue = lost_since.is_some_and(|since| now.saturating_duration_since(since) >= LOST_AFTER);
        state.lost_since = lost_since.filter(|_| !is_overdue);
        drop(state);
        if is_overdue {
            tracing::debug!(
                brokers = self.brokers,
                "a client has had no broker for long; it starts from these again"
            );
            native::add_brokers(client, &self.brokers);
        }
    }

    /// Whether the client had a connection to a broker when it was asked, at most 10 s before it was refreshed last.
    pub(crate) fn is_connected(&self) -> bool {
        self.state().is_connected
    }

    /// The next refresh asks whether there is a connection.
    pub(crate) fn doubt_connections(&self) {
        self.state().is_connected = false;
    }

    fn replace_token<C: ClientContext>(
        &self,
        client: &Client<C>,
        file: &SecretFile,
    ) -> Result<(), SecretFileError> {
        let (token, claims) = read_token(file)?;
        let claims = (claims.principal.as_str(), claims.expires_at_ms);
        self.replace(token, |token| native::set_token(client, token, claims)).map_err(|words| {
            let words = refusal::shortened(&words);
            file.wrong(format!("librdkafka refuses the token; write a new one: {words}"))
        })
    }

    fn replace(&self, secret: Secret, give: impl FnOnce(&str) -> Result<(), String>) -> Result<(), String> {
        if self.state().given.as_ref() == Some(&secret) {
            return Ok(());
        }
        give(secret.reveal())?;
        let mut state = self.state();
        if state.given.replace(secret).is_some() {
            tracing::info!(
                "kafka's password or token has changed in its file; the next connections log in with it"
            );
        }
        state.refusal = None;
        Ok(())
    }

    fn refused(&self, refusal: Refusal) {
        self.state().refusal = Some(refusal);
    }

    /// Takes why brokers keep this client out; `None` while they do not, or for other reasons.
    pub(crate) fn take_refusal(&self) -> Option<Refusal> {
        self.state().refusal.take()
    }

    /// A refusal in words for an operator. Looks at the certificate that was not accepted: blocks for some seconds at
    /// most.
    pub(crate) fn explain(&self, refusal: Refusal) -> String {
        let unverified = refusal.unverified.as_deref().zip(self.ca_file.as_deref());
        let fault = unverified.and_then(|(broker, ca_file)| probe::certificate_fault(broker, ca_file));
        fault.unwrap_or(refusal.why)
    }

    /// Notes what the brokers have said meanwhile to a client whose queue nobody polls. Throws away what else is in
    /// the queue: not for a client that has records or delivery reports under way.
    pub(crate) fn catch_up<C: ClientContext>(&self, client: &Client<C>) {
        for (code, reason) in native::queued_errors(client) {
            self.error(KafkaError::Global(code), &reason);
        }
    }
}

fn read_token(file: &SecretFile) -> Result<(Secret, TokenClaims), SecretFileError> {
    let token = file.read()?;
    let claims = TokenClaims::read(token.reveal()).map_err(|reason| file.wrong(reason))?;
    Ok((token, claims))
}

impl ClientContext for Link {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        use RDKafkaLogLevel as Level;
        match level {
            // Comes as an error, too, and is told in one line by who handles that.
            _ if refusal::is_one(log_message) => {
                tracing::debug!(target: "librdkafka", fac, log_message, "librdkafka");
            }
            Level::Emerg | Level::Alert | Level::Critical | Level::Error => {
                tracing::error!(target: "librdkafka", "librdkafka: {fac} {log_message}");
            }
            Level::Warning => tracing::warn!(target: "librdkafka", "librdkafka: {fac} {log_message}"),
            Level::Notice | Level::Info => {
                tracing::info!(target: "librdkafka", "librdkafka: {fac} {log_message}");
            }
            Level::Debug => tracing::debug!(target: "librdkafka", "librdkafka: {fac} {log_message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
        if let Some(refusal) = error.rdkafka_error_code().and_then(|code| refusal::of(code, reason)) {
            self.refused(refusal);
        }
    }

    fn generate_oauth_token(&self, _config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let file = self.login.token_file.as_ref().ok_or("KAFKA_SASL_TOKEN_FILE is not set")?;
        let (token, claims) = read_token(file)?;
        let oauth = OAuthToken {
            token: token.reveal().to_owned(),
            principal_name: claims.principal,
            lifetime_ms: claims.expires_at_ms,
        };
        Ok(oauth)
    }
}

impl ConsumerContext for Link {}
