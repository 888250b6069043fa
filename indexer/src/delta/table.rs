//! A Delta table opened through a view, as delta-rs sees it.
//!
//! Invariant: everything here speaks of the one version that was loaded; rows are counted by
//! scanning a column with deletion vectors applied, never taken from statistics.

use std::sync::{Arc, Once};

use datafusion::catalog::TableProvider;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionContext;
use delta_kernel::table_features::MAX_VALID_READER_VERSION;
use deltalake::kernel::transaction::{PROTOCOL, TransactionError};
use deltalake::kernel::{EagerSnapshot, Protocol};
use deltalake::logstore::{
    LogStore, LogStoreFactory, ObjectStoreRef, StorageConfig, default_logstore, logstore_factories,
};
use deltalake::{DeltaResult, DeltaTable, DeltaTableBuilder, DeltaTableError};
use futures_util::TryStreamExt;
use sluice_protocol::annex::TableFacts;
use url::Url;

use super::replay::{FileKey, vector_id};
use crate::schema;
use crate::view_store::{SCHEME, ViewStore};

/// Tells delta-rs to read [`SCHEME`] like any object store.
struct Views;

impl LogStoreFactory for Views {
    fn with_options(
        &self,
        prefixed: ObjectStoreRef,
        root: ObjectStoreRef,
        location: &Url,
        options: &StorageConfig,
    ) -> DeltaResult<Arc<dyn LogStore>> {
        Ok(default_logstore(prefixed, root, location, options))
    }
}

fn register_scheme() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let scheme = Url::parse(&format!("{SCHEME}://")).expect("a constant address");
        logstore_factories().insert(scheme, Arc::new(Views));
    });
}

/// Opens the newest version of the table in `store`.
///
/// # Errors
/// Whatever delta-rs says.
pub async fn open(store: ViewStore) -> DeltaResult<DeltaTable> {
    builder(store)?.load().await
}

/// Opens one version, to list its files. A table opened like this cannot be scanned: delta-rs
/// panics when it looks for the statistics that were left out.
///
/// # Errors
/// Whatever delta-rs says.
pub async fn open_listing(store: ViewStore, version: u64) -> DeltaResult<DeltaTable> {
    builder(store)?.with_version(version).with_skip_stats(true).load().await
}

fn builder(store: ViewStore) -> DeltaResult<DeltaTableBuilder> {
    register_scheme();
    let url = ViewStore::table_root();
    Ok(DeltaTableBuilder::from_url(url.clone())?.with_storage_backend(Arc::new(store), url))
}

/// What the protocol asks for that this build of delta-rs cannot read, joined by commas.
pub fn unreadable_features(protocol: &Protocol) -> Option<String> {
    let version = protocol.min_reader_version();
    if version > MAX_VALID_READER_VERSION {
        return Some(format!("reader version {version}"));
    }
    match PROTOCOL.can_read_from_protocol(protocol) {
        Ok(()) => None,
        Err(TransactionError::UnsupportedTableFeatures(features)) => {
            let mut names: Vec<String> = features.iter().map(ToString::to_string).collect();
            names.sort();
            Some(names.join(", "))
        }
        Err(other) => Some(other.to_string()),
    }
}

/// The files that delta-rs finds in the loaded version.
pub fn file_keys(snapshot: &EagerSnapshot) -> Vec<FileKey> {
    snapshot
        .log_data()
        .iter()
        .map(|file| FileKey {
            path: file.path().to_string(),
            vector: file.deletion_vector_descriptor().as_ref().map(vector_id),
        })
        .collect()
}

/// What the loaded version is. The list of readable versions is left empty.
///
/// # Errors
/// When the scan that counts the rows fails.
pub async fn facts(table: &DeltaTable) -> DeltaResult<TableFacts> {
    let snapshot = table.snapshot()?.snapshot();
    let schema = snapshot.arrow_schema();
    Ok(TableFacts {
        version: snapshot.version(),
        rows: count_rows(table).await?,
        schema_fingerprint: schema::fingerprint(&schema),
        dimensions: schema::dimensions(&schema),
        features: features(snapshot.protocol()),
        ..TableFacts::default()
    })
}

fn features(protocol: &Protocol) -> Vec<String> {
    let listed = protocol.reader_features().into_iter().chain(protocol.writer_features()).flatten();
    let mut names: Vec<String> = listed.map(ToString::to_string).collect();
    names.sort();
    names.dedup();
    names
}

async fn count_rows(table: &DeltaTable) -> DeltaResult<u64> {
    let context = SessionContext::new();
    let provider: Arc<dyn TableProvider> = table.table_provider().await?;
    let column = schema::cheapest_column(&provider.schema()).into_iter().collect();
    let plan = provider.scan(&context.state(), Some(&column), &[], None).await?;
    let stream = execute_stream(plan, context.task_ctx())?;
    let count = stream.try_fold(0u64, |sum, batch| async move { Ok(sum + batch.num_rows() as u64) });
    count.await.map_err(DeltaTableError::from)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use arrow::array::{Int32Array, RecordBatch};
    use sluice_store::table::SectionView;

    use super::*;
    use crate::blocking;
    use crate::dir_view::DirView;

    /// delta-rs takes the time of a version from the commit's modification time, so a view that
    /// forgot it would break time travel by date.
    #[test]
    fn versions_have_the_times_that_the_view_gives() {
        let dir = tempfile::tempdir().expect("a folder");
        let url = Url::from_directory_path(dir.path()).expect("an address");
        let column: Arc<dyn arrow::array::Array> = Arc::new(Int32Array::from(vec![1, 2, 3]));
        let batch = RecordBatch::try_from_iter([("n", column)]).expect("a batch");
        blocking::run(async move {
            let table = DeltaTable::try_from_url(url).await.expect("a table");
            table.write([batch]).await.expect("a write");
        })
        .expect("no panic");
        let commit = dir.path().join("_delta_log/00000000000000000000.json");
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567_890_123);
        File::options().write(true).open(commit).and_then(|f| f.set_modified(time)).expect("the time is set");

        let view: Arc<dyn SectionView> = Arc::new(DirView::open(dir.path()).expect("a view"));
        let store = ViewStore::new(view, |_| false);
        let seen = blocking::run(async move {
            let table = open(store).await.expect("a table");
            let facts = facts(&table).await.expect("facts");
            (table.snapshot().expect("a state").version_timestamp(0), facts.rows)
        });
        assert_eq!(seen, Ok((Some(1_234_567_890_123), 3)));
    }
}
