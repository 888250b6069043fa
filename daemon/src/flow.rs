//! The whole journey of the data, in order. Read this first.
//!
//! ```text
//! owner:    scan → Entries → chunk → Chunks → manifest → Snapshot → sign → Head
//! replica:  look → Standing → ask → Head → describe → Manifest → plan → Plan → transfer → Received
//!                 → verify → Verified → publish → Published
//! ```
//!
//! Each arrow is one function of one module, and the types between them say what has been done:
//! only `verify` can make a `Verified`, and `publish` takes nothing else. `plan` is pure.
//!
//! Invariant: a journey that is cut anywhere leaves what was live as it was, and the next one goes
//! on from what is durable.

mod owner;
mod replica;

use sluice_protocol::api::{ApiError, Failure};

pub use owner::{Taken, keep_deed, scan_options, take_snapshot};
pub use replica::{Arrived, Described, describe, look, receive, recover};

/// Runs blocking work off the executor.
pub async fn off_reactor<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(ApiError::plain(Failure::Incomplete, format!("a worker failed: {e}"))),
    }
}
