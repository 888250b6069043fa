//! Captures taken while a writer works.
//!
//! While nothing is removed each of them is whole: what a commit names is listed after the commit.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use deltalake::checkpoints::create_checkpoint;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use sluice_indexer::delta::DeltaReader;
use sluice_indexer::lance::LanceReader;
use sluice_store::table::{History, TableReader};

use crate::copy::{copy, prove, run};
use crate::{delta_world, lance_world};

/// Captures and proves as long as `work` runs, and once more after it; gives how often it got
/// through.
fn captures_during(reader: &dyn TableReader, root: &Path, work: impl FnOnce() + Send) -> u64 {
    let done = AtomicBool::new(false);
    let (mut whole, mut newest) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            work();
            done.store(true, Ordering::Release);
        });
        loop {
            let last = done.load(Ordering::Acquire);
            let mut capture = reader.capture("t", root, History::All).expect("a capture");
            // The one file that changes in place may have changed since.
            capture.files.retain(|p| !p.as_str().ends_with("_last_checkpoint"));
            let copied = copy(&capture, root);
            assert_eq!(prove(reader, copied.path()).expect("a proof"), capture.facts);
            assert!(capture.facts.version >= newest, "versions do not go back");
            newest = capture.facts.version;
            whole += 1;
            if last {
                return whole;
            }
        }
    })
}

#[test]
fn delta_appends_and_checkpoints() {
    let world = delta_world::World::new();
    world.append(delta_world::batch(0, 10, "a"));
    let whole = captures_during(&DeltaReader, world.root(), || {
        for at in 1..12 {
            world.append(delta_world::batch(at * 10, 10, "a"));
            if at % 3 == 0 {
                run(async { create_checkpoint(&world.table().await, None).await.expect("one") });
            }
        }
    });
    assert!(whole > 1, "{whole}");
}

#[test]
fn lance_appends_and_compactions() {
    let world = lance_world::World::new();
    let whole = captures_during(&LanceReader, world.root(), || {
        for at in 1..8 {
            world.append(lance_world::batch(at * 100, 50));
            if at % 3 == 0 {
                run(async {
                    let mut dataset = world.dataset().await;
                    let options = CompactionOptions::default();
                    compact_files(&mut dataset, options, None).await.expect("compacted");
                });
            }
        }
    });
    assert!(whole > 1, "{whole}");
}

#[test]
fn a_file_that_goes_away_while_we_read_asks_for_another_try() {
    let world = delta_world::World::new();
    world.append(delta_world::batch(0, 10, "a"));
    let data = world.data_files().pop().expect("a file");
    // Unreadable, then gone: what a vacuum looks like from the middle of a scan.
    fs::write(&data, "x").expect("written");
    let damaged = DeltaReader.capture("t", world.root(), History::All).expect_err("damage");
    assert!(!damaged.is_transient(), "{damaged}");
    fs::remove_file(&data).expect("removed");
    let gone = DeltaReader.capture("t", world.root(), History::All).expect_err("no file");
    assert!(gone.is_transient(), "{gone}");
}
