//! Fetching blobs and parts of blobs from a peer, over the lane that does it best.
//!
//! Invariant: nothing reaches a sink or a caller before it was checked against the hash that was asked for. What the tls
//! lane does not bring to its end comes over quic, and nothing of it twice.

use std::ops::Range;
use std::sync::Arc;

use bao_tree::BaoTree;
use bytes::Bytes;
use sluice_protocol::ids::BlobHash;
use sluice_protocol::limits::GROUP_BYTES;

use super::carrier::Carrier;
use super::encode::GROUPS;
use super::error::FetchError;
use super::get::{Get, is_fault_of_lane};
use super::peer::Peer;
use super::writer::Writer;
use super::{LeafSink, limits};

/// Misses among blobs asked for together after which the rest is taken for missing, too, where nothing came.
const MISSES_MAX: u32 = 4;

/// What a fetch moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FetchStats {
    /// Bytes of blobs.
    pub payload: u64,
    /// Bytes of sizes and hash pairs.
    pub overhead: u64,
    /// Bytes of blobs, among `payload`, that came over the tls lane.
    pub over_tls: u64,
}

/// Gets each blob as it arrives; none stands for one that the peer does not offer.
pub type Each<'a> = dyn FnMut(BlobHash, Option<Bytes>) + Send + 'a;

/// Small blobs that are fetched together, and which of them have come.
pub(super) struct Wanted<'a> {
    blobs: &'a [(BlobHash, u64)],
    settled: Vec<bool>,
    /// Blobs that the peer did not offer; none once it offered one.
    misses: Option<u32>,
    each: &'a mut Each<'a>,
}

impl Wanted<'_> {
    /// Hash and size in bytes.
    pub fn blob(&self, i: usize) -> (BlobHash, u64) {
        self.blobs[i]
    }

    pub fn settle(&mut self, i: usize, bytes: Option<Bytes>) {
        self.settled[i] = true;
        match bytes {
            Some(_) => self.misses = None,
            None => self.misses = self.misses.map(|n| n + 1),
        }
        (self.each)(self.blobs[i].0, bytes);
    }

    fn is_open(&self) -> bool {
        self.settled.contains(&false)
    }

    /// A site that has none of the first few is not asked for each of hundreds: each miss costs a way there and back.
    fn give_up_on_a_stranger(&mut self) {
        if self.misses.is_some_and(|n| n >= MISSES_MAX) {
            let open: Vec<usize> = (0..self.blobs.len()).filter(|&i| !self.settled[i]).collect();
            open.into_iter().for_each(|i| self.settle(i, None));
        }
    }

    /// What has not come yet, in groups for one request each.
    pub fn open_groups(&self, bytes_max: u64, blobs_max: usize) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut bytes = 0u64;
        for (i, _) in self.settled.iter().enumerate().filter(|(_, settled)| !**settled) {
            let size = self.blobs[i].1;
            match groups.last_mut() {
                Some(group) if group.len() < blobs_max && bytes.saturating_add(size) <= bytes_max => {
                    group.push(i);
                    bytes += size;
                }
                _ => {
                    groups.push(vec![i]);
                    bytes = size;
                }
            }
        }
        groups
    }
}

impl Peer {
    /// Fetches ranges of a blob of a known size into `sink`.
    ///
    /// Ranges are ascending and apart, begin at multiples of 16 KiB and end at one or at the blob's
    /// end. When it fails, what had arrived before is in the sink all the same.
    pub async fn fetch(
        &self,
        hash: BlobHash,
        size: u64,
        ranges: &[Range<u64>],
        sink: Arc<dyn LeafSink>,
    ) -> Result<FetchStats, FetchError> {
        check_ranges(hash, size, ranges)?;
        let mut stats = FetchStats::default();
        let mut writer = Writer::new(hash, sink, BaoTree::new(size, GROUPS), self.piece());
        let got = self.fetch_into(hash, size, ranges, &mut writer, &mut stats).await;
        // What arrived before a failure is good, and need not be fetched again.
        let written = writer.finish().await;
        got?;
        written.map(|()| stats)
    }

    async fn fetch_into(
        &self,
        hash: BlobHash,
        size: u64,
        ranges: &[Range<u64>],
        writer: &mut Writer,
        stats: &mut FetchStats,
    ) -> Result<(), FetchError> {
        let mut may_move_over = true;
        loop {
            // What arrived and was proved is not asked for again, whichever lane goes on.
            let rest = rest_of(ranges, writer.reached());
            if let Some(done) = self.ranges_over_tls(hash, size, &rest, writer, stats).await {
                return done;
            }
            let rest = rest_of(ranges, writer.reached());
            if rest.is_empty() {
                return Ok(());
            }
            let mut get = self.over_quic(hash).await?;
            tokio::select! {
                done = get.ranges(size, &rest, writer, stats) => return done,
                () = self.tls_comes_up(), if may_move_over => may_move_over = false,
            }
            tracing::debug!(site = %self.site().short(), "tls came up: the rest of a request moves over");
        }
    }

    /// None where the tls lane is not to be had, or gave out on the way.
    async fn ranges_over_tls(
        &self,
        hash: BlobHash,
        size: u64,
        ranges: &[Range<u64>],
        writer: &mut Writer,
        stats: &mut FetchStats,
    ) -> Option<Result<(), FetchError>> {
        let mut get = self.over_tls(hash).await?;
        match get.ranges(size, ranges, writer, stats).await {
            Err(e) if is_fault_of_lane(&e) => None,
            done => Some(done),
        }
    }

    /// Waits until the tls lane goes that did not go when it was asked for: on a far line that loses packets its
    /// first connection may take seconds, and quic the hundredfold for what is left then. Never, where bulk data does not take it.
    async fn tls_comes_up(&self) {
        if !self.has_bulk() {
            return std::future::pending().await;
        }
        self.tls().standing().comes_up().await;
    }

    /// Fetches a whole blob of unknown size, up to `max` bytes.
    pub async fn fetch_small(&self, hash: BlobHash, max: u64) -> Result<Bytes, FetchError> {
        self.over_quic(hash).await?.small(max).await
    }

    /// Fetches many small blobs of known sizes with few round trips.
    ///
    /// `each` gets every blob as it arrives, in no particular order. After an error the rest did not come.
    pub async fn fetch_many<'a>(
        &self,
        wanted: &'a [(BlobHash, u64)],
        each: &'a mut Each<'a>,
    ) -> Result<FetchStats, FetchError> {
        let mut stats = FetchStats::default();
        let limit = limits::FETCH_TOGETHER_BYTES_MAX;
        if let Some(&(hash, claimed)) = wanted.iter().find(|(_, size)| *size > limit) {
            return Err(FetchError::TooLarge { peer: self.site(), lane: super::QUIC, hash, claimed, limit });
        }
        let mut wanted = Wanted { blobs: wanted, settled: vec![false; wanted.len()], misses: Some(0), each };
        while wanted.is_open() {
            wanted.give_up_on_a_stranger();
            let Some(first) = wanted.settled.iter().position(|settled| !settled) else { break };
            let hash = wanted.blob(first).0;
            if let Some(mut get) = self.over_tls(hash).await {
                match get.many(&mut wanted, &mut stats).await {
                    Err(e) if is_fault_of_lane(&e) => {}
                    done => {
                        done?;
                        continue;
                    }
                }
            }
            self.over_quic(hash).await?.many(&mut wanted, &mut stats).await?;
        }
        Ok(stats)
    }

    async fn over_quic(&self, hash: BlobHash) -> Result<Get, FetchError> {
        Ok(self.carried(hash, Carrier::Quic(self.lease().await?)))
    }

    /// The tls lane, when that is to be had and worth it.
    async fn over_tls(&self, hash: BlobHash) -> Option<Get> {
        if !self.has_bulk() {
            return None;
        }
        let talk = self.tls().talk().await?;
        Some(self.carried(hash, Carrier::Tls(Box::new(talk), self.tls().clone())))
    }

    fn carried(&self, hash: BlobHash, carrier: Carrier) -> Get {
        let standing = self.tls().standing().clone();
        let (brake, window) = (self.brake().clone(), self.window());
        Get { peer: self.site(), hash, pace: self.pace(), carrier, window, brake, standing, came: None }
    }
}

/// What of the ranges lies behind `from`; nothing before it is asked for again.
fn rest_of(ranges: &[Range<u64>], from: u64) -> Vec<Range<u64>> {
    let from = from / GROUP_BYTES * GROUP_BYTES;
    ranges.iter().filter(|r| r.end > from).map(|r| r.start.max(from)..r.end).collect()
}

/// Ranges must be what the protocol can prove and the staging can mark.
fn check_ranges(hash: BlobHash, size: u64, ranges: &[Range<u64>]) -> Result<(), FetchError> {
    let mut from = 0;
    for r in ranges {
        let ends_well = r.end == size || r.end % GROUP_BYTES == 0;
        if r.start < from || r.start % GROUP_BYTES != 0 || r.start >= r.end || r.end > size || !ends_well {
            return Err(FetchError::BadRange { hash, size, start: r.start, end: r.end });
        }
        from = r.end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = GROUP_BYTES;

    #[test]
    fn ranges_are_checked() {
        let hash = BlobHash::of(b"acme");
        let good = |size: u64, ranges: &[Range<u64>]| check_ranges(hash, size, ranges).is_ok();
        assert!(good(3 * G + 5, &[0..G, 2 * G..3 * G + 5]));
        assert!(good(5, std::slice::from_ref(&(0..5))));
        assert!(good(0, &[]));
        for bad in [1..G, 0..7, G..G, 0..4 * G, 4 * G..5 * G] {
            assert!(!good(3 * G + 5, std::slice::from_ref(&bad)), "{bad:?}");
        }
        assert!(!good(3 * G, &[G..2 * G, 0..G]), "they ascend");
        assert!(!good(3 * G, &[0..2 * G, G..3 * G]), "they do not overlap");
    }
}
