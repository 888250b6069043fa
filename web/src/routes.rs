//! The routes: each makes one `Operation`.
//!
//! Invariant: the two doors have the same routes, but the site can be stopped only through the socket.
//! Names are handed on as they came; the node judges them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{delete, get, post};
use serde::Deserialize;
use sluice_protocol::api::{Keep, Node, Operation, check_new_space_name};
use sluice_protocol::manifest::History;

use crate::BODY_BYTES_MAX;
use crate::answer::{Refusal, answer};
use crate::extract::{Asked, Fields, Named};
use crate::guard::{self, Token};
use crate::page;

type App = State<Arc<dyn Node>>;
type Answer = Result<Response, Refusal>;

/// Through which door requests come.
pub enum Door {
    /// The Unix socket in the site's home: full rights.
    Socket,
    /// Loopback TCP: a token, and protection from pages of other origins.
    Loopback { token: Token, port: u16 },
}

/// The whole API for one door.
pub fn router(node: Arc<dyn Node>, door: Door) -> Router {
    let api = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/doctor", get(doctor))
        .route("/v1/spaces", get(space_list).post(space_add))
        .route("/v1/spaces/{space}", get(space_show).delete(space_remove))
        .route("/v1/spaces/{space}/recover", post(space_recover))
        .route("/v1/spaces/{space}/snapshots", get(snapshot_list).post(snapshot_create))
        .route("/v1/spaces/{space}/snapshots/{snapshot}", get(snapshot_show))
        .route("/v1/spaces/{space}/tags/{tag}", delete(snapshot_untag))
        .route("/v1/spaces/{space}/diff", get(snapshot_diff))
        .route("/v1/spaces/{space}/sync", post(sync_space))
        .route("/v1/spaces/{space}/resolve", post(resolve))
        .route("/v1/spaces/{space}/fork", post(resolve_fork))
        .route("/v1/spaces/{space}/verify", post(verify))
        .route("/v1/spaces/{space}/follow", post(follow))
        .route("/v1/spaces/{space}/path", get(path))
        .route("/v1/spaces/{space}/gc", post(gc_space))
        .route("/v1/sync", post(sync_all))
        .route("/v1/gc", post(gc_all))
        .route("/v1/invites", post(invite))
        .route("/v1/join", post(join))
        .route("/v1/peers", get(peer_list))
        .route("/v1/peers/{peer}", get(peer_show).delete(peer_revoke))
        .route("/healthz", get(page::healthz))
        .route("/", get(page::front));
    let api = match &door {
        Door::Socket => api.route("/v1/shutdown", post(shutdown)),
        Door::Loopback { .. } => api.route("/v1/shutdown", post(shutdown_elsewhere)),
    };
    let api = api
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(node);
    let api = match door {
        Door::Socket => api,
        Door::Loopback { token, port } => {
            let guard = Arc::new(guard::Guard { token, port });
            api.layer(axum::middleware::from_fn_with_state(guard, guard::admit))
        }
    };
    api.layer(axum::middleware::map_response(with_common_headers))
}

/// Answers are about now and for this client only.
async fn with_common_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

async fn unknown_route() -> Refusal {
    Refusal::usage(StatusCode::NOT_FOUND, "there is no such address in the API", "docs/cli.md lists the routes")
}

async fn unknown_method() -> Refusal {
    Refusal::usage(
        StatusCode::METHOD_NOT_ALLOWED,
        "this address does not take that method",
        "docs/cli.md lists the routes",
    )
}

async fn status(State(node): App, headers: HeaderMap) -> Response {
    answer(node, &headers, Operation::Status).await
}

async fn doctor(State(node): App, headers: HeaderMap) -> Response {
    answer(node, &headers, Operation::Doctor).await
}

async fn space_list(State(node): App, headers: HeaderMap) -> Response {
    answer(node, &headers, Operation::SpaceList).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSpace {
    name: String,
    path: String,
    #[serde(default)]
    history: Option<History>,
    #[serde(default)]
    opaque: bool,
}

async fn space_add(State(node): App, headers: HeaderMap, Fields(new): Fields<NewSpace>) -> Answer {
    check_new_space_name(&new.name)?;
    let op = Operation::SpaceAdd { name: new.name, path: new.path, history: new.history, opaque: new.opaque };
    Ok(answer(node, &headers, op).await)
}

async fn space_show(State(node): App, headers: HeaderMap, Named(space): Named<String>) -> Response {
    answer(node, &headers, Operation::SpaceShow { space }).await
}

async fn space_remove(State(node): App, headers: HeaderMap, Named(space): Named<String>) -> Response {
    answer(node, &headers, Operation::SpaceRemove { space }).await
}

async fn space_recover(State(node): App, headers: HeaderMap, Named(space): Named<String>) -> Response {
    answer(node, &headers, Operation::SpaceRecover { space }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSnapshot {
    #[serde(default)]
    tag: Option<String>,
}

async fn snapshot_create(
    State(node): App,
    headers: HeaderMap,
    Named(space): Named<String>,
    Fields(new): Fields<NewSnapshot>,
) -> Response {
    answer(node, &headers, Operation::SnapshotCreate { space, tag: new.tag }).await
}

async fn snapshot_list(State(node): App, headers: HeaderMap, Named(space): Named<String>) -> Response {
    answer(node, &headers, Operation::SnapshotList { space }).await
}

/// The snapshot `newest` is the newest one here.
async fn snapshot_show(
    State(node): App,
    headers: HeaderMap,
    Named((space, snapshot)): Named<(String, String)>,
) -> Response {
    let snapshot = Some(snapshot).filter(|s| s != "newest");
    answer(node, &headers, Operation::SnapshotShow { space, snapshot }).await
}

async fn snapshot_untag(
    State(node): App,
    headers: HeaderMap,
    Named((space, tag)): Named<(String, String)>,
) -> Response {
    answer(node, &headers, Operation::SnapshotUntag { space, tag }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Branch {
    head: String,
}

async fn resolve_fork(
    State(node): App,
    headers: HeaderMap,
    Named(space): Named<String>,
    Fields(branch): Fields<Branch>,
) -> Response {
    answer(node, &headers, Operation::ResolveFork { space, head: branch.head }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Between {
    from: String,
    #[serde(default)]
    to: Option<String>,
}

async fn snapshot_diff(
    State(node): App,
    headers: HeaderMap,
    Named(space): Named<String>,
    Asked(q): Asked<Between>,
) -> Response {
    answer(node, &headers, Operation::SnapshotDiff { space, from: q.from, to: q.to }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HowToSync {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    at: Option<String>,
}

async fn sync_space(
    State(node): App,
    headers: HeaderMap,
    Named(space): Named<String>,
    Fields(how): Fields<HowToSync>,
) -> Response {
    answer(node, &headers, Operation::Sync { space: Some(space), dry_run: how.dry_run, at: how.at }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HowToSyncAll {
    #[serde(default)]
    dry_run: bool,
}

async fn sync_all(State(node): App, headers: HeaderMap, Fields(how): Fields<HowToSyncAll>) -> Response {
    answer(node, &headers, Operation::Sync { space: None, dry_run: how.dry_run, at: None }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    keep: Keep,
    #[serde(default)]
    section: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

async fn resolve(
    State(node): App,
    headers: HeaderMap,
    Named(space): Named<String>,
    Fields(d): Fields<Decision>,
) -> Response {
    let op = Operation::Resolve { space, section: d.section, keep: d.keep, dry_run: d.dry_run };
    answer(node, &headers, op).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HowToCollect {
    #[serde(default)]
    dry_run: bool,
}

async fn gc_space(
    State(node): App,
    headers: HeaderMap,
    Named(space): Named<String>,
    Fields(how): Fields<HowToCollect>,
) -> Response {
    answer(node, &headers, Operation::Gc { space: Some(space), dry_run: how.dry_run }).await
}

async fn gc_all(State(node): App, headers: HeaderMap, Fields(how): Fields<HowToCollect>) -> Response {
    answer(node, &headers, Operation::Gc { space: None, dry_run: how.dry_run }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HowToVerify {
    #[serde(default)]
    deep: bool,
}

async fn verify(
    State(node): App,
    headers: HeaderMap,
    Named(space): Named<String>,
    Fields(how): Fields<HowToVerify>,
) -> Response {
    answer(node, &headers, Operation::Verify { space, deep: how.deep }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whether {
    on: bool,
}

async fn follow(
    State(node): App,
    headers: HeaderMap,
    Named(space): Named<String>,
    Fields(whether): Fields<Whether>,
) -> Response {
    answer(node, &headers, Operation::Follow { space, on: whether.on }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhichPath {
    #[serde(default)]
    section: Option<String>,
}

async fn path(
    State(node): App,
    headers: HeaderMap,
    Named(space): Named<String>,
    Asked(q): Asked<WhichPath>,
) -> Response {
    answer(node, &headers, Operation::Path { space, section: q.section }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewInvite {
    space: String,
    #[serde(default)]
    sections: Vec<String>,
    #[serde(default)]
    expires_s: Option<u64>,
}

async fn invite(State(node): App, headers: HeaderMap, Fields(new): Fields<NewInvite>) -> Response {
    let op = Operation::Invite { space: new.space, sections: new.sections, expires_s: new.expires_s };
    answer(node, &headers, op).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewJoin {
    ticket: String,
    #[serde(default)]
    into: Option<String>,
    #[serde(default)]
    sections: Vec<String>,
}

async fn join(State(node): App, headers: HeaderMap, Fields(new): Fields<NewJoin>) -> Response {
    let op = Operation::Join { ticket: new.ticket, into: new.into, sections: new.sections };
    answer(node, &headers, op).await
}

async fn peer_list(State(node): App, headers: HeaderMap) -> Response {
    answer(node, &headers, Operation::PeerList).await
}

async fn peer_show(State(node): App, headers: HeaderMap, Named(peer): Named<String>) -> Response {
    answer(node, &headers, Operation::PeerShow { peer }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhatToRevoke {
    #[serde(default)]
    space: Option<String>,
}

async fn peer_revoke(
    State(node): App,
    headers: HeaderMap,
    Named(peer): Named<String>,
    Asked(q): Asked<WhatToRevoke>,
) -> Response {
    answer(node, &headers, Operation::PeerRevoke { peer, space: q.space }).await
}

async fn shutdown(State(node): App, headers: HeaderMap) -> Response {
    answer(node, &headers, Operation::Shutdown).await
}

async fn shutdown_elsewhere() -> Refusal {
    Refusal::usage(
        StatusCode::FORBIDDEN,
        "the site cannot be stopped through this door",
        "stop it through the socket in its home, or by its service manager",
    )
}
