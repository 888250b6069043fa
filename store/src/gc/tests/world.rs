//! One site of the model: a home, a lake, a space; and what can be read out of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluice_protocol::annex::{Annex, ChunkListRef, TableFacts};
use sluice_protocol::codec::Document;
use sluice_protocol::ids::{BlobHash, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, History, Manifest, SectionKind};
use sluice_protocol::path::LakePath;
use sluice_protocol::tree::{Page, TreeItem, TreeRef};

use crate::blobs::open_blob;
use crate::catalog::{Catalog, Lookup, Raw, Reader, SiteLookup, Table};
use crate::lake::Lake;
use crate::pins::listed;
use crate::table::{SectionView, TableCapture, TableError, TableReader};

/// Numbers that look random and come again with the same seed.
pub struct Dice(blake3::OutputReader);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        let mut raw = [0; 8];
        self.0.fill(&mut raw);
        u64::from_le_bytes(raw) % n
    }
}

/// The bytes of one of a few files: of none, of one group, with a tree, with a chunk list.
pub fn content(number: u64) -> Vec<u8> {
    let size = [0, 30, 20_000, 180_000][(number % 4) as usize];
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub struct Site {
    pub dir: tempfile::TempDir,
    pub lake: Lake,
    pub catalog: Catalog,
    pub space: SpaceId,
    written: u64,
}

impl Site {
    pub fn new(space: SpaceId) -> Self {
        // In memory where that is possible: nothing here is about a loss of power, and syncing is most of the time.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        for folder in ["home", "lake"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let lake = Lake::open(&dir.path().join("lake")).unwrap();
        let catalog = Catalog::open(&dir.path().join("home")).unwrap();
        Self { dir, lake, catalog, space, written: 0 }
    }

    /// The process is killed and another begins.
    pub fn restart(self) -> Self {
        let Self { dir, lake, catalog, space, written } = self;
        drop((lake, catalog));
        let lake = Lake::open(&dir.path().join("lake")).unwrap();
        let catalog = Catalog::open(&dir.path().join("home")).unwrap();
        Self { dir, lake, catalog, space, written }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.lake.root().join(path)
    }

    /// Puts a new file in the place of whatever is there. It looks as if written long ago.
    pub fn write(&mut self, path: &str, bytes: &[u8]) {
        let at = self.at(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&at);
        fs::write(&at, bytes).unwrap();
        self.written += 1;
        let time = SystemTime::now() - Duration::from_secs(1_000_000 + self.written);
        fs::File::options().append(true).open(&at).unwrap().set_modified(time).unwrap();
    }

    /// The bytes of a blob, from wherever it lies; none when it cannot be read whole and right.
    pub fn blob(&self, hash: &BlobHash) -> Option<Vec<u8>> {
        let reader = self.catalog.read().unwrap();
        let open = open_blob(&self.lake, &reader, &self.space, hash).ok()?;
        let bytes = fs::read(self.lake.path_of(&open.place)).ok()?;
        (BlobHash::of(&bytes) == *hash).then_some(bytes)
    }

    /// All keys of a table in this space (or, for trees, of the site), as blob hashes.
    pub fn keys(&self, table: Table) -> BTreeSet<BlobHash> {
        let reader = self.catalog.read().unwrap();
        let prefix: &[u8] = if matches!(table, Table::Outboards) { &[] } else { &self.space.0 };
        let mut keys = BTreeSet::new();
        let mut each = |key: &[u8], _: &[u8]| {
            keys.insert(BlobHash(*key.last_chunk().unwrap()));
            Ok(true)
        };
        reader.raw_scan(table as usize, prefix, &mut each).unwrap();
        keys
    }

    pub fn pins(&self) -> BTreeSet<BlobHash> {
        listed(&self.lake).unwrap().into_iter().collect()
    }

    /// Hashes of the files that the catalog knows.
    pub fn files(&self) -> BTreeSet<BlobHash> {
        let mut found = BTreeSet::new();
        let reader = self.catalog.read().unwrap();
        reader.files(&self.space, &mut |_, record| found.extend([record.hash])).unwrap();
        found
    }

    /// What a version reaches here; panics when something of it is missing and `whole`.
    pub fn reach(&self, snapshot: SnapshotId, whole: bool, why: &str) -> Reach {
        let reader = self.catalog.read().unwrap();
        let mut reach = Reach::default();
        let mut walk = Walk { reader: &reader, space: &self.space, whole, why, seen: HashSet::new() };
        let Some(bytes) = walk.read(&snapshot.into(), &mut reach) else { return reach };
        for section in Manifest::from_bytes(&bytes).unwrap().sections {
            let mut blobs = Vec::new();
            walk.tree(&section.tree, &mut reach, &mut |e: Entry| blobs.extend(e.hash.map(|h| (h, e.size))));
            reach.blobs.extend(blobs);
        }
        let mut annexes = BTreeSet::new();
        let owner = reader.space(&self.space).unwrap().unwrap().owner;
        reader
            .each_head(&self.space, &owner, &mut |_, h| {
                if h.manifest == snapshot {
                    annexes.insert(h.annex);
                    reach.metas.insert(h.grants);
                }
            })
            .unwrap();
        for annex in annexes {
            let Some(bytes) = walk.read(&annex, &mut reach) else { continue };
            let Some(lists) = Annex::from_bytes(&bytes).unwrap().chunk_lists else { continue };
            let mut named = Vec::new();
            walk.tree(&lists, &mut reach, &mut |item: ChunkListRef| named.push(item.list));
            for list in named {
                walk.read(&list, &mut reach);
            }
        }
        reach
    }
}

/// What a version needs.
#[derive(Default)]
pub struct Reach {
    pub metas: BTreeSet<BlobHash>,
    /// Blobs and their sizes.
    pub blobs: BTreeMap<BlobHash, u64>,
}

impl Reach {
    pub fn add(&mut self, other: Reach) {
        self.metas.extend(other.metas);
        self.blobs.extend(other.blobs);
    }
}

struct Walk<'a> {
    reader: &'a Reader,
    space: &'a SpaceId,
    whole: bool,
    why: &'a str,
    seen: HashSet<BlobHash>,
}

impl Walk<'_> {
    fn read(&mut self, hash: &BlobHash, reach: &mut Reach) -> Option<Vec<u8>> {
        let bytes = self.reader.meta(self.space, hash).unwrap();
        assert!(bytes.is_some() || !self.whole, "{}: metadata {hash} is gone", self.why);
        reach.metas.insert(*hash);
        bytes
    }

    fn tree<T: TreeItem>(&mut self, root: &TreeRef, reach: &mut Reach, each: &mut dyn FnMut(T)) {
        if !self.seen.insert(root.page) {
            return;
        }
        let Some(bytes) = self.read(&root.page, reach) else { return };
        let page = Page::from_bytes(&bytes).unwrap();
        page.decode_items().unwrap().into_iter().for_each(&mut *each);
        for child in page.child_pages().cloned().collect::<Vec<_>>() {
            self.tree(&child, reach, each);
        }
    }
}

/// Reads a toy table: its only log names its files, one a line.
pub struct ToyReader;

pub const TOY_LOG: &str = "_delta_log/00000000000000000000.json";

impl TableReader for ToyReader {
    fn kind(&self) -> SectionKind {
        SectionKind::Delta
    }

    fn capture(&self, name: &str, root: &Path, _: History) -> Result<TableCapture, TableError> {
        let log = fs::read_to_string(root.join(TOY_LOG)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut files: BTreeSet<LakePath> = log.lines().map(|file| LakePath::parse(file).unwrap()).collect();
        files.insert(LakePath::parse(TOY_LOG).unwrap());
        Ok(TableCapture { facts: TableFacts::default(), files })
    }

    fn prove(&self, _: &str, _: Arc<dyn SectionView>) -> Result<TableFacts, TableError> {
        Ok(TableFacts::default())
    }
}
