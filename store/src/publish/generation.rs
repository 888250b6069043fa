//! One version as a tree of links, and the one rename that makes it live.
//!
//! `.sluice/generations/N` has the lake's shape down to its sections: a deep section is a link to its
//! section folder, a shallow one a real folder with a link for each file. All texts are relative, so
//! a lake can be moved.
//!
//! Invariant: a generation is complete and durable before `.sluice/live` points at it, and is never
//! changed afterwards. It holds only folders and links, so removing one can lose no data.

use std::collections::BTreeSet;
use std::io;

use sluice_protocol::manifest::EntryKind;
use sluice_protocol::path::LakePath;

use super::PublishError;
use super::hands::{GENERATIONS_FOLDER, Hands, LIVE_LINK, SECTIONS_FOLDER};
use super::plan::{SectionPlan, top_text};
use super::target::generation_link_text;
use crate::durable::{Folder, Kind, Unsynced, ancestors};
use crate::verify::relative;

const NEXT_LIVE: &str = "live.next";

/// Builds generation `number` anew and makes it durable.
///
/// The names in `taken` (lake paths) are left out: something that a person put there follows.
pub(super) fn build(
    hands: &Hands<'_>,
    number: u64,
    sections: &[SectionPlan<'_>],
    taken: &BTreeSet<String>,
) -> Result<(), PublishError> {
    let name = number.to_string();
    remove(hands, &name)?;
    let shown = format!(".sluice/{GENERATIONS_FOLDER}/{name}");
    if let [only] = sections
        && only.section.path.is_none()
        && !only.section.shallow
    {
        let target = format!("../{SECTIONS_FOLDER}/{}", folder_of(only));
        hands.symlink(&target, (&hands.generations, &name), &shown)?;
        return hands.sync(&hands.generations, GENERATIONS_FOLDER);
    }
    let root = hands.folder(&hands.generations, &name, &shown)?;
    let mut unsynced = Unsynced::default();
    unsynced.name_in(None);
    for s in sections {
        note_folders(&mut unsynced, &name, s)?;
        let path = s.section.path.as_ref();
        if s.section.shallow {
            shallow(hands, &root, &name, s, taken)?;
        } else if let Some(path) = path.filter(|p| !taken.contains(p.as_str())) {
            let parent = hands.folder_path(&root, path.parent().as_ref(), &shown)?;
            let text = link_to(&name, path.parent().as_ref(), &[folder_of(s)]);
            hands.symlink(&text, (&parent, path.file_name()), &format!("{shown}/{path}"))?;
        }
    }
    hands.flush(&mut unsynced, &hands.generations, &shown)
}

/// Every folder of a generation that a section adds to.
fn note_folders(unsynced: &mut Unsynced, number: &str, s: &SectionPlan<'_>) -> Result<(), PublishError> {
    let named = |text: String| LakePath::parse(&text).map_err(|source| PublishError::Path { path: text, source });
    let mut note = |path: &str| -> Result<(), PublishError> {
        let inside = named(format!("{number}/{path}"))?;
        ancestors(&inside).into_iter().for_each(|above| unsynced.name_in(above));
        Ok(())
    };
    if let Some(path) = &s.section.path {
        note(path.as_str())?;
    }
    if s.section.shallow {
        for entry in &s.entries {
            let path = super::old::lake_path(s.section.path.as_ref(), &entry.path)?;
            note(path.as_str())?;
        }
    }
    Ok(())
}

fn folder_of<'s>(s: &'s SectionPlan<'_>) -> &'s str {
    s.folder.as_deref().unwrap_or_default()
}

/// The text of a link in `folder` of a generation that leads to something below the sections.
pub(super) fn link_to(generation: &str, folder: Option<&LakePath>, to: &[&str]) -> String {
    let mut from = vec![GENERATIONS_FOLDER, generation];
    from.extend(folder.iter().flat_map(|f| f.names()));
    let mut target = vec![SECTIONS_FOLDER];
    target.extend(to);
    relative(&from, &target)
}

fn shallow(
    hands: &Hands<'_>,
    root: &Folder,
    generation: &str,
    s: &SectionPlan<'_>,
    taken: &BTreeSet<String>,
) -> Result<(), PublishError> {
    let folder = s.section.path.as_ref();
    let shown = format!(".sluice/{GENERATIONS_FOLDER}/{generation}");
    let here = hands.folder_path(root, folder, &shown)?;
    for entry in &s.entries {
        let name = entry.path.as_str();
        if taken.contains(super::old::lake_path(folder, &entry.path)?.as_str()) {
            continue;
        }
        let shown = format!("{shown}/{}/{name}", s.section.name());
        match entry.kind {
            EntryKind::Folder => drop(hands.folder(&here, name, &shown)?),
            EntryKind::File => {
                let text = link_to(generation, folder, &[folder_of(s), name]);
                hands.symlink(&text, (&here, name), &shown)?;
            }
            EntryKind::Link => {
                let lake_path = super::old::lake_path(folder, &entry.path)?;
                let text = generation_link_text(&lake_path, entry.target.as_deref().unwrap_or("."))?;
                hands.symlink(&text, (&here, name), &shown)?;
            }
        }
    }
    Ok(())
}

/// Removes a generation: folders and links only, whatever an earlier run left of it.
pub(super) fn remove(hands: &Hands<'_>, name: &str) -> Result<(), PublishError> {
    let shown = format!(".sluice/{GENERATIONS_FOLDER}/{name}");
    let Some(seen) = hands.generations.look(name).map_err(|e| hands.failed(&shown, e))? else {
        return Ok(());
    };
    if seen.kind != Kind::Folder {
        return hands.remove(&hands.generations, name, &shown);
    }
    let folder = hands.generations.open(name).map_err(|e| hands.failed(&shown, e))?;
    empty(hands, &folder, &shown)?;
    hands.remove_folder(&hands.generations, name, &shown)
}

fn empty(hands: &Hands<'_>, folder: &Folder, shown: &str) -> Result<(), PublishError> {
    let failed = |e| hands.failed(shown, e);
    let (names, strange) = folder.names().map_err(failed)?;
    for name in names {
        let path = format!("{shown}/{name}");
        match folder.look(&name).map_err(failed)?.map(|seen| seen.kind) {
            None => {}
            Some(Kind::Link) => hands.remove(folder, &name, &path)?,
            Some(Kind::Folder) => {
                let inner = folder.open(&name).map_err(failed)?;
                empty(hands, &inner, &path)?;
                hands.remove_folder(folder, &name, &path)?;
            }
            Some(_) => return Err(PublishError::Stranger { path: hands.lake.root().join(path) }),
        }
    }
    if strange > 0 {
        return Err(PublishError::Stranger { path: hands.lake.root().join(shown) });
    }
    Ok(())
}

/// The number that `.sluice/live` points at.
pub(super) fn live_number(hands: &Hands<'_>) -> Result<Option<u64>, PublishError> {
    match hands.own.read_link(LIVE_LINK) {
        Ok(text) => Ok(text.strip_prefix("generations/").and_then(|n| n.parse().ok())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(hands.failed(".sluice/live", e)),
    }
}

/// Points `.sluice/live` at a generation, in one step.
pub(super) fn switch(hands: &Hands<'_>, number: u64) -> Result<(), PublishError> {
    hands.remove(&hands.own, NEXT_LIVE, ".sluice/live.next")?;
    let target = format!("{GENERATIONS_FOLDER}/{number}");
    hands.symlink(&target, (&hands.own, NEXT_LIVE), ".sluice/live.next")?;
    hands.replace((&hands.own, NEXT_LIVE), (&hands.own, LIVE_LINK), ".sluice/live")?;
    hands.sync(&hands.own, ".sluice")
}

/// The names a generation shows at the lake's top.
pub(super) fn shown_names(hands: &Hands<'_>, number: u64) -> Result<BTreeSet<String>, PublishError> {
    let name = number.to_string();
    let shown = format!(".sluice/{GENERATIONS_FOLDER}/{name}");
    let failed = |e| hands.failed(&shown, e);
    let folder = match hands.generations.look(&name).map_err(failed)?.map(|s| s.kind) {
        Some(Kind::Link) => {
            let text = hands.generations.read_link(&name).map_err(failed)?;
            let section = text.rsplit('/').next().unwrap_or_default().to_string();
            hands.sections.open(&section).map_err(failed)?
        }
        _ => hands.generations.open(&name).map_err(failed)?,
    };
    Ok(folder.names().map_err(failed)?.0.into_iter().collect())
}

/// Makes the visible links for `names` and removes our own for others; returns how many were made.
pub(super) fn show(hands: &Hands<'_>, names: &BTreeSet<String>) -> Result<u64, PublishError> {
    let failed = |e| hands.failed("", e);
    let (mut made, mut changed) = (0, false);
    for name in names {
        // What a person put there stays: the next look finds it.
        if hands.top.look(name).map_err(failed)?.is_none() {
            hands.symlink(&top_text(name), (&hands.top, name), name)?;
            (made, changed) = (made + 1, true);
        }
    }
    for name in hands.top.names().map_err(failed)?.0 {
        let ours = !names.contains(&name)
            && hands.top.look(&name).map_err(failed)?.is_some_and(|s| s.kind == Kind::Link)
            && hands.top.read_link(&name).is_ok_and(|text| text == top_text(&name));
        if ours {
            hands.remove(&hands.top, &name, &name)?;
            changed = true;
        }
    }
    if changed {
        hands.sync(&hands.top, ".")?;
    }
    Ok(made)
}
