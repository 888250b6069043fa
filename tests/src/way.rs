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

#[cfg(test)]
mod tests {
    use super::*;

    fn way(seed: u64, conditions: Conditions) -> Way {
        let way = Way::new(seed);
        way.set(conditions);
        way
    }

    #[test]
    fn the_same_seed_loses_the_same_packets() {
        let lossy = Conditions { loss_permille: 10, ..Conditions::default() };
        let fates = |seed| {
            let way = way(seed, lossy);
            let fates: Vec<bool> = (0..10_000).map(|_| way.arrival(1500).is_some()).collect();
            (fates, way.counts())
        };
        let (first, (passed, lost)) = fates(7);
        assert_eq!(first, fates(7).0);
        assert_ne!(first, fates(8).0);
        assert!(passed + lost == 10_000 && (50..200).contains(&lost), "{lost} of 10,000 at 1 %");
    }

    #[test]
    fn what_comes_too_fast_waits_and_then_is_lost() {
        let slow = way(1, Conditions { rate: Some(8_000), ..Conditions::default() });
        let now = Instant::now();
        // A second of the line each.
        let arrivals: Vec<_> = (0..3).map(|_| slow.arrival(1000)).collect();
        assert!(arrivals[0].is_some_and(|at| at >= now + Duration::from_secs(1)));
        assert_eq!((arrivals[1], arrivals[2]), (None, None));
        slow.cut(true);
        assert_eq!((slow.arrival(0), slow.counts()), (None, (1, 3)));
    }
}
