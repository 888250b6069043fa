//! The files of one section as its manifest lists them, read from wherever their bytes lie.
//!
//! A table reader opens a candidate through this before anything of it is visible: staged parts,
//! files of the published version and pins look like one folder.
//!
//! Invariant: a path that the manifest does not list does not exist here, and a file is read only
//! while its fingerprint is the recorded one.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind};
use sluice_protocol::path::LakePath;

use crate::blobs::{BlobError, Fit, compare, open_blob};
use crate::catalog::{Located, Lookup};
use crate::lake::{Lake, Place};
use crate::table::{SectionView, ViewFile};

/// Files kept open at once.
const OPEN_MAX: usize = 128;

/// A section made of verified blobs.
pub struct ManifestView {
    lake: Lake,
    /// Sorted by path; `places` runs alongside.
    files: Vec<ViewFile>,
    places: Vec<Located>,
    open: Mutex<HashMap<usize, Arc<File>>>,
}

impl ManifestView {
    /// A view of the files among `entries` (sorted by path, as in a manifest).
    ///
    /// Every file's blob must be here and proven.
    pub fn new(
        lake: &Lake,
        reader: &impl Lookup,
        space: &SpaceId,
        entries: &[Entry],
    ) -> Result<Self, BlobError> {
        let open = |entry: &Entry, hash: &BlobHash| {
            let found = open_blob(lake, reader, space, hash)?;
            if found.fit != Fit::Same || found.size != entry.size {
                return Err(BlobError::Lost { hash: *hash, stale: vec![found.place] });
            }
            Ok((found.file, found.place))
        };
        Self::from(lake, entries, &open)
    }

    /// A view of files that were just hashed, at the places that `place` says.
    pub(crate) fn of_places(
        lake: &Lake,
        entries: &[Entry],
        place: &dyn Fn(&LakePath) -> Option<Place>,
    ) -> Result<Self, BlobError> {
        let open = |entry: &Entry, hash: &BlobHash| {
            let place = place(&entry.path).ok_or(BlobError::Unknown(*hash))?;
            let named = |source| BlobError::Io { place: place.clone(), source };
            Ok((lake.open_place(&place).map_err(named)?, place))
        };
        Self::from(lake, entries, &open)
    }

    fn from(
        lake: &Lake,
        entries: &[Entry],
        open: &dyn Fn(&Entry, &BlobHash) -> Result<(File, Place), BlobError>,
    ) -> Result<Self, BlobError> {
        let mut files = Vec::new();
        let mut places = Vec::new();
        for entry in entries.iter().filter(|e| e.kind == EntryKind::File) {
            let Some(hash) = &entry.hash else { continue };
            let (file, place) = open(entry, hash)?;
            let print = Lake::print_of(&file)
                .map_err(|source| BlobError::Io { place: place.clone(), source })?;
            places.push(Located { place, print, unknown: Default::default() });
            files.push(ViewFile {
                path: entry.path.clone(),
                size: entry.size,
                mtime_ns: entry.mtime_ns.unwrap_or(0),
            });
        }
        Ok(Self { lake: lake.clone(), files, places, open: Mutex::new(HashMap::new()) })
    }

    fn file(&self, index: usize) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&index) {
            return Ok(file.clone());
        }
        let at = &self.places[index];
        let file = self.lake.open_place(&at.place)?;
        if compare(&at.print, &Lake::print_of(&file)?) == Fit::Other {
            return Err(io::Error::other(format!("`{}` changed while it was verified", at.place)));
        }
        let file = Arc::new(file);
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(index, file.clone());
        Ok(file)
    }
}

impl SectionView for ManifestView {
    fn files(&self) -> &[ViewFile] {
        &self.files
    }

    fn read(&self, path: &LakePath, range: Range<u64>) -> io::Result<Bytes> {
        let index = self
            .files
            .binary_search_by(|f| f.path.cmp(path))
            .map_err(|_| io::Error::new(io::ErrorKind::NotFound, format!("`{path}` is not in the manifest")))?;
        if range.start > range.end || range.end > self.files[index].size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file(index)?.read_exact_at(&mut bytes, range.start)?;
        Ok(Bytes::from(bytes))
    }
}
