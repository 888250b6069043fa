//! The stream that an answer is read from, whichever lane it comes over.
//!
//! Invariant: only `get`, which sends requests ahead on one lane and opens streams on the other, tells the lanes apart;
//! errors name them.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use iroh::endpoint::{RecvStream as QuicStream, SendStream as QuicSend, VarInt};
use iroh_blobs::util::{RecvStream, SendStream};

use super::frames::{Receiver, Sender};
use super::peer::Lease;
use super::standing::Standing;
use super::{QUIC, TLS, tls};

/// The half of a request that is read.
pub(super) enum Line {
    Quic(QuicStream),
    Framed(Framed),
    Tls(tls::Reading),
}

/// An answer in frames on a stream of quic.
pub(super) struct Framed {
    recv: Receiver<QuicStream>,
    standing: Arc<Standing>,
}

impl Framed {
    pub fn new(recv: Receiver<QuicStream>, standing: Arc<Standing>) -> Self {
        Self { recv, standing }
    }
}

impl Drop for Framed {
    fn drop(&mut self) {
        self.standing.saved(self.recv.take_saved());
    }
}

/// The half of a request that is written.
pub(super) enum Said {
    Quic(QuicSend),
    Framed(Sender<QuicSend>),
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
            Line::Framed(s) => s.recv.recv_bytes(len).await,
            Line::Tls(s) => s.recv_bytes(len).await,
        }
    }

    async fn recv_bytes_exact(&mut self, len: usize) -> io::Result<Bytes> {
        match self {
            Line::Quic(s) => s.recv_bytes_exact(len).await,
            Line::Framed(s) => s.recv.recv_bytes_exact(len).await,
            Line::Tls(s) => s.recv_bytes_exact(len).await,
        }
    }

    async fn recv_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        match self {
            Line::Quic(s) => s.recv_exact(target).await,
            Line::Framed(s) => s.recv.recv_exact(target).await,
            Line::Tls(s) => s.recv_exact(target).await,
        }
    }

    fn stop(&mut self, code: VarInt) -> io::Result<()> {
        match self {
            Line::Quic(s) => RecvStream::stop(s, code),
            Line::Framed(s) => s.recv.stop(code),
            Line::Tls(s) => s.stop(code),
        }
    }

    fn id(&self) -> u64 {
        match self {
            Line::Quic(s) => RecvStream::id(s),
            Line::Framed(s) => s.recv.id(),
            Line::Tls(s) => s.id(),
        }
    }
}

impl SendStream for Said {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        match self {
            Said::Quic(s) => s.send_bytes(bytes).await,
            Said::Framed(s) => s.send_bytes(bytes).await,
            Said::Tls(s) => s.send_bytes(bytes).await,
        }
    }

    async fn send(&mut self, buf: &[u8]) -> io::Result<()> {
        match self {
            Said::Quic(s) => s.send(buf).await,
            Said::Framed(s) => s.send(buf).await,
            Said::Tls(s) => s.send(buf).await,
        }
    }

    async fn sync(&mut self) -> io::Result<()> {
        match self {
            Said::Quic(s) => s.sync().await,
            Said::Framed(s) => s.sync().await,
            Said::Tls(s) => s.sync().await,
        }
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        match self {
            Said::Quic(s) => SendStream::reset(s, code),
            Said::Framed(s) => SendStream::reset(s.get_mut(), code),
            Said::Tls(s) => s.reset(code),
        }
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        match self {
            Said::Quic(s) => SendStream::stopped(s).await,
            Said::Framed(s) => SendStream::stopped(s.get_mut()).await,
            Said::Tls(s) => s.stopped().await,
        }
    }

    fn id(&self) -> u64 {
        match self {
            Said::Quic(s) => SendStream::id(s),
            Said::Framed(s) => SendStream::id(s),
            Said::Tls(s) => s.id(),
        }
    }
}
