//! One pass over a file: its BLAKE3 root, its tree, and the list of its chunks.
//!
//! The file is read in windows with `pread`. Not through a mapping: a file that is cut short while
//! it is mapped would end the process. While one window is hashed and cut, the next is read.
//!
//! Invariant: what comes out depends on the bytes alone, not on window, threads or timing; memory
//! is bounded by two windows, the chunk list, and the tree where it is kept in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use rayon::prelude::*;
use sluice_protocol::chunks::{Chunk, ChunkList, Cut};
use sluice_protocol::ids::{BlobHash, ChunkHash};
use sluice_protocol::limits::{CHUNKED_ABOVE_BYTES, FILE_BYTES_MAX};

use super::cut::{CARRY_BYTES_MAX, Cutter};
use crate::outboard::{self, BLOCK_BYTES, Cv, Grain, PairSink, Windows};

/// Bytes that are read at once: a power of two of blocks, and few enough for the caches of a core.
pub(crate) const WINDOW_BYTES: usize = 4 * 1024 * 1024;
/// Most chunks in one list: a file of some 256 GiB. A longer file has no list, so memory stays bounded.
const LIST_CHUNKS_MAX: usize = 4 * 1024 * 1024;
/// Chunks that are hashed by one task.
const CHUNKS_PER_TASK: usize = 32;
/// Pieces begin at multiples of this in memory.
pub(super) const PAGE_BYTES: usize = 4096;

/// What one pass over a file found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// The BLAKE3 root.
    pub hash: BlobHash,
    /// The tree, as [`crate::outboard`] lays it out; empty up to 128 KiB.
    pub outboard: Vec<u8>,
    /// The chunks, for files above 64 KiB if they were asked for.
    pub list: Option<ChunkList>,
}

/// Random access to the bytes of a file.
pub trait FileReader: Sync {
    /// Fills `buf` from `offset` (bytes) on; `UnexpectedEof` when the file ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl FileReader for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
}

/// Digests the first `size` bytes of `file`, in parallel.
///
/// Memory: two windows of 4 MiB, the tree (1/2048 of the file) and the chunk list. Do not call it
/// from inside a rayon task: waiting tasks would start others and multiply that.
pub fn digest_file(file: &File, size: u64, want_chunks: bool) -> io::Result<Digest> {
    digest_reader(file, size, want_chunks)
}

/// Like [`digest_file`], from any reader.
pub fn digest_reader(reader: &dyn FileReader, size: u64, want_chunks: bool) -> io::Result<Digest> {
    let mut scratch = Scratch::default();
    let mut outboard = memory(size)?;
    let job = Job { reader, size, want_chunks, window: WINDOW_BYTES, parallel: true };
    let (hash, list) = job.run(&mut scratch, &mut outboard)?;
    Ok(Digest { hash, outboard, list })
}

/// An outboard in memory for a file of `size` bytes.
pub(crate) fn memory(size: u64) -> io::Result<Vec<u8>> {
    if size > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is larger than the limit"));
    }
    Ok(vec![0; outboard::outboard_bytes(size) as usize])
}

/// Buffers that outlive a file.
#[derive(Default)]
pub(crate) struct Scratch {
    now: Window,
    next: Window,
    pairs: Vec<u8>,
}

/// A piece of the file, behind room for what the piece before leaves over.
#[derive(Default)]
struct Window {
    /// Only ever grows: what lies behind `end` is old.
    bytes: Vec<u8>,
    /// Where the piece begins: on a page of its own, so that a disk can write into it.
    start: usize,
    end: usize,
}

impl Window {
    /// Room for a piece of `len` bytes.
    fn piece(&mut self, len: usize) -> &mut [u8] {
        let room = CARRY_BYTES_MAX + PAGE_BYTES + len;
        if self.bytes.len() < room {
            self.bytes.resize(room, 0);
            let page = self.bytes[CARRY_BYTES_MAX..].as_ptr().align_offset(PAGE_BYTES);
            // It may be said of no pointer; then nothing is lost but speed.
            self.start = CARRY_BYTES_MAX + page.min(PAGE_BYTES);
        }
        self.end = self.start + len;
        &mut self.bytes[self.start..self.end]
    }

    /// The last `carry` bytes of the room and the piece.
    fn with(&self, carry: usize) -> &[u8] {
        &self.bytes[self.start - carry..self.end]
    }

    /// Takes bytes over into the end of the room.
    fn carry(&mut self, bytes: &[u8]) {
        self.bytes[self.start - bytes.len()..self.start].copy_from_slice(bytes);
    }
}

/// One file to digest.
pub(crate) struct Job<'a> {
    pub reader: &'a dyn FileReader,
    /// Length in bytes.
    pub size: u64,
    pub want_chunks: bool,
    /// Bytes read at once: a power of two of blocks.
    pub window: usize,
    /// Whether rayon may be used.
    pub parallel: bool,
}

impl Job<'_> {
    /// Reads the file once; the tree goes to `sink`.
    pub fn run(&self, scratch: &mut Scratch, sink: &mut dyn PairSink) -> io::Result<(BlobHash, Option<ChunkList>)> {
        let mut lister = (self.want_chunks && self.size > CHUNKED_ABOVE_BYTES).then(Lister::default);
        let windows = self.size.div_ceil(self.window as u64).max(1);
        let tree = Windows { blocks: outboard::blocks(self.size), window: self.window as u64 / BLOCK_BYTES };
        let mut cvs = Vec::new();
        self.read(0, &mut scratch.now)?;
        for index in 0..windows {
            let Scratch { now, next, pairs } = scratch;
            let carry = lister.as_ref().map_or(0, |l| l.carry);
            let last = index + 1 == windows;
            let (read, root) = self.both(
                || if last { Ok(()) } else { self.read(index + 1, next) },
                || {
                    let hash = || self.hash(index, now.with(0), pairs);
                    let list = || lister.as_mut().map(|l| l.take(now.with(carry), last, self.parallel));
                    self.both(hash, list).0
                },
            );
            read?;
            sink.put(pairs, tree.offset(index))?;
            match root {
                Hashed::Root(root) => return Ok((BlobHash(*root.as_bytes()), self.list(lister))),
                Hashed::Part(cv) => cvs.push(cv),
            }
            self.turn(scratch, &lister, last);
        }
        let root = tree.finish(&cvs, sink)?;
        Ok((BlobHash(*root.as_bytes()), self.list(lister)))
    }

    fn both<A: Send, B: Send>(&self, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
        if self.parallel { rayon::join(a, b) } else { (a(), b()) }
    }

    /// Reads window `index` behind the room for what the window before leaves over.
    fn read(&self, index: u64, window: &mut Window) -> io::Result<()> {
        let offset = index * self.window as u64;
        let len = (self.size - offset).min(self.window as u64) as usize;
        self.reader.read_at(window.piece(len), offset)
    }

    fn hash(&self, index: u64, data: &[u8], pairs: &mut Vec<u8>) -> Hashed {
        pairs.clear();
        pairs.resize(outboard::outboard_bytes(data.len() as u64) as usize, 0);
        if data.len() as u64 == self.size {
            Hashed::Root(outboard::whole(data, pairs, Grain::Block, self.parallel))
        } else {
            let offset = index * self.window as u64;
            Hashed::Part(outboard::subtree(data, offset, pairs, Grain::Block, self.parallel))
        }
    }

    /// Puts what is left over in front of the next window, which becomes the present one.
    fn turn(&self, scratch: &mut Scratch, lister: &Option<Lister>, last: bool) {
        if last {
            return;
        }
        let carry = lister.as_ref().map_or(0, |l| l.carry);
        let Window { bytes, end, .. } = &scratch.now;
        scratch.next.carry(&bytes[end - carry..*end]);
        std::mem::swap(&mut scratch.now, &mut scratch.next);
    }

    fn list(&self, lister: Option<Lister>) -> Option<ChunkList> {
        let chunks = lister.filter(|l| !l.too_long)?.chunks;
        Some(ChunkList { cut: Cut::FastCdc, size: self.size, chunks })
    }
}

enum Hashed {
    Root(blake3::Hash),
    Part(Cv),
}

/// Collects the chunks of a file, window by window.
#[derive(Default)]
struct Lister {
    cutter: Cutter,
    chunks: Vec<Chunk>,
    /// Bytes at the end of the last window that belong to a chunk which is not finished.
    carry: usize,
    too_long: bool,
}

impl Lister {
    /// Takes the bytes left over and the next window, which lie in one piece.
    fn take(&mut self, bytes: &[u8], last: bool, parallel: bool) {
        let rest = if parallel { self.cut_and_hash(bytes, last) } else { self.cut_alone(bytes, last) };
        self.carry = rest;
        if self.chunks.len() > LIST_CHUNKS_MAX {
            self.too_long = true;
            self.chunks.clear();
        }
    }

    fn cut_alone(&mut self, mut bytes: &[u8], last: bool) -> usize {
        while let Some(len) = self.cutter.first(bytes, last) {
            let (chunk, rest) = bytes.split_at(len);
            self.chunks.push(of(chunk));
            bytes = rest;
        }
        bytes.len()
    }

    /// Hashes chunks on other threads while this one goes on cutting.
    fn cut_and_hash(&mut self, bytes: &[u8], last: bool) -> usize {
        let done: Mutex<Vec<(usize, Vec<Chunk>)>> = Mutex::default();
        let cutter = &self.cutter;
        let rest = rayon::scope(|scope| {
            let (mut rest, mut task, mut batch) = (bytes, 0, Vec::with_capacity(CHUNKS_PER_TASK));
            loop {
                let found = cutter.first(rest, last);
                if let Some(len) = found {
                    let (chunk, after) = rest.split_at(len);
                    batch.push(chunk);
                    rest = after;
                }
                if found.is_none() || batch.len() == CHUNKS_PER_TASK {
                    let ready = std::mem::take(&mut batch);
                    let done = &done;
                    scope.spawn(move |_| {
                        let hashed = ready.into_iter().map(of).collect();
                        done.lock().expect("no thread panics while it holds the list").push((task, hashed));
                    });
                    task += 1;
                }
                if found.is_none() {
                    return rest.len();
                }
            }
        });
        let mut done = done.into_inner().expect("no thread panics while it holds the list");
        done.par_sort_unstable_by_key(|(task, _)| *task);
        self.chunks.extend(done.into_iter().flat_map(|(_, chunks)| chunks));
        rest
    }
}

fn of(bytes: &[u8]) -> Chunk {
    Chunk { len: bytes.len() as u32, hash: ChunkHash::of(bytes) }
}

const _: () = assert!((WINDOW_BYTES as u64).is_multiple_of(BLOCK_BYTES));
const _: () = assert!((WINDOW_BYTES as u64 / BLOCK_BYTES).is_power_of_two());

#[cfg(test)]
mod tests {
    use bao_tree::BlockSize;
    use bao_tree::io::outboard::PreOrderMemOutboard;
    use fastcdc::v2020::FastCDC;
    use proptest::prelude::*;
    use sluice_protocol::limits::{CHUNK_BYTES_AVG, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};

    use super::*;

    struct Bytes(Vec<u8>);

    impl FileReader for Bytes {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            let at = offset as usize;
            let from = self.0.get(at..at + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buf.copy_from_slice(from);
            Ok(())
        }
    }

    /// Bytes that look random, with stretches that repeat.
    fn bytes(size: usize, seed: u64) -> Vec<u8> {
        let mut out = vec![0; size];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        if size > 400_000 {
            out.copy_within(0..100_000, 250_000);
        }
        out
    }

    fn run(data: &[u8], window: usize, parallel: bool) -> Digest {
        let reader = Bytes(data.to_vec());
        let mut outboard = memory(data.len() as u64).unwrap();
        let job = Job { reader: &reader, size: data.len() as u64, want_chunks: true, window, parallel };
        let (hash, list) = job.run(&mut Scratch::default(), &mut outboard).unwrap();
        Digest { hash, outboard, list }
    }

    fn whole_chunks(data: &[u8]) -> Vec<Chunk> {
        let (min, avg, max) = (CHUNK_BYTES_MIN as usize, CHUNK_BYTES_AVG as usize, CHUNK_BYTES_MAX as usize);
        FastCDC::new(data, min, avg, max).map(|c| of(&data[c.offset..c.offset + c.length])).collect()
    }

    fn check(data: &[u8], window: usize, parallel: bool) {
        let found = run(data, window, parallel);
        let theirs = PreOrderMemOutboard::create(data, BlockSize::from_chunk_log(7));
        let what = (data.len(), window, parallel);
        assert_eq!(found.hash.0, *blake3::hash(data).as_bytes(), "{what:?}");
        assert_eq!(found.hash.0, *theirs.root.as_bytes(), "{what:?}");
        assert!(found.outboard == theirs.data, "the outboard differs {what:?}");
        if data.len() as u64 > CHUNKED_ABOVE_BYTES {
            let list = found.list.unwrap();
            assert_eq!(ChunkList::from_bytes(&list.to_bytes()).unwrap(), list);
            assert!(list.chunks == whole_chunks(data), "the chunks differ {what:?}");
        } else {
            assert_eq!(found.list, None);
        }
    }

    #[test]
    fn equals_bao_tree_and_whole_chunking_at_the_edges() {
        let (k16, m1) = (16 * 1024, 1024 * 1024);
        let mut sizes = vec![0, 1, 1023, 1024, 1025, 3 * k16, 3 * k16 + 1, 5 * k16, 2 * k16];
        sizes.extend([k16 - 1, k16, k16 + 1, 4 * k16, 4 * k16 + 1, 8 * k16 - 1, 8 * k16, 8 * k16 + 1, 24 * k16 + 1]);
        sizes.extend([m1 - 1, m1, m1 + 1, 3 * m1 + 7]);
        for size in sizes {
            let data = bytes(size, size as u64);
            for window in [8 * k16, 16 * k16, m1, WINDOW_BYTES] {
                check(&data, window, false);
                check(&data, window, true);
            }
        }
    }

    #[test]
    fn equals_bao_tree_above_one_window() {
        for size in [WINDOW_BYTES, WINDOW_BYTES + 1, 5 * 1024 * 1024 + 3, 2 * WINDOW_BYTES + 5] {
            check(&bytes(size, 7), WINDOW_BYTES, true);
        }
    }

    #[test]
    fn bytes_without_cut_points_end_at_the_maximum() {
        check(&vec![0; 3 * 1024 * 1024 + 5], 128 * 1024, true);
    }

    #[test]
    fn a_file_on_disk_is_digested_and_a_shorter_one_is_an_error() {
        let data = bytes(1_500_000, 3);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &data).unwrap();
        let open = File::open(file.path()).unwrap();
        let found = digest_file(&open, data.len() as u64, true).unwrap();
        assert_eq!(found, run(&data, 1 << 20, false));
        assert_eq!(digest_file(&open, data.len() as u64, false).unwrap().list, None);
        let error = digest_file(&open, data.len() as u64 + 1, true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn streamed_equals_whole(size in 0usize..3_000_000, seed: u64, log in 0u32..4, parallel: bool) {
            check(&bytes(size, seed), (128 * 1024) << log, parallel);
        }
    }
}
