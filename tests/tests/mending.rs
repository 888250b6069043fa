//! A replica that lost, damaged or changed what was published: real sites, real files.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bao_tree::BlockSize;
use bao_tree::io::outboard::PreOrderMemOutboard;
use serde_json::Value;
use sluice_protocol::ids::BlobHash;
use sluice_protocol::path::LakePath;
use sluice_store::catalog::{Catalog, FileRecord, Located, Lookup, SiteLookup};
use sluice_store::lake::Lake;
use sluice_tests::{Joined, Site, World, wait};

/// Following mends at once, and after a failure within a few seconds; the machine may be busy.
const MENDED_WITHIN: Duration = Duration::from_secs(60);

/// An owner and a replica of one small lake.
struct Pair {
    world: World,
    source: PathBuf,
    copy: PathBuf,
    owner: Site,
    replica: Site,
}

fn pair() -> Pair {
    let world = World::new();
    let big = blake3_stream(4 << 20);
    let files: [(&str, &[u8]); 5] = [
        ("raw/a.txt", b"one"),
        ("raw/deep/b.txt", b"two"),
        ("raw/big.bin", &big),
        ("prompts/p.md", b"ask"),
        ("README.md", b"read"),
    ];
    let Joined { source, copy, owner, replica } = world.joined(&files);
    Pair { world, source, copy, owner, replica }
}

/// Bytes that nothing compresses.
fn blake3_stream(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

impl Pair {
    fn snapshot(&self) -> Value {
        self.owner.json(["snapshot", "acme"])
    }

    /// One space's report of a sync that ends with this code.
    #[track_caller]
    fn sync(&self, code: i32) -> Value {
        self.replica.run(["sync", "acme", "--json"]).expect_code(code).json()["spaces"][0].clone()
    }

    fn read(&self, at: &str) -> Vec<u8> {
        std::fs::read(self.copy.join(at)).unwrap_or_else(|e| panic!("{at}: {e}"))
    }

    fn edit(&self, at: &str, bytes: &[u8]) {
        let at = self.copy.join(at);
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o644)).expect("the replica is ours");
        std::fs::write(&at, bytes).expect("the replica is ours");
    }

    fn state(&self) -> Value {
        self.replica.json(["status"])["spaces"][0].clone()
    }
}

#[test]
fn sync_mends_what_is_missing() {
    let pair = pair();
    std::fs::remove_file(pair.copy.join("raw/deep/b.txt")).expect("published");
    std::fs::remove_file(pair.copy.join("README.md")).expect("published");
    let report = pair.replica.run(["verify", "acme", "--json"]).expect_code(3).json();
    assert!(report["hint"].as_str().is_some_and(|h| h.contains("sluice sync acme")), "{report}");
    let sync = pair.sync(0);
    // The file, and the name.
    assert_eq!((&sync["mended"], &sync["changed"]), (&2.into(), &false.into()), "{sync}");
    assert!(sync["bytes_moved"].as_u64().is_some_and(|n| n < 64 * 1024), "{sync}");
    assert_eq!((pair.read("raw/deep/b.txt"), pair.read("README.md")), (b"two".to_vec(), b"read".to_vec()));
    assert_eq!(pair.replica.json(["verify", "acme", "--deep"])["ok"], true);
    assert_eq!(pair.sync(0)["mended"], 0);
}

/// Flips one bit as a bad disk would: the site must not be able to tell from names, sizes and times.
fn rot(site: &mut Site, lake: &Path, lake_path: &str) {
    site.stop();
    let at = lake.join(lake_path);
    let mut bytes = std::fs::read(&at).expect("published");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    let meta = std::fs::metadata(&at).expect("published");
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o600)).expect("ours");
    std::fs::write(&at, bytes).expect("ours");
    let file = std::fs::File::options().write(true).open(&at).expect("ours");
    file.set_modified(meta.modified().expect("a time")).expect("ours");
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(meta.mode())).expect("ours");
    // The change time cannot be set back, so the catalog is made to expect the new one.
    let print = Lake::print_of(&std::fs::File::open(&at).expect("ours")).expect("a file");
    let catalog = Catalog::open(site.home()).expect("the site is down");
    let path = LakePath::parse(lake_path).expect("a path");
    let reader = catalog.read().expect("a catalog");
    let (space, _) = reader.spaces().expect("spaces")[0].clone();
    let record = reader.file(&space, &path).expect("a catalog").expect("recorded");
    let blob = reader.blob(&space, &record.hash).expect("a catalog").expect("recorded");
    drop(reader);
    let forged: Result<(), sluice_store::catalog::CatalogError> = catalog.write(|b| {
        for at in blob.places.iter().filter(|at| at.print.inode == print.inode) {
            let at = Located { print: print.clone(), ..at.clone() };
            b.add_place(&space, &record.hash, blob.size, at)?;
        }
        b.put_file(&space, &path, &FileRecord { print, ..record })
    });
    forged.expect("a catalog");
    drop(catalog);
    site.start();
}

#[test]
fn rot_in_a_replica_is_found_by_reading_and_only_the_bad_part_is_fetched() {
    let mut pair = pair();
    rot(&mut pair.replica, &pair.copy, "raw/big.bin");
    assert_eq!(pair.sync(0)["mended"], 0, "a look does not read");
    let report = pair.replica.run(["verify", "acme", "--deep", "--json"]).expect_code(3).json();
    assert_eq!(report["problems"][0]["path"], "raw/big.bin", "{report}");
    assert!(pair.replica.json(["status"])["alerts"][0]["text"].as_str().is_some_and(|t| t.contains("damaged")));
    let sync = pair.sync(0);
    assert_eq!(sync["mended"], 1, "{sync}");
    assert!(sync["bytes_moved"].as_u64().is_some_and(|n| n < 600 * 1024), "of 4 MiB: {sync}");
    assert_eq!(pair.read("raw/big.bin"), std::fs::read(pair.source.join("raw/big.bin")).expect("there"));
    assert_eq!(pair.replica.json(["verify", "acme", "--deep"])["ok"], true);
}

/// A replica that follows, and asks by no timer.
fn let_follow(replica: &mut Site) {
    replica.stop();
    replica.set("SLUICE__FOLLOW__ENABLED", "true");
    replica.set("SLUICE__FOLLOW__POLL_S", "86400");
    replica.start();
}

#[test]
fn following_mends_what_was_found_missing_or_damaged_and_no_edit() {
    let mut pair = pair();
    let_follow(&mut pair.replica);
    rot(&mut pair.replica, &pair.copy, "raw/big.bin");
    pair.replica.run(["verify", "acme", "--deep"]).expect_code(3);
    let good = std::fs::read(pair.source.join("raw/big.bin")).expect("there");
    wait::until("the damaged file to be whole", MENDED_WITHIN, || (pair.read("raw/big.bin") == good).then_some(()));
    assert_eq!(pair.replica.json(["verify", "acme", "--deep"])["ok"], true, "when the site has done its work");
    std::fs::remove_file(pair.copy.join("raw/deep/b.txt")).expect("published");
    pair.edit("prompts/p.md", b"mine");
    pair.replica.run(["verify", "acme"]).expect_code(3);
    wait::until("the file to come back", MENDED_WITHIN, || pair.copy.join("raw/deep/b.txt").exists().then_some(()));
    assert_eq!(pair.read("prompts/p.md"), b"mine", "an edit is a person's");
    let diverged = pair.state()["diverged"].clone();
    assert_eq!((&diverged[0]["section"], &diverged[1]), (&"prompts".into(), &Value::Null), "{diverged}");
}

#[test]
fn following_brings_back_the_names_at_the_top_but_those_that_a_person_took() {
    let mut pair = pair();
    let_follow(&mut pair.replica);
    for name in ["README.md", "raw", "prompts"] {
        std::fs::remove_file(pair.copy.join(name)).expect("a link");
    }
    let elsewhere = pair.world.path("elsewhere");
    std::os::unix::fs::symlink(&elsewhere, pair.copy.join("prompts")).expect("ours");
    let problems = |pair: &Pair, deep: &[&str]| {
        let report = pair.replica.run([&["verify", "acme", "--json"], deep].concat()).expect_code(3).json();
        let listed = report["problems"].as_array().expect("a list").iter();
        listed.map(|p| p["path"].as_str().expect("a path").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(problems(&pair, &[]), ["README.md", "prompts", "raw"]);
    let are_back = || (pair.copy.join("README.md").exists() && pair.copy.join("raw/a.txt").exists()).then_some(());
    wait::until("the names to come back", MENDED_WITHIN, are_back);
    assert_eq!(problems(&pair, &["--deep"]), ["prompts"], "when the site has done its work");
    assert_eq!(std::fs::read_link(pair.copy.join("prompts")).expect("a link"), elsewhere, "it is a person's");
    let diverged = pair.state()["diverged"].clone();
    assert_eq!((&diverged[0]["section"], &diverged[1]), (&"prompts".into(), &Value::Null), "{diverged}");
    std::fs::remove_file(pair.copy.join("prompts")).expect("ours");
    // The round that the check before has begun may have brought it already.
    pair.replica.run(["verify", "acme"]);
    wait::until("the last name to come back", MENDED_WITHIN, || pair.copy.join("prompts/p.md").exists().then_some(()));
    assert_eq!(pair.replica.json(["verify", "acme"])["ok"], true);
}

#[test]
fn following_tries_again_while_nobody_has_the_bytes() {
    let mut pair = pair();
    let_follow(&mut pair.replica);
    for (site, lake) in [(&mut pair.owner, &pair.source), (&mut pair.replica, &pair.copy)] {
        rot(site, lake, "raw/big.bin");
        site.run(["verify", "acme", "--deep"]).expect_code(3);
    }
    let alerts = || pair.replica.json(["status"])["alerts"].to_string();
    let told = wait::until("an alert", MENDED_WITHIN, || Some(alerts()).filter(|a| a.contains("cannot be followed")));
    assert!(told.contains("raw/big.bin"), "{told}");
    // Put back at the owner, which tells nobody.
    let mut whole = pair.read("raw/big.bin");
    let middle = whole.len() / 2;
    whole[middle] ^= 4;
    std::fs::write(pair.source.join("new"), &whole).expect("ours");
    std::fs::rename(pair.source.join("new"), pair.source.join("raw/big.bin")).expect("ours");
    pair.snapshot();
    wait::until("the file to be whole", MENDED_WITHIN, || (pair.read("raw/big.bin") == whole).then_some(()));
    wait::until("the alert to go", MENDED_WITHIN, || (!alerts().contains("cannot be followed")).then_some(()));
}

#[test]
fn rot_at_an_owner_is_not_served() {
    let mut pair = pair();
    rot(&mut pair.owner, &pair.source, "raw/big.bin");
    let report = pair.owner.run(["verify", "acme", "--deep", "--json"]).expect_code(3).json();
    assert_eq!(report["problems"][0]["path"], "raw/big.bin", "{report}");
    let late = pair.world.site("late");
    let into = pair.world.path("late copy");
    let ticket = pair.owner.invite("acme");
    let (error, _) = late.fails(4, ["join", &ticket, "--into", into.to_str().expect("UTF-8")]);
    assert!(error.contains("raw/big.bin"), "{error}");
    // Put back from a copy, it is served again.
    std::fs::copy(pair.copy.join("raw/big.bin"), pair.source.join("new")).expect("a good copy");
    std::fs::rename(pair.source.join("new"), pair.source.join("raw/big.bin")).expect("ours");
    pair.snapshot();
    late.json(["sync", "acme"]);
    assert_eq!(std::fs::read(into.join("raw/big.bin")).expect("arrived"), pair.read("raw/big.bin"));
}

#[test]
fn a_changed_section_waits_for_a_decision_while_the_others_follow() {
    let pair = pair();
    pair.edit("raw/a.txt", b"mine");
    std::fs::write(pair.source.join("raw/a.txt"), b"one, again").expect("ours");
    std::fs::write(pair.source.join("prompts/p.md"), b"ask more").expect("ours");
    pair.snapshot();
    let sync = pair.sync(3);
    assert_eq!(sync["diverged"][0]["section"], "raw", "{sync}");
    assert_eq!(sync["diverged"][0]["changes"][0]["path"], "raw/a.txt", "{sync}");
    assert_eq!((pair.read("raw/a.txt"), pair.read("prompts/p.md")), (b"mine".to_vec(), b"ask more".to_vec()));
    assert_eq!(pair.state()["state"], "diverged");
    let (error, hint) = pair.replica.fails(1, ["resolve", "acme", "--section", "row", "--keep", "theirs"]);
    assert!(error.contains("`row`") && hint.contains("raw"), "{error} / {hint}");
    let dry = pair.replica.json(["resolve", "acme", "--keep", "theirs", "--dry-run"]);
    assert_eq!((&dry["sections"][0]["section"], &dry["sections"][0]["kept"]), (&"raw".into(), &Value::Null), "{dry}");
    assert_eq!(pair.read("raw/a.txt"), b"mine");

    let done = pair.replica.json(["resolve", "acme", "--keep", "theirs"]);
    assert_eq!(pair.read("raw/a.txt"), b"one, again");
    let kept = Path::new(done["sections"][0]["kept"].as_str().expect("a folder")).join("raw/a.txt");
    assert_eq!(std::fs::read(&kept).expect("kept aside"), b"mine", "{done}");
    assert_eq!(pair.state()["state"], "ready");
    assert_eq!(pair.sync(0)["diverged"], Value::Null);
    let again = pair.replica.json(["resolve", "acme", "--keep", "mine"]);
    assert_eq!(again["sections"], Value::Array(vec![]));
    assert_eq!(pair.replica.json(["verify", "acme", "--deep"])["ok"], true);
}

#[test]
fn a_detached_section_is_the_sites_own_until_it_is_given_back() {
    let mut pair = pair();
    std::fs::remove_file(pair.copy.join("raw")).expect("a link");
    std::fs::create_dir(pair.copy.join("raw")).expect("ours");
    std::fs::write(pair.copy.join("raw/x"), b"mine").expect("ours");
    assert_eq!(pair.sync(3)["diverged"][0]["section"], "raw");
    pair.replica.json(["resolve", "acme", "--keep", "mine"]);
    std::fs::write(pair.source.join("raw/a.txt"), b"newer").expect("ours");
    pair.snapshot();
    let sync = pair.sync(0);
    assert_eq!((&sync["diverged"][0]["detached"], &sync["published"]), (&true.into(), &true.into()), "{sync}");
    assert_eq!(pair.state()["state"], "ready");
    pair.replica.restart();
    assert_eq!(pair.read("raw/x"), b"mine");
    let done = pair.replica.json(["resolve", "acme", "--section", "raw", "--keep", "theirs"]);
    assert_eq!(pair.read("raw/a.txt"), b"newer");
    let kept = Path::new(done["sections"][0]["kept"].as_str().expect("a folder")).join("raw/x");
    assert_eq!(std::fs::read(&kept).expect("kept aside"), b"mine", "{done}");
}

#[test]
fn a_replica_can_be_held_at_an_older_version() {
    let pair = pair();
    let first = pair.owner.json(["snapshot", "acme", "--tag", "good"]);
    std::fs::write(pair.source.join("raw/a.txt"), b"bad").expect("ours");
    std::fs::remove_file(pair.source.join("prompts/p.md")).expect("ours");
    pair.snapshot();
    pair.sync(0);
    assert_eq!(pair.read("raw/a.txt"), b"bad");
    let held = pair.replica.json(["sync", "acme", "--at", "good"])["spaces"][0].clone();
    assert_eq!((&held["snapshot"], &held["held"]["snapshot"]), (&first["snapshot"], &first["snapshot"]), "{held}");
    assert_eq!((pair.read("raw/a.txt"), pair.read("prompts/p.md")), (b"one".to_vec(), b"ask".to_vec()));
    assert_eq!(pair.replica.json(["verify", "acme", "--deep"])["ok"], true);
    // Following does not move it, and it is not behind: a person wants it there.
    std::fs::write(pair.source.join("raw/a.txt"), b"worse").expect("ours");
    let newest = pair.snapshot();
    assert_eq!(pair.sync(0)["snapshot"], first["snapshot"]);
    let state = pair.state();
    assert_eq!((&state["state"], &state["held"]["snapshot"]), (&"ready".into(), &first["snapshot"]), "{state}");
    let (error, _) = pair.replica.fails(1, ["sync", "acme", "--at", "nothing"]);
    assert!(error.contains("`nothing`"), "{error}");
    let back = pair.replica.json(["sync", "acme", "--at", "newest"])["spaces"][0].clone();
    assert_eq!((&back["snapshot"], &back["held"]), (&newest["snapshot"], &Value::Null), "{back}");
    assert_eq!(pair.read("raw/a.txt"), b"worse");
}

#[test]
fn a_version_that_the_owner_no_longer_has_is_refused_by_name() {
    let pair = pair();
    // Written in place, so that a pin of the version between holds its bytes no longer.
    std::fs::write(pair.source.join("raw/a.txt"), b"between").expect("ours");
    pair.owner.json(["snapshot", "acme", "--tag", "between"]);
    std::fs::write(pair.source.join("raw/a.txt"), b"newest").expect("ours");
    let newest = pair.snapshot();
    assert_eq!(pair.sync(0)["snapshot"], newest["snapshot"]);
    let (error, hint) = pair.replica.fails(4, ["sync", "acme", "--at", "between"]);
    assert!(error.contains("`raw/a.txt`") && hint.contains("newest"), "{error} / {hint}");
    let state = pair.state();
    assert_eq!((&state["snapshot"], &state["held"]), (&newest["snapshot"], &Value::Null), "{state}");
    assert_eq!(pair.read("raw/a.txt"), b"newest");
}

#[test]
fn a_hash_tree_that_rots_at_the_owner_is_made_again_from_the_bytes() {
    let pair = pair();
    for (round, length) in [18 << 20, 19 << 20, 20 << 20].into_iter().enumerate() {
        // Above 16 MiB the tree is a file beside the catalog.
        std::fs::write(pair.source.join("raw/huge.bin"), blake3_stream(length)).expect("ours");
        pair.snapshot();
        let hash = blake3::hash(&blake3_stream(length)).to_hex().to_string();
        let tree = pair.owner.home().join("obao").join(&hash[..2]).join(&hash);
        let whole = std::fs::read(&tree).expect("the tree is a file");
        match round {
            0 => {
                let mut bytes = whole.clone();
                bytes[whole.len() / 2] ^= 4;
                std::fs::write(&tree, bytes).expect("ours");
            }
            1 => std::fs::write(&tree, &whole[..whole.len() / 2]).expect("ours"),
            _ => std::fs::remove_file(&tree).expect("ours"),
        }
        pair.sync(0);
        assert_eq!(pair.read("raw/huge.bin").len(), length);
        assert_eq!(std::fs::read(&tree).expect("it is back"), whole, "round {round}");
    }
    assert_eq!(pair.replica.json(["verify", "acme", "--deep"])["ok"], true);
}

/// Trees were stored down to groups of 16 KiB once.
#[test]
fn a_finer_tree_of_an_older_build_is_served_from() {
    let mut pair = pair();
    let bytes = blake3_stream(700_001);
    std::fs::write(pair.source.join("raw/old.bin"), &bytes).expect("ours");
    pair.snapshot();
    let tree = PreOrderMemOutboard::create(&bytes, BlockSize::from_chunk_log(4));
    let (hash, older) = (BlobHash(*tree.root.as_bytes()), Some(tree.data));
    pair.owner.stop();
    let stored = {
        let catalog = Catalog::open(pair.owner.home()).expect("the site is down");
        let stored = catalog.read().and_then(|r| r.outboard(&hash)).expect("a catalog");
        catalog.write(|b| b.put_outboard(&hash, older.as_ref().expect("it has pairs"))).expect("a catalog");
        stored
    };
    assert_eq!(stored.map(|t| t.len()), Some(5 * 64), "six blocks");
    pair.owner.start();
    pair.sync(0);
    assert!(pair.read("raw/old.bin") == bytes);
    pair.owner.stop();
    let catalog = Catalog::open(pair.owner.home()).expect("the site is down");
    assert_eq!(catalog.read().and_then(|r| r.outboard(&hash)).expect("a catalog"), older, "it was not made again");
}

#[test]
fn a_list_of_files_that_rots_in_a_replica_is_fetched_again() {
    let mut pair = pair();
    pair.replica.stop();
    {
        let catalog = Catalog::open(pair.replica.home()).expect("the site is down");
        let (space, _) = catalog.read().and_then(|r| r.spaces()).expect("spaces")[0].clone();
        let live = catalog.read().and_then(|r| r.live(&space)).expect("a catalog").expect("published");
        let forgotten: Result<(), sluice_store::catalog::CatalogError> =
            catalog.write(|b| live.sections.iter().try_for_each(|s| b.remove_meta(&space, &s.tree)));
        forgotten.expect("a catalog");
    }
    pair.replica.start();
    let report = pair.sync(0);
    assert_eq!(pair.state()["state"], "ready", "{report}");
    assert_eq!(pair.replica.json(["verify", "acme", "--deep"])["ok"], true);
}
