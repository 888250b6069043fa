//! What an owner keeps of versions that are no longer its newest.
//!
//! Invariant: whatever one of the newest [`SNAPSHOTS_PINNED`] heads names keeps its pin, so a peer
//! that is fetching one of them is not left half-way by a vacuum; older pins are let go.

use std::collections::HashSet;

use sluice_protocol::api::ApiError;
use sluice_protocol::codec::Document;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SiteId, SpaceId};
use sluice_protocol::manifest::Manifest;
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{CatalogError, Lookup, Reader, SiteLookup};
use sluice_store::lake::Lake;
use sluice_store::pins::unpin_unreferenced;

use crate::errors::OrExplain;
use crate::site::Site;
use crate::sync::survey::entries;

/// Newest snapshots whose write-once files stay pinned.
pub const SNAPSHOTS_PINNED: usize = 3;
/// Newest heads among which they are looked for.
const HEADS_LOOKED_AT: u64 = 64;

/// The heads of a writer's newest [`SNAPSHOTS_PINNED`] distinct versions, newest first.
pub fn newest_versions(r: &Reader, space: &SpaceId, writer: &SiteId) -> Result<Vec<Signed<Head>>, CatalogError> {
    let Some(newest) = r.newest_head(space, writer)? else { return Ok(vec![]) };
    let from = (0, newest.seq.saturating_sub(HEADS_LOOKED_AT));
    let mut heads = r.heads_since(space, writer, from, usize::MAX)?;
    heads.reverse();
    // Tags and renewed signatures make several heads of one version.
    let mut seen = HashSet::new();
    heads.retain(|h| h.seq + HEADS_LOOKED_AT >= newest.seq && seen.insert(h.manifest));
    heads.truncate(SNAPSHOTS_PINNED);
    Ok(heads)
}

/// Lets go of the pins that none of the newest snapshots needs; returns how many went.
pub fn release_old_pins(site: &Site, lake: &Lake, space: &SpaceId) -> Result<u64, ApiError> {
    let kept = kept_blobs(site, space)?;
    unpin_unreferenced(lake, space, &site.catalog, &|hash| kept.contains(hash)).or_explain()
}

fn kept_blobs(site: &Site, space: &SpaceId) -> Result<HashSet<BlobHash>, ApiError> {
    let reader = site.catalog.read().or_explain()?;
    let mut kept = HashSet::new();
    let mut trees = HashSet::new();
    for head in newest_versions(&reader, space, &site.id).or_explain()? {
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
