//! What is published now, and whether someone changed it behind our back.
//!
//! Invariant: nothing here writes. A file that is not what was published and one that was never
//! published are refused before anything of their section is touched; one that was removed is named,
//! and comes back.

use std::collections::BTreeMap;
use std::io;

use sluice_protocol::ids::{BlobHash, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, Manifest, Section};
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::{Replace, is_regenerated, replace_of};

use super::hands::{Hands, SECTIONS_FOLDER};
use super::intent::Spoiled;
use super::{PublishError, target};
use crate::blobs::{Fit, compare, prove_place};
use crate::catalog::{CatalogError, LiveSection, Lookup};
use crate::durable::{Folder, Kind, Seen};
use crate::lake::Place;
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

/// How the manifest of the published version lists a published section.
pub(super) fn listed_as<'m>(manifest: Option<&'m Manifest>, live: &LiveSection) -> Option<&'m Section> {
    manifest?.sections.iter().find(|s| s.path == live.path && s.tree.page == live.tree)
}

/// Blobs and their sizes that unfinished versions may have placed under a path.
type Tolerated = BTreeMap<LakePath, Vec<(BlobHash, u64)>>;

/// What lies under a path: what it is, and the text of a link.
type Found = (String, Seen, Option<String>);

/// A published section and what it should hold.
pub(super) struct Old<'h, 'a> {
    hands: &'h Hands<'a>,
    live: &'h LiveSection,
    /// None when the metadata of the published version is gone.
    pub listed: Option<Section>,
    entries: Option<Vec<Entry>>,
}

impl<'h, 'a> Old<'h, 'a> {
    pub fn load(
        hands: &'h Hands<'a>,
        reader: &impl Lookup,
        manifest: Option<&Manifest>,
        live: &'h LiveSection,
    ) -> Result<Self, PublishError> {
        let listed = listed_as(manifest, live).cloned();
        let entries = listed.as_ref().and_then(|s| entries_of(reader, &hands.space, s).ok());
        Ok(Self { hands, live, listed, entries })
    }

    fn name(&self) -> String {
        self.live.path.as_ref().map_or_else(|| ".".to_string(), LakePath::to_string)
    }

    fn diverged(&self, path: &str, what: &'static str) -> PublishError {
        PublishError::Diverged { section: self.name(), path: path.to_string(), what }
    }

    /// Fails when the folder holds anything that was not published; `spoiled` names files of versions
    /// that were never finished, which may be there too.
    ///
    /// Returns the lake paths of files that were removed here: nothing of them can be lost.
    pub fn check(&self, reader: &impl Lookup, spoiled: &[Spoiled]) -> Result<Vec<String>, PublishError> {
        let shown = format!(".sluice/{SECTIONS_FOLDER}/{}", self.live.folder);
        let folder = match self.hands.sections.open(&self.live.folder) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![self.name()]),
            Err(e) => return Err(self.hands.failed(&shown, e)),
        };
        let tolerated = self.spoiled_entries(reader, spoiled)?;
        // Both sides come in the order of their paths, so they are merged without being held.
        let entries = self.entries.iter().flatten();
        let mut wanted = entries.filter(|e| self.lies_in_folder(e)).peekable();
        let mut removed = Vec::new();
        let mut problem = None;
        let walked = walk(&folder, "", &mut |found| {
            while let Some(entry) = wanted.next_if(|e| *e.path.as_str() < *found.0) {
                removed.push(self.shown(&entry.path));
            }
            let checked = match wanted.next_if(|e| e.path.as_str() == found.0) {
                Some(entry) => self.check_entry(reader, entry, &found, &tolerated),
                None => self.check_stranger(&found, &tolerated),
            };
            problem = checked.err();
            problem.is_none()
        });
        walked.map_err(|e| self.hands.failed(&shown, e))?;
        removed.extend(wanted.map(|e| self.shown(&e.path)));
        problem.map_or(Ok(removed), Err)
    }

    fn shown(&self, path: &LakePath) -> String {
        lake_path(self.live.path.as_ref(), path).map_or_else(|_| path.to_string(), |p| p.to_string())
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
    ) -> Result<(), PublishError> {
        let (hands, path) = (self.hands, entry.path.as_str());
        if entry.kind == EntryKind::Link {
            let section = self.live.path.as_ref();
            let wanted = target::link_text(section, &entry.path, entry.target.as_deref().unwrap_or("."))?;
            let same = text.as_ref().is_some_and(|t| *t == wanted);
            return if same { Ok(()) } else { Err(self.diverged(path, "is another link")) };
        }
        let recorded = reader.file(&hands.space, &lake_path(self.live.path.as_ref(), &entry.path)?)?;
        let hash = entry.hash.unwrap_or(BlobHash([0; 32]));
        if seen.kind == Kind::File
            && recorded.is_some_and(|r| r.hash == hash && compare(&r.print, &seen.print) == Fit::Same)
        {
            return Ok(());
        }
        let place = section_place(&self.live.folder, &entry.path)?;
        let is = |hash: &BlobHash, size: u64| prove_place(hands.lake, &place, size, hash).is_some();
        // An unfinished version may have replaced a pointer.
        let pointer = replace_of(self.live.kind, &entry.path) == Replace::Pointer;
        let spoiled = || tolerated.get(&entry.path).into_iter().flatten().any(|(h, size)| is(h, *size));
        if seen.kind == Kind::File && (is(&hash, entry.size) || pointer && spoiled()) {
            return Ok(());
        }
        Err(self.diverged(path, "was changed here"))
    }

    fn check_stranger(&self, (path, seen, _): &Found, tolerated: &Tolerated) -> Result<(), PublishError> {
        if seen.kind == Kind::Link && self.entries.is_none() {
            return Ok(());
        }
        let stranger = || self.diverged(path, "was added here");
        let Ok(lake_path) = LakePath::parse(path) else { return Err(stranger()) };
        if is_regenerated(self.live.kind, &lake_path) {
            return Ok(());
        }
        let place = section_place(&self.live.folder, &lake_path)?;
        let known = tolerated.get(&lake_path).into_iter().flatten();
        for (hash, size) in known {
            if prove_place(self.hands.lake, &place, *size, hash).is_some() {
                return Ok(());
            }
        }
        Err(stranger())
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

/// Every file and link below a folder, by path; stops when `each` says `false`.
pub(crate) fn walk(
    folder: &Folder,
    prefix: &str,
    each: &mut dyn FnMut((String, Seen, Option<String>)) -> bool,
) -> io::Result<bool> {
    let (names, strange) = folder.names()?;
    if strange > 0 {
        let text = format!("{strange} names in `{prefix}` are not UTF-8");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
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
            Kind::Folder => walk(&folder.open(&name)?, &path, each)?,
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
