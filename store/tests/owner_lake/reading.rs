//! What is read, what is not read again, and what changes under the reader.

use std::collections::HashSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sluice_protocol::ids::BlobHash;
use sluice_protocol::path::LakePath;
use sluice_store::catalog::Lookup;
use sluice_store::lake::{Lake, Place};
use sluice_store::scan::is_unsettled;
use sluice_store::watch::Watch;

use crate::world::{SPACE, World, noise, path, set_age, skipped};

/// Does something to the lake while a file is read.
struct Meddler<F: Fn(usize, &LakePath, u64) + Send + Sync> {
    pieces: AtomicUsize,
    act: F,
}

impl<F: Fn(usize, &LakePath, u64) + Send + Sync> Meddler<F> {
    fn new(act: F) -> Self {
        Self { pieces: AtomicUsize::new(0), act }
    }
}

impl<F: Fn(usize, &LakePath, u64) + Send + Sync> Watch for Meddler<F> {
    fn amount(&self, _: &str, _: u64, _: u64, _: u64, _: u64) {}
    fn note(&self, _: String) {}
    fn cancelled(&self) -> bool {
        false
    }
    fn reading(&self, path: &LakePath, offset: u64) {
        (self.act)(self.pieces.fetch_add(1, Ordering::SeqCst), path, offset);
    }
}

#[test]
fn an_unchanged_lake_is_not_read_and_keeps_its_id() {
    let big = noise(700_000, 1);
    let mut world = World::with(&[("raw/a", b"a"), ("raw/big", &big), ("raw/empty", b"")]);
    let first = world.snap_on();
    assert_eq!((first.stats.read_files, first.stats.read_bytes), (3, 700_001));
    let second = world.snap_on();
    assert_eq!((second.stats.read_files, second.stats.read_bytes), (0, 0));
    assert_eq!((second.id, second.annex_hash), (first.id, first.annex_hash));
    world.options.previous = None;
    assert_eq!(world.snap().annex_hash, first.annex_hash, "the annex does not depend on the one before");
    world.check(&second);
}

#[test]
fn nothing_is_read_again_after_a_restart() {
    let mut world = World::with(&[("raw/a", b"a"), ("raw/b", b"b")]);
    let first = world.snap();
    let home = world.dir.path().join("home");
    let other = tempfile::tempdir().unwrap();
    world.catalog = sluice_store::catalog::Catalog::open(other.path()).unwrap();
    world.catalog = sluice_store::catalog::Catalog::open(&home).unwrap();
    world.lake = Lake::open(&world.at("")).unwrap();
    let second = world.snap();
    assert_eq!((second.id, second.stats.read_files), (first.id, 0));
}

#[test]
fn only_what_changed_is_read() {
    let world = World::with(&[("raw/a", b"one"), ("raw/b", b"b"), ("raw/c", b"c")]);
    let first = world.snap();
    world.write("raw/a", b"two!");
    fs::remove_file(world.at("raw/b")).unwrap();
    fs::rename(world.at("raw/c"), world.at("raw/d")).unwrap();
    let second = world.snap();
    assert_ne!(second.id, first.id);
    assert_eq!(world.shown(&second), ["raw raw: a d"]);
    assert_eq!((second.stats.read_files, second.stats.read_bytes), (2, 5));
    assert_eq!(world.places(b"one"), []);
    assert_eq!(world.places(b"b"), []);
    assert_eq!(world.places(b"c"), [Place::Lake(path("raw/d"))]);
    let reader = world.catalog.read().unwrap();
    assert!(reader.file(&SPACE, &path("raw/b")).unwrap().is_none());
    assert!(reader.file(&SPACE, &path("raw/c")).unwrap().is_none());
    world.check(&second);
}

#[test]
fn going_back_gives_the_first_id_again() {
    let world = World::with(&[("logs/a", b"one")]);
    let time = fs::metadata(world.at("logs/a")).unwrap().modified().unwrap();
    let first = world.snap();
    world.write("logs/a", b"two");
    let second = world.snap();
    world.write("logs/a", b"one");
    fs::File::options().append(true).open(world.at("logs/a")).unwrap().set_modified(time).unwrap();
    let third = world.snap();
    assert_ne!(first.id, second.id);
    assert_eq!(first.id, third.id);
    world.check(&third);
}

#[test]
fn a_file_that_changes_once_while_it_is_read_is_read_again() {
    let world = World::with(&[("raw/a", &noise(100_000, 1)), ("raw/b", b"b")]);
    let after = noise(100_000, 2);
    let at = world.at("raw/a");
    let watch = Meddler::new(|piece, p: &LakePath, _| {
        if piece < 2 && *p == path("raw/a") {
            fs::write(&at, &after).unwrap();
            // The clock of the file system is coarse: another time, or the change might not show.
            set_age(&at, 500_000 + piece as u64);
        }
    });
    let snapshot = world.snap_watched(&watch);
    assert_eq!(snapshot.skipped, []);
    let entry = &world.entries(&snapshot.manifest.sections[0])[0];
    assert_eq!(entry.hash, Some(BlobHash::of(&after)));
    world.check(&snapshot);
}

#[test]
fn a_file_that_keeps_changing_is_reported_and_never_half_taken() {
    let world = World::with(&[("raw/a", &noise(100_000, 1)), ("raw/b", b"b")]);
    let first = world.snap();
    let at = world.at("raw/a");
    set_age(&at, 400_000);
    let tries = AtomicUsize::new(0);
    let watch = Meddler::new(|_, p: &LakePath, _| {
        if *p == path("raw/a") {
            let n = tries.fetch_add(1, Ordering::SeqCst);
            fs::write(&at, noise(100_000, 10 + n as u8)).unwrap();
            set_age(&at, 300_000 + n as u64);
        }
    });
    let snapshot = world.snap_watched(&watch);
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    assert_eq!(skipped(&snapshot), [("raw/a", "it changed while it was read, 3 times")]);
    assert_eq!(world.shown(&snapshot), ["raw raw: b"]);
    assert_ne!(snapshot.id, first.id);
    world.check(&snapshot);
    let third = world.snap();
    assert_eq!(third.skipped, []);
    assert_eq!(third.stats.read_files, 1);
}

/// Changes a file at random while it is read; each snapshot holds whole states of it or says that it does not.
fn mutations(count: u64) {
    let mut dice = blake3::Hasher::new().update(b"mutations").finalize_xof();
    let mut roll = move |below: u64| {
        let mut raw = [0; 8];
        dice.fill(&mut raw);
        u64::from_le_bytes(raw) % below
    };
    let world = World::with(&[("raw/still", b"still")]);
    let (at, spare) = (world.at("raw/a"), world.dir.path().join("spare"));
    // States of the file, by hash: whatever is taken must be one of them, never a mixture of two.
    let states = Mutex::new(HashSet::new());
    let note = || {
        let bytes = fs::read(&at).ok();
        states.lock().unwrap().extend(bytes.map(|b| BlobHash::of(&b)));
    };
    let (mut done, mut taken, mut left_out) = (0, 0, 0);
    while done < count {
        fs::write(&at, noise(1 + roll(300_000) as usize, done as u8)).unwrap();
        note();
        // A writer that stops after one to four changes, or goes on through every try.
        let (most, made) = (1 + roll(4), AtomicUsize::new(0));
        let seeds = Mutex::new((0..64).map(|_| (roll(5), roll(300_000))).collect::<Vec<_>>());
        let watch = Meddler::new(|_, p: &LakePath, _| {
            if *p != path("raw/a") || made.load(Ordering::SeqCst) as u64 >= most {
                return;
            }
            let Some((what, size)) = seeds.lock().unwrap().pop() else { return };
            let n = made.fetch_add(1, Ordering::SeqCst);
            mutate(&at, &spare, what, size);
            if at.exists() {
                // The clock of the file system is coarse: another time, or the change might not show.
                set_age(&at, 900_000 - n as u64 - done);
            }
            note();
        });
        let snapshot = world.snap_watched(&watch);
        let entries: Vec<_> = snapshot.manifest.sections.iter().flat_map(|s| world.entries(s)).collect();
        match entries.iter().find(|e| e.path.as_str() == "a") {
            Some(entry) => {
                assert!(states.lock().unwrap().contains(&entry.hash.unwrap()), "a state that never was: {entry:?}");
                taken += 1;
            }
            None => {
                assert!(
                    !at.exists() || skipped(&snapshot).iter().any(|(p, _)| *p == "raw/a"),
                    "{:?}",
                    snapshot.skipped
                );
                left_out += 1;
            }
        }
        world.check(&snapshot);
        done += made.load(Ordering::SeqCst).max(1) as u64;
    }
    assert!(taken > 0 && left_out > 0, "{taken} taken, {left_out} left out");
}

fn mutate(at: &std::path::Path, spare: &std::path::Path, what: u64, size: u64) {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    let open = || fs::File::options().write(true).open(at);
    match (what, open()) {
        (0, Ok(file)) => file.set_len(size).unwrap(),
        (1, Ok(file)) => file.write_all_at(&noise(100, size as u8), size / 2).unwrap(),
        (2, Ok(_)) => fs::File::options().append(true).open(at).unwrap().write_all(b"more").unwrap(),
        (3, Ok(_)) => fs::remove_file(at).unwrap(),
        _ => {
            fs::write(spare, noise(size as usize, size as u8)).unwrap();
            fs::rename(spare, at).unwrap();
        }
    }
}

#[test]
fn a_file_that_is_changed_at_random_is_taken_whole_or_not_at_all() {
    mutations(200);
}

#[test]
#[ignore = "soak: ten thousand mutations"]
fn ten_thousand_mutations_of_a_file_that_is_read() {
    mutations(10_000);
}

#[test]
fn a_file_that_shrinks_grows_or_goes_away_is_reported() {
    let size = 20 * 1024 * 1024;
    let world = World::with(&[("raw/cut", &noise(size, 1)), ("raw/gone", b"g"), ("raw/grows", b"1"), ("raw/ok", b"o")]);
    let entries = world.scan().unwrap();
    fs::remove_file(world.at("raw/gone")).unwrap();
    let (cut, grows) = (world.at("raw/cut"), world.at("raw/grows"));
    let lengths = Mutex::new(size as u64);
    let watch = Meddler::new(|_, p: &LakePath, offset| {
        if *p == path("raw/cut") && offset > 0 {
            // Between the first and the second window: a mapping would end the process here.
            let mut length = lengths.lock().unwrap();
            *length -= 4 * 1024 * 1024 - 1;
            fs::File::options().write(true).open(&cut).unwrap().set_len(offset - 1).unwrap();
        }
        if *p == path("raw/grows") {
            use std::io::Write;
            fs::File::options().append(true).open(&grows).unwrap().write_all(b"2").unwrap();
        }
    });
    let chunks = sluice_store::chunk::chunk(&world.lake, &SPACE, &world.catalog, entries, &watch).unwrap();
    let mut left_out: Vec<&str> = chunks.entries.skipped.iter().map(|s| s.path.as_str()).collect();
    left_out.sort();
    // The one that was cut is whole again at the second try: it has its new length.
    assert_eq!(left_out, ["raw/gone", "raw/grows"]);
    let snapshot = sluice_store::snapshot::manifest(&world.lake, &SPACE, &world.catalog, chunks, &watch).unwrap();
    assert_eq!(world.shown(&snapshot), ["raw raw: cut ok"]);
    world.check(&snapshot);
}

#[test]
fn a_file_that_a_folder_replaced_is_reported() {
    let world = World::with(&[("raw/a", b"a"), ("raw/b", b"b")]);
    let entries = world.scan().unwrap();
    fs::remove_file(world.at("raw/a")).unwrap();
    world.folder("raw/a");
    fs::remove_file(world.at("raw/b")).unwrap();
    world.link("raw/b", "../../home/catalog.redb");
    let chunks =
        sluice_store::chunk::chunk(&world.lake, &SPACE, &world.catalog, entries, &sluice_store::watch::Silent).unwrap();
    assert_eq!(chunks.read_files, 0);
    let reasons: Vec<&str> = chunks.entries.skipped.iter().map(|s| s.reason.as_str()).collect();
    assert_eq!(reasons, ["it is no regular file any more"; 2]);
}

#[test]
fn a_young_file_is_read_again_next_time() {
    let world = World::with(&[("raw/old", b"old")]);
    world.write_now("raw/young", b"young");
    let first = world.snap();
    let reader = world.catalog.read().unwrap();
    let record = |p: &str| reader.file(&SPACE, &path(p)).unwrap().unwrap().print;
    assert!(is_unsettled(&record("raw/young")));
    assert!(!is_unsettled(&record("raw/old")));
    let second = world.snap();
    assert_eq!((second.stats.read_files, second.stats.read_bytes), (1, 5));
    assert_eq!(second.id, first.id);
    world.check(&second);
}

#[test]
fn a_young_file_that_grows_old_is_settled() {
    let world = World::new();
    world.write_now("raw/young", b"young");
    world.snap();
    set_age(&world.at("raw/young"), 100);
    assert_eq!(world.snap().stats.read_files, 1);
    assert_eq!(world.snap().stats.read_files, 0);
}

#[test]
fn a_file_from_the_far_future_is_settled() {
    let world = World::with(&[("raw/a", b"a")]);
    let future = std::time::SystemTime::now() + std::time::Duration::from_secs(1_000_000);
    fs::File::options().append(true).open(world.at("raw/a")).unwrap().set_modified(future).unwrap();
    world.snap();
    assert_eq!(world.snap().stats.read_files, 0);
}

#[test]
fn a_blob_without_places_is_read_again() {
    let world = World::with(&[("raw/a", b"a")]);
    world.snap();
    world.catalog.write(|b| b.remove_place(&SPACE, &BlobHash::of(b"a"), &Place::Lake(path("raw/a")))).unwrap();
    let snapshot = world.snap();
    assert_eq!(snapshot.stats.read_files, 1);
    world.check(&snapshot);
}

#[test]
fn bytes_that_lie_in_many_files_are_never_lost() {
    let world = World::new();
    let list_worthy = noise(70_000, 9);
    for i in 0..40 {
        world.write(&format!("raw/{i:02}"), &list_worthy);
    }
    let first = world.snap();
    world.check(&first);
    assert!(world.places(&list_worthy).len() < 40, "not every place is recorded");
    for i in 0..39 {
        fs::remove_file(world.at(&format!("raw/{i:02}"))).unwrap();
    }
    let second = world.snap();
    assert_eq!((second.stats.files, second.stats.read_files), (1, 0));
    world.check(&second);
}

#[test]
fn large_files_have_trees_beside_the_catalog() {
    let big = noise(40 * 1024 * 1024 + 3, 5);
    let world = World::with(&[("raw/big", &big), ("raw/copy", &big)]);
    let hash = BlobHash::of(&big);
    let stale = world.dir.path().join(format!("home/obao/partial-{SPACE}-9"));
    fs::write(&stale, b"left by a kill").unwrap();
    let snapshot = world.snap();
    world.check(&snapshot);
    assert!(!stale.exists());
    let theirs = bao_tree::io::outboard::PreOrderMemOutboard::create(&big, bao_tree::BlockSize::from_chunk_log(7));
    let ours = world.catalog.read().unwrap().outboard(&hash).unwrap().unwrap();
    assert!(ours == theirs.data);
    assert!(world.catalog.outboard_path(&hash).exists());
    let left = fs::read_dir(world.dir.path().join("home/obao")).unwrap();
    assert_eq!(left.filter(|e| e.as_ref().unwrap().path().is_file()).count(), 0);
}

#[test]
fn chunk_lists_are_in_the_annex() {
    let world = World::with(&[("raw/a", &noise(200_000, 1)), ("raw/same", &noise(200_000, 1)), ("raw/s", b"s")]);
    let snapshot = world.snap();
    let tree = snapshot.annex.chunk_lists.clone().unwrap();
    assert_eq!(tree.items, 1);
    assert_eq!(snapshot.annex.manifest, snapshot.id);
    let reader = world.catalog.read().unwrap();
    let list = reader.blob(&SPACE, &BlobHash::of(&noise(200_000, 1))).unwrap().unwrap().list.unwrap();
    let bytes = reader.meta(&SPACE, &list).unwrap().unwrap();
    assert_eq!(tree.weight, bytes.len() as u64);
    let list = sluice_protocol::chunks::ChunkList::from_bytes(&bytes).unwrap();
    let blob = BlobHash::of(&noise(200_000, 1));
    let sampled = list.chunks.iter().any(|c| reader.chunk_candidates(&SPACE, &c.hash).unwrap().contains(&blob));
    assert!(sampled || list.chunks.len() < 8, "a sample of the chunks can be found");
}

#[test]
fn a_stop_is_heard() {
    struct Stop;
    impl Watch for Stop {
        fn amount(&self, _: &str, _: u64, _: u64, _: u64, _: u64) {}
        fn note(&self, _: String) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    let world = World::with(&[("raw/a", b"a")]);
    let entries = world.scan().unwrap();
    let stopped = sluice_store::chunk::chunk(&world.lake, &SPACE, &world.catalog, entries, &Stop);
    assert!(matches!(stopped, Err(sluice_store::chunk::ChunkError::Cancelled)));
    let scanned = sluice_store::scan::scan(&world.lake, &SPACE, &world.catalog, &world.options, &[], &Stop);
    assert!(matches!(scanned, Err(sluice_store::scan::ScanError::Cancelled)));
}

#[test]
fn a_snapshot_that_was_never_committed_leaves_the_catalog_usable() {
    let world = World::with(&[("raw/a", b"a")]);
    drop(world.chunk(&sluice_store::watch::Silent));
    assert_eq!(world.places(b"a"), []);
    let snapshot = world.snap();
    assert_eq!(snapshot.stats.read_files, 1);
    world.check(&snapshot);
}

#[test]
fn a_page_that_rotted_is_written_again() {
    let mut world = World::new();
    let deep = ["a", "b", "c", "d"].map(|name| name.repeat(200)).join("/");
    for i in 0..600 {
        world.write(&format!("raw/{deep}/{i}"), format!("{i}").as_bytes());
    }
    let first = world.snap_on();
    let meta = world.dir.path().join("home/meta");
    let mut rotted = 0;
    for folder in fs::read_dir(&meta).unwrap() {
        for page in fs::read_dir(folder.unwrap().path()).unwrap() {
            let at = page.unwrap().path();
            let mut bytes = fs::read(&at).unwrap();
            bytes[100] ^= 1;
            fs::write(&at, bytes).unwrap();
            rotted += 1;
        }
    }
    assert!(rotted > 0, "all pages are small");
    let again = world.snap();
    assert_eq!(again.id, first.id);
    world.check(&again);
}
