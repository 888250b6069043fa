//! The stream that an answer is read from, whichever lane it comes over.
//!
//! Invariant: code above this file does not ask which lane it is; errors name it.

use std::io;

use bytes::Bytes;
use iroh::endpoint::{RecvStream as QuicStream, SendStream as QuicSend, VarInt};
use iroh_blobs::util::{RecvStream, SendStream};

use super::peer::Lease;
use super::{QUIC, TLS, tls};

/// The half of a request that is read.
pub(super) enum Line {
    Quic(QuicStream),
    Tls(tls::Reading),
}

/// The half of a request that is written.
pub(super) enum Said {
    Quic(QuicSend),
    Tls(tls::Said),
}

/// What carries requests.
pub(super) enum Carrier {
    /// A connection of the pool, lent.
    Quic(Lease),
    /// A connection that is ours for as long as there is something to ask; and the way, to be told of a failure.
    Tls(Box<tls::Talk>, tls::Pool),
}

impl Carrier {
    /// The lane's name.
    pub fn lane(&self) -> &'static str {
        match self {
            Carrier::Quic(_) => QUIC,
            Carrier::Tls(..) => TLS,
        }
    }
}

impl RecvStream for Line {
    async fn recv_bytes(&mut self, len: usize) -> io::Result<Bytes> {
        match self {
            Line::Quic(s) => s.recv_bytes(len).await,
            Line::Tls(s) => s.recv_bytes(len).await,
        }
    }

    async fn recv_bytes_exact(&mut self, len: usize) -> io::Result<Bytes> {
        match self {
            Line::Quic(s) => s.recv_bytes_exact(len).await,
            Line::Tls(s) => s.recv_bytes_exact(len).await,
        }
    }

    async fn recv_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        match self {
            Line::Quic(s) => s.recv_exact(target).await,
            Line::Tls(s) => s.recv_exact(target).await,
        }
    }

    fn stop(&mut self, code: VarInt) -> io::Result<()> {
        match self {
            Line::Quic(s) => RecvStream::stop(s, code),
            Line::Tls(s) => s.stop(code),
        }
    }

    fn id(&self) -> u64 {
        match self {
            Line::Quic(s) => RecvStream::id(s),
            Line::Tls(s) => s.id(),
        }
    }
}

impl SendStream for Said {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        match self {
            Said::Quic(s) => s.send_bytes(bytes).await,
            Said::Tls(s) => s.send_bytes(bytes).await,
        }
    }

    async fn send(&mut self, buf: &[u8]) -> io::Result<()> {
        match self {
            Said::Quic(s) => s.send(buf).await,
            Said::Tls(s) => s.send(buf).await,
        }
    }

    async fn sync(&mut self) -> io::Result<()> {
        match self {
            Said::Quic(s) => s.sync().await,
            Said::Tls(s) => s.sync().await,
        }
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        match self {
            Said::Quic(s) => SendStream::reset(s, code),
            Said::Tls(s) => s.reset(code),
        }
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        match self {
            Said::Quic(s) => SendStream::stopped(s).await,
            Said::Tls(s) => s.stopped().await,
        }
    }

    fn id(&self) -> u64 {
        match self {
            Said::Quic(s) => SendStream::id(s),
            Said::Tls(s) => s.id(),
        }
    }
}
