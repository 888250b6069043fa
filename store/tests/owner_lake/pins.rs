//! Pins: what they keep, that nothing is read again for them, and where there can be none.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use sluice_protocol::ids::BlobHash;
use sluice_store::blobs::quarantine;
use sluice_store::catalog::Lookup;
use sluice_store::lake::{Lake, Place};
use sluice_store::pins::{PinOptions, PinReport, pin, pin_place, unpin_unreferenced};
use sluice_store::snapshot::Snapshot;
use sluice_store::watch::Silent;

use crate::world::{SPACE, ToyReader, World, noise};

const COPY: PinOptions = PinOptions { copy: true };
const LINK: PinOptions = PinOptions { copy: false };

fn world() -> World {
    let mut world = World::with(&[
        ("t/a.parquet", b"aa"),
        ("t/empty.parquet", b""),
        ("t/_delta_log/00000000000000000000.json", b"a.parquet\nempty.parquet\n"),
        ("raw/x", b"xxx"),
    ]);
    world.readers = vec![Arc::new(ToyReader::new(|_| ()))];
    world
}

fn pin_all(world: &World, snapshot: &Snapshot, options: PinOptions) -> PinReport {
    pin(&world.lake, &SPACE, &world.catalog, &snapshot.manifest, options, &Silent).unwrap()
}

fn inode(world: &World, path: &str) -> u64 {
    fs::metadata(world.at(path)).unwrap().ino()
}

fn at_pin(world: &World, bytes: &[u8]) -> std::path::PathBuf {
    world.lake.path_of(&pin_place(&BlobHash::of(bytes)))
}

#[test]
fn write_once_files_are_linked_and_nothing_is_read_again() {
    let world = world();
    let first = world.snap();
    let report = pin_all(&world, &first, LINK);
    assert_eq!((report.linked, report.unavailable.clone()), (2, None));
    // Where the file system clones, what may change is kept as well.
    assert_eq!(report.cloned + report.unpinned, 1);
    assert_eq!(fs::metadata(at_pin(&world, b"aa")).unwrap().ino(), inode(&world, "t/a.parquet"));
    world.check(&first);
    let second = world.snap();
    assert_eq!((second.id, second.stats.read_files), (first.id, 0));
    let again = pin_all(&world, &second, LINK);
    assert_eq!((again.linked, again.already), (0, report.linked + report.cloned));
}

#[test]
fn a_pin_serves_what_left_the_lake() {
    let world = world();
    let first = world.snap();
    pin_all(&world, &first, COPY);
    fs::remove_dir_all(world.at("t")).unwrap();
    world.write("raw/x", b"other");
    let second = world.snap();
    assert_eq!(world.shown(&second), ["raw raw: x"]);
    for bytes in [&b"aa"[..], b"xxx"] {
        assert_eq!(world.places(bytes), [pin_place(&BlobHash::of(bytes))]);
        let reader = world.catalog.read().unwrap();
        let blob = reader.blob(&SPACE, &BlobHash::of(bytes)).unwrap().unwrap();
        let file = world.lake.open_place(&blob.places[0].place).unwrap();
        if bytes == b"xxx" {
            assert_eq!(Lake::print_of(&file).unwrap(), blob.places[0].print);
        }
        assert_eq!(fs::read(at_pin(&world, bytes)).unwrap(), bytes);
    }
}

#[test]
fn copies_are_made_only_when_asked_for() {
    let world = World::with(&[("raw/x", &noise(50_000, 1))]);
    let snapshot = world.snap();
    let report = pin_all(&world, &snapshot, LINK);
    assert_eq!(report.copied, 0);
    if report.cloned == 0 {
        assert_eq!((report.unpinned, report.unpinned_bytes), (1, 50_000));
        let copied = pin_all(&world, &snapshot, COPY);
        assert_eq!((copied.copied, copied.copied_bytes, copied.unpinned), (1, 50_000, 0));
    }
    let pin = fs::metadata(at_pin(&world, &noise(50_000, 1))).unwrap();
    assert_eq!(pin.mode() & 0o777, 0o444);
    assert_ne!(pin.ino(), inode(&world, "raw/x"));
    assert_eq!(world.snap().stats.read_files, 0);
    world.check(&snapshot);
}

/// A lake may hold a million of them.
#[test]
fn files_that_nothing_can_pin_are_not_touched_one_by_one() {
    let files: Vec<(String, [u8; 1])> = (0..100u8).map(|i| (format!("raw/{i}"), [i])).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (path.as_str(), &bytes[..])).collect();
    let world = World::with(&files);
    let report = pin_all(&world, &world.snap(), LINK);
    assert_eq!(report.cloned + report.unpinned, 100);
    // The first of them showed that the file system cannot clone; where it can, all are tried.
    let made = fs::read_dir(world.at(".sluice/objects")).unwrap().count();
    assert!(report.cloned > 0 || made == 1, "{made} folders for {report:?}");
}

#[test]
fn a_pin_that_a_kill_left_is_taken_over() {
    let world = world();
    let snapshot = world.snap();
    let at = at_pin(&world, b"aa");
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(&at, b"not the bytes").unwrap();
    fs::write(at.with_extension("tmp"), b"half").unwrap();
    assert_eq!(pin_all(&world, &snapshot, LINK).linked, 2);
    assert_eq!(fs::read(&at).unwrap(), b"aa");

    // Linked, but killed before the commit: the file's ctime is new, and it is read once more.
    let other = World::with(&[("t/a.parquet", b"aa")]);
    let mut other = other;
    other.write("t/_delta_log/00000000000000000000.json", b"a.parquet\n");
    other.readers = vec![Arc::new(ToyReader::new(|_| ()))];
    other.snap();
    let at = at_pin(&other, b"aa");
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::hard_link(other.at("t/a.parquet"), &at).unwrap();
    let snapshot = other.snap();
    assert_eq!(snapshot.stats.read_files, 1);
    assert_eq!(pin_all(&other, &snapshot, LINK).linked, 2);
    other.check(&snapshot);
    assert_eq!(other.snap().stats.read_files, 0);
}

#[test]
fn a_file_that_changed_since_the_snapshot_is_not_pinned() {
    let world = world();
    let snapshot = world.snap();
    world.write("t/a.parquet", b"zz");
    let report = pin_all(&world, &snapshot, COPY);
    assert_eq!(report.linked, 1);
    assert!(!at_pin(&world, b"aa").exists());
}

#[test]
fn two_names_of_one_file_are_both_known_afterwards() {
    let mut world = World::with(&[("t/a.parquet", b"aa"), ("t/_delta_log/00000000000000000000.json", b"a.parquet\n")]);
    world.readers = vec![Arc::new(ToyReader::new(|_| ()))];
    world.folder("raw");
    fs::hard_link(world.at("t/a.parquet"), world.at("raw/same")).unwrap();
    let snapshot = world.snap();
    pin_all(&world, &snapshot, LINK);
    assert_eq!(world.snap().stats.read_files, 0);
    assert_eq!(world.places(b"aa").len(), 3);
}

#[test]
fn what_no_snapshot_needs_is_removed() {
    let world = world();
    let snapshot = world.snap();
    let made = pin_all(&world, &snapshot, COPY);
    let keep = BlobHash::of(b"xxx");
    let half = at_pin(&world, b"t").with_extension("tmp");
    fs::create_dir_all(half.parent().unwrap()).unwrap();
    fs::write(&half, b"half").unwrap();
    let removed = unpin_unreferenced(&world.lake, &SPACE, &world.catalog, &|h| *h == keep).unwrap();
    assert_eq!(removed, made.linked);
    assert!(!at_pin(&world, b"aa").exists());
    assert!(at_pin(&world, b"xxx").exists());
    assert!(!half.exists());
    assert!(!world.places(b"aa").iter().any(|p| matches!(p, Place::Own(_))));
    let again = world.snap();
    assert_eq!((again.id, again.stats.read_files), (snapshot.id, 0));
    world.check(&again);
    assert_eq!(unpin_unreferenced(&world.lake, &SPACE, &world.catalog, &|_| true).unwrap(), 0);
}

#[test]
fn a_lake_that_takes_no_folder_has_no_pins() {
    let world = world();
    let snapshot = world.snap();
    // A file in the place of our folder refuses as a read-only lake does, even to root.
    fs::write(world.at(".sluice"), b"").unwrap();
    let report = pin_all(&world, &snapshot, COPY);
    assert!(report.unavailable.is_some());
    assert_eq!((report.linked, report.copied), (0, 0));
    assert_eq!(unpin_unreferenced(&world.lake, &SPACE, &world.catalog, &|_| false).unwrap(), 0);
    let again = world.snap();
    assert_eq!(again.id, snapshot.id);
    world.check(&again);
}

#[test]
fn pins_that_someone_turned_into_links_are_not_followed() {
    let world = world();
    let snapshot = world.snap();
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let at = at_pin(&world, b"aa");
    fs::create_dir_all(at.parent().unwrap().parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&outside, at.parent().unwrap()).unwrap();
    let done = pin(&world.lake, &SPACE, &world.catalog, &snapshot.manifest, LINK, &Silent);
    assert!(done.is_err(), "{done:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_file_that_was_replaced_takes_no_pin_along() {
    let world = world();
    let snapshot = world.snap();
    pin_all(&world, &snapshot, LINK);
    // Another file takes the name: the pin alone has the old bytes.
    fs::write(world.at("t/new"), b"bb").unwrap();
    fs::rename(world.at("t/new"), world.at("t/a.parquet")).unwrap();
    let hash = BlobHash::of(b"aa");
    let place = world.places(b"aa").into_iter().find(|p| matches!(p, Place::Lake(_))).unwrap();
    quarantine(&world.lake, &world.catalog, &SPACE, &hash, &place).unwrap();
    assert_eq!(world.places(b"aa"), [pin_place(&hash)]);
    assert_eq!(fs::read(at_pin(&world, b"aa")).unwrap(), b"aa");
    // Rot in the pin itself takes the pin out of use.
    fs::set_permissions(at_pin(&world, b"aa"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(at_pin(&world, b"aa"), b"ax").unwrap();
    quarantine(&world.lake, &world.catalog, &SPACE, &hash, &pin_place(&hash)).unwrap();
    assert!(world.places(b"aa").is_empty() && !at_pin(&world, b"aa").exists());
}
