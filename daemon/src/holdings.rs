//! What is here that a new version may reuse: whole blobs, and chunks of them.
//!
//! Invariant: only what arrived for the same space counts, so a hostile manifest that names a hash
//! or a chunk from another space finds nothing here (DESIGN §4, no reuse across trust domains).

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt;

use sluice_protocol::chunks::ChunkList;
use sluice_protocol::ids::{BlobHash, ChunkHash, SpaceId};
use sluice_protocol::limits::CHUNK_BYTES_MAX;
use sluice_protocol::plan::{ChunkSource, Holdings};
use sluice_store::blobs::{Fit, Glance};
use sluice_store::catalog::{Lookup, Reader};
use sluice_store::lake::{Lake, Place};

/// Chunks of base blobs that are held in memory at once: some 100 MiB.
const CHUNKS_IN_MEMORY_MAX: usize = 1_500_000;

struct Loaded {
    chunks: HashMap<ChunkHash, (u32, ChunkSource)>,
    blobs: HashSet<BlobHash>,
}

/// The holdings of one space, over one consistent view of the catalog.
pub struct SpaceHoldings<'a> {
    reader: &'a Reader,
    space: SpaceId,
    lake: &'a Lake,
    glance: RefCell<Glance<'a>>,
    loaded: RefCell<Loaded>,
}

impl<'a> SpaceHoldings<'a> {
    /// The holdings of `space`, whose files lie in `lake`.
    pub fn new(reader: &'a Reader, space: SpaceId, lake: &'a Lake) -> Self {
        let loaded = Loaded { chunks: HashMap::new(), blobs: HashSet::new() };
        let glance = RefCell::new(Glance::new(lake));
        Self { reader, space, lake, glance, loaded: RefCell::new(loaded) }
    }

    /// Makes the chunks of `base` available: the same path's previous version, or another relative.
    pub fn load_base(&self, base: &BlobHash) {
        let mut loaded = self.loaded.borrow_mut();
        if loaded.chunks.len() >= CHUNKS_IN_MEMORY_MAX || !loaded.blobs.insert(*base) || !self.has_blob(base) {
            return;
        }
        let Some(list) = self.chunk_list_of(base) else { return };
        for (offset, chunk) in list.extents() {
            let source = ChunkSource { blob: *base, offset };
            loaded.chunks.entry(chunk.hash).or_insert((chunk.len, source));
        }
    }

    /// Makes available every blob that shares a sampled chunk with `list`.
    pub fn load_relatives(&self, list: &ChunkList) {
        for chunk in &list.chunks {
            for candidate in self.reader.chunk_candidates(&self.space, &chunk.hash).unwrap_or_default() {
                self.load_base(&candidate);
            }
        }
    }

    /// Makes available the chunks of a damaged file that are still good; each is hashed now.
    pub fn load_salvage(&self, blob: &BlobHash, place: &Place, list: &ChunkList) {
        let Ok(file) = self.lake.open_place(place) else { return };
        let mut loaded = self.loaded.borrow_mut();
        let mut buffer = vec![0; CHUNK_BYTES_MAX as usize];
        for (offset, chunk) in list.extents() {
            let Some(bytes) = buffer.get_mut(..chunk.len as usize) else { return };
            if file.read_exact_at(bytes, offset).is_ok() && ChunkHash::of(bytes) == chunk.hash {
                loaded.chunks.entry(chunk.hash).or_insert((chunk.len, ChunkSource { blob: *blob, offset }));
            }
        }
    }

    /// Forgets the loaded chunks, so that memory stays bounded over many files.
    pub fn forget_bases(&self) {
        let mut loaded = self.loaded.borrow_mut();
        if loaded.chunks.len() > CHUNKS_IN_MEMORY_MAX / 2 {
            loaded.chunks.clear();
            loaded.blobs.clear();
        }
    }

    fn chunk_list_of(&self, blob: &BlobHash) -> Option<ChunkList> {
        let record = self.reader.blob(&self.space, blob).ok()??;
        let bytes = self.reader.meta(&self.space, &record.list?).ok()??;
        ChunkList::from_bytes(&bytes).ok().filter(|l| l.size == record.size)
    }

    fn fits(&self, blob: &BlobHash) -> bool {
        let Ok(Some(record)) = self.reader.blob(&self.space, blob) else { return false };
        // One that was only touched is hashed again by `verify`, and each chunk of it when it is copied.
        let mut glance = self.glance.borrow_mut();
        record.places.iter().any(|at| glance.fit(at) != Fit::Other)
    }
}

impl Holdings for SpaceHoldings<'_> {
    fn has_blob(&self, hash: &BlobHash) -> bool {
        self.fits(hash)
    }

    fn chunk(&self, hash: &ChunkHash, len: u32) -> Option<ChunkSource> {
        let loaded = self.loaded.borrow();
        loaded.chunks.get(hash).filter(|(l, _)| *l == len).map(|(_, source)| *source)
    }
}
