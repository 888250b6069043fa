//! The two doors: accepting connections and ending them.
//!
//! Invariant: on the socket only the site's own user and root are heard, whatever the mode of the file
//! became; on TCP only loopback is ever served. The number of connections is bounded, a client that
//! never finishes its request head is dropped, and stopping never waits for a client for long.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use sluice_protocol::api::Node;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::guard::Token;
use crate::routes::{Door, router};
use crate::{CONNECTIONS_MAX, HEAD_PATIENCE, STOP_PATIENCE};

/// Why a door was not opened.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the API is served on loopback only, not on {0}")]
    NotLoopback(SocketAddr),
    #[error("the address of the API's listener cannot be read: {0}")]
    NoAddress(std::io::Error),
}

/// Pause after the system refused an accept (no descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the socket until `stop`: full rights for the site's own user and for root.
pub async fn serve_unix(listener: UnixListener, node: Arc<dyn Node>, stop: impl Future<Output = ()> + Send) {
    let own_uid = rustix::process::geteuid().as_raw();
    serve(OwnSocket { listener, own_uid }, router(node, Door::Socket), stop).await;
}

/// Serves loopback TCP until `stop`: for whoever holds the token.
pub async fn serve_tcp(
    listener: TcpListener,
    node: Arc<dyn Node>,
    token: Token,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::NoAddress)?;
    if !address.ip().is_loopback() {
        return Err(ServeError::NotLoopback(address));
    }
    serve(listener, router(node, Door::Loopback { token, port: address.port() }), stop).await;
    Ok(())
}

/// Where connections come from.
trait Entrance: Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next connection; none when it came from somebody who is not heard.
    fn next(&self) -> impl Future<Output = std::io::Result<Option<Self::Stream>>> + Send;
}

struct OwnSocket {
    listener: UnixListener,
    own_uid: u32,
}

impl Entrance for OwnSocket {
    type Stream = UnixStream;

    async fn next(&self) -> std::io::Result<Option<UnixStream>> {
        let (stream, _) = self.listener.accept().await?;
        let peer_uid = stream.peer_cred()?.uid();
        Ok(is_admitted(peer_uid, self.own_uid).then_some(stream))
    }
}

impl Entrance for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> std::io::Result<Option<TcpStream>> {
        let (stream, peer) = self.accept().await?;
        Ok(peer.ip().is_loopback().then_some(stream))
    }
}

fn is_admitted(peer_uid: u32, own_uid: u32) -> bool {
    peer_uid == own_uid || peer_uid == 0
}

/// Accepts until `stop`, then lets open answers end for a short while.
async fn serve(entrance: impl Entrance, router: Router, stop: impl Future<Output = ()> + Send) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async {
            // A permit first: when all are taken, further clients wait in the kernel's queue.
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            (slot, entrance.next().await)
        };
        tokio::select! {
            () = &mut stop => break,
            (slot, accepted) = next => match accepted {
                Ok(Some(stream)) => connection(stream, router.clone(), graceful.watcher(), slot),
                Ok(None) => tracing::warn!("a connection to the API was refused: it is not this user's"),
                Err(error) => {
                    tracing::warn!(%error, "a connection to the API was lost");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    if tokio::time::timeout(STOP_PATIENCE, graceful.shutdown()).await.is_err() {
        tracing::info!("open answers of the API were cut off");
    }
}

fn connection<S>(stream: S, router: Router, watcher: Watcher, slot: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE);
    let served = watcher.watch(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    tokio::spawn(async move {
        if let Err(error) = served.await {
            tracing::debug!(%error, "a connection to the API ended early");
        }
        drop(slot);
    });
}

#[cfg(test)]
mod tests {
    use super::is_admitted;

    #[test]
    fn only_the_same_user_and_root_are_heard() {
        assert!(is_admitted(1000, 1000) && is_admitted(0, 1000));
        assert!(!is_admitted(1001, 1000) && !is_admitted(1000, 0));
    }
}
