//! What the catalog learns from publishing.
//!
//! Invariant: a fingerprint is refreshed only for a file that fitted before and whose change time we
//! moved ourselves, so an edit never passes for our own doing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, Section};
use sluice_protocol::path::LakePath;

use super::PublishError;
use super::cleanup::in_section;
use super::hands::Hands;
use super::old::{self, Retired};
use super::place::{Blobs, Inodes, Lies};
use super::plan::{How, Plan, SectionPlan};
use crate::blobs::{CROWDED_ABOVE, Fit, Glance, compare};
use crate::catalog::{Batch, BlobRecord, CatalogError, FileRecord, LiveRecord, Located, Lookup};
use crate::durable::{Folder, Kind, Seen};
use crate::lake::{Fingerprint, Place};
use crate::verify::{VerifyError, entries_in, entries_of, leaves_of};

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

/// Records where blobs lie now, and the files of live sections among those places. Returns the folders
/// of live sections in which damage was found meanwhile.
///
/// A place that the catalog had and has no more was taken out of use since publishing looked: neither it
/// nor another name of the same file comes back.
pub(super) fn record_places(
    batch: &mut Batch,
    hands: &Hands<'_>,
    live: &LiveFolders,
    blobs: &Blobs,
    touched: &Inodes,
) -> Result<BTreeSet<String>, CatalogError> {
    let mut worn = BTreeSet::new();
    let mut glance = Glance::new(hands.lake);
    // In the order of their places, so that files of one folder come together.
    let mut blobs: Vec<(&BlobHash, &Lies)> = blobs.iter().collect();
    blobs.sort_unstable_by(|a, b| first_place(a.1).cmp(&first_place(b.1)));
    for (hash, lies) in blobs {
        let known = batch.blob(&hands.space, hash)?;
        let current = known.as_ref().map_or(&[][..], |k| &k.places);
        let is_in = |list: &[Located], place: &Place| list.iter().any(|at| at.place == *place);
        let dropped: Vec<&Located> = lies.before.iter().filter(|at| !is_in(current, &at.place)).collect();
        let bad: Inodes = dropped.iter().map(|at| (at.print.dev, at.print.inode)).collect();
        let news = current.iter().filter(|at| !is_in(&lies.before, &at.place) && !is_in(&lies.places, &at.place));
        let mut now: Vec<Located> = Vec::with_capacity(lies.places.len());
        for at in lies.places.iter().filter(|at| dropped.iter().all(|d| d.place != at.place)).chain(news) {
            let path = live.lake_path(&at.place);
            let damaged = bad.contains(&(at.print.dev, at.print.inode));
            // What was placed by this run and not touched since has the fingerprint of just now.
            let is_moved = touched.contains(&(at.print.dev, at.print.inode)) || lies.before.contains(at);
            let fresh = if is_moved { refreshed(&mut glance, at, touched) } else { Some(at.clone()) };
            let Some(fresh) = fresh else { continue };
            if let Some(path) = path {
                let print = fresh.print.clone();
                let record = FileRecord { print, hash: *hash, damaged, unknown: Default::default() };
                batch.put_file(&hands.space, &path, &record)?;
                worn.extend(in_section(&at.place).filter(|_| damaged).map(|(folder, _)| folder.to_string()));
            }
            if !damaged {
                now.push(fresh);
            }
        }
        if now.is_empty() {
            batch.remove_blob(&hands.space, hash)?;
            continue;
        }
        let list = known.as_ref().and_then(|k| k.list);
        let size = known.map_or(lies.size, |k| k.size);
        let record = BlobRecord { size, places: now, list, unknown: Default::default() };
        batch.put_blob(&hands.space, hash, &record)?;
    }
    Ok(worn)
}

fn first_place(lies: &Lies) -> Option<&Place> {
    lies.places.first().map(|at| &at.place)
}

/// The place with today's fingerprint; `None` when it holds something else.
pub(super) fn refreshed(glance: &mut Glance<'_>, at: &Located, touched: &Inodes) -> Option<Located> {
    let print = glance.look(&at.place)?;
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
pub(super) fn make_live(batch: &mut Batch, hands: &Hands<'_>, change: &Change<'_>) -> Result<(), PublishError> {
    for retired in &change.plan.retired {
        let listed;
        let paths = match retired {
            Retired::Files(paths) => paths,
            Retired::Listed(section) => {
                let files = entries(batch, hands, section)?.into_iter().filter(|e| e.kind == EntryKind::File);
                listed = files.filter_map(|e| section.lake_path(&e.path).ok()).collect();
                &listed
            }
        };
        paths.iter().try_for_each(|path| batch.remove_file(&hands.space, path))?;
    }
    for s in change.plan.sections.iter().filter(|s| s.how == How::Made) {
        put_files(batch, hands, s)?;
    }
    let worn = record_places(batch, hands, &LiveFolders::of(Some(change.record)), &change.blobs, &change.touched)?;
    let record = as_marked(change.record, batch.live(&hands.space)?.as_ref(), &worn);
    batch.set_live(&hands.space, &record)?;
    set_live_annex(batch, &hands.space, &change.annex)?;
    super::aside::store(batch, &hands.space, &change.plan.moves)?;
    Ok(super::intent::clear(batch, &hands.space)?)
}

/// The planned record with what was noted of the folders that stay since it was planned.
fn as_marked(planned: &LiveRecord, now: Option<&LiveRecord>, worn: &BTreeSet<String>) -> LiveRecord {
    let mut record = planned.clone();
    for section in &mut record.sections {
        section.worn |= worn.contains(&section.folder);
        let Some(now) = now.and_then(|l| l.sections.iter().find(|s| s.folder == section.folder)) else { continue };
        section.worn |= now.worn;
        if section.stays() {
            // A person may have decided about it.
            (section.detached, section.gives_way) = (now.detached, now.gives_way.clone());
        }
    }
    record
}

fn entries(reader: &impl Lookup, hands: &Hands<'_>, section: &Section) -> Result<Vec<Entry>, CatalogError> {
    entries_of(reader, &hands.space, section).map_err(|e| CatalogError::Refused(e.to_string()))
}

/// Remembers the files of a new section folder as they lie there; no reader has seen them yet.
///
/// A file that is not where it was placed, or was found damaged since, ends it: the next run places it anew.
fn put_files(batch: &mut Batch, hands: &Hands<'_>, s: &SectionPlan<'_>) -> Result<(), PublishError> {
    let name = s.folder.as_deref().unwrap_or_default();
    let failed = |e| hands.failed(&format!(".sluice/sections/{name}"), e);
    let folder = hands.sections.open(name).map_err(failed)?;
    let mut near: Option<(Option<LakePath>, Folder)> = None;
    let mut crowded = Crowded::default();
    let unread = |e: VerifyError| CatalogError::Refused(e.to_string());
    for leaf in leaves_of(batch, &hands.space, &s.section).map_err(unread)? {
        for entry in entries_in(batch, &hands.space, &leaf).map_err(unread)? {
            let (Some(hash), Ok(path)) = (entry.hash, s.section.lake_path(&entry.path)) else { continue };
            let parent = entry.path.parent();
            let here = match near.take() {
                Some((at, here)) if at == parent => here,
                _ => folder.descend(parent.as_ref()).map_err(failed)?,
            };
            let seen = here.look(entry.path.file_name()).map_err(failed)?;
            let place = old::section_place(name, &entry.path)?;
            let print = crowded.print_at(batch, &hands.space, &hash, &place)?;
            let fits = |seen: &Seen| {
                seen.kind == Kind::File && print.is_some_and(|print| compare(&print, &seen.print) != Fit::Other)
            };
            let seen = seen.filter(fits).ok_or_else(|| PublishError::BlobGone { path: path.to_string(), hash })?;
            let record = FileRecord { print: seen.print, hash, damaged: false, unknown: Default::default() };
            batch.put_file(&hands.space, &path, &record)?;
            near = Some((parent, here));
        }
    }
    Ok(())
}

/// Blobs that lie in very many places, so that their record is not decoded for each of them.
#[derive(Default)]
pub(super) struct Crowded(HashMap<BlobHash, HashMap<Place, Fingerprint>>);

impl Crowded {
    /// What is recorded of a place of a blob.
    pub fn print_at(
        &mut self,
        reader: &impl Lookup,
        space: &SpaceId,
        hash: &BlobHash,
        place: &Place,
    ) -> Result<Option<Fingerprint>, CatalogError> {
        if let Some(places) = self.0.get(hash) {
            return Ok(places.get(place).cloned());
        }
        let places = reader.blob(space, hash)?.map_or(vec![], |b| b.places);
        let print = places.iter().find(|at| at.place == *place).map(|at| at.print.clone());
        if places.len() > CROWDED_ABOVE {
            self.0.insert(*hash, places.into_iter().map(|at| (at.place, at.print)).collect());
        }
        Ok(print)
    }
}
