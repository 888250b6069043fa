//! What each section of the new version needs: nothing, a few files, or a folder of its own.
//!
//! A section that was changed by hand stays as it lies, and the others go on.
//!
//! Invariant: planning writes nothing, and it fails when publishing would lose a local change that no
//! look has found yet. So a refusal leaves the lake exactly as it was.

use std::borrow::Cow;
use std::collections::BTreeSet;

use sluice_protocol::manifest::{Entry, EntryKind, Section};
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::{Replace, grows_in_place, replace_of};

use super::PublishError;
use super::aside::{self, Move};
use super::hands::{Hands, LIVE_LINK};
use super::intent::{Intent, Spoiled};
use super::look::find_strays;
use super::old::{Old, Retired, lake_path, listed_as, manifest_for, section_place};
use super::place::Over;
use super::strays::{Stray, put_away};
use crate::blobs::{Fit, compare, prove_place};
use crate::catalog::{LiveRecord, LiveSection, Lookup, Reader};
use crate::durable::{Kind, Seen};
use crate::lake::Place;
use crate::verify::diff::{Changes, changes};
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
    pub section: Cow<'v, Section>,
    pub how: How,
    /// Name below `.sluice/sections`; none until one is chosen.
    pub folder: Option<String>,
    /// All entries of a shallow section or one that is the whole lake: their names are seen outside it.
    pub entries: Vec<Entry>,
    /// What a growing section gets.
    pub additions: Vec<Addition>,
    /// A published section that was changed by hand, and stays as it is recorded here.
    pub stays: Option<LiveSection>,
}

pub(super) struct Plan<'v> {
    pub sections: Vec<SectionPlan<'v>>,
    /// Published sections whose folder is not live any more.
    pub retired: Vec<Retired>,
    /// Published folders that may hold files of a version that is not live.
    pub spoiled: Vec<Spoiled>,
    /// Published files that someone removed.
    pub removed_here: Vec<String>,
    /// Files to move out of the way of readers, once the version is live.
    pub moves: Vec<Move>,
    /// What a person put into the live generation and that goes on into the next.
    pub carried: Vec<Stray>,
    /// Sections of the version that are not published, because a changed one has their place: name, by which.
    pub held_back: Vec<(String, String)>,
    /// Sections that cannot be proven here, as `name: reason`.
    pub unproven: Vec<String>,
}

impl Plan<'_> {
    /// Whether the published version is this one already.
    pub fn changes_nothing(&self, live: Option<&LiveRecord>, verified: &Verified) -> bool {
        live.is_some_and(|l| {
            l.snapshot == verified.snapshot()
                && l.sections.len() == self.sections.len()
                && l.unproven == self.unproven
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
    let others = intent.map(|i| i.spoiled_for(verified.snapshot())).unwrap_or_default();
    let spoiled = intent.map(Intent::spoiled).unwrap_or_default();
    let mut plan = Plan {
        sections: stay(hands, reader, live)?,
        retired: vec![],
        spoiled,
        removed_here: vec![],
        moves: vec![],
        carried: vec![],
        held_back: vec![],
        unproven: verified.unproven(),
    };
    plan.unproven.extend(still_unproven(live));
    let mut staying: BTreeSet<&str> = live.iter().flat_map(|l| &l.sections).filter(|s| s.stays()).map(folder).collect();
    for v in verified.sections() {
        if let Some(by) = live.and_then(|l| l.holds_back(&v.section)) {
            plan.held_back.push((v.section.name().to_string(), by.name().to_string()));
            continue;
        }
        let old = live.and_then(|l| l.sections.iter().find(|s| s.path == v.section.path && !s.stays()));
        let chosen = intent.and_then(|i| i.folder_for(verified.snapshot(), v.section.path.as_ref()));
        let usable = old.filter(|o| !o.is_remade() && others.iter().all(|s| s.folder != o.folder));
        let before = live.zip(usable).map(|(l, o)| manifest_for(reader, &hands.space, l, o)).transpose()?.flatten();
        let listed = usable.and_then(|o| listed_as(before.as_ref(), o));
        let section = plan_section(hands, reader, v, usable, listed, chosen)?;
        if section.how != How::Made
            && let Some(old) = usable
        {
            staying.insert(&old.folder);
        }
        plan.sections.push(section);
    }
    // As in a manifest, and as the next look will find them.
    plan.sections.sort_by(|a, b| a.section.path.cmp(&b.section.path));
    for (live, section) in live.iter().flat_map(|l| l.sections.iter().map(move |s| (l, s))) {
        if !staying.contains(section.folder.as_str()) {
            retire(hands, reader, live, section, &mut plan)?;
        }
    }
    if let Some(live) = live {
        strays_of(hands, reader, live, &mut plan)?;
    }
    check_tops(hands, &top_names(&plan.sections)?, &given_tops(live))?;
    Ok(plan)
}

/// What lies in the live generation follows into the next one, or gives way with its section.
fn strays_of(hands: &Hands<'_>, reader: &Reader, live: &LiveRecord, plan: &mut Plan<'_>) -> Result<(), PublishError> {
    for stray in find_strays(hands, reader, live)?.strays {
        let section = stray.section.map(|at| &live.sections[at]);
        match section.and_then(|s| s.gives_way.as_ref()) {
            Some(kept) => plan.moves.push(put_away(&stray, live.generation, kept)),
            None => {
                if stray.replaced
                    && let Some(section) = section.filter(|s| !s.stays())
                {
                    return Err(PublishError::Diverged {
                        section: section.name().to_string(),
                        path: stray.path,
                        what: "was replaced here",
                    });
                }
                plan.carried.push(stray);
            }
        }
    }
    Ok(())
}

fn folder(section: &LiveSection) -> &str {
    &section.folder
}

/// The sections that were changed by hand: they stay as they lie, and the new generation shows them.
fn stay<'v>(
    hands: &Hands<'_>,
    reader: &Reader,
    live: Option<&LiveRecord>,
) -> Result<Vec<SectionPlan<'v>>, PublishError> {
    let mut all = Vec::new();
    for (live, old) in live.iter().flat_map(|l| l.sections.iter().map(move |s| (l, s))).filter(|(_, s)| s.stays()) {
        let manifest = manifest_for(reader, &hands.space, live, old)?;
        let gone = || PublishError::Entries {
            section: old.name().to_string(),
            cause: "the manifest that it was published from is gone".into(),
        };
        let section = listed_as(manifest.as_ref(), old).ok_or_else(gone)?.clone();
        let outside = section.shallow || section.path.is_none();
        let entries = match outside {
            true => entries_of(reader, &hands.space, &section).map_err(|e| unreadable(&section, &e))?,
            false => vec![],
        };
        let of = Some(old.of.unwrap_or(live.snapshot));
        all.push(SectionPlan {
            section: Cow::Owned(section),
            how: How::Kept,
            folder: Some(old.folder.clone()),
            entries,
            additions: vec![],
            stays: Some(LiveSection { of, ..old.clone() }),
        });
    }
    Ok(all)
}

/// What was said of the sections that stay.
fn still_unproven(live: Option<&LiveRecord>) -> Vec<String> {
    let Some(live) = live else { return vec![] };
    let of = |s: &LiveSection| {
        let prefix = format!("{}: ", s.name());
        live.unproven.iter().find(|u| u.starts_with(&prefix)).cloned()
    };
    live.sections.iter().filter(|s| s.stays()).filter_map(of).collect()
}

/// A section folder that will not be live any more: nothing that a person did in it may be lost.
fn retire(
    hands: &Hands<'_>,
    reader: &Reader,
    live: &LiveRecord,
    section: &LiveSection,
    plan: &mut Plan<'_>,
) -> Result<(), PublishError> {
    let old = Old::load(hands, reader, live, section)?;
    let found = old.check(reader, &plan.spoiled)?;
    plan.removed_here.extend(found.removed.iter().map(|r| r.path.clone()));
    plan.moves.extend(aside::of_damaged(&found));
    if let Some(kept) = &section.gives_way {
        plan.moves.extend(aside::of_changes(section, &old, &found, kept));
    }
    plan.retired.push(old.retired());
    Ok(())
}

/// Names at the top that a person took and that are moved away for the owner's version.
fn given_tops(live: Option<&LiveRecord>) -> BTreeSet<String> {
    let giving = live.into_iter().flat_map(|l| &l.sections);
    giving.flat_map(|s| s.taken_tops()).map(str::to_string).collect()
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
    let mut plan = SectionPlan {
        section: Cow::Borrowed(section),
        how: How::Made,
        folder: chosen,
        entries,
        additions: vec![],
        stays: None,
    };
    let same_shape = |o: &&LiveSection| o.kind == section.kind && o.shallow == section.shallow;
    let Some(old) = old.filter(same_shape).filter(|o| hands.sections.open(&o.folder).is_ok()) else {
        return Ok(plan);
    };
    if old.tree == section.tree.page {
        (plan.how, plan.folder) = (How::Kept, Some(old.folder.clone()));
    } else if grows_in_place(section.kind)
        && !section.shallow
        && let Some(listed) = listed
        // Pages of the old version that cannot be read say nothing: then the folder is made anew.
        && let Ok(changes) = changes(reader, &hands.space, Some(listed), section)
        && let Some(added) = added(section, changes)
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
            let over = if pointer { Over::Pointer(seen.print) } else { Over::Nothing };
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
            out.push(Addition { entry, over: Over::Pointer(seen.print), here: false });
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
pub(crate) fn top_text(name: &str) -> String {
    format!("{}/{LIVE_LINK}/{name}", sluice_protocol::path::OWN_FOLDER)
}

/// Whether what lies under a name at the lake's top is our own link into the live version.
pub(super) fn is_our_top(hands: &Hands<'_>, name: &str, seen: &Seen) -> Result<bool, PublishError> {
    let text = || hands.top.read_link(name).map_err(|e| hands.failed(name, e));
    Ok(seen.kind == Kind::Link && text()? == top_text(name))
}

/// Nothing but our own links may have the names that the version shows, but for what a look found there.
fn check_tops(hands: &Hands<'_>, names: &BTreeSet<String>, known: &BTreeSet<String>) -> Result<(), PublishError> {
    for name in names.difference(known) {
        let Some(seen) = hands.top.look(name).map_err(|e| hands.failed(name, e))? else { continue };
        if !is_our_top(hands, name, &seen)? {
            return Err(PublishError::Occupied { path: hands.lake.root().join(name) });
        }
    }
    Ok(())
}
