//! TLS and logins for Kafka: `KAFKA_SECURITY_PROTOCOL` and what goes with it.

use super::super::Settings;
use super::super::parse::{Reader, is_unset};
use super::super::secret::{HIDDEN, SecretFile};
use super::super::token::TokenClaims;

/// What a client is given from files: when it is made, and again when they change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KafkaLogin {
    /// `KAFKA_SASL_USERNAME`.
    pub username: Option<String>,
    /// `KAFKA_SASL_PASSWORD_FILE`.
    pub password_file: Option<SecretFile>,
    /// `KAFKA_SASL_TOKEN_FILE`.
    pub token_file: Option<SecretFile>,
    /// `KAFKA_SSL_KEY_PASSWORD_FILE`.
    pub key_password_file: Option<SecretFile>,
}

/// What the settings say of security.
#[derive(Clone, Default)]
pub(super) struct KafkaSecurity {
    /// For librdkafka, in order.
    pub(super) properties: Vec<(String, String)>,
    pub(super) login: KafkaLogin,
}

/// What a protocol asks for, by KIP-43.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Protocol {
    name: &'static str,
    uses_tls: bool,
    uses_sasl: bool,
}

const PROTOCOLS: [Protocol; 4] = [
    Protocol { name: "plaintext", uses_tls: false, uses_sasl: false },
    Protocol { name: "ssl", uses_tls: true, uses_sasl: false },
    Protocol { name: "sasl_plaintext", uses_tls: false, uses_sasl: true },
    Protocol { name: "sasl_ssl", uses_tls: true, uses_sasl: true },
];

/// What a mechanism logs in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    Password(&'static str),
    Token,
}

const MECHANISMS: [(&str, Mechanism); 4] = [
    ("PLAIN", Mechanism::Password("PLAIN")),
    ("SCRAM-SHA-256", Mechanism::Password("SCRAM-SHA-256")),
    ("SCRAM-SHA-512", Mechanism::Password("SCRAM-SHA-512")),
    ("OAUTHBEARER", Mechanism::Token),
];

const TLS_ONLY: &str = "is for KAFKA_SECURITY_PROTOCOL ssl or sasl_ssl; set that, or leave this out";
const PASSWORD_ONLY: &str =
    "is for KAFKA_SASL_MECHANISM PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; set that, or leave this out";

pub(super) fn read(settings: &Settings, reader: &mut Reader) -> KafkaSecurity {
    let protocol = reader.one_of(
        "KAFKA_SECURITY_PROTOCOL",
        &settings.kafka_security_protocol,
        "plaintext",
        &PROTOCOLS.map(|protocol| (protocol.name, protocol)),
    );
    let mut security = KafkaSecurity::default();
    security.set("security.protocol", protocol.name);
    read_login(settings, reader, protocol, &mut security);
    read_tls(settings, reader, protocol, &mut security);
    security
}

impl KafkaSecurity {
    fn set(&mut self, name: &str, value: &str) {
        self.properties.push((name.to_owned(), value.to_owned()));
    }
}

fn read_login(settings: &Settings, reader: &mut Reader, protocol: Protocol, security: &mut KafkaSecurity) {
    const VARIABLE: &str = "KAFKA_SASL_MECHANISM";
    let given = &settings.kafka_sasl_mechanism;
    let mechanism = reader.optional_word(VARIABLE, given, &MECHANISMS);
    if mechanism.is_some() && !protocol.uses_sasl {
        let value = given.as_deref().unwrap_or_default();
        reader.wrong(
            VARIABLE,
            value,
            "is for KAFKA_SECURITY_PROTOCOL sasl_ssl or sasl_plaintext; set that, or leave this out",
        );
    }
    if protocol.uses_sasl && is_unset(given) {
        let names = MECHANISMS.map(|(name, _)| name).join(", ");
        reader.wrong(VARIABLE, "", format!("KAFKA_SECURITY_PROTOCOL={} needs one of {names}", protocol.name));
    }
    let wants_password = matches!(mechanism, Some(Mechanism::Password(_)));
    read_password(settings, reader, wants_password, security);
    read_token(settings, reader, mechanism == Some(Mechanism::Token), security);
    match mechanism {
        Some(Mechanism::Password(name)) => security.set("sasl.mechanism", name),
        Some(Mechanism::Token) => security.set("sasl.mechanism", "OAUTHBEARER"),
        None => {}
    }
}

fn read_password(settings: &Settings, reader: &mut Reader, is_wanted: bool, security: &mut KafkaSecurity) {
    const NAME: &str = "KAFKA_SASL_USERNAME";
    const PASSWORD: &str = "KAFKA_SASL_PASSWORD";
    const FILE: &str = "KAFKA_SASL_PASSWORD_FILE";
    let (username, password) = (&settings.kafka_sasl_username, &settings.kafka_sasl_password);
    let file = &settings.kafka_sasl_password_file;
    reader.show(NAME, username.clone().unwrap_or_default(), is_unset(username));
    let shown = if is_unset(password) { "" } else { HIDDEN };
    reader.show(PASSWORD, shown.to_owned(), is_unset(password));
    let read = reader.secret_file(FILE, file);
    if !is_wanted {
        let all = [
            (NAME, username, username.as_deref()),
            (PASSWORD, password, Some(HIDDEN)),
            (FILE, file, file.as_deref()),
        ];
        for (variable, given, shown) in all {
            if !is_unset(given) {
                reader.wrong(variable, shown.unwrap_or_default(), PASSWORD_ONLY);
            }
        }
        return;
    }
    if is_unset(username) {
        reader.wrong(NAME, "", "must be set for this KAFKA_SASL_MECHANISM");
    }
    match (!is_unset(password), read.is_some()) {
        (true, true) => reader.wrong(PASSWORD, HIDDEN, format!("{FILE} is set, too: leave one of them out")),
        (false, false) => {
            reader.wrong(PASSWORD, "", format!("this KAFKA_SASL_MECHANISM needs it, or {FILE}"));
        }
        _ => {}
    }
    if let Some(username) = username {
        security.set("sasl.username", username);
    }
    if let Some(password) = password.as_ref().filter(|_| !is_unset(password)) {
        security.set("sasl.password", password);
    }
    security.login.username.clone_from(username);
    security.login.password_file = read.map(|(file, _)| file);
}

fn read_token(settings: &Settings, reader: &mut Reader, is_wanted: bool, security: &mut KafkaSecurity) {
    const VARIABLE: &str = "KAFKA_SASL_TOKEN_FILE";
    let given = &settings.kafka_sasl_token_file;
    let path = given.as_deref().unwrap_or_default();
    let read = reader.secret_file(VARIABLE, given);
    match (is_wanted, read) {
        (false, Some(_)) => {
            let accepted = "is for KAFKA_SASL_MECHANISM=OAUTHBEARER; set that, or leave this out";
            reader.wrong(VARIABLE, path, accepted);
        }
        (true, None) => reader.wrong(VARIABLE, "", "must be set for KAFKA_SASL_MECHANISM=OAUTHBEARER"),
        (true, Some((file, token))) => {
            if let Some(Err(reason)) = token.map(|token| TokenClaims::read(token.reveal())) {
                reader.wrong(VARIABLE, path, reason);
            }
            security.login.token_file = Some(file);
        }
        (false, None) => {}
    }
}

fn read_tls(settings: &Settings, reader: &mut Reader, protocol: Protocol, security: &mut KafkaSecurity) {
    const CERTIFICATE: &str = "KAFKA_SSL_CERTIFICATE_FILE";
    const KEY: &str = "KAFKA_SSL_KEY_FILE";
    const KEY_PASSWORD: &str = "KAFKA_SSL_KEY_PASSWORD_FILE";
    let (certificate, key) = (&settings.kafka_ssl_certificate_file, &settings.kafka_ssl_key_file);
    let files = [
        ("KAFKA_SSL_CA_FILE", "ssl.ca.location", &settings.kafka_ssl_ca_file),
        (CERTIFICATE, "ssl.certificate.location", certificate),
        (KEY, "ssl.key.location", key),
    ];
    for (variable, property, given) in files {
        if let Some(path) = reader.file(variable, given) {
            let path = path.display().to_string();
            if protocol.uses_tls {
                security.set(property, &path);
            } else {
                reader.wrong(variable, &path, TLS_ONLY);
            }
        }
    }
    let password = &settings.kafka_ssl_key_password_file;
    let password_path = password.as_deref().unwrap_or_default();
    let read = reader.secret_file(KEY_PASSWORD, password);
    if read.is_some() && !protocol.uses_tls {
        reader.wrong(KEY_PASSWORD, password_path, TLS_ONLY);
    } else if read.is_some() && is_unset(key) {
        reader.wrong(KEY_PASSWORD, password_path, format!("is for {KEY}; set that, or leave this out"));
    }
    security.login.key_password_file = read.map(|(file, _)| file);
    let path = |given: &Option<String>| given.clone().unwrap_or_default();
    match (is_unset(certificate), is_unset(key)) {
        (false, true) => reader.wrong(
            CERTIFICATE,
            &path(certificate),
            format!("goes together with {KEY}: set both or none"),
        ),
        (true, false) => {
            reader.wrong(KEY, &path(key), format!("goes together with {CERTIFICATE}: set both or none"))
        }
        _ => {}
    }
}
