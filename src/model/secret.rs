//! What looks like a secret in texts that must hold none. A guess, made to refuse rather a name too much: a key that
//! speaks of a secret, unless it says that it only names where one lives, and values in the form of known secrets.

use serde_json::Value;

/// Words that make a key one of a secret; keys are compared in lower case, letters and digits alone.
const SECRET_WORDS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "privatekey",
    "credential",
    "authorization",
    "cookie",
    "bearer",
];

/// Last words of a key that only says where something lives, or what kind it is.
const REFERENCE_WORDS: &[&str] =
    &["ref", "reference", "env", "file", "path", "url", "uri", "endpoint", "type", "name"];

/// How secrets of well known kinds begin.
const SECRET_STARTS: &[&str] =
    &["-----begin", "ghp_", "gho_", "github_pat_", "glpat-", "xox", "sk-", "akia", "ya29."];

/// The shortest text that is taken for a secret by how it begins, in bytes.
const SECRET_MIN_LEN_BYTES: usize = 12;

/// Why a JSON value looks as if it held a secret; shows keys and never values.
#[must_use]
pub fn suspicion_in_json(value: &Value) -> Option<String> {
    match value {
        Value::Object(members) => members.iter().find_map(|(key, value)| {
            let is_empty = value.is_null() || value.is_boolean();
            if is_secret_key(key) && !is_empty {
                return Some(format!("the key {key:?} speaks of a secret"));
            }
            suspicion_in_json(value)
        }),
        Value::Array(items) => items.iter().find_map(suspicion_in_json),
        Value::String(text) => suspicion_in_text(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// Why a text (a path, a URL, a name) looks as if it held a secret; never shows what follows a key.
#[must_use]
pub fn suspicion_in_text(text: &str) -> Option<String> {
    let lower = text.trim().to_lowercase();
    let is_long = lower.len() >= SECRET_MIN_LEN_BYTES;
    let is_known = SECRET_STARTS.iter().any(|start| lower.starts_with(start));
    if is_long && (is_known || is_json_web_token(&lower) || is_authorization(text.trim())) {
        return Some("a value looks as a secret does".into());
    }
    if has_password_in_url(&lower) {
        return Some("a URL names a password".into());
    }
    // `key=value` and `key: value`, anywhere in it.
    let mut parts = lower.split(['?', '&', ';', ',', ' ', '\n', '#']);
    parts.find_map(|part| {
        let (key, value) = part.split_once(['=', ':'])?;
        let is_scheme = value.starts_with("//");
        (is_secret_key(key) && !is_scheme).then(|| format!("{key:?} is given a value"))
    })
}

/// Three parts apart by dots, of which the first begins as an encoded `{"` does (RFC 7519).
fn is_json_web_token(text: &str) -> bool {
    text.starts_with("eyj") && text.split('.').count() == 3
}

/// The value of a header `Authorization`: `Bearer` or `Basic`, then one word that is not a plain one.
fn is_authorization(text: &str) -> bool {
    let Some((scheme, word)) = text.split_once(' ') else { return false };
    let is_scheme = ["bearer", "basic"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    let is_plain = word.contains(' ') || word.chars().all(|c| c.is_ascii_lowercase());
    is_scheme && !is_plain
}

fn has_password_in_url(text: &str) -> bool {
    text.split("://").skip(1).any(|rest| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        authority.rsplit_once('@').is_some_and(|(user_info, _)| user_info.contains(':'))
    })
}

fn is_secret_key(key: &str) -> bool {
    let words: Vec<String> = words(key);
    let joined = words.concat();
    let is_reference = words.last().is_some_and(|last| REFERENCE_WORDS.contains(&last.as_str()));
    !is_reference && SECRET_WORDS.iter().any(|word| joined.contains(word))
}

/// The words of a key, in lower case: apart by what is no letter or digit, and where a capital follows a small one.
fn words(key: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for character in key.chars() {
        let begins = !character.is_alphanumeric() || (was_lower && character.is_uppercase());
        if begins {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| character.is_alphanumeric()) {
            word.extend(character.to_lowercase());
        }
        was_lower = character.is_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_of_secrets_are_found_at_any_depth() {
        for value in [
            json!({"password": "x"}),
            json!({"client_secret": "x"}),
            json!({"a": [{"refreshToken": "x"}]}),
            json!({"API-KEY": "x"}),
            json!({"DB_PASSWD": 7}),
            json!({"x": {"Authorization": {"a": 1}}}),
            json!({"url": "https://me:pw@host/x"}),
            json!({"url": "https://host/x?access_token=abc"}),
            json!({"note": "password=hunter2"}),
            json!(["-----BEGIN PRIVATE KEY-----"]),
            json!({"jwt": "eyJhbGciOiJIUzI1NiJ9.e30.x"}),
            json!({"header": "Bearer mF_9.B5f-4.1JqM"}),
            json!({"header": "basic dXNlcjpwYXNz"}),
        ] {
            let found = suspicion_in_json(&value);
            assert!(found.is_some(), "{value}");
            assert!(!found.unwrap().contains("hunter2"));
        }
    }

    #[test]
    fn names_of_where_a_secret_lives_are_no_secrets() {
        for value in [
            json!({}),
            json!({"token_endpoint": "https://login.example/oauth2/token"}),
            json!({"tokenUrl": "https://login.example/oauth2/token", "secret_ref": "vault:kv/audit"}),
            json!({"password_env": "KAGGLE_PASSWORD", "scopes": ["read", "user:email"]}),
            json!({"has_token": true, "secret": null, "region": "eu", "number": 5}),
            json!({"path": "handlers/oauth_token.py", "key": "value"}),
            json!({"note": "basic authentication", "volcano": "eyjafjallajokull"}),
        ] {
            assert_eq!(suspicion_in_json(&value), None, "{value}");
        }
        for text in
            ["local", "kafka", "handlers/token_exchange.py", "https://host:8080/x", "C:/handlers/token"]
        {
            assert_eq!(suspicion_in_text(text), None, "{text}");
        }
        for text in ["x?token=abc", "postgres://a:b@c/d", "handler --password=abc"] {
            assert!(suspicion_in_text(text).is_some(), "{text}");
        }
    }
}
