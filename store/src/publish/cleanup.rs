//! Removing what no kept generation needs, last of all.
//!
//! Invariant: a section folder goes only when no kept generation, no live section and no unfinished
//! version uses it, and only files that were published there are removed from it. A folder that
//! holds anything else stays, and is reported.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use sluice_protocol::manifest::SectionKind;
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::is_regenerated;

use super::PublishError;
use super::aside::KEPT_FOLDER;
use super::hands::{GENERATIONS_FOLDER, Hands, SECTIONS_FOLDER};
use super::place::Inodes;
use super::sweep::{self, Known};
use super::{generation, intent, old};
use crate::blobs::QUARANTINE_FOLDER;
use crate::catalog::Lookup;
use crate::durable::{Folder, Kind};
use crate::lake::Place;

/// What cleaning up did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Generations removed.
    pub generations: u64,
    /// Section folders removed.
    pub folders: u64,
    /// Section folders that hold something that was not published, and stay: path below the lake.
    pub kept: Vec<String>,
}

/// Most generations that are kept for readers, however fast versions come.
const GENERATIONS_MAX: usize = 1024;

/// Keeps the newest `keep` generations (at least the live one), those that readers may still be in, and
/// what they need.
pub(super) fn clean(hands: &Hands<'_>, keep: usize, grace: Duration) -> Result<Cleaned, PublishError> {
    let mut cleaned = Cleaned::default();
    let reader = hands.catalog.read()?;
    let Some(live) = reader.live(&hands.space)? else { return Ok(cleaned) };
    let failed = |e| hands.failed(GENERATIONS_FOLDER, e);
    let mut numbers: Vec<u64> =
        hands.generations.names().map_err(failed)?.0.iter().filter_map(|n| n.parse().ok()).collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let mut used: BTreeSet<String> = live.sections.iter().map(|s| s.folder.clone()).collect();
    let kept = kept_generations(hands, &numbers, live.generation, keep, grace)?;
    for number in &numbers {
        if kept.contains(number) {
            used.extend(folders_of(hands, *number)?);
        } else {
            match generation::remove(hands, &number.to_string()) {
                Ok(()) => cleaned.generations += 1,
                // Someone put a file into it after it was overtaken.
                Err(PublishError::Stranger { path }) => {
                    used.extend(folders_of(hands, *number)?);
                    cleaned.kept.push(path.display().to_string());
                }
                Err(e) => return Err(e),
            }
        }
    }
    if let Some(unfinished) = intent::load(&reader, &hands.space)? {
        used.extend(unfinished.sections.into_iter().map(|s| s.folder));
        used.extend(unfinished.spoiled.into_iter().map(|s| s.folder));
    }
    drop(reader);
    let (names, _) = hands.sections.names().map_err(|e| hands.failed(SECTIONS_FOLDER, e))?;
    let unused: Vec<String> = names.into_iter().filter(|n| !used.contains(n)).collect();
    if !unused.is_empty() {
        remove_folders(hands, &unused, &mut cleaned)?;
    }
    Ok(cleaned)
}

/// The live generation, the `keep - 1` before it, and those that were live within the grace.
fn kept_generations(
    hands: &Hands<'_>,
    newest_first: &[u64],
    live: u64,
    keep: usize,
    grace: Duration,
) -> Result<BTreeSet<u64>, PublishError> {
    let mut kept = BTreeSet::from([live]);
    let mut next = live;
    for number in newest_first.iter().filter(|n| **n < live) {
        // It was the live one until the next was made.
        if kept.len() < keep.max(1) || (kept.len() < GENERATIONS_MAX && age(hands, next)? < grace) {
            kept.insert(*number);
        }
        next = *number;
    }
    Ok(kept)
}

/// How long ago a generation was made; zero when the clock was set back since.
fn age(hands: &Hands<'_>, number: u64) -> Result<Duration, PublishError> {
    let seen = hands.generations.look(&number.to_string()).map_err(|e| hands.failed(GENERATIONS_FOLDER, e))?;
    let made = seen.map_or(0, |s| u64::try_from(s.print.ctime_ns).unwrap_or(0));
    let made = SystemTime::UNIX_EPOCH + Duration::from_nanos(made);
    Ok(SystemTime::now().duration_since(made).unwrap_or_default())
}

/// The section folders that a generation's links lead to.
fn folders_of(hands: &Hands<'_>, number: u64) -> Result<BTreeSet<String>, PublishError> {
    let name = number.to_string();
    let failed = |e| hands.failed(GENERATIONS_FOLDER, e);
    let mut folders = BTreeSet::new();
    let mut note = |text: &str| {
        let mut names = text.split('/').skip_while(|n| *n == "..");
        if names.next() == Some(SECTIONS_FOLDER) {
            folders.extend(names.next().map(str::to_string));
        }
    };
    match hands.generations.look(&name).map_err(failed)?.map(|s| s.kind) {
        Some(Kind::Link) => note(&hands.generations.read_link(&name).map_err(failed)?),
        Some(Kind::Folder) => {
            let folder = hands.generations.open(&name).map_err(failed)?;
            links_of(&folder, &mut note).map_err(failed)?;
        }
        _ => {}
    }
    Ok(folders)
}

/// Every link below a folder of a generation. A name that is not UTF-8 is none of ours.
fn links_of(folder: &Folder, note: &mut dyn FnMut(&str)) -> std::io::Result<()> {
    for name in folder.names()?.0 {
        match folder.look(&name)?.map(|s| s.kind) {
            Some(Kind::Folder) => links_of(&folder.open(&name)?, note)?,
            Some(Kind::Link) => note(&folder.read_link(&name)?),
            _ => {}
        }
    }
    Ok(())
}

fn remove_folders(hands: &Hands<'_>, unused: &[String], cleaned: &mut Cleaned) -> Result<(), PublishError> {
    let mut known = Known::of(hands, unused)?;
    for name in unused {
        let shown = format!(".sluice/{SECTIONS_FOLDER}/{name}");
        let failed = |e| hands.failed(&shown, e);
        if hands.sections.look(name).map_err(failed)?.is_none_or(|s| s.kind != Kind::Folder) {
            cleaned.kept.push(shown);
            continue;
        }
        let folder = hands.sections.open(name).map_err(failed)?;
        if !only_ours(&mut known, &folder, name)? || !sweep::remove(&mut known, &folder, name)? {
            cleaned.kept.push(shown);
            continue;
        }
        cleaned.folders += 1;
    }
    if cleaned.folders > 0 {
        hands.sync(&hands.sections, ".sluice/sections")?;
    }
    Ok(())
}

/// The section folder and the rest of the path of a place below the sections.
pub(crate) fn in_section(place: &Place) -> Option<(&str, &str)> {
    let Place::Own(path) = place else { return None };
    path.as_str().strip_prefix(SECTIONS_FOLDER)?.strip_prefix('/')?.split_once('/')
}

/// Whether the folder holds nothing but published files as they were published, links and folders.
fn only_ours(known: &mut Known<'_, '_>, folder: &Folder, path: &str) -> Result<bool, PublishError> {
    let failed = |e| known.hands.failed(path, e);
    let (names, strange) = folder.names().map_err(failed)?;
    if strange > 0 {
        // A name that is not UTF-8 is somebody's.
        return Ok(false);
    }
    for name in names {
        let Some(seen) = folder.look(&name).map_err(|e| known.hands.failed(path, e))? else { continue };
        let path = format!("{path}/{name}");
        let ours = match seen.kind {
            Kind::Folder => {
                let inner = folder.open(&name).map_err(|e| known.hands.failed(&path, e))?;
                only_ours(known, &inner, &path)?
            }
            _ => known.is_ours(&path, &seen)?,
        };
        if !ours {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The files that lie in the quarantine or are kept from a decision.
pub(super) fn inodes_aside(hands: &Hands<'_>) -> Inodes {
    let mut found = Inodes::new();
    for name in [QUARANTINE_FOLDER, KEPT_FOLDER] {
        let Ok(folder) = hands.own.open(name) else { continue };
        // What cannot be read is not counted, so whatever may be the only copy stays.
        let _ = old::walk(&folder, "", &mut |(_, seen, _)| {
            found.insert((seen.print.dev, seen.print.inode));
            true
        });
    }
    found
}

/// Lance's hint of the newest version is made again by whoever needs it.
pub(super) fn is_hint(path: &str) -> bool {
    LakePath::parse(path).is_ok_and(|p| is_regenerated(SectionKind::Lance, &p))
}
