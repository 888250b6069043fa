//! The command line's way to the daemon: the API over the socket in the site's home.
//!
//! Invariant: every operation goes over the same HTTP routes that other programs use. The answer is
//! read as lines, so progress is seen while the work goes on; a connection that ends before the last
//! line is never taken for success.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sluice_protocol::api::{ApiError, Failure, Operation, Progress};
use tokio::net::UnixStream;

use crate::home::{HomeError, SocketPath};

/// Longest line of an answer, in bytes: a difference of millions of files.
const LINE_BYTES_MAX: usize = 1 << 30;

/// A way to the daemon of one home.
pub struct Client {
    home: PathBuf,
}

impl Client {
    /// For the daemon whose home is `home`; nothing is opened yet.
    pub fn new(home: &Path) -> Self {
        Self { home: home.to_path_buf() }
    }

    /// Whether a daemon answers the socket now.
    pub async fn is_up(&self) -> bool {
        self.connect().await.is_ok()
    }

    /// Does one operation; progress goes to `watch` as it comes.
    pub async fn call(&self, op: &Operation, watch: &mut (dyn FnMut(Progress) + Send)) -> Result<Value, ApiError> {
        let stream = self.connect().await?;
        let lost = |e: &dyn std::fmt::Display| self.lost(e);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| lost(&e))?;
        // The connection's own task: it ends with the answer, or with the daemon.
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request(op)).await.map_err(|e| lost(&e))?;
        let result = self.read(response, watch).await;
        driver.abort();
        result
    }

    /// Like [`Client::call`], read as the type that this operation answers with.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        op: &Operation,
        watch: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<T, ApiError> {
        let value = self.call(op, watch).await?;
        serde_json::from_value(value).map_err(|e| strange(&format!("its answer has another shape than expected ({e})")))
    }

    async fn connect(&self) -> Result<UnixStream, ApiError> {
        if !self.home.is_dir() {
            return Err(HomeError::Missing(self.home.clone()).into());
        }
        let path = SocketPath::of(&self.home).map_err(|e| self.closed(&e))?;
        UnixStream::connect(path.as_path()).await.map_err(|e| self.closed(&e))
    }

    /// The socket cannot be reached.
    fn closed(&self, cause: &io::Error) -> ApiError {
        let home = self.home.display();
        match cause.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                if !self.home.join("site.key").exists() {
                    return HomeError::Missing(self.home.clone()).into();
                }
                ApiError::new(
                    Failure::Error,
                    format!("the site in `{home}` is not running"),
                    "start it with `sluice up`",
                )
            }
            io::ErrorKind::PermissionDenied => ApiError::new(
                Failure::Error,
                format!("the site in `{home}` belongs to another user"),
                "run this as the user that runs `sluice up`, or as root",
            ),
            _ => ApiError::plain(Failure::Error, format!("the site in `{home}` cannot be reached: {cause}")),
        }
    }

    /// The daemon went away, or refused us, before it answered.
    fn lost(&self, cause: &dyn std::fmt::Display) -> ApiError {
        tracing::debug!(%cause, "the connection to the daemon broke");
        ApiError::new(
            Failure::Incomplete,
            "the site stopped before it answered",
            "see the log of `sluice up`; once it runs again, the same command goes on where it was",
        )
    }

    async fn read(
        &self,
        response: Response<Incoming>,
        watch: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Value, ApiError> {
        let is_lines = response.headers().get(CONTENT_TYPE).is_some_and(|t| t == sluice_web::LINES);
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        // Bytes of the buffer that are known to hold no end of a line.
        let mut seen = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|e| self.lost(&e))?.into_data() else { continue };
            buffer.extend_from_slice(&data);
            if buffer.len() > LINE_BYTES_MAX {
                return Err(strange("its answer is too long"));
            }
            while is_lines && let Some(end) = buffer[seen..].iter().position(|b| *b == b'\n') {
                let line = buffer.split_to(seen + end + 1);
                seen = 0;
                if let Some(last) = take(&line, watch)? {
                    return last;
                }
            }
            seen = buffer.len();
        }
        if is_lines || buffer.is_empty() {
            return Err(self.lost(&"no last line"));
        }
        // A refusal before the work began is one JSON object.
        match serde_json::from_slice::<ApiError>(&buffer) {
            Ok(error) => Err(error),
            Err(_) => Err(strange("its answer is no line of progress and no refusal")),
        }
    }
}

fn strange(what: &str) -> ApiError {
    ApiError::new(
        Failure::Error,
        format!("the site was not understood: {what}"),
        "the daemon and this command should be of the same version",
    )
}

/// Reads one line: progress, or the end.
fn take(line: &[u8], watch: &mut (dyn FnMut(Progress) + Send)) -> Result<Option<Result<Value, ApiError>>, ApiError> {
    let mut value: Value = serde_json::from_slice(line).map_err(|e| strange(&e.to_string()))?;
    if value.get("event").is_some() {
        // An event of a newer daemon that is not known here is no reason to stop.
        if let Ok(progress) = serde_json::from_value(value) {
            watch(progress);
        }
        return Ok(None);
    }
    if let Some(result) = value.get_mut("result") {
        return Ok(Some(Ok(result.take())));
    }
    serde_json::from_value(value).map(|error| Some(Err(error))).map_err(|e| strange(&e.to_string()))
}

fn request(op: &Operation) -> Request<Full<Bytes>> {
    let (method, path, body) = route(op);
    let body = body.map_or_else(Bytes::new, |b| Bytes::from(b.to_string()));
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "site")
        .header(ACCEPT, sluice_web::LINES)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .expect("paths are percent-encoded and headers are constant")
}

/// The route of an operation; `sluice_web::router` is its other half, and a test joins the two.
fn route(op: &Operation) -> (Method, String, Option<Value>) {
    let get = |path: String| (Method::GET, path, None);
    let delete = |path: String| (Method::DELETE, path, None);
    let post = |path: String, body: Value| (Method::POST, path, Some(body));
    let of = |space: &str, rest: &str| format!("/v1/spaces/{}{rest}", encoded(space));
    match op {
        Operation::Status => get("/v1/status".into()),
        Operation::Doctor => get("/v1/doctor".into()),
        Operation::SpaceAdd { name, path, history, opaque } => {
            post("/v1/spaces".into(), json!({"name": name, "path": path, "history": history, "opaque": opaque}))
        }
        Operation::SpaceList => get("/v1/spaces".into()),
        Operation::SpaceShow { space } => get(of(space, "")),
        Operation::SpaceRemove { space } => delete(of(space, "")),
        Operation::Invite { space, sections, expires_s } => {
            post("/v1/invites".into(), json!({"space": space, "sections": sections, "expires_s": expires_s}))
        }
        Operation::Join { ticket, into, sections } => {
            post("/v1/join".into(), json!({"ticket": ticket, "into": into, "sections": sections}))
        }
        Operation::SpaceRecover { space } => post(of(space, "/recover"), json!({})),
        Operation::PeerList => get("/v1/peers".into()),
        Operation::PeerShow { peer } => get(format!("/v1/peers/{}", encoded(peer))),
        Operation::PeerRevoke { peer, space } => {
            delete(format!("/v1/peers/{}{}", encoded(peer), query(&[("space", space.as_deref())])))
        }
        Operation::SnapshotCreate { space, tag } => post(of(space, "/snapshots"), json!({"tag": tag})),
        Operation::SnapshotList { space } => get(of(space, "/snapshots")),
        Operation::SnapshotShow { space, snapshot } => {
            get(of(space, &format!("/snapshots/{}", encoded(snapshot.as_deref().unwrap_or("newest")))))
        }
        Operation::SnapshotDiff { space, from, to } => {
            get(of(space, &format!("/diff{}", query(&[("from", Some(from)), ("to", to.as_deref())]))))
        }
        Operation::ResolveFork { space, head } => post(of(space, "/fork"), json!({"head": head})),
        Operation::SnapshotUntag { space, tag } => delete(of(space, &format!("/tags/{}", encoded(tag)))),
        Operation::Sync { space: Some(space), dry_run, at } => {
            post(of(space, "/sync"), json!({"dry_run": dry_run, "at": at}))
        }
        Operation::Resolve { space, section, keep, dry_run } => {
            post(of(space, "/resolve"), json!({"section": section, "keep": keep, "dry_run": dry_run}))
        }
        Operation::Sync { space: None, dry_run, .. } => post("/v1/sync".into(), json!({"dry_run": dry_run})),
        Operation::Path { space, section } => {
            get(of(space, &format!("/path{}", query(&[("section", section.as_deref())]))))
        }
        Operation::Follow { space, on } => post(of(space, "/follow"), json!({"on": on})),
        Operation::Verify { space, deep } => post(of(space, "/verify"), json!({"deep": deep})),
        Operation::Gc { space: Some(space), dry_run } => post(of(space, "/gc"), json!({"dry_run": dry_run})),
        Operation::Gc { space: None, dry_run } => post("/v1/gc".into(), json!({"dry_run": dry_run})),
        Operation::Shutdown => post("/v1/shutdown".into(), json!({})),
    }
}

fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let given: Vec<String> = pairs.iter().filter_map(|(k, v)| v.map(|v| format!("{k}={}", encoded(v)))).collect();
    if given.is_empty() { String::new() } else { format!("?{}", given.join("&")) }
}

/// Percent-encodes everything but unreserved letters. A name of dots alone would be read as a step
/// in the path, so its dots are encoded too.
fn encoded(text: &str) -> String {
    let dots = text.bytes().all(|b| b == b'.');
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') || (byte == b'.' && !dots) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests;
