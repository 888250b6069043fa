//! What an owner keeps of versions that are no longer its newest.
//!
//! Invariant: whatever one of the newest [`SNAPSHOTS_PINNED`] heads names keeps its pin, so a peer
//! that is fetching one of them is not left half-way by a vacuum; older pins are let go.

use std::collections::HashSet;

use sluice_protocol::api::ApiError;
use sluice_protocol::codec::Document;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::Manifest;
use sluice_store::catalog::{Lookup, SiteLookup};
use sluice_store::lake::Lake;
use sluice_store::pins::unpin_unreferenced;

use crate::errors::OrExplain;
use crate::site::Site;
use crate::sync::survey::entries;

/// Newest snapshots whose write-once files stay pinned.
pub const SNAPSHOTS_PINNED: u64 = 3;

/// Lets go of the pins that none of the newest snapshots needs; returns how many went.
pub fn release_old_pins(site: &Site, lake: &Lake, space: &SpaceId) -> Result<u64, ApiError> {
    let kept = kept_blobs(site, space)?;
    unpin_unreferenced(lake, space, &site.catalog, &|hash| kept.contains(hash)).or_explain()
}

fn kept_blobs(site: &Site, space: &SpaceId) -> Result<HashSet<BlobHash>, ApiError> {
    let reader = site.catalog.read().or_explain()?;
    let Some(newest) = reader.newest_head(space, &site.id).or_explain()? else { return Ok(HashSet::new()) };
    let mut kept = HashSet::new();
    let mut trees = HashSet::new();
    let oldest = newest.seq.saturating_sub(SNAPSHOTS_PINNED - 1);
    for head in reader.heads_since(space, &site.id, (0, 0), usize::MAX).or_explain()? {
        if head.seq < oldest {
            continue;
        }
        let Some(raw) = reader.meta(space, &head.manifest.into()).or_explain()? else { continue };
        let Ok(manifest) = Manifest::from_bytes(&raw) else { continue };
        for section in manifest.sections {
            // Versions share most sections: each tree is read once.
            if trees.insert(section.tree.page) {
                kept.extend(entries(&reader, space, &section.tree).or_explain()?.into_iter().filter_map(|e| e.hash));
            }
        }
    }
    Ok(kept)
}
