//! A replica on real files and versions to publish on it, described in a few words.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use sluice_protocol::annex::{Annex, TableAnnex, TableFacts};
use sluice_protocol::codec::Document;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SiteId, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, Manifest, Section, SectionKind, SectionState};
use sluice_protocol::path::LakePath;
use sluice_protocol::signed::Signed;
use sluice_protocol::tree::TreeBuilder;
use sluice_store::catalog::{Catalog, CatalogError, FileRecord, Located, Lookup};
use sluice_store::disk::faults::Injected;
use sluice_store::lake::Lake;
use sluice_store::publish::{PublishError, PublishOptions, Published, publish};
use sluice_store::staging::{Staging, StagingError};
use sluice_store::table::TableReader;
use sluice_store::verify::{Received, Report, Verified, VerifyError, verify, verify_live};
use sluice_store::watch::{Silent, Watch};

pub fn path(text: &str) -> LakePath {
    LakePath::parse(text).unwrap()
}

/// One thing of a section.
#[derive(Debug, Clone)]
pub struct Item {
    pub path: String,
    pub kind: EntryKind,
    pub bytes: Vec<u8>,
    pub mode: Option<u32>,
    pub mtime_ns: Option<i64>,
    pub target: Option<String>,
}

pub fn file(path: &str, bytes: impl AsRef<[u8]>) -> Item {
    Item {
        path: path.into(),
        kind: EntryKind::File,
        bytes: bytes.as_ref().to_vec(),
        mode: Some(0o644),
        mtime_ns: None,
        target: None,
    }
}

pub fn folder(path: &str) -> Item {
    Item { kind: EntryKind::Folder, mode: None, ..file(path, b"") }
}

pub fn link(path: &str, target: &str) -> Item {
    Item { kind: EntryKind::Link, mode: None, target: Some(target.into()), ..file(path, b"") }
}

impl Item {
    pub fn mode(self, mode: u32) -> Self {
        Self { mode: Some(mode), ..self }
    }
    pub fn at(self, mtime_ns: i64) -> Self {
        Self { mtime_ns: Some(mtime_ns), ..self }
    }
    fn entry(&self) -> Entry {
        let is_file = self.kind == EntryKind::File;
        Entry {
            path: path(&self.path),
            kind: self.kind,
            size: self.bytes.len() as u64,
            hash: is_file.then(|| BlobHash::of(&self.bytes)),
            mode: self.mode,
            mtime_ns: self.mtime_ns,
            target: self.target.clone(),
            unknown: Default::default(),
        }
    }
}

/// A section of a version.
#[derive(Debug, Clone)]
pub struct Part {
    pub path: Option<String>,
    pub kind: SectionKind,
    pub shallow: bool,
    pub opaque: bool,
    pub items: Vec<Item>,
    pub facts: Option<TableFacts>,
}

pub fn part(path: &str, kind: SectionKind, items: Vec<Item>) -> Part {
    Part { path: Some(path.into()), kind, shallow: false, opaque: kind.is_table(), items, facts: None }
}

/// The files directly in a folder; `None` is the lake's top.
pub fn loose(path: Option<&str>, items: Vec<Item>) -> Part {
    let path = path.map(str::to_string);
    Part { path, kind: SectionKind::Files, shallow: true, opaque: false, items, facts: None }
}

impl Part {
    pub fn with_facts(self, facts: TableFacts) -> Self {
        Self { opaque: false, facts: Some(facts), ..self }
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub lake: Lake,
    pub catalog: Catalog,
    pub space: SpaceId,
    key: SigningKey,
    seq: AtomicU64,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("home")).unwrap();
        std::fs::create_dir(dir.path().join("lake")).unwrap();
        std::fs::write(dir.path().join("outside"), b"not yours").unwrap();
        Self::opened(dir)
    }

    /// A world that lies in `dir` already.
    pub fn opened(dir: tempfile::TempDir) -> Self {
        let lake = Lake::open(&dir.path().join("lake")).unwrap();
        let catalog = Catalog::open(&dir.path().join("home")).unwrap();
        let key = SigningKey::from_bytes(&[7; 32]);
        Self { dir, lake, catalog, space: SpaceId([3; 32]), key, seq: AtomicU64::new(0) }
    }

    /// The process ends and another begins: nothing is kept but what is on the disk.
    pub fn restarted(self) -> Self {
        let Self { dir, lake, catalog, space, key, seq } = self;
        drop((lake, catalog));
        let lake = Lake::open(&dir.path().join("lake")).unwrap();
        let catalog = Catalog::open(&dir.path().join("home")).unwrap();
        Self { dir, lake, catalog, space, key, seq }
    }

    /// As [`World::restarted`], after the program was halted: nothing more of it reaches the disk.
    pub fn stopped(self, halted: Injected) -> Self {
        let Self { dir, lake, catalog, space, key, seq } = self;
        drop((lake, catalog, halted));
        let lake = Lake::open(&dir.path().join("lake")).unwrap();
        let catalog = Catalog::open(&dir.path().join("home")).unwrap();
        Self { dir, lake, catalog, space, key, seq }
    }

    pub fn at(&self, below: &str) -> PathBuf {
        self.dir.path().join("lake").join(below)
    }

    pub fn staging(&self) -> Staging {
        Staging::open(&self.lake, self.space, &self.catalog).unwrap()
    }

    /// Metadata of a version arrives; nothing of its files.
    pub fn announce(&self, parts: &[Part]) -> Received {
        self.try_announce(parts).unwrap()
    }

    pub fn try_announce(&self, parts: &[Part]) -> Result<Received, CatalogError> {
        let mut pages = Vec::new();
        let mut sections = Vec::new();
        let mut tables = Vec::new();
        for p in parts {
            let mut items: Vec<Entry> = p.items.iter().map(Item::entry).collect();
            items.sort_by(|a, b| a.path.cmp(&b.path));
            let mut builder = TreeBuilder::new(|_, bytes| pages.push(bytes));
            items.iter().for_each(|e| builder.push(e).unwrap());
            let tree = builder.finish();
            let state = SectionState {
                table_version: p.facts.as_ref().map(|f| f.version),
                params: None,
                history: None,
                opaque: p.opaque,
                unknown: Default::default(),
            };
            let at = p.path.as_deref().map(path);
            if let Some(facts) = &p.facts {
                let (section, facts) = (at.clone(), facts.clone());
                tables.push(TableAnnex { section, kind: p.kind, facts, unknown: Default::default() });
            }
            let (kind, shallow) = (p.kind, p.shallow);
            sections.push(Section { kind, path: at, shallow, state, tree, unknown: Default::default() });
        }
        self.sign(Manifest::new(sections), tables, pages)
    }

    fn sign(&self, manifest: Manifest, tables: Vec<TableAnnex>, pages: Vec<Vec<u8>>) -> Result<Received, CatalogError> {
        let id = manifest.id();
        let annex = Annex { manifest: id, tables, chunk_lists: None, unknown: Default::default() };
        self.catalog.write(|b| {
            b.put_meta(&self.space, &manifest.to_bytes())?;
            b.put_meta(&self.space, &annex.to_bytes())?;
            pages.iter().try_for_each(|p| b.put_meta(&self.space, p).map(drop))
        })?;
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let head = Head {
            space: self.space,
            writer: SiteId(self.key.verifying_key().to_bytes()),
            epoch: 0,
            seq,
            manifest: id,
            annex: BlobHash::of(&annex.to_bytes()),
            grants: BlobHash([0; 32]),
            prev: (seq > 0).then_some(sluice_protocol::ids::HeadId([1; 32])),
            time_ms: 1,
            not_after_ms: u64::MAX,
            tag: None,
            untag: None,
            unknown: Default::default(),
        };
        Ok(Received { space: self.space, head: Signed::sign(&self.key, head), sections: vec![] })
    }

    /// The bytes of a version's files arrive, those that are not here.
    pub fn deliver(&self, parts: &[Part]) {
        self.try_deliver(parts).unwrap();
    }

    pub fn try_deliver(&self, parts: &[Part]) -> Result<(), StagingError> {
        let reader = self.catalog.read()?;
        let mut blobs: BTreeMap<BlobHash, Bytes> = BTreeMap::new();
        for item in parts.iter().flat_map(|p| &p.items).filter(|i| i.kind == EntryKind::File) {
            let hash = BlobHash::of(&item.bytes);
            if !reader.has_blob(&self.space, &hash)? {
                blobs.insert(hash, item.bytes.clone().into());
            }
        }
        let blobs: Vec<(BlobHash, Bytes)> = blobs.into_iter().collect();
        Staging::open(&self.lake, self.space, &self.catalog)?.put_small(&blobs)
    }

    pub fn check(&self, received: Received) -> Result<Verified, VerifyError> {
        self.check_with(received, &[])
    }

    pub fn check_with(&self, received: Received, readers: &[Arc<dyn TableReader>]) -> Result<Verified, VerifyError> {
        verify(&self.lake, &self.catalog, received, readers, &Silent)
    }

    /// A version arrives whole and is verified; what is found damaged here is delivered again.
    pub fn verified(&self, parts: &[Part]) -> Verified {
        let received = self.announce(parts);
        self.deliver(parts);
        match self.check(received.clone()) {
            Err(VerifyError::MissingBlobs { .. }) => {
                self.deliver(parts);
                self.check(received).unwrap()
            }
            other => other.unwrap(),
        }
    }

    pub fn publish(&self, verified: &Verified) -> Result<Published, PublishError> {
        self.publish_with(verified, &Silent)
    }

    pub fn publish_with(&self, verified: &Verified, watch: &dyn Watch) -> Result<Published, PublishError> {
        publish(&self.lake, &self.catalog, verified, PublishOptions::default(), watch)
    }

    /// A version arrives, is verified and published.
    pub fn sync(&self, parts: &[Part]) -> Published {
        self.publish(&self.verified(parts)).unwrap()
    }

    pub fn report(&self, deep: bool) -> Report {
        verify_live(&self.lake, &self.catalog, &self.space, deep, &[], &Silent).unwrap()
    }

    /// What readers see, through the visible links, must be exactly these parts.
    pub fn assert_shows(&self, parts: &[Part]) {
        self.assert_root_shows(&self.at(""), parts);
        for deep in [false, true] {
            let report = self.report(deep);
            assert_eq!(report.problems, vec![], "deep: {deep}");
        }
    }

    pub fn assert_root_shows(&self, root: &Path, parts: &[Part]) {
        let mut wanted: Vec<String> = Vec::new();
        for p in parts {
            let prefix = p.path.as_ref().map_or(String::new(), |p| format!("{p}/"));
            for item in &p.items {
                let at = format!("{prefix}{}", item.path);
                let real = root.join(&at);
                match item.kind {
                    EntryKind::File => {
                        assert_eq!(std::fs::read(&real).unwrap_or_else(|e| panic!("{at}: {e}")), item.bytes, "{at}");
                        let meta = std::fs::metadata(&real).unwrap();
                        let mode = item.mode.map_or(0o444, |m| (m & !0o222) | 0o400);
                        assert_eq!(meta.permissions().mode() & 0o7777, mode, "{at}");
                        if let Some(ns) = item.mtime_ns {
                            assert_eq!(meta.mtime() * 1_000_000_000 + meta.mtime_nsec(), ns, "{at}");
                        }
                        wanted.push(at);
                    }
                    EntryKind::Folder => assert!(real.is_dir(), "{at}"),
                    EntryKind::Link => {
                        let meta = std::fs::symlink_metadata(&real).unwrap_or_else(|e| panic!("{at}: {e}"));
                        assert!(meta.is_symlink(), "{at}");
                        wanted.push(at);
                    }
                }
            }
        }
        wanted.sort();
        assert_eq!(listing(root), wanted);
    }
}

/// Every file that a reader finds below a folder, and links that lead nowhere or to folders inside.
pub fn listing(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    list(root, "", &mut found, 0);
    found.sort();
    found
}

fn list(folder: &Path, prefix: &str, found: &mut Vec<String>, depth: usize) {
    assert!(depth < 20, "a loop of links at {}", folder.display());
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if prefix.is_empty() && name == ".sluice" {
            continue;
        }
        let at = format!("{prefix}{name}");
        let real = entry.path();
        let text = std::fs::read_link(&real).ok().map(|t| t.to_string_lossy().into_owned());
        // Our own links are the ones that lead into sections or through `live`.
        let ours = text.as_ref().is_none_or(|t| t.starts_with(".sluice/live/") || t.contains("sections/"));
        if ours && real.is_dir() {
            list(&real, &format!("{at}/"), found, depth + 1);
        } else {
            found.push(at);
        }
    }
}

/// Writes over a published file as a person would who insists.
pub fn write(at: &Path, bytes: &[u8]) {
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(at, bytes).unwrap();
}

/// A published file rots in its last byte, see [`flip`].
pub fn rot(world: &World, lake_path: &str) {
    let bits = std::fs::metadata(world.at(lake_path)).unwrap().len() * 8;
    flip(world, lake_path, bits - 8);
}

/// Flips a bit of a published file as a bad disk would: nothing else about it changes.
pub fn flip(world: &World, lake_path: &str, bit: u64) {
    let at = world.at(lake_path);
    let mut bytes = std::fs::read(&at).unwrap();
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    let meta = std::fs::metadata(&at).unwrap();
    write(&at, &bytes);
    let file = std::fs::File::options().write(true).open(&at).unwrap();
    file.set_modified(meta.modified().unwrap()).unwrap();
    std::fs::set_permissions(&at, meta.permissions()).unwrap();
    // The change time cannot be set back, so the catalog is made to expect the new one.
    let print = Lake::print_of(&std::fs::File::open(&at).unwrap()).unwrap();
    let reader = world.catalog.read().unwrap();
    let record = reader.file(&world.space, &path(lake_path)).unwrap().unwrap();
    let blob = reader.blob(&world.space, &record.hash).unwrap().unwrap();
    drop(reader);
    world
        .catalog
        .write(|b| {
            for at in blob.places.iter().filter(|at| at.print.inode == print.inode) {
                let at = Located { print: print.clone(), ..at.clone() };
                b.add_place(&world.space, &record.hash, blob.size, at)?;
            }
            b.put_file(&world.space, &path(lake_path), &FileRecord { print, ..record })
        })
        .unwrap();
}

/// Does something once, when publishing begins with its section number `at` (from 0, among those that are filled).
pub struct When<F>(Mutex<(usize, Option<F>)>);

impl<F: FnOnce() + Send> When<F> {
    pub fn section(at: usize, act: F) -> Self {
        Self(Mutex::new((at, Some(act))))
    }
}

impl<F: FnOnce() + Send> Watch for When<F> {
    fn amount(&self, stage: &str, files: u64, _: u64, _: u64, _: u64) {
        let mut waiting = self.0.lock().unwrap();
        if stage != "publish" || files > 0 {
            return;
        }
        match waiting.0.checked_sub(1) {
            Some(left) => waiting.0 = left,
            None => waiting.1.take().into_iter().for_each(|act| act()),
        }
    }
    fn note(&self, _: String) {}
    fn cancelled(&self) -> bool {
        false
    }
}
