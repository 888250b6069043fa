//! How long work says how far it is, and hears that it shall stop.
//!
//! Invariant: nothing here decides anything about data; a watcher that answers nothing
//! ([`Silent`]) changes no result.

use sluice_protocol::path::LakePath;

/// Someone who looks on. Called from many threads at once.
pub trait Watch: Send + Sync {
    /// How much of a stage is done: files and bytes, of so many.
    fn amount(&self, stage: &str, files: u64, files_total: u64, bytes: u64, bytes_total: u64);

    /// Something a person should know, in one sentence.
    fn note(&self, text: String);

    /// Whether the work shall stop as soon as it can.
    fn cancelled(&self) -> bool;

    /// A piece of the file at `path` is about to be read from `offset` (bytes).
    ///
    /// Tests change the file here, so that "changed while it was read" needs no race.
    fn reading(&self, _path: &LakePath, _offset: u64) {}
}

/// Nobody looks on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Watch for Silent {
    fn amount(&self, _: &str, _: u64, _: u64, _: u64, _: u64) {}
    fn note(&self, _: String) {}
    fn cancelled(&self) -> bool {
        false
    }
}
