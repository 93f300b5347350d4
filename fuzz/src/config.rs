//! Settings: whatever they are given, they are read the same each time, each refusal is a line that names its variable,
//! no secret is shown, and what is accepted can be used.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use audit_consumer::config::{Config, Settings, TokenClaims, TopicSelection};

/// Stands in every place where a secret may stand.
const SECRET: &str = "s3cret9f3a";
/// Variables whose values are files that are read.
const FILES: &[&str] = &[
    "DATABASE_URL_FILE",
    "PGSSLROOTCERT",
    "PGSSLCERT",
    "PGSSLKEY",
    "KAFKA_SASL_PASSWORD_FILE",
    "KAFKA_SASL_TOKEN_FILE",
    "KAFKA_SSL_CA_FILE",
    "KAFKA_SSL_CERTIFICATE_FILE",
    "KAFKA_SSL_KEY_FILE",
    "KAFKA_SSL_KEY_PASSWORD_FILE",
    "HTTP_TLS_CERTIFICATE_FILE",
    "HTTP_TLS_KEY_FILE",
    "HTTP_TOKEN_FILE",
];
/// What such a file holds: nothing, no text, a secret, a URL, a wrong URL, a token (`exp` is 17), too much.
const CONTENTS: &[&[u8]] = &[
    b"",
    b"s3cret9f3a\xff",
    b"s3cret9f3a\r\n",
    b"postgresql://me:s3cret9f3a@host:5432/x?sslmode=require\n",
    b"mysql://me:s3cret9f3a@host/x",
    b"s3cret9f3a.eyJleHAiOjE3fQ.s3cret9f3a",
    &[b's'; 70_000],
];
/// What librdkafka is always told, once and as we say, but for its name.
const OURS: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "error"),
    ("isolation.level", "read_committed"),
    ("check.crcs", "true"),
    ("enable.partition.eof", "true"),
    ("allow.auto.create.topics", "false"),
];
/// Words in a property's name that make its value a secret.
const SECRET_WORDS: &[&str] = &["password", "secret", "key.pem", "jaas", "token"];

macro_rules! variables {
    ($($field:ident,)*) => {
        /// Every variable, in lower case.
        const VARIABLES: &[&str] = &[$(stringify!($field),)*];

        /// The place of a variable.
        fn place<'a>(settings: &'a mut Settings, variable: &str) -> Option<&'a mut Option<String>> {
            $(if variable.eq_ignore_ascii_case(stringify!($field)) { return Some(&mut settings.$field); })*
            None
        }

        /// What is given, by variable.
        fn given(settings: &Settings) -> Vec<(String, &str)> {
            let all = [$((stringify!($field), settings.$field.as_deref()),)*];
            all.into_iter().filter_map(|(field, value)| Some((field.to_ascii_uppercase(), value?))).collect()
        }
    };
}

variables! {
    database_url,
    database_url_file,
    pgsslmode,
    pgsslrootcert,
    pgsslcert,
    pgsslkey,
    kafka_brokers,
    kafka_topics,
    kafka_group_id,
    kafka_auto_offset_reset,
    kafka_group_protocol,
    kafka_instance_id,
    kafka_session_timeout_ms,
    kafka_security_protocol,
    kafka_sasl_mechanism,
    kafka_sasl_username,
    kafka_sasl_password,
    kafka_sasl_password_file,
    kafka_sasl_token_file,
    kafka_ssl_ca_file,
    kafka_ssl_certificate_file,
    kafka_ssl_key_file,
    kafka_ssl_key_password_file,
    kafka_properties,
    batch_max_events,
    batch_max_bytes,
    batch_linger_ms,
    lanes,
    max_event_bytes,
    tenant_id,
    assume_utc,
    dlq_format,
    dlq_breaker_share,
    dlq_breaker_window,
    purview_resource_id,
    purview_category,
    purview_identity,
    purview_domain,
    purview_log,
    trust_log,
    day_file_max_bytes,
    project_lag_max_ms,
    partition_interval,
    http_address,
    http_tls_certificate_file,
    http_tls_key_file,
    http_token_file,
    http_probe_address,
    log_dir,
    spool_dir,
    spool_after_ms,
    spool_max_bytes,
    spool_min_free_bytes,
    spool_segment_bytes,
    spool_keep_ms,
    log_level,
    log_format,
    metrics_partition_label,
    verify_interval_ms,
    claim_timeout_ms,
    require_least_privilege,
    statement_timeout_ms,
    lock_timeout_ms,
    gap_wait_ms,
    shutdown_deadline_ms,
}

/// Checks the settings that `bytes` name: `VARIABLE=value` or `NUMBER=value`, apart by U+0001.
pub fn check(bytes: &[u8]) {
    // The environment holds no U+0000, and a command line neither.
    let mut text = String::from_utf8_lossy(bytes).replace('\0', "");
    // The secret stands only where we put it.
    while text.contains(SECRET) {
        text = text.replace(SECRET, "");
    }
    let mut settings = Settings::default();
    for entry in text.split('\u{1}') {
        let Some((name, value)) = entry.split_once('=') else { continue };
        let variable = match name.parse::<usize>() {
            Ok(number) => VARIABLES[number % VARIABLES.len()],
            Err(_) => name,
        };
        if let Some(place) = place(&mut settings, variable) {
            *place = Some(armed(&variable.to_ascii_uppercase(), value));
        }
        // Never panics, and its complaint can hold nothing of the token.
        let _claims = TokenClaims::read(value);
    }
    check_settings(&settings);
}

/// The value that is given for `value`: a secret where one may stand, and a file of ours for a file.
fn armed(variable: &str, value: &str) -> String {
    match variable {
        "KAFKA_SASL_PASSWORD" => format!("{value}{SECRET}"),
        // `user|password|host and the rest`; what has no bars has no password.
        "DATABASE_URL" => match value.split('|').collect::<Vec<_>>()[..] {
            [user, password, rest] => format!("postgresql://{user}:{password}{SECRET}@{}", armed_query(rest)),
            [scheme, user, password, rest] => {
                format!("{scheme}://{user}:{password}{SECRET}@{}", armed_query(rest))
            }
            _ => armed_query(value),
        },
        "KAFKA_PROPERTIES" => {
            // Behind each name of a secret stands one.
            let mut properties = String::new();
            let separator = if value.contains('\n') { '\n' } else { ',' };
            for entry in value.split(separator) {
                let is_secret = entry.split_once('=').is_some_and(|(name, _)| {
                    SECRET_WORDS.iter().any(|word| name.to_ascii_lowercase().contains(word))
                });
                let secret = if is_secret { SECRET } else { "" };
                write!(properties, "{entry}{secret}{separator}").unwrap();
            }
            properties
        }
        _ if FILES.contains(&variable) => match value.bytes().next() {
            None => String::new(),
            Some(first) => file(first).display().to_string(),
        },
        _ => value.to_owned(),
    }
}

fn armed_query(url: &str) -> String {
    let Some((before, query)) = url.split_once('?') else { return url.to_owned() };
    let parts = query.split('&').map(|part| match part.split_once('=') {
        Some(("password", password)) => format!("password={SECRET}{password}"),
        _ => part.to_owned(),
    });
    format!("{before}?{}", parts.collect::<Vec<_>>().join("&"))
}

/// One of the files, by a byte: those of [`CONTENTS`], a directory, and one that is not there.
fn file(choice: u8) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = std::env::temp_dir().join(format!("audit-consumer-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        for (number, content) in CONTENTS.iter().enumerate() {
            std::fs::write(directory.join(number.to_string()), content).unwrap();
        }
        directory
    });
    match usize::from(choice) % (CONTENTS.len() + 2) {
        number if number <= CONTENTS.len() => directory.join(number.to_string()),
        _ => directory.clone(),
    }
}

fn check_settings(settings: &Settings) {
    let resolved = Config::resolve(settings);
    let again = Config::resolve(settings);
    match (&resolved, &again) {
        (Ok(config), Ok(again)) => {
            let shown = format!("{config:?}");
            assert_eq!(shown, format!("{again:?}"), "the same settings are read the same");
            assert_hidden(&shown, settings);
            check_config(config, settings);
        }
        (Err(errors), Err(again)) => {
            assert_eq!(errors.0, again.0, "the same settings are refused the same");
            assert_hidden(&format!("{errors:?}"), settings);
            check_refusal(&errors.to_string(), &errors.0, settings);
        }
        (one, other) => panic!("{one:?} once, and then {other:?}"),
    }
}

#[track_caller]
fn assert_hidden(shown: &str, settings: &Settings) {
    assert!(!shown.contains(SECRET), "{shown}\nof {:?}", given(settings));
}

fn check_refusal(text: &str, errors: &[audit_consumer::config::ConfigError], settings: &Settings) {
    assert_hidden(text, settings);
    assert!(!errors.is_empty());
    let lines: Vec<&str> = text.split('\n').collect();
    assert_eq!(lines.len(), errors.len(), "a line for each refusal: {text:?}");
    for (line, error) in lines.iter().zip(errors) {
        let variable = error.variable;
        assert!(VARIABLES.iter().any(|known| variable.eq_ignore_ascii_case(known)), "{variable}");
        assert!(line.starts_with(&format!("{variable}=")), "{line:?}");
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(!error.accepted.is_empty(), "{line:?}");
    }
    // What was not given is refused only where something else asks for it.
    let given = given(settings);
    assert!(
        errors.iter().any(|error| given.iter().any(|(variable, _)| variable == error.variable)) || {
            given.iter().any(|(variable, _)| {
                variable == "KAFKA_SECURITY_PROTOCOL" || variable == "KAFKA_SASL_MECHANISM"
            })
        }
    );
}

fn check_config(config: &Config, settings: &Settings) {
    for setting in config.shown() {
        assert!(VARIABLES.iter().any(|known| setting.variable.eq_ignore_ascii_case(known)), "{setting:?}");
        let given = given(settings).into_iter().find(|(variable, _)| variable == setting.variable);
        let is_given = given.is_some_and(|(_, value)| !value.trim().is_empty());
        assert_eq!(setting.is_default, !is_given, "{setting:?}");
        assert_hidden(&setting.value, settings);
    }
    assert_eq!(config.shown().len(), VARIABLES.len(), "every setting is shown, once");
    assert!(
        (1..=16).contains(&config.batch.lane_count) && (1..=100_000).contains(&config.batch.record_count)
    );
    assert!(config.letters.breaker.share_percent <= 100);
    if let Err(error) = config.database.target.options() {
        panic!("{error}, of {:?}", given(settings));
    }
    match &config.kafka.topics {
        TopicSelection::Names(names) => {
            assert!(!names.is_empty());
            assert!(names.iter().all(|name| !name.is_empty() && !name.ends_with(".dlq") && name.len() < 250));
        }
        TopicSelection::Regex(regex) => assert!(regex.starts_with('^')),
    }
    let properties = config.kafka.consumer_properties();
    assert_hidden(&format!("{properties:?} {:?}", config.kafka.connection_properties()), settings);
    let values = |name: &str| -> Vec<&str> {
        let all = properties.given.iter();
        all.filter(|(given, _)| given == name).map(|(_, value)| value.as_str()).collect()
    };
    for (name, value) in OURS {
        assert_eq!(values(name), [*value], "{name}");
    }
    assert_eq!(values("group.id"), [config.kafka.group.as_str()]);
}
