//! A node that remembers what it was asked, for the tests of this crate only.
//!
//! Invariant: it answers what the test put into it and nothing of its own.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use sluice_protocol::api::{ApiError, Done, Failure, Node, Operation, Outcome, Progress, ProgressSink};
use tokio::sync::{Notify, Semaphore};
use tower::ServiceExt;

/// How the node behaves once it was asked.
pub enum Way {
    Answer,
    Refuse(Failure),
    /// Reports these, then answers.
    Report(Vec<Progress>),
    Panic,
    /// Waits for [`Recorder::release`].
    Wait,
}

pub struct Recorder {
    way: Way,
    asked: Mutex<Vec<Operation>>,
    gate: Semaphore,
    pub begun: Notify,
    pub finished: Notify,
}

impl Recorder {
    pub fn new(way: Way) -> Arc<Self> {
        Arc::new(Self {
            way,
            asked: Mutex::default(),
            gate: Semaphore::new(0),
            begun: Notify::new(),
            finished: Notify::new(),
        })
    }

    pub fn release(&self) {
        self.gate.add_permits(1);
    }

    /// Everything asked so far, as JSON.
    pub fn asked(&self) -> Vec<serde_json::Value> {
        self.asked.lock().unwrap().iter().map(|op| serde_json::to_value(op).unwrap()).collect()
    }
}

#[async_trait::async_trait]
impl Node for Recorder {
    async fn call(&self, op: Operation, sink: Arc<dyn ProgressSink>) -> Result<Outcome, ApiError> {
        self.asked.lock().unwrap().push(op);
        self.begun.notify_one();
        match &self.way {
            Way::Answer => {}
            Way::Refuse(failure) => return Err(ApiError::new(*failure, "it was refused", "do otherwise")),
            Way::Report(events) => events.iter().for_each(|e| sink.report(e.clone())),
            Way::Panic => panic!("the test wants it"),
            Way::Wait => self.gate.acquire().await.unwrap().forget(),
        }
        self.finished.notify_one();
        Ok(Outcome::Done(Done { done: "yes".into() }))
    }
}

/// One request through a router: status, headers, body text.
pub async fn ask(router: axum::Router, request: Request<Body>) -> (StatusCode, axum::http::HeaderMap, String) {
    let response = router.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, String::from_utf8(bytes.to_vec()).unwrap())
}

/// A request with a body; `""` for none.
pub fn request(method: &str, uri: &str, body: &str) -> Request<Body> {
    Request::builder().method(method).uri(uri).body(Body::from(body.to_string())).unwrap()
}
