//! The demo's lake.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sluice_indexer::dir_view::DirView;
use sluice_indexer::sample::{Scale, change, make};
use sluice_indexer::{delta::DeltaReader, lance::LanceReader};
use sluice_store::table::{History, SectionView};

use crate::copy::travels;
use crate::{delta_world, lance_world};

fn plain(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let view = DirView::open(root).expect("a view");
    let tables = ["delta/", "vectors/"];
    let files = view.files().iter().map(|f| f.path.as_str());
    let plain = files.filter(|p| !tables.iter().any(|t| p.starts_with(t)));
    plain.map(|p| (p.to_string(), fs::read(root.join(p)).expect("a file"))).collect()
}

#[test]
fn the_sample_travels_before_and_after_a_change() {
    let lake = tempfile::tempdir().expect("a folder");
    make(lake.path(), 7, Scale { mib: 2 }).expect("a lake");
    let at = |table: &str| lake.path().join(table);
    let orders = || travels(&DeltaReader, &at("delta/orders"), History::All, delta_world::rows).0;
    let events = || travels(&DeltaReader, &at("delta/events"), History::All, delta_world::rows).0;
    let docs = || travels(&LanceReader, &at("vectors/docs.lance"), History::All, lance_world::rows).0;

    let before = (orders().facts, events().facts, docs().facts);
    assert_eq!(before.0.versions, [0, 1, 2, 3]);
    assert_eq!(before.2.dimensions[0].dim, 384);
    assert_eq!(before.2.indices.len(), 1);
    let old = plain(lake.path());

    let done = change(lake.path(), 0).expect("a change");
    assert_eq!(done.len(), 4);
    let after = (orders().facts, events().facts, docs().facts);
    assert_eq!(after.0.rows, before.0.rows + 2_000);
    assert_eq!((after.1.rows, after.1.version), (before.1.rows, before.1.version + 1));
    assert_eq!(after.2.rows, before.2.rows + 64);
    let new = plain(lake.path());
    let changed: Vec<&String> = new.iter().filter(|(p, b)| old.get(*p) != Some(b)).map(|e| e.0).collect();
    assert_eq!(changed, ["metadata/catalog.json"]);
    change(lake.path(), 1).expect("another change");
}

#[test]
fn same_seed_same_plain_files_and_about_the_size_asked_for() {
    let lakes = [7, 7, 8].map(|seed| {
        let lake = tempfile::tempdir().expect("a folder");
        make(lake.path(), seed, Scale { mib: 2 }).expect("a lake");
        lake
    });
    assert_eq!(plain(lakes[0].path()), plain(lakes[1].path()));
    assert_ne!(plain(lakes[0].path()), plain(lakes[2].path()));
    let view = DirView::open(lakes[0].path()).expect("a view");
    let bytes: u64 = view.files().iter().map(|f| f.size).sum();
    let asked = 2 * 1024 * 1024;
    assert!((asked * 8 / 10..asked * 13 / 10).contains(&bytes), "{bytes}");
    make(lakes[0].path(), 7, Scale { mib: 2 }).expect_err("a second lake in the same place");
}

#[test]
fn the_adapter_is_well_formed() {
    let lake = tempfile::tempdir().expect("a folder");
    make(lake.path(), 1, Scale { mib: 1 }).expect("a lake");
    let bytes = fs::read(lake.path().join("lora/acme-style/adapter_model.safetensors")).expect("it");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    assert_eq!((8 + length) % 8, 0);
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let mut end = 0;
    for (name, tensor) in &header {
        let at: [u64; 2] = serde_json::from_value(tensor["data_offsets"].clone()).expect("offsets");
        let shape: [u64; 2] = serde_json::from_value(tensor["shape"].clone()).expect("a shape");
        assert_eq!(at, [end, end + shape[0] * shape[1] * 2], "{name}");
        end = at[1];
    }
    assert_eq!(bytes.len() as u64, 8 + length as u64 + end);
}
