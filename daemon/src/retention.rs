//! What is kept, and for whom: the settings of gc, and the leases of peers that fetch.
//!
//! Invariant: a peer that was given a blob of a space has, before the blob is sent, a lease on the
//! version it was last told of, and one that says where it is held has a lease on that; a lease is written when it is new and then at most every
//! [`LEASE_RENEW_MS`], however many versions the peer asks for in turn.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use sluice_protocol::head::Head;
use sluice_protocol::ids::{SiteId, SnapshotId, SpaceId};
use sluice_protocol::limits::{LEASE_RENEW_MS, LEASES_PER_PEER_MAX};
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{Catalog, CatalogError, Reader, SiteLookup};
use sluice_store::gc::{self, Retention};

use crate::clock::now_ms;
use crate::config::Config;

/// Newest heads among which a writer's newest versions are looked for.
const HEADS_LOOKED_AT: u64 = 64;
const HOUR_MS: u64 = 3_600_000;

/// What is kept as of now.
pub fn retention(config: &Config) -> Retention {
    let days = |days: usize| (days > 0).then(|| (days as u64).saturating_mul(24 * HOUR_MS));
    Retention {
        snapshots: config.retention.snapshots,
        grace_ms: grace_ms(config),
        kept_ms: days(config.retention.kept_days),
        quarantine_ms: days(config.retention.quarantine_days),
        now_ms: now_ms(),
    }
}

/// How long a lease lasts, in milliseconds.
pub fn grace_ms(config: &Config) -> u64 {
    (config.retention.grace_h as u64).saturating_mul(HOUR_MS)
}

/// The heads of a writer's newest distinct versions, at most `count`, newest first.
pub fn newest_versions(
    r: &Reader,
    space: &SpaceId,
    writer: &SiteId,
    count: usize,
) -> Result<Vec<Signed<Head>>, CatalogError> {
    let Some(newest) = r.newest_head(space, writer)? else { return Ok(vec![]) };
    let from = (0, newest.seq.saturating_sub(HEADS_LOOKED_AT));
    let mut heads = r.heads_since(space, writer, from, usize::MAX)?;
    heads.reverse();
    // Tags and renewed signatures make several heads of one version.
    let mut seen = HashSet::new();
    heads.retain(|h| h.seq + HEADS_LOOKED_AT >= newest.seq && seen.insert(h.manifest));
    heads.truncate(count);
    Ok(heads)
}

/// What this process remembers of one peer in one space.
#[derive(Default)]
struct Fetching {
    /// The newest version that the peer was told of.
    told: Option<SnapshotId>,
    /// The versions that it leases, and when it asked for them: the same that the catalog keeps.
    leased: Vec<(SnapshotId, u64)>,
    /// When its leases were written last.
    written_ms: u64,
}

/// Gives leases to peers.
pub struct Leases {
    catalog: Catalog,
    grace_ms: u64,
    /// One entry for each peer and space that was served: bounded by the grants.
    fetching: Mutex<HashMap<(SpaceId, SiteId), Fetching>>,
}

impl Leases {
    /// Leases in this catalog that last `grace_ms` from a peer's last request.
    pub fn new(catalog: Catalog, grace_ms: u64) -> Self {
        Self { catalog, grace_ms, fetching: Mutex::default() }
    }

    /// A peer was told that this is the newest version.
    pub fn told(&self, space: SpaceId, peer: SiteId, newest: SnapshotId) {
        let mut all = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((space, peer)).or_default().told = Some(newest);
    }

    /// A peer that may have it asks for a blob; `manifest` says that it is the manifest of this version.
    pub fn asked(&self, space: SpaceId, peer: SiteId, manifest: Option<SnapshotId>) -> Result<(), CatalogError> {
        let now = now_ms();
        let mut all = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        let fetching = all.entry((space, peer)).or_default();
        let asked = manifest.or(fetching.told.take());
        let is_leased = |id: &SnapshotId| {
            fetching.leased.iter().any(|(of, asked)| of == id && now < asked.saturating_add(LEASE_RENEW_MS))
        };
        // After a silence longer than the grace its leases have ended: what it was fetching last is leased anew.
        let ended = now > fetching.written_ms.saturating_add(self.grace_ms);
        let last = fetching.leased.first().map(|(id, _)| *id).filter(|_| ended);
        let wants = asked.or(last).filter(|id| ended || !is_leased(id));
        if wants.is_none() && now < fetching.written_ms.saturating_add(LEASE_RENEW_MS) {
            return Ok(());
        }
        // Held while it is written: a second request of the peer finds the lease there.
        self.catalog.write(|b| gc::lease(b, &space, &peer, wants, now, self.grace_ms))?;
        if let Some(id) = wants {
            fetching.leased.retain(|(of, _)| *of != id);
            fetching.leased.insert(0, (id, now));
            fetching.leased.truncate(LEASES_PER_PEER_MAX);
        }
        fetching.written_ms = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_written_once_for_what_was_told_and_for_a_manifest_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path()).unwrap();
        let leases = Leases::new(catalog.clone(), HOUR_MS);
        let (space, peer) = (SpaceId([1; 32]), SiteId([2; 32]));
        let held = || {
            let all = catalog.read().unwrap().leases(&space).unwrap();
            all.iter().map(|(_, id, record)| (id.0[0], record.until_ms)).collect::<Vec<_>>()
        };
        leases.told(space, peer, SnapshotId([3; 32]));
        assert_eq!(held(), [], "news alone are no lease");
        leases.asked(space, peer, None).unwrap();
        let first = held();
        assert_eq!(first.len(), 1);
        assert!(first[0].0 == 3 && first[0].1 > now_ms() + HOUR_MS / 2);
        leases.told(space, peer, SnapshotId([3; 32]));
        leases.asked(space, peer, None).unwrap();
        assert_eq!(held(), first, "nothing is written for what is leased already");
        for id in 4..10 {
            leases.asked(space, peer, Some(SnapshotId([id; 32]))).unwrap();
        }
        assert_eq!(held().len(), LEASES_PER_PEER_MAX);
        let last = held();
        std::thread::sleep(std::time::Duration::from_millis(2));
        for id in [8, 9, 8, 9] {
            leases.asked(space, peer, Some(SnapshotId([id; 32]))).unwrap();
        }
        assert_eq!(held(), last, "two versions in turn are no news");
    }

    #[test]
    fn a_peer_that_was_silent_longer_than_the_grace_leases_again_what_it_was_fetching() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path()).unwrap();
        let leases = Leases::new(catalog.clone(), 1);
        let (space, peer, version) = (SpaceId([1; 32]), SiteId([2; 32]), SnapshotId([3; 32]));
        let until =
            || catalog.read().unwrap().leases(&space).unwrap().into_iter().map(|(_, id, l)| (id, l.until_ms)).next();
        leases.asked(space, peer, Some(version)).unwrap();
        let (_, first) = until().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
        leases.asked(space, peer, None).unwrap();
        let (again, later) = until().expect("a lease");
        assert!(again == version && later > first, "{first} {later}");
    }
}
