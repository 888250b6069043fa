//! Which sections a lake falls into, and what travels.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use sluice_protocol::manifest::SectionKind;
use sluice_store::scan::ScanError;

use crate::world::{World, path, skipped};

#[test]
fn a_lake_falls_into_sections() {
    let world = World::with(&[
        ("readme.txt", b"top"),
        ("raw/2024/a.csv", b"a"),
        ("raw/b.csv", b"b"),
        ("models/e5/modules.json", b"[]"),
        ("models/e5/1_Pooling/config.json", b"{}"),
        ("models/style/adapter_config.json", b"{}"),
        ("models/notes/x.md", b"x"),
        ("models/index.md", b"i"),
        ("misc/deep/er/file", b"f"),
    ]);
    world.folder("misc/empty/inner");
    world.folder("vacant");
    let snapshot = world.snap();
    assert_eq!(
        world.shown(&snapshot),
        [
            ". files shallow: readme.txt",
            "misc files: deep/er/file empty/inner/",
            "models files shallow: index.md",
            "models/e5 model: 1_Pooling/config.json modules.json",
            "models/notes files: x.md",
            "models/style lora: adapter_config.json",
            "raw raw: 2024/a.csv b.csv",
            "vacant files: ",
        ]
    );
    assert_eq!((snapshot.stats.files, snapshot.stats.read_files), (9, 9));
    assert_eq!(snapshot.skipped, []);
    world.check(&snapshot);
}

#[test]
fn an_empty_lake_has_an_id() {
    let world = World::new();
    let snapshot = world.snap();
    assert_eq!(snapshot.manifest.sections, []);
    assert_eq!(world.snap().id, snapshot.id);
}

#[test]
fn options_decree_kinds() {
    let mut world = World::with(&[("a/b/c.txt", b"c"), ("a/d/adapter_config.json", b"{}"), ("e/f", b"f")]);
    world.options.sections.insert(path("a"), SectionKind::Knowledge);
    world.options.sections.insert(path("none"), SectionKind::Raw);
    let snapshot = world.snap();
    assert_eq!(world.shown(&snapshot), ["a knowledge: b/c.txt d/adapter_config.json", "e files: f"]);
    assert_eq!(snapshot.notes.len(), 1);
    assert_eq!(snapshot.notes[0].path, "none");
}

#[test]
fn modes_travel_and_times_where_they_mean_something() {
    let world = World::with(&[("raw/run.sh", b"#!"), ("t/_delta_log/00000000000000000000.json", b""), ("t/x", b"")]);
    let chmod = |p: &str, mode| {
        std::fs::set_permissions(world.at(p), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod("raw/run.sh", 0o4755);
    chmod("t/x", 0o640);
    let mut world = world;
    world.options.opaque = true;
    let snapshot = world.snap();
    let sections = &snapshot.manifest.sections;
    let raw = &world.entries(&sections[0])[0];
    assert_eq!(raw.mode, Some(0o755), "bits above the permissions stay behind");
    assert!(raw.mtime_ns.is_some());
    let table = world.entries(&sections[1]);
    assert_eq!((table[0].mtime_ns.is_some(), table[1].mtime_ns, table[1].mode), (true, None, Some(0o640)));
}

#[test]
fn what_cannot_travel_is_reported() {
    let world = World::with(&[("raw/ok", b"1"), ("raw/con.txt", b"2"), ("raw/back\\slash", b"3"), ("raw/c:/x", b"4")]);
    let strange = std::ffi::OsStr::from_bytes(b"raw/caf\xe9");
    std::fs::write(world.dir.path().join("lake").join(strange), b"5").unwrap();
    std::fs::create_dir(world.dir.path().join("lake").join(std::ffi::OsStr::from_bytes(b"\xff"))).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, world.at("raw/pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.at("raw/sock")).unwrap();
    world.write("raw/inner/.sluice/objects/x", b"6");
    world.write(".sluice/own", b"7");
    let snapshot = world.snap();
    assert_eq!(world.shown(&snapshot), ["raw raw: inner/ ok"]);
    let paths: Vec<&str> = skipped(&snapshot).iter().map(|s| s.0).collect();
    let expected = [
        "\\xff",
        "raw/back\\\\slash",
        "raw/c:",
        "raw/caf\\xe9",
        "raw/con.txt",
        "raw/inner/.sluice",
        "raw/pipe",
        "raw/sock",
    ];
    assert_eq!(paths, expected);
    for (path, reason) in skipped(&snapshot) {
        assert!(!reason.is_empty(), "{path}");
    }
    world.check(&snapshot);
}

#[test]
fn names_that_others_cannot_tell_apart_are_noted_and_kept() {
    let world =
        World::with(&[("raw/Data", b"1"), ("raw/data", b"2"), ("raw/caf\u{e9}", b"3"), ("raw/cafe\u{301}", b"4")]);
    let snapshot = world.snap();
    assert_eq!(snapshot.stats.files, 4);
    assert_eq!(snapshot.notes.len(), 2);
    assert_eq!(snapshot.skipped, []);
}

#[test]
fn a_table_at_the_top_is_refused() {
    let world = World::with(&[("_delta_log/00000000000000000000.json", b"")]);
    assert!(matches!(world.scan(), Err(ScanError::TableAtTop { kind: SectionKind::Delta, .. })));
}

#[test]
fn a_lake_without_own_folder_can_be_shared() {
    let world = World::with(&[("raw/a", b"a")]);
    let snapshot = world.snap();
    world.check(&snapshot);
    assert!(!world.at(".sluice").exists(), "a snapshot writes nothing into the lake");
}
