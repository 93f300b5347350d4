//! What a failed TLS handshake with PostgreSQL means, in words for an operator.

use std::io::ErrorKind;

/// What to look at, by a part of what rustls says; the first that fits.
const ADVICE: &[(&str, &str)] = &[
    ("UnknownIssuer", "no authority in PGSSLROOTCERT has signed the server's certificate"),
    ("not valid for name", "the server's certificate is for another host name than the URL's"),
    ("certificate expired", "the server's certificate has expired, or the clock here is wrong: renew it"),
    ("not valid yet", "the server's certificate is not valid yet, or the clock here is wrong"),
    ("received fatal alert", "the server refuses our certificate: check PGSSLCERT and PGSSLKEY"),
    ("does not support TLS", "the server speaks no TLS (ssl = off), and PGSSLMODE asks for it"),
];

/// `error` with what to look at, when it comes from TLS; otherwise as it is.
pub(super) fn explained(error: sqlx::Error) -> sqlx::Error {
    let words = match &error {
        // rustls gives its errors as those of the connection.
        sqlx::Error::Io(io) if io.kind() == ErrorKind::InvalidData => io.to_string(),
        sqlx::Error::Tls(tls) => tls.to_string(),
        _ => return error,
    };
    let advice = ADVICE.iter().find(|(part, _)| words.contains(part));
    let advice = advice.map_or("check PGSSLROOTCERT, PGSSLCERT and PGSSLKEY", |(_, advice)| *advice);
    sqlx::Error::Tls(format!("{words}; {advice}").into())
}
