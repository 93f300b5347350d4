//! What a JSON Web Token says of itself (RFC 7519); whether that is true is for the broker to find out.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Who a token is for, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenClaims {
    /// `sub`; our own name when it has none.
    pub principal: String,
    /// `exp`, in milliseconds since 1970.
    pub expires_at_ms: i64,
}

impl TokenClaims {
    /// Reads a token of three parts, of which the last may be empty.
    ///
    /// # Errors
    /// What is wrong with it; says nothing of what it holds.
    pub fn read(token: &str) -> Result<Self, &'static str> {
        let mut parts = token.split('.');
        let (Some(_header), Some(payload), Some(_signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("holds no JSON Web Token: three parts with a dot between them");
        };
        let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('='));
        let payload = payload.map_err(|_not_base64| "holds a token whose second part is not base64url")?;
        let claims: serde_json::Value = serde_json::from_slice(&payload)
            .map_err(|_not_json| "holds a token whose second part is no JSON object")?;
        let expires_at = claims.get("exp").and_then(|exp| {
            exp.as_i64().or_else(|| exp.as_f64().and_then(|seconds| format!("{seconds:.0}").parse().ok()))
        });
        let expires_at_ms = expires_at.and_then(|seconds: i64| seconds.checked_mul(1_000));
        let expires_at_ms = expires_at_ms.ok_or("holds a token that names no time of expiry (`exp`)")?;
        let principal = claims.get("sub").and_then(|sub| sub.as_str()).filter(|sub| !sub.contains('\0'));
        Ok(Self { principal: principal.unwrap_or("audit-consumer").to_owned(), expires_at_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> String {
        format!("e30.{}.", URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn a_token_tells_its_expiry_and_its_subject() {
        let of =
            |payload: &str| TokenClaims::read(&token(payload)).map(|it| (it.principal, it.expires_at_ms));
        assert_eq!(of(r#"{"sub":"me","exp":17}"#), Ok(("me".into(), 17_000)));
        assert_eq!(of(r#"{"exp":17.0}"#), Ok(("audit-consumer".into(), 17_000)));
        assert!(of(r#"{"sub":"me"}"#).unwrap_err().contains("`exp`"));
        assert!(of(r#"{"exp":9223372036854775807}"#).unwrap_err().contains("`exp`"));
        assert!(of("[").unwrap_err().contains("JSON object"));
        assert!(TokenClaims::read("s3cret").unwrap_err().contains("three parts"));
        assert!(TokenClaims::read("a.*.c").unwrap_err().contains("base64url"));
    }
}
