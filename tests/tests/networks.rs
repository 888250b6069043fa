//! Bad networks: slow, lossy, disordered, cut, moved, one-sided. Two and three sites, each in a network
//! namespace of its own; whatever happens between them, they come to the same snapshot after it healed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_tests::net::{Net, Space};
use sluice_tests::shaper::{Conditions, Door, Shaper};
use sluice_tests::{Site, World, wait};

/// The promise: a minute after the network heals.
const CONVERGE_WITHIN: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const NEVER: &str = "86400";

fn text(path: &Path) -> &str {
    path.to_str().expect("worlds have UTF-8 paths")
}

/// Bytes that no chunk repeats and no line compresses.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A site that follows, in a namespace. `reached` is one more address that others may reach it at.
fn site(world: &World, space: &Space, name: &str, reached: Option<SocketAddr>) -> Site {
    let mut site = world.sleeping_site(name);
    space.house(&mut site);
    site.set("SLUICE__FOLLOW__ENABLED", "true");
    site.set("SLUICE__FOLLOW__DEBOUNCE_MS", "100");
    site.set("SLUICE__FOLLOW__RESCAN_S", NEVER);
    site.set("SLUICE__P2P__PORT", "7711");
    if let Some(reached) = reached {
        site.set("SLUICE__P2P__ADDRESSES", &format!("[\"{reached}\"]"));
    }
    site.start();
    site
}

fn share(owner: &Site, lake: &Path) {
    owner.json(["space", "add", "acme", text(lake)]);
}

fn join(world: &World, owner: &Site, replica: &Site) -> PathBuf {
    let into = world.path(&format!("copy of {}", replica.name()));
    replica.json(["join", &owner.invite("acme"), "--into", text(&into)]);
    into
}

fn space_of(site: &Site) -> Value {
    site.json(["status"])["spaces"][0].clone()
}

/// Waits until the newest snapshot of the owner, with these bytes in it, is live at the replica.
#[track_caller]
fn converges(owner: &Site, replica: &Site, file: &Path, bytes: &[u8]) -> Duration {
    let start = Instant::now();
    wait::until(&format!("`{}` to come", file.display()), CONVERGE_WITHIN, || {
        let here = std::fs::read(file).is_ok_and(|b| b == bytes);
        (here && space_of(owner)["snapshot"] == space_of(replica)["snapshot"]).then_some(())
    });
    start.elapsed()
}

/// An owner and a replica that have no way to each other but a shaper.
struct Pair {
    owner: Site,
    replica: Site,
    shaper: Shaper,
    lake: PathBuf,
    copy: PathBuf,
    // Dropped last: the sites live in them.
    world: World,
    _net: Net,
}

impl Pair {
    fn new(seed: u64) -> Option<Self> {
        let mut net = Net::new()?;
        let world = World::new();
        let (left, middle, right) = (net.space(), net.space(), net.space());
        net.cable((&left, "10.77.1.2/24"), (&middle, "10.77.1.1/24"));
        net.cable((&right, "10.77.2.2/24"), (&middle, "10.77.2.1/24"));
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let doors = [
            Door { at: address("10.77.2.1:7711"), to: address("10.77.1.2:7711") },
            Door { at: address("10.77.1.1:7711"), to: address("10.77.2.2:7711") },
        ];
        let shaper = Shaper::start(&middle.file(), doors, seed);
        let lake = world.plain_lake("lake", &[("raw/a.txt", b"one"), ("raw/still.bin", &noise(1, 300_000))]);
        let owner = site(&world, &left, "playground", Some(doors[0].at));
        share(&owner, &lake);
        let replica = site(&world, &right, "cradle", Some(doors[1].at));
        let copy = join(&world, &owner, &replica);
        Some(Self { owner, replica, shaper, lake, copy, world, _net: net })
    }

    /// Changes the lake under these conditions, and waits until the change is there.
    fn follows(&self, what: &str, conditions: Conditions, bytes: usize) {
        self.shaper.set(conditions);
        // Nothing of what came over an earlier line helps with this one.
        let seed = u64::from_le_bytes(blake3::hash(what.as_bytes()).as_bytes()[..8].try_into().expect("eight bytes"));
        let data = noise(seed, bytes);
        std::fs::write(self.lake.join("raw/new.bin"), &data).expect("the lake is ours");
        let took = converges(&self.owner, &self.replica, &self.copy.join("raw/new.bin"), &data);
        let (passed, lost) = self.shaper.counts();
        eprintln!("{what}: {bytes} bytes came in {took:.1?}; {passed} packets passed, {lost} were lost");
        assert!(conditions.loss_permille == 0 || lost > 0, "the line lost nothing");
    }
}

const LOSSY: Conditions =
    Conditions { delay: Duration::from_millis(10), jitter: Duration::ZERO, loss_permille: 300, rate: None, cut: false };
const FAR: Conditions = Conditions { delay: Duration::from_millis(300), loss_permille: 50, ..LOSSY };
const DISORDERED: Conditions =
    Conditions { delay: Duration::from_millis(5), jitter: Duration::from_millis(80), loss_permille: 0, ..LOSSY };

#[test]
fn a_far_and_lossy_line_is_followed() {
    let Some(pair) = Pair::new(1) else { return };
    pair.follows("600 ms and 5 % loss", FAR, MIB / 8);
}

#[test]
fn a_line_that_loses_a_third_is_followed() {
    let Some(pair) = Pair::new(2) else { return };
    pair.follows("30 % loss", LOSSY, MIB / 8);
    pair.follows("packets that overtake each other", DISORDERED, MIB / 2);
}

#[test]
fn a_cut_in_the_middle_of_a_transfer_costs_next_to_nothing() {
    let Some(pair) = Pair::new(3) else { return };
    let size = 24 * MIB;
    pair.shaper.set(Conditions { delay: Duration::from_millis(5), rate: Some(24_000_000), ..Conditions::default() });
    // At the owner: what was on its way when the line was cut counts, too.
    let served = || pair.owner.json(["status"])["served_bytes_total"].as_u64().expect("a number");
    let (before, third) = (served(), size as u64 / 3);
    let data = noise(9, size);
    std::fs::write(pair.lake.join("raw/big.bin"), &data).expect("the lake is ours");
    wait::until("a third of it to be on its way", CONVERGE_WITHIN, || (served() - before >= third).then_some(()));
    pair.shaper.cut(true);
    let first = served() - before;
    assert!(first < 2 * third, "{first} bytes of {size} had gone before the cut");
    let job = pair.replica.json(["status"])["jobs"][0].clone();
    assert_eq!(job["stage"], "transfer", "{job}");
    std::thread::sleep(Duration::from_secs(20));
    pair.shaper.cut(false);
    let took = converges(&pair.owner, &pair.replica, &pair.copy.join("raw/big.bin"), &data);
    let sent = served() - before;
    eprintln!("cut after {first} bytes; it came {took:.1?} after the line had healed; {sent} bytes for {size}");
    assert!(sent <= (size + size / 100) as u64, "{sent} bytes were sent for {size}: more than 1 % twice");
}

#[test]
fn a_slow_line_is_followed() {
    let Some(mut net) = Net::new() else { return };
    let world = World::new();
    let (left, right) = (net.space(), net.space());
    let ends = net.cable((&left, "10.77.1.1/24"), (&right, "10.77.1.2/24"));
    for (space, end) in [&left, &right].into_iter().zip(&ends) {
        space.run(&[
            "tc", "qdisc", "add", "dev", end, "root", "tbf", "rate", "8mbit", "burst", "32kb", "latency", "50ms",
        ]);
    }
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    let owner = site(&world, &left, "playground", None);
    share(&owner, &lake);
    let replica = site(&world, &right, "cradle", None);
    let copy = join(&world, &owner, &replica);
    let data = noise(4, 3 * MIB);
    std::fs::write(lake.join("raw/new.bin"), &data).expect("the lake is ours");
    let took = converges(&owner, &replica, &copy.join("raw/new.bin"), &data);
    let queue = left.run(&["tc", "-s", "qdisc", "show", "dev", &ends[0]]);
    eprintln!("3 MiB came in {took:.1?} over 8 Mbit/s: {}", queue.lines().nth(1).unwrap_or_default().trim());
    assert!(queue.contains("tbf"), "{queue}");
}

#[test]
fn an_owner_that_moved_is_found_again() {
    let Some(mut net) = Net::new() else { return };
    let world = World::new();
    let (left, right) = (net.space(), net.space());
    let ends = net.cable((&left, "10.77.1.1/16"), (&right, "10.77.1.2/16"));
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    let owner = site(&world, &left, "playground", None);
    share(&owner, &lake);
    let replica = site(&world, &right, "cradle", None);
    let copy = join(&world, &owner, &replica);

    left.ip(&["addr", "del", "10.77.1.1/16", "dev", &ends[0]]);
    left.ip(&["addr", "add", "10.77.9.9/16", "dev", &ends[0]]);
    std::fs::write(lake.join("raw/a.txt"), "two").expect("the lake is ours");
    converges(&owner, &replica, &copy.join("raw/a.txt"), b"two");
    wait::until("the new address to be known", CONVERGE_WITHIN, || {
        let peers = replica.json(["peer", "list"]);
        peers[0]["addresses"].to_string().contains("10.77.9.9").then_some(())
    });
    // And now it is the replica's turn to move.
    right.ip(&["addr", "del", "10.77.1.2/16", "dev", &ends[1]]);
    right.ip(&["addr", "add", "10.77.8.8/16", "dev", &ends[1]]);
    std::fs::write(lake.join("raw/a.txt"), "three").expect("the lake is ours");
    converges(&owner, &replica, &copy.join("raw/a.txt"), b"three");
}

#[test]
fn who_cannot_reach_the_owner_comes_along_through_a_third_site() {
    let Some(mut net) = Net::new() else { return };
    let world = World::new();
    let [a, b, c] = [net.space(), net.space(), net.space()];
    net.cable((&a, "10.77.1.1/24"), (&c, "10.77.1.3/24"));
    net.cable((&b, "10.77.2.2/24"), (&c, "10.77.2.3/24"));
    let direct = net.cable((&a, "10.77.3.1/24"), (&b, "10.77.3.2/24"));
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    let owner = site(&world, &a, "playground", None);
    share(&owner, &lake);
    let [left, right] = [site(&world, &b, "left", None), site(&world, &c, "right", None)];
    let copies = [&left, &right].map(|site| join(&world, &owner, site));
    // Once more while all reach all: so each has the other's card from the owner.
    std::fs::write(lake.join("raw/a.txt"), "two").expect("the lake is ours");
    converges(&owner, &left, &copies[0].join("raw/a.txt"), b"two");
    converges(&owner, &right, &copies[1].join("raw/a.txt"), b"two");

    a.ip(&["link", "del", &direct[0]]);
    std::fs::write(lake.join("raw/a.txt"), "three").expect("the lake is ours");
    converges(&owner, &left, &copies[0].join("raw/a.txt"), b"three");
    assert_eq!(std::fs::read(copies[1].join("raw/a.txt")).expect("it came through here"), b"three");
}

#[test]
fn the_tls_lane_holds_on_a_far_and_lossy_line() {
    let Some(mut net) = Net::new() else { return };
    let world = World::new();
    let (left, right) = (net.space(), net.space());
    let Some(line) = net.line((&left, "10.77.1.1/24"), (&right, "10.77.1.2/24"), 5) else { return };
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one"), ("raw/still.bin", &noise(1, 300_000))]);
    let owner = site(&world, &left, "playground", None);
    share(&owner, &lake);
    let replica = site(&world, &right, "cradle", None);
    let copy = join(&world, &owner, &replica);

    line.set(Conditions { delay: Duration::from_millis(10), loss_permille: 10, ..Conditions::default() });
    let data = noise(5, 4 * MIB);
    std::fs::write(lake.join("raw/new.bin"), &data).expect("the lake is ours");
    let took = converges(&owner, &replica, &copy.join("raw/new.bin"), &data);
    let [there, back] = line.counts();
    let bulk = replica.json(["peer", "show", "playground"])["bulk"].clone();
    eprintln!("4 MiB came in {took:.1?}; passed and lost there {there:?}, back {back:?}; {bulk}");
    assert!(there.1 > 10 && back.1 > 0, "the line lost too little: {there:?}, {back:?}");
    assert_eq!(bulk["lane"], "tls", "{bulk}");
    assert!(bulk["tls_bytes"].as_u64().expect("a number") >= 4 * MIB as u64, "{bulk}");
}

#[test]
#[ignore = "soak: some ten minutes of bad lines, each with more data"]
fn the_ladder_of_bad_lines() {
    let Some(pair) = Pair::new(4) else { return };
    let ms = Duration::from_millis;
    let base = Conditions::default();
    let rungs = [
        ("a good line", Conditions { delay: ms(1), ..base }, 64 * MIB),
        ("an ocean", Conditions { delay: ms(75), jitter: ms(5), loss_permille: 1, ..base }, 8 * MIB),
        (
            "a telephone",
            Conditions { delay: ms(50), jitter: ms(50), loss_permille: 20, rate: Some(2_000_000), ..base },
            MIB,
        ),
        (
            "a satellite",
            Conditions { delay: ms(300), jitter: ms(20), loss_permille: 10, rate: Some(8_000_000), ..base },
            MIB,
        ),
        ("a far and lossy line", FAR, MIB / 4),
        ("a third lost", LOSSY, MIB / 2),
        ("disorder", DISORDERED, 4 * MIB),
    ];
    for (what, conditions, bytes) in rungs {
        pair.follows(what, conditions, bytes);
    }
    for cut in [5, 40, 120] {
        pair.shaper.set(Conditions { delay: ms(5), rate: Some(24_000_000), ..base });
        let data = noise(cut, 16 * MIB);
        std::fs::write(pair.lake.join("raw/cut.bin"), &data).expect("the lake is ours");
        std::thread::sleep(Duration::from_secs(2));
        pair.shaper.cut(true);
        std::thread::sleep(Duration::from_secs(cut));
        pair.shaper.cut(false);
        let took = converges(&pair.owner, &pair.replica, &pair.copy.join("raw/cut.bin"), &data);
        eprintln!("{took:.1?} after a cut of {cut} s");
    }
    let verified = pair.replica.json(["verify", "acme", "--deep"]);
    assert_eq!(verified["ok"], true, "{verified} in {}", pair.world.dir().display());
}
