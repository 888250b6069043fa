//! Carries out a plan: copies what is here, and cuts the rest into work for the sources.
//!
//! `work` hands it out and fetches it. Invariant: what is fetched was verified before it is written, is durable before
//! the catalog says so, and is never fetched again after that. Memory does not grow with the size of a file: a
//! bounded number of blobs is open at once, and a segment at a time is in flight on each stream.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use sluice_protocol::annex::ChunkListRef;
use sluice_protocol::chunks::ChunkList;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::limits::SEGMENT_BYTES;
use sluice_protocol::plan::{BlobPlan, Rung};
use sluice_store::blobs::open_blob;
use sluice_store::catalog::{Catalog, CatalogError, Lookup};
use sluice_store::lake::{Lake, Place};
use sluice_store::staging::{
    CHECKPOINT_BYTES, CHECKPOINT_MS, MOVED_TOTAL, SMALL_BYTES_MAX, Staged, Staging, StagingError,
};
use sluice_store::watch::Watch;
use tokio_util::task::AbortOnDropHandle;

use super::recruit::Recruits;
use super::source::Source;
use super::work::{self, Done, Work};
use super::{SyncError, blocking};
use crate::sync::shares::Shares;

/// Most bytes and most blobs of one request for small blobs.
const BATCH_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// See [`BATCH_BYTES_MAX`].
const BATCH_BLOBS_MAX: usize = 512;
/// How often it is told how far a large file is.
const TOLD_EVERY_MS: u64 = 200;
/// Chunk lists that are recorded in one transaction.
const LISTS_AT_ONCE: usize = 256;
/// Counter of the catalog: bytes of new versions that were here already.
pub const REUSED_TOTAL: &str = "reused_bytes_total";

/// What a transfer brought.
pub struct Brought {
    pub outcome: Result<(), SyncError>,
    /// Why the first source failed, where others did its work.
    pub first: Option<SyncError>,
    /// Further sources that took part, and why those failed that did.
    pub helpers: Vec<(Arc<Source>, Option<SyncError>)>,
}

/// What a transfer works with. Cheap to clone.
#[derive(Clone)]
pub struct Transfer {
    pub catalog: Catalog,
    pub lake: Lake,
    pub space: SpaceId,
    pub source: Arc<Source>,
    pub watch: Arc<dyn Watch>,
    /// Requests in flight at once, to each source.
    pub streams: usize,
    /// Large blobs are written past the page cache.
    pub direct_io: bool,
    /// What other transfers of this site take.
    pub shares: Shares,
    /// Damaged files whose good chunks are copied, by the blob that they were.
    pub salvage: Arc<HashMap<BlobHash, Place>>,
}

/// Shared by the workers of one transfer.
pub(super) struct Run {
    pub staging: Staging,
    pub open: Mutex<Vec<Staged>>,
    files_done: AtomicU64,
    bytes_done: AtomicU64,
    /// When progress was told last, in milliseconds since the transfer began.
    told_ms: AtomicU64,
    began: Instant,
    files_total: u64,
    /// Bytes that are to come; what lies in staging already is taken off as it is found.
    bytes_total: AtomicU64,
    /// Segments and batches there are at most to do at once.
    pub pieces: usize,
    /// All sources that took part, the first one first.
    pub sources: Mutex<Vec<Arc<Source>>>,
    /// What the catalog has counted of each: all its bytes, and those that staging does not count.
    counted: Mutex<Vec<(u64, u64)>>,
    /// Blobs that no source has any more.
    gone: Mutex<Vec<BlobHash>>,
}

impl Transfer {
    /// Brings every planned blob into staging, whole and proven. `others` may help when there is much to do.
    pub async fn run(&self, blobs: Vec<BlobPlan>, others: Recruits) -> Brought {
        let run = match self.begin(&blobs) {
            Ok(run) => Arc::new(run),
            Err(e) => return Brought { outcome: Err(e), first: None, helpers: vec![] },
        };
        let keeper = AbortOnDropHandle::new(tokio::spawn(keep_durable(self.clone(), run.clone())));
        let works = stream::iter(batches(blobs)).then({
            let (me, run) = (self.clone(), run.clone());
            move |group| me.clone().prepare(run.clone(), group)
        });
        let works = works.map_ok(|works| stream::iter(works.into_iter().map(Ok))).try_flatten().boxed();
        let Done { outcome, first, helpers } = work::all(self, &run, works, others).await;
        drop(keeper);
        // Also after a failure: what has arrived stays.
        let saved = self.clone().save(run.clone()).await;
        Brought { outcome: outcome.and(saved).and_then(|()| run.outcome()), first, helpers }
    }

    fn begin(&self, blobs: &[BlobPlan]) -> Result<Run, SyncError> {
        self.check_room(blobs)?;
        let staging = Staging::open(&self.lake, self.space, &self.catalog)?;
        staging.write_direct(self.direct_io);
        let segments: u64 = blobs.iter().map(|b| b.wanted.size.div_ceil(SEGMENT_BYTES)).sum();
        Ok(Run {
            staging,
            open: Mutex::default(),
            files_done: AtomicU64::new(0),
            bytes_done: AtomicU64::new(0),
            told_ms: AtomicU64::new(0),
            began: Instant::now(),
            files_total: blobs.len() as u64,
            bytes_total: AtomicU64::new(blobs.iter().map(BlobPlan::fetch_bytes).sum()),
            pieces: usize::try_from(segments).unwrap_or(usize::MAX).max(1),
            sources: Mutex::new(vec![self.source.clone()]),
            counted: Mutex::default(),
            gone: Mutex::default(),
        })
    }

    /// Records which chunk list belongs to which blob that is here now, for the plans to come.
    pub async fn remember_lists(&self, lists: Vec<ChunkListRef>) -> Result<(), SyncError> {
        let me = self.clone();
        blocking(move || {
            for part in lists.chunks(LISTS_AT_ONCE) {
                me.catalog.write(|b| -> Result<(), CatalogError> {
                    for item in part {
                        let list = b.meta(&me.space, &item.list)?.and_then(|raw| ChunkList::from_bytes(&raw).ok());
                        if let Some(list) = list {
                            b.set_chunk_list(&me.space, &item.blob, &item.list)?;
                            b.index_chunks(&me.space, &item.blob, &list)?;
                        }
                    }
                    Ok(())
                })?;
            }
            Ok(())
        })
        .await
    }

    /// A disk that is too small is known before an hour of fetching, not after.
    fn check_room(&self, blobs: &[BlobPlan]) -> Result<(), SyncError> {
        let reserved: HashSet<BlobHash> =
            self.catalog.read()?.stagings(&self.space)?.into_iter().map(|s| s.0).collect();
        let fresh = blobs.iter().filter(|b| !reserved.contains(&b.wanted.hash));
        let needed: u64 = fresh.map(|b| b.wanted.size).sum();
        let Ok(disk) = rustix::fs::statvfs(self.lake.root()) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if needed > free { Err(SyncError::NoRoom { free, needed }) } else { Ok(()) }
    }

    /// Turns a group of planned blobs into work; local copies are made on the way.
    async fn prepare(self, run: Arc<Run>, group: Vec<BlobPlan>) -> Result<Vec<Work>, SyncError> {
        if self.watch.cancelled() {
            return Err(SyncError::Stopped);
        }
        match <[BlobPlan; 1]>::try_from(group) {
            Ok([blob]) if blob.wanted.size > SMALL_BYTES_MAX || blob.rung == Rung::Chunks => {
                blocking(move || self.open_large(&run, blob)).await
            }
            Ok([blob]) => Ok(vec![Work::batch(vec![blob])]),
            Err(group) => Ok(vec![Work::batch(group)]),
        }
    }

    fn open_large(&self, run: &Run, blob: BlobPlan) -> Result<Vec<Work>, SyncError> {
        let staged = run.staging.start(blob.wanted.hash, blob.wanted.size)?;
        self.copy_chunks(&staged, &blob)?;
        // What the plan meant to copy and could not is missing now, so everything missing is fetched.
        let missing = staged.missing(0..blob.wanted.size);
        let segments: Vec<Range<u64>> = missing.into_iter().flat_map(cut).collect();
        // Copies that were not what the chunk list says are dropped, and their bytes fetched.
        let segments = match segments.is_empty().then(|| staged.finish()) {
            None => segments,
            Some(Ok(())) => {
                run.corrected(blob.fetch_bytes(), 0);
                run.files_done.fetch_add(1, Ordering::Relaxed);
                return Ok(vec![]);
            }
            Some(Err(StagingError::WrongCopies { .. })) => {
                staged.missing(0..blob.wanted.size).into_iter().flat_map(cut).collect()
            }
            Some(Err(e)) => return Err(e.into()),
        };
        run.corrected(blob.fetch_bytes(), segments.iter().map(|s| s.end - s.start).sum());
        run.open.lock().expect("no panic while held").push(staged.clone());
        Ok(Work::segments(&staged, segments))
    }

    fn copy_chunks(&self, staged: &Staged, blob: &BlobPlan) -> Result<(), SyncError> {
        let reader = self.catalog.read()?;
        let mut open: Option<(BlobHash, std::fs::File)> = None;
        for copy in &blob.copies {
            if open.as_ref().is_none_or(|(hash, _)| *hash != copy.from.blob) {
                let here = open_blob(&self.lake, &reader, &self.space, &copy.from.blob).ok().map(|b| b.file);
                let damaged = || self.lake.open_place(self.salvage.get(&copy.from.blob)?).ok();
                open = here.or_else(damaged).map(|file| (copy.from.blob, file));
            }
            if let Some((_, file)) = &open {
                // A chunk that no longer hashes to its name stays missing, and is fetched.
                staged.copy_from(file, copy.from.offset, copy.to, copy.len, &copy.hash)?;
            }
        }
        Ok(())
    }

    /// So many more files are here, and bytes. Told at once where files are, else a few times a second.
    pub(super) fn progress(&self, run: &Run, files: u64, bytes: u64) {
        let done = run.files_done.fetch_add(files, Ordering::Relaxed) + files;
        // What was lost on the way and came again counts once.
        let bytes = (run.bytes_done.fetch_add(bytes, Ordering::Relaxed) + bytes).min(run.total());
        let now = u64::try_from(run.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let last = run.told_ms.load(Ordering::Relaxed);
        if files == 0 && now < last.saturating_add(TOLD_EVERY_MS) {
            return;
        }
        run.told_ms.store(now, Ordering::Relaxed);
        self.watch.amount("transfer", done, run.files_total, bytes, run.total());
    }

    /// Makes what has arrived durable and counts it.
    async fn save(self, run: Arc<Run>) -> Result<(), SyncError> {
        blocking(move || {
            let open = run.open.lock().expect("no panic while held").clone();
            // What one cannot keep does not keep the others from being recorded.
            let kept = open.iter().map(Staged::checkpoint).fold(Ok(()), Result::and);
            kept.and(run.staging.settle())?;
            // One save at a time; the sources themselves are not held while the disk works.
            let mut counted = run.counted.lock().expect("no panic while held");
            let sources: Vec<_> = run.sources.lock().expect("no panic while held").clone();
            let now: Vec<_> = sources.iter().map(|s| (s.moved_bytes(), s.described_bytes())).collect();
            counted.resize(sources.len(), (0, 0));
            self.catalog.write(|b| -> Result<(), CatalogError> {
                for ((source, before), (all, described)) in sources.iter().zip(counted.iter()).zip(&now) {
                    b.add_counter(MOVED_TOTAL, described - before.1)?;
                    b.add_counter(&format!("moved from {}", source.peer().site()), all - before.0)?;
                }
                Ok(())
            })?;
            *counted = now;
            Ok(())
        })
        .await
    }
}

impl Run {
    pub fn lost(&self, hash: BlobHash) {
        let mut gone = self.gone.lock().expect("no panic while held");
        if !gone.contains(&hash) {
            gone.push(hash);
        }
    }

    /// Bytes that are still to come.
    pub fn bytes_left(&self) -> u64 {
        self.total().saturating_sub(self.bytes_done.load(Ordering::Relaxed))
    }

    fn total(&self) -> u64 {
        self.bytes_total.load(Ordering::Relaxed)
    }

    /// The plan meant to fetch `planned` bytes of a blob, and this many are.
    fn corrected(&self, planned: u64, fetched: u64) {
        self.bytes_total.fetch_add(fetched.wrapping_sub(planned), Ordering::Relaxed);
    }

    /// Whether everything came.
    fn outcome(&self) -> Result<(), SyncError> {
        let gone = self.gone.lock().expect("no panic while held");
        match gone.first() {
            None => Ok(()),
            Some(first) => Err(SyncError::Gone {
                count: gone.len(),
                first: *first,
                what: format!("blob {first}"),
                version: String::new(),
            }),
        }
    }
}

/// Saves every few seconds, or sooner when much was written.
async fn keep_durable(transfer: Transfer, run: Arc<Run>) {
    let mut last = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let unsaved: u64 = run.open.lock().expect("no panic while held").iter().map(Staged::unsaved_bytes).sum();
        let due = last.elapsed() >= Duration::from_millis(CHECKPOINT_MS) || unsaved >= CHECKPOINT_BYTES;
        if due {
            if let Err(e) = transfer.clone().save(run.clone()).await {
                tracing::warn!(error = %e, "what arrived could not be made durable yet");
            }
            last = tokio::time::Instant::now();
        }
    }
}

/// Groups small blobs of a section; a large one stands alone. Sections stay in their order.
fn batches(blobs: Vec<BlobPlan>) -> impl Iterator<Item = Vec<BlobPlan>> + Send {
    let mut blobs = blobs.into_iter().peekable();
    let (mut batch, mut bytes) = (Vec::<BlobPlan>::new(), 0);
    std::iter::from_fn(move || {
        while let Some(next) = blobs.peek() {
            let (small, size) = (next.wanted.size <= SMALL_BYTES_MAX && next.rung != Rung::Chunks, next.wanted.size);
            let full = small && (batch.len() >= BATCH_BLOBS_MAX || bytes + size > BATCH_BYTES_MAX);
            if batch.first().is_some_and(|b| full || b.wanted.section != next.wanted.section) {
                break;
            }
            let blob = blobs.next()?;
            if !small {
                return Some(vec![blob]);
            }
            bytes += size;
            batch.push(blob);
        }
        bytes = 0;
        Some(std::mem::take(&mut batch)).filter(|batch| !batch.is_empty())
    })
}

/// Cuts a missing range into segments at multiples of the segment length.
pub(super) fn cut(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let first = range.start / SEGMENT_BYTES;
    let last = range.end.div_ceil(SEGMENT_BYTES);
    (first..last).map(move |i| {
        let start = (i * SEGMENT_BYTES).max(range.start);
        start..((i + 1) * SEGMENT_BYTES).min(range.end)
    })
}

#[cfg(test)]
mod tests {
    use sluice_protocol::plan::Wanted;

    use super::*;

    fn blob(section: &str, size: u64, n: u8) -> BlobPlan {
        let wanted = Wanted { hash: BlobHash([n; 32]), size, section: section.into() };
        BlobPlan { wanted, rung: Rung::Fetch, copies: [].into(), fetch: std::iter::once(0..size).collect() }
    }

    #[test]
    fn small_files_of_a_section_do_not_wait_for_large_ones_of_the_next() {
        let small = |section| blob(section, 10, 1);
        let blobs = [small("metadata"), small("metadata"), blob("orders", 1 << 30, 2), small("orders"), small("raw")];
        let groups: Vec<_> = batches(blobs.into()).collect();
        let shown: Vec<_> = groups.iter().map(|g| (&*g[0].wanted.section, g.len(), g[0].wanted.size)).collect();
        assert_eq!(shown, [("metadata", 2, 10), ("orders", 1, 1 << 30), ("orders", 1, 10), ("raw", 1, 10)]);
        let many: Vec<BlobPlan> = (0..1500).map(|_| small("raw")).collect();
        assert_eq!(batches(many).map(|g| g.len()).collect::<Vec<_>>(), [512, 512, 476]);
    }
}
