//! The main job, whole: two sites pair by ticket, a lake arrives, and every change follows.

use serde_json::Value;
use sluice_tests::{Lake, Site, World, differences, inspect, wait};
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;

#[track_caller]
fn assert_same(what: &str, source: &Value, replica: &Path) {
    let found = differences(source, &inspect(replica));
    assert!(found.is_empty(), "after {what}, source | replica:\n{}", found.join("\n"));
}

/// The same for a source that is there now.
#[track_caller]
fn assert_follows(what: &str, lake: &Lake, replica: &Path) {
    assert_same(what, &lake.inspect(), replica);
}

#[track_caller]
fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("`{key}` is no number in {value}"))
}

/// The only space in the answer of `sync --json`.
#[track_caller]
fn only(sync: &Value) -> &Value {
    let spaces = sync["spaces"].as_array().expect("sync --json has `spaces`");
    assert_eq!(spaces.len(), 1, "{sync}");
    &spaces[0]
}

/// An owner that shares the lake as `acme`.
fn owner_of(world: &World, lake: &Lake) -> Site {
    let owner = world.site("playground");
    let mut add = vec!["space", "add", "acme", lake.root().to_str().expect("UTF-8")];
    if !cfg!(feature = "engine") {
        // Such a build does not read tables; it carries their files all the same.
        add.push("--opaque");
    }
    owner.json(add);
    owner
}

fn join(replica: &Site, ticket: &str, into: &Path) -> Value {
    replica.json(["join", ticket, "--into", into.to_str().expect("UTF-8")])
}

#[test]
fn a_lake_arrives_and_every_change_follows() {
    let world = World::new();
    let lake = world.lake("source");
    let owner = owner_of(&world, &lake);
    let replica = world.site("cradle");
    let into = world.path("copy");

    let joined = join(&replica, &owner.invite("acme"), &into);
    assert_eq!(joined["published"], true, "{joined}");
    assert_follows("join", &lake, &into);

    for step in Lake::steps() {
        lake.change(&step);
        let taken = owner.json(["snapshot", "acme"]);
        assert_eq!(taken["changed"], true, "{step}: {taken}");
        assert_eq!(taken["skipped"], Value::Array(vec![]), "{step}");
        let sync = replica.json(["sync", "acme"]);
        assert_eq!(only(&sync)["snapshot"], taken["snapshot"], "{step}");
        assert_follows(&step, &lake, &into);
        assert_thrifty(&step, only(&sync));
    }
    let verified = replica.json(["verify", "acme", "--deep"]);
    assert_eq!(verified["ok"], true, "{verified}");
    let path = replica.run(["path", "acme"]).ok().stdout;
    assert_follows("verify, by `sluice path`", &lake, Path::new(path.trim_end()));
}

/// What a step may move at most: the lake has 42 MiB of large files that no step rewrites whole.
#[track_caller]
fn assert_thrifty(step: &str, sync: &Value) {
    let limit = match step {
        "rename" | "tag" => MIB / 2,
        _ => 2 * MIB,
    };
    let moved = number(sync, "bytes_moved");
    assert!(moved <= limit, "{step} moved {moved} bytes, more than {limit}: {sync}");
}

#[test]
fn an_unchanged_lake_keeps_its_id_and_moves_nothing() {
    let world = World::new();
    let lake = world.small_lake("source");
    let owner = owner_of(&world, &lake);
    let replica = world.site("cradle");
    let joined = join(&replica, &owner.invite("acme"), &world.path("copy"));

    let again = owner.json(["snapshot", "acme"]);
    assert_eq!(again["changed"], false, "{again}");
    assert_eq!(again["snapshot"], joined["snapshot"]);
    let sync = replica.json(["sync", "acme"]);
    assert_eq!(only(&sync)["snapshot"], joined["snapshot"]);
    assert!(number(only(&sync), "bytes_moved") < 64 * 1024, "{sync}");
}

#[test]
fn a_dry_run_shows_rungs_and_publishes_nothing() {
    let world = World::new();
    let lake = world.small_lake("source");
    let owner = owner_of(&world, &lake);
    let replica = world.site("cradle");
    let into = world.path("copy");
    let joined = join(&replica, &owner.invite("acme"), &into);
    let before = lake.inspect();

    lake.change("append");
    lake.change("rename");
    lake.change("csv_edit");
    owner.json(["snapshot", "acme"]);
    let dry = replica.json(["sync", "acme", "--dry-run"]);
    let rungs = only(&dry)["rungs"].as_array().expect("rungs").clone();
    let used = |n: u64| rungs.iter().any(|r| r["rung"] == n && number(r, "files") > 0);
    assert!(used(0), "most sections are unchanged: {dry}");
    assert!(used(1), "renamed files are here already: {dry}");
    assert!(used(2), "most of the CSV is here already: {dry}");
    assert!(used(6), "appended rows must be fetched: {dry}");
    assert_eq!(replica.json(["status"])["spaces"][0]["snapshot"], joined["snapshot"]);
    assert_same("a dry run", &before, &into);

    let sync = replica.json(["sync", "acme"]);
    assert_ne!(only(&sync)["snapshot"], joined["snapshot"]);
    assert_follows("the sync", &lake, &into);
}

#[test]
fn two_replicas_follow_one_owner() {
    let world = World::new();
    let lake = world.small_lake("source");
    let owner = owner_of(&world, &lake);
    let replicas = [world.site("first"), world.site("second")];
    for replica in &replicas {
        join(replica, &owner.invite("acme"), &world.path(&format!("copy {}", replica.name())));
    }
    lake.change("append");
    let taken = owner.json(["snapshot", "acme"]);
    for replica in &replicas {
        let sync = replica.json(["sync"]);
        assert_eq!(only(&sync)["snapshot"], taken["snapshot"]);
        assert_follows("append", &lake, &world.path(&format!("copy {}", replica.name())));
    }
}

#[test]
fn a_replica_killed_while_data_arrives_goes_on() {
    let world = World::new();
    let lake = world.lake("source");
    let owner = owner_of(&world, &lake);
    let mut replica = world.site("cradle");
    let into = world.path("copy");
    let ticket = owner.invite("acme");
    let mut joining = replica
        .command(["join", &ticket, "--into", into.to_str().expect("UTF-8"), "--json"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("sluice starts");
    wait::until("data to arrive", Duration::from_secs(60), || into.join(".sluice/staging").is_dir().then_some(()));
    replica.kill9();
    let code = joining.wait().expect("the client ends").code();

    replica.start();
    let sync = replica.json(["sync", "acme"]);
    assert_eq!(only(&sync)["published"], true, "the client had ended with {code:?}: {sync}");
    assert_follows("a kill and a restart", &lake, &into);
    assert_eq!(replica.json(["verify", "acme", "--deep"])["ok"], true);
}

#[test]
fn both_sides_come_back_after_a_kill() {
    let world = World::new();
    let lake = world.small_lake("source");
    let mut owner = owner_of(&world, &lake);
    let mut replica = world.site("cradle");
    let into = world.path("copy");
    join(&replica, &owner.invite("acme"), &into);
    owner.restart();
    replica.restart();
    lake.change("append");
    lake.change("update");
    let taken = owner.json(["snapshot", "acme"]);
    let sync = replica.json(["sync", "acme"]);
    assert_eq!(only(&sync)["snapshot"], taken["snapshot"]);
    assert_follows("two restarts", &lake, &into);
    assert_eq!(owner.stop(), Some(0), "a site ends in order when it is asked to");
}

#[test]
fn a_local_edit_in_a_replica_is_found_by_verify() {
    let world = World::new();
    let root = world.plain_lake("source", &[("raw/a.txt", b"one"), ("raw/b.txt", b"two")]);
    let owner = world.site("playground");
    owner.json(["space", "add", "acme", root.to_str().expect("UTF-8")]);
    let replica = world.site("cradle");
    let into = world.path("copy");
    join(&replica, &owner.invite("acme"), &into);

    // Whoever edits a published file takes its write protection off first.
    let file = into.join("raw/b.txt");
    let real = std::fs::canonicalize(&file).expect("published");
    std::fs::remove_file(&real).expect("the replica is ours");
    std::fs::write(&real, b"tWo").expect("the replica is ours");
    let report = replica.run(["verify", "acme", "--deep", "--json"]).expect_code(3).json();
    assert_eq!(report["ok"], false, "{report}");
    let problems = report["problems"].as_array().expect("problems");
    assert_eq!(problems.len(), 1, "{report}");
    assert_eq!(problems[0]["path"], "raw/b.txt");
}
