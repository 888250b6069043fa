//! What a new version needs that the live one has not: the input of the plan.
//!
//! Invariant: every distinct blob of the chosen sections is counted once, as unchanged, as present,
//! or as wanted.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::iter::Peekable;
use std::sync::Arc;

use sluice_protocol::chunks::ChunkList;
use sluice_protocol::codec::{CodecError, Document};
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::limits::CHUNKED_ABOVE_BYTES;
use sluice_protocol::manifest::{Entry, Manifest, Section};
use sluice_protocol::path::LakePath;
use sluice_protocol::plan::{Plan, Wanted, plan_blob};
use sluice_protocol::tree::{TreeRef, read_tree};
use sluice_store::blobs::salvageable;
use sluice_store::catalog::{CatalogError, LiveSection, Lookup, Reader};
use sluice_store::lake::Place;
use sluice_store::verify::{entries_in, leaves_of, takes};

use super::SyncError;
use crate::holdings::SpaceHoldings;

/// A blob of the new version, and what lay at its path before: 88 bytes for each blob of the sections that
/// are not the same.
struct Candidate {
    hash: BlobHash,
    /// Length in bytes.
    size: u64,
    /// Which of the surveyed sections.
    section: u32,
    /// The blob that lay at the same path in the version before.
    base: Option<BlobHash>,
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
    /// Names of the sections that are not the same.
    sections: Vec<Arc<str>>,
    same: Vec<(Arc<str>, u64, u64)>,
    /// Damaged files, by the blob that they were.
    salvage: HashMap<BlobHash, Place>,
    /// Changed files with chunk lists before and now: blob before, blob, bytes.
    changed: Vec<(BlobHash, BlobHash, u64)>,
    /// Bytes of the other files that are new or changed.
    whole_bytes: u64,
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
    each_entry(r, space, tree, &mut |entry| {
        found.push(entry);
        Ok(())
    })?;
    Ok(found)
}

/// Hands each entry of a tree whose pages are here to `each`.
pub fn each_entry(
    r: &Reader,
    space: &SpaceId,
    tree: &TreeRef,
    each: &mut dyn FnMut(Entry) -> Result<(), CatalogError>,
) -> Result<(), SyncError> {
    let mut failed = None;
    let mut fetch = |hash: &BlobHash| -> Result<Vec<u8>, CatalogError> {
        r.meta(space, hash)?.ok_or_else(|| CatalogError::Store(format!("page {hash} is missing")))
    };
    let read = read_tree(tree, &mut fetch, &mut |entry: Entry| {
        each(entry).map_err(|e| {
            failed = Some(e);
            CodecError::NotCanonical
        })
    });
    failed.map_or(Ok(()), Err)?;
    read.map_err(|e| SyncError::Manifest(e.to_string()))
}

/// The files of a published section in the order of their paths, a page at a time.
///
/// Only lineage is lost with pages that cannot be read any more.
struct Files<'r> {
    r: &'r Reader,
    space: &'r SpaceId,
    leaves: std::vec::IntoIter<BlobHash>,
    page: Peekable<std::vec::IntoIter<Entry>>,
}

impl<'r> Files<'r> {
    fn of(r: &'r Reader, space: &'r SpaceId, section: Option<&Section>) -> Self {
        let leaves = section.and_then(|s| leaves_of(r, space, s).ok()).unwrap_or_default();
        Self { r, space, leaves: leaves.into_iter(), page: vec![].into_iter().peekable() }
    }

    /// What lay at `path`; the paths asked for ascend.
    fn at(&mut self, path: &LakePath) -> Option<BlobHash> {
        loop {
            while self.page.next_if(|e| e.path < *path).is_some() {}
            match self.page.peek() {
                Some(entry) => return entry.hash.filter(|_| entry.path == *path),
                None => {
                    let leaf = self.leaves.next()?;
                    self.page = entries_in(self.r, self.space, &leaf).unwrap_or_default().into_iter().peekable();
                }
            }
        }
    }
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
        let number = u32::try_from(self.sections.len()).unwrap_or(u32::MAX);
        self.sections.push(new.name().into());
        let mut before = Files::of(r, space, old.map(|o| &o.section));
        let worn = old.is_some_and(|o| o.live.worn);
        each_entry(r, space, &new.tree, &mut |entry| {
            let Some(hash) = entry.hash else { return Ok(()) };
            let base = before.at(&entry.path);
            match base {
                Some(base) if base != hash && entry.size > CHUNKED_ABOVE_BYTES => {
                    self.changed.push((base, hash, entry.size));
                }
                // When it was published and is gone or damaged: whoever compares names and times sends it whole.
                Some(base) if base == hash && r.has_blob(space, &hash)? => {}
                _ => self.whole_bytes += entry.size,
            }
            if seen.insert(hash) {
                let salvage = old.filter(|_| worn).and_then(|o| salvageable(r, space, &o.live, &entry.path, &hash));
                self.salvage.extend(salvage.map(|place| (hash, place)));
                self.candidates.push(Candidate { hash, size: entry.size, section: number, base });
            }
            Ok(())
        })
    }

    /// Damaged files whose good chunks may be copied, by the blob that they were.
    pub fn salvage(&self) -> HashMap<BlobHash, Place> {
        self.salvage.clone()
    }

    /// Blobs whose chunk lists are worth having: large, and without one here. Also at a first copy,
    /// where lists cost 0.06 % of the bytes, since the next version is compared with this one.
    pub fn worth_lists(&self, r: &Reader, space: &SpaceId) -> BTreeSet<BlobHash> {
        let listed = |hash: &BlobHash| r.blob(space, hash).is_ok_and(|b| b.is_some_and(|b| b.list.is_some()));
        let large = self.candidates.iter().filter(|c| c.size > CHUNKED_ABOVE_BYTES);
        large.map(|c| c.hash).filter(|hash| !listed(hash)).collect()
    }

    /// The plan, from what is here and the chunk lists that arrived.
    pub fn plan(&self, here: &SpaceHoldings<'_>, list_of: &dyn Fn(&BlobHash) -> Option<ChunkList>) -> Plan {
        let mut plan = Plan::default();
        for (section, files, bytes) in &self.same {
            plan.same_section(section, *files, *bytes);
        }
        for c in &self.candidates {
            let list = list_of(&c.hash);
            if let Some(list) = &list {
                here.forget_bases();
                // Lineage first: what lay at the same path, then whoever shares a sampled chunk.
                if let Some(base) = &c.base {
                    here.load_base(base);
                }
                here.load_relatives(list);
                if let Some(place) = self.salvage.get(&c.hash) {
                    here.load_salvage(&c.hash, place, list);
                }
            }
            let section = self.sections[c.section as usize].clone();
            plan.add(plan_blob(Wanted { hash: c.hash, size: c.size, section }, list.as_ref(), here));
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
        let moved = |(base, hash, size): &(BlobHash, BlobHash, u64)| -> u64 {
            let lists = old_list(base).zip(new_list(hash));
            let Some((old, new)) = lists else { return *size };
            let had: HashSet<_> = old.chunks.iter().map(|c| c.hash).collect();
            let fresh = new.chunks.iter().filter(|c| !had.contains(&c.hash));
            fresh.map(|c| u64::from(c.len)).sum()
        };
        self.whole_bytes + self.changed.iter().map(moved).sum::<u64>()
    }
}
