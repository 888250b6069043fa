//! The quic lane: one iroh endpoint, bound to a fixed port, without relays or anybody's servers.
//!
//! Invariant: nothing here asks a machine outside for anything. Peers are dialled at the addresses
//! that a ticket or a signed card gave, and the handshake proves their key.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use iroh::endpoint::{
    BindError, BindOpts, ConnectOptions, Connection, ConnectionError, NetReportConfig, PortmapperConfig,
    QuicTransportConfig, VarInt, presets,
};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey, TransportAddr, Watcher};
use sluice_protocol::ids::SiteId;
use sluice_protocol::limits::ADDRESSES_MAX;
use sluice_protocol::messages::{ALPN_BLOBS, ALPN_CONTROL, ALPN_PAIR, ALPN_QUIC_BLOBS};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::admission::{CLOSE_BUSY, CLOSE_NOT_PAIRED, Closable, Door, Registry};
use super::caps::{Brake, Caps, Throttle, Way};
use super::error::LaneError;
use super::peer::Peer;
use super::standing::{LaneStanding, Standings};
use super::{Host, accept, limits, tls};

/// How the lane is set up.
pub struct QuicConfig {
    /// The site's key, which is also its endpoint key.
    pub key: SigningKey,
    /// The UDP port; 0 takes any free one.
    pub port: u16,
    /// Advertise a loopback address besides the others.
    pub loopback: bool,
    /// More addresses to advertise: a forwarded port, a name's address.
    pub addresses: Vec<SocketAddr>,
    /// Listen for the tls lane too, on the TCP port of the same number.
    pub tls: bool,
    /// How much of the line bulk data may take.
    pub caps: Caps,
    /// Whether bytes are packed where it pays.
    pub compress: bool,
    /// Connections for blobs to one peer, 1 at least.
    pub connections_per_peer: usize,
    /// How long dialling may take.
    pub connect_timeout: Duration,
    /// How long we wait for the answer to a message.
    pub answer_timeout: Duration,
    /// How long a peer may send nothing before a fetch is given up.
    pub fetch_stall: Duration,
    /// How long a peer may take nothing before it loses its stream.
    pub serve_stall: Duration,
}

impl QuicConfig {
    /// The usual settings for this key: any port, all interfaces.
    pub fn new(key: SigningKey) -> Self {
        Self {
            key,
            port: 0,
            loopback: false,
            addresses: Vec::new(),
            tls: true,
            caps: Caps::default(),
            compress: true,
            connections_per_peer: limits::CONNECTIONS_PER_PEER,
            connect_timeout: limits::CONNECT_TIMEOUT,
            answer_timeout: limits::ANSWER_TIMEOUT,
            fetch_stall: limits::FETCH_STALL,
            serve_stall: limits::SERVE_STALL,
        }
    }
}

/// What the settings come to once the lane is bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub loopback: bool,
    pub compress: bool,
    pub connections_per_peer: usize,
    pub connect_timeout: Duration,
    pub answer_timeout: Duration,
    pub fetch_stall: Duration,
    pub serve_stall: Duration,
}

/// What the lane and its tasks share.
pub(super) struct Shared {
    pub registry: Arc<Registry>,
    pub door: Arc<Door>,
    pub handshakes: Arc<Semaphore>,
    pub serves: Arc<Semaphore>,
    pub throttle: Arc<Throttle>,
    pub tcp_door: Arc<Door>,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    pub settings: Settings,
    pub host: OnceLock<Arc<dyn Host>>,
}

/// The lane; clones are the same lane. It stops when the last clone is dropped, cleanly with
/// [`QuicLane::close`].
#[derive(Clone)]
pub struct QuicLane {
    inner: Arc<Inner>,
}

struct Inner {
    /// None once the lane is closed: the port is free when the last clone is gone.
    endpoint: RwLock<Option<Endpoint>>,
    port: u16,
    /// The TCP port of the tls lane; none when it is closed.
    tls_port: Option<u16>,
    /// Bound, and not yet answering.
    tls: Mutex<Option<tls::Listening>>,
    keys: tls::Keys,
    standings: Standings,
    /// Addresses that the configuration gave.
    given: Vec<SocketAddr>,
    shared: Arc<Shared>,
    site: SiteId,
    _stop: DropGuard,
}

impl QuicLane {
    /// Opens the port. Nobody is answered before [`QuicLane::serve`].
    pub async fn bind(config: QuicConfig) -> Result<QuicLane, LaneError> {
        let site = SiteId(config.key.verifying_key().to_bytes());
        let endpoint = endpoint(&config).await?;
        first_address(&endpoint).await;
        let port = port_of(&endpoint.bound_sockets());
        let tls = match config.tls {
            // Everything goes over quic as well, so a site is not kept down for this.
            true => {
                tls::Listening::bind(config.port).inspect_err(|e| tracing::warn!("the tls lane is closed: {e}")).ok()
            }
            false => None,
        };
        let stop = CancellationToken::new();
        let settings = Settings {
            loopback: config.loopback,
            compress: config.compress,
            connections_per_peer: config.connections_per_peer.max(1),
            connect_timeout: config.connect_timeout,
            answer_timeout: config.answer_timeout,
            fetch_stall: config.fetch_stall,
            serve_stall: config.serve_stall,
        };
        let shared = Shared {
            registry: Arc::default(),
            door: Arc::default(),
            handshakes: Arc::new(Semaphore::new(limits::HANDSHAKES_MAX)),
            serves: Arc::new(Semaphore::new(limits::SERVES_MAX)),
            throttle: Arc::new(Throttle::new(config.caps)),
            tcp_door: Arc::default(),
            stop: stop.clone(),
            tasks: TaskTracker::new(),
            settings,
            host: OnceLock::new(),
        };
        let inner = Inner {
            port,
            tls_port: tls.as_ref().map(|t| t.port),
            tls: Mutex::new(tls),
            keys: tls::keys(&config.key)?,
            standings: Standings::default(),
            given: config.addresses,
            endpoint: RwLock::new(Some(endpoint)),
            shared: Arc::new(shared),
            site,
            _stop: stop.drop_guard(),
        };
        Ok(QuicLane { inner: Arc::new(inner) })
    }

    /// Begins to answer peers on behalf of `host`; once.
    pub fn serve(&self, host: Arc<dyn Host>) -> Result<(), LaneError> {
        let shared = &self.inner.shared;
        let endpoint = self.endpoint().ok_or(LaneError::Closed)?;
        shared.host.set(host.clone()).map_err(|_| LaneError::AlreadyServing)?;
        shared.tasks.spawn(accept::run(shared.clone(), endpoint, host.clone()));
        let listening = self.inner.tls.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listening) = listening {
            let accepting = self
                .inner
                .keys
                .accepting()
                .map_err(|e| LaneError::BindTcp { port: listening.port, reason: e.to_string() })?;
            let accepting = Arc::new(accepting);
            for listener in listening.listeners {
                shared.tasks.spawn(tls::run(shared.clone(), listener, accepting.clone(), host.clone()));
            }
        }
        Ok(())
    }

    /// Our own id.
    pub fn site(&self) -> SiteId {
        self.inner.site
    }

    /// The UDP port (that of IPv4 where both are bound).
    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// Socket addresses for tickets and cards, those given in the configuration first. They change
    /// when the machine's interfaces do. Loopback is listed only when it was asked for or
    /// when there is nothing else: processes of one machine reach each other by the others too.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        let Some(endpoint) = self.endpoint() else {
            return Vec::new();
        };
        let mut found: Vec<SocketAddr> = endpoint.addr().ip_addrs().copied().filter(|a| is_dialable(a.ip())).collect();
        if self.inner.shared.settings.loopback || found.is_empty() {
            let bound = endpoint.bound_sockets();
            found.extend(bound.iter().filter_map(loopback_of));
        }
        found.extend(&self.inner.given);
        // A ticket has room for some only: first what somebody took the trouble to configure.
        found.sort_by_key(|a| (!self.inner.given.contains(a), a.ip().is_loopback(), a.is_ipv6(), *a));
        found.dedup();
        found.truncate(ADDRESSES_MAX / 2);
        found
    }

    /// The addresses at which the tls lane is reached: those of quic with the other port.
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        let Some(port) = self.inner.tls_port else { return Vec::new() };
        let ours = self.local_addresses().into_iter().map(|a| match self.inner.given.contains(&a) {
            // What somebody forwards is forwarded for both.
            true => a,
            false => SocketAddr::new(a.ip(), port),
        });
        ours.collect()
    }

    /// A handle to a peer for messages and small things. Nothing is dialled yet.
    pub fn peer(&self, site: SiteId, addresses: &[SocketAddr]) -> Peer {
        self.peer_with_tls(site, addresses, &[])
    }

    /// A handle to a peer whose tls lane is at these addresses, too; bulk data takes it where it can.
    pub fn peer_with_tls(&self, site: SiteId, addresses: &[SocketAddr], tls: &[SocketAddr]) -> Peer {
        let most = self.settings().connections_per_peer;
        // Who does not offer this lane does not take it either: one setting closes it.
        let tls = if self.inner.tls_port.is_some() { tls.to_vec() } else { Vec::new() };
        let standing = self.inner.standings.of(site);
        let pool = tls::Pool::new(self.inner.keys.clone(), self.inner.shared.clone(), standing, site, tls, most);
        Peer::new(self.clone(), site, addresses.to_vec(), pool)
    }

    /// Dials a paired peer, so that an unreachable one is known at once.
    pub async fn connect(&self, site: SiteId, addresses: &[SocketAddr]) -> Result<Peer, LaneError> {
        let peer = self.peer(site, addresses);
        peer.reach().await?;
        Ok(peer)
    }

    /// Which lane carries bulk data from a site, and why; none before the first transfer.
    pub fn standing(&self, site: SiteId) -> Option<LaneStanding> {
        self.inner.standings.known(site).map(|s| s.told())
    }

    /// Closes all connections of a site at once, in both directions; open streams end. Take its
    /// access away first, since it may dial again.
    pub fn disconnect(&self, site: SiteId) {
        self.inner.shared.registry.disconnect(site);
    }

    /// How many connections, in both directions, a site has at the moment.
    pub fn connections(&self, site: SiteId) -> usize {
        self.inner.shared.registry.connections(site)
    }

    /// Stops answering, closes all connections and the port.
    pub async fn close(&self) {
        let shared = &self.inner.shared;
        shared.stop.cancel();
        let endpoint = self.inner.endpoint.write().unwrap_or_else(PoisonError::into_inner).take();
        // Those that were bound and never answered.
        self.inner.tls.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(endpoint) = endpoint else { return };
        endpoint.close().await;
        shared.tasks.close();
        // Tasks end with their connections; one that does not is left to its own timeout.
        let _ = timeout(limits::CLOSE_TIMEOUT, shared.tasks.wait()).await;
        let bound = endpoint.bound_sockets();
        drop(endpoint);
        // Others' handles to the sockets go a moment later; whoever starts again wants the same port.
        let _ = timeout(limits::PORT_TIMEOUT, port_free(&bound)).await;
    }

    fn endpoint(&self) -> Option<Endpoint> {
        self.inner.endpoint.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The brake for what comes from a peer.
    pub(super) fn brake(&self, site: SiteId) -> Brake {
        self.inner.shared.throttle.brake(site, Way::In)
    }

    pub(super) fn settings(&self) -> Settings {
        self.inner.shared.settings
    }

    /// Dials a site on one of our protocols.
    pub(super) async fn dial(
        &self,
        site: SiteId,
        addresses: &[SocketAddr],
        alpn: &[u8],
    ) -> Result<Connection, LaneError> {
        let id = EndpointId::from_bytes(&site.0).map_err(|_| LaneError::BadSite { site })?;
        if addresses.is_empty() {
            return Err(LaneError::NoAddress { site });
        }
        let address = EndpointAddr::from_parts(id, addresses.iter().copied().map(TransportAddr::Ip));
        let unreachable = |reason: String| LaneError::Unreachable { site, tried: addresses.to_vec(), reason };
        let limit = self.settings().connect_timeout;
        // Who knows no frames speaks the protocol of iroh-blobs as it is.
        let others = if alpn == ALPN_QUIC_BLOBS { vec![ALPN_BLOBS.to_vec()] } else { vec![] };
        let options = ConnectOptions::new().with_transport_config(outgoing(alpn)).with_additional_alpns(others);
        let endpoint = self.endpoint().ok_or(LaneError::Closed)?;
        let dialling = async {
            let connecting = endpoint.connect_with_opts(address, alpn, options).await;
            let connecting = connecting.map_err(|e| unreachable(format!("{e:#}")))?;
            connecting.await.map_err(|e| unreachable(format!("{e:#}")))
        };
        let connection = timeout(limit, dialling)
            .await
            .map_err(|_| unreachable(format!("no answer for {} s", limit.as_secs_f32())))??;
        let weak = connection.weak_handle();
        let find = move || weak.upgrade().map(|c| Arc::new(c) as Arc<dyn Closable>);
        self.inner.shared.registry.dialled(site, Box::new(find));
        Ok(connection)
    }
}

/// Binds the endpoint: both address families, IPv6 only where the machine has it.
async fn endpoint(config: &QuicConfig) -> Result<Endpoint, LaneError> {
    let port = config.port;
    let failed = |reason: String| LaneError::Bind { port, reason };
    let optional = BindOpts::default().set_is_required(false);
    let mut builder = Endpoint::builder(presets::Minimal)
        .secret_key(SecretKey::from_bytes(config.key.as_bytes()))
        .relay_mode(RelayMode::Disabled)
        .portmapper_config(PortmapperConfig::Disabled)
        .net_report_config(NetReportConfig::minimal())
        .alpns([ALPN_QUIC_BLOBS, ALPN_BLOBS, ALPN_CONTROL, ALPN_PAIR].map(<[u8]>::to_vec).to_vec())
        .transport_config(incoming())
        .clear_ip_transports()
        .bind_addr((Ipv4Addr::UNSPECIFIED, port))
        .and_then(|b| b.bind_addr_with_opts((Ipv6Addr::UNSPECIFIED, port), optional))
        .map_err(|e| failed(format!("{e:#}")))?;
    for address in &config.addresses {
        builder = builder.external_addr(*address);
    }
    builder.bind().await.map_err(|e| match e {
        BindError::Sockets { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            LaneError::PortInUse { port }
        }
        e => failed(format!("{e:#}")),
    })
}

/// Incoming connections carry requests to us, never bulk data: little is buffered for them.
fn incoming() -> QuicTransportConfig {
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::STREAMS_PER_CONNECTION_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(limits::INCOMING_WINDOW_BYTES))
        .build()
}

/// On connections that we dialled the peer opens nothing. The stream window stays at its default of
/// 1.25 MB, since far larger ones lose the connection; speed comes from streams and connections. The
/// window of a connection for blobs begins small: what was granted cannot be taken back, and `peer` widens it.
fn outgoing(alpn: &[u8]) -> QuicTransportConfig {
    let builder = QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    if alpn == ALPN_QUIC_BLOBS {
        builder.receive_window(VarInt::from_u32(limits::FIRST_WINDOW_BYTES)).build()
    } else {
        builder.build()
    }
}

/// The interfaces are listed shortly after binding; a ticket made at once should hold them.
async fn first_address(endpoint: &Endpoint) {
    let mut watcher = endpoint.watch_addr();
    let listed = async {
        while watcher.get().is_empty() {
            if watcher.updated().await.is_err() {
                return;
            }
        }
    };
    // Without any interface the list stays empty: loopback is listed then.
    let _ = timeout(limits::ADDRESSES_TIMEOUT, listed).await;
}

/// Waits until the addresses can be bound again.
async fn port_free(bound: &[SocketAddr]) {
    for address in bound {
        while std::net::UdpSocket::bind(address).is_err() {
            tokio::time::sleep(limits::PORT_POLL).await;
        }
    }
}

/// Link-local addresses need a scope that means nothing on another machine.
fn is_dialable(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

fn port_of(bound: &[SocketAddr]) -> u16 {
    bound.iter().find(|a| a.is_ipv4()).or(bound.first()).map_or(0, SocketAddr::port)
}

fn loopback_of(bound: &SocketAddr) -> Option<SocketAddr> {
    match bound {
        SocketAddr::V4(a) if a.ip().is_unspecified() || a.ip().is_loopback() => {
            Some((Ipv4Addr::LOCALHOST, a.port()).into())
        }
        SocketAddr::V6(a) if a.ip().is_unspecified() || a.ip().is_loopback() => {
            Some((Ipv6Addr::LOCALHOST, a.port()).into())
        }
        _ => None,
    }
}

/// What the end of a connection means.
pub(super) fn ended(site: SiteId, reason: &ConnectionError) -> LaneError {
    if let ConnectionError::ApplicationClosed(close) = reason {
        let code = close.error_code;
        if code == VarInt::from_u32(CLOSE_NOT_PAIRED) {
            return LaneError::NotPaired { site };
        }
        if code == VarInt::from_u32(CLOSE_BUSY) {
            return LaneError::Busy { site };
        }
    }
    LaneError::Lost { site, reason: reason.to_string() }
}
