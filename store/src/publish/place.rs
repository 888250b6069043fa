//! How one file gets its place in a section folder.
//!
//! Cheapest first: rename it out of staging, give a published file with the same mode and time a
//! second name, copy (by reflink where the file system can). Mode and time are set before the name
//! appears.
//!
//! Invariant: no name is taken that is in use, except a pointer that its format replaces; what is
//! linked or renamed fitted its fingerprint right before, what is copied is hashed on the way.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use sluice_protocol::ids::BlobHash;
use sluice_protocol::manifest::{Entry, Section};
use sluice_protocol::path::LakePath;

use super::PublishError;
use super::commit::{LiveFolders, record_places};
use super::hands::{Hands, SECTIONS_FOLDER};
use super::old::section_place;
use crate::blobs::{Fit, compare, prove_place};
use crate::catalog::{Located, Lookup, Reader};
use crate::disk;
use crate::durable::{Folder, Unsynced, ancestors};
use crate::lake::{Fingerprint, Lake, Place};
use crate::staging::{is_staged, part_name};

/// Permission bits of a published file whose entry says nothing.
const PLAIN_MODE: u32 = 0o444;
/// Places of a blob that are tried for a hard link, newest first.
const LINKS_TRIED_MAX: usize = 8;
/// Buffer of a copy, in bytes.
const COPY_BYTES: usize = 4 * 1024 * 1024;

/// The permission bits of an entry's published file: nobody writes, its owner reads.
pub(crate) fn published_mode(entry: &Entry) -> u32 {
    entry.mode.map_or(PLAIN_MODE, |mode| (mode & 0o777 & !0o222) | 0o400)
}

/// Whether a name may be in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Over {
    Nothing,
    /// A pointer of the format, which is replaced in one step while it is what planning saw there.
    Pointer(Fingerprint),
}

/// Where a blob lies now, and where the catalog had it when that was looked up.
#[derive(Debug, Default)]
pub(super) struct Lies {
    /// Length in bytes.
    pub size: u64,
    pub places: Vec<Located>,
    pub before: Vec<Located>,
}

/// What the catalog does not know yet of where blobs lie.
pub(super) type Blobs = HashMap<BlobHash, Lies>;
/// Files by device and inode.
pub(super) type Inodes = HashSet<(u64, u64)>;

/// Places files and remembers where blobs lie meanwhile.
pub(super) struct Placer<'h, 'a> {
    pub hands: &'h Hands<'a>,
    reader: Reader,
    /// Every blob that was looked at.
    known: HashMap<BlobHash, Known>,
    /// Inodes whose change time moved because of us, after their fingerprint was taken.
    touched: Inodes,
    unsynced: Unsynced,
    /// Copies made since the last barrier, below the sections.
    copies: Vec<LakePath>,
    /// The folder of the last file.
    near: Option<(LakePath, Folder)>,
}

/// Where a blob lies.
#[derive(Debug, Default)]
struct Known {
    /// Length in bytes.
    size: u64,
    staged: Option<Located>,
    /// Everywhere else; the newest last. One that comes twice counts as it came last.
    places: Vec<Located>,
    /// All of it as the catalog had it.
    before: Vec<Located>,
}

/// Where a file goes.
struct Spot<'f> {
    folder: &'f Folder,
    name: &'f str,
    place: Place,
    /// Below `.sluice/sections`.
    path: LakePath,
    shown: String,
    over: Over,
    /// The section's folder in the lake, and the path below it.
    section: Option<LakePath>,
    below: LakePath,
}

impl<'h, 'a> Placer<'h, 'a> {
    pub fn new(hands: &'h Hands<'a>, reader: Reader) -> Self {
        let (known, touched) = (HashMap::new(), HashSet::new());
        Self { hands, reader, known, touched, unsynced: Unsynced::default(), copies: vec![], near: None }
    }

    fn known(&mut self, hash: &BlobHash) -> Result<&mut Known, PublishError> {
        if !self.known.contains_key(hash) {
            let record = self.reader.blob(&self.hands.space, hash)?;
            let mut known = Known::default();
            if let Some(record) = record {
                known.size = record.size;
                known.before = record.places.clone();
                let (staged, places) = record.places.into_iter().partition(|at| is_staged(&at.place));
                known.staged = <Vec<Located>>::into_iter(staged).next();
                known.places = places;
            }
            self.known.insert(*hash, known);
        }
        Ok(self.known.get_mut(hash).expect("just inserted"))
    }

    /// Forgets a place whose file was replaced.
    pub fn forget(&mut self, hash: &BlobHash, place: &Place) -> Result<(), PublishError> {
        self.known(hash)?.places.retain(|at| at.place != *place);
        Ok(())
    }

    /// Hands over what was learned since the last time: where blobs lie now, and which inodes moved
    /// their change time. Everything must have been made durable before.
    pub fn take(&mut self) -> (Blobs, Inodes) {
        let blobs = std::mem::take(&mut self.known).into_iter().map(|(hash, known)| {
            let newest_first = known.places.into_iter().rev();
            let mut seen = HashSet::new();
            let mut places: Vec<Located> = newest_first.filter(|at| seen.insert(at.place.clone())).collect();
            places.reverse();
            places.extend(known.staged);
            (hash, Lies { size: known.size, places, before: known.before })
        });
        (blobs.collect(), std::mem::take(&mut self.touched))
    }

    /// Makes what was placed so far durable and records where it lies, so that a stop after this
    /// costs nothing. Only for folders that no reader sees: `live` is what readers see now.
    pub fn save(&mut self, live: &LiveFolders, shown: &str) -> Result<(), PublishError> {
        let hands = self.hands;
        self.flush(shown)?;
        if self.known.is_empty() {
            return Ok(());
        }
        let (blobs, touched) = self.take();
        hands.commit("places", |b| record_places(b, hands, live, &blobs, &touched))?;
        self.reader = hands.catalog.read()?;
        Ok(())
    }

    /// Makes what was placed so far durable.
    ///
    /// When that fails the copies go: nothing but this disk has ever held them, and a later run that
    /// read them would read the system's memory.
    pub fn flush(&mut self, what: &str) -> Result<(), PublishError> {
        let hands = self.hands;
        let flushed = hands.flush(&mut self.unsynced, &hands.sections, what);
        let copies = std::mem::take(&mut self.copies);
        if flushed.is_err() {
            for path in &copies {
                let folder = hands.sections.descend(path.parent().as_ref());
                // A disk that cannot even forget a name is reported by the first error all the same.
                let _ = folder.and_then(|folder| folder.remove(path.file_name()));
            }
        }
        flushed
    }

    /// Folders and links below the sections that were made without a file.
    pub fn made_in(&mut self, folders: impl IntoIterator<Item = Option<LakePath>>) {
        folders.into_iter().for_each(|folder| self.unsynced.name_in(folder));
    }

    /// Blobs that were looked at since the last [`Placer::save`].
    pub fn pending(&self) -> usize {
        self.known.len()
    }

    /// Whether the blob lies, proven, at this very place.
    pub fn is_at(&mut self, hash: &BlobHash, place: &Place) -> Result<bool, PublishError> {
        let lake = self.hands.lake;
        let at = self.known(hash)?.places.iter().rev().find(|at| at.place == *place);
        Ok(at.is_some_and(|at| crate::blobs::fit_of(lake, at) == Fit::Same))
    }

    /// Takes note of a file that an earlier run placed and that was hashed again.
    pub fn found(&mut self, hash: &BlobHash, size: u64, place: Place) -> Result<(), PublishError> {
        // That run may have been killed before its barrier.
        below_sections(&place).iter().for_each(|path| self.unsynced.file(path));
        let print = prove_place(self.hands.lake, &place, size, hash)
            .ok_or_else(|| PublishError::BlobGone { path: place.to_string(), hash: *hash })?;
        self.known(hash)?.places.push(Located { place, print, unknown: Default::default() });
        Ok(())
    }

    /// Gives a file that an earlier run placed the mode and time of its entry, if it has not: a power
    /// loss may keep the name and take those. Says whether it had to.
    pub fn dress_again(&mut self, entry: &Entry, place: &Place) -> Result<bool, PublishError> {
        let (hands, shown) = (self.hands, place.to_string());
        let failed = |e| hands.failed(&shown, e);
        let file = hands.lake.open_place(place).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let print = Fingerprint::of(&meta);
        let time_fits = entry.mtime_ns.is_none_or(|ns| ns == print.mtime_ns);
        if meta.mode() & 0o7777 == published_mode(entry) && time_fits {
            return Ok(false);
        }
        hands.dress(&file, published_mode(entry), entry.mtime_ns, &shown)?;
        self.touched.insert((print.dev, print.inode));
        below_sections(place).iter().for_each(|path| self.unsynced.file(path));
        Ok(true)
    }

    /// Puts the file `entry` of `section` into its folder.
    pub fn place(&mut self, s: &Section, folder: &str, entry: &Entry, over: Over) -> Result<(), PublishError> {
        let (section, text) = (folder, format!("{folder}/{}", entry.path));
        let path = LakePath::parse(&text).map_err(|source| PublishError::Path { path: text, source })?;
        let parent = path.parent().expect("a section folder is above");
        let folder = match self.near.take() {
            Some((near, folder)) if near == parent => folder,
            _ => {
                self.unsynced.name_in(Some(parent.clone()));
                for above in ancestors(&parent) {
                    self.unsynced.name_in(above);
                }
                self.hands.section_folder(&parent)?
            }
        };
        let spot = Spot {
            folder: &folder,
            name: entry.path.file_name(),
            place: section_place(section, &entry.path)?,
            shown: format!(".sluice/sections/{path}"),
            path,
            over,
            section: s.path.clone(),
            below: entry.path.clone(),
        };
        let print = self.fill(&spot, entry)?;
        let hash = entry.hash.unwrap_or(BlobHash([0; 32]));
        let at = Located { place: spot.place, print, unknown: Default::default() };
        self.known(&hash)?.places.push(at);
        self.near = Some((parent, folder));
        Ok(())
    }

    fn fill(&mut self, spot: &Spot<'_>, entry: &Entry) -> Result<Fingerprint, PublishError> {
        let hash = entry.hash.unwrap_or(BlobHash([0; 32]));
        if let Some(print) = self.take_staged(spot, entry, &hash)? {
            return Ok(print);
        }
        let known = &self.known(&hash)?.places;
        let newest: Vec<Located> = known.iter().rev().take(LINKS_TRIED_MAX).cloned().collect();
        if spot.over == Over::Nothing
            && let Some(print) = self.by_link(spot, entry, &hash, &newest)?
        {
            return Ok(print);
        }
        let oldest = self.known(&hash)?.places.iter().take(LINKS_TRIED_MAX);
        let some: Vec<Located> = newest.into_iter().chain(oldest.cloned()).collect();
        self.by_copy(spot, entry, &hash, &some)
    }

    /// Opens a place that still holds the blob; `None` when it does not.
    fn open_proven(&self, at: &Located, hash: &BlobHash, size: u64) -> Option<(File, Fingerprint)> {
        let file = self.hands.lake.open_place(&at.place).ok()?;
        let print = Lake::print_of(&file).ok()?;
        let fits = compare(&at.print, &print) == Fit::Same
            || self.touched.contains(&(print.dev, print.inode)) && compare(&at.print, &print) == Fit::Touched
            || prove_place(self.hands.lake, &at.place, size, hash).is_some();
        fits.then_some((file, print))
    }

    fn take_staged(
        &mut self,
        spot: &Spot<'_>,
        entry: &Entry,
        hash: &BlobHash,
    ) -> Result<Option<Fingerprint>, PublishError> {
        let Some(at) = self.known(hash)?.staged.clone() else { return Ok(None) };
        let hands = self.hands;
        let Ok((file, print)) = hands.staging.file_seen(&part_name(hash)) else { return Ok(None) };
        if compare(&at.print, &print) != Fit::Same && prove_place(hands.lake, &at.place, entry.size, hash).is_none() {
            return Ok(None);
        }
        hands.dress(&file, published_mode(entry), entry.mtime_ns, &spot.shown)?;
        self.put(&hands.staging, &part_name(hash), spot)?;
        self.known(hash)?.staged = None;
        let print = Lake::print_of(&file).map_err(|e| hands.failed(&spot.shown, e))?;
        self.unsynced.file(&spot.path);
        Ok(Some(print))
    }

    fn put(&self, from: &Folder, name: &str, spot: &Spot<'_>) -> Result<(), PublishError> {
        match &spot.over {
            Over::Nothing => self.hands.rename((from, name), (spot.folder, spot.name), &spot.shown),
            Over::Pointer(seen) => {
                self.check_unchanged(seen, spot)?;
                self.hands.replace((from, name), (spot.folder, spot.name), &spot.shown)
            }
        }
    }

    /// A second look, right before a pointer is replaced: a person may have edited it since the plan.
    fn check_unchanged(&self, seen: &Fingerprint, spot: &Spot<'_>) -> Result<(), PublishError> {
        let now = spot.folder.look(spot.name).map_err(|e| self.hands.failed(&spot.shown, e))?;
        let what = match now.map(|now| compare(seen, &now.print)) {
            // Links that we made meanwhile move the change time.
            Some(Fit::Same | Fit::Touched) => return Ok(()),
            Some(Fit::Other) => "was changed here",
            None => "was removed",
        };
        let name = |path: Option<LakePath>| path.map_or_else(|| ".".to_string(), |p| p.to_string());
        Err(PublishError::Diverged { section: name(spot.section.clone()), path: spot.below.to_string(), what })
    }

    fn by_link(
        &mut self,
        spot: &Spot<'_>,
        entry: &Entry,
        hash: &BlobHash,
        newest: &[Located],
    ) -> Result<Option<Fingerprint>, PublishError> {
        let hands = self.hands;
        for at in newest {
            let Place::Own(path) = &at.place else { continue };
            if path.names().next() != Some(SECTIONS_FOLDER) {
                continue;
            }
            let Some((file, before)) = self.open_proven(at, hash, entry.size) else { continue };
            let mode = file.metadata().map_err(|e| hands.failed(&spot.shown, e))?.mode() & 0o7777;
            let time_fits = entry.mtime_ns.is_none_or(|ns| ns == before.mtime_ns);
            if mode != published_mode(entry) || !time_fits {
                continue;
            }
            let failed = |e| hands.failed(&spot.shown, e);
            let from = hands.own.descend(path.parent().as_ref()).map_err(failed)?;
            match hands.hard_link((&from, path.file_name()), (spot.folder, spot.name)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(failed(e)),
                // Too many links, or none at all here: copy.
                Err(_) => continue,
            }
            let now = spot.folder.look(spot.name).map_err(failed)?;
            let same = now.filter(|seen| compare(&before, &seen.print) != Fit::Other);
            let Some(seen) = same else {
                // Someone changed or replaced the file between the look and the link.
                hands.remove(spot.folder, spot.name, &spot.shown)?;
                continue;
            };
            self.touched.insert((seen.print.dev, seen.print.inode));
            self.unsynced.name_in(spot.path.parent());
            return Ok(Some(seen.print));
        }
        Ok(None)
    }

    fn by_copy(
        &mut self,
        spot: &Spot<'_>,
        entry: &Entry,
        hash: &BlobHash,
        known: &[Located],
    ) -> Result<Fingerprint, PublishError> {
        let hands = self.hands;
        let failed = |e| hands.failed(&spot.shown, e);
        let name = format!("{hash}.copy");
        for at in known {
            let Some((source, _)) = self.open_proven(at, hash, entry.size) else { continue };
            let copy = hands.copy_target(&name)?;
            if !copy_bytes(&source, &copy, entry.size, hash).map_err(failed)? {
                continue;
            }
            hands.dress(&copy, published_mode(entry), entry.mtime_ns, &spot.shown)?;
            self.put(&hands.staging, &name, spot)?;
            let print = Lake::print_of(&copy).map_err(failed)?;
            self.unsynced.file(&spot.path);
            self.copies.push(spot.path.clone());
            return Ok(print);
        }
        Err(PublishError::BlobGone { path: spot.shown.clone(), hash: *hash })
    }
}

/// Copies a blob; `false` when the bytes were not the blob.
pub(super) fn copy_bytes(from: &File, to: &File, size: u64, hash: &BlobHash) -> io::Result<bool> {
    if disk::clone_blocks(SECTIONS_FOLDER, to, from).is_ok() {
        return Ok(crate::blobs::hash_file(to, size)? == *hash);
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; COPY_BYTES.min(size.max(1) as usize)];
    let mut at = 0;
    while at < size {
        let n = (size - at).min(buffer.len() as u64) as usize;
        match from.read_exact_at(&mut buffer[..n], at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        hasher.update_rayon(&buffer[..n]);
        disk::write_all_at(SECTIONS_FOLDER, to, &buffer[..n], at)?;
        at += n as u64;
    }
    Ok(hasher.finalize().as_bytes() == &hash.0)
}

/// The path of a place below `.sluice/sections`.
fn below_sections(place: &Place) -> Option<LakePath> {
    let Place::Own(path) = place else { return None };
    LakePath::parse(path.as_str().strip_prefix(SECTIONS_FOLDER)?.strip_prefix('/')?).ok()
}
