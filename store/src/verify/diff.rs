//! What changed between two versions of a section, as far as their pages differ.
//!
//! Invariant: pages with the same hash hold the same entries, so only pages that one version has
//! alone are read. Both trees have been read whole once before: when they were verified.

use std::collections::HashSet;

use sluice_protocol::codec::Document;
use sluice_protocol::ids::{BlobHash, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, Manifest, Section};
use sluice_protocol::tree::{Page, TreeRef};

use super::VerifyError;
use crate::catalog::{CatalogError, Lookup};

/// Entries that only one of two versions has, sorted by path.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// In the old version, and not the same in the new one.
    pub gone: Vec<Entry>,
    /// In the new version, and not the same in the old one.
    pub come: Vec<Entry>,
}

/// The manifest of a version whose metadata is still here.
pub(crate) fn manifest_of(
    reader: &impl Lookup,
    space: &SpaceId,
    snapshot: SnapshotId,
) -> Result<Option<Manifest>, CatalogError> {
    let bytes = reader.meta(space, &snapshot.into())?;
    Ok(bytes.and_then(|b| Manifest::from_bytes(&b).ok()))
}

/// Compares two versions of a section; without an old one everything has come.
pub(crate) fn changes(
    reader: &impl Lookup,
    space: &SpaceId,
    old: Option<&Section>,
    new: &Section,
) -> Result<Changes, VerifyError> {
    let side = Side { reader, space };
    let mut old_leaves = Vec::new();
    if let Some(old) = old {
        side.leaves(&old.tree, &mut old_leaves)?;
    }
    let mut new_leaves = Vec::new();
    side.leaves(&new.tree, &mut new_leaves)?;
    let in_old: HashSet<BlobHash> = old_leaves.iter().copied().collect();
    let in_new: HashSet<BlobHash> = new_leaves.iter().copied().collect();
    let gone = side.items(old_leaves.iter().filter(|page| !in_new.contains(page)))?;
    let come = side.items(new_leaves.iter().filter(|page| !in_old.contains(page)))?;
    Ok(without_common(gone, come))
}

/// The leaves of a section's tree, in order, to be read one by one with [`entries_in`]: some 32 bytes for 256
/// entries. Only for a tree that was read whole before.
pub fn leaves_of(reader: &impl Lookup, space: &SpaceId, section: &Section) -> Result<Vec<BlobHash>, VerifyError> {
    let mut leaves = Vec::new();
    Side { reader, space }.leaves(&section.tree, &mut leaves)?;
    Ok(leaves)
}

/// The entries of one leaf.
pub fn entries_in(reader: &impl Lookup, space: &SpaceId, leaf: &BlobHash) -> Result<Vec<Entry>, VerifyError> {
    Side { reader, space }.items(std::iter::once(leaf))
}

struct Side<'a, R> {
    reader: &'a R,
    space: &'a SpaceId,
}

impl<R: Lookup> Side<'_, R> {
    fn page(&self, hash: &BlobHash) -> Result<Page, VerifyError> {
        let bytes = self.reader.meta(self.space, hash)?;
        let bytes = bytes.ok_or(VerifyError::NoMetadata { what: "page", hash: *hash })?;
        Page::from_bytes(&bytes).map_err(|source| VerifyError::BadMetadata { what: format!("page {hash}"), source })
    }

    /// The leaves of a tree in order; only inner pages are read.
    fn leaves(&self, tree: &TreeRef, into: &mut Vec<BlobHash>) -> Result<(), VerifyError> {
        if tree.height == 0 {
            into.push(tree.page);
            return Ok(());
        }
        for child in self.page(&tree.page)?.child_pages() {
            // Heights fall on every step down, so this ends.
            if child.height < tree.height {
                self.leaves(child, into)?;
            }
        }
        Ok(())
    }

    fn items<'p>(&self, pages: impl Iterator<Item = &'p BlobHash>) -> Result<Vec<Entry>, VerifyError> {
        let mut all = Vec::new();
        for hash in pages {
            let items = self.page(hash)?.decode_items::<Entry>();
            all.extend(items.map_err(|source| VerifyError::BadMetadata { what: format!("page {hash}"), source })?);
        }
        Ok(all)
    }
}

/// Takes out what both have; both are sorted by path.
fn without_common(gone: Vec<Entry>, come: Vec<Entry>) -> Changes {
    let same = |entry: &Entry, other: &[Entry]| {
        let at = other.binary_search_by(|e| e.path.cmp(&entry.path));
        at.is_ok_and(|i| other[i] == *entry)
    };
    let keep: Vec<bool> = gone.iter().map(|e| !same(e, &come)).collect();
    let come = come.into_iter().filter(|e| !same(e, &gone)).collect();
    let gone = gone.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(e, _)| e).collect();
    Changes { gone, come }
}
