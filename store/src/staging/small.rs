//! Small blobs: many at once, each whole, with one barrier and one commit for all.
//!
//! Invariant: as for large ones, bytes and names are durable before the commit that calls the blobs
//! complete. A kill before it costs the batch, which is bounded by whoever made it.

use std::fs::File;
use std::io;

use bytes::Bytes;
use rayon::prelude::*;
use sluice_protocol::ids::BlobHash;

use super::finish::{Proven, Tree};
use super::{STAGING_FOLDER, Staging, StagingError, part_name};
use crate::disk;
use crate::outboard;

impl Staging {
    /// Stores whole blobs; each is hashed again, and one that is not what it is called fails all.
    pub fn put_small(&self, blobs: &[(BlobHash, Bytes)]) -> Result<(), StagingError> {
        let trees: Vec<Vec<u8>> = blobs.par_iter().map(check).collect::<Result<_, _>>()?;
        let shared = &self.0;
        let mut last = None;
        for (hash, bytes) in blobs {
            last = Some((hash, self.write_part(hash, bytes)?));
        }
        let Some((hash, file)) = last else { return Ok(()) };
        // Files are not kept open: a batch may have more of them than a process may open.
        let synced = if blobs.len() == 1 { disk::sync_all(STAGING_FOLDER, &file) } else { shared.folder.sync_system() };
        synced.map_err(|e| shared.full_or(hash, file.metadata().map_or(0, |m| m.len()), e))?;
        let mut proven = Vec::with_capacity(blobs.len());
        for ((hash, bytes), tree) in blobs.iter().zip(trees) {
            let name = part_name(hash);
            let gone = || io::Error::from(io::ErrorKind::NotFound);
            let seen = shared.folder.look(&name).and_then(|seen| seen.ok_or_else(gone));
            let print = seen.map_err(|e| shared.failed(&name, e))?.print;
            let tree = if tree.is_empty() { Tree::None } else { Tree::Bytes(tree) };
            proven.push(Proven { hash: *hash, size: bytes.len() as u64, print, tree, uncounted: bytes.len() as u64 });
        }
        self.record(proven)
    }

    fn write_part(&self, hash: &BlobHash, bytes: &[u8]) -> Result<File, StagingError> {
        let (shared, name) = (&self.0, part_name(hash));
        let failed = |e| shared.full_or(hash, bytes.len() as u64, e);
        // Never into a file that is there: it may have a second, published name.
        shared.folder.remove(&name).map_err(failed)?;
        let file = shared.folder.file_rw(&name, true).map_err(failed)?;
        disk::write_all_at(STAGING_FOLDER, &file, bytes, 0).map_err(failed)?;
        Ok(file)
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
    use crate::catalog::{Catalog, Lookup};
    use crate::lake::Lake;

    #[test]
    fn whole_blobs_are_recorded_and_wrong_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("lake")).unwrap();
        let lake = Lake::open(&dir.path().join("lake")).unwrap();
        let catalog = Catalog::open(dir.path()).unwrap();
        let space = SpaceId([1; 32]);
        let staging = Staging::open(&lake, space, &catalog).unwrap();
        let blobs: Vec<(BlobHash, Bytes)> = [0usize, 1, 16_384, 16_385, 200_000]
            .map(|n| Bytes::from(vec![7u8; n]))
            .map(|bytes| (BlobHash::of(&bytes), bytes))
            .to_vec();
        staging.put_small(&blobs).unwrap();
        let reader = catalog.read().unwrap();
        for (hash, bytes) in &blobs {
            let open = crate::blobs::open_blob(&lake, &reader, &space, hash).unwrap();
            assert_eq!(open.size, bytes.len() as u64);
            assert_eq!(reader.outboard(hash).unwrap().is_some(), bytes.len() as u64 > outboard::BLOCK_BYTES);
        }
        let lie = (BlobHash::of(b"other"), Bytes::from_static(b"this"));
        assert!(matches!(staging.put_small(&[lie]), Err(StagingError::Damaged { .. })));
    }
}
