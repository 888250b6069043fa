//! Manifests, their entries and their annex: what belongs together, and what a layout may be.

use sluice_protocol::annex::{Annex, ChunkListRef, Dimension, IndexFacts, TableAnnex, TableFacts};
use sluice_protocol::codec::{CodecError, Document, Enc};
use sluice_protocol::ids::{BlobHash, SnapshotId};
use sluice_protocol::limits::{
    CHUNK_LIST_BYTES_MAX, ENTRIES_MAX, FILE_BYTES_MAX, LAKE_BYTES_MAX, LINK_TARGET_BYTES_MAX, SECTIONS_MAX,
    TABLE_FACTS_MAX, TEXT_BYTES_MAX,
};
use sluice_protocol::manifest::{Entry, EntryKind, History, Manifest, Section, SectionKind, SectionState, in_turn};
use sluice_protocol::tree::{TreeItem, TreeRef};

use crate::samples::{build, file, path, section};

fn tree(items: u64, weight: u64) -> TreeRef {
    TreeRef { page: BlobHash([3; 32]), height: 0, items, weight, unknown: Default::default() }
}

fn plain(folder: Option<&str>) -> Section {
    section(folder, false, tree(1, 1))
}

fn shallow(folder: Option<&str>) -> Section {
    section(folder, true, tree(1, 1))
}

fn read_back(sections: Vec<Section>) -> Result<Manifest, CodecError> {
    Manifest::from_bytes(&Manifest::new(sections).to_bytes())
}

#[test]
fn a_manifest_comes_back_as_it_was() {
    let state = SectionState {
        table_version: Some(7),
        params: Some([5; 32]),
        history: Some(History::Tagged),
        opaque: true,
        unknown: Default::default(),
    };
    let sections: Vec<Section> = SectionKind::ALL
        .iter()
        .map(|kind| Section { kind: *kind, state: state.clone(), ..plain(Some(kind.as_str())) })
        .collect();
    let manifest = Manifest::new(sections);
    let back = Manifest::from_bytes(&manifest.to_bytes()).unwrap();
    assert_eq!(back, manifest);
    assert_eq!(back.id(), manifest.id());
    assert_eq!(back.id(), SnapshotId::from(BlobHash::of(&manifest.to_bytes())));
    assert_eq!((back.entries(), back.bytes()), (13, 13));
}

/// The bytes that a newer version would write: a field more in the manifest, the section and its state.
fn newer_manifest() -> Vec<u8> {
    let mut e = Enc::new(Vec::new());
    let hash = [3u8; 32];
    e.array(3).unwrap().str("sluice/manifest").unwrap().u64(1).unwrap();
    e.map(2).unwrap().u8(0).unwrap().array(1).unwrap();
    e.map(5).unwrap().u8(0).unwrap().u8(1).unwrap().u8(1).unwrap().str("orders").unwrap();
    e.u8(3).unwrap().map(2).unwrap().u8(0).unwrap().u8(4).unwrap().u8(200).unwrap().bool(true).unwrap();
    e.u8(4).unwrap().map(4).unwrap().u8(0).unwrap().bytes(&hash).unwrap();
    e.u8(1).unwrap().u8(0).unwrap().u8(2).unwrap().u8(1).unwrap().u8(3).unwrap().u8(9).unwrap();
    e.u8(9).unwrap().map(1).unwrap().str("later").unwrap().null().unwrap();
    e.u8(77).unwrap().array(2).unwrap().i8(-5).unwrap().f64(0.5).unwrap();
    e.into_writer()
}

#[test]
fn fields_of_a_newer_version_are_kept_and_count() {
    let bytes = newer_manifest();
    let manifest = Manifest::from_bytes(&bytes).unwrap();
    let section = &manifest.sections[0];
    assert_eq!((manifest.unknown.len(), section.unknown.len(), section.state.unknown.len()), (1, 1, 1));
    assert_eq!((section.kind, section.name(), section.state.table_version), (SectionKind::Delta, "orders", Some(4)));
    assert_eq!(manifest.to_bytes(), bytes);
    assert_eq!(manifest.id(), SnapshotId::from(BlobHash::of(&bytes)));
    let mut without = manifest.clone();
    without.unknown = Default::default();
    assert_ne!(without.id(), manifest.id());
    // A section that is carried over by an older version keeps them too.
    assert_eq!(Manifest::new(vec![section.clone()]).sections[0].unknown, section.unknown);
}

#[test]
fn layouts() {
    let accepted = [
        vec![],
        vec![plain(None)],
        vec![shallow(None)],
        vec![shallow(None), plain(Some("a")), plain(Some("b"))],
        vec![shallow(None), shallow(Some("a")), plain(Some("a/b")), plain(Some("a/c"))],
        vec![plain(Some("a")), plain(Some("a-b")), plain(Some("ab"))],
        vec![shallow(Some("a/b")), plain(Some("a/b/c/d"))],
    ];
    for sections in accepted {
        read_back(sections).unwrap();
    }
    let refused = [
        vec![plain(None), plain(Some("a"))],
        vec![plain(None), shallow(Some("a"))],
        vec![plain(Some("a")), plain(Some("a/b"))],
        vec![plain(Some("a")), plain(Some("a/b/c/d"))],
        vec![plain(Some("a")), shallow(Some("a/b"))],
        vec![shallow(None), plain(Some("x/y")), plain(Some("x/y/z"))],
        vec![plain(Some("a")), plain(Some("a-b")), plain(Some("a/b"))],
        vec![plain(Some("a")), plain(Some("a"))],
        vec![shallow(Some("a")), plain(Some("a"))],
        vec![shallow(None), plain(None)],
    ];
    for sections in refused {
        assert!(read_back(sections.clone()).is_err(), "{:?}", sections.iter().map(Section::name).collect::<Vec<_>>());
    }
    let unsorted = Manifest { sections: vec![plain(Some("b")), plain(Some("a"))], unknown: Default::default() };
    assert_eq!(Manifest::from_bytes(&unsorted.to_bytes()), Err(CodecError::NotCanonical));
}

#[test]
fn totals_are_bounded_and_do_not_overflow() {
    let of = |trees: &[TreeRef]| {
        trees.iter().enumerate().map(|(i, t)| section(Some(&format!("s{i}")), false, t.clone())).collect::<Vec<_>>()
    };
    assert!(read_back(of(&[tree(ENTRIES_MAX, LAKE_BYTES_MAX)])).is_ok());
    for trees in [
        vec![tree(ENTRIES_MAX + 1, 0)],
        vec![tree(ENTRIES_MAX, 0), tree(1, 0)],
        vec![tree(u64::MAX, 0), tree(u64::MAX, 0)],
        vec![tree(1, LAKE_BYTES_MAX), tree(1, 1)],
        vec![tree(1, u64::MAX), tree(1, u64::MAX)],
        vec![TreeRef { height: 9, ..tree(1, 1) }],
    ] {
        assert!(read_back(of(&trees)).is_err(), "{trees:?}");
    }
    let many = (0..=SECTIONS_MAX).map(|i| plain(Some(&format!("{i:05}")))).collect::<Vec<_>>();
    assert!(read_back(many[1..].to_vec()).is_ok());
    assert!(matches!(read_back(many), Err(CodecError::TooLarge { .. })));
}

#[test]
fn codes_of_tomorrow_are_refused_by_number() {
    let bytes = read_back(vec![plain(Some("a"))]).unwrap().to_bytes();
    let kind = bytes.windows(5).position(|w| w == [0, 0, 1, 0x61, b'a']).unwrap() + 1;
    let mut newer = bytes;
    newer[kind] = 13;
    let error = Manifest::from_bytes(&newer).unwrap_err().to_string();
    assert_eq!(error, "13 is not a section kind");
}

#[test]
fn entries_that_contradict_themselves() {
    let link = |target: &str| Entry {
        kind: EntryKind::Link,
        size: 0,
        hash: None,
        target: Some(target.into()),
        ..file("l", 0)
    };
    let folder = Entry { kind: EntryKind::Folder, hash: None, ..file("d", 0) };
    let hash = file("a", 0).hash;
    for good in [file("a", 0), file("a", FILE_BYTES_MAX), folder.clone(), link("x"), link("../x"), link("a b/ä")] {
        good.check().unwrap_or_else(|e| panic!("{good:?}: {e}"));
        assert_eq!(build(std::slice::from_ref(&good)).unwrap().read::<Entry>().0.unwrap(), [good]);
    }
    let bad = [
        file("a", FILE_BYTES_MAX + 1),
        Entry { hash: None, ..file("a", 1) },
        Entry { target: Some("x".into()), ..file("a", 1) },
        Entry { mode: Some(0o1000), ..file("a", 1) },
        Entry { mode: Some(0o4755), ..file("a", 1) },
        Entry { size: 1, ..folder.clone() },
        Entry { hash, ..folder.clone() },
        Entry { target: Some("x".into()), ..folder },
        Entry { target: None, ..link("x") },
        Entry { hash, ..link("x") },
        Entry { size: 1, ..link("x") },
        link(""),
        link("/etc/passwd"),
        link("a\\b"),
        link("a\0"),
        link(&"x".repeat(LINK_TARGET_BYTES_MAX + 1)),
    ];
    for bad in bad {
        assert!(matches!(bad.check(), Err(CodecError::Invalid(_))), "{bad:?}");
        assert!(build(std::slice::from_ref(&bad)).is_err());
    }
}

#[test]
fn a_section_knows_where_its_entries_lie() {
    let at = |folder: Option<&str>, entry: &str| plain(folder).lake_path(&path(entry)).map(|p| p.to_string());
    assert_eq!(at(None, "a/b").unwrap(), "a/b");
    assert_eq!(at(Some("x/y"), "a/b").unwrap(), "x/y/a/b");
    let deep = "d/".repeat(100) + "d";
    assert!(at(Some(&deep), &deep).is_err());
}

fn annex(tables: Vec<TableAnnex>) -> Annex {
    Annex { manifest: SnapshotId([1; 32]), tables, chunk_lists: None, unknown: Default::default() }
}

fn table(folder: Option<&str>, facts: TableFacts) -> TableAnnex {
    TableAnnex { section: folder.map(path), kind: SectionKind::Lance, facts, unknown: Default::default() }
}

#[test]
fn an_annex_comes_back_and_answers() {
    let facts = TableFacts {
        version: 3,
        versions: vec![1, 3],
        rows: 1000,
        schema_fingerprint: [7; 32],
        dimensions: vec![Dimension { column: "vec".into(), dim: 384, unknown: Default::default() }],
        indices: vec![IndexFacts {
            name: "vec_idx".into(),
            column: "vec".into(),
            kind: "IVF_PQ".into(),
            rows: 1000,
            unknown: Default::default(),
        }],
        features: vec!["deletionVectors".into()],
        tags: vec!["gold=3".into()],
        unknown: Default::default(),
    };
    let annex = annex(vec![table(None, TableFacts::default()), table(Some("docs.lance"), facts.clone())]);
    let back = Annex::from_bytes(&annex.to_bytes()).unwrap();
    assert_eq!(back, annex);
    assert_eq!(back.facts(Some(&path("docs.lance"))), Some(&facts));
    assert_eq!(back.facts(None), Some(&TableFacts::default()));
    assert_eq!(back.facts(Some(&path("other"))), None);
}

#[test]
fn an_annex_is_bounded() {
    let twice = annex(vec![table(Some("a"), TableFacts::default()), table(Some("a"), TableFacts::default())]);
    let long_text = TableFacts { features: vec!["x".repeat(TEXT_BYTES_MAX + 1)], ..Default::default() };
    let many = TableFacts { tags: vec![String::new(); TABLE_FACTS_MAX + 1], ..Default::default() };
    for bad in [twice, annex(vec![table(None, long_text)]), annex(vec![table(None, many)])] {
        assert!(Annex::from_bytes(&bad.to_bytes()).is_err());
    }
    let mut high = annex(vec![]);
    high.chunk_lists = Some(TreeRef { height: 9, ..tree(1, 1) });
    assert!(Annex::from_bytes(&high.to_bytes()).is_err());
}

#[test]
fn chunk_lists_lie_in_a_tree_by_blob() {
    let mut refs: Vec<ChunkListRef> = (0..2000u32)
        .map(|i| ChunkListRef {
            blob: BlobHash::of(&i.to_le_bytes()),
            list: BlobHash([4; 32]),
            list_bytes: u64::from(i),
            unknown: Default::default(),
        })
        .collect();
    refs.sort_by_key(|r| r.blob);
    let tree = build(&refs).unwrap();
    assert_eq!(tree.read::<ChunkListRef>().0.unwrap(), refs);
    refs[0].list_bytes = CHUNK_LIST_BYTES_MAX + 1;
    assert!(refs[0].check_item().is_err());
}

#[test]
fn sections_arrive_as_they_were_named_and_else_by_their_kinds() {
    let of = |kind: SectionKind, folder: &str| Section { kind, ..plain(Some(folder)) };
    let all = [
        of(SectionKind::Delta, "orders"),
        of(SectionKind::Raw, "raw"),
        of(SectionKind::Faiss, "index"),
        of(SectionKind::Metadata, "metadata"),
        of(SectionKind::Lance, "vectors/images"),
    ];
    let order = |named: &[&str]| {
        let named: Vec<String> = named.iter().map(ToString::to_string).collect();
        let mut sections: Vec<&Section> = all.iter().collect();
        in_turn(&mut sections, &named);
        sections.iter().map(|s| s.name().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(order(&[]), ["metadata", "index", "orders", "vectors/images", "raw"]);
    assert_eq!(order(&["vectors", "raw"]), ["vectors/images", "raw", "metadata", "index", "orders"]);
    assert_eq!(order(&["delta"])[0], "orders");
}
