//! What Sluice sites agree on: ids, paths, manifests, heads, grants, tickets, messages, plans, limits.
//!
//! Invariant: this crate is pure. It does no I/O, reads no clock and no environment, and draws no
//! random number: callers hand those in. So every rule of the protocol can be simulated and fuzzed.
//!
//! `docs/format.md` draws the encodings, `docs/protocol.md` the conversations.

pub mod annex;
pub mod api;
pub mod card;
pub mod chunks;
pub mod codec;
pub mod grants;
pub mod head;
pub mod ids;
pub mod limits;
pub mod manifest;
pub mod messages;
pub mod path;
pub mod plan;
pub mod sections;
pub mod signed;
pub mod stages;
pub mod ticket;
pub mod tree;
