//! A bad network for UDP: a forwarder in user space that delays, loses, reorders, slows and cuts.
//!
//! It stands between two sites that have no other way to each other. Each site is reached at an address
//! of the shaper; what arrives there goes on to the site, and the answers go back. Both directions have
//! conditions of their own, which may be changed while packets are on their way.
//!
//! Invariant: a packet is forwarded as it came or not at all; what happens to it `way` decides.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

pub use crate::way::Conditions;
use crate::way::Way;

/// Longest datagram.
const PACKET_BYTES_MAX: usize = 65_536;
/// A way to reach one site: the shaper's address and the site's own.
#[derive(Debug, Clone, Copy)]
pub struct Door {
    pub at: SocketAddr,
    pub to: SocketAddr,
}

/// The shaper between two sites; it ends with the value.
pub struct Shaper {
    ways: [Arc<Way>; 2],
    _stop: oneshot::Sender<()>,
}

impl Shaper {
    /// Stands in the network namespace `space` (a file below `/run/netns`). What comes in at the first door
    /// passes the first direction, its answers the second; at the second door the other way round.
    pub fn start(space: &Path, doors: [Door; 2], seed: u64) -> Self {
        let ways = [seed, seed + 1].map(|seed| Arc::new(Way::new(seed)));
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (file, both) = (File::open(space).expect("a network namespace"), ways.clone());
        std::thread::spawn(move || {
            // A namespace belongs to a thread; all sockets of this one are made in it.
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let [there, back] = both;
                let first = listen(doors[0], there.clone(), back.clone()).await;
                let second = listen(doors[1], back, there).await;
                ready.send(()).expect("the test waits");
                // An error means that the shaper is gone, which says the same.
                let _ = stopped.await;
                first.abort();
                second.abort();
            });
        });
        is_ready.recv().expect("the shaper stands");
        Self { ways, _stop: stop }
    }

    /// Both directions are like this from now on.
    pub fn set(&self, conditions: Conditions) {
        self.ways.iter().for_each(|way| way.set(conditions));
    }

    /// Cuts both directions, or heals them.
    pub fn cut(&self, cut: bool) {
        self.ways.iter().for_each(|way| way.cut(cut));
    }

    /// Packets that passed and that were lost, both directions together.
    pub fn counts(&self) -> (u64, u64) {
        let [(passed, lost), (more_passed, more_lost)] = [self.ways[0].counts(), self.ways[1].counts()];
        (passed + more_passed, lost + more_lost)
    }
}

fn carry(way: &Way, packet: &[u8], by: &Arc<UdpSocket>, to: SocketAddr) {
    let Some(arrival) = way.arrival(packet.len()) else { return };
    let (packet, by) = (packet.to_vec(), by.clone());
    tokio::spawn(async move {
        tokio::time::sleep_until(arrival.into()).await;
        // A site that is down is a lost packet.
        let _ = by.send_to(&packet, to).await;
    });
}

/// Forwards from a door to its site, with a socket of its own for each who comes.
async fn listen(door: Door, there: Arc<Way>, back: Arc<Way>) -> tokio::task::JoinHandle<()> {
    let inside = Arc::new(UdpSocket::bind(door.at).await.expect("an address of the namespace"));
    tokio::spawn(async move {
        let mut outside: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut packet = vec![0; PACKET_BYTES_MAX];
        loop {
            let Ok((length, from)) = inside.recv_from(&mut packet).await else { continue };
            let by = match outside.entry(from) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let socket = Arc::new(UdpSocket::bind(("0.0.0.0", 0)).await.expect("a free port"));
                    tokio::spawn(answers(socket.clone(), inside.clone(), from, back.clone()));
                    new.insert(socket)
                }
            };
            carry(&there, &packet[..length], by, door.to);
        }
    })
}

/// Brings back what the site answers.
async fn answers(outside: Arc<UdpSocket>, inside: Arc<UdpSocket>, to: SocketAddr, back: Arc<Way>) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        // An error tells of an earlier packet that found nobody; the next one may.
        let Ok((length, _)) = outside.recv_from(&mut packet).await else { continue };
        carry(&back, &packet[..length], &inside, to);
    }
}
