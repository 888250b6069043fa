//! Removing a section folder that nothing needs, in small steps.
//!
//! Files go first, then the catalog forgets them, some thousand at a time: so neither memory nor a
//! transaction grows with the section. Stopped anywhere, the catalog names at most one step of files that
//! are gone, which whoever opens a blob passes over, and the next run goes on with what still lies there.
//!
//! Invariant: a file is removed only when the catalog knows it as published at this very place and it is
//! still that file, looked at right before.

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;

use sluice_protocol::ids::BlobHash;
use sluice_protocol::path::LakePath;

use super::PublishError;
use super::cleanup::{in_section, inodes_aside, is_hint};
use super::commit::{Crowded, LiveFolders, refreshed};
use super::hands::{Hands, SECTIONS_FOLDER};
use super::old::section_place;
use super::place::Inodes;
use crate::blobs::{Fit, Glance, compare, fit_of, prove_place};
use crate::catalog::{Batch, CatalogError, FileRecord, Lookup, Reader};
use crate::durable::{Folder, Kind, Seen};
use crate::lake::Place;

/// Files that one step removes and one commit forgets.
const STEP_FILES: usize = 2048;
/// Folders beyond this many are made durable by one `syncfs`.
const SYNC_ONE_BY_ONE_MAX: usize = 64;
/// Bytes of a path's hash that stand for it.
const KEY_BYTES: usize = 16;

/// A path below the sections, `<folder>/<path>`, in a few bytes: a section may have millions.
type Key = [u8; KEY_BYTES];

fn key(path: &str) -> Key {
    *blake3::hash(path.as_bytes()).as_bytes().first_chunk().expect("a hash is longer than its key")
}

/// Which blobs lie in the folders that are to go.
pub(super) struct Known<'h, 'a> {
    pub hands: &'h Hands<'a>,
    reader: Reader,
    live: LiveFolders,
    /// By key: 48 bytes for each file.
    blobs: Vec<(Key, BlobHash)>,
    crowded: Crowded,
    aside: OnceCell<Inodes>,
}

impl<'h, 'a> Known<'h, 'a> {
    pub fn of(hands: &'h Hands<'a>, folders: &[String]) -> Result<Self, PublishError> {
        let reader = hands.catalog.read()?;
        let live = LiveFolders::of(reader.live(&hands.space)?.as_ref());
        let wanted: BTreeSet<&str> = folders.iter().map(String::as_str).collect();
        let mut blobs = Vec::new();
        reader.blobs(&hands.space, &mut |hash, record| {
            for (folder, rest) in record.places.iter().filter_map(|at| in_section(&at.place)) {
                if wanted.contains(folder) {
                    blobs.push((key(&format!("{folder}/{rest}")), hash));
                }
            }
        })?;
        blobs.sort_unstable();
        Ok(Self { hands, reader, live, blobs, crowded: Crowded::default(), aside: OnceCell::new() })
    }

    /// The blob that was published at a path below the sections and still lies there.
    ///
    /// Of the files in `touched` only the change time may have moved, by what we removed.
    fn published(&mut self, path: &str, seen: &Seen, touched: &Inodes) -> Result<Option<BlobHash>, PublishError> {
        let wanted = key(path);
        let Some(place) = place_of(path) else { return Ok(None) };
        let from = self.blobs.partition_point(|(key, _)| *key < wanted);
        for at in from..self.blobs.len() {
            let (key, hash) = self.blobs[at];
            if key != wanted {
                break;
            }
            let print = self.crowded.print_at(&self.reader, &self.hands.space, &hash, &place)?;
            let Some(print) = print else { continue };
            let fit = compare(&print, &seen.print);
            if fit == Fit::Same
                || fit == Fit::Touched && touched.contains(&(print.dev, print.inode))
                || prove_place(self.hands.lake, &place, seen.print.size, &hash).is_some()
            {
                return Ok(Some(hash));
            }
        }
        Ok(None)
    }

    /// Whether nobody but us put this there, or it is kept elsewhere.
    pub fn is_ours(&mut self, path: &str, seen: &Seen) -> Result<bool, PublishError> {
        Ok(match seen.kind {
            Kind::Folder | Kind::Link => true,
            Kind::Other => false,
            Kind::File => self.published(path, seen, &Inodes::new())?.is_some() || self.is_spare(path, seen),
        })
    }

    /// Another name of a file that was put aside is no loss, nor is what is made again.
    fn is_spare(&self, path: &str, seen: &Seen) -> bool {
        let inode = (seen.print.dev, seen.print.inode);
        let below = path.split_once('/').map_or("", |(_, below)| below);
        is_hint(below) || self.aside.get_or_init(|| inodes_aside(self.hands)).contains(&inode)
    }
}

fn place_of(path: &str) -> Option<Place> {
    let (folder, below) = path.split_once('/')?;
    section_place(folder, &LakePath::parse(below).ok()?).ok()
}

/// What was removed since the last commit.
#[derive(Default)]
struct Step {
    files: usize,
    gone: HashMap<BlobHash, Vec<Place>>,
    /// Files that have other names: removing one moves the change time of all.
    touched: Inodes,
    /// Folders, below the sections, in which names were removed.
    folders: BTreeSet<Option<LakePath>>,
}

/// Removes a section folder; `false` when somebody put something into it meanwhile, which stays.
pub(super) fn remove(known: &mut Known<'_, '_>, folder: &Folder, name: &str) -> Result<bool, PublishError> {
    let mut step = Step::default();
    let emptied = empty(known, &mut step, folder, name)?;
    if emptied {
        let shown = format!(".sluice/{SECTIONS_FOLDER}/{name}");
        known.hands.remove_folder(&known.hands.sections, name, &shown)?;
        step.folders.insert(None);
    }
    finish(known, &mut step)?;
    Ok(emptied)
}

fn empty(known: &mut Known<'_, '_>, step: &mut Step, folder: &Folder, path: &str) -> Result<bool, PublishError> {
    let hands = known.hands;
    let shown = format!(".sluice/{SECTIONS_FOLDER}/{path}");
    let failed = |e| hands.failed(&shown, e);
    let (names, strange) = folder.names().map_err(failed)?;
    let mut emptied = strange == 0;
    for name in names {
        let Some(seen) = folder.look(&name).map_err(failed)? else { continue };
        let (inner, shown) = (format!("{path}/{name}"), format!("{shown}/{name}"));
        let gone = match seen.kind {
            Kind::Folder => {
                let below = folder.open(&name).map_err(failed)?;
                let gone = empty(known, step, &below, &inner)?;
                if gone {
                    hands.remove_folder(folder, &name, &shown)?;
                }
                gone
            }
            _ => one(known, step, (folder, &name), &inner, &seen)?,
        };
        emptied &= gone;
        step.folders.insert(LakePath::parse(path).ok());
        if step.files >= STEP_FILES {
            finish(known, step)?;
        }
    }
    Ok(emptied)
}

/// Removes a file or link that is ours.
fn one(
    known: &mut Known<'_, '_>,
    step: &mut Step,
    at: (&Folder, &str),
    path: &str,
    seen: &Seen,
) -> Result<bool, PublishError> {
    let hands = known.hands;
    if seen.kind == Kind::File {
        if let Some(hash) = known.published(path, seen, &step.touched)? {
            if seen.links > 1 && !step.gone.contains_key(&hash) {
                let places = known.reader.blob(&hands.space, &hash)?.map_or(vec![], |b| b.places);
                // Only what still fits now may be refreshed: an edit must not pass for our doing.
                let fits = places.iter().filter(|at| fit_of(hands.lake, at) == Fit::Same);
                step.touched.extend(fits.map(|at| (at.print.dev, at.print.inode)));
            }
            step.gone.entry(hash).or_default().extend(place_of(path));
        } else if !known.is_spare(path, seen) {
            return Ok(false);
        }
    } else if seen.kind != Kind::Link {
        return Ok(false);
    }
    hands.remove(at.0, at.1, &format!(".sluice/{SECTIONS_FOLDER}/{path}"))?;
    step.files += 1;
    Ok(true)
}

/// Makes the step durable and lets the catalog forget its files, in this order: files that came back after
/// a power loss and that nothing knows would count as a person's.
fn finish(known: &mut Known<'_, '_>, step: &mut Step) -> Result<(), PublishError> {
    let hands = known.hands;
    let Step { gone, touched, folders, .. } = std::mem::take(step);
    sync(hands, &folders).map_err(|e| hands.failed(SECTIONS_FOLDER, e))?;
    if !gone.is_empty() {
        let live = &known.live;
        hands.commit("forget", |b| {
            gone.iter().try_for_each(|(hash, places)| forget(b, hands, live, hash, places, &touched))
        })?;
        known.reader = hands.catalog.read()?;
        known.crowded = Crowded::default();
    }
    Ok(())
}

fn sync(hands: &Hands<'_>, folders: &BTreeSet<Option<LakePath>>) -> io::Result<()> {
    if folders.len() > SYNC_ONE_BY_ONE_MAX {
        return hands.sections.sync_system();
    }
    for path in folders {
        match hands.sections.descend(path.as_ref()) {
            Ok(folder) => folder.sync()?,
            // It was removed itself: that is a name in the one above.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Takes places from a blob, and learns the new fingerprints of what has the same bytes under other names.
fn forget(
    b: &mut Batch,
    hands: &Hands<'_>,
    live: &LiveFolders,
    hash: &BlobHash,
    gone: &[Place],
    touched: &Inodes,
) -> Result<(), CatalogError> {
    let Some(mut record) = b.blob(&hands.space, hash)? else { return Ok(()) };
    let gone: HashSet<&Place> = gone.iter().collect();
    record.places.retain(|at| !gone.contains(&at.place));
    let mut glance = Glance::new(hands.lake);
    for at in &mut record.places {
        if !touched.contains(&(at.print.dev, at.print.inode)) {
            continue;
        }
        let Some(fresh) = refreshed(&mut glance, at, touched) else { continue };
        if let Some(path) = live.lake_path(&at.place)
            && let Some(file) = b.file(&hands.space, &path)?.filter(|f| f.hash == *hash && f.print == at.print)
        {
            b.put_file(&hands.space, &path, &FileRecord { print: fresh.print.clone(), ..file })?;
        }
        *at = fresh;
    }
    match record.places.is_empty() {
        true => b.remove_blob(&hands.space, hash),
        false => b.put_blob(&hands.space, hash, &record),
    }
}
