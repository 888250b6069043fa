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
use sluice_tests::{Rounds, Site, World};

/// Each round changes four sections: two hundred changes.
const ROUNDS: u64 = 50;
/// Every so many rounds the replica goes back to the version before, and comes back.
const ROLLED_BACK_EVERY: u64 = 7;
/// Readers of one kind must have met at least this many versions, else they saw nothing of the changes.
const VERSIONS_MET_MIN: usize = 10;

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
