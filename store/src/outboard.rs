//! The BLAKE3 tree of a blob: what is kept of it, and how what is not kept is made again.
//!
//! Ranges are proven in groups of 16 KiB. A tree down to the groups would take 0.4 % of the data, so what is
//! stored ends at *blocks* of 128 KiB, 0.05 %; who serves a block has to hash it anyway, and finds the pairs
//! inside on the way ([`Block`]). Trees that reach down to the groups were stored once and are still read
//! ([`Grain`]).
//!
//! A tree over `n` leaves splits off the largest power of two below `n` to the left. Its pairs of child
//! hashes, 64 bytes each, lie in pre-order: a pair, then all pairs of the left half, then those of the right
//! half. So the place of every pair follows from the blob's length alone, and a window of the blob can be
//! hashed and its pairs written without knowing the rest.
//!
//! Invariant: byte for byte what bao-tree makes with blocks of 2^7 chunks, whatever the window and the number
//! of threads.

use std::io;

use bao_tree::BlockSize;
use bao_tree::io::outboard::PreOrderMemOutboard;
use blake3::hazmat::{self, HasherExt, Mode};
use sluice_protocol::ids::BlobHash;
use sluice_protocol::limits::GROUP_BYTES;

/// Bytes of one pair of hashes.
pub const PAIR_BYTES: u64 = 64;
/// What one leaf of a stored tree covers, in bytes.
pub const BLOCK_BYTES: u64 = 128 * 1024;
/// The same as bao-tree counts it: two to the power of this in chunks of 1 KiB.
const BLOCK_CHUNK_LOG: u8 = 7;
/// Below this a subtree is hashed on the thread it began on, in bytes.
const SPLIT_ABOVE_BYTES: usize = 512 * 1024;

const _: () = assert!(BLOCK_BYTES == 1024 << BLOCK_CHUNK_LOG);
const _: () = assert!(BLOCK_BYTES.is_multiple_of(GROUP_BYTES) && (BLOCK_BYTES / GROUP_BYTES).is_power_of_two());

/// How far down a stored tree goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// To groups of 16 KiB, as trees were stored once.
    Group,
    /// To blocks of 128 KiB.
    Block,
}

impl Grain {
    /// Told by the length of the tree of a blob of `size` bytes: the two differ wherever there is a pair.
    /// None when it is neither.
    pub fn of(tree_bytes: u64, size: u64) -> Option<Self> {
        [Grain::Block, Grain::Group].into_iter().find(|grain| grain.tree_bytes(size) == tree_bytes)
    }

    /// Bytes under one leaf of the tree.
    pub fn leaf_bytes(self) -> u64 {
        match self {
            Grain::Group => GROUP_BYTES,
            Grain::Block => BLOCK_BYTES,
        }
    }

    /// Length of the tree of a blob of `size` bytes.
    pub fn tree_bytes(self, size: u64) -> u64 {
        (leaves(size, self.leaf_bytes()) - 1) * PAIR_BYTES
    }

    /// Which pair of the tree of a blob of `size` bytes, in pre-order, has its middle `mid` bytes into the blob;
    /// none when that is inside a leaf or at an end.
    pub fn pair_at(self, mid: u64, size: u64) -> Option<u64> {
        let leaf = self.leaf_bytes();
        (mid.is_multiple_of(leaf) && (1..size).contains(&mid)).then(|| pair_index(mid / leaf, leaves(size, leaf)))
    }
}

/// Leaves of `leaf` bytes of a blob of `size` bytes; an empty blob has one.
fn leaves(size: u64, leaf: u64) -> u64 {
    size.div_ceil(leaf).max(1)
}

/// Blocks of a blob of `size` bytes; an empty blob has one.
pub(crate) fn blocks(size: u64) -> u64 {
    leaves(size, BLOCK_BYTES)
}

/// Length of the stored tree of a blob of `size` bytes, in bytes.
pub fn outboard_bytes(size: u64) -> u64 {
    Grain::Block.tree_bytes(size)
}

/// Leaves in the left half of a tree over `n > 1` leaves.
fn left_leaves(n: u64) -> u64 {
    1 << (63 - (n - 1).leading_zeros())
}

/// The place in pre-order of the pair whose right half begins at leaf `mid`, in a tree over `n` leaves; `0 < mid < n`.
fn pair_index(mid: u64, n: u64) -> u64 {
    let (mut at, mut low, mut high) = (0, 0, n);
    loop {
        let left = left_leaves(high - low);
        match mid.cmp(&(low + left)) {
            std::cmp::Ordering::Equal => return at,
            std::cmp::Ordering::Less => {
                at += 1;
                high = low + left;
            }
            std::cmp::Ordering::Greater => {
                at += left;
                low += left;
            }
        }
    }
}

/// The hash of a subtree that is not the root.
pub(crate) type Cv = [u8; 32];

/// Where the pairs of an outboard go.
pub(crate) trait PairSink {
    /// Writes `bytes` at `offset` (bytes) of the outboard.
    fn put(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl PairSink for Vec<u8> {
    fn put(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let at = offset as usize;
        let slot = self.get_mut(at..at + bytes.len()).ok_or(io::ErrorKind::WriteZero)?;
        slot.copy_from_slice(bytes);
        Ok(())
    }
}

/// Hashes the subtree over `data`, which begins `offset` bytes into the blob, and fills `pairs`
/// with its pairs in pre-order. `pairs` is exactly as long as the subtree's tree of this grain.
pub(crate) fn subtree(data: &[u8], offset: u64, pairs: &mut [u8], grain: Grain, parallel: bool) -> Cv {
    let (left, right) = match halves(data, offset, pairs, grain, parallel) {
        Halves::Leaf(cv) => return cv,
        Halves::Pair(left, right) => (left, right),
    };
    hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash)
}

/// Hashes a whole blob that fits into memory and fills `pairs` with its tree of this grain.
pub(crate) fn whole(data: &[u8], pairs: &mut [u8], grain: Grain, parallel: bool) -> blake3::Hash {
    if data.len() as u64 <= grain.leaf_bytes() {
        return blake3::hash(data);
    }
    match halves(data, 0, pairs, grain, parallel) {
        Halves::Leaf(_) => unreachable!("a blob above one leaf has two halves"),
        Halves::Pair(left, right) => hazmat::merge_subtrees_root(&left, &right, Mode::Hash),
    }
}

enum Halves {
    Leaf(Cv),
    Pair(Cv, Cv),
}

fn halves(data: &[u8], offset: u64, pairs: &mut [u8], grain: Grain, parallel: bool) -> Halves {
    let leaf = grain.leaf_bytes();
    if data.len() as u64 <= leaf {
        let mut hasher = blake3::Hasher::new();
        return Halves::Leaf(hasher.set_input_offset(offset).update(data).finalize_non_root());
    }
    let left_bytes = left_leaves(leaves(data.len() as u64, leaf)) * leaf;
    let (left_data, right_data) = data.split_at(left_bytes as usize);
    let (pair, below) = pairs.split_at_mut(PAIR_BYTES as usize);
    let (left_pairs, right_pairs) = below.split_at_mut(grain.tree_bytes(left_bytes) as usize);
    let mut left = || subtree(left_data, offset, left_pairs, grain, parallel);
    let mut right = || subtree(right_data, offset + left_bytes, right_pairs, grain, parallel);
    let (left, right) =
        if parallel && data.len() > SPLIT_ABOVE_BYTES { rayon::join(left, right) } else { (left(), right()) };
    pair[..32].copy_from_slice(&left);
    pair[32..].copy_from_slice(&right);
    Halves::Pair(left, right)
}

/// The part of the tree above windows of a fixed number of blocks, a power of two.
pub(crate) struct Windows {
    /// Blocks of the whole blob.
    pub blocks: u64,
    /// Blocks in one window; the last may hold fewer.
    pub window: u64,
}

impl Windows {
    /// Where the pairs of window `index` begin in the outboard, in bytes.
    pub fn offset(&self, index: u64) -> u64 {
        let (mut at, mut low, mut high) = (0, 0, self.blocks);
        while high - low > self.window {
            let left = left_leaves(high - low);
            if index * self.window < low + left {
                at += 1;
                high = low + left;
            } else {
                at += left;
                low += left;
            }
        }
        at * PAIR_BYTES
    }

    /// Writes the pairs above the windows, whose hashes are `cvs`, and returns the root.
    /// The blob must span more than one window.
    pub fn finish(&self, cvs: &[Cv], sink: &mut dyn PairSink) -> io::Result<blake3::Hash> {
        let (left, right) = self.pair(0, self.blocks, 0, cvs, sink)?;
        Ok(hazmat::merge_subtrees_root(&left, &right, Mode::Hash))
    }

    fn node(&self, low: u64, high: u64, at: u64, cvs: &[Cv], sink: &mut dyn PairSink) -> io::Result<Cv> {
        if high - low <= self.window {
            return Ok(cvs[(low / self.window) as usize]);
        }
        let (left, right) = self.pair(low, high, at, cvs, sink)?;
        Ok(hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash))
    }

    fn pair(&self, low: u64, high: u64, at: u64, cvs: &[Cv], sink: &mut dyn PairSink) -> io::Result<(Cv, Cv)> {
        let left_count = left_leaves(high - low);
        let left = self.node(low, low + left_count, at + 1, cvs, sink)?;
        let right = self.node(low + left_count, high, at + left_count, cvs, sink)?;
        sink.put(&[left, right].concat(), at * PAIR_BYTES)?;
        Ok((left, right))
    }
}

/// A block in memory whose hash was made, and with it what no stored tree has: the pairs inside.
#[derive(Debug, Default)]
pub struct Block {
    pairs: Vec<u8>,
    len: u64,
}

impl Block {
    /// Hashes `bytes`, at most one block, which begin `offset` bytes into their blob. `is_root` says that they are all of it.
    pub fn hash(&mut self, bytes: &[u8], offset: u64, is_root: bool) -> [u8; 32] {
        self.len = bytes.len() as u64;
        self.pairs.clear();
        self.pairs.resize(Grain::Group.tree_bytes(self.len) as usize, 0);
        if is_root {
            *whole(bytes, &mut self.pairs, Grain::Group, false).as_bytes()
        } else {
            subtree(bytes, offset, &mut self.pairs, Grain::Group, false)
        }
    }

    /// The pair whose right half begins `mid` bytes into the block, as 64 bytes; none when that is inside a group.
    pub fn pair(&self, mid: u64) -> Option<&[u8; PAIR_BYTES as usize]> {
        let index = Grain::Group.pair_at(mid, self.len)? as usize;
        self.pairs.as_chunks().0.get(index)
    }
}

/// Picks what is stored out of the tree of a blob of `size` bytes that goes down to the groups.
///
/// `read` fills a buffer from an offset (bytes) of that tree; `put` takes what is stored, in order.
pub(crate) fn condense(
    size: u64,
    read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    put: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let per_block = BLOCK_BYTES / GROUP_BYTES;
    // Groups that are left of each subtree, and where its pairs begin; the next one last.
    let mut subtrees = vec![(leaves(size, GROUP_BYTES), 0)];
    let mut pair = [0; PAIR_BYTES as usize];
    while let Some((groups, at)) = subtrees.pop() {
        if groups <= per_block {
            continue;
        }
        read(at * PAIR_BYTES, &mut pair)?;
        put(&pair)?;
        let left = left_leaves(groups);
        subtrees.push((groups - left, at + left));
        subtrees.push((left, at + 1));
    }
    Ok(())
}

/// The root and the stored tree of bytes in memory.
pub fn of_bytes(bytes: &[u8]) -> (BlobHash, Vec<u8>) {
    let tree = PreOrderMemOutboard::create(bytes, BlockSize::from_chunk_log(BLOCK_CHUNK_LOG));
    (BlobHash(*tree.root.as_bytes()), tree.data)
}

#[cfg(test)]
mod tests {
    use bao_tree::BaoTree;
    use proptest::prelude::*;

    use super::*;

    const K: u64 = 1024;

    fn bytes(size: u64) -> Vec<u8> {
        let mut out = vec![0; size as usize];
        blake3::Hasher::new().update(&size.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    fn fine(data: &[u8]) -> Vec<u8> {
        PreOrderMemOutboard::create(data, BlockSize::from_chunk_log(4)).data
    }

    /// Lengths around the borders of groups and blocks.
    fn edges() -> Vec<u64> {
        let at = |n: u64| [n - 1, n, n + 1];
        let mut sizes = vec![0, 1];
        sizes.extend([16, 32, 48, 112, 128, 144, 256, 384, 512, 640, 1024].into_iter().flat_map(|k| at(k * K)));
        sizes
    }

    #[test]
    fn lengths_and_halves() {
        assert_eq!((blocks(0), outboard_bytes(0)), (1, 0));
        assert_eq!((blocks(BLOCK_BYTES), outboard_bytes(BLOCK_BYTES)), (1, 0));
        assert_eq!((blocks(BLOCK_BYTES + 1), outboard_bytes(BLOCK_BYTES + 1)), (2, 64));
        let halves: Vec<u64> = [2, 3, 4, 5, 8, 9].map(left_leaves).to_vec();
        assert_eq!(halves, [1, 2, 2, 4, 4, 8]);
    }

    #[test]
    fn the_grain_is_told_by_the_length() {
        for size in edges() {
            let data = bytes(size);
            assert_eq!(Grain::of(of_bytes(&data).1.len() as u64, size), Some(Grain::Block), "{size}");
            let told = Grain::of(fine(&data).len() as u64, size);
            assert_eq!(told, Some(if size <= GROUP_BYTES { Grain::Block } else { Grain::Group }), "{size}");
            assert_eq!(Grain::of(63, size), None);
        }
    }

    #[test]
    fn pairs_lie_where_bao_tree_puts_them() {
        for size in edges() {
            for (grain, log) in [(Grain::Group, 4), (Grain::Block, BLOCK_CHUNK_LOG)] {
                let tree = BaoTree::new(size, BlockSize::from_chunk_log(log));
                let mut pairs = 0;
                for node in tree.pre_order_nodes_iter() {
                    let Some(index) = tree.pre_order_offset(node) else { continue };
                    assert_eq!(grain.pair_at(node.mid().to_bytes(), size), Some(index), "{size} {node}");
                    pairs += 1;
                }
                assert_eq!(grain.tree_bytes(size), pairs * PAIR_BYTES);
            }
        }
    }

    fn check_blocks(size: u64) {
        let data = bytes(size);
        let (root, stored) = of_bytes(&data);
        let theirs = fine(&data);
        let mut picked = Vec::new();
        let mut read = |at: u64, into: &mut [u8]| {
            into.copy_from_slice(&theirs[at as usize..][..into.len()]);
            Ok(())
        };
        condense(size, &mut read, &mut |pair| {
            picked.extend_from_slice(pair);
            Ok(())
        })
        .unwrap();
        assert!(picked == stored, "{size}: what is picked is what is stored");
        let mut block = Block::default();
        for (i, some) in data.chunks(BLOCK_BYTES as usize).enumerate() {
            let offset = i as u64 * BLOCK_BYTES;
            let is_root = size <= BLOCK_BYTES;
            let hash = block.hash(some, offset, is_root);
            assert!(!is_root || hash == root.0);
            for mid in (0..=some.len() as u64).step_by(8 * 1024) {
                let inside = mid > 0 && mid < some.len() as u64 && mid.is_multiple_of(GROUP_BYTES);
                let right = Grain::Group.pair_at(offset + mid, size).filter(|_| inside);
                let right = right.map(|index| &theirs[index as usize * 64..][..64]);
                assert_eq!(block.pair(mid).map(|p| &p[..]), right, "{size}: {mid} in block {i}");
            }
        }
    }

    #[test]
    fn a_block_gives_the_pairs_that_are_not_stored() {
        edges().into_iter().for_each(check_blocks);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn whatever_the_length(size in 0u64..3_000_000) {
            check_blocks(size);
        }
    }

    #[test]
    fn windows_follow_each_other_in_pre_order() {
        // Five blocks in windows of two: root, then ((0 1) (2 3)), then 4.
        let w = Windows { blocks: 5, window: 2 };
        assert_eq!([w.offset(0), w.offset(1), w.offset(2)], [2 * 64, 3 * 64, 4 * 64]);
    }
}
