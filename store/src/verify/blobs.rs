//! Whether the bytes of every file are on this disk, proven.
//!
//! Invariant: a file counts as here only when a place of its blob, in this space, has the fingerprint
//! it was proven with, or was hashed again just now.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, Section};

use super::{VerifyError, name_of};
use crate::blobs::{Fit, fit_of, settle};
use crate::catalog::{Catalog, Lookup, Reader};
use crate::lake::Lake;
use crate::watch::Watch;

/// Missing files that an error names.
const NAMED_MAX: usize = 5;

/// Collects what is missing over all sections.
pub(super) struct Check<'a> {
    lake: &'a Lake,
    catalog: &'a Catalog,
    space: &'a SpaceId,
    watch: &'a dyn Watch,
    seen: HashSet<(BlobHash, u64)>,
    files: u64,
    bytes: u64,
    first: Vec<String>,
    missing: Vec<BlobHash>,
}

impl<'a> Check<'a> {
    pub fn new(lake: &'a Lake, catalog: &'a Catalog, space: &'a SpaceId, watch: &'a dyn Watch) -> Self {
        let (seen, first, missing) = (HashSet::new(), vec![], vec![]);
        Self { lake, catalog, space, watch, seen, files: 0, bytes: 0, first, missing }
    }

    /// Looks for the blobs of a section's entries.
    pub fn section(&mut self, section: &Section, entries: &[Entry]) -> Result<(), VerifyError> {
        let mut wanted: Vec<(BlobHash, &Entry)> = Vec::new();
        for entry in entries.iter().filter(|e| e.kind == EntryKind::File) {
            let Some(hash) = entry.hash else { continue };
            if self.seen.insert((hash, entry.size)) {
                wanted.push((hash, entry));
            }
        }
        let reader = self.catalog.read()?;
        let done = AtomicU64::new(self.files);
        let total = self.files + wanted.len() as u64;
        let found: Vec<bool> = wanted
            .par_iter()
            .map(|(hash, entry)| {
                let n = done.fetch_add(1, Ordering::Relaxed);
                if n.is_multiple_of(1024) {
                    self.watch.amount("verify", n, total, self.bytes, 0);
                    if self.watch.cancelled() {
                        return Err(VerifyError::Cancelled);
                    }
                }
                self.is_here(&reader, section, hash, entry)
            })
            .collect::<Result<_, _>>()?;
        for ((hash, entry), found) in wanted.into_iter().zip(found) {
            self.files += 1;
            self.bytes += entry.size;
            if !found {
                self.missing.push(hash);
                if self.first.len() < NAMED_MAX {
                    self.first.push(format!("`{}`", name_of(section, &entry.path)));
                }
            }
        }
        self.watch.amount("verify", self.files, self.files, self.bytes, self.bytes);
        Ok(())
    }

    fn is_here(&self, reader: &Reader, section: &Section, hash: &BlobHash, entry: &Entry) -> Result<bool, VerifyError> {
        let Some(record) = reader.blob(self.space, hash)? else { return Ok(false) };
        if record.size != entry.size {
            let path = name_of(section, &entry.path);
            return Err(VerifyError::OtherSize { path, hash: *hash, listed: entry.size, found: record.size });
        }
        if record.places.iter().any(|at| fit_of(self.lake, at) == Fit::Same) {
            return Ok(true);
        }
        Ok(settle(self.lake, self.catalog, self.space, hash)?)
    }

    /// Fails when anything was missing.
    pub fn finish(self) -> Result<(), VerifyError> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let count = self.missing.len() as u64;
        Err(VerifyError::MissingBlobs { count, first: self.first, hashes: self.missing })
    }
}
