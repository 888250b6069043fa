//! Makes a space's part of a lost catalog again, from its deed and its lake.
//!
//! The documents come from the deed; where the published files lie, and that they are what the
//! manifest says, is found by hashing them. No byte of the lake is moved or changed.
//!
//! Invariant: a blob is recorded only at a place that was hashed just now. A file that is not what the
//! manifest says is left alone and unrecorded, so the next look calls it changed by hand.

use std::collections::BTreeSet;

use sluice_protocol::card::SiteCard;
use sluice_protocol::chunks::ChunkList;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::limits::CHUNKED_ABOVE_BYTES;
use sluice_protocol::manifest::{Entry, EntryKind};
use sluice_protocol::path::LakePath;
use sluice_protocol::signed::Signed;

use crate::catalog::{Batch, Catalog, CatalogError, FileRecord, LiveRecord, LiveSection, Located, Lookup, SpaceRecord};
use crate::chunk::digest_file;
use crate::deed::{Deed, DeedError, each_page};
use crate::durable::Folder;
use crate::lake::{Fingerprint, Lake, Place};
use crate::publish::{restore_numbers, section_of, section_place, set_live_annex};
use crate::verify::entries_of;
use crate::watch::Watch;

/// Trees and chunk lists that wait in memory before they are committed, in bytes.
const PENDING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Files that wait likewise.
const PENDING_FILES_MAX: usize = 16 * 1024;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Files that are what the manifest says.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that are not, or are not there.
    pub other: u64,
    /// Sections whose pages are not here; their files were not looked at.
    pub unread: Vec<String>,
}

/// Writes the documents of a deed into a catalog that does not know the space. The space itself comes
/// last, with [`finish`]: stopped before that, everything can be done again.
pub fn documents(lake: &Lake, catalog: &Catalog, deed: &Deed) -> Result<(), DeedError> {
    let path = lake.root().join(".sluice/space/deed");
    let (grants, heads) = deed.checked().map_err(|cause| DeedError::Damaged { path, cause })?;
    let space = deed.space;
    let numbers = numbers_in_use(lake);
    let mut pages: Vec<Vec<u8>> = Vec::new();
    let mut held = 0;
    each_page(lake, &mut |page| {
        held += page.len();
        pages.push(page);
        if held > PENDING_BYTES_MAX {
            held = 0;
            put_pages(catalog, &space, &std::mem::take(&mut pages))?;
        }
        Ok(())
    })?;
    put_pages(catalog, &space, &pages)?;
    let written: Result<(), CatalogError> = catalog.write(|b| {
        b.put_meta(&space, grants.bytes())?;
        b.put_grants(&space, &grants)?;
        heads.iter().try_for_each(|head| b.put_head(head))?;
        deed.manifests.iter().try_for_each(|m| b.put_meta(&space, &m.0).map(drop))?;
        if let Some(annex) = &deed.annex {
            let hash = b.put_meta(&space, &annex.0)?;
            if deed.live.is_some() {
                set_live_annex(b, &space, &hash)?;
            }
        }
        for peer in &deed.peers {
            b.put_peer(&peer.site, &peer.record)?;
        }
        for raw in &deed.cards {
            if let Ok(card) = Signed::<SiteCard>::from_bytes(&raw.0) {
                b.put_card(&card)?;
            }
        }
        if let Some((id, totals)) = deed.shown.as_ref().zip(deed.totals.as_ref()) {
            b.put_snapshot(&space, id, totals)?;
        }
        if let Some(live) = &deed.live {
            b.set_live(&space, live)?;
        }
        restore_numbers(b, numbers)
    });
    Ok(written?)
}

/// Makes the space known again, at the folder where its lake lies now.
pub fn finish(b: &mut Batch, lake: &Lake, deed: &Deed) -> Result<(), CatalogError> {
    let record = SpaceRecord { lake: lake.root().display().to_string(), ..deed.record.clone() };
    b.put_space(&deed.space, &record)
}

fn put_pages(catalog: &Catalog, space: &SpaceId, pages: &[Vec<u8>]) -> Result<(), CatalogError> {
    if pages.is_empty() {
        return Ok(());
    }
    catalog.write(|b| pages.iter().try_for_each(|page| b.put_meta(space, page).map(drop)))
}

/// The greatest numbers of section folders and generations in a lake.
fn numbers_in_use(lake: &Lake) -> (u64, u64) {
    let greatest = |name: &str| {
        let folder = Folder::of(lake.own().ok()?, "deed").and_then(|own| own.open(name)).ok()?;
        folder.names().ok()?.0.iter().filter_map(|n| n.parse::<u64>().ok()).max()
    };
    (greatest("sections").unwrap_or(0), greatest("generations").unwrap_or(0))
}

/// Hashes what is published at a replica and records what it proves to be.
pub fn published(lake: &Lake, catalog: &Catalog, space: &SpaceId, watch: &dyn Watch) -> Result<Rebuilt, DeedError> {
    let mut rebuilt = Rebuilt::default();
    let Some(live) = catalog.read()?.live(space)? else { return Ok(rebuilt) };
    let total: u64 = live.sections.len() as u64;
    let mut pending = Pending { catalog, space, files: vec![], bytes: 0 };
    let mut seen = BTreeSet::new();
    for (n, section) in live.sections.iter().enumerate() {
        watch.amount("rebuild", n as u64, total, rebuilt.bytes, 0);
        let Some(entries) = listed(catalog, space, &live, section)? else {
            rebuilt.unread.push(section.name().to_string());
            continue;
        };
        for entry in entries.iter().filter(|e| e.kind == EntryKind::File) {
            match prove(lake, section, entry) {
                Some(proven) => {
                    rebuilt.files += 1;
                    rebuilt.bytes += entry.size;
                    let first = seen.insert(proven.hash);
                    pending.add(proven, first)?;
                }
                None => rebuilt.other += 1,
            }
        }
    }
    pending.save()?;
    Ok(rebuilt)
}

fn listed(
    catalog: &Catalog,
    space: &SpaceId,
    live: &LiveRecord,
    section: &LiveSection,
) -> Result<Option<Vec<Entry>>, CatalogError> {
    let reader = catalog.read()?;
    let Some(known) = section_of(&reader, space, live, section)? else { return Ok(None) };
    Ok(entries_of(&reader, space, &known).ok())
}

/// A published file that is what the manifest says.
struct Proven {
    path: LakePath,
    hash: BlobHash,
    place: Place,
    print: Fingerprint,
    outboard: Vec<u8>,
    list: Option<ChunkList>,
}

fn prove(lake: &Lake, section: &LiveSection, entry: &Entry) -> Option<Proven> {
    let hash = entry.hash?;
    let path = section.path.as_ref().map_or(Ok(entry.path.clone()), |s| s.join(&entry.path)).ok()?;
    let place = section_place(&section.folder, &entry.path).ok()?;
    let file = lake.open_place(&place).ok()?;
    let before = Lake::print_of(&file).ok().filter(|p| p.size == entry.size)?;
    let digest = digest_file(&file, entry.size, entry.size > CHUNKED_ABOVE_BYTES).ok()?;
    let print = Lake::print_of(&file).ok().filter(|after| *after == before)?;
    (digest.hash == hash).then_some(Proven { path, hash, place, print, outboard: digest.outboard, list: digest.list })
}

struct Pending<'a> {
    catalog: &'a Catalog,
    space: &'a SpaceId,
    files: Vec<(Proven, bool)>,
    /// Of trees and lists.
    bytes: usize,
}

impl Pending<'_> {
    fn add(&mut self, proven: Proven, first: bool) -> Result<(), CatalogError> {
        self.bytes += proven.outboard.len() + proven.list.as_ref().map_or(0, |l| l.chunks.len() * 40);
        self.files.push((proven, first));
        if self.bytes > PENDING_BYTES_MAX || self.files.len() >= PENDING_FILES_MAX {
            self.save()?;
        }
        Ok(())
    }

    fn save(&mut self) -> Result<(), CatalogError> {
        let files = std::mem::take(&mut self.files);
        self.bytes = 0;
        if files.is_empty() {
            return Ok(());
        }
        self.catalog.write(|b| files.iter().try_for_each(|(p, first)| put(b, self.space, p, *first)))
    }
}

fn put(b: &mut Batch, space: &SpaceId, p: &Proven, first: bool) -> Result<(), CatalogError> {
    let record = FileRecord { print: p.print.clone(), hash: p.hash, damaged: false, unknown: Default::default() };
    b.put_file(space, &p.path, &record)?;
    let at = Located { place: p.place.clone(), print: p.print.clone(), unknown: Default::default() };
    b.add_place(space, &p.hash, p.print.size, at)?;
    if !first {
        return Ok(());
    }
    if !p.outboard.is_empty() {
        b.put_outboard(&p.hash, &p.outboard)?;
    }
    if let Some(list) = &p.list {
        let hash = b.put_meta(space, &list.to_bytes())?;
        b.set_chunk_list(space, &p.hash, &hash)?;
        b.index_chunks(space, &p.hash, list)?;
    }
    Ok(())
}
