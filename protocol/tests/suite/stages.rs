//! Stages: whatever names a file comes after it.

use proptest::prelude::*;
use sluice_protocol::manifest::SectionKind;
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::{
    Replace, Stage, delta_commit, grows_in_place, is_regenerated, keeps_mtime, replace_of, stage_of, write_once,
};

use crate::samples::path;

fn at(kind: SectionKind, text: &str) -> Stage {
    stage_of(kind, &path(text))
}

fn v2(version: u64) -> String {
    format!("_versions/{:020}.manifest", u64::MAX - version)
}

/// Pairs of (a file that names, a file that it names).
#[test]
fn naming_files_come_after_named_ones() {
    let (delta, lance) = (SectionKind::Delta, SectionKind::Lance);
    let commit = "_delta_log/00000000000000000003.json";
    let v3 = v2(3);
    let pairs: Vec<(SectionKind, &str, &str)> = vec![
        (delta, commit, "part-1.parquet"),
        (delta, commit, "region=eu/part-1.parquet"),
        (delta, commit, "_change_data/c.parquet"),
        (delta, commit, "deletion_vector_x.bin"),
        (delta, "_delta_log/00000000000000000003.checkpoint.parquet", commit),
        (delta, "_delta_log/00000000000000000003.checkpoint.0000000001.0000000002.parquet", commit),
        (
            delta,
            "_delta_log/00000000000000000003.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json",
            "_delta_log/_sidecars/s.parquet",
        ),
        (
            delta,
            "_delta_log/00000000000000000001.00000000000000000003.compacted.json",
            "_delta_log/00000000000000000002.json",
        ),
        (delta, "_delta_log/_last_checkpoint", "_delta_log/00000000000000000003.checkpoint.parquet"),
        (delta, "_delta_log/_last_checkpoint", commit),
        (lance, "_transactions/2-a.txn", "data/a.lance"),
        (lance, &v3, "_transactions/2-a.txn"),
        (lance, &v3, "data/a.lance"),
        (lance, &v3, "_deletions/0-1-2.arrow"),
        (lance, &v3, "_indices/u/index.idx"),
        (lance, "_versions/3.manifest", "data/a.lance"),
        (lance, "_refs/tags/gold.json", &v3),
        (lance, "_refs/branches/b.json", "tree/b/_versions/1.manifest"),
        (lance, "tree/b/_versions/1.manifest", "tree/b/data/a.lance"),
        (lance, "tree/b/_versions/1.manifest", "tree/b/_transactions/0-a.txn"),
        (lance, "tree/b/_versions/1.manifest", "data/a.lance"),
        (SectionKind::Lora, "adapter_config.json", "adapter_model.safetensors"),
        (SectionKind::Faiss, "index.faiss", "metadata.parquet"),
        (SectionKind::Model, "modules.json", "1_Pooling/config.json"),
        (SectionKind::Model, "model.safetensors.index.json", "model-00001-of-00002.safetensors"),
        (SectionKind::Files, "manifest.json", "a.bin"),
        (SectionKind::Raw, "checksums.sha256", "a.bin"),
    ];
    for (kind, names, named) in pairs {
        assert!(at(kind, names) > at(kind, named), "{kind}: {names} before {named}");
    }
}

#[test]
fn numbers_are_read_as_numbers() {
    let lance = SectionKind::Lance;
    assert!(at(lance, "_versions/10.manifest") > at(lance, "_versions/9.manifest"));
    assert!(at(lance, &v2(10)) > at(lance, &v2(9)));
    assert_eq!(at(lance, "_versions/7.manifest").version, 7);
    assert_eq!(at(lance, &v2(7)).version, 7);
    // Names that no version has come last among versions, never first.
    for odd in
        ["_versions/x.manifest", "_versions/d17.manifest", "_versions/.tmp", "_versions/99999999999999999999.manifest"]
    {
        assert!(at(lance, odd) >= at(lance, &v2(1_000_000)), "{odd}");
    }
    assert_eq!(delta_commit(&path("_delta_log/00000000000000000012.json")), Some(12));
    for no in [
        "_delta_log/12.json",
        "_delta_log/00000000000000000012.crc",
        "00000000000000000012.json",
        "_delta_log/0000000000000000001x.json",
        "_delta_log/99999999999999999999.json",
    ] {
        assert_eq!(delta_commit(&path(no)), None, "{no}");
    }
}

#[test]
fn what_may_be_replaced_in_place() {
    let pointer = path("_delta_log/_last_checkpoint");
    assert_eq!(replace_of(SectionKind::Delta, &pointer), Replace::Pointer);
    for kind in SectionKind::ALL {
        assert_eq!(grows_in_place(*kind), kind.is_table());
        if *kind != SectionKind::Delta {
            assert_eq!(replace_of(*kind, &pointer), Replace::Never);
        }
        for file in ["a.bin", "_delta_log/00000000000000000001.json", "data/a.lance", "adapter_config.json"] {
            assert_eq!(replace_of(*kind, &path(file)), Replace::Never);
        }
    }
}

#[test]
fn hints_are_made_again_and_not_carried() {
    let hint = path("_versions/latest_version_hint.json");
    for kind in SectionKind::ALL {
        assert_eq!(is_regenerated(*kind, &hint), *kind == SectionKind::Lance);
    }
}

fn kind() -> impl Strategy<Value = SectionKind> {
    prop::sample::select(SectionKind::ALL.to_vec())
}

/// Paths that look like those of tables, and others.
fn any_path() -> impl Strategy<Value = LakePath> {
    let name = prop::sample::select(vec![
        "_delta_log",
        "_last_checkpoint",
        "_sidecars",
        "_versions",
        "_transactions",
        "_refs",
        "tree",
        "data",
        "a.parquet",
        "00000000000000000001.json",
        "00000000000000000001.crc",
        "00000000000000000001.checkpoint.parquet",
        "1.manifest",
        "18446744073709551614.manifest",
        "index.faiss",
        "manifest.json",
        "x",
    ]);
    prop::collection::vec(name, 1..5).prop_map(|names| path(&names.join("/")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_path_has_a_stage_and_it_is_always_the_same(kind in kind(), path in any_path()) {
        let stage = stage_of(kind, &path);
        prop_assert_eq!(stage, stage_of(kind, &path));
        prop_assert!(stage.rank <= 4);
        prop_assert!(kind.is_table() || stage.rank <= 1);
        prop_assert!(stage.version == 0 || stage.rank == 2);
        prop_assert!(!keeps_mtime(kind, &path) || kind != SectionKind::Lance);
        prop_assert!(!write_once(kind, &path) || kind.is_table());
        prop_assert!(!write_once(kind, &path) || replace_of(kind, &path) == Replace::Never);
    }

    #[test]
    fn later_versions_come_later(a in 0..u64::MAX / 2, b in 0..u64::MAX / 2) {
        let commit = |v: u64| at(SectionKind::Delta, &format!("_delta_log/{v:020}.json"));
        prop_assert_eq!(commit(a).cmp(&commit(b)), a.cmp(&b));
        prop_assert_eq!(at(SectionKind::Lance, &v2(a)).cmp(&at(SectionKind::Lance, &v2(b))), a.cmp(&b));
    }
}
