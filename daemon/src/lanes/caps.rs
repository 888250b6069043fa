//! How much of the line bulk data may take, and when.
//!
//! Invariant: a cap holds for each direction alone and for all lanes, spaces and streams together. Messages between sites
//! are never held back: a site whose line is full of data still answers.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_protocol::ids::SiteId;
use tokio::time::Instant;

/// Bytes in a second of a megabit in a second.
const MBPS: u64 = 125_000;
/// What was not used is used up within this time, and no more.
const BURST: Duration = Duration::from_millis(100);
/// Where there is a cap, what is sent at once takes about this long.
const SLICE: Duration = Duration::from_millis(50);
/// Fewest bytes that are sent at once.
const SLICE_BYTES_MIN: usize = 16 * 1024;

/// The caps of a site. Megabits a second; 0 is no cap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caps {
    pub mbps: u64,
    pub mbps_per_peer: u64,
    /// What holds instead of `mbps` at times of the day; the first that fits.
    pub hours: Vec<Hours>,
}

/// A part of the day with a cap of its own, in the machine's local time: `08:00-18:00 50`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// Minutes since midnight.
    from: u32,
    to: u32,
    mbps: u64,
}

impl Hours {
    fn holds(&self, minute: u32) -> bool {
        match self.from < self.to {
            true => (self.from..self.to).contains(&minute),
            // Over midnight; the whole day where both are the same.
            false => minute >= self.from || minute < self.to,
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |minute: u32| format!("{:02}:{:02}", minute / 60, minute % 60);
        write!(f, "{}-{} {}", time(self.from), time(self.to), self.mbps)
    }
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not of the form `08:00-18:00 50` (from, to, megabits a second)");
        let (times, mbps) = text.trim().split_once(' ').ok_or_else(wrong)?;
        let (from, to) = times.split_once('-').ok_or_else(wrong)?;
        let minute = |time: &str| {
            let (hours, minutes) = time.split_once(':')?;
            let short = |s: &str| s.len() == 2 && s.bytes().all(|b| b.is_ascii_digit());
            let (hours, minutes) =
                (short(hours) && short(minutes)).then_some((hours.parse().ok()?, minutes.parse().ok()?))?;
            let is_time = minutes < 60 && (hours < 24 || (hours, minutes) == (24, 0));
            is_time.then_some((hours * 60 + minutes) % (24 * 60))
        };
        let mbps = mbps.trim().parse().map_err(|_| wrong())?;
        Ok(Self { from: minute(from).ok_or_else(wrong)?, to: minute(to).ok_or_else(wrong)?, mbps })
    }
}

impl Caps {
    /// Bytes in a second at this minute of the day; none where there is no cap.
    fn at(&self, minute: u32) -> Option<u64> {
        let mbps = self.hours.iter().find(|h| h.holds(minute)).map_or(self.mbps, |h| h.mbps);
        (mbps > 0).then_some(mbps.saturating_mul(MBPS))
    }

    fn now(&self) -> Option<u64> {
        self.at(self.minute())
    }

    /// The minute of the day, where that makes a difference.
    fn minute(&self) -> u32 {
        if self.hours.is_empty() {
            return 0;
        }
        let time = jiff::Zoned::now().time();
        u32::from(time.hour().unsigned_abs()) * 60 + u32::from(time.minute().unsigned_abs())
    }

    /// What holds bulk data back now, in words.
    pub fn in_words(&self) -> Vec<String> {
        self.in_words_at(self.minute())
    }

    fn in_words_at(&self, minute: u32) -> Vec<String> {
        let hours = self.hours.iter().find(|h| h.holds(minute));
        let by = hours.map_or("limits.max_mbps".into(), |h| format!("limits.hours \"{h}\""));
        let all = self.at(minute).map(|rate| format!("{} Mbit/s each way for all peers together ({by})", rate / MBPS));
        let each =
            self.of_peer().map(|rate| format!("{} Mbit/s for each peer (limits.max_mbps_per_peer)", rate / MBPS));
        all.into_iter().chain(each).collect()
    }

    fn of_peer(&self) -> Option<u64> {
        (self.mbps_per_peer > 0).then_some(self.mbps_per_peer.saturating_mul(MBPS))
    }
}

/// The caps at work in both directions.
#[derive(Default)]
pub(super) struct Throttle {
    caps: Caps,
    total: [Arc<Bucket>; 2],
    peers: Mutex<HashMap<SiteId, [Arc<Bucket>; 2]>>,
}

/// Which way bytes go.
#[derive(Clone, Copy)]
pub(super) enum Way {
    In,
    Out,
}

/// The caps for one peer and one direction. Cheap to clone.
#[derive(Clone)]
pub(super) struct Brake {
    throttle: Arc<Throttle>,
    total: Arc<Bucket>,
    peer: Arc<Bucket>,
}

impl Throttle {
    pub fn new(caps: Caps) -> Self {
        Self { caps, ..Self::default() }
    }

    /// The brake for bytes that go this way between us and a peer.
    pub fn brake(self: &Arc<Self>, peer: SiteId, way: Way) -> Brake {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody uses hold no debt for long.
        peers.retain(|site, buckets| *site == peer || buckets.iter().any(|b| Arc::strong_count(b) > 1 || b.owes()));
        let buckets = peers.entry(peer).or_default();
        Brake { throttle: self.clone(), total: self.total[way as usize].clone(), peer: buckets[way as usize].clone() }
    }
}

impl Brake {
    /// Waits until so many bytes may go.
    pub async fn take(&self, bytes: u64) {
        if let Some(rate) = self.throttle.caps.now() {
            self.total.take(bytes, rate).await;
        }
        if let Some(rate) = self.throttle.caps.of_peer() {
            self.peer.take(bytes, rate).await;
        }
    }

    /// How much is sent at once: all of it, where there is no cap.
    pub fn slice(&self, bytes: usize) -> usize {
        let least = [self.throttle.caps.now(), self.throttle.caps.of_peer()].into_iter().flatten().min();
        let slice = least.map(|rate| (u128::from(rate) * SLICE.as_millis() / 1000) as usize);
        slice.map_or(bytes, |slice| slice.clamp(SLICE_BYTES_MIN, bytes.max(SLICE_BYTES_MIN)))
    }
}

/// Whoever takes bytes out waits until those before it are paid for.
struct Bucket(Mutex<Instant>);

impl Default for Bucket {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Bucket {
    /// Whether what was taken is not paid for yet.
    fn owes(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) > Instant::now()
    }

    async fn take(&self, bytes: u64, rate: u64) {
        let start = {
            let mut paid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let start = (*paid).max(now.checked_sub(BURST).unwrap_or(now));
            *paid = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_has_its_caps() {
        let caps = Caps {
            mbps: 100,
            hours: ["08:00-18:00 50", "22:30-06:00 0", "23:00-24:00 7"].map(|h| h.parse().unwrap()).to_vec(),
            ..Caps::default()
        };
        let at = |hours: u32, minutes: u32| caps.at(hours * 60 + minutes).map(|rate| rate / MBPS);
        assert_eq!((at(7, 59), at(8, 0), at(17, 59), at(18, 0)), (Some(100), Some(50), Some(50), Some(100)));
        assert_eq!((at(22, 29), at(22, 30), at(23, 30), at(5, 59), at(6, 0)), (Some(100), None, None, None, Some(100)));
        let capped = Caps { mbps_per_peer: 3, ..caps };
        let words = capped.in_words_at(9 * 60);
        assert_eq!(
            words,
            [
                "50 Mbit/s each way for all peers together (limits.hours \"08:00-18:00 50\")",
                "3 Mbit/s for each peer (limits.max_mbps_per_peer)"
            ]
        );
        assert_eq!(capped.in_words_at(23 * 60), words[1..], "no cap by the hour, one for each peer");
        assert!(capped.in_words_at(7 * 60)[0].contains("100 Mbit/s each way for all peers together (limits.max_mbps)"));
        assert!(Caps::default().in_words().is_empty());
        for wrong in [
            "",
            "8-18 50",
            "08:00-18:00",
            "08:00-18:00 x",
            "08:00-25:00 5",
            "08:60-18:00 5",
            "08:00-18:00 -5",
            "+8:00-09:00 1",
        ] {
            let said = wrong.parse::<Hours>().unwrap_err();
            assert!(said.contains("08:00-18:00 50"), "{said}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cap_holds_for_all_together() {
        let throttle = Arc::new(Throttle::new(Caps { mbps: 8, ..Caps::default() }));
        let start = Instant::now();
        let all = (0..10u8).map(|i| {
            let brake = throttle.brake(SiteId([i % 3; 32]), Way::In);
            async move {
                for _ in 0..100 {
                    brake.take(10_000).await;
                }
            }
        });
        futures_util::future::join_all(all).await;
        let took = start.elapsed().as_secs_f64();
        assert!((9.5..10.1).contains(&took), "ten megabytes at a megabyte a second took {took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn directions_and_peers_have_caps_of_their_own() {
        let throttle = Arc::new(Throttle::new(Caps { mbps_per_peer: 8, ..Caps::default() }));
        let start = Instant::now();
        let brakes = [(1, Way::In), (1, Way::Out), (2, Way::In)].map(|(n, way)| throttle.brake(SiteId([n; 32]), way));
        let all = brakes.iter().map(|brake| async move {
            for _ in 0..100 {
                brake.take(10_000).await;
            }
        });
        futures_util::future::join_all(all).await;
        let took = start.elapsed().as_secs_f64();
        assert!((0.8..1.1).contains(&took), "each took its own second: {took} s");
        assert_eq!((brakes[0].slice(1 << 20), brakes[0].slice(100)), (50_000, SLICE_BYTES_MIN));
        assert_eq!(Arc::new(Throttle::default()).brake(SiteId([1; 32]), Way::Out).slice(1 << 20), 1 << 20);
    }
}
