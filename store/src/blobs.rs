//! Where the bytes of a blob lie, and whether they can still be believed.
//!
//! The catalog says where a blob's bytes were when they were proven, with the fingerprint of that
//! moment. While the fingerprint is the same, the bytes are taken to be the same. When only the
//! change time moved (a link was made or removed, a mode set), the place is *touched*: readers that
//! verify every byte anyway may use it, all others hash it again first.
//!
//! Invariant: a blob is looked up in one space only. Knowing a hash opens nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bao_tree::BlockSize;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::path::LakePath;

use crate::catalog::{Batch, Catalog, CatalogError, FileRecord, LiveSection, Located, Lookup};
use crate::durable::{Folder, Kind};
use crate::lake::{Fingerprint, Lake, LakeError, Place};
use crate::publish::{SECTIONS_FOLDER, in_section};
use crate::staging::STAGING_FOLDER;

/// A blob with more places than this is crowded: its record is long, so it is read and written once for many of them.
pub(crate) const CROWDED_ABOVE: usize = 16;
/// The groups of our trees: 16 KiB.
pub const GROUPS: BlockSize = BlockSize::from_chunk_log(4);
/// Folder below `.sluice` for staged bytes that turned out to be damaged.
pub const QUARANTINE_FOLDER: &str = "quarantine";
/// Damaged files kept for inspection; beyond this they are removed.
const QUARANTINED_MAX: usize = 64;

/// How a place compares with what is recorded of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// The fingerprint is the same.
    Same,
    /// Only the change time differs.
    Touched,
    /// It is another file, or none.
    Other,
}

/// An open blob.
#[derive(Debug)]
pub struct OpenBlob {
    pub file: File,
    /// Length in bytes.
    pub size: u64,
    pub place: Place,
    /// `Same`, or `Touched` when no place was better: then the bytes need proof before they are used.
    pub fit: Fit,
    /// Places that no longer fit; the catalog should forget them.
    pub stale: Vec<Place>,
}

/// Why a blob cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("blob {0} is not here")]
    Unknown(BlobHash),
    #[error("blob {hash} is not where it was: {}", list(stale))]
    Lost { hash: BlobHash, stale: Vec<Place> },
    #[error("`{place}`: {source}")]
    Io { place: Place, source: io::Error },
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

fn list(places: &[Place]) -> String {
    let named: Vec<String> = places.iter().map(|p| format!("`{p}`")).collect();
    named.join(", ")
}

/// Compares two fingerprints of one place.
pub fn compare(recorded: &Fingerprint, now: &Fingerprint) -> Fit {
    if recorded == now {
        return Fit::Same;
    }
    let same_file = (recorded.dev, recorded.inode) == (now.dev, now.inode);
    if same_file && recorded.size == now.size && recorded.mtime_ns == now.mtime_ns { Fit::Touched } else { Fit::Other }
}

/// How a recorded place fits now.
pub fn fit_of(lake: &Lake, at: &Located) -> Fit {
    open_at(lake, at).map_or(Fit::Other, |(_, fit)| fit)
}

/// Folders that a [`Glance`] keeps open: a few files in turn lie in a few folders.
const NEAR_MAX: usize = 4;

/// Compares many recorded places with what lies there, without opening the files: the folders of the last
/// ones stay open.
pub struct Glance<'l> {
    lake: &'l Lake,
    /// A place in each of them; the last used one comes first.
    near: Vec<(Place, Folder)>,
}

impl<'l> Glance<'l> {
    pub fn new(lake: &'l Lake) -> Self {
        Self { lake, near: Vec::with_capacity(NEAR_MAX) }
    }

    /// As [`fit_of`].
    pub fn fit(&mut self, at: &Located) -> Fit {
        self.look(&at.place).map_or(Fit::Other, |print| compare(&at.print, &print))
    }

    /// The fingerprint of the file at a place; `None` when there is no file.
    pub fn look(&mut self, place: &Place) -> Option<Fingerprint> {
        let near = match self.near.iter().position(|(near, _)| are_beside(near, place)) {
            Some(at) => self.near.remove(at),
            None => {
                self.near.truncate(NEAR_MAX - 1);
                (place.clone(), Folder::from_file(self.lake.open_folder_of(place).ok()?, "glance"))
            }
        };
        self.near.insert(0, near);
        let (Place::Lake(path) | Place::Own(path)) = place;
        let seen = self.near[0].1.look(path.file_name()).ok()??;
        (seen.kind == Kind::File).then_some(seen.print)
    }
}

/// Whether two places lie in one folder.
fn are_beside(one: &Place, other: &Place) -> bool {
    let above = |path: &LakePath| path.as_str().rsplit_once('/').map_or(0, |(above, _)| above.len());
    match (one, other) {
        (Place::Lake(a), Place::Lake(b)) | (Place::Own(a), Place::Own(b)) => {
            a.as_str()[..above(a)] == b.as_str()[..above(b)]
        }
        _ => false,
    }
}

/// Opens a recorded place and compares; an unreadable place fits as `Other`.
fn open_at(lake: &Lake, at: &Located) -> Option<(File, Fit)> {
    let file = lake.open_place(&at.place).ok()?;
    let now = Lake::print_of(&file).ok()?;
    Some((file, compare(&at.print, &now)))
}

/// Opens a blob at the first place that fits, or else at one that was only touched.
pub fn open_blob(lake: &Lake, reader: &impl Lookup, space: &SpaceId, hash: &BlobHash) -> Result<OpenBlob, BlobError> {
    let record = reader.blob(space, hash)?.ok_or(BlobError::Unknown(*hash))?;
    let mut stale = Vec::new();
    let mut touched: Option<(File, Place)> = None;
    for at in &record.places {
        match open_at(lake, at) {
            Some((file, Fit::Same)) => {
                let (size, place) = (record.size, at.place.clone());
                return Ok(OpenBlob { file, size, place, fit: Fit::Same, stale });
            }
            Some((file, Fit::Touched)) => touched = touched.or(Some((file, at.place.clone()))),
            _ => stale.push(at.place.clone()),
        }
    }
    match touched {
        Some((file, place)) => Ok(OpenBlob { file, size: record.size, place, fit: Fit::Touched, stale }),
        None => Err(BlobError::Lost { hash: *hash, stale }),
    }
}

/// Makes sure that a blob is here and proven: hashes doubtful places again, forgets those that are
/// not the blob. `false` when no place is left; then it must be fetched.
pub fn settle(lake: &Lake, catalog: &Catalog, space: &SpaceId, hash: &BlobHash) -> Result<bool, BlobError> {
    let Some(record) = catalog.read()?.blob(space, hash)? else { return Ok(false) };
    let fits: Vec<Fit> = record.places.iter().map(|at| fit_of(lake, at)).collect();
    if fits.contains(&Fit::Same) {
        return Ok(true);
    }
    let mut kept = Vec::new();
    for (at, fit) in record.places.iter().zip(fits) {
        // In our own folder a set time is our doing: publishing may have been stopped half-way.
        let worth_it = fit == Fit::Touched || matches!(at.place, Place::Own(_));
        if worth_it && let Some(print) = prove_place(lake, &at.place, record.size, hash) {
            kept.push(Located { place: at.place.clone(), print, unknown: Default::default() });
        }
    }
    catalog.write(|b| {
        for at in &record.places {
            match kept.iter().find(|k| k.place == at.place) {
                Some(fresh) => b.add_place(space, hash, record.size, fresh.clone())?,
                None => b.remove_place(space, hash, &at.place)?,
            }
        }
        Ok::<_, CatalogError>(())
    })?;
    Ok(!kept.is_empty())
}

/// Hashes a place; its fingerprint when the bytes are the blob and did not change meanwhile.
pub(crate) fn prove_place(lake: &Lake, place: &Place, size: u64, hash: &BlobHash) -> Option<Fingerprint> {
    let file = lake.open_place(place).ok()?;
    let before = Lake::print_of(&file).ok()?;
    if before.size != size {
        return None;
    }
    let root = hash_file(&file, size).ok()?;
    let after = Lake::print_of(&file).ok()?;
    (root == *hash && before == after).then_some(after)
}

/// Takes a damaged place of a blob out of use, so that nothing serves or reuses it and the blob is
/// fetched again.
///
/// Staged bytes and pins are moved to `.sluice/quarantine`. A published file is marked: the next sync
/// makes its section anew, and moves the file away then. A file of an owner's lake is left as it is,
/// for people to look at.
pub fn quarantine(
    lake: &Lake,
    catalog: &Catalog,
    space: &SpaceId,
    hash: &BlobHash,
    place: &Place,
) -> Result<(), BlobError> {
    let known = catalog.read()?.blob(space, hash)?.map_or(vec![], |b| b.places);
    let recorded = known.iter().find(|at| at.place == *place).map(|at| (at.print.dev, at.print.inode));
    let inode = inode_at(lake, place);
    if recorded.is_some() && recorded != inode {
        // Another file has the name now. What was recorded may live on under other names, unharmed.
        return Ok(catalog.write(|b| b.remove_place(space, hash, place))?);
    }
    // Other names of the same file hold the same bytes.
    let same = |at: &&Located| inode.is_some() && inode_at(lake, &at.place) == inode;
    let mut places: Vec<Place> = known.iter().filter(same).map(|at| at.place.clone()).collect();
    if places.is_empty() {
        places.push(place.clone());
    }
    catalog.write(|b| {
        places.iter().try_for_each(|place| {
            b.remove_place(space, hash, place)?;
            mark_published(b, space, hash, place)
        })
    })?;
    places.iter().try_for_each(|place| put_away(lake, hash, place))
}

/// Device and inode of the file that lies at a place now.
fn inode_at(lake: &Lake, place: &Place) -> Option<(u64, u64)> {
    let print = Lake::print_of(&lake.open_place(place).ok()?).ok()?;
    Some((print.dev, print.inode))
}

/// Moves a staged part or a pin to the quarantine.
fn put_away(lake: &Lake, hash: &BlobHash, place: &Place) -> Result<(), BlobError> {
    let Place::Own(path) = place else { return Ok(()) };
    let ours = matches!(path.names().next(), Some(STAGING_FOLDER | "objects"));
    if !ours {
        return Ok(());
    }
    let named = |source| BlobError::Io { place: place.clone(), source };
    let own = Folder::of(lake.own()?, "quarantine").map_err(named)?;
    let (to, made) = own.make(QUARANTINE_FOLDER).map_err(named)?;
    if made {
        to.set_mode(0o700).map_err(named)?;
    }
    let from = own.descend(path.parent().as_ref()).map_err(named)?;
    if to.names().map_err(named)?.0.len() >= QUARANTINED_MAX {
        return from.remove(path.file_name()).map_err(named);
    }
    match from.replace(path.file_name(), &to, &hash.to_string()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(named(e)),
        _ => Ok(()),
    }
}

/// Marks a published file as damaged and its section as worn.
fn mark_published(b: &mut Batch, space: &SpaceId, hash: &BlobHash, place: &Place) -> Result<(), CatalogError> {
    let Some((folder, rest)) = in_section(place) else { return Ok(()) };
    let Some(mut live) = b.live(space)? else { return Ok(()) };
    let Some(section) = live.sections.iter_mut().find(|s| s.folder == folder) else { return Ok(()) };
    let path = LakePath::parse(rest).ok().map(|p| section.path.as_ref().map_or(Ok(p.clone()), |s| s.join(&p)));
    let Some(Ok(path)) = path else { return Ok(()) };
    let Some(record) = b.file(space, &path)?.filter(|r| r.hash == *hash) else { return Ok(()) };
    section.worn = true;
    b.put_file(space, &path, &FileRecord { damaged: true, ..record })?;
    b.set_live(space, &live)
}

/// The damaged file at `path` of a published section, if it was this blob: its good parts are of use.
pub fn salvageable(
    reader: &impl Lookup,
    space: &SpaceId,
    section: &LiveSection,
    path: &LakePath,
    hash: &BlobHash,
) -> Option<Place> {
    let in_lake = section.path.as_ref().map_or(Ok(path.clone()), |s| s.join(path)).ok()?;
    let damaged = reader.file(space, &in_lake).ok()?.is_some_and(|r| r.damaged && r.hash == *hash);
    let text = format!("{SECTIONS_FOLDER}/{}/{path}", section.folder);
    LakePath::parse(&text).ok().filter(|_| damaged).map(Place::Own)
}

/// The root of a file's first `size` bytes; an error when it is shorter.
pub(crate) fn hash_file(file: &File, size: u64) -> io::Result<BlobHash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES.min(size.max(1) as usize)];
    let mut at = 0;
    while at < size {
        let n = (size - at).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..n], at)?;
        hasher.update_rayon(&buffer[..n]);
        at += n as u64;
    }
    Ok(BlobHash(*hasher.finalize().as_bytes()))
}

/// Bytes read at once while hashing.
const READ_BYTES: usize = 4 * 1024 * 1024;
