//! The streams of the blob protocol in frames: one exchange after another on a TLS connection, one on a stream of quic.
//!
//! A frame is a `u32` in little-endian order and what it announces. Below 2^31 it is a number of bytes that follow,
//! [`FRAME_BYTES_MAX`] at most; 0 is the end of this side's half of the exchange. With the highest bit set the sender
//! gave up, and the other 31 bits say why, in the codes that the quic lane uses. With the second highest bit set a `u32` of
//! what the bytes come to follows, and then they, as one frame of zstd.
//!
//! Invariant: a TLS connection is used again only after both halves of an exchange came to their end. Whatever else
//! happens on it, it is closed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use iroh::endpoint::VarInt;
use iroh_blobs::util::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::pack::{self, Gauge, Piece};

/// Most bytes of one frame.
const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// The bit that marks a frame in which the sender gives up.
const GAVE_UP: u32 = 1 << 31;
/// The bit that marks a frame whose bytes are packed.
const PACKED: u32 = 1 << 30;
/// Bytes read from the connection at once: a good many records of TLS, which have 16 KiB each.
const READ_BYTES: usize = 256 * 1024;

/// The other side gave this exchange up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer gave up: code {0}")]
pub(super) struct GaveUp(pub u32);

/// The half of an exchange that is read. It ends at the frame that says so.
#[derive(Debug)]
pub(super) struct Receiver<R> {
    from: R,
    /// Read from the connection and not yet used.
    held: BytesMut,
    /// Bytes of the present frame that are still to come.
    left: usize,
    /// What is left of them, where they came packed.
    unpacked: Bytes,
    /// Bytes that packing spared the line.
    saved: u64,
    /// Bytes that came off the line, until somebody counts them.
    came: Arc<AtomicU64>,
    ended: bool,
}

impl<R: AsyncRead + Send + Unpin> Receiver<R> {
    pub fn new(from: R) -> Self {
        Self {
            from,
            held: BytesMut::new(),
            left: 0,
            unpacked: Bytes::new(),
            saved: 0,
            came: Arc::default(),
            ended: false,
        }
    }

    /// Whether the other side's half came to its end.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Makes ready for the next exchange.
    pub fn again(&mut self) {
        self.ended = false;
    }

    /// Bytes that came off the line, for whoever counts them.
    pub fn came(&self) -> Arc<AtomicU64> {
        self.came.clone()
    }

    /// Bytes that packing spared the line since this was asked last.
    pub fn take_saved(&mut self) -> u64 {
        std::mem::take(&mut self.saved)
    }

    /// Waits until the other side begins to say something; `false` when it closed the connection instead.
    pub async fn begins(&mut self) -> io::Result<bool> {
        Ok(!self.held.is_empty() || self.fill().await?)
    }

    /// Reads more; `false` at the end of the connection, however it came.
    async fn fill(&mut self) -> io::Result<bool> {
        self.held.reserve(READ_BYTES);
        match self.from.read_buf(&mut self.held).await {
            Ok(n) => {
                self.came.fetch_add(n as u64, Ordering::Relaxed);
                Ok(n > 0)
            }
            // TLS without its goodbye.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Reads more of an exchange that has not ended. A connection that ends in it is lost: the kind `UnexpectedEof` would
    /// say that the other side has no more to say, which to the blob protocol means that it does not have the blob.
    async fn more(&mut self) -> io::Result<()> {
        if self.fill().await? { Ok(()) } else { Err(io::ErrorKind::ConnectionReset.into()) }
    }

    /// Goes on to a frame with bytes; `false` at the end.
    async fn frame(&mut self) -> io::Result<bool> {
        while self.left == 0 && !self.ended {
            while self.held.len() < 4 {
                self.more().await?;
            }
            let said = self.held.get_u32_le();
            match said as usize {
                _ if said & GAVE_UP != 0 => return Err(io::Error::other(GaveUp(said & !GAVE_UP))),
                0 => self.ended = true,
                n if said & PACKED != 0 => self.packed(n & !(PACKED as usize)).await?,
                n if n > FRAME_BYTES_MAX => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {n} bytes")));
                }
                n => self.left = n,
            }
        }
        Ok(!self.ended)
    }

    /// Unpacks the frame of `n` bytes that begins.
    async fn packed(&mut self, n: usize) -> io::Result<()> {
        while self.held.len() < 4 {
            self.more().await?;
        }
        let raw = self.held.get_u32_le() as usize;
        if n > FRAME_BYTES_MAX || raw > FRAME_BYTES_MAX || raw == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a packed frame of {n} for {raw} bytes")));
        }
        while self.held.len() < n {
            self.more().await?;
        }
        self.unpacked = pack::unpack(&self.held.split_to(n), raw)?;
        self.saved += raw.saturating_sub(n) as u64;
        self.left = raw;
        Ok(())
    }

    /// Some bytes of the exchange, `most` at most; none at its end.
    async fn some(&mut self, most: usize) -> io::Result<Bytes> {
        if !self.frame().await? {
            return Ok(Bytes::new());
        }
        if !self.unpacked.is_empty() {
            let n = most.min(self.unpacked.len());
            self.left -= n;
            return Ok(self.unpacked.split_to(n));
        }
        if self.held.is_empty() {
            self.more().await?;
        }
        let n = most.min(self.left).min(self.held.len());
        self.left -= n;
        Ok(self.held.split_to(n).freeze())
    }

    /// Fills `target` as far as the exchange reaches; gives how far.
    async fn fill_target(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let mut at = 0;
        while at < target.len() {
            let bytes = self.some(target.len() - at).await?;
            if bytes.is_empty() {
                break;
            }
            target[at..at + bytes.len()].copy_from_slice(&bytes);
            at += bytes.len();
        }
        Ok(at)
    }
}

impl<R: AsyncRead + Send + Unpin> RecvStream for Receiver<R> {
    async fn recv_bytes(&mut self, len: usize) -> io::Result<Bytes> {
        let first = self.some(len).await?;
        if first.len() == len || first.is_empty() {
            return Ok(first);
        }
        let mut all = BytesMut::from(first);
        while all.len() < len {
            let more = self.some(len - all.len()).await?;
            if more.is_empty() {
                break;
            }
            all.extend_from_slice(&more);
        }
        Ok(all.freeze())
    }

    async fn recv_bytes_exact(&mut self, len: usize) -> io::Result<Bytes> {
        let bytes = self.recv_bytes(len).await?;
        if bytes.len() == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    async fn recv_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        let wanted = target.len();
        if self.fill_target(target).await? == wanted { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn stop(&mut self, _code: VarInt) -> io::Result<()> {
        // Nobody listens while a half is written: closing the connection is what stops it.
        Ok(())
    }

    fn id(&self) -> u64 {
        0
    }
}

/// The half of an exchange that is written.
#[derive(Debug)]
pub(super) struct Sender<W> {
    to: W,
    /// A frame was begun and not finished: nothing else can be said on this connection any more.
    within: bool,
    gives_up: Option<u32>,
    /// Whether packing pays on this line; none where it is not to be done.
    gauge: Option<Arc<Gauge>>,
}

impl<W: AsyncWrite + Send + Unpin> Sender<W> {
    pub fn new(to: W) -> Self {
        Self { to, within: false, gives_up: None, gauge: None }
    }

    /// Says that this half does not come to its end, where that can still be said.
    pub async fn give_up(&mut self, code: u32) -> io::Result<()> {
        if self.within {
            return Ok(());
        }
        self.word(GAVE_UP | (code & !GAVE_UP)).await
    }

    /// The same, and pieces are packed where the gauge of the line says that it pays.
    pub fn packing(mut self, gauge: Option<Arc<Gauge>>) -> Self {
        self.gauge = gauge;
        self
    }

    /// What the frames go to.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.to
    }

    /// How fast the line is, and whether packing pays on it.
    pub fn gauge(&self) -> Option<&Arc<Gauge>> {
        self.gauge.as_ref()
    }

    /// A piece of an answer.
    pub async fn piece(&mut self, piece: Piece) -> io::Result<()> {
        let sent = piece.raw.unwrap_or(piece.bytes.len()) as u64;
        match piece.raw {
            None => self.write(&piece.bytes).await?,
            Some(raw) => {
                let mut head = [0; 8];
                head[..4].copy_from_slice(&(PACKED | piece.bytes.len() as u32).to_le_bytes());
                head[4..].copy_from_slice(&(raw as u32).to_le_bytes());
                self.within = true;
                self.to.write_all(&head).await?;
                self.to.write_all(&piece.bytes).await?;
                self.within = false;
            }
        }
        if let Some(gauge) = &self.gauge {
            gauge.sent(sent);
        }
        Ok(())
    }

    /// A whole half: these bytes, and its end.
    pub async fn whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut framed = BytesMut::with_capacity(bytes.len() + 8);
        for piece in bytes.chunks(FRAME_BYTES_MAX) {
            framed.put_u32_le(piece.len() as u32);
            framed.put_slice(piece);
        }
        framed.put_u32_le(0);
        self.within = true;
        self.to.write_all(&framed).await?;
        self.to.flush().await?;
        self.within = false;
        Ok(())
    }

    /// The code of a reset that was asked for and not yet said.
    pub fn wants_reset(&self) -> Option<u32> {
        self.gives_up
    }

    async fn word(&mut self, word: u32) -> io::Result<()> {
        self.to.write_all(&word.to_le_bytes()).await?;
        self.to.flush().await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(FRAME_BYTES_MAX) {
            self.within = true;
            self.to.write_all(&(piece.len() as u32).to_le_bytes()).await?;
            self.to.write_all(piece).await?;
            self.within = false;
        }
        Ok(())
    }

    /// Ends the connection.
    pub async fn shut(&mut self) {
        // It may be gone already.
        let _ = self.to.shutdown().await;
    }
}

impl<W: AsyncWrite + Send + Unpin> SendStream for Sender<W> {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.write(&bytes).await
    }

    async fn send(&mut self, buf: &[u8]) -> io::Result<()> {
        self.write(buf).await
    }

    /// The protocol calls this once, after the last byte of its half: it ends the half.
    async fn sync(&mut self) -> io::Result<()> {
        self.word(0).await
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        // Said by whoever owns the connection, who can wait.
        self.gives_up = Some(u32::try_from(u64::from(code)).unwrap_or(0));
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        std::future::pending().await
    }

    fn id(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (Sender<tokio::io::DuplexStream>, Receiver<tokio::io::DuplexStream>) {
        let (near, far) = tokio::io::duplex(1 << 22);
        (Sender::new(near), Receiver::new(far))
    }

    #[tokio::test]
    async fn one_exchange_follows_another() {
        let (mut send, mut recv) = ends();
        let long: Bytes = (0..3 * FRAME_BYTES_MAX / 2).map(|i| (i % 251) as u8).collect();
        for _ in 0..2 {
            send.send(b"head").await.unwrap();
            send.send_bytes(long.clone()).await.unwrap();
            send.sync().await.unwrap();
            assert!(recv.begins().await.unwrap());
            assert_eq!(recv.recv_bytes_exact(4).await.unwrap(), b"head"[..]);
            let mut first = [0; 1000];
            recv.recv_exact(&mut first).await.unwrap();
            assert_eq!(first, long[..1000]);
            assert!(!recv.has_ended());
            // More than there is: everything to the end.
            assert_eq!(recv.recv_bytes(FRAME_BYTES_MAX * 2).await.unwrap(), long[1000..]);
            assert!(recv.has_ended() && recv.recv_bytes(1).await.unwrap().is_empty());
            assert!(recv.recv_bytes_exact(1).await.is_err(), "nothing is read past the end");
            recv.again();
        }
        send.shut().await;
        assert!(!recv.begins().await.unwrap());
    }

    #[tokio::test]
    async fn giving_up_is_told_from_an_end_and_from_a_cut() {
        let (mut send, mut recv) = ends();
        send.send(b"some").await.unwrap();
        send.give_up(7).await.unwrap();
        let e = recv.recv_bytes(100).await.unwrap_err();
        assert_eq!(e.get_ref().and_then(|e| e.downcast_ref()), Some(&GaveUp(7)));
        let (mut send, mut recv) = ends();
        send.send(b"some").await.unwrap();
        send.shut().await;
        let e = recv.recv_bytes_exact(100).await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::ConnectionReset, "a cut is no end of the half");
        assert!(!recv.has_ended());
        let (mut send, mut recv) = ends();
        send.send(b"some").await.unwrap();
        send.sync().await.unwrap();
        assert_eq!(recv.recv_bytes_exact(100).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_long_frame_is_refused_before_it_is_read() {
        let (mut near, far) = tokio::io::duplex(64);
        near.write_all(&((FRAME_BYTES_MAX + 1) as u32).to_le_bytes()).await.unwrap();
        let e = Receiver::new(far).recv_bytes(1).await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_packed_frame_reads_like_any_other() {
        let (send, mut recv) = ends();
        let mut send = send.packing(Some(Arc::default()));
        let text = Bytes::from("acme,".repeat(40_000));
        for _ in 0..2 {
            let piece = send.gauge().unwrap().pack(text.clone());
            assert!(piece.raw.is_some());
            send.send(b"head").await.unwrap();
            send.piece(piece).await.unwrap();
            send.piece(Piece { bytes: Bytes::from_static(b"tail"), raw: None }).await.unwrap();
            send.sync().await.unwrap();
            assert_eq!(recv.recv_bytes(1 << 20).await.unwrap(), [b"head", &text[..], b"tail"].concat());
            assert!(recv.has_ended());
            assert!(recv.take_saved() > 150_000);
            recv.again();
        }
    }

    #[tokio::test]
    async fn a_packed_frame_that_lies_about_its_length_is_refused() {
        let packed = Gauge::default().pack(vec![7; 100_000].into()).bytes;
        for (n, raw) in
            [(packed.len(), 99_999), (packed.len(), FRAME_BYTES_MAX + 1), (FRAME_BYTES_MAX + 1, 5), (packed.len(), 0)]
        {
            let (mut near, far) = tokio::io::duplex(1 << 20);
            near.write_all(&(PACKED | n as u32).to_le_bytes()).await.unwrap();
            near.write_all(&(raw as u32).to_le_bytes()).await.unwrap();
            near.write_all(&packed).await.unwrap();
            assert!(Receiver::new(far).recv_bytes(1).await.is_err(), "{n} for {raw}");
        }
    }
}
