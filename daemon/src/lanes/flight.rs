//! How much a peer may have on its way to us, and how much of it we hold before it is written.
//!
//! What is lost by a kill is what is in flight. So it is a small part of what there is to move, and
//! no more than keeps the line full.
//!
//! Invariant: from 64 MiB up what arrived and is not written is at most one part in a hundred of the
//! transfer; where no window needs to be at its least (on near lines, from 256 MiB up) that holds for
//! all that is in flight.

use std::time::Duration;

use super::limits::{
    FLIGHT_WINDOW_BYTES_FIRST, FLIGHT_WINDOW_BYTES_MAX, FLIGHT_WINDOW_BYTES_MIN, LINE_BYTES_PER_S, WRITE_BYTES_MAX,
    WRITE_BYTES_MIN,
};

/// A kill costs at most one part in this many.
const LOSS: u64 = 100;

/// What one transfer may have in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flight {
    /// Bytes that the peer may send ahead of our reading, over all connections together.
    window: u64,
    /// Verified bytes that one request collects before it writes them. It holds twice that: one piece
    /// fills while another is written.
    pub piece: usize,
}

impl Default for Flight {
    /// For what describes a version, before it is known what there is to move.
    fn default() -> Self {
        Self { window: FLIGHT_WINDOW_BYTES_FIRST, piece: WRITE_BYTES_MAX }
    }
}

impl Flight {
    /// For `left` bytes in `requests` at once, over a line of this round-trip time.
    pub fn of(left: u64, requests: usize, rtt: Duration) -> Self {
        let may_be_lost = left / LOSS;
        let held = 2 * requests.max(1) as u64;
        // Half of it in memory at most; powers of two, so that pieces are made of whole groups.
        let piece = (may_be_lost / 2 / held).clamp(WRITE_BYTES_MIN as u64, WRITE_BYTES_MAX as u64).ilog2();
        let piece = 1u64 << piece;
        let line = u64::try_from(u128::from(LINE_BYTES_PER_S) * rtt.as_micros() / 1_000_000).unwrap_or(u64::MAX);
        let window = may_be_lost.saturating_sub(piece * held).max(line);
        let window = window.clamp(FLIGHT_WINDOW_BYTES_MIN, FLIGHT_WINDOW_BYTES_MAX);
        Self { window, piece: piece as usize }
    }

    /// The share of each of `connections`, in bytes.
    pub fn window_of_each(&self, connections: usize) -> u64 {
        self.window / connections.max(1) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const NEAR: Duration = Duration::from_millis(2);

    #[test]
    fn one_part_in_a_hundred_is_in_flight() {
        for left in [64, 100, 256, 500, 1000, 4096, 1 << 20].map(|n| n * MIB) {
            for requests in [1, 4, 8] {
                let flight = Flight::of(left, requests, NEAR);
                let held = 2 * (requests * flight.piece) as u64;
                assert!(held <= left / LOSS, "{left} in {requests}: {flight:?}");
                assert!(left < 256 * MIB || held + flight.window <= left / LOSS, "{left} in {requests}: {flight:?}");
                assert_eq!(flight.piece % (16 * 1024), 0);
            }
        }
    }

    #[test]
    fn a_far_line_is_kept_full_and_none_is_without_bounds() {
        let far = Flight::of(64 * MIB, 4, Duration::from_millis(50));
        assert_eq!(far.window, 6_250_000);
        for (left, rtt) in [(0, Duration::ZERO), (u64::MAX, Duration::MAX), (1, NEAR)] {
            let flight = Flight::of(left, 0, rtt);
            assert!((FLIGHT_WINDOW_BYTES_MIN..=FLIGHT_WINDOW_BYTES_MAX).contains(&flight.window), "{flight:?}");
            assert!((WRITE_BYTES_MIN..=WRITE_BYTES_MAX).contains(&flight.piece), "{flight:?}");
        }
        assert_eq!(Flight::of(2048 * MIB, 8, NEAR).window, FLIGHT_WINDOW_BYTES_MAX);
    }
}
