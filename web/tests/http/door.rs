//! The TCP door: what passes it and what does not.

use crate::double::{Recorder, Way, ask};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use sluice_web::{Door, ServeError, Token, router, serve_tcp};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const PORT: u16 = 7712;

fn door(node: &Arc<Recorder>) -> Router {
    router(node.clone(), Door::Loopback { token: Token::new(TOKEN).unwrap(), port: PORT })
}

fn get(uri: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::get(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

/// Headers of a request, and the status they earn.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u16);

const HOST: (&str, &str) = ("host", "127.0.0.1:7712");

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn health_and_page_are_free_and_tell_nothing() {
    let node = Recorder::new(Way::Answer);
    let (status, _, text) = ask(door(&node), get("/healthz", &[HOST])).await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "ok\n"));
    let (status, headers, text) = ask(door(&node), get("/", &[HOST])).await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("token") && text.contains("docs/cli.md") && !text.contains("<script"));
    assert!(headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    assert!(node.asked().is_empty());
}

#[tokio::test]
async fn everything_else_needs_the_token() {
    let good = bearer(TOKEN);
    let lower = format!("bearer {TOKEN}");
    let short = bearer(&TOKEN[..63]);
    let long = bearer(&format!("{TOKEN}0"));
    let wrong = bearer(&TOKEN.replace('0', "1"));
    let cases: [(&[(&str, &str)], u16); 9] = [
        (&[HOST], 401),
        (&[HOST, ("authorization", &good)], 200),
        (&[HOST, ("authorization", &lower)], 200),
        (&[HOST, ("authorization", &short)], 401),
        (&[HOST, ("authorization", &long)], 401),
        (&[HOST, ("authorization", &wrong)], 401),
        (&[HOST, ("authorization", TOKEN)], 401),
        (&[HOST, ("authorization", "Basic abc")], 401),
        (&[HOST, ("authorization", &wrong), ("authorization", &good)], 401),
    ];
    for (headers, expected) in cases {
        let node = Recorder::new(Way::Answer);
        let (status, answered, text) = ask(door(&node), get("/v1/status", headers)).await;
        assert_eq!(status.as_u16(), expected, "{headers:?}: {text}");
        assert_eq!(node.asked().len(), usize::from(expected == 200));
        assert_eq!(answered.contains_key("www-authenticate"), expected == 401);
        assert!(!text.contains(TOKEN));
    }
    // Not even whether an address exists is told without it.
    let node = Recorder::new(Way::Answer);
    assert_eq!(ask(door(&node), get("/v1/nothing", &[HOST])).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(door(&node), get("/healthz/../v1/status", &[HOST])).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_rebound_name_or_a_foreign_page_is_refused_even_with_the_token() {
    let token = bearer(TOKEN);
    let auth = ("authorization", token.as_str());
    let cases: [Case; 11] = [
        ("/v1/status", &[auth], 403),
        ("/v1/status", &[auth, ("host", "evil.test:7712")], 403),
        ("/v1/status", &[auth, ("host", "localhost:7713")], 403),
        ("/v1/status", &[auth, HOST, ("host", "evil.test:7712")], 403),
        ("http://evil.test:7712/v1/status", &[auth, HOST], 403),
        ("http://localhost:7712/v1/status", &[auth, ("host", "localhost:7712")], 200),
        ("/v1/status", &[auth, ("host", "[::1]:7712")], 200),
        ("/v1/status", &[auth, HOST, ("origin", "http://evil.test")], 403),
        ("/v1/status", &[auth, HOST, ("origin", "null")], 403),
        ("/v1/status", &[auth, HOST, ("origin", "https://127.0.0.1:7712")], 403),
        ("/v1/status", &[auth, HOST, ("origin", "http://127.0.0.1:7712")], 200),
    ];
    for (uri, headers, expected) in cases {
        let node = Recorder::new(Way::Answer);
        let (status, answered, _) = ask(door(&node), get(uri, headers)).await;
        assert_eq!(status.as_u16(), expected, "{uri} {headers:?}");
        assert_eq!(node.asked().len(), usize::from(expected == 200));
        assert!(!answered.contains_key("access-control-allow-origin"));
    }
    let node = Recorder::new(Way::Answer);
    assert_eq!(ask(door(&node), get("/healthz", &[("host", "evil.test:7712")])).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_site_cannot_be_stopped_through_it() {
    let node = Recorder::new(Way::Answer);
    let token = bearer(TOKEN);
    let request = Request::post("/v1/shutdown")
        .header("host", HOST.1)
        .header("authorization", &token)
        .body(Body::empty())
        .unwrap();
    assert_eq!(ask(door(&node), request).await.0, StatusCode::FORBIDDEN);
    assert!(node.asked().is_empty());
}

#[tokio::test]
async fn other_addresses_than_loopback_are_never_served() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let served =
        serve_tcp(listener, Recorder::new(Way::Answer), Token::new(TOKEN).unwrap(), std::future::pending()).await;
    assert!(matches!(served, Err(ServeError::NotLoopback(_))));
}

#[tokio::test]
async fn a_real_listener_serves_and_stops() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let node = Recorder::new(Way::Answer);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve_tcp(listener, node.clone(), Token::new(TOKEN).unwrap(), async move {
        let _ = stopped.await;
    }));
    let mut client = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET /v1/status HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    // A client that stays connected and silent does not keep the door open.
    let _idle = TcpStream::connect(address).await.unwrap();
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}
