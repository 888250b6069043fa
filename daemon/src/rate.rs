//! How fast a stage goes, and how long the rest of it takes.
//!
//! Invariant: nothing is promised from less than a few seconds, and nothing while nothing moves: the rate is of the last half
//! minute, standing still included.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What is looked back on.
const WINDOW: Duration = Duration::from_secs(30);
/// Before this there is no rate.
const FIRST: Duration = Duration::from_secs(3);
/// Between two notes.
const STEP: Duration = Duration::from_millis(500);

/// Notes of how far a stage was.
#[derive(Debug, Default)]
pub struct Rate {
    notes: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// So many bytes are done.
    pub fn note(&mut self, bytes: u64, now: Instant) {
        if self.notes.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= STEP) {
            self.notes.push_back((now, bytes));
        }
        // One of them stays from before the window, so that it is whole.
        while self.notes.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.notes.pop_front();
        }
    }

    /// Bytes in a second, when `bytes` are done now.
    pub fn per_s(&self, bytes: u64, now: Instant) -> Option<u64> {
        let old = |(at, _): &&(Instant, u64)| now.saturating_duration_since(*at) >= WINDOW;
        let (at, then) = self.notes.iter().rev().find(old).or(self.notes.front())?;
        let took = now.saturating_duration_since(*at);
        (took >= FIRST).then(|| (bytes.saturating_sub(*then) as f64 / took.as_secs_f64()) as u64)
    }
}

/// Seconds for `left` bytes at this rate.
pub fn seconds(left: u64, per_s: Option<u64>) -> Option<u64> {
    per_s.filter(|rate| *rate > 0).map(|rate| left.div_ceil(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_half_minute() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        rate.note(0, at(0));
        assert_eq!(rate.per_s(1000, at(1)), None, "too soon");
        for s in 1..=60 {
            rate.note(s * 100, at(s));
        }
        assert_eq!(rate.per_s(6000, at(60)), Some(100));
        for s in 61..=90 {
            rate.note(6000 + (s - 60) * 10, at(s));
        }
        assert_eq!(rate.per_s(6300, at(90)), Some(10), "what was fast once is forgotten");
        assert_eq!(rate.per_s(6300, at(119)), Some(0), "standing still counts");
        assert_eq!(rate.per_s(6300 + 600, at(150)), Some(10));
        assert!(rate.notes.len() < 70);
        assert_eq!((seconds(95, Some(10)), seconds(95, Some(0)), seconds(95, None)), (Some(10), None, None));
    }
}
