//! Daemons are killed at every point where they change a disk, and at random moments.
//!
//! After each kill a reader must find the version before or the new one, whole (I1); in the end the
//! copy equals the source, hashes to its id (I2), nothing lies outside lake and home (I3), and every
//! command that did not reach its end said so (I4). `docs/reliability.md` lists the points.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sluice_tests::{Output, Site, World};

/// A tree as a reader sees it: path → bytes.
type Tree = BTreeMap<String, Vec<u8>>;

const MIB: usize = 1 << 20;
/// Changes that are tried for one point before it counts as not reached.
const CHANGES_PER_POINT_MAX: usize = 3;

/// A generator of small numbers: xorshift, so that a seed tells all.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn tree(root: &Path) -> Tree {
    fn walk(folder: &Path, prefix: &str, found: &mut Tree) {
        for entry in std::fs::read_dir(folder).expect("a folder of the tree").map(|e| e.expect("an entry")) {
            let name = entry.file_name().into_string().expect("UTF-8");
            if prefix.is_empty() && name == ".sluice" {
                continue;
            }
            let path = entry.path();
            if path.is_dir() {
                walk(&path, &format!("{prefix}{name}/"), found);
            } else {
                found.insert(format!("{prefix}{name}"), std::fs::read(&path).expect("a file of the tree"));
            }
        }
    }
    let mut found = Tree::new();
    walk(root, "", &mut found);
    found
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// An owner and a replica of one lake, and which versions a reader may see now.
struct Pair {
    world: World,
    owner: Site,
    replica: Site,
    lake: PathBuf,
    copy: PathBuf,
    ticket: String,
    version: u64,
    /// A version has arrived.
    arrived: bool,
    /// Versions since the last one that is known to have arrived; any of them may be live.
    before: Vec<Tree>,
    now: Tree,
}

impl Pair {
    fn new() -> Self {
        let world = World::new();
        let lake = world.plain_lake("lake", &[("raw/a.txt", b"one"), ("raw/d/e/f", b"deep"), ("notes/n", b"n")]);
        std::fs::write(lake.join("raw/big"), bytes(0, 3 * MIB)).expect("a file of the lake");
        let mut owner = Site::init(world.dir(), "playground");
        owner.set("SLUICE_FAULTS", "");
        owner.start();
        owner.json(["space", "add", "acme", text(&lake)]);
        let ticket = owner.invite("acme");
        let (replica, copy) = (fresh(&world, "cradle"), world.path("copy"));
        let now = tree(&lake);
        Self { world, owner, replica, lake, copy, ticket, version: 0, arrived: false, before: vec![], now }
    }

    /// Another version of the lake: files that change, come, go and move.
    fn change(&mut self) {
        self.before.push(self.now.clone());
        self.version += 1;
        let v = self.version;
        let at = |path: &str| self.lake.join(path);
        std::fs::write(at("raw/a.txt"), format!("version {v}")).expect("a file of the lake");
        let mut big = std::fs::read(at("raw/big")).expect("a file of the lake");
        let from = (v as usize * 300_000) % (2 * MIB);
        big[from..from + MIB / 2].copy_from_slice(&bytes(v, MIB / 2));
        std::fs::write(at("raw/big"), big).expect("a file of the lake");
        std::fs::write(at(&format!("notes/new-{v}")), bytes(v, 100_000)).expect("a file of the lake");
        // A whole file above the size of those that travel in batches.
        std::fs::write(at(&format!("raw/large-{v}")), bytes(!v, 400_000)).expect("a file of the lake");
        let _ = std::fs::remove_file(at(&format!("raw/large-{}", v - 1)));
        let _ = std::fs::rename(at(&format!("notes/new-{}", v - 1)), at(&format!("notes/moved-{v}")));
        let _ = std::fs::remove_file(at(&format!("notes/moved-{}", v - 1)));
        self.now = tree(&self.lake);
    }

    fn snapshot(&self) -> Output {
        self.owner.run(["snapshot", "acme", "--json"])
    }

    fn join(&mut self) -> Output {
        let done = self.replica.run(["join", &self.ticket, "--into", text(&self.copy), "--json"]);
        self.told(done)
    }

    fn sync(&mut self) -> Output {
        let done = self.replica.run(["sync", "acme", "--json"]);
        self.told(done)
    }

    /// After a success the present version is the only one that may be live.
    fn told(&mut self, done: Output) -> Output {
        if done.code == 0 {
            self.arrived = true;
            self.before.clear();
        }
        done
    }

    /// What a reader finds through the live link is one whole version (I1).
    #[track_caller]
    fn assert_whole(&self, what: &str) {
        let live = self.copy.join(".sluice/live");
        if std::fs::symlink_metadata(&live).is_err() {
            assert!(!self.arrived, "after {what} nothing is live");
            return;
        }
        let seen = tree(&live);
        let whole = seen == self.now || self.before.contains(&seen);
        assert!(whole, "after {what} a reader sees {:?}", seen.keys());
    }

    /// The copy is the source, by bytes, by id and by hash, and nothing else was written (I1–I3).
    #[track_caller]
    fn assert_same(&self, what: &str) {
        assert!(tree(&self.copy) == self.now, "after {what} the copy differs");
        let verified = self.replica.json(["verify", "acme", "--deep"]);
        assert_eq!(verified["ok"], true, "after {what}: {verified}");
        let id = |site: &Site| site.json(["space", "show", "acme"])["snapshot"].clone();
        assert_eq!(id(&self.owner), id(&self.replica), "after {what}");
        let outside = std::fs::read_dir(self.world.dir()).expect("the world").map(|e| e.expect("an entry").file_name());
        let known = ["lake", "copy", "playground", "cradle", "playground.log", "cradle.log", "points"];
        let strange: Vec<_> = outside.filter(|n| !known.iter().any(|k| n == k)).collect();
        assert!(strange.is_empty(), "after {what}: {strange:?}");
    }
}

fn fresh(world: &World, name: &str) -> Site {
    let mut site = Site::init(world.dir(), name);
    // Old versions go at once, so that their removal is seen too.
    site.set("SLUICE__PUBLISH__READERS_GRACE_S", "0");
    site.set("SLUICE__PUBLISH__KEEP_GENERATIONS", "1");
    site
}

/// Starts a site with faults; `false` when it was killed before it answered.
fn start_with(site: &mut Site, faults: &str) -> bool {
    site.set("SLUICE_FAULTS", faults);
    site.try_start()
}

/// Every point that was passed, from a log.
fn points(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).expect("a log of points");
    text.lines().map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The points of a first copy and of some changes, on one of the sites.
struct Passed {
    first: Vec<String>,
    change: Vec<String>,
}

/// Runs a pair through a first copy and changes, and logs the points of one site.
fn passed(of_owner: bool) -> Passed {
    let mut pair = Pair::new();
    let log = |name: &str| pair.world.path("points").join(name);
    std::fs::create_dir(pair.world.path("points")).expect("a folder of the world");
    let (first, change) = (log("first"), log("change"));
    let rule = |path: &Path| format!("*=log:{}", path.display());
    if of_owner {
        pair.owner.stop();
        assert!(start_with(&mut pair.owner, &rule(&first)));
    }
    assert!(start_with(&mut pair.replica, &if of_owner { String::new() } else { rule(&first) }));
    pair.join().ok();
    pair.assert_same("the join");
    let (site, path) = if of_owner { (&mut pair.owner, &change) } else { (&mut pair.replica, &change) };
    site.stop();
    assert!(start_with(site, &rule(path)));
    for _ in 0..CHANGES_PER_POINT_MAX {
        pair.change();
        pair.snapshot().ok();
        pair.sync().ok();
    }
    pair.assert_same("the changes");
    Passed { first: points(&first), change: points(&change) }
}

/// Kills the replica at each point in turn while a chain of changes reaches it. Gives what was not reached.
fn kill_replica_at(pair: &mut Pair, points: &[String], hit: u64) -> Vec<String> {
    let mut missed = Vec::new();
    for point in points {
        let what = format!("{point}@{hit}=kill");
        let mut dead = !start_with(&mut pair.replica, &what);
        for _ in 0..CHANGES_PER_POINT_MAX {
            if dead {
                break;
            }
            let done = pair.sync();
            dead = pair.replica.has_ended();
            assert!(dead || done.code == 0, "{what}: {done:#?}");
            assert!(!dead || done.code != 0 || is_after_the_end(point), "{what}: a killed sync says that it is done");
            if !dead {
                pair.change();
                pair.snapshot().ok();
            }
        }
        pair.assert_whole(&what);
        if !dead {
            missed.push(point.clone());
        }
        pair.replica.kill9_if_up();
    }
    assert!(start_with(&mut pair.replica, ""));
    pair.sync().ok();
    pair.assert_same("all kills");
    missed
}

/// What is done after the answer was given, or when the daemon ends.
fn is_after_the_end(point: &str) -> bool {
    point.starts_with("catalog.") || point.starts_with("staging.remove")
}

#[test]
fn a_replica_that_is_killed_anywhere_in_a_change_goes_on() {
    let passed = passed(false);
    let mut pair = Pair::new();
    assert!(start_with(&mut pair.replica, ""));
    pair.join().ok();
    pair.replica.kill9();
    pair.change();
    pair.snapshot().ok();
    let missed = kill_replica_at(&mut pair, &passed.change, 1);
    assert!(missed.len() * 5 <= passed.change.len(), "of {:?} these were not reached: {missed:?}", passed.change);
    eprintln!("killed at {} points; not reached: {missed:?}", passed.change.len() - missed.len());
}

/// Kills a joining replica at each of these points; the same ticket serves the same site again.
fn kill_first_copy_at(points: &[String], hit: u64) {
    let mut pair = Pair::new();
    for (number, point) in points.iter().enumerate() {
        let what = format!("{point}@{hit}=kill");
        pair.replica.kill9_if_up();
        pair.replica = fresh(&pair.world, &format!("cradle{number}"));
        pair.copy = pair.world.path(&format!("copy{number}"));
        pair.ticket = pair.owner.invite("acme");
        pair.arrived = false;
        if start_with(&mut pair.replica, &what) {
            let done = pair.join();
            let dead = pair.replica.has_ended();
            assert!(dead || done.code == 0, "{what}: {done:#?}");
        }
        pair.assert_whole(&what);
        pair.replica.kill9_if_up();
        assert!(start_with(&mut pair.replica, ""), "{what}: the site does not start again");
        pair.join_or_sync().ok();
        assert!(tree(&pair.copy) == pair.now, "after {what} the copy differs");
    }
}

impl Pair {
    /// What a person does after a join broke off: the same again, and `sync` once the space is here.
    fn join_or_sync(&mut self) -> Output {
        let joined = self.join();
        if joined.code == 0 { joined } else { self.sync() }
    }
}

/// Points of a first copy that no change passes: folders made once, a catalog that is new.
#[test]
fn a_join_that_is_killed_anywhere_goes_on_with_the_same_ticket() {
    let passed = passed(false);
    let once: Vec<String> = passed.first.iter().filter(|p| !passed.change.contains(p)).cloned().collect();
    assert!(once.len() > 3, "{:?}", passed.first);
    kill_first_copy_at(&once, 1);
    // The commits of pairing, on this side.
    for hit in 1..=4 {
        kill_first_copy_at(&["catalog.commit".to_owned()], hit);
    }
}

#[test]
fn an_owner_that_is_killed_anywhere_in_a_snapshot_goes_on() {
    let passed = passed(true);
    let mut pair = Pair::new();
    assert!(start_with(&mut pair.replica, ""));
    pair.join().ok();
    pair.owner.kill9();
    for point in &passed.change {
        let what = format!("{point}@1=kill");
        pair.change();
        if start_with(&mut pair.owner, &what) {
            let done = pair.snapshot();
            assert!(pair.owner.has_ended() || done.code == 0, "{what}: {done:#?}");
        }
        pair.owner.kill9_if_up();
        assert!(start_with(&mut pair.owner, ""), "{what}: the site does not start again");
        pair.snapshot().ok();
        pair.sync().ok();
        assert!(tree(&pair.copy) == pair.now, "after {what} the copy differs");
        pair.owner.kill9();
    }
    assert!(start_with(&mut pair.owner, ""));
    pair.assert_same("all kills");
}

#[test]
fn the_owners_side_of_pairing_is_killed_at_its_commits() {
    // A guest whose host died waits for the connection to time out, so few.
    kill_host_at_commits(&[1, 2]);
}

#[test]
#[ignore = "soak: waits for connections to time out, some minutes"]
fn the_owners_side_of_pairing_is_killed_at_more_commits() {
    kill_host_at_commits(&[3, 4, 5, 6]);
}

fn kill_host_at_commits(hits: &[u64]) {
    let mut pair = Pair::new();
    for hit in hits {
        let what = format!("catalog.commit@{hit}=kill");
        pair.replica.kill9_if_up();
        pair.replica = fresh(&pair.world, &format!("cradle{hit}"));
        pair.copy = pair.world.path(&format!("copy{hit}"));
        pair.ticket = pair.owner.invite("acme");
        pair.owner.kill9();
        let up = start_with(&mut pair.owner, &what);
        assert!(start_with(&mut pair.replica, ""));
        if up {
            let done = pair.join();
            assert!(pair.owner.has_ended() || done.code == 0, "{what}: {done:#?}");
        }
        pair.owner.kill9_if_up();
        assert!(start_with(&mut pair.owner, ""), "{what}: the site does not start again");
        pair.join_or_sync().ok();
        assert!(tree(&pair.copy) == pair.now, "after {what} the copy differs");
    }
}

/// The page says what there is: every point that these runs pass is in it, so a new write is named there.
#[test]
fn the_page_lists_the_points() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reliability.md");
    let page = std::fs::read_to_string(page).expect("the page on reliability");
    let (owner, replica) = (passed(true), passed(false));
    let all: BTreeSet<String> =
        [owner.first, owner.change, replica.first, replica.change].concat().into_iter().collect();
    let missing: Vec<_> = all.iter().filter(|p| !page.contains(&format!("`{p}`"))).collect();
    assert!(missing.is_empty(), "docs/reliability.md does not list {missing:?}");
}

#[test]
fn settings_for_faults_that_cannot_be_read_are_refused() {
    let world = World::new();
    let mut site = Site::init(world.dir(), "cradle");
    site.set("SLUICE_FAULTS", "live.replace@first=kill");
    let (error, hint) = site.fails(2, ["status"]);
    assert!(error.contains("live.replace@first=kill") && hint.contains("SLUICE_FAULTS"), "{error} / {hint}");
}

/// A disk fails once while a first copy arrives: it is said, and the same daemon goes on afterwards.
#[test]
fn a_failing_disk_is_said_and_the_same_daemon_goes_on() {
    let mut pair = Pair::new();
    let faults =
        ["staging.write@2=ENOSPC", "staging.sync-data@1=EIO", "sections.rename@2=EIO", "catalog.write@150=ENOSPC"];
    for (number, fault) in faults.into_iter().enumerate() {
        pair.replica.kill9_if_up();
        pair.replica = fresh(&pair.world, &format!("cradle{number}"));
        pair.copy = pair.world.path(&format!("copy{number}"));
        pair.ticket = pair.owner.invite("acme");
        pair.arrived = false;
        assert!(start_with(&mut pair.replica, fault));
        let failed = pair.join();
        if failed.code != 0 {
            let (error, _) = failed.failure();
            assert!(error.contains("full") == fault.contains("ENOSPC") && !error.is_empty(), "{fault}: {error}");
        }
        pair.assert_whole(fault);
        assert_eq!(pair.replica.json(["status"])["name"], format!("cradle{number}").as_str(), "{fault}");
        pair.join_or_sync().ok();
        assert!(tree(&pair.copy) == pair.now, "after {fault} the copy differs");
    }
}

/// Kills of both daemons at random moments while the lake changes.
fn random_kills(kills: u64, seed: u64) {
    eprintln!("seed {seed}");
    let mut dice = Dice(seed);
    let mut pair = Pair::new();
    assert!(start_with(&mut pair.replica, ""));
    pair.join().ok();
    for kill in 0..kills {
        let what = format!("kill {kill} of seed {seed}");
        let fresh_version = dice.roll(2) == 0;
        if fresh_version {
            pair.change();
        }
        let commands = [
            pair.owner.command(["snapshot", "acme", "--json"]).output_later(),
            pair.replica.command(["sync", "acme", "--json"]).output_later(),
        ];
        // The moment of a kill is chance: nothing waits for it to be a good one.
        std::thread::sleep(std::time::Duration::from_millis(dice.roll(250)));
        match dice.roll(3) {
            0 => pair.owner.kill9(),
            1 => pair.replica.kill9(),
            _ => {
                pair.owner.kill9();
                pair.replica.kill9();
            }
        }
        commands.into_iter().for_each(|c| drop(c.join()));
        pair.assert_whole(&what);
        for site in [&mut pair.owner, &mut pair.replica] {
            assert!(site.is_up() || site.try_start(), "{what}: {} does not start", site.name());
        }
        if dice.roll(4) == 0 {
            pair.snapshot().ok();
            pair.sync().ok();
            pair.assert_same(&what);
        }
    }
    pair.snapshot().ok();
    pair.sync().ok();
    pair.assert_same("all kills");
}

/// Starts a command; its output is waited for by whoever joins the thread.
trait OutputLater {
    fn output_later(self) -> std::thread::JoinHandle<()>;
}

impl OutputLater for std::process::Command {
    fn output_later(mut self) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || drop(self.output().expect("sluice starts")))
    }
}

#[test]
fn twenty_kills_at_random_moments() {
    random_kills(20, 0x5eed_0001);
}

#[test]
#[ignore = "soak: a thousand random kills, half an hour"]
fn a_thousand_kills_at_random_moments() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs() | 1;
    random_kills(1_000, seed);
}

#[test]
#[ignore = "soak: every point of a first copy, and of a change at later hits, ten minutes"]
fn every_point_is_killed_at_several_hits() {
    let passed = passed(false);
    for hit in [1, 2, 5] {
        kill_first_copy_at(&passed.first, hit);
        let mut pair = Pair::new();
        assert!(start_with(&mut pair.replica, ""));
        pair.join().ok();
        pair.replica.kill9();
        pair.change();
        pair.snapshot().ok();
        kill_replica_at(&mut pair, &passed.change, hit);
    }
}

/// Killed in the middle of a large file, at most one part in a hundred is moved twice.
#[test]
fn half_of_a_large_file_is_not_moved_again() {
    const SIZE: usize = 64 * MIB;
    let world = World::new();
    let large = bytes(7, SIZE);
    let lake = world.plain_lake("lake", &[("raw/large", &large)]);
    let owner = world.site("playground");
    owner.json(["space", "add", "acme", text(&lake)]);
    let join = |site: &Site, ticket: &str, copy: &Path| site.run(["join", ticket, "--into", text(copy), "--json"]);

    // How many writes the file takes: half of them is the middle.
    let (mut whole, log) = (fresh(&world, "whole"), world.path("writes"));
    assert!(start_with(&mut whole, &format!("staging.write=log:{}", log.display())));
    join(&whole, &owner.invite("acme"), &world.path("first")).ok();
    whole.kill9();
    let writes = std::fs::read_to_string(&log).expect("a log of writes").lines().count();
    assert!(writes > 20, "{writes} writes");

    let (mut site, copy, ticket) = (fresh(&world, "cradle"), world.path("copy"), owner.invite("acme"));
    assert!(start_with(&mut site, &format!("staging.write@{}=kill", writes / 2)));
    let cut = join(&site, &ticket, &copy);
    assert!(site.has_ended() && cut.code != 0, "{cut:#?}");
    let first = received(&copy.join(".sluice/staging"), &large);
    assert!(first * 3 > SIZE && first * 3 < SIZE * 2, "{first} bytes of {SIZE} had come");
    assert!(start_with(&mut site, ""));
    let joined = join(&site, &ticket, &copy).ok().json();
    let second = joined["bytes_moved"].as_u64().expect("bytes_moved") as usize;
    let twice = (first + second).saturating_sub(SIZE);
    assert!(twice * 100 <= SIZE, "{twice} bytes of {SIZE} were moved twice: {first} and {second}");
    // What the killed run received is counted, with what keeps it.
    let total = |site: &Site| site.json(["status"])["moved_bytes_total"].as_u64().expect("a total") as usize;
    let counted = total(&site);
    assert!(counted >= SIZE && counted - SIZE <= SIZE / 100, "{counted} bytes are counted");
    assert!(std::fs::read(copy.join("raw/large")).expect("published") == large);
    site.restart();
    assert_eq!(total(&site), counted, "a kill costs no count");
}

/// Bytes of the only part in a staging folder that are what they shall be.
fn received(staging: &Path, wanted: &[u8]) -> usize {
    const GROUP: usize = 16 * 1024;
    let parts = std::fs::read_dir(staging).expect("staging").map(|e| e.expect("an entry").path());
    let part = parts.into_iter().find(|p| p.extension().is_some_and(|e| e == "part")).expect("a part");
    let part = std::fs::read(part).expect("a part");
    part.chunks(GROUP).zip(wanted.chunks(GROUP)).filter(|(a, b)| a == b).map(|(a, _)| a.len()).sum()
}
