//! Tables: what is captured, what is kept when a table cannot be read, what is refused.

use std::fs;
use std::sync::Arc;

use sluice_protocol::manifest::{History, SectionKind};
use sluice_protocol::path::LakePath;
use sluice_store::scan::ScanError;
use sluice_store::snapshot;
use sluice_store::watch::{Silent, Watch};

use crate::world::{SPACE, ToyReader, World, path, set_age, skipped};

fn log(version: u64) -> String {
    format!("t/_delta_log/{version:020}.json")
}

/// A table with one version made of one file, and files that no version names.
fn world() -> World {
    let mut world = World::with(&[
        ("t/a.parquet", b"a"),
        ("t/uncommitted.parquet", b"u"),
        ("t/_delta_log/.tmp", b"tmp"),
        (&log(0), b"a.parquet\n"),
        ("raw/x", b"x"),
    ]);
    world.readers = vec![Arc::new(ToyReader::new(|_| ()))];
    world
}

fn commit(world: &World, version: u64, file: &str, bytes: &[u8]) {
    world.write(&format!("t/{file}"), bytes);
    world.write(&log(version), format!("{file}\n").as_bytes());
}

#[test]
fn a_table_is_what_its_reader_says() {
    let world = world();
    let snapshot = world.snap();
    let expected = ["raw raw: x", "t delta: _delta_log/00000000000000000000.json a.parquet"];
    assert_eq!(world.shown(&snapshot), expected);
    assert_eq!(snapshot.skipped, []);
    let table = &snapshot.manifest.sections[1];
    assert_eq!((table.state.table_version, table.state.history), (Some(0), Some(History::All)));
    assert_eq!(snapshot.annex.facts(Some(&path("t"))).unwrap().versions, [0]);
    assert_eq!(snapshot.sections[1].table.as_ref().unwrap().version, 0);
    world.check(&snapshot);
}

#[test]
fn a_commit_changes_the_id_and_reads_what_it_adds() {
    let world = world();
    let first = world.snap();
    commit(&world, 1, "b.parquet", b"bb");
    let second = world.snap();
    assert_ne!(first.id, second.id);
    assert_eq!(second.stats.read_files, 2);
    assert_eq!(second.manifest.sections[1].state.table_version, Some(1));
}

#[test]
fn files_that_appear_after_the_walk_are_taken() {
    let mut world = world();
    let (data, entry) = (world.at("t/late.parquet"), world.at(&log(1)));
    world.readers = vec![Arc::new(ToyReader::new(move |_| {
        fs::write(&data, b"late").unwrap();
        fs::write(&entry, b"late.parquet\n").unwrap();
    }))];
    let snapshot = world.snap();
    assert_eq!(snapshot.manifest.sections[1].state.table_version, Some(1));
    assert_eq!(snapshot.manifest.sections[1].tree.items, 4);
    world.check(&snapshot);
}

#[test]
fn a_table_that_is_being_written_is_read_again() {
    let mut world = world();
    world.write(&log(1), b"b.parquet\n");
    let data = world.at("t/b.parquet");
    let reader = Arc::new(ToyReader::new(move |call| {
        if call == 3 {
            fs::write(&data, b"b").unwrap();
        }
    }));
    world.readers = vec![reader.clone()];
    let snapshot = world.snap();
    assert_eq!(reader.calls.load(std::sync::atomic::Ordering::SeqCst), 3);
    assert_eq!(snapshot.skipped, []);
    assert_eq!(snapshot.manifest.sections[1].state.table_version, Some(1));
}

#[test]
fn the_last_good_version_is_kept() {
    let mut world = world();
    let first = world.snap_on();
    world.write(&log(1), b"missing.parquet\n");
    world.write("raw/y", b"y");
    let second = world.snap_on();
    assert_eq!(second.manifest.sections[1], first.manifest.sections[1]);
    assert_eq!(second.annex.tables, first.annex.tables);
    assert_eq!(second.skipped.len(), 1);
    assert!(second.skipped[0].reason.ends_with("version 0 is kept"), "{}", second.skipped[0].reason);
    assert!(second.skipped[0].reason.contains("missing.parquet"));
    world.check(&second);
    commit(&world, 1, "missing.parquet", b"m");
    let third = world.snap_on();
    assert_eq!(third.skipped, []);
    assert_eq!(third.manifest.sections[1].state.table_version, Some(1));
}

#[test]
fn a_young_table_is_kept_too() {
    let mut world = World::new();
    world.write_now("t/a.parquet", b"a");
    world.write_now(&log(0), b"a.parquet\n");
    world.readers = vec![Arc::new(ToyReader::new(|_| ()))];
    let first = world.snap_on();
    world.write(&log(1), b"missing.parquet\n");
    let second = world.snap_on();
    assert_eq!(second.manifest.sections, first.manifest.sections);
}

#[test]
fn without_a_last_good_version_the_table_is_left_out() {
    let mut world = world();
    world.write(&log(1), b"missing.parquet\n");
    let first = world.snap_on();
    assert_eq!(world.shown(&first), ["raw raw: x"]);
    assert_eq!(first.skipped.len(), 1);
    assert_eq!(first.skipped[0].path, "t");

    // A last good version of which a file is gone is not good any more.
    commit(&world, 1, "missing.parquet", b"m");
    world.snap_on();
    world.write(&log(2), b"other.parquet\n");
    fs::remove_file(world.at("t/a.parquet")).unwrap();
    let third = world.snap_on();
    assert_eq!(world.shown(&third), ["raw raw: x"]);
    assert!(!skipped(&third)[0].1.contains("kept"));
}

#[test]
fn a_table_with_a_file_that_cannot_be_read_is_not_taken_in_part() {
    struct Remove(std::path::PathBuf);
    impl Watch for Remove {
        fn amount(&self, _: &str, _: u64, _: u64, _: u64, _: u64) {}
        fn note(&self, _: String) {}
        fn cancelled(&self) -> bool {
            false
        }
        fn reading(&self, p: &LakePath, _: u64) {
            if *p == path("t/b.parquet") {
                let n = fs::read(&self.0).unwrap().len();
                fs::write(&self.0, vec![b'z'; n + 1]).unwrap();
                set_age(&self.0, 1000 + n as u64);
            }
        }
    }
    let mut world = world();
    let first = world.snap_on();
    commit(&world, 1, "b.parquet", b"b");
    let second = world.snap_watched(&Remove(world.at("t/b.parquet")));
    assert_eq!(second.manifest.sections[1], first.manifest.sections[1]);
    assert_eq!(second.skipped.len(), 1);
    assert!(second.skipped[0].reason.contains("b.parquet"));
    world.check(&second);

    world.options.previous = None;
    let third = world.snap_watched(&Remove(world.at("t/b.parquet")));
    assert_eq!(world.shown(&third), ["raw raw: x"]);
}

#[test]
fn a_table_that_cannot_be_read_is_refused_by_name() {
    let mut world = world();
    world.readers.clear();
    match world.scan() {
        Err(e @ ScanError::NoReader { kind: SectionKind::Delta, .. }) => {
            assert!(e.to_string().contains("`t`"));
            assert!(e.hint().unwrap().contains("--opaque"));
        }
        other => panic!("{other:?}"),
    }
    let mut refusing = ToyReader::new(|_| ());
    refusing.refuse = true;
    world.readers = vec![Arc::new(refusing)];
    let refused = world.scan().unwrap_err();
    assert!(refused.to_string().contains("toys"), "{refused}");
}

#[test]
fn an_opaque_table_travels_as_it_lies() {
    let mut world = world();
    world.readers.clear();
    world.write("v.lance/_versions/1.manifest", b"1");
    world.write("v.lance/latest_version_hint.json", b"1");
    world.options.opaque_folders = [path("t"), path("v.lance")].into();
    let snapshot = world.snap();
    let table = &snapshot.manifest.sections[1];
    assert_eq!((table.kind, table.state.opaque, table.state.table_version), (SectionKind::Delta, true, None));
    assert_eq!(table.tree.items, 4);
    assert_eq!(world.shown(&snapshot)[2], "v.lance lance: _versions/1.manifest");
    assert!(snapshot.annex.tables.is_empty());
    assert!(snapshot.sections[1].opaque);

    world.options.opaque_folders.remove(&path("t"));
    assert!(world.scan().is_err());
    world.options.opaque = true;
    assert_eq!(world.snap().id, snapshot.id);
}

#[test]
fn versions_that_are_not_kept_stay_served() {
    let mut world = world();
    commit(&world, 1, "b.parquet", b"b");
    world.snap_on();
    // The reader forgets the files of the first version, which still lie there.
    world.write(&log(0), b"b.parquet\n");
    let second = world.snap_on();
    assert!(!world.shown(&second)[1].contains("a.parquet"));
    assert_eq!(world.places(b"a").len(), 1);
    fs::remove_file(world.at("t/a.parquet")).unwrap();
    world.snap_on();
    assert_eq!(world.places(b"a"), []);
}

/// A pointer to a checkpoint that is replaced between capture and reading would name one that the copy
/// does not have.
#[test]
fn a_table_that_moves_on_between_capture_and_reading_is_captured_again() {
    let mut world = world();
    world.write("t/pointer", b"checkpoint 0");
    world.write(&log(0), b"a.parquet\npointer\n");
    let first = world.snap_on();

    // The walk is over when the reader looks.
    let (pointer, entry, data) = (world.at("t/pointer"), world.at(&log(1)), world.at("t/b.parquet"));
    world.write("raw/new", b"new");
    fs::write(&pointer, b"checkpoint 1").unwrap();
    world.readers = vec![Arc::new(ToyReader::new(move |call| {
        if call == 1 {
            fs::write(&data, b"b").unwrap();
            fs::write(&entry, b"b.parquet\n").unwrap();
            fs::write(&pointer, b"checkpoint 22").unwrap();
        }
    }))];
    let chunks = world.chunk(&Silent);
    assert!(chunks.moved_on());
    let lost = chunks.give_up(&world.lake, &SPACE, &world.catalog).unwrap();
    let chunks = world.chunk(&Silent).after(lost);
    assert!(!chunks.moved_on());
    let second = snapshot::manifest(&world.lake, &SPACE, &world.catalog, chunks, &Silent).unwrap();
    assert_eq!(second.skipped, []);
    assert_eq!(second.manifest.sections[1].state.table_version, Some(1));
    assert_ne!(second.id, first.id);
    world.check(&second);
}

/// Whoever does not scan again gets the last good version, or nothing of the table.
#[test]
fn a_table_that_moved_on_is_not_taken_in_part() {
    let mut world = world();
    let first = world.snap_on();
    commit(&world, 1, "b.parquet", b"b");
    let data = world.at("t/b.parquet");
    world.readers = vec![Arc::new(ToyReader::new(move |call| fs::write(&data, vec![b'z'; call + 1]).unwrap()))];
    let second = world.snap();
    assert_eq!(second.manifest.sections[1], first.manifest.sections[1]);
    let reason = skipped(&second)[0].1;
    assert!(reason.contains("`t/b.parquet` changed after the table was captured"), "{reason}");
    world.check(&second);
}
