//! What the store asks of whoever can read a table format.
//!
//! The store itself knows no table format: it asks a [`TableReader`] which version a table
//! directory is at and which files that takes, and, on a replica, whether a candidate made of
//! verified blobs opens and says the same as its source. `indexer` implements the readers.
//!
//! Invariant: a capture names only files of committed versions, and every file it names existed
//! when it was taken.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use sluice_protocol::annex::TableFacts;
use sluice_protocol::manifest::SectionKind;
use sluice_protocol::path::LakePath;

pub use sluice_protocol::manifest::History;

/// One file of a section as a reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewFile {
    /// Path below the section root.
    pub path: LakePath,
    /// Length in bytes.
    pub size: u64,
    /// Modification time in nanoseconds since the Unix epoch; 0 where it carries no meaning.
    pub mtime_ns: i64,
}

/// Random access to the files of one section, wherever their bytes lie (staging, pin, live file).
///
/// Reads may block. A path that is not listed is `NotFound`.
pub trait SectionView: Send + Sync {
    /// Every file, sorted by path.
    fn files(&self) -> &[ViewFile];
    /// The bytes of `range` of one file; `UnexpectedEof` when the range leaves the file.
    fn read(&self, path: &LakePath, range: Range<u64>) -> std::io::Result<Bytes>;
}

/// A table at one moment: what it is, and the files that carry it.
#[derive(Debug, Clone)]
pub struct TableCapture {
    /// Version, rows, schema, dimensions, indices: goes into the annex.
    pub facts: TableFacts,
    /// The files, relative to the table root, that the kept versions need.
    pub files: BTreeSet<LakePath>,
}

/// Why a table could not be captured or proved. Each names the table or the file.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A committed version names a file that is not there: wait and retry, then keep the last good version.
    #[error("version {version} of table `{table}` names `{file}`, which is missing")]
    MissingFile { table: String, version: u64, file: String },
    /// The table needs a feature that this build cannot read.
    #[error("table `{table}` needs the feature `{feature}`, which this build cannot read")]
    UnsupportedFeature { table: String, feature: String },
    /// The table points at files outside its own directory.
    #[error("table `{table}` refers to `{uri}`, outside the lake")]
    External { table: String, uri: String },
    /// Anything else the format library says.
    #[error("table `{table}` cannot be read: {cause}")]
    Unreadable { table: String, cause: String },
}

impl TableError {
    /// Whether the same call may succeed a little later (the table is being written).
    pub fn is_transient(&self) -> bool {
        matches!(self, TableError::MissingFile { .. })
    }
}

/// Reads one table format. Calls block: run them off the async executor.
pub trait TableReader: Send + Sync {
    /// The section kind this reader understands.
    fn kind(&self) -> SectionKind;

    /// Reads the table directory `root` on the owner's disk.
    ///
    /// `name` is how errors call the table (its lake path).
    fn capture(&self, name: &str, root: &Path, history: History) -> Result<TableCapture, TableError>;

    /// Opens a candidate through `view` and says what it is; the caller compares with the source's facts.
    fn prove(&self, name: &str, view: Arc<dyn SectionView>) -> Result<TableFacts, TableError>;
}
