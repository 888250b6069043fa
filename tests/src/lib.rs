//! Worlds for tests: real `sluice up` processes with homes of their own, and lakes that other
//! people's libraries write and read.
//!
//! Invariant: nothing here looks inside a site. Tests see what a user sees (the command line, the
//! files, the sockets), so they hold whatever the house looks like within.

pub mod lake;
pub mod liar;
pub mod net;
pub mod outsider;
pub mod pair;
pub mod shaper;
pub mod site;
pub mod skip;
pub mod wait;
pub mod world;

pub use lake::{Lake, Rounds, differences, inspect};
pub use site::{Output, Site};
pub use skip::skip;
pub use world::{Joined, World};
