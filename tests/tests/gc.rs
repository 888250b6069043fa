//! Collecting with real sites: what a slow peer is fetching stays, what a killed one resumes stays,
//! and the rest goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use sluice_store::catalog::{Catalog, CatalogError, LeaseRecord, SiteLookup};
use sluice_tests::{Site, World, wait};

/// Files of the first version, and the length of each.
const FILES: u8 = 12;
const FILE_BYTES: usize = 8 << 20;
const LIMIT: Duration = Duration::from_secs(120);

fn noise(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; FILE_BYTES];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// An owner that keeps one version and pins by copying, with files to fetch for a while.
fn owner(world: &World) -> (Site, PathBuf, Value) {
    let lake = world.plain_lake("source", &[]);
    fs::create_dir(lake.join("raw")).unwrap();
    for seed in 0..FILES {
        fs::write(lake.join(format!("raw/{seed}.bin")), noise(seed)).unwrap();
    }
    let mut owner = world.sleeping_site("playground");
    owner.set("SLUICE__RETENTION__SNAPSHOTS", "1");
    owner.set("SLUICE__PINS__COPY", "true");
    owner.start();
    let first = owner.json(["space", "add", "acme", lake.to_str().unwrap()]);
    (owner, lake, first)
}

/// Replaces the whole lake, twice.
fn overtake(owner: &Site, lake: &Path) {
    fs::remove_dir_all(lake.join("raw")).unwrap();
    for version in ["second", "third"] {
        fs::write(lake.join("only.txt"), version).unwrap();
        assert_eq!(owner.json(["snapshot", "acme"])["changed"], true);
    }
}

/// Waits until the replica has begun to receive files.
fn receiving(replica: &Site) {
    wait::until("the transfer to begin", LIMIT, || {
        let status = replica.json(["status"]);
        let jobs = status["jobs"].as_array()?;
        let begun = |job: &&Value| job["stage"] == "transfer" && job["bytes"].as_u64() > Some(0);
        jobs.iter().find(begun).map(drop)
    });
}

/// What `snapshot list` says is kept, by snapshot.
fn kept(site: &Site) -> Vec<(String, bool)> {
    let list = site.json(["snapshot", "list", "acme"]);
    let row = |s: &Value| (s["snapshot"].as_str().unwrap().to_owned(), s["kept"].as_bool().unwrap());
    list.as_array().unwrap().iter().map(row).collect()
}

#[test]
fn a_slow_peer_gets_the_version_it_began_and_afterwards_it_goes() {
    let world = World::new();
    let (owner, lake, first) = owner(&world);
    let first_id = first["snapshot"].as_str().unwrap();
    let replica = world.site("cradle");
    let into = world.path("copy");
    let ticket = owner.invite("acme");
    let mut join = replica.command(["join", &ticket, "--into", into.to_str().unwrap(), "--json"]);
    let join = join.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sluice starts");
    receiving(&replica);

    replica.pause();
    overtake(&owner, &lake);
    let collected = owner.json(["gc", "acme"]);
    let versions = kept(&owner);
    assert_eq!(versions.len(), 3, "{versions:?}");
    let is_kept: Vec<bool> = versions.iter().map(|(_, kept)| *kept).collect();
    assert_eq!(is_kept, [true, false, true], "newest, overtaken, leased: {collected}");
    let (sentence, hint) = owner.fails(1, ["snapshot", "show", "acme", &versions[1].0]);
    assert!(sentence.contains("not kept here") && hint.contains("snapshot list"), "{sentence} {hint}");
    replica.go_on();

    let joined = join.wait_with_output().expect("join ends");
    let text = String::from_utf8_lossy(&joined.stdout);
    assert!(joined.status.success(), "{text}{}", String::from_utf8_lossy(&joined.stderr));
    assert!(text.contains(first_id), "the version that was begun: {text}");
    for seed in 0..FILES {
        assert_eq!(fs::read(into.join(format!("raw/{seed}.bin"))).unwrap(), noise(seed));
    }

    // Without the peer the version is nobody's.
    owner.json(["peer", "revoke", "cradle"]);
    let would = owner.json(["gc", "--dry-run"]);
    let did = owner.json(["gc"]);
    let bytes = (FILES as u64) * FILE_BYTES as u64;
    assert!(did["spaces"][0]["bytes"].as_u64() >= Some(bytes), "the pins' bytes are free: {did}");
    assert_eq!((&would["spaces"], &would["dry_run"]), (&did["spaces"], &Value::Bool(true)));
    assert!(!kept(&owner)[2].1);
    assert_eq!(owner.json(["verify", "acme", "--deep"])["ok"], true);
}

/// An owner of the lake that keeps one version, but for what is tagged or leased.
fn forgetful(world: &World, lake: &Path) -> Site {
    let mut owner = world.sleeping_site("playground");
    owner.set("SLUICE__RETENTION__SNAPSHOTS", "1");
    owner.start();
    owner.json(["space", "add", "acme", lake.to_str().unwrap()]);
    owner
}

#[test]
fn a_tag_keeps_its_version_until_it_is_taken_back() {
    let world = World::new();
    let lake = world.plain_lake("source", &[("a", b"1")]);
    let owner = forgetful(&world, &lake);
    let (error, hint) = owner.fails(1, ["snapshot", "untag", "acme", "gold"]);
    assert!(error.contains("`gold`") && hint.contains("no version has one"), "{error} / {hint}");
    for (bytes, tag) in [("2", "gold"), ("3", "silver"), ("4", "gold"), ("5", "last")] {
        fs::write(lake.join("a"), bytes).unwrap();
        owner.json(["snapshot", "acme", "--tag", tag]);
    }
    let tags = |site: &Site| {
        let list = site.json(["snapshot", "list", "acme"]);
        list.as_array().unwrap().iter().filter_map(|s| s["tag"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let is_kept = |site: &Site| kept(site).into_iter().map(|(_, kept)| kept).collect::<Vec<_>>();
    owner.json(["gc", "acme"]);
    assert_eq!(tags(&owner), ["last", "gold", "silver"], "a tag stands once");
    assert_eq!(is_kept(&owner), [true, true, true, false, false]);

    let replica = world.site("cradle");
    let into = world.path("copy");
    replica.json(["join", &owner.invite("acme"), "--into", into.to_str().unwrap()]);
    let (error, hint) = replica.fails(2, ["snapshot", "untag", "acme", "gold"]);
    assert!(error.contains("taken back there") && hint.contains("owner"), "{error} / {hint}");
    let done = owner.json(["snapshot", "untag", "acme", "gold"]);
    assert!(done["done"].as_str().unwrap().contains("number 3"), "{done}");
    let (error, hint) = owner.fails(1, ["snapshot", "show", "acme", "gold"]);
    assert!(error.contains("`gold`") && hint.contains("snapshot list"), "{error} / {hint}");
    let (_, hint) = owner.fails(1, ["snapshot", "untag", "acme", "gold"]);
    assert!(hint.contains("last, silver"), "{hint}");
    assert_eq!(
        is_kept(&owner),
        [true, true, true, true, false, false],
        "it is the same version once more, and the newest"
    );
    owner.json(["gc", "acme"]);
    assert_eq!(is_kept(&owner), [true, true, false, true, false, false]);
    assert_eq!(tags(&owner), ["last", "silver"]);
    // The copy learns of it with the head; what is live is the same.
    assert_eq!(replica.json(["sync", "acme"])["spaces"][0]["changed"], false);
    assert_eq!(tags(&replica), ["last"], "it was told of the newest when it joined, and of those since");
    let (error, _) = owner.fails(2, ["space", "add", "untag", world.dir().to_str().unwrap()]);
    assert!(error.contains("`untag`"), "{error}");
}

#[test]
fn a_held_version_is_leased_as_long_as_its_replica_is_heard() {
    let world = World::new();
    let lake = world.plain_lake("source", &[("a", b"1")]);
    let mut owner = forgetful(&world, &lake);
    let into = world.path("copy");
    let mut replica = world.sleeping_site("cradle");
    replica.set("SLUICE__FOLLOW__ENABLED", "true");
    replica.set("SLUICE__FOLLOW__POLL_S", "1");
    replica.start();
    let joined = replica.json(["join", &owner.invite("acme"), "--into", into.to_str().unwrap()]);
    replica.json(["sync", "acme", "--at", joined["snapshot"].as_str().unwrap()]);
    for bytes in ["2", "3"] {
        fs::write(lake.join("a"), bytes).unwrap();
        owner.json(["snapshot", "acme"]);
    }
    // The grace passes while the owner is down.
    owner.stop();
    let catalog = Catalog::open(owner.home()).unwrap();
    let (space, _) = catalog.read().unwrap().spaces().unwrap().remove(0);
    let leases = catalog.read().unwrap().leases(&space).unwrap();
    assert!(!leases.is_empty());
    let ended = catalog.write(|b| {
        leases
            .iter()
            .try_for_each(|(peer, id, l)| b.put_lease(&space, peer, id, &LeaseRecord { until_ms: 1, ..l.clone() }))
    });
    let _: () = ended.map_err(|e: CatalogError| e).unwrap();
    drop(catalog);
    owner.start();

    let leased = || {
        let peer = owner.json(["peer", "show", "cradle"]);
        peer["leases"].as_array()?.iter().find(|l| l["snapshot"] == joined["snapshot"]).cloned()
    };
    let lease = wait::until("the replica to be heard", LIMIT, leased);
    assert_eq!(lease["space"], "acme");
    owner.json(["gc", "acme"]);
    assert_eq!(kept(&owner).into_iter().map(|(_, kept)| kept).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(fs::read(into.join("a")).unwrap(), b"1");
}

#[test]
fn what_a_killed_sync_resumes_outlives_a_collection() {
    let world = World::new();
    let (owner, _, _) = owner(&world);
    let mut replica = world.site("cradle");
    let into = world.path("copy");
    let ticket = owner.invite("acme");
    let mut join = replica.command(["join", &ticket, "--into", into.to_str().unwrap()]);
    let mut join = join.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sluice starts");
    let staged = into.join(".sluice/staging");
    receiving(&replica);
    wait::until("a whole file", LIMIT, || {
        let files = fs::read_dir(&staged).ok()?.filter_map(Result::ok);
        (files.filter(|f| f.path().extension().is_some_and(|e| e == "part")).count() > 2).then_some(())
    });
    replica.kill9();
    join.wait().unwrap();
    replica.start();

    let collected = replica.json(["gc"]);
    let went = &collected["spaces"][0];
    assert_eq!((&went["rows"], &went["files"]), (&Value::from(0), &Value::from(0)), "{collected}");
    let parts = fs::read_dir(&staged).unwrap().count();
    assert!(parts > 2, "{parts} files in staging");
    let synced = replica.json(["sync", "acme"]);
    let moved = synced["spaces"][0]["bytes_moved"].as_u64().unwrap();
    let all = u64::from(FILES) * FILE_BYTES as u64;
    assert!(moved < all, "{moved} of {all} bytes moved after the kill");
    for seed in 0..FILES {
        assert_eq!(fs::read(into.join(format!("raw/{seed}.bin"))).unwrap(), noise(seed));
    }
    let nothing = replica.json(["gc"]);
    assert_eq!(nothing["spaces"][0]["files"], 0, "the publication left nothing to collect: {nothing}");
}
