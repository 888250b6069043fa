//! What the data in a Sluice lake means: Delta and Lance tables, read through delta-rs and lance.
//!
//! Invariant: nothing about a table is guessed. Versions, files, rows and schemas come from the
//! format's own library, and a capture is described by the code that later proves its copies.

pub mod blocking;
pub mod delta;
pub mod dir_view;
pub mod lance;
pub mod listing;
mod reader;
pub mod sample;
pub mod schema;
pub mod view_store;

use std::sync::Arc;

use sluice_store::table::TableReader;

/// A reader for every table format that this build knows.
pub fn readers() -> Vec<Arc<dyn TableReader>> {
    vec![Arc::new(delta::DeltaReader), Arc::new(lance::LanceReader)]
}
