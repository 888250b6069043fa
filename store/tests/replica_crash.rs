//! Publishing is stopped before each single effect, and a second run must finish or go elsewhere.
//!
//! After every stop the version before must be whole for its readers (I1); after the second run the
//! new one must be, byte for byte (I2); and nothing may lie outside the lake (I3).

mod replica_world;

use replica_world::*;
use sluice_protocol::manifest::SectionKind::{Delta, Files, Raw};
use sluice_store::disk::faults::{Injected, inject};
use sluice_store::publish::{live_path, recover};

/// What publishing changes; what the catalog does inside a commit is a matter of its own.
const EFFECTS: [&str; 8] = ["live.", "shown.", "sections.", "generations.", "intent.", "places.", "forget", "adopt."];

/// The rule that ends everything before effect number `at` (from 0) of one of these beginnings.
fn halt(world: &World, effect: &str, at: usize) -> Injected {
    inject(world.dir.path(), &format!("{effect}*@{}=halt", at + 1)).unwrap()
}

const SECOND: i64 = 1_000_000_000;

fn table(commits: usize) -> Vec<Item> {
    let mut items = vec![file("_delta_log/_last_checkpoint", format!("{commits}"))];
    for i in 0..commits {
        items.push(file(&format!("part-{i}"), format!("rows {i}")));
        items.push(file(&format!("_delta_log/{i:020}.json"), format!("commit {i}")).at(i as i64 * SECOND));
    }
    items
}

fn one() -> Vec<Part> {
    vec![
        loose(None, vec![file("README", "one").at(SECOND), file("gone", "gone")]),
        part("orders", Delta, table(1)),
        part("raw", Raw, vec![file("d/same", [5; 20_000]).at(3), file("changed", "1").at(4), link("l", "d/same")]),
    ]
}

fn two() -> Vec<Part> {
    vec![
        loose(None, vec![file("README", "two").at(2 * SECOND)]),
        part("new", Files, vec![file("n", "n").mode(0o755), file("twin", [5; 20_000]).at(9), folder("e")]),
        part("orders", Delta, table(3)),
        part("raw", Raw, vec![file("d/same", [5; 20_000]).at(3), file("changed", "2").at(5), link("l", "changed")]),
    ]
}

/// Like `one`, with another second commit than `two`.
fn three() -> Vec<Part> {
    let mut items = table(1);
    items.push(file("part-other", "other rows"));
    items.push(file("_delta_log/00000000000000000001.json", "another commit 1").at(77));
    vec![part("orders", Delta, items), part("raw", Raw, vec![file("changed", "3").at(6)])]
}

/// The version before is whole in its own generation; a table may already hold more.
fn assert_old_is_whole(world: &World, old: &[Part]) {
    let Some(root) = live_path(&world.lake, &world.catalog, &world.space, None).unwrap() else {
        return;
    };
    for p in old {
        let below = p.path.as_ref().map_or(root.clone(), |p| root.join(p));
        for item in p.items.iter().filter(|i| i.target.is_none()) {
            let pointer = item.path.ends_with("_last_checkpoint");
            let bytes = std::fs::read(below.join(&item.path)).unwrap();
            assert!(pointer || bytes == item.bytes, "{}", item.path);
        }
    }
}

/// Stops before effect `k` of a room on the way from `old` to `new`; `None` when there are fewer.
fn stopped(old: Option<&[Part]>, new: &[Part], effect: &str, k: usize) -> Option<World> {
    let world = World::new();
    if let Some(old) = old {
        world.sync(old);
    }
    let verified = world.verified(new);
    let stop = halt(&world, effect, k);
    let done = world.publish(&verified);
    if stop.fired() == 0 {
        done.unwrap_or_else(|e| panic!("{effect} {k} was not reached: {e}"));
        return None;
    }
    assert!(done.is_err(), "{effect} {k}: a halted publish says that it is done");
    let world = world.stopped(stop);
    let live = world.report(false).generation;
    if let Some(old) = old.filter(|_| live == Some(1)) {
        assert_old_is_whole(&world, old);
    }
    Some(world)
}

fn assert_nothing_outside(world: &World) {
    let mut names: Vec<_> = std::fs::read_dir(world.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["home", "lake", "outside"]);
    assert_eq!(std::fs::read(world.dir.path().join("outside")).unwrap(), b"not yours");
}

/// For every stop: the restarted site verifies without a byte fetched again, and publishes `then`.
fn every_stop(old: Option<&[Part]>, new: &[Part], then: &[Part]) {
    let same = then.len() == new.len() && then[0].items.len() == new[0].items.len();
    let mut stops = 0;
    for effect in EFFECTS {
        let mut k = 0;
        while let Some(world) = stopped(old, new, effect, k) {
            go_on(&world, &format!("{effect} {k}"), then, same);
            k += 1;
        }
        stops += k;
    }
    assert!(stops > 20, "only {stops} effects");
}

fn go_on(world: &World, stop: &str, then: &[Part], same: bool) {
    recover(&world.lake, &world.catalog, &world.space).unwrap();
    let received = world.announce(then);
    if !same {
        world.deliver(then);
    }
    let verified = world.check(received).unwrap_or_else(|e| panic!("{stop}: {e}"));
    let published = world.publish(&verified).unwrap_or_else(|e| panic!("{stop}: {e}"));
    assert!(published.cleaned.kept.is_empty(), "{stop}: {:?}", published.cleaned);
    world.assert_shows(then);
    assert_nothing_outside(world);
}

#[test]
fn a_first_publish_goes_on_where_it_was_stopped() {
    every_stop(None, &one(), &one());
}

#[test]
fn an_update_goes_on_where_it_was_stopped() {
    every_stop(Some(&one()), &two(), &two());
}

#[test]
fn another_version_may_follow_a_stopped_one() {
    every_stop(Some(&one()), &two(), &three());
}

#[test]
fn the_version_before_may_be_published_again_after_a_stop() {
    every_stop(Some(&one()), &two(), &one());
}

#[test]
fn a_replaced_table_goes_on_where_it_was_stopped() {
    every_stop(Some(&three()), &one(), &one());
}

#[test]
fn stopped_again_and_again() {
    // Each run is stopped a little later than the one before, now for one version, now for another.
    let mut world = World::new();
    world.sync(&one());
    for k in 0..60 {
        let next = if k % 3 == 0 { three() } else { two() };
        let verified = world.verified(&next);
        let stop = halt(&world, EFFECTS[k % EFFECTS.len()], k / EFFECTS.len());
        let done = world.publish(&verified);
        if stop.fired() == 0 {
            done.unwrap_or_else(|e| panic!("run {k}: {e}"));
            world.assert_shows(&next);
        }
        world = world.stopped(stop);
        recover(&world.lake, &world.catalog, &world.space).unwrap();
    }
    let last = world.sync(&two());
    world.assert_shows(&two());
    assert_eq!(last.cleaned.kept, Vec::<String>::new());
    assert_nothing_outside(&world);
}
