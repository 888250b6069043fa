//! From one operation to one HTTP answer: plain JSON, or lines of progress that end with the result.
//!
//! Invariant: the operation runs in a task of its own, so a client that goes away ends its answer and
//! never the work. An answer in lines has exactly one last line: `{"result": …}` or an error object.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use sluice_protocol::api::{ApiError, Failure, Node, Operation, Outcome, Unwatched};
use tokio::task::JoinHandle;

use crate::feed::Feed;
use crate::{LINES, LOOKUP_PATIENCE};

/// A refusal as it leaves: the error object and its status.
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) error: ApiError,
}

impl Refusal {
    /// The call was wrong.
    pub(crate) fn usage(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status, error: ApiError::new(Failure::Usage, error, hint) }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self { status: status_of(error.failure), error }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        json(self.status, &self.error)
    }
}

/// The HTTP status of each kind of failure.
pub(crate) fn status_of(failure: Failure) -> StatusCode {
    match failure {
        Failure::Error => StatusCode::INTERNAL_SERVER_ERROR,
        Failure::Usage => StatusCode::BAD_REQUEST,
        Failure::Verification => StatusCode::UNPROCESSABLE_ENTITY,
        Failure::Incomplete => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Does `op` and answers in the form that the client asked for.
pub(crate) async fn answer(node: Arc<dyn Node>, headers: &HeaderMap, op: Operation) -> Response {
    let patience = patience(&op);
    if wants_lines(headers) {
        return lines(node, op, patience);
    }
    let job = tokio::spawn(async move { node.call(op, Arc::new(Unwatched)).await });
    match ended(job, patience).await {
        Ok(outcome) => json(StatusCode::OK, &outcome),
        Err(error) => Refusal::from(error).into_response(),
    }
}

/// How long an answer may take; none where the work is as long as the data.
fn patience(op: &Operation) -> Option<Duration> {
    match op {
        Operation::SpaceAdd { .. }
        | Operation::SpaceRemove { .. }
        | Operation::SpaceRecover { .. }
        | Operation::Join { .. }
        | Operation::SnapshotCreate { .. }
        | Operation::Sync { .. }
        | Operation::SnapshotUntag { .. }
        | Operation::Resolve { .. }
        | Operation::ResolveFork { .. }
        | Operation::Verify { .. }
        | Operation::Gc { .. } => None,
        _ => Some(LOOKUP_PATIENCE),
    }
}

fn wants_lines(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|kind| kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(LINES))
}

/// Waits for the task; a panic or a timeout is told like any other failure.
async fn ended(job: JoinHandle<Result<Outcome, ApiError>>, patience: Option<Duration>) -> Result<Outcome, ApiError> {
    let joined = match patience {
        None => job.await,
        Some(limit) => tokio::time::timeout(limit, job).await.map_err(|_| {
            ApiError::new(
                Failure::Incomplete,
                format!("the site gave no answer within {} seconds", limit.as_secs()),
                "it may be busy; try again",
            )
        })?,
    };
    joined.unwrap_or_else(|_| {
        Err(ApiError::new(
            Failure::Error,
            "the operation ended by a fault in the program",
            "the log of `sluice up` says where",
        ))
    })
}

fn lines(node: Arc<dyn Node>, op: Operation, patience: Option<Duration>) -> Response {
    let feed = Arc::new(Feed::default());
    let sink = feed.clone();
    let job = tokio::spawn(async move { node.call(op, sink).await });
    let last = Box::pin(ended(job, patience));
    let body = stream::unfold(Some((feed, last)), |state| async move {
        let (feed, mut last) = state?;
        tokio::select! {
            biased;
            result = &mut last => {
                // What was reported before the end is told before the end.
                let mut text = events(&feed);
                text.push_str(&last_line(result));
                Some((Ok::<_, Infallible>(Bytes::from(text)), None))
            }
            () = feed.changed() => {
                let text = events(&feed);
                Some((Ok(Bytes::from(text)), Some((feed, last))))
            }
        }
    });
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(LINES));
    response
}

fn events(feed: &Feed) -> String {
    feed.take().iter().map(line).collect()
}

fn last_line(result: Result<Outcome, ApiError>) -> String {
    #[derive(Serialize)]
    struct Last {
        result: Outcome,
    }
    match result {
        Ok(result) => line(&Last { result }),
        Err(error) => line(&error),
    }
}

/// One JSON text and its newline. JSON escapes newlines in strings, so one value is one line.
fn line<T: Serialize>(value: &T) -> String {
    let mut text = text_of(value);
    text.push('\n');
    text
}

fn text_of<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("answers have string keys and finite numbers")
}

pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text_of(value)).into_response()
}
