//! Answering requests in the wire protocol of iroh-blobs.
//!
//! Invariant: only single blobs are served, each named by the request and each allowed by the host.
//! A request that wants the bytes of a blob to be read as a list of hashes is refused, since that
//! would let a peer that can place a blob in one space read another (it would make us its deputy).
//! Pushing and observing are refused.
//!
//! A refusal of kind is a reset of the stream; a blob that is not here, or not for this peer, is an
//! answer that ends before it. Damage found on the way is a reset, and the host is told.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iroh_blobs::protocol::{ERR_INTERNAL, ERR_LIMIT, ERR_PERMISSION, Request};
use iroh_blobs::util::{RecvStream, SendStream};
use sluice_protocol::ids::{BlobHash, SiteId};
use tokio::io::AsyncWrite;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Host;
use super::caps::Brake;
use super::encode::{EncodeError, Job};
use super::frames::Sender;
use super::limits::{REQUEST_BLOBS_MAX, REQUEST_RANGES_BYTES_MAX, REQUEST_TIMEOUT};
use super::pack::{Gauge, Piece};

/// First byte of a request for one blob.
const TAG_GET: u8 = 0;
/// First byte of a request for several blobs.
const TAG_GET_MANY: u8 = 9;
const HASH_BYTES: usize = 32;
/// Longest request: tag, count, hashes, ranges.
const REQUEST_BYTES_MAX: usize = 1 + 5 + REQUEST_BLOBS_MAX * HASH_BYTES + REQUEST_RANGES_BYTES_MAX;

/// Why a stream was not answered to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    #[error("the request did not arrive: {0}")]
    Unread(String),
    #[error("the request is refused: {0}")]
    Refused(&'static str),
    #[error("the request is longer than we take")]
    TooLong,
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("encoding was cancelled: {0}")]
    Cancelled(String),
    #[error("the peer took nothing for {0} s")]
    Stalled(u64),
    #[error("the peer went away: {0}")]
    Gone(std::io::Error),
}

type Wanted = VecDeque<(BlobHash, bao_tree::ChunkRanges)>;

/// The half that answers are written to. Some can carry packed pieces.
pub(super) trait Answering: SendStream {
    /// What decides whether a piece is packed; none where none may be.
    fn gauge(&self) -> Option<Arc<Gauge>> {
        None
    }

    /// Writes a piece, packed or not.
    fn piece(&mut self, piece: Piece) -> impl Future<Output = std::io::Result<()>> + Send {
        self.send_bytes(piece.bytes)
    }
}

impl Answering for iroh::endpoint::SendStream {}

impl<W: AsyncWrite + Send + Unpin> Answering for Sender<W> {
    fn gauge(&self) -> Option<Arc<Gauge>> {
        Sender::gauge(self).cloned()
    }

    fn piece(&mut self, piece: Piece) -> impl Future<Output = std::io::Result<()>> + Send {
        Sender::piece(self, piece)
    }
}

/// Reads one request and answers it, no faster than the brake allows.
pub(super) async fn stream<R: RecvStream, W: Answering>(
    host: Arc<dyn Host>,
    peer: SiteId,
    reader: &mut R,
    writer: &mut W,
    (brake, stall): (&Brake, Duration),
) -> Result<(), ServeError> {
    let result = async {
        let wanted = timeout(REQUEST_TIMEOUT, read_request(reader))
            .await
            .map_err(|_| ServeError::Unread("it took too long".into()))??;
        answer(host, peer, wanted, writer, (brake, stall)).await
    }
    .await;
    if let Err(e) = &result {
        let code = match e {
            ServeError::Refused(_) => ERR_PERMISSION,
            ServeError::TooLong => ERR_LIMIT,
            _ => ERR_INTERNAL,
        };
        // A stream that is only dropped would look finished.
        let _ = writer.reset(code);
        let _ = reader.stop(code);
    }
    result
}

/// Reads a request, looking at its kind and its length before any of it is decoded.
async fn read_request<R: RecvStream>(reader: &mut R) -> Result<Wanted, ServeError> {
    let unread = |e: std::io::Error| ServeError::Unread(e.to_string());
    let tag = reader.recv_bytes(1).await.map_err(unread)?;
    let limit = match tag.first() {
        Some(&TAG_GET) => HASH_BYTES + REQUEST_RANGES_BYTES_MAX,
        Some(&TAG_GET_MANY) => REQUEST_BYTES_MAX - 1,
        Some(_) => return Err(ServeError::Refused("only blobs can be asked for")),
        None => return Err(ServeError::Unread("the stream is empty".into())),
    };
    let rest = reader.recv_bytes(limit + 1).await.map_err(unread)?;
    if rest.len() > limit {
        return Err(ServeError::TooLong);
    }
    if tag[0] == TAG_GET_MANY {
        check_many(&rest)?;
    }
    let mut whole: Bytes = [&tag[..], &rest[..]].concat().into();
    let (request, _) = Request::read_async(&mut whole).await.map_err(unread)?;
    wanted(request)
}

/// Compares the number of hashes, and what is left for ranges, with their limits.
fn check_many(rest: &[u8]) -> Result<(), ServeError> {
    let mut count = 0usize;
    let mut used = 0;
    for (i, byte) in rest.iter().take(4).enumerate() {
        count |= usize::from(byte & 0x7f) << (7 * i);
        used = i + 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let ranges = rest.len().checked_sub(used + count.saturating_mul(HASH_BYTES));
    if count > REQUEST_BLOBS_MAX || ranges.is_none_or(|n| n > REQUEST_RANGES_BYTES_MAX) {
        return Err(ServeError::TooLong);
    }
    Ok(())
}

/// The blobs that a request names itself.
fn wanted(request: Request) -> Result<Wanted, ServeError> {
    match request {
        Request::Get(get) if get.ranges.is_blob() => {
            Ok(VecDeque::from([(BlobHash(get.hash.into()), get.ranges[0].clone())]))
        }
        Request::Get(_) => Err(ServeError::Refused("a blob is not served as a list of hashes")),
        Request::GetMany(many) => Ok(many
            .hashes
            .iter()
            .zip(many.ranges.iter_infinite())
            .filter(|(_, ranges)| !ranges.is_empty())
            .map(|(hash, ranges)| (BlobHash((*hash).into()), ranges.clone()))
            .collect()),
        _ => Err(ServeError::Refused("only blobs can be asked for")),
    }
}

/// Sends piece after piece; while one is on its way the next is made.
async fn answer<W: Answering>(
    host: Arc<dyn Host>,
    peer: SiteId,
    wanted: Wanted,
    writer: &mut W,
    (brake, stall): (&Brake, Duration),
) -> Result<(), ServeError> {
    let gauge = writer.gauge();
    let fill = |job| spawn_fill(job, gauge.clone(), brake.clone());
    let mut next = fill(Box::new(Job::new(host.clone(), peer, wanted)));
    loop {
        let (job, pieces) = next.await.map_err(|e| ServeError::Cancelled(e.to_string()))?;
        let pieces = pieces?;
        if pieces.is_empty() {
            let ended = timeout(stall, writer.sync()).await;
            return ended.map_err(|_| ServeError::Stalled(stall.as_secs()))?.map_err(ServeError::Gone);
        }
        next = fill(job);
        for piece in pieces {
            let bytes = piece.bytes.len() as u64;
            brake.take(bytes).await;
            timeout(stall, writer.piece(piece))
                .await
                .map_err(|_| ServeError::Stalled(stall.as_secs()))?
                .map_err(ServeError::Gone)?;
            host.served(peer, bytes);
        }
    }
}

type Filled = (Box<Job>, Result<Vec<Piece>, EncodeError>);

/// Makes what is sent next: one piece, or some where a cap keeps them small.
fn spawn_fill(mut job: Box<Job>, gauge: Option<Arc<Gauge>>, brake: Brake) -> tokio::task::JoinHandle<Filled> {
    spawn_blocking(move || {
        let filled = job.fill().map(|bytes| {
            let mut bytes = Bytes::from(bytes);
            let mut pieces = Vec::new();
            while !bytes.is_empty() {
                let slice = bytes.split_to(brake.slice(bytes.len()).min(bytes.len()));
                pieces.push(match &gauge {
                    Some(gauge) => gauge.pack(slice),
                    None => Piece { bytes: slice, raw: None },
                });
            }
            pieces
        });
        (job, filled)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use iroh_blobs::protocol::{ChunkRangesSeq, GetRequest};
    use proptest::prelude::*;

    fn read(wire: Vec<u8>) -> Result<Wanted, ServeError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(read_request(&mut Bytes::from(wire)))
    }

    proptest! {
        /// Whatever arrives, we do not panic, and what we would serve is named in it.
        #[test]
        fn any_bytes_are_read_safely(tag in prop::sample::select(vec![TAG_GET, TAG_GET_MANY]), rest in prop::collection::vec(any::<u8>(), 0..300)) {
            let wire = [&[tag][..], &rest].concat();
            if let Ok(wanted) = read(wire.clone()) {
                for (hash, _) in wanted {
                    prop_assert!(wire.windows(32).any(|w| w == hash.0));
                }
            }
        }

        /// Small changes of a good request, which get further into the decoder.
        #[test]
        fn damaged_requests_are_read_safely(
            many in any::<bool>(),
            at in 0usize..80,
            to in any::<u8>(),
            tail in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut wire = if many { [&[9, 2][..], &[5; 64], &[2, 0, 1, 0, 2, 0]].concat() } else { [&[0][..], &[5; 32], &[2, 0, 1, 0, 1, 0]].concat() };
            let last = wire.len() - 1;
            wire[at.min(last)] = to;
            wire.extend(tail);
            if let Ok(wanted) = read(wire) {
                prop_assert!(wanted.len() <= REQUEST_BLOBS_MAX);
            }
        }
    }

    #[test]
    fn good_requests_are_understood() {
        let wanted = read([&[0][..], &[5; 32], &[2, 0, 1, 0, 1, 0]].concat()).unwrap();
        assert_eq!(wanted, VecDeque::from([(BlobHash([5; 32]), bao_tree::ChunkRanges::all())]));
        let wanted = read([&[9, 2][..], &[5; 32], &[6; 32], &[2, 0, 1, 0, 2, 0]].concat()).unwrap();
        assert_eq!(wanted.len(), 2);
        // Ranges for more blobs than are named do not invent any.
        let wanted = read([&[9, 1][..], &[5; 32], &[1, 0, 1, 0]].concat()).unwrap();
        assert_eq!(wanted.len(), 1);
    }

    #[test]
    fn a_list_of_hashes_is_refused_however_it_is_put() {
        use bao_tree::{ChunkNum, ChunkRanges};
        let some = ChunkRanges::from(ChunkNum(1)..ChunkNum(2));
        for ranges in [
            ChunkRangesSeq::all(),
            ChunkRangesSeq::verified_child_sizes(),
            ChunkRangesSeq::from_ranges([ChunkRanges::empty(), ChunkRanges::all()]),
            ChunkRangesSeq::from_ranges([ChunkRanges::all(), some.clone()]),
            ChunkRangesSeq::from_ranges_infinite([some]),
            ChunkRangesSeq::empty(),
        ] {
            let request = Request::Get(GetRequest::new([5; 32].into(), ranges.clone()));
            assert!(matches!(wanted(request), Err(ServeError::Refused(_))), "{ranges:?}");
        }
    }
}
