//! What a site has: its catalog, its lakes, scan, chunks, trees, staging, verification, publish, gc.
//!
//! Invariant: nothing is marked complete before its bytes are durable, nothing becomes visible that
//! `verify` has not seen, and nothing is written outside the lake's own folder and the home.

pub mod blobs;
pub mod catalog;
pub mod chunk;
pub mod deed;
pub mod disk;
mod durable;
pub mod gc;
pub mod lake;
pub mod outboard;
pub mod pins;
pub mod publish;
pub mod rebuild;
pub mod scan;
pub mod snapshot;
pub mod staging;
pub mod table;
pub mod verify;
pub mod view;
pub mod watch;
