//! Values beside the catalog: shared between spaces, orphaned by kills, damaged.

use std::fs;

use sluice_protocol::ids::{BlobHash, SpaceId};

use super::model::Model;
use super::world::content;
use crate::catalog::{Lookup, Table};
use crate::gc::{GcError, Retention, collect, collect_home};

const HOUR: u64 = 3_600_000;

fn keep_all(now_ms: u64) -> Retention {
    Retention { snapshots: 100, grace_ms: 24 * HOUR, kept_ms: None, quarantine_ms: None, now_ms }
}

fn files_in(model: &Model, folder: &str) -> usize {
    let count = |p: &std::path::Path| fs::read_dir(p).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count();
    let top = model.owner.catalog.home().join(folder);
    let below = fs::read_dir(&top).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir());
    count(&top) + below.map(|p| count(&p)).sum::<usize>()
}

#[test]
fn a_value_stays_while_any_space_names_it_and_goes_with_the_last() {
    let mut model = Model::new(1);
    model.snapshot(None);
    let big = vec![7u8; 100_000];
    let hash = BlobHash::of(&big);
    let (here, other) = (model.owner.space, model.second_space());
    let catalog = model.owner.catalog.clone();
    catalog.write(|b| b.put_meta(&here, &big).and_then(|_| b.put_meta(&other, &big))).unwrap();
    // A kill between the file and its row leaves the file alone.
    let orphan = vec![8u8; 100_000];
    let aborted: Result<(), crate::catalog::CatalogError> = catalog.write(|b| {
        b.put_meta(&here, &orphan)?;
        Err(crate::catalog::CatalogError::DiskFull)
    });
    assert!(aborted.is_err());
    let partial = catalog.home().join("meta/aa.tmp");
    fs::write(&partial, b"half").unwrap();
    assert_eq!(files_in(&model, "meta"), 3);

    let now = keep_all(model.now);
    let gone = collect(&model.owner.lake, &here, &catalog, &now, false).unwrap();
    assert!(gone.bytes >= 100_000, "{gone:?}");
    let home = collect_home(&catalog, &now, &|| true, true).unwrap();
    assert_eq!(home.files, 1, "the orphan would go, the half file is young");
    assert_eq!(collect_home(&catalog, &now, &|| true, false).unwrap().files, 1);
    assert_eq!(catalog.read().unwrap().meta(&other, &hash).unwrap().unwrap(), big);
    assert_eq!(files_in(&model, "meta"), 2);

    catalog.write(|b| b.remove_space(&other)).unwrap();
    let later = keep_all(model.now + 25 * HOUR);
    assert_eq!(collect_home(&catalog, &later, &|| true, false).unwrap().files, 2);
    assert_eq!(files_in(&model, "meta"), 0);
}

#[test]
fn a_tree_in_the_making_outlives_every_collection_until_it_is_old() {
    let mut model = Model::new(2);
    model.snapshot(None);
    let catalog = model.owner.catalog.clone();
    // Written by another space's job, and not yet in a row.
    let hash = BlobHash::of(b"to come");
    let path = catalog.outboard_path(&hash);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, [1; 64]).unwrap();
    let later = keep_all(model.now + 25 * HOUR);
    assert_eq!(collect_home(&catalog, &keep_all(model.now), &|| true, false).unwrap().files, 0);
    assert_eq!(collect_home(&catalog, &later, &|| false, false).unwrap().files, 0, "a job runs");
    catalog.write(|b| b.outboard_in_file(&hash)).unwrap();
    assert_eq!(collect_home(&catalog, &later, &|| false, false).unwrap().rows, 0, "a job runs");
    assert!(path.is_file());
    // Nobody ever named a blob for it.
    assert_eq!(collect_home(&catalog, &later, &|| true, false).unwrap().rows, 1);
    assert!(!path.is_file());
    let refused = catalog.write(|b| b.outboard_in_file(&hash));
    assert!(refused.is_err(), "a row never names a file that is not there");
}

#[test]
fn where_a_page_is_damaged_nothing_is_removed() {
    let mut model = Model::new(3);
    model.owner.write("raw/a", &content(1));
    model.snapshot(None);
    let first = model.owner.keys(Table::Meta);
    model.owner.write("raw/a", &content(5));
    model.snapshot(None);
    let catalog = model.owner.catalog.clone();
    let space = model.owner.space;
    let section_page = *model.owner.keys(Table::Meta).difference(&first).next().unwrap();
    // As if a bit had flipped in the row: the bytes are not what the hash says.
    catalog.write(|b| b.put(Table::Meta, &[space.0, section_page.0].concat(), b"\0other bytes")).unwrap();
    let before = (model.owner.keys(Table::Meta), model.owner.pins());
    let only_newest = Retention { snapshots: 1, grace_ms: 0, ..keep_all(model.now) };
    let refused = collect(&model.owner.lake, &space, &catalog, &only_newest, false);
    assert!(matches!(refused, Err(GcError::Unreadable { .. })), "{refused:?}");
    assert_eq!((model.owner.keys(Table::Meta), model.owner.pins()), before);
}

#[test]
fn an_unknown_space_is_refused() {
    let model = Model::new(4);
    let nowhere = SpaceId([9; 32]);
    let refused = collect(&model.owner.lake, &nowhere, &model.owner.catalog, &keep_all(model.now), true);
    assert!(matches!(refused, Err(GcError::Catalog(_))), "{refused:?}");
}
