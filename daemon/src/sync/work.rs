//! The work of a transfer in the hands of its sources.
//!
//! Each source has a few workers, tasks of their own, so that what arrives is decrypted and checked on all cores. Invariant:
//! a source that fails takes nobody with it; only a fault of our own, or having no source left, ends the transfer.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sluice_protocol::ids::BlobHash;
use sluice_protocol::plan::BlobPlan;
use sluice_store::staging::{Pair, Staged, StagingError};
use tokio::task::JoinSet;

use super::crew::{Crew, InHand, Next, Task};
use super::recruit::{Recruit, Recruits};
use super::shares::Share;
use super::source::Source;
use super::transfer::{Run, Transfer, cut};
use super::{SyncError, blocking};
use crate::lanes::{FetchError, LeafSink};

/// How long a worker whose turn it is not waits before it looks again.
const TURN: Duration = Duration::from_millis(500);

/// What a source takes at once. Cheap to clone.
#[derive(Clone)]
pub(super) enum Work {
    /// Small blobs that come in few requests.
    Batch(Arc<Batch>),
    /// A part of a large blob.
    Segment(Arc<Filling>, Range<u64>),
}

/// Small blobs, and those of them that have come.
pub(super) struct Batch {
    blobs: Vec<BlobPlan>,
    got: Mutex<Vec<(BlobHash, Bytes)>>,
    left: AtomicU64,
}

/// A large blob that several workers fill.
pub(super) struct Filling {
    staged: Staged,
    /// Segments that have not come.
    left: AtomicUsize,
    /// Whether it is filled. Held for reading by each write, so that none comes later.
    filled: RwLock<bool>,
}

impl Work {
    pub fn batch(blobs: Vec<BlobPlan>) -> Self {
        let left = AtomicU64::new(blobs.iter().map(|b| b.wanted.size).sum());
        Work::Batch(Arc::new(Batch { blobs, got: Mutex::default(), left }))
    }

    pub fn segments(staged: &Staged, ranges: Vec<Range<u64>>) -> Vec<Self> {
        let (staged, left) = (staged.clone(), AtomicUsize::new(ranges.len()));
        let filling = Arc::new(Filling { staged, left, filled: RwLock::new(false) });
        ranges.into_iter().map(|range| Work::Segment(filling.clone(), range)).collect()
    }

    /// The blobs that it is of.
    fn blobs(&self) -> Vec<BlobHash> {
        match self {
            Work::Batch(batch) => batch.blobs.iter().map(|b| b.wanted.hash).collect(),
            Work::Segment(filling, _) => vec![filling.staged.hash()],
        }
    }
}

impl Task for Work {
    fn left(&self) -> u64 {
        match self {
            Work::Batch(batch) => batch.left.load(Ordering::Relaxed),
            Work::Segment(filling, range) => {
                filling.staged.missing(range.clone()).iter().map(|r| r.end - r.start).sum()
            }
        }
    }
}

impl Batch {
    fn got(&self, hash: BlobHash, bytes: Bytes) {
        self.left.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        self.got.lock().expect("no panic while held").push((hash, bytes));
    }
}

/// Writes into a blob until it is filled. A write of a request that was given up may come late: it has the same bytes as
/// whoever took over, and would only touch a file whose fingerprint is recorded.
struct StagedSink {
    filling: Arc<Filling>,
    hands: Arc<Hands>,
}

impl StagedSink {
    fn write(&self, write: impl FnOnce(&Staged) -> Result<(), StagingError>) -> std::io::Result<()> {
        let filled = self.filling.filled.read().unwrap_or_else(PoisonError::into_inner);
        if *filled { Ok(()) } else { write(&self.filling.staged).map_err(as_io) }
    }
}

impl LeafSink for StagedSink {
    fn leaf(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.write(|staged| staged.write_leaf(offset, data))?;
        self.hands.transfer.progress(&self.hands.run, 0, data.len() as u64);
        Ok(())
    }
    fn parents(&self, pairs: &[Pair]) -> std::io::Result<()> {
        self.write(|staged| staged.put_parents(pairs))
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

/// Fresh work, made on the way.
type Fresh = BoxStream<'static, Result<Work, SyncError>>;

/// What the workers of a transfer share.
struct Hands {
    transfer: Transfer,
    run: Arc<Run>,
    crew: Crew<Work>,
    fresh: tokio::sync::Mutex<Fresh>,
    share: Share,
    /// Why a source is not asked any more, by its number.
    failed: Mutex<Vec<(usize, SyncError)>>,
}

/// How a worker came out of one task.
enum Outcome {
    Done,
    /// Put back: the source does not have it, or somebody else took it over.
    Back,
    /// The source failed.
    Failed(SyncError),
}

/// Does all work, with the first source and with others as they come. Also says who else took part, and who failed.
pub(super) async fn all(transfer: &Transfer, run: &Arc<Run>, fresh: Fresh, mut others: Recruits) -> Done {
    let hands = Arc::new(Hands {
        transfer: transfer.clone(),
        run: run.clone(),
        crew: Crew::new(),
        fresh: tokio::sync::Mutex::new(fresh),
        share: transfer.shares.enter(),
        failed: Mutex::default(),
    });
    let mut workers = JoinSet::new();
    hands.enlist(transfer.source.clone(), &mut workers);
    let (mut more, mut asked) = (true, false);
    let mut outcome = Ok(());
    while outcome.is_ok() && !hands.crew.is_over() {
        // Who did not help when it was asked is no reason to wait.
        if asked && workers.is_empty() {
            break;
        }
        tokio::select! {
            Some(ended) = workers.join_next() => {
                outcome = ended.unwrap_or_else(|e| Err(SyncError::Worker(e.to_string())));
            }
            other = others.next(), if more => match other {
                Some(Recruit::Source(source)) => {
                    run.sources.lock().expect("no panic while held").push(source.clone());
                    hands.enlist(source, &mut workers);
                }
                // The space is frozen by now.
                Some(Recruit::Fork(e)) => outcome = Err(e),
                Some(Recruit::AllAsked) => {
                    asked = true;
                    hands.crew.close();
                    hands.bury();
                }
                None => more = false,
            },
            else => break,
        }
    }
    workers.shutdown().await;
    let mut failed = std::mem::take(&mut *hands.failed.lock().expect("no panic while held"));
    let sources: Vec<_> = run.sources.lock().expect("no panic while held").clone();
    let mut why = |member: usize| {
        let at = failed.iter().position(|(m, _)| *m == member)?;
        Some(failed.swap_remove(at).1)
    };
    let helpers = sources.into_iter().enumerate().skip(1).map(|(i, source)| (source, why(i))).collect();
    let mut first = why(0);
    if outcome.is_ok() && !hands.crew.is_over() {
        // The first source failed, or another one would not have been the last.
        outcome = Err(first.take().unwrap_or(SyncError::Stopped));
    }
    Done { outcome, first, helpers }
}

/// What came of a transfer's work.
pub(super) struct Done {
    pub outcome: Result<(), SyncError>,
    /// Why the first source failed, where others did its work.
    pub first: Option<SyncError>,
    /// Who else took part, and why those failed that did.
    pub helpers: Vec<(Arc<Source>, Option<SyncError>)>,
}

impl Hands {
    /// Gives a source its workers.
    fn enlist(self: &Arc<Self>, source: Arc<Source>, workers: &mut JoinSet<Result<(), SyncError>>) {
        let Some(member) = self.crew.join() else { return };
        tracing::debug!(site = %source.peer().site().short(), "a source takes part");
        // Before the first request, which takes its share from it.
        self.spread();
        for slot in 0..self.transfer.streams {
            workers.spawn(self.clone().worker(member, slot, source.clone()));
        }
    }

    /// What may be in flight is for all sources together.
    fn spread(&self) {
        let sources = self.run.sources.lock().expect("no panic while held").clone();
        let left = self.run.bytes_left() / self.crew.size().max(1) as u64;
        for source in sources {
            source.peer().expect(left, self.transfer.streams.min(self.run.pieces));
        }
    }

    async fn worker(self: Arc<Self>, member: usize, slot: usize, source: Arc<Source>) -> Result<(), SyncError> {
        loop {
            if self.transfer.watch.cancelled() {
                return Err(SyncError::Stopped);
            }
            if !self.share.allows(slot, self.transfer.streams, self.crew.size()) {
                if self.crew.is_over_for(member) {
                    return Ok(());
                }
                self.share.changes(TURN).await;
                continue;
            }
            let hand = match self.crew.next(member).await {
                Next::Task(hand) => hand,
                Next::Wait(_) => continue,
                Next::Leave => return Ok(()),
                Next::Fresh => match self.fresh.lock().await.next().await.transpose()? {
                    Some(work) => self.crew.take(member, work),
                    None => {
                        self.crew.fed();
                        continue;
                    }
                },
            };
            match self.fetch(&source, &hand).await? {
                Outcome::Done => self.crew.done(&hand),
                Outcome::Back => self.bury(),
                Outcome::Failed(e) => {
                    self.retire(member, e);
                    return Ok(());
                }
            }
        }
    }

    /// A source is not asked any more; what it had goes to others.
    fn retire(&self, member: usize, e: SyncError) {
        {
            let mut failed = self.failed.lock().expect("no panic while held");
            if failed.iter().all(|(m, _)| *m != member) {
                failed.push((member, e));
            }
        }
        self.crew.retire(member);
        self.bury();
        self.spread();
    }

    /// Tells at the end what nobody has; everything else still comes.
    fn bury(&self) {
        self.crew.hopeless().iter().flat_map(Work::blobs).for_each(|hash| self.run.lost(hash));
    }

    async fn fetch(self: &Arc<Self>, source: &Source, hand: &InHand<Work>) -> Result<Outcome, SyncError> {
        match &hand.task {
            Work::Batch(batch) => self.batch(source, hand, batch).await,
            Work::Segment(filling, range) => self.segment(source, hand, filling, range).await,
        }
    }

    async fn segment(
        self: &Arc<Self>,
        source: &Source,
        hand: &InHand<Work>,
        filling: &Arc<Filling>,
        range: &Range<u64>,
    ) -> Result<Outcome, SyncError> {
        let staged = &filling.staged;
        let sink: Arc<dyn LeafSink> = Arc::new(StagedSink { filling: filling.clone(), hands: self.clone() });
        let missing = || staged.missing(range.clone());
        let fetched = tokio::select! {
            fetched = source.ranges(staged.hash(), staged.size(), &missing, sink) => fetched,
            () = hand.taken.cancelled() => return Ok(self.back(hand, hand.task.clone(), false)),
        };
        match fetched {
            Ok(()) => {}
            Err(SyncError::Fetch(FetchError::NotThere { .. })) => return Ok(self.back(hand, hand.task.clone(), true)),
            Err(e) => return self.failed(hand, hand.task.clone(), e),
        }
        if filling.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(Outcome::Done);
        }
        if let Err(StagingError::WrongCopies { .. }) = finish(filling).await? {
            // Local copies were not what the chunk list says: the ladder's last rung remains.
            let missing = staged.missing(0..staged.size());
            self.crew.add(Work::segments(staged, missing.into_iter().flat_map(cut).collect()));
            return Ok(Outcome::Done);
        }
        self.run.open.lock().expect("no panic while held").retain(|s| s.hash() != staged.hash());
        self.transfer.progress(&self.run, 1, 0);
        Ok(Outcome::Done)
    }

    async fn batch(&self, source: &Source, hand: &InHand<Work>, batch: &Arc<Batch>) -> Result<Outcome, SyncError> {
        let wanted = || batch.blobs.iter().map(|b| (b.wanted.hash, b.wanted.size));
        let asked: Vec<(BlobHash, u64)> = wanted().filter(|w| w.1 > 0).collect();
        let arrives = |hash, bytes: Bytes| {
            self.transfer.progress(&self.run, 0, bytes.len() as u64);
            batch.got(hash, bytes);
        };
        let fetched = match asked.is_empty() {
            true => Some(Ok(())),
            false => tokio::select! {
                fetched = source.many(&asked, &arrives) => Some(fetched),
                () = hand.taken.cancelled() => None,
            },
        };
        let mut pieces = std::mem::take(&mut *batch.got.lock().expect("no panic while held"));
        // An empty file needs no peer.
        pieces.extend(wanted().filter(|w| w.1 == 0 && w.0 == BlobHash::of(&[])).map(|w| (w.0, Bytes::new())));
        let got: HashSet<BlobHash> = pieces.iter().map(|p| p.0).collect();
        let (run, count) = (self.run.clone(), pieces.len() as u64);
        blocking(move || Ok(run.staging.write_small(&pieces)?)).await?;
        self.transfer.progress(&self.run, count, 0);
        let rest: Vec<BlobPlan> = batch.blobs.iter().filter(|b| !got.contains(&b.wanted.hash)).cloned().collect();
        match fetched {
            _ if rest.is_empty() => Ok(Outcome::Done),
            Some(Ok(())) => Ok(self.back(hand, Work::batch(rest), true)),
            Some(Err(e)) => self.failed(hand, Work::batch(rest), e),
            None => Ok(self.back(hand, Work::batch(rest), false)),
        }
    }

    fn back(&self, hand: &InHand<Work>, work: Work, lacks: bool) -> Outcome {
        tracing::debug!(left = work.left(), lacks, "a source gives back what it does not bring");
        self.crew.back(hand, work, lacks);
        Outcome::Back
    }

    /// What a source did not bring goes back. A fault of our own ends everything.
    fn failed(&self, hand: &InHand<Work>, work: Work, e: SyncError) -> Result<Outcome, SyncError> {
        match e {
            SyncError::Corrupt { .. } => {}
            SyncError::Fetch(ref f) if f.is_fault_of_peer() => {}
            ours => return Err(ours),
        }
        self.crew.back(hand, work, false);
        Ok(Outcome::Failed(e))
    }
}

/// Ends a blob; the inner result is what staging says of it.
async fn finish(filling: &Arc<Filling>) -> Result<Result<(), StagingError>, SyncError> {
    let filling = filling.clone();
    blocking(move || {
        *filling.filled.write().unwrap_or_else(PoisonError::into_inner) = true;
        match filling.staged.finish() {
            wrong @ (Ok(()) | Err(StagingError::WrongCopies { .. })) => Ok(wrong),
            Err(e) => Err(e.into()),
        }
    })
    .await
}
