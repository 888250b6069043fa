//! A peer as we reach it: a control connection and a small pool of connections for blobs.
//!
//! Invariant: a connection that ended is never handed out again, and a message is sent a second
//! time only after the connection that carried it was lost (all messages may be repeated).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iroh::endpoint::{Connection, VarInt};
use sluice_protocol::ids::SiteId;
use sluice_protocol::messages::{ALPN_CONTROL, ALPN_PAIR, ALPN_QUIC_BLOBS, Message, PairRequest};
use tokio::time::timeout;

use super::admission::CLOSE_DONE;
use super::caps::Brake;
use super::error::{LaneError, MessageError};
use super::flight::Flight;
use super::pace::Pace;
use super::quic::{QuicLane, Settings, ended};
use super::{limits, message, tls};

/// A handle to a peer; clones share their connections, which close with the last one.
#[derive(Clone)]
pub struct Peer {
    inner: Arc<Inner>,
}

struct Inner {
    lane: QuicLane,
    site: SiteId,
    addresses: Vec<SocketAddr>,
    tls: tls::Pool,
    brake: Brake,
    control: tokio::sync::Mutex<Option<Connection>>,
    blobs: Mutex<Vec<Pooled>>,
    /// What may be on its way to us.
    flight: Mutex<Flying>,
    /// Others have the same.
    hurried: AtomicBool,
    /// Held while a connection for blobs is dialled.
    dialling: tokio::sync::Mutex<()>,
}

/// A flight, and over how many connections it is spread.
#[derive(Clone, Copy)]
struct Flying {
    flight: Flight,
    connections: usize,
    /// Bytes that are to come, as far as that is known.
    left: Option<u64>,
}

impl Flying {
    fn widen(&self, connection: &Connection) {
        let window = self.flight.window_of_each(self.connections);
        connection.set_receive_window(VarInt::from_u64(window).unwrap_or(VarInt::MAX));
    }
}

struct Pooled {
    connection: Connection,
    /// One more clone for each request in flight.
    users: Arc<()>,
}

impl Pooled {
    fn in_flight(&self) -> usize {
        Arc::strong_count(&self.users) - 1
    }

    fn lease(&self) -> Lease {
        Lease { connection: self.connection.clone(), _user: self.users.clone() }
    }
}

/// A connection lent to one request.
#[derive(Clone)]
pub(super) struct Lease {
    pub connection: Connection,
    _user: Arc<()>,
}

impl Lease {
    /// Whether what is said on its streams is in frames; not with a site that speaks the protocol of iroh-blobs only.
    pub fn is_framed(&self) -> bool {
        self.connection.alpn() == ALPN_QUIC_BLOBS
    }
}

impl Peer {
    pub(super) fn new(lane: QuicLane, site: SiteId, addresses: Vec<SocketAddr>, tls: tls::Pool) -> Self {
        let connections = lane.settings().connections_per_peer;
        let flying = Flying { flight: Flight::default(), connections, left: None };
        let brake = lane.brake(site);
        let inner = Inner {
            lane,
            site,
            addresses,
            tls,
            brake,
            control: Default::default(),
            blobs: Default::default(),
            flight: Mutex::new(flying),
            hurried: AtomicBool::new(false),
            dialling: Default::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The peer's id, which every connection to it has proved.
    pub fn site(&self) -> SiteId {
        self.inner.site
    }

    /// Where it is dialled.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.inner.addresses
    }

    /// From here on `left` bytes come, in this many requests at once: bounds what is on its way and what is
    /// held before it is written, so that a kill loses next to nothing of them.
    pub fn expect(&self, left: u64, requests: usize) {
        let most = self.settings().connections_per_peer;
        // Bulk data may take tls, and then there is no other connection of quic than that for messages.
        let control = self.inner.control.try_lock().ok().and_then(|c| c.as_ref().and_then(round_trip));
        let rtt = self.pool(|pool| pool.iter().flat_map(|p| round_trip(&p.connection)).chain(control).max());
        let rtt = rtt.unwrap_or_default();
        let (flight, connections) = (Flight::of(left, requests, rtt), requests.clamp(1, most));
        let flying = Flying { flight, connections, left: Some(left) };
        *self.inner.flight.lock().unwrap_or_else(PoisonError::into_inner) = flying;
        self.pool(|pool| pool.iter().for_each(|p| flying.widen(&p.connection)));
    }

    /// Others have the same: from here on this one must keep a better pace.
    pub fn hurry(&self) {
        self.inner.hurried.store(true, Ordering::Relaxed);
    }

    /// Whether it must keep the pace of one among others.
    pub fn is_hurried(&self) -> bool {
        self.inner.hurried.load(Ordering::Relaxed)
    }

    pub(super) fn pace(&self) -> Pace {
        let stall = self.settings().fetch_stall;
        if self.is_hurried() { Pace::hurried(stall) } else { Pace::patient(stall) }
    }

    /// What the peer may send ahead of our reading on one connection, in bytes.
    pub(super) fn window(&self) -> u64 {
        let flying = self.flying();
        flying.flight.window_of_each(flying.connections)
    }

    /// Whether so much is to come that another connection is worth its dialling.
    pub(super) fn has_bulk(&self) -> bool {
        self.flying().left.is_none_or(|left| left >= limits::TLS_WORTH_BYTES)
    }

    /// Verified bytes that one request collects before they are written.
    pub(super) fn piece(&self) -> usize {
        self.flying().flight.piece
    }

    fn flying(&self) -> Flying {
        *self.inner.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks to be admitted, at the peer's pairing door.
    pub async fn pair(&self, request: PairRequest) -> Result<Message, LaneError> {
        let connection = self.dial(ALPN_PAIR).await?;
        let answer = self.ask(&connection, &Message::Pair(request)).await;
        connection.close(VarInt::from_u32(CLOSE_DONE), b"");
        answer
    }

    /// Says something on the control stream and returns the answer.
    pub async fn message(&self, said: &Message) -> Result<Message, LaneError> {
        let connection = self.control().await?;
        match self.ask(&connection, said).await {
            Err(LaneError::Lost { .. }) => {
                let connection = self.control().await?;
                self.ask(&connection, said).await
            }
            other => other,
        }
    }

    /// Dials the control connection if there is none.
    pub(super) async fn reach(&self) -> Result<(), LaneError> {
        self.control().await.map(drop)
    }

    pub(super) fn tls(&self) -> &tls::Pool {
        &self.inner.tls
    }

    pub(super) fn brake(&self) -> &Brake {
        &self.inner.brake
    }

    pub(super) fn settings(&self) -> Settings {
        self.inner.lane.settings()
    }

    async fn control(&self) -> Result<Connection, LaneError> {
        let mut held = self.inner.control.lock().await;
        if let Some(connection) = held.as_ref().filter(|c| c.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        let connection = self.dial(ALPN_CONTROL).await?;
        *held = Some(connection.clone());
        Ok(connection)
    }

    async fn dial(&self, alpn: &[u8]) -> Result<Connection, LaneError> {
        self.inner.lane.dial(self.inner.site, &self.inner.addresses, alpn).await
    }

    async fn ask(&self, connection: &Connection, said: &Message) -> Result<Message, LaneError> {
        let site = self.inner.site;
        let wait = self.settings().answer_timeout;
        let exchange = async {
            let (mut send, mut recv) = connection.open_bi().await.map_err(|e| MessageError::Stream(e.into()))?;
            message::write(&mut send, said, limits::MESSAGE_TIMEOUT).await?;
            // The only failure is a stream that has ended, which reading will show.
            let _ = send.finish();
            message::read(&mut recv, wait).await
        };
        let answer = timeout(wait, exchange).await;
        match (answer, connection.close_reason()) {
            (Ok(Ok(answer)), _) => Ok(answer),
            (_, Some(reason)) => Err(ended(site, &reason)),
            (Ok(Err(source)), None) => Err(LaneError::Message { site, source }),
            (Err(_), None) => Err(LaneError::Silent { site, seconds: wait.as_secs() }),
        }
    }

    /// Lends the connection with the fewest requests; dials one more while all are in use and the
    /// pool is small.
    pub(super) async fn lease(&self) -> Result<Lease, LaneError> {
        if let Some(lease) = self.idle() {
            return Ok(lease);
        }
        let _dialling = match self.inner.dialling.try_lock() {
            Ok(guard) => guard,
            Err(_) => match self.least_used() {
                Some(lease) => return Ok(lease),
                None => self.inner.dialling.lock().await,
            },
        };
        if let Some(lease) = self.idle() {
            return Ok(lease);
        }
        match self.dial(ALPN_QUIC_BLOBS).await {
            Ok(connection) => {
                let pooled = Pooled { connection, users: Arc::new(()) };
                let flying = self.flying();
                flying.widen(&pooled.connection);
                let lease = pooled.lease();
                self.pool(|pool| pool.push(pooled));
                Ok(lease)
            }
            Err(e) => self.least_used().ok_or(e),
        }
    }

    /// A connection without requests, or the least used one of a full pool.
    fn idle(&self) -> Option<Lease> {
        let most = self.settings().connections_per_peer;
        self.pool(|pool| {
            let full = pool.len() >= most;
            let least = pool.iter().min_by_key(|p| p.in_flight())?;
            (full || least.in_flight() == 0).then(|| least.lease())
        })
    }

    fn least_used(&self) -> Option<Lease> {
        self.pool(|pool| pool.iter().min_by_key(|p| p.in_flight()).map(Pooled::lease))
    }

    fn pool<T>(&self, work: impl FnOnce(&mut Vec<Pooled>) -> T) -> T {
        let mut pool = self.inner.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        pool.retain(|p| p.connection.close_reason().is_none());
        work(&mut pool)
    }
}

/// How long the way there and back takes, by the connection's own count.
fn round_trip(connection: &Connection) -> Option<Duration> {
    let paths = connection.paths();
    paths.iter().filter(|p| p.is_selected()).map(|p| p.rtt()).max()
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("site", &self.inner.site).field("addresses", &self.inner.addresses).finish()
    }
}
