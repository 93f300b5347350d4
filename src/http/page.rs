//! The status page: one file without any other asset. The browser runs what we shipped and nothing else.

use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("status.html");

/// The page with its headers.
#[derive(Debug)]
pub(super) struct Page {
    /// Content Security Policy Level 3: its own script and style by their hashes, questions to its own origin.
    policy: String,
}

impl Page {
    pub(super) fn new() -> Self {
        let [script, style] = ["script", "style"].map(|tag| hash_source(content_of(tag)));
        let policy = format!(
            "default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        Self { policy }
    }

    pub(super) fn answer(&self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CACHE_CONTROL, "no-store"),
            (header::CONTENT_SECURITY_POLICY, self.policy.as_str()),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ];
        (headers, Bytes::from_static(HTML.as_bytes())).into_response()
    }
}

/// What stands between `<tag>` and `</tag>`, which the page has once.
fn content_of(tag: &str) -> &'static str {
    let (start, end) = (format!("<{tag}>"), format!("</{tag}>"));
    let content = HTML.split_once(&start).and_then(|(_, rest)| rest.split_once(&end));
    content.map_or("", |(content, _)| content)
}

fn hash_source(content: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_script_and_one_style_and_the_policy_names_both() {
        for tag in ["script", "style"] {
            assert_eq!(HTML.matches(&format!("<{tag}")).count(), 1);
            assert!(content_of(tag).len() > 1_000, "{tag}");
            assert!(Page::new().policy.contains(&hash_source(content_of(tag))));
        }
        // The example of the specification, https://www.w3.org/TR/CSP3/#example-7d25fc5e.
        let example = hash_source("alert('Hello, world.');");
        assert_eq!(example, "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='");
    }

    #[test]
    fn the_page_loads_nothing_and_writes_texts_as_texts() {
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "src=",
            "@import",
            "url(",
        ] {
            assert!(!HTML.contains(word), "{word}");
        }
        let addresses: Vec<&str> = HTML
            .split("http")
            .skip(1)
            .filter(|rest| rest.starts_with("://") || rest.starts_with("s://"))
            .collect();
        assert!(addresses.iter().all(|rest| rest.starts_with("://www.w3.org/2000/svg")), "{addresses:?}");
    }
}
