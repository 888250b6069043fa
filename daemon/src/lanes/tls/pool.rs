//! Connections to one peer on the tls lane, and what is known of the way there.
//!
//! Invariant: a connection is lent to one exchange at a time and comes back only when that came to its end. Nobody waits
//! for this lane: while it cannot be had, quic carries the data.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sluice_protocol::ids::SiteId;
use sluice_protocol::messages::ALPN_TLS_BLOBS;
use tokio::io::{BufReader, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Keys;
use super::talk::Talk;
use crate::lanes::admission::Closable;
use crate::lanes::frames::{Receiver, Sender};
use crate::lanes::limits;
use crate::lanes::quic::Shared;
use crate::lanes::standing::Standing;

type Stream = TlsStream<BufReader<TcpStream>>;
pub(super) type Receiving = Receiver<ReadHalf<Stream>>;
pub(super) type Sending = Sender<WriteHalf<Stream>>;

/// How often a request that waits for one of the connections looks whether the lane still goes.
const PLACE_WITHIN: Duration = Duration::from_secs(5);

/// One connection, at rest between two exchanges.
pub(super) struct Rested {
    pub recv: Receiving,
    pub send: Sending,
    pub line: Arc<Line>,
    since: Instant,
}

impl Rested {
    pub fn now(recv: Receiving, send: Sending, line: Arc<Line>) -> Self {
        Self { recv, send, line, since: Instant::now() }
    }
}

/// What closes a connection from outside: its exchange fails, or it is not lent again.
pub(super) struct Line(CancellationToken);

impl Line {
    pub fn is_up(&self) -> bool {
        !self.0.is_cancelled()
    }

    pub async fn taken_away(&self) {
        self.0.cancelled().await;
    }
}

impl Closable for Line {
    fn close(&self, _code: u32, _reason: &str) {
        self.0.cancel();
    }

    fn is_open(&self) -> bool {
        self.is_up()
    }
}

/// The way to one peer; clones are the same way.
#[derive(Clone)]
pub(in crate::lanes) struct Pool {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    site: SiteId,
    addresses: Vec<SocketAddr>,
    keys: Keys,
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    pub standing: Arc<Standing>,
    rested: Mutex<Vec<Rested>>,
}

impl Inner {
    /// A connection that answered everything rests until the next request.
    pub fn take_back(&self, rested: Rested) {
        lock(&self.rested).push(rested);
    }
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

    /// A connection for a row of requests; none while this lane is not to be had.
    ///
    /// The first time it waits [`limits::TLS_HEAD_START`] at most: the connection that comes later serves the next.
    pub async fn talk(&self) -> Option<Talk> {
        if !self.inner.standing.tries_tls(!self.inner.addresses.is_empty()) {
            return None;
        }
        // Once it went, its places are worth waiting for; until then only a moment, whoever is dialling.
        let place = loop {
            let patience = if self.inner.standing.is_proved() { PLACE_WITHIN } else { limits::TLS_HEAD_START };
            match timeout(patience, self.inner.places.clone().acquire_owned()).await {
                Ok(place) => break place.ok()?,
                // On a slow line a place may be long in use, and another lane to the same site has the same line.
                Err(_) if self.inner.standing.is_proved() && self.inner.standing.tries_tls(true) => {}
                Err(_) => return None,
            }
        };
        // It may have failed meanwhile.
        if !self.inner.standing.tries_tls(true) || self.inner.shared.stop.is_cancelled() {
            return None;
        }
        if let Some(rested) = self.take_rested() {
            return Some(Talk::new(rested, &self.inner, true, place));
        }
        let patience = if self.inner.standing.is_proved() { limits::CONNECT_TIMEOUT } else { limits::TLS_HEAD_START };
        let (say, hear) = oneshot::channel();
        let pool = self.clone();
        self.inner.shared.tasks.spawn(async move {
            let stop = pool.inner.shared.stop.clone();
            let dialled = tokio::select! {
                () = stop.cancelled() => return,
                dialled = pool.dial() => dialled,
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
        Some(Talk::new(fresh, &self.inner, false, place))
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
        rested.retain(|r| r.line.is_up() && r.since.elapsed() < limits::TLS_IDLE_KEPT);
        rested.pop()
    }

    async fn dial(&self) -> io::Result<Rested> {
        let config = Arc::new(self.inner.keys.dialling(self.inner.site).map_err(io::Error::other)?);
        let proved = timeout(limits::CONNECT_TIMEOUT, first_of(&self.inner.addresses, &config));
        let stream = proved.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let line = Arc::new(Line(self.inner.shared.stop.child_token()));
        let weak = Arc::downgrade(&line);
        let find = move || weak.upgrade().map(|line| line as Arc<dyn Closable>);
        self.inner.shared.registry.dialled(self.inner.site, Box::new(find));
        let (recv, send) = tokio::io::split(stream);
        Ok(Rested::now(Receiver::new(recv), Sender::new(send), line))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these hold is consistent after each statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first address at which the site proves itself, each tried a moment after the one before it. Another machine
/// may well answer at one of them: addresses of private networks are the same everywhere.
async fn first_of(addresses: &[SocketAddr], config: &Arc<ClientConfig>) -> io::Result<Stream> {
    let mut tries: FuturesUnordered<_> = addresses
        .iter()
        .zip(0u32..)
        .map(|(address, i)| async move {
            tokio::time::sleep(limits::TLS_STAGGER * i).await;
            greet(TcpStream::connect(*address).await?, config.clone()).await
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
    let stream = TlsConnector::from(config).connect(name, buffered(tcp)).await?;
    match stream.get_ref().1.alpn_protocol() {
        Some(ALPN_TLS_BLOBS) => Ok(stream),
        _ => Err(io::Error::other("the peer speaks another protocol")),
    }
}

/// TLS reads 4 KiB at a time; the system is asked for much more at once.
fn buffered(tcp: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(limits::TLS_BUFFER_BYTES / 2, tcp)
}
