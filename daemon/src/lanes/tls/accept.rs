//! Answering on the tls lane.
//!
//! Invariant: nothing is read from a connection before its handshake proved a key, and no request is answered before
//! the host was asked about that key.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use sluice_protocol::ids::SiteId;
use sluice_protocol::messages::ALPN_TLS_BLOBS;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{NOT_PAIRED, keys};
use crate::lanes::accept::report;
use crate::lanes::admission::{Closable, DoorPlace, Place};
use crate::lanes::caps::Way;
use crate::lanes::frames::{Receiver, Sender};
use crate::lanes::quic::Shared;
use crate::lanes::{Host, limits, serve};

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

type Stream = TlsStream<TcpStream>;

/// A connection that can be taken away.
struct Line(CancellationToken);

impl Closable for Line {
    fn close(&self, _code: u32, _reason: &str) {
        self.0.cancel();
    }

    fn is_open(&self) -> bool {
        !self.0.is_cancelled()
    }
}

/// Accepts until the lane is closed.
pub(in crate::lanes) async fn run(
    shared: Arc<Shared>,
    listener: TcpListener,
    config: Arc<ServerConfig>,
    host: Arc<dyn Host>,
) {
    let acceptor = TlsAcceptor::from(config);
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Descriptors are short, or the peer is gone already: the next one may do better.
                debug!("a TCP connection was not accepted: {e}");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(standing) = shared.tcp_door.enter(from.ip()) else { continue };
        let (shared, host, acceptor) = (shared.clone(), host.clone(), acceptor.clone());
        shared.clone().tasks.spawn(async move {
            let Some((stream, site)) = greet(acceptor, tcp, from.ip()).await else { return };
            visit(&shared, host, stream, site, standing).await;
        });
    }
}

/// The handshake, and whose key it proved.
async fn greet(acceptor: TlsAcceptor, tcp: TcpStream, from: IpAddr) -> Option<(Stream, SiteId)> {
    // Whole requests and whole answers are written: waiting for more to send gains nothing.
    let _ = tcp.set_nodelay(true);
    let limits =
        |connection: &mut rustls::ServerConnection| connection.set_buffer_limit(Some(limits::TLS_BUFFER_BYTES));
    let stream = match timeout(limits::HANDSHAKE_TIMEOUT, acceptor.accept_with(tcp, limits)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            debug!(%from, "a TLS handshake failed: {e}");
            return None;
        }
        Err(_) => {
            debug!(%from, "a TLS handshake took too long");
            return None;
        }
    };
    let connection = stream.get_ref().1;
    // One that names no protocol is none of ours either.
    connection.alpn_protocol().filter(|alpn| *alpn == ALPN_TLS_BLOBS)?;
    let site = connection.peer_certificates().and_then(|shown| keys::site_of(shown.first()?))?;
    Some((stream, site))
}

/// `standing` is the place of a stranger, which a site has until it is known to be paired.
async fn visit(shared: &Arc<Shared>, host: Arc<dyn Host>, stream: Stream, site: SiteId, standing: DoorPlace) {
    // Entered first and asked then, so that taking access back cannot miss it.
    let line = CancellationToken::new();
    let place = shared.registry.enter(site, Arc::new(Line(line.clone())));
    let (recv, send) = tokio::io::split(stream);
    let mut talk = Talk {
        recv: Receiver::new(recv),
        send: Sender::new(send).packing(shared.settings.compress.then(Arc::default)),
        site,
        host,
    };
    let all = async {
        if talk.host.is_paired(site) {
            drop(standing);
            talk.exchanges(shared, &place).await;
        } else {
            talk.refuse().await;
            drop(standing);
        }
        // It ended by itself; the peer may have left already.
        let _ = timeout(GOODBYE, talk.send.shut()).await;
    };
    // Taken away, not a byte more is written: the peer reads a cut, and is told why when it asks again.
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = line.cancelled() => {}
        () = all => {}
    }
    line.cancel();
}

struct Talk {
    recv: Receiver<ReadHalf<Stream>>,
    send: Sender<WriteHalf<Stream>>,
    site: SiteId,
    host: Arc<dyn Host>,
}

impl Talk {
    /// Tells a site that is not paired so, once it asked.
    async fn refuse(&mut self) {
        let _ = timeout(GOODBYE, self.recv.begins()).await;
        let _ = timeout(GOODBYE, self.send.give_up(NOT_PAIRED)).await;
    }

    /// One exchange after another, until one fails or the peer leaves.
    async fn exchanges(&mut self, shared: &Shared, place: &Place) {
        let brake = shared.throttle.brake(self.site, Way::Out);
        loop {
            // A failed read is the end, too.
            let begins = timeout(limits::TLS_IDLE_SERVED, self.recv.begins()).await;
            if !matches!(begins, Ok(Ok(true))) {
                return;
            }
            if !self.host.is_paired(self.site) {
                let _ = timeout(GOODBYE, self.send.give_up(NOT_PAIRED)).await;
                return;
            }
            // The site's own limit first, so that one site cannot queue for everybody's places.
            let _permits = (place.serves.acquire().await, shared.serves.acquire().await);
            let how = (&brake, shared.settings.serve_stall);
            let answered = serve::stream(self.host.clone(), self.site, &mut self.recv, &mut self.send, how).await;
            let well = answered.is_ok() && self.recv.has_ended();
            report(self.site, answered);
            if !well {
                if let Some(code) = self.send.wants_reset() {
                    let _ = timeout(GOODBYE, self.send.give_up(code)).await;
                }
                return;
            }
            self.recv.again();
        }
    }
}
