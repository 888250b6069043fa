//! What a faithful copy is, for any format.
//!
//! Invariant: a copy holds exactly the captured files, byte for byte, and nothing else.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use sluice_indexer::dir_view::DirView;
use sluice_protocol::annex::TableFacts;
use sluice_store::table::{History, SectionView, TableCapture, TableError, TableReader};
use tempfile::TempDir;

/// Runs a future to its end, on a runtime of the test's own.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(16 * 1024 * 1024)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// The captured files as text.
pub fn names(capture: &TableCapture) -> BTreeSet<String> {
    capture.files.iter().map(|p| p.to_string()).collect()
}

/// Those files of a capture for which `wanted` holds.
pub fn count(capture: &TableCapture, wanted: impl Fn(&str) -> bool) -> usize {
    capture.files.iter().filter(|p| wanted(p.as_str())).count()
}

/// Copies exactly the captured files, with their times.
pub fn copy(capture: &TableCapture, from: &Path) -> TempDir {
    let into = tempfile::tempdir().expect("a folder");
    for path in &capture.files {
        let (source, target) = (from.join(path.as_str()), into.path().join(path.as_str()));
        fs::create_dir_all(target.parent().expect("a parent")).expect("a folder");
        fs::copy(&source, &target).unwrap_or_else(|e| panic!("{path}: {e}"));
        let time = fs::metadata(&source).and_then(|m| m.modified()).expect("a time");
        File::open(&target).and_then(|f| f.set_modified(time)).expect("the time is set");
    }
    into
}

/// What a replica says of a folder.
pub fn prove(reader: &dyn TableReader, root: &Path) -> Result<TableFacts, TableError> {
    let view: Arc<dyn SectionView> = Arc::new(DirView::open(root).expect("a view"));
    reader.prove("copy", view)
}

/// Captures and copies a table; checks that the copy proves to the captured facts, and that every
/// version that the facts name gives the same rows there, by `rows`.
pub fn travels(
    reader: &dyn TableReader,
    root: &Path,
    history: History,
    rows: impl Fn(&Path, u64) -> Vec<String>,
) -> (TableCapture, TempDir) {
    let capture = reader.capture("t", root, history).expect("a capture");
    assert!(capture.facts.versions.contains(&capture.facts.version), "{:?}", capture.facts);
    let copied = copy(&capture, root);
    let proved = prove(reader, copied.path()).expect("a proof");
    assert_eq!(proved, capture.facts);
    for &version in &capture.facts.versions {
        let (here, there) = (rows(root, version), rows(copied.path(), version));
        assert_eq!(here, there, "version {version}");
        if version == capture.facts.version {
            assert_eq!(here.len() as u64, capture.facts.rows, "rows by scan");
        }
    }
    (capture, copied)
}
