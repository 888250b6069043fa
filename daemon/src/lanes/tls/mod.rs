//! The tls lane: TLS 1.3 over TCP for bulk data, where a peer is directly reachable.
//!
//! One TCP stream carries several times what a QUIC connection does on the same machine, because the kernel does
//! the work of the transport. What is said on it is the same: requests for blobs and their answers, one exchange
//! after another on each connection, framed by `frames`. Pairing, control messages and everything behind
//! address translation stay with quic.
//!
//! Invariant: the same as quic's. A site that is not paired gets no answer, each request is asked about anew, and a
//! site whose access is taken back loses its open connections at once.

mod accept;
mod keys;
mod pool;
mod talk;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ed25519_dalek::SigningKey;
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::net::TcpListener;

use super::admission::CLOSE_NOT_PAIRED;
use super::error::LaneError;

pub(super) use accept::run;
pub(super) use keys::Keys;
pub(super) use pool::Pool;
pub(super) use talk::{Reading, Said, Talk};

/// The name of this lane in errors and journals.
pub const TLS: &str = "tls";

/// What is added to a code with which a whole connection is closed, to tell it from an exchange that was given up.
const CLOSED: u32 = 1 << 16;
/// The peer closed the connection because this site is not paired.
pub(super) const NOT_PAIRED: u32 = CLOSED + CLOSE_NOT_PAIRED;

/// The listening half, bound and not yet answering.
pub(super) struct Listening {
    pub listeners: Vec<TcpListener>,
    pub port: u16,
}

impl Listening {
    /// Binds `port` for IPv6 and IPv4, IPv6 only where the machine has it; 0 takes any free port.
    pub fn bind(port: u16) -> Result<Self, LaneError> {
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::AddrInUse => LaneError::TcpPortInUse { port },
            _ => LaneError::BindTcp { port, reason: e.to_string() },
        };
        let v4 = listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)).map_err(failed)?;
        let port = v4.local_addr().map_err(failed)?.port();
        let v6 = listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
        Ok(Self { listeners: std::iter::once(v4).chain(v6.ok()).collect(), port })
    }
}

/// A listener whose address may be bound again right after a daemon was killed.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if matches!(address.ip(), IpAddr::V4(_)) { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 128;

/// Keys for both directions, from the site's key.
pub(super) fn keys(key: &SigningKey) -> Result<Keys, LaneError> {
    Keys::new(key).map_err(|e| LaneError::BindTcp { port: 0, reason: e.to_string() })
}
