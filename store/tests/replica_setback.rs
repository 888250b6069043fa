//! A replica whose lake is not there, or is of a later day than its catalog: nothing is written or removed.

mod replica_world;

use std::os::unix::fs::symlink;

use replica_world::*;
use sluice_protocol::manifest::SectionKind::Raw;
use sluice_store::publish::{PublishError, recover};

fn version(text: &str) -> Vec<Part> {
    vec![part("raw", Raw, vec![file("a", text), file("same", [3; 50_000])])]
}

#[test]
fn a_lake_that_is_not_mounted_is_left_alone() {
    let world = World::new();
    world.sync(&version("1"));
    let verified = world.verified(&version("2"));
    std::fs::rename(world.at(".sluice"), world.dir.path().join("elsewhere")).unwrap();
    let world = world.restarted();
    let refused = recover(&world.lake, &world.catalog, &world.space);
    assert!(matches!(refused, Err(PublishError::NotThere { .. })), "{refused:?}");
    let refused = world.publish(&verified);
    assert!(matches!(refused, Err(PublishError::NotThere { .. })), "{refused:?}");
    assert!(!world.at(".sluice").exists());
    std::fs::rename(world.dir.path().join("elsewhere"), world.at(".sluice")).unwrap();
    let world = world.restarted();
    world.publish(&verified).unwrap();
    world.assert_shows(&version("2"));
}

#[test]
fn a_catalog_of_an_earlier_day_does_not_take_the_lake_back() {
    let world = World::new();
    world.sync(&version("1"));
    let live = world.at(".sluice/live");
    std::fs::create_dir(world.at(".sluice/generations/7")).unwrap();
    std::fs::remove_file(&live).unwrap();
    symlink("generations/7", &live).unwrap();
    let refused = recover(&world.lake, &world.catalog, &world.space);
    match refused {
        Err(PublishError::SetBack { shown, known, .. }) => assert_eq!((shown, known), (7, 1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(std::fs::read_link(&live).unwrap().to_str(), Some("generations/7"));
}

#[test]
fn a_number_that_a_folder_has_is_not_given_out_again() {
    let world = World::new();
    world.sync(&version("1"));
    // As after a catalog from a backup: it would count on from 2.
    let mine = world.at(".sluice/sections/00000002/a");
    std::fs::create_dir_all(mine.parent().unwrap()).unwrap();
    std::fs::write(&mine, b"in use").unwrap();
    std::fs::create_dir(world.at(".sluice/generations/2")).unwrap();
    world.sync(&version("2"));
    world.assert_shows(&version("2"));
    assert_eq!(std::fs::read(&mine).unwrap(), b"in use");
    assert_eq!(std::fs::read_link(world.at(".sluice/live")).unwrap().to_str(), Some("generations/3"));
}

#[test]
fn a_name_that_is_not_utf8_is_not_removed_and_stops_nothing() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::new();
    let two =
        |text: &str| vec![part("raw/one", Raw, vec![file("a", text)]), part("raw/two", Raw, vec![file("b", text)])];
    world.sync(&two("1"));
    let strange = world.at("raw").canonicalize().unwrap().join(std::ffi::OsStr::from_bytes(b"mine-\xff"));
    std::fs::write(&strange, b"mine").unwrap();
    for text in ["2", "3", "4", "5"] {
        world.sync(&two(text));
    }
    assert_eq!(std::fs::read(world.at("raw/one/a")).unwrap(), b"5");
    let found = std::process::Command::new("find").arg(world.at("")).args(["-name", "mine-*"]).output().unwrap();
    assert!(!found.stdout.is_empty(), "the file is gone from the disk");
}
