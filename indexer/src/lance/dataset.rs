//! A Lance dataset opened through a view.
//!
//! Invariant: what is said here is said of the version that was opened; rows are counted by
//! scanning a column with deletions applied, never taken from the manifest.

use std::sync::Arc;

use arrow::datatypes::Schema;
use futures_util::TryStreamExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::index::DatasetIndexExt;
use lance::session::Session;
use lance_io::object_store::ObjectStoreRegistry;
use lance_table::feature_flags as flags;
use sluice_protocol::annex::{IndexFacts, TableFacts};

use crate::schema;
use crate::view_store::{LanceViews, SCHEME, TABLE_URL, ViewStore};

/// Memory that Lance may keep for metadata, and again for indices, in bytes.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Opens the newest version of the dataset in `store`.
///
/// # Errors
/// Whatever Lance says.
pub async fn open(store: ViewStore) -> lance::Result<Dataset> {
    let registry = ObjectStoreRegistry::empty();
    registry.insert(SCHEME, Arc::new(LanceViews(store)));
    let session = Session::new(CACHE_BYTES, CACHE_BYTES, Arc::new(registry));
    DatasetBuilder::from_uri(TABLE_URL).with_session(Arc::new(session)).load().await
}

/// What the opened version is. Lists of versions and tags are left empty.
///
/// # Errors
/// When the scan that counts the rows, or reading an index's metadata, fails.
pub async fn facts(dataset: &Dataset) -> lance::Result<TableFacts> {
    let schema = Schema::from(dataset.schema());
    Ok(TableFacts {
        version: dataset.version().version,
        rows: count_rows(dataset, &schema).await?,
        schema_fingerprint: schema::fingerprint(&schema),
        dimensions: schema::dimensions(&schema),
        indices: indices(dataset).await?,
        features: features(dataset),
        ..TableFacts::default()
    })
}

async fn count_rows(dataset: &Dataset, schema: &Schema) -> lance::Result<u64> {
    let Some(column) = schema::cheapest_column(schema) else { return Ok(0) };
    let mut scan = dataset.scan();
    scan.project(&[quoted(schema.field(column).name())])?;
    let rows = scan.try_into_stream().await?;
    rows.try_fold(0u64, |sum, batch| async move { Ok(sum + batch.num_rows() as u64) }).await
}

/// A column name that Lance does not take apart at its dots.
fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

async fn indices(dataset: &Dataset) -> lance::Result<Vec<IndexFacts>> {
    let described = match dataset.describe_indices(None).await {
        Ok(described) => described,
        // Indices of old releases lack what the description needs; their names still tell.
        Err(_) => return named_only(dataset).await,
    };
    let columns = |ids: &[u32]| {
        let paths = ids.iter().map(|id| column(dataset, *id as i32));
        paths.collect::<Vec<_>>().join(",")
    };
    let facts = described.iter().map(|index| IndexFacts {
        name: index.name().to_string(),
        column: columns(index.field_ids()),
        kind: index.index_type().to_string(),
        rows: index.rows_indexed(),
        unknown: Default::default(),
    });
    Ok(facts.collect())
}

async fn named_only(dataset: &Dataset) -> lance::Result<Vec<IndexFacts>> {
    let indices = dataset.load_indices().await?;
    let facts = indices.iter().map(|index| IndexFacts {
        name: index.name.clone(),
        column: index.fields.iter().map(|id| column(dataset, *id)).collect::<Vec<_>>().join(","),
        kind: "unknown".to_string(),
        rows: 0,
        unknown: Default::default(),
    });
    let mut facts: Vec<IndexFacts> = facts.collect();
    facts.sort_by(|a, b| a.name.cmp(&b.name));
    facts.dedup_by(|a, b| a.name == b.name);
    Ok(facts)
}

fn column(dataset: &Dataset, id: i32) -> String {
    dataset.schema().field_path(id).unwrap_or_else(|_| format!("#{id}"))
}

/// The reader features of the manifest, and the format of the data files.
fn features(dataset: &Dataset) -> Vec<String> {
    let manifest = dataset.manifest();
    let named = [
        (flags::FLAG_BASE_PATHS, "basePaths"),
        (flags::FLAG_DELETION_FILES, "deletionFiles"),
        (flags::FLAG_STABLE_ROW_IDS, "stableRowIds"),
    ];
    let set = named.iter().filter(|(flag, _)| manifest.reader_feature_flags & flag != 0);
    let mut names: Vec<String> = set.map(|(_, name)| name.to_string()).collect();
    names.push(format!("files {}", manifest.data_storage_format.version));
    names.sort();
    names
}
