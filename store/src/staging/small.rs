//! Small blobs, which arrive whole: written at once, proven in memory, recorded many in one commit.
//!
//! What is written is *unsettled* until one `syncfs` and one commit settle it with everything that was written
//! since the last time; so neither a file nor a request costs a sync.
//!
//! Invariant: as for large ones, bytes and names are durable before the commit that calls the blobs
//! complete. A kill before it costs nothing: [`Staging::adopt`] hashes what lies there. After a sync that
//! failed the parts go, since reading them back would show the system's memory.

use std::collections::HashMap;
use std::io;
use std::sync::MutexGuard;

use bytes::Bytes;
use rayon::prelude::*;
use sluice_protocol::ids::BlobHash;

use super::finish::{Proven, Tree};
use super::{CHECKPOINT_BYTES, STAGING_FOLDER, Staging, StagingError, lock, part_name, part_place, tree_name};
use crate::catalog::Lookup;
use crate::chunk::digest_file;
use crate::disk;
use crate::lake::{Fingerprint, Lake};
use crate::outboard;

/// Bytes and blobs that are settled together.
const SETTLED_BYTES: u64 = CHECKPOINT_BYTES / 2;
/// See [`SETTLED_BYTES`]: some 5 MiB of memory.
const SETTLED_BLOBS: usize = 16 * 1024;
/// Blobs that are written and not settled.
#[derive(Default)]
pub(super) struct Unsettled {
    blobs: HashMap<BlobHash, Proven>,
    bytes: u64,
}

impl Unsettled {
    fn add(&mut self, blob: Proven) {
        self.bytes += blob.size;
        self.blobs.insert(blob.hash, blob);
    }

    fn is_due(&self) -> bool {
        self.bytes >= SETTLED_BYTES || self.blobs.len() >= SETTLED_BLOBS
    }
}

impl Staging {
    /// Stores whole blobs, durable and recorded; each is hashed again, and one that is not what it is called
    /// fails all.
    pub fn put_small(&self, blobs: &[(BlobHash, Bytes)]) -> Result<(), StagingError> {
        self.write_small(blobs)?;
        self.settle()
    }

    /// As [`Staging::put_small`], but durable and recorded only after the next [`Staging::settle`]. When much is
    /// unsettled, that is done here.
    pub fn write_small(&self, blobs: &[(BlobHash, Bytes)]) -> Result<(), StagingError> {
        let trees: Vec<Vec<u8>> = blobs.par_iter().map(check).collect::<Result<_, _>>()?;
        for ((hash, bytes), tree) in blobs.iter().zip(trees) {
            let print = self.write_part(hash, bytes)?;
            let tree = if tree.is_empty() { Tree::None } else { Tree::Bytes(tree) };
            let size = bytes.len() as u64;
            lock(&self.0.unsettled).add(Proven { hash: *hash, size, print, tree, uncounted: size, beside: false });
        }
        self.settle_if_due()
    }

    fn settle_if_due(&self) -> Result<(), StagingError> {
        if !lock(&self.0.unsettled).is_due() {
            return Ok(());
        }
        let settling = lock(&self.0.settling);
        // Somebody else may have done it meanwhile.
        let due = lock(&self.0.unsettled).is_due();
        if due { self.settle_now(&settling) } else { Ok(()) }
    }

    /// Makes durable and records what was written by [`Staging::write_small`] so far.
    pub fn settle(&self) -> Result<(), StagingError> {
        self.settle_now(&lock(&self.0.settling))
    }

    /// One at a time.
    fn settle_now(&self, _: &MutexGuard<'_, ()>) -> Result<(), StagingError> {
        let shared = &self.0;
        let left = std::mem::take(&mut *lock(&shared.unsettled));
        let mut proven: Vec<Proven> = left.blobs.into_values().collect();
        let Some(first) = proven.first().map(|p| p.hash) else { return Ok(()) };
        proven.par_sort_unstable_by_key(|p| p.hash);
        if let Err(e) = self.sync_small(&proven) {
            for p in &proven {
                // A disk that cannot even forget a name is reported by the first error all the same.
                let _ = shared.folder.remove(&part_name(&p.hash));
            }
            return Err(shared.full_or(&first, left.bytes, e));
        }
        self.record(proven)
    }

    fn sync_small(&self, proven: &[Proven]) -> io::Result<()> {
        let folder = &self.0.folder;
        match proven {
            [one] => disk::sync_all(STAGING_FOLDER, folder.file(&part_name(&one.hash))?),
            _ => folder.sync_system(),
        }
    }

    /// Takes up the whole parts that a run wrote and did not live to record; returns how many. What is not the
    /// blob that it is called goes.
    pub fn adopt(&self) -> Result<u64, StagingError> {
        let shared = &self.0;
        let reader = shared.catalog.read()?;
        let mut found = 0;
        let mut failed = None;
        let each = &mut |name: &str| {
            let hash = name.strip_suffix(".part").and_then(|stem| stem.parse::<BlobHash>().ok());
            let Some(hash) = hash else { return true };
            let adopt = || -> Result<bool, StagingError> {
                let known = reader.blob(&shared.space, &hash)?.is_some_and(|b| {
                    let here = part_place(&hash);
                    b.places.iter().any(|at| at.place == here)
                });
                // A large blob in the making has its tree beside it, and goes on where it was.
                let beside = tree_name(&hash);
                let large = || shared.folder.look(&beside).map_err(|e| shared.failed(&beside, e));
                if known || large()?.is_some() || lock(&shared.open).contains_key(&hash) {
                    return Ok(false);
                }
                self.adopt_part(hash)
            };
            match adopt() {
                Ok(adopted) => found += u64::from(adopted),
                Err(e) => failed = Some(e),
            }
            failed.is_none()
        };
        shared.folder.each_name(each).map_err(|e| shared.failed("", e))?;
        failed.map_or(Ok(()), Err)?;
        self.settle()?;
        Ok(found)
    }

    fn adopt_part(&self, hash: BlobHash) -> Result<bool, StagingError> {
        let (shared, name) = (&self.0, part_name(&hash));
        let failed = |e| shared.failed(&name, e);
        let (file, print) = match shared.folder.file_seen(&name) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(failed(e)),
        };
        let digest = digest_file(&file, print.size, false).ok().filter(|d| d.hash == hash);
        let Some(digest) = digest.filter(|_| Lake::print_of(&file).is_ok_and(|now| now == print)) else {
            shared.folder.remove(&name).map_err(failed)?;
            return Ok(false);
        };
        let tree = if digest.outboard.is_empty() { Tree::None } else { Tree::Bytes(digest.outboard) };
        let size = print.size;
        lock(&shared.unsettled).add(Proven { hash, size, print, tree, uncounted: size, beside: false });
        self.settle_if_due().map(|()| true)
    }

    fn write_part(&self, hash: &BlobHash, bytes: &[u8]) -> Result<Fingerprint, StagingError> {
        let (shared, name) = (&self.0, part_name(hash));
        let failed = |e| shared.full_or(hash, bytes.len() as u64, e);
        let create = || disk::create(STAGING_FOLDER, &shared.folder, &name, 0o600);
        let file = match create() {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // Never into a file that is there: it may have a second, published name.
                shared.folder.remove(&name).and_then(|()| create())
            }
            other => other,
        };
        let file = file.map_err(failed)?;
        disk::write_all_at(STAGING_FOLDER, &file, bytes, 0).map_err(failed)?;
        Lake::print_of(&file).map_err(failed)
    }
}

/// The tree of a blob whose bytes are the ones it is named after.
fn check((hash, bytes): &(BlobHash, Bytes)) -> Result<Vec<u8>, StagingError> {
    let (root, tree) = outboard::of_bytes(bytes);
    if root == *hash { Ok(tree) } else { Err(StagingError::Damaged { hash: *hash }) }
}

#[cfg(test)]
mod tests {
    use sluice_protocol::ids::SpaceId;

    use super::*;
    use crate::catalog::Catalog;

    const SPACE: SpaceId = SpaceId([1; 32]);

    struct World {
        dir: tempfile::TempDir,
        lake: Lake,
        catalog: Catalog,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("lake")).unwrap();
            let lake = Lake::open(&dir.path().join("lake")).unwrap();
            let catalog = Catalog::open(dir.path()).unwrap();
            Self { dir, lake, catalog }
        }
        fn staging(&self) -> Staging {
            Staging::open(&self.lake, SPACE, &self.catalog).unwrap()
        }
        fn part(&self, hash: &BlobHash) -> std::path::PathBuf {
            self.dir.path().join("lake/.sluice/staging").join(part_name(hash))
        }
        fn is_here(&self, hash: &BlobHash) -> bool {
            crate::blobs::open_blob(&self.lake, &self.catalog.read().unwrap(), &SPACE, hash).is_ok()
        }
        fn moved(&self) -> u64 {
            self.catalog.read().unwrap().counter(super::super::MOVED_TOTAL).unwrap()
        }
    }

    fn blobs(sizes: impl IntoIterator<Item = usize>) -> Vec<(BlobHash, Bytes)> {
        let bytes = sizes.into_iter().map(|n| Bytes::from(vec![7u8; n]));
        bytes.map(|bytes| (BlobHash::of(&bytes), bytes)).collect()
    }

    #[test]
    fn whole_blobs_are_recorded_and_wrong_ones_refused() {
        let world = World::new();
        let staging = world.staging();
        let blobs = blobs([0usize, 1, 16_384, 16_385, 200_000]);
        staging.put_small(&blobs).unwrap();
        let reader = world.catalog.read().unwrap();
        for (hash, bytes) in &blobs {
            let open = crate::blobs::open_blob(&world.lake, &reader, &SPACE, hash).unwrap();
            assert_eq!(open.size, bytes.len() as u64);
            assert_eq!(reader.outboard(hash).unwrap().is_some(), bytes.len() as u64 > outboard::BLOCK_BYTES);
        }
        let lie = (BlobHash::of(b"other"), Bytes::from_static(b"this"));
        assert!(matches!(staging.put_small(&[lie]), Err(StagingError::Damaged { .. })));
    }

    #[test]
    fn what_is_written_counts_once_it_is_settled() {
        let world = World::new();
        let staging = world.staging();
        let blobs = blobs(1..100);
        staging.write_small(&blobs).unwrap();
        assert!(!world.is_here(&blobs[0].0));
        staging.settle().unwrap();
        assert!(blobs.iter().all(|(hash, _)| world.is_here(hash)));
        assert_eq!(world.moved(), (1..100).sum::<u64>());
    }

    #[test]
    fn much_is_settled_without_being_asked_for() {
        let world = World::new();
        let staging = world.staging();
        let many: Vec<(BlobHash, Bytes)> = (0..SETTLED_BLOBS as u32)
            .map(|n| Bytes::copy_from_slice(&n.to_le_bytes()))
            .map(|bytes| (BlobHash::of(&bytes), bytes))
            .collect();
        staging.write_small(&many).unwrap();
        assert!(world.is_here(&many[0].0));
    }

    #[test]
    fn what_a_killed_run_left_is_taken_up_if_it_is_right() {
        let world = World::new();
        let blobs = blobs([10, 20, 70_000]);
        world.staging().write_small(&blobs).unwrap();
        std::fs::write(world.part(&blobs[1].0), b"something else").unwrap();
        // As after a kill: nothing but the disk remembers.
        let staging = world.staging();
        assert_eq!(staging.adopt().unwrap(), 2);
        assert!(world.is_here(&blobs[0].0) && world.is_here(&blobs[2].0));
        assert!(!world.is_here(&blobs[1].0) && !world.part(&blobs[1].0).exists());
        assert_eq!(world.moved(), 70_010, "bytes that arrived are counted by whoever records them");
        assert_eq!(staging.adopt().unwrap(), 0, "what is recorded is not hashed again");
        // A large one in the making is none of its business.
        let large = BlobHash::of(b"large");
        let staged = staging.start(large, 100_000).unwrap();
        staged.write_leaf(0, &[1; 16_384]).unwrap();
        assert_eq!(world.staging().adopt().unwrap(), 0);
        assert!(world.part(&large).exists());
    }
}
