//! Lance datasets as they change over time.

use std::fs;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use lance::blob::{BlobArrayBuilder, blob_field};
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::{NewColumnTransform, WriteParams};
use lance::index::DatasetIndexExt;
use lance::index::vector::VectorIndexParams;
use lance_file::version::LanceFileVersion;
use lance_index::IndexType;
use lance_index::scalar::ScalarIndexParams;
use lance_linalg::distance::MetricType;
use sluice_indexer::lance::LanceReader;
use sluice_protocol::annex::Dimension;
use sluice_store::table::{History, TableError, TableReader};

use crate::copy::{count, names, prove, run, travels};
use crate::lance_world::{DIM, World, batch, open, rows, write};

const READER: LanceReader = LanceReader;

#[test]
fn append_delete_and_new_column_travel_with_every_version() {
    let world = World::new();
    world.append(batch(100, 50));
    run(async {
        let mut dataset = world.dataset().await;
        dataset.delete("id < 10").await.expect("a delete");
        let double = NewColumnTransform::SqlExpressions(vec![("double".into(), "id * 2".into())]);
        dataset.add_columns(double, None, None).await.expect("a new column");
    });
    let (capture, _copy) = travels(&READER, world.root(), History::All, rows);
    assert_eq!(capture.facts.versions, [1, 2, 3, 4]);
    assert_eq!(capture.facts.rows, 140);
    let vector = Dimension { column: "vector".into(), dim: DIM as u32, unknown: Default::default() };
    assert_eq!(capture.facts.dimensions, [vector]);
    assert_eq!(count(&capture, |p| p.starts_with("_deletions/")), 1);
    assert!(capture.facts.features.contains(&"deletionFiles".to_string()));
    assert!(!names(&capture).iter().any(|p| p.contains("latest_version_hint")));
    assert!(world.root().join("_versions/latest_version_hint.json").exists(), "the trap is real");
}

#[test]
fn tagged_and_latest_take_what_they_say() {
    let world = World::new();
    world.append(batch(100, 10));
    world.append(batch(110, 10));
    run(async {
        let mut dataset = world.dataset().await;
        dataset.tags().create("first", 1).await.expect("a tag");
        dataset.tags().create("now", 4).await.expect_err("no version 4 yet");
        compact_files(&mut dataset, CompactionOptions::default(), None).await.expect("compacted");
        dataset.tags().create("now", dataset.version().version).await.expect("a tag");
    });
    let (all, _copy) = travels(&READER, world.root(), History::All, rows);
    assert!(all.facts.versions.starts_with(&[1, 2, 3]));
    let newest = all.facts.version;
    assert_eq!(all.facts.tags, ["first=1".to_string(), format!("now={newest}")]);

    let (tagged, copied) = travels(&READER, world.root(), History::Tagged, rows);
    assert_eq!(tagged.facts.versions, [1, newest]);
    assert_eq!(tagged.facts.tags, all.facts.tags);
    let by_tag = run(async { open(copied.path()).await.tags().get_version("first").await });
    assert_eq!(by_tag.expect("a tag"), 1);

    let (latest, _copy) = travels(&READER, world.root(), History::Latest, rows);
    assert_eq!(latest.facts.versions, [newest]);
    assert_eq!(latest.facts.tags, [format!("now={newest}")]);
    assert_eq!(count(&latest, |p| p.starts_with("data/")), 1);
}

#[test]
fn indices_travel_and_answer() {
    let world = World::new();
    world.append(batch(100, 200));
    run(async {
        let mut dataset = world.dataset().await;
        let params = VectorIndexParams::ivf_flat(2, MetricType::L2);
        dataset.create_index(&["vector"], IndexType::Vector, Some("v".into()), &params, false).await.expect("an index");
        let params = ScalarIndexParams::default();
        dataset.create_index(&["id"], IndexType::BTree, Some("i".into()), &params, false).await.expect("an index");
    });
    world.append(batch(300, 7));
    let (capture, copied) = travels(&READER, world.root(), History::All, rows);
    let found: Vec<(&str, &str, u64)> =
        capture.facts.indices.iter().map(|i| (i.name.as_str(), i.column.as_str(), i.rows)).collect();
    assert_eq!(found, [("i", "id", 300), ("v", "vector", 300)]);
    assert_eq!(capture.facts.indices[1].kind, "IVF_FLAT");
    let near = run(async {
        let dataset = open(copied.path()).await;
        let query = Float32Array::from_iter_values((0..DIM).map(|at| (150 * 7 + at) as f32));
        let mut scan = dataset.scan();
        scan.nearest("vector", &query, 1).expect("a query").project(&["id"]).expect("a column");
        scan.try_into_batch().await.expect("an answer")
    });
    let ids = near.column(0).as_any().downcast_ref::<Int64Array>().expect("ids");
    assert_eq!(ids.value(0), 150);

    let index = fs::read_dir(world.root().join("_indices")).expect("a folder").next();
    let index = index.expect("an index").expect("an entry").path();
    fs::remove_dir_all(&index).expect("removed");
    let refused = READER.capture("t", world.root(), History::All).expect_err("a missing index");
    assert!(refused.is_transient(), "{refused}");
    assert!(refused.to_string().contains("_indices/"), "{refused}");
}

#[test]
fn cleaned_versions_are_gone_and_compacted_ones_stay() {
    let world = World::new();
    for at in 1..4 {
        world.append(batch(at * 100, 100));
    }
    run(async {
        let mut dataset = world.dataset().await;
        dataset.delete("id % 10 = 0").await.expect("a delete");
        compact_files(&mut dataset, CompactionOptions::default(), None).await.expect("compacted");
    });
    let (before, _copy) = travels(&READER, world.root(), History::All, rows);
    // Compaction of deleted rows commits twice: it reserves fragment ids first.
    assert_eq!(before.facts.versions, [1, 2, 3, 4, 5, 6, 7]);
    // A version whose data file went away, as after a cleanup that was cut short.
    let (older, _copy) = {
        let kept = READER.capture("t", world.root(), History::Latest).expect("a capture");
        for file in world.files_in("data") {
            let name = format!("data/{}", file.file_name().unwrap().to_str().unwrap());
            if !names(&kept).contains(&name) {
                fs::remove_file(file).expect("removed");
            }
        }
        travels(&READER, world.root(), History::All, rows)
    };
    assert_eq!(older.facts.versions, [7]);
    assert_eq!(older.facts.rows, 360);
    assert!(count(&older, |p| p.starts_with("_versions/")) == 1);
}

#[test]
fn what_is_not_committed_stays_behind() {
    let world = World::new();
    let (plain, _copy) = travels(&READER, world.root(), History::All, rows);
    fs::write(world.root().join("data/uncommitted.lance"), "x").expect("written");
    fs::create_dir_all(world.root().join("_transactions")).expect("a folder");
    fs::write(world.root().join("_transactions/9-abc.txn"), "x").expect("written");
    fs::write(world.root().join("_versions/18446744073709551613.manifest#4"), "x").expect("ok");
    fs::write(world.root().join("notes.txt"), "x").expect("written");
    let (again, _copy) = travels(&READER, world.root(), History::All, rows);
    assert_eq!(again.files, plain.files);
}

#[test]
fn a_missing_data_file_is_named_and_worth_another_try() {
    let world = World::new();
    let data = world.files_in("data").pop().expect("a file");
    fs::remove_file(&data).expect("removed");
    let refused = READER.capture("acme/v", world.root(), History::All).expect_err("a missing file");
    assert!(refused.is_transient());
    let name = data.file_name().and_then(|n| n.to_str()).expect("a name");
    assert!(refused.to_string().contains(name), "{refused}");
    assert!(matches!(prove(&READER, world.root()), Err(TableError::MissingFile { version: 1, .. })));
}

#[test]
fn clones_are_refused_and_branches_are_left_behind_only_on_request() {
    let world = World::new();
    let clone = tempfile::tempdir().expect("a folder");
    let target = clone.path().join("c.lance");
    run(async {
        let mut dataset = world.dataset().await;
        let uri = target.to_str().expect("a path in UTF-8");
        dataset.shallow_clone(uri, 1, None).await.expect("a clone");
    });
    let refused = READER.capture("t", &target, History::All).expect_err("a clone");
    assert!(matches!(refused, TableError::External { .. }), "{refused}");

    run(async {
        let mut dataset = world.dataset().await;
        dataset.create_branch("try", 1, None).await.expect("a branch");
    });
    let refused = READER.capture("t", world.root(), History::All).expect_err("a branch");
    assert!(matches!(refused, TableError::External { .. }), "{refused}");
    let (latest, _copy) = travels(&READER, world.root(), History::Latest, rows);
    assert_eq!(count(&latest, |p| p.starts_with("tree/") || p.contains("branches")), 0);
}

#[test]
fn blob_sidecars_travel() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut blobs = BlobArrayBuilder::new(2);
    blobs.push_bytes(vec![7u8; 256 * 1024]).expect("a blob");
    blobs.push_bytes(vec![9u8; 8 * 1024 * 1024]).expect("a blob");
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let id = Field::new("id", DataType::Int64, false);
    let schema = Schema::new(vec![id, blob_field("blob", true)]);
    let columns = vec![ids, blobs.finish().expect("blobs")];
    let batch = RecordBatch::try_new(Arc::new(schema), columns).expect("a batch");
    let version = Some(LanceFileVersion::V2_2);
    run(write(dir.path(), batch, WriteParams { data_storage_version: version, ..Default::default() }));
    fs::create_dir_all(dir.path().join("data/other")).expect("a folder");
    fs::write(dir.path().join("data/other/1.blob"), "x").expect("written");

    let read = |root: &std::path::Path, _| {
        run(async {
            let dataset = Arc::new(open(root).await);
            let blobs = dataset.take_blobs_by_indices(&[0, 1], "blob").await.expect("blobs");
            let mut seen = Vec::new();
            for blob in blobs {
                let bytes = blob.read().await.expect("a blob");
                seen.push(format!("{} x {}", bytes.len(), bytes[0]));
            }
            seen
        })
    };
    let (capture, _copy) = travels(&READER, dir.path(), History::All, read);
    assert!(count(&capture, |p| p.ends_with(".blob")) > 0, "{:?}", capture.files);
    assert!(!names(&capture).contains("data/other/1.blob"));
}

#[test]
fn a_damaged_or_foreign_folder_is_an_error_and_no_panic() {
    let empty = tempfile::tempdir().expect("a folder");
    let refused = READER.capture("t", empty.path(), History::All).expect_err("no dataset");
    assert!(matches!(refused, TableError::Unreadable { .. }), "{refused}");

    let world = World::new();
    world.append(batch(100, 10));
    for file in world.files_in("_versions") {
        if file.extension().is_some_and(|e| e == "manifest") {
            let bytes = fs::read(&file).expect("a manifest");
            for cut in [0, 3, 16, bytes.len() / 2, bytes.len() - 1] {
                fs::write(&file, &bytes[..cut]).expect("written");
                assert!(READER.capture("t", world.root(), History::All).is_err(), "cut at {cut}");
            }
            let mut flipped = bytes.clone();
            for at in (0..bytes.len()).step_by(7) {
                flipped[at] ^= 0x55;
            }
            fs::write(&file, flipped).expect("written");
            assert!(READER.capture("t", world.root(), History::All).is_err());
            fs::write(&file, bytes).expect("written");
        }
    }
    assert!(READER.capture("t", world.root(), History::All).is_ok());
}
