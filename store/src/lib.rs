//! What a site has: its catalog, its lakes, scan, chunks, trees, staging, verification, publish.
//!
//! Invariant: nothing is marked complete before its bytes are durable, nothing becomes visible that
//! `verify` has not seen, and nothing is written outside the lake's own folder and the home.

pub mod catalog;
pub mod lake;
pub mod table;
pub mod blobs;
mod durable;
pub mod staging;
pub mod chunk;
pub mod outboard;
pub mod scan;
pub mod snapshot;
pub mod watch;
pub mod pins;
pub mod publish;
pub mod verify;
pub mod view;
