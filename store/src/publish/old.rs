//! What is published now, and whether someone changed it behind our back.
//!
//! Invariant: nothing here writes. A file that is not what was published and one that was never
//! published are a person's work, and found before anything of their section is touched; one that was
//! removed is named, and comes back.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;

use sluice_protocol::ids::{BlobHash, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, Manifest, Section};
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::{Replace, is_regenerated, replace_of};

use super::hands::{Hands, SECTIONS_FOLDER};
use super::intent::Spoiled;
use super::place::published_mode;
use super::{PublishError, target};
use crate::blobs::{Fit, compare, prove_place};
use crate::catalog::{CatalogError, LiveRecord, LiveSection, Lookup};
use crate::durable::{Folder, Kind, Seen};
use crate::lake::{Fingerprint, Place};
use crate::verify::diff::manifest_of;
use crate::verify::entries_of;

/// The place of a file of a section folder.
pub(crate) fn section_place(folder: &str, path: &LakePath) -> Result<Place, PublishError> {
    let text = format!("{SECTIONS_FOLDER}/{folder}/{path}");
    LakePath::parse(&text).map(Place::Own).map_err(|source| PublishError::Path { path: text, source })
}

/// The lake path of an entry of a published section.
pub(crate) fn lake_path(section: Option<&LakePath>, path: &LakePath) -> Result<LakePath, PublishError> {
    match section {
        None => Ok(path.clone()),
        Some(folder) => folder.join(path).map_err(|source| PublishError::Path { path: path.to_string(), source }),
    }
}

/// The entries of the section at `path` in a version whose metadata is still here.
pub(super) fn entries_in(
    reader: &impl Lookup,
    space: &SpaceId,
    snapshot: SnapshotId,
    path: Option<&LakePath>,
) -> Result<Option<Vec<Entry>>, CatalogError> {
    let manifest = manifest_of(reader, space, snapshot)?;
    let section = manifest.as_ref().and_then(|m| m.sections.iter().find(|s| s.path.as_ref() == path));
    Ok(section.and_then(|s| entries_of(reader, space, s).ok()))
}

/// The manifest that lists a section of the live version: the live one, or that of the version it stayed at.
pub(super) fn manifest_for(
    reader: &impl Lookup,
    space: &SpaceId,
    live: &LiveRecord,
    section: &LiveSection,
) -> Result<Option<Manifest>, CatalogError> {
    manifest_of(reader, space, section.of.unwrap_or(live.snapshot))
}

/// How the manifest of the published version lists a published section.
pub(super) fn listed_as<'m>(manifest: Option<&'m Manifest>, live: &LiveSection) -> Option<&'m Section> {
    manifest?.sections.iter().find(|s| s.path == live.path && s.tree.page == live.tree)
}

/// Blobs and their sizes that unfinished versions may have placed under a path.
type Tolerated = BTreeMap<LakePath, Vec<(BlobHash, u64)>>;

/// What is said of a file with other bytes than were published.
const CHANGED: &str = "was changed here";
const NOT_UTF8: &str = "was added here, with a name that is not UTF-8";

/// How the folder of a published section differs from what was published there.
#[derive(Debug, Default)]
pub(super) struct Inspection {
    /// Files, links and folders that are gone.
    pub removed: Vec<Removed>,
    /// Files whose bytes are known to be damaged, and that nobody touched since.
    pub damaged: Vec<Damaged>,
    /// Files with the right bytes, but not with the mode or the time that they were published with.
    pub undressed: u64,
    /// What a person did.
    pub changes: Vec<Change>,
    /// Files with another fingerprint than is recorded; their bytes were hashed again and are right.
    pub proven: Vec<Proven>,
}

/// Something published that is gone.
#[derive(Debug)]
pub(super) struct Removed {
    /// Its path in the lake.
    pub path: String,
    /// The blob and the place that no longer holds it, for a file.
    pub at: Option<(BlobHash, Place)>,
}

/// See [`Inspection::damaged`].
#[derive(Debug)]
pub(super) struct Damaged {
    pub hash: BlobHash,
    pub place: Place,
}

/// See [`Inspection::changes`].
#[derive(Debug)]
pub(super) struct Change {
    /// Below the section's folder.
    pub path: String,
    pub what: &'static str,
    pub print: Option<Fingerprint>,
    /// The name as it is, when it is not UTF-8; `path` shows it as well as it can be shown.
    pub raw: Option<OsString>,
}

/// See [`Inspection::proven`].
#[derive(Debug)]
pub(super) struct Proven {
    pub path: LakePath,
    pub hash: BlobHash,
    /// In bytes.
    pub size: u64,
    pub place: Place,
    pub print: Fingerprint,
}

impl Inspection {
    fn change(&mut self, path: &str, what: &'static str, seen: &Seen) {
        self.changes.push(Change { path: path.to_string(), what, print: Some(seen.print.clone()), raw: None });
    }
}

/// What lies under a path: what it is, and the text of a link.
pub(crate) type Found = (String, Seen, Option<String>);

/// A section whose folder is not live any more.
pub(super) enum Retired {
    Listed(Section),
    /// Its pages cannot be read: the lake paths of its files.
    Files(Vec<LakePath>),
}

/// A published section and what it should hold.
pub(super) struct Old<'h, 'a> {
    hands: &'h Hands<'a>,
    live: &'h LiveSection,
    /// None when the manifest of the published version is gone.
    pub listed: Option<Section>,
    entries: Vec<Entry>,
    /// The manifest or its pages cannot be read: the entries are what the catalog recorded of the files.
    pub unread: bool,
}

/// What a published section holds as the catalog recorded it: its files, without modes, links and folders.
///
/// For sections whose pages cannot be read: damage of our metadata is not a person's edit.
pub(super) fn recorded_entries(
    reader: &impl Lookup,
    space: &SpaceId,
    live: &LiveRecord,
    section: &LiveSection,
) -> Result<Vec<Entry>, CatalogError> {
    let depth = |s: &LiveSection| s.name().len();
    let inner: Vec<&LakePath> = live
        .sections
        .iter()
        .filter(|s| depth(s) > depth(section) || section.path.is_none())
        .filter_map(|s| s.path.as_ref())
        .collect();
    let is_inner = |path: &LakePath| {
        inner.iter().any(|i| path.as_str().strip_prefix(i.as_str()).is_some_and(|rest| rest.starts_with('/')))
    };
    let mut entries = Vec::new();
    reader.files_below(space, section.path.as_ref(), &mut |path, record| {
        let below = match &section.path {
            None => Ok(path.clone()),
            Some(at) => LakePath::parse(path.as_str().get(at.as_str().len() + 1..).unwrap_or_default()),
        };
        if let Ok(below) = below
            && !is_inner(&path)
        {
            entries.push(Entry {
                path: below,
                kind: EntryKind::File,
                size: record.print.size,
                hash: Some(record.hash),
                mode: None,
                mtime_ns: None,
                target: None,
                unknown: Default::default(),
            });
        }
    })?;
    Ok(entries)
}

impl<'h, 'a> Old<'h, 'a> {
    pub fn load(
        hands: &'h Hands<'a>,
        reader: &impl Lookup,
        record: &LiveRecord,
        live: &'h LiveSection,
    ) -> Result<Self, PublishError> {
        let manifest = manifest_for(reader, &hands.space, record, live)?;
        let listed = listed_as(manifest.as_ref(), live).cloned();
        let read = listed.as_ref().and_then(|s| entries_of(reader, &hands.space, s).ok());
        let unread = read.is_none();
        let entries = match read {
            Some(entries) => entries,
            None => recorded_entries(reader, &hands.space, record, live)?,
        };
        Ok(Self { hands, live, listed, entries, unread })
    }

    /// What the next version lets go of.
    pub fn retired(self) -> Retired {
        match self.listed {
            Some(listed) if !self.unread => Retired::Listed(listed),
            _ => {
                let paths = self.entries.iter().filter_map(|e| lake_path(self.live.path.as_ref(), &e.path).ok());
                Retired::Files(paths.collect())
            }
        }
    }

    fn name(&self) -> String {
        self.live.name().to_string()
    }

    fn diverged(&self, path: &str, what: &'static str) -> PublishError {
        PublishError::Diverged { section: self.name(), path: path.to_string(), what }
    }

    /// Fails when the folder holds anything that was not published; `spoiled` names files of versions
    /// that were never finished, which may be there too.
    ///
    /// Nothing of what else is found can be lost: what was removed here, and what is damaged.
    pub fn check(&self, reader: &impl Lookup, spoiled: &[Spoiled]) -> Result<Inspection, PublishError> {
        let found = self.inspect(reader, spoiled)?;
        match found.changes.first() {
            Some(change) if self.live.gives_way.is_none() => Err(self.diverged(&change.path, change.what)),
            _ => Ok(found),
        }
    }

    /// Compares what lies in the section's folder with what was published there.
    ///
    /// A file is hashed only when its fingerprint is not the recorded one.
    pub fn inspect(&self, reader: &impl Lookup, spoiled: &[Spoiled]) -> Result<Inspection, PublishError> {
        let shown = format!(".sluice/{SECTIONS_FOLDER}/{}", self.live.folder);
        let mut found = Inspection::default();
        let folder = match self.hands.sections.open(&self.live.folder) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                found.removed.push(Removed { path: self.name(), at: None });
                return Ok(found);
            }
            Err(e) => return Err(self.hands.failed(&shown, e)),
        };
        let tolerated = self.spoiled_entries(reader, spoiled)?;
        // Both sides come in the order of their paths, so they are merged without being held.
        let entries = self.entries.iter();
        let mut wanted = entries.clone().filter(|e| self.lies_in_folder(e)).peekable();
        let mut failed = None;
        let mut strange = Vec::new();
        let mut each = |seen: Found| {
            while let Some(entry) = wanted.next_if(|e| *e.path.as_str() < *seen.0) {
                found.removed.push(self.removed(entry));
            }
            let checked = match wanted.next_if(|e| e.path.as_str() == seen.0) {
                Some(entry) => self.check_entry(reader, entry, &seen, &tolerated, &mut found),
                None => self.check_stranger(&seen, &tolerated, &mut found),
            };
            failed = checked.err();
            failed.is_none()
        };
        let mut odd = |path: String, raw: OsString, seen: Seen| {
            strange.push(Change { path, what: NOT_UTF8, print: Some(seen.print), raw: Some(raw) });
        };
        walk_all(&folder, "", &mut each, &mut odd).map_err(|e| self.hands.failed(&shown, e))?;
        found.changes.append(&mut strange);
        if let Some(e) = failed {
            return Err(e);
        }
        found.removed.extend(wanted.map(|e| self.removed(e)));
        let folders = entries.filter(|e| e.kind == EntryKind::Folder && !self.live.shallow);
        let gone = folders.filter(|e| folder.descend(Some(&e.path)).is_err());
        found.removed.extend(gone.map(|e| self.removed(e)));
        Ok(found)
    }

    fn removed(&self, entry: &Entry) -> Removed {
        let at = section_place(&self.live.folder, &entry.path).ok();
        Removed { path: self.shown(&entry.path), at: entry.hash.zip(at) }
    }

    /// The lake path of something in this section.
    pub fn shown(&self, path: &LakePath) -> String {
        lake_path(self.live.path.as_ref(), path).map_or_else(|_| path.to_string(), |p| p.to_string())
    }

    /// What it should hold.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The listed entry at `path`.
    pub fn entry(&self, path: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.path.as_str() == path)
    }

    /// Links of shallow sections lie in the generation; folders are made by what is in them.
    fn lies_in_folder(&self, entry: &Entry) -> bool {
        entry.kind == EntryKind::File || entry.kind == EntryKind::Link && !self.live.shallow
    }

    fn check_entry(
        &self,
        reader: &impl Lookup,
        entry: &Entry,
        (_, seen, text): &Found,
        tolerated: &Tolerated,
        found: &mut Inspection,
    ) -> Result<(), PublishError> {
        let (hands, path) = (self.hands, entry.path.as_str());
        if entry.kind == EntryKind::Link {
            let section = self.live.path.as_ref();
            let wanted = target::link_text(section, &entry.path, entry.target.as_deref().unwrap_or("."))?;
            if text.as_ref().is_none_or(|t| *t != wanted) {
                found.change(path, "is another link", seen);
            }
            return Ok(());
        }
        if seen.kind != Kind::File {
            found.change(path, "was replaced here", seen);
            return Ok(());
        }
        let in_lake = lake_path(self.live.path.as_ref(), &entry.path)?;
        let hash = entry.hash.unwrap_or(BlobHash([0; 32]));
        let recorded = reader.file(&hands.space, &in_lake)?.filter(|r| r.hash == hash);
        let place = section_place(&self.live.folder, &entry.path)?;
        match recorded.map(|r| (compare(&r.print, &seen.print), r.damaged)) {
            Some((Fit::Same, false)) => return Ok(()),
            Some((Fit::Same | Fit::Touched, true)) => {
                found.damaged.push(Damaged { hash, place });
                return Ok(());
            }
            _ => {}
        }
        if self.still_changed(&in_lake, seen) {
            found.change(path, CHANGED, seen);
            return Ok(());
        }
        if let Some(print) = prove_place(hands.lake, &place, entry.size, &hash) {
            let dressed = self.unread
                || seen.mode == published_mode(entry) && entry.mtime_ns.is_none_or(|ns| ns == seen.print.mtime_ns);
            if dressed {
                found.proven.push(Proven { path: in_lake, hash, size: entry.size, place, print });
            } else {
                found.undressed += 1;
            }
            return Ok(());
        }
        // An unfinished version may have replaced a pointer.
        let pointer = replace_of(self.live.kind, &entry.path) == Replace::Pointer;
        if !(pointer && self.is_tolerated(&entry.path, &place, tolerated)) {
            found.change(path, CHANGED, seen);
        }
        Ok(())
    }

    /// Whether a file was found changed before and is as it was then.
    fn still_changed(&self, path: &LakePath, seen: &Seen) -> bool {
        let known = self.live.changes.iter().find(|c| !c.top && c.path == path.as_str() && c.what == CHANGED);
        known.and_then(|c| c.print.as_ref()).is_some_and(|p| compare(p, &seen.print) == Fit::Same)
    }

    fn is_tolerated(&self, path: &LakePath, place: &Place, tolerated: &Tolerated) -> bool {
        let mut known = tolerated.get(path).into_iter().flatten();
        known.any(|(hash, size)| prove_place(self.hands.lake, place, *size, hash).is_some())
    }

    fn check_stranger(
        &self,
        (path, seen, _): &Found,
        tolerated: &Tolerated,
        found: &mut Inspection,
    ) -> Result<(), PublishError> {
        if seen.kind == Kind::Link && self.unread {
            return Ok(());
        }
        if let Ok(parsed) = LakePath::parse(path) {
            if is_regenerated(self.live.kind, &parsed) {
                return Ok(());
            }
            let place = section_place(&self.live.folder, &parsed)?;
            if self.is_tolerated(&parsed, &place, tolerated) {
                return Ok(());
            }
        }
        found.change(path, "was added here", seen);
        Ok(())
    }

    /// Files that unfinished versions may have placed in this folder.
    fn spoiled_entries(&self, reader: &impl Lookup, spoiled: &[Spoiled]) -> Result<Tolerated, PublishError> {
        let mut all = Tolerated::new();
        for s in spoiled.iter().filter(|s| s.folder == self.live.folder) {
            let entries = entries_in(reader, &self.hands.space, s.snapshot, s.path.as_ref())?;
            for entry in entries.into_iter().flatten() {
                if let Some(hash) = entry.hash {
                    all.entry(entry.path).or_default().push((hash, entry.size));
                }
            }
        }
        Ok(all)
    }
}

/// Every file and link below a folder, by path; stops when `each` says `false`. Fails at a name that is not
/// UTF-8.
pub(crate) fn walk(folder: &Folder, prefix: &str, each: &mut dyn FnMut(Found) -> bool) -> io::Result<bool> {
    let mut first = None;
    let done = walk_all(folder, prefix, each, &mut |path, _, _| {
        first.get_or_insert(path);
    })?;
    match first {
        None => Ok(done),
        Some(path) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("the name of `{path}` is not UTF-8"))),
    }
}

/// As [`walk`]; names that are not UTF-8 go to `odd`, with a path that shows them as well as it can.
fn walk_all(
    folder: &Folder,
    prefix: &str,
    each: &mut dyn FnMut(Found) -> bool,
    odd: &mut dyn FnMut(String, OsString, Seen),
) -> io::Result<bool> {
    let (names, strange) = folder.names()?;
    for name in if strange > 0 { folder.strange_names()? } else { vec![] } {
        if let Some(seen) = folder.look_raw(&name)? {
            odd(format!("{prefix}{}", name.to_string_lossy()), name, seen);
        }
    }
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        let Some(seen) = folder.look(&name)? else { continue };
        // With the slash, folders sort where their contents do among full paths.
        let slash = if seen.kind == Kind::Folder { "/" } else { "" };
        all.push((format!("{prefix}{name}{slash}"), name, seen));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, name, seen) in all {
        let go_on = match seen.kind {
            Kind::Folder => walk_all(&folder.open(&name)?, &path, each, odd)?,
            Kind::Link => {
                let text = folder.read_link(&name)?;
                each((path, seen, Some(text)))
            }
            Kind::File | Kind::Other => each((path, seen, None)),
        };
        if !go_on {
            return Ok(false);
        }
    }
    Ok(true)
}
