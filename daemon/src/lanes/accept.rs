//! Taking connections: who may come in, and how far.
//!
//! Invariant: no stream of a site that is not paired is read, except at the pairing door, and there
//! only a few, for a short time, from a few at once.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use iroh::Endpoint;
use iroh::endpoint::{Connection, Incoming, IncomingAddr, RecvStream, SendStream, VarInt};
use sluice_protocol::ids::SiteId;
use sluice_protocol::limits::{MESSAGE_BYTES_MAX, PAIR_MESSAGE_BYTES_MAX};
use sluice_protocol::messages::{
    ALPN_BLOBS, ALPN_CONTROL, ALPN_PAIR, ALPN_QUIC_BLOBS, Message, REFUSED_LATER, REFUSED_MESSAGE, Refusal,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::admission::{CLOSE_BUSY, CLOSE_DONE, CLOSE_NOT_PAIRED, CLOSE_STOPPING, Place};
use super::caps::{Brake, Way};
use super::encode::EncodeError;
use super::error::MessageError;
use super::frames::{Receiver, Sender};
use super::pack::Gauge;
use super::quic::Shared;
use super::serve::{self, ServeError};
use super::{Host, limits, message};

/// Accepts until the lane is closed.
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint, host: Arc<dyn Host>) {
    loop {
        let incoming = tokio::select! {
            () = shared.stop.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let Ok(slot) = shared.handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let busy = limits::HANDSHAKES_MAX - shared.handshakes.available_permits();
        if busy > limits::HANDSHAKES_CALM && !incoming.remote_addr_validated() {
            if let Err(e) = incoming.retry() {
                e.into_incoming().refuse();
            }
            continue;
        }
        let (inner, host) = (shared.clone(), host.clone());
        shared.tasks.spawn(admit(inner, host, incoming, slot));
    }
}

/// Completes the handshake and sends the connection to its room.
async fn admit(shared: Arc<Shared>, host: Arc<dyn Host>, incoming: Incoming, slot: OwnedSemaphorePermit) {
    let from = match incoming.remote_addr() {
        IncomingAddr::Ip(address) => address.ip(),
        // Relays are off; should one ever bring a stranger, all of them count as one.
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let connection = match timeout(limits::HANDSHAKE_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(e)) => return debug!(%from, "a handshake failed: {e:#}"),
        Err(_) => return debug!(%from, "a handshake took too long"),
    };
    drop(slot);
    let stop = shared.stop.clone();
    let visit = async {
        let site = SiteId(*connection.remote_id().as_bytes());
        match connection.alpn() {
            ALPN_PAIR => door(&shared, host, &connection, site, from).await,
            ALPN_CONTROL => control(&shared, host, &connection, site).await,
            ALPN_QUIC_BLOBS | ALPN_BLOBS => blobs(&shared, host, &connection, site).await,
            _ => close(&connection, CLOSE_NOT_PAIRED, "unknown protocol"),
        }
    };
    tokio::select! {
        () = stop.cancelled() => close(&connection, CLOSE_STOPPING, "the site stops"),
        () = visit => {}
    }
}

/// The pairing door.
async fn door(shared: &Arc<Shared>, host: Arc<dyn Host>, connection: &Connection, site: SiteId, from: IpAddr) {
    let Some(_place) = shared.door.enter(from) else {
        return close(connection, CLOSE_BUSY, "the door is full");
    };
    let talk = async {
        for _ in 0..limits::DOOR_MESSAGES_MAX {
            let Ok((send, recv)) = connection.accept_bi().await else { return };
            if let Err(e) = answer(&*host, site, Room::Door, send, recv).await {
                debug!(site = %site.short(), "at the pairing door: {e}");
            }
        }
        // The one who asked closes when it has read the answer.
        connection.closed().await;
    };
    let _ = timeout(limits::DOOR_LIFE, talk).await;
    close(connection, CLOSE_DONE, "");
}

/// Control messages of a paired site.
async fn control(shared: &Arc<Shared>, host: Arc<dyn Host>, connection: &Connection, site: SiteId) {
    let Some(_place) = enter_paired(shared, &*host, connection, site) else { return };
    let at_once = Arc::new(Semaphore::new(limits::MESSAGES_AT_ONCE_MAX));
    while let Ok(permit) = at_once.clone().acquire_owned().await {
        let Ok((send, recv)) = connection.accept_bi().await else { return };
        if !still_paired(&*host, connection, site) {
            return;
        }
        let host = host.clone();
        shared.tasks.spawn(async move {
            if let Err(e) = answer(&*host, site, Room::Control, send, recv).await {
                debug!(site = %site.short(), "on the control stream: {e}");
            }
            drop(permit);
        });
    }
}

/// Requests for blobs by a paired site.
async fn blobs(shared: &Arc<Shared>, host: Arc<dyn Host>, connection: &Connection, site: SiteId) {
    let Some(place) = enter_paired(shared, &*host, connection, site) else { return };
    let framed = connection.alpn() == ALPN_QUIC_BLOBS;
    let gauge: Option<Arc<Gauge>> = shared.settings.compress.then(Arc::default);
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        if !still_paired(&*host, connection, site) {
            return;
        }
        let (ours, all) = (place.serves.clone(), shared.serves.clone());
        let (host, stall) = (host.clone(), shared.settings.serve_stall);
        let (brake, gauge) = (shared.throttle.brake(site, Way::Out), gauge.clone());
        shared.tasks.spawn(async move {
            // The site's own limit first, so that one site cannot queue for everybody's places.
            let permits = (ours.acquire_owned().await, all.acquire_owned().await);
            let answered = match framed {
                false => serve::stream(host, site, &mut recv, &mut send, (&brake, stall)).await,
                true => in_frames(host, site, recv, send, (gauge, &brake, stall)).await,
            };
            report(site, answered);
            drop(permits);
        });
    }
}

/// Answers one request in frames. A stream that is given up is reset, as it would be without them.
async fn in_frames(
    host: Arc<dyn Host>,
    site: SiteId,
    recv: RecvStream,
    send: SendStream,
    (gauge, brake, stall): (Option<Arc<Gauge>>, &Brake, Duration),
) -> Result<(), ServeError> {
    let (mut recv, mut send) = (Receiver::new(recv), Sender::new(send).packing(gauge));
    let answered = serve::stream(host, site, &mut recv, &mut send, (brake, stall)).await;
    if let Some(code) = send.wants_reset() {
        let _ = send.get_mut().reset(VarInt::from_u32(code));
    }
    answered
}

pub(super) fn report(site: SiteId, result: Result<(), ServeError>) {
    match result {
        Ok(()) => {}
        Err(ServeError::Encode(e @ EncodeError::Damaged { .. })) => warn!("{e}"),
        Err(ServeError::Encode(e @ EncodeError::Read { .. })) => warn!("{e}"),
        Err(e) => debug!(site = %site.short(), "a request ended: {e}"),
    }
}

/// Enters the connection first and asks then, so that taking access back cannot miss it.
fn enter_paired(shared: &Arc<Shared>, host: &dyn Host, connection: &Connection, site: SiteId) -> Option<Place> {
    let place = shared.registry.enter(site, Arc::new(connection.clone()));
    still_paired(host, connection, site).then_some(place)
}

fn still_paired(host: &dyn Host, connection: &Connection, site: SiteId) -> bool {
    let paired = host.is_paired(site);
    if !paired {
        close(connection, CLOSE_NOT_PAIRED, "this site is not paired");
    }
    paired
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Door,
    Control,
}

/// Reads one message and answers it.
async fn answer(
    host: &dyn Host,
    site: SiteId,
    room: Room,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), MessageError> {
    let max = match room {
        Room::Door => PAIR_MESSAGE_BYTES_MAX,
        Room::Control => MESSAGE_BYTES_MAX,
    };
    let asked = match message::read_at_most(&mut recv, max, limits::MESSAGE_TIMEOUT).await {
        Ok(asked) => asked,
        Err(e @ (MessageError::Codec(_) | MessageError::TooLong { .. })) => {
            let said = Message::Refused(Refusal::new(REFUSED_MESSAGE, e.to_string()));
            message::write(&mut send, &said, limits::MESSAGE_TIMEOUT).await?;
            return Err(e);
        }
        Err(e) => {
            let _ = send.reset(VarInt::from_u32(CLOSE_DONE));
            return Err(e);
        }
    };
    let said = match (room, &asked) {
        (Room::Door, Message::Pair(_)) => host.on_message(site, host.is_paired(site), asked).await,
        (Room::Door, _) => Message::Refused(Refusal::new(REFUSED_MESSAGE, "only pairing is done here")),
        (Room::Control, _) => host.on_message(site, true, asked).await,
    };
    match message::write(&mut send, &said, limits::MESSAGE_TIMEOUT).await {
        Err(e @ MessageError::TooLong { .. }) => {
            warn!(site = %site.short(), "an answer was not sent: {e}");
            let later = Message::Refused(Refusal::new(REFUSED_LATER, "the answer is too long"));
            message::write(&mut send, &later, limits::MESSAGE_TIMEOUT).await
        }
        written => written,
    }
}

fn close(connection: &Connection, code: u32, reason: &str) {
    connection.close(VarInt::from_u32(code), reason.as_bytes());
}
