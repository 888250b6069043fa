//! The plan: how each missing byte will come, cheapest rung first.
//!
//! Invariant: pure. It reads no file and asks no peer; it sees what is here through [`Holdings`].
//! Whatever it says, the copied and the fetched ranges of a blob together cover the blob, and a
//! wrong plan costs bytes, never correctness: the blob's root decides at the end.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::chunks::ChunkList;
use crate::ids::{BlobHash, ChunkHash};
use crate::limits::{FETCH_GAP_BYTES, GROUP_BYTES};

/// A way to come by bytes; lower is cheaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// 0: nothing to do, the section is the same.
    Same,
    /// 1: the whole blob is here, under any path: link it.
    Link,
    /// 2: some of its chunks are here: copy ranges, fetch the rest.
    Chunks,
    /// 6: fetch it.
    Fetch,
}

impl Rung {
    /// The rung's number on the ladder.
    pub fn number(self) -> u8 {
        match self {
            Rung::Same => 0,
            Rung::Link => 1,
            Rung::Chunks => 2,
            Rung::Fetch => 6,
        }
    }

    /// The rung in one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Rung::Same => "same",
            Rung::Link => "link",
            Rung::Chunks => "chunks",
            Rung::Fetch => "fetch",
        }
    }
}

/// Where the bytes of a chunk lie here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSource {
    pub blob: BlobHash,
    /// Offset in that blob, in bytes.
    pub offset: u64,
}

/// What is here and may be reused in this space.
pub trait Holdings {
    /// Whether the whole blob is here, proven.
    fn has_blob(&self, hash: &BlobHash) -> bool;
    /// Where a chunk of this length lies here.
    fn chunk(&self, hash: &ChunkHash, len: u32) -> Option<ChunkSource>;
}

/// A blob that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub hash: BlobHash,
    /// Length in bytes.
    pub size: u64,
    /// Name of the section that wants it (the first, if several do); one text for all of them.
    pub section: Arc<str>,
}

/// Copy `len` bytes of a local blob to `to`; the bytes must hash to `hash`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyRange {
    pub from: ChunkSource,
    /// Offset in the new blob, in bytes.
    pub to: u64,
    pub len: u32,
    pub hash: ChunkHash,
}

/// How one blob will come. A plan holds one for each blob that is not here, so it is kept small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobPlan {
    pub wanted: Wanted,
    pub rung: Rung,
    /// Local copies, ascending by `to`.
    pub copies: Box<[CopyRange]>,
    /// Byte ranges to fetch, ascending, aligned outward to 16 KiB, cut at the blob's end.
    pub fetch: Box<[Range<u64>]>,
}

impl BlobPlan {
    /// Bytes that must come from elsewhere.
    pub fn fetch_bytes(&self) -> u64 {
        self.fetch.iter().map(|r| r.end - r.start).sum()
    }

    /// Bytes that need not move.
    pub fn reused_bytes(&self) -> u64 {
        self.wanted.size - self.fetch_bytes()
    }
}

/// Files and bytes of one rung in one section.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RungTotal {
    /// Blobs that came this way.
    pub files: u64,
    /// Their bytes, moved or not.
    pub bytes: u64,
    /// Of those, the bytes to fetch.
    pub fetch_bytes: u64,
}

/// The plan of a sync.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// One for each distinct blob that is not already here, in the order to fetch.
    pub blobs: Vec<BlobPlan>,
    /// Totals by section and rung.
    pub totals: BTreeMap<(Arc<str>, Rung), RungTotal>,
}

impl Plan {
    /// Bytes to fetch.
    pub fn fetch_bytes(&self) -> u64 {
        self.blobs.iter().map(BlobPlan::fetch_bytes).sum()
    }

    /// Bytes of the new version that need not move.
    pub fn reused_bytes(&self) -> u64 {
        self.totals.values().map(|t| t.bytes - t.fetch_bytes).sum()
    }

    /// Counts a whole section as unchanged.
    pub fn same_section(&mut self, section: &Arc<str>, files: u64, bytes: u64) {
        let total = self.total(section, Rung::Same);
        total.files += files;
        total.bytes += bytes;
    }

    /// Adds one wanted blob; each hash once.
    pub fn add(&mut self, blob: BlobPlan) {
        let total = self.total(&blob.wanted.section.clone(), blob.rung);
        total.files += 1;
        total.bytes += blob.wanted.size;
        total.fetch_bytes += blob.fetch_bytes();
        if blob.rung != Rung::Link {
            self.blobs.push(blob);
        }
    }

    fn total(&mut self, section: &Arc<str>, rung: Rung) -> &mut RungTotal {
        self.totals.entry((section.clone(), rung)).or_default()
    }
}

/// Plans one blob. `list` is its chunk list when the annex has one and a base may exist here.
pub fn plan_blob(wanted: Wanted, list: Option<&ChunkList>, here: &dyn Holdings) -> BlobPlan {
    if here.has_blob(&wanted.hash) {
        return BlobPlan { wanted, rung: Rung::Link, copies: [].into(), fetch: [].into() };
    }
    let whole = 0..wanted.size;
    let Some(list) = list.filter(|l| l.size == wanted.size) else {
        return fetch_all(wanted, whole);
    };
    let mut copies = Vec::new();
    let missing = list.extents().filter_map(|(at, chunk)| match here.chunk(&chunk.hash, chunk.len) {
        Some(from) => {
            copies.push(CopyRange { from, to: at, len: chunk.len, hash: chunk.hash });
            None
        }
        None => Some(at..at + u64::from(chunk.len)),
    });
    let fetch = coalesce(missing, wanted.size);
    drop_fetched(&mut copies, &fetch);
    if copies.is_empty() {
        return fetch_all(wanted, whole);
    }
    BlobPlan { wanted, rung: Rung::Chunks, copies: copies.into(), fetch: fetch.into() }
}

fn fetch_all(wanted: Wanted, whole: Range<u64>) -> BlobPlan {
    let fetch = if whole.is_empty() { [].into() } else { [whole].into() };
    BlobPlan { wanted, rung: Rung::Fetch, copies: [].into(), fetch }
}

/// Drops copies that lie wholly in a range that is fetched anyway. Both lists ascend, so one pass is enough.
fn drop_fetched(copies: &mut Vec<CopyRange>, fetch: &[Range<u64>]) {
    let mut fetch = fetch.iter().peekable();
    copies.retain(|copy| {
        let end = copy.to + u64::from(copy.len);
        while fetch.peek().is_some_and(|f| f.end < end) {
            fetch.next();
        }
        fetch.peek().is_none_or(|f| copy.to < f.start)
    });
}

/// Rounds ascending ranges outward to groups and joins those that overlap or lie closer than the gap.
pub fn coalesce(ranges: impl Iterator<Item = Range<u64>>, size: u64) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for r in ranges {
        let start = r.start / GROUP_BYTES * GROUP_BYTES;
        let end = r.end.div_ceil(GROUP_BYTES).saturating_mul(GROUP_BYTES).min(size);
        match out.last_mut() {
            Some(last) if start < last.end + FETCH_GAP_BYTES => last.end = last.end.max(end),
            _ => out.push(start..end),
        }
    }
    out
}
