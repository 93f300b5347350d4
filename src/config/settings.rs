//! Every setting as a flag and an environment variable, unread.

/// The settings, as given. [`super::Config::resolve`] reads them.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// PostgreSQL to store into [default: postgresql://localhost:5432/forge]
    #[arg(long, global = true, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// A file that holds the URL, instead of DATABASE_URL; read again for each connection
    #[arg(long, global = true, env = "DATABASE_URL_FILE", value_name = "FILE", hide_env_values = true)]
    pub database_url_file: Option<String>,
    /// How the connection to PostgreSQL is secured; sslmode in the URL wins [default: prefer]
    #[arg(
        long,
        global = true,
        env = "PGSSLMODE",
        value_name = "disable|prefer|require|verify-ca|verify-full",
        hide_env_values = true
    )]
    pub pgsslmode: Option<String>,
    /// Authorities that may sign PostgreSQL's certificate, in PEM; sslrootcert in the URL wins
    #[arg(long, global = true, env = "PGSSLROOTCERT", value_name = "FILE", hide_env_values = true)]
    pub pgsslrootcert: Option<String>,
    /// Our certificate for PostgreSQL, in PEM; sslcert in the URL wins
    #[arg(long, global = true, env = "PGSSLCERT", value_name = "FILE", hide_env_values = true)]
    pub pgsslcert: Option<String>,
    /// Its key, in PEM, without a password; sslkey in the URL wins
    #[arg(long, global = true, env = "PGSSLKEY", value_name = "FILE", hide_env_values = true)]
    pub pgsslkey: Option<String>,
    /// Brokers to start from [default: localhost:19092]
    #[arg(long, global = true, env = "KAFKA_BROKERS", value_name = "HOST:PORT,..", hide_env_values = true)]
    pub kafka_brokers: Option<String>,
    /// Topics to consume, separated by commas, or one ^regex; never a .dlq topic [default: forge.audit.query.executed]
    #[arg(long, global = true, env = "KAFKA_TOPICS", value_name = "NAMES|^REGEX", hide_env_values = true)]
    pub kafka_topics: Option<String>,
    /// Consumer group; its positions are kept in PostgreSQL [default: audit-consumer]
    #[arg(long, global = true, env = "KAFKA_GROUP_ID", value_name = "ID", hide_env_values = true)]
    pub kafka_group_id: Option<String>,
    /// Where a group without a position starts [default: earliest]
    #[arg(
        long,
        global = true,
        env = "KAFKA_AUTO_OFFSET_RESET",
        value_name = "earliest|latest",
        hide_env_values = true
    )]
    pub kafka_auto_offset_reset: Option<String>,
    /// Rebalance protocol; consumer is KIP-848 [default: classic]
    #[arg(
        long,
        global = true,
        env = "KAFKA_GROUP_PROTOCOL",
        value_name = "classic|consumer",
        hide_env_values = true
    )]
    pub kafka_group_protocol: Option<String>,
    /// Static membership (group.instance.id), such as the pod's name
    #[arg(long, global = true, env = "KAFKA_INSTANCE_ID", value_name = "ID", hide_env_values = true)]
    pub kafka_instance_id: Option<String>,
    /// How long Kafka waits for a silent member, 1000 to 3600000 [default: 10000]
    #[arg(long, global = true, env = "KAFKA_SESSION_TIMEOUT_MS", value_name = "MS", hide_env_values = true)]
    pub kafka_session_timeout_ms: Option<String>,
    /// How connections to Kafka are secured [default: plaintext]
    #[arg(
        long,
        global = true,
        env = "KAFKA_SECURITY_PROTOCOL",
        value_name = "plaintext|ssl|sasl_plaintext|sasl_ssl",
        hide_env_values = true
    )]
    pub kafka_security_protocol: Option<String>,
    /// How we log in to Kafka, with a sasl_ protocol
    #[arg(
        long,
        global = true,
        env = "KAFKA_SASL_MECHANISM",
        value_name = "PLAIN|SCRAM-SHA-256|SCRAM-SHA-512|OAUTHBEARER",
        hide_env_values = true
    )]
    pub kafka_sasl_mechanism: Option<String>,
    /// Who we are, for PLAIN and SCRAM
    #[arg(long, global = true, env = "KAFKA_SASL_USERNAME", value_name = "NAME", hide_env_values = true)]
    pub kafka_sasl_username: Option<String>,
    /// The password, for PLAIN and SCRAM
    #[arg(long, global = true, env = "KAFKA_SASL_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub kafka_sasl_password: Option<String>,
    /// A file that holds the password, instead of KAFKA_SASL_PASSWORD; may change while we run
    #[arg(
        long,
        global = true,
        env = "KAFKA_SASL_PASSWORD_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub kafka_sasl_password_file: Option<String>,
    /// A file that holds a JSON Web Token, for OAUTHBEARER; may change while we run
    #[arg(long, global = true, env = "KAFKA_SASL_TOKEN_FILE", value_name = "FILE", hide_env_values = true)]
    pub kafka_sasl_token_file: Option<String>,
    /// Authorities that may sign the brokers' certificates, in PEM [default: those of the system]
    #[arg(long, global = true, env = "KAFKA_SSL_CA_FILE", value_name = "FILE", hide_env_values = true)]
    pub kafka_ssl_ca_file: Option<String>,
    /// Our certificate for Kafka, in PEM
    #[arg(
        long,
        global = true,
        env = "KAFKA_SSL_CERTIFICATE_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub kafka_ssl_certificate_file: Option<String>,
    /// Its key, in PEM
    #[arg(long, global = true, env = "KAFKA_SSL_KEY_FILE", value_name = "FILE", hide_env_values = true)]
    pub kafka_ssl_key_file: Option<String>,
    /// A file that holds the key's password
    #[arg(
        long,
        global = true,
        env = "KAFKA_SSL_KEY_PASSWORD_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub kafka_ssl_key_password_file: Option<String>,
    /// Further librdkafka properties, separated by commas or line feeds; those that would break the promise are refused by name
    #[arg(long, global = true, env = "KAFKA_PROPERTIES", value_name = "K=V,..", hide_env_values = true)]
    pub kafka_properties: Option<String>,
    /// A batch closes at this many records, 1 to 100000 [default: 10000]
    #[arg(long, global = true, env = "BATCH_MAX_EVENTS", value_name = "N", hide_env_values = true)]
    pub batch_max_events: Option<String>,
    /// ... or at this many encoded bytes, 1KiB to 256MiB [default: 8MiB]
    #[arg(long, global = true, env = "BATCH_MAX_BYTES", value_name = "BYTES", hide_env_values = true)]
    pub batch_max_bytes: Option<String>,
    /// ... or this long after the poll of its first record, 1 to 60000 [default: 20]
    #[arg(long, global = true, env = "BATCH_LINGER_MS", value_name = "MS", hide_env_values = true)]
    pub batch_linger_ms: Option<String>,
    /// Batches in flight at once, each on a connection of its own, 1 to 16 [default: 2]
    #[arg(long, global = true, env = "LANES", value_name = "N", hide_env_values = true)]
    pub lanes: Option<String>,
    /// A longer payload is a dead letter (too_large), 1KiB to 16MiB [default: 512KiB]
    #[arg(long, global = true, env = "MAX_EVENT_BYTES", value_name = "BYTES", hide_env_values = true)]
    pub max_event_bytes: Option<String>,
    /// Tenant of events that name none [default: spel-local-forge]
    #[arg(long, global = true, env = "TENANT_ID", value_name = "ID", hide_env_values = true)]
    pub tenant_id: Option<String>,
    /// Take a time without a zone as UTC instead of rejecting it [default: false]
    #[arg(long, global = true, env = "ASSUME_UTC", value_name = "true|false", hide_env_values = true)]
    pub assume_utc: Option<String>,
    /// The value of a dead letter's record: the original bytes, or a JSON object around them [default: raw]
    #[arg(long, global = true, env = "DLQ_FORMAT", value_name = "raw|envelope", hide_env_values = true)]
    pub dlq_format: Option<String>,
    /// A partition stops when more of its latest records than this, in percent, are dead letters; 100: never [default: 50]
    #[arg(long, global = true, env = "DLQ_BREAKER_SHARE", value_name = "PERCENT", hide_env_values = true)]
    pub dlq_breaker_share: Option<String>,
    /// ... of at least so many records [default: 1000]
    #[arg(long, global = true, env = "DLQ_BREAKER_WINDOW", value_name = "N", hide_env_values = true)]
    pub dlq_breaker_window: Option<String>,
    /// resourceId of Purview logs; <tenant> stands for the event's [default: /tenants/<tenant>/providers/audit-consumer]
    #[arg(long, global = true, env = "PURVIEW_RESOURCE_ID", value_name = "ID", hide_env_values = true)]
    pub purview_resource_id: Option<String>,
    /// category of Purview logs, Workload of Office 365 records [default: FederatedQuery]
    #[arg(long, global = true, env = "PURVIEW_CATEGORY", value_name = "NAME", hide_env_values = true)]
    pub purview_category: Option<String>,
    /// How Purview logs write the claim of who did it [default: array]
    #[arg(
        long,
        global = true,
        env = "PURVIEW_IDENTITY",
        value_name = "array|object",
        hide_env_values = true
    )]
    pub purview_identity: Option<String>,
    /// What stands behind <actor>@ in exports [default: local]
    #[arg(long, global = true, env = "PURVIEW_DOMAIN", value_name = "DOMAIN", hide_env_values = true)]
    pub purview_domain: Option<String>,
    /// Write committed events as Purview logs to LOG_DIR/purview/audit_YYYYMMDD.jsonl [default: on]
    #[arg(long, global = true, env = "PURVIEW_LOG", value_name = "on|off", hide_env_values = true)]
    pub purview_log: Option<String>,
    /// Write committed events as trust lines to LOG_DIR/trust/trust_YYYYMMDD.jsonl [default: on]
    #[arg(long, global = true, env = "TRUST_LOG", value_name = "on|off", hide_env_values = true)]
    pub trust_log: Option<String>,
    /// The length at which a day's next file begins (audit_YYYYMMDD.1.jsonl, ..); 0: never [default: 0]
    #[arg(long, global = true, env = "DAY_FILE_MAX_BYTES", value_name = "BYTES", hide_env_values = true)]
    pub day_file_max_bytes: Option<String>,
    /// How long lines of day files wait while records are behind in Kafka [default: 60000]
    #[arg(long, global = true, env = "PROJECT_LAG_MAX_MS", value_name = "MS", hide_env_values = true)]
    pub project_lag_max_ms: Option<String>,
    /// How long a time partition of events is; used by migrate [default: month]
    #[arg(
        long,
        global = true,
        env = "PARTITION_INTERVAL",
        value_name = "day|week|month",
        hide_env_values = true
    )]
    pub partition_interval: Option<String>,
    /// Where metrics, probes and status are served [default: 0.0.0.0:8080]
    #[arg(long, global = true, env = "HTTP_ADDRESS", value_name = "HOST:PORT", hide_env_values = true)]
    pub http_address: Option<String>,
    /// Certificate of the HTTP side, in PEM, with those that lead to its authority
    #[arg(
        long,
        global = true,
        env = "HTTP_TLS_CERTIFICATE_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub http_tls_certificate_file: Option<String>,
    /// Its key, in PEM
    #[arg(long, global = true, env = "HTTP_TLS_KEY_FILE", value_name = "FILE", hide_env_values = true)]
    pub http_tls_key_file: Option<String>,
    /// A file that holds the token which / and /status ask for
    #[arg(long, global = true, env = "HTTP_TOKEN_FILE", value_name = "FILE", hide_env_values = true)]
    pub http_token_file: Option<String>,
    /// Where metrics and probes are served, too: in plain text, without a token
    #[arg(long, global = true, env = "HTTP_PROBE_ADDRESS", value_name = "HOST:PORT", hide_env_values = true)]
    pub http_probe_address: Option<String>,
    /// Directory of this instance's files [default: /logs]
    #[arg(long, global = true, env = "LOG_DIR", value_name = "DIR", hide_env_values = true)]
    pub log_dir: Option<String>,
    /// Where records wait while PostgreSQL is away, or off [default: LOG_DIR/spool]
    #[arg(long, global = true, env = "SPOOL_DIR", value_name = "DIR|off", hide_env_values = true)]
    pub spool_dir: Option<String>,
    /// ... for longer than this [default: 5000]
    #[arg(long, global = true, env = "SPOOL_AFTER_MS", value_name = "MS", hide_env_values = true)]
    pub spool_after_ms: Option<String>,
    /// How much the spool may hold; then partitions are paused [default: 10GiB]
    #[arg(long, global = true, env = "SPOOL_MAX_BYTES", value_name = "BYTES", hide_env_values = true)]
    pub spool_max_bytes: Option<String>,
    /// How much of its disk the spool leaves free [default: 2GiB]
    #[arg(long, global = true, env = "SPOOL_MIN_FREE_BYTES", value_name = "BYTES", hide_env_values = true)]
    pub spool_min_free_bytes: Option<String>,
    /// How long a file of the spool becomes [default: 64MiB]
    #[arg(long, global = true, env = "SPOOL_SEGMENT_BYTES", value_name = "BYTES", hide_env_values = true)]
    pub spool_segment_bytes: Option<String>,
    /// How long the spool keeps what PostgreSQL has got from it [default: 86400000]
    #[arg(long, global = true, env = "SPOOL_KEEP_MS", value_name = "MS", hide_env_values = true)]
    pub spool_keep_ms: Option<String>,
    /// TRACE, DEBUG, INFO, WARN or ERROR [default: INFO]
    #[arg(long, global = true, env = "LOG_LEVEL", value_name = "LEVEL", hide_env_values = true)]
    pub log_level: Option<String>,
    /// How log lines look [default: text]
    #[arg(long, global = true, env = "LOG_FORMAT", value_name = "text|json", hide_env_values = true)]
    pub log_format: Option<String>,
    /// Whether lags and positions are told by topic and partition; off: lags are sums [default: on]
    #[arg(
        long,
        global = true,
        env = "METRICS_PARTITION_LABEL",
        value_name = "on|off",
        hide_env_values = true
    )]
    pub metrics_partition_label: Option<String>,
    /// How often positions of idle partitions are compared with PostgreSQL [default: 15000]
    #[arg(long, global = true, env = "VERIFY_INTERVAL_MS", value_name = "MS", hide_env_values = true)]
    pub verify_interval_ms: Option<String>,
    /// How long claiming partitions may take [default: 10000]
    #[arg(long, global = true, env = "CLAIM_TIMEOUT_MS", value_name = "MS", hide_env_values = true)]
    pub claim_timeout_ms: Option<String>,
    /// Refuse to run as a role that may change what is append only, such as a superuser [default: false]
    #[arg(
        long,
        global = true,
        env = "REQUIRE_LEAST_PRIVILEGE",
        value_name = "true|false",
        hide_env_values = true
    )]
    pub require_least_privilege: Option<String>,
    /// PostgreSQL's statement_timeout in our sessions [default: 60000]
    #[arg(long, global = true, env = "STATEMENT_TIMEOUT_MS", value_name = "MS", hide_env_values = true)]
    pub statement_timeout_ms: Option<String>,
    /// PostgreSQL's lock_timeout in our sessions [default: 10000]
    #[arg(long, global = true, env = "LOCK_TIMEOUT_MS", value_name = "MS", hide_env_values = true)]
    pub lock_timeout_ms: Option<String>,
    /// How long records deleted from Kafka are waited for before a gap is declared [default: 3600000]
    #[arg(long, global = true, env = "GAP_WAIT_MS", value_name = "MS", hide_env_values = true)]
    pub gap_wait_ms: Option<String>,
    /// How long stopping may take [default: 10000]
    #[arg(long, global = true, env = "SHUTDOWN_DEADLINE_MS", value_name = "MS", hide_env_values = true)]
    pub shutdown_deadline_ms: Option<String>,
}
