//! What is known of the lanes to each site, for as long as the daemon runs: which one carries bulk data, how fast, and why.
//!
//! Invariant: it outlives handles and connections, so that a way that failed is not tried again by the next transfer, and a
//! person can ask.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sluice_protocol::ids::SiteId;
use tokio::sync::watch;

use super::{QUIC, TLS, limits};

/// A rate is of transfers that follow each other within this time.
const PAUSE: Duration = Duration::from_secs(2);

/// The standings of all sites.
#[derive(Default)]
pub(super) struct Standings(Mutex<HashMap<SiteId, Arc<Standing>>>);

impl Standings {
    pub fn of(&self, site: SiteId) -> Arc<Standing> {
        lock(&self.0).entry(site).or_default().clone()
    }

    pub fn known(&self, site: SiteId) -> Option<Arc<Standing>> {
        lock(&self.0).get(&site).cloned()
    }
}

/// The standing of the lanes to one site.
#[derive(Default)]
pub(super) struct Standing {
    state: Mutex<State>,
    /// Whether tls went at least once, so that it is worth waiting for.
    proved: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// The tls lane did not go; it is not tried again before a while has passed.
    down: Option<(Instant, String)>,
    /// Whether there was an address for it when it was last looked at.
    offered: bool,
    tls: Meter,
    quic: Meter,
    /// Bytes that compression spared the line.
    saved: u64,
}

#[derive(Default, Clone, Copy)]
struct Meter {
    /// Bytes of blobs since the daemon started.
    total: u64,
    /// Of the present run of transfers: bytes, when it began and when it was last added to.
    run: Option<(u64, Instant, Instant)>,
}

/// What a person is told of the lanes to a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneStanding {
    /// The lane that bulk data takes next.
    pub bulk: &'static str,
    /// One sentence.
    pub why: String,
    /// Bytes of blobs that came over each lane since the daemon started.
    pub tls_bytes: u64,
    pub quic_bytes: u64,
    /// Bytes of these that compression spared the line.
    pub saved_bytes: u64,
    /// Bytes per second in the last run of transfers over the lane that carried it.
    pub bytes_per_s: Option<u64>,
}

impl Standing {
    /// Whether tls is to be tried now, given that there is an address for it or not.
    pub fn tries_tls(&self, offered: bool) -> bool {
        let mut state = lock(&self.state);
        state.offered = offered;
        let over = state.down.as_ref().is_some_and(|(since, _)| since.elapsed() > limits::TLS_DOWN);
        if over {
            state.down = None;
        }
        offered && state.down.is_none()
    }

    /// Whether tls went before, so that it is worth waiting for.
    pub fn is_proved(&self) -> bool {
        *self.proved.borrow()
    }

    pub fn proved(&self) {
        self.proved.send_replace(true);
    }

    /// Waits until it goes.
    pub async fn comes_up(&self) {
        // The sender is ours, so it does not go away.
        let _ = self.proved.subscribe().wait_for(|proved| *proved).await;
    }

    /// The tls lane did not carry an exchange to its end; `true` when that is news.
    pub fn failed(&self, why: &str) -> bool {
        let mut state = lock(&self.state);
        let news = state.down.is_none();
        state.down = Some((Instant::now(), why.to_owned()));
        // The next try has to show itself first, like the very first.
        self.proved.send_replace(false);
        news
    }

    /// `bytes` of blobs came over `lane` in a request that began at `since`.
    pub fn moved(&self, lane: &'static str, bytes: u64, since: Instant) {
        let mut state = lock(&self.state);
        let meter = if lane == TLS { &mut state.tls } else { &mut state.quic };
        let now = Instant::now();
        meter.total += bytes;
        meter.run = Some(match meter.run {
            Some((before, began, last)) if since.saturating_duration_since(last) < PAUSE => {
                (before + bytes, began.min(since), now)
            }
            _ => (bytes, since, now),
        });
    }

    /// Compression spared the line so many bytes.
    pub fn saved(&self, bytes: u64) {
        lock(&self.state).saved += bytes;
    }

    pub fn told(&self) -> LaneStanding {
        let state = lock(&self.state);
        let down = state.down.as_ref().filter(|(since, _)| since.elapsed() <= limits::TLS_DOWN);
        let (bulk, why) = match (state.offered, down, self.is_proved()) {
            (false, _, _) => (QUIC, "the tls lane is not open at both sites".to_owned()),
            (true, Some((since, why)), _) => {
                let left = limits::TLS_DOWN.saturating_sub(since.elapsed()).as_secs();
                (QUIC, format!("the tls lane failed ({why}); it is tried again in {left} s"))
            }
            (true, None, true) => (TLS, "TLS over TCP answers, and costs both machines least".to_owned()),
            (true, None, false) => (TLS, "TLS over TCP is offered and not tried yet".to_owned()),
        };
        let newest = [state.tls, state.quic].into_iter().filter_map(|m| m.run).max_by_key(|(_, _, last)| *last);
        let bytes_per_s = newest.and_then(|(bytes, began, last)| {
            let millis = last.saturating_duration_since(began).as_millis().max(1);
            u64::try_from(u128::from(bytes) * 1000 / millis).ok()
        });
        let (tls_bytes, quic_bytes, saved_bytes) = (state.tls.total, state.quic.total, state.saved);
        LaneStanding { bulk, why, tls_bytes, quic_bytes, saved_bytes, bytes_per_s }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these hold is consistent after each statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_which_lane_and_why() {
        let standing = Standing::default();
        assert_eq!((standing.tries_tls(false), standing.told().bulk), (false, QUIC));
        assert_eq!((standing.tries_tls(true), standing.told().bulk), (true, TLS));
        standing.proved();
        assert!(standing.told().why.contains("answers"));
        assert!(standing.failed("connection refused") && !standing.failed("connection refused"));
        let told = standing.told();
        assert_eq!(told.bulk, QUIC);
        assert!(told.why.contains("connection refused") && told.why.contains("tried again"), "{}", told.why);
        assert!(!standing.tries_tls(true), "it is left alone for a while");
    }

    #[test]
    fn rates_are_of_one_run() {
        let standing = Standing::default();
        let second = Duration::from_secs(1);
        let now = Instant::now();
        standing.moved(TLS, 10, now - second);
        standing.moved(TLS, 10, now - second);
        let told = standing.told();
        assert_eq!((told.tls_bytes, told.quic_bytes), (20, 0));
        assert!(told.bytes_per_s.is_some_and(|rate| (15..=20).contains(&rate)), "{told:?}");
    }
}
