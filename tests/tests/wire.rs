//! What a site takes of the line: caps hold, and bytes that become fewer by it are compressed where the line is slow.

use std::path::Path;
use std::time::Instant;

use sluice_tests::pair::{MIB, bytes, text};
use sluice_tests::{Site, World};

fn join(site: &Site, ticket: &str, into: &Path) {
    site.json(["join", ticket, "--into", text(into)]);
}

#[test]
fn nothing_goes_faster_than_the_cap() {
    for (capped, lane) in [("playground", "true"), ("cradle", "false")] {
        let world = World::new();
        let data = bytes(2, 10 * MIB);
        let lake = world.plain_lake("lake", &[("raw/large", &data), ("raw/small", &data[..100_000])]);
        let [owner, replica] = ["playground", "cradle"].map(|name| {
            let mut site = world.sleeping_site(name);
            site.set("SLUICE__P2P__TLS", lane);
            if name == capped {
                site.set("SLUICE__LIMITS__MAX_MBPS", "40");
            }
            site.start();
            site
        });
        owner.json(["space", "add", "acme", text(&lake)]);
        let (ticket, start) = (owner.invite("acme"), Instant::now());
        join(&replica, &ticket, &world.path("copy"));
        let took = start.elapsed().as_secs_f64();
        // Ten mebibytes at five million bytes a second.
        assert!(took > 1.9, "{capped} is capped, and the copy took {took} s");
    }
}

/// An owner behind a capped line, and what it served of a lake of text and of noise that was copied whole.
fn served_of(world: &World, tls: &str, set: &[(&str, &str)]) -> (u64, Site, Site) {
    let rows: String = (0..400_000u64).map(|i| format!("{i},acme,{},2026-11-21\n", i * 7919 % 1000)).collect();
    let noise = bytes(3, MIB);
    let lake = world.plain_lake(&format!("lake {tls}"), &[("raw/noise", &noise)]);
    let [owner, replica] = ["playground", "cradle"].map(|name| {
        let mut site = world.sleeping_site(&format!("{name} {tls}"));
        site.set("SLUICE__P2P__TLS", tls);
        set.iter().for_each(|(key, value)| site.set(key, value));
        site.start();
        site
    });
    owner.json(["space", "add", "acme", text(&lake)]);
    let copy = world.path(&format!("copy {tls}"));
    // The first copy finds out which lane goes.
    join(&replica, &owner.invite("acme"), &copy);
    let files = [("raw/rows.csv", rows.as_bytes()), ("raw/small.csv", &rows.as_bytes()[..60_000])];
    for (name, data) in files {
        std::fs::write(lake.join(name), data).expect("the lake is ours");
    }
    owner.json(["snapshot", "acme"]);
    replica.json(["sync", "acme"]);
    for (name, data) in files {
        assert!(std::fs::read(copy.join(name)).expect("published") == data, "{name}");
    }
    (owner.json(["status"])["served_bytes_total"].as_u64().expect("a number"), owner, replica)
}

#[test]
fn what_packs_well_is_packed_on_a_slow_line() {
    let world = World::new();
    let (plain, ..) = served_of(&world, "false", &[("SLUICE__LIMITS__MAX_MBPS", "40")]);
    let (packed, _owner, replica) = served_of(&world, "true", &[("SLUICE__LIMITS__MAX_MBPS", "40")]);
    let peer = replica.json(["peer", "show", "playground true"]);
    // Eleven megabytes of rows and one of noise.
    assert!(packed < plain / 2 && packed > MIB as u64, "{packed} bytes were sent, {plain} without packing: {peer}");
    let saved = peer["bulk"]["saved_bytes"].as_u64().expect("a number");
    assert!(saved > plain / 3, "{saved} of {plain} bytes are told as spared: {peer}");
}
