//! What handlers take out of a request.
//!
//! Invariant: every refusal is the error object of the API with the right status, never a bare text;
//! a body is bounded in bytes and in time before it is looked at; fields nobody knows are refused.

use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::answer::Refusal;
use crate::{BODY_BYTES_MAX, BODY_PATIENCE};

/// A JSON body. An empty one stands for `{}`, so that a call without options needs no body.
pub(crate) struct Fields<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Fields<T> {
    type Rejection = Refusal;

    async fn from_request(req: Request, state: &S) -> Result<Self, Refusal> {
        let read = axum::body::Bytes::from_request(req, state);
        let bytes = tokio::time::timeout(BODY_PATIENCE, read)
            .await
            .map_err(|_| {
                Refusal::usage(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request's body did not arrive in time",
                    "send it at once",
                )
            })?
            .map_err(body_refusal)?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Fields).map_err(|e| {
            Refusal::usage(
                StatusCode::BAD_REQUEST,
                format!("the request's body cannot be used: {e}"),
                "docs/cli.md shows the fields of each call",
            )
        })
    }
}

fn body_refusal(rejection: BytesRejection) -> Refusal {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let error = format!("the request's body is longer than {BODY_BYTES_MAX} bytes");
        return Refusal::usage(StatusCode::PAYLOAD_TOO_LARGE, error, "no call needs as much");
    }
    Refusal::usage(StatusCode::BAD_REQUEST, "the request's body broke off", "send it again")
}

/// What follows `?` in the address.
pub(crate) struct Asked<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        Query::<T>::from_request_parts(parts, state).await.map(|Query(t)| Asked(t)).map_err(|e| {
            Refusal::usage(
                StatusCode::BAD_REQUEST,
                format!("the address cannot be used: {}", e.body_text()),
                "docs/cli.md shows the parameters of each call",
            )
        })
    }
}

/// The names in the path of the address.
pub(crate) struct Named<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        Path::<T>::from_request_parts(parts, state).await.map(|Path(t)| Named(t)).map_err(|e| {
            Refusal::usage(
                StatusCode::BAD_REQUEST,
                format!("the address cannot be used: {}", e.body_text()),
                "names in it are UTF-8, percent-encoded",
            )
        })
    }
}
