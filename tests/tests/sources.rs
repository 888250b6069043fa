//! Several sites that hold a space serve one at once, and none that is slow or dies holds up the rest.

use std::path::Path;
use std::time::Duration;

use sluice_tests::pair::{MIB, bytes, text};
use sluice_tests::{Site, World, wait};

/// A site whose part of the line is small, so that a copy lasts long enough to be shared.
const CAP_MBPS: u64 = 80;

fn served(site: &Site) -> u64 {
    site.json(["status"])["served_bytes_total"].as_u64().expect("a number")
}

fn follower(world: &World, name: &str) -> Site {
    let mut site = world.sleeping_site(name);
    site.set("SLUICE__FOLLOW__ENABLED", "true");
    site.start();
    site
}

/// From here on it gives no more than this in a second.
fn cap(site: &mut Site) {
    site.set("SLUICE__LIMITS__MAX_MBPS", &CAP_MBPS.to_string());
    site.restart();
}

fn join(site: &Site, ticket: &str, into: &Path) {
    site.json(["join", ticket, "--into", text(into)]);
}

#[test]
fn three_sites_serve_one_and_one_of_them_dies() {
    let world = World::new();
    let large = bytes(1, 160 * MIB);
    let lake = world.plain_lake("lake", &[("raw/large", &large), ("raw/note.txt", b"acme")]);
    let mut owner = follower(&world, "playground");
    owner.json(["space", "add", "acme", text(&lake)]);
    let mut helpers = ["cradle one", "cradle two"].map(|name| follower(&world, name));
    for (i, helper) in helpers.iter().enumerate() {
        join(helper, &owner.invite("acme"), &world.path(&format!("copy {i}")));
    }
    cap(&mut owner);
    helpers.iter_mut().for_each(cap);

    let fourth = follower(&world, "fourth");
    let (ticket, copy) = (owner.invite("acme"), world.path("copy of the fourth"));
    let [one, two] = &mut helpers;
    let before = served(two);
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| join(&fourth, &ticket, &copy));
        // Helpers hear from the owner that the fourth was let in, while it copies already.
        wait::until("the first helper to help", Duration::from_secs(60), || {
            (served(one) > 4 * MIB as u64).then_some(())
        });
        one.kill9();
        joining.join().expect("the copy comes");
    });
    assert!(std::fs::read(copy.join("raw/large")).expect("published") == large);
    let helped = served(two) - before;
    assert!(helped > 4 * MIB as u64, "the second helper served {helped} bytes");
    assert_eq!(fourth.json(["verify", "acme", "--deep"])["ok"], true);
    let moved = fourth.json(["status"])["moved_bytes_total"].as_u64().expect("a number");
    assert!(moved < large.len() as u64 * 11 / 10, "{moved} bytes came for {}", large.len());
}

#[test]
fn an_empty_file_needs_no_source() {
    let world = World::new();
    let files: [(&str, &[u8]); 3] = [("metadata/_SUCCESS", b""), ("raw/large", &bytes(4, MIB)), ("raw/.keep", b"")];
    let lake = world.plain_lake("lake", &files);
    let [owner, replica] = ["playground", "cradle"].map(|name| world.site(name));
    owner.json(["space", "add", "acme", text(&lake)]);
    let copy = world.path("copy");
    join(&replica, &owner.invite("acme"), &copy);
    for (name, data) in files {
        assert!(std::fs::read(copy.join(name)).expect("published") == data, "{name}");
    }
    // Alone in a version it is the whole transfer.
    std::fs::write(lake.join("metadata/_READY"), b"").expect("the lake is ours");
    owner.json(["snapshot", "acme"]);
    assert_eq!(replica.json(["sync", "acme"])["spaces"][0]["published"], true);
    assert!(std::fs::read(copy.join("metadata/_READY")).expect("published").is_empty());
}
