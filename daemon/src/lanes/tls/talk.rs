//! A connection of the tls lane in the hands of one user: requests go out, answers come back in the same order.
//!
//! More than one request may be on its way. That keeps the line full with small requests, and so bounds what is in
//! flight, which TCP itself does not: its buffers grow to many times what the line holds.
//!
//! Invariant: a connection goes back to its pool only when every request was answered to its end.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use iroh::endpoint::VarInt;
use iroh_blobs::protocol::Request;
use iroh_blobs::util::{RecvStream, SendStream};
use tokio::sync::OwnedSemaphorePermit;

use super::pool::{Inner, Line, Receiving, Rested, lock};
use crate::lanes::standing::Standing;

/// A lent connection.
pub(in crate::lanes) struct Talk {
    rested: Option<Half>,
    /// The half that is read, between two answers.
    between: Arc<Mutex<Option<Receiving>>>,
    /// Requests whose answers were not begun to be read.
    unanswered: usize,
    home: Weak<Inner>,
    standing: Arc<Standing>,
    /// It carried an exchange before, so that the other end may have closed it since.
    pub had_rested: bool,
    _place: OwnedSemaphorePermit,
}

/// What stays of a rested connection while its reading half is elsewhere.
struct Half {
    send: super::pool::Sending,
    line: Arc<Line>,
}

impl Talk {
    /// Takes a connection out of its rest.
    pub(super) fn new(rested: Rested, home: &Arc<Inner>, had_rested: bool, place: OwnedSemaphorePermit) -> Self {
        let Rested { recv, send, line, .. } = rested;
        Self {
            rested: Some(Half { send, line }),
            between: Arc::new(Mutex::new(Some(recv))),
            unanswered: 0,
            home: Arc::downgrade(home),
            standing: home.standing.clone(),
            had_rested,
            _place: place,
        }
    }

    /// Sends a request. Its answer comes after those to the requests before it.
    pub async fn ask(&mut self, request: &Request) -> io::Result<()> {
        let half = self.rested.as_mut().ok_or_else(gone)?;
        let bytes = postcard::to_stdvec(request).map_err(io::Error::other)?;
        self.unanswered += 1;
        on_line(&half.line, half.send.whole(&bytes)).await
    }

    /// Bytes that come off the line, for whoever counts them; none while an answer is read.
    pub fn came(&self) -> Option<Arc<AtomicU64>> {
        lock(&self.between).as_ref().map(Receiving::came)
    }

    /// The answer to the earliest request that was not read yet. The one before must have been read to its end.
    pub fn answer(&mut self) -> io::Result<Reading> {
        let recv = lock(&self.between).take().ok_or_else(gone)?;
        let half = self.rested.as_ref().ok_or_else(gone)?;
        self.unanswered = self.unanswered.checked_sub(1).ok_or_else(gone)?;
        let (line, between, standing) = (half.line.clone(), self.between.clone(), self.standing.clone());
        Ok(Reading { recv: Some(recv), line, between, standing })
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let (Some(Half { send, line }), Some(recv)) = (self.rested.take(), lock(&self.between).take()) else { return };
        if let Some(home) = self.home.upgrade()
            && self.unanswered == 0
            && line.is_up()
        {
            home.take_back(Rested::now(recv, send, line));
        }
    }
}

/// One answer. When it was read to its end, the next one can be.
pub(in crate::lanes) struct Reading {
    recv: Option<Receiving>,
    line: Arc<Line>,
    between: Arc<Mutex<Option<Receiving>>>,
    standing: Arc<Standing>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(mut recv) = self.recv.take()
            && recv.has_ended()
        {
            recv.again();
            self.standing.saved(recv.take_saved());
            *lock(&self.between) = Some(recv);
        }
    }
}

/// Fails as soon as the line is taken away.
async fn on_line<T>(line: &Line, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        () = line.taken_away() => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl RecvStream for Reading {
    async fn recv_bytes(&mut self, len: usize) -> io::Result<Bytes> {
        on_line(&self.line, self.recv.as_mut().ok_or_else(gone)?.recv_bytes(len)).await
    }

    async fn recv_bytes_exact(&mut self, len: usize) -> io::Result<Bytes> {
        on_line(&self.line, self.recv.as_mut().ok_or_else(gone)?.recv_bytes_exact(len)).await
    }

    async fn recv_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        on_line(&self.line, self.recv.as_mut().ok_or_else(gone)?.recv_exact(target)).await
    }

    fn stop(&mut self, _code: VarInt) -> io::Result<()> {
        self.recv = None;
        Ok(())
    }

    fn id(&self) -> u64 {
        0
    }
}

/// Stands where the protocol would write a request that was sent already.
pub(in crate::lanes) struct Said;

impl SendStream for Said {
    async fn send_bytes(&mut self, _bytes: Bytes) -> io::Result<()> {
        Ok(())
    }

    async fn send(&mut self, _buf: &[u8]) -> io::Result<()> {
        Ok(())
    }

    async fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self, _code: VarInt) -> io::Result<()> {
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        std::future::pending().await
    }

    fn id(&self) -> u64 {
        0
    }
}
