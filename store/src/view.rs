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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind};
use sluice_protocol::path::LakePath;

use crate::blobs::{BlobError, Fit, open_blob, prove_place};
use crate::catalog::{Catalog, Reader};
use crate::lake::{Lake, Place};
use crate::table::{SectionView, ViewFile};

/// Files kept open at once.
const OPEN_MAX: usize = 128;

/// How a view finds the bytes of a file.
enum Source {
    /// Wherever the catalog says.
    Catalog { reader: Box<Reader>, space: SpaceId },
    /// At places that were looked up, alongside the files.
    Places(Vec<Place>),
}

/// A section made of verified blobs.
pub struct ManifestView {
    lake: Lake,
    /// Sorted by path; `hashes` runs alongside.
    files: Vec<ViewFile>,
    hashes: Vec<BlobHash>,
    source: Source,
    open: Mutex<HashMap<usize, Arc<File>>>,
}

impl ManifestView {
    /// A view of the files among `entries` (sorted by path, as in a manifest). A file is looked up
    /// when it is first read, so a view of many files costs little.
    pub fn new(lake: &Lake, catalog: &Catalog, space: &SpaceId, entries: &[Entry]) -> Result<Self, BlobError> {
        let source = Source::Catalog { reader: Box::new(catalog.read()?), space: *space };
        Ok(Self::from(lake, entries, source))
    }

    /// A view of files that were just hashed, at the places that `place` says.
    pub(crate) fn of_places(
        lake: &Lake,
        entries: &[Entry],
        place: impl Fn(&LakePath) -> Option<Place>,
    ) -> Option<Self> {
        let places: Option<Vec<Place>> = files_among(entries).map(|(e, _)| place(&e.path)).collect();
        Some(Self::from(lake, entries, Source::Places(places?)))
    }

    fn from(lake: &Lake, entries: &[Entry], source: Source) -> Self {
        let files = files_among(entries).map(|(entry, _)| ViewFile {
            path: entry.path.clone(),
            size: entry.size,
            mtime_ns: entry.mtime_ns.unwrap_or(0),
        });
        let hashes = files_among(entries).map(|(_, hash)| *hash).collect();
        Self { lake: lake.clone(), files: files.collect(), hashes, source, open: Mutex::new(HashMap::new()) }
    }

    fn file(&self, index: usize) -> io::Result<Arc<File>> {
        if let Some(file) = self.cache().get(&index) {
            return Ok(file.clone());
        }
        let file = Arc::new(match &self.source {
            Source::Catalog { reader, space } => self.look_up(reader, space, index)?,
            Source::Places(places) => self.lake.open_place(&places[index])?,
        });
        if file.metadata()?.len() != self.files[index].size {
            return Err(io::Error::other(format!("`{}` has another length now", self.files[index].path)));
        }
        let mut cache = self.cache();
        if cache.len() >= OPEN_MAX {
            cache.clear();
        }
        cache.insert(index, file.clone());
        Ok(file)
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<usize, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_up(&self, reader: &Reader, space: &SpaceId, index: usize) -> io::Result<File> {
        let (file, hash) = (&self.files[index], &self.hashes[index]);
        let found = open_blob(&self.lake, reader, space, hash).map_err(io::Error::other)?;
        let proven = found.fit == Fit::Same || prove_place(&self.lake, &found.place, file.size, hash).is_some();
        if proven {
            Ok(found.file)
        } else {
            Err(io::Error::other(format!("`{}` changed since it was verified", found.place)))
        }
    }
}

fn files_among(entries: &[Entry]) -> impl Iterator<Item = (&Entry, &BlobHash)> {
    let files = entries.iter().filter(|e| e.kind == EntryKind::File);
    files.filter_map(|e| Some((e, e.hash.as_ref()?)))
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
