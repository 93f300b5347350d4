//! The Kafka settings, and which of librdkafka's own can't be changed.

use std::time::Duration;

use super::Settings;
use super::parse::{Reader, given_or, is_unset};
use super::secret::HIDDEN;

mod security;

pub use security::KafkaLogin;
use security::KafkaSecurity;

/// Which topics to consume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicSelection {
    /// These.
    Names(Vec<String>),
    /// Those whose names match, but never a dead letter topic.
    Regex(String),
}

impl TopicSelection {
    /// What librdkafka subscribes to.
    #[must_use]
    pub fn subscription(&self) -> Vec<String> {
        match self {
            Self::Names(names) => names.clone(),
            Self::Regex(regex) => vec![regex.clone()],
        }
    }
}

/// How to reach Kafka, and what to consume.
#[derive(Clone)]
pub struct KafkaConfig {
    /// `KAFKA_BROKERS`.
    pub brokers: String,
    /// `KAFKA_TOPICS`.
    pub topics: TopicSelection,
    /// `KAFKA_GROUP_ID`.
    pub group: String,
    /// `KAFKA_AUTO_OFFSET_RESET`: start a new group at the end instead of at the beginning.
    pub starts_at_end: bool,
    uses_consumer_protocol: bool,
    instance_id: Option<String>,
    session_timeout: Duration,
    security: KafkaSecurity,
    user_properties: Vec<(String, String)>,
}

impl std::fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.user_properties.iter().map(|(key, _)| key.as_str()).collect();
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("topics", &self.topics)
            .field("group", &self.group)
            .field("user_properties", &names)
            .finish_non_exhaustive()
    }
}

/// What a Kafka client is made with: librdkafka's properties, in order, and what is read from files.
#[derive(Clone)]
pub struct KafkaProperties {
    /// The properties, secrets that were given as values among them.
    pub given: Vec<(String, String)>,
    /// The secrets in files.
    pub login: KafkaLogin,
}

impl std::fmt::Debug for KafkaProperties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.given.iter().map(|(key, _)| key.as_str()).collect();
        f.debug_struct("KafkaProperties").field("given", &names).field("login", &self.login).finish()
    }
}

/// What librdkafka may not be told, and why. A name that ends in `*` stands for all that begin so.
const REFUSED: &[(&str, &str)] = &[
    ("enable.auto.commit", "offsets follow PostgreSQL, never a timer"),
    ("enable.auto.offset.store", "offsets follow PostgreSQL, never the poll"),
    ("auto.commit*", "offsets follow PostgreSQL, never a timer"),
    ("offset.store*", "offsets follow PostgreSQL, never a file"),
    (
        "auto.offset.reset",
        "a position must never be guessed; KAFKA_AUTO_OFFSET_RESET says where a new group starts",
    ),
    ("topic.auto.offset.reset", "a position must never be guessed"),
    ("isolation.level", "records of aborted transactions must not be stored"),
    ("check.crcs", "a damaged record must not be stored"),
    ("enable.partition.eof", "idle partitions are noticed by it"),
    ("group.id", "set KAFKA_GROUP_ID"),
    ("group.instance.id", "set KAFKA_INSTANCE_ID"),
    ("group.protocol", "set KAFKA_GROUP_PROTOCOL"),
    ("group.remote.assignor", "only incremental assignment is handled"),
    ("partition.assignment.strategy", "only cooperative-sticky is handled"),
    ("session.timeout.ms", "set KAFKA_SESSION_TIMEOUT_MS"),
    ("heartbeat.interval.ms", "it follows KAFKA_SESSION_TIMEOUT_MS"),
    ("max.poll.interval.ms", "the poll loop never stops for longer than it allows"),
    ("bootstrap.servers", "set KAFKA_BROKERS"),
    ("metadata.broker.list", "set KAFKA_BROKERS"),
    ("security.protocol", "set KAFKA_SECURITY_PROTOCOL"),
    ("sasl.mechanism", "set KAFKA_SASL_MECHANISM"),
    ("sasl.mechanisms", "set KAFKA_SASL_MECHANISM"),
    ("sasl.username", "set KAFKA_SASL_USERNAME"),
    ("sasl.password", "set KAFKA_SASL_PASSWORD or KAFKA_SASL_PASSWORD_FILE"),
    ("ssl.ca.location", "set KAFKA_SSL_CA_FILE"),
    ("ssl.certificate.location", "set KAFKA_SSL_CERTIFICATE_FILE"),
    ("ssl.key.location", "set KAFKA_SSL_KEY_FILE"),
    ("ssl.key.password", "set KAFKA_SSL_KEY_PASSWORD_FILE"),
    ("allow.auto.create.topics", "a missing topic must be seen, not made"),
    ("enable.idempotence", "the producers set it themselves"),
    ("transactional.id", "the producers set it themselves"),
    ("acks", "the producers set it themselves"),
    ("request.required.acks", "the producers set it themselves"),
    ("enabled_events", "the callbacks are ours"),
    ("test.mock*", "a mock broker stores nothing"),
];

/// How long a topic's batches are at most by default (`max.message.bytes`). Of one that is longer than what is asked of its
/// partition a broker sends something only if the partition stands first in a fetch.
const BATCH_MAX_LEN_BYTES: u64 = 1_048_588;
/// What one fetch takes of a broker: a batch of each of twelve partitions. librdkafka puts them in the same order each time
/// that it asks after its queue was full, so what has no place waits until the others are read to their ends. More takes
/// memory: a fetch is decompressed whole.
const FETCH_MAX_LEN_BYTES: u64 = 12 * BATCH_MAX_LEN_BYTES;

/// Parts of property names, in lower case, whose values are secrets.
const SECRET_PARTS: &[&str] = &["password", "secret", "key.pem", "jaas", "token", "sasl.oauthbearer.config"];

impl KafkaConfig {
    /// What the consumer is made with; ours first, then `KAFKA_PROPERTIES`.
    #[must_use]
    pub fn consumer_properties(&self) -> KafkaProperties {
        let session_ms = self.session_timeout.as_millis();
        let heartbeat_ms = (session_ms / 3).min(3_000);
        let mut properties: Vec<(&str, String)> = vec![
            ("group.id", self.group.clone()),
            ("enable.auto.commit", "false".into()),
            ("enable.auto.offset.store", "false".into()),
            ("auto.offset.reset", "error".into()),
            ("isolation.level", "read_committed".into()),
            ("check.crcs", "true".into()),
            ("enable.partition.eof", "true".into()),
            // A regex never takes a dead letter topic; where the broker matches (KIP-848), `source` skips it.
            ("topic.blacklist", "^.*\\.dlq$".into()),
            // librdkafka wants it no shorter than the session time-out.
            ("max.poll.interval.ms", session_ms.max(300_000).to_string()),
            ("allow.auto.create.topics", "false".into()),
            ("topic.metadata.refresh.interval.ms", "5000".into()),
            ("fetch.max.bytes", self.fetch_max_len_bytes().to_string()),
            ("queued.max.messages.kbytes", "2048".into()),
            ("queued.min.messages", "50000".into()),
            // A broker asked for new records answers this soon; what else is asked of it waits behind that.
            ("fetch.wait.max.ms", "20".into()),
            // A full queue is looked at again this soon, as it goes to the spool in some milliseconds; librdkafka waits
            // for a second.
            ("fetch.queue.backoff.ms", "5".into()),
        ];
        if self.uses_consumer_protocol {
            properties.push(("group.protocol", "consumer".into()));
        } else {
            properties.push(("partition.assignment.strategy", "cooperative-sticky".into()));
            properties.push(("session.timeout.ms", session_ms.to_string()));
            properties.push(("heartbeat.interval.ms", heartbeat_ms.to_string()));
        }
        if self.given("fetch.message.max.bytes").is_none() {
            properties.push(("max.partition.fetch.bytes", BATCH_MAX_LEN_BYTES.to_string()));
        }
        if let Some(instance_id) = &self.instance_id {
            properties.push(("group.instance.id", instance_id.clone()));
        }
        let ours = properties.into_iter().map(|(key, value)| (key.to_owned(), value));
        let given =
            self.client_properties().into_iter().chain(ours).chain(self.user_properties.iter().cloned());
        KafkaProperties { given: given.collect(), login: self.security.login.clone() }
    }

    /// The value of a property in `KAFKA_PROPERTIES`.
    fn given(&self, name: &str) -> Option<&str> {
        self.user_properties.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// [`FETCH_MAX_LEN_BYTES`], within what librdkafka wants of it beside other limits that were given.
    fn fetch_max_len_bytes(&self) -> u64 {
        let limit =
            |name: &str, default| self.given(name).and_then(|value| value.parse().ok()).unwrap_or(default);
        let answer_max: u64 = limit("receive.message.max.bytes", 100_000_000);
        FETCH_MAX_LEN_BYTES.min(answer_max.saturating_sub(512)).max(limit("message.max.bytes", 1_000_000))
    }

    /// What any client needs: brokers, logins, and what `KAFKA_PROPERTIES` says of connections.
    #[must_use]
    pub fn connection_properties(&self) -> KafkaProperties {
        let security = self.user_properties.iter().filter(|(key, _)| {
            ["security.", "ssl.", "sasl.", "enable.ssl.", "socket.", "broker.address."]
                .iter()
                .any(|prefix| key.starts_with(prefix))
        });
        let given = self.client_properties().into_iter().chain(security.cloned());
        KafkaProperties { given: given.collect(), login: self.security.login.clone() }
    }

    fn client_properties(&self) -> Vec<(String, String)> {
        [
            ("bootstrap.servers", self.brokers.as_str()),
            ("client.id", "audit-consumer"),
            ("socket.keepalive.enable", "true"),
            ("reconnect.backoff.max.ms", "1000"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into_iter()
        .chain(self.security.properties.iter().cloned())
        .collect()
    }
}

pub(super) fn read(settings: &Settings, reader: &mut Reader) -> KafkaConfig {
    KafkaConfig {
        brokers: brokers(&settings.kafka_brokers, reader),
        topics: topics(&settings.kafka_topics, reader),
        group: reader.text("KAFKA_GROUP_ID", &settings.kafka_group_id, "audit-consumer"),
        starts_at_end: reader.one_of(
            "KAFKA_AUTO_OFFSET_RESET",
            &settings.kafka_auto_offset_reset,
            "earliest",
            &[("earliest", false), ("latest", true)],
        ),
        uses_consumer_protocol: reader.one_of(
            "KAFKA_GROUP_PROTOCOL",
            &settings.kafka_group_protocol,
            "classic",
            &[("classic", false), ("consumer", true)],
        ),
        instance_id: {
            let given = &settings.kafka_instance_id;
            reader.show("KAFKA_INSTANCE_ID", given.clone().unwrap_or_default(), is_unset(given));
            given.clone().filter(|value| !value.trim().is_empty())
        },
        session_timeout: reader.millis(
            "KAFKA_SESSION_TIMEOUT_MS",
            &settings.kafka_session_timeout_ms,
            "10000",
            1_000..=3_600_000,
        ),
        security: security::read(settings, reader),
        user_properties: user_properties(&settings.kafka_properties, reader),
    }
}

fn brokers(given: &Option<String>, reader: &mut Reader) -> String {
    const VARIABLE: &str = "KAFKA_BROKERS";
    let value = reader.text(VARIABLE, given, "localhost:19092");
    let is_broker = |broker: &str| {
        broker
            .trim()
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    if !value.split(',').all(is_broker) {
        reader.wrong(VARIABLE, &value, "host:port, several separated by commas");
    }
    value.split(',').map(str::trim).collect::<Vec<_>>().join(",")
}

fn topics(given: &Option<String>, reader: &mut Reader) -> TopicSelection {
    const VARIABLE: &str = "KAFKA_TOPICS";
    let value = reader.text(VARIABLE, given, "forge.audit.query.executed");
    let value = value.trim();
    if value.starts_with('^') {
        return TopicSelection::Regex(value.to_owned());
    }
    let names: Vec<String> = value.split(',').map(|name| name.trim().to_owned()).collect();
    for name in &names {
        let is_legal = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if name.is_empty() || name.len() > 249 || !is_legal {
            let accepted =
                format!("\"{name}\" is no topic name; topic names separated by commas, or one ^regex");
            reader.wrong(VARIABLE, value, accepted);
        } else if name.ends_with(".dlq") {
            let accepted =
                format!("\"{name}\" is a dead letter topic, which is never consumed; name its source topic");
            reader.wrong(VARIABLE, value, accepted);
        }
    }
    TopicSelection::Names(names)
}

/// `key=value`, separated by commas or line feeds. A value with a comma in it goes on its own line.
fn user_properties(given: &Option<String>, reader: &mut Reader) -> Vec<(String, String)> {
    const VARIABLE: &str = "KAFKA_PROPERTIES";
    let value = given_or(given, "");
    let separator = if value.contains('\n') { '\n' } else { ',' };
    let mut properties = Vec::new();
    for part in value.split(separator).map(str::trim).filter(|part| !part.is_empty()) {
        let Some((key, setting)) = part.split_once('=') else {
            reader.wrong(VARIABLE, HIDDEN, format!("entry {} is not key=value", properties.len() + 1));
            continue;
        };
        let (key, setting) = (key.trim(), setting.trim());
        let refusal = REFUSED.iter().find(|(name, _)| match name.strip_suffix('*') {
            Some(prefix) => key.starts_with(prefix),
            None => key == *name,
        });
        match refusal {
            Some((_, why)) => reader.wrong(VARIABLE, key, format!("can't be set here: {why}")),
            None => properties.push((key.to_owned(), setting.to_owned())),
        }
    }
    let shown: Vec<String> = properties
        .iter()
        .map(|(key, value)| {
            let name = key.to_ascii_lowercase();
            let is_secret = SECRET_PARTS.iter().any(|part| name.contains(part));
            format!("{key}={}", if is_secret { HIDDEN } else { value })
        })
        .collect();
    reader.show(VARIABLE, shown.join(","), is_unset(given));
    properties
}
