//! Why a lane did not do what it was asked.
//!
//! Invariant: each error names the peer and, where there is one, the blob and the lane, and says
//! whether the same call may succeed later.

use std::net::SocketAddr;

use sluice_protocol::codec::CodecError;
use sluice_protocol::ids::{BlobHash, SiteId};

/// Why there is no connection, or no answer.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    #[error("the UDP port {port} is taken by another program")]
    PortInUse { port: u16 },
    #[error("the UDP port {port} cannot be opened: {reason}")]
    Bind { port: u16, reason: String },
    #[error("the TCP port {port} is taken by another program")]
    TcpPortInUse { port: u16 },
    #[error("the TCP port {port} cannot be opened: {reason}")]
    BindTcp { port: u16, reason: String },
    #[error("the lane already serves a site")]
    AlreadyServing,
    #[error("the lane is closed")]
    Closed,
    #[error("`{site}` is no key of a site")]
    BadSite { site: SiteId },
    #[error("no address of site {} is known", site.short())]
    NoAddress { site: SiteId },
    #[error("site {} cannot be reached over quic at {}: {reason}", site.short(), list(tried))]
    Unreachable { site: SiteId, tried: Vec<SocketAddr>, reason: String },
    #[error("site {} does not know this site: pair again, or ask its owner why access was taken back", site.short())]
    NotPaired { site: SiteId },
    #[error("site {} is too busy", site.short())]
    Busy { site: SiteId },
    #[error("the connection to site {} ended: {reason}", site.short())]
    Lost { site: SiteId, reason: String },
    #[error("site {} sent no answer for {seconds} s", site.short())]
    Silent { site: SiteId, seconds: u64 },
    #[error("the conversation with site {} failed: {source}", site.short())]
    Message { site: SiteId, source: MessageError },
}

impl LaneError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            LaneError::Unreachable { .. }
            | LaneError::Busy { .. }
            | LaneError::Lost { .. }
            | LaneError::Silent { .. } => true,
            LaneError::Message { source, .. } => source.is_retryable(),
            LaneError::PortInUse { .. }
            | LaneError::Bind { .. }
            | LaneError::TcpPortInUse { .. }
            | LaneError::BindTcp { .. }
            | LaneError::AlreadyServing
            | LaneError::Closed
            | LaneError::BadSite { .. }
            | LaneError::NoAddress { .. }
            | LaneError::NotPaired { .. } => false,
        }
    }
}

/// Why a message was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("a message of {found} bytes is longer than the limit of {limit}")]
    TooLong { found: u64, limit: u64 },
    #[error("the message took longer than {seconds} s")]
    Slow { seconds: u64 },
    #[error("the message is cut off")]
    Cut,
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("the stream failed: {0}")]
    Stream(#[source] std::io::Error),
}

impl MessageError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            MessageError::Slow { .. } | MessageError::Cut | MessageError::Stream(_) => true,
            MessageError::TooLong { .. } | MessageError::Codec(_) => false,
        }
    }
}

/// Why a blob, or a part of one, did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Lane(#[from] LaneError),
    #[error("site {} does not offer the blob {hash} over {lane}", peer.short())]
    NotThere { peer: SiteId, lane: &'static str, hash: BlobHash },
    #[error("site {} refused a request for the blob {hash} over {lane}", peer.short())]
    Refused { peer: SiteId, lane: &'static str, hash: BlobHash },
    #[error("site {} sent wrong bytes for the blob {hash} over {lane}: {what}", peer.short())]
    Corrupt { peer: SiteId, lane: &'static str, hash: BlobHash, what: String },
    #[error("site {} says over {lane} that the blob {hash} has {claimed} bytes; {expected} are expected", peer.short())]
    WrongSize { peer: SiteId, lane: &'static str, hash: BlobHash, claimed: u64, expected: u64 },
    #[error("site {} says over {lane} that the blob {hash} has {claimed} bytes; at most {limit} are taken", peer.short())]
    TooLarge { peer: SiteId, lane: &'static str, hash: BlobHash, claimed: u64, limit: u64 },
    #[error("site {} sent nothing of the blob {hash} over {lane} for {seconds} s", peer.short())]
    Stalled { peer: SiteId, lane: &'static str, hash: BlobHash, seconds: u64 },
    #[error("site {} sent {bytes} bytes of the blob {hash} over {lane} in {seconds} s; {least} are the least that is borne", peer.short())]
    Slow { peer: SiteId, lane: &'static str, hash: BlobHash, bytes: u64, least: u64, seconds: u64 },
    #[error("the transfer of the blob {hash} from site {} over {lane} broke off: {reason}", peer.short())]
    Broken { peer: SiteId, lane: &'static str, hash: BlobHash, reason: String },
    #[error("the blob {hash} could not be stored: {source}")]
    Sink { hash: BlobHash, source: std::io::Error },
    #[error("the range {start}..{end} of the blob {hash} ({size} bytes) cannot be asked for")]
    BadRange { hash: BlobHash, size: u64, start: u64, end: u64 },
}

impl FetchError {
    /// Whether the same call, to the same peer, may succeed later. A caller that retries counts
    /// the errors for which [`FetchError::is_corrupt`] holds and drops the peer when there are too many.
    pub fn is_retryable(&self) -> bool {
        match self {
            FetchError::Lane(e) => e.is_retryable(),
            FetchError::Corrupt { .. }
            | FetchError::Stalled { .. }
            | FetchError::Slow { .. }
            | FetchError::Broken { .. } => true,
            FetchError::NotThere { .. }
            | FetchError::Refused { .. }
            | FetchError::WrongSize { .. }
            | FetchError::TooLarge { .. }
            | FetchError::Sink { .. }
            | FetchError::BadRange { .. } => false,
        }
    }

    /// Whether the peer sent what it must never send.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, FetchError::Corrupt { .. } | FetchError::WrongSize { .. })
    }

    /// Whether it took long to find out, and would again.
    pub fn is_slow(&self) -> bool {
        matches!(
            self,
            FetchError::Stalled { .. } | FetchError::Slow { .. } | FetchError::Lane(LaneError::Unreachable { .. })
        )
    }

    /// Whether another peer may well have what this one did not give.
    pub fn is_fault_of_peer(&self) -> bool {
        !matches!(self, FetchError::Sink { .. } | FetchError::BadRange { .. })
    }
}

fn list(addresses: &[SocketAddr]) -> String {
    let shown: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    shown.join(", ")
}
