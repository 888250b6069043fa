//! The one API over HTTP: on a Unix socket for the command line, on loopback behind a token for the rest.
//!
//! Invariant: this crate knows a site only as [`sluice_protocol::api::Node`]. Each route makes exactly
//! one `Operation`; nothing here decides, stores or remembers anything. Who may ask is settled before
//! a request is read: on the socket by the uid of the peer, on TCP by the token.
//!
//! `docs/cli.md` lists the routes.

mod answer;
mod extract;
mod feed;
mod guard;
mod page;
mod routes;
mod serve;

pub use guard::Token;
pub use routes::{Door, router};
pub use serve::{ServeError, serve_tcp, serve_unix};

/// Largest request body, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Longest that the body of a request may take to arrive.
pub const BODY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// Longest that the head of a request may take to arrive.
pub const HEAD_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
/// Longest wait for an operation that only looks something up.
pub const LOOKUP_PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
/// How long open answers may take to end after the site was told to stop.
pub const STOP_PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
/// Most connections open at once at one door.
pub const CONNECTIONS_MAX: usize = 128;
/// Most events that wait for a watcher who reads slowly.
pub const EVENTS_WAITING_MAX: usize = 1024;
/// The content type of an answer in lines: progress first, then one result or error.
pub const LINES: &str = "application/x-ndjson";
