//! A bad line for everything: a cable between two network namespaces that delays, loses, reorders, slows and cuts
//! IP packets, whatever they carry.
//!
//! A TUN device stands in each namespace, and this process carries what goes in at one to the other. With
//! *offload* the kernel hands over TCP and UDP segments that belong together as one packet, as a network card does
//! it; so a fast line costs little, and where every packet is to be lost by itself it is left off.
//!
//! Invariant: a packet is carried as it came or not at all; what happens to it `way` decides, and nothing waits
//! elsewhere. The devices go with the value.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{self, AtomicBool};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::net::Space;
pub use crate::way::Conditions;
use crate::way::Way;

/// Longest packet: what an IP header can say, and the header that offload puts in front.
const PACKET_BYTES_MAX: usize = 65_535 + VNET_BYTES;
/// Header of an offloaded packet (`struct virtio_net_hdr`).
const VNET_BYTES: usize = 10;
/// Its second byte: the packet is one, or this many of TCP (1, 4) or UDP (5).
const GSO_NONE: u8 = 0;
const GSO_UDP: u8 = 5;
/// What the device holds while nobody reads; more is lost there, uncounted.
const DEVICE_QUEUE: &str = "10000";
/// Packets that are due within this time of each other leave together.
const GRAIN: Duration = Duration::from_micros(200);
/// How soon the end of the line is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The line; it ends with the value.
pub struct Line {
    ways: [Arc<Way>; 2],
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Why this machine permits no line; none when it does.
pub fn forbidden() -> Option<String> {
    let tun = Path::new("/dev/net/tun");
    File::options().read(true).write(true).open(tun).err().map(|e| format!("{}: {e}", tun.display()))
}

impl Line {
    /// A line of this name between two namespaces, with an address (`10.77.1.1/24`) at each end. Perfect until
    /// `set` says otherwise. What goes from the first to the second end follows `seed`, the way back `seed + 1`.
    pub fn between(name: &str, ends: [(&Space, &str); 2], offload: bool, seed: u64) -> io::Result<Self> {
        let mut devices = Vec::new();
        for (space, address) in ends {
            devices.push(Arc::new(device(space, name, offload)?));
            space.ip(&["link", "set", name, "mtu", "1500", "txqueuelen", DEVICE_QUEUE, "up"]);
            space.ip(&["addr", "add", address, "dev", name]);
        }
        let ways = [seed, seed + 1].map(|seed| Arc::new(Way::new(seed)));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (n, way) in ways.iter().enumerate() {
            let (from, to) = (devices[n].clone(), devices[1 - n].clone());
            let queue = Arc::new(Queue::default());
            let (way, filled, stopped) = (way.clone(), queue.clone(), stop.clone());
            threads.push(std::thread::spawn(move || take(&from, &way, &filled, offload, &stopped)));
            let stopped = stop.clone();
            threads.push(std::thread::spawn(move || give(&queue, &to, &stopped)));
        }
        Ok(Self { ways, stop, threads })
    }

    /// Both directions are like this from now on.
    pub fn set(&self, conditions: Conditions) {
        self.ways.iter().for_each(|way| way.set(conditions));
    }

    /// Cuts both directions, or heals them.
    pub fn cut(&self, cut: bool) {
        self.ways.iter().for_each(|way| way.cut(cut));
    }

    /// Packets that passed and that were lost, there and back; those of an offload count as one.
    pub fn counts(&self) -> [(u64, u64); 2] {
        [self.ways[0].counts(), self.ways[1].counts()]
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, atomic::Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Makes a TUN device in a namespace, from a thread that ends there: the descriptor stays with the namespace.
fn device(space: &Space, name: &str, offload: bool) -> io::Result<SyncDevice> {
    let (file, name) = (File::open(space.file())?, name.to_owned());
    let made = std::thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        let device = DeviceBuilder::new().name(name).offload(offload).enable(false).build_sync()?;
        device.set_nonblocking(true)?;
        Ok(device)
    });
    made.join().expect("no panic while a device is made")
}

/// Reads what goes in at one end, and lets it wait until it is due at the other.
fn take(from: &SyncDevice, way: &Way, queue: &Queue, offload: bool, stop: &AtomicBool) {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    while !stop.load(atomic::Ordering::Relaxed) {
        match rustix::io::read(from, &mut buffer) {
            Ok(length) => {
                let packet = &buffer[..length];
                let bytes = if offload { bytes_apart(packet) } else { length };
                if let Some(at) = way.arrival(bytes) {
                    queue.push(at, packet);
                }
            }
            Err(Errno::AGAIN) => {
                let limit = Timespec::try_from(LOOK_EVERY).expect("a short time");
                // Woken early or not, reading shows what is there.
                let _ = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&limit));
            }
            // The device is down, or gone with its namespace: until it is up again nothing goes through.
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Writes what is due.
fn give(queue: &Queue, to: &SyncDevice, stop: &AtomicBool) {
    let mut due = Vec::new();
    while !stop.load(atomic::Ordering::Relaxed) {
        queue.due(&mut due);
        for packet in due.drain(..) {
            // A namespace that takes nothing is a lost packet.
            let _ = rustix::io::write(to, &packet);
        }
    }
}

/// Bytes that an offloaded packet has on a wire, where each of its segments has the headers. Anything else is itself.
fn bytes_apart(packet: &[u8]) -> usize {
    let Some((header, packet)) = packet.split_at_checked(VNET_BYTES) else { return packet.len() };
    let number = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (kind, segment, transport) = (header[1], number(4), number(6));
    if kind == GSO_NONE || segment == 0 {
        return packet.len();
    }
    let own = if kind == GSO_UDP { Some(8) } else { packet.get(transport + 12).map(|b| usize::from(b >> 4) * 4) };
    let headers = transport + own.unwrap_or_default();
    let segments = packet.len().saturating_sub(headers).div_ceil(segment).max(1);
    packet.len() + (segments - 1) * headers
}

/// Packets on their way, by their arrival.
#[derive(Default)]
struct Queue {
    waiting: Mutex<(BinaryHeap<Waiting>, u64)>,
    sooner: Condvar,
}

struct Waiting {
    at: Instant,
    number: u64,
    packet: Vec<u8>,
}

impl Queue {
    fn push(&self, at: Instant, packet: &[u8]) {
        let packet = packet.to_vec();
        let mut waiting = self.waiting.lock().expect("no panic while held");
        let (heap, number) = &mut *waiting;
        let is_first = heap.peek().is_none_or(|first| at < first.at);
        *number += 1;
        heap.push(Waiting { at, number: *number, packet });
        if is_first {
            self.sooner.notify_one();
        }
    }

    /// Waits, not for long, and takes what is due.
    fn due(&self, due: &mut Vec<Vec<u8>>) {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        let left = |heap: &BinaryHeap<Waiting>| {
            heap.peek().map_or(LOOK_EVERY, |first| first.at.saturating_duration_since(Instant::now()))
        };
        let limit = left(&waiting.0);
        if !limit.is_zero() {
            waiting = self.sooner.wait_timeout(waiting, limit.min(LOOK_EVERY)).expect("no panic while held").0;
        }
        let horizon = Instant::now() + GRAIN;
        while waiting.0.peek().is_some_and(|first| first.at <= horizon) {
            due.extend(waiting.0.pop().map(|first| first.packet));
        }
    }
}

// The earliest is the greatest, because a heap gives its greatest first; of one time the one that came first.
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

#[cfg(test)]
mod tests {
    use super::*;

    /// An offloaded TCP packet: `payload` bytes in segments of 1448, headers of 20 and 32 bytes.
    fn offloaded(payload: usize) -> Vec<u8> {
        let mut packet = vec![0; VNET_BYTES + 52 + payload];
        (packet[0], packet[1]) = (1, 1);
        packet[4..6].copy_from_slice(&1448_u16.to_le_bytes());
        packet[6..8].copy_from_slice(&20_u16.to_le_bytes());
        packet[VNET_BYTES + 20 + 12] = 8 << 4;
        packet
    }

    #[test]
    fn segments_are_counted_with_their_headers() {
        assert_eq!(bytes_apart(&offloaded(1448)), 1500);
        assert_eq!(bytes_apart(&offloaded(1449)), 1501 + 52);
        assert_eq!(bytes_apart(&offloaded(44 * 1448)), 44 * 1500);
        let mut single = offloaded(700);
        (single[1], single[4], single[5]) = (GSO_NONE, 0, 0);
        assert_eq!(bytes_apart(&single), 752);
        assert_eq!(bytes_apart(&[1, 2, 3]), 3);
    }

    #[test]
    fn packets_come_in_the_order_of_their_times() {
        let queue = Queue::default();
        let now = Instant::now();
        for (late, packet) in [(0, b"b"), (0, b"c"), (3_600_000, b"d")] {
            queue.push(now + Duration::from_millis(late), packet);
        }
        queue.push(now - GRAIN, b"a");
        let mut due = Vec::new();
        queue.due(&mut due);
        assert_eq!(due.concat(), b"abc");
    }
}
