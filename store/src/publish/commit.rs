//! What the catalog learns from publishing.
//!
//! Invariant: a fingerprint is refreshed only for a file that fitted before and whose change time we
//! moved ourselves, so an edit never passes for our own doing.

use std::collections::BTreeMap;

use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, Section};
use sluice_protocol::path::LakePath;

use super::cleanup::in_section;
use super::hands::Hands;
use super::old;
use super::place::{Blobs, Inodes};
use super::plan::{How, Plan, SectionPlan};
use crate::blobs::{Fit, compare};
use crate::catalog::{Batch, BlobRecord, CatalogError, FileRecord, LiveRecord, Located, Lookup};
use crate::durable::{Folder, Kind};
use crate::lake::{Lake, Place};
use crate::verify::entries_of;

/// Which section folders are live, and where their sections lie in the lake.
#[derive(Debug, Default)]
pub(super) struct LiveFolders(BTreeMap<String, Option<LakePath>>);

impl LiveFolders {
    pub fn of(live: Option<&LiveRecord>) -> Self {
        let sections = live.into_iter().flat_map(|l| &l.sections);
        Self(sections.map(|s| (s.folder.clone(), s.path.clone())).collect())
    }

    /// The lake path of a place in a live section folder.
    pub fn lake_path(&self, place: &Place) -> Option<LakePath> {
        let (folder, rest) = in_section(place)?;
        let section = self.0.get(folder)?;
        old::lake_path(section.as_ref(), &LakePath::parse(rest).ok()?).ok()
    }
}

/// Records where blobs lie now, and the files of live sections among those places.
pub(super) fn record_places(
    batch: &mut Batch,
    hands: &Hands<'_>,
    live: &LiveFolders,
    blobs: &Blobs,
    touched: &Inodes,
) -> Result<(), CatalogError> {
    for (hash, (size, places)) in blobs {
        let known = batch.blob(&hands.space, hash)?;
        let now: Vec<Located> = places.iter().filter_map(|at| refreshed(hands.lake, at, touched)).collect();
        for at in &now {
            if let Some(path) = live.lake_path(&at.place) {
                let record =
                    FileRecord { print: at.print.clone(), hash: *hash, damaged: false, unknown: Default::default() };
                batch.put_file(&hands.space, &path, &record)?;
            }
        }
        if now.is_empty() {
            batch.remove_blob(&hands.space, hash)?;
            continue;
        }
        let list = known.as_ref().and_then(|k| k.list);
        let size = known.map_or(*size, |k| k.size);
        let record = BlobRecord { size, places: now, list, unknown: Default::default() };
        batch.put_blob(&hands.space, hash, &record)?;
    }
    Ok(())
}

/// The place with today's fingerprint; `None` when it holds something else.
fn refreshed(lake: &Lake, at: &Located, touched: &Inodes) -> Option<Located> {
    let file = lake.open_place(&at.place).ok()?;
    let print = Lake::print_of(&file).ok()?;
    match compare(&at.print, &print) {
        Fit::Same => Some(at.clone()),
        Fit::Touched if touched.contains(&(print.dev, print.inode)) => {
            Some(Located { place: at.place.clone(), print, unknown: Default::default() })
        }
        // It stays doubtful, and whoever needs it hashes it again.
        Fit::Touched => Some(at.clone()),
        Fit::Other => None,
    }
}

fn annex_key(space: &SpaceId) -> String {
    format!("live annex/{space}")
}

/// The annex of the live version.
pub(crate) fn live_annex(reader: &impl Lookup, space: &SpaceId) -> Result<Option<BlobHash>, CatalogError> {
    let raw = reader.setting(&annex_key(space))?;
    Ok(raw.and_then(|raw| raw.try_into().ok()).map(BlobHash))
}

/// Says which annex belongs to the live version.
pub(crate) fn set_live_annex(batch: &mut Batch, space: &SpaceId, annex: &BlobHash) -> Result<(), CatalogError> {
    batch.put_setting(&annex_key(space), &annex.0)
}

/// What makes a version the live one.
pub(super) struct Change<'p> {
    pub plan: &'p Plan<'p>,
    pub record: &'p LiveRecord,
    pub annex: BlobHash,
    /// Blobs whose places are not recorded yet.
    pub blobs: Blobs,
    pub touched: Inodes,
}

/// Everything that makes a version the live one, in one change. Entries are read one section at a time.
pub(super) fn make_live(batch: &mut Batch, hands: &Hands<'_>, change: &Change<'_>) -> Result<(), CatalogError> {
    for section in &change.plan.retired {
        for entry in entries(batch, hands, section)?.iter().filter(|e| e.kind == EntryKind::File) {
            if let Ok(path) = section.lake_path(&entry.path) {
                batch.remove_file(&hands.space, &path)?;
            }
        }
    }
    for s in change.plan.sections.iter().filter(|s| s.how == How::Made) {
        put_files(batch, hands, s)?;
    }
    record_places(batch, hands, &LiveFolders::of(Some(change.record)), &change.blobs, &change.touched)?;
    batch.set_live(&hands.space, change.record)?;
    set_live_annex(batch, &hands.space, &change.annex)?;
    super::aside::store(batch, &hands.space, &change.plan.moves)?;
    super::intent::clear(batch, &hands.space)
}

fn entries(reader: &impl Lookup, hands: &Hands<'_>, section: &Section) -> Result<Vec<Entry>, CatalogError> {
    entries_of(reader, &hands.space, section).map_err(|e| CatalogError::Refused(e.to_string()))
}

/// Remembers the files of a new section folder as they lie there; no reader has seen them yet.
fn put_files(batch: &mut Batch, hands: &Hands<'_>, s: &SectionPlan<'_>) -> Result<(), CatalogError> {
    let name = s.folder.as_deref().unwrap_or_default();
    let failed = |source| CatalogError::Io { path: hands.lake.root().join(".sluice/sections").join(name), source };
    let folder = hands.sections.open(name).map_err(failed)?;
    let mut near: Option<(Option<LakePath>, Folder)> = None;
    for entry in entries(batch, hands, &s.section)? {
        let (Some(hash), Ok(path)) = (entry.hash, s.section.lake_path(&entry.path)) else { continue };
        let parent = entry.path.parent();
        let here = match near.take() {
            Some((at, here)) if at == parent => here,
            _ => folder.descend(parent.as_ref()).map_err(failed)?,
        };
        let seen = here.look(entry.path.file_name()).map_err(failed)?;
        if let Some(seen) = seen.filter(|seen| seen.kind == Kind::File && seen.print.size == entry.size) {
            let record = FileRecord { print: seen.print, hash, damaged: false, unknown: Default::default() };
            batch.put_file(&hands.space, &path, &record)?;
        }
        near = Some((parent, here));
    }
    Ok(())
}
