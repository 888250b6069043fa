//! A lake and a home in a temporary folder, and short words for what tests do to them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use sluice_protocol::annex::TableFacts;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::{Entry, History, Section, SectionKind};
use sluice_protocol::path::LakePath;
use sluice_protocol::tree::read_tree;
use sluice_store::catalog::{Catalog, CatalogError, Lookup};
use sluice_store::chunk::{self, Chunks};
use sluice_store::lake::{Lake, Place};
use sluice_store::scan::{self, Entries, Previous, ScanError, ScanOptions};
use sluice_store::snapshot::{self, Snapshot};
use sluice_store::table::{SectionView, TableCapture, TableError, TableReader};
use sluice_store::watch::{Silent, Watch};

pub const SPACE: SpaceId = SpaceId([7; 32]);

pub fn path(text: &str) -> LakePath {
    LakePath::parse(text).unwrap()
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub lake: Lake,
    pub catalog: Catalog,
    pub options: ScanOptions,
    pub readers: Vec<Arc<dyn TableReader>>,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["lake", "home"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let lake = Lake::open(&dir.path().join("lake")).unwrap();
        let catalog = Catalog::open(&dir.path().join("home")).unwrap();
        let options = ScanOptions { retry_wait: Duration::ZERO, ..ScanOptions::default() };
        Self { dir, lake, catalog, options, readers: vec![] }
    }

    /// A world with these files, all of them old.
    pub fn with(files: &[(&str, &[u8])]) -> Self {
        let world = Self::new();
        for (path, bytes) in files {
            world.write(path, bytes);
        }
        world
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("lake").join(path)
    }

    /// Writes a file that looks as if it had been written long ago.
    pub fn write(&self, path: &str, bytes: &[u8]) {
        self.write_now(path, bytes);
        set_age(&self.at(path), 1_000_000);
    }

    /// Writes a file whose time is now.
    pub fn write_now(&self, path: &str, bytes: &[u8]) {
        let at = self.at(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, bytes).unwrap();
    }

    pub fn folder(&self, path: &str) {
        fs::create_dir_all(self.at(path)).unwrap();
    }

    pub fn link(&self, path: &str, target: &str) {
        let at = self.at(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, at).unwrap();
    }

    pub fn scan(&self) -> Result<Entries, ScanError> {
        scan::scan(&self.lake, &SPACE, &self.catalog, &self.options, &self.readers, &Silent)
    }

    pub fn chunk(&self, watch: &dyn Watch) -> Chunks {
        chunk::chunk(&self.lake, &SPACE, &self.catalog, self.scan().unwrap(), watch).unwrap()
    }

    pub fn snap(&self) -> Snapshot {
        self.snap_watched(&Silent)
    }

    pub fn snap_watched(&self, watch: &dyn Watch) -> Snapshot {
        snapshot::manifest(&self.lake, &SPACE, &self.catalog, self.chunk(watch), watch).unwrap()
    }

    /// Takes a snapshot and lets the next one know it.
    pub fn snap_on(&mut self) -> Snapshot {
        let snapshot = self.snap();
        self.options.previous = Some(Previous { snapshot: snapshot.id, annex: snapshot.annex_hash });
        snapshot
    }

    pub fn entries(&self, section: &Section) -> Vec<Entry> {
        let reader = self.catalog.read().unwrap();
        let mut fetch =
            |page: &BlobHash| reader.meta(&SPACE, page)?.ok_or_else(|| CatalogError::Store("no such page".into()));
        let mut entries = Vec::new();
        read_tree(&section.tree, &mut fetch, &mut |e: Entry| {
            entries.push(e);
            Ok(())
        })
        .unwrap();
        entries
    }

    /// Sections as `folder kind [shallow]: entries`, a folder with `/`, a link with `->`.
    pub fn shown(&self, snapshot: &Snapshot) -> Vec<String> {
        let show = |s: &Section| {
            let entries: Vec<String> = self.entries(s).iter().map(show_entry).collect();
            let shallow = if s.shallow { " shallow" } else { "" };
            format!("{} {}{shallow}: {}", s.name(), s.kind, entries.join(" "))
        };
        snapshot.manifest.sections.iter().map(show).collect()
    }

    /// The whole promise of a snapshot: each file's blob is recorded, its place fits, its bytes hash to it.
    pub fn check(&self, snapshot: &Snapshot) {
        let reader = self.catalog.read().unwrap();
        for section in &snapshot.manifest.sections {
            for entry in self.entries(section) {
                let Some(hash) = entry.hash else { continue };
                let blob = reader.blob(&SPACE, &hash).unwrap().expect("a blob of the snapshot is recorded");
                assert_eq!(blob.size, entry.size);
                let fits = |p: &&sluice_store::catalog::Located| {
                    let open = self.lake.open_place(&p.place);
                    open.is_ok_and(|f| Lake::print_of(&f).unwrap() == p.print)
                };
                let found = blob.places.iter().find(fits).expect("a blob of the snapshot has a place that fits");
                let bytes = fs::read(self.lake.path_of(&found.place)).unwrap();
                assert_eq!(BlobHash::of(&bytes), hash, "{:?}", entry.path);
                if entry.size > sluice_store::outboard::BLOCK_BYTES {
                    let outboard = reader.outboard(&hash).unwrap().expect("it has a tree");
                    assert_eq!(outboard.len() as u64, sluice_store::outboard::outboard_bytes(entry.size));
                }
                if entry.size > 64 * 1024 {
                    let list = reader.meta(&SPACE, &blob.list.expect("it has a chunk list")).unwrap().unwrap();
                    let list = sluice_protocol::chunks::ChunkList::from_bytes(&list).unwrap();
                    assert_eq!(list.size, entry.size);
                }
            }
        }
    }

    pub fn places(&self, bytes: &[u8]) -> Vec<Place> {
        let reader = self.catalog.read().unwrap();
        let blob = reader.blob(&SPACE, &BlobHash::of(bytes)).unwrap();
        let mut places: Vec<Place> = blob.map_or(vec![], |b| b.places.into_iter().map(|p| p.place).collect());
        places.sort();
        places
    }
}

fn show_entry(entry: &Entry) -> String {
    match (&entry.target, entry.hash) {
        (Some(target), _) => format!("{}->{target}", entry.path),
        (None, Some(_)) => entry.path.to_string(),
        (None, None) => format!("{}/", entry.path),
    }
}

pub fn set_age(at: &Path, seconds: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    File::options().append(true).open(at).unwrap().set_modified(time).unwrap();
}

pub fn skipped(snapshot: &Snapshot) -> Vec<(&str, &str)> {
    snapshot.skipped.iter().map(|s| (s.path.as_str(), s.reason.as_str())).collect()
}

/// Bytes that look random.
pub fn noise(size: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; size];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

/// Reads a toy table: `_delta_log/N.json` holds the names of the files of version N, one a line.
pub struct ToyReader {
    pub kind: SectionKind,
    pub calls: AtomicUsize,
    /// Runs before each capture with its number, from 1.
    pub before: Box<dyn Fn(usize) + Send + Sync>,
    pub refuse: bool,
}

impl ToyReader {
    pub fn new(before: impl Fn(usize) + Send + Sync + 'static) -> Self {
        Self { kind: SectionKind::Delta, calls: AtomicUsize::new(0), before: Box::new(before), refuse: false }
    }
}

impl TableReader for ToyReader {
    fn kind(&self) -> SectionKind {
        self.kind
    }

    fn capture(&self, name: &str, root: &Path, _: History) -> Result<TableCapture, TableError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        (self.before)(call);
        if self.refuse {
            return Err(TableError::UnsupportedFeature { table: name.into(), feature: "toys".into() });
        }
        let mut files = BTreeSet::new();
        let mut facts = TableFacts::default();
        for version in 0u64.. {
            let log = format!("_delta_log/{version:020}.json");
            let Ok(text) = fs::read_to_string(root.join(&log)) else { break };
            files.insert(path(&log));
            for file in text.lines() {
                if !root.join(file).exists() {
                    return Err(TableError::MissingFile { table: name.into(), version, file: file.into() });
                }
                files.insert(path(file));
            }
            facts.version = version;
            facts.versions.push(version);
        }
        Ok(TableCapture { facts, files })
    }

    fn prove(&self, _: &str, _: Arc<dyn SectionView>) -> Result<TableFacts, TableError> {
        unreachable!("an owner proves nothing")
    }
}
