//! The client against the real routes and a node that remembers what it was asked.

use std::sync::{Arc, Mutex};

use sluice_protocol::api::{Done, Keep, Node, Outcome, ProgressSink};
use sluice_protocol::manifest::History;

use super::*;

struct Recorder(Mutex<Vec<Value>>);

#[async_trait::async_trait]
impl Node for Recorder {
    async fn call(&self, op: Operation, sink: Arc<dyn ProgressSink>) -> Result<Outcome, ApiError> {
        self.0.lock().unwrap().push(serde_json::to_value(&op).unwrap());
        sink.report(Progress::Note { text: "seen".into() });
        if matches!(&op, Operation::SpaceShow { space } if space == "none") {
            return Err(ApiError::new(Failure::Error, "there is no space `none`", "look again"));
        }
        Ok(Outcome::Done(Done { done: "yes".into() }))
    }
}

/// A served home in a folder whose path is `depth` folders long; the socket's path may be too long for the system.
struct World {
    _folder: tempfile::TempDir,
    client: Client,
    node: Arc<Recorder>,
    server: tokio::task::JoinHandle<()>,
}

fn world(depth: usize) -> World {
    let folder = tempfile::tempdir().unwrap();
    let root = (0..depth).fold(folder.path().to_path_buf(), |p, _| p.join("a_folder_with_a_long_name"));
    let home = crate::home::Home::init(&root, "acme", true).unwrap().home.locked().unwrap();
    let listener = tokio::net::UnixListener::from_std(home.bind_socket().unwrap()).unwrap();
    let node = Arc::new(Recorder(Mutex::default()));
    let server = tokio::spawn(sluice_web::serve_unix(listener, node.clone(), std::future::pending()));
    World { client: Client::new(home.root()), node, server, _folder: folder }
}

#[tokio::test]
async fn every_operation_arrives_as_it_was_sent() {
    let text = |s: &str| s.to_string();
    let ops = [
        Operation::Status,
        Operation::Doctor,
        Operation::SpaceAdd {
            name: text("acme"),
            path: text("/srv/a b/ü?#%"),
            history: Some(History::Tagged),
            opaque: true,
        },
        Operation::SpaceList,
        Operation::SpaceShow { space: text("../a/b?c=d#e %41") },
        Operation::SpaceShow { space: text("..") },
        Operation::SpaceRemove { space: text("acme.1") },
        Operation::Invite { space: text("acme"), sections: vec![text("a"), text("b")], expires_s: Some(5) },
        Operation::Join { ticket: text("t"), into: Some(text("/x")), sections: vec![] },
        Operation::PeerList,
        Operation::PeerShow { peer: text("the cradle & co") },
        Operation::PeerRevoke { peer: text("p"), space: Some(text("a&b=c")) },
        Operation::PeerRevoke { peer: text("p"), space: None },
        Operation::SnapshotCreate { space: text("acme"), tag: Some(text("v 1")) },
        Operation::SnapshotList { space: text("acme") },
        Operation::SnapshotShow { space: text("acme"), snapshot: None },
        Operation::SnapshotShow { space: text("acme"), snapshot: Some(text("ab")) },
        Operation::SnapshotDiff { space: text("acme"), from: text("a+b"), to: None },
        Operation::SnapshotDiff { space: text("acme"), from: text("a"), to: Some(text("b")) },
        Operation::Sync { space: Some(text("acme")), dry_run: true, at: Some(text("v1")) },
        Operation::Sync { space: None, dry_run: false, at: None },
        Operation::SpaceRecover { space: text("acme") },
        Operation::ResolveFork { space: text("acme"), head: text("abcd") },
        Operation::SnapshotUntag { space: text("acme"), tag: text("v1/2 ü") },
        Operation::Resolve { space: text("acme"), section: Some(text("raw")), keep: Keep::Mine, dry_run: true },
        Operation::Path { space: text("acme"), section: Some(text("delta/orders")) },
        Operation::Path { space: text("acme"), section: None },
        Operation::Follow { space: text("acme"), on: false },
        Operation::Verify { space: text("acme"), deep: true },
        Operation::Gc { space: Some(text("acme")), dry_run: true },
        Operation::Gc { space: None, dry_run: false },
        Operation::Shutdown,
    ];
    let world = world(0);
    for op in &ops {
        let mut notes = 0;
        let done: Done = world.client.ask(op, &mut |_| notes += 1).await.unwrap();
        assert_eq!((done.done.as_str(), notes), ("yes", 1), "{op:?}");
    }
    let sent: Vec<Value> = ops.iter().map(|op| serde_json::to_value(op).unwrap()).collect();
    assert_eq!(*world.node.0.lock().unwrap(), sent);
}

#[tokio::test]
async fn a_home_of_any_depth_has_a_socket() {
    let world = world(8);
    assert!(world.client.home.join("sluice.sock").as_os_str().len() > 150);
    assert!(world.client.is_up().await);
    world.client.call(&Operation::Status, &mut |_| {}).await.unwrap();
}

#[tokio::test]
async fn refusals_come_through_whole() {
    let world = world(0);
    let error = world.client.call(&Operation::SpaceShow { space: "none".into() }, &mut |_| {}).await.unwrap_err();
    assert_eq!(error, ApiError::new(Failure::Error, "there is no space `none`", "look again"));
    // Refused by the routes, before any line of progress.
    let named_list = Operation::SpaceAdd { name: "list".into(), path: "/x".into(), history: None, opaque: false };
    let error = world.client.call(&named_list, &mut |_| {}).await.unwrap_err();
    assert_eq!(error.failure, Failure::Usage);
    let wrong: Result<Vec<u8>, _> = world.client.ask(&Operation::Status, &mut |_| {}).await;
    assert!(wrong.unwrap_err().error.contains("not understood"));
}

#[tokio::test]
async fn a_site_that_is_not_there_or_not_up_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Client::new(&folder.path().join("none")).call(&Operation::Status, &mut |_| {}).await.unwrap_err();
    assert!(missing.error.contains("there is no site") && missing.hint.unwrap().contains("sluice init"));
    let world = world(0);
    world.server.abort();
    let _ = world.server.await;
    let down = world.client.call(&Operation::Status, &mut |_| {}).await.unwrap_err();
    assert!(down.error.contains("is not running") && down.hint.unwrap().contains("sluice up"), "{}", down.error);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_incomplete() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let answers = [
        "",
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ncontent-length: 100\r\n\r\n{\"event\":\"note\",\"text\":\"x\"}\n",
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ncontent-length: 0\r\n\r\n",
    ];
    for answer in answers {
        let folder = tempfile::tempdir().unwrap();
        let home = crate::home::Home::init(&folder.path().join("h"), "acme", true).unwrap().home.locked().unwrap();
        let listener = tokio::net::UnixListener::from_std(home.bind_socket().unwrap()).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            assert!(stream.read(&mut asked).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let error = Client::new(home.root()).call(&Operation::Status, &mut |_| {}).await.unwrap_err();
        assert_eq!(error.failure, Failure::Incomplete, "{answer:?}: {}", error.error);
        server.await.unwrap();
    }
}
