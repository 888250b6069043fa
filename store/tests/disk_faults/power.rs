//! The power goes at every sync point, and what was not synced is lost in part.
//!
//! Everything that the replica does to its disk is recorded, the catalog's pages included. For each
//! cut some disks are built that the loss may leave. On each the catalog opens; a publish that was
//! acknowledged is live and whole (I1); every file that the catalog calls a blob hashes to it (I2);
//! and a second run comes to the end.

use sluice_store::disk::trace::record;
use sluice_store::publish::{live_path, recover};

use super::image::{Dice, Disk, Tape};
use super::*;

fn tape() -> Tape {
    let world = World::new();
    let start = Disk::read(world.dir.path());
    let recording = record(world.dir.path());
    for version in [1, 2] {
        bring(&world, version);
        recording.note(&version.to_string());
    }
    Tape::new(start, &recording.done())
}

/// What is live is a whole version, and not an older one than was acknowledged.
fn assert_live(world: &World, acknowledged: u8, what: &str) {
    recover(&world.lake, &world.catalog, &world.space).unwrap_or_else(|e| panic!("{what}: {e}"));
    let Some(root) = live_path(&world.lake, &world.catalog, &world.space, None).unwrap() else {
        assert_eq!(acknowledged, 0, "{what}: a published version is lost");
        return;
    };
    let readme = std::fs::read_to_string(root.join("README")).unwrap_or_else(|e| panic!("{what}: {e}"));
    let version = if readme == "one" { 1 } else { 2 };
    assert!(version >= acknowledged, "{what}: version {version} is live");
    // A table that grows may hold more than its old version lists, never less.
    for p in if version == 1 { one() } else { two() } {
        let below = p.path.as_ref().map_or(root.clone(), |p| root.join(p));
        for item in p.items.iter().filter(|i| i.target.is_none() && !i.path.ends_with("_last_checkpoint")) {
            let bytes = std::fs::read(below.join(&item.path)).unwrap_or_else(|e| panic!("{what}: {}: {e}", item.path));
            assert!(bytes == item.bytes, "{what}: {} of version {version}", item.path);
        }
    }
}

/// One disk that the loss may leave, opened, looked at, and brought to the end.
fn survive(tape: &Tape, cut: usize, keep: u64, seed: u64) {
    let what = format!("cut {cut}, keep {keep}, seed {seed}");
    let disk = tape.cut(cut, keep, &mut Dice(seed));
    let acknowledged = tape.notes(cut).last().map_or(0, |n| n.parse().unwrap());
    let dir = place();
    disk.write_out(dir.path());
    let world = World::opened(dir);
    assert_no_lie(&world, &what);
    assert_live(&world, acknowledged, &what);
    assert_no_lie(&world, &what);
    bring(&world, 2);
    world.assert_shows(&two());
}

#[test]
fn an_acknowledged_publish_survives_a_power_loss_at_every_sync() {
    let tape = tape();
    let syncs = tape.syncs();
    assert!(syncs.len() > 50, "{} syncs", syncs.len());
    // All that was not synced is lost; or some of it, another part each time.
    for (number, sync) in syncs.iter().enumerate() {
        survive(&tape, *sync, 0, number as u64 + 1);
        survive(&tape, sync + 1, 5, number as u64 + 1001);
    }
}

#[test]
#[ignore = "soak: ten thousand power losses, a quarter of an hour"]
fn ten_thousand_power_losses() {
    let tape = tape();
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    eprintln!("seed {seed}");
    let mut dice = Dice(seed | 1);
    for _ in 0..10_000 {
        let (cut, keep) = (dice.roll(tape.len() as u64 + 1) as usize, dice.roll(11));
        survive(&tape, cut, keep, dice.roll(u64::MAX - 1) + 1);
    }
}

/// The tool itself can fail: a program that syncs nothing is found out.
#[test]
fn a_write_that_was_not_synced_may_be_lost() {
    use sluice_store::disk;
    let dir = place();
    let start = Disk::read(dir.path());
    let recording = record(dir.path());
    let folder = std::fs::File::open(dir.path()).unwrap();
    let kept = disk::create("test", &folder, "kept", 0o600).unwrap();
    disk::write_all_at("test", &kept, b"kept", 0).unwrap();
    disk::sync_all("test", &kept).unwrap();
    disk::sync_all("test", &folder).unwrap();
    let lost = disk::create("test", &folder, "lost", 0o600).unwrap();
    disk::write_all_at("test", &lost, b"lost", 0).unwrap();
    let tape = Tape::new(start, &recording.done());
    let after = place();
    tape.cut(tape.len(), 0, &mut Dice(2)).write_out(after.path());
    assert_eq!(std::fs::read(after.path().join("kept")).unwrap(), b"kept");
    assert!(!after.path().join("lost").exists());
}
