//! Small blobs that a killed run wrote and did not live to record.
//!
//! Invariant: nothing is taken up that was not hashed as the disk has it. That a page of memory is right says
//! nothing: the sync that it was for may have failed, and told only the run that is dead.

use std::io;

use rustix::fs::Advice;
use sluice_protocol::ids::BlobHash;

use super::finish::{Proven, Tree};
use super::small::SMALL_BYTES_MAX;
use super::{Shared, Staging, StagingError, lock, part_name, part_place, tree_name};
use crate::catalog::{Lookup, Reader};
use crate::chunk::digest_file;
use crate::lake::Lake;

impl Staging {
    /// Takes up whole small parts that nobody recorded; returns how many. One that is not the blob that it is called
    /// goes; what cannot be read stays until the blob is wanted.
    pub fn adopt(&self) -> Result<u64, StagingError> {
        let shared = &self.0;
        let left = shared.orphans()?;
        if left.is_empty() {
            return Ok(0);
        }
        shared.folder.sync_system().map_err(|e| shared.failed("", e))?;
        let mut found = 0;
        for hash in left {
            found += u64::from(self.adopt_part(hash)?);
        }
        self.settle()?;
        Ok(found)
    }

    fn adopt_part(&self, hash: BlobHash) -> Result<bool, StagingError> {
        let (shared, name) = (&self.0, part_name(&hash));
        let Ok((file, print)) = shared.folder.file_seen(&name) else { return Ok(false) };
        if print.size > SMALL_BYTES_MAX {
            return Ok(false);
        }
        // Clean since the sync just now, so the system can let go of it.
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).map_err(|e| shared.failed(&name, io::Error::from(e)))?;
        let Ok(digest) = digest_file(&file, print.size, false) else { return Ok(false) };
        if digest.hash != hash || !Lake::print_of(&file).is_ok_and(|now| now == print) {
            shared.folder.remove(&name).map_err(|e| shared.failed(&name, e))?;
            return Ok(false);
        }
        let tree = if digest.outboard.is_empty() { Tree::None } else { Tree::Bytes(digest.outboard) };
        let size = print.size;
        self.wait(Proven { hash, size, print, tree, uncounted: size, beside: false }, file)?;
        self.settle_if_due().map(|()| true)
    }
}

impl Shared {
    /// The parts that nothing in the catalog knows, and that are not being filled.
    fn orphans(&self) -> Result<Vec<BlobHash>, StagingError> {
        let reader = self.catalog.read()?;
        let mut found = Vec::new();
        let mut failed = None;
        let each = &mut |name: &str| {
            let hash = name.strip_suffix(".part").and_then(|stem| stem.parse::<BlobHash>().ok());
            let Some(hash) = hash else { return true };
            match self.is_orphan(&reader, &hash) {
                Ok(true) => found.push(hash),
                Ok(false) => {}
                Err(e) => failed = Some(e),
            }
            failed.is_none()
        };
        self.folder.each_name(each).map_err(|e| self.failed("", e))?;
        failed.map_or(Ok(found), Err)
    }

    fn is_orphan(&self, reader: &Reader, hash: &BlobHash) -> Result<bool, StagingError> {
        let here = part_place(hash);
        let known = reader.blob(&self.space, hash)?.is_some_and(|b| b.places.iter().any(|at| at.place == here));
        // One in the making has its tree beside it and goes on where it was; one that is being swept has a record.
        let begun = || !matches!(self.folder.look(&tree_name(hash)), Ok(None));
        Ok(!known && reader.staging(&self.space, hash)?.is_none() && !begun() && !lock(&self.open).contains_key(hash))
    }
}
