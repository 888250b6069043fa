//! Putting the files of a version where they belong: new folders first, then growing tables.
//!
//! Invariant: a folder that readers see gets a file only after every file of an earlier stage is
//! durable there. What lies in a new folder is recorded in batches, so a stop costs no second
//! transfer and little hashing.

use std::collections::BTreeMap;
use std::io;

use sluice_protocol::ids::BlobHash;
use sluice_protocol::manifest::{Entry, EntryKind};
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::{Stage, stage_of};

use super::commit::LiveFolders;
use super::hands::{Hands, SECTIONS_FOLDER};
use super::old::{lake_path, section_place};
use super::place::{Blobs, Inodes, Over, Placer};
use super::plan::{self, How, Plan, SectionPlan};
use super::target::link_text;
use super::{PublishError, PublishedSection};
use crate::blobs::settle;
use crate::catalog::{LiveRecord, Lookup};
use crate::durable::ancestors;
use crate::verify::{VerifyError, entries_in, leaves_of};
use crate::watch::Watch;

/// Files of new folders that are recorded by one commit.
const PLACED_AT_ONCE: usize = 16 * 1024;

/// Places the files of every section and makes them durable. Returns what was done for each, and
/// what the catalog does not know yet: that of growing tables, whose files are not live before the
/// version is.
pub(super) fn all(
    hands: &Hands<'_>,
    plan: &Plan<'_>,
    live: Option<&LiveRecord>,
    watch: &dyn Watch,
) -> Result<(Vec<PublishedSection>, Blobs, Inodes), PublishError> {
    let mut placer = Placer::new(hands, hands.catalog.read()?);
    let folders = LiveFolders::of(live);
    let mut files = vec![0; plan.sections.len()];
    for (s, n) in plan.sections.iter().zip(&mut files).filter(|(s, _)| s.how == How::Made) {
        *n = make(&mut placer, s, &folders, watch)?;
    }
    for (s, n) in plan.sections.iter().zip(&mut files).filter(|(s, _)| s.how == How::Grown) {
        *n = grow(&mut placer, s, watch)?;
    }
    let sections = plan.sections.iter().zip(files).map(|(s, n)| super::published(s, n)).collect();
    let (blobs, touched) = placer.take();
    Ok((sections, blobs, touched))
}

fn tell(watch: &dyn Watch, n: u64, total: u64) -> Result<(), PublishError> {
    if n.is_multiple_of(1024) || n == total {
        watch.amount("publish", n, total, 0, 0);
        if watch.cancelled() {
            return Err(PublishError::Cancelled);
        }
    }
    Ok(())
}

/// Fills a section folder that nobody sees yet.
fn make(
    placer: &mut Placer<'_, '_>,
    s: &SectionPlan<'_>,
    live: &LiveFolders,
    watch: &dyn Watch,
) -> Result<u64, PublishError> {
    let hands = placer.hands;
    let name = s.folder.as_deref().unwrap_or_default();
    let shown = format!(".sluice/{SECTIONS_FOLDER}/{name}");
    let begun = hands.sections.open(name).is_ok();
    hands.folder(&hands.sections, name, &shown)?;
    placer.made_in([None]);
    let failed = |e| plan::unreadable(&s.section, &e);
    let leaves = leaves_of(&hands.catalog.read()?, &hands.space, &s.section).map_err(failed)?;
    let (mut placed, mut n) = (0, 0);
    for leaf in &leaves {
        for entry in entries_in(&hands.catalog.read()?, &hands.space, leaf).map_err(failed)? {
            tell(watch, n, s.section.tree.items)?;
            n += 1;
            let done = make_entry(placer, s, name, &entry, begun);
            if let Err(PublishError::BlobGone { .. }) = done {
                forget_gone(hands, &leaves, &failed)?;
            }
            placed += u64::from(done?);
        }
        if placer.pending() >= PLACED_AT_ONCE {
            placer.save(live, &shown)?;
        }
    }
    placer.save(live, &shown)?;
    Ok(placed)
}

/// Lets the catalog forget blobs that are not where they were, so that the next sync fetches them.
fn forget_gone(
    hands: &Hands<'_>,
    leaves: &[BlobHash],
    unreadable: &dyn Fn(VerifyError) -> PublishError,
) -> Result<(), PublishError> {
    for leaf in leaves {
        let entries = entries_in(&hands.catalog.read()?, &hands.space, leaf).map_err(unreadable)?;
        for hash in entries.into_iter().filter_map(|e| e.hash) {
            settle(hands.lake, hands.catalog, &hands.space, &hash)?;
        }
    }
    Ok(())
}

/// Puts one entry into a folder of ours; says whether a file was placed.
fn make_entry(
    placer: &mut Placer<'_, '_>,
    s: &SectionPlan<'_>,
    folder: &str,
    entry: &Entry,
    begun: bool,
) -> Result<bool, PublishError> {
    if entry.kind != EntryKind::File {
        if !(s.section.shallow && entry.kind == EntryKind::Link) {
            other_entry(placer, s, folder, entry)?;
        }
        return Ok(false);
    }
    let place = section_place(folder, &entry.path)?;
    let hash = entry.hash.unwrap_or(BlobHash([0; 32]));
    if begun {
        if placer.is_at(&hash, &place)? {
            if placer.dress_again(entry, &place)? {
                placer.found(&hash, entry.size, place)?;
            }
            return Ok(false);
        }
        // What an earlier run left here and recovery could not prove is not worth keeping.
        clear_spot(placer.hands, folder, &entry.path)?;
    }
    placer.place(&s.section, folder, entry, Over::Nothing)?;
    Ok(true)
}

fn clear_spot(hands: &Hands<'_>, folder: &str, path: &LakePath) -> Result<(), PublishError> {
    let text = format!("{folder}/{path}");
    let full = LakePath::parse(&text).map_err(|source| PublishError::Path { path: text.clone(), source })?;
    let shown = format!(".sluice/{SECTIONS_FOLDER}/{text}");
    match hands.sections.descend(full.parent().as_ref()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(hands.failed(&shown, e)),
        Ok(parent) => match parent.look(full.file_name()).map_err(|e| hands.failed(&shown, e))? {
            None => Ok(()),
            Some(_) => hands.remove(&parent, full.file_name(), &shown),
        },
    }
}

/// Makes an empty folder or a link.
fn other_entry(
    placer: &mut Placer<'_, '_>,
    s: &SectionPlan<'_>,
    folder: &str,
    entry: &Entry,
) -> Result<(), PublishError> {
    let hands = placer.hands;
    let text = format!("{folder}/{}", entry.path);
    let path = LakePath::parse(&text).map_err(|source| PublishError::Path { path: text.clone(), source })?;
    let shown = format!(".sluice/{SECTIONS_FOLDER}/{text}");
    if entry.kind == EntryKind::Folder {
        hands.section_folder(&path)?;
        placer.made_in(ancestors(&path));
        return Ok(());
    }
    let target = entry.target.as_deref().unwrap_or(".");
    let target = link_text(s.section.path.as_ref(), &entry.path, target)?;
    let parent = path.parent().expect("a section folder is above");
    let parent = hands.section_folder(&parent)?;
    placer.made_in(ancestors(&path));
    let failed = |e| hands.failed(&shown, e);
    if parent.look(path.file_name()).map_err(failed)?.is_some() {
        if parent.read_link(path.file_name()).is_ok_and(|text| text == target) {
            return Ok(());
        }
        return Err(PublishError::Diverged {
            section: s.section.name().to_string(),
            path: entry.path.to_string(),
            what: "was added here",
        });
    }
    hands.symlink(&target, (&parent, path.file_name()), &shown)
}

/// Adds files to a folder that readers see, each stage durable before the next begins.
fn grow(placer: &mut Placer<'_, '_>, s: &SectionPlan<'_>, watch: &dyn Watch) -> Result<u64, PublishError> {
    let folder = s.folder.as_deref().unwrap_or_default();
    let mut stages: BTreeMap<Stage, Vec<&plan::Addition>> = BTreeMap::new();
    for addition in &s.additions {
        stages.entry(stage_of(s.section.kind, &addition.entry.path)).or_default().push(addition);
    }
    let (mut n, mut placed) = (0, 0);
    for (stage, additions) in stages {
        for addition in additions {
            tell(watch, n, s.additions.len() as u64)?;
            n += 1;
            placed += u64::from(grow_entry(placer, s, folder, addition)?);
        }
        let what = format!("stage {}.{} of {}", stage.rank, stage.version, s.section.name());
        placer.flush(&what)?;
    }
    Ok(placed)
}

fn grow_entry(
    placer: &mut Placer<'_, '_>,
    s: &SectionPlan<'_>,
    folder: &str,
    addition: &plan::Addition,
) -> Result<bool, PublishError> {
    let entry = &addition.entry;
    let Some(hash) = entry.hash else {
        other_entry(placer, s, folder, entry)?;
        return Ok(false);
    };
    let place = section_place(folder, &entry.path)?;
    let path = lake_path(s.section.path.as_ref(), &entry.path)?;
    // The bytes that a pointer had before are not at this place any more.
    let before = placer.hands.catalog.read()?.file(&placer.hands.space, &path)?;
    if let Some(before) = before.filter(|b| b.hash != hash) {
        placer.forget(&before.hash, &place)?;
    }
    if addition.here {
        placer.dress_again(entry, &place)?;
        placer.found(&hash, entry.size, place)?;
        return Ok(false);
    }
    placer.place(&s.section, folder, entry, addition.over.clone())?;
    Ok(true)
}
