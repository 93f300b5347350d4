//! A broker that refuses us, or that we can't trust, is told in one line that says what to look at.

use super::*;

#[test]
fn a_broker_that_refuses_us_or_can_not_be_trusted_is_told_in_one_line() {
    let stack = Stack::private();
    let scene = Scene::on(&stack, "refusals", 1);
    set_scram_password(&stack, &scene.name, "SCRAM-SHA-256", "right");
    let file = |name: &str| certificate(&stack, name);
    let to = |listener: &str, protocol: &str, more: &[(&'static str, String)]| {
        let mut settings = BTreeMap::from([
            ("KAFKA_BROKERS", stack.setting(listener).to_owned()),
            ("KAFKA_SECURITY_PROTOCOL", protocol.to_owned()),
        ]);
        if protocol.ends_with("ssl") {
            settings.insert("KAFKA_SSL_CA_FILE", file("ca.pem"));
        }
        settings.extend(more.iter().cloned());
        settings
    };
    let login = |mechanism: &str, user: &str, password: &str| {
        vec![
            ("KAFKA_SASL_MECHANISM", mechanism.to_owned()),
            ("KAFKA_SASL_USERNAME", user.to_owned()),
            ("KAFKA_SASL_PASSWORD", password.to_owned()),
        ]
    };
    let mut strange_authority = login("PLAIN", "audit", PLAIN_PASSWORD);
    strange_authority.push(("KAFKA_SSL_CA_FILE", file("other-ca.pem")));
    let stranger =
        [("KAFKA_SSL_CERTIFICATE_FILE", file("stranger.pem")), ("KAFKA_SSL_KEY_FILE", file("stranger.key"))];
    let expired = secret_file(&scene, "expired", &token(-60)).display().to_string();
    let expired = [("KAFKA_SASL_MECHANISM", "OAUTHBEARER".to_owned()), ("KAFKA_SASL_TOKEN_FILE", expired)];
    let password = &["KAFKA_SASL_PASSWORD"][..];
    check_refusals(
        &scene,
        "kafka",
        &[
            ("wrong password", to("KAFKA_SASL_SSL", "sasl_ssl", &login("PLAIN", "audit", "wrong")), password),
            (
                "wrong password, scram",
                to("KAFKA_SASL_SSL", "sasl_ssl", &login("SCRAM-SHA-256", &scene.name, "wrong")),
                password,
            ),
            (
                "unknown authority",
                to("KAFKA_SASL_SSL", "sasl_ssl", &strange_authority),
                &["no authority in KAFKA_SSL_CA_FILE="],
            ),
            ("expired certificate", to("KAFKA_EXPIRED", "ssl", &[]), &["it has expired"]),
            ("wrong host name", to("KAFKA_ELSEWHERE", "ssl", &[]), &["it is not for localhost"]),
            ("no certificate of ours", to("KAFKA_MUTUAL", "ssl", &[]), &["KAFKA_SSL_CERTIFICATE_FILE"]),
            (
                "a stranger's certificate",
                to("KAFKA_MUTUAL", "ssl", &stranger),
                &["KAFKA_SSL_CERTIFICATE_FILE"],
            ),
            (
                "no tls where it is asked for",
                to("KAFKA_SASL_SSL", "plaintext", &[]),
                &["KAFKA_SECURITY_PROTOCOL"],
            ),
            ("tls where there is none", to("KAFKA_BROKERS", "ssl", &[]), &["KAFKA_SECURITY_PROTOCOL"]),
            (
                "an expired token",
                to("KAFKA_SASL_SSL", "sasl_ssl", &expired),
                &["KAFKA_SASL_TOKEN_FILE", "expired"],
            ),
        ],
    );
}

#[test]
fn other_commands_tell_a_refused_login_too() {
    let stack = Stack::private();
    let scene = sasl(Scene::on(&stack, "refusedcommands", 1), "PLAIN");
    let scene = with(scene, &[("KAFKA_SASL_USERNAME", "audit"), ("KAFKA_SASL_PASSWORD", "wrong")]);
    let topic = scene.topic.clone();
    let commands: [&[&str]; 2] =
        [&["emit", "--topic", &topic, "--generate", "1", "--timeout-ms", "3000"], &["verify"]];
    std::thread::scope(|threads| {
        let outputs: Vec<_> =
            commands.iter().map(|args| (args, threads.spawn(|| scene.command(args)))).collect();
        for (args, output) in outputs {
            let output = output.join().unwrap();
            let text = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(text.contains("KAFKA_SASL_PASSWORD"), "{args:?}: {text}");
        }
    });
}

#[test]
fn settings_that_contradict_each_other_end_the_start() {
    let scene = Scene::new("contradiction", 1);
    let settings = [("KAFKA_SECURITY_PROTOCOL", "sasl_ssl"), ("KAFKA_SASL_MECHANISM", "PLAIN")];
    let output = scene.command_with(&["run"], &settings);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("configuration: KAFKA_SASL_USERNAME=: must be set"), "{text}");
    assert!(
        text.contains("configuration: KAFKA_SASL_PASSWORD=: this KAFKA_SASL_MECHANISM needs it"),
        "{text}"
    );
}
