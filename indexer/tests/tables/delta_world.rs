//! Delta tables for the tests, written by delta-rs; what delta-rs cannot write is put into the log
//! by hand.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::array_value_to_string;
use datafusion::physical_plan::collect;
use datafusion::prelude::SessionContext;
use deltalake::operations::write::SchemaMode;
use deltalake::protocol::SaveMode;
use deltalake::{DeltaTable, DeltaTableBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;
use url::Url;

use crate::copy::run;

/// A table in a folder of its own.
pub struct World {
    dir: TempDir,
}

pub fn batch(first: i64, rows: i64, part: &str) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("part", DataType::Utf8, true),
        Field::new("word", DataType::Utf8, true),
    ]);
    let words = (first..first + rows).map(|id| format!("w{id}"));
    let columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(Int64Array::from_iter_values(first..first + rows)),
        Arc::new(StringArray::from_iter_values((0..rows).map(|_| part))),
        Arc::new(StringArray::from_iter_values(words)),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).expect("a batch")
}

fn url(root: &Path) -> Url {
    Url::from_directory_path(root).expect("an absolute folder")
}

impl World {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder") }
    }

    pub fn with_properties(properties: &[(&str, &str)]) -> Self {
        let world = Self::new();
        let set: HashMap<String, Option<String>> =
            properties.iter().map(|(k, v)| (k.to_string(), Some(v.to_string()))).collect();
        run(async {
            world
                .table()
                .await
                .write([batch(0, 10, "a")])
                .with_save_mode(SaveMode::Append)
                .with_configuration(set)
                .await
                .expect("a table")
        });
        world
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub async fn table(&self) -> DeltaTable {
        DeltaTable::try_from_url(url(self.root())).await.expect("a table")
    }

    pub fn append(&self, batch: RecordBatch) {
        self.append_by(batch, None);
    }

    pub fn append_by(&self, batch: RecordBatch, partition: Option<&str>) {
        run(async {
            self.table()
                .await
                .write([batch])
                .with_save_mode(SaveMode::Append)
                .with_schema_mode(SchemaMode::Merge)
                .with_partition_columns(partition)
                .await
                .expect("an append")
        });
    }

    /// Writes commit `version` as it would stand in the log.
    pub fn commit_by_hand(&self, version: u64, actions: &[Value]) {
        let lines: Vec<String> = actions.iter().map(Value::to_string).collect();
        fs::write(self.log(&format!("{version:020}.json")), lines.join("\n")).expect("a commit");
    }

    /// The actions of a commit.
    pub fn actions(&self, version: u64) -> Vec<Value> {
        let text = fs::read_to_string(self.log(&format!("{version:020}.json"))).expect("a commit");
        text.lines().map(|line| serde_json::from_str(line).expect("an action")).collect()
    }

    /// The add action of a commit that has one.
    pub fn added(&self, version: u64) -> Value {
        let actions = self.actions(version);
        actions.into_iter().find_map(|a| a.get("add").cloned()).expect("an add")
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.root().join("_delta_log").join(name)
    }

    pub fn data_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root()).expect("a folder");
        let paths = entries.map(|e| e.expect("an entry").path());
        paths.filter(|p| p.extension().is_some_and(|e| e == "parquet")).collect()
    }

    /// Deletes the first rows of the only file of version `from`, in commit `from + 1`, through an
    /// external deletion vector. Gives the vector's file.
    pub fn delete_by_vector(&self, from: u64, rows: u64) -> PathBuf {
        use delta_kernel::actions::deletion_vector_writer::{KernelDeletionVector, StreamingDeletionVectorWriter};
        let mut vector = KernelDeletionVector::new();
        vector.add_deleted_row_indexes(0..rows);
        let mut bytes = Vec::new();
        let mut writer = StreamingDeletionVectorWriter::new(&mut bytes);
        let written = writer.write_deletion_vector(vector).expect("a vector");
        writer.finalize().expect("a vector");
        let uuid = [7u8 + from as u8; 16];
        let hex: String = uuid.iter().map(|b| format!("{b:02x}")).collect();
        let name = format!(
            "deletion_vector_{}-{}-{}-{}-{}.bin",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        );
        let file = self.root().join("ab").join(name);
        fs::create_dir_all(self.root().join("ab")).expect("a folder");
        fs::write(&file, bytes).expect("a vector");
        let mut add = self.added(from);
        let mut remove = json!({ "path": add["path"], "dataChange": true, "deletionTimestamp": 1 });
        if let Some(vector) = add.get("deletionVector") {
            // A file is removed under the vector that it was added with.
            remove["deletionVector"] = vector.clone();
        }
        add["deletionVector"] = json!({
            "storageType": "u",
            "pathOrInlineDv": format!("ab{}", z85(&uuid)),
            "offset": written.offset,
            "sizeInBytes": written.size_in_bytes,
            "cardinality": written.cardinality,
        });
        self.commit_by_hand(from + 1, &[json!({ "remove": remove }), json!({ "add": add })]);
        file
    }
}

/// The text form in which the log holds the id of a deletion-vector file.
fn z85(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
    let quads = bytes.chunks(4).map(|q| u32::from_be_bytes(q.try_into().expect("four bytes")));
    quads
        .flat_map(|quad| [85 * 85 * 85 * 85, 85 * 85 * 85, 85 * 85, 85, 1].map(|d| quad / d % 85))
        .map(|digit| DIGITS[digit as usize] as char)
        .collect()
}

/// Every row of a version, as sorted text.
pub fn rows(root: &Path, version: u64) -> Vec<String> {
    run(async {
        let builder = DeltaTableBuilder::from_url(url(root)).expect("a builder");
        let table = builder.with_version(version).load().await.expect("a version");
        let context = SessionContext::new();
        let provider = table.table_provider().await.expect("a provider");
        let plan = provider.scan(&context.state(), None, &[], None).await.expect("a plan");
        let batches = collect(plan, context.task_ctx()).await.expect("rows");
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
