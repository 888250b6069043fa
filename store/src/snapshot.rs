//! Makes the manifest and the annex of a lake: the third step of the flow.
//!
//! Everything that the snapshot needs is committed in one change of the catalog: what was read of
//! files, pages, manifest, annex; and the places of files that are gone are forgotten in the same
//! change. Trees that lie in files of their own were made durable before.
//!
//! Invariant: an unchanged lake gives the same bytes, hence the same id; and whoever sees the id in
//! the catalog finds everything that the manifest reaches.

use std::collections::{HashMap, HashSet};

use sluice_protocol::annex::{Annex, ChunkListRef, TableAnnex, TableFacts};
use sluice_protocol::codec::{CodecError, Document};
use sluice_protocol::ids::{BlobHash, SnapshotId, SpaceId};
use sluice_protocol::limits::{CHUNKED_ABOVE_BYTES, MANIFEST_BYTES_MAX};
use sluice_protocol::manifest::{Entry, EntryKind, Manifest, Section, SectionKind};
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::keeps_mtime;
use sluice_protocol::tree::{TreeBuilder, TreeItem, TreeRef};

use crate::catalog::{Batch, BlobRecord, Catalog, CatalogError, Lookup, Reader};
use crate::chunk::record::{self, ReadFile, add_place, forget_place};
use crate::chunk::{Chunks, find};
use crate::lake::{Lake, Place};
use crate::scan::known::count_files;
use crate::scan::{Entries, Previous, SectionEntries, Skip, What, stat_file};
use crate::watch::Watch;

/// Pages that wait in memory for the commit, in bytes.
const PAGES_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A snapshot that is whole in the catalog.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub manifest: Manifest,
    pub id: SnapshotId,
    pub annex: Annex,
    pub annex_hash: BlobHash,
    pub stats: Stats,
    /// What is not in it, and why.
    pub skipped: Vec<Skip>,
    /// What is in it but may surprise.
    pub notes: Vec<Skip>,
    /// One for each section of the manifest, in its order.
    pub sections: Vec<SectionFacts>,
}

/// Totals of a snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Files that had to be read.
    pub read_files: u64,
    /// Their bytes.
    pub read_bytes: u64,
}

/// What is known of one section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionFacts {
    pub path: Option<LakePath>,
    pub kind: SectionKind,
    pub shallow: bool,
    pub files: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// What its reader said, for tables that were read.
    pub table: Option<TableFacts>,
    /// Carried as files, unread.
    pub opaque: bool,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("the lake cannot be written as a manifest: {0}")]
    Manifest(#[from] CodecError),
    #[error("`{path}` has not been read")]
    Unread { path: LakePath },
    #[error("the snapshot was stopped")]
    Cancelled,
}

/// Builds the manifest of what `chunks` found and commits the snapshot.
pub fn manifest(
    lake: &Lake,
    space: &SpaceId,
    catalog: &Catalog,
    chunks: Chunks,
    watch: &dyn Watch,
) -> Result<Snapshot, SnapshotError> {
    let reader = catalog.read()?;
    let mut pages = Pages { catalog, reader: &reader, space, new: vec![], new_bytes: 0, failed: None };
    let entries = &chunks.entries;
    let sections = entries.sections.iter().map(|s| section(s, &mut pages)).collect::<Result<_, _>>()?;
    let manifest = Manifest::new(sections);
    manifest.check()?;
    let bytes = bounded(manifest.to_bytes(), "the manifest")?;
    let id: SnapshotId = BlobHash::of(&bytes).into();
    let annex = annex(&reader, space, &chunks, id, &mut pages)?;
    let annex_bytes = bounded(annex.to_bytes(), "the annex")?;
    let gone = gone(lake, &reader, space, entries)?;
    if watch.cancelled() {
        return Err(SnapshotError::Cancelled);
    }
    let new = pages.take()?;
    drop(reader);
    record::settle(lake, &chunks.pending)?;
    let annex_hash = catalog.write(|batch| -> Result<BlobHash, CatalogError> {
        let mut lost = chunks.lost.clone();
        lost.extend(record::record(batch, space, &chunks.pending)?);
        for (path, hash) in &gone {
            batch.remove_file(space, path)?;
            lost.extend(forget_place(batch, space, hash, path)?);
        }
        find_again(batch, space, entries, lost)?;
        put_pages(batch, space, &new)?;
        batch.put_meta(space, &bytes)?;
        batch.put_meta(space, &annex_bytes)
    })?;
    let sections: Vec<SectionFacts> = entries.sections.iter().map(facts).collect();
    let stats = Stats {
        files: sections.iter().map(|s| s.files).sum(),
        bytes: manifest.bytes(),
        read_files: chunks.read_files,
        read_bytes: chunks.read_bytes,
    };
    watch.amount("manifest", stats.files, stats.files, stats.bytes, stats.bytes);
    let Entries { skipped, notes, .. } = chunks.entries;
    Ok(Snapshot { manifest, id, annex, annex_hash, stats, skipped, notes, sections })
}

fn bounded(bytes: Vec<u8>, what: &'static str) -> Result<Vec<u8>, CodecError> {
    if bytes.len() > MANIFEST_BYTES_MAX {
        let (found, limit) = (bytes.len() as u64, MANIFEST_BYTES_MAX as u64);
        return Err(CodecError::TooLarge { what, found, limit });
    }
    Ok(bytes)
}

/// Takes finished pages; keeps those that the catalog does not have.
///
/// Very many pages are committed as they come: a page says nothing until something names it.
struct Pages<'a> {
    catalog: &'a Catalog,
    reader: &'a Reader,
    space: &'a SpaceId,
    new: Vec<Vec<u8>>,
    new_bytes: usize,
    failed: Option<CatalogError>,
}

impl Pages<'_> {
    fn add(&mut self, hash: BlobHash, bytes: Vec<u8>) {
        // Read, not only looked up: a page that rotted is written again.
        match self.reader.meta(self.space, &hash) {
            Ok(Some(_)) => return,
            Ok(None) => {
                self.new_bytes += bytes.len();
                self.new.push(bytes);
            }
            Err(e) => self.failed = Some(e),
        }
        if self.new_bytes > PAGES_BYTES_MAX {
            self.new_bytes = 0;
            let pages = std::mem::take(&mut self.new);
            let put = self.catalog.write(|batch| put_pages(batch, self.space, &pages));
            self.failed = self.failed.take().or(put.err());
        }
    }

    fn tree<T: TreeItem>(
        &mut self,
        items: impl Iterator<Item = Result<T, SnapshotError>>,
    ) -> Result<TreeRef, SnapshotError> {
        let mut builder = TreeBuilder::new(|hash, bytes| self.add(hash, bytes));
        for item in items {
            builder.push(&item?)?;
        }
        Ok(builder.finish())
    }

    fn take(self) -> Result<Vec<Vec<u8>>, CatalogError> {
        self.failed.map_or(Ok(self.new), Err)
    }
}

fn put_pages(batch: &mut Batch, space: &SpaceId, pages: &[Vec<u8>]) -> Result<(), CatalogError> {
    pages.iter().try_for_each(|page| batch.put_meta(space, page).map(drop))
}

fn section(from: &SectionEntries, pages: &mut Pages<'_>) -> Result<Section, SnapshotError> {
    let tree = pages.tree(from.items.iter().map(|item| entry(from, &item.path, &item.what)))?;
    Ok(Section {
        kind: from.kind,
        path: from.path.clone(),
        shallow: from.shallow,
        state: from.state.clone(),
        tree,
        unknown: Default::default(),
    })
}

fn entry(section: &SectionEntries, path: &LakePath, what: &What) -> Result<Entry, SnapshotError> {
    let mut entry = Entry {
        path: path.clone(),
        kind: EntryKind::Folder,
        size: 0,
        hash: None,
        mode: None,
        mtime_ns: None,
        target: None,
        unknown: Default::default(),
    };
    match what {
        What::Folder { mode } => entry.mode = Some(*mode),
        What::Link { target } => {
            entry.kind = EntryKind::Link;
            entry.target = Some(target.clone());
        }
        What::File { hash: None, .. } => return Err(SnapshotError::Unread { path: section.lake_path(path) }),
        What::File { print, mode, hash } => {
            entry.kind = EntryKind::File;
            entry.size = print.size;
            entry.hash = *hash;
            entry.mode = Some(*mode);
            entry.mtime_ns = keeps_mtime(section.kind, path).then_some(print.mtime_ns);
        }
    }
    Ok(entry)
}

fn facts(section: &SectionEntries) -> SectionFacts {
    let sizes = section.items.iter().filter_map(|i| match &i.what {
        What::File { print, .. } => Some(print.size),
        _ => None,
    });
    SectionFacts {
        path: section.path.clone(),
        kind: section.kind,
        shallow: section.shallow,
        files: sizes.clone().count() as u64,
        bytes: sizes.sum(),
        table: section.facts.clone(),
        opaque: section.state.opaque,
    }
}

fn annex(
    reader: &Reader,
    space: &SpaceId,
    chunks: &Chunks,
    manifest: SnapshotId,
    pages: &mut Pages<'_>,
) -> Result<Annex, SnapshotError> {
    let table = |s: &SectionEntries| {
        let facts = s.facts.clone()?;
        Some(TableAnnex { section: s.path.clone(), kind: s.kind, facts, unknown: Default::default() })
    };
    let tables: Vec<TableAnnex> = chunks.entries.sections.iter().filter_map(table).collect();
    if let Some(before) = annex_before(reader, space, chunks.entries.previous, manifest)?
        && before.tables == tables
    {
        return Ok(before);
    }
    let fresh = fresh_lists(chunks);
    let mut blobs: Vec<BlobHash> = chunks.entries.files().filter_map(|i| chunked(&i.what)).collect();
    blobs.sort_unstable();
    blobs.dedup();
    let lists = blobs.iter().filter_map(|blob| {
        let list = match fresh.get(blob) {
            Some(list) => Ok(Some(*list)),
            None => recorded_list(reader, space, blob),
        };
        let made = |(list, list_bytes)| ChunkListRef { blob: *blob, list, list_bytes, unknown: Default::default() };
        list.map(|l| l.map(made)).map_err(SnapshotError::from).transpose()
    });
    let mut lists = lists.peekable();
    let chunk_lists = if lists.peek().is_some() { Some(pages.tree(lists)?) } else { None };
    Ok(Annex { manifest, tables, chunk_lists, unknown: Default::default() })
}

/// The annex of the snapshot before, if that is the same snapshot: blobs that did not change have
/// the chunk lists they had.
fn annex_before(
    reader: &Reader,
    space: &SpaceId,
    previous: Option<Previous>,
    manifest: SnapshotId,
) -> Result<Option<Annex>, CatalogError> {
    let Some(previous) = previous.filter(|p| p.snapshot == manifest) else { return Ok(None) };
    let bytes = reader.meta(space, &previous.annex)?;
    // A damaged one is made again.
    Ok(bytes.and_then(|b| Annex::from_bytes(&b).ok()).filter(|a| a.manifest == manifest))
}

/// The chunk lists that are not committed yet: by blob, the list and its length.
fn fresh_lists(chunks: &Chunks) -> HashMap<BlobHash, (BlobHash, u64)> {
    let of = |f: &ReadFile| {
        let bytes = f.list.as_ref()?.to_bytes();
        Some((f.hash, (BlobHash::of(&bytes), bytes.len() as u64)))
    };
    chunks.pending.iter().filter_map(of).collect()
}

fn chunked(what: &What) -> Option<BlobHash> {
    match what {
        What::File { print, hash, .. } if print.size > CHUNKED_ABOVE_BYTES => *hash,
        _ => None,
    }
}

fn recorded_list(reader: &Reader, space: &SpaceId, blob: &BlobHash) -> Result<Option<(BlobHash, u64)>, CatalogError> {
    let Some(list) = reader.blob(space, blob)?.and_then(|b| b.list) else { return Ok(None) };
    let bytes = reader.meta(space, &list)?;
    Ok(bytes.map(|b| (list, b.len() as u64)))
}

/// Recorded files that are not in the lake any more, or not as they were, with the blob they held.
///
/// A file that is only left out now (a version that is not kept) stays recorded: earlier snapshots
/// are served from it.
fn gone(
    lake: &Lake,
    reader: &Reader,
    space: &SpaceId,
    entries: &Entries,
) -> Result<Vec<(LakePath, BlobHash)>, CatalogError> {
    if entries.recorded == Some(count_files(reader, space)?) {
        // Every record was met by a file of this scan.
        return Ok(Vec::new());
    }
    let mut absent = Vec::new();
    reader.files(space, &mut |path, record| {
        let here = find(entries, &path).is_some_and(|i| matches!(i.what, What::File { .. }));
        if !here {
            absent.push((path, record.hash));
        }
    })?;
    let mut gone = Vec::new();
    for (path, hash) in absent {
        let now = stat_file(lake, &path).map(|(print, _)| print);
        let place = Place::Lake(path.clone());
        let places = reader.blob(space, &hash)?.map_or(vec![], |b| b.places);
        let as_it_was = places.iter().any(|p| p.place == place && Some(&p.print) == now.as_ref());
        if !as_it_was {
            gone.push((path, hash));
        }
    }
    Ok(gone)
}

/// Gives blobs that lost their last recorded place the files of this snapshot that hold them, too:
/// of bytes that lie in very many files only some places are recorded.
fn find_again(
    batch: &mut Batch,
    space: &SpaceId,
    entries: &Entries,
    lost: Vec<(BlobHash, BlobRecord)>,
) -> Result<(), CatalogError> {
    let mut missing: HashMap<BlobHash, BlobRecord> = HashMap::new();
    for (hash, record) in lost {
        if !batch.has_blob(space, &hash)? {
            missing.insert(hash, record);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let mut found = HashSet::new();
    for section in &entries.sections {
        for item in &section.items {
            let What::File { print, hash: Some(hash), .. } = &item.what else { continue };
            if missing.contains_key(hash) {
                add_place(batch, space, hash, &section.lake_path(&item.path), print)?;
                found.insert(*hash);
            }
        }
    }
    for hash in found {
        if let Some(list) = missing[&hash].list {
            batch.set_chunk_list(space, &hash, &list)?;
        }
    }
    Ok(())
}
