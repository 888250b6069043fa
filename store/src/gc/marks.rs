//! What the kept versions reach.
//!
//! Invariant: marks only grow, and a page is read once however many versions share it. A page whose
//! bytes are not what its hash says ends the marking: what it named would be taken for garbage.
//!
//! Memory: 32 bytes for each page, chunk list and blob that is kept, and the set around them.

use std::collections::HashSet;

use sluice_protocol::annex::{Annex, ChunkListRef};
use sluice_protocol::codec::Document;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::{Entry, Manifest};
use sluice_protocol::tree::{Page, TreeItem, TreeRef};

use super::GcError;
use super::roots::Roots;
use crate::catalog::Lookup;

/// What must stay.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Metadata: manifests, annexes, pages, chunk lists, grant sets.
    pub meta: HashSet<BlobHash>,
    pub blobs: HashSet<BlobHash>,
}

/// Reads the metadata of one space.
struct Pages<'a, R> {
    r: &'a R,
    space: &'a SpaceId,
    /// A page that is missing means damage.
    whole: bool,
}

impl<R: Lookup> Pages<'_, R> {
    /// The bytes; `None` when they are not here.
    fn read(&self, what: &'static str, hash: &BlobHash, must: bool) -> Result<Option<Vec<u8>>, GcError> {
        match self.r.meta(self.space, hash)? {
            Some(bytes) => Ok(Some(bytes)),
            None if must || self.r.has_meta(self.space, hash)? => Err(GcError::Unreadable { what, hash: *hash }),
            None => Ok(None),
        }
    }
}

impl Marks {
    /// Marks everything that the roots reach.
    pub fn add(&mut self, r: &impl Lookup, space: &SpaceId, roots: &Roots) -> Result<(), GcError> {
        let pages = Pages { r, space, whole: roots.whole };
        self.meta.extend(&roots.leaves);
        for (manifest, must) in &roots.manifests {
            if self.meta.insert(*manifest) {
                self.manifest(&pages, manifest, *must)?;
            }
        }
        for annex in &roots.annexes {
            if self.meta.insert(*annex) {
                self.annex(&pages, annex)?;
            }
        }
        Ok(())
    }

    fn manifest<R: Lookup>(&mut self, pages: &Pages<'_, R>, hash: &BlobHash, must: bool) -> Result<(), GcError> {
        let Some(bytes) = pages.read("manifest", hash, must)? else { return Ok(()) };
        // Bytes that are as they were signed and mean nothing name nothing.
        let Ok(manifest) = Manifest::from_bytes(&bytes) else { return Ok(()) };
        for section in &manifest.sections {
            self.tree(pages, &section.tree, &mut |marks, entry: Entry| marks.blobs.extend(entry.hash))?;
        }
        Ok(())
    }

    fn annex<R: Lookup>(&mut self, pages: &Pages<'_, R>, hash: &BlobHash) -> Result<(), GcError> {
        let Some(bytes) = pages.read("annex", hash, false)? else { return Ok(()) };
        let Some(lists) = Annex::from_bytes(&bytes).ok().and_then(|a| a.chunk_lists) else { return Ok(()) };
        self.tree(pages, &lists, &mut |marks, item: ChunkListRef| {
            marks.meta.insert(item.list);
        })
    }

    fn tree<R: Lookup, T: TreeItem>(
        &mut self,
        pages: &Pages<'_, R>,
        root: &TreeRef,
        each: &mut dyn FnMut(&mut Self, T),
    ) -> Result<(), GcError> {
        let mut todo = vec![root.page];
        while let Some(hash) = todo.pop() {
            if !self.meta.insert(hash) {
                continue;
            }
            let Some(bytes) = pages.read("page", &hash, pages.whole)? else { continue };
            let Ok(page) = Page::from_bytes(&bytes) else { continue };
            todo.extend(page.child_pages().map(|c| c.page));
            for item in page.decode_items::<T>().unwrap_or_default() {
                each(self, item);
            }
        }
        Ok(())
    }
}
