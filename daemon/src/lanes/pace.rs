//! How fast a peer must send, and how long it may be silent.
//!
//! Invariant: only time in which we wait for the peer counts, never time in which our own disk keeps us
//! from reading; so a peer that sends less than its least is slow itself, or its line is.

use std::time::Duration;

use super::limits::{HURRIED_BYTES_PER_S, HURRIED_WINDOW, PATIENT_BYTES_PER_S, PATIENT_WINDOW};

/// What is asked of a peer for one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    bytes_per_s: u64,
    window: Duration,
    /// How long nothing at all may come.
    stall: Duration,
    waited: Duration,
    silent: Duration,
    came: u64,
}

/// A peer that did not keep the pace.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lag {
    /// Nothing came for this long.
    Silent(Duration),
    /// This came in this time, and more was due.
    Slow { bytes: u64, least: u64, within: Duration },
}

impl Pace {
    /// Where the peer is the only one, or the owner: it may take its time. `stall`: how long it may be silent.
    pub fn patient(stall: Duration) -> Self {
        Self::of(PATIENT_BYTES_PER_S, PATIENT_WINDOW.max(stall), stall)
    }

    /// Where others have the same.
    pub fn hurried(stall: Duration) -> Self {
        Self::of(HURRIED_BYTES_PER_S, HURRIED_WINDOW, stall.min(HURRIED_WINDOW))
    }

    fn of(bytes_per_s: u64, window: Duration, stall: Duration) -> Self {
        Self { bytes_per_s, window, stall, waited: Duration::ZERO, silent: Duration::ZERO, came: 0 }
    }

    /// How long nothing at all may come.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// How long to wait now before it is looked again whether the pace was kept.
    pub fn patience(&self) -> Duration {
        (self.stall.saturating_sub(self.silent)).min(self.window.saturating_sub(self.waited))
    }

    /// Waited this long, and this many bytes came; zero when nothing did.
    pub fn after(&mut self, waited: Duration, bytes: u64) -> Result<(), Lag> {
        self.waited += waited;
        self.came += bytes;
        self.silent = if bytes > 0 { Duration::ZERO } else { self.silent + waited };
        if self.silent >= self.stall {
            return Err(Lag::Silent(self.silent));
        }
        if self.waited < self.window {
            return Ok(());
        }
        let least = self.bytes_per_s.saturating_mul(self.waited.as_secs());
        let (bytes, within) = (std::mem::take(&mut self.came), std::mem::take(&mut self.waited));
        if bytes < least { Err(Lag::Slow { bytes, least, within }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A group at a time, with this much waiting for each; how long that is borne.
    fn borne(mut pace: Pace, group_takes: Duration) -> Option<Lag> {
        (0..10_000).find_map(|_| pace.after(group_takes, 16 * 1024).err())
    }

    #[test]
    fn who_drips_is_given_up_and_who_is_slow_is_borne() {
        let stall = 30 * SECOND;
        assert!(matches!(borne(Pace::hurried(stall), 5 * SECOND), Some(Lag::Slow { .. })));
        assert_eq!(borne(Pace::hurried(stall), 3 * SECOND), None);
        // Never silent for too long, and slow all the same.
        assert!(matches!(borne(Pace::patient(stall), 29 * SECOND), Some(Lag::Slow { .. })));
        assert_eq!(borne(Pace::patient(stall), 10 * SECOND), None);
    }

    #[test]
    fn silence_ends_sooner_than_slowness() {
        let mut pace = Pace::patient(3 * SECOND);
        assert_eq!(pace.patience(), 3 * SECOND);
        assert_eq!(pace.after(2 * SECOND, 0), Ok(()));
        assert_eq!(pace.patience(), SECOND);
        assert_eq!(pace.after(SECOND, 0), Err(Lag::Silent(3 * SECOND)));
    }

    #[test]
    fn only_waiting_counts() {
        let mut pace = Pace::hurried(30 * SECOND);
        for _ in 0..1000 {
            assert_eq!(pace.after(Duration::ZERO, 64), Ok(()));
        }
    }
}
