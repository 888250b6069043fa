//! The routes, the forms of an answer, and what happens when a client goes away.

use crate::double::{Recorder, Way, ask, request};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};
use sluice_protocol::api::{Failure, Progress};
use sluice_web::{BODY_BYTES_MAX, Door, LINES, router, serve_unix};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A method, an address, a body, and the operation that they mean.
type Case = (&'static str, &'static str, &'static str, Value);

fn spaces() -> Vec<Case> {
    vec![
        ("GET", "/v1/status", "", json!({"op":"status"})),
        ("GET", "/v1/doctor", "", json!({"op":"doctor"})),
        ("GET", "/v1/spaces", "", json!({"op":"space_list"})),
        (
            "POST",
            "/v1/spaces",
            r#"{"name":"acme","path":"/srv/acme","history":"latest","opaque":true}"#,
            json!({"op":"space_add","name":"acme","path":"/srv/acme","history":"latest","opaque":true}),
        ),
        ("GET", "/v1/spaces/acme", "", json!({"op":"space_show","space":"acme"})),
        ("GET", "/v1/spaces/a%2Fb%20c", "", json!({"op":"space_show","space":"a/b c"})),
        ("DELETE", "/v1/spaces/acme", "", json!({"op":"space_remove","space":"acme"})),
        ("POST", "/v1/spaces/acme/recover", "", json!({"op":"space_recover","space":"acme"})),
        ("GET", "/v1/spaces/acme/snapshots", "", json!({"op":"snapshot_list","space":"acme"})),
        ("POST", "/v1/spaces/acme/snapshots", "", json!({"op":"snapshot_create","space":"acme","tag":null})),
        (
            "POST",
            "/v1/spaces/acme/snapshots",
            r#"{"tag":"v1"}"#,
            json!({"op":"snapshot_create","space":"acme","tag":"v1"}),
        ),
        ("GET", "/v1/spaces/acme/snapshots/abcd", "", json!({"op":"snapshot_show","space":"acme","snapshot":"abcd"})),
        ("GET", "/v1/spaces/acme/snapshots/newest", "", json!({"op":"snapshot_show","space":"acme","snapshot":null})),
        ("GET", "/v1/spaces/acme/diff?from=a", "", json!({"op":"snapshot_diff","space":"acme","from":"a","to":null})),
        (
            "GET",
            "/v1/spaces/acme/diff?from=a&to=b",
            "",
            json!({"op":"snapshot_diff","space":"acme","from":"a","to":"b"}),
        ),
        (
            "POST",
            "/v1/spaces/acme/sync",
            r#"{"dry_run":true}"#,
            json!({"op":"sync","space":"acme","dry_run":true,"at":null}),
        ),
        (
            "POST",
            "/v1/spaces/acme/sync",
            r#"{"at":"v1"}"#,
            json!({"op":"sync","space":"acme","dry_run":false,"at":"v1"}),
        ),
        (
            "POST",
            "/v1/spaces/acme/resolve",
            r#"{"keep":"theirs","section":"raw","dry_run":true}"#,
            json!({"op":"resolve","space":"acme","section":"raw","keep":"theirs","dry_run":true}),
        ),
        ("POST", "/v1/sync", "", json!({"op":"sync","space":null,"dry_run":false,"at":null})),
        ("POST", "/v1/spaces/acme/gc", r#"{"dry_run":true}"#, json!({"op":"gc","space":"acme","dry_run":true})),
        ("POST", "/v1/gc", "", json!({"op":"gc","space":null,"dry_run":false})),
        ("POST", "/v1/spaces/acme/verify", r#"{"deep":true}"#, json!({"op":"verify","space":"acme","deep":true})),
        ("GET", "/v1/spaces/acme/path", "", json!({"op":"path","space":"acme","section":null})),
        (
            "GET",
            "/v1/spaces/acme/path?section=delta%2Forders",
            "",
            json!({"op":"path","space":"acme","section":"delta/orders"}),
        ),
    ]
}

fn sites() -> Vec<Case> {
    vec![
        (
            "POST",
            "/v1/invites",
            r#"{"space":"acme","sections":["delta"],"expires_s":600}"#,
            json!({"op":"invite","space":"acme","sections":["delta"],"expires_s":600}),
        ),
        (
            "POST",
            "/v1/join",
            r#"{"ticket":"t","into":"/srv/x"}"#,
            json!({"op":"join","ticket":"t","into":"/srv/x","sections":[]}),
        ),
        ("GET", "/v1/peers", "", json!({"op":"peer_list"})),
        ("GET", "/v1/peers/ab", "", json!({"op":"peer_show","peer":"ab"})),
        ("DELETE", "/v1/peers/ab?space=acme", "", json!({"op":"peer_revoke","peer":"ab","space":"acme"})),
        ("POST", "/v1/shutdown", "", json!({"op":"shutdown"})),
    ]
}

#[tokio::test]
async fn each_route_is_one_operation() {
    let cases = spaces().into_iter().chain(sites());
    for (method, uri, body, op) in cases {
        let node = Recorder::new(Way::Answer);
        let (status, headers, text) = ask(router(node.clone(), Door::Socket), request(method, uri, body)).await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, r#"{"done":"yes"}"#), "{method} {uri}");
        assert_eq!(headers[header::CONTENT_TYPE], "application/json");
        assert_eq!(headers[header::CACHE_CONTROL], "no-store");
        assert_eq!(node.asked(), [op], "{method} {uri}");
    }
}

#[tokio::test]
async fn wrong_calls_reach_no_node_and_say_why() {
    let long = format!(r#"{{"tag":"{}"}}"#, "x".repeat(BODY_BYTES_MAX));
    let cases = [
        ("GET", "/v1/nothing", "", 404),
        ("PUT", "/v1/status", "", 405),
        ("POST", "/v1/spaces", "", 400),
        ("POST", "/v1/spaces", r#"{"name":"acme","path":"/x","colour":1}"#, 400),
        ("POST", "/v1/spaces", r#"{"name":"list","path":"/x"}"#, 400),
        ("POST", "/v1/join", "{", 400),
        ("POST", "/v1/invites", r#"{"space":"acme","expires_s":-1}"#, 400),
        ("GET", "/v1/spaces/acme/diff", "", 400),
        ("POST", "/v1/spaces/acme/resolve", "", 400),
        ("POST", "/v1/sync", r#"{"at":"v1"}"#, 400),
        ("GET", "/v1/spaces/acme/path?sections=x", "", 400),
        ("GET", "/v1/spaces/%ff", "", 400),
        ("POST", "/v1/spaces/acme/snapshots", &long, 413),
    ];
    for (method, uri, body, expected) in cases {
        let node = Recorder::new(Way::Answer);
        let (status, _, text) = ask(router(node.clone(), Door::Socket), request(method, uri, body)).await;
        assert_eq!(status.as_u16(), expected, "{method} {uri}: {text}");
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(error["failure"], "usage", "{method} {uri}");
        assert!(error["error"].is_string() && error["hint"].is_string());
        assert!(node.asked().is_empty(), "{method} {uri}");
    }
}

#[tokio::test]
async fn each_failure_has_its_status() {
    for (failure, expected) in
        [(Failure::Error, 500), (Failure::Usage, 400), (Failure::Verification, 422), (Failure::Incomplete, 503)]
    {
        let node = Recorder::new(Way::Refuse(failure));
        let (status, _, text) = ask(router(node, Door::Socket), request("POST", "/v1/sync", "")).await;
        assert_eq!(status.as_u16(), expected);
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&body["error"], &body["hint"]), (&json!("it was refused"), &json!("do otherwise")));
    }
}

fn in_lines(uri: &str) -> Request<Body> {
    Request::post(uri).header(header::ACCEPT, format!("text/html;q=0.1, {LINES}; q=1")).body(Body::empty()).unwrap()
}

fn parse(text: &str) -> Vec<Value> {
    assert!(text.ends_with('\n'));
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[tokio::test]
async fn lines_tell_progress_and_end_with_the_result() {
    let node = Recorder::new(Way::Report(vec![
        Progress::Stage { stage: "scan".into(), space: "acme".into() },
        Progress::Note { text: "two\nlines".into() },
    ]));
    let (status, headers, text) = ask(router(node, Door::Socket), in_lines("/v1/sync")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers[header::CONTENT_TYPE], LINES);
    assert_eq!(
        parse(&text),
        [
            json!({"event":"stage","stage":"scan","space":"acme"}),
            json!({"event":"note","text":"two\nlines"}),
            json!({"result":{"done":"yes"}}),
        ]
    );
}

#[tokio::test]
async fn lines_end_with_the_error() {
    let node = Recorder::new(Way::Refuse(Failure::Verification));
    let (_, _, text) = ask(router(node, Door::Socket), in_lines("/v1/sync")).await;
    assert_eq!(parse(&text), [json!({"error":"it was refused","hint":"do otherwise","failure":"verification"})]);
}

#[tokio::test]
async fn a_fault_in_the_node_is_an_answer() {
    let node = Recorder::new(Way::Panic);
    let (status, _, text) = ask(router(node, Door::Socket), request("POST", "/v1/sync", "")).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text.contains("fault in the program"));
}

#[tokio::test(start_paused = true)]
async fn a_lookup_does_not_wait_for_ever_but_work_does() {
    let node = Recorder::new(Way::Wait);
    let (status, _, text) = ask(router(node.clone(), Door::Socket), request("GET", "/v1/status", "")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("60 seconds") && text.contains("incomplete"));
    let sync = tokio::spawn(ask(router(node.clone(), Door::Socket), request("POST", "/v1/sync", "")));
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    assert!(!sync.is_finished());
    // One permit for the lookup that still waits, one for the work.
    node.release();
    node.release();
    assert_eq!(sync.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn the_work_goes_on_when_the_client_is_gone() {
    for accept in ["", "accept: application/x-ndjson\r\n"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let node = Recorder::new(Way::Wait);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve_unix(listener, node.clone(), async move {
            let _ = stopped.await;
        }));
        let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
        client
            .write_all(format!("POST /v1/sync HTTP/1.1\r\nhost: site\r\n{accept}content-length: 0\r\n\r\n").as_bytes())
            .await
            .unwrap();
        node.begun.notified().await;
        drop(client);
        // The server answers another client only after it has seen the first one's end or beside it: either way the job stands.
        let mut second = tokio::net::UnixStream::connect(&path).await.unwrap();
        second.write_all(b"GET /healthz HTTP/1.1\r\nhost: site\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        second.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK") && text.ends_with("ok\n"), "{text}");
        node.release();
        node.finished.notified().await;
        stop.send(()).unwrap();
        server.await.unwrap();
    }
}
