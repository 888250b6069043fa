//! What only one look could not have: it is kept as it was, or missing, and never a deletion.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sluice_protocol::path::LakePath;
use sluice_store::catalog::Lookup;
use sluice_store::chunk::{Chunks, chunk};
use sluice_store::pins::{PinOptions, pin};
use sluice_store::scan::Skip;
use sluice_store::snapshot::{self, Snapshot};
use sluice_store::watch::{Silent, Watch};

use crate::world::{SPACE, ToyReader, World, noise, path, set_age, skipped};

/// Writes something else into a file each time that it is read.
struct Restless {
    name: LakePath,
    at: std::path::PathBuf,
    tries: AtomicUsize,
}

impl Watch for Restless {
    fn amount(&self, _: &str, _: u64, _: u64, _: u64, _: u64) {}
    fn note(&self, _: String) {}
    fn cancelled(&self) -> bool {
        false
    }
    fn reading(&self, path: &LakePath, _: u64) {
        if *path == self.name {
            let n = self.tries.fetch_add(1, Ordering::SeqCst);
            fs::write(&self.at, noise(100_000, 10 + n as u8)).unwrap();
            set_age(&self.at, 300_000 + n as u64);
        }
    }
}

fn restless(world: &World, name: &str) -> Restless {
    Restless { name: path(name), at: world.at(name), tries: AtomicUsize::new(0) }
}

fn pin_copies(world: &World, snapshot: &Snapshot) {
    pin(&world.lake, &SPACE, &world.catalog, &snapshot.manifest, PinOptions { copy: true }, &Silent).unwrap();
}

#[test]
fn a_file_that_keeps_changing_is_kept_as_it_was() {
    let mut world = World::with(&[("raw/a", &noise(100_000, 1)), ("raw/sub/b", b"b")]);
    let first = world.snap_on();
    pin_copies(&world, &first);
    set_age(&world.at("raw/a"), 400_000);
    let watch = restless(&world, "raw/a");
    let chunks = world.chunk(&watch);
    assert_eq!(chunks.missing, []);
    let kept = snapshot::manifest(&world.lake, &SPACE, &world.catalog, chunks, &watch).unwrap();
    assert_eq!(
        skipped(&kept),
        [("raw/a", "kept as it was in the last snapshot: it changed while it was read, 3 times")]
    );
    assert_eq!(kept.id, first.id, "nothing else changed");
    world.check(&kept);
    let last = world.snap_on();
    assert_eq!((last.skipped.len(), last.stats.read_files), (0, 1));
    assert_ne!(last.id, first.id);
    world.check(&last);
}

#[test]
fn a_file_whose_earlier_bytes_are_gone_is_missing() {
    let mut world = World::with(&[("raw/a", &noise(100_000, 1)), ("raw/b", b"b")]);
    world.snap_on();
    set_age(&world.at("raw/a"), 400_000);
    let chunks = world.chunk(&restless(&world, "raw/a"));
    assert_eq!(chunks.missing.iter().map(|m| m.path.as_str()).collect::<Vec<_>>(), ["raw/a"]);
    let snapshot = snapshot::manifest(&world.lake, &SPACE, &world.catalog, chunks, &Silent).unwrap();
    assert_eq!(skipped(&snapshot), [("raw/a", "it changed while it was read, 3 times")]);
    assert_eq!(world.shown(&snapshot), ["raw raw: b"]);

    // What was never in a snapshot, and what was removed, are not missing.
    let mut world = World::with(&[("raw/b", b"b"), ("raw/gone", b"g")]);
    world.snap_on();
    world.write("raw/new", &noise(100_000, 1));
    fs::remove_file(world.at("raw/gone")).unwrap();
    assert_eq!(world.chunk(&restless(&world, "raw/new")).missing, []);
}

#[test]
fn a_file_that_went_away_with_its_device_is_told_from_one_that_was_removed() {
    let mut world = World::with(&[("raw/a", b"a"), ("raw/b", b"b"), ("top", b"t")]);
    world.snap_on();
    let unmounted = |world: &World| world.chunk(&Silent).unmounted(&SPACE, &world.catalog).unwrap();
    let on_another_device = |world: &World, files: &[&str]| {
        let change = world.catalog.write(|b| {
            files.iter().try_for_each(|name| {
                let mut record = b.file(&SPACE, &path(name))?.unwrap();
                record.print.dev += 1;
                b.put_file(&SPACE, &path(name), &record)
            })
        });
        change.unwrap();
    };
    fs::remove_file(world.at("raw/b")).unwrap();
    assert_eq!(unmounted(&world), None, "it was removed");
    on_another_device(&world, &["raw/a", "raw/b"]);
    assert_eq!(unmounted(&world), None, "the device has a new number: the other file is where it was");
    fs::remove_file(world.at("raw/a")).unwrap();
    assert_eq!(unmounted(&world), Some(path("raw/a")));
    fs::remove_dir(world.at("raw")).unwrap();
    assert_eq!(unmounted(&world), Some(path("raw/a")));
}

/// Chunks of a scan that could not enter a folder: the walk sees it empty, and says so.
fn chunks_without(world: &World, folder: &str) -> Chunks {
    fs::remove_dir_all(world.at(folder)).unwrap();
    fs::create_dir(world.at(folder)).unwrap();
    let mut entries = world.scan().unwrap();
    entries.skipped.push(Skip { path: folder.into(), reason: "it was ill".into(), passing: true });
    chunk(&world.lake, &SPACE, &world.catalog, entries, &Silent).unwrap()
}

fn lake() -> World {
    let mut world = World::with(&[
        ("a/b/t/x.parquet", b"x"),
        ("a/b/t/_delta_log/00000000000000000000.json", b"x.parquet\n"),
        ("models/index.md", b"i"),
        ("models/e5/modules.json", b"[]"),
        ("models/notes/n", b"n"),
        ("raw/one", b"1"),
        ("raw/sub/deep/two", b"2"),
        ("t/a.parquet", b"a"),
        ("t/_delta_log/00000000000000000000.json", b"a.parquet\n"),
    ]);
    world.folder("raw/sub/empty");
    world.readers = vec![Arc::new(ToyReader::new(|_| ()))];
    world
}

#[test]
fn a_folder_that_cannot_be_entered_is_kept_as_it_was() {
    for folder in ["models", "models/notes", "raw", "raw/sub", "raw/sub/deep", "t"] {
        let mut world = lake();
        let first = world.snap_on();
        pin_copies(&world, &first);
        let chunks = chunks_without(&world, folder);
        assert_eq!(chunks.missing, [], "{folder}");
        let kept = snapshot::manifest(&world.lake, &SPACE, &world.catalog, chunks, &Silent).unwrap();
        assert_eq!(world.shown(&kept), world.shown(&first), "{folder}");
        assert_eq!((kept.id, kept.annex_hash), (first.id, first.annex_hash), "{folder}");
        assert_eq!(skipped(&kept), [(folder, "kept as it was in the last snapshot: it was ill")]);
        // A pin that was a link has another change time since its other name is gone.
        if folder != "t" {
            world.check(&kept);
        }
    }
}

#[test]
fn what_cannot_be_kept_of_a_folder_is_missing() {
    // Without pins, and where the layout without the folder has no place for what it held.
    for (folder, pinned) in [("models", false), ("raw/sub", false), ("t", false), ("a/b", true), ("models/e5", true)] {
        let mut world = lake();
        let first = world.snap_on();
        if pinned {
            pin_copies(&world, &first);
        }
        let chunks = chunks_without(&world, folder);
        assert_eq!(chunks.missing.len(), 1, "{folder}: {:?}", chunks.missing);
        assert!(chunks.missing[0].path.starts_with(folder), "{:?}", chunks.missing);
        let without = snapshot::manifest(&world.lake, &SPACE, &world.catalog, chunks, &Silent).unwrap();
        assert_ne!(without.id, first.id, "{folder}");
        world.check(&without);
    }
}
