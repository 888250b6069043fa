//! The end of staging: what proves that a blob is whole, and how that is recorded.
//!
//! Invariant: the part, its name and its tree are durable before the one commit that calls the blob
//! complete. Bytes that came as verified leaves are proven by a whole received tree; as soon as a
//! local copy took part, everything is hashed again.

use std::io;
use std::path::Path;

use sluice_protocol::ids::BlobHash;
use sluice_protocol::limits::GROUP_BYTES;

use super::{
    Inner, MOVED_TOTAL, STAGING_FOLDER, Staged, Staging, StagingError, lock, part_name, part_place, tree_name,
};
use crate::catalog::{FILE_MODE, FOLDER_MODE, Located, Lookup, TREE_INLINE_BYTES_MAX, TREES};
use crate::chunk::digest_file;
use crate::disk::{self, Partial};
use crate::lake::{Fingerprint, Lake};
use crate::outboard::{condense, outboard_bytes};

/// Buffers for streaming a tree, in bytes.
const COPY_BYTES: usize = 1024 * 1024;
/// Permission bits of a complete part.
const DONE_MODE: u32 = 0o600;

/// The tree of a proven blob.
pub(super) enum Tree {
    /// No tree: the blob is one block.
    None,
    Bytes(Vec<u8>),
    /// It lies durable at the catalog's path for it.
    InFile,
}

/// A blob that is proven and durable, and not recorded yet.
pub(super) struct Proven {
    pub hash: BlobHash,
    pub size: u64,
    pub print: Fingerprint,
    pub tree: Tree,
    /// Bytes received for it that nobody counted yet.
    pub uncounted: u64,
    /// Its received tree lies beside it.
    pub beside: bool,
}

impl Staged {
    /// Proves the blob and records it as complete; see [`Staging::finish_all`].
    pub fn finish(&self) -> Result<(), StagingError> {
        let failed = Staging(self.0.shared.clone()).finish_all(std::slice::from_ref(self))?;
        failed.into_iter().next().map_or(Ok(()), |(_, e)| Err(e))
    }

    fn prove(&self) -> Result<Proven, StagingError> {
        let inner = &self.0;
        self.check_sound()?;
        let missing: u64 = self.missing(0..u64::MAX).iter().map(|r| r.end - r.start).sum();
        if missing > 0 {
            return Err(StagingError::Incomplete { hash: inner.hash, missing });
        }
        let copied = lock(&inner.state).groups.any_copied();
        let failed = |e| inner.shared.failed(&part_name(&inner.hash), e);
        let received = !copied && inner.size > GROUP_BYTES && inner.sidecar.is_whole(&inner.hash).map_err(failed)?;
        let tree = if received {
            self.keep_received_tree()?
        } else {
            let found = digest_file(&inner.part, inner.size, false).map_err(failed)?;
            if found.hash != inner.hash {
                return Err(self.reject(copied)?);
            }
            self.keep_tree(found.outboard)?
        };
        disk::set_mode(STAGING_FOLDER, &*inner.part, DONE_MODE).map_err(failed)?;
        disk::sync_all(STAGING_FOLDER, &*inner.part).map_err(|e| self.spoil(e))?;
        let print = Lake::print_of(&inner.part).map_err(failed)?;
        let uncounted = std::mem::take(&mut lock(&inner.state).uncounted);
        Ok(Proven { hash: inner.hash, size: inner.size, print, tree, uncounted, beside: true })
    }

    /// The bytes are not the blob: forget those that nothing but a chunk list vouched for, or all.
    fn reject(&self, copied: bool) -> Result<StagingError, StagingError> {
        let hash = self.0.hash;
        let error = {
            let mut state = lock(&self.0.state);
            let dropped = if copied { state.groups.drop_copied() } else { 0 };
            if dropped > 0 {
                StagingError::WrongCopies { hash, dropped }
            } else {
                state.groups.clear();
                StagingError::Damaged { hash }
            }
        };
        self.checkpoint()?;
        Ok(error)
    }

    fn keep_tree(&self, outboard: Vec<u8>) -> Result<Tree, StagingError> {
        if outboard.is_empty() {
            Ok(Tree::None)
        } else if outboard.len() <= TREE_INLINE_BYTES_MAX {
            Ok(Tree::Bytes(outboard))
        } else {
            self.write_tree(&mut |file| file.append(&outboard))?;
            Ok(Tree::InFile)
        }
    }

    /// Keeps of the received tree, which goes down to the groups, what is stored.
    fn keep_received_tree(&self) -> Result<Tree, StagingError> {
        let Inner { sidecar, size, hash, .. } = &*self.0;
        let ahead = sidecar.ahead();
        let mut read = |at: u64, into: &mut [u8]| ahead.read(at, into);
        let stored = outboard_bytes(*size) as usize;
        if stored <= TREE_INLINE_BYTES_MAX {
            let mut tree = Vec::with_capacity(stored);
            let mut put = |pair: &[u8]| {
                tree.extend_from_slice(pair);
                Ok(())
            };
            let failed = |e| self.0.shared.failed(&tree_name(hash), e);
            condense(*size, &mut read, &mut put).map_err(failed)?;
            return self.keep_tree(tree);
        }
        self.write_tree(&mut |file| {
            let mut some = Vec::with_capacity(COPY_BYTES);
            condense(*size, &mut read, &mut |pair| {
                some.extend_from_slice(pair);
                if some.len() < COPY_BYTES {
                    return Ok(());
                }
                file.append(&some)?;
                some.clear();
                Ok(())
            })?;
            file.append(&some)
        })?;
        Ok(Tree::InFile)
    }

    /// Writes a long tree to its place in the home, whole and durable before anyone names it.
    fn write_tree(&self, fill: &mut dyn FnMut(&mut Partial) -> io::Result<()>) -> Result<(), StagingError> {
        let path = self.0.shared.catalog.outboard_path(&self.0.hash);
        let mut write = |folder: &Path| -> io::Result<()> {
            TREES.folder(folder, FOLDER_MODE)?;
            let name = self.0.hash.to_string();
            let mut file = TREES.begin(folder, &format!("{name}.part"), FILE_MODE)?;
            fill(&mut file)?;
            file.finish(folder, &name)
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        write(folder).map_err(|source| StagingError::Io { path: path.clone(), source })
    }
}

impl Staging {
    /// Proves blobs that are whole and records all that pass in one commit.
    ///
    /// Returns those that did not pass, each with its reason. After [`StagingError::WrongCopies`]
    /// the groups that local copies touched are missing again.
    pub fn finish_all(&self, blobs: &[Staged]) -> Result<Vec<(BlobHash, StagingError)>, StagingError> {
        let mut failed = Vec::new();
        let mut proven = Vec::new();
        let open: Vec<&Staged> = blobs.iter().filter(|s| !lock(&s.0.state).finished).collect();
        // One after the other: a digest is parallel inside, and bounds its memory that way.
        for (hash, result) in open.iter().map(|s| (s.0.hash, s.prove())) {
            match result {
                Ok(p) => proven.push(p),
                Err(e) => failed.push((hash, e)),
            }
        }
        let counted: Vec<(BlobHash, u64)> = proven.iter().map(|p| (p.hash, p.uncounted)).collect();
        self.record(&proven).inspect_err(|_| {
            // Nothing was recorded, and nothing counted.
            for (hash, uncounted) in counted {
                open.iter().filter(|s| s.0.hash == hash).for_each(|s| lock(&s.0.state).uncounted += uncounted);
            }
        })?;
        for staged in open {
            if failed.iter().all(|(hash, _)| *hash != staged.0.hash) {
                lock(&staged.0.state).finished = true;
            }
        }
        Ok(failed)
    }

    /// The one commit that says "complete".
    pub(super) fn record(&self, proven: &[Proven]) -> Result<(), StagingError> {
        if proven.is_empty() {
            return Ok(());
        }
        let shared = &self.0;
        shared.folder.sync().map_err(|e| shared.failed("", e))?;
        shared.catalog.write(|b| {
            b.add_counter(MOVED_TOTAL, proven.iter().map(|p| p.uncounted).sum())?;
            let begun = b.has_stagings(&shared.space)?;
            for p in proven {
                match &p.tree {
                    Tree::None => {}
                    Tree::Bytes(bytes) => b.put_outboard(&p.hash, bytes)?,
                    Tree::InFile => b.outboard_in_file(&p.hash)?,
                }
                let at = Located { place: part_place(&p.hash), print: p.print.clone(), unknown: Default::default() };
                b.add_place(&shared.space, &p.hash, p.size, at)?;
                if begun {
                    b.remove_staging(&shared.space, &p.hash)?;
                }
            }
            Ok::<_, StagingError>(())
        })?;
        for p in proven.iter().filter(|p| p.beside) {
            // Only now: until the commit it was what a resume would need.
            shared.folder.remove(&tree_name(&p.hash)).map_err(|e| shared.failed(&tree_name(&p.hash), e))?;
        }
        Ok(())
    }
}
