//! Keeps what only this look could not have as it was in the snapshot before.
//!
//! A log that grows while it is read, a disk that gives errors, a folder that may not be entered: such
//! things are there, and a snapshot without them would say to every copy that they were deleted. So the
//! entries of the snapshot before stand in for them, as long as their bytes can be opened here.
//!
//! Invariant: what stands in has its bytes here, or is empty. Read tables are whole: a table that a
//! reader took now is left alone, and one that lies in what could not be had comes back whole or not
//! at all.

use sluice_protocol::annex::Annex;
use sluice_protocol::codec::Document;
use sluice_protocol::ids::SpaceId;
use sluice_protocol::manifest::{Entry, EntryKind, Manifest, Section};
use sluice_protocol::path::LakePath;

use crate::blobs::open_blob;
use crate::catalog::{CatalogError, Lookup, Reader};
use crate::lake::{Fingerprint, Lake};
use crate::scan::tables::read_entries;
use crate::scan::{Entries, Item, SectionEntries, Skip, What};

/// Puts the entries of the snapshot before in place of what could not be had and may be there.
/// Returns what cannot be kept that way.
pub(super) fn as_before(
    lake: &Lake,
    space: &SpaceId,
    reader: &Reader,
    entries: &mut Entries,
) -> Result<Vec<Skip>, CatalogError> {
    let mut missing = Vec::new();
    let passing: Vec<usize> = (0..entries.skipped.len()).filter(|i| entries.skipped[*i].passing).collect();
    let (false, Some(previous)) = (passing.is_empty(), entries.previous) else { return Ok(missing) };
    let Some(bytes) = reader.meta(space, &previous.snapshot.into())? else { return Ok(missing) };
    let annex = reader.meta(space, &previous.annex)?.map(|raw| Annex::from_bytes(&raw)).transpose()?;
    let before = Before { lake, space, reader, manifest: Manifest::from_bytes(&bytes)?, annex };
    entries.recorded = None;
    for i in passing {
        let Ok(at) = LakePath::parse(&entries.skipped[i].path) else { continue };
        let mut found = before.at(&at, entries)?;
        let mut kept = 0;
        for part in std::mem::take(&mut found.parts) {
            let (files, gone) = put(&mut entries.sections, &at, part);
            kept += files;
            found.gone.extend(gone);
        }
        let skip = &mut entries.skipped[i];
        if let Some(first) = found.gone.first() {
            missing.push(Skip::new(first, &skip.reason));
        }
        let but = match found.gone.len() {
            0 => String::new(),
            n => format!(", but for {n} of its files"),
        };
        if kept > 0 {
            skip.reason = format!("kept as it was in the last snapshot{but}: {}", skip.reason);
        }
    }
    Ok(missing)
}

/// The snapshot before.
struct Before<'a> {
    lake: &'a Lake,
    space: &'a SpaceId,
    reader: &'a Reader,
    manifest: Manifest,
    annex: Option<Annex>,
}

/// What the snapshot before lists at a path and below it.
#[derive(Default)]
struct Found {
    parts: Vec<Part>,
    /// What cannot stand in.
    gone: Vec<LakePath>,
}

/// A section as it was, or a part of it.
struct Part {
    section: SectionEntries,
    /// The path is the section's folder or lies above it.
    whole: bool,
}

impl Before<'_> {
    fn at(&self, at: &LakePath, now: &Entries) -> Result<Found, CatalogError> {
        let mut found = Found::default();
        for section in &self.manifest.sections {
            let whole = section.path.as_ref().is_some_and(|path| covers(at, path));
            let deep = || section.path.as_ref().is_none_or(|path| covers(path, at));
            let holds = if section.shallow { at.parent() == section.path } else { deep() };
            if !whole && !holds {
                continue;
            }
            let listed = read_entries(self.reader, self.space, section)?;
            let listed: Vec<(LakePath, Entry)> = listed
                .into_iter()
                .filter_map(|entry| Some((section.lake_path(&entry.path).ok()?, entry)))
                .filter(|(path, _)| whole || covers(at, path))
                .collect();
            if listed.is_empty() && !whole {
                continue;
            }
            let is_table = section.kind.is_table() && !section.state.opaque;
            if is_table && !whole {
                if !is_dealt_with(section, now) {
                    found.gone.extend(listed.into_iter().map(|(path, _)| path));
                }
                continue;
            }
            self.part(section, whole, listed, &mut found)?;
        }
        Ok(found)
    }

    fn part(
        &self,
        from: &Section,
        whole: bool,
        listed: Vec<(LakePath, Entry)>,
        found: &mut Found,
    ) -> Result<(), CatalogError> {
        let mut section = SectionEntries::new(from.kind, from.path.clone(), from.shallow);
        section.state = from.state.clone();
        section.facts = self.annex.as_ref().and_then(|a| a.facts(from.path.as_ref())).cloned();
        let unreadable = section.is_read_table() && section.facts.is_none();
        let mut gone = Vec::new();
        for (path, entry) in listed {
            match self.item(&path, &entry)? {
                Some(what) if !unreadable => section.items.push(Item { path: entry.path, what }),
                _ => gone.push(path),
            }
        }
        if gone.is_empty() || !section.is_read_table() && !section.items.is_empty() {
            found.parts.push(Part { section, whole });
        }
        found.gone.extend(gone);
        Ok(())
    }

    /// What an entry was, if its bytes are here.
    fn item(&self, path: &LakePath, entry: &Entry) -> Result<Option<What>, CatalogError> {
        let hash = match (entry.kind, entry.hash) {
            (EntryKind::Folder, _) => return Ok(Some(What::Folder { mode: entry.mode.unwrap_or(0o755) })),
            (EntryKind::Link, _) => return Ok(entry.target.clone().map(|target| What::Link { target })),
            (EntryKind::File, None) => return Ok(None),
            (EntryKind::File, Some(hash)) => hash,
        };
        if entry.size > 0 && open_blob(self.lake, self.reader, self.space, &hash).is_err() {
            return Ok(None);
        }
        let recorded = self.reader.file(self.space, path)?.filter(|r| r.hash == hash);
        // A fingerprint that fits no file: it is read as soon as it can be.
        let print = Fingerprint {
            dev: 0,
            inode: 0,
            size: entry.size,
            mtime_ns: entry.mtime_ns.or(recorded.map(|r| r.print.mtime_ns)).unwrap_or(0),
            ctime_ns: 0,
            unknown: Default::default(),
        };
        Ok(Some(What::File { print, mode: entry.mode.unwrap_or(0o644), hash: Some(hash) }))
    }
}

/// Whether the table was taken now, or is reported as one that cannot be.
fn is_dealt_with(table: &Section, now: &Entries) -> bool {
    now.sections.iter().any(|s| s.path == table.path && s.is_read_table())
        || now.skipped.iter().any(|s| s.path == table.name())
}

/// Whether `path` is `folder` or lies below it.
fn covers(folder: &LakePath, path: &LakePath) -> bool {
    let rest = path.as_str().strip_prefix(folder.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Puts what was at `at` back there. Returns how many things that were, and those that have no place
/// in how the lake is laid out now. Pure.
fn put(sections: &mut Vec<SectionEntries>, at: &LakePath, part: Part) -> (usize, Vec<LakePath>) {
    let Part { section, whole } = part;
    let (count, paths) = (section.items.len(), paths(&section));
    if whole {
        // A folder that cannot be entered looks like an empty section.
        sections.retain(|s| !(s.items.is_empty() && s.path.as_ref() == Some(at)));
        return if insert(sections, section) { (count.max(1), vec![]) } else { (0, paths) };
    }
    let length = |s: &SectionEntries| s.path.as_ref().map_or(0, |p| p.as_str().len());
    let done = match sections.iter_mut().filter(|s| holds(s, at)).max_by_key(|s| length(s)) {
        None => section.shallow && insert(sections, section),
        Some(into) => splice(into, at, &section, &paths),
    };
    if done { (count, vec![]) } else { (0, paths) }
}

/// Where the things of a section lie below the lake.
fn paths(section: &SectionEntries) -> Vec<LakePath> {
    section.items.iter().map(|i| section.lake_path(&i.path)).collect()
}

/// Adds a section, if the layout of a manifest has a place for it.
fn insert(sections: &mut Vec<SectionEntries>, section: SectionEntries) -> bool {
    let has_room = has_room(sections, &section);
    if has_room {
        let index = sections.partition_point(|s| s.path < section.path);
        sections.insert(index, section);
    }
    has_room
}

/// Whether what lies at `at` belongs to the section.
fn holds(section: &SectionEntries, at: &LakePath) -> bool {
    match &section.path {
        folder if section.shallow => at.parent() == *folder,
        None => true,
        Some(folder) => covers(folder, at),
    }
}

/// Whether the layout of a manifest has a place for the section.
fn has_room(sections: &[SectionEntries], new: &SectionEntries) -> bool {
    let inside = |folder: &SectionEntries, other: &SectionEntries| {
        !folder.shallow && folder.path.as_ref().is_none_or(|f| other.path.as_ref().is_some_and(|o| covers(f, o)))
    };
    sections.iter().all(|s| s.path != new.path && !inside(s, new) && !inside(new, s))
}

/// Replaces what a section has at `at` and below it; `paths` are those of the things in `from`. Pure.
fn splice(into: &mut SectionEntries, at: &LakePath, from: &SectionEntries, paths: &[LakePath]) -> bool {
    if into.is_read_table() || into.shallow && paths.iter().any(|path| path != at) {
        return false;
    }
    let folder = into.path.clone();
    let below = |path: &LakePath| folder.as_ref().map_or(Some(path.clone()), |f| path.below(f));
    let Some(back) = paths.iter().map(below).collect::<Option<Vec<_>>>() else { return false };
    let here = |item: &Item| folder.as_ref().map_or(Ok(item.path.clone()), |f| f.join(&item.path));
    // A folder in which something is is no empty one.
    into.items.retain(|i| here(i).is_ok_and(|path| !covers(at, &path) && !covers(&path, at)));
    into.items.extend(back.into_iter().zip(&from.items).map(|(path, i)| Item { path, what: i.what.clone() }));
    into.items.sort_by(|a, b| a.path.cmp(&b.path));
    true
}
