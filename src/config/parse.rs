//! How values are read: each reader notes what it read for `check`, and what was wrong, and goes on.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::secret::{HIDDEN, Secret, SecretFile};
use super::{ConfigError, ShownSetting};

/// Reads settings; collects what is shown and what is wrong.
#[derive(Debug, Default)]
pub(super) struct Reader {
    shown: Vec<ShownSetting>,
    errors: Vec<ConfigError>,
}

impl Reader {
    pub(super) fn finish(self) -> (Vec<ShownSetting>, Vec<ConfigError>) {
        (self.shown, self.errors)
    }

    pub(super) fn show(&mut self, variable: &'static str, value: String, is_default: bool) {
        self.shown.push(ShownSetting { variable, value, is_default });
    }

    pub(super) fn wrong(&mut self, variable: &'static str, value: &str, accepted: impl Into<String>) {
        self.errors.push(ConfigError { variable, value: value.to_owned(), accepted: accepted.into() });
    }

    /// Any text that is not empty.
    pub(super) fn text(&mut self, variable: &'static str, given: &Option<String>, default: &str) -> String {
        let value = given_or(given, default);
        self.show(variable, value.to_owned(), is_unset(given));
        value.to_owned()
    }

    pub(super) fn number<N>(
        &mut self,
        variable: &'static str,
        given: &Option<String>,
        default: &str,
        range: RangeInclusive<N>,
    ) -> N
    where
        N: FromStr + PartialOrd + fmt::Display + Copy,
    {
        let value = given_or(given, default);
        self.show(variable, value.to_owned(), is_unset(given));
        match value.trim().parse::<N>() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                self.wrong(
                    variable,
                    value,
                    format!("a whole number from {} to {}", range.start(), range.end()),
                );
                *range.start()
            }
        }
    }

    pub(super) fn millis(
        &mut self,
        variable: &'static str,
        given: &Option<String>,
        default: &str,
        range: RangeInclusive<u64>,
    ) -> Duration {
        Duration::from_millis(self.number(variable, given, default, range))
    }

    /// A number of bytes, with an optional unit: `KiB`, `MiB`, `GiB`, also written `K`, `KB` and so on.
    pub(super) fn bytes(
        &mut self,
        variable: &'static str,
        given: &Option<String>,
        default: &str,
        range: RangeInclusive<usize>,
    ) -> usize {
        let value = given_or(given, default);
        self.show(variable, value.to_owned(), is_unset(given));
        match len_bytes(value).filter(|len_bytes| range.contains(len_bytes)) {
            Some(len_bytes) => len_bytes,
            None => {
                let (low, high) = (range.start(), range.end());
                self.wrong(variable, value, format!("bytes from {low} to {high}, such as 1048576 or 1MiB"));
                *range.start()
            }
        }
    }

    pub(super) fn flag(&mut self, variable: &'static str, given: &Option<String>) -> bool {
        let words =
            [("false", false), ("no", false), ("0", false), ("true", true), ("yes", true), ("1", true)];
        self.one_of(variable, given, "false", &words)
    }

    /// One of a few words, in any letter case.
    pub(super) fn one_of<T: Copy>(
        &mut self,
        variable: &'static str,
        given: &Option<String>,
        default: &'static str,
        words: &[(&str, T)],
    ) -> T {
        let value = given_or(given, default);
        self.show(variable, value.to_owned(), is_unset(given));
        let find = |wanted: &str| words.iter().find(|(word, _)| word.eq_ignore_ascii_case(wanted.trim()));
        let found = find(value).or_else(|| {
            let accepted: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(variable, value, format!("one of {}", accepted.join(", ")));
            find(default)
        });
        match found.or(words.first()) {
            Some((_, meaning)) => *meaning,
            // Every caller gives words.
            None => unreachable!("{variable} has no words"),
        }
    }

    pub(super) fn address(
        &mut self,
        variable: &'static str,
        given: &Option<String>,
        default: &str,
    ) -> SocketAddr {
        let value = given_or(given, default);
        self.show(variable, value.to_owned(), is_unset(given));
        value.trim().parse().unwrap_or_else(|_error| {
            self.wrong(variable, value, "an address and port, such as 0.0.0.0:8080 or [::1]:8080");
            SocketAddr::from(([0, 0, 0, 0], 0))
        })
    }

    /// One of a few words, in any letter case, or none.
    pub(super) fn optional_word<T: Copy>(
        &mut self,
        variable: &'static str,
        given: &Option<String>,
        words: &[(&str, T)],
    ) -> Option<T> {
        let value = given_or(given, "");
        self.show(variable, value.to_owned(), is_unset(given));
        let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(value.trim()));
        if found.is_none() && !is_unset(given) {
            let accepted: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(variable, value, format!("one of {}", accepted.join(", ")));
        }
        found.map(|(_, meaning)| *meaning)
    }

    /// A file (or a directory) that can be read.
    pub(super) fn file(&mut self, variable: &'static str, given: &Option<String>) -> Option<PathBuf> {
        let value = given_or(given, "");
        self.show(variable, value.to_owned(), is_unset(given));
        if is_unset(given) {
            return None;
        }
        match std::fs::File::open(value).and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.is_file() && metadata.len() == 0 => {
                self.wrong(variable, value, "is empty; name a file in PEM");
            }
            Ok(_) => {}
            Err(error) => self.wrong(variable, value, format!("can't be read: {error}")),
        }
        Some(PathBuf::from(value))
    }

    /// A file that holds a secret, with what it holds now, if it can be read.
    pub(super) fn secret_file(
        &mut self,
        variable: &'static str,
        given: &Option<String>,
    ) -> Option<(SecretFile, Option<Secret>)> {
        let value = given_or(given, "");
        self.show(variable, value.to_owned(), is_unset(given));
        if is_unset(given) {
            return None;
        }
        let file = SecretFile::new(variable, PathBuf::from(value));
        let secret = match file.read() {
            Ok(secret) => Some(secret),
            Err(error) => {
                self.wrong(variable, value, error.reason);
                None
            }
        };
        Some((file, secret))
    }
}

/// A given value that is not empty, or the default.
pub(super) fn given_or<'a>(given: &'a Option<String>, default: &'a str) -> &'a str {
    given.as_deref().filter(|value| !value.trim().is_empty()).unwrap_or(default)
}

pub(super) fn is_unset(given: &Option<String>) -> bool {
    given.as_deref().is_none_or(|value| value.trim().is_empty())
}

fn len_bytes(text: &str) -> Option<usize> {
    let text = text.trim();
    let digits_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at_checked(digits_len)?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(1 << shift)
}

/// The URL without its password: between `:` and the last `@` before the path, and in `password=`.
pub(super) fn redacted_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return HIDDEN.into() };
    // Without a scheme, what stands before `://` may be all of a URL (RFC 3986, section 3.1).
    if !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) {
        return HIDDEN.into();
    }
    let (authority, tail) = match rest.find(['/', '?', '#']) {
        // A password may hold one of them by mistake; then all before the last `@` is hidden.
        Some(at) if rest.rfind('@').is_some_and(|last| at < last) => return format!("{scheme}://{HIDDEN}"),
        Some(at) => rest.split_at_checked(at).unwrap_or((rest, "")),
        None => (rest, ""),
    };
    let authority = match authority.rsplit_once('@') {
        Some((user_info, host)) => match user_info.split_once(':') {
            Some((user, _)) => format!("{user}:{HIDDEN}@{host}"),
            None => authority.to_owned(),
        },
        None => authority.to_owned(),
    };
    let (path, query) = tail.split_once('?').map_or((tail, None), |(path, query)| (path, Some(query)));
    let query = query.map_or_else(String::new, |query| {
        let parts: Vec<String> = query
            .split('&')
            .map(|part| match part.split_once('=') {
                Some((key, _)) if key.to_ascii_lowercase().contains("password") => format!("{key}={HIDDEN}"),
                _ => part.to_owned(),
            })
            .collect();
        format!("?{}", parts.join("&"))
    });
    format!("{scheme}://{authority}{path}{query}")
}
