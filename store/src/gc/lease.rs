//! Leases: a peer that fetches a version keeps it from being collected.
//!
//! Invariant: a peer has at most [`LEASES_PER_PEER_MAX`] leases in a space, each ends a grace after the
//! peer's last request, and none is a right to read anything.

use sluice_protocol::ids::{SiteId, SnapshotId, SpaceId};
use sluice_protocol::limits::LEASES_PER_PEER_MAX;

use crate::catalog::{Batch, CatalogError, LeaseRecord, SiteLookup};

/// Notes that `peer` is fetching: it leases `asked`, if that is a version it was not fetching before,
/// and its other leases that have not ended go on.
///
/// `now_ms` in milliseconds since the Unix epoch, `grace_ms` in milliseconds.
pub fn lease(
    b: &mut Batch,
    space: &SpaceId,
    peer: &SiteId,
    asked: Option<SnapshotId>,
    now_ms: u64,
    grace_ms: u64,
) -> Result<(), CatalogError> {
    let until_ms = now_ms.saturating_add(grace_ms);
    let mine = b.leases(space)?.into_iter().filter(|(who, ..)| who == peer);
    let mut mine: Vec<(SnapshotId, LeaseRecord)> = mine.map(|(_, id, record)| (id, record)).collect();
    let ended: Vec<SnapshotId> = mine.iter().filter(|(_, l)| l.until_ms < now_ms).map(|(id, _)| *id).collect();
    mine.retain(|(_, l)| l.until_ms >= now_ms);
    for (_, lease) in &mut mine {
        lease.until_ms = until_ms;
    }
    if let Some(asked) = asked {
        mine.retain(|(id, _)| *id != asked);
        mine.push((asked, LeaseRecord { asked_ms: now_ms, until_ms, unknown: Default::default() }));
    }
    // The ones asked for last are kept.
    mine.sort_by_key(|(_, l)| std::cmp::Reverse(l.asked_ms));
    let spare = mine.split_off(mine.len().min(LEASES_PER_PEER_MAX));
    for (id, record) in &mine {
        b.put_lease(space, peer, id, record)?;
    }
    let gone = ended.into_iter().filter(|id| mine.iter().all(|(kept, _)| kept != id));
    for id in gone.chain(spare.into_iter().map(|(id, _)| id)) {
        b.remove_lease(space, peer, &id)?;
    }
    Ok(())
}
