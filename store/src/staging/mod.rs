//! Blobs on their way in: preallocated files that many threads fill at once.
//!
//! A blob of 16 KiB groups is written to `.sluice/staging/<hash>.part`; beside it `<hash>.tree`
//! keeps the tree nodes that arrived with its bytes. What is durable stands in the catalog.
//!
//! Invariant: a group is recorded as here only after its bytes are on the disk, and a blob is
//! recorded as complete only when every byte either arrived as a leaf verified against the blob's
//! hash or was hashed again from this disk. After a crash the recorded groups are believed; what was
//! written since is believed only where the received tree proves it.

mod adopt;
mod finish;
mod groups;
mod part;
mod sidecar;
mod small;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sluice_protocol::codec::Bytes;
use sluice_protocol::ids::{BlobHash, ChunkHash, SpaceId};
use sluice_protocol::limits;
use sluice_protocol::path::LakePath;

use crate::blobs::{Fit, fit_of};
use crate::catalog::{Catalog, CatalogError, Lookup, StagingRecord};
use crate::disk;
use crate::durable::{Folder, is_full};
use crate::lake::{Lake, LakeError, Place};
use groups::Groups;
pub use part::Paged;
use part::Part;
use sidecar::Sidecar;
pub use small::SMALL_BYTES_MAX;
use small::Unsettled;

/// Name of the staging folder below `.sluice`.
pub const STAGING_FOLDER: &str = "staging";
/// Bytes after which transfer should call [`Staged::checkpoint`].
pub const CHECKPOINT_BYTES: u64 = 256 * 1024 * 1024;
/// Milliseconds after which transfer should call [`Staged::checkpoint`].
pub const CHECKPOINT_MS: u64 = 5_000;
/// Counter of the catalog: bytes received since the site was made. What is written here (leaves, nodes of trees,
/// small blobs) is counted here, in the commit that records it; the caller counts everything else.
pub const MOVED_TOTAL: &str = "moved_bytes_total";

/// A node of a tree: the two hashes below the one at this place of the pre-order outboard, counted in nodes.
pub type Pair = (u64, [u8; 64]);

/// Why a blob cannot be staged.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    #[error("the disk of `{folder}` is full: {needed} bytes for blob {hash} do not fit")]
    DiskFull { folder: PathBuf, hash: BlobHash, needed: u64 },
    #[error("blob {hash} is said to have {claimed} bytes; it is staged with {size}")]
    OtherSize { hash: BlobHash, size: u64, claimed: u64 },
    #[error("bytes {start}..{end} lie outside blob {hash}")]
    OutOfRange { hash: BlobHash, start: u64, end: u64 },
    #[error("{missing} bytes of blob {hash} are still missing")]
    Incomplete { hash: BlobHash, missing: u64 },
    #[error("local copies for blob {hash} were not what its chunk list says; {dropped} bytes must be fetched")]
    WrongCopies { hash: BlobHash, dropped: u64 },
    #[error("the bytes of blob {hash} do not hash to its name; all of it must be fetched again")]
    Damaged { hash: BlobHash },
    #[error("`{path}`: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// The staging folder of one lake, for one space.
#[derive(Clone)]
pub struct Staging(Arc<Shared>);

struct Shared {
    lake: Lake,
    space: SpaceId,
    catalog: Catalog,
    folder: Folder,
    boot: String,
    open: Mutex<HashMap<BlobHash, Weak<Inner>>>,
    unsettled: Mutex<Unsettled>,
    /// Held while small blobs are settled.
    settling: Mutex<()>,
    direct: AtomicBool,
}

/// One blob in the making. Clones are the same blob; every call may come from any thread.
#[derive(Clone)]
pub struct Staged(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    hash: BlobHash,
    size: u64,
    part: Part,
    sidecar: Sidecar,
    state: Mutex<State>,
    /// One checkpoint at a time, so that the catalog never goes back.
    saving: Mutex<()>,
}

struct State {
    groups: Groups,
    /// Bytes written since the last checkpoint.
    unsaved: u64,
    /// The folder knows the names durably.
    named: bool,
    /// The blob is whole and recorded.
    finished: bool,
    /// A sync failed: what this handle wrote is not believed, and it writes no more.
    spoiled: bool,
    /// Bytes received that [`MOVED_TOTAL`] lacks, those of a killed run among them. Counted in the commit that
    /// records their groups: a byte that is recorded is counted, and one that is not will be by the next run.
    uncounted: u64,
}

/// A lock whose holder panicked still holds valid data: every change under it is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of a blob's part below the staging folder.
pub(crate) fn part_name(hash: &BlobHash) -> String {
    format!("{hash}.part")
}

pub(crate) fn tree_name(hash: &BlobHash) -> String {
    format!("{hash}.tree")
}

/// Where a staged blob lies.
pub(crate) fn part_place(hash: &BlobHash) -> Place {
    let text = format!("{STAGING_FOLDER}/{}", part_name(hash));
    Place::Own(LakePath::parse(&text).expect("a hash makes a valid path"))
}

/// Whether a place of a blob is its staged part.
pub(crate) fn is_staged(place: &Place) -> bool {
    matches!(place, Place::Own(path) if path.names().next() == Some(STAGING_FOLDER))
}

impl Staging {
    /// Opens the staging folder of a lake, made on first use.
    pub fn open(lake: &Lake, space: SpaceId, catalog: &Catalog) -> Result<Self, StagingError> {
        let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
        let boot = std::fs::read_to_string(&path).map_err(|source| StagingError::Io { path, source })?;
        Self::open_on_boot(lake, space, catalog, boot.trim())
    }

    /// As [`Staging::open`], on a boot with the given id.
    pub fn open_on_boot(lake: &Lake, space: SpaceId, catalog: &Catalog, boot: &str) -> Result<Self, StagingError> {
        let failed = |source| StagingError::Io { path: lake.root().join(".sluice/staging"), source };
        let own = Folder::of(lake.own()?, STAGING_FOLDER).map_err(failed)?;
        let (folder, made) = own.make(STAGING_FOLDER).map_err(failed)?;
        if made {
            // Parts of files are nobody's business.
            folder.set_mode(0o700).map_err(failed)?;
            own.sync().map_err(failed)?;
        }
        Ok(Self(Arc::new(Shared {
            lake: lake.clone(),
            space,
            catalog: catalog.clone(),
            folder,
            boot: boot.to_string(),
            open: Mutex::new(HashMap::new()),
            unsettled: Mutex::default(),
            settling: Mutex::new(()),
            direct: AtomicBool::new(true),
        })))
    }

    /// Writes large blobs past the page cache, as is the default, or through it.
    pub fn write_direct(&self, direct: bool) {
        self.0.direct.store(direct, Ordering::Relaxed);
    }

    /// Opens a blob for filling, with what an earlier run left of it.
    ///
    /// `size` is in bytes. Reserves the whole size on the disk at once.
    pub fn start(&self, hash: BlobHash, size: u64) -> Result<Staged, StagingError> {
        let mut open = lock(&self.0.open);
        if let Some(inner) = open.get(&hash).and_then(Weak::upgrade) {
            // A finished one may have been published since: its file is not ours to write any more.
            let usable = {
                let state = lock(&inner.state);
                !state.finished && !state.spoiled
            };
            if usable {
                if inner.size != size {
                    return Err(StagingError::OtherSize { hash, size: inner.size, claimed: size });
                }
                return Ok(Staged(inner));
            }
        }
        if size > limits::FILE_BYTES_MAX {
            return Err(StagingError::OutOfRange { hash, start: 0, end: size });
        }
        let inner = Arc::new(self.0.resume(&self.0, hash, size)?);
        open.retain(|_, weak| weak.strong_count() > 0);
        open.insert(hash, Arc::downgrade(&inner));
        Ok(Staged(inner))
    }

    /// Removes what is staged and not wanted any more; returns how many blobs went.
    ///
    /// Blobs that are being filled stay.
    pub fn sweep(&self, wanted: &dyn Fn(&BlobHash) -> bool) -> Result<u64, StagingError> {
        let shared = &self.0;
        let open = lock(&shared.open);
        let (names, _) = shared.folder.names().map_err(|e| shared.failed("", e))?;
        let mut gone = Vec::new();
        for name in names {
            let hash = name.split('.').next().and_then(|stem| stem.parse::<BlobHash>().ok());
            let Some(hash) = hash else { continue };
            let busy = open.get(&hash).is_some_and(|w| w.strong_count() > 0);
            if !busy && !wanted(&hash) {
                gone.push((hash, name));
            }
        }
        // The catalog forgets first: it must never name what is not there.
        let mut blobs: Vec<BlobHash> = gone.iter().map(|(hash, _)| *hash).collect();
        blobs.dedup();
        if blobs.is_empty() {
            return Ok(0);
        }
        // While a record without groups is there, nobody takes them for what a killed run left.
        let going = StagingRecord { size: 0, bitmap: Bytes(vec![]), boot: None, unknown: Default::default() };
        shared.catalog.write(|b| {
            blobs.iter().try_for_each(|hash| {
                b.put_staging(&shared.space, hash, &going)?;
                b.remove_place(&shared.space, hash, &part_place(hash))
            })
        })?;
        for (_, name) in &gone {
            shared.folder.remove(name).map_err(|e| shared.failed(name, e))?;
        }
        shared.catalog.write(|b| blobs.iter().try_for_each(|hash| b.remove_staging(&shared.space, hash)))?;
        Ok(blobs.len() as u64)
    }
}

impl Shared {
    fn failed(&self, name: &str, source: io::Error) -> StagingError {
        StagingError::Io { path: self.lake.root().join(".sluice/staging").join(name), source }
    }

    fn full_or(&self, hash: &BlobHash, needed: u64, e: io::Error) -> StagingError {
        if is_full(&e) {
            StagingError::DiskFull { folder: self.lake.root().to_path_buf(), hash: *hash, needed }
        } else {
            self.failed(&part_name(hash), e)
        }
    }

    fn resume(&self, shared: &Arc<Shared>, hash: BlobHash, size: u64) -> Result<Inner, StagingError> {
        let reader = self.catalog.read()?;
        let blob = reader.blob(&self.space, &hash)?;
        let record = reader.staging(&self.space, &hash)?;
        drop(reader);
        let finished = blob
            .as_ref()
            .and_then(|b| b.places.iter().find(|p| p.place == part_place(&hash)))
            .is_some_and(|at| fit_of(&self.lake, at) == Fit::Same);
        let (part, kept) = self.open_part(&hash, size, record.is_some())?;
        let sidecar = Sidecar::open(&self.folder, &hash, size, !kept).map_err(|e| {
            if !kept {
                // It reserved the whole size and holds nothing yet; should it stay, the next sweep takes it.
                let _ = self.folder.remove(&part_name(&hash));
            }
            self.full_or(&hash, size, e)
        })?;
        let mut groups = Groups::empty(size);
        let mut uncounted = 0;
        if kept && finished {
            groups.wrote(0..size);
        } else if kept {
            let journaled = record.filter(|r| r.size == size);
            if let Some(known) = journaled.and_then(|r| Groups::from_bitmap(size, &r.bitmap.0)) {
                groups = known;
            }
            let recorded = groups.have_bytes();
            self.recheck(&hash, &part, &sidecar, &mut groups)?;
            uncounted = groups.have_bytes() - recorded;
        }
        sidecar.write_boot(&self.boot).map_err(|e| self.full_or(&hash, size, e))?;
        let part = Part::new(part, self.direct.load(Ordering::Relaxed));
        let state = State { groups, unsaved: 0, named: false, finished: kept && finished, spoiled: false, uncounted };
        let (state, saving) = (Mutex::new(state), Mutex::new(()));
        Ok(Inner { shared: shared.clone(), hash, size, part, sidecar, state, saving })
    }

    /// Opens the part file; says whether it is one that an earlier run left, whole in length.
    fn open_part(&self, hash: &BlobHash, size: u64, recorded: bool) -> Result<(File, bool), StagingError> {
        let name = part_name(hash);
        let failed = |e| self.failed(&name, e);
        match self.folder.file_rw(&name, false) {
            Ok(file) => {
                let meta = file.metadata().map_err(failed)?;
                // A part with a second name is published under it and must not be written.
                if meta.len() == size && meta.nlink() == 1 {
                    return Ok((file, true));
                }
                self.folder.remove(&name).map_err(failed)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(_) => self.folder.remove(&name).map_err(failed)?,
        }
        if recorded {
            // Else a crash right after would leave a record that vouches for empty space.
            self.catalog.write(|b| b.remove_staging(&self.space, hash))?;
        }
        let file = self.folder.file_rw(&name, true).map_err(failed)?;
        if let Err(e) = reserve(&file, size) {
            self.folder.remove(&name).map_err(failed)?;
            return Err(self.full_or(hash, size, e));
        }
        Ok((file, false))
    }

    /// Believes what the received tree proves of the groups that are not recorded.
    fn recheck(
        &self,
        hash: &BlobHash,
        part: &File,
        sidecar: &Sidecar,
        groups: &mut Groups,
    ) -> Result<(), StagingError> {
        let failed = |e| self.failed(&tree_name(hash), e);
        let left = sidecar.read_state().map_err(failed)?;
        groups.set_copied_bitmap(&left.copied);
        if left.boot == self.boot {
            for range in sidecar.proven(hash, part, &groups.missing(0..u64::MAX)).map_err(failed)? {
                groups.wrote(range);
            }
        }
        Ok(())
    }
}

/// Reserves `size` bytes so that a full disk is known before anything is fetched.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    // Asked first: some file systems hand out all they have before they say that it is not enough.
    let space = rustix::fs::fstatvfs(file)?;
    if size > space.f_bavail.saturating_mul(space.f_frsize) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    disk::reserve(STAGING_FOLDER, file, size)
}

impl Staged {
    /// The blob.
    pub fn hash(&self) -> BlobHash {
        self.0.hash
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Bytes that are here, in whole groups.
    pub fn have_bytes(&self) -> u64 {
        lock(&self.0.state).groups.have_bytes()
    }

    /// Bytes written since the last checkpoint.
    pub fn unsaved_bytes(&self) -> u64 {
        lock(&self.0.state).unsaved
    }

    /// Whether every group is here; [`Staged::finish`] may still find local copies wrong.
    pub fn is_complete(&self) -> bool {
        lock(&self.0.state).groups.is_complete()
    }

    /// What of `within` is missing: ascending byte ranges, aligned to 16 KiB, cut at the blob's end.
    pub fn missing(&self, within: Range<u64>) -> Vec<Range<u64>> {
        lock(&self.0.state).groups.missing(within)
    }

    /// Writes bytes that were verified against the blob's hash, at `offset`.
    pub fn write_leaf(&self, offset: u64, bytes: &[u8]) -> Result<(), StagingError> {
        let range = self.check_range(offset, bytes.len() as u64)?;
        self.write(offset, bytes)?;
        self.wrote(range, bytes.len() as u64);
        Ok(())
    }

    /// Keeps nodes of the received tree. None of them when there is no node with one of the indices.
    pub fn put_parents(&self, pairs: &[Pair]) -> Result<(), StagingError> {
        match self.0.sidecar.put(pairs).map_err(|e| self.full_or(e))? {
            Ok(()) => {
                lock(&self.0.state).uncounted += pairs.iter().map(|p| p.1.len() as u64).sum::<u64>();
                Ok(())
            }
            Err(index) => {
                let start = index.saturating_mul(64);
                Err(StagingError::OutOfRange { hash: self.0.hash, start, end: start.saturating_add(64) })
            }
        }
    }

    /// Copies a chunk out of a local file if it still hashes to `chunk`; `false` when it does not.
    ///
    /// `from` and `to` are offsets in bytes; `len` is at most the largest chunk. The blob's root
    /// decides at the end whether the chunk list told the truth.
    pub fn copy_from(
        &self,
        file: &File,
        from: u64,
        to: u64,
        len: u32,
        chunk: &ChunkHash,
    ) -> Result<bool, StagingError> {
        let range = self.check_range(to, u64::from(len))?;
        if len > limits::CHUNK_BYTES_MAX {
            return Err(StagingError::OutOfRange { hash: self.0.hash, start: range.start, end: range.end });
        }
        let mut bytes = vec![0; len as usize];
        match file.read_exact_at(&mut bytes, from) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(self.0.shared.failed(&part_name(&self.0.hash), e)),
        }
        if ChunkHash::of(&bytes) != *chunk {
            return Ok(false);
        }
        // Marked before it is written: a group that a lying chunk list spoiled must be dropped.
        lock(&self.0.state).groups.will_copy(&range);
        self.write(to, &bytes)?;
        self.wrote(range, 0);
        Ok(true)
    }

    /// Makes what was written durable, then records it.
    pub fn checkpoint(&self) -> Result<(), StagingError> {
        let inner = &self.0;
        let _one = lock(&inner.saving);
        self.check_sound()?;
        let (bitmap, copied, named, uncounted) = {
            let mut state = lock(&inner.state);
            if state.finished {
                return Ok(());
            }
            state.unsaved = 0;
            let uncounted = std::mem::take(&mut state.uncounted);
            (state.groups.bitmap().to_vec(), state.groups.copied_bitmap().to_vec(), state.named, uncounted)
        };
        let recorded = self.record_groups(bitmap, &copied, named, uncounted);
        let mut state = lock(&inner.state);
        state.named |= recorded.is_ok();
        state.uncounted += if recorded.is_ok() { 0 } else { uncounted };
        recorded
    }

    /// Makes the groups of `bitmap` durable, and records and counts them in one commit.
    fn record_groups(&self, bitmap: Vec<u8>, copied: &[u8], named: bool, uncounted: u64) -> Result<(), StagingError> {
        let inner = &self.0;
        inner.sidecar.write_copied(copied).map_err(|e| self.full_or(e))?;
        let synced = disk::sync_data(STAGING_FOLDER, &inner.part).and_then(|()| inner.sidecar.sync());
        synced.map_err(|e| self.spoil(e))?;
        if !named {
            inner.shared.folder.sync().map_err(|e| self.full_or(e))?;
        }
        let record = StagingRecord {
            size: inner.size,
            bitmap: Bytes(bitmap),
            boot: Some(inner.shared.boot.clone()),
            unknown: Default::default(),
        };
        inner.shared.catalog.write(|b| {
            b.add_counter(MOVED_TOTAL, uncounted)?;
            b.put_staging(&inner.shared.space, &inner.hash, &record)
        })?;
        Ok(())
    }

    /// After a failed sync what was written is not believed: reading it back would show the system's
    /// memory, not the disk, and the received tree would vouch for it. So the part goes, and whoever
    /// opens the blob next, in this run or a later one, begins it anew.
    fn spoil(&self, e: io::Error) -> StagingError {
        let inner = &self.0;
        lock(&inner.state).spoiled = true;
        if inner.shared.folder.remove(&part_name(&inner.hash)).is_err() {
            // The next best: another boot than any, so that only what was recorded before counts.
            let _ = inner.sidecar.write_boot("");
        }
        self.full_or(e)
    }

    fn check_sound(&self) -> Result<(), StagingError> {
        if lock(&self.0.state).spoiled {
            return Err(
                self.full_or(io::Error::other("what was written could not be made durable; it is fetched anew"))
            );
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<Range<u64>, StagingError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.0.size => Ok(offset..end),
            end => Err(StagingError::OutOfRange { hash: self.0.hash, start: offset, end: end.unwrap_or(u64::MAX) }),
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StagingError> {
        self.check_sound()?;
        if lock(&self.0.state).finished {
            return Ok(());
        }
        self.0.part.write(offset, bytes).map_err(|e| self.full_or(e))
    }

    fn wrote(&self, range: Range<u64>, received: u64) {
        let mut state = lock(&self.0.state);
        state.uncounted += received;
        state.unsaved += range.end - range.start;
        state.groups.wrote(range);
    }

    fn full_or(&self, e: io::Error) -> StagingError {
        self.0.shared.full_or(&self.0.hash, self.0.size, e)
    }
}
