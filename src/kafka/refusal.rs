//! librdkafka's words for a refused connection, in words for an operator.

use rdkafka::error::RDKafkaErrorCode;

/// What to look at, by a part of what librdkafka says; the first that fits.
const ADVICE: &[(&str, &str)] = &[
    ("nsupported SASL mechanism", "set KAFKA_SASL_MECHANISM to one that the listener offers"),
    ("certificate verify failed", CERTIFICATE),
    ("certificate could not be verified", CERTIFICATE),
    ("ailed to verify broker certificate", CERTIFICATE),
    ("certificate required", OWN_CERTIFICATE),
    ("bad certificate", OWN_CERTIFICATE),
    ("unknown ca", OWN_CERTIFICATE),
    ("certificate expired", OWN_CERTIFICATE),
    ("certificate unknown", OWN_CERTIFICATE),
    ("handshake failure", OWN_CERTIFICATE),
    ("client SSL authentication might be required", OWN_CERTIFICATE),
    (
        "connecting to a PLAINTEXT broker listener",
        "the listener speaks no TLS; set KAFKA_SECURITY_PROTOCOL to what it speaks",
    ),
    ("wrong version number", "the listener speaks no TLS; set KAFKA_SECURITY_PROTOCOL to what it speaks"),
    (
        "connecting to a SSL listener",
        "set KAFKA_SECURITY_PROTOCOL to what the listener speaks, such as ssl or sasl_ssl",
    ),
    ("might require SASL", "set KAFKA_SECURITY_PROTOCOL to what the listener speaks, such as sasl_ssl"),
];
const CERTIFICATE: &str = "the broker's certificate is not signed by an authority in KAFKA_SSL_CA_FILE, has expired, \
    or is for another host name than KAFKA_BROKERS or the broker's advertised.listeners say";
const OWN_CERTIFICATE: &str = "the broker refuses our certificate: check KAFKA_SSL_CERTIFICATE_FILE and \
    KAFKA_SSL_KEY_FILE, when the certificate expires, and that the broker's truststore has its authority";
const LOGIN: &str = "check KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD, or the file they are in, or the token in \
    KAFKA_SASL_TOKEN_FILE";

/// The connection went away while we logged in, as it does when a session or a token ends; the next one tells more.
const PASSING: &[&str] = &["Broker transport failure", "Request not valid in current SASL state"];

/// Whether a line of librdkafka's log tells of a refused connection.
pub(super) fn is_one(line: &str) -> bool {
    ["SASL", "SSL handshake failed", "OAUTHBEARER"].iter().any(|part| line.contains(part))
        || ADVICE.iter().any(|(part, _)| line.contains(part))
}

/// Why a broker keeps us out, or we it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// librdkafka's words and what to look at.
    pub(super) why: String,
    /// The broker (`host:port`) whose certificate is not accepted, for whatever reason.
    pub(super) unverified: Option<String>,
}

/// What an error says of a refused connection; `None` when the broker only can't be reached.
pub(super) fn of(code: RDKafkaErrorCode, reason: &str) -> Option<Refusal> {
    let advice = ADVICE.iter().find(|(part, _)| reason.contains(part)).map(|(_, advice)| *advice);
    let advice = match code {
        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
            if PASSING.iter().any(|part| reason.contains(part)) {
                return None;
            }
            advice.unwrap_or(LOGIN)
        }
        RDKafkaErrorCode::SSL => advice.unwrap_or(CERTIFICATE),
        // TLS where none is spoken, and the other way round, shows as a broken connection.
        RDKafkaErrorCode::BrokerTransportFailure => advice?,
        _ => return None,
    };
    let unverified = if advice == CERTIFICATE { broker(reason) } else { None };
    Some(Refusal { why: format!("{}; {advice}", shortened(reason)), unverified })
}

/// The broker that librdkafka names first: `ssl://host:port/bootstrap: ..`.
fn broker(reason: &str) -> Option<String> {
    let (_, rest) = reason.split_once("ssl://")?;
    let end = rest.find('/').or_else(|| rest.find(": "))?;
    rest.get(..end).map(str::to_owned)
}

/// Without librdkafka's guess at the cause, and without times, which make the same words new ones.
pub(super) fn shortened(reason: &str) -> &str {
    let end =
        [": broker certificate could not be verified", " (after ", ": client SSL authentication", ": now="]
            .iter()
            .filter_map(|part| reason.find(part))
            .min();
    end.and_then(|end| reason.get(..end)).unwrap_or(reason).trim_end_matches([':', ' '])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: RDKafkaErrorCode, reason: &str, expect: &str) {
        let found = of(code, reason);
        assert!(found.as_ref().is_some_and(|found| found.why.contains(expect)), "{found:?}");
    }

    #[test]
    fn the_broker_with_the_certificate_is_named() {
        let of = |reason| of(RDKafkaErrorCode::SSL, reason).and_then(|refusal| refusal.unverified);
        assert_eq!(
            of("ssl://b.example:93/bootstrap: SSL handshake failed: certificate verify failed"),
            Some("b.example:93".into())
        );
        assert_eq!(of("sasl_ssl://b:93/1: certificate verify failed"), Some("b:93".into()));
        assert_eq!(of("ssl://b:93/1: alert certificate required"), None);
    }

    #[test]
    fn a_refusal_says_what_to_look_at() {
        use RDKafkaErrorCode as Code;
        check(
            Code::Authentication,
            "sasl_ssl://b:9: SASL authentication error: Authentication failed (after 300ms in state AUTH_REQ)",
            "Authentication failed; check KAFKA_SASL_USERNAME",
        );
        check(Code::Authentication, "Broker: Unsupported SASL mechanism: PLAIN", "set KAFKA_SASL_MECHANISM");
        check(
            Code::SSL,
            "SSL handshake failed: error:0A000086: certificate verify failed",
            "KAFKA_SSL_CA_FILE",
        );
        check(
            Code::SSL,
            "ssl: alert certificate required: SSL alert number 116",
            "KAFKA_SSL_CERTIFICATE_FILE",
        );
        check(
            Code::BrokerTransportFailure,
            "Disconnected: connecting to a PLAINTEXT broker listener?",
            "KAFKA_SECURITY_PROTOCOL",
        );
        assert_eq!(
            of(Code::BrokerTransportFailure, "Connect to ipv4#127.0.0.1:1 failed: Connection refused"),
            None
        );
        let handshake = "b:9: SASL OAUTHBEARER mechanism handshake failed: ";
        for passing in
            ["Broker: Request not valid in current SASL state: ..", "Local: Broker transport failure: .."]
        {
            assert_eq!(of(Code::Authentication, &format!("{handshake}{passing}")), None);
        }
        assert_eq!(of(Code::AllBrokersDown, "1/1 brokers are down"), None);
    }
}
