//! Publishing many files: every one of them is there, and a table that grows keeps its folder. Prints
//! figures beside; asks nothing of the clock.
//!
//! Run by hand: `cargo nextest run -p sluice-store --release --run-ignored all replica_scale --no-capture`.

mod replica_world;

use std::time::Instant;

use replica_world::*;
use sluice_protocol::manifest::SectionKind::{Delta, Raw};
use sluice_store::publish::How;

const FILES: usize = 100_000;

/// Peak resident memory of this process so far, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    println!("{what:<44} {:>8.2} s, peak {} MiB", start.elapsed().as_secs_f64(), peak_mib());
    done
}

fn many(n: usize) -> Vec<Item> {
    (0..n).map(|i| file(&format!("{:03}/{i:07}.bin", i % 500), format!("file {i}")).at(i as i64)).collect()
}

fn step(world: &World, what: &str, parts: &[Part]) -> How {
    let received = world.announce(parts);
    timed(&format!("{what}: deliver"), || world.deliver(parts));
    let verified = timed(&format!("{what}: verify"), || world.check(received).unwrap());
    let published = timed(&format!("{what}: publish"), || world.publish(&verified).unwrap());
    published.sections[0].how
}

#[test]
#[ignore = "soak: a hundred thousand files"]
fn a_plain_section_of_many_files() {
    let world = World::new();
    let mut items = many(FILES);
    assert_eq!(step(&world, "first", &[part("raw", Raw, items.clone())]), How::Made);
    items[7] = file(&items[7].path.clone(), "changed");
    assert_eq!(step(&world, "one changed", &[part("raw", Raw, items.clone())]), How::Made);
    let report = timed("verify, shallow", || world.report(false));
    assert_eq!(report.problem_count, 0);
    for i in 0..3 {
        items[7] = file(&items[7].path.clone(), format!("changed {i}"));
        step(&world, "again", &[part("raw", Raw, items.clone())]);
    }
    world.assert_shows(&[part("raw", Raw, items)]);
}

#[test]
#[ignore = "soak: a hundred thousand files"]
fn a_table_of_many_files_grows() {
    let world = World::new();
    let mut items: Vec<Item> = many(FILES).into_iter().map(|i| Item { mtime_ns: None, ..i }).collect();
    items.push(file("_delta_log/00000000000000000000.json", "0").at(0));
    step(&world, "first", &[part("t", Delta, items.clone())]);
    items.push(file("new", "new"));
    items.push(file("_delta_log/00000000000000000001.json", "1").at(1));
    assert_eq!(step(&world, "one commit", &[part("t", Delta, items.clone())]), How::Grown);
    world.assert_shows(&[part("t", Delta, items)]);
}
