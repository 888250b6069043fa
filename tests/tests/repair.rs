//! A lost or damaged catalog is made again from the lakes: same ids, nothing moved.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sluice_tests::{Joined, Site, World};

struct Pair {
    source: PathBuf,
    copy: PathBuf,
    owner: Site,
    replica: Site,
    world: World,
}

fn pair() -> Pair {
    let world = World::new();
    let mut big = vec![0; 3 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut big);
    let files: [(&str, &[u8]); 5] = [
        ("raw/big.bin", &big),
        ("raw/deep/b.txt", b"two"),
        ("mixed/note.txt", b"note"),
        ("prompts/p.md", b"ask"),
        ("README.md", b"read"),
    ];
    let Joined { source, copy, owner, replica } = world.joined(&files);
    std::fs::write(source.join("prompts/p.md"), b"ask more").expect("ours");
    owner.json(["snapshot", "acme"]);
    replica.json(["sync", "acme"]);
    Pair { source, copy, owner, replica, world }
}

fn lose(site: &Site) {
    std::fs::remove_file(site.home().join("catalog.redb")).expect("a catalog");
    for folder in ["meta", "obao"] {
        std::fs::remove_dir_all(site.home().join(folder)).expect("beside the catalog");
    }
}

fn repair(site: &Site, lake: &Path) -> Value {
    site.json(["repair", "--lake", lake.to_str().expect("UTF-8")])
}

fn space(site: &Site) -> Value {
    site.json(["status"])["spaces"][0].clone()
}

fn moved(sync: &Value) -> u64 {
    sync["spaces"][0]["bytes_moved"].as_u64().expect("a number")
}

#[test]
fn a_replica_that_lost_its_catalog_comes_back_as_it_was() {
    let mut pair = pair();
    let before = space(&pair.replica);
    pair.replica.kill9();
    lose(&pair.replica);
    let done = repair(&pair.replica, &pair.copy);
    assert_eq!((&done["spaces"][0]["proven"], &done["spaces"][0]["snapshot"]), (&true.into(), &before["snapshot"]));
    assert_eq!(repair(&pair.replica, &pair.copy)["spaces"][0]["known"], true, "a second time finds nothing to do");
    pair.replica.start();
    let after = space(&pair.replica);
    for key in ["space", "snapshot", "seq", "files", "bytes", "state", "path"] {
        assert_eq!(after[key], before[key], "{key}: {after}");
    }
    let sync = pair.replica.json(["sync", "acme"]);
    assert!(moved(&sync) < 64 * 1024 && sync["spaces"][0]["changed"] == false, "{sync}");
    assert_eq!(pair.replica.json(["verify", "acme", "--deep"])["ok"], true);
    // It follows on, and only what changed moves.
    let mut big = std::fs::read(pair.source.join("raw/big.bin")).expect("ours");
    big[1 << 20] ^= 1;
    std::fs::write(pair.source.join("raw/big.bin"), &big).expect("ours");
    pair.owner.json(["snapshot", "acme"]);
    let sync = pair.replica.json(["sync", "acme"]);
    assert!(moved(&sync) < 1 << 20, "{sync}");
    assert_eq!(std::fs::read(pair.copy.join("raw/big.bin")).expect("arrived"), big);
    assert_eq!(pair.replica.json(["verify", "acme", "--deep"])["ok"], true);
}

#[test]
fn an_owner_that_lost_its_catalog_goes_on_in_its_chain() {
    let mut pair = pair();
    let before = space(&pair.owner);
    pair.owner.kill9();
    lose(&pair.owner);
    let done = repair(&pair.owner, &pair.source);
    assert_eq!((&done["spaces"][0]["proven"], &done["spaces"][0]["snapshot"]), (&true.into(), &before["snapshot"]));
    pair.owner.start();
    let taken = pair.owner.json(["snapshot", "acme"]);
    assert_eq!((&taken["changed"], &taken["snapshot"]), (&false.into(), &before["snapshot"]), "{taken}");
    let after = space(&pair.owner);
    for key in ["space", "snapshot", "seq", "files", "bytes", "state"] {
        assert_eq!(after[key], before[key], "{key}: {after}");
    }
    let sync = pair.replica.json(["sync", "acme"]);
    assert!(moved(&sync) < 64 * 1024, "the grant still holds: {sync}");
    std::fs::write(pair.source.join("README.md"), b"read on").expect("ours");
    pair.owner.json(["snapshot", "acme"]);
    pair.replica.json(["sync", "acme"]);
    assert_eq!(std::fs::read(pair.copy.join("README.md")).expect("arrived"), b"read on");
    // A new site gets everything from it.
    let late = pair.world.site("late");
    let into = pair.world.path("late copy");
    late.json(["join", &pair.owner.invite("acme"), "--into", into.to_str().expect("UTF-8")]);
    assert_eq!(late.json(["verify", "acme", "--deep"])["ok"], true);
}

#[test]
fn a_damaged_catalog_is_moved_aside_and_never_deleted() {
    let mut pair = pair();
    pair.replica.kill9();
    let at = pair.replica.home().join("catalog.redb");
    let mut bytes = std::fs::read(&at).expect("a catalog");
    let len = bytes.len();
    bytes[..len / 2].fill(0x5a);
    std::fs::write(&at, &bytes).expect("ours");
    let (error, hint) = pair.replica.fails(1, ["up"]);
    assert!(error.contains("is damaged") && hint.contains("sluice repair"), "{error} / {hint}");
    let done = repair(&pair.replica, &pair.copy);
    let aside = done["moved_aside"][0].as_str().expect("a path");
    assert_eq!(std::fs::read(aside).expect("kept"), bytes);
    pair.replica.start();
    let sync = pair.replica.json(["sync", "acme"]);
    assert!(moved(&sync) < 64 * 1024, "{sync}");
    assert_eq!(pair.replica.json(["verify", "acme", "--deep"])["ok"], true);
}

#[test]
fn what_was_edited_meanwhile_is_not_taken_for_the_owners() {
    let mut pair = pair();
    pair.replica.kill9();
    lose(&pair.replica);
    let edited = std::fs::canonicalize(pair.copy.join("raw/deep/b.txt")).expect("published");
    std::fs::remove_file(&edited).expect("ours");
    std::fs::write(&edited, b"mine").expect("ours");
    let done = repair(&pair.replica, &pair.copy);
    assert_eq!((&done["spaces"][0]["proven"], &done["spaces"][0]["other"]), (&false.into(), &1.into()), "{done}");
    pair.replica.start();
    let sync = pair.replica.run(["sync", "acme", "--json"]).expect_code(3).json();
    assert_eq!(sync["spaces"][0]["diverged"][0]["changes"][0]["path"], "raw/deep/b.txt", "{sync}");
    assert_eq!(std::fs::read(&edited).expect("untouched"), b"mine");
}

#[test]
fn a_wrong_lake_is_refused_before_anything_is_moved() {
    let mut pair = pair();
    pair.replica.kill9();
    let text = |p: &Path| p.to_str().expect("UTF-8").to_owned();
    let (error, hint) = pair.replica.fails(1, ["repair", "--lake", &text(pair.world.dir())]);
    assert!(error.contains("no deed") && !hint.is_empty(), "{error} / {hint}");
    let (error, _) = pair.replica.fails(1, ["repair", "--lake", &text(&pair.source)]);
    assert!(error.contains("was made by site"), "{error}");
    let (error, _) = pair.owner.fails(1, ["repair", "--lake", &text(&pair.source)]);
    assert!(error.contains("another daemon"), "the site is up: {error}");
    // One flipped bit, and it is not believed.
    let deed = pair.copy.join(".sluice/space/deed");
    let mut bytes = std::fs::read(&deed).expect("a deed");
    bytes[200] ^= 1;
    std::fs::write(&deed, bytes).expect("ours");
    lose(&pair.replica);
    let (error, _) = pair.replica.fails(3, ["repair", "--lake", &text(&pair.copy)]);
    assert!(error.contains("is damaged"), "{error}");
}
