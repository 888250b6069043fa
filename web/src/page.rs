//! What is given without a token: a word of health and a page that says where the API is.
//!
//! Invariant: neither tells anything about the site, not even its name; the page runs no script.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sluice</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:4em auto;padding:0 1em}code{background:#8882;padding:.1em .3em}</style>
<h1>Sluice</h1>
<p>A Sluice site runs on this machine. Its API is here, below <code>/v1</code>, for programs that send the site's token:</p>
<p><code>curl -H "Authorization: Bearer $(cat HOME/api.token)" http://127.0.0.1:PORT/v1/status</code></p>
<p>For people there is the command line: <code>sluice status</code>, <code>sluice --help</code>.
The files <code>docs/cli.md</code> and <code>docs/operations.md</code> of the Sluice sources describe both.</p>
</html>
"#;

const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

pub(crate) async fn healthz() -> (StatusCode, &'static str) {
    (StatusCode::OK, "ok\n")
}

pub(crate) async fn front() -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)], PAGE)
        .into_response()
}
