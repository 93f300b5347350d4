//! Wrong values are named; secrets stay hidden.

use super::*;

#[track_caller]
fn check_wrong(settings: Settings, expect: &str) {
    let errors = Config::resolve(&settings).unwrap_err().to_string();
    assert!(errors.contains(expect), "{errors}");
}

fn some(value: &str) -> Option<String> {
    Some(value.to_owned())
}

#[test]
fn defaults_are_those_of_the_predecessor() {
    let config = Config::resolve(&Settings::default()).unwrap();
    assert_eq!(config.database.target.options().unwrap().get_host(), "localhost");
    assert_eq!(config.kafka.brokers, "localhost:19092");
    assert_eq!(config.kafka.topics, TopicSelection::Names(vec!["forge.audit.query.executed".into()]));
    assert_eq!(config.kafka.group, "audit-consumer");
    assert_eq!(config.event.tenant_id, "spel-local-forge");
    assert!(!config.kafka.starts_at_end);
    assert_eq!(config.process.log_level, tracing::Level::INFO);
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let settings = Settings { lanes: some(""), tenant_id: some(" "), ..Settings::default() };
    let config = Config::resolve(&settings).unwrap();
    assert_eq!((config.batch.lane_count, config.event.tenant_id.as_str()), (2, "spel-local-forge"));
}

#[test]
fn every_wrong_value_is_named_with_what_is_accepted() {
    let all = Settings {
        lanes: some("zero"),
        batch_max_bytes: some("8 parsecs"),
        log_level: some("LOUD"),
        ..Settings::default()
    };
    check_wrong(all.clone(), "LANES=zero: a whole number from 1 to 16");
    check_wrong(all.clone(), "BATCH_MAX_BYTES=8 parsecs: bytes from");
    check_wrong(all, "LOG_LEVEL=LOUD: one of TRACE");
    let with = |settings: Settings| settings;
    check_wrong(with(Settings { lanes: some("17"), ..Settings::default() }), "LANES=17");
    check_wrong(with(Settings { kafka_brokers: some("localhost"), ..Settings::default() }), "host:port");
    check_wrong(with(Settings { http_address: some("8080"), ..Settings::default() }), "an address and port");
    check_wrong(with(Settings { kafka_topics: some("a,b.dlq"), ..Settings::default() }), "dead letter topic");
    check_wrong(with(Settings { database_url: some("mysql://x"), ..Settings::default() }), "DATABASE_URL");
}

#[test]
fn what_purview_logs_say_of_us_is_a_setting() {
    let all = Settings {
        purview_resource_id: some("/subscriptions/1"),
        purview_category: some("Audit"),
        purview_identity: some("OBJECT"),
        purview_domain: some("example.com"),
        ..Settings::default()
    };
    let expect = ProjectionRules {
        resource_id: "/subscriptions/1".into(),
        category: "Audit".into(),
        identity: crate::model::projection::IdentityForm::Object,
        domain: "example.com".into(),
    };
    assert_eq!(Config::resolve(&all).unwrap().projection, expect);
    let none = Config::resolve(&Settings::default()).unwrap();
    assert_eq!(none.projection, ProjectionRules::default());
    check_wrong(Settings { purview_domain: some("a@b"), ..Settings::default() }, "PURVIEW_DOMAIN=a@b");
    check_wrong(Settings { purview_identity: some("list"), ..Settings::default() }, "one of array, object");
}

#[test]
fn properties_that_would_break_the_promise_are_refused_by_name() {
    for name in [
        "enable.auto.commit",
        "auto.offset.reset",
        "isolation.level",
        "group.id",
        "auto.commit.interval.ms",
        "sasl.password",
        "security.protocol",
    ] {
        let settings = Settings { kafka_properties: some(&format!("{name}=x")), ..Settings::default() };
        check_wrong(settings, &format!("KAFKA_PROPERTIES={name}: can't be set here"));
    }
}

#[test]
fn further_properties_reach_librdkafka() {
    let settings =
        Settings { kafka_properties: some("fetch.min.bytes=7,ssl.cipher.suites=x"), ..Settings::default() };
    let config = Config::resolve(&settings).unwrap();
    let has = |list: KafkaProperties, key: &str| list.given.iter().any(|(name, _)| name == key);
    assert!(has(config.kafka.consumer_properties(), "fetch.min.bytes"));
    assert!(has(config.kafka.connection_properties(), "ssl.cipher.suites"));
    assert!(!has(config.kafka.connection_properties(), "fetch.min.bytes"));
}

#[test]
fn sizes_are_read_with_their_units() {
    for (text, expect) in [("2048", 2048), ("4k", 4096), ("1MiB", 1 << 20), ("2 MB", 2 << 20)] {
        let settings = Settings { max_event_bytes: some(text), ..Settings::default() };
        assert_eq!(Config::resolve(&settings).unwrap().event.payload_max_len_bytes, expect, "{text}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let settings = Settings {
        database_url: some("postgresql://me:s3cret@db:5432/x?password=s3cret&a=b"),
        kafka_properties: some("ssl.keystore.password=s3cret,ssl.key.pem=s3cret,client.rack=r"),
        ..Settings::default()
    };
    let config = Config::resolve(&settings).unwrap();
    let shown = format!("{config:?} {:?}", config.shown());
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(shown.contains("postgresql://me:***@db:5432/x?password=***&a=b"), "{shown}");
    assert!(shown.contains("client.rack=r"), "{shown}");
    let odd = Settings { database_url: some("postgresql://me:s3/cret@db/x"), ..Settings::default() };
    let text = match Config::resolve(&odd) {
        Ok(config) => format!("{:?}", config.shown()),
        Err(errors) => errors.to_string(),
    };
    assert!(!text.contains("cret"), "{text}");
}

#[test]
fn a_password_with_what_ends_a_host_is_not_shown() {
    for password in ["s3?cret", "s3#cret", "s3/cret", "s3@cret", "s3:cret", "cret"] {
        let url = format!("postgresql://me:{password}@db/x");
        let shown = match Config::resolve(&Settings { database_url: Some(url), ..Settings::default() }) {
            Ok(config) => format!("{config:?} {:?}", config.shown()),
            Err(errors) => format!("{errors} {errors:?}"),
        };
        assert!(shown.contains("postgresql://") && !shown.contains("cret"), "{shown}");
    }
}

#[test]
fn a_url_without_a_scheme_is_not_shown() {
    for url in ["me:s3cret@db/x", "me:s3cret@db/x?from=http://a", "me:s3cret@db://a"] {
        check_wrong(Settings { database_url: some(url), ..Settings::default() }, "DATABASE_URL=***: a URL");
    }
}

#[test]
fn a_property_that_is_a_secret_is_hidden_in_any_letter_case() {
    let settings = Settings { kafka_properties: some("SSL.Keystore.Password=s3cret"), ..Settings::default() };
    let shown = format!("{:?}", Config::resolve(&settings).unwrap().shown());
    assert!(shown.contains("SSL.Keystore.Password=***"), "{shown}");
}

#[test]
fn a_refusal_is_one_line_whatever_the_value_holds() {
    check_wrong(
        Settings { lanes: some("1\n2\u{1b}[31m"), ..Settings::default() },
        r"LANES=1\n2\u{1b}[31m: a whole number",
    );
}

/// A file that holds `text`, for as long as the guard lives.
fn file(text: &str) -> (tempfile::NamedTempFile, Option<String>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let path = some(file.path().to_str().unwrap());
    (file, path)
}

fn sasl(mechanism: &str) -> Settings {
    Settings {
        kafka_security_protocol: some("SASL_SSL"),
        kafka_sasl_mechanism: some(mechanism),
        ..Settings::default()
    }
}

#[test]
fn kafka_is_told_how_to_connect_and_to_log_in() {
    let settings = Settings {
        kafka_sasl_username: some("me"),
        kafka_sasl_password: some("s3cret"),
        ..sasl("scram-sha-256")
    };
    let config = Config::resolve(&settings).unwrap();
    for properties in [config.kafka.connection_properties(), config.kafka.consumer_properties()] {
        let has = |name: &str, value: &str| properties.given.contains(&(name.into(), value.into()));
        assert!(has("security.protocol", "sasl_ssl") && has("sasl.mechanism", "SCRAM-SHA-256"));
        assert!(has("sasl.username", "me") && has("sasl.password", "s3cret"));
    }
    let shown = format!("{config:?} {:?} {:?}", config.shown(), config.kafka.consumer_properties());
    assert!(!shown.contains("s3cret"), "{shown}");
    let (_password, path) = file("s3cret\r\n");
    let settings =
        Settings { kafka_sasl_username: some("me"), kafka_sasl_password_file: path, ..sasl("PLAIN") };
    let properties = Config::resolve(&settings).unwrap().kafka.connection_properties();
    assert!(properties.given.iter().all(|(name, _)| name != "sasl.password"), "read when a client is made");
    assert_eq!(properties.login.password_file.unwrap().read().unwrap().reveal(), "s3cret");
}

#[test]
fn logins_that_contradict_each_other_are_refused() {
    let (_password, password) = file("s3cret");
    let (_empty, empty) = file("\n");
    let (_text, text) = file("no token");
    let me = |mechanism: &str| Settings { kafka_sasl_username: some("me"), ..sasl(mechanism) };
    let with = |settings: &Settings| settings.clone();
    check_wrong(sasl("PLAIN"), "KAFKA_SASL_USERNAME=: must be set");
    check_wrong(me("PLAIN"), "KAFKA_SASL_PASSWORD=: this KAFKA_SASL_MECHANISM needs it");
    check_wrong(sasl("GSSAPI"), "KAFKA_SASL_MECHANISM=GSSAPI: one of PLAIN");
    check_wrong(
        Settings { kafka_sasl_mechanism: None, ..sasl("") },
        "KAFKA_SECURITY_PROTOCOL=sasl_ssl needs one of",
    );
    check_wrong(
        Settings { kafka_security_protocol: some("ssl"), ..me("PLAIN") },
        "KAFKA_SASL_MECHANISM=PLAIN: is for KAFKA_SECURITY_PROTOCOL sasl_ssl",
    );
    let both = Settings {
        kafka_sasl_password: some("s3cret"),
        kafka_sasl_password_file: password.clone(),
        ..me("PLAIN")
    };
    check_wrong(both, "KAFKA_SASL_PASSWORD=***: KAFKA_SASL_PASSWORD_FILE is set, too");
    check_wrong(
        Settings { kafka_sasl_password_file: empty.clone(), ..me("PLAIN") },
        "is empty; write the secret into it",
    );
    check_wrong(
        Settings { kafka_sasl_password_file: some("/no/where"), ..me("PLAIN") },
        "/no/where: can't be read",
    );
    let token = with(&sasl("OAUTHBEARER"));
    check_wrong(token.clone(), "KAFKA_SASL_TOKEN_FILE=: must be set");
    check_wrong(Settings { kafka_sasl_token_file: text.clone(), ..token.clone() }, "holds no JSON Web Token");
    check_wrong(
        Settings { kafka_sasl_password: some("s3cret"), ..token },
        "KAFKA_SASL_PASSWORD=***: is for KAFKA_SASL_MECHANISM PLAIN",
    );
    check_wrong(
        Settings { kafka_sasl_token_file: text, kafka_sasl_password_file: password, ..me("PLAIN") },
        "is for KAFKA_SASL_MECHANISM=OAUTHBEARER",
    );
}

#[test]
fn certificates_that_can_not_be_used_are_refused() {
    let (_pem, pem) = file("-----BEGIN CERTIFICATE-----");
    let (_empty, empty) = file("");
    let ssl = Settings { kafka_security_protocol: some("ssl"), ..Settings::default() };
    check_wrong(
        Settings { kafka_ssl_ca_file: pem.clone(), ..Settings::default() },
        "is for KAFKA_SECURITY_PROTOCOL ssl or sasl_ssl",
    );
    check_wrong(Settings { kafka_ssl_ca_file: empty, ..ssl.clone() }, "is empty; name a file in PEM");
    check_wrong(
        Settings { kafka_ssl_ca_file: some("/no/where"), ..ssl.clone() },
        "KAFKA_SSL_CA_FILE=/no/where: can't be read",
    );
    check_wrong(
        Settings { kafka_ssl_certificate_file: pem.clone(), ..ssl.clone() },
        "goes together with KAFKA_SSL_KEY_FILE",
    );
    check_wrong(
        Settings { kafka_ssl_key_file: pem.clone(), ..ssl.clone() },
        "goes together with KAFKA_SSL_CERTIFICATE_FILE",
    );
    check_wrong(Settings { kafka_ssl_key_password_file: pem.clone(), ..ssl }, "is for KAFKA_SSL_KEY_FILE");
    check_wrong(Settings { pgsslcert: pem, ..Settings::default() }, "goes together with PGSSLKEY");
    check_wrong(
        Settings { pgsslmode: some("verify_full"), ..Settings::default() },
        "PGSSLMODE=verify_full: one of",
    );
}

#[test]
fn the_url_in_a_file_is_read_for_each_connection_and_its_words_on_tls_win() {
    let (url, path) = file("postgresql://me:s3cret@first/x?sslmode=require\n");
    let settings =
        Settings { database_url_file: path.clone(), pgsslmode: some("verify-full"), ..Settings::default() };
    let config = Config::resolve(&settings).unwrap();
    assert!(!format!("{config:?}").contains("s3cret"));
    let mode = |config: &Config| {
        let options = config.database.target.options().unwrap();
        format!("{} {:?}", options.get_host(), options.get_ssl_mode())
    };
    assert_eq!(mode(&config), "first Require");
    std::fs::write(url.path(), "postgresql://me:s3cret@second/x").unwrap();
    assert_eq!(mode(&config), "second VerifyFull");
    std::fs::write(url.path(), "mysql://s3cret").unwrap();
    let error = config.database.target.options().unwrap_err().to_string();
    assert!(error.contains("DATABASE_URL_FILE=") && !error.contains("s3cret"), "{error}");
    check_wrong(settings, "holds a wrong URL");
    let both =
        Settings { database_url: some("postgresql://h/x"), database_url_file: path, ..Settings::default() };
    check_wrong(both, "DATABASE_URL=***: DATABASE_URL_FILE is set, too");
    let locked =
        Settings { database_url: some("postgresql://h/x?sslpassword=s3cret"), ..Settings::default() };
    check_wrong(locked, "a URL without sslpassword");
}
