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

/// What an owner behind a capped line served of text that came after noise, and what the replica says was spared.
fn served_of(world: &World, name: &str, set: &[(&str, &str)]) -> (u64, u64) {
    let rows: String = (0..400_000u64).map(|i| format!("{i},acme,{},2026-11-21\n", i * 7919 % 1000)).collect();
    let noise = bytes(3, MIB);
    let lake = world.plain_lake(&format!("lake {name}"), &[("raw/noise", &noise)]);
    let sites = ["playground", "cradle"].map(|role| {
        let mut site = world.sleeping_site(&format!("{role} {name}"));
        site.set("SLUICE__LIMITS__MAX_MBPS", "40");
        set.iter().for_each(|(key, value)| site.set(key, value));
        site.start();
        site
    });
    let [owner, replica] = &sites;
    owner.json(["space", "add", "acme", text(&lake)]);
    let copy = world.path(&format!("copy {name}"));
    // The first copy finds out which lane goes.
    join(replica, &owner.invite("acme"), &copy);
    let files = [("raw/rows.csv", rows.as_bytes()), ("raw/small.csv", &rows.as_bytes()[..60_000])];
    for (name, data) in files {
        std::fs::write(lake.join(name), data).expect("the lake is ours");
    }
    owner.json(["snapshot", "acme"]);
    replica.json(["sync", "acme"]);
    for (name, data) in files {
        assert!(std::fs::read(copy.join(name)).expect("published") == data, "{name}");
    }
    let served = owner.json(["status"])["served_bytes_total"].as_u64().expect("a number");
    let peer = replica.json(["peer", "show", owner.name()]);
    (served, peer["bulk"]["saved_bytes"].as_u64().expect("a number"))
}

#[test]
fn what_packs_well_is_packed_on_a_slow_line_of_any_lane() {
    let world = World::new();
    // Ten megabytes of rows and one of noise.
    let (plain, saved) = served_of(&world, "plain", &[("SLUICE__P2P__COMPRESS", "false")]);
    assert!(plain > 11 * MIB as u64 && saved == 0, "{plain} bytes were sent, and {saved} spared");
    for tls in ["true", "false"] {
        let (packed, saved) = served_of(&world, tls, &[("SLUICE__P2P__TLS", tls)]);
        assert!(
            packed < plain / 2 && packed > MIB as u64,
            "{packed} bytes were sent, {plain} without packing; tls: {tls}"
        );
        // What describes versions comes packed as well, and is not counted there.
        assert!(
            (plain - packed).abs_diff(saved) < plain / 10,
            "{saved} are told as spared of {plain}; {packed} were sent"
        );
    }
}
