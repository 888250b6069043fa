//! Who may pass the TCP door.
//!
//! Invariant: any user and any web page of this machine can reach loopback, so nothing but the health
//! answer and the static page is given without the token. A name that was rebound to loopback is no
//! loopback name, and a page of another origin is refused before the token is looked at.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::answer::Refusal;

/// The secret that opens the TCP door. It has no text form and is never logged.
pub struct Token(Vec<u8>);

impl Token {
    /// A token as its file holds it; none when it is too short to be a secret.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (text.len() >= Self::BYTES_MIN).then(|| Self(text.as_bytes().to_vec()))
    }

    /// Shortest token, in bytes of text: 128 bits in hexadecimal.
    pub const BYTES_MIN: usize = 32;

    /// Compares in a time that does not depend on where the two differ.
    fn is(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(hidden)")
    }
}

pub(crate) struct Guard {
    pub(crate) token: Token,
    pub(crate) port: u16,
}

const FREE: [&str; 2] = ["/", "/healthz"];
const LOOPBACK_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Lets a request in, or says why not.
pub(crate) async fn admit(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    if let Err(refusal) = check_host(&guard, &request).and_then(|()| check_origin(&guard, request.headers())) {
        return refusal.into_response();
    }
    if !FREE.contains(&request.uri().path())
        && let Err(refusal) = check_token(&guard, request.headers())
    {
        let mut response = refusal.into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, axum::http::HeaderValue::from_static("Bearer"));
        return response;
    }
    next.run(request).await
}

/// The `Host` header, and the authority of an absolute address if there is one, name this machine.
fn check_host(guard: &Guard, request: &Request) -> Result<(), Refusal> {
    let refused = || {
        Refusal::usage(
            StatusCode::FORBIDDEN,
            "the request was made for another host than this machine",
            format!("use http://127.0.0.1:{}", guard.port),
        )
    };
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().and_then(|h| h.to_str().ok()).ok_or_else(refused)?;
    let absolute = request.uri().authority().map(|a| a.as_str());
    if hosts.next().is_some() || !is_ours(host, guard.port) || !absolute.is_none_or(|a| is_ours(a, guard.port)) {
        return Err(refused());
    }
    Ok(())
}

/// A browser says from which page a request comes; programs send no `Origin`.
fn check_origin(guard: &Guard, headers: &HeaderMap) -> Result<(), Refusal> {
    let same = |origin: &axum::http::HeaderValue| {
        origin.to_str().ok().and_then(|o| o.strip_prefix("http://")).is_some_and(|host| is_ours(host, guard.port))
    };
    if headers.get_all(header::ORIGIN).iter().all(same) {
        return Ok(());
    }
    Err(Refusal::usage(
        StatusCode::FORBIDDEN,
        "the request comes from a page of another origin",
        "call the API from a program or from its own page",
    ))
}

/// `name:port` with a loopback name and our own port; the port may be left out only where HTTP's own is meant.
fn is_ours(authority: &str, port: u16) -> bool {
    LOOPBACK_NAMES.iter().any(|name| {
        let Some(prefix) = authority.get(..name.len()) else { return false };
        if !prefix.eq_ignore_ascii_case(name) {
            return false;
        }
        match &authority[name.len()..] {
            "" => port == 80,
            rest => rest.strip_prefix(':') == Some(port.to_string().as_str()),
        }
    })
}

fn check_token(guard: &Guard, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let token = given.next().and_then(|v| {
        let (scheme, token) = v.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
    });
    if given.next().is_none() && token.is_some_and(|t| guard.token.is(t)) {
        return Ok(());
    }
    Err(Refusal::usage(
        StatusCode::UNAUTHORIZED,
        "this address needs the site's API token",
        "send `Authorization: Bearer TOKEN`; the token is in the file api.token of the site's home",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_with_our_port_are_ours() {
        for good in ["localhost:7712", "LOCALHOST:7712", "127.0.0.1:7712", "[::1]:7712"] {
            assert!(is_ours(good, 7712), "{good}");
        }
        for bad in [
            "",
            "localhost",
            "localhost:7713",
            "localhost:77120",
            "localhost.evil.test:7712",
            "127.0.0.1.evil.test:7712",
            "127.0.0.2:7712",
            "evil.test:7712",
            "user@localhost:7712",
            "localhost:7712:7712",
            "[::1]",
            "::1:7712",
            "localhost:+7712",
            "löcalhost:7712",
        ] {
            assert!(!is_ours(bad, 7712), "{bad}");
        }
        assert!(is_ours("localhost", 80));
    }

    #[test]
    fn a_short_token_is_none() {
        assert!(Token::new("short").is_none());
        let token = Token::new(&format!("{}\n", "a".repeat(32))).unwrap();
        assert!(token.is("a".repeat(32).as_bytes()));
        assert!(!token.is("a".repeat(31).as_bytes()) && !token.is(b""));
        assert!(!format!("{token:?}").contains("aaa"));
    }
}
