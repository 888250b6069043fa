//! A small lake to try things on, and changes to it.
//!
//! The tables are written by delta-rs and Lance themselves, so the demo moves what a data team would
//! have. Invariant: the same seed, scale and steps give the same rows and the same plain files;
//! only the names that the table formats draw at random differ.

mod dice;
mod plain;
mod rows;
mod tables;

use std::io;
use std::path::{Path, PathBuf};

use crate::blocking;

/// About how large a lake is made, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Size of all files together, in MiB; at least 1.
    pub mib: u32,
}

impl Default for Scale {
    fn default() -> Self {
        Self { mib: 64 }
    }
}

impl Scale {
    /// Largest sample, in MiB: it is a sample.
    pub const MIB_MAX: u32 = 4096;

    /// Bytes of a part that takes `share` of 64.
    fn bytes(self, share: u64) -> u64 {
        u64::from(self.mib.clamp(1, Self::MIB_MAX)) * share * (1024 * 1024 / 64)
    }
}

/// Why a sample lake could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    #[error("`{path}` cannot be written: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("the sample table `{table}` cannot be written: {cause}")]
    Table { table: String, cause: String },
}

/// Makes a lake in `root`: two Delta tables, a Lance dataset with an index, a LoRA adapter, JSON,
/// text and a CSV. Folders are made as needed.
///
/// Blocks; call it off the async executor.
///
/// # Errors
/// When a file or a table cannot be written, or a table is there already.
pub fn make(root: &Path, seed: u64, scale: Scale) -> Result<(), SampleError> {
    plain::make(root, seed, scale)?;
    let lake = root.to_path_buf();
    blocking::run(async move { tables::make(&lake, seed, scale).await })
        .map_err(|cause| SampleError::Table { table: "sample".to_string(), cause })?
}

/// Changes the lake as a day of work would: rows appended to `delta/orders`, rows of `delta/events`
/// rewritten, vectors appended to `vectors/docs.lance`, a line of `metadata/catalog.json` edited.
/// Each `step` changes other rows. Gives one sentence for each thing done.
///
/// Blocks; call it off the async executor.
///
/// # Errors
/// When the lake is no sample, or cannot be written.
pub fn change(root: &Path, step: u32) -> Result<Vec<String>, SampleError> {
    let lake = root.to_path_buf();
    let mut done = blocking::run(async move { tables::change(&lake, step).await })
        .map_err(|cause| SampleError::Table { table: "sample".to_string(), cause })??;
    done.push(plain::change(root, step)?);
    Ok(done)
}
