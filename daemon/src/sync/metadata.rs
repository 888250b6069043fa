//! Fetches what describes a version: manifest, annex, entry pages, chunk lists.
//!
//! Invariant: every piece is asked for by its hash, arrives verified, and is bounded before it is
//! asked for. Pages that are here already are not asked for again, so an unchanged part of a lake of
//! a million files costs nothing.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use sluice_protocol::annex::{Annex, ChunkListRef};
use sluice_protocol::codec::Document;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::limits;
use sluice_protocol::manifest::Manifest;
use sluice_protocol::tree::{Page, TreeRef, missing_pages};
use sluice_store::catalog::{Catalog, CatalogError, Lookup, Reader};
use sluice_store::publish::Unread;

use super::SyncError;
use super::source::Source;

/// Pieces of metadata that are asked for at once: with the largest pages 128 MiB.
const IN_FLIGHT: usize = 8;
/// Bytes and pieces that are stored in one transaction.
const STORED_BYTES: usize = 32 << 20;
/// See [`STORED_BYTES`].
const STORED_PIECES: usize = 1024;
/// Chunk lists up to this length are asked for several at once, in bytes; longer ones alone.
const SMALL_LIST_BYTES: u64 = 8 << 20;
/// The longest chunk list that is taken: that of a file of some 250 GiB. A longer file is fetched whole.
const LIST_BYTES_MAX: u64 = 160 << 20;
/// Most bytes of metadata that one sync takes in: pages of some four million entries.
const METADATA_BYTES_MAX: u64 = 4 << 30;

/// Fetches the metadata of one space from one source.
pub struct Metadata<'a> {
    pub catalog: &'a Catalog,
    pub space: SpaceId,
    pub source: &'a Source,
}

impl Metadata<'_> {
    /// The manifest and the annex that a head names.
    pub async fn roots(&self, head: &Head) -> Result<(Manifest, Annex), SyncError> {
        let limit = limits::MANIFEST_BYTES_MAX as u64;
        let manifest = self.one(head.manifest.into(), limit).await?;
        let annex = self.one(head.annex, limit).await?;
        let manifest = Manifest::from_bytes(&manifest).map_err(SyncError::manifest)?;
        let annex = Annex::from_bytes(&annex).map_err(SyncError::manifest)?;
        if annex.manifest != head.manifest {
            return Err(SyncError::Manifest("the annex belongs to another manifest".into()));
        }
        Ok((manifest, annex))
    }

    /// Fetches again what describes published sections and cannot be read here any more.
    ///
    /// The source may not have the version any more; then the section's next version is made anew.
    pub async fn again(&self, unread: &[Unread]) -> Result<(), SyncError> {
        for lost in unread {
            let tree = match &lost.tree {
                Some(tree) => Some(tree.clone()),
                None => {
                    let raw = self.one(lost.snapshot.into(), limits::MANIFEST_BYTES_MAX as u64).await?;
                    let manifest = Manifest::from_bytes(&raw).map_err(SyncError::manifest)?;
                    manifest.sections.into_iter().find(|s| s.name() == lost.section).map(|s| s.tree)
                }
            };
            self.pages(tree.as_slice()).await?;
        }
        Ok(())
    }

    /// All pages of the given trees that are not here yet, level by level.
    pub async fn pages(&self, trees: &[TreeRef]) -> Result<(), SyncError> {
        let mut taken = 0u64;
        for _ in 0..=limits::TREE_HEIGHT_MAX {
            let missing = tokio::task::block_in_place(|| self.missing(trees))?;
            if missing.is_empty() {
                return Ok(());
            }
            let wanted = missing.into_iter().map(|hash| (hash, limits::PAGE_BYTES_MAX as u64)).collect();
            taken = taken.saturating_add(self.many(wanted, IN_FLIGHT).await?);
            if taken > METADATA_BYTES_MAX {
                return Err(SyncError::Manifest("the pages of the manifest are larger than allowed".into()));
            }
        }
        let left = self.missing(trees)?.len();
        if left == 0 { Ok(()) } else { Err(SyncError::Manifest(format!("{left} pages are missing after all levels"))) }
    }

    fn missing(&self, trees: &[TreeRef]) -> Result<BTreeSet<BlobHash>, SyncError> {
        let r = self.catalog.read()?;
        let mut missing = BTreeSet::new();
        for tree in trees {
            let mut fetch = |hash: &BlobHash| r.meta(&self.space, hash).ok().flatten();
            missing.extend(missing_pages(tree, &mut fetch).map_err(SyncError::manifest)?);
        }
        Ok(missing)
    }

    /// The chunk lists of the given blobs, as far as the annex has them.
    pub async fn chunk_lists(
        &self,
        annex: &Annex,
        wanted: &BTreeSet<BlobHash>,
    ) -> Result<Vec<ChunkListRef>, SyncError> {
        let Some(tree) = annex.chunk_lists.as_ref().filter(|_| !wanted.is_empty()) else {
            return Ok(vec![]);
        };
        self.pages(std::slice::from_ref(tree)).await?;
        let r = self.catalog.read()?;
        let mut found = chunk_list_refs(&r, &self.space, tree)?;
        found.retain(|item| wanted.contains(&item.blob));
        found.retain(|item| item.list_bytes <= LIST_BYTES_MAX);
        let mut missing = BTreeMap::new();
        for item in &found {
            if !r.has_meta(&self.space, &item.list)? {
                missing.insert(item.list, item.list_bytes);
            }
        }
        drop(r);
        let (small, large) = missing.into_iter().partition(|(_, bytes)| *bytes <= SMALL_LIST_BYTES);
        self.many(small, IN_FLIGHT).await?;
        self.many(large, 1).await?;
        Ok(found)
    }

    async fn one(&self, hash: BlobHash, limit: u64) -> Result<Vec<u8>, SyncError> {
        if let Some(bytes) = self.catalog.read()?.meta(&self.space, &hash)? {
            return Ok(bytes);
        }
        let bytes = self.source.small(hash, limit).await?;
        tokio::task::block_in_place(|| self.store(std::slice::from_ref(&bytes)))?;
        Ok(bytes)
    }

    /// Fetches and stores pieces of at most the given lengths; returns their bytes in all.
    async fn many(&self, wanted: BTreeMap<BlobHash, u64>, in_flight: usize) -> Result<u64, SyncError> {
        let mut pieces =
            stream::iter(wanted).map(|(hash, limit)| self.source.small(hash, limit)).buffer_unordered(in_flight);
        let (mut total, mut held, mut batch) = (0u64, 0usize, Vec::new());
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            total += piece.len() as u64;
            held += piece.len();
            batch.push(piece);
            if held >= STORED_BYTES || batch.len() >= STORED_PIECES {
                tokio::task::block_in_place(|| self.store(&batch))?;
                batch.clear();
                held = 0;
            }
        }
        tokio::task::block_in_place(|| self.store(&batch))?;
        Ok(total)
    }

    fn store(&self, pieces: &[Vec<u8>]) -> Result<(), SyncError> {
        if pieces.is_empty() {
            return Ok(());
        }
        let stored: Result<(), CatalogError> = self.catalog.write(|b| {
            for piece in pieces {
                b.put_meta(&self.space, piece)?;
            }
            Ok(())
        });
        Ok(stored?)
    }
}

/// All items of a chunk list tree whose pages are here; a page that is missing is passed over.
pub fn chunk_list_refs(r: &Reader, space: &SpaceId, root: &TreeRef) -> Result<Vec<ChunkListRef>, SyncError> {
    let mut found = Vec::new();
    let mut todo = vec![root.clone()];
    while let Some(tree) = todo.pop() {
        let Some(bytes) = r.meta(space, &tree.page)? else { continue };
        let page = Page::from_bytes(&bytes).map_err(SyncError::manifest)?;
        todo.extend(page.child_pages().filter(|c| c.height < tree.height).cloned());
        found.extend(page.decode_items::<ChunkListRef>().map_err(SyncError::manifest)?);
    }
    Ok(found)
}
