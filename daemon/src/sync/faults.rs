//! Which sites failed as sources of a space, for a while.
//!
//! Invariant: a failure costs a site its turn, never its right: one that rests is asked after all
//! others, and asked it is. The owner never rests. Nothing here outlives the process.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sluice_protocol::ids::{SiteId, SpaceId};

/// How long a site rests after its first failure; doubled with each one in a row.
const REST_FIRST: Duration = Duration::from_secs(60);
/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(3600);

/// The failures of a site's sources.
#[derive(Default)]
pub struct Faults(Mutex<HashMap<(SpaceId, SiteId), Fault>>);

struct Fault {
    in_a_row: u32,
    until: Instant,
}

impl Faults {
    /// A source failed: it rests. Returns for how long.
    pub fn blame(&self, space: &SpaceId, site: &SiteId) -> Duration {
        self.blame_at(space, site, Instant::now())
    }

    /// Whether a site is to be asked after all others.
    pub fn rests(&self, space: &SpaceId, site: &SiteId) -> bool {
        self.rests_at(space, site, Instant::now())
    }

    /// A whole version came from it.
    pub fn praise(&self, space: &SpaceId, site: &SiteId) {
        self.all().remove(&(*space, *site));
    }

    fn blame_at(&self, space: &SpaceId, site: &SiteId, now: Instant) -> Duration {
        let mut all = self.all();
        // What was over for long is forgotten; so the table is no longer than there are sites that fail now.
        all.retain(|_, fault| now < fault.until + REST_MAX);
        let fault = all.entry((*space, *site)).or_insert(Fault { in_a_row: 0, until: now });
        let rest = REST_FIRST.saturating_mul(1 << fault.in_a_row.min(16)).min(REST_MAX);
        *fault = Fault { in_a_row: fault.in_a_row.saturating_add(1), until: now + rest };
        rest
    }

    fn rests_at(&self, space: &SpaceId, site: &SiteId, now: Instant) -> bool {
        self.all().get(&(*space, *site)).is_some_and(|fault| now < fault.until)
    }

    fn all(&self) -> MutexGuard<'_, HashMap<(SpaceId, SiteId), Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: SpaceId = SpaceId([1; 32]);
    const SITE: SiteId = SiteId([2; 32]);

    #[test]
    fn rests_grow_and_end() {
        let (faults, now) = (Faults::default(), Instant::now());
        assert!(!faults.rests_at(&SPACE, &SITE, now));
        assert_eq!(faults.blame_at(&SPACE, &SITE, now), REST_FIRST);
        assert!(faults.rests_at(&SPACE, &SITE, now + REST_FIRST / 2));
        assert!(!faults.rests_at(&SPACE, &SITE, now + REST_FIRST));
        assert!(!faults.rests_at(&SpaceId([3; 32]), &SITE, now), "other spaces know nothing of it");
        assert_eq!(faults.blame_at(&SPACE, &SITE, now + REST_FIRST), 2 * REST_FIRST);
        for _ in 0..100 {
            assert!(faults.blame_at(&SPACE, &SITE, now) <= REST_MAX);
        }
        assert_eq!(faults.blame_at(&SPACE, &SITE, now + 3 * REST_MAX), REST_FIRST, "long ago is forgotten");
        faults.praise(&SPACE, &SITE);
        assert!(!faults.rests_at(&SPACE, &SITE, now + 3 * REST_MAX));
    }
}
