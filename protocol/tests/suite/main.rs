//! The rules of the protocol, tried from outside: only what other crates can call is called here.
//!
//! Invariant: no clock, no randomness but that of proptest, no file but the committed fixtures.

mod chain;
mod chunk_list;
mod codec;
mod golden;
mod grants;
mod manifest;
mod messages;
mod paths;
mod plan;
mod samples;
mod signed;
mod stages;
mod ticket;
mod tree;
mod tree_hostile;
