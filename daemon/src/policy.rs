//! Who may have what. Every request of a peer is answered here before a byte is looked up for it.
//!
//! Invariant: a peer gets a blob only if a grant in force lets it read a space, that blob arrived
//! for that space, and the grant reaches a section that holds it. Knowing a hash gives no right, and
//! a refusal looks the same as absence.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use sluice_protocol::annex::{Annex, ChunkListRef};
use sluice_protocol::codec::Document;
use sluice_protocol::grants::{Grant, Right};
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SiteId, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, Manifest};
use sluice_protocol::signed::Signed;
use sluice_protocol::tree::{Page, TreeItem, TreeRef};
use sluice_store::catalog::{Catalog, CatalogError, Lookup, Reader, SiteLookup};

use crate::clock::now_ms;
use crate::retention::newest_versions;

/// How many section-limited grants are kept worked out.
const LIMITED_SETS_MAX: usize = 8;

/// Newest versions of which a section-limited grant reaches blobs; those that the peer leases come to them.
const VERSIONS_REACHED: usize = 3;

type LimitedKey = (SpaceId, Vec<SnapshotId>, Vec<String>);

/// Answers questions of right over the catalog.
pub struct Policy {
    catalog: Catalog,
    me: SiteId,
    limited: Mutex<HashMap<LimitedKey, Arc<HashSet<BlobHash>>>>,
}

/// What a peer may read of one space.
pub enum Reach {
    /// Everything that arrived for it.
    Whole,
    /// These sections (kind or folder) of the newest snapshot.
    Sections(Vec<String>),
}

impl Policy {
    /// A policy over this site's catalog.
    pub fn new(catalog: Catalog, me: SiteId) -> Self {
        Self { catalog, me, limited: Mutex::new(HashMap::new()) }
    }

    /// Whether the site was admitted here, or by the owner of a space that is here, and not cut off
    /// since. A catalog that fails admits nobody.
    pub fn is_paired(&self, site: SiteId) -> bool {
        self.catalog.read().and_then(|r| known_site(&r, site)).unwrap_or(false)
    }

    /// What `peer` may read of `space` now.
    pub fn reach(&self, r: &Reader, space: &SpaceId, peer: SiteId) -> Result<Option<Reach>, CatalogError> {
        let Some(record) = r.space(space)? else { return Ok(None) };
        if record.frozen.is_some() || r.peer(&peer)?.is_some_and(|p| p.revoked) {
            return Ok(None);
        }
        let now = now_ms();
        let Some(grants) = r.grants(space)? else { return Ok(None) };
        if !grants.allows(peer, Right::Read, now) {
            return Ok(None);
        }
        // Past its time a head is shown as stale, and what it names is not served on.
        let stale = r.newest_head(space, &record.owner)?.is_some_and(|h| h.is_stale(now));
        if stale && record.owner != self.me {
            return Ok(None);
        }
        Ok(Some(match grants.of(peer) {
            Some(Grant { sections, .. }) if !sections.is_empty() => Reach::Sections(sections.clone()),
            _ => Reach::Whole,
        }))
    }

    /// The spaces through which `peer` may have the blob.
    pub fn spaces_serving(&self, r: &Reader, peer: SiteId, hash: &BlobHash) -> Result<Vec<SpaceId>, CatalogError> {
        let mut serving = Vec::new();
        for (space, _) in r.spaces()? {
            if !r.has_blob(&space, hash)? && !r.has_meta(&space, hash)? {
                continue;
            }
            let allowed = match self.reach(r, &space, peer)? {
                None => false,
                Some(Reach::Whole) => true,
                Some(Reach::Sections(sections)) => self.limited_set(r, &space, peer, sections)?.contains(hash),
            };
            if allowed {
                serving.push(space);
            }
        }
        Ok(serving)
    }

    /// Whether `peer` may keep a version here by saying that it is held at it. A lease widens what a
    /// section-limited grant reaches, so such a peer keeps only what it reaches already.
    pub fn may_hold(
        &self,
        r: &Reader,
        space: &SpaceId,
        peer: SiteId,
        version: SnapshotId,
    ) -> Result<bool, CatalogError> {
        Ok(match self.reach(r, space, peer)? {
            None => false,
            Some(Reach::Whole) => true,
            Some(Reach::Sections(_)) => {
                // Its lease goes on, however many versions have come since.
                let leased = r.leases(space)?.iter().any(|(who, id, _)| *who == peer && *id == version);
                leased || reached(r, space, peer)?.iter().any(|h| h.manifest == version)
            }
        })
    }

    fn limited_set(
        &self,
        r: &Reader,
        space: &SpaceId,
        peer: SiteId,
        sections: Vec<String>,
    ) -> Result<Arc<HashSet<BlobHash>>, CatalogError> {
        let heads = reached(r, space, peer)?;
        if heads.is_empty() {
            return Ok(Arc::default());
        }
        let key = (*space, heads.iter().map(|h| h.manifest).collect(), sections);
        // Held while the set is made, so that many requests at once make it once.
        let mut cache = self.limited.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = cache.get(&key) {
            return Ok(set.clone());
        }
        let mut set = HashSet::new();
        for head in &heads {
            set.extend(reachable(r, space, head.manifest, head.annex, &key.2)?);
        }
        let set = Arc::new(set);
        if cache.len() >= LIMITED_SETS_MAX {
            cache.clear();
        }
        cache.insert(key, set.clone());
        Ok(set)
    }
}

/// The heads of the versions that a section-limited grant of `peer` reaches, newest first.
fn reached(r: &Reader, space: &SpaceId, peer: SiteId) -> Result<Vec<Signed<Head>>, CatalogError> {
    let Some(owner) = r.space(space)?.map(|s| s.owner) else { return Ok(vec![]) };
    // A peer may still be fetching a version that was newest a moment ago.
    let leased = r.leases(space)?.into_iter().filter(|(who, ..)| *who == peer).map(|(_, id, _)| id);
    let leased: HashSet<SnapshotId> = leased.collect();
    let mut heads = newest_versions(r, space, &owner, usize::MAX)?;
    let mut place = 0..;
    heads.retain(|h| place.next().is_some_and(|i| i < VERSIONS_REACHED) || leased.contains(&h.manifest));
    Ok(heads)
}

fn known_site(r: &Reader, site: SiteId) -> Result<bool, CatalogError> {
    if let Some(peer) = r.peer(&site)? {
        return Ok(!peer.revoked);
    }
    let now = now_ms();
    for (space, _) in r.spaces()? {
        if r.grants(&space)?.is_some_and(|g| g.allows(site, Right::Read, now)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every blob that the given sections of a snapshot need.
fn reachable(
    r: &Reader,
    space: &SpaceId,
    snapshot: SnapshotId,
    annex: BlobHash,
    sections: &[String],
) -> Result<HashSet<BlobHash>, CatalogError> {
    let mut set = HashSet::from([snapshot.into(), annex]);
    let limit = Grant { sections: sections.to_vec(), ..Grant::new(SiteId([0; 32]), "limit", &[], None) };
    let Some(manifest) = r.meta(space, &snapshot.into())? else { return Ok(set) };
    for section in &Manifest::from_bytes(&manifest)?.sections {
        if limit.reaches(section.kind.as_str(), section.name()) {
            pages(r, space, &section.tree, &mut set, &mut |set, entry: Entry| {
                set.extend(entry.hash);
            })?;
        }
    }
    let lists = r.meta(space, &annex)?.map(|a| Annex::from_bytes(&a)).transpose()?.and_then(|a| a.chunk_lists);
    if let Some(lists) = lists {
        pages(r, space, &lists, &mut set, &mut |set, item: ChunkListRef| {
            if set.contains(&item.blob) {
                set.insert(item.list);
            }
        })?;
    }
    Ok(set)
}

/// Adds the pages of a tree to `set` and hands their items to `each`.
fn pages<T: TreeItem>(
    r: &Reader,
    space: &SpaceId,
    root: &TreeRef,
    set: &mut HashSet<BlobHash>,
    each: &mut dyn FnMut(&mut HashSet<BlobHash>, T),
) -> Result<(), CatalogError> {
    let mut todo = vec![root.clone()];
    while let Some(tree) = todo.pop() {
        set.insert(tree.page);
        let Some(bytes) = r.meta(space, &tree.page)? else { continue };
        let page = Page::from_bytes(&bytes)?;
        todo.extend(page.child_pages().filter(|c| c.height < tree.height).cloned());
        for item in page.decode_items::<T>()? {
            each(set, item);
        }
    }
    Ok(())
}
