//! The versions that are kept.
//!
//! Invariant: the answer follows from the catalog and the clock alone, so it can be asked again inside
//! the transaction that removes, and nothing that a peer, a tag or an unfinished publication needs by
//! then is missed.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sluice_protocol::grants::Right;
use sluice_protocol::head::Tags;
use sluice_protocol::ids::{BlobHash, HeadId, SiteId, SnapshotId, SpaceId};

use super::Retention;
use crate::catalog::{CatalogError, Role, SiteLookup, SpaceRecord};
use crate::publish;

/// What marking begins from.
#[derive(Debug, Default)]
pub(super) struct Roots {
    /// Manifests, and whether one that is missing means damage.
    pub manifests: BTreeMap<BlobHash, bool>,
    pub annexes: BTreeSet<BlobHash>,
    /// Metadata that names nothing: grant sets.
    pub leaves: BTreeSet<BlobHash>,
    /// Leases that ended.
    pub ended: Vec<(SiteId, SnapshotId)>,
    /// All manifests that heads name.
    pub known: HashSet<SnapshotId>,
    /// Below a manifest that is here, every page must be here: this site owns the space.
    pub whole: bool,
    /// Staging may hold what an unfinished sync goes on with.
    pub staging: bool,
}

/// What gc needs of a head.
struct Line {
    id: HeadId,
    manifest: SnapshotId,
    annex: BlobHash,
    grants: BlobHash,
    tag: Option<String>,
    untag: Option<String>,
}

impl Roots {
    pub fn of(r: &impl SiteLookup, space: &SpaceId, retention: &Retention) -> Result<Self, CatalogError> {
        let record = r.space(space)?.ok_or_else(|| CatalogError::Refused("the space is not known here".into()))?;
        let mut lines = Vec::new();
        r.each_head(space, &record.owner, &mut |id, h| {
            lines.push(Line { id, manifest: h.manifest, annex: h.annex, grants: h.grants, tag: h.tag, untag: h.untag });
        })?;
        let mut roots = Roots { whole: record.role == Role::Owner, ..Roots::default() };
        match record.role {
            Role::Owner => roots.owned(&lines, retention),
            Role::Replica => roots.copied(r, space, &record, &lines)?,
        }
        roots.leased(r, space, &record, retention)?;
        for line in &lines {
            roots.known.insert(line.manifest);
            if roots.manifests.contains_key(&line.manifest.into()) {
                roots.annexes.insert(line.annex);
                roots.leaves.insert(line.grants);
            }
        }
        roots.leaves.extend(r.grants(space)?.map(|g| g.blob()));
        Ok(roots)
    }

    fn owned(&mut self, lines: &[Line], retention: &Retention) {
        let mut tags = Tags::default();
        for line in lines.iter().rev() {
            let newest = self.manifests.is_empty();
            let tagged = tags.standing(line.tag.as_deref(), line.untag.as_deref()).is_some();
            if tagged || self.manifests.len() < retention.snapshots.max(1) {
                *self.manifests.entry(line.manifest.into()).or_default() |= newest;
            }
        }
    }

    fn copied(
        &mut self,
        r: &impl SiteLookup,
        space: &SpaceId,
        record: &SpaceRecord,
        lines: &[Line],
    ) -> Result<(), CatalogError> {
        let published = r.live(space)?;
        let live = published.as_ref().map(|l| l.snapshot);
        // A section that was changed here stays at the version that it was published from.
        let stayed = published.iter().flat_map(|l| &l.sections).filter_map(|s| s.of);
        self.manifests.extend(stayed.map(|id| (id.into(), true)));
        let held = lines.iter().filter(|l| record.held == Some(l.id));
        self.manifests.extend(held.map(|l| (l.manifest.into(), false)));
        let newest = lines.last().map(|l| l.manifest);
        self.manifests.extend(newest.map(|id| (id.into(), false)));
        self.manifests.extend(live.map(|id| (id.into(), true)));
        self.annexes.extend(publish::live_annex(r, space)?);
        let unfinished = publish::unfinished(r, space)?;
        self.staging = newest != live || !unfinished.is_empty();
        for id in unfinished {
            self.manifests.entry(id.into()).or_default();
        }
        Ok(())
    }

    fn leased(
        &mut self,
        r: &impl SiteLookup,
        space: &SpaceId,
        record: &SpaceRecord,
        retention: &Retention,
    ) -> Result<(), CatalogError> {
        let grants = r.grants(space)?;
        for (peer, snapshot, lease) in r.leases(space)? {
            let revoked = r.peer(&peer)?.is_some_and(|p| p.revoked);
            let granted = grants.as_ref().is_some_and(|g| g.allows(peer, Right::Read, retention.now_ms));
            let stands = lease.until_ms >= retention.now_ms && granted && !revoked && record.frozen.is_none();
            if stands {
                self.manifests.entry(snapshot.into()).or_default();
            } else {
                self.ended.push((peer, snapshot));
            }
        }
        Ok(())
    }
}
