//! Turning blobs into the bytes of the wire protocol, a piece at a time.
//!
//! Invariant: a hash pair or a leaf is put into a piece only after it was checked against the hash
//! above it, down from the blob's own. So a bit that flipped on the disk never leaves: the piece
//! that would hold it is not made.
//!
//! A stored tree ends at blocks of 128 KiB (older ones at groups of 16 KiB), while peers prove every group. So
//! a block is read whole and hashed once, from above; the pairs and bytes inside are then taken from what was
//! hashed, in memory, and never from the disk again. A whole blob costs no hash more than with a finer tree;
//! a single group costs its block.
//!
//! The work is done on blocking threads, one piece per call, so that a peer that reads slowly
//! holds memory for two pieces but no thread.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bao_tree::blake3::Hash;
use bao_tree::blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use bao_tree::io::sync::truncate_ranges;
use bao_tree::iter::{BaoChunk, ResponseIter};
use bao_tree::{BaoTree, BlockSize, ChunkRanges, ChunkRangesRef, TreeNode};
use sluice_protocol::ids::{BlobHash, SiteId};
use sluice_store::outboard::{Block, Grain};
use smallvec::SmallVec;

use super::limits::PIECE_BYTES;
use super::window::Window;
use super::{Host, ServedBlob};

/// 16 KiB groups, as everywhere.
pub(super) const GROUPS: BlockSize = BlockSize::from_chunk_log(4);

/// Why encoding stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error("the blob {hash} is damaged here: {what}")]
    Damaged { hash: BlobHash, what: String },
    #[error("the blob {hash} cannot be read: {source}")]
    Read { hash: BlobHash, source: io::Error },
}

/// A request being answered: its blobs, one after the other.
pub(super) struct Job {
    host: Arc<dyn Host>,
    peer: SiteId,
    queue: VecDeque<(BlobHash, ChunkRanges)>,
    current: Option<Encoder>,
}

impl Job {
    /// Answers `peer` with the given ranges of these blobs, in order.
    pub fn new(host: Arc<dyn Host>, peer: SiteId, blobs: VecDeque<(BlobHash, ChunkRanges)>) -> Self {
        Self { host, peer, queue: blobs, current: None }
    }

    /// The next verified piece; empty at the end. A blob that the host does not give ends the answer.
    pub fn fill(&mut self) -> Result<Vec<u8>, EncodeError> {
        let result = self.fill_checked();
        if let Err(EncodeError::Damaged { hash, .. }) = &result {
            self.host.damaged(*hash);
        }
        result
    }

    fn fill_checked(&mut self) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::new();
        while out.len() < PIECE_BYTES {
            match &mut self.current {
                Some(encoder) => {
                    if !encoder.step(&mut out)? {
                        self.current = None;
                    }
                }
                None => {
                    let Some((hash, ranges)) = self.queue.pop_front() else { break };
                    let Some(blob) = self.host.open_blob(self.peer, hash) else {
                        self.queue.clear();
                        break;
                    };
                    out.reserve(blob.size.min(PIECE_BYTES as u64) as usize);
                    out.extend_from_slice(&blob.size.to_le_bytes());
                    self.current = Some(Encoder::new(hash, blob, &ranges)?);
                }
            }
        }
        // A small answer waits for its acknowledgement in as much memory as it needs.
        out.shrink_to_fit();
        Ok(out)
    }
}

/// One blob being encoded.
struct Encoder {
    hash: BlobHash,
    /// Length of the blob in bytes.
    size: u64,
    order: ResponseIter,
    /// Hashes that what comes next must have.
    expected: SmallVec<[Hash; 40]>,
    data: Window,
    pairs: Window,
    grain: Grain,
    /// The leaf of the stored tree that was proven last, and where it begins.
    block: Block,
    block_at: Option<u64>,
}

impl Encoder {
    fn new(hash: BlobHash, blob: ServedBlob, ranges: &ChunkRangesRef) -> Result<Self, EncodeError> {
        let ServedBlob { size, data, outboard } = blob;
        let stored = outboard.len().map_err(|e| lost(hash, &e))?;
        let Some(grain) = Grain::of(stored, size) else {
            return Err(EncodeError::Damaged { hash, what: format!("its tree has {stored} bytes") });
        };
        let ranges: ChunkRanges = truncate_ranges(ranges, size).union(ChunkRangesRef::empty());
        Ok(Self {
            hash,
            size,
            order: ResponseIter::new(BaoTree::new(size, GROUPS), ranges),
            expected: SmallVec::from_iter([Hash::from_bytes(hash.0)]),
            data: Window::new(data, size),
            pairs: Window::new(outboard, stored),
            grain,
            block: Block::default(),
            block_at: None,
        })
    }

    /// Appends the next pair or leaf; false when there is no more.
    fn step(&mut self, out: &mut Vec<u8>) -> Result<bool, EncodeError> {
        let Some(next) = self.order.next() else {
            return Ok(false);
        };
        let Some(expected) = self.expected.pop() else {
            return Err(self.damaged("its tree has no such node"));
        };
        match next {
            BaoChunk::Parent { node, is_root, left, right, .. } => {
                let pair = self.pair(node, is_root, expected)?;
                if right {
                    self.expected.push(pair.1);
                }
                if left {
                    self.expected.push(pair.0);
                }
                out.extend_from_slice(pair.0.as_bytes());
                out.extend_from_slice(pair.1.as_bytes());
            }
            BaoChunk::Leaf { start_chunk, size, .. } => {
                let at = start_chunk.to_bytes();
                self.prove(at, expected)?;
                out.extend_from_slice(self.proven(at, size)?);
            }
        }
        Ok(true)
    }

    /// The pair at `node`, whose hash is `expected`: stored above the leaves of the stored tree, made from the data inside one.
    fn pair(&mut self, node: TreeNode, is_root: bool, expected: Hash) -> Result<(Hash, Hash), EncodeError> {
        let mid = node.mid().to_bytes();
        if let Some(index) = self.grain.pair_at(mid, self.size) {
            let pair = split(self.pairs.read(index * 64, 64).map_err(|e| lost(self.hash, &e))?);
            if merge(&pair, is_root) != expected {
                return Err(self.damaged(&format!("the hash pair at {node} is wrong")));
            }
            return Ok(pair);
        }
        let range = node.chunk_range();
        let start = range.start.to_bytes();
        self.prove(start, expected)?;
        let inside = self.block_at.and_then(|at| self.block.pair(mid - at));
        if let Some(pair) = inside {
            return Ok(split(pair));
        }
        let end = range.end.to_bytes().min(self.size);
        let (left, right) = self.proven(start, (end - start) as usize)?.split_at((mid - start) as usize);
        Ok((subtree(start, left), subtree(mid, right)))
    }

    /// Reads and hashes the block that `at` lies in, unless it is the one that was proven last. The way down leads
    /// over the top of a block to all that is in it, so what comes first of a block must have the block's hash.
    fn prove(&mut self, at: u64, expected: Hash) -> Result<(), EncodeError> {
        let leaf = self.grain.leaf_bytes();
        let from = at - at % leaf;
        if self.block_at == Some(from) {
            return Ok(());
        }
        self.block_at = None;
        let len = leaf.min(self.size - from) as usize;
        let bytes = self.data.read(from, len).map_err(|e| failed(self.hash, e))?;
        if self.block.hash(bytes, from, self.size <= leaf) != *expected.as_bytes() {
            return Err(self.damaged(&format!("the {len} bytes at {from} have another hash")));
        }
        self.block_at = Some(from);
        Ok(())
    }

    /// Bytes of the block that was proven last, as they were hashed.
    fn proven(&self, at: u64, len: usize) -> Result<&[u8], EncodeError> {
        self.data.held(at, len).ok_or_else(|| self.damaged("what was proven is not held any more"))
    }

    fn damaged(&self, what: &str) -> EncodeError {
        EncodeError::Damaged { hash: self.hash, what: what.to_string() }
    }
}

fn split(pair: &[u8]) -> (Hash, Hash) {
    let half = |b: &[u8]| Hash::from_bytes(b.try_into().expect("64 bytes have two halves of 32"));
    (half(&pair[..32]), half(&pair[32..]))
}

/// The bytes can make the tree again, whatever became of it.
fn lost(hash: BlobHash, source: &io::Error) -> EncodeError {
    EncodeError::Damaged { hash, what: format!("its tree cannot be read: {source}") }
}

/// A file that ends early is damage; a disk that fails may be read again.
fn failed(hash: BlobHash, source: io::Error) -> EncodeError {
    if source.kind() == io::ErrorKind::UnexpectedEof {
        EncodeError::Damaged { hash, what: source.to_string() }
    } else {
        EncodeError::Read { hash, source }
    }
}

/// The hash of a part of a group: the subtree over `bytes`, which lie at `at` in the blob.
fn subtree(at: u64, bytes: &[u8]) -> Hash {
    let mut hasher = bao_tree::blake3::Hasher::new();
    hasher.set_input_offset(at);
    Hash::from_bytes(hasher.update(bytes).finalize_non_root())
}

fn merge(pair: &(Hash, Hash), is_root: bool) -> Hash {
    let (left, right) = (pair.0.as_bytes(), pair.1.as_bytes());
    if is_root {
        merge_subtrees_root(left, right, Mode::Hash)
    } else {
        Hash::from_bytes(merge_subtrees_non_root(left, right, Mode::Hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bao_tree::ChunkNum;
    use bao_tree::io::outboard::PreOrderMemOutboard;
    use proptest::prelude::*;
    use sluice_protocol::messages::Message;

    /// Gives one blob to everybody.
    struct One {
        data: Vec<u8>,
        tree: Vec<u8>,
        damaged: std::sync::Mutex<bool>,
    }

    #[async_trait::async_trait]
    impl Host for One {
        fn is_paired(&self, _: SiteId) -> bool {
            true
        }
        async fn on_message(&self, _: SiteId, _: bool, _: Message) -> Message {
            Message::Done
        }
        fn open_blob(&self, _: SiteId, _: BlobHash) -> Option<ServedBlob> {
            let size = self.data.len() as u64;
            // From a file, so that what is read twice would be read from the disk twice.
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, &self.data).unwrap();
            Some(ServedBlob { size, data: file.into(), outboard: self.tree.clone().into() })
        }
        fn served(&self, _: SiteId, _: u64) {}
        fn damaged(&self, _: BlobHash) {
            *self.damaged.lock().unwrap() = true;
        }
    }

    fn all_pieces(host: &Arc<One>, hash: BlobHash, ranges: ChunkRanges) -> Result<Vec<u8>, EncodeError> {
        let mut job = Job::new(host.clone(), SiteId([0; 32]), VecDeque::from([(hash, ranges)]));
        let mut all = Vec::new();
        loop {
            let piece = job.fill()?;
            if piece.is_empty() {
                return Ok(all);
            }
            assert!(piece.len() <= PIECE_BYTES + 16 * 1024);
            all.extend(piece);
        }
    }

    fn host_of(size: usize, grain: Grain) -> (Arc<One>, BlobHash) {
        let data: Vec<u8> = (0..size).map(|i| (i / 7 % 253) as u8).collect();
        let log = (grain.leaf_bytes() / 1024).ilog2() as u8;
        let tree = PreOrderMemOutboard::create(&data, BlockSize::from_chunk_log(log));
        let hash = BlobHash(*tree.root.as_bytes());
        (Arc::new(One { data, tree: tree.data, damaged: Default::default() }), hash)
    }

    fn grain() -> impl Strategy<Value = Grain> {
        prop::sample::select(vec![Grain::Block, Grain::Group])
    }

    fn ranges_of(cuts: impl IntoIterator<Item = u64>) -> ChunkRanges {
        let cuts: Vec<ChunkNum> = cuts.into_iter().map(ChunkNum).collect();
        ChunkRangesRef::new(&cuts).expect("a set is sorted").union(ChunkRangesRef::empty())
    }

    /// What the format defines as the answer.
    fn defined(data: &[u8], ranges: &ChunkRanges) -> Vec<u8> {
        let tree = PreOrderMemOutboard::create(data, GROUPS);
        let mut right = (data.len() as u64).to_le_bytes().to_vec();
        bao_tree::io::sync::encode_ranges_validated(data, &tree, ranges, &mut right).unwrap();
        right
    }

    #[test]
    fn around_the_borders_of_blocks_the_answer_is_the_defined_one() {
        let k = 1024;
        let sizes = [0, 1, 16 * k, 16 * k + 1, 127 * k, 128 * k - 1, 128 * k, 128 * k + 1, 144 * k, 144 * k + 1];
        for size in sizes.into_iter().chain([256 * k - 1, 256 * k, 256 * k + 1, 384 * k, 640 * k + 5]) {
            for grain in [Grain::Block, Grain::Group] {
                let (host, hash) = host_of(size, grain);
                let last = (size as u64).div_ceil(1024);
                let asked =
                    [vec![0], vec![0, 1], vec![15, 17], vec![127, 129], vec![128, 144], vec![last.saturating_sub(1)]];
                for cuts in asked {
                    let ranges = ranges_of(cuts.clone());
                    let answer = all_pieces(&host, hash, ranges.clone()).unwrap();
                    assert!(answer == defined(&host.data, &ranges), "{size} bytes, {cuts:?}, {grain:?}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Whatever chunks are asked for, and however deep the tree is, the answer is the one that the format defines.
        #[test]
        fn the_answer_is_the_defined_one(
            size in 0usize..700_000,
            cuts in prop::collection::btree_set(0u64..720, 0..9),
            grain in grain(),
        ) {
            let (host, hash) = host_of(size, grain);
            let ranges = ranges_of(cuts);
            let right = defined(&host.data, &ranges);
            prop_assert_eq!(all_pieces(&host, hash, ranges).unwrap(), right);
            prop_assert!(!*host.damaged.lock().unwrap());
        }

        /// A blob under another hash than its own is damage, whatever is asked of it.
        #[test]
        fn nothing_leaves_under_a_wrong_hash(size in 1usize..300_000, chunk in 0u64..300, grain in grain()) {
            let (host, _) = host_of(size, grain);
            let ranges = ChunkRanges::from(ChunkNum(chunk)..ChunkNum(chunk + 1));
            let e = all_pieces(&host, BlobHash::of(b"acme"), ranges).unwrap_err();
            let is_damage = matches!(e, EncodeError::Damaged { .. });
            prop_assert!(is_damage && *host.damaged.lock().unwrap());
        }

        /// One bit that flipped, in the data or in the tree: what left until then is right, and ends before it.
        #[test]
        fn a_flipped_bit_never_leaves(
            size in 1usize..700_000,
            cuts in prop::collection::btree_set(0u64..720, 1..6),
            at: prop::sample::Index,
            bit in 0u8..8,
            grain in grain(),
        ) {
            let (host, hash) = host_of(size, grain);
            let ranges = ranges_of(cuts);
            let right = defined(&host.data, &ranges);
            let (mut data, mut tree) = (host.data.clone(), host.tree.clone());
            let at = at.index(data.len() + tree.len());
            match at.checked_sub(data.len()) {
                None => data[at] ^= 1 << bit,
                Some(at) => tree[at] ^= 1 << bit,
            }
            let host = Arc::new(One { data, tree, damaged: Default::default() });
            let mut job = Job::new(host.clone(), SiteId([0; 32]), VecDeque::from([(hash, ranges)]));
            let mut left = Vec::new();
            let mut ended = false;
            while let Ok(piece) = job.fill() {
                ended = piece.is_empty();
                left.extend(piece);
                if ended {
                    break;
                }
            }
            prop_assert!(right.starts_with(&left));
            prop_assert!(ended == (left.len() == right.len()) && ended != *host.damaged.lock().unwrap());
        }
    }

    #[test]
    fn a_tree_of_another_length_is_damage() {
        let (host, hash) = host_of(300_000, Grain::Block);
        for wrong in [0, 64, host.tree.len() - 1, host.tree.len() + 64] {
            let host = One { data: host.data.clone(), tree: vec![0; wrong], damaged: Default::default() };
            let host = Arc::new(host);
            assert!(matches!(all_pieces(&host, hash, ChunkRanges::all()), Err(EncodeError::Damaged { .. })));
            assert!(*host.damaged.lock().unwrap(), "{wrong}");
        }
    }
}
