//! What a person put into the live generation itself.
//!
//! Sections lie in folders of their own, but the folders between them, and those of sections that are
//! not deep, are folders of the generation: a file that is added there, or renamed over one of our
//! links, lies in the generation and nowhere else.
//!
//! Invariant: nothing of it is lost with its generation. It is moved into the next one, or to where the
//! losing side of a decision is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use sluice_protocol::manifest::{Entry, EntryKind};
use sluice_protocol::path::{LakePath, OWN_FOLDER};

use super::PublishError;
use super::aside::{Move, rename_any};
use super::generation::link_to;
use super::hands::{GENERATIONS_FOLDER, Hands};
use super::old::lake_path;
use super::target::generation_link_text;
use crate::catalog::LiveSection;
use crate::durable::{Folder, Kind, Seen};

/// Something in the generation that is not ours.
#[derive(Debug, Clone)]
pub(super) struct Stray {
    /// In the lake; a name that is not UTF-8 is shown as well as it can be.
    pub path: String,
    /// The name as it is, when it is not UTF-8.
    pub raw: Option<OsString>,
    /// It has the place of one of our links.
    pub replaced: bool,
    /// The section whose folder or whose link it lies in; none for a folder between sections.
    pub section: Option<usize>,
    pub seen: Seen,
}

/// What a generation should hold.
#[derive(Default)]
pub(super) struct Expected {
    /// Lake path of each link: the section and the text.
    links: BTreeMap<String, (usize, String)>,
    folders: BTreeSet<String>,
    /// Folders of sections that are not deep.
    shallow: BTreeMap<String, usize>,
    /// Of these, those whose links and folders are not known, because their pages cannot be read.
    unread: BTreeSet<String>,
    /// The generation is a link into one section.
    whole: bool,
}

/// The links by which generation `number` shows a section, by their lake paths; none for one that is the whole lake.
pub(crate) fn links_of(
    number: u64,
    section: &LiveSection,
    entries: &[Entry],
) -> Result<Vec<(String, String)>, PublishError> {
    let mut expected = Expected::default();
    expected.add(0, number, section, entries)?;
    let links = expected.links.into_iter().filter(|_| !expected.whole);
    Ok(links.map(|(path, (_, text))| (path, text)).collect())
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub strays: Vec<Stray>,
    /// Links of ours that are gone: the section.
    pub gone: Vec<usize>,
}

impl Expected {
    /// Adds section number `at` of generation `number`; `entries` are needed of one that is not deep.
    pub fn add(
        &mut self,
        at: usize,
        number: u64,
        section: &LiveSection,
        entries: &[Entry],
    ) -> Result<(), PublishError> {
        let number = number.to_string();
        let path = section.path.as_ref();
        self.whole |= path.is_none() && !section.shallow;
        self.folders.extend(above(path.map_or("", LakePath::as_str)));
        if !section.shallow {
            let parent = path.and_then(LakePath::parent);
            let text = link_to(&number, parent.as_ref(), &[&section.folder]);
            self.links.insert(section.name().to_string(), (at, text));
            return Ok(());
        }
        let own = path.map(LakePath::to_string).unwrap_or_default();
        self.folders.insert(own.clone());
        self.shallow.insert(own, at);
        for entry in entries {
            let in_lake = lake_path(path, &entry.path)?;
            let text = match entry.kind {
                EntryKind::Folder => {
                    self.folders.insert(in_lake.to_string());
                    continue;
                }
                EntryKind::File => link_to(&number, path, &[&section.folder, entry.path.as_str()]),
                EntryKind::Link => generation_link_text(&in_lake, entry.target.as_deref().unwrap_or("."))?,
            };
            self.links.insert(in_lake.to_string(), (at, text));
        }
        Ok(())
    }

    /// Says that links and folders of a section that is not deep are not known: they are not called strays.
    pub fn unread(&mut self, section: &LiveSection) {
        self.unread.insert(section.path.as_ref().map(LakePath::to_string).unwrap_or_default());
    }

    /// Compares with what lies in generation `number`.
    pub fn compare(&self, hands: &Hands<'_>, number: u64) -> Result<Found, PublishError> {
        let mut found = Found::default();
        let shown = format!("{OWN_FOLDER}/{GENERATIONS_FOLDER}/{number}");
        if self.whole {
            return Ok(found);
        }
        match hands.generations.open(&number.to_string()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
            Err(e) => return Err(hands.failed(&shown, e)),
            Ok(folder) => {
                let mut met = BTreeSet::new();
                self.walk(&folder, "", &mut found, &mut met).map_err(|e| hands.failed(&shown, e))?;
                let gone = self.links.iter().filter(|(path, _)| !met.contains(*path));
                found.gone = gone.map(|(_, (at, _))| *at).collect();
            }
        }
        Ok(found)
    }

    fn walk(
        &self,
        folder: &Folder,
        prefix: &str,
        found: &mut Found,
        met: &mut BTreeSet<String>,
    ) -> std::io::Result<()> {
        let here = prefix.trim_end_matches('/');
        let (unread, shallow) = (self.unread.contains(here), self.shallow.get(here).copied());
        let (names, strange) = folder.names()?;
        for name in if strange > 0 { folder.strange_names()? } else { vec![] } {
            let Some(seen) = folder.look_raw(&name)? else { continue };
            let path = format!("{prefix}{}", name.to_string_lossy());
            found.strays.push(Stray { path, raw: Some(name), replaced: false, section: shallow, seen });
        }
        for name in names {
            let Some(seen) = folder.look(&name)? else { continue };
            let path = format!("{prefix}{name}");
            let ours = self.links.get(&path);
            if ours.is_some() {
                met.insert(path.clone());
            }
            let same = match (seen.kind, ours) {
                (Kind::Link, Some((_, text))) => folder.read_link(&name)? == *text,
                (Kind::Link, None) if unread => true,
                (Kind::Folder, None) if self.folders.contains(&path) || unread => {
                    self.walk(&folder.open(&name)?, &format!("{path}/"), found, met)?;
                    true
                }
                _ => false,
            };
            if !same {
                let section = ours.map(|(at, _)| *at).or(shallow);
                found.strays.push(Stray { path, raw: None, replaced: ours.is_some(), section, seen });
            }
        }
        Ok(())
    }
}

/// The folders above a path, without the top.
fn above(path: &str) -> Vec<String> {
    let cuts = path.char_indices().filter(|(_, c)| *c == '/').map(|(i, _)| path[..i].to_string());
    cuts.collect()
}

/// The stray goes on into the next generation.
pub(super) fn carry(stray: &Stray, from: u64, to: u64) -> Move {
    let at = |number: u64| format!("{OWN_FOLDER}/{GENERATIONS_FOLDER}/{number}/{}", stray.path);
    rename_any(at(from), at(to), stray.raw.as_deref())
}

/// The stray gives way to the owner's version.
pub(super) fn put_away(stray: &Stray, generation: u64, kept: &str) -> Move {
    rename_any(
        format!("{OWN_FOLDER}/{GENERATIONS_FOLDER}/{generation}/{}", stray.path),
        format!("{OWN_FOLDER}/{kept}/{}", stray.path),
        stray.raw.as_deref(),
    )
}
