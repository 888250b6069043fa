//! Lance datasets for the tests, written by Lance.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, FixedSizeListArray, Float32Array, Int64Array, RecordBatch};
use arrow::array::{RecordBatchIterator, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::array_value_to_string;
use futures_util::TryStreamExt;
use lance::Dataset;
use lance::dataset::{WriteMode, WriteParams};
use tempfile::TempDir;

use crate::copy::run;

/// Length of the vectors, in elements.
pub const DIM: i32 = 8;

/// A dataset in a folder of its own.
pub struct World {
    dir: TempDir,
}

pub fn batch(first: i64, rows: i64) -> RecordBatch {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("word", DataType::Utf8, true),
        Field::new("vector", DataType::FixedSizeList(item.clone(), DIM), true),
    ]);
    let ids = first..first + rows;
    let numbers = ids.clone().flat_map(|id| (0..i64::from(DIM)).map(move |at| (id * 7 + at) as f32));
    let numbers = Float32Array::from_iter_values(numbers);
    let vectors = FixedSizeListArray::try_new(item, DIM, Arc::new(numbers), None).expect("vectors");
    let columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(Int64Array::from_iter_values(ids.clone())),
        Arc::new(StringArray::from_iter_values(ids.map(|id| format!("w{id}")))),
        Arc::new(vectors),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).expect("a batch")
}

pub async fn write(root: &Path, batch: RecordBatch, params: WriteParams) -> Dataset {
    let schema = batch.schema();
    let reader = RecordBatchIterator::new([Ok(batch)], schema);
    let uri = root.to_str().expect("a path in UTF-8");
    Dataset::write(reader, uri, Some(params)).await.expect("a write")
}

impl World {
    pub fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().expect("a folder") };
        run(write(world.root(), batch(0, 100), WriteParams::default()));
        world
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub async fn dataset(&self) -> Dataset {
        open(self.root()).await
    }

    pub fn append(&self, batch: RecordBatch) {
        let params = WriteParams { mode: WriteMode::Append, ..WriteParams::default() };
        run(write(self.root(), batch, params));
    }

    /// The files in one of the dataset's folders.
    pub fn files_in(&self, folder: &str) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(self.root().join(folder)).expect("a folder");
        entries.map(|e| e.expect("an entry").path()).collect()
    }
}

pub async fn open(root: &Path) -> Dataset {
    Dataset::open(root.to_str().expect("a path in UTF-8")).await.expect("a dataset")
}

/// Every row of a version, as sorted text.
pub fn rows(root: &Path, version: u64) -> Vec<String> {
    run(async {
        let dataset = open(root).await.checkout_version(version).await.expect("a version");
        let stream = dataset.scan().try_into_stream().await.expect("a scan");
        let batches: Vec<RecordBatch> = stream.try_collect().await.expect("rows");
        let mut lines = Vec::new();
        for batch in &batches {
            for row in 0..batch.num_rows() {
                let cells = batch.columns().iter();
                let cells = cells.map(|c| array_value_to_string(c, row).expect("a cell"));
                lines.push(cells.collect::<Vec<_>>().join("|"));
            }
        }
        lines.sort();
        lines
    })
}
