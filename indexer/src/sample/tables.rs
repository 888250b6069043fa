//! The sample's tables, written by delta-rs and Lance.
//!
//! Invariant: ids of a table run without gaps from 0, so the next append knows where to start.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchIterator};
use deltalake::DeltaTable;
use deltalake::datafusion::prelude::{col, lit};
use deltalake::protocol::SaveMode;
use lance::Dataset;
use lance::dataset::{WriteMode, WriteParams};
use lance::index::DatasetIndexExt;
use lance::index::vector::VectorIndexParams;
use lance_index::IndexType;
use lance_index::vector::ivf::IvfBuildParams;
use lance_linalg::distance::MetricType;
use url::Url;

use super::{SampleError, Scale, rows};

const ORDERS: &str = "delta/orders";
const EVENTS: &str = "delta/events";
const DOCS: &str = "vectors/docs.lance";
/// Shares of 64 and about how many bytes a row takes on disk.
const ORDERS_SIZE: (u64, u64) = (20, 80);
const EVENTS_SIZE: (u64, u64) = (14, 80);
/// The flat index holds the vectors once more.
const DOCS_SIZE: (u64, u64) = (14, 3_400);
/// Commits that the rows of a Delta table come in.
const COMMITS: u64 = 4;
/// Rows in one batch in memory.
const BATCH_ROWS: u64 = 16 * 1024;
/// Rows that a change appends.
const APPENDED_ORDERS: u64 = 2_000;
const APPENDED_DOCS: u64 = 64;
/// A change rewrites one event in this many.
const REWRITE_EVERY: i64 = 100;

/// Makes all three. Fails when one of them exists.
pub async fn make(root: &Path, seed: u64, scale: Scale) -> Result<(), SampleError> {
    let size = |(share, row): (u64, u64)| (scale.bytes(share) / row).max(COMMITS);
    let orders = |first, rows| rows::orders(seed, first, rows);
    make_delta(root, ORDERS, size(ORDERS_SIZE), Some("region"), orders).await?;
    let events = |first, rows| rows::events(seed, first, rows);
    make_delta(root, EVENTS, size(EVENTS_SIZE), None, events).await?;
    make_docs(root, seed, size(DOCS_SIZE)).await.map_err(|e| broken(DOCS, e))
}

/// One step of changes; what was done, in words.
pub async fn change(root: &Path, step: u32) -> Result<Vec<String>, SampleError> {
    let seed = u64::from(step) + 1;
    let first = count_delta(root, ORDERS).await?;
    let batch = rows::orders(seed, first, APPENDED_ORDERS).map_err(|e| broken(ORDERS, e))?;
    let table = open_delta(root, ORDERS).await?;
    table.write([batch]).with_save_mode(SaveMode::Append).await.map_err(|e| broken(ORDERS, e))?;

    let which = i64::from(step) % REWRITE_EVERY;
    let events = open_delta(root, EVENTS).await?;
    let (_, update) = events
        .update()
        .with_predicate((col("id") % lit(REWRITE_EVERY)).eq(lit(which)))
        .with_update("value", col("value") + lit(1.0))
        .await
        .map_err(|e| broken(EVENTS, e))?;

    let docs = append_docs(root, seed).await.map_err(|e| broken(DOCS, e))?;
    Ok(vec![
        format!("appended {APPENDED_ORDERS} rows to {ORDERS}"),
        format!("updated {} rows of {EVENTS}", update.num_updated_rows),
        format!("appended {APPENDED_DOCS} vectors to {DOCS}, now {docs}"),
    ])
}

fn broken(table: &str, cause: impl ToString) -> SampleError {
    SampleError::Table { table: table.to_string(), cause: cause.to_string() }
}

async fn open_delta(root: &Path, table: &str) -> Result<DeltaTable, SampleError> {
    let folder = root.join(table);
    std::fs::create_dir_all(&folder).map_err(|cause| SampleError::File { path: folder.clone(), cause })?;
    let folder = folder.canonicalize().map_err(|e| broken(table, e))?;
    let url = Url::from_directory_path(&folder).map_err(|()| broken(table, "its folder has no address"))?;
    DeltaTable::try_from_url(url).await.map_err(|e| broken(table, e))
}

async fn make_delta(
    root: &Path,
    name: &str,
    total: u64,
    partition: Option<&str>,
    batch: impl Fn(u64, u64) -> Result<RecordBatch, arrow::error::ArrowError>,
) -> Result<(), SampleError> {
    let mut table = open_delta(root, name).await?;
    for commit in 0..COMMITS {
        let (from, to) = (total * commit / COMMITS, total * (commit + 1) / COMMITS);
        let batches = (from..to)
            .step_by(BATCH_ROWS as usize)
            .map(|first| batch(first, BATCH_ROWS.min(to - first)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| broken(name, e))?;
        let mode = if commit == 0 { SaveMode::ErrorIfExists } else { SaveMode::Append };
        table = table
            .write(batches)
            .with_save_mode(mode)
            .with_partition_columns(partition)
            .await
            .map_err(|e| broken(name, e))?;
    }
    Ok(())
}

/// Rows of a table of the sample, as its log says: only to go on numbering.
async fn count_delta(root: &Path, name: &str) -> Result<u64, SampleError> {
    let table = open_delta(root, name).await?;
    let snapshot = table.snapshot().map_err(|e| broken(name, e))?;
    Ok(snapshot.log_data().iter().filter_map(|f| f.num_records()).sum::<usize>() as u64)
}

async fn make_docs(root: &Path, seed: u64, total: u64) -> lance::Result<()> {
    let folder = root.join(DOCS);
    let uri = folder.to_string_lossy();
    let batch = rows::docs(seed, 0, total)?;
    let mut dataset = write_docs(&uri, batch, WriteMode::Create).await?;
    // The neighbourhoods are known, so nothing has to be trained.
    let centres = Arc::new(rows::vectors(rows::centres(seed))?);
    let ivf = IvfBuildParams::try_with_centroids(rows::CENTRES, centres)?;
    let params = VectorIndexParams::with_ivf_flat_params(MetricType::L2, ivf);
    let name = Some("vector_idx".to_string());
    dataset.create_index(&["vector"], IndexType::Vector, name, &params, false).await?;
    Ok(())
}

async fn append_docs(root: &Path, seed: u64) -> lance::Result<usize> {
    let folder = root.join(DOCS);
    let uri = folder.to_string_lossy();
    let first = Dataset::open(&uri).await?.count_rows(None).await? as u64;
    let batch = rows::docs(seed, first, APPENDED_DOCS)?;
    write_docs(&uri, batch, WriteMode::Append).await?.count_rows(None).await
}

async fn write_docs(uri: &str, batch: RecordBatch, mode: WriteMode) -> lance::Result<Dataset> {
    let schema = batch.schema();
    let reader = RecordBatchIterator::new([Ok(batch)], schema);
    let params = WriteParams { mode, ..WriteParams::default() };
    Dataset::write(reader, uri, Some(params)).await
}
