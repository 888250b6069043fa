//! The corpus of hostile paths against both doors: a scan never takes one in, and a version that names
//! one is never published.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ed25519_dalek::SigningKey;
use sluice_protocol::annex::Annex;
use sluice_protocol::codec::{Bytes, Document, Enc};
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SiteId, SpaceId};
use sluice_protocol::manifest::{Manifest, Section, SectionKind, SectionState};
use sluice_protocol::path::LakePath;
use sluice_protocol::signed::Signed;
use sluice_protocol::tree::{Page, TreeRef};
use sluice_store::catalog::{Catalog, CatalogError};
use sluice_store::lake::Lake;
use sluice_store::scan::{ScanOptions, scan};
use sluice_store::verify::{Received, verify};
use sluice_store::watch::Silent;

#[path = "../../protocol/fixtures/paths/escapes.rs"]
mod escapes;
use escapes::unescape;

const REFUSED: &str = include_str!("../../protocol/fixtures/paths/refused.txt");
const SPACE: SpaceId = SpaceId([1; 32]);

/// The paths of the corpus as bytes.
fn hostile() -> Vec<Vec<u8>> {
    let lines = REFUSED.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines.map(|l| unescape(l.split_once('\t').expect("an error, a tab, a path").1)).collect()
}

/// Whether Linux can have a file of this name below a folder.
fn can_exist(path: &[u8]) -> bool {
    let names = path.split(|b| *b == b'/');
    path.len() < 3500
        && !path.contains(&0)
        && names.into_iter().all(|n| !n.is_empty() && n != b"." && n != b".." && n.len() <= 255)
}

#[test]
fn a_scan_takes_none_in_and_reports_each() {
    let home = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(home.path()).unwrap();
    let mut tried = 0;
    for path in hostile().iter().filter(|p| can_exist(p)) {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join(OsStr::from_bytes(path));
        let made = std::fs::create_dir_all(file.parent().unwrap()).and_then(|()| std::fs::write(&file, b"x"));
        if made.is_err() {
            continue; // too deep or too long for this file system
        }
        tried += 1;
        let lake = Lake::open(root.path()).unwrap();
        let found = scan(&lake, &SPACE, &catalog, &ScanOptions::default(), &[], &Silent).unwrap();
        let shown = String::from_utf8_lossy(path);
        assert_eq!(found.files().count(), 0, "{shown:?} was taken in");
        let own = path.starts_with(b".sluice/") || path == b".sluice";
        assert!(own || !found.skipped.is_empty(), "{shown:?} was left out in silence");
    }
    assert!(tried >= 100, "only {tried} lines could be tried");
}

/// An entry whose path is these bytes, whatever they are.
fn entry(path: &[u8], blob: &BlobHash) -> Vec<u8> {
    let mut e = Enc::new(Vec::new());
    e.map(4).unwrap().u32(0).unwrap();
    let at = e.writer().len();
    e.bytes(path).unwrap();
    e.writer_mut()[at] |= 0x20; // a byte string and a text differ in one bit of the first byte
    e.u32(1).unwrap().u8(0).unwrap().u32(2).unwrap().u64(1).unwrap().u32(3).unwrap().bytes(&blob.0).unwrap();
    e.into_writer()
}

fn page(path: &[u8], blob: &BlobHash) -> Page {
    Page { height: 0, items: vec![Bytes(entry(path, blob))], children: vec![], unknown: Default::default() }
}

fn manifest(page: &[u8]) -> Manifest {
    let unknown = Default::default;
    let tree = TreeRef { page: BlobHash::of(page), height: 0, items: 1, weight: 1, unknown: unknown() };
    let state = SectionState { table_version: None, params: None, history: None, opaque: false, unknown: unknown() };
    let path = Some(LakePath::parse("raw").unwrap());
    Manifest::new(vec![Section { kind: SectionKind::Raw, path, shallow: false, state, tree, unknown: unknown() }])
}

fn signed(manifest: &Manifest, annex: &[u8]) -> Signed<Head> {
    let key = SigningKey::from_bytes(&[7; 32]);
    Signed::sign(
        &key,
        Head {
            space: SPACE,
            writer: SiteId(key.verifying_key().to_bytes()),
            epoch: 0,
            seq: 0,
            manifest: manifest.id(),
            annex: BlobHash::of(annex),
            grants: BlobHash([0; 32]),
            prev: None,
            time_ms: 1,
            not_after_ms: u64::MAX,
            tag: None,
            untag: None,
            unknown: Default::default(),
        },
    )
}

/// What `verify` says of a version with one file of this path, whose bytes are staged here.
fn verdict(root: &Path, catalog: &Catalog, path: &[u8]) -> Result<(), String> {
    let lake = Lake::open(root).unwrap();
    let blob = BlobHash::of(b"x");
    let page = page(path, &blob).to_bytes();
    let manifest = manifest(&page);
    let annex = Annex { manifest: manifest.id(), tables: vec![], chunk_lists: None, unknown: Default::default() };
    let annex = annex.to_bytes();
    let stored: Result<(), CatalogError> = catalog.write(|b| {
        for bytes in [&page, &manifest.to_bytes(), &annex] {
            b.put_meta(&SPACE, bytes)?;
        }
        Ok(())
    });
    stored.unwrap();
    let received = Received { space: SPACE, head: signed(&manifest, &annex), sections: vec![] };
    verify(&lake, catalog, received, &[], &Silent).map(drop).map_err(|e| e.to_string())
}

#[test]
fn a_version_that_names_one_is_never_verified() {
    let home = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(home.path()).unwrap();
    let lake = Lake::open(root.path()).unwrap();
    let staging = sluice_store::staging::Staging::open(&lake, SPACE, &catalog).unwrap();
    staging.put_small(&[(BlobHash::of(b"x"), bytes::Bytes::from_static(b"x"))]).unwrap();
    // The same version with an honest path passes, so what fails below fails for its path.
    verdict(root.path(), &catalog, b"a/honest name.txt").unwrap();
    for path in hostile() {
        let said = verdict(root.path(), &catalog, &path);
        assert!(said.is_err(), "{:?} was let through", String::from_utf8_lossy(&path));
    }
}
