//! The file beside a part: the tree nodes that arrived, which boot wrote them, what was copied.
//!
//! Layout: the pre-order outboard (64 bytes a node, zero where none arrived), a trailer of 64 bytes
//! (`sluicest`, version, boot id), the bitmap of groups that local copies touched.
//!
//! Invariant: nothing here is believed for itself. A node counts only where it hashes up to the
//! blob's root, and a lost or torn trailer only makes us fetch or hash more.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::{BaoTree, ChunkNum, ChunkRanges};
use sluice_protocol::ids::BlobHash;

use super::groups::bitmap_len;
use super::{Pair, lock, tree_name};
use crate::blobs::GROUPS;
use crate::disk;
use crate::durable::Folder;

/// The room of its changes.
const ROOM: disk::Room = "staging-tree";
const MAGIC: &[u8; 8] = b"sluicest";
const VERSION: u32 = 1;
const TRAILER_BYTES: u64 = 64;
const BOOT_AT: usize = 12;
const BOOT_BYTES_MAX: usize = 48;
/// Bytes of two hashes.
const PAIR_BYTES: usize = 64;
/// Bytes of a tree that are read at once.
const AHEAD_BYTES: u64 = 256 * 1024;

/// What an earlier run left.
pub(super) struct Left {
    pub boot: String,
    pub copied: Vec<u8>,
}

pub(super) struct Sidecar {
    file: File,
    tree: BaoTree,
}

impl Sidecar {
    /// Opens or makes the sidecar; `fresh` empties it.
    pub fn open(folder: &Folder, hash: &BlobHash, size: u64, fresh: bool) -> io::Result<Self> {
        let name = tree_name(hash);
        let open = || match folder.file_rw(&name, false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => disk::create(ROOM, folder, &name, 0o600),
            other => other,
        };
        let file = match open() {
            Ok(file) => file,
            // Something else took the name.
            Err(e) if e.kind() != io::ErrorKind::StorageFull => {
                folder.remove(&name)?;
                open()?
            }
            Err(e) => return Err(e),
        };
        let sidecar = Self { file, tree: BaoTree::new(size, GROUPS) };
        let len = sidecar.trailer_at() + TRAILER_BYTES + bitmap_len(size) as u64;
        if fresh || sidecar.file.metadata()?.len() != len {
            disk::set_len(ROOM, &sidecar.file, 0)?;
            disk::set_len(ROOM, &sidecar.file, len)?;
        }
        Ok(sidecar)
    }

    fn trailer_at(&self) -> u64 {
        self.tree.outboard_size()
    }

    /// Stores nodes, those that follow each other in one write. The first index that no node has is the error
    /// inside, and nothing is written then.
    pub fn put(&self, pairs: &[Pair]) -> io::Result<Result<(), u64>> {
        let nodes = self.tree.outboard_size() / PAIR_BYTES as u64;
        if let Some((index, _)) = pairs.iter().find(|(index, _)| *index >= nodes) {
            return Ok(Err(*index));
        }
        for run in pairs.chunk_by(|a, b| a.0 + 1 == b.0) {
            let bytes: Vec<u8> = run.iter().flat_map(|(_, pair)| *pair).collect();
            disk::write_all_at(ROOM, &self.file, &bytes, run[0].0 * PAIR_BYTES as u64)?;
        }
        Ok(Ok(()))
    }

    pub fn write_boot(&self, boot: &str) -> io::Result<()> {
        let mut trailer = [0u8; TRAILER_BYTES as usize];
        trailer[..8].copy_from_slice(MAGIC);
        trailer[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let boot = &boot.as_bytes()[..boot.len().min(BOOT_BYTES_MAX)];
        trailer[BOOT_AT..BOOT_AT + boot.len()].copy_from_slice(boot);
        disk::write_all_at(ROOM, &self.file, &trailer, self.trailer_at())
    }

    pub fn write_copied(&self, bits: &[u8]) -> io::Result<()> {
        disk::write_all_at(ROOM, &self.file, bits, self.trailer_at() + TRAILER_BYTES)
    }

    /// What the trailer says; a damaged one says that everything may have been copied.
    pub fn read_state(&self) -> io::Result<Left> {
        let mut trailer = [0u8; TRAILER_BYTES as usize];
        self.file.read_exact_at(&mut trailer, self.trailer_at())?;
        let mut copied = vec![0; bitmap_len(self.tree.size())];
        self.file.read_exact_at(&mut copied, self.trailer_at() + TRAILER_BYTES)?;
        if &trailer[..8] != MAGIC || trailer[8..12] != VERSION.to_le_bytes() {
            copied.fill(0xff);
            return Ok(Left { boot: String::new(), copied });
        }
        let boot = &trailer[BOOT_AT..BOOT_AT + BOOT_BYTES_MAX];
        let boot = boot.split(|b| *b == 0).next().unwrap_or_default();
        Ok(Left { boot: String::from_utf8_lossy(boot).into_owned(), copied })
    }

    pub fn sync(&self) -> io::Result<()> {
        disk::sync_data(ROOM, &self.file)
    }

    /// The tree as far as it arrived, for reading from its beginning to its end.
    fn outboard(&self, hash: &BlobHash) -> PreOrderOutboard<Ahead<'_>> {
        PreOrderOutboard { root: hash.0.into(), tree: self.tree, data: self.ahead() }
    }

    /// The bytes of the tree, for reading from its beginning to its end.
    pub fn ahead(&self) -> Ahead<'_> {
        Ahead { file: &self.file, end: self.tree.outboard_size(), held: Mutex::default() }
    }

    /// Which bytes of `part` within `ranges` the received tree proves.
    pub fn proven(&self, hash: &BlobHash, part: &File, ranges: &[Range<u64>]) -> io::Result<Vec<Range<u64>>> {
        let mut chunks = ChunkRanges::empty();
        for r in ranges {
            chunks |= ChunkRanges::from(ChunkNum::full_chunks(r.start)..ChunkNum::chunks(r.end));
        }
        let mut found = Vec::new();
        for range in bao_tree::io::sync::valid_ranges(self.outboard(hash), part, &chunks) {
            let range = range?;
            found.push(range.start.to_bytes()..range.end.to_bytes().min(self.tree.size()));
        }
        Ok(found)
    }

    /// Whether every node arrived and hashes up to the root.
    pub fn is_whole(&self, hash: &BlobHash) -> io::Result<bool> {
        let all = ChunkRanges::all();
        let mut next = ChunkNum(0);
        for range in bao_tree::io::sync::valid_outboard_ranges(self.outboard(hash), &all) {
            let range = range?;
            if range.start > next {
                return Ok(false);
            }
            next = next.max(range.end);
        }
        Ok(next >= self.tree.chunks())
    }
}

/// A tree that is read from its beginning to its end, some pairs left out: in long pieces.
pub(super) struct Ahead<'s> {
    file: &'s File,
    /// The length of the tree in bytes.
    end: u64,
    /// A piece of it, and where that begins.
    held: Mutex<(u64, Vec<u8>)>,
}

impl Ahead<'_> {
    /// Fills `into` from `at` (bytes) on.
    pub fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let mut held = lock(&self.held);
        let (start, bytes) = &mut *held;
        let there = at >= *start && at + into.len() as u64 <= *start + bytes.len() as u64;
        if !there {
            bytes.resize(self.end.saturating_sub(at).min(AHEAD_BYTES) as usize, 0);
            *start = at;
            self.file.read_exact_at(bytes, at)?;
        }
        let from = (at - *start) as usize;
        into.copy_from_slice(bytes.get(from..from + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl bao_tree::io::sync::ReadAt for Ahead<'_> {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let len = into.len().min(self.end.saturating_sub(at) as usize);
        self.read(at, &mut into[..len]).map(|()| len)
    }
}
