//! Small blobs, which arrive whole: written at once, proven in memory, recorded many in one commit.
//!
//! What is written is *unsettled* until one `syncfs` and one commit settle it with everything that was written
//! since the last time; so neither a file nor a request costs a sync.
//!
//! Invariant: as for large ones, bytes and names are durable before the commit that calls the blobs
//! complete. A kill before it costs nothing: [`Staging::adopt`] hashes what lies there. After a sync that
//! failed the parts go, since reading them back would show the system's memory, and no later sync counts.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::MutexGuard;

use bytes::Bytes;
use rayon::prelude::*;
use sluice_protocol::ids::BlobHash;

use super::finish::{Proven, Tree};
use super::{CHECKPOINT_BYTES, STAGING_FOLDER, Shared, Staging, StagingError, lock, part_name, tree_name};
use crate::catalog::Lookup;
use crate::disk;
use crate::lake::{Fingerprint, Lake};
use crate::outboard;

/// Blobs up to this size, in bytes, are small: they are fetched whole and stored many together.
pub const SMALL_BYTES_MAX: u64 = 256 * 1024;
/// Bytes and blobs that are settled together.
const SETTLED_BYTES: u64 = CHECKPOINT_BYTES / 2;
/// See [`SETTLED_BYTES`]: some 5 MiB of memory.
const SETTLED_BLOBS: usize = 16 * 1024;
/// So few are synced one by one: a system that writes much for others need not write all of that first.
const SYNCED_SINGLY: usize = 8;

/// Blobs that are written and not settled.
#[derive(Default)]
pub(super) struct Unsettled {
    blobs: HashMap<BlobHash, Waiting>,
    bytes: u64,
    failed: Option<Failed>,
}

/// A blob that waits to be settled; the first few stay open, so that a failure to write them is not lost with the
/// last handle.
struct Waiting {
    proven: Proven,
    file: Option<File>,
}

/// A sync that failed. From then on nothing more is taken: the next sync would say that all is well, and mean only
/// what was written since.
struct Failed {
    hash: BlobHash,
    needed: u64,
    kind: io::ErrorKind,
    text: String,
}

impl Failed {
    fn again(&self, shared: &Shared) -> StagingError {
        shared.full_or(&self.hash, self.needed, io::Error::new(self.kind, self.text.clone()))
    }
}

impl Unsettled {
    fn add(&mut self, waiting: Waiting) {
        self.bytes += waiting.proven.size;
        self.blobs.insert(waiting.proven.hash, waiting);
    }

    fn is_due(&self) -> bool {
        self.bytes >= SETTLED_BYTES || self.blobs.len() >= SETTLED_BLOBS
    }

    fn take(&mut self) -> Vec<Waiting> {
        self.bytes = 0;
        let mut all: Vec<Waiting> = std::mem::take(&mut self.blobs).into_values().collect();
        all.sort_unstable_by_key(|w| w.proven.hash);
        all
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
    /// unsettled, that is done here. After a failure to settle nothing more is taken.
    pub fn write_small(&self, blobs: &[(BlobHash, Bytes)]) -> Result<(), StagingError> {
        let trees: Vec<Vec<u8>> = blobs.par_iter().map(check).collect::<Result<_, _>>()?;
        for ((hash, bytes), tree) in blobs.iter().zip(trees) {
            let (file, print) = self.write_part(hash, bytes)?;
            let tree = if tree.is_empty() { Tree::None } else { Tree::Bytes(tree) };
            let size = bytes.len() as u64;
            self.wait(Proven { hash: *hash, size, print, tree, uncounted: size, beside: false }, file)?;
        }
        self.settle_if_due()
    }

    /// Lets a written blob wait for the next settling.
    pub(super) fn wait(&self, proven: Proven, file: File) -> Result<(), StagingError> {
        let mut unsettled = lock(&self.0.unsettled);
        if let Some(failed) = &unsettled.failed {
            let error = failed.again(&self.0);
            drop(unsettled);
            // The sync that failed may have been for this one, too.
            self.forget(&proven.hash);
            return Err(error);
        }
        let file = (unsettled.blobs.len() < SYNCED_SINGLY).then_some(file);
        unsettled.add(Waiting { proven, file });
        Ok(())
    }

    pub(super) fn settle_if_due(&self) -> Result<(), StagingError> {
        if !lock(&self.0.unsettled).is_due() {
            return Ok(());
        }
        let settling = lock(&self.0.settling);
        // Somebody else may have done it meanwhile.
        let due = lock(&self.0.unsettled).is_due();
        if due { self.settle_now(&settling) } else { Ok(()) }
    }

    /// Makes durable and records what was written by [`Staging::write_small`] so far. Once it failed to make
    /// something durable, it fails for good.
    pub fn settle(&self) -> Result<(), StagingError> {
        self.settle_now(&lock(&self.0.settling))
    }

    /// One at a time.
    fn settle_now(&self, _: &MutexGuard<'_, ()>) -> Result<(), StagingError> {
        let all = {
            let mut unsettled = lock(&self.0.unsettled);
            if let Some(failed) = &unsettled.failed {
                return Err(failed.again(&self.0));
            }
            unsettled.take()
        };
        if all.is_empty() {
            return Ok(());
        }
        if let Err(e) = self.sync_small(&all) {
            return Err(self.spoil_small(&all, &e));
        }
        let proven: Vec<Proven> = all.into_iter().map(|w| w.proven).collect();
        self.record(&proven).inspect_err(|_| {
            // Durable they are: the next settling records them.
            let mut unsettled = lock(&self.0.unsettled);
            proven.into_iter().for_each(|proven| unsettled.add(Waiting { proven, file: None }));
        })
    }

    fn sync_small(&self, all: &[Waiting]) -> io::Result<()> {
        if all.len() > SYNCED_SINGLY || all.iter().any(|w| w.file.is_none()) {
            // This handle is older than what was written, so it hears of every failure.
            return self.0.folder.sync_system();
        }
        all.iter().filter_map(|w| w.file.as_ref()).try_for_each(|file| disk::sync_all(STAGING_FOLDER, file))
    }

    /// After a failed sync nothing is believed that it may have been for, what came in meanwhile included.
    fn spoil_small(&self, all: &[Waiting], e: &io::Error) -> StagingError {
        let (error, meanwhile) = {
            let mut unsettled = lock(&self.0.unsettled);
            let needed = all.iter().map(|w| w.proven.size).sum();
            let hash = all.first().map_or(BlobHash([0; 32]), |w| w.proven.hash);
            let failed = Failed { hash, needed, kind: e.kind(), text: e.to_string() };
            let error = failed.again(&self.0);
            unsettled.failed = Some(failed);
            (error, unsettled.take())
        };
        all.iter().chain(&meanwhile).for_each(|w| self.forget(&w.proven.hash));
        error
    }

    fn forget(&self, hash: &BlobHash) {
        // A disk that cannot even forget a name is reported by the first error all the same, and what stays is
        // read from the disk before anyone believes it.
        let _ = self.0.folder.remove(&part_name(hash));
    }

    fn write_part(&self, hash: &BlobHash, bytes: &[u8]) -> Result<(File, Fingerprint), StagingError> {
        let (shared, name) = (&self.0, part_name(hash));
        let failed = |e| shared.full_or(hash, bytes.len() as u64, e);
        let create = || disk::create(STAGING_FOLDER, &shared.folder, &name, 0o600);
        let file = match create() {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // Never into a file that is there: it may have a second, published name.
                self.clear_part(hash)?;
                create()
            }
            other => other,
        };
        let file = file.map_err(failed)?;
        disk::write_all_at(STAGING_FOLDER, &file, bytes, 0).map_err(failed)?;
        let print = Lake::print_of(&file).map_err(failed)?;
        Ok((file, print))
    }

    /// Removes a part, and first what would vouch for the one that takes its name.
    fn clear_part(&self, hash: &BlobHash) -> Result<(), StagingError> {
        let shared = &self.0;
        let recorded = shared.catalog.read()?.staging(&shared.space, hash)?.is_some();
        if recorded {
            shared.catalog.write(|b| b.remove_staging(&shared.space, hash))?;
        }
        for name in [tree_name(hash), part_name(hash)] {
            shared.folder.remove(&name).map_err(|e| shared.failed(&name, e))?;
        }
        Ok(())
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

    fn many(from: u32) -> Vec<(BlobHash, Bytes)> {
        let bytes = (from..from + 20).map(|n| Bytes::copy_from_slice(&n.to_le_bytes()));
        bytes.map(|bytes| (BlobHash::of(&bytes), bytes)).collect()
    }

    #[test]
    fn after_a_failed_sync_nothing_more_is_taken() {
        for (blobs, point) in [(many(0), "staging.sync-system@1=EIO"), (blobs([5, 6]), "staging.sync@1=EIO")] {
            let world = World::new();
            let staging = world.staging();
            staging.write_small(&blobs).unwrap();
            let fault = disk::faults::inject(world.dir.path(), point).unwrap();
            staging.settle().unwrap_err();
            assert_eq!(fault.fired(), 1, "{point}");
            drop(fault);
            // The next sync would succeed, and mean nothing for what was written before.
            let late = many(100);
            staging.write_small(&late).unwrap_err();
            staging.settle().unwrap_err();
            assert!(blobs.iter().chain(&late).all(|(hash, _)| !world.part(hash).exists()));
            assert_eq!(world.staging().adopt().unwrap(), 0);
            world.staging().put_small(&blobs).unwrap();
            assert!(blobs.iter().all(|(hash, _)| world.is_here(hash)));
        }
    }

    #[test]
    fn what_could_not_be_recorded_is_by_the_next() {
        let world = World::new();
        let staging = world.staging();
        let blobs = many(0);
        staging.write_small(&blobs).unwrap();
        let fault = disk::faults::inject(world.dir.path(), "catalog.commit@1=ENOSPC").unwrap();
        staging.settle().unwrap_err();
        drop(fault);
        assert!(!world.is_here(&blobs[0].0));
        staging.settle().unwrap();
        assert!(blobs.iter().all(|(hash, _)| world.is_here(hash)));
        assert_eq!(world.moved(), 80);
    }

    /// A blob that was begun in groups comes whole, and the power goes before it is settled.
    #[test]
    fn no_record_vouches_for_the_part_that_took_its_name() {
        let world = World::new();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 241) as u8).collect();
        let hash = BlobHash::of(&bytes);
        let staging = world.staging();
        let staged = staging.start(hash, bytes.len() as u64).unwrap();
        staged.write_leaf(0, &bytes[..32_768]).unwrap();
        staged.checkpoint().unwrap();
        drop((staged, staging));
        world.staging().write_small(&[(hash, bytes.clone().into())]).unwrap();
        std::fs::write(world.part(&hash), vec![0; bytes.len()]).unwrap();
        let staging = world.staging();
        let staged = staging.start(hash, bytes.len() as u64).unwrap();
        assert_eq!(staged.missing(0..u64::MAX).first(), Some(&(0..bytes.len() as u64)));
    }

    #[test]
    fn only_what_a_killed_run_left_is_taken_up() {
        let world = World::new();
        let staging = world.staging();
        let swept = blobs([10, 20]);
        staging.put_small(&swept).unwrap();
        let fault = disk::faults::inject(world.dir.path(), "staging.remove@1=EIO").unwrap();
        staging.sweep(&|_| false).unwrap_err();
        drop(fault);
        // What is larger than small, and what is no file.
        let large = vec![3; 300_000];
        std::fs::write(world.part(&BlobHash::of(&large)), &large).unwrap();
        std::fs::create_dir(world.part(&BlobHash::of(b"folder"))).unwrap();
        assert_eq!(world.staging().adopt().unwrap(), 0);
        assert_eq!(world.moved(), 30, "nothing is counted twice");
        std::fs::remove_dir(world.part(&BlobHash::of(b"folder"))).unwrap();
        world.staging().sweep(&|_| false).unwrap();
        assert_eq!(std::fs::read_dir(world.part(&swept[0].0).parent().unwrap()).unwrap().count(), 0);
        world.staging().put_small(&swept).unwrap();
        assert!(world.is_here(&swept[0].0));
    }
}
