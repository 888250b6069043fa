//! How soon a site with many files answers after a kill. Only in `make soak`: making the files takes longer.
//!
//! Invariant under test: nothing of a start grows with the number of files.

use std::path::Path;
use std::time::{Duration, Instant};

use sluice_tests::World;

/// What the site may take until it answers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Files in one folder of the lake.
const IN_FOLDER: usize = 1000;

fn fill(lake: &Path, files: usize) {
    for n in 0..files {
        let folder = lake.join(format!("raw/{:04}", n / IN_FOLDER));
        if n % IN_FOLDER == 0 {
            std::fs::create_dir_all(&folder).expect("the lake is ours");
        }
        std::fs::write(folder.join(format!("{n:07}")), n.to_le_bytes()).expect("the lake is ours");
    }
}

/// An owner of so many files is killed, at rest and while it scans, and started.
fn reopens(files: usize) {
    let world = World::new();
    let lake = world.plain_lake("source", &[]);
    fill(&lake, files);
    let mut owner = world.site("playground");
    owner.json(["space", "add", "acme", lake.to_str().expect("UTF-8")]);
    for at_work in [false, true] {
        let mut child = at_work.then(|| owner.command(["snapshot", "acme"]).spawn().expect("sluice starts"));
        if at_work {
            sluice_tests::wait::until("the snapshot to begin", Duration::from_secs(60), || {
                owner.json(["status"])["jobs"].as_array().filter(|jobs| !jobs.is_empty()).map(|_| ())
            });
        }
        owner.kill9();
        if let Some(child) = &mut child {
            child.wait().expect("the command ends with its daemon");
        }
        let started = Instant::now();
        owner.start();
        let took = started.elapsed();
        let status = owner.json(["status"]);
        assert_eq!(status["spaces"][0]["files"], files, "{status}");
        eprintln!("{files} files, killed {}: answers after {took:?}", if at_work { "at work" } else { "at rest" });
        assert!(took < ANSWERS_WITHIN, "{files} files: {took:?}");
    }
}

#[test]
#[ignore = "soak: a hundred thousand files"]
fn a_site_of_a_hundred_thousand_files_answers_soon_after_a_kill() {
    reopens(100_000);
}

#[test]
#[ignore = "soak: a million files"]
fn a_site_of_a_million_files_answers_soon_after_a_kill() {
    reopens(1_000_000);
}
