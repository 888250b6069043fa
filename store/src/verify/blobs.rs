//! Whether the bytes of every file are on this disk, proven.
//!
//! Invariant: a file counts as here only when a place of its blob, in this space, has the fingerprint
//! it was proven with, or was hashed again just now.

use std::collections::{BTreeSet, HashSet};

use rayon::prelude::*;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, Section};

use super::{VerifyError, name_of};
use crate::blobs::{CROWDED_ABOVE, Fit, Glance, settle};
use crate::catalog::{Catalog, Lookup, Reader};
use crate::lake::Lake;
use crate::watch::Watch;

/// Entries that are held and looked for in parallel.
const LOOKED_FOR_AT_ONCE: usize = 16 * 1024;

/// Hands out entries, one after the other.
pub(super) type EachEntry<'a> =
    dyn FnMut(&mut dyn FnMut(Entry) -> Result<(), VerifyError>) -> Result<(), VerifyError> + 'a;

/// Missing files that an error names.
const NAMED_MAX: usize = 5;

/// Collects what is missing over all sections.
pub(super) struct Check<'a> {
    lake: &'a Lake,
    catalog: &'a Catalog,
    space: &'a SpaceId,
    watch: &'a dyn Watch,
    files: u64,
    bytes: u64,
    first: Vec<String>,
    missing: BTreeSet<BlobHash>,
    /// Blobs with many places that were looked for: each look reads all of them.
    crowded: HashSet<(BlobHash, u64)>,
}

/// What was found of a blob.
#[derive(Default)]
struct Looked {
    here: bool,
    crowded: bool,
}

impl<'a> Check<'a> {
    pub fn new(lake: &'a Lake, catalog: &'a Catalog, space: &'a SpaceId, watch: &'a dyn Watch) -> Self {
        Self {
            lake,
            catalog,
            space,
            watch,
            files: 0,
            bytes: 0,
            first: vec![],
            missing: BTreeSet::new(),
            crowded: HashSet::new(),
        }
    }

    /// Looks for the blobs of the entries of a section that `each_entry` hands out.
    pub fn section(&mut self, section: &Section, each_entry: &mut EachEntry<'_>) -> Result<(), VerifyError> {
        let mut wanted = Vec::new();
        each_entry(&mut |entry| {
            if entry.kind == EntryKind::File && entry.hash.is_some() {
                wanted.push(entry);
            }
            if wanted.len() >= LOOKED_FOR_AT_ONCE { self.look_for(section, &mut wanted) } else { Ok(()) }
        })?;
        self.look_for(section, &mut wanted)?;
        self.watch.amount("verify", self.files, self.files, self.bytes, self.bytes);
        Ok(())
    }

    fn look_for(&mut self, section: &Section, wanted: &mut Vec<Entry>) -> Result<(), VerifyError> {
        self.watch.amount("verify", self.files, self.files.max(section.tree.items), self.bytes, 0);
        if self.watch.cancelled() {
            return Err(VerifyError::Cancelled);
        }
        let reader = self.catalog.read()?;
        let blob = |entry: &Entry| (entry.hash.unwrap_or(BlobHash([0; 32])), entry.size);
        self.files += wanted.len() as u64;
        self.bytes += wanted.iter().map(|entry| entry.size).sum::<u64>();
        // A blob under many paths is looked for once: its record names all of its places.
        wanted.retain(|entry| !self.crowded.contains(&blob(entry)));
        wanted.par_sort_by_key(blob);
        wanted.dedup_by_key(|entry| blob(entry));
        wanted.par_sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let look = |glance: &mut Glance<'_>, entry: &Entry| self.look(&reader, glance, section, &blob(entry).0, entry);
        let found: Vec<Looked> =
            wanted.par_iter().map_init(|| Glance::new(self.lake), look).collect::<Result<_, _>>()?;
        for (entry, found) in wanted.drain(..).zip(found) {
            if found.crowded {
                self.crowded.insert(blob(&entry));
            }
            if !found.here && self.missing.insert(blob(&entry).0) && self.first.len() < NAMED_MAX {
                self.first.push(format!("`{}`", name_of(section, &entry.path)));
            }
        }
        Ok(())
    }

    fn look(
        &self,
        reader: &Reader,
        glance: &mut Glance<'_>,
        section: &Section,
        hash: &BlobHash,
        entry: &Entry,
    ) -> Result<Looked, VerifyError> {
        let Some(record) = reader.blob(self.space, hash)? else { return Ok(Looked::default()) };
        let crowded = record.places.len() > CROWDED_ABOVE;
        if record.size != entry.size {
            let path = name_of(section, &entry.path);
            return Err(VerifyError::OtherSize { path, hash: *hash, listed: entry.size, found: record.size });
        }
        if record.places.iter().any(|at| glance.fit(at) == Fit::Same) {
            return Ok(Looked { here: true, crowded });
        }
        Ok(Looked { here: settle(self.lake, self.catalog, self.space, hash)?, crowded })
    }

    /// Fails when anything was missing.
    pub fn finish(self) -> Result<(), VerifyError> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let count = self.missing.len() as u64;
        Err(VerifyError::MissingBlobs { count, first: self.first, hashes: self.missing.into_iter().collect() })
    }
}
