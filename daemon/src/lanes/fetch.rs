//! Fetching blobs and parts of blobs from a peer.
//!
//! Invariant: nothing reaches a sink or a caller before it was checked against the hash that was
//! asked for, and nothing is allocated because a peer claims a size.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bao_tree::io::BaoContentItem;
use bao_tree::{BaoTree, ChunkNum, ChunkRanges};
use bytes::{Bytes, BytesMut};
use iroh::endpoint::{ConnectionError, ReadError};
use iroh_blobs::get::GetError;
use iroh_blobs::get::fsm::{
    self, AtBlobContent, AtBlobHeader, AtBlobHeaderNextError, AtConnected, AtEndBlob, BlobContentNext, ConnectedNext,
    DecodeError, EndBlobNext,
};
use iroh_blobs::protocol::{ChunkRangesSeq, ERR_LIMIT, ERR_PERMISSION, GetManyRequest, GetRequest};
use iroh_blobs::util::RecvStream;
use n0_future::time::Instant;
use sluice_protocol::ids::{BlobHash, SiteId};
use sluice_protocol::limits::GROUP_BYTES;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::carrier::{Carrier, Line, Said};
use super::encode::GROUPS;
use super::error::{FetchError, LaneError};
use super::pace::{Lag, Pace};
use super::peer::Peer;
use super::quic::ended;
use super::standing::Standing;
use super::{LeafSink, TLS, limits, tls};

/// Bytes of a BLAKE3 chunk, the unit of ranges on the wire.
const CHUNK_BYTES: u64 = 1024;
/// Bytes of the size in front of each blob.
const SIZE_BYTES: u64 = 8;
/// Bytes of a pair of hashes.
const PAIR_BYTES: u64 = 64;

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

impl std::ops::AddAssign for FetchStats {
    fn add_assign(&mut self, more: Self) {
        self.payload += more.payload;
        self.overhead += more.overhead;
        self.over_tls += more.over_tls;
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
        for some in ranges.chunks(limits::FETCH_RANGES_MAX) {
            self.fetch_some(hash, size, some, &sink, &mut stats).await?;
        }
        Ok(stats)
    }

    /// Fetches a whole blob of unknown size, up to `max` bytes.
    pub async fn fetch_small(&self, hash: BlobHash, max: u64) -> Result<Bytes, FetchError> {
        let mut get = self.request(hash).await?;
        let header = get.begin(GetRequest::blob(hash.0)).await?;
        let (content, size) = get.size(header).await?;
        if size > max {
            return Err(FetchError::TooLarge { peer: get.peer, lane: get.lane(), hash, claimed: size, limit: max });
        }
        let (_, bytes) = get.collect(content, &mut FetchStats::default()).await?;
        Ok(bytes)
    }

    /// Fetches many small blobs of known sizes with few round trips.
    ///
    /// `each` gets every blob as it arrives, in the order of `wanted`; none stands for one that the
    /// peer does not offer. After an error the rest was not asked for.
    pub async fn fetch_many(
        &self,
        wanted: &[(BlobHash, u64)],
        each: &mut (dyn FnMut(BlobHash, Option<Bytes>) + Send),
    ) -> Result<FetchStats, FetchError> {
        let mut stats = FetchStats::default();
        let mut rest = wanted;
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(limits::FETCH_BLOBS_MAX)];
            let done = self.fetch_batch(batch, each, &mut stats).await?;
            rest = &rest[done..];
        }
        Ok(stats)
    }

    async fn fetch_some(
        &self,
        hash: BlobHash,
        size: u64,
        ranges: &[Range<u64>],
        sink: &Arc<dyn LeafSink>,
        stats: &mut FetchStats,
    ) -> Result<(), FetchError> {
        let mut writer = Writer::new(hash, sink.clone(), BaoTree::new(size, GROUPS), self.piece());
        let get = self.bulk_request(hash).await?;
        let was_tls = get.lane() == TLS;
        let mut got = get.ranges(size, ranges, &mut writer, stats).await;
        if was_tls && got.as_ref().is_err_and(is_fault_of_lane) {
            // The same bytes come over quic; those that arrived and were proved are not asked for again.
            let rest = rest_of(ranges, writer.reached());
            got = match rest.as_slice() {
                [] => Ok(()),
                rest => match self.request(hash).await {
                    Ok(get) => get.ranges(size, rest, &mut writer, stats).await,
                    Err(e) => Err(e),
                },
            };
        }
        // What arrived before a failure is good, and need not be fetched again.
        let written = writer.finish().await;
        got?;
        written
    }

    /// Fetches blobs until one is not offered; returns how many of the batch are settled.
    async fn fetch_batch(
        &self,
        batch: &[(BlobHash, u64)],
        each: &mut (dyn FnMut(BlobHash, Option<Bytes>) + Send),
        stats: &mut FetchStats,
    ) -> Result<usize, FetchError> {
        let Some(&(first, _)) = batch.first() else { return Ok(0) };
        let lease = self.lease().await?;
        let mut get = self.carried(first, Carrier::Quic(lease.clone()));
        for &(hash, size) in batch {
            get.hash = hash;
            if size > limits::FETCH_TOGETHER_BYTES_MAX {
                let limit = limits::FETCH_TOGETHER_BYTES_MAX;
                return Err(FetchError::TooLarge { peer: get.peer, lane: get.lane(), hash, claimed: size, limit });
            }
        }
        let hashes = batch.iter().map(|(hash, _)| hash.0.into()).collect();
        let ranges = ChunkRangesSeq::from_ranges(batch.iter().map(|_| ChunkRanges::all()));
        let request = GetManyRequest::new(hashes, ranges);
        get.hash = first;
        let start = fsm::start_get_many(lease.connection.clone(), request, Default::default());
        let mut child = match get.wait(start).await?.map_err(|e| get.get_failed(e))? {
            Ok(child) => child,
            Err(_) => return Err(get.broken("the request was taken for an empty one")),
        };
        for (i, &(hash, size)) in batch.iter().enumerate() {
            get.hash = hash;
            let (content, claimed) = match get.size(child.next(hash.0.into())).await {
                Err(FetchError::NotThere { .. }) => {
                    each(hash, None);
                    return Ok(i + 1);
                }
                other => other?,
            };
            get.expect_size(claimed, size)?;
            let (end, bytes) = get.collect(content, stats).await?;
            each(hash, Some(bytes));
            child = match end.next() {
                EndBlobNext::MoreChildren(child) => child,
                EndBlobNext::Closing(_) => return Ok(i + 1),
            };
        }
        Ok(batch.len())
    }

    async fn request(&self, hash: BlobHash) -> Result<Get, FetchError> {
        Ok(self.carried(hash, Carrier::Quic(self.lease().await?)))
    }

    /// A request that may be large: over tls when that is to be had.
    async fn bulk_request(&self, hash: BlobHash) -> Result<Get, FetchError> {
        match self.tls().exchange(self.window()).await {
            Some(both) => Ok(self.carried(hash, Carrier::Tls(Some(both), self.tls().clone()))),
            None => self.request(hash).await,
        }
    }

    fn carried(&self, hash: BlobHash, carrier: Carrier) -> Get {
        Get { peer: self.site(), hash, pace: self.pace(), carrier, standing: self.tls().standing().clone() }
    }
}

/// One request in flight: whom, what, and how fast it must come.
struct Get {
    peer: SiteId,
    hash: BlobHash,
    pace: Pace,
    carrier: Carrier,
    standing: Arc<Standing>,
}

impl Get {
    fn lane(&self) -> &'static str {
        self.carrier.lane()
    }

    /// Fetches ranges of a blob into the writer. A connection of the tls lane rests afterwards, or is told to have failed.
    async fn ranges(
        mut self,
        size: u64,
        ranges: &[Range<u64>],
        writer: &mut Writer,
        stats: &mut FetchStats,
    ) -> Result<(), FetchError> {
        let (before, since) = (stats.payload, std::time::Instant::now());
        let had_rested = matches!(&self.carrier, Carrier::Tls(Some((reading, _)), _) if reading.had_rested);
        let got = self.all_of(size, ranges, writer, stats).await;
        let moved = stats.payload - before;
        self.standing.moved(self.lane(), moved, since);
        if self.lane() == TLS {
            stats.over_tls += moved;
        }
        if let (Err(e), Carrier::Tls(_, way)) = (&got, &self.carrier)
            && is_fault_of_lane(e)
        {
            match had_rested && moved == 0 {
                true => way.forget_rested(),
                false => way.failed(&e.to_string()),
            }
        }
        got
    }

    async fn all_of(
        &mut self,
        size: u64,
        ranges: &[Range<u64>],
        writer: &mut Writer,
        stats: &mut FetchStats,
    ) -> Result<(), FetchError> {
        let header = self.begin(GetRequest::blob_ranges(self.hash.0.into(), chunk_ranges(ranges))).await?;
        let (content, claimed) = self.size(header).await?;
        self.expect_size(claimed, size)?;
        stats.overhead += SIZE_BYTES;
        let end = self.receive(content, writer, stats).await?;
        match (&self.carrier, end.next()) {
            // The end of the answer is read, so that the connection can be used again. Without it, it is not.
            (Carrier::Tls(..), EndBlobNext::Closing(closing)) => {
                let _ = timeout(limits::TLS_END, closing.next()).await;
            }
            // What follows on the stream is nothing we asked for: dropping it stops the peer.
            _ => {}
        }
        Ok(())
    }

    /// Sends the request for one blob.
    async fn begin(&mut self, request: GetRequest) -> Result<AtBlobHeader<Line>, FetchError> {
        let (recv, send) = match &mut self.carrier {
            Carrier::Tls(both, _) => {
                let (recv, send) = both.take().ok_or_else(|| self.broken("an exchange begins once"))?;
                (Line::Tls(recv), Said::Tls(send))
            }
            Carrier::Quic(lease) => {
                let connection = lease.connection.clone();
                let (send, recv) = self.wait(connection.open_bi()).await?.map_err(|e| self.connection_ended(&e))?;
                (Line::Quic(recv), Said::Quic(send))
            }
        };
        let connected = AtConnected::new(Instant::now(), recv, send, request, Default::default());
        match self.wait(connected.next()).await? {
            Ok(ConnectedNext::StartRoot(root)) => Ok(root.next()),
            Ok(_) => Err(self.broken("the request was taken for another one")),
            Err(e) => Err(self.broken_or_ended(&format!("{e:#}"))),
        }
    }

    /// Reads the size that the peer claims.
    async fn size<R: RecvStream>(&self, header: AtBlobHeader<R>) -> Result<(AtBlobContent<R>, u64), FetchError> {
        match self.wait(header.next()).await? {
            Ok(next) => Ok(next),
            Err(AtBlobHeaderNextError::NotFound { .. }) => {
                Err(FetchError::NotThere { peer: self.peer, lane: self.lane(), hash: self.hash })
            }
            Err(AtBlobHeaderNextError::Read { source, .. }) => Err(self.read_failed(&source)),
        }
    }

    fn expect_size(&self, claimed: u64, expected: u64) -> Result<(), FetchError> {
        if claimed == expected {
            return Ok(());
        }
        Err(FetchError::WrongSize { peer: self.peer, lane: self.lane(), hash: self.hash, claimed, expected })
    }

    /// The next verified item, or the end.
    async fn item<R: RecvStream>(&mut self, content: AtBlobContent<R>) -> Result<Step<R>, FetchError> {
        let mut next = std::pin::pin!(content.next());
        let (next, waited) = loop {
            let (patience, since) = (self.pace.patience(), Instant::now());
            match timeout(patience, &mut next).await {
                Ok(next) => break (next, since.elapsed()),
                Err(_) => self.pace.after(since.elapsed().max(patience), 0).map_err(|lag| self.lags(lag))?,
            }
        };
        match next {
            BlobContentNext::More((content, Ok(item))) => {
                let bytes = match &item {
                    BaoContentItem::Parent(_) => PAIR_BYTES,
                    BaoContentItem::Leaf(leaf) => leaf.data.len() as u64,
                };
                self.pace.after(waited, bytes).map_err(|lag| self.lags(lag))?;
                Ok(Step::Item(content, item))
            }
            BlobContentNext::More((_, Err(e))) => Err(self.decode_failed(e)),
            BlobContentNext::Done(end) => Ok(Step::End(end)),
        }
    }

    /// Hands all items to the writer.
    async fn receive<R: RecvStream>(
        &mut self,
        mut content: AtBlobContent<R>,
        writer: &mut Writer,
        stats: &mut FetchStats,
    ) -> Result<AtEndBlob<R>, FetchError> {
        loop {
            match self.item(content).await? {
                Step::Item(next, BaoContentItem::Parent(parent)) => {
                    stats.overhead += PAIR_BYTES;
                    writer.parent(&parent).await?;
                    content = next;
                }
                Step::Item(next, BaoContentItem::Leaf(leaf)) => {
                    stats.payload += leaf.data.len() as u64;
                    writer.leaf(leaf.offset, &leaf.data).await?;
                    content = next;
                }
                Step::End(end) => return Ok(end),
            }
        }
    }

    /// Collects a whole blob in memory; it grows with what arrives.
    async fn collect<R: RecvStream>(
        &mut self,
        mut content: AtBlobContent<R>,
        stats: &mut FetchStats,
    ) -> Result<(AtEndBlob<R>, Bytes), FetchError> {
        stats.overhead += SIZE_BYTES;
        let mut bytes = BytesMut::new();
        loop {
            match self.item(content).await? {
                Step::Item(next, BaoContentItem::Parent(_)) => {
                    stats.overhead += PAIR_BYTES;
                    content = next;
                }
                Step::Item(next, BaoContentItem::Leaf(leaf)) => {
                    stats.payload += leaf.data.len() as u64;
                    bytes.extend_from_slice(&leaf.data);
                    content = next;
                }
                Step::End(end) => return Ok((end, bytes.freeze())),
            }
        }
    }

    /// Waits as long as a peer may be silent.
    async fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, FetchError> {
        let stall = self.pace.stall();
        timeout(stall, work).await.map_err(|_| self.lags(Lag::Silent(stall)))
    }

    fn lags(&self, lag: Lag) -> FetchError {
        let (peer, lane, hash) = (self.peer, self.lane(), self.hash);
        match lag {
            Lag::Silent(stall) => FetchError::Stalled { peer, lane, hash, seconds: stall.as_secs() },
            Lag::Slow { bytes, least, within } => {
                FetchError::Slow { peer, lane, hash, bytes, least, seconds: within.as_secs() }
            }
        }
    }

    fn decode_failed(&self, e: DecodeError) -> FetchError {
        match e {
            DecodeError::Read { source, .. } => self.read_failed(&source),
            DecodeError::ParentHashMismatch { .. } | DecodeError::LeafHashMismatch { .. } => {
                FetchError::Corrupt { peer: self.peer, lane: self.lane(), hash: self.hash, what: e.to_string() }
            }
            _ if self.lane() == TLS => self.broken("the peer sent less than was asked for"),
            _ => self.broken_or_ended("the peer sent less than was asked for"),
        }
    }

    fn get_failed(&self, e: GetError) -> FetchError {
        self.broken_or_ended(&format!("{e:#}"))
    }

    /// Tells a refusal from a lost connection and from a stream that the peer gave up.
    fn read_failed(&self, e: &std::io::Error) -> FetchError {
        let (peer, lane, hash) = (self.peer, self.lane(), self.hash);
        if let Some(&tls::GaveUp(code)) = e.get_ref().and_then(|inner| inner.downcast_ref()) {
            return match code {
                _ if u64::from(code) == u64::from(ERR_PERMISSION) => FetchError::Refused { peer, lane, hash },
                _ if u64::from(code) == u64::from(ERR_LIMIT) => LaneError::Busy { site: peer }.into(),
                tls::NOT_PAIRED => LaneError::NotPaired { site: peer }.into(),
                _ => self.broken(&e.to_string()),
            };
        }
        match e.get_ref().and_then(|inner| inner.downcast_ref::<ReadError>()) {
            Some(ReadError::Reset(code)) if *code == ERR_PERMISSION => FetchError::Refused { peer, lane, hash },
            Some(ReadError::Reset(code)) if *code == ERR_LIMIT => LaneError::Busy { site: peer }.into(),
            Some(ReadError::ConnectionLost(reason)) => self.connection_ended(reason),
            _ => self.broken_or_ended(&e.to_string()),
        }
    }

    fn connection_ended(&self, reason: &ConnectionError) -> FetchError {
        ended(self.peer, reason).into()
    }

    fn broken_or_ended(&self, reason: &str) -> FetchError {
        match &self.carrier {
            Carrier::Quic(lease) => match lease.connection.close_reason() {
                Some(ended) => self.connection_ended(&ended),
                None => self.broken(reason),
            },
            Carrier::Tls(..) => LaneError::Lost { site: self.peer, reason: reason.to_string() }.into(),
        }
    }

    fn broken(&self, reason: &str) -> FetchError {
        FetchError::Broken { peer: self.peer, lane: self.lane(), hash: self.hash, reason: reason.to_string() }
    }
}

enum Step<R: RecvStream> {
    Item(AtBlobContent<R>, BaoContentItem),
    End(AtEndBlob<R>),
}

/// Collects verified pieces and writes them on blocking threads, one write at a time, while the
/// next pieces arrive.
struct Writer {
    hash: BlobHash,
    sink: Arc<dyn LeafSink>,
    tree: BaoTree,
    pairs: Vec<(u64, [u8; 64])>,
    /// Bytes collected for one write.
    piece: usize,
    at: u64,
    held: Vec<u8>,
    reached: u64,
    writing: Option<JoinHandle<std::io::Result<()>>>,
}

impl Writer {
    fn new(hash: BlobHash, sink: Arc<dyn LeafSink>, tree: BaoTree, piece: usize) -> Self {
        Self { hash, sink, tree, piece, pairs: Vec::new(), at: 0, held: Vec::new(), reached: 0, writing: None }
    }

    async fn parent(&mut self, parent: &bao_tree::io::Parent) -> Result<(), FetchError> {
        // Pairs inside a group are not stored.
        let Some(index) = self.tree.pre_order_offset(parent.node) else {
            return Ok(());
        };
        let mut pair = [0; 64];
        pair[..32].copy_from_slice(parent.pair.0.as_bytes());
        pair[32..].copy_from_slice(parent.pair.1.as_bytes());
        self.pairs.push((index, pair));
        if self.pairs.len() >= limits::FETCH_PAIRS_MAX {
            self.flush().await?;
        }
        Ok(())
    }

    /// The end of what was handed over; what comes later begins there or behind.
    fn reached(&self) -> u64 {
        self.reached
    }

    async fn leaf(&mut self, offset: u64, data: &[u8]) -> Result<(), FetchError> {
        let follows = offset == self.at + self.held.len() as u64;
        if !self.held.is_empty() && (!follows || self.held.len() + data.len() > self.piece) {
            self.flush().await?;
        }
        if self.held.is_empty() {
            self.at = offset;
            self.held.reserve(self.piece);
        }
        self.held.extend_from_slice(data);
        self.reached = offset + data.len() as u64;
        // Written as soon as it may be: what is held is lost with the process.
        if self.held.len() >= self.piece { self.flush().await } else { Ok(()) }
    }

    /// Hands what is held to a blocking thread, after the write before it has ended.
    async fn flush(&mut self) -> Result<(), FetchError> {
        self.settle().await?;
        if self.held.is_empty() && self.pairs.is_empty() {
            return Ok(());
        }
        let (sink, at) = (self.sink.clone(), self.at);
        let (pairs, held) = (std::mem::take(&mut self.pairs), std::mem::take(&mut self.held));
        self.writing = Some(spawn_blocking(move || {
            for (index, pair) in &pairs {
                sink.parent(*index, pair)?;
            }
            if held.is_empty() { Ok(()) } else { sink.leaf(at, &held) }
        }));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), FetchError> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let written = writing.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        written.map_err(|source| FetchError::Sink { hash: self.hash, source })
    }

    async fn finish(mut self) -> Result<(), FetchError> {
        self.flush().await?;
        self.settle().await
    }
}

/// Whether another lane to the same peer may well do better.
fn is_fault_of_lane(e: &FetchError) -> bool {
    matches!(
        e,
        FetchError::Lane(LaneError::Lost { .. } | LaneError::Unreachable { .. } | LaneError::Silent { .. })
            | FetchError::Stalled { lane: TLS, .. }
            | FetchError::Slow { lane: TLS, .. }
    )
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

fn chunk_ranges(ranges: &[Range<u64>]) -> ChunkRanges {
    let mut all = ChunkRanges::empty();
    for r in ranges {
        let chunks = ChunkNum(r.start / CHUNK_BYTES)..ChunkNum(r.end.div_ceil(CHUNK_BYTES));
        all |= ChunkRanges::from(chunks);
    }
    all
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
