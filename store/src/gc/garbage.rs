//! The rows of one space that nothing marked, found outside of any transaction and looked at again
//! inside the one that removes them.
//!
//! Invariant: a record of a blob goes only when no kept version lists the blob and none of its places
//! is a file that something else still stands for.

use std::collections::HashSet;
use std::io;

use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::path::LakePath;

use super::marks::Marks;
use super::roots::Roots;
use super::{Collected, GcError};
use crate::catalog::lookup::{IN_FILE, decode};
use crate::catalog::{Batch, BlobRecord, CatalogError, Lookup, Raw, Reader, Role, SiteLookup, Table, beside};
use crate::lake::{Lake, Place};
use crate::pins::{is_pin, listed};
use crate::staging::is_staged;

/// Bytes of a key of the chunk index behind the space.
const CHUNK_KEY_BYTES: usize = 40;

/// What may go.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    /// Metadata, and its length in bytes.
    metas: Vec<(BlobHash, u64)>,
    /// Records of blobs to go, or to lose places.
    blobs: Vec<BlobHash>,
    /// Rows of the chunk index.
    chunks: Vec<[u8; CHUNK_KEY_BYTES]>,
    /// Files of a replica that no version lists any more.
    files: Vec<LakePath>,
    pub pins: Vec<BlobHash>,
    /// Nothing that is staged is wanted.
    pub staging: bool,
}

impl Garbage {
    /// Looks for rows without a mark. Chunk lists of blobs that stay are marked on the way.
    pub fn find(lake: &Lake, r: &Reader, space: &SpaceId, roots: &Roots, marks: &mut Marks) -> Result<Self, GcError> {
        let mut found = Garbage { staging: !roots.whole && !roots.staging, ..Garbage::default() };
        let chunked = found.blobs(lake, r, space, roots, marks)?;
        r.raw_scan(Table::Chunks as usize, &space.0, &mut |key, _| {
            let key: [u8; CHUNK_KEY_BYTES] = key.try_into().map_err(|_| damaged("a chunk's"))?;
            if !chunked.contains(&blob_of(&key)) {
                found.chunks.push(key);
            }
            Ok(true)
        })?;
        r.raw_scan(Table::Meta as usize, &space.0, &mut |key, raw| {
            let hash = BlobHash(key.try_into().map_err(|_| damaged("a metadata blob's"))?);
            if !marks.meta.contains(&hash) {
                found.metas.push((hash, value_bytes(r, &hash, raw)));
            }
            Ok(true)
        })?;
        if r.space(space)?.is_some_and(|s| s.role == Role::Replica) {
            r.files(space, &mut |path, record| {
                if !marks.blobs.contains(&record.hash) {
                    found.files.push(path);
                }
            })?;
        }
        found.pins = listed(lake)?.into_iter().filter(|hash| !marks.blobs.contains(hash)).collect();
        Ok(found)
    }

    /// Looks at all blobs; returns those that stay and have a chunk list.
    fn blobs(
        &mut self,
        lake: &Lake,
        r: &Reader,
        space: &SpaceId,
        roots: &Roots,
        marks: &mut Marks,
    ) -> Result<HashSet<BlobHash>, GcError> {
        let mut chunked = HashSet::new();
        r.raw_scan(Table::Blobs as usize, &space.0, &mut |key, raw| {
            let hash = BlobHash(key.try_into().map_err(|_| damaged("a blob's"))?);
            let record: BlobRecord = decode(raw)?;
            let mut stays = marks.blobs.contains(&hash);
            if !stays {
                let holding = holding(lake, r, space, roots, &hash, &record)?;
                stays = holding > 0;
                if holding < record.places.len() || !stays {
                    self.blobs.push(hash);
                }
            }
            if let Some(list) = record.list.filter(|_| stays) {
                marks.meta.insert(list);
                chunked.insert(hash);
            }
            Ok(true)
        })?;
        Ok(chunked)
    }

    /// Takes out what was marked since, and what the records of blobs that stay name.
    pub fn spare(&mut self, b: &Batch, space: &SpaceId, roots: &Roots, marks: &mut Marks) -> Result<(), CatalogError> {
        for hash in self.blobs.iter().filter(|hash| marks.blobs.contains(hash)) {
            marks.meta.extend(b.blob(space, hash)?.and_then(|record| record.list));
        }
        self.blobs.retain(|hash| !marks.blobs.contains(hash));
        self.chunks.retain(|key| !marks.blobs.contains(&blob_of(key)));
        self.metas.retain(|(hash, _)| !marks.meta.contains(hash));
        self.pins.retain(|hash| !marks.blobs.contains(hash));
        self.staging &= !roots.staging;
        let mut files = std::mem::take(&mut self.files);
        let mut failed = None;
        files.retain(|path| match b.file(space, path) {
            Ok(record) => record.is_some_and(|f| !marks.blobs.contains(&f.hash)),
            Err(e) => {
                failed = Some(e);
                false
            }
        });
        self.files = files;
        failed.map_or(Ok(()), Err)
    }

    /// Removes the rows.
    pub fn forget(&self, lake: &Lake, b: &mut Batch, space: &SpaceId, roots: &Roots) -> Result<(), CatalogError> {
        for path in &self.files {
            b.remove_file(space, path)?;
        }
        for hash in &self.blobs {
            let Some(mut record) = b.blob(space, hash)? else { continue };
            let mut kept = Vec::new();
            for at in record.places {
                if holds(lake, b, space, roots, hash, &at.place)? {
                    kept.push(at);
                }
            }
            record.places = kept;
            if record.places.is_empty() { b.remove_blob(space, hash)? } else { b.put_blob(space, hash, &record)? }
        }
        for key in &self.chunks {
            b.remove(Table::Chunks, &[&space.0[..], key].concat())?;
        }
        for (hash, _) in &self.metas {
            b.remove_meta(space, hash)?;
        }
        for (peer, snapshot) in &roots.ended {
            b.remove_lease(space, peer, snapshot)?;
        }
        if self.staging {
            b.remove_all(Table::Staging, &space.0)?;
        }
        Ok(())
    }

    /// What the rows come to; files are counted when they go.
    pub fn collected(&self, roots: &Roots) -> Collected {
        let rows = self.metas.len() + self.blobs.len() + self.chunks.len() + self.files.len() + roots.ended.len();
        let went = |(hash, _): &&(BlobHash, u64)| roots.known.contains(&(*hash).into());
        Collected {
            kept: roots.manifests.len() as u64,
            versions: self.metas.iter().filter(went).count() as u64,
            rows: rows as u64,
            bytes: self.metas.iter().map(|(_, bytes)| bytes).sum(),
            ..Collected::default()
        }
    }
}

fn damaged(whose: &str) -> CatalogError {
    CatalogError::Store(format!("{whose} key is damaged"))
}

/// The blob that a row of the chunk index is about.
fn blob_of(key: &[u8; CHUNK_KEY_BYTES]) -> BlobHash {
    BlobHash(*key.last_chunk().expect("40 bytes end with 32"))
}

/// The length of a stored value, in bytes.
fn value_bytes(r: &Reader, hash: &BlobHash, raw: &[u8]) -> u64 {
    match raw.first() {
        Some(&IN_FILE) => std::fs::metadata(beside(r.home(), "meta", &hash.to_string())).map_or(0, |m| m.len()),
        _ => raw.len().saturating_sub(1) as u64,
    }
}

/// How many places of a blob that no version lists stay all the same.
fn holding(
    lake: &Lake,
    r: &impl Lookup,
    space: &SpaceId,
    roots: &Roots,
    hash: &BlobHash,
    record: &BlobRecord,
) -> Result<usize, CatalogError> {
    let mut count = 0;
    for at in &record.places {
        count += usize::from(holds(lake, r, space, roots, hash, &at.place)?);
    }
    Ok(count)
}

/// Whether a place of such a blob stays.
fn holds(
    lake: &Lake,
    r: &impl Lookup,
    space: &SpaceId,
    roots: &Roots,
    hash: &BlobHash,
    place: &Place,
) -> Result<bool, CatalogError> {
    match place {
        // The scan believes such a file's record and does not read it again.
        Place::Lake(path) => Ok(r.file(space, path)?.is_some_and(|f| f.hash == *hash)),
        place if is_pin(place) => Ok(false),
        place if is_staged(place) => Ok(roots.staging),
        // A file of an older generation: publishing knows its folders by these records.
        Place::Own(_) => Ok(!matches!(lake.open_place(place), Err(e) if e.kind() == io::ErrorKind::NotFound)),
    }
}
