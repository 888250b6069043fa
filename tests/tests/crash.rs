//! Daemons are killed at every point where they change a disk, and at random moments.
//!
//! After each kill a reader must find the version before or the new one, whole (I1); in the end the
//! copy equals the source, hashes to its id (I2), nothing lies outside lake and home (I3), and every
//! command that did not reach its end said so (I4). No kill may be missed: a test that kills nobody
//! fails. `docs/reliability.md` lists the points.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use sluice_tests::pair::{MIB, Pair, bytes, start_with, tree};
use sluice_tests::{Output, Site, World};

/// Times that a piece of work is done, with another change each time, until a hit counts as missed.
const TRIES: usize = 3;
/// How long a command is waited for whose own site lives, but perhaps not the other one.
const PATIENCE: Duration = Duration::from_secs(3);

/// A piece of work, and which site is killed in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// The owner, while it takes a snapshot.
    Snapshot,
    /// The owner, while it serves a sync.
    Serving,
    /// The owner, while it admits a new peer and serves its first copy.
    Admitting,
    /// The owner, while it collects what no version needs.
    Collecting,
    /// The replica, while it syncs.
    Sync,
    /// The replica, while it joins.
    Join,
}

/// How often each point is passed by a piece of work, from its command to its answer.
type Hits = BTreeMap<String, u64>;

/// A point, and which of its hits a kill waits for.
type Kill = (String, u64);

/// Each commit, and some of all other hits: those of the catalog's file are many and alike.
fn some(hits: &Hits) -> Vec<Kill> {
    let of = |(point, count): (&String, &u64)| -> Vec<Kill> {
        let chosen: BTreeSet<u64> = match point {
            p if p.ends_with(".commit") => (1..=*count).collect(),
            p if p.starts_with("catalog.") => [1, count.div_ceil(2), *count].into(),
            _ => [1].into(),
        };
        chosen.into_iter().map(|hit| (point.clone(), hit)).collect()
    };
    hits.iter().flat_map(of).collect()
}

/// Each commit, and some of what the catalog's file takes for them.
fn catalog(hits: &Hits) -> Vec<Kill> {
    some(hits).into_iter().filter(|(point, _)| point.ends_with(".commit") || point.starts_with("catalog.")).collect()
}

/// Each commit, and nothing else.
fn commits(hits: &Hits) -> Vec<Kill> {
    some(hits).into_iter().filter(|(point, _)| point.ends_with(".commit")).collect()
}

/// Each hit of each point.
fn all(hits: &Hits) -> Vec<Kill> {
    hits.iter().flat_map(|(point, count)| (1..=*count).map(|hit| (point.clone(), hit))).collect()
}

/// A pair and what is done with it again and again.
struct Chain {
    pair: Pair,
    work: Work,
}

impl Chain {
    /// Both sites are up and in step, unless the work is a first copy.
    fn new(work: Work) -> Self {
        let mut pair = match work {
            // One version is kept, and a file has a hash tree beside the catalog, so each collection removes one.
            Work::Collecting => {
                let keep = [("SLUICE__RETENTION__SNAPSHOTS", "1"), ("SLUICE__RETENTION__GRACE_H", "1")];
                let settings = [keep[0], keep[1], ("SLUICE__PINS__COPY", "true")];
                Pair::with(&settings, &[("raw/huge", &bytes(1, 17 * MIB))])
            }
            _ => Pair::new(),
        };
        assert!(start_with(&mut pair.replica, ""));
        if !matches!(work, Work::Join | Work::Admitting) {
            pair.join().ok();
        }
        Self { pair, work }
    }

    fn victim(&mut self) -> &mut Site {
        match self.work {
            Work::Sync | Work::Join => &mut self.pair.replica,
            _ => &mut self.pair.owner,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.pair.world.path("points").join(name)
    }

    /// Makes all ready for the work, with faults at the victim that count from now on.
    fn begin(&mut self, faults: &str) {
        let first = matches!(self.work, Work::Join | Work::Admitting);
        if first {
            self.pair.newcomer();
        }
        let now = self.at("now");
        let _ = std::fs::remove_file(&now);
        let victim = self.victim();
        victim.kill9_if_up();
        assert!(start_with(victim, &format!("when:{};{faults}", now.display())), "{faults}: it waits for its file");
        for site in [&mut self.pair.owner, &mut self.pair.replica] {
            assert!(site.is_up() || start_with(site, ""), "{} does not start", site.name());
        }
        if !first {
            self.pair.change();
        }
        if matches!(self.work, Work::Serving | Work::Sync | Work::Collecting) {
            self.pair.snapshot().ok();
        }
        if self.work == Work::Collecting {
            // Nobody fetched the version before this one, and its trees are older than the grace.
            self.pair.change();
            self.pair.snapshot().ok();
            age(&self.pair.owner.home().join("obao"));
        }
        std::fs::write(now, "").expect("a file of the world");
    }

    /// Gives the command that asks for the work; none where its own site lives and waits for a dead one.
    fn perform(&mut self) -> Option<Output> {
        let pair = &mut self.pair;
        match self.work {
            Work::Snapshot => Some(pair.snapshot()),
            Work::Collecting => Some(pair.owner.run(["gc", "acme", "--json"])),
            Work::Sync => Some(pair.sync()),
            Work::Join => Some(pair.join()),
            Work::Serving => pair.replica.run_beside(&mut pair.owner, &["sync", "acme", "--json"]),
            Work::Admitting => {
                let into = pair.copy.to_str().expect("UTF-8").to_owned();
                pair.replica.run_beside(&mut pair.owner, &["join", &pair.ticket, "--into", &into, "--json"])
            }
        }
        .map(|done| pair.told(done))
    }

    /// Counts what the work passes until its answer: of several runs the smallest number, and only what each
    /// of them passes, so that a kill at any of these hits comes.
    fn hits(&mut self) -> Hits {
        let mut fewest: Option<Hits> = None;
        for _ in 0..TRIES {
            let log = self.at("log");
            let _ = std::fs::remove_file(&log);
            self.begin(&format!("*=log:{}", log.display()));
            self.perform().expect("both sites live").ok();
            let mut hits = Hits::new();
            passed(&log).into_iter().for_each(|point| *hits.entry(point).or_default() += 1);
            let fewer = |before: Hits| -> Hits {
                before.into_iter().filter_map(|(p, c)| hits.get(&p).map(|here| c.min(*here)).map(|c| (p, c))).collect()
            };
            fewest = Some(fewest.map_or_else(|| hits.clone(), fewer));
            self.go_on("counting");
        }
        fewest.expect("it was tried")
    }

    /// The sites start again, the same command is given again, and the copy is the source.
    fn go_on(&mut self, what: &str) {
        for site in [&mut self.pair.owner, &mut self.pair.replica] {
            site.kill9_if_up();
            assert!(start_with(site, ""), "{what}: {} does not start again", site.name());
        }
        let pair = &mut self.pair;
        match self.work {
            Work::Join | Work::Admitting => drop(pair.join_or_sync().ok()),
            work => {
                if work == Work::Collecting {
                    pair.owner.json(["gc", "acme"]);
                }
                pair.snapshot().ok();
                pair.sync().ok();
            }
        }
        assert!(tree(&pair.copy) == pair.now, "after {what} the copy differs");
        if self.work == Work::Collecting {
            let verified = pair.owner.json(["verify", "acme", "--deep"]);
            assert_eq!(verified["ok"], true, "after {what}: {verified}");
        }
    }

    /// One kill; whether it came.
    fn kill_at(&mut self, (point, hit): &Kill) -> bool {
        let what = format!("{point}@{hit}=kill in {:?}", self.work);
        for _ in 0..TRIES {
            self.begin(&format!("{point}@{hit}=kill"));
            let done = self.perform();
            let dead = self.victim().has_ended();
            let is_its_own = !matches!(self.work, Work::Serving | Work::Admitting);
            if let Some(done) = done {
                assert!(dead || done.code == 0, "{what}: {done:#?}");
                assert!(!dead || done.code != 0 || !is_its_own, "{what}: a killed command says that it is done");
            }
            self.pair.assert_whole(&what);
            if dead {
                self.go_on(&what);
                return true;
            }
        }
        false
    }

    /// All these kills, none of which may be missed.
    fn kill_at_each(mut self, kills: &[Kill]) {
        assert!(!kills.is_empty(), "{:?} passes no point", self.work);
        let missed: Vec<_> = kills.iter().filter(|kill| !self.kill_at(kill)).collect();
        assert!(missed.is_empty(), "of {} kills in {:?} these never came: {missed:?}", kills.len(), self.work);
        self.pair.assert_same("all kills");
        eprintln!("{:?}: all of {} kills came", self.work, kills.len());
    }
}

/// Makes files two hours older than they are.
fn age(folder: &Path) {
    let then = std::time::SystemTime::now() - Duration::from_secs(7200);
    for entry in std::fs::read_dir(folder).expect("a folder of the home").map(|e| e.expect("an entry")) {
        if entry.path().is_dir() {
            age(&entry.path());
            continue;
        }
        let file = std::fs::File::open(entry.path()).expect("a file of the home");
        file.set_modified(then).expect("its time can be set");
    }
}

/// Kills one site in a piece of work at some of the hits that it passes.
fn kill_in(work: Work, choose: fn(&Hits) -> Vec<Kill>) {
    let mut chain = Chain::new(work);
    let hits = chain.hits();
    eprintln!("{work:?} passes {hits:?}");
    if work == Work::Collecting {
        assert!(hits.keys().any(|p| p.starts_with("gc.")), "nothing was collected: {hits:?}");
    }
    chain.kill_at_each(&choose(&hits));
}

/// The points in a log, one for each time that it was passed.
fn passed(log: &Path) -> Vec<String> {
    std::fs::read_to_string(log).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Every point of a first copy and of some changes, on one of the sites, from the start of its process.
struct Points {
    first: BTreeSet<String>,
    change: BTreeSet<String>,
}

impl Points {
    /// Runs a pair through a first copy and changes, and logs the points of one site.
    fn of(owner: bool) -> Self {
        let mut pair = Pair::new();
        let log = |name: &str| pair.world.path("points").join(name);
        let (first, change) = (log("first"), log("change"));
        let rule = |path: &Path| format!("*=log:{}", path.display());
        if owner {
            pair.owner.stop();
            assert!(start_with(&mut pair.owner, &rule(&first)));
        }
        assert!(start_with(&mut pair.replica, &if owner { String::new() } else { rule(&first) }));
        pair.join().ok();
        pair.assert_same("the join");
        let site = if owner { &mut pair.owner } else { &mut pair.replica };
        site.stop();
        assert!(start_with(site, &rule(&change)));
        for _ in 0..TRIES {
            pair.change();
            pair.snapshot().ok();
            pair.sync().ok();
        }
        pair.assert_same("the changes");
        Self { first: passed(&first).into_iter().collect(), change: passed(&change).into_iter().collect() }
    }
}

/// Here points count from the start of the process, and nothing is mended between two kills: so sites are
/// killed, too, while they open what a kill left and while they finish it.
#[test]
fn a_replica_that_is_killed_anywhere_goes_on_and_is_killed_while_it_does() {
    let points = Points::of(false).change;
    let mut pair = Pair::new();
    assert!(start_with(&mut pair.replica, ""));
    pair.join().ok();
    pair.replica.kill9();
    pair.change();
    pair.snapshot().ok();
    let mut missed = Vec::new();
    for point in &points {
        let what = format!("{point}@1=kill");
        let mut dead = !start_with(&mut pair.replica, &what);
        for _ in 0..TRIES {
            if dead {
                break;
            }
            let done = pair.sync();
            dead = pair.replica.has_ended();
            assert!(dead || done.code == 0, "{what}: {done:#?}");
            assert!(!dead || done.code != 0, "{what}: a killed sync says that it is done");
            if !dead {
                pair.change();
                pair.snapshot().ok();
            }
        }
        pair.assert_whole(&what);
        if !dead {
            missed.push(point);
        }
        pair.replica.kill9_if_up();
    }
    assert!(start_with(&mut pair.replica, ""));
    pair.sync().ok();
    pair.assert_same("all kills");
    assert!(missed.is_empty(), "of {points:?} these kills never came: {missed:?}");
    eprintln!("all of {} kills came", points.len());
}

#[test]
fn a_replica_is_killed_at_each_commit_of_a_sync() {
    kill_in(Work::Sync, catalog);
}

/// The same ticket serves the same site again. Points that are passed once in a site's life, when its catalog and
/// its folders are made, count from the start of the process.
#[test]
fn a_join_that_is_killed_anywhere_goes_on_with_the_same_ticket() {
    let points = Points::of(false);
    let once: Vec<_> = points.first.difference(&points.change).collect();
    assert!(once.len() > 3, "{:?}", points.first);
    let mut chain = Chain::new(Work::Join);
    for point in once {
        let what = format!("{point}@1=kill");
        chain.pair.newcomer();
        if start_with(&mut chain.pair.replica, &what) {
            let done = chain.pair.join();
            assert!(chain.pair.replica.has_ended(), "{what} never came: {done:#?}");
            assert!(done.code != 0, "{what}: a killed join says that it is done");
        }
        chain.pair.assert_whole(&what);
        chain.go_on(&what);
    }
    let hits = chain.hits();
    chain.kill_at_each(&commits(&hits));
}

#[test]
fn an_owner_that_is_killed_anywhere_in_a_snapshot_goes_on() {
    kill_in(Work::Snapshot, some);
}

#[test]
fn an_owner_that_is_killed_at_the_commits_of_serving_goes_on() {
    kill_in(Work::Serving, commits);
}

#[test]
fn the_owners_side_of_pairing_is_killed_at_its_commits() {
    kill_in(Work::Admitting, commits);
}

#[test]
fn an_owner_that_is_killed_anywhere_in_gc_goes_on() {
    kill_in(Work::Collecting, some);
}

/// An owner's catalog is opened after a kill, and it is killed while it does that.
#[test]
fn an_owner_is_killed_while_it_opens_its_catalog() {
    let mut chain = Chain::new(Work::Snapshot);
    let opening = ["catalog.write", "catalog.sync-data", "catalog.commit"];
    for point in opening {
        chain.begin("");
        chain.pair.owner.kill9();
        let up = start_with(&mut chain.pair.owner, &format!("{point}@1=kill"));
        assert!(!up, "{point}@1 is not passed by opening");
        chain.go_on(point);
    }
    chain.pair.assert_same("all kills");
}

#[test]
#[ignore = "soak: each hit of each point of a snapshot and of gc, minutes"]
fn an_owner_is_killed_at_every_hit() {
    kill_in(Work::Snapshot, all);
    kill_in(Work::Collecting, all);
}

#[test]
#[ignore = "soak: each hit of each point of what an owner does for a peer, a minute"]
fn an_owner_that_serves_is_killed_at_every_hit() {
    kill_in(Work::Serving, all);
    kill_in(Work::Admitting, all);
}

#[test]
#[ignore = "soak: each hit of each point of a sync, ten minutes"]
fn a_replica_is_killed_at_every_hit_of_a_sync() {
    kill_in(Work::Sync, all);
}

#[test]
#[ignore = "soak: each hit of each point of a first copy, ten minutes"]
fn a_replica_is_killed_at_every_hit_of_a_first_copy() {
    kill_in(Work::Join, all);
}

/// The page says what there is: every point that these runs pass is in it, so a new write is named there.
#[test]
fn the_page_lists_the_points() {
    let page = sluice_tests::folder().join("../docs/reliability.md");
    let page = std::fs::read_to_string(page).expect("the page on reliability");
    let (owner, replica) = (Points::of(true), Points::of(false));
    let all: BTreeSet<String> =
        [owner.first, owner.change, replica.first, replica.change].into_iter().flatten().collect();
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
    let mut chain = Chain::new(Work::Join);
    let faults = [
        "staging.write@2=ENOSPC",
        "staging.sync@1=EIO",
        "sections.rename@2=EIO",
        "catalog.write@20=ENOSPC",
        "catalog.sync-data@3=EIO",
    ];
    for fault in faults {
        chain.begin(fault);
        let failed = chain.pair.join();
        assert!(failed.code != 0, "{fault} was not said, or never came: {failed:#?}");
        let (error, _) = failed.failure();
        assert!(error.contains("full") == fault.contains("ENOSPC") && !error.is_empty(), "{fault}: {error}");
        let pair = &mut chain.pair;
        pair.assert_whole(fault);
        assert_eq!(pair.replica.json(["status"])["name"], pair.replica.name(), "{fault}");
        pair.join_or_sync().ok();
        assert!(tree(&pair.copy) == pair.now, "after {fault} the copy differs");
    }
}

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
        let start = |site: &Site, verb: &str| {
            let mut command = site.command([verb, "acme", "--json"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sluice starts")
        };
        let (mut snapshot, mut sync) = (start(&pair.owner, "snapshot"), start(&pair.replica, "sync"));
        // The moment of a kill is chance: nothing waits for it to be a good one.
        std::thread::sleep(Duration::from_millis(dice.roll(250)));
        match dice.roll(3) {
            0 => pair.owner.kill9(),
            1 => pair.replica.kill9(),
            _ => {
                pair.owner.kill9();
                pair.replica.kill9();
            }
        }
        snapshot.wait().expect("a command ends");
        if !ends_soon(&mut sync) {
            // A replica waits for a dead owner as for one that is only slow: one more kill.
            sync.kill().expect("a child can be killed");
            sync.wait().expect("a killed child ends");
            pair.replica.kill9_if_up();
        }
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

/// Whether a command ends while we are patient.
fn ends_soon(command: &mut Child) -> bool {
    let start = Instant::now();
    loop {
        if command.try_wait().expect("a child can be asked").is_some() {
            return true;
        }
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn twenty_kills_at_random_moments() {
    random_kills(20, 0x5eed_0001);
}

#[test]
#[ignore = "soak: a thousand random kills, ten minutes"]
fn a_thousand_kills_at_random_moments() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs() | 1;
    random_kills(1_000, seed);
}
