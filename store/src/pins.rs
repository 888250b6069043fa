//! Keeps the bytes of a snapshot when its files leave the lake.
//!
//! A file that its format writes once is hard-linked below `.sluice/objects/`; one that may change
//! in place is cloned where the file system can, and copied only when asked for. A hard link is a
//! claim, not a copy: whoever writes into the file writes into the pin. What is served is verified.
//!
//! Linking and unlinking change the ctime of a file, so its fingerprint is taken anew afterwards and
//! nothing is read again for it. A kill between the link and the commit costs one more reading of
//! the files of one batch, never a wrong record: the new fingerprint is only believed if nothing but
//! the ctime differs.
//!
//! Invariant: a pin that the catalog knows held the blob's bytes when it was made and its name is
//! durable; where nothing can be pinned, that is a fact in the report and no error.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek};

use rustix::io::Errno;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::manifest::{EntryKind, Manifest};
use sluice_protocol::path::LakePath;
use sluice_protocol::stages::write_once;

use crate::catalog::{Batch, Catalog, CatalogError, Located, Lookup, Reader};
use crate::disk::{self, Room};
use crate::durable::{self, Folder, Kind};
use crate::lake::{Fingerprint, Lake, Place};
use crate::scan::{stat_file, tables::read_entries};
use crate::watch::Watch;

/// Folder of the pins, below `.sluice`.
const OBJECTS: &str = "objects";
/// The room of their changes.
const PINS: Room = "pins";
/// Pins that are committed together.
const BATCH_PINS: usize = 512;
/// Buffer of a copy, in bytes.
const COPY_BYTES: usize = 1024 * 1024;
/// After so many refusals without a success nothing more is tried.
const REFUSALS_MAX: u64 = 16;

/// How pins are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PinOptions {
    /// Copy files that can neither be linked nor cloned: costs their space once more.
    pub copy: bool,
}

/// What pinning a snapshot did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PinReport {
    /// Hard links made.
    pub linked: u64,
    /// Clones made, which share their blocks with the lake.
    pub cloned: u64,
    /// Copies made.
    pub copied: u64,
    /// Bytes of those copies.
    pub copied_bytes: u64,
    /// Blobs that were pinned before.
    pub already: u64,
    /// Blobs that are not pinned: when their files change, the snapshot loses them.
    pub unpinned: u64,
    /// Their bytes.
    pub unpinned_bytes: u64,
    /// Why nothing can be pinned in this lake, if so.
    pub unavailable: Option<String>,
}

/// Why pinning stopped.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("the disk is full: `{path}` could not be kept")]
    DiskFull { path: String },
    #[error("`{path}` could not be kept: {source}")]
    Io { path: String, source: io::Error },
}

fn failed(path: impl ToString, source: io::Error) -> PinError {
    let path = path.to_string();
    if durable::is_full(&source) { PinError::DiskFull { path } } else { PinError::Io { path, source } }
}

/// The place of a blob's pin.
pub fn pin_place(hash: &BlobHash) -> Place {
    let text = hash.to_string();
    let path = format!("{OBJECTS}/{}/{text}", &text[..2]);
    Place::Own(LakePath::parse(&path).expect("hexadecimal digits make a path"))
}

/// Pins the files of a snapshot whose manifest and pages are in the catalog.
pub fn pin(
    lake: &Lake,
    space: &SpaceId,
    catalog: &Catalog,
    manifest: &Manifest,
    options: PinOptions,
    watch: &dyn Watch,
) -> Result<PinReport, PinError> {
    let unavailable = |reason: String| PinReport { unavailable: Some(reason), ..PinReport::default() };
    let own = match lake.own() {
        Ok(own) => own,
        Err(e) => return Ok(unavailable(e.to_string())),
    };
    let opened = Folder::of(own, PINS).and_then(|own| {
        let (objects, _) = own.make(OBJECTS)?;
        Ok((own, objects))
    });
    let (own, objects) = match opened {
        Ok(both) => both,
        Err(e) if is_refusal(&e) => return Ok(unavailable(e.to_string())),
        Err(e) => return Err(failed(OBJECTS, e)),
    };
    let top = Folder::of(lake.dir(), PINS).map_err(|e| failed(".", e))?;
    let reader = catalog.read()?;
    let report = PinReport::default();
    let mut pinner = Pinner {
        lake,
        space,
        catalog,
        reader,
        options,
        top,
        own,
        objects,
        clones: true,
        made: vec![],
        unpinned: HashMap::new(),
        refused: None,
        report,
    };
    let mut pinned = HashSet::new();
    for section in &manifest.sections {
        for entry in read_entries(&pinner.reader, space, section)? {
            let (EntryKind::File, Some(hash)) = (entry.kind, entry.hash) else { continue };
            if watch.cancelled() || pinner.hopeless() {
                return pinner.finish();
            }
            let Ok(path) = section.lake_path(&entry.path) else { continue };
            // An empty blob can always be made.
            if entry.size > 0 && !pinned.contains(&hash) {
                let once = write_once(section.kind, &entry.path);
                if pinner.one(&path, &hash, once)? {
                    pinned.insert(hash);
                }
            }
        }
    }
    pinner.finish()
}

/// A pin that was made and is not committed yet.
struct Made {
    hash: BlobHash,
    size: u64,
    /// The lake file's fingerprint before and after a hard link; none for clones and copies.
    lake: Option<(Fingerprint, Fingerprint)>,
    pin: Fingerprint,
}

struct Pinner<'a> {
    lake: &'a Lake,
    space: &'a SpaceId,
    catalog: &'a Catalog,
    reader: Reader,
    options: PinOptions,
    top: Folder,
    /// `.sluice`.
    own: Folder,
    objects: Folder,
    /// Whether the file system may know how to clone.
    clones: bool,
    made: Vec<Made>,
    /// Blobs that no file of the snapshot could be pinned for so far, and their bytes.
    unpinned: HashMap<BlobHash, u64>,
    /// Why links are refused.
    refused: Option<(String, u64)>,
    report: PinReport,
}

impl Pinner<'_> {
    /// Pins one blob by the file at `path`. Returns whether it is pinned now.
    fn one(&mut self, path: &LakePath, hash: &BlobHash, once: bool) -> Result<bool, PinError> {
        let Some(blob) = self.reader.blob(self.space, hash)? else { return Ok(false) };
        let (own, place) = (pin_place(hash), Place::Lake(path.clone()));
        let is_recorded = blob.places.iter().any(|p| p.place == own);
        if !once && !is_recorded && !self.clones && !self.options.copy {
            // There is no way left to pin it: a lake of very many such files is not asked about each.
            let at = blob.places.iter().find(|p| p.place == place);
            self.unpinned.extend(at.map(|at| (*hash, at.print.size)));
            return Ok(false);
        }
        let text = hash.to_string();
        let (sub, _) = self.objects.make(&text[..2]).map_err(|e| failed(path, e))?;
        let there = sub.look(&text).map_err(|e| failed(path, e))?;
        if there.is_some_and(|t| blob.places.iter().any(|p| p.place == own && p.print == t.print)) {
            self.report.already += 1;
            return Ok(true);
        }
        let Some(at) = blob.places.iter().find(|p| p.place == place) else { return Ok(false) };
        if stat_file(self.lake, path).map(|(print, _)| print).as_ref() != Some(&at.print) {
            return Ok(false);
        }
        let linked = if once { self.link(path, &at.print, &sub, &text) } else { Ok(None) };
        let pinned = match linked {
            Ok(Some(after)) => {
                self.report.linked += 1;
                Some((Some((at.print.clone(), after.clone())), after))
            }
            Ok(None) => self.duplicate(path, &at.print, &sub, &text)?.map(|pin| (None, pin)),
            Err(e) if is_refusal(&e) => {
                self.refused.get_or_insert((e.to_string(), 0)).1 += 1;
                None
            }
            Err(e) => return Err(failed(path, e)),
        };
        let Some((lake, pin)) = pinned else {
            self.unpinned.insert(*hash, at.print.size);
            return Ok(false);
        };
        self.unpinned.remove(hash);
        self.made.push(Made { hash: *hash, size: at.print.size, lake, pin });
        if self.made.len() >= BATCH_PINS {
            self.commit()?;
        }
        Ok(true)
    }

    /// Hard-links the file. None when it has too many links, or is not the file we know any more.
    fn link(&self, path: &LakePath, before: &Fingerprint, sub: &Folder, name: &str) -> io::Result<Option<Fingerprint>> {
        let folder = match self.top.descend(path.parent().as_ref()) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let link = || folder.hard_link(path.file_name(), sub, name);
        match link() {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let there = sub.look(name)?.map(|t| t.print);
                if there.as_ref() != Some(before) {
                    // Left by a kill, or damaged: the lake's file is the one that was verified.
                    sub.remove(name)?;
                    link()?;
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::TooManyLinks | io::ErrorKind::NotFound) => return Ok(None),
            other => other?,
        }
        match sub.look(name)? {
            Some(t) if t.kind == Kind::File && same_but_ctime(before, &t.print) => Ok(Some(t.print)),
            _ => {
                sub.remove(name)?;
                Ok(None)
            }
        }
    }

    /// Clones the file, or copies it if that was asked for. None when neither can be or the file changed.
    fn duplicate(
        &mut self,
        path: &LakePath,
        before: &Fingerprint,
        sub: &Folder,
        name: &str,
    ) -> Result<Option<Fingerprint>, PinError> {
        if !self.clones && !self.options.copy {
            return Ok(None);
        }
        let named = |e| failed(path, e);
        let Ok(from) = self.lake.open_place(&Place::Lake(path.clone())) else { return Ok(None) };
        let partial = format!("{name}.tmp");
        sub.remove(&partial).map_err(named)?;
        let to = sub.file_rw(&partial, true).map_err(named)?;
        let cloned = self.clone_blocks(&to, &from);
        if !cloned && !self.options.copy {
            sub.remove(&partial).map_err(named)?;
            return Ok(None);
        }
        if !cloned && let Err(e) = copy_bytes(&from, &to) {
            sub.remove(&partial).map_err(named)?;
            return Err(named(e));
        }
        if Lake::print_of(&from).map_err(named)? != *before {
            sub.remove(&partial).map_err(named)?;
            return Ok(None);
        }
        let pin = settle(&to, sub, &partial, name).map_err(named)?;
        if cloned {
            self.report.cloned += 1;
        } else {
            self.report.copied += 1;
            self.report.copied_bytes += before.size;
        }
        Ok(Some(pin))
    }

    /// Shares the blocks; no more is tried once the file system said that it cannot.
    fn clone_blocks(&mut self, to: &File, from: &File) -> bool {
        const CANNOT: [Errno; 4] = [Errno::OPNOTSUPP, Errno::NOTTY, Errno::NOSYS, Errno::XDEV];
        if !self.clones {
            return false;
        }
        let cloned = disk::clone_blocks(PINS, to, from);
        let error = cloned.as_ref().err().and_then(io::Error::raw_os_error);
        self.clones = !CANNOT.iter().any(|e| error == Some(e.raw_os_error()));
        cloned.is_ok()
    }

    /// Whether every file was refused so far.
    fn hopeless(&self) -> bool {
        let made = self.report.linked + self.report.already;
        made == 0 && self.refused.as_ref().is_some_and(|(_, times)| *times >= REFUSALS_MAX)
    }

    fn commit(&mut self) -> Result<(), PinError> {
        let made = std::mem::take(&mut self.made);
        if made.is_empty() {
            return Ok(());
        }
        let subs: BTreeSet<String> = made.iter().map(|m| m.hash.to_string()[..2].to_string()).collect();
        for sub in &subs {
            let synced = self.objects.open(sub).and_then(|f| f.sync());
            synced.map_err(|e| failed(OBJECTS, e))?;
        }
        self.objects.sync().and_then(|()| self.own.sync()).map_err(|e| failed(OBJECTS, e))?;
        self.catalog.write(|batch| made.iter().try_for_each(|m| record(batch, self.space, m)))?;
        Ok(())
    }

    fn finish(mut self) -> Result<PinReport, PinError> {
        self.commit()?;
        self.report.unpinned = self.unpinned.len() as u64;
        self.report.unpinned_bytes = self.unpinned.values().sum();
        let made = self.report.linked + self.report.already + self.report.cloned + self.report.copied;
        if let Some((reason, _)) = self.refused
            && made == 0
        {
            self.report.unavailable = Some(reason);
        }
        Ok(self.report)
    }
}

/// Copies from where the file begins to where it ends.
fn copy_bytes(mut from: &File, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => disk::write_all_at(PINS, to, &buffer[..n], at)?,
        }
        at = from.stream_position()?;
    }
}

/// Makes a duplicate read-only and durable and gives it its name.
fn settle(file: &File, sub: &Folder, partial: &str, name: &str) -> io::Result<Fingerprint> {
    disk::set_mode(PINS, file, 0o444)?;
    disk::sync_all(PINS, file)?;
    sub.replace(partial, sub, name)?;
    Lake::print_of(file)
}

fn record(batch: &mut Batch, space: &SpaceId, made: &Made) -> Result<(), CatalogError> {
    if let Some((before, after)) = &made.lake {
        refresh(batch, space, &made.hash, before, after)?;
    }
    let at = Located { place: pin_place(&made.hash), print: made.pin.clone(), unknown: Default::default() };
    batch.add_place(space, &made.hash, made.size, at)
}

/// Takes a file's new fingerprint over wherever the old one is recorded. Several paths may be one
/// file; a file that is to be read again stays so.
fn refresh(
    batch: &mut Batch,
    space: &SpaceId,
    hash: &BlobHash,
    before: &Fingerprint,
    after: &Fingerprint,
) -> Result<(), CatalogError> {
    let Some(mut blob) = batch.blob(space, hash)? else { return Ok(()) };
    for at in blob.places.iter_mut().filter(|p| p.print == *before) {
        at.print = after.clone();
        let Place::Lake(path) = &at.place else { continue };
        if let Some(mut file) = batch.file(space, path)?
            && file.print == *before
        {
            file.print = after.clone();
            batch.put_file(space, path, &file)?;
        }
    }
    batch.put_blob(space, hash, &blob)
}

/// Whether two fingerprints are of one file whose bytes and times were left alone.
fn same_but_ctime(a: &Fingerprint, b: &Fingerprint) -> bool {
    *a == Fingerprint { ctime_ns: a.ctime_ns, ..b.clone() }
}

/// Whether the error says that this lake, or this file, cannot be linked, as opposed to a fault.
fn is_refusal(e: &io::Error) -> bool {
    const REFUSALS: [Errno; 7] =
        [Errno::PERM, Errno::ACCESS, Errno::ROFS, Errno::XDEV, Errno::OPNOTSUPP, Errno::NOSYS, Errno::NOTDIR];
    REFUSALS.iter().any(|r| e.raw_os_error() == Some(r.raw_os_error()))
}

/// Whether a place is a pin.
pub(crate) fn is_pin(place: &Place) -> bool {
    matches!(place, Place::Own(path) if path.names().next() == Some(OBJECTS))
}

/// The folder of the pins, if there is one.
fn objects(lake: &Lake) -> Result<Option<Folder>, PinError> {
    let Some(own) = lake.own_if_present() else { return Ok(None) };
    match Folder::of(own, PINS).and_then(|own| own.open(OBJECTS)) {
        Ok(objects) => Ok(Some(objects)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(OBJECTS, e)),
    }
}

/// The blobs that have a pin on the disk, recorded or not.
pub(crate) fn listed(lake: &Lake) -> Result<Vec<BlobHash>, PinError> {
    let Some(objects) = objects(lake)? else { return Ok(vec![]) };
    let mut found = Vec::new();
    for name in objects.names().map_err(|e| failed(OBJECTS, e))?.0 {
        let Ok(sub) = objects.open(&name) else { continue };
        let (names, _) = sub.names().map_err(|e| failed(OBJECTS, e))?;
        // A name in another folder than its own is not ours.
        let ours = names.iter().filter(|n| n.starts_with(&name));
        found.extend(ours.filter_map(|n| n.strip_suffix(".tmp").unwrap_or(n).parse::<BlobHash>().ok()));
    }
    found.dedup();
    Ok(found)
}

/// Files and bytes that removing these pins would free.
pub(crate) fn freed_by(lake: &Lake, pins: &[BlobHash]) -> Result<(u64, u64), PinError> {
    let Some(objects) = objects(lake)? else { return Ok((0, 0)) };
    let (mut files, mut bytes) = (0, 0);
    for hash in pins {
        let name = hash.to_string();
        let seen = objects.open(&name[..2]).and_then(|sub| sub.look(&name)).map_err(|e| failed(&name, e))?;
        files += 1;
        bytes += seen.filter(|s| s.links == 1).map_or(0, |s| s.print.size);
    }
    Ok((files, bytes))
}

/// Removes the pins of blobs that `keep` does not want. Returns how many were removed.
pub fn unpin_unreferenced(
    lake: &Lake,
    space: &SpaceId,
    catalog: &Catalog,
    keep: &dyn Fn(&BlobHash) -> bool,
) -> Result<u64, PinError> {
    let pins: Vec<BlobHash> = listed(lake)?.into_iter().filter(|hash| !keep(hash)).collect();
    if !pins.is_empty() {
        catalog.write(|b| pins.iter().try_for_each(|hash| b.remove_place(space, hash, &pin_place(hash))))?;
    }
    Ok(unlink(lake, space, catalog, &pins)?.0)
}

/// Removes pins that the catalog has forgotten; returns how many, and the bytes that are free again.
///
/// The lake's own names of the files get a new change time by it, and their records the fingerprint
/// that goes with it. A kill before that costs one more reading of these files.
pub(crate) fn unlink(
    lake: &Lake,
    space: &SpaceId,
    catalog: &Catalog,
    pins: &[BlobHash],
) -> Result<(u64, u64), PinError> {
    let Some(objects) = objects(lake)? else { return Ok((0, 0)) };
    let (mut files, mut bytes) = (0, 0);
    for some in pins.chunks(BATCH_PINS) {
        let mut moved = Vec::new();
        for hash in some {
            let name = hash.to_string();
            let named = |e| failed(&name, e);
            let sub = objects.open(&name[..2]).map_err(named)?;
            sub.remove(&format!("{name}.tmp")).map_err(named)?;
            let Some(seen) = sub.look(&name).map_err(named)? else { continue };
            sub.remove(&name).map_err(named)?;
            files += 1;
            if seen.links == 1 {
                bytes += seen.print.size;
            } else {
                moved.push((*hash, seen.print));
            }
        }
        if !moved.is_empty() {
            catalog.write(|b| moved.iter().try_for_each(|(hash, before)| take_over(lake, space, b, hash, before)))?;
        }
    }
    Ok((files, bytes))
}

/// Learns the fingerprint of a file that lost its second name.
fn take_over(
    lake: &Lake,
    space: &SpaceId,
    batch: &mut Batch,
    hash: &BlobHash,
    before: &Fingerprint,
) -> Result<(), CatalogError> {
    let Some(blob) = batch.blob(space, hash)? else { return Ok(()) };
    let now = blob.places.iter().filter(|p| p.print == *before).find_map(|p| match &p.place {
        Place::Lake(path) => stat_file(lake, path).map(|(print, _)| print),
        Place::Own(_) => None,
    });
    match now {
        Some(after) if same_but_ctime(before, &after) => refresh(batch, space, hash, before, &after),
        _ => Ok(()),
    }
}
