//! Carries out a plan: copies what is here, fetches the rest in segments over several streams.
//!
//! Invariant: what is fetched was verified before it is written, is durable before the catalog says
//! so, and is never fetched again after that. Memory does not grow with the size of a file: a
//! bounded number of blobs is open at once, and a segment at a time is in flight on each stream.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use sluice_protocol::annex::ChunkListRef;
use sluice_protocol::chunks::ChunkList;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::limits::SEGMENT_BYTES;
use sluice_protocol::plan::{BlobPlan, Plan, Rung};
use sluice_store::blobs::open_blob;
use sluice_store::catalog::{Catalog, CatalogError, Lookup};
use sluice_store::lake::{Lake, Place};
use sluice_store::staging::{CHECKPOINT_BYTES, CHECKPOINT_MS, MOVED_TOTAL, Staged, Staging, StagingError};
use sluice_store::watch::Watch;
use tokio_util::task::AbortOnDropHandle;

use super::source::Source;
use super::{SyncError, blocking};
use crate::lanes::{FetchError, LeafSink};

/// Blobs up to this size are fetched whole, many in one request, and stored many in one transaction.
const SMALL_BYTES_MAX: u64 = 256 * 1024;
/// Most bytes and most blobs of one such request.
const BATCH_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// See [`BATCH_BYTES_MAX`].
const BATCH_BLOBS_MAX: usize = 512;
/// Chunk lists that are recorded in one transaction.
const LISTS_AT_ONCE: usize = 256;
/// Counter of the catalog: bytes of new versions that were here already.
pub const REUSED_TOTAL: &str = "reused_bytes_total";

/// What a transfer works with. Cheap to clone.
#[derive(Clone)]
pub struct Transfer {
    pub catalog: Catalog,
    pub lake: Lake,
    pub space: SpaceId,
    pub source: Arc<Source>,
    pub watch: Arc<dyn Watch>,
    /// Requests in flight at once.
    pub streams: usize,
    /// Damaged files whose good chunks are copied, by the blob that they were.
    pub salvage: Arc<HashMap<BlobHash, Place>>,
}

/// Shared by the workers of one transfer.
struct Run {
    staging: Staging,
    open: Mutex<Vec<Staged>>,
    files_done: AtomicU64,
    bytes_done: AtomicU64,
    files_total: u64,
    bytes_total: u64,
    /// What of the source's bytes the catalog has counted: all of them, and those that staging does not count.
    counted: Mutex<(u64, u64)>,
    /// Blobs that the source no longer has.
    gone: Mutex<Vec<BlobHash>>,
}

enum Work {
    Batch(Vec<BlobPlan>),
    Segment(Arc<Filling>, Range<u64>),
}

/// A large blob that several workers fill.
struct Filling {
    staged: Staged,
    left: AtomicUsize,
}

struct StagedSink(Staged);

impl LeafSink for StagedSink {
    fn leaf(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write_leaf(offset, data).map_err(as_io)
    }
    fn parent(&self, index: u64, pair: &[u8; 64]) -> std::io::Result<()> {
        self.0.put_parent(index, pair).map_err(as_io)
    }
}

/// Keeps what the disk said where a sink can only answer with an I/O error.
fn as_io(e: StagingError) -> std::io::Error {
    let kind = match &e {
        StagingError::DiskFull { .. } => std::io::ErrorKind::StorageFull,
        StagingError::Io { source, .. } => source.kind(),
        _ => std::io::ErrorKind::Other,
    };
    std::io::Error::new(kind, e)
}

impl Transfer {
    /// Brings every blob of the plan into staging, whole and proven.
    pub async fn run(&self, plan: &Plan) -> Result<(), SyncError> {
        self.check_room(plan)?;
        let segments: u64 = plan.blobs.iter().map(|b| b.wanted.size.div_ceil(SEGMENT_BYTES)).sum();
        self.source.peer().expect(plan.fetch_bytes(), self.streams.min(segments as usize));
        let run = Arc::new(Run {
            staging: Staging::open(&self.lake, self.space, &self.catalog)?,
            open: Mutex::default(),
            files_done: AtomicU64::new(0),
            bytes_done: AtomicU64::new(0),
            files_total: plan.blobs.len() as u64,
            bytes_total: plan.fetch_bytes(),
            counted: Mutex::default(),
            gone: Mutex::default(),
        });
        let keeper = AbortOnDropHandle::new(tokio::spawn(keep_durable(self.clone(), run.clone())));
        let works = stream::iter(batches(&plan.blobs)).then(|group| self.clone().prepare(run.clone(), group));
        let works = works.map_ok(|works| stream::iter(works.into_iter().map(Ok))).try_flatten();
        let done = works.try_for_each_concurrent(self.streams, |work| self.work(&run, work)).await;
        drop(keeper);
        // Also after a failure: what has arrived stays.
        let saved = self.clone().save(run.clone()).await;
        done.and(saved)?;
        let gone = run.gone.lock().expect("no panic while held");
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
    fn check_room(&self, plan: &Plan) -> Result<(), SyncError> {
        let reserved: HashSet<BlobHash> =
            self.catalog.read()?.stagings(&self.space)?.into_iter().map(|s| s.0).collect();
        let fresh = plan.blobs.iter().filter(|b| !reserved.contains(&b.wanted.hash));
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
            Ok([blob]) => Ok(vec![Work::Batch(vec![blob])]),
            Err(group) => Ok(vec![Work::Batch(group)]),
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
                run.files_done.fetch_add(1, Ordering::Relaxed);
                return Ok(vec![]);
            }
            Some(Err(StagingError::WrongCopies { .. })) => {
                staged.missing(0..blob.wanted.size).into_iter().flat_map(cut).collect()
            }
            Some(Err(e)) => return Err(e.into()),
        };
        run.open.lock().expect("no panic while held").push(staged.clone());
        let filling = Arc::new(Filling { staged, left: AtomicUsize::new(segments.len()) });
        Ok(segments.into_iter().map(|range| Work::Segment(filling.clone(), range)).collect())
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

    async fn work(&self, run: &Arc<Run>, work: Work) -> Result<(), SyncError> {
        if self.watch.cancelled() {
            return Err(SyncError::Stopped);
        }
        match work {
            Work::Batch(blobs) => self.batch(run, blobs).await,
            Work::Segment(filling, range) => self.segment(run, filling, range).await,
        }
    }

    async fn segment(&self, run: &Arc<Run>, filling: Arc<Filling>, range: Range<u64>) -> Result<(), SyncError> {
        let staged = &filling.staged;
        let sink: Arc<dyn LeafSink> = Arc::new(StagedSink(staged.clone()));
        let missing = || staged.missing(range.clone());
        match self.source.ranges(staged.hash(), staged.size(), &missing, sink.clone()).await {
            Err(SyncError::Fetch(FetchError::NotThere { hash, .. })) => {
                run.lost(hash);
                return Ok(());
            }
            fetched => fetched?,
        }
        self.progress(run, 0, range.end - range.start);
        if filling.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        if let Err(StagingError::WrongCopies { .. }) = finish(staged).await? {
            // Local copies were not what the chunk list says: the ladder's last rung remains.
            let missing = || staged.missing(0..staged.size());
            self.source.ranges(staged.hash(), staged.size(), &missing, sink).await?;
            finish(staged).await??;
        }
        run.open.lock().expect("no panic while held").retain(|s| s.hash() != staged.hash());
        self.progress(run, 1, 0);
        Ok(())
    }

    async fn batch(&self, run: &Arc<Run>, blobs: Vec<BlobPlan>) -> Result<(), SyncError> {
        let wanted: Vec<(BlobHash, u64)> = blobs.iter().map(|b| (b.wanted.hash, b.wanted.size)).collect();
        let asked: Vec<(BlobHash, u64)> = wanted.iter().filter(|w| w.1 > 0).copied().collect();
        let mut pieces = if asked.is_empty() { vec![] } else { self.source.many(&asked).await? };
        // An empty file needs no peer.
        pieces.extend(wanted.iter().filter(|w| w.1 == 0 && w.0 == BlobHash::of(&[])).map(|w| (w.0, Bytes::new())));
        let got: HashSet<BlobHash> = pieces.iter().map(|p| p.0).collect();
        // What the source no longer has is told at the end; everything else still comes.
        wanted.iter().filter(|w| !got.contains(&w.0)).for_each(|w| run.lost(w.0));
        let bytes = wanted.iter().map(|w| w.1).sum();
        let (run2, count) = (run.clone(), pieces.len() as u64);
        blocking(move || Ok(run2.staging.put_small(&pieces)?)).await?;
        self.progress(run, count, bytes);
        Ok(())
    }

    fn progress(&self, run: &Run, files: u64, bytes: u64) {
        let files = run.files_done.fetch_add(files, Ordering::Relaxed) + files;
        let bytes = run.bytes_done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.watch.amount("transfer", files, run.files_total, bytes, run.bytes_total);
    }

    /// Makes what has arrived durable and counts it.
    async fn save(self, run: Arc<Run>) -> Result<(), SyncError> {
        blocking(move || {
            let open = run.open.lock().expect("no panic while held").clone();
            for staged in &open {
                staged.checkpoint()?;
            }
            let mut counted = run.counted.lock().expect("no panic while held");
            let (all, described) = (self.source.moved_bytes(), self.source.described_bytes());
            let peer = self.source.peer().site();
            self.catalog.write(|b| -> Result<(), CatalogError> {
                b.add_counter(MOVED_TOTAL, described - counted.1)?;
                b.add_counter(&format!("moved from {peer}"), all - counted.0)?;
                Ok(())
            })?;
            *counted = (all, described);
            Ok(())
        })
        .await
    }
}

/// Ends a blob; the inner result is what staging says of it.
async fn finish(staged: &Staged) -> Result<Result<(), StagingError>, SyncError> {
    let staged = staged.clone();
    blocking(move || match staged.finish() {
        wrong @ (Ok(()) | Err(StagingError::WrongCopies { .. })) => Ok(wrong),
        Err(e) => Err(e.into()),
    })
    .await
}

impl Run {
    fn lost(&self, hash: BlobHash) {
        let mut gone = self.gone.lock().expect("no panic while held");
        if !gone.contains(&hash) {
            gone.push(hash);
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

/// Groups small blobs; a large one stands alone.
fn batches(blobs: &[BlobPlan]) -> Vec<Vec<BlobPlan>> {
    let mut groups = Vec::new();
    let mut batch: Vec<BlobPlan> = Vec::new();
    let mut bytes = 0;
    for blob in blobs {
        if blob.wanted.size > SMALL_BYTES_MAX || blob.rung == Rung::Chunks {
            groups.push(vec![blob.clone()]);
            continue;
        }
        if batch.len() >= BATCH_BLOBS_MAX || bytes + blob.wanted.size > BATCH_BYTES_MAX {
            groups.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += blob.wanted.size;
        batch.push(blob.clone());
    }
    if !batch.is_empty() {
        groups.push(batch);
    }
    groups
}

/// Cuts a missing range into segments at multiples of the segment length.
fn cut(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let first = range.start / SEGMENT_BYTES;
    let last = range.end.div_ceil(SEGMENT_BYTES);
    (first..last).map(move |i| {
        let start = (i * SEGMENT_BYTES).max(range.start);
        start..((i + 1) * SEGMENT_BYTES).min(range.end)
    })
}
