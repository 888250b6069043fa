//! What each section of the new version needs: nothing, a few files, or a folder of its own.
//!
//! Invariant: planning writes nothing, and it fails when publishing would lose a local change. So a
//! refusal leaves the lake exactly as it was.

use std::collections::BTreeSet;

use sluice_protocol::manifest::{Entry, EntryKind, Section};
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::{Replace, grows_in_place, replace_of};

use super::PublishError;
use super::hands::{Hands, LIVE_LINK};
use super::intent::{Intent, Spoiled};
use super::old::{Old, lake_path, listed_as, section_place};
use super::place::Over;
use crate::blobs::{Fit, compare, prove_place};
use crate::catalog::{LiveRecord, LiveSection, Lookup, Reader};
use crate::durable::Kind;
use crate::lake::Place;
use crate::verify::diff::{Changes, changes, manifest_of};
use crate::verify::{Verified, VerifiedSection, VerifyError, entries_of};

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
    /// All entries of a shallow section or one that is the whole lake: their names are seen outside it.
    pub entries: Vec<Entry>,
    /// What a growing section gets.
    pub additions: Vec<Addition>,
}

pub(super) struct Plan<'v> {
    pub sections: Vec<SectionPlan<'v>>,
    /// Published sections whose folder is not live any more.
    pub retired: Vec<Section>,
    pub spoiled: Vec<Spoiled>,
    /// Published files that someone removed.
    pub removed_here: Vec<String>,
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
    let before = live.map(|l| manifest_of(reader, &hands.space, l.snapshot)).transpose()?.flatten();
    let mut sections = Vec::new();
    let mut staying: BTreeSet<&str> = BTreeSet::new();
    for v in verified.sections() {
        let old = live.and_then(|l| l.sections.iter().find(|s| s.path == v.section.path));
        let folder = intent.and_then(|i| i.folder_for(verified.snapshot(), v.section.path.as_ref()));
        let old = old.filter(|o| spoiled.iter().all(|s| s.folder != o.folder));
        let listed = old.and_then(|o| listed_as(before.as_ref(), o));
        let plan = plan_section(hands, reader, v, old, listed, folder)?;
        if plan.how != How::Made
            && let Some(old) = old
        {
            staying.insert(&old.folder);
        }
        sections.push(plan);
    }
    let (mut retired, mut removed_here) = (Vec::new(), Vec::new());
    for section in live.iter().flat_map(|l| &l.sections).filter(|s| !staying.contains(s.folder.as_str())) {
        let old = Old::load(hands, reader, before.as_ref(), section)?;
        removed_here.extend(old.check(reader, &spoiled)?);
        retired.extend(old.listed);
    }
    let plan = Plan { sections, retired, spoiled, removed_here };
    check_tops(hands, &top_names(&plan.sections)?)?;
    Ok(plan)
}

fn plan_section<'v>(
    hands: &Hands<'_>,
    reader: &Reader,
    v: &'v VerifiedSection,
    old: Option<&LiveSection>,
    listed: Option<&Section>,
    chosen: Option<&str>,
) -> Result<SectionPlan<'v>, PublishError> {
    let section = &v.section;
    let unreadable = |e: VerifyError| unreadable(section, &e);
    let outside = section.shallow || section.path.is_none();
    let all = || entries_of(reader, &hands.space, section).map_err(unreadable);
    let entries = if outside { all()? } else { vec![] };
    let chosen = chosen.map(str::to_string);
    let mut plan = SectionPlan { section, how: How::Made, folder: chosen, entries, additions: vec![] };
    let same_shape = |o: &&LiveSection| o.kind == section.kind && o.shallow == section.shallow;
    let Some(old) = old.filter(same_shape).filter(|o| hands.sections.open(&o.folder).is_ok()) else {
        return Ok(plan);
    };
    if old.tree == section.tree.page {
        (plan.how, plan.folder) = (How::Kept, Some(old.folder.clone()));
    } else if grows_in_place(section.kind)
        && !section.shallow
        && let Some(listed) = listed
        && let Some(added) = added(section, changes(reader, &hands.space, Some(listed), section).map_err(unreadable)?)
    {
        plan.additions = additions(hands, reader, section, &old.folder, added)?;
        (plan.how, plan.folder) = (How::Grown, Some(old.folder.clone()));
    }
    Ok(plan)
}

pub(super) fn unreadable(section: &Section, e: &VerifyError) -> PublishError {
    PublishError::Entries { section: section.name().to_string(), cause: e.to_string() }
}

/// What comes, with whether it replaces a pointer; `None` when something goes, or changes that is
/// written once.
fn added(section: &Section, changes: Changes) -> Option<Vec<(Entry, bool)>> {
    let is_pointer = |e: &Entry| e.kind == EntryKind::File && replace_of(section.kind, &e.path) == Replace::Pointer;
    let find = |path: &LakePath| changes.come.binary_search_by(|c| c.path.cmp(path)).ok();
    for gone in &changes.gone {
        let new = find(&gone.path).map(|i| &changes.come[i]);
        if !(is_pointer(gone) && new.is_some_and(is_pointer)) {
            return None;
        }
    }
    let replaced = |e: &Entry| changes.gone.binary_search_by(|g| g.path.cmp(&e.path)).is_ok();
    Some(changes.come.iter().map(|e| (e.clone(), replaced(e))).collect())
}

/// Which of the added entries are still to be placed, each after a look at what has its name.
fn additions(
    hands: &Hands<'_>,
    reader: &Reader,
    section: &Section,
    folder: &str,
    added: Vec<(Entry, bool)>,
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
        let diverged =
            |what| PublishError::Diverged { section: section.name().to_string(), path: entry.path.to_string(), what };
        let Some(seen) = seen else {
            if pointer {
                return Err(diverged("was removed"));
            }
            out.push(Addition { entry, over: Over::Nothing, here: false });
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
            out.push(Addition { entry, over, here: true });
        } else if pointer {
            let known = reader.file(&hands.space, &lake_path(section.path.as_ref(), &entry.path)?)?;
            let ours = known.is_some_and(|k| {
                compare(&k.print, &seen.print) != Fit::Other
                    || prove_place(hands.lake, &place, k.print.size, &k.hash).is_some()
            });
            if !ours {
                return Err(diverged("was changed here"));
            }
            out.push(Addition { entry, over: Over::Pointer, here: false });
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
