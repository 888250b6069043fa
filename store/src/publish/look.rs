//! A look over what is published, before a version is asked for: is everything there, did anyone change it?
//!
//! Cheap: names, modes and fingerprints; a file is hashed only when its fingerprint moved. What is
//! found is written into the record of the live version, so that planning, verifying and publishing
//! agree about it: a *worn* section (files missing or damaged) is made anew, a *diverged* one (changed
//! by hand) stays as it lies. A name at the lake's top that is missing is noted, too: recovery makes it again.
//!
//! Invariant: no file is touched here. A change by hand, once found, stands in the catalog until the
//! change is gone or a person resolved it.

use std::collections::BTreeSet;
use std::io;

use sluice_protocol::ids::{SnapshotId, SpaceId};
use sluice_protocol::manifest::Entry;
use sluice_protocol::path::LakePath;
use sluice_protocol::tree::TreeRef;

use super::hands::Hands;
use super::old::{Inspection, Old};
use super::plan::is_our_top;
use super::strays::{Expected, Found};
use super::{PublishError, generation, intent};
use crate::blobs::{Fit, compare};
use crate::catalog::{
    Batch, CHANGES_MAX, Catalog, CatalogError, FileRecord, LiveRecord, LiveSection, LocalChange, Located, Lookup,
    Reader,
};
use crate::lake::{Fingerprint, Lake};

/// What a look found.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// The live version, with what was found of its sections; none when nothing is published.
    pub live: Option<LiveRecord>,
    /// Published files that are missing or damaged, or have lost their mode or time, in sections that
    /// the next version makes anew; and names that are missing at the lake's top.
    pub to_mend: u64,
    /// Of those, the lake paths of what was removed here.
    pub removed_here: Vec<String>,
    /// Sections whose list of files cannot be read any more: to be fetched again. Their files were compared
    /// with what the catalog recorded of them.
    pub unread: Vec<Unread>,
}

/// See [`Standing::unread`].
#[derive(Debug, Clone)]
pub struct Unread {
    /// Its folder in the lake, or `.`.
    pub section: String,
    /// The version whose manifest lists it.
    pub snapshot: SnapshotId,
    /// Its pages; none when the manifest itself cannot be read.
    pub tree: Option<TreeRef>,
}

/// What a change by hand at the lake's top is called.
pub(crate) const TOP_TAKEN: &str = "has taken the place of the link into the live version";
const REPLACED: &str = "was replaced here";
const ADDED: &str = "was added here";

/// Looks over the live version of a replica; see the module's page.
pub fn look_over(lake: &Lake, catalog: &Catalog, space: &SpaceId) -> Result<Standing, PublishError> {
    if catalog.read()?.live(space)?.is_none() {
        return Ok(Standing::default());
    }
    let hands = Hands::open(lake, catalog, *space)?;
    let reader = catalog.read()?;
    let Some(before) = reader.live(space)? else { return Ok(Standing::default()) };
    let mut look = Look { hands: &hands, reader: &reader, now: before.clone(), standing: Standing::default() };
    let strays = find_strays(&hands, &reader, &before)?;
    let mut learned = Vec::new();
    for at in 0..before.sections.len() {
        if !before.sections[at].detached {
            learned.push(look.section(at, &strays)?);
        }
    }
    let Look { mut now, mut standing, .. } = look;
    drop(reader);
    let unshown = unshown(&hands, &before)?;
    now.unshown = !unshown.is_empty();
    standing.to_mend += unshown.len() as u64;
    standing.removed_here.extend(unshown);
    let news = learned.iter().any(|i| !i.proven.is_empty() || i.removed.iter().any(|r| r.at.is_some()));
    if now != before || news {
        hands.commit("standing", |b| {
            learned.iter().try_for_each(|inspection| learn(b, space, inspection))?;
            keep_marks(&before, b.live(space)?.as_ref(), &mut now);
            b.set_live(space, &now)
        })?;
    }
    standing.live = Some(now);
    Ok(standing)
}

struct Look<'h, 'a> {
    hands: &'h Hands<'a>,
    reader: &'h Reader,
    now: LiveRecord,
    standing: Standing,
}

impl Look<'_, '_> {
    fn section(&mut self, at: usize, strays: &Found) -> Result<Inspection, PublishError> {
        let section = self.now.sections[at].clone();
        let spoiled = intent::load(self.reader, &self.hands.space)?.map(|i| i.spoiled()).unwrap_or_default();
        let old = Old::load(self.hands, self.reader, &self.now, &section)?;
        if old.unread {
            self.standing.unread.push(Unread {
                section: section.name().to_string(),
                snapshot: section.of.unwrap_or(self.now.snapshot),
                tree: old.listed.as_ref().map(|s| s.tree.clone()),
            });
        }
        let inspection = old.inspect(self.reader, &spoiled)?;
        let mut changes = self.tops(&section, &old)?;
        let own = strays.strays.iter().filter(|s| s.section == Some(at));
        changes.extend(own.map(|s| local(&s.path, if s.replaced { REPLACED } else { ADDED }, Some(&s.seen.print))));
        let count = changes.len() + inspection.changes.len();
        let room = CHANGES_MAX.saturating_sub(changes.len());
        changes.extend(inspection.changes.iter().take(room).map(|c| {
            let path = LakePath::parse(&c.path).map_or_else(|_| old_path(&section, &c.path), |p| old.shown(&p));
            local(&path, c.what, c.print.as_ref())
        }));
        // Top names come first: none of them may be cut off.
        let hurt = strays.gone.iter().filter(|s| **s == at).count() as u64
            + (inspection.removed.len() + inspection.damaged.len()) as u64
            + inspection.undressed;
        let now = &mut self.now.sections[at];
        now.changes = changes;
        now.change_count = (count > 0).then_some(count as u64);
        if count == 0 {
            now.gives_way = None;
        }
        now.worn = hurt > 0;
        if !now.stays() {
            self.standing.to_mend += hurt;
            self.standing.removed_here.extend(inspection.removed.iter().map(|r| r.path.clone()));
        }
        Ok(inspection)
    }

    /// Names at the lake's top that should lead into this section and were taken by something else.
    fn tops(&self, section: &LiveSection, old: &Old<'_, '_>) -> Result<Vec<LocalChange>, PublishError> {
        let mut taken = Vec::new();
        for name in top_names_of(section, old.entries()) {
            let seen = self.hands.top.look(&name).map_err(|e| self.hands.failed(&name, e))?;
            if let Some(seen) = seen
                && !is_our_top(self.hands, &name, &seen)?
            {
                taken.push(LocalChange { top: true, ..local(&name, TOP_TAKEN, Some(&seen.print)) });
            }
        }
        Ok(taken)
    }
}

/// The names of the live generation that are missing at the lake's top. One that something else has is not among them.
fn unshown(hands: &Hands<'_>, live: &LiveRecord) -> Result<Vec<String>, PublishError> {
    let names = match generation::shown_names(hands, live.generation) {
        // What the generation itself lost is found section by section.
        Err(PublishError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        names => names?,
    };
    let mut missing = Vec::new();
    for name in names {
        if hands.top.look(&name).map_err(|e| hands.failed(&name, e))?.is_none() {
            missing.push(name);
        }
    }
    Ok(missing)
}

fn local(path: &str, what: &str, print: Option<&Fingerprint>) -> LocalChange {
    let (path, what, print) = (path.to_string(), what.to_string(), print.cloned());
    LocalChange { path, what, print, top: false, unknown: Default::default() }
}

/// What a person put into the live generation.
pub(super) fn find_strays(hands: &Hands<'_>, reader: &Reader, live: &LiveRecord) -> Result<Found, PublishError> {
    let mut expected = Expected::default();
    for (at, section) in live.sections.iter().enumerate() {
        if !section.shallow {
            expected.add(at, live.generation, section, &[])?;
            continue;
        }
        let old = Old::load(hands, reader, live, section)?;
        expected.add(at, live.generation, section, old.entries())?;
        if old.unread {
            expected.unread(section);
        }
    }
    expected.compare(hands, live.generation)
}

/// The names at the lake's top through which a published section is seen.
pub(crate) fn top_names_of(section: &LiveSection, entries: &[Entry]) -> BTreeSet<String> {
    let first = |path: &LakePath| path.names().next().map(str::to_string);
    match &section.path {
        Some(path) => first(path).into_iter().collect(),
        None => entries.iter().filter_map(|e| first(&e.path)).collect(),
    }
}

fn old_path(section: &LiveSection, path: &str) -> String {
    match section.name() {
        "." => path.to_string(),
        name => format!("{name}/{path}").trim_end_matches('/').to_string(),
    }
}

/// Keeps what was marked by others while the look was under way: damage that was met in serving.
fn keep_marks(before: &LiveRecord, current: Option<&LiveRecord>, now: &mut LiveRecord) {
    let is_worn = |live: &LiveRecord, folder: &str| live.sections.iter().any(|s| s.folder == folder && s.worn);
    let Some(current) = current else { return };
    for section in &mut now.sections {
        section.worn |= is_worn(current, &section.folder) && !is_worn(before, &section.folder);
    }
}

/// What hashing and looking taught: fresh fingerprints, and places that hold nothing any more.
fn learn(b: &mut Batch, space: &SpaceId, inspection: &Inspection) -> Result<(), CatalogError> {
    for p in &inspection.proven {
        let marked = b.file(space, &p.path)?.filter(|r| r.damaged && r.hash == p.hash);
        if marked.is_some_and(|r| compare(&r.print, &p.print) != Fit::Other) {
            // It was found damaged after it was proven.
            continue;
        }
        let record = FileRecord { print: p.print.clone(), hash: p.hash, damaged: false, unknown: Default::default() };
        b.put_file(space, &p.path, &record)?;
        let at = Located { place: p.place.clone(), print: p.print.clone(), unknown: Default::default() };
        b.add_place(space, &p.hash, p.size, at)?;
    }
    for (hash, place) in inspection.removed.iter().filter_map(|r| r.at.as_ref()) {
        b.remove_place(space, hash, place)?;
    }
    Ok(())
}
