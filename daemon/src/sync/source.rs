//! One site that a space is fetched from, with its faults counted.
//!
//! Invariant: a source that sent corrupt bytes [`CORRUPT_PIECES_MAX`] times is not asked again in
//! this sync; every byte it sent is counted, wanted or not.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sluice_protocol::ids::BlobHash;
use sluice_protocol::limits::CORRUPT_PIECES_MAX;
use sluice_store::staging::Pair;

use super::SyncError;
use crate::lanes::{FetchError, LeafSink, Peer};

/// Tries of one request before its error stands.
const TRIES_MAX: u32 = 5;
/// The same where others have what is asked for.
const HURRIED_TRIES_MAX: u32 = 3;
/// Pause before the second try; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// A site to fetch from.
pub struct Source {
    peer: Peer,
    corrupt: AtomicU32,
    moved: Arc<Moved>,
}

/// Bytes received, by who puts them into the counter of the catalog.
#[derive(Default)]
struct Moved {
    /// Blobs and parts of them: staging counts them with the records that keep them.
    staged: AtomicU64,
    /// What describes versions: the transfer counts it.
    described: AtomicU64,
}

/// Counts what arrives as it arrives, so that a try that breaks off is counted too.
struct Counted {
    sink: Arc<dyn LeafSink>,
    moved: Arc<Moved>,
}

impl LeafSink for Counted {
    fn leaf(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.moved.staged.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.sink.leaf(offset, data)
    }
    fn parents(&self, pairs: &[Pair]) -> std::io::Result<()> {
        let bytes: usize = pairs.iter().map(|(_, pair)| pair.len()).sum();
        self.moved.staged.fetch_add(bytes as u64, Ordering::Relaxed);
        self.sink.parents(pairs)
    }
}

impl Source {
    /// A source over a peer.
    pub fn new(peer: Peer) -> Self {
        Self { peer, corrupt: AtomicU32::new(0), moved: Arc::default() }
    }

    /// The peer itself.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Bytes received so far, proofs included.
    pub fn moved_bytes(&self) -> u64 {
        self.moved.staged.load(Ordering::Relaxed) + self.described_bytes()
    }

    /// Those of them that were no blobs of a lake, and that staging does not count.
    pub fn described_bytes(&self) -> u64 {
        self.moved.described.load(Ordering::Relaxed)
    }

    /// A whole blob of unknown size, at most `limit` bytes.
    pub async fn small(&self, hash: BlobHash, limit: u64) -> Result<Vec<u8>, SyncError> {
        let mut tries = 0;
        loop {
            match self.peer.fetch_small(hash, limit).await {
                Ok(bytes) => {
                    self.moved.described.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    return Ok(bytes.to_vec());
                }
                Err(e) => self.after(e, &mut tries).await?,
            }
        }
    }

    /// Whole blobs of known sizes, as they arrive; those that the peer does not give are left out.
    pub async fn many(
        &self,
        wanted: &[(BlobHash, u64)],
        got: &(dyn Fn(BlobHash, Bytes) + Send + Sync),
    ) -> Result<(), SyncError> {
        let mut tries = 0;
        let mut asked: HashSet<BlobHash> = HashSet::new();
        loop {
            let rest: Vec<_> = wanted.iter().filter(|w| !asked.contains(&w.0)).copied().collect();
            let mut each = |hash: BlobHash, bytes: Option<Bytes>| {
                asked.insert(hash);
                let Some(bytes) = bytes else { return };
                self.moved.staged.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                got(hash, bytes);
            };
            match self.peer.fetch_many(&rest, &mut each).await {
                Ok(_) => return Ok(()),
                Err(e) => self.after(e, &mut tries).await?,
            }
        }
    }

    /// Ranges of a blob into `sink`; `missing` says what is still to come when a try broke off.
    pub async fn ranges(
        &self,
        hash: BlobHash,
        size: u64,
        missing: &(dyn Fn() -> Vec<Range<u64>> + Send + Sync),
        sink: Arc<dyn LeafSink>,
    ) -> Result<(), SyncError> {
        let mut tries = 0;
        loop {
            let ranges = missing();
            if ranges.is_empty() {
                return Ok(());
            }
            let counted = Arc::new(Counted { sink: sink.clone(), moved: self.moved.clone() });
            if let Err(e) = self.peer.fetch(hash, size, &ranges, counted).await {
                self.after(e, &mut tries).await?;
            }
        }
    }

    /// Waits before another try, or hands the error on.
    async fn after(&self, e: FetchError, tries: &mut u32) -> Result<(), SyncError> {
        if e.is_corrupt() {
            let count = self.corrupt.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::warn!(error = %e, count, "corrupt bytes from a peer");
            if count >= CORRUPT_PIECES_MAX {
                // Requests that were under way at the same time may have brought more.
                let count = CORRUPT_PIECES_MAX;
                return Err(SyncError::Corrupt { site: self.peer.site(), count, last: e.to_string() });
            }
        }
        *tries += 1;
        let hurried = self.peer.is_hurried();
        let most = if hurried { HURRIED_TRIES_MAX } else { TRIES_MAX };
        if !e.is_retryable() || *tries >= most || (hurried && e.is_slow()) {
            return Err(e.into());
        }
        tokio::time::sleep(FIRST_PAUSE * 2u32.pow(*tries - 1)).await;
        Ok(())
    }
}
