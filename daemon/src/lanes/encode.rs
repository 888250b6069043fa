//! Turning blobs into the bytes of the wire protocol, a piece at a time.
//!
//! Invariant: a hash pair or a leaf is put into a piece only after it was checked against the hash
//! above it, down from the blob's own. So a bit that flipped on the disk never leaves: the piece
//! that would hold it is not made.
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
                    self.current = Some(Encoder::new(hash, blob, &ranges));
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
    tree: BaoTree,
    order: ResponseIter,
    /// Hashes that what comes next must have.
    expected: SmallVec<[Hash; 40]>,
    data: Window,
    pairs: Window,
}

impl Encoder {
    fn new(hash: BlobHash, blob: ServedBlob, ranges: &ChunkRangesRef) -> Self {
        let tree = BaoTree::new(blob.size, GROUPS);
        let ranges: ChunkRanges = truncate_ranges(ranges, blob.size).union(ChunkRangesRef::empty());
        Self {
            hash,
            tree,
            order: ResponseIter::new(tree, ranges),
            expected: SmallVec::from_iter([Hash::from_bytes(hash.0)]),
            data: Window::new(blob.data, blob.size),
            pairs: Window::new(blob.outboard, tree.outboard_size()),
        }
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
                let pair = self.pair(node)?;
                if merge(&pair, is_root) != expected {
                    return Err(self.damaged(&format!("the hash pair at {node} is wrong")));
                }
                if right {
                    self.expected.push(pair.1);
                }
                if left {
                    self.expected.push(pair.0);
                }
                out.extend_from_slice(pair.0.as_bytes());
                out.extend_from_slice(pair.1.as_bytes());
            }
            BaoChunk::Leaf { start_chunk, size, is_root, .. } => {
                let at = start_chunk.to_bytes();
                let bytes = self.data.read(at, size).map_err(|e| failed(self.hash, e))?;
                if subtree(at, bytes, is_root) != expected {
                    return Err(self.damaged(&format!("the {size} bytes at {at} have another hash")));
                }
                out.extend_from_slice(bytes);
            }
        }
        Ok(true)
    }

    /// The pair at `node`: stored above the groups, computed from the data inside one.
    fn pair(&mut self, node: TreeNode) -> Result<(Hash, Hash), EncodeError> {
        let hash = self.hash;
        if let Some(index) = self.tree.pre_order_offset(node) {
            // The bytes can make the tree again, whatever became of it.
            let lost = |e: io::Error| EncodeError::Damaged { hash, what: format!("its tree cannot be read: {e}") };
            let bytes = self.pairs.read(index * 64, 64).map_err(lost)?;
            let half = |b: &[u8]| Hash::from_bytes(b.try_into().expect("64 bytes have two halves of 32"));
            return Ok((half(&bytes[..32]), half(&bytes[32..])));
        }
        let range = node.chunk_range();
        let (start, mid) = (range.start.to_bytes(), node.mid().to_bytes());
        let end = range.end.to_bytes().min(self.tree.size());
        let bytes = self.data.read(start, (end - start) as usize).map_err(|e| failed(hash, e))?;
        let (left, right) = bytes.split_at((mid - start) as usize);
        Ok((subtree(start, left, false), subtree(mid, right, false)))
    }

    fn damaged(&self, what: &str) -> EncodeError {
        EncodeError::Damaged { hash: self.hash, what: what.to_string() }
    }
}

/// A file that ends early is damage; a disk that fails may be read again.
fn failed(hash: BlobHash, source: io::Error) -> EncodeError {
    if source.kind() == io::ErrorKind::UnexpectedEof {
        EncodeError::Damaged { hash, what: source.to_string() }
    } else {
        EncodeError::Read { hash, source }
    }
}

/// The hash of the subtree over `bytes`, which lie at `at` in the blob.
fn subtree(at: u64, bytes: &[u8], is_root: bool) -> Hash {
    let mut hasher = bao_tree::blake3::Hasher::new();
    if is_root {
        return hasher.update(bytes).finalize();
    }
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
    struct One(Vec<u8>, std::sync::Mutex<bool>);

    #[async_trait::async_trait]
    impl Host for One {
        fn is_paired(&self, _: SiteId) -> bool {
            true
        }
        async fn on_message(&self, _: SiteId, _: bool, _: Message) -> Message {
            Message::Done
        }
        fn open_blob(&self, _: SiteId, _: BlobHash) -> Option<ServedBlob> {
            let outboard = PreOrderMemOutboard::create(&self.0, GROUPS).data;
            Some(ServedBlob { size: self.0.len() as u64, data: self.0.clone().into(), outboard: outboard.into() })
        }
        fn served(&self, _: SiteId, _: u64) {}
        fn damaged(&self, _: BlobHash) {
            *self.1.lock().unwrap() = true;
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

    fn host_of(size: usize) -> (Arc<One>, BlobHash) {
        let data: Vec<u8> = (0..size).map(|i| (i / 7 % 253) as u8).collect();
        let hash = BlobHash::of(&data);
        (Arc::new(One(data, Default::default())), hash)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever chunks are asked for, the answer is the one that the format defines.
        #[test]
        fn the_answer_is_the_defined_one(
            size in 0usize..400_000,
            cuts in prop::collection::btree_set(0u64..420, 0..9),
        ) {
            let (host, hash) = host_of(size);
            let cuts: Vec<ChunkNum> = cuts.into_iter().map(ChunkNum).collect();
            let ranges: ChunkRanges = ChunkRangesRef::new(&cuts).expect("a set is sorted").union(ChunkRangesRef::empty());
            let outboard = PreOrderMemOutboard::create(&host.0, GROUPS);
            let mut right = (size as u64).to_le_bytes().to_vec();
            bao_tree::io::sync::encode_ranges_validated(&host.0[..], &outboard, &ranges, &mut right).unwrap();
            prop_assert_eq!(all_pieces(&host, hash, ranges).unwrap(), right);
            prop_assert!(!*host.1.lock().unwrap());
        }

        /// A blob under another hash than its own is damage, whatever is asked of it.
        #[test]
        fn nothing_leaves_under_a_wrong_hash(size in 1usize..100_000, chunk in 0u64..100) {
            let (host, _) = host_of(size);
            let ranges = ChunkRanges::from(ChunkNum(chunk)..ChunkNum(chunk + 1));
            let e = all_pieces(&host, BlobHash::of(b"acme"), ranges).unwrap_err();
            let is_damage = matches!(e, EncodeError::Damaged { .. });
            prop_assert!(is_damage && *host.1.lock().unwrap());
        }
    }
}
