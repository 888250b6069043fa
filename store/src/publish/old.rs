//! What is published now, and whether someone changed it behind our back.
//!
//! Invariant: nothing here writes. A file that is not what was published, one that was removed, and
//! one that was never published are all reported before anything of their section is touched.

use std::collections::BTreeMap;

use sluice_protocol::codec::Document;
use sluice_protocol::ids::{BlobHash, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, Manifest};
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::{Replace, is_regenerated, replace_of};

use super::hands::{Hands, SECTIONS_FOLDER};
use super::intent::Spoiled;
use super::{PublishError, target};
use crate::blobs::{Fit, compare, prove_place};
use crate::catalog::{CatalogError, LiveRecord, LiveSection, Lookup};
use crate::durable::{Folder, Kind, Seen};
use crate::lake::Place;
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
        Some(folder) => {
            folder.join(path).map_err(|source| PublishError::Path { path: path.to_string(), source })
        }
    }
}

/// The entries of the section at `path` in a version whose metadata is still here.
pub(crate) fn entries_in(
    reader: &impl Lookup,
    space: &SpaceId,
    snapshot: SnapshotId,
    path: Option<&LakePath>,
) -> Result<Option<Vec<Entry>>, CatalogError> {
    let Some(bytes) = reader.meta(space, &snapshot.into())? else { return Ok(None) };
    let Ok(manifest) = Manifest::from_bytes(&bytes) else { return Ok(None) };
    let section = manifest.sections.iter().find(|s| s.path.as_ref() == path);
    Ok(section.and_then(|s| entries_of(reader, space, s).ok()))
}

/// Blobs and their sizes that unfinished versions may have placed under a path.
type Tolerated = BTreeMap<LakePath, Vec<(BlobHash, u64)>>;

/// A published section and what it should hold.
pub(super) struct Old<'a> {
    pub live: &'a LiveSection,
    /// None when the metadata of the published version is gone.
    pub entries: Option<Vec<Entry>>,
}

impl<'a> Old<'a> {
    pub fn load(
        reader: &impl Lookup,
        space: &SpaceId,
        live: &LiveRecord,
        section: &'a LiveSection,
    ) -> Result<Self, CatalogError> {
        let entries = entries_in(reader, space, live.snapshot, section.path.as_ref())?;
        Ok(Self { live: section, entries })
    }

    fn name(&self) -> String {
        self.live.path.as_ref().map_or_else(|| ".".to_string(), LakePath::to_string)
    }

    fn diverged(&self, path: &str, what: &'static str) -> PublishError {
        PublishError::Diverged { section: self.name(), path: path.to_string(), what }
    }

    /// Fails when the folder does not hold exactly what was published; `spoiled` names files of
    /// versions that were never finished, which may be there too.
    pub fn check(
        &self,
        hands: &Hands<'_>,
        reader: &impl Lookup,
        spoiled: &[Spoiled],
    ) -> Result<(), PublishError> {
        let shown = format!(".sluice/{SECTIONS_FOLDER}/{}", self.live.folder);
        let folder = match hands.sections.open(&self.live.folder) {
            Ok(folder) => folder,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.diverged(&shown, "was removed"));
            }
            Err(e) => return Err(hands.failed(&shown, e)),
        };
        let mut found = BTreeMap::new();
        walk(&folder, "", &mut |path, seen, text| {
            found.insert(path, (seen, text));
        })
        .map_err(|e| hands.failed(&shown, e))?;
        let tolerated = self.spoiled_entries(hands, reader, spoiled)?;
        for entry in self.entries.iter().flatten() {
            let there = found.remove(entry.path.as_str());
            self.check_entry(hands, reader, entry, there, &tolerated)?;
        }
        for (path, (seen, _)) in found {
            self.check_stranger(hands, &path, &seen, &tolerated)?;
        }
        Ok(())
    }

    fn check_entry(
        &self,
        hands: &Hands<'_>,
        reader: &impl Lookup,
        entry: &Entry,
        there: Option<(Seen, Option<String>)>,
        tolerated: &Tolerated,
    ) -> Result<(), PublishError> {
        let path = entry.path.as_str();
        if entry.kind == EntryKind::Folder {
            return Ok(());
        }
        // Links of shallow sections lie in the generation itself.
        if entry.kind == EntryKind::Link && self.live.shallow {
            return Ok(());
        }
        let Some((seen, text)) = there else { return Err(self.diverged(path, "was removed")) };
        if entry.kind == EntryKind::Link {
            let section = self.live.path.as_ref();
            let wanted = target::link_text(section, &entry.path, entry.target.as_deref().unwrap_or("."))?;
            let same = text.is_some_and(|t| t == wanted);
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

    fn check_stranger(
        &self,
        hands: &Hands<'_>,
        path: &str,
        seen: &Seen,
        tolerated: &Tolerated,
    ) -> Result<(), PublishError> {
        if seen.kind == Kind::Folder {
            return Ok(());
        }
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
            if prove_place(hands.lake, &place, *size, hash).is_some() {
                return Ok(());
            }
        }
        Err(stranger())
    }

    /// Files that unfinished versions may have placed in this folder.
    fn spoiled_entries(
        &self,
        hands: &Hands<'_>,
        reader: &impl Lookup,
        spoiled: &[Spoiled],
    ) -> Result<Tolerated, PublishError> {
        let mut all = Tolerated::new();
        for s in spoiled.iter().filter(|s| s.folder == self.live.folder) {
            let entries = entries_in(reader, &hands.space, s.snapshot, s.path.as_ref())?;
            for entry in entries.into_iter().flatten() {
                if let Some(hash) = entry.hash {
                    all.entry(entry.path).or_default().push((hash, entry.size));
                }
            }
        }
        Ok(all)
    }
}

/// Everything below a folder: path, what it is, and the text of a link.
pub(crate) fn walk(
    folder: &Folder,
    prefix: &str,
    each: &mut dyn FnMut(String, Seen, Option<String>),
) -> std::io::Result<()> {
    let (names, strange) = folder.names()?;
    if strange > 0 {
        let text = format!("{strange} names in `{prefix}` are not UTF-8");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
    }
    for name in names {
        let Some(seen) = folder.look(&name)? else { continue };
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let text = match seen.kind {
            Kind::Link => Some(folder.read_link(&name)?),
            _ => None,
        };
        if seen.kind == Kind::Folder {
            walk(&folder.open(&name)?, &path, each)?;
        }
        each(path, seen, text);
    }
    Ok(())
}
