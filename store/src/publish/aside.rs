//! Moving away what readers should not meet any more: a person's files for which the owner's version
//! was chosen, and damaged files.
//!
//! The moves are recorded in the change that makes the new version live, done right after, and
//! recorded as done at the end. Each is one rename within the lake, and nothing is ever replaced.
//!
//! Invariant: a file is moved only after the version without it is live, and it lies at one of its two
//! names at every moment. Stopped anywhere, the next run does the rest.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use sluice_protocol::codec::{Bytes, Dec, Enc, Wire};
use sluice_protocol::ids::SpaceId;
use sluice_protocol::path::OWN_FOLDER;
use sluice_protocol::record;

use super::PublishError;
use super::hands::{Hands, SECTIONS_FOLDER};
use super::old::{Inspection, Old};
use crate::blobs::QUARANTINE_FOLDER;
use crate::catalog::{Batch, CatalogError, LiveSection, Lookup};
use crate::durable::Folder;
use crate::lake::Place;

/// Folder below `.sluice` for the side that was not kept, by the time of the decision.
pub const KEPT_FOLDER: &str = "kept";
/// Names tried before we give up finding a free one.
const NAMES_TRIED_MAX: u32 = 10_000;

record! {
    /// One rename, both paths below the lake's root.
    pub struct Move {
        0 => from: String,
        1 => to: String,
        /// A name that is not UTF-8: `from` and `to` are the folders that it leaves and comes to.
        2 => raw: Option<Bytes>,
    }
}

record! {
    /// Moves that are still to be done.
    pub struct Moves {
        0 => all: Vec<Move>,
    }
}

pub(super) fn rename(from: String, to: String) -> Move {
    Move { from, to, raw: None, unknown: Default::default() }
}

/// Moves the name `raw`, which both paths show in place of their last name, as it is.
pub(super) fn rename_any(from: String, to: String, raw: Option<&OsStr>) -> Move {
    match raw {
        None => rename(from, to),
        Some(raw) => Move {
            from: split(&from).0.to_string(),
            to: split(&to).0.to_string(),
            raw: Some(Bytes(raw.as_bytes().to_vec())),
            unknown: Default::default(),
        },
    }
}

/// Damaged files leave the folder that older generations show.
pub(super) fn of_damaged(found: &Inspection) -> Vec<Move> {
    let one = |d: &super::old::Damaged| match &d.place {
        Place::Own(path) => {
            Some(rename(format!("{OWN_FOLDER}/{path}"), format!("{OWN_FOLDER}/{QUARANTINE_FOLDER}/{}", d.hash)))
        }
        Place::Lake(_) => None,
    };
    found.damaged.iter().filter_map(one).collect()
}

/// A person's changes of a section go below `kept`, a path below `.sluice`; what had taken a name at the
/// lake's top goes beside it.
pub(super) fn of_changes(section: &LiveSection, old: &Old<'_, '_>, found: &Inspection, kept: &str) -> Vec<Move> {
    let inside = found.changes.iter().filter(|c| !c.path.is_empty()).map(|c| {
        let from = format!("{OWN_FOLDER}/{SECTIONS_FOLDER}/{}/{}", section.folder, c.path);
        let shown = sluice_protocol::path::LakePath::parse(&c.path);
        let shown = shown.map_or_else(|_| format!("{}/{}", section.name(), c.path), |p| old.shown(&p));
        rename_any(from, format!("{OWN_FOLDER}/{kept}/{shown}"), c.raw.as_deref())
    });
    let tops = section.taken_tops().map(|top| rename(top.to_string(), format!("{OWN_FOLDER}/{kept}.top/{top}")));
    tops.chain(inside).collect()
}

fn key(space: &SpaceId) -> String {
    format!("aside/{space}")
}

/// Records moves beside those that are still to be done.
pub(super) fn store(batch: &mut Batch, space: &SpaceId, moves: &[Move]) -> Result<(), CatalogError> {
    if moves.is_empty() {
        return Ok(());
    }
    let mut all = load(batch, space)?;
    all.extend_from_slice(moves);
    let mut e = Enc::new(Vec::new());
    Moves { all, unknown: Default::default() }.put(&mut e);
    batch.put_setting(&key(space), &e.into_writer())
}

fn load(reader: &impl Lookup, space: &SpaceId) -> Result<Vec<Move>, CatalogError> {
    match reader.setting(&key(space))? {
        Some(raw) if !raw.is_empty() => Ok(Moves::get(&mut Dec::new(&raw))?.all),
        _ => Ok(vec![]),
    }
}

/// Entries below `.sluice/kept` and `.sluice/quarantine`, as `kept/NAME`, that a decision or a move names
/// which is not carried out yet.
pub(crate) fn unfinished(reader: &impl Lookup, space: &SpaceId) -> Result<BTreeSet<String>, CatalogError> {
    let live = reader.live(space)?;
    let decided = live.iter().flat_map(|l| &l.sections).filter_map(|s| s.gives_way.as_ref());
    let mut all: BTreeSet<String> = decided.flat_map(|kept| [kept.clone(), format!("{kept}.top")]).collect();
    for m in load(reader, space)? {
        let mut names = m.to.split('/').skip(1);
        all.extend(names.next().zip(names.next()).map(|(folder, name)| format!("{folder}/{name}")));
    }
    Ok(all)
}

/// Does what is still to be done; returns how many files were moved.
pub(super) fn finish(hands: &Hands<'_>) -> Result<u64, PublishError> {
    let moves = load(&hands.catalog.read()?, &hands.space)?;
    if moves.is_empty() {
        return Ok(0);
    }
    let mut moved = 0;
    for m in &moves {
        moved += u64::from(one(hands, m)?);
    }
    hands.sync_all("moved aside")?;
    hands.commit("aside", |b| b.put_setting(&key(&hands.space), &[]))?;
    Ok(moved)
}

fn one(hands: &Hands<'_>, m: &Move) -> Result<bool, PublishError> {
    let failed = |e| hands.failed(&m.from, e);
    if let Some(raw) = &m.raw {
        return one_raw(hands, m, OsStr::from_bytes(&raw.0));
    }
    let (folder, name) = split(&m.from);
    let from = match descend(hands, folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(failed)?,
    };
    if from.look(name).map_err(failed)?.is_none() {
        return Ok(false);
    }
    let (folder, wanted) = split(&m.to);
    let to = hands.make_path(folder)?;
    for n in 0..NAMES_TRIED_MAX {
        let free = if n == 0 { wanted.to_string() } else { format!("{wanted}.{n}") };
        if to.look(&free).map_err(failed)?.is_none() {
            hands.rename((&from, name), (&to, &free), &m.from)?;
            return Ok(true);
        }
    }
    Err(PublishError::Occupied { path: hands.lake.root().join(&m.to) })
}

fn one_raw(hands: &Hands<'_>, m: &Move, name: &OsStr) -> Result<bool, PublishError> {
    let failed = |e| hands.failed(&m.from, e);
    let from = match descend(hands, &m.from) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(failed)?,
    };
    if from.look_raw(name).map_err(failed)?.is_none() {
        return Ok(false);
    }
    let to = hands.make_path(&m.to)?;
    for n in 0..NAMES_TRIED_MAX {
        let mut free = name.to_os_string();
        if n > 0 {
            free.push(format!(".{n}"));
        }
        if to.look_raw(&free).map_err(failed)?.is_none() {
            from.move_raw(name, &to, &free).map_err(failed)?;
            return Ok(true);
        }
    }
    Err(PublishError::Occupied { path: hands.lake.root().join(&m.to) })
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn descend(hands: &Hands<'_>, path: &str) -> io::Result<Folder> {
    let mut here = Folder::of(&hands.top, "aside")?;
    for name in path.split('/').filter(|n| !n.is_empty()) {
        here = here.open(name)?;
    }
    Ok(here)
}
