//! Requests to a peer over one carrier, and reading their answers.
//!
//! Invariant: nothing is handed on before it was checked against the hash that was asked for, and nothing is allocated
//! because a peer claims a size. What is on its way is bounded: by the windows of quic, and on the tls lane, where TCP
//! has none to set, by what is asked for ahead.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bao_tree::io::BaoContentItem;
use bao_tree::{ChunkNum, ChunkRanges};
use bytes::{Bytes, BytesMut};
use iroh::endpoint::{ConnectionError, ReadError};
use iroh_blobs::get::fsm::{
    AtBlobContent, AtBlobHeader, AtBlobHeaderNextError, AtClosing, AtConnected, AtEndBlob, BlobContentNext,
    ConnectedNext, DecodeError, EndBlobNext,
};
use iroh_blobs::protocol::{ChunkRangesSeq, ERR_LIMIT, ERR_PERMISSION, GetManyRequest, GetRequest, Request};
use iroh_blobs::util::{RecvStream, SendStream};
use n0_future::time::Instant;
use sluice_protocol::ids::{BlobHash, SiteId};
use tokio::time::timeout;

use super::ahead::{Ahead, portions};
use super::caps::Brake;
use super::carrier::{Carrier, Framed, Line, Said};
use super::error::{FetchError, LaneError};
use super::fetch::{FetchStats, Wanted};
use super::frames::{GaveUp, Receiver, Sender};
use super::pace::{Lag, Pace};
use super::quic::ended;
use super::standing::Standing;
use super::writer::Writer;
use super::{TLS, limits, tls};

/// Bytes of a BLAKE3 chunk, the unit of ranges on the wire.
const CHUNK_BYTES: u64 = 1024;
/// Bytes of the size in front of each blob.
const SIZE_BYTES: u64 = 8;
/// Bytes of a pair of hashes.
const PAIR_BYTES: u64 = 64;

/// A row of requests: whom, over what, how fast the answers must come, and how many bytes may be asked for ahead.
pub(super) struct Get {
    pub peer: SiteId,
    pub carrier: Carrier,
    pub pace: Pace,
    pub window: u64,
    pub standing: Arc<Standing>,
    pub brake: Brake,
    /// What errors are about.
    pub hash: BlobHash,
    /// What came off the line and was not braked for; where nobody counts it, what comes is taken for it.
    pub came: Option<Arc<AtomicU64>>,
}

impl Get {
    fn lane(&self) -> &'static str {
        self.carrier.lane()
    }

    /// Most bytes of one request: half of what may be on its way, so that one is sent while another one is read. Quic
    /// bounds that itself.
    fn portion_bytes(&self) -> u64 {
        match self.carrier {
            Carrier::Quic(_) => u64::MAX,
            Carrier::Tls(..) => limits::portion_of(self.window),
        }
    }

    /// Counts what the row brought, and tells the way when it was not up to it.
    fn settle(&self, got: &Result<(), FetchError>, moved: u64, since: std::time::Instant, stats: &mut FetchStats) {
        self.standing.moved(self.lane(), moved, since);
        let Carrier::Tls(talk, way) = &self.carrier else { return };
        stats.over_tls += moved;
        if let Err(e) = got
            && is_fault_of_lane(e)
        {
            match talk.had_rested && moved == 0 {
                true => way.forget_rested(),
                false => way.failed(&e.to_string()),
            }
        }
    }

    /// Fetches ranges of a blob into the writer.
    pub async fn ranges(
        &mut self,
        size: u64,
        ranges: &[Range<u64>],
        writer: &mut Writer,
        stats: &mut FetchStats,
    ) -> Result<(), FetchError> {
        let (before, since) = (stats.payload, std::time::Instant::now());
        let got = self.all_ranges(size, ranges, writer, stats).await;
        self.settle(&got, stats.payload - before, since, stats);
        got
    }

    async fn all_ranges(
        &mut self,
        size: u64,
        ranges: &[Range<u64>],
        writer: &mut Writer,
        stats: &mut FetchStats,
    ) -> Result<(), FetchError> {
        let portions = portions(ranges, self.portion_bytes(), limits::FETCH_RANGES_MAX);
        let lens = portions.iter().map(|p| p.iter().map(|r| r.end - r.start).sum()).collect();
        let mut ahead = Ahead::new(lens, self.window);
        let request = |i: usize| GetRequest::blob_ranges(self.hash.0.into(), chunk_ranges(&portions[i]));
        let requests: Vec<GetRequest> = (0..portions.len()).map(request).collect();
        for (reading, request) in requests.iter().enumerate() {
            while let Some(i) = ahead.next(reading) {
                self.ask(|| Request::Get(requests[i].clone())).await?;
            }
            let header = self.answer(request.clone()).await?;
            let (content, claimed) = self.size(header).await?;
            self.expect_size(claimed, size)?;
            stats.overhead += SIZE_BYTES;
            let end = self.receive(content, writer, stats).await?;
            self.end(end).await;
            ahead.answered(reading);
        }
        Ok(())
    }

    /// A whole blob of unknown size, up to `max` bytes.
    pub async fn small(&mut self, max: u64) -> Result<Bytes, FetchError> {
        let request = GetRequest::blob(self.hash.0);
        self.ask(|| Request::Get(request.clone())).await?;
        let header = self.answer(request).await?;
        let (content, size) = self.size(header).await?;
        if size > max {
            let (peer, lane, hash) = (self.peer, self.lane(), self.hash);
            return Err(FetchError::TooLarge { peer, lane, hash, claimed: size, limit: max });
        }
        let (end, bytes) = self.collect(content, &mut FetchStats::default()).await?;
        self.end(end).await;
        Ok(bytes)
    }

    /// Fetches what is still open of `wanted`, many blobs in each request. An answer ends at the first blob that the
    /// peer does not offer; what was behind it stays open.
    pub async fn many(&mut self, wanted: &mut Wanted<'_>, stats: &mut FetchStats) -> Result<(), FetchError> {
        let (before, since) = (stats.payload, std::time::Instant::now());
        let got = self.all_of_many(wanted, stats).await;
        self.settle(&got, stats.payload - before, since, stats);
        got
    }

    async fn all_of_many(&mut self, wanted: &mut Wanted<'_>, stats: &mut FetchStats) -> Result<(), FetchError> {
        let groups = wanted.open_groups(self.portion_bytes(), limits::FETCH_BLOBS_MAX);
        let lens = groups.iter().map(|g| g.iter().map(|&i| wanted.blob(i).1).sum()).collect();
        let mut ahead = Ahead::new(lens, self.window);
        for (reading, group) in groups.iter().enumerate() {
            while let Some(i) = ahead.next(reading) {
                self.hash = wanted.blob(groups[i][0]).0;
                let hashes = groups[i].iter().map(|&blob| wanted.blob(blob).0.0.into()).collect();
                let ranges = ChunkRangesSeq::from_ranges(groups[i].iter().map(|_| ChunkRanges::all()));
                self.ask(|| Request::GetMany(GetManyRequest::new(hashes, ranges))).await?;
            }
            self.group(group, wanted, stats).await?;
            ahead.answered(reading);
        }
        Ok(())
    }

    /// Reads the answer to one request for several blobs.
    async fn group(
        &mut self,
        group: &[usize],
        wanted: &mut Wanted<'_>,
        stats: &mut FetchStats,
    ) -> Result<(), FetchError> {
        self.hash = wanted.blob(group[0]).0;
        // To the state machine the blobs are the children of a list that is not asked for; on the wire that is the same.
        let none = std::iter::once(ChunkRanges::empty());
        let as_children = ChunkRangesSeq::from_ranges(none.chain(group.iter().map(|_| ChunkRanges::all())));
        let hashes = group.iter().map(|&blob| wanted.blob(blob).0.0.into()).collect();
        let ranges = ChunkRangesSeq::from_ranges(group.iter().map(|_| ChunkRanges::all()));
        let (recv, send) = self.open().await?;
        let send = Told { send, instead: Request::GetMany(GetManyRequest::new(hashes, ranges)) };
        let request = GetRequest::new(self.hash.0.into(), as_children);
        let connected = AtConnected::new(Instant::now(), recv, send, request, Default::default());
        let mut child = match self.wait(connected.next()).await? {
            Ok(ConnectedNext::StartChild(child)) => child,
            Ok(_) => return Err(self.broken("the request was taken for another one")),
            Err(e) => return Err(self.broken_or_ended(&format!("{e:#}"))),
        };
        for &i in group {
            let (hash, size) = wanted.blob(i);
            self.hash = hash;
            let (content, claimed) = match self.size(child.next(hash.0.into())).await {
                Err(FetchError::NotThere { .. }) => {
                    wanted.settle(i, None);
                    return Ok(());
                }
                other => other?,
            };
            self.expect_size(claimed, size)?;
            let (end, bytes) = self.collect(content, stats).await?;
            wanted.settle(i, Some(bytes));
            child = match end.next() {
                EndBlobNext::MoreChildren(child) => child,
                EndBlobNext::Closing(closing) => {
                    self.close(closing).await;
                    return Ok(());
                }
            };
        }
        Ok(())
    }

    /// Sends a request whose answer is read later. On quic each has a stream of its own, and goes out with it.
    async fn ask(&mut self, request: impl FnOnce() -> Request) -> Result<(), FetchError> {
        let stall = self.pace.stall();
        let Carrier::Tls(talk, _) = &mut self.carrier else { return Ok(()) };
        let asked = timeout(stall, talk.ask(&request())).await;
        match asked {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(self.broken_or_ended(&e.to_string())),
            Err(_) => Err(self.lags(Lag::Silent(stall))),
        }
    }

    /// Both halves of the next exchange. On the tls lane its request is on its way already.
    async fn open(&mut self) -> Result<(Line, Said), FetchError> {
        if let Carrier::Tls(talk, _) = &self.carrier {
            self.came = talk.came().or(self.came.take());
        }
        let (connection, framed) = match &mut self.carrier {
            Carrier::Tls(talk, _) => match talk.answer() {
                Ok(recv) => return Ok((Line::Tls(recv), Said::Tls(tls::Said))),
                Err(e) => return Err(self.broken_or_ended(&e.to_string())),
            },
            Carrier::Quic(lease) => (lease.connection.clone(), lease.is_framed()),
        };
        let (send, recv) = self.wait(connection.open_bi()).await?.map_err(|e| self.connection_ended(&e))?;
        Ok(match framed {
            true => {
                let recv = Receiver::new(recv);
                self.came = Some(recv.came());
                (Line::Framed(Framed::new(recv, self.standing.clone())), Said::Framed(Sender::new(send)))
            }
            false => (Line::Quic(recv), Said::Quic(send)),
        })
    }

    /// The answer to a request for one blob.
    async fn answer(&mut self, request: GetRequest) -> Result<AtBlobHeader<Line>, FetchError> {
        let (recv, send) = self.open().await?;
        let connected = AtConnected::new(Instant::now(), recv, send, request, Default::default());
        match self.wait(connected.next()).await? {
            Ok(ConnectedNext::StartRoot(root)) => Ok(root.next()),
            Ok(_) => Err(self.broken("the request was taken for another one")),
            Err(e) => Err(self.broken_or_ended(&format!("{e:#}"))),
        }
    }

    async fn end(&self, end: AtEndBlob<Line>) {
        if let EndBlobNext::Closing(closing) = end.next() {
            self.close(closing).await;
        }
    }

    /// On the tls lane the end of the answer is read, so that the connection can be used again. Without it, it is not. What
    /// follows on a stream of quic is nothing we asked for: dropping it stops the peer.
    async fn close(&self, closing: AtClosing<Line>) {
        if self.lane() == TLS {
            let _ = timeout(self.pace.stall(), closing.next()).await;
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
                let came = self.came.as_ref().map_or(bytes, |came| came.swap(0, Ordering::Relaxed));
                if came > 0 {
                    self.brake.take(came).await;
                }
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

    /// Tells a refusal from a lost connection and from a stream that the peer gave up.
    fn read_failed(&self, e: &std::io::Error) -> FetchError {
        let (peer, lane, hash) = (self.peer, self.lane(), self.hash);
        if let Some(&GaveUp(code)) = e.get_ref().and_then(|inner| inner.downcast_ref()) {
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

/// Sends a request in place of the one that the state machine writes.
struct Told {
    send: Said,
    instead: Request,
}

impl SendStream for Told {
    async fn send_bytes(&mut self, _bytes: Bytes) -> std::io::Result<()> {
        let bytes = postcard::to_stdvec(&self.instead).map_err(std::io::Error::other)?;
        self.send.send_bytes(bytes.into()).await
    }

    async fn send(&mut self, _buf: &[u8]) -> std::io::Result<()> {
        self.send_bytes(Bytes::new()).await
    }

    async fn sync(&mut self) -> std::io::Result<()> {
        self.send.sync().await
    }

    fn reset(&mut self, code: iroh::endpoint::VarInt) -> std::io::Result<()> {
        self.send.reset(code)
    }

    async fn stopped(&mut self) -> std::io::Result<Option<iroh::endpoint::VarInt>> {
        self.send.stopped().await
    }

    fn id(&self) -> u64 {
        self.send.id()
    }
}

/// Whether another lane to the same peer may well do better.
pub(super) fn is_fault_of_lane(e: &FetchError) -> bool {
    matches!(
        e,
        FetchError::Lane(LaneError::Lost { .. } | LaneError::Unreachable { .. } | LaneError::Silent { .. })
            | FetchError::Stalled { lane: TLS, .. }
            | FetchError::Slow { lane: TLS, .. }
    )
}

fn chunk_ranges(ranges: &[Range<u64>]) -> ChunkRanges {
    let mut all = ChunkRanges::empty();
    for r in ranges {
        let chunks = ChunkNum(r.start / CHUNK_BYTES)..ChunkNum(r.end.div_ceil(CHUNK_BYTES));
        all |= ChunkRanges::from(chunks);
    }
    all
}
