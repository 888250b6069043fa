//! The catalog keeps what it was told, refuses what it cannot read, and survives being killed.

use sluice_protocol::ids::{BlobHash, SiteId, SpaceId};
use sluice_protocol::path::LakePath;
use sluice_store::catalog::{Catalog, CatalogError, FileRecord, JournalRecord, Located, Lookup, SiteLookup};
use sluice_store::lake::{Fingerprint, Place};

const SPACE: SpaceId = SpaceId([1; 32]);
const OTHER: SpaceId = SpaceId([2; 32]);

fn print() -> Fingerprint {
    Fingerprint { dev: 1, inode: 2, size: 3, mtime_ns: -4, ctime_ns: 5, unknown: Default::default() }
}

fn path(text: &str) -> LakePath {
    LakePath::parse(text).unwrap()
}

fn refused<T>(r: Result<T, CatalogError>) -> CatalogError {
    r.map(|_| ()).unwrap_err()
}

#[test]
fn spaces_do_not_see_each_other() {
    let home = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(home.path()).unwrap();
    let hash = BlobHash::of(b"x");
    let place = Place::Lake(path("a"));
    catalog
        .write(|b| {
            b.put_file(
                &SPACE,
                &path("a"),
                &FileRecord { print: print(), hash, damaged: false, unknown: Default::default() },
            )?;
            b.add_place(
                &SPACE,
                &hash,
                3,
                Located { place: place.clone(), print: print(), unknown: Default::default() },
            )?;
            b.put_meta(&SPACE, b"meta")
        })
        .unwrap();
    let r = catalog.read().unwrap();
    assert!(r.has_blob(&SPACE, &hash).unwrap() && !r.has_blob(&OTHER, &hash).unwrap());
    assert!(r.meta(&OTHER, &BlobHash::of(b"meta")).unwrap().is_none());
    assert_eq!(r.meta(&SPACE, &BlobHash::of(b"meta")).unwrap().unwrap(), b"meta");
    assert_eq!(r.file(&SPACE, &path("a")).unwrap().unwrap().print, print());
    catalog.write(|b| b.remove_place(&SPACE, &hash, &place)).unwrap();
    assert!(catalog.read().unwrap().blob(&SPACE, &hash).unwrap().is_none());
}

#[test]
fn a_failed_change_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(home.path()).unwrap();
    let failed: Result<(), CatalogError> = catalog.write(|b| {
        b.put_setting("name", b"acme")?;
        Err(CatalogError::Refused("no".into()))
    });
    assert!(failed.is_err());
    assert!(catalog.read().unwrap().setting("name").unwrap().is_none());
}

#[test]
fn large_values_lie_beside_and_a_flipped_bit_is_absence() {
    let home = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(home.path()).unwrap();
    let big = vec![7u8; 300_000];
    let hash = catalog.write(|b| b.put_meta(&SPACE, &big)).unwrap();
    assert_eq!(catalog.read().unwrap().meta(&SPACE, &hash).unwrap().unwrap(), big);
    let file = home.path().join("meta").join(&hash.to_string()[..2]).join(hash.to_string());
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(catalog.read().unwrap().meta(&SPACE, &hash).unwrap().is_none());
}

#[test]
fn damage_and_strange_layouts_are_named() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("catalog.redb");
    std::fs::write(&file, vec![0x5a; 100_000]).unwrap();
    assert!(matches!(refused(Catalog::open(home.path())), CatalogError::Corrupt { .. }));
    std::fs::remove_file(&file).unwrap();

    let catalog = Catalog::open(home.path()).unwrap();
    assert!(matches!(refused(Catalog::open(home.path())), CatalogError::InUse { .. }));
    catalog.write(|b| b.put_setting("schema", &9u64.to_le_bytes())).unwrap();
    drop(catalog);
    let text = refused(Catalog::open(home.path())).to_string();
    assert!(text.contains("layout 9") && text.contains("layout 1"), "{text}");
}

#[test]
fn a_cut_catalog_is_an_error_and_no_crash() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("catalog.redb");
    drop(Catalog::open(home.path()).unwrap());
    let whole = std::fs::read(&file).unwrap();
    for keep in [1, 100, 4096, whole.len() / 2] {
        std::fs::write(&file, &whole[..keep]).unwrap();
        assert!(Catalog::open(home.path()).is_err(), "{keep} bytes kept");
    }
}

#[test]
fn the_journal_is_a_chain() {
    let home = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(home.path()).unwrap();
    for n in 0..3u64 {
        let record = JournalRecord {
            time_ms: n,
            what: "tested".into(),
            space: Some(SPACE),
            site: Some(SiteId([3; 32])),
            text: format!("event {n}"),
            prev: [0; 32],
            unknown: Default::default(),
        };
        catalog.write(|b| b.log(record)).unwrap();
    }
    let rows = catalog.read().unwrap().journal(1).unwrap();
    assert_eq!(rows.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(rows[0].1.prev, [0; 32]);
    assert_ne!(rows[1].1.prev, rows[2].1.prev);
    assert_ne!(rows[1].1.prev, [0; 32]);
}
