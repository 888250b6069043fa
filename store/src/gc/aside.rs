//! What lies aside for people, `.sluice/kept` and `.sluice/quarantine`: how much, since when, and what is
//! old enough to go.
//!
//! An entry is what one decision set aside, or one damaged file. It is as old as the newest change time
//! in it, folders counted: a rename sets that of the name that is moved, a folder's too and of nothing
//! in it, and no tool can set it back.
//!
//! What lay there before gc of the space knew of the rule was promised to stay: it counts from the first
//! gc that does.
//!
//! Invariant: no link is followed and no other file system is entered; an entry goes whole, and only
//! when nothing unfinished names it. What cannot be read to its end stays, and keeps nothing else.

use std::collections::BTreeSet;
use std::io;

use sluice_protocol::ids::SpaceId;
use sluice_protocol::limits::ASIDE_DEPTH_MAX;
use sluice_protocol::path::OWN_FOLDER;

use super::Retention;
use crate::blobs::QUARANTINE_FOLDER;
use crate::catalog::{Batch, CatalogError, Lookup};
use crate::durable::{Folder, Kind, Seen};
use crate::lake::Lake;
use crate::publish::KEPT_FOLDER;

/// Bits of a folder that must be set to empty it.
const OWNERS_BITS: u32 = 0o700;

/// What lies in one of the two folders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Aside {
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Change time of the oldest file, in milliseconds since the Unix epoch; none when nothing is there.
    pub oldest_ms: Option<u64>,
    /// There is more than was looked at.
    pub more: bool,
}

/// The two folders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LyingAside {
    /// The losing sides of decisions.
    pub kept: Aside,
    /// Damaged bytes.
    pub quarantine: Aside,
}

/// What is found below one entry.
#[derive(Default)]
struct Tree {
    aside: Aside,
    newest_ms: u64,
    /// Something in it cannot be told: a strange name, another file system, too deep, an error.
    unclear: bool,
}

impl Tree {
    /// Folders are no files, and have an age all the same.
    fn note(&mut self, seen: &Seen) {
        let changed_ms = u64::try_from(seen.print.ctime_ns / 1_000_000).unwrap_or(0);
        self.newest_ms = self.newest_ms.max(changed_ms);
        if seen.kind == Kind::Folder {
            return;
        }
        self.aside.files += 1;
        self.aside.bytes += if seen.kind == Kind::File { seen.print.size } else { 0 };
        self.aside.oldest_ms = Some(self.aside.oldest_ms.map_or(changed_ms, |o| o.min(changed_ms)));
    }
}

impl Aside {
    fn add(&mut self, other: &Aside) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.oldest_ms = self.oldest_ms.into_iter().chain(other.oldest_ms).min();
        self.more |= other.more;
    }
}

/// An entry that may go.
pub(super) struct Old {
    folder: &'static str,
    name: String,
    pub aside: Aside,
}

/// Counts what lies aside in a lake; looks at `names_max` names in each folder at most. What cannot be
/// read is `more`.
pub fn lying_aside(lake: &Lake, names_max: u64) -> LyingAside {
    let count = |name| each_entry(lake, name, names_max, &mut |_, _| {});
    LyingAside { kept: count(KEPT_FOLDER), quarantine: count(QUARANTINE_FOLDER) }
}

/// Name of the setting that says since when the rule is known, in milliseconds since the Unix epoch.
fn since_key(space: &SpaceId) -> String {
    format!("aside since {space}")
}

/// Since when gc of the space knows that what lies aside ends; now if it did not yet.
pub(super) fn known_since(r: &impl Lookup, space: &SpaceId, now_ms: u64) -> Result<u64, CatalogError> {
    let raw = r.setting(&since_key(space))?;
    let since = raw.and_then(|raw| raw.try_into().ok()).map(u64::from_le_bytes);
    // A time to come is that of a clock that was wrong.
    Ok(since.filter(|since| *since <= now_ms).unwrap_or(now_ms))
}

/// From now on the rule is known.
pub(super) fn begin(b: &mut Batch, space: &SpaceId, now_ms: u64) -> Result<(), CatalogError> {
    let since_ms = known_since(b, space, now_ms)?;
    b.put_setting(&since_key(space), &since_ms.to_le_bytes())
}

/// What lies aside, and which entries are older than they are kept. `unfinished` names entries, as
/// `kept/NAME`, that stay whatever their age; none is older than `since_ms`.
pub(super) fn old(
    lake: &Lake,
    retention: &Retention,
    since_ms: u64,
    unfinished: &BTreeSet<String>,
) -> (LyingAside, Vec<Old>) {
    let mut old = Vec::new();
    let mut look = |folder: &'static str, kept_ms: Option<u64>| {
        each_entry(lake, folder, u64::MAX, &mut |name, tree| {
            let ended = kept_ms.is_some_and(|ms| tree.newest_ms.max(since_ms).saturating_add(ms) < retention.now_ms);
            if ended && !tree.unclear && !unfinished.contains(&format!("{folder}/{name}")) {
                old.push(Old { folder, name: name.to_string(), aside: tree.aside });
            }
        })
    };
    let lying = LyingAside {
        kept: look(KEPT_FOLDER, retention.kept_ms),
        quarantine: look(QUARANTINE_FOLDER, retention.quarantine_ms),
    };
    (lying, old)
}

/// Removes old entries and returns those that went. One that cannot be removed stays, wholly or in part.
/// A kill leaves a part of one, whose age counts from then.
pub(super) fn remove(lake: &Lake, old: Vec<Old>) -> Vec<Old> {
    let went = |entry: &Old| {
        let gone = || -> io::Result<()> {
            let Some(folder) = open(lake, entry.folder)? else { return Ok(()) };
            take_away(&folder, &entry.name, device(&folder)?)
        };
        if let Err(e) = gone() {
            let path = lake.root().join(OWN_FOLDER).join(entry.folder).join(&entry.name);
            tracing::warn!(path = %path.display(), error = %e, "what is old enough to go cannot be removed");
            return false;
        }
        true
    };
    old.into_iter().filter(went).collect()
}

/// The folder, unless it is not there or something else has its name.
fn open(lake: &Lake, name: &str) -> io::Result<Option<Folder>> {
    let Some(own) = lake.own_if_present() else { return Ok(None) };
    let own = Folder::of(own, "gc")?;
    let is_folder = own.look(name)?.is_some_and(|seen| seen.kind == Kind::Folder);
    is_folder.then(|| own.open(name)).transpose()
}

fn device(folder: &Folder) -> io::Result<u64> {
    Ok(rustix::fs::fstat(folder)?.st_dev)
}

/// Measures each entry of a folder; returns what they come to.
fn each_entry(lake: &Lake, name: &'static str, names_max: u64, each: &mut dyn FnMut(&str, &Tree)) -> Aside {
    let mut all = Aside::default();
    let opened = || -> io::Result<_> {
        let Some(folder) = open(lake, name)? else { return Ok(None) };
        let (dev, names) = (device(&folder)?, folder.names()?.0);
        Ok(Some((folder, dev, names)))
    };
    let (folder, dev, names) = match opened() {
        Ok(Some(opened)) => opened,
        Ok(None) => return all,
        Err(e) => {
            let path = lake.root().join(OWN_FOLDER).join(name);
            tracing::warn!(path = %path.display(), error = %e, "what lies aside cannot be read");
            all.more = true;
            return all;
        }
    };
    let mut left = names_max;
    for entry in names {
        let mut tree = Tree::default();
        if let Err(e) = measure(&folder, &entry, dev, ASIDE_DEPTH_MAX, &mut left, &mut tree) {
            let path = lake.root().join(OWN_FOLDER).join(name).join(&entry);
            tracing::debug!(path = %path.display(), error = %e, "it cannot be read to its end, and stays");
            (tree.unclear, tree.aside.more) = (true, true);
        }
        each(&entry, &tree);
        all.add(&tree.aside);
    }
    all
}

/// Adds what lies below a name. After an error nothing more of the entry is looked at.
fn measure(folder: &Folder, name: &str, dev: u64, depth: usize, left: &mut u64, tree: &mut Tree) -> io::Result<()> {
    if *left == 0 {
        (tree.unclear, tree.aside.more) = (true, true);
        return Ok(());
    }
    *left -= 1;
    let Some(seen) = folder.look(name)? else { return Ok(()) };
    tree.note(&seen);
    if seen.kind != Kind::Folder {
        return Ok(());
    }
    if seen.print.dev != dev || depth == 0 {
        // What may not be entered is not measured, and stays.
        tree.unclear = true;
        return Ok(());
    }
    let below = folder.open(name)?;
    let (names, strange) = below.names()?;
    tree.unclear |= strange > 0;
    names.iter().try_for_each(|name| measure(&below, name, dev, depth - 1, left, tree))
}

fn take_away(folder: &Folder, name: &str, dev: u64) -> io::Result<()> {
    match folder.look(name)? {
        None => Ok(()),
        Some(seen) if seen.kind == Kind::Folder => {
            let below = folder.open(name)?;
            if device(&below)? != dev {
                return Err(io::ErrorKind::CrossesDevices.into());
            }
            if seen.mode & OWNERS_BITS != OWNERS_BITS {
                below.set_mode(seen.mode | OWNERS_BITS)?;
            }
            below.names()?.0.iter().try_for_each(|name| take_away(&below, name, dev))?;
            folder.remove_folder(name)
        }
        Some(_) => folder.remove(name),
    }
}
