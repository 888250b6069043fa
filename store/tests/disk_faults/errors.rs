//! Each call that changes the disk fails in turn, once, in several ways.
//!
//! The run ends with a sentence or passes over the failure; either way nothing that is recorded is a
//! lie (I2), what was live stays (I1), and once the fault is gone the same run comes to the end, in the
//! same process.

use sluice_store::disk::faults::inject;
use sluice_store::publish::recover;

use super::*;

/// A new replica in memory where it can be: syncing proves nothing here.
fn world() -> World {
    let dir = place();
    for folder in ["home", "lake"] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
    }
    World::opened(dir)
}

/// Lets call number `k` fail. Gives how the run ended; `None` when there are fewer calls.
fn fail_at(fault: &str, k: u64) -> Option<Result<(), String>> {
    let what = format!("*@{k}={fault}");
    let world = world();
    let injected = inject(world.dir.path(), &what).unwrap();
    let first = try_bring(&world, 1);
    let ended = first.and_then(|()| try_bring(&world, 2));
    let fired = injected.fired() > 0;
    drop(injected);
    if !fired {
        return None;
    }
    assert_no_lie(&world, &what);
    recover(&world.lake, &world.catalog, &world.space).unwrap_or_else(|e| panic!("{what}: {e}"));
    try_bring(&world, 2).unwrap_or_else(|e| panic!("{what}, then: {e}"));
    world.assert_shows(&two());
    assert_no_lie(&world, &what);
    Some(ended)
}

/// Each `step`th call fails, beginning with call number `first`.
fn each_call(fault: &str, first: u64, step: usize) -> Vec<String> {
    let mut told = Vec::new();
    let mut calls = 0;
    for k in (first..).step_by(step) {
        match fail_at(fault, k) {
            None => break,
            Some(ended) => told.extend(ended.err()),
        }
        calls += 1;
    }
    assert!(calls * step > 200, "only {calls} calls");
    told
}

/// Sentences of a full disk name it.
fn assert_full(told: &[String]) {
    let strange: Vec<_> = told.iter().filter(|t| !t.contains("full") && !t.contains("No space")).collect();
    assert!(strange.is_empty() && told.len() > 20, "{strange:#?}");
}

#[test]
fn a_full_disk_at_any_call_is_said_and_costs_nothing() {
    assert_full(&each_call("ENOSPC", 1, 3));
}

#[test]
fn a_failing_disk_at_any_call_is_said_and_costs_nothing() {
    assert!(each_call("EIO", 2, 3).len() > 20);
}

#[test]
fn a_disk_that_turns_read_only_at_any_call_is_said_and_costs_nothing() {
    assert!(each_call("EROFS", 3, 3).len() > 20);
}

#[test]
fn a_short_write_is_gone_on_with() {
    let told = each_call("short", 1, 5);
    assert!(told.is_empty(), "{told:#?}");
}

#[test]
#[ignore = "soak: every call, five ways, some minutes"]
fn every_call_fails_in_every_way() {
    assert_full(&each_call("ENOSPC", 1, 1));
    for fault in ["EIO", "EROFS", "short"] {
        each_call(fault, 1, 1);
    }
}

/// What was written before a failed sync is written again, though it can be read back.
#[test]
fn a_failed_sync_is_not_made_good_by_another_one() {
    let world = world();
    let bytes = large(1);
    let (hash, tree) = tree_to_send(&bytes);
    let staging = world.staging();
    let staged = staging.start(hash, bytes.len() as u64).unwrap();
    for (i, pair) in tree.chunks(64).enumerate() {
        staged.put_parents(&[(i as u64, pair.try_into().unwrap())]).unwrap();
    }
    staged.write_leaf(0, &bytes[..LEAF]).unwrap();
    staged.checkpoint().unwrap();
    staged.write_leaf(LEAF as u64, &bytes[LEAF..]).unwrap();
    {
        let _fault = inject(world.dir.path(), "staging.sync-data@1=EIO").unwrap();
        staged.checkpoint().unwrap_err();
    }
    staged.checkpoint().unwrap_err();
    staged.finish().unwrap_err();
    let missing = vec![std::ops::Range { start: 0, end: bytes.len() as u64 }];
    assert_eq!(staging.start(hash, bytes.len() as u64).unwrap().missing(0..u64::MAX), missing);
    // Nor in another process of the same boot, where the received tree could vouch for it.
    drop((staged, staging));
    let world = world.restarted();
    assert_eq!(world.staging().start(hash, bytes.len() as u64).unwrap().missing(0..u64::MAX), missing);
    fill(&world.staging(), &bytes).unwrap();
}
