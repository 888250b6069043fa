//! Delta tables as they change over time.

use std::fs;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use deltalake::checkpoints::create_checkpoint;
use deltalake::datafusion::prelude::{col, lit};
use deltalake::operations::vacuum::VacuumMode;
use serde_json::json;
use sluice_indexer::delta::DeltaReader;
use sluice_store::table::{History, TableError, TableReader};

use crate::copy::{copy, count, names, prove, run, travels};
use crate::delta_world::{World, batch, rows};

const READER: DeltaReader = DeltaReader;

fn is_data(path: &str) -> bool {
    !path.starts_with('_') && path.ends_with(".parquet")
}

#[test]
fn append_update_and_delete_travel_with_every_version() {
    let world = World::new();
    world.append(batch(0, 50, "a"));
    world.append(batch(50, 50, "b"));
    run(async {
        let (table, _) = world
            .table()
            .await
            .update()
            .with_predicate(col("id").lt(lit(10)))
            .with_update("word", lit("changed"))
            .await
            .expect("an update");
        table.delete().with_predicate(col("id").gt_eq(lit(90))).await.expect("a delete");
    });
    let (capture, _copy) = travels(&READER, world.root(), History::All, rows);
    assert_eq!(capture.facts.version, 3);
    assert_eq!(capture.facts.versions, [0, 1, 2, 3]);
    assert_eq!(capture.facts.rows, 90);
    assert_eq!(count(&capture, |p| p.ends_with(".json")), 4);
}

#[test]
fn latest_takes_one_version_and_names_what_comes_along() {
    let world = World::new();
    world.append(batch(0, 10, "a"));
    world.append(batch(10, 10, "a"));
    let (capture, _copy) = travels(&READER, world.root(), History::Latest, rows);
    // Appends only: the older version needs nothing more.
    assert_eq!(capture.facts.versions, [0, 1]);

    run(async { world.table().await.optimize().await.expect("an optimize") });
    let (capture, _copy) = travels(&READER, world.root(), History::Latest, rows);
    assert_eq!(capture.facts.versions, [2]);
    assert_eq!(count(&capture, is_data), 1);
    let tagged = READER.capture("t", world.root(), History::Tagged).expect("a capture");
    assert_eq!((tagged.facts, tagged.files), (capture.facts, capture.files));
}

#[test]
fn vacuumed_versions_keep_their_commits_and_are_not_readable() {
    let world = World::new();
    world.append(batch(0, 10, "a"));
    world.append(batch(10, 10, "a"));
    run(async { world.table().await.optimize().await.expect("an optimize") });
    world.append(batch(20, 10, "a"));
    run(async {
        let vacuum = world
            .table()
            .await
            .vacuum()
            .with_retention_period(Default::default())
            .with_enforce_retention_duration(false)
            .with_mode(VacuumMode::Full);
        vacuum.await.expect("a vacuum")
    });
    let (capture, copied) = travels(&READER, world.root(), History::All, rows);
    assert!(!capture.facts.versions.contains(&0) && !capture.facts.versions.contains(&1));
    assert!(capture.facts.versions.contains(&2) && capture.facts.versions.contains(&3));
    let log = copied.path().join("_delta_log");
    assert!((0..=capture.facts.version).all(|v| log.join(format!("{v:020}.json")).exists()));
    assert_eq!(count(&capture, is_data), 2);
}

#[test]
fn a_table_whose_old_log_is_gone_starts_at_its_checkpoint() {
    let world = World::new();
    for at in 0..4 {
        world.append(batch(at * 10, 10, "a"));
    }
    run(async { create_checkpoint(&world.table().await, None).await.expect("a checkpoint") });
    world.append(batch(40, 10, "a"));
    for version in 0..3u64 {
        fs::remove_file(world.log(&format!("{version:020}.json"))).expect("removed");
    }
    let (capture, _copy) = travels(&READER, world.root(), History::All, rows);
    assert_eq!(capture.facts.versions, [3, 4]);
    assert!(names(&capture).contains("_delta_log/_last_checkpoint"));
    assert!(names(&capture).contains("_delta_log/00000000000000000003.checkpoint.parquet"));

    // Only the checkpoint tells version 3 now.
    fs::remove_file(world.log("00000000000000000003.json")).expect("removed");
    let (capture, _copy) = travels(&READER, world.root(), History::All, rows);
    assert_eq!(capture.facts.versions, [3, 4]);
}

#[test]
fn latest_takes_the_log_from_the_newest_checkpoint_on() {
    let world = World::new();
    for at in 0..3 {
        world.append(batch(at * 10, 10, "a"));
    }
    run(async { create_checkpoint(&world.table().await, None).await.expect("a checkpoint") });
    world.append(batch(30, 10, "a"));
    let (capture, _copy) = travels(&READER, world.root(), History::Latest, rows);
    let names = names(&capture);
    assert!(!names.contains("_delta_log/00000000000000000001.json"));
    assert!(names.contains("_delta_log/00000000000000000003.json"));
    assert!(names.contains("_delta_log/00000000000000000002.checkpoint.parquet"));
    assert!(names.contains("_delta_log/_last_checkpoint"));
    assert_eq!(capture.facts.versions, [2, 3]);
}

#[test]
fn a_pointer_to_a_missing_checkpoint_stays_behind_and_is_refused_on_a_replica() {
    let world = World::new();
    world.append(batch(0, 10, "a"));
    world.append(batch(10, 10, "a"));
    run(async { create_checkpoint(&world.table().await, None).await.expect("a checkpoint") });
    fs::remove_file(world.log("00000000000000000001.checkpoint.parquet")).expect("removed");
    let capture = READER.capture("t", world.root(), History::All).expect("a capture");
    assert!(!names(&capture).contains("_delta_log/_last_checkpoint"));
    let copied = copy(&capture, world.root());
    assert_eq!(prove(&READER, copied.path()).expect("a proof"), capture.facts);
    assert_eq!(rows(copied.path(), 0).len(), 10);
    let pointer = copied.path().join("_delta_log/_last_checkpoint");
    fs::copy(world.log("_last_checkpoint"), pointer).expect("copied");
    let refused = prove(&READER, copied.path()).expect_err("a dangling pointer");
    assert!(refused.to_string().contains("_last_checkpoint"), "{refused}");
}

#[test]
fn partition_values_with_odd_characters_travel() {
    let world = World::new();
    let parts = ["a b", "k:v", "50%", "île/Ü", "q?x#y", "a%20b", "plus+and&", "{[brace]}"];
    for (at, part) in parts.iter().enumerate() {
        world.append_by(batch(at as i64 * 10, 10, part), Some("part"));
    }
    let (capture, _copy) = travels(&READER, world.root(), History::All, rows);
    assert_eq!(capture.facts.rows, 80);
    assert_eq!(capture.facts.versions.len(), 8);
    assert_eq!(count(&capture, |p| p.starts_with("part=")), 8);
}

#[test]
fn a_new_column_changes_the_fingerprint_and_keeps_old_versions() {
    let world = World::new();
    world.append(batch(0, 10, "a"));
    let before = READER.capture("t", world.root(), History::All).expect("a capture").facts;
    let old = batch(10, 10, "a");
    let mut fields: Vec<Field> = old.schema().fields().iter().map(|f| f.as_ref().clone()).collect();
    fields.push(Field::new("weight", DataType::Int64, true));
    let mut columns = old.columns().to_vec();
    columns.push(Arc::new(Int64Array::from(vec![5; 10])));
    let wide = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a batch");
    world.append(wide);
    let (capture, _copy) = travels(&READER, world.root(), History::All, rows);
    assert_eq!(capture.facts.versions, [0, 1]);
    assert_ne!(capture.facts.schema_fingerprint, before.schema_fingerprint);
    assert_eq!(before.rows, 10);
}

#[test]
fn change_data_travels() {
    let world = World::with_properties(&[("delta.enableChangeDataFeed", "true")]);
    run(async {
        let update = world.table().await.update();
        update.with_predicate(col("id").lt(lit(3))).with_update("word", lit("x")).await.expect("an update")
    });
    let (capture, _copy) = travels(&READER, world.root(), History::All, rows);
    assert!(count(&capture, |p| p.starts_with("_change_data/")) > 0, "{:?}", capture.files);
    let latest = READER.capture("t", world.root(), History::Latest).expect("a capture");
    assert_eq!(count(&latest, |p| p.starts_with("_change_data/")), 0);
}

#[test]
fn deletion_vectors_are_applied_and_their_files_travel() {
    let world = World::with_properties(&[("delta.enableDeletionVectors", "true")]);
    let first = world.delete_by_vector(0, 3);
    let second = world.delete_by_vector(1, 5);
    let (capture, _copy) = travels(&READER, world.root(), History::All, rows);
    assert_eq!(capture.facts.versions, [0, 1, 2]);
    assert_eq!(capture.facts.rows, 5);
    assert_eq!(capture.facts.features, ["deletionVectors"]);
    assert_eq!(count(&capture, |p| p.starts_with("ab/deletion_vector_")), 2);

    // Without its vector a version cannot be read; the versions around it can.
    fs::remove_file(&first).expect("removed");
    let (capture, _copy) = travels(&READER, world.root(), History::All, rows);
    assert_eq!(capture.facts.versions, [0, 2]);
    fs::remove_file(&second).expect("removed");
    let refused = READER.capture("t", world.root(), History::All).expect_err("a missing vector");
    assert!(
        matches!(&refused, TableError::MissingFile { version: 2, file, .. }
        if file.starts_with("ab/deletion_vector_")),
        "{refused}"
    );
}

#[test]
fn what_is_not_committed_stays_behind() {
    let world = World::new();
    world.append(batch(0, 10, "a"));
    let data = world.data_files().pop().expect("a file");
    fs::copy(&data, world.root().join("part-uncommitted.parquet")).expect("copied");
    fs::write(world.log("_commit_1234.json.tmp"), "{}").expect("written");
    fs::write(world.log("00000000000000000001.json#3"), "{}").expect("written");
    fs::create_dir(world.log("_staged_commits")).expect("a folder");
    let staged = "_staged_commits/00000000000000000001.0123456789abcdef0123456789abcdef0123.json";
    fs::write(world.log(staged), "{}").expect("written");
    fs::write(world.root().join("notes.txt"), "x").expect("written");
    let (capture, _copy) = travels(&READER, world.root(), History::All, rows);
    assert_eq!(capture.files.len(), 2, "{:?}", capture.files);
}

#[test]
fn a_missing_data_file_is_named_and_worth_another_try() {
    let world = World::new();
    world.append(batch(0, 10, "a"));
    let data = world.data_files().pop().expect("a file");
    fs::remove_file(&data).expect("removed");
    let name = data.file_name().and_then(|n| n.to_str()).expect("a name");
    let refused = READER.capture("acme/t", world.root(), History::All).expect_err("a missing file");
    assert!(refused.is_transient());
    let text = refused.to_string();
    assert!(text.contains(name) && text.contains("acme/t"), "{text}");
    let on_replica = prove(&READER, world.root()).expect_err("a missing file");
    assert!(matches!(on_replica, TableError::MissingFile { version: 0, .. }));
}

#[test]
fn a_file_outside_the_table_is_refused() {
    for path in ["file:///srv/elsewhere/x.parquet", "/srv/x.parquet", "../x.parquet"] {
        let world = World::new();
        world.append(batch(0, 10, "a"));
        let mut add = world.added(0);
        add["path"] = json!(path);
        world.commit_by_hand(1, &[json!({ "add": add })]);
        let refused = READER.capture("t", world.root(), History::All).expect_err("an outside file");
        let external = matches!(&refused, TableError::External { uri, .. } if uri == path);
        assert!(external, "{path}: {refused}");
    }
}

#[test]
fn unreadable_features_are_refused_by_name() {
    let protocols = [
        (
            json!({ "minReaderVersion": 3, "minWriterVersion": 7,
                 "readerFeatures": ["catalogManaged"],
                 "writerFeatures": ["catalogManaged", "inCommitTimestamp"] }),
            "catalogManaged",
        ),
        (
            json!({ "minReaderVersion": 3, "minWriterVersion": 7,
                 "readerFeatures": ["fluxCapacitor"],
                 "writerFeatures": ["fluxCapacitor"] }),
            "fluxCapacitor",
        ),
        (json!({ "minReaderVersion": 4, "minWriterVersion": 7 }), "reader version 4"),
    ];
    for (protocol, wanted) in protocols {
        let world = World::new();
        world.append(batch(0, 10, "a"));
        world.commit_by_hand(1, &[json!({ "protocol": protocol })]);
        let refused = READER.capture("t", world.root(), History::All).expect_err("a feature");
        let named = matches!(&refused, TableError::UnsupportedFeature { feature, .. }
            if feature == wanted);
        assert!(named, "{wanted}: {refused}");
    }
}

#[test]
fn a_damaged_or_foreign_folder_is_an_error_and_no_panic() {
    let empty = tempfile::tempdir().expect("a folder");
    let refused = READER.capture("t", empty.path(), History::All).expect_err("no table");
    assert!(matches!(refused, TableError::Unreadable { .. }), "{refused}");
    assert!(READER.capture("t", &empty.path().join("gone"), History::All).is_err());

    let world = World::new();
    world.append(batch(0, 10, "a"));
    world.append(batch(10, 10, "a"));
    for damage in ["", "{\"add\":", "[]", "{\"add\":{\"path\":\"%ff\"}}"] {
        fs::write(world.log("00000000000000000001.json"), damage).expect("written");
        let refused = READER.capture("t", world.root(), History::All);
        assert!(matches!(refused, Err(TableError::Unreadable { .. }) | Ok(_)), "{damage}: {refused:?}");
    }
    fs::write(world.data_files().pop().expect("a file"), "PAR1 no more").expect("written");
    assert!(READER.capture("t", world.root(), History::All).is_err());
}

#[test]
fn a_replica_with_one_row_less_does_not_prove_to_the_same_facts() {
    let world = World::new();
    world.append(batch(0, 10, "a"));
    let capture = READER.capture("t", world.root(), History::All).expect("a capture");
    let other = World::new();
    other.append(batch(0, 9, "a"));
    let copied = copy(&capture, world.root());
    let (from, to) = (other.data_files(), capture.files.iter().find(|p| is_data(p.as_str())));
    fs::copy(&from[0], copied.path().join(to.expect("a file").as_str())).expect("copied");
    assert_ne!(prove(&READER, copied.path()).ok(), Some(capture.facts));
}

#[test]
fn sidecars_of_a_checkpoint_travel_with_it() {
    let world = World::new();
    world.append(batch(0, 10, "a"));
    world.append(batch(10, 10, "a"));
    run(async { create_checkpoint(&world.table().await, None).await.expect("a checkpoint") });
    // A second form of the same checkpoint, as version 2 checkpoints have it: JSON on top, the
    // files in a sidecar.
    let id = "0123456789abcdef0123456789abcdef0123";
    let top = world.log(&format!("00000000000000000001.checkpoint.{id}.json"));
    let sidecar = format!("{id}.parquet");
    fs::create_dir(world.log("_sidecars")).expect("a folder");
    fs::copy(world.log("00000000000000000001.checkpoint.parquet"), world.log(&format!("_sidecars/{sidecar}")))
        .expect("copied");
    fs::write(world.log("_sidecars/unnamed.parquet"), "x").expect("written");
    let size = fs::metadata(world.log(&format!("_sidecars/{sidecar}"))).expect("a file").len();
    let line = json!({ "sidecar": { "path": sidecar, "sizeInBytes": size, "modificationTime": 0 } });
    let mut lines = vec![json!({ "checkpointMetadata": { "version": 1 } }), line];
    let first = world.actions(0).into_iter();
    lines.extend(first.filter(|a| a.get("protocol").is_some() || a.get("metaData").is_some()));
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    fs::write(&top, lines.join("\n")).expect("written");
    fs::remove_file(world.log("00000000000000000001.checkpoint.parquet")).expect("removed");
    fs::remove_file(world.log("00000000000000000000.json")).expect("removed");
    let (capture, _copy) = travels(&READER, world.root(), History::All, rows);
    assert_eq!((&*capture.facts.versions, capture.facts.rows), (&[1][..], 20));
    assert!(names(&capture).contains(&format!("_delta_log/_sidecars/{sidecar}")));
    assert!(!names(&capture).contains("_delta_log/_sidecars/unnamed.parquet"));
}
