//! What a site has: its catalog, its lakes, scan, chunks, trees, staging, verification, publish.
//!
//! Invariant: nothing is marked complete before its bytes are durable, nothing becomes visible that
//! `verify` has not seen, and nothing is written outside the lake's own folder and the home.

pub mod catalog;
pub mod lake;
pub mod table;

