//! Readers that are never torn: programs of other people read the replica without a pause while
//! versions come and go.
//!
//! Invariant: the readers are deltalake, pylance, faiss and safetensors in processes of their own,
//! they retry nothing, and what they must find was written down before the version was published.

#![cfg(feature = "engine")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use sluice_tests::pair::start_with;
use sluice_tests::{Rounds, Site, World};

/// Each round changes four sections: two hundred changes.
const ROUNDS: u64 = 50;
/// Every so many rounds the replica goes back to the version before, and comes back.
const ROLLED_BACK_EVERY: u64 = 7;
/// Readers of one kind must have met at least this many versions, else they saw nothing of the changes.
const VERSIONS_MET_MIN: usize = 10;

/// Where a replica dies in turn while a version of four sections is published: tables that grow in place, tables and
/// files that are replaced, and the switch that shows them.
const DIES_AT: [&str; 10] = [
    "sections.rename@1",
    "sections.rename@2",
    "intent.commit@1",
    "places.commit@1",
    "generations.symlink@2",
    "live.commit@1",
    "live.symlink@1",
    "live.replace@1",
    "sections.sync@2",
    "deed.replace@1",
];
/// Where an owner dies in turn while it makes a snapshot of them.
const OWNER_DIES_AT: [&str; 4] = ["catalog.commit@2", "deed.replace@1", "catalog.sync-data@3", "catalog.write@5"];
/// Enough rounds for the lake to be rewound once, and for each place twice or more.
const KILLED_ROUNDS: u64 = 22;

/// A running `readers.py`.
struct Reader {
    kind: &'static str,
    process: Child,
    says: BufReader<std::process::ChildStdout>,
}

impl Reader {
    fn start(kind: &'static str, lake: &Path, truth: &Path, command: Option<Command>) -> Self {
        let python = std::env::var_os("SLUICE_PYTHON").expect("SLUICE_PYTHON is set by `make test`");
        let script = sluice_tests::folder().join("python/readers.py");
        let mut reader = Command::new(python);
        reader.arg(script).arg(kind).arg(lake).arg(truth).env("PYTHONDONTWRITEBYTECODE", "1");
        if let Some(command) = command {
            reader.arg(command.get_program()).args(command.get_args());
            reader.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        }
        let mut process = reader.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python starts");
        let mut says = BufReader::new(process.stdout.take().expect("piped"));
        let mut ready = String::new();
        says.read_line(&mut ready).expect("a reader speaks");
        assert_eq!(ready.trim(), "ready", "the {kind} reader did not start");
        Self { kind, process, says }
    }

    /// Lets it finish its read, and checks what it met.
    fn finish(mut self) {
        drop(self.process.stdin.take());
        let mut text = String::new();
        self.says.read_to_string(&mut text).expect("a reader answers");
        assert!(self.process.wait().expect("a child ends").success(), "the {} reader ended badly", self.kind);
        let answer: Value = serde_json::from_str(&text).expect("a reader answers in JSON");
        let failures = answer["failures"].as_array().expect("a list");
        let shown: Vec<&str> = failures.iter().filter_map(Value::as_str).collect();
        assert!(shown.is_empty(), "{} of {} reads failed:\n{}", shown.len(), answer["reads"], shown.join("\n"));
        let met = answer["met"].as_array().expect("a list").len();
        eprintln!("{}: {} reads met {met} versions", self.kind, answer["reads"]);
        assert!(met >= VERSIONS_MET_MIN, "the {} reader met only {met} versions: {answer}", self.kind);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The owner takes what the round left, the replica publishes it; both name the same id, which is given.
fn move_on(owner: &Site, replica: &Site) -> String {
    let taken = owner.json(["snapshot", "acme"]);
    let synced = replica.json(["sync", "acme"]);
    assert_eq!(taken["snapshot"], synced["spaces"][0]["snapshot"]);
    taken["snapshot"].as_str().expect("an id").to_owned()
}

#[test]
fn two_hundred_changes_and_no_reader_sees_a_torn_version() {
    let world = World::new();
    let lake = Rounds::begin(world.path("lake"), world.path("truth.jsonl"));
    let owner = world.site("playground");
    owner.json(["space", "add", "acme", text(lake.root())]);
    // Old versions go while they are read: only the grace stands between a reader and a missing file.
    let mut replica = world.sleeping_site("cradle");
    replica.set("SLUICE__PUBLISH__KEEP_GENERATIONS", "1");
    replica.set("SLUICE__PUBLISH__READERS_GRACE_S", "10");
    replica.start();
    let copy = world.path("copy");
    replica.json(["join", &owner.invite("acme"), "--into", text(&copy)]);

    let kinds = ["delta", "lance", "faiss", "lora"];
    let mut readers: Vec<Reader> = kinds.iter().map(|kind| Reader::start(kind, &copy, lake.truth(), None)).collect();
    readers.push(Reader::start("all", &copy, lake.truth(), Some(replica.command(["path", "acme", "--json"]))));
    let mut before = String::new();
    for number in 1..=ROUNDS {
        lake.round(number);
        let newest = move_on(&owner, &replica);
        if number % ROLLED_BACK_EVERY == 0 {
            for at in [before.as_str(), "newest"] {
                replica.json(["sync", "acme", "--at", at]);
            }
        }
        before = newest;
    }
    readers.into_iter().for_each(Reader::finish);
    let kept = std::fs::read_dir(copy.join(".sluice/generations")).expect("a published lake").count();
    assert!((kept as u64) < ROUNDS, "no version went while it was read: {kept} are left");
}

/// Gives a command to a site that dies at `point`; the kill must have come unless this change does not pass there.
/// Then the site starts again, and the same command comes to its end.
fn killed_once(site: &mut Site, point: &str, command: &[&str]) -> (bool, Value) {
    site.kill9();
    let up = start_with(site, &format!("{point}=kill"));
    let answer = if up { site.run(command).code } else { -1 };
    let died = site.has_ended();
    assert!(died || answer == 0, "{command:?} of a site that should die at {point} ended with {answer}");
    assert!(!died || answer != 0, "{command:?} of a site that died at {point} says that it is done");
    if died {
        site.kill9_if_up();
        assert!(start_with(site, ""), "a site that died at {point} does not start");
    }
    (died, site.json(command))
}

#[test]
fn no_reader_sees_a_torn_version_while_sites_are_killed() {
    let world = World::new();
    let lake = Rounds::begin(world.path("lake"), world.path("truth.jsonl"));
    let mut owner = world.site("playground");
    owner.json(["space", "add", "acme", text(lake.root())]);
    let mut replica = world.sleeping_site("cradle");
    replica.set("SLUICE__PUBLISH__READERS_GRACE_S", "30");
    replica.start();
    let copy = world.path("copy");
    replica.json(["join", &owner.invite("acme"), "--into", text(&copy)]);

    let kinds = ["delta", "lance", "faiss", "lora"];
    let readers: Vec<Reader> = kinds.iter().map(|kind| Reader::start(kind, &copy, lake.truth(), None)).collect();
    let mut died = std::collections::BTreeSet::new();
    for number in 1..=KILLED_ROUNDS {
        lake.round(number);
        let place = DIES_AT[number as usize % DIES_AT.len()];
        let owners = OWNER_DIES_AT[number as usize % OWNER_DIES_AT.len()];
        let (_, taken) = killed_once(&mut owner, owners, &["snapshot", "acme"]);
        let (came, synced) = killed_once(&mut replica, place, &["sync", "acme"]);
        assert_eq!(taken["snapshot"], synced["spaces"][0]["snapshot"], "killed at {owners}, {place}");
        died.extend(came.then_some(place));
    }
    readers.into_iter().for_each(Reader::finish);
    replica.json(["verify", "acme", "--deep"]);
    assert_eq!(died.len(), DIES_AT.len(), "only these kills came: {died:?}");
    let (source, shown) = (sluice_tests::inspect(lake.root()), sluice_tests::inspect(&copy));
    let different = sluice_tests::differences(&source, &shown);
    assert!(different.is_empty(), "{}", different.join("\n"));
}
