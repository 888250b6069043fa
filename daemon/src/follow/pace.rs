//! How long to wait before the next try. Pure but for the dice of the jitter.
//!
//! Invariant: a source that is away is tried again within [`AWAY_MAX`], so that a network that healed is
//! noticed well within a minute; what needs a person is tried ever more rarely, and never given up.

use std::time::Duration;

/// Longest wait while no source can be reached.
const AWAY_MAX: Duration = Duration::from_secs(30);
/// Longest wait after a failure that waiting alone does not mend.
const WRONG_MAX: Duration = Duration::from_secs(300);
/// First waits; doubled with each failure in a row.
const AWAY_FIRST: Duration = Duration::from_secs(1);
/// See [`AWAY_FIRST`].
const WRONG_FIRST: Duration = Duration::from_secs(5);

/// How a round failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failing {
    /// Nobody was reached, or the connection broke: it may work at any moment.
    Away,
    /// Refused, unverifiable, diverged, disk full: somebody has to do something.
    Wrong,
}

/// The wait after `failures` failures in a row (1 at least); `usual` is the wait after none.
pub(super) fn wait(failing: Failing, failures: u32, usual: Duration) -> Duration {
    let (first, most) = match failing {
        Failing::Away => (AWAY_FIRST, AWAY_MAX.min(usual)),
        Failing::Wrong => (WRONG_FIRST, WRONG_MAX),
    };
    first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most)
}

/// A fifth more or less, so that many sites do not ask at once.
pub(super) fn jittered(wait: Duration) -> Duration {
    let mut dice = [128u8];
    // Without randomness the wait is as it is.
    let _ = getrandom::fill(&mut dice);
    wait.mul_f64(0.8 + 0.4 * f64::from(dice[0]) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limits() {
        let poll = Duration::from_secs(60);
        assert_eq!(wait(Failing::Away, 1, poll), AWAY_FIRST);
        assert_eq!(wait(Failing::Away, 3, poll), AWAY_FIRST * 4);
        assert_eq!(wait(Failing::Away, 1000, poll), AWAY_MAX);
        assert_eq!(wait(Failing::Away, 1000, Duration::from_secs(2)), Duration::from_secs(2));
        assert_eq!(wait(Failing::Wrong, 1000, poll), WRONG_MAX);
        for _ in 0..100 {
            let wait = jittered(poll);
            assert!(wait >= poll.mul_f64(0.79) && wait <= poll.mul_f64(1.21), "{wait:?}");
        }
    }
}
