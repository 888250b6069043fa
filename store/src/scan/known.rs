//! Finds the hashes of files that the catalog knows by their fingerprints.
//!
//! The rows of a section's files lie in the catalog in the order of its items, so both are walked
//! side by side: a million unchanged files cost a million steps and no search.
//!
//! Invariant: a file gets a hash only if its fingerprint is the recorded one and its blob is still
//! recorded. A blob that lost all its places (it was found damaged) is unknown, so that its file is
//! read again.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use sluice_protocol::codec::{Dec, Wire};
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::path::LakePath;

use super::{SectionEntries, What, is_unsettled};
use crate::catalog::{CatalogError, FileRecord, Lookup, Raw, Reader, Table};
use crate::lake::Fingerprint;

/// Fills in the hashes of all known files. Returns how many items have a record at all.
pub(super) fn fill(catalog: &Reader, space: &SpaceId, sections: &mut [SectionEntries]) -> Result<u64, CatalogError> {
    let blobs = Blobs::read(catalog, space)?;
    let recorded = AtomicU64::new(0);
    sections.par_iter_mut().try_for_each(|section| {
        let found = if section.shallow {
            one_by_one(catalog, space, section, &blobs)?
        } else {
            side_by_side(catalog, space, section, &blobs)?
        };
        recorded.fetch_add(found, Ordering::Relaxed);
        Ok::<(), CatalogError>(())
    })?;
    Ok(recorded.into_inner())
}

/// Rows of the space's files in the catalog.
pub(crate) fn count_files(catalog: &Reader, space: &SpaceId) -> Result<u64, CatalogError> {
    let mut count = 0;
    catalog.raw_scan(Table::Files as usize, &space.0, &mut |_, _| {
        count += 1;
        Ok(true)
    })?;
    Ok(count)
}

/// The hash of one file, if its fingerprint is known.
pub(crate) fn known(
    catalog: &Reader,
    space: &SpaceId,
    path: &LakePath,
    print: &Fingerprint,
) -> Result<Option<BlobHash>, CatalogError> {
    let hash = catalog.file(space, path)?.and_then(|record| fits(&record, print));
    Ok(match hash {
        Some(hash) if catalog.has_blob(space, &hash)? => Some(hash),
        _ => None,
    })
}

fn fits(record: &FileRecord, print: &Fingerprint) -> Option<BlobHash> {
    (record.print == *print && !is_unsettled(print)).then_some(record.hash)
}

/// A shallow section's rows lie between those of what is below it.
fn one_by_one(
    catalog: &Reader,
    space: &SpaceId,
    section: &mut SectionEntries,
    blobs: &Blobs,
) -> Result<u64, CatalogError> {
    let mut found = 0;
    let folder = section.path.clone();
    for item in &mut section.items {
        let What::File { print, hash, .. } = &mut item.what else { continue };
        let path = match &folder {
            None => Some(item.path.clone()),
            Some(folder) => folder.join(&item.path).ok(),
        };
        let Some(path) = path else { continue };
        if let Some(record) = catalog.file(space, &path)? {
            found += 1;
            *hash = fits(&record, print).filter(|h| blobs.has(h));
        }
    }
    Ok(found)
}

fn side_by_side(
    catalog: &Reader,
    space: &SpaceId,
    section: &mut SectionEntries,
    blobs: &Blobs,
) -> Result<u64, CatalogError> {
    let mut prefix = space.0.to_vec();
    if let Some(folder) = &section.path {
        prefix.extend_from_slice(folder.as_str().as_bytes());
        prefix.push(b'/');
    }
    let mut found = 0;
    let mut items = section.items.iter_mut().peekable();
    catalog.raw_scan(Table::Files as usize, &prefix, &mut |key, raw| {
        while items.next_if(|i| i.path.as_str().as_bytes() < key).is_some() {}
        let Some(item) = items.next_if(|i| i.path.as_str().as_bytes() == key) else {
            return Ok(items.peek().is_some());
        };
        if let What::File { print, hash, .. } = &mut item.what {
            found += 1;
            let record = FileRecord::get(&mut Dec::new(raw))?;
            *hash = fits(&record, print).filter(|h| blobs.has(h));
        }
        Ok(true)
    })?;
    Ok(found)
}

/// Which blobs are recorded: the first eight bytes of their hashes, sorted. Eight bytes a blob keep a
/// million of them small; two blobs that agree in them would only cost one reading less.
struct Blobs(Vec<u64>);

impl Blobs {
    fn read(catalog: &Reader, space: &SpaceId) -> Result<Self, CatalogError> {
        let mut found = Vec::new();
        catalog.raw_scan(Table::Blobs as usize, &space.0, &mut |key, _| {
            found.extend(key.first_chunk::<8>().map(|k| u64::from_be_bytes(*k)));
            Ok(true)
        })?;
        Ok(Self(found))
    }

    fn has(&self, hash: &BlobHash) -> bool {
        let first = hash.0.first_chunk::<8>().map(|k| u64::from_be_bytes(*k));
        first.is_some_and(|f| self.0.binary_search(&f).is_ok())
    }
}
