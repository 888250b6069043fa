//! How a format's library is asked, whichever it is: blocking for the caller, one sentence for a failure.
//!
//! Invariant: a table that changed under a capture is told apart from one that cannot be read.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use sluice_protocol::annex::TableFacts;
use sluice_store::table::{SectionView, TableCapture, TableError};

use crate::blocking;
use crate::dir_view::DirView;

/// Lets `job` capture the table in the folder `root`.
pub(crate) fn capture<F>(
    table: &str,
    root: &Path,
    job: impl FnOnce(String, Arc<dyn SectionView>) -> F,
) -> Result<TableCapture, TableError>
where
    F: Future<Output = Result<TableCapture, TableError>> + Send + 'static,
{
    let dir = Arc::new(DirView::open(root).map_err(|e| unreadable(table, e))?);
    run(table, job(table.to_string(), dir.clone())).map_err(|e| dir.missing_if_vanished(e))
}

/// Lets `job` prove the table that `view` shows.
pub(crate) fn prove<F>(
    table: &str,
    view: Arc<dyn SectionView>,
    job: impl FnOnce(String, Arc<dyn SectionView>) -> F,
) -> Result<TableFacts, TableError>
where
    F: Future<Output = Result<TableFacts, TableError>> + Send + 'static,
{
    run(table, job(table.to_string(), view))
}

fn run<T: Send + 'static>(
    table: &str,
    job: impl Future<Output = Result<T, TableError>> + Send + 'static,
) -> Result<T, TableError> {
    blocking::run(job).map_err(|e| unreadable(table, e)).flatten()
}

pub(crate) fn unreadable(table: &str, cause: impl ToString) -> TableError {
    TableError::Unreadable { table: table.to_string(), cause: blocking::first_line(&cause.to_string()) }
}
