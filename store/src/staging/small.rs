//! Small blobs: many at once, each whole, with one barrier and one commit for all.
//!
//! Invariant: as for large ones, bytes and names are durable before the commit that calls the blobs
//! complete. A kill before it costs the batch, which is bounded by whoever made it.

use std::os::unix::fs::FileExt;

use bytes::Bytes;
use sluice_protocol::ids::BlobHash;
use sluice_protocol::limits::GROUP_BYTES;

use super::{Staging, StagingError, part_name, part_place};
use crate::catalog::{CatalogError, Located};
use crate::lake::{Fingerprint, Lake};
use crate::outboard;

struct Stored {
    hash: BlobHash,
    size: u64,
    print: Fingerprint,
    tree: Vec<u8>,
}

impl Staging {
    /// Stores whole blobs; each is hashed again, and one that is not what it is called fails all.
    pub fn put_small(&self, blobs: &[(BlobHash, Bytes)]) -> Result<(), StagingError> {
        if blobs.is_empty() {
            return Ok(());
        }
        let stored = blobs.iter().map(|(hash, bytes)| self.write_part(hash, bytes)).collect::<Result<Vec<_>, _>>()?;
        let shared = &self.0;
        shared.folder.sync_all().map_err(|e| shared.failed("", e))?;
        shared.catalog.write(|b| -> Result<(), CatalogError> {
            for blob in stored {
                if blob.size > GROUP_BYTES {
                    b.put_outboard(&blob.hash, &blob.tree)?;
                }
                let at = Located { place: part_place(&blob.hash), print: blob.print, unknown: Default::default() };
                b.add_place(&shared.space, &blob.hash, blob.size, at)?;
                b.remove_staging(&shared.space, &blob.hash)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn write_part(&self, hash: &BlobHash, bytes: &[u8]) -> Result<Stored, StagingError> {
        let (root, tree) = outboard::of_bytes(bytes);
        if root != *hash {
            return Err(StagingError::Damaged { hash: *hash });
        }
        let (shared, name, size) = (&self.0, part_name(hash), bytes.len() as u64);
        let failed = |e| shared.full_or(hash, size, e);
        let file = shared.folder.file_rw(&name, true).map_err(failed)?;
        file.set_len(0).and_then(|()| file.write_all_at(bytes, 0)).map_err(failed)?;
        let print = Lake::print_of(&file).map_err(failed)?;
        Ok(Stored { hash: *hash, size, print, tree })
    }
}

#[cfg(test)]
mod tests {
    use sluice_protocol::ids::SpaceId;

    use super::*;
    use crate::catalog::{Catalog, Lookup};

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
            assert_eq!(reader.outboard(hash).unwrap().is_some(), bytes.len() > 16_384);
        }
        let lie = (BlobHash::of(b"other"), Bytes::from_static(b"this"));
        assert!(matches!(staging.put_small(&[lie]), Err(StagingError::Damaged { .. })));
    }
}
