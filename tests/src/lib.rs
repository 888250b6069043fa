//! Worlds for tests: real `sluice up` processes with homes of their own, and lakes that other
//! people's libraries write and read.
//!
//! Invariant: nothing here looks inside a site. Tests see what a user sees (the command line, the
//! files, the sockets), so they hold whatever the house looks like within.

pub mod lake;
pub mod liar;
pub mod line;
pub mod mole;
pub mod net;
pub mod outsider;
pub mod pair;
pub mod shaper;
pub mod site;
pub mod skip;
pub mod wait;
mod way;
pub mod world;

pub use lake::{Lake, Rounds, differences, inspect};
pub use site::{Output, Site};
pub use skip::skip;
pub use world::{Joined, World};

use std::path::PathBuf;

/// The folder `tests/` of the checkout whose tests run, which cargo names to each test it starts. What the
/// compiler saw is no answer: checkouts share a target folder, and only one of them was compiled.
pub fn folder() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the folder of a test");
    PathBuf::from(here)
}
