//! What each section of the new version needs: nothing, a few files, or a folder of its own.
//!
//! Invariant: planning writes nothing, and it fails when publishing would lose a local change. So a
//! refusal leaves the lake exactly as it was.

use std::collections::{BTreeMap, BTreeSet};

use sluice_protocol::manifest::{Entry, EntryKind, Section};
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::{Replace, grows_in_place, replace_of};

use super::PublishError;
use super::hands::{Hands, LIVE_LINK};
use super::intent::{Intent, Spoiled};
use super::old::{Old, entries_in, lake_path, section_place};
use super::place::Over;
use crate::blobs::{Fit, compare, prove_place};
use crate::catalog::{LiveRecord, LiveSection, Lookup, Reader};
use crate::durable::Kind;
use crate::lake::Place;
use crate::verify::{Verified, VerifiedSection};

/// How a section is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Its folder stays as it is.
    Kept,
    /// Files were added to its folder, stage by stage.
    Grown,
    /// It got a folder of its own.
    Made,
}

/// A file to place into a folder that readers see.
pub(super) struct Addition {
    pub entry: Entry,
    pub over: Over,
    /// An earlier run placed it; it was hashed again.
    pub here: bool,
}

pub(super) struct SectionPlan<'v> {
    pub section: &'v Section,
    pub how: How,
    /// Name below `.sluice/sections`; none until one is chosen.
    pub folder: Option<String>,
    /// All entries: for a new folder, for shallow sections and for one that is the whole lake.
    pub entries: Vec<Entry>,
    /// What a growing section gets.
    pub additions: Vec<Addition>,
}

pub(super) struct Plan<'v> {
    pub sections: Vec<SectionPlan<'v>>,
    /// Lake paths of files whose section folder is not live any more.
    pub retired: BTreeSet<LakePath>,
    pub spoiled: Vec<Spoiled>,
}

impl Plan<'_> {
    /// Whether the published version is this one already.
    pub fn changes_nothing(&self, live: Option<&LiveRecord>, verified: &Verified) -> bool {
        live.is_some_and(|l| {
            l.snapshot == verified.snapshot()
                && l.sections.len() == self.sections.len()
                && l.unproven == verified.unproven()
                && self.sections.iter().all(|s| s.how == How::Kept)
        })
    }
}

/// Plans everything; see the module's page.
pub(super) fn plan<'v>(
    hands: &Hands<'_>,
    reader: &Reader,
    verified: &'v Verified,
    live: Option<&LiveRecord>,
    intent: Option<&Intent>,
) -> Result<Plan<'v>, PublishError> {
    let spoiled = intent.map(|i| i.spoiled_for(verified.snapshot())).unwrap_or_default();
    let mut sections = Vec::new();
    let mut staying: BTreeSet<&str> = BTreeSet::new();
    for v in verified.sections() {
        let old = live.and_then(|l| l.sections.iter().find(|s| s.path == v.section.path));
        let folder = intent.and_then(|i| i.folder_for(verified.snapshot(), v.section.path.as_ref()));
        let old = old.filter(|o| spoiled.iter().all(|s| s.folder != o.folder));
        let plan = plan_section(hands, reader, v, old.zip(live), folder)?;
        if plan.how != How::Made
            && let Some(old) = old
        {
            staying.insert(&old.folder);
        }
        sections.push(plan);
    }
    let mut retired = BTreeSet::new();
    for (record, section) in live.iter().flat_map(|l| l.sections.iter().map(move |s| (l, s))) {
        if !staying.contains(section.folder.as_str()) {
            let old = Old::load(reader, &hands.space, record, section)?;
            old.check(hands, reader, &spoiled)?;
            for entry in old.entries.iter().flatten().filter(|e| e.kind == EntryKind::File) {
                retired.insert(lake_path(section.path.as_ref(), &entry.path)?);
            }
        }
    }
    let plan = Plan { sections, retired, spoiled };
    check_tops(hands, &top_names(&plan.sections)?)?;
    Ok(plan)
}

fn plan_section<'v>(
    hands: &Hands<'_>,
    reader: &Reader,
    v: &'v VerifiedSection,
    old: Option<(&LiveSection, &LiveRecord)>,
    chosen: Option<&str>,
) -> Result<SectionPlan<'v>, PublishError> {
    let section = &v.section;
    let same_shape = old.filter(|(o, _)| o.kind == section.kind && o.shallow == section.shallow);
    if let Some((old, _)) = same_shape
        && old.tree == section.tree.page
        && hands.sections.open(&old.folder).is_ok()
    {
        let named = section.shallow || section.path.is_none();
        let entries = if named { entries(hands, reader, v)? } else { vec![] };
        let folder = Some(old.folder.clone());
        return Ok(SectionPlan { section, how: How::Kept, folder, entries, additions: vec![] });
    }
    let entries = entries(hands, reader, v)?;
    if let Some((old, live)) = same_shape
        && grows_in_place(section.kind)
        && !section.shallow
        && let Some(before) = entries_in(reader, &hands.space, live.snapshot, section.path.as_ref())?
        && let Some(added) = added(section, &before, &entries)
        && hands.sections.open(&old.folder).is_ok()
    {
        let additions = additions(hands, reader, section, &old.folder, added)?;
        let folder = Some(old.folder.clone());
        return Ok(SectionPlan { section, how: How::Grown, folder, entries: vec![], additions });
    }
    let folder = chosen.map(str::to_string);
    Ok(SectionPlan { section, how: How::Made, folder, entries, additions: vec![] })
}

fn entries(hands: &Hands<'_>, reader: &Reader, v: &VerifiedSection) -> Result<Vec<Entry>, PublishError> {
    match &v.entries {
        Some(entries) => Ok(entries.clone()),
        None => crate::verify::entries_of(reader, &hands.space, &v.section)
            .map_err(|e| PublishError::Entries { section: v.section.name().to_string(), cause: e.to_string() }),
    }
}

/// The entries that `new` has beyond `old`, with whether each replaces a pointer; `None` when `new`
/// takes something away or changes what is written once.
fn added<'e>(section: &Section, old: &[Entry], new: &'e [Entry]) -> Option<Vec<(&'e Entry, bool)>> {
    let before: BTreeMap<&LakePath, &Entry> = old.iter().map(|e| (&e.path, e)).collect();
    let mut kept = 0;
    let mut added = Vec::new();
    for entry in new {
        match before.get(&entry.path) {
            None => added.push((entry, false)),
            Some(same) if *same == entry => kept += 1,
            Some(other) => {
                let files = (entry.kind, other.kind) == (EntryKind::File, EntryKind::File);
                if !files || replace_of(section.kind, &entry.path) != Replace::Pointer {
                    return None;
                }
                kept += 1;
                added.push((entry, true));
            }
        }
    }
    (kept == old.len()).then_some(added)
}

/// Which of the added entries are still to be placed, each after a look at what has its name.
fn additions(
    hands: &Hands<'_>,
    reader: &Reader,
    section: &Section,
    folder: &str,
    added: Vec<(&Entry, bool)>,
) -> Result<Vec<Addition>, PublishError> {
    let mut out = Vec::new();
    for (entry, pointer) in added {
        let place = section_place(folder, &entry.path)?;
        let Place::Own(path) = &place else { continue };
        let seen = match hands.own.descend(path.parent().as_ref()) {
            Ok(parent) => parent.look(path.file_name()).map_err(|e| hands.failed(path.as_str(), e))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(hands.failed(path.as_str(), e)),
        };
        let diverged = |what| PublishError::Diverged {
            section: section.name().to_string(),
            path: entry.path.to_string(),
            what,
        };
        let Some(seen) = seen else {
            if pointer {
                return Err(diverged("was removed"));
            }
            out.push(Addition { entry: entry.clone(), over: Over::Nothing, here: false });
            continue;
        };
        // An earlier, unfinished run may have placed it.
        let here = match (entry.kind, entry.hash) {
            (EntryKind::File, Some(hash)) => {
                seen.kind == Kind::File && prove_place(hands.lake, &place, entry.size, &hash).is_some()
            }
            (EntryKind::Folder, _) => seen.kind == Kind::Folder,
            _ => seen.kind == Kind::Link,
        };
        if here {
            let over = if pointer { Over::Pointer } else { Over::Nothing };
            out.push(Addition { entry: entry.clone(), over, here: true });
        } else if pointer {
            let known = reader.file(&hands.space, &lake_path(section.path.as_ref(), &entry.path)?)?;
            let ours = known.is_some_and(|k| {
                compare(&k.print, &seen.print) != Fit::Other
                    || prove_place(hands.lake, &place, k.print.size, &k.hash).is_some()
            });
            if !ours {
                return Err(diverged("was changed here"));
            }
            out.push(Addition { entry: entry.clone(), over: Over::Pointer, here: false });
        } else {
            return Err(diverged("was added here"));
        }
    }
    Ok(out)
}

/// The names that a version shows at the lake's top.
pub(super) fn top_names(sections: &[SectionPlan<'_>]) -> Result<BTreeSet<String>, PublishError> {
    let first = |path: &LakePath| path.names().next().unwrap_or_default().to_string();
    let mut names = BTreeSet::new();
    for s in sections {
        match &s.section.path {
            Some(path) => {
                names.insert(first(path));
            }
            None => names.extend(s.entries.iter().map(|e| first(&e.path))),
        }
    }
    Ok(names)
}

/// Where the visible link for a top-level name leads.
pub(super) fn top_text(name: &str) -> String {
    format!("{}/{LIVE_LINK}/{name}", sluice_protocol::path::OWN_FOLDER)
}

/// Nothing but our own links may have the names that the version shows.
fn check_tops(hands: &Hands<'_>, names: &BTreeSet<String>) -> Result<(), PublishError> {
    for name in names {
        let failed = |e| hands.failed(name, e);
        let Some(seen) = hands.top.look(name).map_err(failed)? else { continue };
        let ours = seen.kind == Kind::Link && hands.top.read_link(name).map_err(failed)? == top_text(name);
        if !ours {
            return Err(PublishError::Occupied { path: hands.lake.root().join(name) });
        }
    }
    Ok(())
}
