//! What changes in a replica while a version is published: damage that serving meets, edits, wear after a
//! kill.
//!
//! Nothing that was noted meanwhile is forgotten by the commit, and no edit is overwritten.

mod replica_world;

use replica_world::*;
use sluice_protocol::ids::BlobHash;
use sluice_protocol::manifest::SectionKind::{Delta, Raw};
use sluice_store::blobs::quarantine;
use sluice_store::catalog::Lookup;
use sluice_store::disk::faults::inject;
use sluice_store::lake::Place;
use sluice_store::publish::{PublishError, PublishOptions, Published, look_over, publish, recover};
use sluice_store::watch::{Silent, Watch};

fn try_sync(world: &World, parts: &[Part], watch: &dyn Watch) -> Result<Published, PublishError> {
    recover(&world.lake, &world.catalog, &world.space)?;
    look_over(&world.lake, &world.catalog, &world.space)?;
    world.publish_with(&world.verified(parts), watch)
}

fn sync(world: &World, parts: &[Part]) -> Published {
    try_sync(world, parts, &Silent).unwrap()
}

fn staying(world: &World) -> Vec<String> {
    let live = look_over(&world.lake, &world.catalog, &world.space).unwrap().live.unwrap();
    live.sections.iter().filter(|s| s.stays()).map(|s| format!("{}: {:?}", s.name(), s.changes)).collect()
}

fn table(commits: usize) -> Part {
    let mut items = vec![file("_delta_log/_last_checkpoint", format!("{commits}"))];
    for i in 0..commits {
        items.push(file(&format!("part-{i}"), format!("rows {i}")));
        items.push(file(&format!("_delta_log/{i:020}.json"), format!("commit {i}")).at(i as i64));
    }
    part("orders", Delta, items)
}

/// `a` and `b` are made anew by each version, `c` stays as it is, the table grows.
fn version(n: usize) -> Vec<Part> {
    let changed =
        |name: &str| part(name, Raw, vec![file("same", [name.as_bytes()[0]; 9000]), file("n", format!("{name} {n}"))]);
    vec![changed("a"), changed("b"), part("c", Raw, vec![file("x", "xxxx")]), table(n)]
}

/// A byte of a published file rots, and serving the file to a peer meets it.
fn rot_and_meet(world: &World, lake_path: &str, bytes: &[u8]) {
    rot(world, lake_path);
    let hash = BlobHash::of(bytes);
    let places = world.catalog.read().unwrap().blob(&world.space, &hash).unwrap().unwrap().places;
    let real = std::fs::canonicalize(world.at(lake_path)).unwrap();
    let at = places.iter().find(|at| std::fs::canonicalize(world.lake.path_of(&at.place)).unwrap() == real);
    quarantine(&world.lake, &world.catalog, &world.space, &hash, &at.unwrap().place).unwrap();
}

#[test]
fn damage_that_is_met_in_a_section_that_stays_is_not_forgotten() {
    let world = World::new();
    sync(&world, &version(1));
    let met = When::section(0, || rot_and_meet(&world, "c/x", b"xxxx"));
    try_sync(&world, &version(2), &met).unwrap();
    let live = world.catalog.read().unwrap().live(&world.space).unwrap().unwrap();
    let worn: Vec<&str> = live.sections.iter().filter(|s| s.worn).map(|s| s.name()).collect();
    assert_eq!(worn, ["c"]);
    assert_eq!(world.report(false).problems.len(), 1, "a shallow look knows of it, too");
    sync(&world, &version(2));
    world.assert_shows(&version(2));
}

#[test]
fn damage_that_is_met_in_a_file_just_linked_does_not_go_live() {
    let world = World::new();
    sync(&world, &version(1));
    // `a` is filled; the file that its new folder shares with the old one turns out to be damaged.
    let met = When::section(1, || rot_and_meet(&world, "a/same", &[b'a'; 9000]));
    let refused = try_sync(&world, &version(2), &met);
    assert!(matches!(refused, Err(PublishError::BlobGone { .. })), "{refused:?}");
    sync(&world, &version(2));
    world.assert_shows(&version(2));
}

#[test]
fn damage_that_is_met_in_a_growing_table_is_not_forgotten() {
    let world = World::new();
    sync(&world, &version(1));
    // The third that is filled is the table; its new file has the bytes of an old one.
    let mut twin = version(2);
    twin[3].items.push(file("twin", "rows 0"));
    let met = When::section(2, || rot_and_meet(&world, "orders/part-0", b"rows 0"));
    // Either it is refused, or what went live is marked.
    let _ = try_sync(&world, &twin, &met);
    assert_eq!(staying(&world), [""; 0], "damage is no edit");
    sync(&world, &twin);
    world.assert_shows(&twin);
}

#[test]
fn a_pointer_that_is_edited_meanwhile_is_not_overwritten() {
    let world = World::new();
    sync(&world, &version(1));
    let pointer = world.at("orders/_delta_log/_last_checkpoint");
    let edit = When::section(2, || write(&pointer, b"mine"));
    let refused = try_sync(&world, &version(2), &edit);
    assert!(matches!(&refused, Err(PublishError::Diverged { section, .. }) if section == "orders"), "{refused:?}");
    assert_eq!(std::fs::read(&pointer).unwrap(), b"mine");
    assert_eq!(staying(&world).len(), 1);
    sync(&world, &version(2));
    assert_eq!(std::fs::read(&pointer).unwrap(), b"mine");
    assert_eq!(std::fs::read(world.at("a/n")).unwrap(), b"a 2", "the others go on");
}

#[test]
fn a_pointer_that_is_removed_meanwhile_is_told() {
    let world = World::new();
    sync(&world, &version(1));
    let pointer = world.at("orders/_delta_log/_last_checkpoint");
    let edit = When::section(2, || std::fs::remove_file(&pointer).unwrap());
    let refused = try_sync(&world, &version(2), &edit);
    assert!(matches!(&refused, Err(PublishError::Diverged { section, .. }) if section == "orders"), "{refused:?}");
    sync(&world, &version(2));
    world.assert_shows(&version(2));
}

/// Publishing is killed, a file of the growing table is lost, and the same version is published again.
#[test]
fn wear_after_a_kill_is_mended_by_the_same_version() {
    let mut grew = 0;
    for k in 1.. {
        let world = World::new();
        sync(&world, &version(1));
        let verified = world.verified(&version(3));
        let stop = inject(world.dir.path(), &format!("sections.*@{k}=halt")).unwrap();
        let done = world.publish(&verified);
        let fired = stop.fired() > 0;
        let world = world.stopped(stop);
        if !fired {
            done.unwrap();
            break;
        }
        grew += usize::from(world.at("orders/part-1").exists());
        std::fs::remove_file(world.at("orders/part-0")).unwrap();
        assert_eq!(staying(&world), [""; 0], "stop {k}");
        // Killed again, after the table was given another folder; and an edit is seen all the same.
        let verified = world.verified(&version(3));
        let stop = inject(world.dir.path(), "generations.*@1=halt").unwrap();
        let _ = world.publish(&verified);
        let world = world.stopped(stop);
        assert_eq!(staying(&world), [""; 0], "stop {k}, then another");
        let next = version(if k % 2 == 0 { 3 } else { 4 });
        let done = try_sync(&world, &next, &Silent).unwrap_or_else(|e| panic!("stop {k}: {e}"));
        assert_eq!(done.cleaned.kept, [""; 0]);
        world.assert_shows(&next);
    }
    assert!(grew > 3, "only {grew} stops in a growing table");
}

#[test]
fn an_edit_beside_wear_after_a_kill_is_kept() {
    let world = World::new();
    sync(&world, &version(1));
    let verified = world.verified(&version(3));
    let stop = inject(world.dir.path(), "shown.*@1=halt;live.commit@1=halt").unwrap();
    world.publish(&verified).unwrap_err();
    let world = world.stopped(stop);
    assert!(world.at("orders/part-1").exists());
    std::fs::remove_file(world.at("orders/part-0")).unwrap();
    std::fs::write(world.at("orders/mine"), b"mine").unwrap();
    assert_eq!(staying(&world).len(), 1);
    sync(&world, &version(3));
    assert_eq!(std::fs::read(world.at("orders/mine")).unwrap(), b"mine");
    assert_eq!(staying(&world).len(), 1);
}

const KEEP_ONE: PublishOptions = PublishOptions { keep_generations: 1, readers_grace: std::time::Duration::ZERO };

/// Places that the catalog has below a section folder.
fn recorded_below(world: &World, folder: &str) -> usize {
    let mut count = 0;
    let reader = world.catalog.read().unwrap();
    let below = |place: &Place| place.to_string().contains(&format!("sections/{folder}/"));
    reader.blobs(&world.space, &mut |_, b| count += b.places.iter().filter(|at| below(&at.place)).count()).unwrap();
    count
}

#[test]
fn cleaning_up_goes_step_by_step_and_on_after_a_kill() {
    const FILES: usize = 2500;
    // Some are in the next version, too: other names of the same inode, whose change time moves.
    let same = (0..50).map(|i| file(&format!("same/{i}"), format!("same {}", i % 40)));
    let many = (0..FILES).map(|i| file(&format!("d{}/{i}", i % 7), i.to_string())).chain(same.clone()).collect();
    let few = vec![part("raw", Raw, same.collect())];
    let world = World::new();
    world.sync(&[part("raw", Raw, many)]);
    let folder = std::fs::read_link(world.at(".sluice/live/raw")).unwrap();
    let folder = folder.file_name().unwrap().to_str().unwrap().to_string();
    let verified = world.verified(&few);
    let stop = inject(world.dir.path(), "sections.remove@2300=halt").unwrap();
    publish(&world.lake, &world.catalog, &verified, KEEP_ONE, &Silent).unwrap_err();
    let world = world.stopped(stop);
    let left = listing(&world.at(&format!(".sluice/sections/{folder}"))).len();
    let recorded = recorded_below(&world, &folder);
    assert!(0 < left && left < recorded && recorded < 600, "{left} files are left, {recorded} recorded");
    assert_eq!(staying(&world), [""; 0]);
    let verified = world.verified(&few);
    let done = publish(&world.lake, &world.catalog, &verified, KEEP_ONE, &Silent).unwrap();
    assert_eq!((done.cleaned.folders, done.cleaned.kept.len()), (1, 0));
    assert!(!world.at(&format!(".sluice/sections/{folder}")).exists());
    assert!(recorded_below(&world, &folder) < 300, "no more than was removed before the kill and not forgotten");
    world.assert_shows(&few);
}

#[test]
fn a_file_put_into_an_old_folder_stays() {
    let world = World::new();
    world.sync(&version(1));
    let old = std::fs::canonicalize(world.at("a")).unwrap();
    world.sync(&version(2));
    std::fs::write(old.join("mine"), b"mine").unwrap();
    let verified = world.verified(&version(3));
    let done = publish(&world.lake, &world.catalog, &verified, KEEP_ONE, &Silent).unwrap();
    assert_eq!(done.cleaned.kept.len(), 1);
    assert_eq!(std::fs::read(old.join("mine")).unwrap(), b"mine");
    world.assert_shows(&version(3));
}
