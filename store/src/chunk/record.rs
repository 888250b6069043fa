//! Writes into the catalog what was read of files.
//!
//! Invariant: after this, the catalog says of each file what its bytes are, where its blob lies, and
//! has its tree and chunk list; the place that the file's earlier bytes had is gone.

use std::io;

use sluice_protocol::chunks::ChunkList;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::path::LakePath;

use crate::catalog::{Batch, BlobRecord, CatalogError, FileRecord, Located, Lookup};
use crate::durable::{Folder, Unsynced, ancestors};
use crate::lake::{Fingerprint, Lake, Place};
use crate::scan::unsettled;

/// Most places that are kept of one blob: a lake may hold the same bytes, or none, a million times.
const PLACES_MAX: usize = 16;

/// Where the tree of a file is until it is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OutboardAt {
    Memory(Vec<u8>),
    /// At its final place beside the catalog, durable.
    InFile,
}

/// A file that was read.
#[derive(Debug, Clone)]
pub(crate) struct ReadFile {
    /// Path below the lake.
    pub path: LakePath,
    pub print: Fingerprint,
    /// It is so young that it must be read again next time.
    pub racy: bool,
    pub hash: BlobHash,
    pub outboard: OutboardAt,
    pub list: Option<ChunkList>,
}

impl ReadFile {
    /// Memory that it holds, in bytes.
    pub fn weight(&self) -> usize {
        let outboard = match &self.outboard {
            OutboardAt::Memory(bytes) => bytes.len(),
            OutboardAt::InFile => 0,
        };
        let list = self.list.as_ref().map_or(0, |l| l.chunks.len() * size_of_val(&l.chunks[0]));
        size_of::<Self>() + self.path.as_str().len() + outboard + list
    }
}

/// Makes what was read durable before anything says so: the customer's program may have synced nothing, and
/// after a power loss a file of the same length and time would pass for the bytes that were read.
pub(crate) fn settle(lake: &Lake, files: &[ReadFile]) -> Result<(), CatalogError> {
    if files.is_empty() {
        return Ok(());
    }
    let mut unsynced = Unsynced::default();
    for file in files {
        unsynced.file(&file.path);
        ancestors(&file.path).into_iter().for_each(|above| unsynced.name_in(above));
    }
    let mut sync = || -> io::Result<()> {
        let top = Folder::of(lake.dir(), "lake")?;
        match unsynced.flush(&top) {
            // It went or became something else meanwhile, which the next scan finds.
            Err(e) if !is_fault(&e) => top.sync_system(),
            other => other,
        }
    };
    match sync() {
        // Where nothing can be written, nothing waits to be.
        Err(e) if e.kind() != io::ErrorKind::ReadOnlyFilesystem && is_fault(&e) => {
            Err(CatalogError::Io { path: lake.root().to_path_buf(), source: e })
        }
        _ => Ok(()),
    }
}

/// Whether a failed sync says that bytes may be lost.
fn is_fault(e: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let eio = e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    eio || matches!(e.kind(), QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}

/// Records files that were read. Returns the blobs that thereby lost their last recorded place.
pub(crate) fn record(
    batch: &mut Batch,
    space: &SpaceId,
    files: &[ReadFile],
) -> Result<Vec<(BlobHash, BlobRecord)>, CatalogError> {
    let mut lost = Vec::new();
    // Each table in its own order: neighbouring rows share pages.
    let mut files: Vec<&ReadFile> = files.iter().collect();
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    for file in &files {
        let before = batch.file(space, &file.path)?;
        if let Some(old) = before.filter(|b| b.hash != file.hash) {
            lost.extend(forget_place(batch, space, &old.hash, &file.path)?);
        }
        let print = if file.racy { unsettled(&file.print) } else { file.print.clone() };
        let record = FileRecord { print, hash: file.hash, damaged: false, unknown: Default::default() };
        batch.put_file(space, &file.path, &record)?;
    }
    files.sort_unstable_by_key(|file| file.hash);
    for file in files {
        add_place(batch, space, &file.hash, &file.path, &file.print)?;
        match &file.outboard {
            OutboardAt::Memory(bytes) if bytes.is_empty() => {}
            OutboardAt::Memory(bytes) => batch.put_outboard(&file.hash, bytes)?,
            OutboardAt::InFile => batch.outboard_in_file(&file.hash)?,
        }
        if let Some(list) = &file.list {
            let hash = batch.put_meta(space, &list.to_bytes())?;
            batch.set_chunk_list(space, &file.hash, &hash)?;
            batch.index_chunks(space, &file.hash, list)?;
        }
    }
    Ok(lost)
}

/// Says that a blob lies in a file of the lake, unless enough files are known to hold it.
pub(crate) fn add_place(
    batch: &mut Batch,
    space: &SpaceId,
    hash: &BlobHash,
    path: &LakePath,
    print: &Fingerprint,
) -> Result<(), CatalogError> {
    let place = Place::Lake(path.clone());
    let empty = BlobRecord { size: print.size, places: vec![], list: None, unknown: Default::default() };
    let mut blob = batch.blob(space, hash)?.unwrap_or(empty);
    blob.places.retain(|p| p.place != place);
    if blob.places.len() < PLACES_MAX {
        blob.places.push(Located { place, print: print.clone(), unknown: Default::default() });
    }
    batch.put_blob(space, hash, &blob)
}

/// Forgets that a blob lies in a file of the lake. Returns the blob if that was its last place.
pub(crate) fn forget_place(
    batch: &mut Batch,
    space: &SpaceId,
    hash: &BlobHash,
    path: &LakePath,
) -> Result<Option<(BlobHash, BlobRecord)>, CatalogError> {
    let place = Place::Lake(path.clone());
    let Some(blob) = batch.blob(space, hash)? else { return Ok(None) };
    let alone = blob.places.iter().all(|p| p.place == place);
    batch.remove_place(space, hash, &place)?;
    Ok(alone.then_some((*hash, blob)))
}
