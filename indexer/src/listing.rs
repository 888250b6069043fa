//! Questions to the listing of a section.
//!
//! Invariant: a view's listing is sorted by path, so a question costs a binary search and no copy.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sluice_protocol::path::LakePath;
use sluice_store::table::{SectionView, ViewFile};

/// The listed file at `path`.
pub fn find<'a>(view: &'a dyn SectionView, path: &LakePath) -> Option<&'a ViewFile> {
    let files = view.files();
    files.binary_search_by(|f| f.path.cmp(path)).ok().map(|at| &files[at])
}

/// The listed files below `folder`, which ends with a slash.
pub fn below<'a>(view: &'a dyn SectionView, folder: &str) -> &'a [ViewFile] {
    let files = view.files();
    let from = files.partition_point(|f| f.path.as_str() < folder);
    let count = files[from..].partition_point(|f| f.path.as_str().starts_with(folder));
    &files[from..from + count]
}

/// All bytes of a file no longer than `limit` bytes; `None` when it is not listed.
///
/// # Errors
/// When the file is longer than that, or cannot be read.
pub fn read_whole(view: &dyn SectionView, path: &LakePath, limit: u64) -> io::Result<Option<Bytes>> {
    let Some(file) = find(view, path) else { return Ok(None) };
    if file.size > limit {
        return Err(io::Error::other(format!("`{path}` is longer than {limit} bytes")));
    }
    view.read(path, 0..file.size).map(Some)
}

/// Some files of a view and no others: what a replica would have.
pub struct Subset {
    view: Arc<dyn SectionView>,
    files: Vec<ViewFile>,
}

impl Subset {
    /// The files of `view` that are in `paths`.
    pub fn new(view: Arc<dyn SectionView>, paths: &BTreeSet<LakePath>) -> Self {
        let files = view.files().iter().filter(|f| paths.contains(&f.path)).cloned().collect();
        Self { view, files }
    }
}

impl SectionView for Subset {
    fn files(&self) -> &[ViewFile] {
        &self.files
    }

    fn read(&self, path: &LakePath, range: Range<u64>) -> io::Result<Bytes> {
        match find(self, path) {
            Some(_) => self.view.read(path, range),
            None => Err(io::Error::new(io::ErrorKind::NotFound, path.to_string())),
        }
    }
}
