//! One direction of a bad line: which packets pass, and when they arrive.
//!
//! Invariant: what happens to the n-th packet depends on the seed alone; a full queue loses what comes last, as in a router.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

/// One direction, with its conditions of the moment.
pub(crate) struct Way {
    conditions: Mutex<Conditions>,
    dice: Mutex<Dice>,
    /// When the slow line is free again.
    free: Mutex<Option<Instant>>,
    passed: AtomicU64,
    lost: AtomicU64,
}

impl Way {
    pub fn new(seed: u64) -> Self {
        Self {
            conditions: Mutex::default(),
            dice: Mutex::new(Dice(seed)),
            free: Mutex::default(),
            passed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// It is like this from now on.
    pub fn set(&self, conditions: Conditions) {
        *self.conditions.lock().expect("no panic while held") = conditions;
    }

    pub fn cut(&self, cut: bool) {
        self.conditions.lock().expect("no panic while held").cut = cut;
    }

    /// When a packet of this length arrives that comes now; none when it is lost.
    pub fn arrival(&self, bytes: usize) -> Option<Instant> {
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
                let takes = Duration::from_nanos(bytes as u64 * 8 * 1_000_000_000 / rate);
                (start - now <= QUEUE_MAX).then(|| *free.insert(start + takes))
            }
        };
        let arrival = sent.filter(|_| !lost && !conditions.cut);
        let counter = if arrival.is_some() { &self.passed } else { &self.lost };
        counter.fetch_add(1, Ordering::Relaxed);
        arrival.map(|sent| sent + conditions.delay + Duration::from_micros(late))
    }

    /// Packets that passed and that were lost.
    pub fn counts(&self) -> (u64, u64) {
        (self.passed.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed))
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
