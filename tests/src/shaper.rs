//! A bad network for UDP: a forwarder in user space that delays, loses, reorders, slows and cuts.
//!
//! It stands between two sites that have no other way to each other. Each site is reached at an address
//! of the shaper; what arrives there goes on to the site, and the answers go back. Both directions have
//! conditions of their own, which may be changed while packets are on their way.
//!
//! Invariant: a packet is forwarded as it came or not at all, and what happens to the n-th packet of a
//! direction depends on the seed alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Longest datagram.
const PACKET_BYTES_MAX: usize = 65_536;
/// What waits for a slow line longer than this is lost, as in the queue of a router.
const QUEUE_MAX: Duration = Duration::from_millis(200);

/// What one direction does to packets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conditions {
    pub delay: Duration,
    /// Up to this much more, evenly spread: packets overtake each other.
    pub jitter: Duration,
    /// Lost packets among a thousand.
    pub loss_permille: u64,
    /// Bits in a second; none for no limit.
    pub rate: Option<u64>,
    /// Nothing goes through.
    pub cut: bool,
}

/// One direction.
struct Line {
    conditions: Mutex<Conditions>,
    dice: Mutex<Dice>,
    /// When the slow line is free again.
    free: Mutex<Option<Instant>>,
    passed: AtomicU64,
    lost: AtomicU64,
}

/// A way to reach one site: the shaper's address and the site's own.
#[derive(Debug, Clone, Copy)]
pub struct Door {
    pub at: SocketAddr,
    pub to: SocketAddr,
}

/// The shaper between two sites; it ends with the value.
pub struct Shaper {
    lines: [Arc<Line>; 2],
    _stop: oneshot::Sender<()>,
}

impl Shaper {
    /// Stands in the network namespace `space` (a file below `/run/netns`). What comes in at the first door
    /// passes the first direction, its answers the second; at the second door the other way round.
    pub fn start(space: &Path, doors: [Door; 2], seed: u64) -> Self {
        let lines = [seed, seed + 1].map(|seed| Arc::new(Line::new(seed)));
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (file, both) = (File::open(space).expect("a network namespace"), lines.clone());
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
        Self { lines, _stop: stop }
    }

    /// Both directions are like this from now on.
    pub fn set(&self, conditions: Conditions) {
        self.lines.iter().for_each(|line| *line.conditions.lock().expect("no panic while held") = conditions);
    }

    /// Cuts both directions, or heals them.
    pub fn cut(&self, cut: bool) {
        self.lines.iter().for_each(|line| line.conditions.lock().expect("no panic while held").cut = cut);
    }

    /// Packets that passed and that were lost, both directions together.
    pub fn counts(&self) -> (u64, u64) {
        let sum = |of: fn(&Line) -> &AtomicU64| self.lines.iter().map(|l| of(l).load(Ordering::Relaxed)).sum();
        (sum(|l| &l.passed), sum(|l| &l.lost))
    }
}

impl Line {
    fn new(seed: u64) -> Self {
        Self {
            conditions: Mutex::default(),
            dice: Mutex::new(Dice(seed)),
            free: Mutex::default(),
            passed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// When a packet of this length arrives; none when it is lost.
    fn arrival(&self, bytes: usize) -> Option<Instant> {
        let conditions = *self.conditions.lock().expect("no panic while held");
        let (lost, late) = {
            let mut dice = self.dice.lock().expect("no panic while held");
            (dice.below(1000) < conditions.loss_permille, dice.below(1 + conditions.jitter.as_micros() as u64))
        };
        let now = Instant::now();
        let sent = match conditions.rate {
            None => Some(now),
            Some(rate) => {
                let mut free = self.free.lock().expect("no panic while held");
                let start = free.map_or(now, |f| f.max(now));
                let takes = Duration::from_micros(bytes as u64 * 8 * 1_000_000 / rate);
                (start - now <= QUEUE_MAX).then(|| *free.insert(start + takes))
            }
        };
        let arrival = sent.filter(|_| !lost && !conditions.cut);
        let counter = if arrival.is_some() { &self.passed } else { &self.lost };
        counter.fetch_add(1, Ordering::Relaxed);
        arrival.map(|sent| sent + conditions.delay + Duration::from_micros(late))
    }

    fn carry(&self, packet: &[u8], by: &Arc<UdpSocket>, to: SocketAddr) {
        let Some(arrival) = self.arrival(packet.len()) else { return };
        let (packet, by) = (packet.to_vec(), by.clone());
        tokio::spawn(async move {
            tokio::time::sleep_until(arrival).await;
            // A site that is down is a lost packet.
            let _ = by.send_to(&packet, to).await;
        });
    }
}

/// Forwards from a door to its site, with a socket of its own for each who comes.
async fn listen(door: Door, there: Arc<Line>, back: Arc<Line>) -> tokio::task::JoinHandle<()> {
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
            there.carry(&packet[..length], by, door.to);
        }
    })
}

/// Brings back what the site answers.
async fn answers(outside: Arc<UdpSocket>, inside: Arc<UdpSocket>, to: SocketAddr, back: Arc<Line>) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        // An error tells of an earlier packet that found nobody; the next one may.
        let Ok((length, _)) = outside.recv_from(&mut packet).await else { continue };
        back.carry(&packet[..length], &inside, to);
    }
}

/// Chance that can be had again (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}
