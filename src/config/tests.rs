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
    for name in
        ["enable.auto.commit", "auto.offset.reset", "isolation.level", "group.id", "auto.commit.interval.ms"]
    {
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
