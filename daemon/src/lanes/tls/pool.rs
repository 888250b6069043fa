//! Connections to one peer on the tls lane, and what is known of the way there.
//!
//! Invariant: a connection is lent to one exchange at a time and comes back only when that came to its end. Nobody waits
//! for this lane: while it cannot be had, quic carries the data.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use iroh::endpoint::VarInt;
use iroh_blobs::util::{RecvStream, SendStream};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sluice_protocol::ids::SiteId;
use sluice_protocol::messages::ALPN_TLS_BLOBS;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Keys;
use super::frames::{Receiver, Sender};
use crate::lanes::admission::Closable;
use crate::lanes::limits;
use crate::lanes::quic::Shared;
use crate::lanes::standing::Standing;

type Stream = TlsStream<TcpStream>;

/// How long a request waits for one of the connections to be free: about what a segment takes on a slow line.
const PLACE_WITHIN: Duration = Duration::from_secs(60);

/// One connection, at rest between two exchanges.
struct Rested {
    recv: Receiver<ReadHalf<Stream>>,
    send: Sender<WriteHalf<Stream>>,
    line: Arc<Line>,
    since: Instant,
}

/// What closes a connection from outside: its exchange fails, or it is not lent again.
struct Line(CancellationToken);

impl Closable for Line {
    fn close(&self, _code: u32, _reason: &str) {
        self.0.cancel();
    }

    fn is_open(&self) -> bool {
        !self.0.is_cancelled()
    }
}

/// The way to one peer; clones are the same way.
#[derive(Clone)]
pub(in crate::lanes) struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    site: SiteId,
    addresses: Vec<SocketAddr>,
    keys: Keys,
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    standing: Arc<Standing>,
    rested: Mutex<Vec<Rested>>,
}

impl Pool {
    /// A way to `site` at these addresses, with so many connections at most. Nothing is dialled yet.
    pub fn new(
        keys: Keys,
        shared: Arc<Shared>,
        standing: Arc<Standing>,
        site: SiteId,
        addresses: Vec<SocketAddr>,
        connections_max: usize,
    ) -> Self {
        let inner = Inner {
            site,
            addresses,
            keys,
            shared,
            places: Arc::new(Semaphore::new(connections_max)),
            standing,
            rested: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Both halves of a new exchange; none while this lane is not to be had.
    ///
    /// The first time it waits [`limits::TLS_HEAD_START`] at most: the connection that comes later serves the next. A
    /// connection that is dialled for it takes about `window` bytes ahead of our reading, where the system lets us say so.
    pub async fn exchange(&self, window: u64) -> Option<(Reading, Writing)> {
        if !self.inner.standing.tries_tls(!self.inner.addresses.is_empty()) {
            return None;
        }
        // Once it went, its places are worth waiting for; until then only a moment, whoever is dialling.
        let patience = if self.inner.standing.is_proved() { PLACE_WITHIN } else { limits::TLS_HEAD_START };
        let place = timeout(patience, self.inner.places.clone().acquire_owned()).await.ok()?.ok()?;
        // It may have failed meanwhile.
        if !self.inner.standing.tries_tls(true) || self.inner.shared.stop.is_cancelled() {
            return None;
        }
        if let Some(rested) = self.take_rested() {
            return Some(self.lend(rested, place, true));
        }
        let patience = if self.inner.standing.is_proved() { limits::CONNECT_TIMEOUT } else { limits::TLS_HEAD_START };
        let (say, hear) = oneshot::channel();
        let pool = self.clone();
        self.inner.shared.tasks.spawn(async move {
            let stop = pool.inner.shared.stop.clone();
            let dialled = tokio::select! {
                () = stop.cancelled() => return,
                dialled = pool.dial(window) => dialled,
            };
            match dialled {
                Ok(fresh) => {
                    pool.inner.standing.proved();
                    // Whoever asked did not wait: it stays for the next. The place was held so long, so no more are
                    // dialled or at rest than there are places.
                    if let Err((fresh, _place)) = say.send((fresh, place)) {
                        lock(&pool.inner.rested).push(fresh);
                    }
                }
                Err(e) => pool.failed(&e.to_string()),
            }
        });
        let (fresh, place) = timeout(patience, hear).await.ok()?.ok()?;
        Some(self.lend(fresh, place, false))
    }

    /// A connection that had rested did not carry anything: the others are of that age, and go too.
    pub fn forget_rested(&self) {
        lock(&self.inner.rested).clear();
    }

    /// The standing of the lanes to this site.
    pub fn standing(&self) -> &Arc<Standing> {
        &self.inner.standing
    }

    /// The lane did not carry an exchange to its end: quic does for a while.
    pub fn failed(&self, why: &str) {
        if self.inner.standing.failed(why) {
            tracing::info!(site = %self.inner.site.short(), "the tls lane is left for quic: {why}");
        }
        lock(&self.inner.rested).clear();
    }

    fn take_rested(&self) -> Option<Rested> {
        let mut rested = lock(&self.inner.rested);
        // The other end closes what rests for long, and nobody would tell us before we write.
        rested.retain(|r| r.line.is_open() && r.since.elapsed() < limits::TLS_IDLE_KEPT);
        rested.pop()
    }

    fn lend(&self, rested: Rested, place: OwnedSemaphorePermit, had_rested: bool) -> (Reading, Writing) {
        let Rested { recv, send, line, .. } = rested;
        let written = Arc::new(Mutex::new(None));
        let reading = Reading {
            recv: Some(recv),
            line: line.clone(),
            written: written.clone(),
            home: Arc::downgrade(&self.inner),
            had_rested,
            _place: place,
        };
        (reading, Writing { send: Some(send), line, written })
    }

    async fn dial(&self, window: u64) -> io::Result<Rested> {
        let config = Arc::new(self.inner.keys.dialling(self.inner.site).map_err(io::Error::other)?);
        let proved = timeout(limits::CONNECT_TIMEOUT, first_of(&self.inner.addresses, window, &config));
        let stream = proved.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let line = Arc::new(Line(self.inner.shared.stop.child_token()));
        let weak = Arc::downgrade(&line);
        let find = move || weak.upgrade().map(|line| line as Arc<dyn Closable>);
        self.inner.shared.registry.dialled(self.inner.site, Box::new(find));
        let (recv, send) = tokio::io::split(stream);
        Ok(Rested { recv: Receiver::new(recv), send: Sender::new(send), line, since: Instant::now() })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these hold is consistent after each statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first address at which the site proves itself, each tried a moment after the one before it. Another machine
/// may well answer at one of them: addresses of private networks are the same everywhere.
async fn first_of(addresses: &[SocketAddr], window: u64, config: &Arc<ClientConfig>) -> io::Result<Stream> {
    let mut tries: FuturesUnordered<_> = addresses
        .iter()
        .zip(0u32..)
        .map(|(address, i)| async move {
            tokio::time::sleep(limits::TLS_STAGGER * i).await;
            greet(connect(*address, window).await?, config.clone()).await
        })
        .collect();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    while let Some(tried) = tries.next().await {
        match tried {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

async fn greet(tcp: TcpStream, config: Arc<ClientConfig>) -> io::Result<Stream> {
    tcp.set_nodelay(true)?;
    // Neither sent nor looked at: the key says who it is.
    let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    let stream = TlsConnector::from(config).connect(name, tcp).await?;
    match stream.get_ref().1.alpn_protocol() {
        Some(ALPN_TLS_BLOBS) => Ok(stream),
        _ => Err(io::Error::other("the peer speaks another protocol")),
    }
}

async fn connect(address: SocketAddr, window: u64) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Said before the handshake, which settles the scale of windows. A buffer that is not set grows by itself, up to many times
    // what the line holds; one that is set may be cut down by the system to far less than it holds.
    let window = u32::try_from(window).unwrap_or(u32::MAX);
    if receive_buffer_max().is_some_and(|max| window <= max) {
        socket.set_recv_buffer_size(window)?;
    }
    socket.connect(address).await
}

/// Most bytes that a program may ask for as the receive buffer of a socket.
fn receive_buffer_max() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/net/core/rmem_max").ok()?.trim().parse().ok()
}

/// The half of an exchange that is written by the one who asks.
pub(in crate::lanes) struct Writing {
    send: Option<Sender<WriteHalf<Stream>>>,
    line: Arc<Line>,
    written: Arc<Mutex<Option<Sender<WriteHalf<Stream>>>>>,
}

/// The half that is read. When it was read to its end, the connection goes home.
pub(in crate::lanes) struct Reading {
    recv: Option<Receiver<ReadHalf<Stream>>>,
    line: Arc<Line>,
    written: Arc<Mutex<Option<Sender<WriteHalf<Stream>>>>>,
    home: Weak<Inner>,
    /// It carried an exchange before, so that the other end may have closed it since.
    pub had_rested: bool,
    _place: OwnedSemaphorePermit,
}

impl Drop for Writing {
    fn drop(&mut self) {
        *lock(&self.written) = self.send.take();
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let (Some(mut recv), Some(send)) = (self.recv.take(), lock(&self.written).take()) else { return };
        if let Some(home) = self.home.upgrade()
            && recv.has_ended()
            && self.line.is_open()
        {
            recv.again();
            let rested = Rested { recv, send, line: self.line.clone(), since: Instant::now() };
            lock(&home.rested).push(rested);
        }
    }
}

/// Fails as soon as the line is taken away.
async fn on_line<T>(line: &Line, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        () = line.0.cancelled() => Err(io::ErrorKind::ConnectionAborted.into()),
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

impl SendStream for Writing {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        on_line(&self.line, self.send.as_mut().ok_or_else(gone)?.send_bytes(bytes)).await
    }

    async fn send(&mut self, buf: &[u8]) -> io::Result<()> {
        on_line(&self.line, self.send.as_mut().ok_or_else(gone)?.send(buf)).await
    }

    async fn sync(&mut self) -> io::Result<()> {
        on_line(&self.line, self.send.as_mut().ok_or_else(gone)?.sync()).await
    }

    fn reset(&mut self, _code: VarInt) -> io::Result<()> {
        self.send = None;
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        std::future::pending().await
    }

    fn id(&self) -> u64 {
        0
    }
}
