//! What a new version needs that the live one has not: the input of the plan.
//!
//! Invariant: every distinct blob of the chosen sections is counted once, as unchanged, as present,
//! or as wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sluice_protocol::chunks::ChunkList;
use sluice_protocol::codec::Document;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::limits::CHUNKED_ABOVE_BYTES;
use sluice_protocol::manifest::{Entry, Manifest, Section};
use sluice_protocol::path::LakePath;
use sluice_protocol::plan::{Plan, Wanted, plan_blob};
use sluice_protocol::tree::{TreeRef, read_tree};
use sluice_store::blobs::salvageable;
use sluice_store::catalog::{CatalogError, LiveSection, Lookup, Reader};
use sluice_store::lake::Place;
use sluice_store::verify::takes;

use super::SyncError;
use crate::holdings::SpaceHoldings;

/// A blob of the new version, and what lay at its path before.
struct Candidate {
    wanted: Wanted,
    /// The blob that lay at the same path in the version before.
    base: Option<BlobHash>,
    /// A damaged file that was this blob.
    salvage: Option<Place>,
}

/// A published section that gives room to the owner's newest version of it.
pub struct Before {
    pub section: Section,
    pub live: LiveSection,
}

/// The published sections but those that stay as they lie.
pub fn published(r: &Reader, space: &SpaceId) -> Result<Vec<Before>, SyncError> {
    let mut found = Vec::new();
    let Some(record) = r.live(space)? else { return Ok(found) };
    for live in record.sections.into_iter().filter(|s| !s.stays()) {
        let raw = r.meta(space, &live.of.unwrap_or(record.snapshot).into())?;
        let manifest = raw.and_then(|bytes| Manifest::from_bytes(&bytes).ok());
        let section = manifest.and_then(|m| m.sections.into_iter().find(|s| s.path == live.path));
        found.extend(section.filter(|s| s.tree.page == live.tree).map(|section| Before { section, live }));
    }
    Ok(found)
}

/// The difference between the live version and a new one.
#[derive(Default)]
pub struct Survey {
    candidates: Vec<Candidate>,
    same: Vec<(String, u64, u64)>,
    /// Paths that are new or changed: (size, blob before).
    changed: Vec<(Option<BlobHash>, BlobHash, u64)>,
}

/// The sections of a manifest that this replica takes.
pub fn chosen<'m>(manifest: &'m Manifest, sections: &[String]) -> Vec<&'m Section> {
    manifest.sections.iter().filter(|s| takes(sections, s)).collect()
}

/// The sections that this replica wants (`asked`, empty for all) and may have (`granted`, likewise),
/// by name; empty when that is the whole manifest.
pub fn reachable(manifest: &Manifest, asked: &[String], granted: &[String]) -> Result<Vec<String>, SyncError> {
    if granted.is_empty() {
        return Ok(asked.to_vec());
    }
    let both = manifest.sections.iter().filter(|s| takes(asked, s) && takes(granted, s));
    let names: Vec<String> = both.map(|s| s.name().to_string()).collect();
    if names.is_empty() { Err(SyncError::NothingGranted) } else { Ok(names) }
}

/// All entries of a tree whose pages are here.
pub fn entries(r: &Reader, space: &SpaceId, tree: &TreeRef) -> Result<Vec<Entry>, SyncError> {
    let mut found = Vec::new();
    let mut fetch = |hash: &BlobHash| -> Result<Vec<u8>, CatalogError> {
        r.meta(space, hash)?.ok_or_else(|| CatalogError::Store(format!("page {hash} is missing")))
    };
    read_tree(tree, &mut fetch, &mut |entry: Entry| {
        found.push(entry);
        Ok(())
    })
    .map_err(|e| SyncError::Manifest(e.to_string()))?;
    Ok(found)
}

impl Survey {
    /// Compares the chosen sections of a new version with what is published.
    pub fn take(r: &Reader, space: &SpaceId, old: &[Before], new: &[&Section]) -> Result<Self, SyncError> {
        let mut survey = Survey::default();
        let mut seen = HashSet::new();
        let before: HashMap<Option<&LakePath>, &Before> = old.iter().map(|b| (b.section.path.as_ref(), b)).collect();
        for section in new {
            let old = before.get(&section.path.as_ref());
            let same = |o: &&&Before| o.section.tree == section.tree && o.section.kind == section.kind;
            match old.filter(same).filter(|o| !o.live.is_remade()) {
                Some(_) => survey.same.push((section.name().into(), section.tree.items, section.tree.weight)),
                None => survey.section(r, space, old.copied(), section, &mut seen)?,
            }
        }
        Ok(survey)
    }

    fn section(
        &mut self,
        r: &Reader,
        space: &SpaceId,
        old: Option<&Before>,
        new: &Section,
        seen: &mut HashSet<BlobHash>,
    ) -> Result<(), SyncError> {
        let mut before: BTreeMap<LakePath, BlobHash> = BTreeMap::new();
        if let Some(old) = old {
            // Only lineage is lost with pages that cannot be read any more.
            let files = entries(r, space, &old.section.tree).unwrap_or_default().into_iter();
            before.extend(files.filter_map(|e| e.hash.map(|hash| (e.path, hash))));
        }
        for entry in entries(r, space, &new.tree)? {
            let Some(hash) = entry.hash else { continue };
            let base = before.get(&entry.path).copied();
            if base != Some(hash) {
                self.changed.push((base, hash, entry.size));
            } else if !r.has_blob(space, &hash)? {
                // It was published and is gone or damaged: whoever compares names and times sends it whole.
                self.changed.push((None, hash, entry.size));
            }
            if seen.insert(hash) {
                let salvage = old.and_then(|o| salvageable(r, space, &o.live, &entry.path, &hash));
                let wanted = Wanted { hash, size: entry.size, section: new.name().to_string() };
                self.candidates.push(Candidate { wanted, base, salvage });
            }
        }
        Ok(())
    }

    /// Damaged files whose good chunks may be copied, by the blob that they were.
    pub fn salvage(&self) -> HashMap<BlobHash, Place> {
        self.candidates.iter().filter_map(|c| Some((c.wanted.hash, c.salvage.clone()?))).collect()
    }

    /// Blobs whose chunk lists are worth having: large, and without one here. Also at a first copy,
    /// where lists cost 0.06 % of the bytes, since the next version is compared with this one.
    pub fn worth_lists(&self, r: &Reader, space: &SpaceId) -> BTreeSet<BlobHash> {
        let listed = |hash: &BlobHash| r.blob(space, hash).is_ok_and(|b| b.is_some_and(|b| b.list.is_some()));
        let large = self.candidates.iter().filter(|c| c.wanted.size > CHUNKED_ABOVE_BYTES);
        large.map(|c| c.wanted.hash).filter(|hash| !listed(hash)).collect()
    }

    /// The plan, from what is here and the chunk lists that arrived.
    pub fn plan(&self, here: &SpaceHoldings<'_>, list_of: &dyn Fn(&BlobHash) -> Option<ChunkList>) -> Plan {
        let mut plan = Plan::default();
        for (section, files, bytes) in &self.same {
            plan.same_section(section, *files, *bytes);
        }
        for c in &self.candidates {
            let list = list_of(&c.wanted.hash);
            if let Some(list) = &list {
                here.forget_bases();
                // Lineage first: what lay at the same path, then whoever shares a sampled chunk.
                if let Some(base) = &c.base {
                    here.load_base(base);
                }
                here.load_relatives(list);
                if let Some(place) = &c.salvage {
                    here.load_salvage(&c.wanted.hash, place, list);
                }
            }
            plan.add(plan_blob(c.wanted.clone(), list.as_ref(), here));
        }
        plan
    }

    /// Bytes that `rsync -a` would have moved: a file under a new name whole, a changed file as far as
    /// its chunks do not lie in the file that had the same name.
    pub fn rsync_bytes(
        &self,
        old_list: &dyn Fn(&BlobHash) -> Option<ChunkList>,
        new_list: &dyn Fn(&BlobHash) -> Option<ChunkList>,
    ) -> u64 {
        let moved = |(base, hash, size): &(Option<BlobHash>, BlobHash, u64)| -> u64 {
            let lists = base.as_ref().and_then(old_list).zip(new_list(hash));
            let Some((old, new)) = lists else { return *size };
            let had: HashSet<_> = old.chunks.iter().map(|c| c.hash).collect();
            let fresh = new.chunks.iter().filter(|c| !had.contains(&c.hash));
            fresh.map(|c| u64::from(c.len)).sum()
        };
        self.changed.iter().map(moved).sum()
    }
}
