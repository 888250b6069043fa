//! Nothing becomes `Verified` that contradicts itself, is not here, or reads otherwise than its source.

mod replica_world;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use replica_world::*;
use sluice_protocol::annex::{Dimension, IndexFacts, TableFacts};
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::SectionKind::{self, Delta, Files, Raw};
use sluice_store::publish::{TargetError, check_target};
use sluice_store::staging::Staging;
use sluice_store::table::{History, SectionView, TableCapture, TableError, TableReader};
use sluice_store::verify::{LayoutError, LinkError, Proof, VerifyError};

/// Reads "tables" whose rows are the bytes of their files.
struct CountingReader;

impl TableReader for CountingReader {
    fn kind(&self) -> SectionKind {
        Delta
    }
    fn capture(&self, _: &str, _: &Path, _: History) -> Result<TableCapture, TableError> {
        Err(TableError::Unreadable { table: "t".into(), cause: "not on this side".into() })
    }
    fn prove(&self, _: &str, view: Arc<dyn SectionView>) -> Result<TableFacts, TableError> {
        let mut hasher = blake3::Hasher::new();
        let mut rows = 0;
        for f in view.files() {
            let read = |range: Range<u64>| view.read(&f.path, range).unwrap();
            hasher.update(&read(0..f.size));
            assert!(view.read(&f.path, 0..f.size + 1).is_err(), "past the end");
            rows += f.size;
        }
        assert!(view.read(&path("not/listed"), 0..1).is_err());
        let versions: Vec<u64> = (0..view.files().len() as u64).collect();
        Ok(TableFacts {
            version: versions.len() as u64,
            versions,
            rows,
            schema_fingerprint: *hasher.finalize().as_bytes(),
            ..Default::default()
        })
    }
}

fn readers() -> Vec<Arc<dyn TableReader>> {
    vec![Arc::new(CountingReader)]
}

fn facts_of(items: &[Item]) -> TableFacts {
    let mut sorted: Vec<&Item> = items.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let bytes: Vec<u8> = sorted.iter().flat_map(|i| i.bytes.clone()).collect();
    TableFacts {
        version: items.len() as u64,
        versions: (0..items.len() as u64).collect(),
        rows: bytes.len() as u64,
        schema_fingerprint: *blake3::hash(&bytes).as_bytes(),
        ..Default::default()
    }
}

fn table() -> Part {
    let items = vec![file("a", [1; 70_000]), file("_delta_log/0", "x"), file("empty", "")];
    let facts = facts_of(&items);
    part("t", Delta, items).with_facts(facts)
}

#[test]
fn a_table_is_proven_from_the_bytes_that_arrived() {
    let world = World::new();
    let parts = [table()];
    let received = world.announce(&parts);
    world.deliver(&parts);
    let verified = world.check_with(received, &readers()).unwrap();
    assert!(matches!(verified.sections()[0].proof, Proof::Proven(_)));
    assert!(verified.unproven().is_empty());
    world.publish(&verified).unwrap();
    let report = sluice_store::verify::verify_live(
        &world.lake,
        &world.catalog,
        &world.space,
        true,
        &readers(),
        &sluice_store::watch::Silent,
    )
    .unwrap();
    assert_eq!((report.problems, report.tables_proven, report.files), (vec![], 1, 3));
}

#[test]
fn facts_that_differ_are_named_with_both_values() {
    type Change = fn(&mut TableFacts);
    let changes: [(&str, Change); 6] = [
        ("version", |f| f.versions.push(99)),
        ("rows", |f| f.rows += 1),
        ("schema", |f| f.schema_fingerprint = [0; 32]),
        ("dimensions", |f| f.dimensions.push(Dimension { column: "v".into(), dim: 3, unknown: Default::default() })),
        ("indices", |f| {
            let text = || "i".to_string();
            let index = IndexFacts { name: text(), column: text(), kind: text(), rows: 1, unknown: Default::default() };
            f.indices.push(index);
        }),
        ("version", |f| f.version += 1),
    ];
    for (word, change) in changes {
        let world = World::new();
        let mut part = table();
        change(part.facts.as_mut().unwrap());
        let received = world.announce(&[part.clone()]);
        world.deliver(&[part]);
        let error = world.check_with(received, &readers()).unwrap_err();
        assert!(error.is_final(), "{word}");
        match error {
            VerifyError::Disagrees { table, what, found, source_says } => {
                assert_eq!(table, "t");
                assert!(what.contains(word), "{word}: {what}");
                assert_ne!(found, source_says);
            }
            other => panic!("{word}: {other}"),
        }
    }
}

#[test]
fn what_cannot_be_read_is_unproven_and_says_why() {
    let world = World::new();
    let parts = [table(), part("u", SectionKind::Lance, vec![file("data/x", "1")])];
    let verified = world.verified(&parts);
    let unproven = verified.unproven();
    assert_eq!(unproven.len(), 2);
    assert!(unproven[0].starts_with("t: this build cannot read delta"), "{unproven:?}");
    assert!(unproven[1].starts_with("u: carried as files"), "{unproven:?}");
    assert_eq!(world.publish(&verified).unwrap().unproven, unproven);
    // The same version again: still unproven, and proven as soon as there is a reader.
    let again = world.check(world.announce(&parts)).unwrap();
    assert_eq!(again.unproven(), unproven);
    let proven = world.check_with(world.announce(&parts), &readers()).unwrap();
    assert_eq!(proven.unproven().len(), 1);
    assert_eq!(world.publish(&proven).unwrap().unproven.len(), 1);
}

#[test]
fn a_table_without_facts_is_refused() {
    let world = World::new();
    let mut part = table();
    part.facts = None;
    let received = world.announce(&[part.clone()]);
    world.deliver(&[part]);
    assert!(matches!(world.check_with(received, &readers()), Err(VerifyError::NoFacts { .. })));
}

fn layout_error(world: &World, parts: &[Part]) -> LayoutError {
    let received = world.announce(parts);
    world.deliver(parts);
    match world.check(received) {
        Err(VerifyError::Layout(e)) => e,
        other => panic!("{:?}", other.err().map(|e| e.to_string())),
    }
}

#[test]
fn hostile_layouts_are_refused() {
    let world = World::new();
    let both = [part("raw", Raw, vec![file("a", "1"), file("a-", "2"), file("a/b", "3")])];
    assert!(matches!(layout_error(&world, &both), LayoutError::FileAndFolder { path } if path == "raw/a"));
    let through_link = [part("raw", Raw, vec![link("a", "b"), file("a/b", "3")])];
    assert!(matches!(layout_error(&world, &through_link), LayoutError::FileAndFolder { .. }));
    let over_section = [loose(None, vec![file("x", "1")]), part("x/y", Raw, vec![])];
    assert!(matches!(layout_error(&world, &over_section), LayoutError::FileAndFolder { path } if path == "x"));
    let twice = [loose(None, vec![folder("x")]), part("x", Raw, vec![])];
    assert!(matches!(layout_error(&world, &twice), LayoutError::Twice { .. }));
    let deep = [loose(None, vec![file("x/y", "1")])];
    assert!(matches!(layout_error(&world, &deep), LayoutError::TooDeep { .. }));
    for target in ["../../etc", "a/../../../x"] {
        let out = [part("raw", Raw, vec![link("l", target)])];
        assert!(matches!(layout_error(&world, &out), LayoutError::Link(LinkError::Outside { .. })), "{target}");
    }
    let own = [part("raw", Raw, vec![link("l", "../.sluice/live")])];
    assert!(matches!(layout_error(&world, &own), LayoutError::Link(LinkError::Own { .. })));
    assert!(!world.at(".sluice/generations").exists(), "nothing was published");
}

#[test]
fn a_path_that_would_be_too_long_below_our_folder_is_refused() {
    let world = World::new();
    let long = vec!["n".repeat(254); 16].join("/");
    let error = layout_error(&world, &[part("s", Raw, vec![file(&long, "1")])]);
    assert!(matches!(error, LayoutError::Path { .. }));
}

#[test]
fn a_blob_that_is_not_here_is_named() {
    let world = World::new();
    let parts = [part("raw", Raw, vec![file("a", "1"), file("b", [2; 40_000])])];
    let received = world.announce(&parts);
    world.deliver(&[part("raw", Raw, vec![file("a", "1")])]);
    match world.check(received) {
        Err(VerifyError::MissingBlobs { count: 1, first, hashes }) => {
            assert_eq!(first, ["`raw/b`"]);
            assert_eq!(hashes, [BlobHash::of(&[2; 40_000])]);
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_manifest_that_names_a_blob_of_another_space_gets_nothing() {
    let world = World::new();
    let secret = b"belongs to another tenant";
    let other = Staging::open(&world.lake, SpaceId([99; 32]), &world.catalog).unwrap();
    other.put_small(&[(BlobHash::of(secret), secret[..].into())]).unwrap();
    let received = world.announce(&[part("raw", Raw, vec![file("mine", secret)])]);
    assert!(matches!(world.check(received), Err(VerifyError::MissingBlobs { .. })));
}

#[test]
fn a_size_that_the_blob_does_not_have_is_refused() {
    let world = World::new();
    let received = world.announce(&[part("raw", Raw, vec![file("a", "1")])]);
    world.staging().put_small(&[(BlobHash::of(b"1"), b"1"[..].into())]).unwrap();
    // The record says otherwise than the list: as if the list lied.
    world
        .catalog
        .write(|b| {
            use sluice_store::catalog::Lookup;
            let mut record = b.blob(&world.space, &BlobHash::of(b"1"))?.unwrap();
            record.size = 2;
            b.put_blob(&world.space, &BlobHash::of(b"1"), &record)
        })
        .unwrap();
    assert!(matches!(world.check(received), Err(VerifyError::OtherSize { listed: 1, found: 2, .. })));
}

#[test]
fn missing_metadata_is_named() {
    let world = World::new();
    let parts = [part("raw", Raw, vec![file("a", "1")])];
    let received = world.announce(&parts);
    world.deliver(&parts);
    let tree = {
        let verified = world.check(received.clone()).unwrap();
        verified.sections()[0].section.tree.page
    };
    let forget = |hash: &BlobHash| world.catalog.write(|b| b.remove_meta(&world.space, hash)).unwrap();
    forget(&tree);
    assert!(matches!(world.check(received.clone()), Err(VerifyError::NoMetadata { what: "page", .. })));
    forget(&received.head.annex);
    assert!(matches!(world.check(received.clone()), Err(VerifyError::NoMetadata { what: "annex", .. })));
    forget(&received.head.manifest.into());
    assert!(matches!(world.check(received), Err(VerifyError::NoMetadata { what: "manifest", .. })));
}

#[test]
fn a_head_of_another_space_is_refused() {
    let world = World::new();
    let mut received = world.announce(&[part("raw", Raw, vec![])]);
    received.space = SpaceId([77; 32]);
    assert!(matches!(world.check(received), Err(VerifyError::OtherSpace { .. })));
}

#[test]
fn only_the_chosen_sections_are_wanted() {
    let world = World::new();
    let parts = [
        part("a/one", Raw, vec![file("x", "1")]),
        part("a/two", Files, vec![file("y", "2")]),
        part("b", Files, vec![file("z", "3")]),
    ];
    let chosen = |names: &[&str]| {
        let mut received = world.announce(&parts);
        received.sections = names.iter().map(|n| n.to_string()).collect();
        received
    };
    world.deliver(&parts[..2]);
    assert!(world.check(chosen(&[])).is_err());
    let verified = world.check(chosen(&["a"])).unwrap();
    world.publish(&verified).unwrap();
    world.assert_shows(&parts[..2]);
    let only_raw = world.check(chosen(&["raw"])).unwrap();
    world.publish(&only_raw).unwrap();
    world.assert_shows(&parts[..1]);
}

#[test]
fn a_touched_blob_is_hashed_again_and_a_changed_one_refused() {
    let world = World::new();
    let parts = [part("raw", Raw, vec![file("a", [1; 50_000])])];
    let received = world.announce(&parts);
    world.deliver(&parts);
    let part = world.at(&format!(".sluice/staging/{}.part", BlobHash::of(&[1; 50_000])));
    std::fs::hard_link(&part, world.at(".sluice/touched")).unwrap();
    assert!(world.check(received.clone()).is_ok());
    std::fs::write(&part, [2; 50_000]).unwrap();
    assert!(matches!(world.check(received), Err(VerifyError::MissingBlobs { .. })));
}

#[test]
fn a_deep_check_finds_what_a_shallow_one_cannot() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let parts = [part("raw", Raw, vec![file("a", [1; 50_000]).at(5), link("l", "a"), folder("f")])];
    world.sync(&parts);
    let at = world.at("raw/a");
    let damage = |change: &dyn Fn()| {
        change();
        let report = world.report(true);
        assert_eq!(report.problem_count, 1, "{:?}", report.problems);
        report.problems[0].clone()
    };
    std::fs::set_permissions(&at, PermissionsExt::from_mode(0o644)).unwrap();
    let mode = damage(&|| {});
    assert_eq!(mode.to_string(), "`raw/a`: has mode 0644 instead of 0444");
    std::fs::write(&at, [2; 50_000]).unwrap();
    let file = std::fs::File::options().write(true).open(&at).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(5)).unwrap();
    std::fs::set_permissions(&at, PermissionsExt::from_mode(0o444)).unwrap();
    assert_eq!(damage(&|| {}).what, "the bytes are not those of the manifest");
    std::fs::remove_file(&at).unwrap();
    assert_eq!(damage(&|| {}).what, "the file is missing");
}

#[test]
fn only_an_empty_folder_becomes_a_replica() {
    let world = World::new();
    let check = || check_target(&world.lake, &world.catalog, &world.space);
    assert!(check().unwrap().hard_links);
    std::fs::create_dir(world.at("lost+found")).unwrap();
    assert!(check().is_ok());
    std::fs::write(world.at("data.csv"), b"1").unwrap();
    assert!(matches!(check(), Err(TargetError::NotEmpty { first, .. }) if first == "data.csv"));
    std::fs::remove_file(world.at("data.csv")).unwrap();
    world.sync(&[part("raw", Raw, vec![file("a", "1")])]);
    assert!(check().is_ok(), "our own replica");
    let other = check_target(&world.lake, &world.catalog, &SpaceId([1; 32]));
    assert!(matches!(other, Err(TargetError::NotEmpty { .. })));
    std::fs::remove_file(world.at("raw")).unwrap();
    let other = check_target(&world.lake, &world.catalog, &SpaceId([1; 32]));
    assert!(matches!(other, Err(TargetError::Taken { .. })));
    let left: Vec<String> = listing(&world.at(".sluice")).into_iter().filter(|n| n.contains("probe")).collect();
    assert!(left.is_empty(), "{left:?}");
}
