//! Lanes: the ways bytes travel between sites. `quic` carries everything, `tls` bulk data where it can.
//!
//! A lane knows how to reach a site, who is on the other end (the key that the handshake proved),
//! and how to ask for blobs and serve them. It knows nothing of spaces, grants or catalogs: it asks
//! its [`Host`]. Only this folder imports iroh, iroh-blobs and bao-tree.
//!
//! Invariants: a site that is not paired reaches nothing but the pairing door. Every byte that
//! leaves was checked against the blob's hash just before, and every byte that arrives is checked
//! before anyone sees it. Only single blobs are served, each asked for by its own hash: the bytes of
//! a blob are never read as a list of hashes.

mod accept;
mod admission;
mod ahead;
mod caps;
mod carrier;
mod encode;
pub mod error;
mod fetch;
mod flight;
mod frames;
mod get;
pub mod limits;
pub mod message;
mod pace;
mod pack;
mod peer;
mod quic;
mod serve;
mod standing;
mod tls;
mod window;
mod writer;

use std::fs::File;
use std::io;

use bytes::Bytes;
use sluice_protocol::ids::{BlobHash, SiteId};
use sluice_protocol::messages::Message;
use sluice_store::staging::Pair;

pub use caps::{Caps, Hours};
pub use error::{FetchError, LaneError, MessageError};
pub use fetch::FetchStats;
pub use peer::Peer;
pub use quic::{QuicConfig, QuicLane};
pub use standing::LaneStanding;
pub use tls::TLS;

/// The name of this lane in errors and journals.
pub const QUIC: &str = "quic";

/// What a lane asks of the site it serves.
#[async_trait::async_trait]
pub trait Host: Send + Sync + 'static {
    /// Whether the site may speak with us at all. Asked on the reactor for each connection and each
    /// stream: it must not block for long.
    fn is_paired(&self, site: SiteId) -> bool;

    /// Answers one message. `paired` is false only at the pairing door, where nothing but
    /// [`Message::Pair`] is handed on.
    async fn on_message(&self, from: SiteId, paired: bool, message: Message) -> Message;

    /// The blob, if it is here and this peer may have it. `None` is both "refused" and "not here",
    /// so that the peer cannot tell which. Called on a blocking thread, for each request.
    fn open_blob(&self, peer: SiteId, hash: BlobHash) -> Option<ServedBlob>;

    /// Verified bytes were handed to a stream for `peer` (hash pairs and sizes included).
    fn served(&self, peer: SiteId, bytes: u64);

    /// What [`Host::open_blob`] gave does not have the hash it was opened for. Called on a blocking
    /// thread; the bytes did not leave.
    fn damaged(&self, hash: BlobHash);
}

/// Bytes at rest that a lane reads from.
#[derive(Debug)]
pub enum ServedData {
    /// A file, read from its start by position; its cursor is not used.
    File(File),
    /// Bytes in memory.
    Bytes(Bytes),
}

/// A blob opened for serving.
#[derive(Debug)]
pub struct ServedBlob {
    /// Length in bytes.
    pub size: u64,
    /// The bytes of the blob.
    pub data: ServedData,
    /// Its stored tree (`sluice_store::outboard`): pre-order, of either grain, which its length tells.
    pub outboard: ServedData,
}

impl ServedData {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64> {
        match self {
            ServedData::File(file) => file.metadata().map(|about| about.len()),
            ServedData::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }
}

impl From<File> for ServedData {
    fn from(file: File) -> Self {
        ServedData::File(file)
    }
}

impl From<Bytes> for ServedData {
    fn from(bytes: Bytes) -> Self {
        ServedData::Bytes(bytes)
    }
}

impl From<Vec<u8>> for ServedData {
    fn from(bytes: Vec<u8>) -> Self {
        ServedData::Bytes(bytes.into())
    }
}

/// Where verified pieces of a blob go.
///
/// Both calls are made on blocking threads, in order for one request, and at once for several
/// requests that share a sink. When a fetch is dropped, one last call may still be under way.
pub trait LeafSink: Send + Sync + 'static {
    /// Verified bytes of the blob at `offset` (a multiple of 16 KiB); 256 KiB at most.
    fn leaf(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Verified pairs of hashes, each with its place in the pre-order outboard with 16 KiB groups, counted in pairs:
    /// a pair belongs at byte `index * 64`. They come before the leaves that they prove.
    fn parents(&self, pairs: &[Pair]) -> io::Result<()>;
}
