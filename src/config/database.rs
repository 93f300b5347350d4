//! Where PostgreSQL is, and how the connection to it is secured.

use std::path::PathBuf;
use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::Settings;
use super::parse::{Reader, given_or, is_unset, redacted_url};
use super::secret::{HIDDEN, Secret, SecretFile};

const URL_VARIABLE: &str = "DATABASE_URL";
const URL_FILE_VARIABLE: &str = "DATABASE_URL_FILE";
const URL_ACCEPTED: &str = "a URL such as postgresql://user:password@host:5432/database";

/// Where PostgreSQL is.
#[derive(Debug, Clone)]
pub struct DatabaseTarget {
    url: Url,
    ssl_mode: Option<PgSslMode>,
    root_certificate: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Clone)]
enum Url {
    Given(Secret),
    /// Read for each connection.
    In(SecretFile),
}

/// PostgreSQL can't be reached as the settings say; never tells the URL.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DatabaseTargetError(String);

impl DatabaseTarget {
    /// A URL, as `DATABASE_URL` has it.
    #[must_use]
    pub const fn of_url(url: Secret) -> Self {
        Self { url: Url::Given(url), ssl_mode: None, root_certificate: None, certificate: None, key: None }
    }

    /// The options for a connection that is opened now: `DATABASE_URL_FILE` is read again. What the URL says of TLS
    /// wins over `PGSSLMODE` and the like.
    ///
    /// # Errors
    /// When the file or the URL in it can't be read.
    pub fn options(&self) -> Result<PgConnectOptions, DatabaseTargetError> {
        let url = match &self.url {
            Url::Given(url) => url.clone(),
            Url::In(file) => {
                let url = file.read().map_err(|error| DatabaseTargetError(error.to_string()))?;
                let wrong = |reason: String| DatabaseTargetError(file.wrong(reason).to_string());
                check_url(url.reveal())
                    .map_err(|accepted| wrong(format!("holds a wrong URL; {accepted}")))?;
                url
            }
        };
        let url = url.reveal();
        let mut options = PgConnectOptions::from_str(url)
            .map_err(|error| DatabaseTargetError(format!("{URL_VARIABLE}: {error}")))?;
        if let Some(mode) = self.ssl_mode.filter(|_| !says(url, &["sslmode", "ssl-mode"])) {
            options = options.ssl_mode(mode);
        }
        let unsaid = |path: &Option<PathBuf>, keys: &[&str]| path.clone().filter(|_| !says(url, keys));
        if let Some(path) = unsaid(&self.root_certificate, &["sslrootcert", "ssl-root-cert", "ssl-ca"]) {
            options = options.ssl_root_cert(path);
        }
        if let Some(path) = unsaid(&self.certificate, &["sslcert", "ssl-cert"]) {
            options = options.ssl_client_cert(path);
        }
        if let Some(path) = unsaid(&self.key, &["sslkey", "ssl-key"]) {
            options = options.ssl_client_key(path);
        }
        Ok(options)
    }
}

/// Whether the query of `url` has one of `keys`.
fn says(url: &str, keys: &[&str]) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    query.split('&').any(|part| keys.contains(&part.split('=').next().unwrap_or_default()))
}

/// What is accepted, when `url` is not.
fn check_url(url: &str) -> Result<(), &'static str> {
    // sqlx does not know it, and logs the value of what it does not know.
    if says(url, &["sslpassword"]) {
        return Err("a URL without sslpassword: the key in sslkey must be one without a password");
    }
    let is_ours = url.starts_with("postgresql://") || url.starts_with("postgres://");
    if is_ours && PgConnectOptions::from_str(url).is_ok() { Ok(()) } else { Err(URL_ACCEPTED) }
}

pub(super) fn read(settings: &Settings, reader: &mut Reader) -> DatabaseTarget {
    let url = url(settings, reader);
    let ssl_mode = reader.optional_word(
        "PGSSLMODE",
        &settings.pgsslmode,
        &[
            ("disable", PgSslMode::Disable),
            ("allow", PgSslMode::Allow),
            ("prefer", PgSslMode::Prefer),
            ("require", PgSslMode::Require),
            ("verify-ca", PgSslMode::VerifyCa),
            ("verify-full", PgSslMode::VerifyFull),
        ],
    );
    let target = DatabaseTarget {
        url,
        ssl_mode,
        root_certificate: reader.file("PGSSLROOTCERT", &settings.pgsslrootcert),
        certificate: reader.file("PGSSLCERT", &settings.pgsslcert),
        key: reader.file("PGSSLKEY", &settings.pgsslkey),
    };
    if target.certificate.is_some() != target.key.is_some() {
        let (variable, other) =
            if target.key.is_none() { ("PGSSLCERT", "PGSSLKEY") } else { ("PGSSLKEY", "PGSSLCERT") };
        let path = target.certificate.as_ref().or(target.key.as_ref());
        let path = path.map(|path| path.display().to_string()).unwrap_or_default();
        reader.wrong(variable, &path, format!("goes together with {other}: set both or none"));
    }
    target
}

fn url(settings: &Settings, reader: &mut Reader) -> Url {
    let given = &settings.database_url;
    let file = reader.secret_file(URL_FILE_VARIABLE, &settings.database_url_file);
    let Some((file, content)) = file else {
        let value = given_or(given, "postgresql://localhost:5432/forge");
        let redacted = redacted_url(value);
        reader.show(URL_VARIABLE, redacted.clone(), is_unset(given));
        if let Err(accepted) = check_url(value) {
            reader.wrong(URL_VARIABLE, &redacted, accepted);
        }
        return Url::Given(Secret::new(value.to_owned()));
    };
    reader.show(URL_VARIABLE, String::new(), true);
    if !is_unset(given) {
        reader.wrong(URL_VARIABLE, HIDDEN, format!("{URL_FILE_VARIABLE} is set, too: leave one of them out"));
    }
    if let Some(Err(accepted)) = content.map(|url| check_url(url.reveal())) {
        let path = file.path().display().to_string();
        reader.wrong(URL_FILE_VARIABLE, &path, format!("holds a wrong URL; {accepted}"));
    }
    Url::In(file)
}
